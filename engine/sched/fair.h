/* Who is next: virtual token counters (Sheng et al., "Fairness in Serving Large Language Models",
 * 2024), in nanoseconds of predicted step time divided by the tenant's weight.
 *
 * The tenant with the smallest counter is served first. One that becomes active is lifted to the
 * smallest counter of the active ones, less a small allowance, so that who asks seldom is answered
 * soon and yet nobody saves up service by being away: in any span of time a tenant has its share
 * and the allowance at most. One that goes away with more than that rests with its counter, so that
 * nobody gets rid of it either. */

#ifndef LLM_SCHED_FAIR_H
#define LLM_SCHED_FAIR_H

#include "engine/sched/tenant.h"

#define LLM_FAIR_RESTING 4096 /* tenants that are remembered without a request */

struct llm_fair_list {
    struct llm_tenant *newest, *oldest;
    uint32_t n;
};

struct llm_fair { /* zero-initialised is empty, with no allowance */
    double allowance; /* ns of step time */
    struct llm_tenants tenants;
    struct llm_fair_list active, resting;
    uint64_t weights; /* of the active */
    double floor;     /* the smallest counter of the active, as of the last coming or going */
};

/* One request more of a tenant; the weight said last counts. NULL: no memory. */
struct llm_tenant *llm_fair_enter(struct llm_fair *f, const uint8_t digest[32], uint32_t weight);

/* One request less. The tenant may be gone on return. */
void llm_fair_leave(struct llm_fair *f, struct llm_tenant *t);

void llm_fair_free(struct llm_fair *f);

void llm_fair_charge(struct llm_tenant *t, double ns);

/* An active tenant's part of `total`. */
double llm_fair_share(const struct llm_fair *f, const struct llm_tenant *t, uint32_t total);

#endif
