/* The tenants of a tier that have idle pages, each with a claim, and whose page goes next.
 *
 * Of all their pages each may have a share by its weight. The claims lie in a search tree in order
 * of pages ÷ weight, so that those over their share are one end of it; each knows the page below it
 * that was used longest ago. A treap: a random priority for each claim keeps the depth logarithmic
 * (Seidel and Aragon, "Randomized search trees", 1996). */

#ifndef LLM_CACHE_SHARES_H
#define LLM_CACHE_SHARES_H

#include <stdbool.h>
#include <stdint.h>

/* Memory is the caller's. Zero-initialised it is not there. */
struct llm_claim {
    struct llm_claim *parent, *left, *right;
    uint64_t used, used_below;   /* when the oldest idle page was used: its own, of the subtree's */
    uint32_t entry, entry_below; /* these pages */
    uint32_t pages;              /* idle or not; at least 1 */
    uint32_t weight;             /* 0: any page is more than its share */
    uint32_t priority;           /* 0: not there */
};

struct llm_shares { /* zero-initialised is empty */
    struct llm_claim *root;
    uint64_t pages, weights; /* of all claims */
    uint64_t random;
};

/* Makes the claim, or changes it. No two have the same `used`. pages < 2^31. */
void llm_shares_set(struct llm_shares *s, struct llm_claim *c, uint32_t pages, uint32_t weight,
                    uint64_t used, uint32_t entry);
void llm_shares_remove(struct llm_shares *s, struct llm_claim *c); /* there or not */

/* The page that was used longest ago of those whose tenants have more than their share, or of all,
 * where nobody has. False: there is none. */
bool llm_shares_next(const struct llm_shares *s, uint32_t *entry);

/* NULL, or what is wrong. For tests. */
const char *llm_shares_check(const struct llm_shares *s);

#endif
