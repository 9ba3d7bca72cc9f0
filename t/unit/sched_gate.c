/* The queue's limits, in all and by tenant; what can be said of the time it takes. */

#include "engine/base/clock.h"
#include "engine/sched/gate.h"
#include "t/unit/tap.h"

static const uint8_t a[32] = "a", b[32] = "b";

static void leave_all(struct llm_gate *g, struct llm_gate_place *p, int n)
{
    bool left = false;

    for (int i = 0; i < n; i++) {
        llm_gate_leave(g, &p[i]);
        llm_gate_leave(g, &p[i]);
    }
    for (int i = 0; i < LLM_GATE_BUCKETS; i++) {
        left = left || g->tenants.buckets[i] != NULL || g->heads.buckets[i] != NULL;
    }
    left = left || g->tenants.n != 0 || g->heads.n != 0;
    ok(g->requests == 0 && g->sequences == 0 && g->tokens == 0, "all have left, once");
    ok(!left, "no tenant and no page is left");
}

static void test_all(void)
{
    static struct llm_gate g = {.all = {4, 1000}, .tenant = {100, 100000}};
    struct llm_gate_place p[6] = {{0}};

    is_int(llm_gate_enter(&g, a, 2, 1, 600, &p[0]), LLM_GATE_PASSED, "the first request");
    is_int(llm_gate_enter(&g, a, 2, 1, 500, &p[1]), LLM_GATE_FULL, "too many tokens");
    is_int(llm_gate_enter(&g, a, 2, 1, 400, &p[1]), LLM_GATE_PASSED, "as many as may be");
    is_int(llm_gate_enter(&g, a, 2, 1, 0, &p[2]), LLM_GATE_TENANT_FULL, "two of this tenant wait");
    is_int(llm_gate_enter(&g, b, 2, 1, 0, &p[2]), LLM_GATE_PASSED, "another tenant");
    is_int(llm_gate_enter(&g, a, 0, 1, 0, &p[3]), LLM_GATE_PASSED, "a tenant without a limit");
    is_int(llm_gate_enter(&g, b, 0, 1, 0, &p[4]), LLM_GATE_FULL, "too many requests");
    is_int(g.requests, 4, "four wait");
    is_int(g.tokens, 1000, "with a thousand tokens");

    llm_gate_recount(&g, &p[1], 100, 0, NULL, 0);
    is_int(g.tokens, 700, "less than was thought");
    llm_gate_recount(&g, &p[0], 2500, 0, NULL, 0);
    is_int(g.tokens, 2600, "more than was thought: who is in stays in");
    llm_gate_leave(&g, &p[3]);
    is_int(llm_gate_enter(&g, b, 0, 1, 1, &p[4]), LLM_GATE_FULL, "but nobody else comes in");
    leave_all(&g, p, 6);

    is_int(llm_gate_enter(&g, a, 1, 1, 5000, &p[0]), LLM_GATE_PASSED,
           "who finds nobody waiting is never too long");
    is_int(llm_gate_enter(&g, b, 1, 1, UINT64_MAX, &p[1]), LLM_GATE_FULL, "no sum overflows");
    llm_gate_leave(&g, &p[0]);

    is_int(llm_gate_enter(&g, a, 0, 5, 1, &p[0]), LLM_GATE_PASSED, "nor has too many choices");
    llm_gate_leave(&g, &p[0]);
    is_int(llm_gate_enter(&g, a, 0, 2, 1, &p[0]), LLM_GATE_PASSED, "two choices");
    is_int(llm_gate_enter(&g, a, 0, 3, 1, &p[1]), LLM_GATE_FULL, "three more are too many");
    is_int(llm_gate_enter(&g, a, 0, 2, 1, &p[1]), LLM_GATE_PASSED, "two more are not");
    is_int(g.requests, 2, "two requests wait");
    leave_all(&g, p, 2);
}

static void test_tenants(void)
{
    static struct llm_gate g = {.all = {10, 1000}, .tenant = {3, 500}};
    struct llm_gate_place p[6] = {{0}};

    is_int(llm_gate_enter(&g, a, 0, 1, 400, &p[0]), LLM_GATE_PASSED, "a tenant's first");
    is_int(llm_gate_enter(&g, a, 0, 1, 101, &p[1]), LLM_GATE_TENANT_FULL, "too many tokens of it");
    is_int(llm_gate_enter(&g, a, 0, 1, UINT64_MAX, &p[1]), LLM_GATE_TENANT_FULL,
           "no sum overflows");
    is_int(llm_gate_enter(&g, a, 0, 1, 100, &p[1]), LLM_GATE_PASSED, "as many as may be");
    is_int(llm_gate_enter(&g, a, 0, 2, 0, &p[2]), LLM_GATE_TENANT_FULL, "too many choices of it");
    is_int(llm_gate_enter(&g, b, 0, 1, 500, &p[2]), LLM_GATE_PASSED, "another tenant's part");
    is_int(llm_gate_enter(&g, a, 0, 1, 1, &p[3]), LLM_GATE_TENANT_FULL,
           "the tenant's own limit is told before everybody's");
    llm_gate_leave(&g, &p[0]);
    is_int(llm_gate_enter(&g, a, 0, 2, 400, &p[0]), LLM_GATE_PASSED, "what left makes room");
    llm_gate_recount(&g, &p[0], 10, 10, a, 0);
    is_int(llm_gate_enter(&g, a, 0, 0, 390, &p[3]), LLM_GATE_PASSED,
           "and so does what is less than was thought");
    leave_all(&g, p, 6);
    is_int(llm_gate_enter(&g, a, 0, 5, 900, &p[0]), LLM_GATE_PASSED,
           "who finds nobody of its tenant waiting is never too large for that");
    leave_all(&g, p, 1);
}

/* 100 tokens a second: 200 at most, as far as is certain. */
static const struct llm_gate_pace slow = {.prefill_rate = 100, .pool_tokens = 640};

static uint64_t first_token_ns(const struct llm_gate *g, const uint8_t tenant[32])
{
    return llm_gate_least_wait(g, tenant, 1, &slow).first_token_ns;
}

static void test_wait(void)
{
    static struct llm_gate g = {.all = {100, 100000}, .tenant = {100, 100000}};
    static const uint8_t page[3][32] = {"p0", "p1", "p2"};
    struct llm_gate_place p[5] = {{0}};
    struct llm_gate_wait w;

    for (int i = 0; i < 5; i++) {
        llm_gate_enter(&g, i < 4 ? a : b, 0, 1, 5000, &p[i]);
    }
    w = llm_gate_least_wait(&g, a, 1, &slow);
    ok(w.start_ns == 0 && w.first_token_ns == 0, "what nobody has counted is not certain");
    llm_gate_recount(&g, &p[0], 5000, 1000, page[0], 0);
    w = llm_gate_least_wait(&g, a, 1, &slow);
    ok(w.first_token_ns == 5 * LLM_NS_PER_S, "a thousand tokens before it take five seconds");
    ok(w.start_ns == 1800 * LLM_NS_PER_MS, "but all that fits into the pool may start before");
    llm_gate_recount(&g, &p[1], 5000, 4000, page[0], 0);
    ok(first_token_ns(&g, a) == 5 * LLM_NS_PER_S, "what begins with the same page may be found");
    llm_gate_recount(&g, &p[2], 60, 60, NULL, 0);
    ok(first_token_ns(&g, a) == 5300 * LLM_NS_PER_MS, "not so what has no page");
    llm_gate_recount(&g, &p[3], 5000, 200, page[1], 0);
    llm_gate_recount(&g, &p[4], 5000, 5000, page[2], 0);
    ok(first_token_ns(&g, a) == 6300 * LLM_NS_PER_MS,
       "another page counts, another tenant does not");
    ok(first_token_ns(&g, b) == 25 * LLM_NS_PER_S, "its own does");
    ok(first_token_ns(&g, page[0]) == 0, "a tenant that has nothing");
    ok(llm_gate_least_wait(&g, a, 1, &(struct llm_gate_pace){0}).first_token_ns == 0,
       "nothing is certain before anything is measured");
    llm_gate_leave(&g, &p[2]);
    ok(first_token_ns(&g, a) == 6 * LLM_NS_PER_S, "what has started is not waited for,");
    llm_gate_leave(&g, &p[0]);
    ok(first_token_ns(&g, a) == LLM_NS_PER_S, "whichever of them it is");
    leave_all(&g, p, 5);
}

/* Who leaves before the newcomer does may never be read. */
static void test_deadlines(void)
{
    static struct llm_gate g = {.all = {100, 100000}, .tenant = {100, 100000}};
    struct llm_gate_place p[3] = {{0}};

    for (int i = 0; i < 3; i++) {
        llm_gate_enter(&g, a, 0, 1, 5000, &p[i]);
    }
    llm_gate_recount(&g, &p[0], 5000, 5000, NULL, 40);
    llm_gate_recount(&g, &p[1], 5000, 200, NULL, 50);
    llm_gate_recount(&g, &p[2], 5000, 20, NULL, 0);
    ok(llm_gate_least_wait(&g, a, 40, &slow).first_token_ns == 26100 * LLM_NS_PER_MS,
       "who stays as long as the newcomer is waited for");
    ok(llm_gate_least_wait(&g, a, 41, &slow).first_token_ns == 1100 * LLM_NS_PER_MS &&
           llm_gate_least_wait(&g, a, 41, &slow).start_ns == 0,
       "who leaves before is not");
    ok(llm_gate_least_wait(&g, a, UINT64_MAX, &slow).first_token_ns == 100 * LLM_NS_PER_MS,
       "who has no deadline always is");
    leave_all(&g, p, 3);
}

static void test_retry(void)
{
    static struct llm_gate g = {.all = {100, 100000000}, .tenant = {100, 100000000}};
    const struct llm_gate_pace pace = {.prefill_rate = 100};
    struct llm_gate_place p = {0};

    is_int(llm_gate_retry_ms(&g, &pace, 0), 1000, "an empty queue: a second");
    llm_gate_enter(&g, a, 0, 1, 2000, &p);
    is_int(llm_gate_retry_ms(&g, &pace, 0), 20000, "two thousand tokens at a hundred a second");
    is_int(llm_gate_retry_ms(&g, &pace, 1023), 25000, "or a quarter later");
    is_int(llm_gate_retry_ms(&g, &(struct llm_gate_pace){0}, 0), 1000,
           "a second, before anything is measured");
    llm_gate_recount(&g, &p, 100000000, 0, NULL, 0);
    is_int(llm_gate_retry_ms(&g, &pace, 1023), 60000, "a minute at most");
    ok(llm_gate_retry_ms(&g, &pace, 0) < 50000, "also then not all at the same moment");
    leave_all(&g, &p, 1);
}

static void test_tenant_retry(void)
{
    static struct llm_gate g = {.all = {100, 100000000}, .tenant = {100, 100000000}};
    const struct llm_gate_pace pace = {.prefill_rate = 100};
    struct llm_gate_place p[2] = {{0}};

    is_int(llm_gate_tenant_retry_ms(&g, a, &pace, 0), 1000, "a tenant that has nothing: a second");
    llm_gate_enter(&g, a, 0, 1, 500, &p[0]);
    is_int(llm_gate_tenant_retry_ms(&g, a, &pace, 0), 5000, "one that is alone: its own part");
    llm_gate_enter(&g, b, 0, 1, 3500, &p[1]);
    is_int(llm_gate_tenant_retry_ms(&g, a, &pace, 0), 10000, "of two: twice that");
    is_int(llm_gate_tenant_retry_ms(&g, a, &pace, 1023), 12500, "or a quarter later");
    is_int(llm_gate_tenant_retry_ms(&g, b, &pace, 0), 40000, "no more than all that waits");
    leave_all(&g, p, 2);
}

int main(void)
{
    test_all();
    test_tenants();
    test_wait();
    test_deadlines();
    test_retry();
    test_tenant_retry();
    return done_testing();
}
