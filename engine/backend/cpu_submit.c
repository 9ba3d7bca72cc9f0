#include "engine/backend/cpu_internal.h"

#include <string.h>

static void copy_step(const struct llm_backend *b, const struct llm_step *step,
                      struct llm_cpu_step *s)
{
    s->n_seqs = step->n_seqs;
    s->n_rows = step->n_rows;
    memcpy(s->tokens, step->tokens, step->n_rows * sizeof(*s->tokens));
    memcpy(s->flags, step->flags, step->n_rows * sizeof(*s->flags));

    for (uint32_t i = 0; i < step->n_seqs; i++) {
        struct llm_step_seq *seq = &s->seqs[i];
        uint32_t *pages = s->pages + (size_t) i * b->max_pages;
        uint32_t *mask = s->masks + (size_t) i * b->mask_words;
        uint32_t n_words, n_pages;

        *seq = step->seqs[i];
        n_pages = (seq->position + seq->n_rows + LLM_PAGE_TOKENS - 1) / LLM_PAGE_TOKENS;
        memcpy(pages, seq->pages, n_pages * sizeof(*pages));
        seq->pages = pages;
        if (seq->mask != NULL) {
            n_words = (b->sequences[seq->slot].sampling.n_vocab + 31) / 32;
            memcpy(mask, seq->mask, n_words * sizeof(*mask));
            seq->mask = mask;
        }
    }
}

int llm_cpu_submit(struct llm_backend *b, const struct llm_step *step, uint64_t *ticket)
{
    struct llm_cpu_step *s = &b->steps[b->n_submitted % LLM_CPU_STEPS];
    const struct llm_step_limits limits = {
        .max_rows = b->max_rows,
        .max_context = b->options.max_context,
        .n_pages = b->info.n_pages,
        .vocab_size = b->model->config.vocab_size,
        .last_fence = b->last_job,
    };

    if (b->n_submitted - b->n_waited == LLM_CPU_IN_FLIGHT) {
        return LLM_EAGAIN;
    }
    if (!llm_slots_check(&b->slots, &limits, step)) {
        return LLM_EINVAL;
    }
    copy_step(b, step, s);

    /* the queue runs in order: a fence, being an earlier job, is waited for by itself */
    *ticket = b->last_job =
        llm_queue_push(b->queue, &(struct llm_job){.kind = LLM_JOB_STEP, .step = s});
    s->ticket = *ticket;
    b->n_submitted++;
    llm_slots_note(&b->slots, step, *ticket);
    return LLM_OK;
}

int llm_cpu_wait(struct llm_backend *b, uint64_t ticket, struct llm_step_result *result,
                 struct llm_error *err)
{
    const struct llm_cpu_step *s = &b->steps[b->n_waited % LLM_CPU_STEPS];

    if (b->n_waited == b->n_submitted || s->ticket != ticket) {
        return llm_fail(err, LLM_EINVAL, "step %llu is not the oldest",
                        (unsigned long long) ticket);
    }
    llm_queue_wait(b->queue, ticket);
    b->n_waited++;
    *result = (struct llm_step_result){
        .n_sampled = s->n_sampled,
        .sampled = s->sampled,
        .n_logits = s->n_logits,
        .logits = s->logits,
        .ns = s->ns,
    };
    return llm_model_check(b->model, err);
}
