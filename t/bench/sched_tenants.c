/* Fair shares: eight tenants that always have more to ask for than they get (Jain's index of the
 * tokens each was served; one keeps ten times as many requests waiting as the others), and the
 * first token of a light tenant alone and beside one that asks for a hundred times as much.
 *
 *     make bench-sched_tenants */

#include "t/bench/driver.h"

#define STEP_MS 50
#define TENANTS 8
#define SECONDS 20
#define MAX_JOBS 1024

static struct job *jobs[MAX_JOBS];
static uint32_t n_jobs;

static void add(struct driver *d, uint32_t tenant, uint32_t prompt, uint32_t tokens)
{
    struct job *j = bench_job(d, tenant, 0, prompt, tokens);

    if (n_jobs == MAX_JOBS) {
        exit(1);
    }
    jobs[n_jobs++] = j;
    bench_submit(d, j);
}

static uint32_t tenant_of(const struct job *j)
{
    uint32_t tenant;

    memcpy(&tenant, j->request.tenant_digest, sizeof(tenant));
    return tenant;
}

/* Tokens served to an unfinished job as well as to a finished one. */
static uint32_t served(const struct job *j)
{
    return (j->n_tokens > 0 ? j->sequence.n_prompt : 0) + j->n_tokens;
}

/* Frees the jobs that are done; adds what each was served, and puts another in its place. */
static void replace_done(struct driver *d, uint64_t *tokens, uint32_t prompt, uint32_t n_tokens)
{
    for (uint32_t i = 0; i < n_jobs; i++) {
        struct job *j = jobs[i];

        if (j->retired) {
            uint32_t tenant = tenant_of(j);

            tokens[tenant] += served(j);
            free(j);
            jobs[i] = bench_job(d, tenant, 0, prompt, n_tokens);
            bench_submit(d, jobs[i]);
        }
    }
}

static void cancel_all(struct driver *d)
{
    for (uint32_t i = 0; i < n_jobs; i++) {
        if (!jobs[i]->retired) {
            llm_sched_cancel(d->sched, &jobs[i]->request);
        }
        while (!jobs[i]->retired) {
            bench_turn(d);
        }
        free(jobs[i]);
    }
    n_jobs = 0;
}

static void backlogged(struct driver *d)
{
    uint64_t tokens[TENANTS] = {0}, end;
    double sum = 0, squares = 0;

    for (uint32_t t = 0; t < TENANTS; t++) {
        for (int i = 0; i < (t == 0 ? 100 : 10); i++) {
            add(d, t, 200, 32);
        }
    }
    end = llm_now_ns() + SECONDS * LLM_NS_PER_S;
    while (llm_now_ns() < end) {
        bench_turn(d);
        replace_done(d, tokens, 200, 32);
    }
    for (uint32_t i = 0; i < n_jobs; i++) {
        tokens[tenant_of(jobs[i])] += served(jobs[i]);
    }
    cancel_all(d);

    printf("%d tenants, prompts of 200 and answers of 32 tokens, 10 requests each at any time, but "
           "100 of the first;\ntokens served in %d s:", TENANTS, SECONDS);
    for (uint32_t t = 0; t < TENANTS; t++) {
        printf(" %llu", (unsigned long long) tokens[t]);
        sum += (double) tokens[t];
        squares += (double) tokens[t] * (double) tokens[t];
    }
    printf("\nJain's index %.4f\n", sum * sum / (TENANTS * squares));
}

#define LIGHT 101
#define HEAVY 102
#define LIGHT_PROMPT 1000
#define LIGHT_REQUESTS 60
#define LIGHT_PAUSE_MS 1000 /* between its requests: who asks without a pause is not light */

/* Runs the others alone for a while. */
static void pause_light(struct driver *d, uint64_t *ignored)
{
    uint64_t end = llm_now_ns() + LIGHT_PAUSE_MS * LLM_NS_PER_MS;

    while (llm_now_ns() < end) {
        bench_turn(d);
        replace_done(d, ignored, LIGHT_PROMPT, 32);
    }
}

static void light_tenant(struct driver *d)
{
    double alone[LIGHT_REQUESTS], beside[LIGHT_REQUESTS];
    uint64_t ignored[HEAVY + 1] = {0};
    double p99, p99_beside;

    for (int i = 0; i < LIGHT_REQUESTS; i++) {
        alone[i] = bench_first_token(d, bench_job(d, LIGHT, 0, LIGHT_PROMPT, 1));
    }
    for (int i = 0; i < 100; i++) {
        add(d, HEAVY, LIGHT_PROMPT, 32);
    }
    for (int i = 0; i < LIGHT_REQUESTS; i++) {
        struct job *j = bench_job(d, LIGHT, 0, LIGHT_PROMPT, 1);

        pause_light(d, ignored);
        bench_submit(d, j);
        while (!j->retired) {
            bench_turn(d);
            replace_done(d, ignored, LIGHT_PROMPT, 32);
        }
        beside[i] = (double) (j->first - j->submitted) / (double) LLM_NS_PER_MS;
        free(j);
    }
    cancel_all(d);

    p99 = bench_percentile(alone, LIGHT_REQUESTS, 99);
    p99_beside = bench_percentile(beside, LIGHT_REQUESTS, 99);
    printf("first token of a light tenant, prompts of %d tokens (%.0f steps of %d ms): alone "
           "median %.1f p99 %.1f ms,\nbeside 100 requests of another: median %.1f p99 %.1f ms; "
           "bound 1.5 x alone + one step = %.1f ms: %s\n",
           LIGHT_PROMPT, alone[LIGHT_REQUESTS / 2] / STEP_MS, STEP_MS, alone[LIGHT_REQUESTS / 2],
           p99, beside[LIGHT_REQUESTS / 2], p99_beside, 1.5 * p99 + STEP_MS,
           p99_beside <= 1.5 * p99 + STEP_MS ? "kept" : "NOT kept");
}

int main(int argc, char **argv)
{
    struct driver d;

    bench_open_model(&d, argc > 1 ? argv[1] : "models/demo", argc > 1);
    bench_start(&d, 1500, (struct llm_sched_options){
        .max_batch_tokens = 512, .max_seqs = 64, .max_step_ns = STEP_MS * LLM_NS_PER_MS});
    printf("%s, --max-step-ms %d\n", llm_backend_cpu.info(d.backend)->device, STEP_MS);
    bench_first_token(&d, bench_job(&d, LIGHT, 0, 2000, 1)); /* the cost of steps is known now */

    backlogged(&d);
    light_tenant(&d);

    bench_stop(&d);
    llm_model_close(d.model);
    return 0;
}
