/* A backend for tests of everything above it: it computes nothing, but keeps the books of a real
 * one and dies at the first step that a real one could not run. The token after a sequence is a
 * hash of the tokens before it, so what a sequence says depends on nothing but itself; a row that
 * is computed holds the hash up to its token, so that a row of somebody else, an old one, or one
 * that is not computed yet, shows as soon as it is read. */

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
    bool two_forms;    /* rows of a prompt and rows after it have other bits */
    bool healed;       /* FAKE_POISON is a token like any other */
    uint64_t step_ns;  /* how long a step really takes */
    uint64_t fixed_ns, row_ns, pair_ns; /* how long it takes by the fake clock */
    uint32_t noise;    /* in percent: so much longer it may take, seldom so much */
    uint64_t now_ns;   /* the fake clock */
    uint64_t bound_ns; /* a step that reads a prompt is late when it takes longer */
    uint64_t fail_at;  /* this step fails, counted from 1; 0: none */
    bool fail_copies;  /* page_copy does */
    uint64_t steps, most_rows, two_in_flight;
    uint64_t longest_ns;     /* step by the fake clock that reads a prompt */
    uint64_t prompt_steps, prompt_ns, late_steps; /* those that read a prompt */
    uint64_t queued_prompts; /* steps that read a prompt and were one of two in flight */
    uint64_t rows_read;      /* rows written from tokens that were known */
    uint64_t rows_again;     /* LLM_ROW_NO_WRITE */
    uint64_t resumed;        /* sequences that came back with what they had sampled */
    uint64_t page_copies, page_ins, page_outs;
} fake = {.n_pages = 64};

struct fake_row {
    uint64_t hash; /* of the tokens up to its own; 0: nothing was written */
    uint32_t position;
    bool decoded;  /* in the form of rows after a prompt */
};

struct fake_seq {
    uint64_t serial;  /* 0: the slot is free */
    uint32_t *tokens; /* [n_tokens], and the hash up to each */
    uint64_t *hashes;
    uint32_t n_tokens, n_prompt;
    uint32_t n_vocab, n_top;
    bool poisoned, logprobs;
};

struct fake_step {
    uint32_t slots[FAKE_MAX_SEQS];
    uint32_t n_seqs;
    bool reads_prompt;
    uint64_t ns;
    uint32_t n_sampled;
    struct llm_sampled sampled[FAKE_MAX_SEQS];
    uint32_t top_ids[FAKE_MAX_SEQS][LLM_MAX_TOP_LOGPROBS];
    float top_logprobs[FAKE_MAX_SEQS][LLM_MAX_TOP_LOGPROBS];
};

/* A copy that was asked for and not made yet: it is its fence's turn, or a step's that waits for
 * it, to make it. So it is made as late as it may be, in order with the others. */
struct fake_move {
    uint32_t page;
    void *out;
    const void *in;
};

#define FAKE_MAX_MOVES 65536

struct llm_backend {
    struct llm_backend_options options;
    struct llm_backend_info info;
    struct fake_row *rows; /* [n_pages * LLM_PAGE_TOKENS] */
    uint64_t *moving_in, *moving_out; /* [n_pages]: the last move of each */
    struct fake_seq seqs[FAKE_MAX_SEQS];
    uint64_t serials;
    struct fake_step steps[2];
    uint64_t submitted, done;
    struct fake_move moves[FAKE_MAX_MOVES]; /* move n, from 1, at n % FAKE_MAX_MOVES */
    uint64_t moves_asked, moves_made;
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
    b->info.one_form = !fake.two_forms;
    b->info.layout.n_planes = 1;
    b->info.layout.page_bytes = LLM_PAGE_TOKENS * sizeof(*b->rows);
    b->rows = calloc((size_t) fake.n_pages * LLM_PAGE_TOKENS, sizeof(*b->rows));
    b->moving_in = calloc(fake.n_pages, sizeof(*b->moving_in));
    b->moving_out = calloc(fake.n_pages, sizeof(*b->moving_out));
    fake_must(b->rows != NULL && b->moving_in != NULL && b->moving_out != NULL);
    *out = b;
    return LLM_OK;
}

static void fake_clear_seq(struct fake_seq *s)
{
    free(s->tokens);
    free(s->hashes);
    *s = (struct fake_seq){0};
}

static void fake_free(struct llm_backend *b)
{
    fake_must(b->moves_made == b->moves_asked); /* or their host memory is gone by now */
    for (uint32_t i = 0; i < FAKE_MAX_SEQS; i++) {
        fake_clear_seq(&b->seqs[i]);
    }
    free(b->rows);
    free(b->moving_in);
    free(b->moving_out);
    free(b);
}

static const struct llm_backend_info *fake_info(const struct llm_backend *b)
{
    return &b->info;
}

static void fake_append(const struct llm_backend *b, struct fake_seq *s, uint32_t token)
{
    uint32_t n = s->n_tokens++;

    fake_must(n <= b->options.max_context);
    s->tokens[n] = token;
    s->hashes[n] = fake_mix(n > 0 ? s->hashes[n - 1] : 0, token);
}

static int fake_seq_create(struct llm_backend *b, const struct llm_sampling *sampling,
                           const uint32_t *tokens, uint32_t n_prompt, uint32_t n_sampled,
                           uint32_t *slot)
{
    size_t room = b->options.max_context + 1;

    if (sampling->top_k == FAKE_REFUSED_TOP_K) {
        return LLM_EINVAL;
    }
    for (uint32_t i = 0; i < b->options.max_seqs; i++) {
        struct fake_seq *s = &b->seqs[i];

        if (s->serial == 0) {
            *s = (struct fake_seq){
                .serial = ++b->serials,
                .tokens = malloc(room * sizeof(*s->tokens)),
                .hashes = malloc(room * sizeof(*s->hashes)),
                .n_prompt = n_prompt,
                .n_vocab = sampling->n_vocab,
                .n_top = sampling->n_top_logprobs,
                .logprobs = sampling->logprobs,
            };
            fake_must(s->tokens != NULL && s->hashes != NULL);
            for (uint32_t j = 0; j < n_prompt + n_sampled; j++) {
                fake_append(b, s, tokens[j]);
                s->poisoned |= j < n_prompt && tokens[j] == FAKE_POISON && !fake.healed;
            }
            fake.resumed += n_sampled > 0;
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
            fake_must(b->steps[i % 2].slots[j] != slot);
        }
    }
    fake_clear_seq(&b->seqs[slot]);
}

/* --- copies --- */

static struct fake_row *fake_page(struct llm_backend *b, uint32_t page)
{
    fake_must(page < fake.n_pages);
    return &b->rows[(size_t) page * LLM_PAGE_TOKENS];
}

static void fake_move_until(struct llm_backend *b, uint64_t fence)
{
    fake_must(fence <= b->moves_asked);
    while (b->moves_made < fence) {
        const struct fake_move *m = &b->moves[++b->moves_made % FAKE_MAX_MOVES];

        if (m->out != NULL) {
            memcpy(m->out, fake_page(b, m->page), b->info.layout.page_bytes);
        } else {
            memcpy(fake_page(b, m->page), m->in, b->info.layout.page_bytes);
        }
    }
}

static int fake_move(struct llm_backend *b, struct fake_move move, uint32_t first, uint32_t n,
                     uint64_t *fence)
{
    fake_must(move.page < fake.n_pages && first == 0 && n == 1);
    fake_must(b->moves_asked - b->moves_made < FAKE_MAX_MOVES);
    *fence = ++b->moves_asked;
    b->moves[*fence % FAKE_MAX_MOVES] = move;
    (move.out != NULL ? b->moving_out : b->moving_in)[move.page] = *fence;
    return LLM_OK;
}

static int fake_page_out(struct llm_backend *b, uint32_t page, uint32_t first, uint32_t n,
                         void *host, uint64_t *fence)
{
    fake.page_outs++;
    return fake_move(b, (struct fake_move){.page = page, .out = host}, first, n, fence);
}

static int fake_page_in(struct llm_backend *b, uint32_t page, uint32_t first, uint32_t n,
                        const void *host, uint64_t *fence)
{
    fake.page_ins++;
    return fake_move(b, (struct fake_move){.page = page, .in = host}, first, n, fence);
}

static bool fake_fence_done(struct llm_backend *b, uint64_t fence)
{
    return fence <= b->moves_made;
}

static int fake_fence_wait(struct llm_backend *b, uint64_t fence)
{
    fake_move_until(b, fence);
    return LLM_OK;
}

/* All copies from and to a page come before what is done to it inside the pool. */
static void fake_settle(struct llm_backend *b, uint32_t page)
{
    fake_move_until(b, b->moving_in[page]);
    fake_move_until(b, b->moving_out[page]);
}

static int fake_page_copy(struct llm_backend *b, uint32_t from, uint32_t to, uint32_t n_rows)
{
    fake_must(from != to && n_rows <= LLM_PAGE_TOKENS);
    if (fake.fail_copies) {
        return LLM_EINTERNAL;
    }
    fake.page_copies++;
    fake_settle(b, from);
    fake_settle(b, to);
    memcpy(fake_page(b, to), fake_page(b, from), n_rows * sizeof(*b->rows));
    return LLM_OK;
}

static int fake_page_clear(struct llm_backend *b, uint32_t page)
{
    fake_settle(b, page);
    memset(fake_page(b, page), 0, b->info.layout.page_bytes);
    return LLM_OK;
}

/* --- steps: they run when they are submitted, and what they sampled is told in time --- */

static struct fake_row *fake_row_at(struct llm_backend *b, const uint32_t *pages, uint32_t position)
{
    return fake_page(b, pages[position / LLM_PAGE_TOKENS]) + position % LLM_PAGE_TOKENS;
}

/* Whether the row in its pages is what this sequence has at that position. */
static bool fake_row_right(struct llm_backend *b, const struct llm_step_seq *q, uint32_t position)
{
    const struct fake_seq *seq = &b->seqs[q->slot];
    const struct fake_row *r = fake_row_at(b, q->pages, position);

    return r->hash == seq->hashes[position] && r->position == position &&
           (!fake.two_forms || !b->options.deterministic ||
            r->decoded == (position >= seq->n_prompt));
}

/* Runs the rows of one sequence, up to the last one, which may have a token sampled after it. */
static void fake_run_rows(struct llm_backend *b, const struct llm_step_seq *q,
                          const uint32_t *tokens, const uint8_t *flags)
{
    const struct fake_seq *seq = &b->seqs[q->slot];

    for (uint32_t i = 0; i < q->n_rows; i++) {
        uint32_t p = q->position + i;

        fake_must(p < seq->n_tokens);
        fake_must(tokens[i] == seq->tokens[p] ||
                  (tokens[i] == LLM_TOKEN_LAST && p + 1 == seq->n_tokens));
        fake_must(i + 1 == q->n_rows || (flags[i] & LLM_ROW_SAMPLE) == 0);
        if ((flags[i] & LLM_ROW_NO_WRITE) != 0) {
            fake.rows_again++;
        } else {
            fake.rows_read += tokens[i] != LLM_TOKEN_LAST;
            *fake_row_at(b, q->pages, p) = (struct fake_row){
                .hash = seq->hashes[p],
                .position = p,
                .decoded = p >= seq->n_prompt && q->n_rows == 1,
            };
        }
    }
    for (uint32_t p = 0; p < q->position + q->n_rows; p++) {
        fake_must(fake_row_right(b, q, p)); /* or it reads what is not its own */
    }
}

static void fake_sample(struct llm_backend *b, const struct llm_step_seq *q, uint32_t row,
                        struct fake_step *s)
{
    struct fake_seq *seq = &b->seqs[q->slot];
    uint32_t at = s->n_sampled++, n = q->position + q->n_rows;
    uint32_t token = fake_token(seq->hashes[n - 1], seq->n_vocab, q->mask);
    struct llm_sampled *out = &s->sampled[at];

    fake_must(n == seq->n_tokens);
    fake_append(b, seq, token);
    *out = (struct llm_sampled){.row = row, .n_tokens = seq->poisoned ? 0 : 1, .tokens[0] = token};
    if (seq->logprobs) {
        out->logprobs[0] = -0.5f;
        out->n_top = seq->n_top;
        for (uint32_t k = 0; k < seq->n_top; k++) {
            s->top_ids[at][k] = (token + k) % seq->n_vocab;
            s->top_logprobs[at][k] = -0.5f - (float) k;
        }
        out->top_ids = s->top_ids[at];
        out->top_logprobs = s->top_logprobs[at];
    }
}

static void fake_check_part(const struct llm_backend *b, const struct llm_step *step, uint32_t i,
                            bool writes)
{
    const struct llm_step_seq *q = &step->seqs[i];

    fake_must(q->slot < b->options.max_seqs && b->seqs[q->slot].serial != 0 && q->n_rows > 0);
    fake_must(q->position + q->n_rows <= b->options.max_context);
    for (uint32_t j = 0; j < i; j++) {
        fake_must(step->seqs[j].slot != q->slot);
    }
    for (uint32_t k = 0; k * LLM_PAGE_TOKENS < q->position + q->n_rows; k++) {
        bool written = writes && (k + 1) * LLM_PAGE_TOKENS > q->position;

        fake_must(b->moving_in[q->pages[k]] <= step->fence);
        fake_must(!written || b->moving_out[q->pages[k]] <= step->fence);
    }
}

/* Rows of one step run at the same time: what one writes, no other may read or write. */
static void fake_check_alone(const struct llm_step *step)
{
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const struct llm_step_seq *w = &step->seqs[i];
        uint32_t end = (w->position + w->n_rows - 1) / LLM_PAGE_TOKENS + 1, row = 0;

        for (uint32_t j = 0; j < step->n_seqs; row += step->seqs[j++].n_rows) {
            const struct llm_step_seq *r = &step->seqs[j];
            uint32_t n = (r->position + r->n_rows - 1) / LLM_PAGE_TOKENS + 1;
            bool writes = (step->flags[row] & LLM_ROW_NO_WRITE) == 0;

            for (uint32_t k = r->position / LLM_PAGE_TOKENS; i != j && writes && k < n; k++) {
                for (uint32_t l = 0; l < end; l++) {
                    fake_must(r->pages[k] != w->pages[l]); /* r writes, w reads or writes */
                }
            }
        }
    }
}

/* Whether rows are read in a chunk; a row in the form of decoding is none, though its token may be
 * known. */
static bool fake_reads(const struct llm_backend *b, const struct llm_step_seq *q, uint32_t token)
{
    bool two_forms = fake.two_forms && b->options.deterministic;

    return token != LLM_TOKEN_LAST && (!two_forms || q->position < b->seqs[q->slot].n_prompt);
}

/* How long a step takes of which so much is to be expected. */
static uint64_t fake_ns(uint64_t ns, uint64_t step)
{
    double random = (double) (fake_mix(fake_mix(1, (uint32_t) step), 1) >> 40) / (1 << 24);

    return ns + (uint64_t) ((double) ns * fake.noise / 100 * random * random);
}

static int fake_submit(struct llm_backend *b, const struct llm_step *step, uint64_t *ticket)
{
    struct fake_step *s = &b->steps[b->submitted % 2];
    uint64_t pairs = 0;
    uint32_t row = 0;

    if (b->submitted - b->done == 2) {
        return LLM_EAGAIN;
    }
    fake_must(step->n_seqs > 0 && step->n_seqs <= b->options.max_seqs);
    fake_must(step->n_rows > 0 && step->n_rows <= b->options.max_batch_tokens);
    fake_move_until(b, step->fence);
    fake_check_alone(step);

    s->n_seqs = step->n_seqs;
    s->n_sampled = 0;
    s->reads_prompt = false;
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const struct llm_step_seq *q = &step->seqs[i];
        uint64_t n = q->n_rows;

        fake_check_part(b, step, i, (step->flags[row] & LLM_ROW_NO_WRITE) == 0);
        fake_run_rows(b, q, step->tokens + row, step->flags + row);
        s->slots[i] = q->slot;
        s->reads_prompt |= fake_reads(b, q, step->tokens[row]);
        pairs += n * q->position + n * (n + 1) / 2;
        row += q->n_rows;
        if ((step->flags[row - 1] & LLM_ROW_SAMPLE) != 0) {
            fake_sample(b, q, row - 1, s);
        }
    }
    fake_must(row == step->n_rows);

    s->ns = fake_ns(fake.fixed_ns + fake.row_ns * row + fake.pair_ns * pairs, b->submitted);
    if (s->reads_prompt) {
        fake.prompt_steps++;
        fake.prompt_ns += s->ns;
        fake.late_steps += s->ns > fake.bound_ns;
        fake.longest_ns = s->ns > fake.longest_ns ? s->ns : fake.longest_ns;
    }
    if (row > fake.most_rows) {
        fake.most_rows = row;
    }
    if (b->submitted > b->done) {
        fake.two_in_flight++;
        fake.queued_prompts += s->reads_prompt || b->steps[(b->submitted + 1) % 2].reads_prompt;
    }
    *ticket = ++b->submitted;
    return LLM_OK;
}

static int fake_wait(struct llm_backend *b, uint64_t ticket, struct llm_step_result *result,
                     struct llm_error *err)
{
    const struct fake_step *s = &b->steps[b->done % 2];

    fake_must(b->done < b->submitted && ticket == b->done + 1);
    if (++fake.steps == fake.fail_at) {
        return llm_fail(err, LLM_EINTERNAL, "the fake device failed");
    }
    if (fake.step_ns > 0) {
        nanosleep(&(struct timespec){.tv_sec = (time_t) (fake.step_ns / LLM_NS_PER_S),
                                     .tv_nsec = (long) (fake.step_ns % LLM_NS_PER_S)}, NULL);
    }
    fake.now_ns += s->ns;
    *result = (struct llm_step_result){
        .n_sampled = s->n_sampled, .sampled = s->sampled, .ns = s->ns + fake.step_ns + 1};
    if (b->options.beat != NULL) {
        b->options.beat(b->options.beat_ctx);
    }
    b->done++;
    return LLM_OK;
}

/* The clock for a scheduler. */
__attribute__((unused)) static uint64_t fake_now(void *ctx)
{
    (void) ctx;
    return fake.now_ns;
}

static const struct llm_backend_ops fake_ops = {
    .load = fake_load,
    .free = fake_free,
    .info = fake_info,
    .seq_create = fake_seq_create,
    .seq_free = fake_seq_free,
    .submit = fake_submit,
    .wait = fake_wait,
    .page_out = fake_page_out,
    .page_in = fake_page_in,
    .fence_done = fake_fence_done,
    .fence_wait = fake_fence_wait,
    .page_copy = fake_page_copy,
    .page_clear = fake_page_clear,
};

#endif
