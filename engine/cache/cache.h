/* The pages of the backend's latent pool: who uses them, what they hold, what is kept for later.
 *
 * A page is free, in use (held by one sequence or more), or idle: nobody uses it, but the index
 * knows what it holds, until its room is needed. An indexed page has a digest (digest.h) and the
 * token ids that it stands for. Below the pool lies the host tier: what is pushed out of the pool
 * goes there, and comes back when it is asked for. Both tiers hold the same bytes.
 *
 * A page enters the index before it is computed, so that others with the same prefix can wait for
 * it: until llm_cache_complete it is pending, and has a writer.
 *
 * Below both tiers lies Redis, which other engines share (redis/redis.h). Nobody waits for it: a
 * pending page is computed unless its bytes have arrived before, and complete pages are copied
 * there when there is time.
 *
 * Which idle page goes first: in each tier, of all tenants that hold more than their share, the
 * page whose last use is longest ago; of all tenants, where nobody does. What the tenants with idle
 * pages hold there, in use or not, is shared by weight among those of them that used a page lately:
 * in the last ten minutes, or a little longer, as with each page that goes one of them at most
 * ceases to count. So who floods the cache pushes out his own pages, and who is alone has all of
 * it. To find the page takes a number of steps that grows with the logarithm of the tenants.
 *
 * Bytes move by backend calls that run in the order of the steps; a step that names pages must
 * carry llm_cache_fence. The model thread alone calls everything here but llm_cache_estimate. */

#ifndef LLM_CACHE_CACHE_H
#define LLM_CACHE_CACHE_H

#include "engine/backend/backend.h"
#include "engine/cache/digest.h"

#include <stdbool.h>

struct llm_cache;

struct llm_cache_options {
    uint64_t host_bytes;      /* of the host tier; 0: none */
    struct llm_redis *redis;  /* the lowest tier; NULL: none. Must outlive the cache */
    uint32_t redis_ttl;       /* seconds that an unused page stays there */
    uint32_t tenant_percent;  /* of either tier that one tenant's idle pages may fill, 1 … 100 */
    uint64_t (*now)(void *ctx); /* ns; NULL: CLOCK_MONOTONIC */
    void *now_ctx;
};

/* LLM_ENOMEM: there is no memory, or host_bytes hold no page. Whether the machine has host_bytes to
 * spare is for the caller to see. The backend must outlive the cache. */
int llm_cache_new(const struct llm_backend_ops *ops, struct llm_backend *backend,
                  const struct llm_cache_options *options, struct llm_cache **out,
                  struct llm_error *err);
void llm_cache_free(struct llm_cache *c); /* waits for copies under way */

/* The tenant's entry in the cache's books; held until llm_cache_leave, and beyond that while pages
 * of it are there. weight: 1 …; the last one said counts. *public* has 1, whatever is said: it is
 * used by many, and none of them is to lend it a weight that was given to him. NULL: no memory. */
struct llm_cache_tenant;
struct llm_cache_tenant *llm_cache_join(struct llm_cache *c, const uint8_t owner[32],
                                        uint32_t weight);
void llm_cache_leave(struct llm_cache *c, struct llm_cache_tenant *t);

/* How many pages the tenant may have in each tier, in use or not: when there are more, idle ones
 * go; what is in use is never taken. max_pages 0: no limit but tenant_percent; the last one said
 * counts. *public* has none. */
void llm_cache_limit(struct llm_cache *c, struct llm_cache_tenant *t, uint32_t max_pages);

/* Pages that can be had at once: free and idle ones. */
uint32_t llm_cache_available(const struct llm_cache *c);
uint32_t llm_cache_total(const struct llm_cache *c);

/* Takes n pages that hold nothing yet, each with one user: all of them (LLM_OK) or none
 * (LLM_EAGAIN). Idle pages go, into the host tier if there is one. */
int llm_cache_take(struct llm_cache *c, uint32_t n, uint32_t *pages);

/* One user more, or less, of a page in use. A page without users is idle if it is indexed and
 * complete, else free. Drop the pages of a sequence together: the last of them go first. */
void llm_cache_hold(struct llm_cache *c, uint32_t page);
void llm_cache_drop(struct llm_cache *c, const uint32_t *pages, uint32_t n);

bool llm_cache_shared(const struct llm_cache *c, uint32_t page); /* by two users or more */

/* The longest run of a prefix that is indexed: fills pages[] (one user more each; room for n) and
 * says how many of them come from where. digests[n] and ids[n * 64] of the prefix's first n pages.
 * Those in the host tier are given a page of the pool and are on their way; the run ends where none
 * is to be had. Pending pages are part of the run; behind one, only pending ones are. */
struct llm_cache_found {
    uint32_t n;         /* pages */
    uint32_t n_pending; /* of them: the last ones */
    uint32_t n_host;    /* of them: from the host tier */
};
void llm_cache_match(struct llm_cache *c, struct llm_cache_tenant *t,
                     const struct llm_digest *digests, const uint32_t *ids, uint32_t n,
                     uint32_t *pages, struct llm_cache_found *found);

/* Counts what was found of n pages, and what was not, as the tenant's hits and misses: once for
 * each prompt, when its pages are put to use. */
void llm_cache_count(struct llm_cache *c, struct llm_cache_tenant *t,
                     const struct llm_cache_found *found, uint32_t n);

/* What a match would find, without touching anything, from any thread: how many pages, as far as
 * one can tell. */
uint32_t llm_cache_estimate(const struct llm_cache *c, const struct llm_digest *digests,
                            uint32_t n);

/* Indexes a page in use that is not indexed: pending, with a writer (anything but NULL). False: the
 * digest is there already; the page stays its user's own. */
bool llm_cache_publish(struct llm_cache *c, struct llm_cache_tenant *t, uint32_t page,
                       const struct llm_digest *digest, const uint32_t ids[LLM_PAGE_TOKENS],
                       const void *writer);

/* All rows of a pending page have been handed to the backend. */
void llm_cache_complete(struct llm_cache *c, uint32_t page);

bool llm_cache_indexed(const struct llm_cache *c, uint32_t page);
bool llm_cache_pending(const struct llm_cache *c, uint32_t page);

/* Of a pending page; NULL: whoever needs it may become the writer and compute it from its first
 * row. Abandon before dropping a page that one does not complete. */
const void *llm_cache_writer(const struct llm_cache *c, uint32_t page);
void llm_cache_set_writer(struct llm_cache *c, uint32_t page, const void *writer);

/* Takes a tenant's page out of the index and out of Redis, wherever it is, if it is anywhere: what
 * it holds must not be found any more. Its users keep it. One that is pending stays, as it is being
 * computed anew. */
void llm_cache_forget(struct llm_cache *c, const struct llm_cache_tenant *t,
                      const struct llm_digest *digest, const uint32_t ids[LLM_PAGE_TOKENS]);

/* Takes all of a tenant's pages out of the index: how many. Idle ones are free, in both tiers;
 * those in use go on as before, also pending ones, but nobody else finds them, and they are free
 * when their last user drops them. Looks at every entry of the index. */
uint32_t llm_cache_purge(struct llm_cache *c, const uint8_t owner[32]);

/* A tenant whose epoch in Redis is another one than its pages here belong to: somebody has purged
 * it elsewhere, or Redis has lost the epoch, which may hide that somebody has. It is to be purged
 * at once; nothing that is here now is saved under the new epoch. False: there is none. */
bool llm_cache_outdated(struct llm_cache *c, uint8_t owner[32]);

/* Copies up to n complete pages ahead into free room of the host tier, so that nobody has to wait
 * for it when they are pushed out. Looks at so many pages of the pool that it costs little, and
 * goes on from there the next time. */
void llm_cache_save(struct llm_cache *c, uint32_t n);

/* The next page that has arrived from Redis, or the end of a load (llm_redis_load); false: nothing
 * now. A page that is pending is complete by that, whoever is writing it: all rows that are handed
 * to the backend so far come before the copy, and there must be no more. */
struct llm_cache_arrival {
    uint64_t load;
    bool ended;
    bool taken;         /* it was pending; else it is of no use */
    const void *writer; /* it had, or NULL */
};
bool llm_cache_arrived(struct llm_cache *c, struct llm_cache_arrival *a);

/* What was sampled after a page was finite, so others may have it: a page that is indexed and
 * complete is offered to Redis from now on; and again, lest it expire there, when this is said of
 * it half a ttl later. */
void llm_cache_prove(struct llm_cache *c, uint32_t page);

/* Hands what has been copied out to Redis, and copies up to n more pages out that are to be offered
 * there. Looks at some hundred of the pool for each of them, and goes on from there the next
 * time. */
void llm_cache_offer(struct llm_cache *c, uint32_t n);

/* Copies that every step from now on has to wait for; 0: none. */
uint64_t llm_cache_fence(const struct llm_cache *c);

/* 64-bit sums since the start, and what is there now. A tenant's are forgotten along with it, when
 * its last page and its last user have gone, and begin at zero again; those of all stay. */
enum llm_cache_tier {
    LLM_TIER_MEMORY,
    LLM_TIER_HOST,
    LLM_N_TIERS, /* whose books are kept here */
    LLM_TIER_REDIS = LLM_N_TIERS,
    LLM_N_SOURCES,
};

struct llm_cache_counts {
    uint64_t hit_tokens[LLM_N_SOURCES]; /* of matched pages, by where they were; of loaded ones */
    uint64_t miss_tokens; /* of full pages that were not there: computed, or loaded since */
    uint64_t evicted_pages[LLM_N_TIERS];
    uint64_t bytes[LLM_N_TIERS];      /* indexed now */
};

struct llm_cache_counts llm_cache_counts(const struct llm_cache *c);

/* Of one tenant; all zero for one that has neither pages nor users. */
struct llm_cache_counts llm_cache_tenant_counts(const struct llm_cache *c, const uint8_t owner[32]);

/* Calls fn for n of the tenants that have pages or users, or for all there are: those that used
 * pages last, the last one first. */
typedef void llm_cache_tenant_fn(void *ctx, const uint8_t owner[32],
                                 const struct llm_cache_counts *counts);
void llm_cache_last_tenants(const struct llm_cache *c, uint32_t n, llm_cache_tenant_fn *fn,
                            void *ctx);

/* Looks at all books at once: NULL, or what is wrong. For tests. */
const char *llm_cache_check(const struct llm_cache *c);

#endif
