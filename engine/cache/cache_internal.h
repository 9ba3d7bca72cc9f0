/* What the files of the cache share: cache.c keeps the books, exchange.c is what passes between the
 * pool and Redis, check.c looks at the books. */

#ifndef LLM_CACHE_CACHE_INTERNAL_H
#define LLM_CACHE_CACHE_INTERNAL_H

#include "engine/cache/cache.h"
#include "engine/cache/exchange.h"
#include "engine/cache/host.h"
#include "engine/cache/tier.h"

#define LLM_NO_PAGE UINT32_MAX

/* An indexed page: in the pool, in the host tier, or in both. */
struct llm_cache_entry {
    uint32_t page, slot;             /* LLM_NO_PAGE: not there */
    struct llm_cache_tenant *tenant; /* NULL: a free entry */
};

/* A page of the pool. The index is one of the users of an indexed page. */
struct llm_cache_page {
    const void *writer;
    uint32_t entry; /* LLM_NO_ENTRY: not indexed */
    bool pending;
    bool hidden;     /* in the index, but not to be found: it goes with its last user */
    bool proven;     /* llm_cache_prove, since it was offered */
    uint8_t offered; /* in which round (exchange.h) it was offered to Redis, or came; 0: never */
};

struct llm_cache {
    const struct llm_backend_ops *ops;
    struct llm_backend *backend;
    uint64_t page_bytes;
    uint32_t n_planes;
    uint64_t (*now)(void *ctx);
    void *now_ctx;
    uint32_t most_of_tenant[LLM_N_TIERS]; /* pages that one tenant may leave there */

    struct llm_index index;
    struct llm_cache_entry *entries; /* [index.capacity] */
    struct llm_pool pool;
    struct llm_cache_page *pages; /* [pool.n_pages] */
    struct llm_host host;
    struct llm_owners owners;
    struct llm_tier tiers[LLM_N_TIERS];
    struct llm_cache_counts counts; /* but bytes */
    uint64_t fence;     /* the last copy that a page which is used anew has to wait for */
    uint64_t last_copy; /* the last one of all */
    uint32_t cursor;    /* of llm_cache_save: a page */
    struct llm_exchange exchange;
};

#endif
