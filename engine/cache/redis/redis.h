/* The lowest tier: pages in Redis, shared by all engines that have the same secret file.
 *
 * A thread of its own talks to Redis; the model thread asks it for pages and gives it pages, and
 * never waits for it. Bytes change hands in buffers of one page each, which belong to the tier: one
 * that holds an arrived page is the model thread's until it gives it back, one that is to be
 * filled and saved until it hands it over. What goes wrong, goes wrong quietly: it costs hits and
 * is counted (doc/redis.md).
 *
 * The model thread calls everything here but where said. */

#ifndef LLM_CACHE_REDIS_REDIS_H
#define LLM_CACHE_REDIS_REDIS_H

#include "engine/cache/digest.h"
#include "engine/model/plane.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct llm_redis;

struct llm_redis_options {
    const char *url;         /* redis://[user[:password]@]host[:port][/db] or redis+unix://…/path */
    uint8_t master[32];      /* of the secret file (llm_secret_read) */
    uint32_t ttl;            /* seconds that an unused page stays; 1 … */
    uint64_t tenant_bytes;   /* that a tenant may have written in this and the last ttl; 0: any */
    uint32_t deadline_ms;    /* of a look-up, from when it is asked for to its last page; 1 … */
    const struct llm_page_layout *layout; /* must outlive the tier */

    uint64_t (*now)(void *ctx); /* ns; NULL: CLOCK_MONOTONIC */
    void *now_ctx;
};

/* Starts the thread; Redis need not be there. LLM_EINVAL: the url is wrong, says how. */
int llm_redis_open(const struct llm_redis_options *options, struct llm_redis **out,
                   struct llm_error *err);

/* What is not saved yet is given up. No buffer may be in use by a copy any more. */
void llm_redis_close(struct llm_redis *r);

/* --- loading --- */

/* Asks for n > 0 pages of a tenant, a run of one prefix, in order; everything is copied. load: the
 * caller's name for it, not 0, used once. False: it is not done (Redis is not there, or has enough
 * to do), and no more will be heard of it. */
bool llm_redis_load(struct llm_redis *r, uint64_t load, const uint8_t owner[32],
                    const struct llm_digest *digests, const uint32_t *ids, uint32_t n);

/* Pages that may have arrived and not been given back yet. */
uint32_t llm_redis_load_most(const struct llm_redis *r);

/* No page of it is wanted any more. Its end is heard of all the same. */
void llm_redis_cancel(struct llm_redis *r, uint64_t load);

struct llm_redis_arrival {
    uint64_t load;
    uint32_t index;      /* of the page, in the run */
    bool ended;          /* no page: nothing more comes of this load */
    struct llm_digest digest;
    uint32_t ids[LLM_PAGE_TOKENS];
    const void *bytes;   /* [page_bytes], authenticated and finite; valid until given back */
    uint32_t buffer;
};

/* The next page that has arrived, or the end of a load; false: nothing now. */
bool llm_redis_arrived(struct llm_redis *r, struct llm_redis_arrival *a);

/* The page of an arrival has been copied, or is not wanted. */
void llm_redis_give_back(struct llm_redis *r, uint32_t buffer);

/* --- saving --- */

/* A buffer of page_bytes to fill; NULL: none is free, the page is not saved. */
void *llm_redis_save_buffer(struct llm_redis *r, uint32_t *buffer);

/* It is full: it is written if it is not there already and the tenant's quota allows it, which is
 * tenant_bytes or so many pages if that is less (max_pages 0: tenant_bytes alone); and if the
 * tenant's epoch is this one (0: whichever it is). Or it is not needed after all. */
void llm_redis_save(struct llm_redis *r, uint32_t buffer, const uint8_t owner[32], uint64_t epoch,
                    uint32_t max_pages, const struct llm_digest *digest,
                    const uint32_t ids[LLM_PAGE_TOKENS]);
void llm_redis_drop(struct llm_redis *r, uint32_t buffer);

/* A page is no good: what was handed over of it and is not written yet is given up, what is there
 * under the tenant's epoch (0: not known) is deleted. As far as there is room to remember it: of
 * some hundred pages at a time. */
void llm_redis_delete(struct llm_redis *r, const uint8_t owner[32], uint64_t epoch,
                      const struct llm_digest *digest);

/* --- what it is worth --- */

/* Any thread. What loads of late have reached: time to the first page, and bytes a second after
 * that; both 0 as long as nothing is known. A load of one page tells of the second what it is at
 * least; one that is late, what it is at most. */
struct llm_redis_rates {
    uint64_t first_ns, bytes_per_s;
    bool up; /* Redis answers, as far as is known */
};
struct llm_redis_rates llm_redis_rates(const struct llm_redis *r);

/* --- tenants --- */

/* Any thread. What was asked for or saved for the tenant before this call is given up, and its
 * epoch is read anew: somebody has purged it. */
void llm_redis_forget_tenant(struct llm_redis *r, const uint8_t owner[32]);

/* A tenant's epoch, as Redis has said when pages of it were loaded, or were not saved because they
 * belong to another one; false: nothing that has not been told. Where it is not the one it was,
 * somebody has purged the tenant, or Redis has lost the epoch. */
struct llm_redis_epoch {
    uint8_t owner[32];
    uint64_t epoch; /* not 0 */
};
bool llm_redis_heard(struct llm_redis *r, struct llm_redis_epoch *out);

/* --- counts: any thread; 64-bit sums since the start --- */

enum llm_redis_miss {
    LLM_REDIS_ABSENT,   /* not there */
    LLM_REDIS_LATE,     /* not there in time */
    LLM_REDIS_DOWN,     /* no connection, or the breaker is open */
    LLM_REDIS_REFUSED,  /* an error reply: LOADING, READONLY, MOVED, NOAUTH, OOM … */
    LLM_REDIS_PROTOCOL, /* not what RESP, or this command, answers */
    LLM_REDIS_CORRUPT,  /* a value that is not authentic, or not of this page */
    LLM_REDIS_STALE,    /* the tenant was purged meanwhile */
    LLM_REDIS_UNWANTED, /* cancelled */
    LLM_REDIS_N_MISSES,
};

enum llm_redis_breaker { LLM_REDIS_CLOSED, LLM_REDIS_OPEN, LLM_REDIS_HALF_OPEN };

struct llm_redis_counts {
    uint64_t loads, hits, misses[LLM_REDIS_N_MISSES]; /* pages, but loads */
    uint64_t saved, already_there, over_quota, unsaved; /* pages; unsaved: for any other reason */
    uint64_t bytes_in, bytes_out;
    uint64_t connects, drops; /* of connections */
    enum llm_redis_breaker breaker;
};

struct llm_redis_counts llm_redis_counts(const struct llm_redis *r);

#endif
