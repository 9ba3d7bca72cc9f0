#include "engine/cache/redis/forget.h"

#include <string.h>

void llm_redis_forgets_init(struct llm_redis_forgets *f)
{
    pthread_mutex_init(&f->lock, NULL);
    atomic_init(&f->generation, 0);
}

void llm_redis_forgets_free(struct llm_redis_forgets *f)
{
    pthread_mutex_destroy(&f->lock);
}

void llm_redis_forgets_add(struct llm_redis_forgets *f, const uint8_t owner[32])
{
    uint64_t generation;

    pthread_mutex_lock(&f->lock);
    generation = atomic_load_explicit(&f->generation, memory_order_relaxed);
    memcpy(f->owners[generation % LLM_REDIS_FORGETS], owner, 32);
    atomic_store_explicit(&f->generation, generation + 1, memory_order_release);
    pthread_mutex_unlock(&f->lock);
}

uint64_t llm_redis_forgets_now(struct llm_redis_forgets *f)
{
    return atomic_load_explicit(&f->generation, memory_order_acquire);
}

bool llm_redis_forgotten(struct llm_redis_forgets *f, const uint8_t owner[32], uint64_t then)
{
    uint64_t now = llm_redis_forgets_now(f);
    bool forgotten;

    if (now == then) {
        return false;
    }

    pthread_mutex_lock(&f->lock);
    now = atomic_load_explicit(&f->generation, memory_order_relaxed);
    forgotten = now - then > LLM_REDIS_FORGETS;
    for (uint64_t g = then; g < now && !forgotten; g++) {
        forgotten = memcmp(f->owners[g % LLM_REDIS_FORGETS], owner, 32) == 0;
    }
    pthread_mutex_unlock(&f->lock);
    return forgotten;
}
