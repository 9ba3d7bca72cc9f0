/* Which tenants were purged, and when: everything of a tenant that is older is not to be used any
 * more. Any thread. */

#ifndef LLM_CACHE_REDIS_FORGET_H
#define LLM_CACHE_REDIS_FORGET_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define LLM_REDIS_FORGETS 64 /* further back, every tenant counts as forgotten */

struct llm_redis_forgets {
    pthread_mutex_t lock;
    _Atomic uint64_t generation; /* how often somebody was forgotten */
    uint8_t owners[LLM_REDIS_FORGETS][32]; /* in generation g at (g - 1) % LLM_REDIS_FORGETS */
};

void llm_redis_forgets_init(struct llm_redis_forgets *f);
void llm_redis_forgets_free(struct llm_redis_forgets *f);

void llm_redis_forgets_add(struct llm_redis_forgets *f, const uint8_t owner[32]);

/* Now, for what is begun now. */
uint64_t llm_redis_forgets_now(struct llm_redis_forgets *f);

/* Whether what the tenant began then is forgotten. Takes the lock only if anybody was since. */
bool llm_redis_forgotten(struct llm_redis_forgets *f, const uint8_t owner[32], uint64_t then);

#endif
