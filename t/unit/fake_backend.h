/* A backend for tests of everything above it: it computes nothing, but keeps the books of a real
 * one and dies at the first step that a real one could not run. The token after a sequence is a
 * hash of the tokens before it, read back through its pages, so what a sequence says depends on
 * nothing but itself, and a page that somebody else wrote shows. */

#ifndef T_UNIT_FAKE_BACKEND_H
#define T_UNIT_FAKE_BACKEND_H

#include "engine/base/clock.h"
#include "engine/backend/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAKE_MAX_SEQS 64
#define FAKE_MAX_ROWS 4096

/* A prompt that holds this token makes the logits of its sequence not finite. */
#define FAKE_POISON 7

/* A top_k that this backend refuses. */
#define FAKE_REFUSED_TOP_K 77

/* What tests set before load, and read. */
static struct {
    uint32_t n_pages;
    uint64_t step_ns;  /* how long a step takes */
    uint64_t fail_at;  /* this step fails, counted from 1; 0: none */
    uint64_t steps, most_rows, two_in_flight;
    uint64_t queued_prompts; /* steps that read a prompt and were one of two in flight */
} fake = {.n_pages = 64};

struct fake_row {
    uint64_t owner; /* serial number of the sequence that wrote it; 0: nobody */
    uint32_t position, token;
};

struct fake_seq {
    uint64_t serial; /* 0: the slot is free */
    uint32_t n_vocab, last, next_position, n_top;
    bool poisoned, logprobs;
};

struct fake_step {
    struct llm_step_seq seqs[FAKE_MAX_SEQS];
    uint32_t *pages[FAKE_MAX_SEQS], *masks[FAKE_MAX_SEQS];
    uint32_t tokens[FAKE_MAX_ROWS];
    uint8_t flags[FAKE_MAX_ROWS];
    uint32_t n_seqs, n_rows;
};

struct llm_backend {
    struct llm_backend_options options;
    struct llm_backend_info info;
    struct fake_row *rows; /* [n_pages * LLM_PAGE_TOKENS] */
    struct fake_seq seqs[FAKE_MAX_SEQS];
    uint64_t serials;
    struct fake_step steps[2];
    uint64_t submitted, done;
    struct llm_sampled sampled[FAKE_MAX_SEQS];
    uint32_t top_ids[FAKE_MAX_SEQS][LLM_MAX_TOP_LOGPROBS];
    float top_logprobs[FAKE_MAX_SEQS][LLM_MAX_TOP_LOGPROBS];
};

#define fake_must(cond)                                                                           \
    do {                                                                                          \
        if (!(cond)) {                                                                            \
            printf("Bail out! fake backend, line %d: %s\n", __LINE__, #cond);                     \
            fflush(stdout);                                                                       \
            abort();                                                                              \
        }                                                                                         \
    } while (0)

static uint64_t fake_mix(uint64_t h, uint32_t token)
{
    h = (h ^ token) * 0x9E3779B97F4A7C15ull;
    return h ^ h >> 29;
}

/* The token that follows a sequence whose tokens have this hash. */
static uint32_t fake_token(uint64_t hash, uint32_t n_vocab, const uint32_t *mask)
{
    uint32_t id = (uint32_t) (hash >> 20) % n_vocab;

    while (mask != NULL && (mask[id / 32] >> id % 32 & 1) == 0) {
        id = (id + 1) % n_vocab;
    }
    return id;
}

static int fake_load(const struct llm_model *model, const struct llm_backend_options *options,
                     struct llm_backend **out, struct llm_error *err)
{
    struct llm_backend *b = calloc(1, sizeof(*b));

    (void) model;
    (void) err;
    fake_must(b != NULL && options->max_seqs <= FAKE_MAX_SEQS);
    fake_must(options->max_batch_tokens <= FAKE_MAX_ROWS);
    b->options = *options;
    b->info.name = "fake";
    b->info.n_pages = fake.n_pages;
    b->rows = calloc((size_t) fake.n_pages * LLM_PAGE_TOKENS, sizeof(*b->rows));
    fake_must(b->rows != NULL);
    *out = b;
    return LLM_OK;
}

static void fake_drop_step(struct fake_step *s)
{
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        free(s->pages[i]);
        free(s->masks[i]);
    }
    s->n_seqs = 0;
}

static void fake_free(struct llm_backend *b)
{
    fake_drop_step(&b->steps[0]);
    fake_drop_step(&b->steps[1]);
    free(b->rows);
    free(b);
}

static const struct llm_backend_info *fake_info(const struct llm_backend *b)
{
    return &b->info;
}

static int fake_seq_create(struct llm_backend *b, const struct llm_sampling *sampling,
                           const uint32_t *tokens, uint32_t n_prompt, uint32_t n_sampled,
                           uint32_t *slot)
{
    if (sampling->top_k == FAKE_REFUSED_TOP_K) {
        return LLM_EINVAL;
    }
    for (uint32_t i = 0; i < b->options.max_seqs; i++) {
        struct fake_seq *s = &b->seqs[i];

        if (s->serial == 0) {
            *s = (struct fake_seq){
                .serial = ++b->serials,
                .n_vocab = sampling->n_vocab,
                .n_top = sampling->n_top_logprobs,
                .logprobs = sampling->logprobs,
            };
            for (uint32_t j = 0; j < n_prompt; j++) {
                s->poisoned = s->poisoned || tokens[j] == FAKE_POISON;
            }
            s->last = n_sampled > 0 ? tokens[n_prompt + n_sampled - 1] : 0;
            *slot = i;
            return LLM_OK;
        }
    }
    return LLM_ENOMEM;
}

static void fake_seq_free(struct llm_backend *b, uint32_t slot)
{
    fake_must(slot < b->options.max_seqs && b->seqs[slot].serial != 0);
    for (uint64_t i = b->done; i < b->submitted; i++) {
        for (uint32_t j = 0; j < b->steps[i % 2].n_seqs; j++) {
            fake_must(b->steps[i % 2].seqs[j].slot != slot);
        }
    }
    b->seqs[slot].serial = 0;
}

static void *fake_copy(const void *p, size_t size)
{
    void *copy = NULL;

    if (p != NULL) {
        copy = malloc(size);
        fake_must(copy != NULL);
        memcpy(copy, p, size);
    }
    return copy;
}

static bool fake_reads_prompt(const struct fake_step *s)
{
    for (uint32_t i = 0; i < s->n_rows; i++) {
        if (s->tokens[i] != LLM_TOKEN_LAST) {
            return true;
        }
    }
    return false;
}

static int fake_submit(struct llm_backend *b, const struct llm_step *step, uint64_t *ticket)
{
    struct fake_step *s = &b->steps[b->submitted % 2];
    uint32_t row = 0;

    if (b->submitted - b->done == 2) {
        return LLM_EAGAIN;
    }
    fake_must(step->n_seqs > 0 && step->n_seqs <= b->options.max_seqs);
    fake_must(step->n_rows > 0 && step->n_rows <= b->options.max_batch_tokens);

    *s = (struct fake_step){.n_seqs = step->n_seqs, .n_rows = step->n_rows};
    memcpy(s->tokens, step->tokens, step->n_rows * sizeof(*s->tokens));
    memcpy(s->flags, step->flags, step->n_rows);
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const struct llm_step_seq *q = &step->seqs[i];
        struct fake_seq *seq = &b->seqs[q->slot];

        fake_must(q->slot < b->options.max_seqs && seq->serial != 0 && q->n_rows > 0);
        fake_must(q->position == seq->next_position);
        fake_must(q->position + q->n_rows <= b->options.max_context);
        for (uint32_t j = 0; j < i; j++) {
            fake_must(step->seqs[j].slot != q->slot);
        }
        seq->next_position += q->n_rows;
        row += q->n_rows;
        s->seqs[i] = *q;
        s->pages[i] = fake_copy(q->pages, sizeof(*q->pages) * ((q->position + q->n_rows +
                                LLM_PAGE_TOKENS - 1) / LLM_PAGE_TOKENS));
        s->masks[i] = fake_copy(q->mask, (seq->n_vocab + 31) / 32 * sizeof(*q->mask));
    }
    fake_must(row == step->n_rows);

    if (step->n_rows > fake.most_rows) {
        fake.most_rows = step->n_rows;
    }
    if (b->submitted > b->done) {
        fake.two_in_flight++;
        fake.queued_prompts += fake_reads_prompt(s) ||
                               fake_reads_prompt(&b->steps[(b->submitted + 1) % 2]);
    }
    *ticket = ++b->submitted;
    return LLM_OK;
}

static struct fake_row *fake_row_at(struct llm_backend *b, const uint32_t *pages, uint32_t position)
{
    uint32_t page = pages[position / LLM_PAGE_TOKENS];

    fake_must(page < fake.n_pages);
    return &b->rows[(size_t) page * LLM_PAGE_TOKENS + position % LLM_PAGE_TOKENS];
}

static void fake_sample(struct llm_backend *b, const struct fake_step *s, uint32_t i, uint32_t row,
                        struct llm_sampled *out)
{
    struct fake_seq *seq = &b->seqs[s->seqs[i].slot];
    uint32_t n = s->seqs[i].position + s->seqs[i].n_rows, at = (uint32_t) (out - b->sampled);
    uint64_t hash = 0;

    for (uint32_t p = 0; p < n; p++) {
        const struct fake_row *r = fake_row_at(b, s->pages[i], p);

        /* or it reads what is not its own */
        fake_must(r->owner == seq->serial && r->position == p);
        hash = fake_mix(hash, r->token);
    }

    *out = (struct llm_sampled){.row = row, .n_tokens = seq->poisoned ? 0 : 1};
    out->tokens[0] = seq->last = fake_token(hash, seq->n_vocab, s->masks[i]);
    if (seq->logprobs) {
        out->logprobs[0] = -0.5f;
        out->n_top = seq->n_top;
        for (uint32_t k = 0; k < seq->n_top; k++) {
            b->top_ids[at][k] = (seq->last + k) % seq->n_vocab;
            b->top_logprobs[at][k] = -0.5f - (float) k;
        }
        out->top_ids = b->top_ids[at];
        out->top_logprobs = b->top_logprobs[at];
    }
}

static int fake_wait(struct llm_backend *b, uint64_t ticket, struct llm_step_result *result,
                     struct llm_error *err)
{
    struct fake_step *s = &b->steps[b->done % 2];
    uint32_t row = 0;

    fake_must(b->done < b->submitted && ticket == b->done + 1);
    if (++fake.steps == fake.fail_at) {
        return llm_fail(err, LLM_EINTERNAL, "the fake device failed");
    }
    if (fake.step_ns > 0) {
        nanosleep(&(struct timespec){.tv_sec = (time_t) (fake.step_ns / LLM_NS_PER_S),
                                     .tv_nsec = (long) (fake.step_ns % LLM_NS_PER_S)}, NULL);
    }

    *result = (struct llm_step_result){.sampled = b->sampled, .ns = fake.step_ns + 1000};
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        const struct llm_step_seq *q = &s->seqs[i];

        for (uint32_t j = 0; j < q->n_rows; j++, row++) {
            bool last = j + 1 == q->n_rows;

            *fake_row_at(b, s->pages[i], q->position + j) = (struct fake_row){
                .owner = b->seqs[q->slot].serial,
                .position = q->position + j,
                .token = s->tokens[row] == LLM_TOKEN_LAST ? b->seqs[q->slot].last : s->tokens[row],
            };
            fake_must(last || (s->flags[row] & LLM_ROW_SAMPLE) == 0);
            if ((s->flags[row] & LLM_ROW_SAMPLE) != 0) {
                fake_sample(b, s, i, row, &b->sampled[result->n_sampled++]);
            }
        }
    }

    if (b->options.beat != NULL) {
        b->options.beat(b->options.beat_ctx);
    }
    fake_drop_step(s);
    b->done++;
    return LLM_OK;
}

static const struct llm_backend_ops fake_ops = {
    .load = fake_load,
    .free = fake_free,
    .info = fake_info,
    .seq_create = fake_seq_create,
    .seq_free = fake_seq_free,
    .submit = fake_submit,
    .wait = fake_wait,
};

#endif
