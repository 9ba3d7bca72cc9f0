#include "engine/backend/slots.h"

#include <math.h>
#include <stdlib.h>

int llm_slots_init(struct llm_slots *s, uint32_t n, struct llm_error *err)
{
    *s = (struct llm_slots){.slots = calloc(n, sizeof(*s->slots))};
    if (s->slots == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    s->n = n;
    return LLM_OK;
}

void llm_slots_free(struct llm_slots *s)
{
    free(s->slots);
    *s = (struct llm_slots){0};
}

uint32_t llm_slots_find(const struct llm_slots *s)
{
    uint32_t first = s->n;

    for (uint32_t i = 0; i < s->n; i++) {
        const struct llm_slot *slot = &s->slots[i];

        if (!slot->used) {
            return i;
        }
        if (slot->released && (first == s->n || slot->last_step < s->slots[first].last_step)) {
            first = i;
        }
    }
    return first;
}

bool llm_slots_live(const struct llm_slots *s, uint32_t slot)
{
    return slot < s->n && s->slots[slot].used && !s->slots[slot].released;
}

bool llm_sampling_ok(const struct llm_sampling *s, uint32_t vocab_size)
{
    if (s->n_vocab == 0 || s->n_vocab > vocab_size || s->n_top_logprobs > LLM_MAX_TOP_LOGPROBS) {
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

/* The rows of one sequence, which start at *row of the step. */
static bool rows_ok(const struct llm_slots *s, const struct llm_step_limits *limits,
                    const struct llm_step *step, const struct llm_step_seq *seq, uint32_t *row)
{
    const uint8_t all_flags = LLM_ROW_SAMPLE | LLM_ROW_LOGITS | LLM_ROW_NO_WRITE;

    if (seq->n_rows > step->n_rows - *row) {
        return false;
    }
    for (uint32_t i = 0; i < seq->n_rows; i++, ++*row) {
        uint32_t token = step->tokens[*row];
        uint8_t flags = step->flags[*row];

        if (token == LLM_TOKEN_LAST ? !s->slots[seq->slot].has_token
                                    : token >= limits->vocab_size) {
            return false;
        }
        if ((flags & ~all_flags) != 0 || (flags & LLM_ROW_SAMPLE && i + 1 < seq->n_rows)) {
            return false;
        }
    }
    return true;
}

static bool seq_ok(struct llm_slots *s, const struct llm_step_limits *limits,
                   const struct llm_step_seq *seq)
{
    uint32_t n_pages;

    if (!llm_slots_live(s, seq->slot) || s->slots[seq->slot].checked == s->n_checked) {
        return false;
    }
    s->slots[seq->slot].checked = s->n_checked;

    if (seq->n_rows == 0 || seq->n_draft > 0 || seq->position >= limits->max_context
        || seq->n_rows > limits->max_context - seq->position) {
        return false;
    }
    n_pages = (seq->position + seq->n_rows + LLM_PAGE_TOKENS - 1) / LLM_PAGE_TOKENS;
    for (uint32_t i = 0; i < n_pages; i++) {
        if (seq->pages[i] >= limits->n_pages) {
            return false;
        }
    }
    return true;
}

bool llm_slots_check(struct llm_slots *s, const struct llm_step_limits *limits,
                     const struct llm_step *step)
{
    uint32_t row = 0;

    if (step->n_rows == 0 || step->n_rows > limits->max_rows || step->n_seqs > s->n
        || step->fence > limits->last_fence) {
        return false;
    }
    s->n_checked++;
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        if (!seq_ok(s, limits, &step->seqs[i])
            || !rows_ok(s, limits, step, &step->seqs[i], &row)) {
            return false;
        }
    }
    return row == step->n_rows;
}

void llm_slots_note(struct llm_slots *s, const struct llm_step *step, uint64_t number)
{
    uint32_t row = 0;

    for (uint32_t i = 0; i < step->n_seqs; i++) {
        struct llm_slot *slot = &s->slots[step->seqs[i].slot];

        row += step->seqs[i].n_rows;
        slot->last_step = number;
        slot->has_token |= (step->flags[row - 1] & LLM_ROW_SAMPLE) != 0;
    }
}
