#include "engine/backend/cpu_internal.h"

#include <stdlib.h>
#include <string.h>

static void clear_slot(struct llm_backend *b, uint32_t slot)
{
    struct llm_cpu_sequence *s = &b->sequences[slot];

    free((void *) s->sampling.bias_ids);
    free((void *) s->sampling.bias);
    free(s->counts);
    free(s->seen);
    *s = (struct llm_cpu_sequence){0};
    b->slots.slots[slot] = (struct llm_slot){0};
}

/* A copy of n * size bytes, or zeros when `from` is NULL; NULL, and *failed set, when there is no
 * memory. n == 0 needs none. */
static void *copy_of(const void *from, size_t n, size_t size, bool *failed)
{
    void *p = NULL;

    if (n > 0) {
        p = calloc(n, size);
        *failed |= p == NULL;
        if (p != NULL && from != NULL) {
            memcpy(p, from, n * size);
        }
    }
    return p;
}

/* Fills an empty slot. False without memory. */
static bool fill_slot(struct llm_backend *b, uint32_t slot, const struct llm_sampling *sampling)
{
    bool counts = sampling->presence_penalty != 0 || sampling->frequency_penalty != 0;
    bool seen = sampling->repetition_penalty != 1, failed = false;
    struct llm_cpu_sequence *s = &b->sequences[slot];
    uint32_t n_vocab = sampling->n_vocab, n_bias = sampling->n_bias;

    s->sampling = *sampling;
    s->sampling.bias_ids = copy_of(sampling->bias_ids, n_bias, sizeof(*sampling->bias_ids),
                                   &failed);
    s->sampling.bias = copy_of(sampling->bias, n_bias, sizeof(*sampling->bias), &failed);
    s->counts = copy_of(NULL, counts ? n_vocab : 0, sizeof(*s->counts), &failed);
    s->seen = copy_of(NULL, seen ? (n_vocab + 31) / 32 : 0, sizeof(*s->seen), &failed);
    if (failed) {
        clear_slot(b, slot);
        return false;
    }
    b->slots.slots[slot].used = true;
    return true;
}

void llm_cpu_count(struct llm_cpu_sequence *s, uint32_t token, bool sampled)
{
    if (token >= s->sampling.n_vocab) {
        return; /* a row of padding: nobody can sample it */
    }
    if (sampled && s->counts != NULL) {
        s->counts[token]++;
    }
    if (s->seen != NULL) {
        s->seen[token / 32] |= 1u << token % 32;
    }
}

int llm_cpu_seq_create(struct llm_backend *b, const struct llm_sampling *sampling,
                       const uint32_t *tokens, uint32_t n_prompt, uint32_t n_sampled,
                       uint32_t *slot)
{
    struct llm_cpu_sequence *s;
    uint32_t found;

    if (!llm_sampling_ok(sampling, b->model->config.vocab_size)) {
        return LLM_EINVAL;
    }
    found = llm_slots_find(&b->slots);
    if (found == b->slots.n) {
        return LLM_ENOMEM;
    }
    if (b->slots.slots[found].used) {
        llm_queue_wait(b->queue, b->slots.slots[found].last_step);
        clear_slot(b, found);
    }
    if (!fill_slot(b, found, sampling)) {
        return LLM_ENOMEM;
    }

    s = &b->sequences[found];
    for (uint32_t i = 0; i < n_prompt + n_sampled; i++) {
        llm_cpu_count(s, tokens[i], i >= n_prompt);
    }
    if (n_sampled > 0) {
        s->last = tokens[n_prompt + n_sampled - 1];
        b->slots.slots[found].has_token = true;
    }
    *slot = found;
    return LLM_OK;
}

void llm_cpu_seq_free(struct llm_backend *b, uint32_t slot)
{
    if (!llm_slots_live(&b->slots, slot)) {
        return;
    }
    if (llm_queue_done(b->queue, b->slots.slots[slot].last_step)) {
        clear_slot(b, slot);
    } else {
        b->slots.slots[slot].released = true;
    }
}

void llm_cpu_sequences_free(struct llm_backend *b)
{
    for (uint32_t i = 0; i < b->slots.n; i++) {
        clear_slot(b, i);
    }
}
