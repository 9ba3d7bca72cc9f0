/* What a step costs, and what comes of it: steps done in time, streams that do not halt. */

#include "engine/sched/cost.h"
#include "t/unit/sched_jobs.h"

#define FIXED_NS 2e6
#define ROW_NS 5e4
#define PAIR_NS 20.0

static double true_cost(struct llm_work w)
{
    return FIXED_NS + ROW_NS * (double) w.rows + PAIR_NS * (double) w.pairs;
}

static struct llm_work random_work(void)
{
    struct llm_work w = llm_work_of(below(4000), 1 + below(500));

    return llm_work_sum(w, llm_work_of(below(4000), 1));
}

static double worst_error(const struct llm_cost *c)
{
    double worst = 0;

    for (int i = 0; i < 100; i++) {
        struct llm_work w = random_work();
        double error = llm_cost_of_step(c, w) / true_cost(w) - 1;

        error = error < 0 ? -error : error;
        worst = error > worst ? error : worst;
    }
    return worst;
}

static void test_work(void)
{
    struct llm_work w = llm_work_of(10, 3);

    ok(w.rows == 3 && w.pairs == 11 + 12 + 13, "rows attend to all before them and to themselves");
    w = llm_work_sum(w, llm_work_of(0, 1));
    ok(w.rows == 4 && w.pairs == 37, "and parts of a step add up");
}

static void test_learning(void)
{
    struct llm_cost c;

    llm_cost_init(&c);
    ok(!llm_cost_known(&c) && llm_cost_of_part(&c, llm_work_of(0, 1)) > 0,
       "a guess before the first step");
    for (int i = 0; i < 200; i++) {
        struct llm_work w = random_work();

        llm_cost_learn(&c, w, (uint64_t) true_cost(w));
    }
    ok(llm_cost_known(&c) && worst_error(&c) < 0.02, "learnt from 200 steps within 2 %%");

    for (int i = 0; i < 300; i++) { /* the machine has become three times as slow */
        struct llm_work w = random_work();

        llm_cost_learn(&c, w, (uint64_t) (3 * true_cost(w)));
    }
    ok(llm_cost_of_step(&c, llm_work_of(1000, 100)) > 2.9 * true_cost(llm_work_of(1000, 100)),
       "what has changed is learnt anew");

    llm_cost_init(&c);
    for (int i = 0; i < 200; i++) { /* the more rows the faster: as if rows were worth time */
        uint32_t n = 1 + below(100);

        llm_cost_learn(&c, llm_work_of(0, n), 1000000 - 5000 * n);
    }
    ok(c.ns[LLM_COST_FIXED] >= 0 && c.ns[LLM_COST_ROW] >= 0 && c.ns[LLM_COST_PAIR] >= 0,
       "no cost is below nothing");
}

static void test_fit(void)
{
    struct llm_cost c = {.ns = {FIXED_NS, ROW_NS, PAIR_NS}, .most_rows = 4096};
    struct llm_work work = llm_work_of(500, 1);
    uint32_t n = llm_cost_fit(&c, work, 1000, 4096, 20000000);

    ok(llm_cost_of_step(&c, llm_work_sum(work, llm_work_of(1000, n))) <= 2e7 &&
       llm_cost_of_step(&c, llm_work_sum(work, llm_work_of(1000, n + 1))) > 2e7,
       "as many rows as there is time for: %u", n);
    is_int(llm_cost_fit(&c, work, 1000, 7, 20000000), 7, "and no more than there are");
    is_int(llm_cost_fit(&c, work, 1000, 4096, 1000), 0, "none where there is no time");
    c.most_rows = 50;
    is_int(llm_cost_fit(&c, work, 1000, 4096, 20000000), 99, "no leap into what nobody knows");
    c.most_rows = 0.4;
    is_int(llm_cost_fit(&c, work, 1000, 4096, 20000000), 0, "nor below nothing");
}

/* Streams run while long prompts come in. */
static void test_gap(void)
{
    const uint64_t bound = 20 * LLM_NS_PER_MS;
    struct job *streams[3], *prompts[10];
    uint64_t before, median;

    open_with(2000, false, (struct llm_sched_options){
        .max_batch_tokens = 1024, .max_seqs = 16, .max_step_ns = bound});
    fake.fixed_ns = (uint64_t) FIXED_NS;
    fake.row_ns = (uint64_t) ROW_NS;
    fake.pair_ns = (uint64_t) PAIR_NS;
    for (int i = 0; i < 3; i++) {
        streams[i] = new_job(1, 100, 500);
        streams[i]->request.n_stop_ids = 0;
        llm_sched_submit(sched, &streams[i]->request);
    }
    while (streams[0]->n_out[0] < 20) {
        turn();
    }
    before = fake.now_ns;
    turn();
    median = fake.now_ns - before;
    for (int i = 0; i < 10; i++) {
        prompts[i] = new_job(1, 4000, 2);
        prompts[i]->request.tenant_digest[0] = (uint8_t) (i % 2);
        llm_sched_submit(sched, &prompts[i]->request);
        turn();
    }
    fake.longest_ns = 0;
    streams[0]->gap_ns = 0;
    run();
    for (int i = 0; i < 10; i++) {
        ok(as_expected(prompts[i]), "a prompt of 4,000 tokens");
        free_job(prompts[i]);
    }
    ok(fake.longest_ns <= bound + bound / 20, "no step is longer than its bound: %.1f of 20 ms",
       (double) fake.longest_ns / 1e6);
    ok(fake.longest_ns >= bound / 2, "though it is made use of");
    ok(streams[0]->gap_ns <= median + bound + bound / 20,
       "no stream stands still for longer than a step's bound: %.1f ms beside %.1f",
       (double) streams[0]->gap_ns / 1e6, (double) median / 1e6);
    for (int i = 0; i < 3; i++) {
        ok(as_expected(streams[i]), "a stream");
        free_job(streams[i]);
    }
    is_idle("after streams");
    close_sched();
}

/* Steps take up to half as long again as they should, as machines do. */
static void test_noise(void)
{
    const uint64_t bound = 20 * LLM_NS_PER_MS;

    open_with(2000, false, (struct llm_sched_options){
        .max_batch_tokens = 1024, .max_seqs = 16, .max_step_ns = bound});
    fake.fixed_ns = (uint64_t) FIXED_NS;
    fake.row_ns = (uint64_t) ROW_NS;
    fake.pair_ns = (uint64_t) PAIR_NS;
    fake.noise = 50;
    fake.bound_ns = bound;
    for (int i = 0; i < 100; i++) {
        struct job *j = new_job(1, 4000, 2);

        run_job(j);
        fake_must(as_expected(j));
        free_job(j);
    }
    ok(fake.prompt_steps > 1000 && fake.late_steps * 100 <= fake.prompt_steps,
       "%u of %u steps take longer than they may", (unsigned) fake.late_steps,
       (unsigned) fake.prompt_steps);
    ok(fake.prompt_ns / fake.prompt_steps >= bound / 2, "though they make use of it: %.1f ms",
       (double) fake.prompt_ns / (double) fake.prompt_steps / 1e6);
    close_sched();
}

static void test_margin(void)
{
    double margin = llm_cost_margin(LLM_COST_MARGIN, 1000, 1300), later;

    ok(margin == 1.3, "what was late is expected again");
    later = llm_cost_margin(margin, 1000, 900);
    ok(later < margin && later > 1.29, "and forgotten slowly");
    ok(llm_cost_margin(margin, 1000, 9000) == 2, "but not more than it is worth");
    for (int i = 0; i < 10000; i++) {
        later = llm_cost_margin(later, 1000, 900);
    }
    ok(later >= 1 && later < 1.001, "a step is never taken to be short");
}

/* What is told of the prompts' rate, whatever steps came by. */
static void test_rates(void)
{
    const double ns = FIXED_NS + 512 * ROW_NS + 512 * 513 / 2 * PAIR_NS, full = 512 / ns * 1e9;
    struct job *prefix = new_job(1, 2048, 2), *streams[40];
    struct llm_sched_load load;
    double step_ns;

    open_with(2000, false, (struct llm_sched_options){
        .max_batch_tokens = 512, .max_seqs = 64, .max_step_ns = 100 * LLM_NS_PER_MS});
    fake.fixed_ns = (uint64_t) FIXED_NS;
    fake.row_ns = (uint64_t) ROW_NS;
    fake.pair_ns = (uint64_t) PAIR_NS;
    load = llm_sched_load(sched);
    ok(load.prefill_rate == 0 && load.decode_rate == 0, "no rates before the first step");
    share(prefix, 1, LLM_SCOPE_TENANT);
    run_job(prefix);
    for (uint32_t i = 0; i < 100; i++) { /* tails behind a prefix that is cached */
        struct job *j = new_job(1, 2048 + 1 + i % 30, 2);

        memcpy(j->prompts[0], prefix->prompts[0], 2048 * sizeof(*j->prompts[0]));
        share(j, 1, LLM_SCOPE_TENANT);
        run_job(j);
        free_job(j);
    }
    load = llm_sched_load(sched);
    ok(load.prefill_rate > 0.95 * full && load.prefill_rate < 1.05 * full,
       "a prompt's rate after short tails: %u, in truth %.0f", load.prefill_rate, full);

    for (int i = 0; i < 40; i++) {
        streams[i] = new_job(1, 300, 100);
        streams[i]->request.n_stop_ids = 0;
        llm_sched_submit(sched, &streams[i]->request);
        turn();
    }
    while (streams[39]->n_out[0] < 20) {
        turn();
    }
    load = llm_sched_load(sched);
    ok(load.prefill_rate > 0.95 * full && load.prefill_rate < 1.05 * full,
       "and beside many streams: %u", load.prefill_rate);
    step_ns = FIXED_NS + load.running * (ROW_NS + 350 * PAIR_NS);
    ok(load.decode_rate > 0.8 * load.running / step_ns * 1e9,
       "%u streams make %u tokens a second", load.running, load.decode_rate);
    run();
    ok(llm_sched_load(sched).decode_rate < 1e9 / (FIXED_NS + ROW_NS) * 1.2, "one alone makes %u",
       llm_sched_load(sched).decode_rate);
    close_sched();
    free_job(prefix);
    for (int i = 0; i < 40; i++) {
        free_job(streams[i]);
    }
}

/* However slow the machine, a step reads something. */
static void test_slow(void)
{
    struct job *j = new_job(1, 200, 5);

    open_with(64, false, (struct llm_sched_options){
        .max_batch_tokens = 1024, .max_seqs = 16, .max_step_ns = 1000});
    fake.fixed_ns = fake.row_ns = 1000000;
    run_job(j);
    ok(as_expected(j) && fake.steps < 40, "a bound that nothing keeps holds nothing up");
    is_int(fake.most_rows, 16, "the smallest chunk");
    close_sched();
    free_job(j);
}

int main(void)
{
    test_work();
    test_learning();
    test_fit();
    test_gap();
    test_margin();
    test_noise();
    test_rates();
    test_slow();
    return done_testing();
}
