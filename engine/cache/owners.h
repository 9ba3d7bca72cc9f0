/* The tenants that pages are charged to, each with its part of every tier.
 *
 * A tenant is there while it has users or pages, and active while it uses pages: all are in one
 * list by their last use, the active ones at its newer end. */

#ifndef LLM_CACHE_OWNERS_H
#define LLM_CACHE_OWNERS_H

#include "engine/cache/cache.h"
#include "engine/cache/shares.h"

/* Who has not used a page for so long is not active any more. */
#define LLM_ACTIVE_NS (600 * 1000000000ull)

/* What a tenant has in one tier (tier.h). */
struct llm_part {
    uint32_t n_pages;        /* indexed */
    uint32_t n_idle;         /* of them: in its list */
    uint32_t oldest, newest; /* ends of its list */
    struct llm_claim claim;
};

struct llm_cache_tenant {
    uint8_t owner[32];
    uint32_t users;
    uint32_t weight;
    uint32_t max_pages; /* in each tier; 0: no limit of its own */
    bool active;
    uint64_t used_ns; /* when it last used a page; 0: never */
    uint64_t epoch;   /* in Redis, of all its pages here; 0: not heard of any */
    struct llm_cache_tenant *older, *newer;
    struct llm_cache_tenant *next; /* in the bucket */
    struct llm_part parts[LLM_N_TIERS];
    struct llm_cache_counts counts; /* but bytes, which follow from its pages */
};

struct llm_owners {
    uint32_t n_buckets;
    struct llm_cache_tenant **buckets; /* by owner */
    struct llm_cache_tenant *oldest, *newest;
    struct llm_cache_tenant *oldest_active; /* NULL: nobody is */
};

/* For caches of so many entries: half as many buckets. */
int llm_owners_init(struct llm_owners *o, uint32_t n_entries, struct llm_error *err);
void llm_owners_free(struct llm_owners *o);

/* The owner's entry, made if need be, with one more user; NULL: no memory. */
struct llm_cache_tenant *llm_owners_join(struct llm_owners *o, const uint8_t owner[32]);

struct llm_cache_tenant *llm_owners_find(const struct llm_owners *o, const uint8_t owner[32]);

/* Whether it has neither users nor pages, and is to be removed. */
bool llm_owner_gone(const struct llm_cache_tenant *t);
void llm_owners_remove(struct llm_owners *o, struct llm_cache_tenant *t);

/* The tenant uses a page. True: it was not active before. */
bool llm_owners_use(struct llm_owners *o, struct llm_cache_tenant *t, uint64_t now_ns);

/* Somebody who has just ceased to be active, one at a time; NULL: nobody. */
struct llm_cache_tenant *llm_owners_age(struct llm_owners *o, uint64_t now_ns);

/* NULL, or what is wrong. For tests. */
const char *llm_owners_check(const struct llm_owners *o);

#endif
