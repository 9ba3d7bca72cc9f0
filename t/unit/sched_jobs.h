/* Requests for the scheduler over the fake backend: what becomes of them, what they must say. */

#ifndef T_UNIT_SCHED_JOBS_H
#define T_UNIT_SCHED_JOBS_H

#include "engine/base/clock.h"
#include "engine/base/holder.h"
#include "engine/sched/sched.h"
#include "t/unit/fake_backend.h"
#include "t/unit/tap.h"

#define VOCAB 97
#define STOP_ID 1
#define MAX_CHOICES 4
#define MAX_OUT 512

/* One request and what became of it. */
struct job {
    struct llm_request request;
    struct llm_sequence sequences[MAX_CHOICES];
    uint32_t *prompts[MAX_CHOICES];
    struct llm_digest *digests[MAX_CHOICES];
    uint32_t out[MAX_CHOICES][MAX_OUT], n_out[MAX_CHOICES];
    uint32_t logprobs;
    int started, retired, ended[MAX_CHOICES];
    enum llm_end end[MAX_CHOICES];
    uint64_t serial; /* order of `started` */

    /* by the fake clock */
    uint64_t first_ns, last_ns; /* token of its first sequence; 0: none */
    uint64_t gap_ns;            /* the longest between two of them */
};

static struct llm_backend *backend;
static struct llm_sched *sched;
static uint64_t serials;
static struct llm_error err;
static const uint32_t stop_ids[] = {STOP_ID};

static void on_started(void *ctx, struct llm_request *r)
{
    struct job *j = LLM_HOLDER(r, struct job, request);

    (void) ctx;
    j->started++;
    j->serial = ++serials;
}

static void on_token(void *ctx, struct llm_sequence *s, const struct llm_token *t)
{
    struct job *j = LLM_HOLDER(s->request, struct job, request);

    (void) ctx;
    fake_must(!j->retired && !j->ended[s->choice] && j->n_out[s->choice] < MAX_OUT);
    j->out[s->choice][j->n_out[s->choice]++] = t->id;
    j->logprobs += t->n_top;
    if (s->choice == 0) {
        if (j->n_out[0] == 1) {
            j->first_ns = fake.now_ns;
        } else if (fake.now_ns - j->last_ns > j->gap_ns) {
            j->gap_ns = fake.now_ns - j->last_ns;
        }
        j->last_ns = fake.now_ns;
    }
}

static void on_ended(void *ctx, struct llm_sequence *s, enum llm_end end)
{
    struct job *j = LLM_HOLDER(s->request, struct job, request);

    (void) ctx;
    j->ended[s->choice]++;
    j->end[s->choice] = end;
}

static void on_retired(void *ctx, struct llm_request *r)
{
    (void) ctx;
    LLM_HOLDER(r, struct job, request)->retired++;
}

/* A scheduler over a fresh fake backend; `fake` is all zero but for what makes the backend. */
__attribute__((unused)) static void open_with(uint32_t n_pages, bool two_forms,
                                              struct llm_sched_options options)
{
    const struct llm_backend_options backend_options = {
        .max_context = 8192,
        .max_batch_tokens = options.max_batch_tokens,
        .max_seqs = options.max_seqs,
        .deterministic = options.deterministic,
    };
    const struct llm_sched_sink sink = {
        .started = on_started, .token = on_token, .ended = on_ended, .retired = on_retired};

    memset(&fake, 0, sizeof(fake));
    fake.n_pages = n_pages;
    fake.two_forms = two_forms;
    options.n_vocab = VOCAB;
    options.now = fake_now;
    fake_must(fake_ops.load(NULL, &backend_options, &backend, &err) == LLM_OK);
    fake_must(llm_sched_new(&fake_ops, backend, &options, &sink, &sched, &err) == LLM_OK);
}

__attribute__((unused)) static void open_sched(uint32_t n_pages, uint32_t max_batch_tokens,
                                               uint32_t max_seqs)
{
    open_with(n_pages, false, (struct llm_sched_options){.max_batch_tokens = max_batch_tokens,
                                                         .max_seqs = max_seqs});
}

static void close_sched(void)
{
    llm_sched_free(sched);
    fake_ops.free(backend);
}

static uint32_t rng = 1;

static uint32_t below(uint32_t n)
{
    rng = rng * 1664525 + 1013904223;
    return (uint32_t) ((uint64_t) (rng >> 4) * n >> 28);
}

/* n_sequences prompts of random tokens, or as many choices of one prompt. */
static struct job *make_job(uint32_t n_sequences, bool one_prompt, uint32_t n_prompt,
                            uint32_t max_tokens)
{
    struct job *j = calloc(1, sizeof(*j));

    fake_must(j != NULL && n_sequences <= MAX_CHOICES && max_tokens <= MAX_OUT);
    for (uint32_t i = 0; i < n_sequences; i++) {
        if (i == 0 || !one_prompt) {
            j->prompts[i] = calloc(n_prompt, sizeof(*j->prompts[i]));
            fake_must(j->prompts[i] != NULL);
            for (uint32_t k = 0; k < n_prompt; k++) {
                j->prompts[i][k] = 10 + below(VOCAB - 10);
            }
        }
        j->sequences[i] = (struct llm_sequence){
            .prompt = j->prompts[one_prompt ? 0 : i],
            .n_prompt = n_prompt,
            .max_tokens = max_tokens,
            .choice = i,
            .nth = one_prompt ? i : 0,
        };
    }
    j->request = (struct llm_request){
        .stop_ids = stop_ids,
        .n_stop_ids = 1,
        .sequences = j->sequences,
        .n_sequences = n_sequences,
    };
    return j;
}

__attribute__((unused)) static struct job *new_job(uint32_t n_sequences, uint32_t n_prompt,
                                                   uint32_t max_tokens)
{
    return make_job(n_sequences, false, n_prompt, max_tokens);
}

static void free_job(struct job *j)
{
    for (uint32_t i = 0; i < MAX_CHOICES; i++) {
        free(j->prompts[i]);
        free(j->digests[i]);
    }
    free(j);
}

/* Lets others of the scope find its pages. The prompts must be complete. */
__attribute__((unused)) static void share(struct job *j, uint8_t tenant, enum llm_scope scope)
{
    static const uint8_t master[32] = {1, 2, 3};
    struct llm_request *r = &j->request;

    memset(r->tenant_digest, tenant, sizeof(r->tenant_digest));
    r->scope = scope;
    llm_scope_owner(scope, r->tenant_digest, r->owner_digest);
    fake_must(llm_scope_secret(master, scope, r->tenant_digest, r->chain.secret) == LLM_OK);
    for (uint32_t i = 0; i < r->n_sequences; i++) {
        struct llm_sequence *s = &j->sequences[i];

        if (j->prompts[i] != NULL) {
            j->digests[i] = calloc(s->n_prompt / LLM_PAGE_TOKENS + 1, sizeof(*j->digests[i]));
            fake_must(j->digests[i] != NULL);
            fake_must(llm_page_digests(&r->chain, NULL, s->prompt, s->n_prompt / LLM_PAGE_TOKENS,
                                       j->digests[i]) == LLM_OK);
        }
        s->digests = j->digests[i] != NULL ? j->digests[i] : j->digests[0];
    }
}

/* What the sequence must say, worked out without any scheduler. */
static uint32_t expect(const struct job *j, uint32_t i, uint32_t *out, enum llm_end *end)
{
    const struct llm_sequence *s = &j->sequences[i];
    uint32_t mask[(VOCAB + 31) / 32], n = 0;
    uint64_t hash = 0;

    memset(mask, 0xff, sizeof(mask));
    for (uint32_t k = 0; k < j->request.n_stop_ids; k++) {
        mask[j->request.stop_ids[k] / 32] &= ~(1u << j->request.stop_ids[k] % 32);
    }
    for (uint32_t k = 0; k < s->n_prompt; k++) {
        hash = fake_mix(hash, s->prompt[k]);
    }
    while (n < s->max_tokens) {
        uint32_t id = fake_token(hash, VOCAB, n < j->request.min_tokens ? mask : NULL);

        if (id == STOP_ID && j->request.n_stop_ids > 0) {
            *end = LLM_END_STOP;
            return n;
        }
        out[n++] = id;
        hash = fake_mix(hash, id);
    }
    *end = LLM_END_LENGTH;
    return n;
}

__attribute__((unused)) static bool as_expected(const struct job *j)
{
    static uint32_t want[MAX_OUT];
    enum llm_end end;

    for (uint32_t i = 0; i < j->request.n_sequences; i++) {
        uint32_t n = expect(j, i, want, &end);

        if (j->n_out[i] != n || memcmp(j->out[i], want, n * sizeof(*want)) != 0 ||
            j->ended[i] != 1 || j->end[i] != end) {
            diag("sequence %u: %u tokens, want %u; ended %d", i, j->n_out[i], n, j->ended[i]);
            return false;
        }
    }
    return j->retired == 1 && j->started == 1 && j->request.outcome == LLM_OUTCOME_DONE;
}

/* One turn, and a look at the books. False: there is nothing to do. */
static bool turn(void)
{
    int rc = llm_sched_turn(sched, &err);
    const char *wrong = llm_sched_check(sched);

    fake_must(rc == LLM_OK || rc == LLM_EAGAIN);
    if (wrong != NULL) {
        ok(false, "the books: %s", wrong);
        exit(done_testing());
    }
    return rc == LLM_OK;
}

__attribute__((unused)) static void run(void)
{
    while (turn()) {
    }
}

/* Submits it and runs it to its end. */
__attribute__((unused)) static void run_job(struct job *j)
{
    llm_sched_submit(sched, &j->request);
    while (!j->retired && turn()) {
    }
}

__attribute__((unused)) static void is_idle(const char *when)
{
    struct llm_sched_load load = llm_sched_load(sched);

    ok(load.free_pages == load.total_pages && load.running == 0 && load.queued == 0,
       "%s: all pages, slots and places are back", when);
    ok(llm_sched_check(sched) == NULL, "%s: the books are right", when);
}

#endif
