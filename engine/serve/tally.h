/* What the cache has found, missed and pushed out, told to every worker: in all and by tenant, in
 * the engine's state (struct llm_ipc_tenant says how its table is to be read).
 *
 * The model thread writes it, as the cache's books are its own; nothing has to be handed over. It
 * does so when it has nothing else to do, and every 100 ms while it has. However many tenants the
 * cache has, it looks at those in the table and at some that used the cache last: who comes in a
 * crowd may get an entry only when it comes again. */

#ifndef LLM_SERVE_TALLY_H
#define LLM_SERVE_TALLY_H

#include "engine/ipc/abi.h"
#include "engine/sched/sched.h"

struct llm_tally_tenant;

struct llm_tally { /* zero-initialised but for `state` */
    struct llm_ipc_state *state;
    uint64_t next_ns; /* not before then, while there is other work */
    uint64_t told[LLM_IPC_TENANT_COUNTS];   /* in all, the last time */
    uint64_t named[LLM_IPC_TENANT_COUNTS];  /* of all that have an entry */
    uint64_t others[LLM_IPC_TENANT_COUNTS]; /* as the first entry says */
    uint32_t n_entries; /* of the table, that are somebody's; the first one is nobody's */
    struct llm_tally_tenant *buckets[LLM_IPC_TENANTS]; /* those with an entry, by owner */
    struct llm_tally_tenant *newest, *oldest;          /* and by when they last asked for pages */
};

/* Tells what has changed. idle: there is nothing else to do. */
void llm_tally_tell(struct llm_tally *t, const struct llm_cache *cache, uint64_t now_ns, bool idle);

/* The same of the Redis tier, which counts by itself, and of what the scheduler decided about it: a
 * few words, stored whatever has changed. */
void llm_tally_tell_redis(struct llm_ipc_state *state, const struct llm_redis *redis,
                          struct llm_sched_loads loads);

void llm_tally_free(struct llm_tally *t);

#endif
