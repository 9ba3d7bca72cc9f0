/* What the parts of the Redis tier have in common. */

#ifndef LLM_CACHE_REDIS_COMMON_H
#define LLM_CACHE_REDIS_COMMON_H

#include "engine/cache/redis/forget.h"
#include "engine/cache/redis/place.h"
#include "engine/cache/redis/redis.h"
#include "engine/cache/redis/ring.h"
#include "engine/cache/redis/tenants.h"

/* Sums; whoever adds, anybody reads. */
struct llm_redis_tally {
    _Atomic uint64_t loads, hits, misses[LLM_REDIS_N_MISSES];
    _Atomic uint64_t saved, already_there, over_quota, unsaved;
    _Atomic uint64_t bytes_in, bytes_out;
};

static inline void llm_redis_add(_Atomic uint64_t *sum, uint64_t n)
{
    atomic_fetch_add_explicit(sum, n, memory_order_relaxed);
}

static inline uint64_t llm_redis_read(const _Atomic uint64_t *sum)
{
    return atomic_load_explicit((_Atomic uint64_t *) sum, memory_order_relaxed);
}

struct llm_redis_common {
    struct llm_redis_options options; /* but the url, which may be gone */
    size_t page_bytes, value_bytes;
    struct llm_redis_forgets forgets;
    struct llm_redis_tally tally;

    /* the tier's thread's */
    struct llm_redis_url url;
    struct llm_redis_place place;
    struct llm_redis_tenants tenants;
};

#endif
