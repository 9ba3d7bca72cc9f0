/* Who is served when: tenants' counters, weights, shares and deadlines, by the fake clock. */

#include "engine/sched/fair.h"
#include "t/unit/sched_jobs.h"

#define MAX_TENANTS 8
#define JOBS_EACH 60

static void set_costs(void)
{
    fake.fixed_ns = 2000000;
    fake.row_ns = 50000;
    fake.pair_ns = 20;
}

static struct job *tenant_job(uint8_t tenant, uint32_t weight, uint32_t n_prompt,
                              uint32_t max_tokens)
{
    struct job *j = new_job(1, n_prompt, max_tokens);

    j->request.tenant_digest[0] = tenant;
    j->request.weight = weight;
    j->request.n_stop_ids = 0;
    return j;
}

/* Prompt rows and tokens that a job has had. */
static double service_of(const struct job *j)
{
    return j->n_out[0] > 0 ? j->sequences[0].n_prompt + j->n_out[0] : 0;
}

/* The tenants always have more to do; each is to get service by its weight. */
static void test_weights(const char *what, int n, const uint32_t *weights, uint32_t n_prompt,
                         uint32_t max_tokens)
{
    static struct job *jobs[MAX_TENANTS][JOBS_EACH];
    double x[MAX_TENANTS] = {0}, sum = 0, squares = 0;
    bool backlogged = true;

    open_with(400, false, (struct llm_sched_options){
        .max_batch_tokens = 256, .max_seqs = 16, .max_step_ns = 20 * LLM_NS_PER_MS});
    set_costs();
    for (int t = 0; t < n; t++) {
        for (int i = 0; i < JOBS_EACH; i++) {
            jobs[t][i] = tenant_job((uint8_t) t, weights[t], n_prompt, max_tokens);
            llm_sched_submit(sched, &jobs[t][i]->request);
        }
    }
    while (backlogged) {
        turn();
        for (int t = 0; t < n; t++) {
            backlogged = backlogged && !jobs[t][JOBS_EACH - 1]->started;
        }
    }
    for (int t = 0; t < n; t++) {
        for (int i = 0; i < JOBS_EACH; i++) {
            x[t] += service_of(jobs[t][i]) / weights[t];
        }
        sum += x[t];
        squares += x[t] * x[t];
    }
    ok(sum * sum / (n * squares) >= 0.95, "%s: Jain's index is %.3f", what,
       sum * sum / (n * squares));
    run();
    for (int t = 0; t < n; t++) {
        for (int i = 0; i < JOBS_EACH; i++) {
            fake_must(as_expected(jobs[t][i]));
            free_job(jobs[t][i]);
        }
    }
    is_idle(what);
    close_sched();
}

/* Time to the first token of one that comes while another's requests fill everything. */
static uint64_t first_token_beside(int n_others, uint32_t n_prompt)
{
    static struct job *others[200];
    struct job *light;
    uint64_t came, took;

    open_with(2000, false, (struct llm_sched_options){
        .max_batch_tokens = 512, .max_seqs = 16, .max_step_ns = 20 * LLM_NS_PER_MS});
    set_costs();
    for (int i = 0; i < n_others; i++) {
        others[i] = tenant_job(1, 1, 1000, 100);
        llm_sched_submit(sched, &others[i]->request);
    }
    while (n_others > 0 && !others[n_others / 4]->started) {
        turn();
    }
    light = tenant_job(2, 1, n_prompt, 5);
    came = fake.now_ns;
    llm_sched_submit(sched, &light->request);
    while (light->n_out[0] == 0) {
        turn();
    }
    took = fake.now_ns - came;
    run();
    ok(as_expected(light), "the light one's answer");
    free_job(light);
    for (int i = 0; i < n_others; i++) {
        fake_must(as_expected(others[i]));
        free_job(others[i]);
    }
    is_idle("after the light one");
    close_sched();
    return took;
}

static void test_light(void)
{
    for (uint32_t n = 1000; n <= 3000; n += 1000) { /* four steps of 20 ms and more */
        uint64_t alone = first_token_beside(0, n), beside = first_token_beside(100, n);

        ok(beside <= alone * 3 / 2 + 20 * LLM_NS_PER_MS,
           "a light tenant's first token after %u beside a greedy one: %.1f ms, alone %.1f", n,
           (double) beside / 1e6, (double) alone / 1e6);
    }
}

static const uint8_t names[3][32] = {{1}, {2}, {3}};

static void test_counters(void)
{
    struct llm_fair f = {0};
    struct llm_tenant *a = llm_fair_enter(&f, names[0], 1), *b;

    llm_fair_charge(a, 1000);
    b = llm_fair_enter(&f, names[1], 0);
    ok(b->counter == a->counter && b->weight == 1, "who comes is lifted to the smallest counter");
    llm_fair_charge(b, 500);
    llm_fair_enter(&f, names[1], 4);
    llm_fair_charge(b, 400);
    ok(b->counter == 1600, "what is had counts by weight");
    ok(llm_fair_share(&f, b, 10) == 8 && llm_fair_share(&f, a, 10) == 2, "and so do shares");

    llm_fair_leave(&f, b);
    llm_fair_leave(&f, b);
    ok(f.active.n == 1 && f.resting.n == 1 && f.weights == 1, "one goes with more than the others");
    b = llm_fair_enter(&f, names[1], 1);
    ok(b->counter == 1600 && f.resting.n == 0, "and finds it when he comes back");

    llm_fair_leave(&f, a);
    ok(f.resting.n == 0, "one that goes with least is forgotten");
    llm_fair_leave(&f, b);
    a = llm_fair_enter(&f, names[2], 1);
    ok(a->counter == 1600, "where nobody was, the last one's counter stands");
    llm_fair_leave(&f, a);
    ok(f.active.n == 0 && f.resting.n == 0, "and nothing is left behind");
    llm_fair_free(&f);
}

static void test_allowance(void)
{
    struct llm_fair f = {.allowance = 100};
    struct llm_tenant *a = llm_fair_enter(&f, names[0], 1), *b;

    llm_fair_charge(a, 1000);
    b = llm_fair_enter(&f, names[1], 2);
    ok(b->counter == 950, "who comes may be a little ahead");
    llm_fair_charge(b, 80);
    llm_fair_leave(&f, b);
    b = llm_fair_enter(&f, names[1], 2);
    ok(b->counter == 990, "but not twice in the same time");
    llm_fair_charge(a, 1000);
    llm_fair_leave(&f, b);
    b = llm_fair_enter(&f, names[1], 2);
    ok(b->counter == 1950, "only when the others have gone on");
    llm_fair_free(&f);
}

static void test_resting_bound(void)
{
    struct llm_fair f = {0};
    uint8_t name[32] = {0};
    struct llm_tenant *t = llm_fair_enter(&f, name, 1);

    for (uint32_t i = 1; i < LLM_FAIR_RESTING + 100; i++) {
        memcpy(name, &i, sizeof(i));
        t = llm_fair_enter(&f, name, 1);
        llm_fair_charge(t, i);
        llm_fair_leave(&f, t);
    }
    is_int(f.resting.n, LLM_FAIR_RESTING, "no more are remembered than there is room for");
    llm_fair_free(&f);
}

/* The first tokens are charged at what steps have cost, though none had nothing but tokens. */
static void test_first_tokens(void)
{
    struct job *talks = tenant_job(1, 1, 100, 50), *reads = tenant_job(2, 1, 4000, 5);
    double before;

    open_sched(400, 100, 4);
    fake.row_ns = 1000;
    llm_sched_submit(sched, &talks->request);
    llm_sched_submit(sched, &reads->request);
    while (talks->n_out[0] < 1) {
        turn();
    }
    before = talks->request.tenant->counter;
    while (talks->n_out[0] < 21) {
        turn();
    }
    ok(reads->n_out[0] == 0 && talks->request.tenant->counter - before < 20 * 2000,
       "twenty tokens beside a prompt cost %.0f us of step time",
       (talks->request.tenant->counter - before) / 1e3);
    run();
    is_idle("after first tokens");
    close_sched();
    free_job(talks);
    free_job(reads);
}

/* Pausing, or leaving and coming back, is no way to more. */
static void test_no_reset(uint64_t max_step_ns)
{
    struct job *a[30], *b[30];
    double x = 0, y = 0;
    int next = 0;

    open_with(400, false, (struct llm_sched_options){
        .max_batch_tokens = 256, .max_seqs = 4, .max_step_ns = max_step_ns});
    set_costs();
    for (int i = 0; i < 30; i++) {
        a[i] = tenant_job(1, 1, 400, 30);
        b[i] = tenant_job(2, 1, 400, 30);
        llm_sched_submit(sched, &a[i]->request);
    }
    while (next < 30 && !a[29]->started) { /* b has one request at a time, and goes in between */
        llm_sched_submit(sched, &b[next]->request);
        while (!b[next]->retired) {
            turn();
        }
        next++;
    }
    for (int i = 0; i < 30; i++) {
        x += service_of(a[i]);
        y += service_of(b[i]);
    }
    ok(y < 1.2 * x, "who comes and goes gets no more than who stays: %.0f and %.0f rows", y, x);
    run();
    is_idle("after that");
    close_sched();
    for (int i = 0; i < 30; i++) {
        free_job(a[i]);
        free_job(b[i]);
    }
}

/* Slots: a tenant without any takes one from who has most. */
static void test_slots(void)
{
    struct job *greedy[8], *light;

    open_sched(400, 64, 4);
    for (int i = 0; i < 8; i++) {
        greedy[i] = tenant_job(1, 1, 20, 300);
        llm_sched_submit(sched, &greedy[i]->request);
    }
    for (int i = 0; i < 10; i++) {
        turn();
    }
    light = tenant_job(2, 1, 20, 5);
    run_job(light);
    ok(as_expected(light) && greedy[0]->n_out[0] < 40, "a slot is made free for who has none");
    ok(fake.resumed > 0 || !greedy[3]->retired, "the newest gives way");
    run();
    for (int i = 0; i < 8; i++) {
        ok(as_expected(greedy[i]), "and comes back with all that it had said: %d", i);
        free_job(greedy[i]);
    }
    is_int(fake.resumed, 1, "just one gave way");
    is_idle("after slots");
    close_sched();
    free_job(light);
}

static void test_deadlines(void)
{
    struct job *first = tenant_job(1, 1, 4000, 5), *late = tenant_job(1, 1, 4000, 5);
    struct job *queued = tenant_job(1, 1, 100, 5);

    open_with(200, false, (struct llm_sched_options){.max_batch_tokens = 100, .max_seqs = 2});
    set_costs();
    first->request.deadline = 10 * LLM_NS_PER_S;
    late->request.deadline = 600 * LLM_NS_PER_MS; /* its prompt alone takes more than 400 */
    queued->request.queue_deadline = 50 * LLM_NS_PER_MS;
    llm_sched_submit(sched, &first->request);
    llm_sched_submit(sched, &late->request);
    llm_sched_submit(sched, &queued->request);
    run();
    ok(as_expected(first), "one that is in time");
    ok(late->retired && late->started && late->request.outcome == LLM_OUTCOME_EXPIRED &&
       late->n_out[0] == 0, "one whose deadline passes while its prompt is read");
    ok(queued->retired && !queued->started && queued->request.outcome == LLM_OUTCOME_EXPIRED,
       "one whose deadline passes while it waits");
    ok(fake.rows_read < 4000 + 3000, "no chunk is read for nothing: %llu rows",
       (unsigned long long) fake.rows_read);
    is_idle("after deadlines");
    close_sched();
    free_job(first);
    free_job(late);
    free_job(queued);
}

int main(void)
{
    static const uint32_t even[8] = {1, 1, 1, 1, 1, 1, 1, 1}, steps[4] = {1, 2, 3, 4};

    test_counters();
    test_allowance();
    test_resting_bound();
    test_weights("two tenants", 2, even, 300, 40);
    test_weights("eight tenants", 8, even, 300, 40);
    test_weights("four tenants by weight", 4, steps, 300, 40);
    test_weights("eight tenants with long prompts", 8, even, 1500, 3);
    test_weights("four tenants by weight, long answers", 4, steps, 30, 150);
    test_light();
    test_first_tokens();
    test_no_reset(0);
    test_no_reset(20 * LLM_NS_PER_MS);
    test_slots();
    test_deadlines();
    return done_testing();
}
