/* What the scheduler counts by tenant. A tenant has an entry while somebody holds it. */

#ifndef LLM_SCHED_TENANT_H
#define LLM_SCHED_TENANT_H

#include "engine/sched/list.h"

#include <stdbool.h>
#include <stdint.h>

#define LLM_TENANT_BUCKETS 1024

struct llm_tenant {
    uint8_t digest[32]; /* SHA-256 of the name */
    uint32_t holders;
    struct llm_tenant *next; /* in the bucket */

    /* the fair queue's (fair.h) */
    uint32_t weight;   /* >= 1 */
    uint32_t requests; /* queued or running: more than none, it is active */
    double counter;    /* ns of predicted step time it has had, by weight */
    bool resting;      /* without a request, but with a counter that must not be forgotten */
    struct llm_tenant *newer, *older; /* among the active, or the resting */

    /* the scheduler's */
    struct llm_list waiting; /* sequences, in order of arrival */
    uint32_t running;        /* requests that have started */
    uint32_t sequences;      /* running */
    uint32_t pages;          /* in use and charged to it */
    uint32_t reserved;       /* pages that its running sequences may come to hold */
    uint32_t chosen;         /* of its slots or pages, while some are looked for */
    uint64_t passed;         /* the last search that was done with it */
};

struct llm_tenants { /* zero-initialised is empty */
    struct llm_tenant *buckets[LLM_TENANT_BUCKETS];
};

/* The tenant's entry, made if need be, with one more holder; NULL: no memory. */
struct llm_tenant *llm_tenants_hold(struct llm_tenants *t, const uint8_t digest[32]);

/* One holder less; the last one frees the entry. */
void llm_tenants_drop(struct llm_tenants *t, struct llm_tenant *tenant);

/* Forgets them all, whoever holds them. */
void llm_tenants_clear(struct llm_tenants *t);

#endif
