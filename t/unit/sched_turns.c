/* The scheduler over the fake backend, which dies when it is given a step that is wrong. */

#include "t/unit/sched_jobs.h"

static void test_one(void)
{
    struct job *j = new_job(1, 100, 60);

    open_sched(64, 32, 8);
    llm_sched_submit(sched, &j->request);
    run();
    ok(as_expected(j), "a prompt of 100 in chunks of 32: every token as computed by hand");
    is_int(fake.most_rows, 32, "no step is larger than the budget");
    ok(fake.two_in_flight > 0, "steps of decoding are submitted two deep");
    is_idle("after one");
    close_sched();
    free_job(j);
}

static void test_together(void)
{
    struct job *j[12];

    open_sched(64, 16, 8);
    for (int i = 0; i < 12; i++) {
        j[i] = new_job(1 + i % 3, 1 + 7 * (uint32_t) i, 40);
        llm_sched_submit(sched, &j[i]->request);
    }
    run();
    for (int i = 0; i < 12; i++) {
        ok(as_expected(j[i]), "request %d of twelve at once, %u sequences", i,
           j[i]->request.n_sequences);
        ok(i == 0 || j[i]->serial > j[i - 1]->serial, "and it started in its turn");
    }
    for (int i = 0; i < 12; i++) {
        free_job(j[i]);
    }
    is_int(fake.most_rows, 16, "no step is larger than the budget");
    is_idle("after twelve");
    close_sched();
}

static void test_pages(void)
{
    struct job *big = new_job(1, 400, 200), *small = new_job(1, 10, 20);
    struct job *first = new_job(1, 300, 20);

    open_sched(10, 64, 8); /* 640 tokens */
    llm_sched_submit(sched, &first->request); /* 5 pages */
    llm_sched_submit(sched, &big->request);   /* 7 pages to start with */
    llm_sched_submit(sched, &small->request); /* 1 page: would fit beside the first */
    llm_sched_turn(sched, &err);
    ok(first->started && !big->started && !small->started,
       "who does not fit holds up those behind him");
    run();
    ok(as_expected(first) && as_expected(big) && as_expected(small), "and all get their turn");
    is_idle("after a full pool");
    close_sched();
    free_job(first);
    free_job(big);
    free_job(small);
}

static void test_ends(void)
{
    struct job *min = new_job(1, 5, 300), *ignore = new_job(1, 5, 300), *cut = new_job(2, 5, 300);

    open_sched(64, 64, 8);
    min->request.min_tokens = 200;
    ignore->request.n_stop_ids = 0;
    cut->request.n_stop_ids = 0;
    llm_sched_submit(sched, &min->request);
    llm_sched_submit(sched, &ignore->request);
    llm_sched_submit(sched, &cut->request);
    while (cut->n_out[0] < 10) {
        llm_sched_turn(sched, &err);
    }
    llm_sched_end(sched, &cut->sequences[0]);
    run();
    ok(as_expected(min) && min->n_out[0] >= 200, "no stop id before min_tokens");
    ok(as_expected(ignore) && ignore->n_out[0] == 300 && ignore->end[0] == LLM_END_LENGTH,
       "max_tokens without stop ids");
    ok(cut->n_out[0] == 10 && !cut->ended[0] && cut->n_out[1] == 300,
       "a sequence that is ended gets no more tokens, its neighbour all");
    ok(cut->retired == 1 && cut->request.outcome == LLM_OUTCOME_DONE, "and the request is done");
    is_idle("after the ends");
    close_sched();
    free_job(min);
    free_job(ignore);
    free_job(cut);
}

static void test_cancel(void)
{
    for (int stage = 0; stage < 12; stage++) {
        struct job *j = new_job(2, 100, 50), *other = new_job(1, 20, 50);

        open_sched(64, 32, 8);
        j->request.n_stop_ids = 0;
        llm_sched_submit(sched, &other->request);
        llm_sched_submit(sched, &j->request);
        for (int i = 0; i < stage; i++) {
            llm_sched_turn(sched, &err);
        }
        llm_sched_cancel(sched, &j->request);
        for (int i = 0; i < 2 && !j->retired; i++) {
            llm_sched_turn(sched, &err);
        }
        ok(j->retired == 1 && j->request.outcome == LLM_OUTCOME_CANCELLED,
           "cancelled after %d turns: retired with the steps in flight", stage);
        run();
        ok(as_expected(other), "and the other request is as if alone");
        is_idle("after a cancel");
        close_sched();
        free_job(j);
        free_job(other);
    }
}

static void test_pause(void)
{
    struct job *j = new_job(1, 10, 100), *other = new_job(1, 10, 100);

    open_sched(64, 32, 8);
    j->request.n_stop_ids = other->request.n_stop_ids = 0;
    llm_sched_submit(sched, &j->request);
    llm_sched_submit(sched, &other->request);
    while (j->n_out[0] < 10) {
        llm_sched_turn(sched, &err);
    }
    llm_sched_pause(sched, &j->request, true);
    run();
    ok(as_expected(other), "the other one goes on");
    ok(j->n_out[0] < 14 && !j->retired, "the paused one stands still, two deep at most");
    llm_sched_pause(sched, &j->request, false);
    run();
    ok(as_expected(j), "and goes on where it stood");
    is_idle("after a pause");

    free_job(j);
    j = new_job(1, 10, 100);
    llm_sched_submit(sched, &j->request);
    llm_sched_pause(sched, &j->request, true);
    run();
    llm_sched_cancel(sched, &j->request);
    ok(j->retired == 1, "a paused request can be cancelled");
    is_idle("after that");
    close_sched();
    free_job(j);
    free_job(other);
}

static void test_tenants(void)
{
    struct job *j[6];

    open_sched(64, 32, 8);
    for (int i = 0; i < 6; i++) {
        j[i] = new_job(1, 100, 30);
        j[i]->request.n_stop_ids = 0;
        j[i]->request.tenant_digest[0] = i < 2 ? 1 : i < 5 ? 2 : 3;
        j[i]->request.max_running = i < 2 ? 1 : 0;
        j[i]->request.max_pages = i >= 2 && i < 5 ? 6 : 0; /* three pages each */
        llm_sched_submit(sched, &j[i]->request);
    }
    llm_sched_turn(sched, &err);
    ok(j[0]->started && !j[1]->started, "one running at most for this tenant");
    ok(j[2]->started && j[3]->started && !j[4]->started, "six pages at most for that one");
    ok(j[5]->started, "another passes those who wait for their own");
    run();
    for (int i = 0; i < 6; i++) {
        ok(as_expected(j[i]), "and request %d gets its turn", i);
        free_job(j[i]);
    }
    is_idle("after caps");
    close_sched();
}

static void test_deadlines(void)
{
    struct job *late = new_job(3, 10, 10), *queue = new_job(1, 10, 10), *fine = new_job(1, 10, 10);

    open_sched(64, 32, 8);
    fake.now_ns = 1000;
    late->request.deadline = fake.now_ns;
    queue->request.queue_deadline = fake.now_ns;
    fine->request.queue_deadline = fine->request.deadline = fake.now_ns + 100 * LLM_NS_PER_S;
    llm_sched_submit(sched, &late->request);
    llm_sched_submit(sched, &queue->request);
    llm_sched_submit(sched, &fine->request);
    run();
    ok(late->retired == 1 && !late->started && late->request.outcome == LLM_OUTCOME_EXPIRED,
       "past its deadline when its turn comes: not started");
    ok(queue->retired == 1 && !queue->started && queue->request.outcome == LLM_OUTCOME_EXPIRED,
       "nor past the queue's deadline");
    ok(as_expected(fine), "in time");
    is_idle("after deadlines");
    close_sched();
    free_job(late);
    free_job(queue);
    free_job(fine);
}

static void test_non_finite(void)
{
    struct job *bad = new_job(3, 40, 30), *good = new_job(1, 40, 30);

    open_sched(64, 256, 8);
    bad->prompts[1][20] = FAKE_POISON;
    bad->request.n_stop_ids = good->request.n_stop_ids = 0;
    llm_sched_submit(sched, &bad->request);
    llm_sched_submit(sched, &good->request);
    run();
    ok(bad->retired == 1 && bad->request.outcome == LLM_OUTCOME_NON_FINITE,
       "logits that are not finite end the request");
    ok(as_expected(good), "and no other");
    is_idle("after that");
    close_sched();
    free_job(bad);
    free_job(good);
}

static void test_failure(void)
{
    struct job *j = new_job(1, 40, 30);
    int rc;

    open_sched(64, 32, 8);
    fake.fail_at = 5;
    llm_sched_submit(sched, &j->request);
    while ((rc = llm_sched_turn(sched, &err)) == LLM_OK) {
    }
    is_int(rc, LLM_EINTERNAL, "a failing backend is told");
    close_sched();
    free_job(j);
}

/* What has started is known before its first step is waited for. */
static void test_halves(void)
{
    struct job *j = new_job(1, 10, 5);

    open_sched(64, 32, 8);
    is_int(llm_sched_begin(sched, &err), LLM_EAGAIN, "nothing to begin");
    llm_sched_submit(sched, &j->request);
    is_int(llm_sched_begin(sched, &err), LLM_OK, "the first half of a turn");
    ok(j->started == 1 && fake.steps == 0, "starts the request and waits for no step");
    is_int(llm_sched_finish(sched, &err), LLM_OK, "the second half");
    ok(fake.steps == 1 && j->n_out[0] == 1, "brings the first token");
    run();
    ok(as_expected(j), "and so on");
    is_idle("after halves");
    close_sched();
    free_job(j);
}

int main(void)
{
    test_one();
    test_together();
    test_pages();
    test_ends();
    test_cancel();
    test_pause();
    test_tenants();
    test_deadlines();
    test_non_finite();
    test_failure();
    test_halves();
    return done_testing();
}
