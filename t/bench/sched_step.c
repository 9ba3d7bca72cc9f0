/* The scheduler's own time: a turn with 64 sequences running and 1,000 waiting, of many tenants,
 * over a backend that does nothing. Prints the median and the 99th percentile of the processor time
 * of whole turns, both halves together. Goal: 100 us. */

#include "engine/base/clock.h"
#include "engine/base/holder.h"
#include "engine/sched/sched.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VOCAB 1000
#define RUNNING 64
#define WAITING 1000
#define TENANTS 250
#define TURNS 20000
#define PROMPT 2048
#define COMMON 1024 /* of all prompts of a tenant */

/* --- a backend that does nothing --- */

struct llm_backend {
    struct llm_backend_info info;
    uint32_t n_free, free[RUNNING];
    struct llm_sampled sampled[2][RUNNING];
    uint32_t n_sampled[2];
    uint64_t submitted, waited, rows;
};

static const struct llm_backend_info *null_info(const struct llm_backend *b)
{
    return &b->info;
}

static int null_seq_create(struct llm_backend *b, const struct llm_sampling *sampling,
                           const uint32_t *tokens, uint32_t n_prompt, uint32_t n_sampled,
                           uint32_t *slot)
{
    (void) sampling;
    (void) tokens;
    (void) n_prompt;
    (void) n_sampled;
    if (b->n_free == 0) {
        return LLM_ENOMEM;
    }
    *slot = b->free[--b->n_free];
    return LLM_OK;
}

static void null_seq_free(struct llm_backend *b, uint32_t slot)
{
    b->free[b->n_free++] = slot;
}

static int null_submit(struct llm_backend *b, const struct llm_step *step, uint64_t *ticket)
{
    uint32_t row = 0, i = b->submitted % 2;

    b->n_sampled[i] = 0;
    for (uint32_t k = 0; k < step->n_seqs; k++) {
        row += step->seqs[k].n_rows;
        if ((step->flags[row - 1] & LLM_ROW_SAMPLE) != 0) {
            struct llm_sampled *s = &b->sampled[i][b->n_sampled[i]++];

            s->row = row - 1;
            s->n_tokens = 1;
            s->tokens[0] = 10 + (uint32_t) (b->submitted * 7 + k) % (VOCAB - 10);
        }
    }
    b->rows = step->n_rows;
    *ticket = ++b->submitted;
    return LLM_OK;
}

static int null_wait(struct llm_backend *b, uint64_t ticket, struct llm_step_result *result,
                     struct llm_error *err)
{
    uint32_t i = b->waited++ % 2;

    (void) ticket;
    (void) err;
    *result = (struct llm_step_result){
        .n_sampled = b->n_sampled[i], .sampled = b->sampled[i], .ns = 2000000 + 50000 * b->rows};
    return LLM_OK;
}

static int null_page_copy(struct llm_backend *b, uint32_t from, uint32_t to, uint32_t n_rows)
{
    (void) b;
    (void) from;
    (void) to;
    (void) n_rows;
    return LLM_OK;
}

static const struct llm_backend_ops null_ops = {
    .info = null_info,
    .seq_create = null_seq_create,
    .seq_free = null_seq_free,
    .submit = null_submit,
    .wait = null_wait,
    .page_copy = null_page_copy,
};

/* --- requests: when one ends, another one comes --- */

struct job {
    struct llm_request request;
    struct llm_sequence sequence;
    struct llm_digest digests[PROMPT / LLM_PAGE_TOKENS];
    uint32_t prompt[PROMPT];
};

static struct job *ended[RUNNING + WAITING];
static uint32_t n_ended;
static uint32_t rng = 1;

static uint32_t below(uint32_t n)
{
    rng = rng * 1664525 + 1013904223;
    return (uint32_t) ((uint64_t) (rng >> 4) * n >> 28);
}

static void on_token(void *ctx, struct llm_sequence *s, const struct llm_token *t)
{
    (void) ctx;
    (void) s;
    (void) t;
}

static void on_started(void *ctx, struct llm_request *r)
{
    (void) ctx;
    (void) r;
}

static void on_ended(void *ctx, struct llm_sequence *s, enum llm_end end)
{
    (void) ctx;
    (void) s;
    (void) end;
}

static void on_retired(void *ctx, struct llm_request *r)
{
    (void) ctx;
    ended[n_ended++] = LLM_HOLDER(r, struct job, request);
}

/* A prompt of 100 … 2,048 tokens and an answer of 50 … 450. */
static void submit(struct llm_sched *s, struct job *j)
{
    uint32_t tenant = below(TENANTS), n = 100 + below(PROMPT - 99);

    memset(j, 0, sizeof(*j));
    for (uint32_t i = 0; i < n; i++) {
        j->prompt[i] = i < COMMON ? 10 + (i * 31 + tenant * 17) % (VOCAB - 10)
                                  : 10 + below(VOCAB - 10);
    }
    memcpy(j->request.tenant_digest, &tenant, sizeof(tenant));
    memcpy(j->request.owner_digest, &tenant, sizeof(tenant));
    memcpy(j->request.chain.secret, &tenant, sizeof(tenant));
    if (llm_page_digests(&j->request.chain, NULL, j->prompt, n / LLM_PAGE_TOKENS, j->digests) !=
        LLM_OK) {
        abort();
    }
    j->sequence = (struct llm_sequence){
        .prompt = j->prompt, .n_prompt = n, .max_tokens = 50 + below(401), .digests = j->digests};
    j->request.weight = 1 + below(4);
    j->request.sequences = &j->sequence;
    j->request.n_sequences = 1;
    llm_sched_submit(s, &j->request);
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

    return (x > y) - (x < y);
}

/* What others do on this machine does not count. */
static uint64_t processor_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t) ts.tv_sec * LLM_NS_PER_S + (uint64_t) ts.tv_nsec;
}

int main(void)
{
    static struct llm_backend backend;
    static struct job jobs[RUNNING + WAITING];
    static uint64_t ns[TURNS];
    const struct llm_sched_sink sink = {
        .started = on_started, .token = on_token, .ended = on_ended, .retired = on_retired};
    const struct llm_sched_options options = {
        .max_batch_tokens = 512,
        .max_seqs = RUNNING,
        .n_vocab = VOCAB,
        .max_step_ns = 100 * LLM_NS_PER_MS,
    };
    struct llm_sched *s;
    struct llm_error err;

    backend.info = (struct llm_backend_info){.n_pages = 3000, .one_form = true};
    backend.info.layout.n_planes = 1;
    backend.info.layout.page_bytes = 64;
    for (uint32_t i = 0; i < RUNNING; i++) {
        backend.free[backend.n_free++] = i;
    }
    if (llm_sched_new(&null_ops, &backend, &options, &sink, &s, &err) != LLM_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    for (uint32_t i = 0; i < RUNNING + WAITING; i++) {
        submit(s, &jobs[i]);
    }

    for (uint32_t i = 0; i < TURNS; i++) {
        uint64_t begin = processor_ns();

        if (llm_sched_turn(s, &err) != LLM_OK) {
            return 1;
        }
        ns[i] = processor_ns() - begin;
        while (n_ended > 0) {
            submit(s, ended[--n_ended]);
        }
    }
    qsort(ns, TURNS, sizeof(*ns), ascending);
    printf("a turn of the scheduler, %u running and %u waiting, %u tenants: median %.1f us, "
           "99 %% below %.1f us, longest %.1f us\n",
           RUNNING, WAITING, TENANTS, (double) ns[TURNS / 2] / 1e3,
           (double) ns[TURNS * 99 / 100] / 1e3, (double) ns[TURNS - 1] / 1e3);
    return 0;
}
