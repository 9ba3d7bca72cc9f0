#include "engine/sched/gate.h"

#include "engine/base/clock.h"
#include "engine/base/holder.h"

#include <stdlib.h>
#include <string.h>

/* How much faster than measured the model may turn out to be. */
#define DOUBT 2

#define MIN_RETRY_MS 1000
#define MAX_RETRY_MS 48000 /* and a quarter is a minute */

/* --- entries --- */

static uint32_t bucket_of(const uint8_t digest[32])
{
    uint32_t h;

    memcpy(&h, digest, sizeof(h)); /* a digest is as good as any hash of it */
    return h % LLM_GATE_BUCKETS;
}

static struct llm_gate_entry *find(const struct llm_gate_table *t, const uint8_t digest[32])
{
    struct llm_gate_entry *e = t->buckets[bucket_of(digest)];

    while (e != NULL && memcmp(e->digest, digest, sizeof(e->digest)) != 0) {
        e = e->next;
    }
    return e;
}

/* The entry, made if need be, with one more request; NULL: no memory. `size`: of what begins with
 * the entry, which is zero at first. */
static struct llm_gate_entry *hold(struct llm_gate_table *t, const uint8_t digest[32], size_t size)
{
    struct llm_gate_entry **bucket = &t->buckets[bucket_of(digest)], *e = find(t, digest);

    if (e == NULL) {
        e = calloc(1, size);
        if (e == NULL) {
            return NULL;
        }
        memcpy(e->digest, digest, sizeof(e->digest));
        e->next = *bucket;
        *bucket = e;
        t->n++;
    }
    e->requests++;
    return e;
}

/* One request less; the last one frees the entry. */
static void drop(struct llm_gate_table *t, struct llm_gate_entry *e)
{
    struct llm_gate_entry **p;

    if (--e->requests > 0) {
        return;
    }

    for (p = &t->buckets[bucket_of(e->digest)]; *p != e; p = &(*p)->next) {
        /* it is there */
    }
    *p = e->next;
    t->n--;
    free(e);
}

static struct llm_gate_tenant *tenant_of(struct llm_gate_entry *e)
{
    return e != NULL ? LLM_HOLDER(e, struct llm_gate_tenant, entry) : NULL;
}

static struct llm_gate_tenant *find_tenant(const struct llm_gate *g, const uint8_t tenant[32])
{
    return tenant_of(find(&g->tenants, tenant));
}

/* --- in and out --- */

/* Whether n more are too many for those who wait. */
static bool too_many(uint64_t n, uint64_t waiting, uint64_t max)
{
    return n > max || waiting > max - n;
}

static bool tenant_full(const struct llm_gate *g, const struct llm_gate_tenant *t,
                        uint32_t max_queued, uint32_t sequences, uint64_t tokens)
{
    return t != NULL && ((max_queued != 0 && t->entry.requests >= max_queued) ||
                         too_many(sequences, t->sequences, g->tenant.sequences) ||
                         too_many(tokens, t->tokens, g->tenant.tokens));
}

enum llm_gate_verdict llm_gate_enter(struct llm_gate *g, const uint8_t tenant[32],
                                     uint32_t max_queued, uint32_t sequences, uint64_t tokens,
                                     struct llm_gate_place *place)
{
    struct llm_gate_tenant *t;

    if (tenant_full(g, find_tenant(g, tenant), max_queued, sequences, tokens)) {
        return LLM_GATE_TENANT_FULL;
    }
    if (g->requests > 0 && (too_many(sequences, g->sequences, g->all.sequences) ||
                            too_many(tokens, g->tokens, g->all.tokens))) {
        return LLM_GATE_FULL;
    }
    t = tenant_of(hold(&g->tenants, tenant, sizeof(*t)));
    if (t == NULL) {
        return LLM_GATE_NO_MEMORY;
    }

    t->sequences += sequences;
    t->tokens += tokens;
    g->requests++;
    g->sequences += sequences;
    g->tokens += tokens;
    *place = (struct llm_gate_place){.tenant = t, .sequences = sequences, .tokens = tokens};
    return LLM_GATE_PASSED;
}

static void link_fresh(struct llm_gate_place *place)
{
    place->link = &place->tenant->fresh;
    place->next = *place->link;
    *place->link = place;
    if (place->next != NULL) {
        place->next->link = &place->next;
    }
}

static void unlink_fresh(struct llm_gate_place *place)
{
    *place->link = place->next;
    if (place->next != NULL) {
        place->next->link = place->link;
    }
}

void llm_gate_recount(struct llm_gate *g, struct llm_gate_place *place, uint64_t tokens,
                      uint64_t fresh, const uint8_t head[32], uint64_t deadline)
{
    if (place->tenant == NULL) {
        return;
    }

    g->tokens = g->tokens - place->tokens + tokens;
    place->tenant->tokens = place->tenant->tokens - place->tokens + tokens;
    place->tokens = tokens;
    place->deadline = deadline;

    if (head != NULL) {
        place->head = hold(&g->heads, head, sizeof(*place->head));
        if (place->head == NULL || place->head->requests > 1) {
            fresh = 0;
        }
    }
    place->fresh = fresh;
    if (fresh > 0) {
        link_fresh(place);
    }
}

void llm_gate_leave(struct llm_gate *g, struct llm_gate_place *place)
{
    struct llm_gate_tenant *t = place->tenant;

    if (t == NULL) {
        return;
    }

    if (place->fresh > 0) {
        unlink_fresh(place);
    }
    g->requests--;
    g->sequences -= place->sequences;
    g->tokens -= place->tokens;
    t->sequences -= place->sequences;
    t->tokens -= place->tokens;
    drop(&g->tenants, &t->entry);
    if (place->head != NULL) {
        drop(&g->heads, place->head);
    }
    *place = (struct llm_gate_place){0};
}

/* --- how long it takes --- */

/* Tokens are below 2^54, as each takes some memory, so that nothing overflows. */
static uint64_t ns_to_read(uint64_t tokens, uint64_t rate)
{
    return (uint64_t) ((double) tokens / (double) rate * (double) LLM_NS_PER_S);
}

/* What the tenant has waiting that will still be there at that time. */
static uint64_t fresh_until(const struct llm_gate *g, const uint8_t tenant[32], uint64_t deadline)
{
    const struct llm_gate_tenant *t = find_tenant(g, tenant);
    uint64_t fresh = 0;

    for (const struct llm_gate_place *p = t != NULL ? t->fresh : NULL; p != NULL; p = p->next) {
        if (p->deadline == 0 || p->deadline >= deadline) {
            fresh += p->fresh;
        }
    }
    return fresh;
}

struct llm_gate_wait llm_gate_least_wait(const struct llm_gate *g, const uint8_t tenant[32],
                                         uint64_t deadline, const struct llm_gate_pace *pace)
{
    uint64_t rate = (uint64_t) pace->prefill_rate * DOUBT, fresh;

    if (rate == 0) {
        return (struct llm_gate_wait){0};
    }
    fresh = fresh_until(g, tenant, deadline);
    return (struct llm_gate_wait){
        .start_ns = fresh > pace->pool_tokens ? ns_to_read(fresh - pace->pool_tokens, rate) : 0,
        .first_token_ns = ns_to_read(fresh, rate),
    };
}

static uint32_t retry_ms(uint64_t tokens, const struct llm_gate_pace *pace, uint32_t noise)
{
    uint64_t ms = MIN_RETRY_MS;

    if (pace->prefill_rate != 0) {
        ms = ns_to_read(tokens, pace->prefill_rate) / LLM_NS_PER_MS;
    }
    ms = ms < MIN_RETRY_MS ? MIN_RETRY_MS : ms > MAX_RETRY_MS ? MAX_RETRY_MS : ms;
    return (uint32_t) (ms + ms / 4 * (noise % 1024) / 1023);
}

uint32_t llm_gate_retry_ms(const struct llm_gate *g, const struct llm_gate_pace *pace,
                           uint32_t noise)
{
    return retry_ms(g->tokens, pace, noise);
}

uint32_t llm_gate_tenant_retry_ms(const struct llm_gate *g, const uint8_t tenant[32],
                                  const struct llm_gate_pace *pace, uint32_t noise)
{
    const struct llm_gate_tenant *t = find_tenant(g, tenant);
    uint64_t own = t != NULL ? t->tokens : 0, n = g->tenants.n;

    /* the others get as much in that time, or all that they have */
    return retry_ms(n > 0 && own < g->tokens / n ? own * n : g->tokens, pace, noise);
}
