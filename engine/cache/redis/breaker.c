#include "engine/cache/redis/breaker.h"

enum llm_redis_breaker llm_breaker_state(const struct llm_breaker *b)
{
    if (b->failures < LLM_BREAKER_LIMIT) {
        return LLM_REDIS_CLOSED;
    }
    return b->trying ? LLM_REDIS_HALF_OPEN : LLM_REDIS_OPEN;
}

bool llm_breaker_try(struct llm_breaker *b, uint64_t now)
{
    if (now < b->until) {
        return false;
    }
    b->trying = true;
    return true;
}

void llm_breaker_success(struct llm_breaker *b)
{
    *b = (struct llm_breaker){0};
}

void llm_breaker_failure(struct llm_breaker *b, uint64_t now, uint32_t random)
{
    uint64_t pause = LLM_BREAKER_FIRST_NS;

    for (uint32_t i = 0; i < b->failures && pause < LLM_BREAKER_LONGEST_NS; i++) {
        pause *= 2;
    }
    if (pause > LLM_BREAKER_LONGEST_NS) {
        pause = LLM_BREAKER_LONGEST_NS;
    }
    b->failures++;
    b->until = now + pause / 2 + random % (pause / 2 + 1);
    b->trying = false;
}
