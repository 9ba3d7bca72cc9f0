/* When to leave Redis alone. A failure is followed by a pause, and each further one by a pause
 * twice as long, drawn from its upper half so that engines do not come back all at once. From the
 * third in a row on the breaker is open: Redis counts as gone. When the pause is over the next try
 * decides: a success closes the breaker, a failure opens it for longer. Pure. */

#ifndef LLM_CACHE_REDIS_BREAKER_H
#define LLM_CACHE_REDIS_BREAKER_H

#include "engine/cache/redis/redis.h"

#define LLM_BREAKER_LIMIT 3 /* failures in a row */
#define LLM_BREAKER_FIRST_NS 50000000ull
#define LLM_BREAKER_LONGEST_NS 10000000000ull

struct llm_breaker {
    uint32_t failures; /* since the last success */
    uint64_t until;    /* ns: no try before */
    bool trying;       /* since it was open */
};

enum llm_redis_breaker llm_breaker_state(const struct llm_breaker *b);

/* Whether a try may be made; one is. */
bool llm_breaker_try(struct llm_breaker *b, uint64_t now);

void llm_breaker_success(struct llm_breaker *b);
void llm_breaker_failure(struct llm_breaker *b, uint64_t now, uint32_t random);

#endif
