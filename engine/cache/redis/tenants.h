/* What the tier's thread remembers of tenants: their keys, and their epoch as it was last read.
 * Whoever does not find his place goes: a tenant that is not remembered costs a little time. */

#ifndef LLM_CACHE_REDIS_TENANTS_H
#define LLM_CACHE_REDIS_TENANTS_H

#include "engine/cache/redis/forget.h"
#include "engine/cache/redis/key.h"

#define LLM_REDIS_TENANTS 1024

struct llm_redis_tenant {
    bool used;
    uint8_t owner[32];
    struct llm_redis_tenant_keys keys;
    uint64_t epoch; /* 0: not known */
    uint64_t then;  /* of llm_redis_forgets, when it was asked for */
};

struct llm_redis_tenants {
    const uint8_t *master; /* [32] */
    struct llm_redis_forgets *forgets;
    struct llm_redis_tenant slots[LLM_REDIS_TENANTS];
};

/* Valid until the next call; NULL: OpenSSL failed. */
struct llm_redis_tenant *llm_redis_tenant(struct llm_redis_tenants *t, const uint8_t owner[32]);

/* A number, as Redis keeps it; 0 also for what is none. */
uint64_t llm_redis_number_read(const char *text, size_t len);

#endif
