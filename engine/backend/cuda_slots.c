/* Sequence slots. What they hold on the device is written through the compute stream, so that steps
 * in flight still see what they were submitted with, and a slot is free as soon as it is let go
 * of. */

#include "engine/backend/cuda_internal.h"

#include <stdlib.h>
#include <string.h>

static void put(struct llm_backend *b, void *to, const void *from, size_t bytes)
{
    llm_cuda_try(b, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, b->compute),
                 "a new sequence");
}

/* What the penalties know of the tokens so far. False without memory. */
static bool put_counts(struct llm_backend *b, uint32_t slot, const struct llm_sampling *s,
                       const uint32_t *tokens, uint32_t n_prompt, uint32_t n_sampled)
{
    size_t counts_bytes = s->n_vocab * sizeof(*b->counts);
    size_t seen_bytes = (s->n_vocab + 31) / 32 * sizeof(*b->seen);
    uint32_t *counts = calloc(1, counts_bytes), *seen = calloc(1, seen_bytes);
    bool fine = counts != NULL && seen != NULL;

    for (uint32_t i = 0; fine && i < n_prompt + n_sampled; i++) {
        if (tokens[i] < s->n_vocab) { /* else a row of padding: nobody can sample it */
            counts[tokens[i]] += i >= n_prompt;
            seen[tokens[i] / 32] |= 1u << tokens[i] % 32;
        }
    }
    if (fine) {
        put(b, b->counts + (size_t) slot * b->model->config.vocab_size, counts, counts_bytes);
        put(b, b->seen + (size_t) slot * b->mask_words, seen, seen_bytes);
    }
    free(counts);
    free(seen);
    return fine;
}

int llm_cuda_seq_create(struct llm_backend *b, const struct llm_sampling *sampling,
                        const uint32_t *tokens, uint32_t n_prompt, uint32_t n_sampled,
                        uint32_t *slot)
{
    uint32_t vocab = b->model->config.vocab_size, found = llm_slots_find(&b->slots);
    bool counted, repetition;
    uint32_t state[2] = {0, 0}; /* its last token, whether it is over */
    size_t at;

    if (!llm_sampling_ok(sampling, vocab)) {
        return LLM_EINVAL;
    }
    if (found == b->slots.n) {
        return LLM_ENOMEM;
    }
    at = (size_t) found * vocab;
    counted = sampling->presence_penalty != 0 || sampling->frequency_penalty != 0;
    repetition = sampling->repetition_penalty != 1;
    if ((counted || repetition)
        && !put_counts(b, found, sampling, tokens, n_prompt, n_sampled)) {
        return LLM_ENOMEM;
    }
    if (sampling->n_bias > 0) {
        put(b, b->bias_ids + at, sampling->bias_ids,
            sampling->n_bias * sizeof(*sampling->bias_ids));
        put(b, b->bias + at, sampling->bias, sampling->n_bias * sizeof(*sampling->bias));
    }
    put(b, b->d_samplings + found,
        &(struct llm_cuda_sampling){
            .temperature = sampling->temperature,
            .top_p = sampling->top_p,
            .min_p = sampling->min_p,
            .top_k = sampling->top_k,
            .repetition_penalty = sampling->repetition_penalty,
            .presence_penalty = sampling->presence_penalty,
            .frequency_penalty = sampling->frequency_penalty,
            .choice = sampling->choice,
            .seed = sampling->seed,
            .n_vocab = sampling->n_vocab,
            .n_top_logprobs = sampling->n_top_logprobs,
            .logprobs = sampling->logprobs || sampling->n_top_logprobs > 0,
            .n_bias = sampling->n_bias,
            .bias_ids = b->bias_ids + at,
            .bias = b->bias + at,
            .counts = counted ? b->counts + at : NULL,
            .seen = repetition ? b->seen + (size_t) found * b->mask_words : NULL,
        },
        sizeof(*b->d_samplings));
    if (n_sampled > 0) {
        state[0] = tokens[n_prompt + n_sampled - 1];
    }
    put(b, b->last + found, &state[0], sizeof(state[0]));
    put(b, b->over + found, &state[1], sizeof(state[1]));

    b->samplings[found] = *sampling;
    b->samplings[found].bias_ids = NULL;
    b->samplings[found].bias = NULL;
    b->slots.slots[found] = (struct llm_slot){.used = true, .has_token = n_sampled > 0};
    *slot = found;
    return LLM_OK;
}

void llm_cuda_seq_free(struct llm_backend *b, uint32_t slot)
{
    if (llm_slots_live(&b->slots, slot)) {
        b->slots.slots[slot] = (struct llm_slot){0};
    }
}
