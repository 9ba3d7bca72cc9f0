/* Loading: what was asked for is fetched by a pipeline of GETs over a connection of its own, opened
 * into buffers and handed on. The tier's thread, but where said. */

#ifndef LLM_CACHE_REDIS_LOAD_H
#define LLM_CACHE_REDIS_LOAD_H

#include "engine/cache/redis/common.h"
#include "engine/cache/redis/link.h"

#define LLM_REDIS_RUNS 64 /* loads under way at most */

/* One load. The model thread makes it; it is the tier's thread's until its end has been put into
 * the ring of arrivals. */
struct llm_redis_run {
    uint64_t load;
    uint8_t owner[32];
    uint64_t asked_ns, deadline_ns;
    uint64_t then; /* of llm_redis_forgets */
    atomic_bool cancelled;
    uint32_t n; /* pages */

    struct llm_redis_run *next;
    struct llm_redis_tenant_keys keys;
    uint64_t epoch;       /* that its pages are named by; 0: not known yet */
    bool epoch_asked;     /* on this connection */
    uint64_t epoch_first; /* what it was, and its pages are of; 0: not known */
    uint64_t epoch_heard; /* what it is, as was heard last; likewise */
    uint32_t n_out;       /* answers that are still to come */
    uint32_t n_asked;     /* pages asked for */
    uint32_t n_answered;
    enum llm_redis_miss fate; /* of all that is still to come; LLM_LINK_FINE: none */

    uint32_t n_timed;           /* hits */
    uint64_t first_ns, last_ns; /* when the first and the last of them came */
    bool starved; /* has waited for a buffer: what comes from then on tells nothing of Redis */

    uint32_t *ids; /* [n * LLM_PAGE_TOKENS], behind digests */
    struct llm_digest digests[];
};

/* NULL: no memory. Any thread. */
struct llm_redis_run *llm_redis_run_new(uint64_t load, const uint8_t owner[32],
                                        const struct llm_digest *digests, const uint32_t *ids,
                                        uint32_t n);
void llm_redis_run_free(struct llm_redis_run *r);

enum { LLM_REDIS_NOTE_PAGE, LLM_REDIS_NOTE_END }; /* in the ring of arrivals */

enum llm_redis_buffer_state { LLM_BUFFER_FREE, LLM_BUFFER_ASKED, LLM_BUFFER_GIVEN };

struct llm_redis_in {
    enum llm_redis_buffer_state state;
    bool used;     /* its page was there: to be kept for another ttl */
    uint32_t page; /* of its run */
    char name[LLM_REDIS_NAME_MAX];
};

struct llm_redis_loader {
    struct llm_redis_common *common;
    struct llm_redis_ring *arrivals;
    struct llm_redis_link link;
    struct llm_redis_run *runs; /* under way, oldest first */

    uint8_t *memory; /* [n_buffers][page_bytes] */
    struct llm_redis_in *in;
    uint32_t n_buffers;
    uint32_t max_out, n_out; /* buffers that pages are asked for into */

    /* Values that are no good: to be deleted by whoever has a connection for it. */
    void (*delete)(void *ctx, const char *name);
    void *delete_ctx;

    _Atomic uint64_t first_ns, bytes_per_s; /* llm_redis_rates */
};

int llm_redis_loader_init(struct llm_redis_loader *l, struct llm_redis_common *common,
                          struct llm_redis_ring *arrivals, uint32_t n_buffers,
                          struct llm_error *err);
void llm_redis_loader_free(struct llm_redis_loader *l);

void llm_redis_loader_add(struct llm_redis_loader *l, struct llm_redis_run *run);
void llm_redis_loader_give_back(struct llm_redis_loader *l, uint32_t buffer);

/* Does what can be done without waiting; revents: what poll found on the link. */
void llm_redis_loader_turn(struct llm_redis_loader *l, short revents, uint64_t now);

/* When there is something to do even if nothing happens. */
uint64_t llm_redis_loader_next(const struct llm_redis_loader *l);

#endif
