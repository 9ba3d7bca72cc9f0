/* The way into the queue: how much may wait, in all and by tenant, and for how long it will.
 *
 * Counts requests from the moment they are read until they start or end, with their sequences (one
 * for each choice of each prompt) and their prompt tokens, estimated at first, so that the memory
 * of what waits is bounded whatever arrives. The control thread alone uses a gate. */

#ifndef LLM_SCHED_GATE_H
#define LLM_SCHED_GATE_H

#include "engine/base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define LLM_GATE_BUCKETS 1024

/* Requests that wait under one digest: of a tenant, or of the first page of a prompt. It is there
 * while somebody holds it. */
struct llm_gate_entry {
    uint8_t digest[32];
    uint32_t requests;
    struct llm_gate_entry *next; /* in the bucket */
};

struct llm_gate_tenant {
    struct llm_gate_entry entry;
    uint32_t sequences;
    uint64_t tokens;
    struct llm_gate_place *fresh; /* those that have something to compute */
};

struct llm_gate_table { /* zero-initialised is empty */
    struct llm_gate_entry *buckets[LLM_GATE_BUCKETS];
    uint32_t n;
};

struct llm_gate_limits {
    uint32_t sequences;
    uint64_t tokens;
};

struct llm_gate { /* zero-initialised but for the limits */
    struct llm_gate_limits all, tenant;
    uint32_t requests, sequences;
    uint64_t tokens;
    struct llm_gate_table tenants, heads;
};

/* One request's place in the queue; zero-initialised: it has none. It stays where it is in memory
 * for as long as it has one. */
struct llm_gate_place {
    struct llm_gate_tenant *tenant;
    struct llm_gate_entry *head; /* NULL: not known, or nobody may find what it computes */
    uint32_t sequences;
    uint64_t tokens;
    uint64_t fresh, deadline; /* as in llm_gate_recount; fresh 0: it is in no list */
    struct llm_gate_place *next, **link; /* among its tenant's fresh ones */
};

enum llm_gate_verdict {
    LLM_GATE_PASSED,
    LLM_GATE_FULL,        /* too many sequences or tokens wait */
    LLM_GATE_TENANT_FULL, /* the same of this tenant, or max_queued of its requests */
    LLM_GATE_NO_MEMORY,
};

/* max_queued 0: no limit. A request that finds nobody waiting is never too large, nor is one that
 * finds nobody of its tenant too large for the tenant. */
enum llm_gate_verdict llm_gate_enter(struct llm_gate *g, const uint8_t tenant[32],
                                     uint32_t max_queued, uint32_t sequences, uint64_t tokens,
                                     struct llm_gate_place *place);

/* The true number of tokens is known now: once a place. Never refuses: who is in stays in.
 *
 * fresh: how many of them nobody has computed; head: the digest of the prompt's first page. Of
 * requests that begin with the same page one alone counts as fresh, because the others may find
 * what it computes. head NULL: the prompt has no full page, or nobody may find its pages; all of
 * it counts. deadline (CLOCK_MONOTONIC ns): when it leaves by itself; 0: never. */
void llm_gate_recount(struct llm_gate *g, struct llm_gate_place *place, uint64_t tokens,
                      uint64_t fresh, const uint8_t head[32], uint64_t deadline);

/* It has started, or ended before. A place that was left already is fine. */
void llm_gate_leave(struct llm_gate *g, struct llm_gate_place *place);

/* How fast the model reads prompts, as far as is known. */
struct llm_gate_pace {
    uint32_t prefill_rate; /* tokens a second, measured; 0: not yet */
    uint64_t pool_tokens;  /* that the latent pool holds */
};

/* The least time, in ns, until a request of this tenant that comes now and stays until `deadline`
 * has its first token, and until it starts: what the tenant's own requests before it have to be
 * read at least, at twice the measured rate. 0 where nothing certain can be said. Other tenants'
 * requests do not count, as it may overtake them all, nor do those that leave before it would, as
 * they may never be read; nor, for the start, does what may wait in the pool to be read. Looks at
 * every request of the tenant that waits. */
struct llm_gate_wait {
    uint64_t start_ns, first_token_ns;
};
struct llm_gate_wait llm_gate_least_wait(const struct llm_gate *g, const uint8_t tenant[32],
                                         uint64_t deadline, const struct llm_gate_pace *pace);

/* When it is worth while to try again, in ms, 1,000 … 60,000, and up to a quarter more by `noise`,
 * lest all come back at the same moment: when all that waits now will have been read; for a tenant
 * whose part is full, when its own part will have been, as it takes turns with all that wait. */
uint32_t llm_gate_retry_ms(const struct llm_gate *g, const struct llm_gate_pace *pace,
                           uint32_t noise);
uint32_t llm_gate_tenant_retry_ms(const struct llm_gate *g, const uint8_t tenant[32],
                                  const struct llm_gate_pace *pace, uint32_t noise);

#endif
