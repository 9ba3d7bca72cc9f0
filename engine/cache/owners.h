/* The tenants that pages are charged to, each with its part of every tier.
 *
 * A tenant is there while it has users or pages. What is looked at to find the page that goes next
 * lies in one compact array, the seats; the rest is the tenant's own. */

#ifndef LLM_CACHE_OWNERS_H
#define LLM_CACHE_OWNERS_H

#include "engine/cache/cache.h"

/* What a tenant has in one tier. */
struct llm_part {
    uint32_t n_pages;        /* indexed */
    uint32_t n_idle;         /* of them: in its list (tier.h) */
    uint32_t oldest, newest; /* ends of its list */
    uint64_t oldest_used;    /* as in the oldest one's link */
};

struct llm_seat {
    struct llm_cache_tenant *tenant;
    uint64_t used_ns; /* when it last used a page */
    uint32_t weight;
    struct llm_part parts[LLM_N_TIERS];
};

struct llm_cache_tenant {
    uint8_t owner[32];
    uint32_t seat;
    uint32_t users;
    struct llm_cache_counts counts; /* but bytes, which follow from its pages */
};

struct llm_owners { /* zero-initialised is empty */
    struct llm_seat *seats;
    uint32_t n, room;
    void *by_owner; /* a search tree of struct llm_cache_tenant */
};

void llm_owners_free(struct llm_owners *o);

/* The owner's entry, made if need be, with one more user; NULL: no memory. */
struct llm_cache_tenant *llm_owners_join(struct llm_owners *o, const uint8_t owner[32],
                                         uint32_t weight);
void llm_owners_leave(struct llm_owners *o, struct llm_cache_tenant *t);

/* Frees the entry if it has neither users nor pages. */
void llm_owners_let_go(struct llm_owners *o, struct llm_cache_tenant *t);

static inline struct llm_seat *llm_seat_of(const struct llm_owners *o,
                                           const struct llm_cache_tenant *t)
{
    return &o->seats[t->seat];
}

static inline struct llm_part *llm_part_of(const struct llm_owners *o,
                                           const struct llm_cache_tenant *t,
                                           enum llm_cache_tier tier)
{
    return &o->seats[t->seat].parts[tier];
}

#endif
