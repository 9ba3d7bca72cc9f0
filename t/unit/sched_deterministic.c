/* The same bits, whatever happens: on the demo model, with --deterministic, a request has the same
 * tokens and log-probabilities in any company, in chunks of any size, preempted or not, whether its
 * prefix is computed, found in memory, brought back from the host tier or loaded from Redis.
 *
 * Every prompt is answered alone first, by a scheduler that has seen nothing. Then random mixes of
 * them run over backends and schedulers of random sizes, and each answer is compared. 50 mixes, or
 * 2,000 with LLM_LONG=1; LLM_SEED=N repeats a run. On the device that LLM_DEVICE names (cpu). */

#include "engine/base/clock.h"
#include "engine/sched/sched.h"
#include "t/unit/device.h"
#include "t/unit/fake_redis.h"
#include "t/unit/tap.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEMO "models/demo"

#define N_PROMPTS 10
#define MAX_PROMPT 256
#define MAX_TOKENS 12
#define MAX_CONTEXT (MAX_PROMPT + MAX_TOKENS + 4)
#define N_TOP 3
#define MAX_CHOICES 3
#define MAX_JOBS 6
#define N_TENANTS 3

#define must(cond)                                                                                \
    do {                                                                                          \
        if (!(cond)) {                                                                            \
            printf("Bail out! line %d: %s\n", __LINE__, #cond);                                   \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

struct answer {
    uint32_t n;
    uint32_t ids[MAX_TOKENS];
    float logprobs[MAX_TOKENS];
    uint32_t top_ids[MAX_TOKENS][N_TOP];
    float top_logprobs[MAX_TOKENS][N_TOP];
};

struct prompt {
    uint32_t ids[MAX_PROMPT], n;
    float temperature;
    struct answer alone[MAX_CHOICES];
};

/* A request of a mix. */
struct job {
    struct llm_request request;
    struct llm_sequence sequences[MAX_CHOICES];
    struct answer answers[MAX_CHOICES];
    struct llm_digest digests[MAX_PROMPT / LLM_PAGE_TOKENS];
    const struct prompt *prompt;
    uint32_t submit_at, cancel_at, pause_at, resume_at; /* turns; UINT32_MAX: never */
    bool submitted, retired;
};

static struct llm_device device;
static struct llm_model *model;
static struct prompt prompts[N_PROMPTS];
static struct llm_error err;
static uint64_t random_state;

/* What has been seen in the mixes, so that nobody believes in mixes of nothing. */
static struct {
    uint64_t hits, host_hits, loaded, preempted, cancelled, answers;
} seen;

static uint32_t below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t) (random_state >> 33) % n;
}

/* --- backends --- */

static struct llm_backend_info claimed; /* the real one's, but for one_form */

static const struct llm_backend_info *claim(const struct llm_backend *b)
{
    (void) b;
    return &claimed;
}

struct setting {
    uint32_t n_pages, max_rows, max_seqs;
    struct llm_backend *backend;
};

static struct setting settings[] = {
    {.n_pages = 64, .max_rows = 512, .max_seqs = 8},
    {.n_pages = 64, .max_rows = 24, .max_seqs = 4},
    {.n_pages = 7, .max_rows = 100, .max_seqs = 4}, /* one of the longest takes five */
    {.n_pages = 9, .max_rows = 9, .max_seqs = 8},
};

#define N_SETTINGS (sizeof(settings) / sizeof(settings[0]))

static void open_backends(enum llm_latent_dtype latents)
{
    struct llm_page_layout layout;

    must(llm_page_layout_init(&layout, &model->config, latents, &err) == LLM_OK);
    for (unsigned i = 0; i < N_SETTINGS; i++) {
        const struct llm_backend_options options = {
            .numerics = latents == LLM_LATENT_F32 ? LLM_NUMERICS_EXACT : LLM_NUMERICS_DEFAULT,
            .deterministic = true,
            .latent_dtype = latents,
            .latent_bytes = settings[i].n_pages * layout.page_bytes,
            .max_context = MAX_CONTEXT,
            .max_batch_tokens = settings[i].max_rows,
            .max_seqs = settings[i].max_seqs,
            .threads = 1 + i % 2,
            .device = device.index,
        };

        must(device.ops->load(model, &options, &settings[i].backend, &err) == LLM_OK);
    }
    llm_page_layout_free(&layout);
}

static void close_backends(void)
{
    for (unsigned i = 0; i < N_SETTINGS; i++) {
        device.ops->free(settings[i].backend);
    }
}

/* --- jobs --- */

static struct job *job_of(struct llm_request *r)
{
    return (struct job *) ((char *) r - offsetof(struct job, request));
}

static void on_started(void *ctx, struct llm_request *r)
{
    (void) ctx;
    (void) r;
}

static void on_token(void *ctx, struct llm_sequence *s, const struct llm_token *t)
{
    struct answer *a = &job_of(s->request)->answers[s->choice];

    (void) ctx;
    must(a->n < MAX_TOKENS && t->n_top == N_TOP);
    a->ids[a->n] = t->id;
    a->logprobs[a->n] = t->logprob;
    memcpy(a->top_ids[a->n], t->top_ids, sizeof(a->top_ids[0]));
    memcpy(a->top_logprobs[a->n], t->top_logprobs, sizeof(a->top_logprobs[0]));
    a->n++;
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
    job_of(r)->retired = true;
}

static const struct llm_sched_sink sink = {
    .started = on_started, .token = on_token, .ended = on_ended, .retired = on_retired};

static void name_pages(struct job *j, enum llm_scope scope)
{
    static const uint8_t master[32] = "of this test";
    struct llm_request *r = &j->request;

    r->scope = scope;
    llm_scope_owner(scope, r->tenant_digest, r->owner_digest);
    if (scope == LLM_SCOPE_OFF) {
        return;
    }
    must(llm_scope_secret(master, scope, r->tenant_digest, r->chain.secret) == LLM_OK);
    must(llm_page_digests(&r->chain, NULL, j->prompt->ids, j->prompt->n / LLM_PAGE_TOKENS,
                          j->digests) == LLM_OK);
    for (uint32_t i = 0; i < r->n_sequences; i++) {
        j->sequences[i].digests = j->digests;
    }
}

/* choices nth … nth + n - 1 of a prompt. */
static void make_job(struct job *j, const struct prompt *p, uint32_t nth, uint32_t n)
{
    *j = (struct job){
        .prompt = p,
        .request = {
            .weight = 1,
            .sampling = {
                .temperature = p->temperature,
                .top_p = 1,
                .repetition_penalty = 1.1f, /* counts tokens, which a preempted one must not lose */
                .seed = 42,
                .n_vocab = model->config.vocab_size,
                .logprobs = true,
                .n_top_logprobs = N_TOP,
            },
            .sequences = j->sequences,
            .n_sequences = n,
        },
        .submit_at = 0,
        .cancel_at = UINT32_MAX,
        .pause_at = UINT32_MAX,
        .resume_at = UINT32_MAX,
    };
    for (uint32_t i = 0; i < n; i++) {
        j->sequences[i] = (struct llm_sequence){
            .prompt = p->ids, .n_prompt = p->n, .max_tokens = MAX_TOKENS, .choice = i,
            .nth = nth + i,
        };
    }
}

static struct llm_sched *open_sched(const struct setting *s, bool one_form, uint64_t host_bytes,
                                    uint64_t max_step_ns, bool redis)
{
    static struct llm_backend_ops ops;
    struct llm_sched *sched;

    ops = *device.ops;
    ops.info = claim;
    claimed = *device.ops->info(s->backend);
    claimed.one_form = claimed.one_form && one_form;
    must(llm_sched_new(&ops, s->backend,
                       &(struct llm_sched_options){
                           .max_batch_tokens = s->max_rows,
                           .max_seqs = s->max_seqs,
                           .n_vocab = model->config.vocab_size,
                           .deterministic = true,
                           .max_step_ns = max_step_ns,
                           .host_bytes = host_bytes,
                           .redis = redis ? &fake_redis : NULL,
                           .redis_ttl = 3600,
                           .load_ns = LLM_NS_PER_S,
                       }, &sink, &sched, &err) == LLM_OK);
    return sched;
}

/* --- mixes --- */

static void act(struct llm_sched *s, struct job *j, uint32_t turn)
{
    if (!j->submitted && turn >= j->submit_at) {
        j->submitted = true;
        llm_sched_submit(s, &j->request);
    }
    if (!j->submitted || j->retired) {
        return;
    }
    if (turn >= j->pause_at && turn < j->resume_at && !j->request.paused) {
        llm_sched_pause(s, &j->request, true);
    }
    if (turn >= j->resume_at && j->request.paused) {
        llm_sched_pause(s, &j->request, false);
    }
    if (turn >= j->cancel_at) {
        seen.cancelled++;
        llm_sched_cancel(s, &j->request);
    }
}

static bool is_preempted(const struct llm_sequence *q)
{
    return q->state == LLM_SEQUENCE_PREEMPTED ||
           (q->state == LLM_SEQUENCE_QUEUED && q->sampled > 0);
}

static void run_jobs(struct llm_sched *s, struct job *jobs, uint32_t n)
{
    uint32_t left = n;

    for (uint32_t turn = 0; left > 0; turn++) {
        const char *wrong;
        int rc;

        must(turn < 100000);
        for (uint32_t i = 0; i < n; i++) {
            act(s, &jobs[i], turn);
        }
        rc = llm_sched_turn(s, &err);
        must(rc == LLM_OK || rc == LLM_EAGAIN);
        wrong = llm_sched_check(s);
        if (wrong != NULL) {
            printf("Bail out! the scheduler's books: %s\n", wrong);
            exit(1);
        }

        left = 0;
        for (uint32_t i = 0; i < n; i++) {
            left += !jobs[i].retired;
            for (uint32_t k = 0; k < jobs[i].request.n_sequences; k++) {
                seen.preempted += !jobs[i].retired && is_preempted(&jobs[i].sequences[k]);
            }
        }
    }
}

/* True when the answer is, bit for bit, as much of the other as there is of it. */
static bool same(const struct answer *a, const struct answer *alone)
{
    size_t n = a->n;

    return memcmp(a->ids, alone->ids, n * sizeof(a->ids[0])) == 0 &&
           memcmp(a->logprobs, alone->logprobs, n * sizeof(a->logprobs[0])) == 0 &&
           memcmp(a->top_ids, alone->top_ids, n * sizeof(a->top_ids[0])) == 0 &&
           memcmp(a->top_logprobs, alone->top_logprobs, n * sizeof(a->top_logprobs[0])) == 0;
}

static bool check_job(const struct job *j)
{
    bool cancelled = j->request.outcome == LLM_OUTCOME_CANCELLED;

    if (j->request.outcome != LLM_OUTCOME_DONE && !cancelled) {
        diag("outcome %d", j->request.outcome);
        return false;
    }
    for (uint32_t i = 0; i < j->request.n_sequences; i++) {
        const struct answer *alone = &j->prompt->alone[j->sequences[i].nth];

        seen.answers++;
        if (!same(&j->answers[i], alone) || (!cancelled && j->answers[i].n != alone->n)) {
            diag("prompt %d, choice %u: %u tokens are not those it has alone",
                 (int) (j->prompt - prompts), i, j->answers[i].n);
            return false;
        }
    }
    return true;
}

static void random_job(struct job *j)
{
    static const enum llm_scope scopes[] = {LLM_SCOPE_TENANT, LLM_SCOPE_TENANT, LLM_SCOPE_PUBLIC,
                                            LLM_SCOPE_OFF};
    uint32_t n = below(3) == 0 ? 1 + below(MAX_CHOICES) : 1;

    make_job(j, &prompts[below(N_PROMPTS)], below(MAX_CHOICES + 1 - n), n);
    j->request.tenant_digest[0] = (uint8_t) below(N_TENANTS);
    j->request.weight = 1 + below(3);
    name_pages(j, scopes[below(4)]);
    j->submit_at = below(3) == 0 ? below(30) : below(3);
    if (below(8) == 0) {
        j->cancel_at = below(30);
    }
    if (below(8) == 0) {
        j->pause_at = j->submit_at + below(20);
        j->resume_at = j->pause_at + 1 + below(20);
    }
}

/* Some requests after others, so that they find what those left; in Redis, also what other
 * schedulers left, on other backends. */
static bool run_mix(void)
{
    static struct job jobs[MAX_JOBS];
    const struct setting *s = &settings[below(N_SETTINGS)];
    uint64_t page_bytes = device.ops->info(s->backend)->layout.page_bytes;
    uint64_t host_bytes = below(3) * 16 * page_bytes;
    struct llm_sched *sched = open_sched(s, below(2) == 0, host_bytes,
                                         below(2) == 0 ? 0 : 2000000, below(3) > 0);
    struct llm_cache_counts counts;
    bool good = true;

    fake_redis.silent = below(60);
    fake_redis.missing = below(3) * 10;
    for (uint32_t waves = 2 + below(2); waves > 0; waves--) {
        uint32_t n = 1 + below(MAX_JOBS);

        for (uint32_t i = 0; i < n; i++) {
            random_job(&jobs[i]);
        }
        run_jobs(sched, jobs, n);
        for (uint32_t i = 0; i < n; i++) {
            good = good && check_job(&jobs[i]);
        }
    }

    counts = llm_cache_counts(llm_sched_cache(sched));
    seen.hits += counts.hit_tokens[LLM_TIER_MEMORY];
    seen.host_hits += counts.hit_tokens[LLM_TIER_HOST];
    seen.loaded += counts.hit_tokens[LLM_TIER_REDIS];
    must(llm_sched_quiesce(sched, &err) == LLM_OK);
    llm_sched_free(sched);
    fake_redis_idle();
    return good;
}

/* --- references --- */

/* Prompts with beginnings in common, some of whole pages. */
static void make_prompts(void)
{
    static uint32_t trunk[2][MAX_PROMPT];

    for (uint32_t i = 0; i < MAX_PROMPT; i++) {
        trunk[0][i] = 100 + below(3000);
        trunk[1][i] = i < 64 ? trunk[0][i] : 100 + below(3000);
    }
    for (uint32_t i = 0; i < N_PROMPTS; i++) {
        struct prompt *p = &prompts[i];
        uint32_t shared = 40 + below(160);

        p->n = i % 3 == 0 ? 64 * (1 + below(3)) : shared + below(MAX_PROMPT - shared);
        p->n = p->n > 0 ? p->n : 1;
        for (uint32_t k = 0; k < p->n; k++) {
            p->ids[k] = k < shared ? trunk[i % 2][k] : 100 + below(3000);
        }
        p->temperature = i % 2 == 0 ? 0 : 1;
    }
}

static void answer_alone(void)
{
    static struct job job;

    for (uint32_t i = 0; i < N_PROMPTS; i++) {
        for (uint32_t nth = 0; nth < MAX_CHOICES; nth++) {
            struct llm_sched *sched;

            if (nth > 0 && prompts[i].temperature == 0) { /* chance has no part in it */
                prompts[i].alone[nth] = prompts[i].alone[0];
                continue;
            }
            sched = open_sched(&settings[0], true, 0, 0, false);
            make_job(&job, &prompts[i], nth, 1);
            name_pages(&job, LLM_SCOPE_OFF);
            run_jobs(sched, &job, 1);
            must(job.request.outcome == LLM_OUTCOME_DONE);
            prompts[i].alone[nth] = job.answers[0];
            llm_sched_free(sched);
        }
    }
}

static uint32_t n_mixes(void)
{
    const char *sanitize = getenv("LLM_SANITIZE");

    return getenv("LLM_LONG") != NULL                   ? 2000
           : sanitize != NULL && sanitize[0] != '\0' ? 4 /* it computes ten times slower */
                                                        : 50;
}

static void test_mixes(const char *name, enum llm_latent_dtype latents, uint32_t n)
{
    uint32_t wrong = 0;

    open_backends(latents);
    fake_redis_open(device.ops->info(settings[0].backend)->layout.page_bytes);
    answer_alone();
    for (uint32_t i = 0; i < n; i++) {
        uint64_t before = random_state;

        if (!run_mix()) {
            wrong++;
            diag("mix %u, begun at %llu", i, (unsigned long long) before);
        }
    }
    is_int(wrong, 0, "%u mixes on latents in %s: the same bits", n, name);
    fake_redis_close();
    close_backends();
}

int main(void)
{
    const char *seed = getenv("LLM_SEED");
    uint32_t n = n_mixes();

    random_state = seed != NULL ? strtoull(seed, NULL, 10) : (uint64_t) time(NULL);
    diag("LLM_SEED=%llu", (unsigned long long) random_state);
    device = test_device();
    must(llm_model_open(DEMO, &model, &err) == LLM_OK);
    make_prompts();

    test_mixes("bf16", LLM_LATENT_BF16, n - 2 * (n / 5));
    if (n >= 50) {
        test_mixes("f32", LLM_LATENT_F32, n / 5);
        test_mixes("fp8", LLM_LATENT_FP8, n / 5);
    }

    diag("%llu answers, %llu tokens found in memory, %llu in the host tier, %llu loaded, "
         "%llu turns of preempted sequences, %llu cancelled", (unsigned long long) seen.answers,
         (unsigned long long) seen.hits, (unsigned long long) seen.host_hits,
         (unsigned long long) seen.loaded, (unsigned long long) seen.preempted,
         (unsigned long long) seen.cancelled);
    if (n >= 50) { /* or chance decides */
        ok(seen.hits > 0 && seen.preempted > 0 && seen.cancelled > 0,
           "prefixes were found, sequences preempted and cancelled");
        ok(seen.host_hits > 0, "prefixes came back from the host tier");
        ok(seen.loaded > 0, "prefixes were loaded from Redis");
    }
    llm_model_close(model);
    return done_testing();
}
