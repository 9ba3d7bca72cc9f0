/* Taking all that Redis holds of a tenant away: for an operator's command, not for the tier. It
 * waits for Redis, for each reply as long as the caller says. One thread. */

#ifndef LLM_CACHE_REDIS_PURGE_H
#define LLM_CACHE_REDIS_PURGE_H

#include "engine/base/error.h"

#include <stdint.h>

struct llm_redis_purge;

/* Connects. LLM_EINVAL: the url is wrong; LLM_EIO: Redis is not there or refuses, says why. */
int llm_redis_purge_open(const char *url, const uint8_t master[32], const uint8_t owner[32],
                         uint32_t timeout_ms, struct llm_redis_purge **out,
                         struct llm_error *err);
void llm_redis_purge_close(struct llm_redis_purge *p); /* NULL is fine */

/* Gives the tenant another epoch, also where there is none: from here on nobody finds what is there
 * of the tenant, nor what is on its way there. LLM_EIO. */
int llm_redis_purge_epoch(struct llm_redis_purge *p, struct llm_error *err);

struct llm_redis_purged {
    uint64_t deleted; /* pages */
    uint64_t left;    /* that the last look at all keys found: 0 is the proof */
};

/* Deletes the tenant's pages of every epoch, and looks again, until there is none or an engine that
 * has not heard of the purge keeps writing. LLM_EIO, also where that takes longer than ten answers
 * may, or Redis's SCAN leads nowhere: *done is what was done until then. */
int llm_redis_purge_delete(struct llm_redis_purge *p, struct llm_redis_purged *done,
                           struct llm_error *err);

#endif
