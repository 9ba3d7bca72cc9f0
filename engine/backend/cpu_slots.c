#include "engine/backend/cpu_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool sampling_ok(const struct llm_backend *b, const struct llm_sampling *s)
{
    if (s->n_vocab == 0 || s->n_vocab > b->model->config.vocab_size
        || s->n_top_logprobs > LLM_MAX_TOP_LOGPROBS) {
        return false;
    }
    if (!isfinite(s->temperature) || s->temperature < 0 || !(s->top_p >= 0 && s->top_p <= 1)
        || !(s->min_p >= 0 && s->min_p <= 1)) {
        return false;
    }
    if (!isfinite(s->repetition_penalty) || s->repetition_penalty <= 0
        || !isfinite(s->presence_penalty) || !isfinite(s->frequency_penalty)) {
        return false;
    }
    for (uint32_t i = 0; i < s->n_bias; i++) {
        if (s->bias_ids[i] >= s->n_vocab || !(s->bias[i] < INFINITY)) {
            return false;
        }
    }
    return true;
}

static void clear_slot(struct llm_cpu_slot *slot)
{
    free((void *) slot->sampling.bias_ids);
    free((void *) slot->sampling.bias);
    free(slot->counts);
    free(slot->seen);
    *slot = (struct llm_cpu_slot){0};
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
static bool fill_slot(struct llm_cpu_slot *slot, const struct llm_sampling *s)
{
    bool counts = s->presence_penalty != 0 || s->frequency_penalty != 0, failed = false;
    bool seen = s->repetition_penalty != 1;

    slot->sampling = *s;
    slot->sampling.bias_ids = copy_of(s->bias_ids, s->n_bias, sizeof(*s->bias_ids), &failed);
    slot->sampling.bias = copy_of(s->bias, s->n_bias, sizeof(*s->bias), &failed);
    slot->counts = copy_of(NULL, counts ? s->n_vocab : 0, sizeof(*slot->counts), &failed);
    slot->seen = copy_of(NULL, seen ? (s->n_vocab + 31) / 32 : 0, sizeof(*slot->seen), &failed);
    if (failed) {
        clear_slot(slot);
        return false;
    }
    slot->used = true;
    return true;
}

/* An empty slot: if need be one whose last step has to run first. NULL when all are taken. */
static struct llm_cpu_slot *find_slot(struct llm_backend *b)
{
    struct llm_cpu_slot *first = NULL;

    for (uint32_t i = 0; i < b->options.max_seqs; i++) {
        struct llm_cpu_slot *slot = &b->slots[i];

        if (!slot->used) {
            return slot;
        }
        if (slot->released && (first == NULL || slot->last_job < first->last_job)) {
            first = slot;
        }
    }
    if (first != NULL) {
        llm_cpu_queue_wait(b->queue, first->last_job);
        clear_slot(first);
    }
    return first;
}

void llm_cpu_slot_count(struct llm_cpu_slot *slot, uint32_t token, bool sampled)
{
    if (token >= slot->sampling.n_vocab) {
        return; /* a row of padding: nobody can sample it */
    }
    if (sampled && slot->counts != NULL) {
        slot->counts[token]++;
    }
    if (slot->seen != NULL) {
        slot->seen[token / 32] |= 1u << token % 32;
    }
}

int llm_cpu_seq_create(struct llm_backend *b, const struct llm_sampling *sampling,
                       const uint32_t *tokens, uint32_t n_prompt, uint32_t n_sampled,
                       uint32_t *slot)
{
    struct llm_cpu_slot *s;

    if (!sampling_ok(b, sampling)) {
        return LLM_EINVAL;
    }
    s = find_slot(b);
    if (s == NULL || !fill_slot(s, sampling)) {
        return LLM_ENOMEM;
    }
    for (uint32_t i = 0; i < n_prompt + n_sampled; i++) {
        llm_cpu_slot_count(s, tokens[i], i >= n_prompt);
    }
    if (n_sampled > 0) {
        s->last = tokens[n_prompt + n_sampled - 1];
        s->has_token = true;
    }
    *slot = (uint32_t) (s - b->slots);
    return LLM_OK;
}

static bool is_live(const struct llm_backend *b, uint32_t slot)
{
    return slot < b->options.max_seqs && b->slots[slot].used && !b->slots[slot].released;
}

void llm_cpu_seq_free(struct llm_backend *b, uint32_t slot)
{
    if (!is_live(b, slot)) {
        return;
    }
    if (llm_cpu_queue_done(b->queue, b->slots[slot].last_job)) {
        clear_slot(&b->slots[slot]);
    } else {
        b->slots[slot].released = true;
    }
}

void llm_cpu_slots_free(struct llm_backend *b)
{
    for (uint32_t i = 0; b->slots != NULL && i < b->options.max_seqs; i++) {
        clear_slot(&b->slots[i]);
    }
}
