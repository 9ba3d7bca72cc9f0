/* The idle pages of one tier: how long ago each was used, and which of them goes next.
 *
 * In the pool a page is idle when it is complete and has no users; in the host tier, but while it
 * is brought in. Used means: found there, or put there. Every tenant has a list of its own, and a
 * claim (shares.h) while there is something in it. */

#ifndef LLM_CACHE_TIER_H
#define LLM_CACHE_TIER_H

#include "engine/cache/index.h"
#include "engine/cache/owners.h"

struct llm_link {
    uint64_t used; /* 0: not in a list */
    uint32_t older, newer;
};

struct llm_tier {
    enum llm_cache_tier which;
    struct llm_link *links; /* by entry */
    uint64_t uses;          /* counted up with each */
    uint32_t n_pages, n_idle;
    struct llm_shares shares;
    struct llm_cache_tenant *changed; /* its claim is no longer right; NULL: all are */
};

int llm_tier_init(struct llm_tier *t, enum llm_cache_tier which, uint32_t n_entries,
                  struct llm_error *err);
void llm_tier_free(struct llm_tier *t);

/* A page of the tenant comes to the tier, not idle, or leaves it. */
void llm_tier_enter(struct llm_tier *t, struct llm_cache_tenant *tenant);
void llm_tier_leave(struct llm_tier *t, struct llm_cache_tenant *tenant, uint32_t entry);

/* An entry's page, which is in the tier, becomes idle, as the tenant's newest, or ceases to be. */
void llm_tier_put(struct llm_tier *t, struct llm_cache_tenant *tenant, uint32_t entry);
void llm_tier_pull(struct llm_tier *t, struct llm_cache_tenant *tenant, uint32_t entry);
bool llm_tier_idle(const struct llm_tier *t, uint32_t entry);

/* The tenant's weight is another, or whether it is active; or it is about to be removed. */
void llm_tier_reweigh(struct llm_tier *t, struct llm_cache_tenant *tenant);
void llm_tier_forget(struct llm_tier *t, const struct llm_cache_tenant *tenant);

/* The entry that goes next; LLM_NO_ENTRY: no page is idle. Of what the tenants with idle pages have
 * in the tier, in use or not, each that is active may have a share by its weight. Among those with
 * more than their share the page that was used longest ago goes, else among all. */
uint32_t llm_tier_next(struct llm_tier *t);

/* NULL, or what is wrong, with the tenants of `owners`. For tests. */
const char *llm_tier_check(const struct llm_tier *t, const struct llm_owners *owners);

#endif
