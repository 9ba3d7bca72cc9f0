/* The breaker, and who has been forgotten: pure rules. */

#include "engine/cache/redis/breaker.h"
#include "engine/cache/redis/forget.h"
#include "t/unit/tap.h"

static void opens_and_closes(void)
{
    struct llm_breaker b = {0};
    uint64_t now = 1000, last = 0;

    is_int(llm_breaker_state(&b), LLM_REDIS_CLOSED, "closed at first");
    ok(llm_breaker_try(&b, now), "a try may be made at once");
    llm_breaker_failure(&b, now, 0);
    ok(!llm_breaker_try(&b, now), "none right after a failure");
    ok(!llm_breaker_try(&b, now + LLM_BREAKER_FIRST_NS / 2 - 1), "nor within half of the pause");
    ok(llm_breaker_try(&b, now + LLM_BREAKER_FIRST_NS / 2), "then one, at the earliest");
    llm_breaker_failure(&b, now, 1000000);
    is_int(llm_breaker_state(&b), LLM_REDIS_CLOSED, "two failures do not open it");
    llm_breaker_failure(&b, now, 1000000);
    is_int(llm_breaker_state(&b), LLM_REDIS_OPEN, "the third does");
    ok(b.until > now, "for some time");
    is_int(llm_breaker_state(&b), LLM_REDIS_OPEN, "until it is over");
    ok(llm_breaker_try(&b, b.until), "then a try may be made");
    is_int(llm_breaker_state(&b), LLM_REDIS_HALF_OPEN, "half open");
    llm_breaker_failure(&b, b.until, 0);
    is_int(llm_breaker_state(&b), LLM_REDIS_OPEN, "which fails");
    ok(llm_breaker_try(&b, b.until), "another one");
    llm_breaker_success(&b);
    is_int(llm_breaker_state(&b), LLM_REDIS_CLOSED, "which does not");
    ok(llm_breaker_try(&b, 0), "no pause is left");

    for (int i = 0; i < 100; i++) {
        llm_breaker_failure(&b, 0, 0);
        ok(b.until >= last && b.until <= LLM_BREAKER_LONGEST_NS, "pauses grow, up to a bound");
        last = b.until;
    }
    is_int(last, LLM_BREAKER_LONGEST_NS / 2, "half of it at least");
    llm_breaker_failure(&b, 0, UINT32_MAX);
    ok(b.until > LLM_BREAKER_LONGEST_NS / 2 && b.until <= LLM_BREAKER_LONGEST_NS,
       "the rest is drawn");
}

static void forgets(void)
{
    static struct llm_redis_forgets f;
    uint8_t a[32] = {1}, b[32] = {2};
    uint64_t begin, later;

    llm_redis_forgets_init(&f);
    begin = llm_redis_forgets_now(&f);
    ok(!llm_redis_forgotten(&f, a, begin), "nobody is forgotten at first");
    llm_redis_forgets_add(&f, a);
    later = llm_redis_forgets_now(&f);
    ok(llm_redis_forgotten(&f, a, begin), "what a began before is");
    ok(!llm_redis_forgotten(&f, b, begin), "of b nothing");
    ok(!llm_redis_forgotten(&f, a, later), "what a began later is not");
    for (int i = 0; i < LLM_REDIS_FORGETS - 1; i++) {
        llm_redis_forgets_add(&f, a);
    }
    ok(!llm_redis_forgotten(&f, b, begin), "it remembers who was forgotten");
    llm_redis_forgets_add(&f, a);
    ok(llm_redis_forgotten(&f, b, begin), "up to a bound: then what is older counts as forgotten");
    ok(!llm_redis_forgotten(&f, b, llm_redis_forgets_now(&f)), "what is new does not");
    llm_redis_forgets_free(&f);
}

int main(void)
{
    opens_and_closes();
    forgets();
    return done_testing();
}
