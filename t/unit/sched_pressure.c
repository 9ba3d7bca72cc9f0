/* Too little room: who gives way, and that everybody gets there in the end. */

#include "t/unit/sched_jobs.h"

#define PAGE LLM_PAGE_TOKENS

static struct job *tenant_job(uint8_t tenant, uint32_t n_prompt, uint32_t max_tokens)
{
    struct job *j = new_job(1, n_prompt, max_tokens);

    j->request.n_stop_ids = 0;
    share(j, tenant, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &j->request);
    return j;
}

static bool waits_again(const struct job *j)
{
    return j->started && (j->sequences[0].state == LLM_SEQUENCE_QUEUED ||
                          j->sequences[0].state == LLM_SEQUENCE_PREEMPTED);
}

/* Turns until all are over; how many times each came to wait again. */
static int run_all(struct job **jobs, int n, int *gave_way)
{
    bool before[16] = {false};
    int turns = 0;

    for (int i = 0; i < n; i++) {
        gave_way[i] = 0;
    }
    while (turn()) {
        turns++;
        for (int i = 0; i < n; i++) {
            gave_way[i] += waits_again(jobs[i]) && !before[i];
            before[i] = waits_again(jobs[i]);
        }
    }
    return turns;
}

static void free_all(struct job **jobs, int n)
{
    for (int i = 0; i < n; i++) {
        free_job(jobs[i]);
    }
}

static void test_growth(void)
{
    struct job *j[2];
    int gave_way[2], turns;

    open_sched(10, 64, 8);
    j[0] = tenant_job(1, 100, 500); /* ten pages each in the end */
    j[1] = tenant_job(1, 100, 500);
    turns = run_all(j, 2, gave_way);
    ok(as_expected(j[0]) && as_expected(j[1]), "two that do not fit together");
    ok(gave_way[0] == 0 && gave_way[1] == 1, "the newer one gives way, once");
    ok(turns < 1100, "nothing much is done twice: %d turns for 1,000 tokens", turns);
    is_int(fake.resumed, 1, "and it keeps what it has said");
    is_idle("after growth");
    close_sched();
    free_all(j, 2);
}

static void test_share(void)
{
    struct job *j[4];
    int gave_way[4];

    open_sched(12, 64, 8);
    j[0] = tenant_job(1, 150, 300); /* seven pages each in the end */
    j[1] = tenant_job(1, 150, 300);
    j[2] = tenant_job(1, 150, 300);
    j[3] = tenant_job(2, 150, 200);
    run_all(j, 4, gave_way);
    for (int i = 0; i < 4; i++) {
        ok(as_expected(j[i]), "request %d of four that do not fit together", i);
    }
    ok(gave_way[2] > 0, "the newest of the tenant furthest over its share gives way");
    ok(gave_way[0] == 0, "not its oldest");
    ok(gave_way[3] == 0, "nor the tenant with less");
    is_idle("after shares");
    close_sched();
    free_all(j, 4);
}

/* A tenant under its share takes pages from who is over; that one keeps its share. */
static void test_take(void)
{
    struct job *j[5];
    int gave_way[5];

    open_sched(16, 512, 8);
    for (int i = 0; i < 4; i++) {
        j[i] = tenant_job(1, 3 * PAGE + 10, 40); /* four pages each: all there are */
    }
    turn();
    turn();
    j[4] = tenant_job(2, 4 * PAGE + 10, 10); /* five pages */
    turn();
    turn();
    ok(j[4]->started, "who has nothing gets his share, though all pages are in use");
    ok(waits_again(j[3]) && waits_again(j[2]) && !waits_again(j[1]) && !waits_again(j[0]),
       "from the newest of who has more, as many as it takes");
    run_all(j, 5, gave_way);
    for (int i = 0; i < 5; i++) {
        ok(as_expected(j[i]), "and all are answered: %d", i);
    }
    is_idle("after taking");
    close_sched();
    free_all(j, 5);
}

static void test_take_no_more(void)
{
    struct job *big, *other;

    open_sched(16, 512, 8);
    big = tenant_job(1, 14 * PAGE, 60);
    turn();
    other = tenant_job(2, 6 * PAGE, 10);
    for (int i = 0; i < 10; i++) {
        turn();
    }
    ok(!other->started && !waits_again(big), "nobody falls below his share by it");
    run();
    ok(as_expected(big) && as_expected(other), "so the other one waits");
    is_idle("after that");
    close_sched();
    free_job(big);
    free_job(other);
}

/* One that takes all the pages there are comes through among many small ones. */
static void test_whole_pool(void)
{
    struct job *big, *small[60];
    int turns = 0, next = 0;

    open_sched(10, 64, 8);
    for (; next < 6; next++) {
        small[next] = tenant_job((uint8_t) (2 + next % 3), 60, 60);
    }
    big = tenant_job(1, 300, 340);
    while (!big->retired && turns++ < 5000) {
        turn();
        if (turns % 20 == 0 && next < 60) {
            small[next] = tenant_job((uint8_t) (2 + next % 3), 60, 60);
            next++;
        }
    }
    ok(as_expected(big), "one that needs every page, among others: done in %d turns", turns);
    run();
    for (int i = 0; i < next; i++) {
        fake_must(as_expected(small[i]));
        free_job(small[i]);
    }
    is_idle("after the big one");
    free_job(big);

    big = tenant_job(1, 300, 341);
    ok(big->retired && big->request.outcome == LLM_OUTCOME_TOO_LARGE && !big->started,
       "one that can never fit is told at once");
    is_idle("after that");
    close_sched();
    free_job(big);
}

static void test_paused(void)
{
    struct job *old, *slow, *fresh;
    bool gave_way = false;

    open_sched(10, 64, 8);
    slow = tenant_job(1, 100, 500);
    old = tenant_job(1, 100, 500);
    while (slow->n_out[0] < 100) {
        turn();
    }
    llm_sched_pause(sched, &slow->request, true);
    while (turn()) {
        gave_way = gave_way || waits_again(old);
    }
    ok(as_expected(old) && !gave_way, "one that stands still gives way, though it is older");
    ok(waits_again(slow), "and does not come back before it goes on");
    llm_sched_pause(sched, &slow->request, false);
    turn();
    ok(!waits_again(slow), "then it does");

    llm_sched_pause(sched, &slow->request, true);
    fresh = tenant_job(1, 500, 100);
    run();
    ok(as_expected(fresh), "nobody waits for one that stands still");
    llm_sched_pause(sched, &slow->request, false);
    run();
    ok(as_expected(slow), "who says all he has to say in the end");
    is_idle("after pauses");
    close_sched();
    free_job(old);
    free_job(slow);
    free_job(fresh);
}

/* The only one that goes on has most and gives way itself: then it takes from who stands still. */
static void test_alone(void)
{
    struct job *slow, *only;

    open_sched(10, 512, 8);
    only = tenant_job(2, 5 * PAGE, 200); /* six pages, until they are full */
    while (only->sequences[0].position < 6 * PAGE) {
        turn();
    }
    llm_sched_pause(sched, &only->request, true);
    slow = tenant_job(1, 3 * PAGE + 10, 100); /* the other four */
    while (slow->n_out[0] < 10) {
        turn();
    }
    llm_sched_pause(sched, &slow->request, true);
    run();
    llm_sched_pause(sched, &only->request, false);
    run();
    ok(as_expected(only) && waits_again(slow),
       "one that has to give way to itself goes on at once");
    llm_sched_pause(sched, &slow->request, false);
    run();
    ok(as_expected(slow), "and so does the other one later");
    is_idle("after that");
    close_sched();
    free_job(slow);
    free_job(only);
}

/* Slots of those that stand still. */
static void test_paused_slots(void)
{
    struct job *slow[2], *fresh;

    open_sched(100, 64, 2);
    for (int i = 0; i < 2; i++) {
        slow[i] = tenant_job(1, 100, 100);
    }
    turn();
    turn();
    turn();
    llm_sched_pause(sched, &slow[0]->request, true);
    llm_sched_pause(sched, &slow[1]->request, true);
    fresh = tenant_job(1, 500, 100);
    run();
    ok(as_expected(fresh), "nobody waits for slots of those that stand still");
    llm_sched_pause(sched, &slow[0]->request, false);
    llm_sched_pause(sched, &slow[1]->request, false);
    run();
    ok(as_expected(slow[0]) && as_expected(slow[1]), "they go on later");
    is_idle("after slots");
    close_sched();
    free_job(slow[0]);
    free_job(slow[1]);
    free_job(fresh);
}

/* Pages that they share: what each of them gives up alone is nothing. */
static void test_paused_together(void)
{
    struct job *slow = make_job(2, true, 40 * PAGE, 100), *fresh;

    open_sched(64, 512, 8);
    slow->request.n_stop_ids = 0;
    share(slow, 1, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &slow->request);
    while (slow->n_out[1] < 5) {
        turn();
    }
    llm_sched_pause(sched, &slow->request, true);
    fresh = tenant_job(2, 30 * PAGE, 10);
    run();
    ok(as_expected(fresh), "nobody waits for those that stand still together");
    llm_sched_pause(sched, &slow->request, false);
    run();
    ok(as_expected(slow), "who go on later");
    is_idle("after that");
    close_sched();
    free_job(slow);
    free_job(fresh);
}

/* A tenant's slow readers do not hold up its others, though somebody goes on. */
static void test_own_paused(void)
{
    struct job *slow[7], *busy, *fresh;

    open_sched(128, 512, 8);
    for (int i = 0; i < 7; i++) {
        slow[i] = tenant_job(1, 20, 400);
    }
    turn();
    turn();
    for (int i = 0; i < 7; i++) {
        llm_sched_pause(sched, &slow[i]->request, true);
    }
    busy = tenant_job(1, 20, 400);
    turn();
    fresh = tenant_job(1, 20, 2);
    while (!fresh->retired && turn()) {
    }
    ok(as_expected(fresh) && busy->n_out[0] < 20, "a tenant's slow readers give way to its others");
    ok(waits_again(slow[6]) && !waits_again(slow[5]) && !waits_again(busy),
       "the newest, and no more than it takes");
    for (int i = 0; i < 7; i++) {
        llm_sched_pause(sched, &slow[i]->request, false);
    }
    run();
    for (int i = 0; i < 7; i++) {
        ok(as_expected(slow[i]), "slow reader %d", i);
        free_job(slow[i]);
    }
    ok(as_expected(busy), "and the one beside them");
    is_idle("after slow readers");
    close_sched();
    free_job(busy);
    free_job(fresh);
}

/* Who gave way has had less than the one it gave way to, and yet does not take it back. */
static void test_no_ping_pong(uint32_t n_slots)
{
    struct job *many[5], *big;
    uint32_t n = n_slots < 5 ? n_slots : 5;
    int turns = 0;

    open_sched(64, 64, n_slots);
    fake.fixed_ns = fake.row_ns = 1000;
    for (uint32_t i = 0; i < n; i++) {
        many[i] = tenant_job(1, 9 * PAGE + 10, 500);
    }
    while (many[n - 1]->n_out[0] < 5) {
        turn();
    }
    fake.resumed = 0;
    big = tenant_job(2, 20 * PAGE, 10);
    big->request.tenant->counter += 1e9;
    while (!big->started && turns++ < 50) {
        turn();
    }
    ok(turns <= 2 && fake.resumed == 0, "%u slots: what is given up is there to be had, in turn %d",
       n_slots, turns);
    run();
    for (uint32_t i = 0; i < n; i++) {
        ok(as_expected(many[i]), "one of those that gave way, or did not");
        free_job(many[i]);
    }
    ok(as_expected(big), "and the one they gave way to");
    is_idle("after that");
    close_sched();
    free_job(big);
}

/* No slot is taken from anybody for one that does not get its pages either. */
static void test_no_pages_no_slot(void)
{
    struct job *many[4], *big;
    int gave_way[4] = {0};

    open_sched(64, 64, 4);
    for (int i = 0; i < 4; i++) {
        many[i] = tenant_job(1, 10 * PAGE + 10, 300);
    }
    while (many[3]->n_out[0] < 5) {
        turn();
    }
    fake.resumed = 0;
    big = tenant_job(2, 45 * PAGE, 10);
    for (int i = 0; i < 100; i++) {
        turn();
    }
    ok(!big->started && fake.resumed <= 1, "nobody gives way for nothing: %d came back",
       (int) fake.resumed);
    run_all(many, 4, gave_way);
    for (int i = 0; i < 4; i++) {
        ok(as_expected(many[i]), "one of four: %d", i);
        free_job(many[i]);
    }
    ok(as_expected(big), "and the big one");
    is_idle("after that");
    close_sched();
    free_job(big);
}

/* A preempted sequence is cancelled in each state that it can be in. */
static void test_cancel(void)
{
    for (int wait = 0; wait < 4; wait++) {
        struct job *old, *newer;

        open_sched(10, 64, 8);
        old = tenant_job(1, 100, 500);
        newer = tenant_job(1, 100, 500);
        while (!waits_again(newer)) {
            llm_sched_begin(sched, &err);
            if (!waits_again(newer)) {
                llm_sched_finish(sched, &err);
            }
        }
        for (int i = 0; i < wait; i++) {
            llm_sched_finish(sched, &err);
            llm_sched_begin(sched, &err);
        }
        llm_sched_cancel(sched, &newer->request);
        run();
        ok(newer->retired == 1 && as_expected(old), "cancelled %d turns after it gave way", wait);
        is_idle("after that");
        close_sched();
        free_job(old);
        free_job(newer);
    }
}

int main(void)
{
    test_growth();
    test_share();
    test_take();
    test_take_no_more();
    test_whole_pool();
    test_paused();
    test_alone();
    test_paused_slots();
    test_paused_together();
    test_own_paused();
    test_no_ping_pong(16);
    test_no_ping_pong(4);
    test_no_pages_no_slot();
    test_cancel();
    return done_testing();
}
