/* The scheduler over a real backend in one thread, for benches: requests of random ids go in, the
 * times of their tokens come out. No tokenizer, no session: what is measured is the engine. */

#ifndef T_BENCH_DRIVER_H
#define T_BENCH_DRIVER_H

#include "engine/base/clock.h"
#include "engine/base/holder.h"
#include "engine/model/dummy.h"
#include "engine/sched/sched.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PROMPT 8192
#define MAX_TOKENS 4096

/* One sequence and when its tokens came. */
struct job {
    struct llm_request request;
    struct llm_sequence sequence;
    struct llm_digest digests[MAX_PROMPT / LLM_PAGE_TOKENS];
    uint32_t prompt[MAX_PROMPT];
    uint64_t submitted, first, last, largest_gap;
    uint32_t n_tokens;
    bool retired;
};

struct driver {
    struct llm_model *model;
    struct llm_backend *backend;
    struct llm_sched *sched;
    uint64_t seed;
    void (*token)(struct job *j, uint64_t gap); /* besides the first; may be NULL */
};

static void bench_fail(const struct llm_error *err)
{
    fprintf(stderr, "%s\n", err->text);
    exit(1);
}

static uint32_t bench_random(struct driver *d, uint32_t below)
{
    d->seed = d->seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t) ((d->seed >> 33) % below);
}

static void bench_on_started(void *ctx, struct llm_request *r)
{
    (void) ctx, (void) r;
}

static void bench_on_token(void *ctx, struct llm_sequence *s, const struct llm_token *t)
{
    struct driver *d = ctx;
    struct job *j = LLM_HOLDER(s->request, struct job, request);
    uint64_t now = llm_now_ns();

    (void) t;
    if (j->n_tokens++ == 0) {
        j->first = now;
    } else {
        if (now - j->last > j->largest_gap) {
            j->largest_gap = now - j->last;
        }
        if (d->token != NULL) {
            d->token(j, now - j->last);
        }
    }
    j->last = now;
}

static void bench_on_ended(void *ctx, struct llm_sequence *s, enum llm_end end)
{
    (void) ctx, (void) s, (void) end;
}

static void bench_on_retired(void *ctx, struct llm_request *r)
{
    (void) ctx;
    LLM_HOLDER(r, struct job, request)->retired = true;
}

/* What the model is made of: a checkpoint, or with `dummy` its shape alone. */
static void bench_open_model(struct driver *d, const char *dir, bool dummy)
{
    struct llm_error err;
    int rc;

    *d = (struct driver){.seed = 1};
    rc = dummy ? llm_model_dummy(dir, 1, &d->model, &err) : llm_model_open(dir, &d->model, &err);
    if (rc != LLM_OK) {
        bench_fail(&err);
    }
}

/* A scheduler that has seen nothing, over the backend. */
static void bench_open_sched(struct driver *d, struct llm_sched_options options)
{
    const struct llm_sched_sink sink = {
        .ctx = d,
        .started = bench_on_started,
        .token = bench_on_token,
        .ended = bench_on_ended,
        .retired = bench_on_retired,
    };
    struct llm_error err;

    options.n_vocab = d->model->config.vocab_size;
    if (llm_sched_new(&llm_backend_cpu, d->backend, &options, &sink, &d->sched, &err) != LLM_OK) {
        bench_fail(&err);
    }
}

static void bench_close_sched(struct driver *d)
{
    struct llm_error err;

    llm_sched_quiesce(d->sched, &err);
    llm_sched_free(d->sched);
}

/* The backend with so many pages, and the scheduler. */
static void bench_start(struct driver *d, uint32_t n_pages, struct llm_sched_options options)
{
    struct llm_backend_options o = {
        .latent_dtype = LLM_LATENT_BF16,
        .max_context = d->model->config.max_positions < n_pages * LLM_PAGE_TOKENS
                           ? d->model->config.max_positions
                           : n_pages * LLM_PAGE_TOKENS,
        .max_batch_tokens = options.max_batch_tokens,
        .max_seqs = options.max_seqs,
    };
    struct llm_page_layout layout;
    struct llm_error err;

    if (llm_page_layout_init(&layout, &d->model->config, o.latent_dtype, &err) != LLM_OK) {
        bench_fail(&err);
    }
    o.latent_bytes = n_pages * layout.page_bytes;
    llm_page_layout_free(&layout);

    if (llm_backend_cpu.load(d->model, &o, &d->backend, &err) != LLM_OK) {
        bench_fail(&err);
    }
    bench_open_sched(d, options);
}

__attribute__((unused)) static void bench_stop(struct driver *d)
{
    bench_close_sched(d);
    llm_backend_cpu.free(d->backend);
}

/* A request of this tenant (a number): the first n_shared tokens of its prompt are those of every
 * prompt of the tenant, the others its own. */
static struct job *bench_job(struct driver *d, uint32_t tenant, uint32_t n_shared, uint32_t n_own,
                             uint32_t max_tokens)
{
    struct job *j = calloc(1, sizeof(*j));
    uint32_t n = n_shared + n_own, vocab = d->model->config.vocab_size;
    struct driver shared = {.seed = tenant + 1000};

    if (j == NULL || n > MAX_PROMPT) {
        exit(1);
    }
    for (uint32_t i = 0; i < n; i++) {
        j->prompt[i] = 16 + bench_random(i < n_shared ? &shared : d, vocab - 16);
    }
    j->sequence = (struct llm_sequence){
        .prompt = j->prompt, .n_prompt = n, .max_tokens = max_tokens, .digests = j->digests};
    j->request = (struct llm_request){
        .weight = 1,
        .sampling = {.top_p = 1, .repetition_penalty = 1},
        .sequences = &j->sequence,
        .n_sequences = 1,
    };
    memcpy(j->request.tenant_digest, &tenant, sizeof(tenant));
    memcpy(j->request.owner_digest, &tenant, sizeof(tenant));
    memcpy(j->request.chain.secret, &tenant, sizeof(tenant));
    if (llm_page_digests(&j->request.chain, NULL, j->prompt, n / LLM_PAGE_TOKENS, j->digests) !=
        LLM_OK) {
        exit(1);
    }
    return j;
}

static void bench_submit(struct driver *d, struct job *j)
{
    j->submitted = llm_now_ns();
    llm_sched_submit(d->sched, &j->request);
}

static void bench_turn(struct driver *d)
{
    struct llm_error err;
    int rc = llm_sched_turn(d->sched, &err);

    if (rc == LLM_EAGAIN) {
        fprintf(stderr, "the latent memory is too small for this\n");
        exit(1);
    }
    if (rc != LLM_OK) {
        bench_fail(&err);
    }
}

/* Runs one request to its end and frees it: the time to its first token, in ms. */
static double bench_first_token(struct driver *d, struct job *j)
{
    double ms;

    bench_submit(d, j);
    while (!j->retired) {
        bench_turn(d);
    }
    ms = (double) (j->first - j->submitted) / (double) LLM_NS_PER_MS;
    free(j);
    return ms;
}

static int bench_ascending(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;

    return (x > y) - (x < y);
}

/* Nearest rank; sorts. */
static double bench_percentile(double *values, uint32_t n, unsigned percent)
{
    qsort(values, n, sizeof(*values), bench_ascending);
    return values[((uint64_t) n * percent + 99) / 100 - 1];
}

#endif
