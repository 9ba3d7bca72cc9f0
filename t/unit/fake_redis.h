/* A Redis tier for tests of what uses it: pages are kept in memory, and come in their order, but
 * when they like: some late, some never. A buffer that is given back, or handed over, is spoilt at
 * once, so that a copy that still uses it shows. */

#ifndef T_UNIT_FAKE_REDIS_H
#define T_UNIT_FAKE_REDIS_H

#include "engine/cache/redis/redis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAKE_IN 8 /* buffers */
#define FAKE_OUT 4
#define FAKE_LOADS 64
#define FAKE_HEARD 64

struct fake_value {
    uint8_t owner[32];
    struct llm_digest digest;
    uint32_t ids[LLM_PAGE_TOKENS];
    uint8_t *bytes;
};

struct fake_load {
    uint64_t load;
    uint8_t owner[32];
    struct llm_digest *digests;
    uint32_t *ids;
    uint32_t n, next;
    bool cancelled;
};

/* One for all schedulers of a test, as Redis is. */
struct llm_redis {
    size_t page_bytes;
    struct llm_redis_rates rates;
    bool refuses;     /* to load */
    bool full;        /* no buffer to save */
    uint32_t silent;  /* percent of the times that nothing has arrived, though there is something */
    uint32_t missing; /* percent of pages that are gone */

    uint32_t max_pages; /* of the last page that was saved */
    uint64_t loads, refused, pages_asked, cancels, hits, misses, saves, drops, forgets, deletes;
    uint32_t first_asked; /* of the last load: its first page's first token */

    struct fake_value *values;
    uint32_t n_values, max_values;
    struct fake_load under_way[FAKE_LOADS];
    uint32_t n_under_way;
    uint8_t *in, *out; /* [FAKE_IN or FAKE_OUT][page_bytes] */
    bool given[FAKE_IN], filling[FAKE_OUT];
    uint64_t epoch; /* of all tenants */
    struct llm_redis_epoch heard[FAKE_HEARD];
    uint32_t n_heard;
    uint32_t rng;
};

static struct llm_redis fake_redis;

#define redis_must(cond)                                                                          \
    do {                                                                                          \
        if (!(cond)) {                                                                            \
            printf("Bail out! fake redis, line %d: %s\n", __LINE__, #cond);                       \
            fflush(stdout);                                                                       \
            abort();                                                                              \
        }                                                                                         \
    } while (0)

static uint32_t fake_redis_below(uint32_t n)
{
    fake_redis.rng = fake_redis.rng * 1664525 + 1013904223;
    return (uint32_t) ((uint64_t) (fake_redis.rng >> 4) * n >> 28);
}

static void fake_redis_open(size_t page_bytes)
{
    fake_redis = (struct llm_redis){.page_bytes = page_bytes, .rng = 1, .epoch = 1};
    fake_redis.rates = (struct llm_redis_rates){1, UINT64_C(1) << 40, true};
    fake_redis.in = malloc(FAKE_IN * page_bytes);
    fake_redis.out = malloc(FAKE_OUT * page_bytes);
    redis_must(fake_redis.in != NULL && fake_redis.out != NULL);
}

static void fake_redis_flush(void)
{
    for (uint32_t i = 0; i < fake_redis.n_values; i++) {
        free(fake_redis.values[i].bytes);
    }
    fake_redis.n_values = 0;
}

/* All buffers must have come back. */
static void fake_redis_idle(void)
{
    for (uint32_t i = 0; i < FAKE_IN; i++) {
        redis_must(!fake_redis.given[i]);
    }
    for (uint32_t i = 0; i < FAKE_OUT; i++) {
        redis_must(!fake_redis.filling[i]);
    }
}

static void fake_redis_tell(const uint8_t owner[32])
{
    struct llm_redis_epoch *e = &fake_redis.heard[fake_redis.n_heard % FAKE_HEARD];

    memcpy(e->owner, owner, sizeof(e->owner));
    e->epoch = fake_redis.epoch;
    fake_redis.n_heard += fake_redis.n_heard < FAKE_HEARD;
}

bool llm_redis_heard(struct llm_redis *r, struct llm_redis_epoch *out)
{
    if (r->n_heard == 0) {
        return false;
    }
    *out = r->heard[--r->n_heard];
    return true;
}

/* Of loads that nobody waits for any more. */
static void fake_redis_end_load(uint32_t i)
{
    free(fake_redis.under_way[i].digests);
    free(fake_redis.under_way[i].ids);
    fake_redis.under_way[i] = fake_redis.under_way[--fake_redis.n_under_way];
}

static void fake_redis_close(void)
{
    fake_redis_idle();
    fake_redis_flush();
    while (fake_redis.n_under_way > 0) {
        fake_redis_end_load(0);
    }
    free(fake_redis.values);
    free(fake_redis.in);
    free(fake_redis.out);
}

static struct fake_value *fake_redis_find(const uint8_t owner[32], const struct llm_digest *digest)
{
    for (uint32_t i = 0; i < fake_redis.n_values; i++) {
        struct fake_value *v = &fake_redis.values[i];

        if (memcmp(v->owner, owner, 32) == 0 && memcmp(&v->digest, digest, sizeof(*digest)) == 0) {
            return v;
        }
    }
    return NULL;
}

bool llm_redis_load(struct llm_redis *r, uint64_t load, const uint8_t owner[32],
                    const struct llm_digest *digests, const uint32_t *ids, uint32_t n)
{
    struct fake_load *l = &r->under_way[r->n_under_way];
    uint32_t n_out = n; /* pages under way: no more than there are buffers for */

    redis_must(load != 0 && n > 0);
    for (uint32_t i = 0; i < r->n_under_way; i++) {
        const struct fake_load *other = &r->under_way[i];

        redis_must(other->load != load);
        n_out += other->cancelled ? 0 : other->n - other->next;
    }
    redis_must(n_out <= FAKE_IN);
    if (r->refuses || r->n_under_way == FAKE_LOADS) {
        r->refused++;
        return false;
    }
    r->n_under_way++;
    r->loads++;
    r->pages_asked += n;
    r->first_asked = ids[0];
    *l = (struct fake_load){
        .load = load,
        .n = n,
        .digests = malloc(n * sizeof(*digests)),
        .ids = malloc(n * LLM_PAGE_TOKENS * sizeof(*ids)),
    };
    redis_must(l->digests != NULL && l->ids != NULL);
    memcpy(l->owner, owner, sizeof(l->owner));
    memcpy(l->digests, digests, n * sizeof(*digests));
    memcpy(l->ids, ids, n * LLM_PAGE_TOKENS * sizeof(*ids));
    return true;
}

uint32_t llm_redis_load_most(const struct llm_redis *r)
{
    (void) r;
    return FAKE_IN;
}

void llm_redis_cancel(struct llm_redis *r, uint64_t load)
{
    for (uint32_t i = 0; i < r->n_under_way; i++) {
        if (r->under_way[i].load == load) {
            r->under_way[i].cancelled = true;
            r->cancels++;
        }
    }
}

/* The load's next page, if it is there. */
static bool fake_redis_next(struct fake_load *l, uint32_t buffer, struct llm_redis_arrival *a)
{
    uint32_t i = l->next++;
    const uint32_t *ids = l->ids + (size_t) i * LLM_PAGE_TOKENS;
    const struct fake_value *v = fake_redis_find(l->owner, &l->digests[i]);

    if (v == NULL || fake_redis_below(100) < fake_redis.missing) {
        fake_redis.misses++;
        return false;
    }
    redis_must(memcmp(v->ids, ids, sizeof(v->ids)) == 0);
    fake_redis.hits++;
    fake_redis.given[buffer] = true;
    a->index = i;
    a->digest = l->digests[i];
    memcpy(a->ids, ids, sizeof(a->ids));
    a->buffer = buffer;
    a->bytes = fake_redis.in + buffer * fake_redis.page_bytes;
    memcpy(fake_redis.in + buffer * fake_redis.page_bytes, v->bytes, fake_redis.page_bytes);
    return true;
}

bool llm_redis_arrived(struct llm_redis *r, struct llm_redis_arrival *a)
{
    uint32_t buffer = 0, i;

    if (r->n_under_way == 0 || fake_redis_below(100) < r->silent) {
        return false;
    }
    while (buffer < FAKE_IN && r->given[buffer]) {
        buffer++;
    }
    i = fake_redis_below(r->n_under_way);
    *a = (struct llm_redis_arrival){.load = r->under_way[i].load};
    while (buffer < FAKE_IN && r->under_way[i].next < r->under_way[i].n &&
           !r->under_way[i].cancelled) {
        if (fake_redis_next(&r->under_way[i], buffer, a)) {
            return true;
        }
    }
    if (r->under_way[i].next < r->under_way[i].n && !r->under_way[i].cancelled) {
        return false; /* no buffer */
    }
    fake_redis_tell(r->under_way[i].owner);
    fake_redis_end_load(i);
    a->ended = true;
    return true;
}

void llm_redis_give_back(struct llm_redis *r, uint32_t buffer)
{
    redis_must(buffer < FAKE_IN && r->given[buffer]);
    r->given[buffer] = false;
    memset(r->in + buffer * r->page_bytes, 0xdd, r->page_bytes);
}

void *llm_redis_save_buffer(struct llm_redis *r, uint32_t *buffer)
{
    for (uint32_t i = 0; i < FAKE_OUT && !r->full; i++) {
        if (!r->filling[i]) {
            r->filling[i] = true;
            *buffer = i;
            return r->out + i * r->page_bytes;
        }
    }
    return NULL;
}

void llm_redis_drop(struct llm_redis *r, uint32_t buffer)
{
    redis_must(buffer < FAKE_OUT && r->filling[buffer]);
    r->filling[buffer] = false;
    r->drops++;
    memset(r->out + buffer * r->page_bytes, 0xee, r->page_bytes);
}

void llm_redis_delete(struct llm_redis *r, const uint8_t owner[32], uint64_t epoch,
                      const struct llm_digest *digest)
{
    struct fake_value *v = fake_redis_find(owner, digest);

    r->deletes++;
    if (v != NULL && epoch == r->epoch) {
        free(v->bytes);
        *v = r->values[--r->n_values];
    }
}

void llm_redis_save(struct llm_redis *r, uint32_t buffer, const uint8_t owner[32], uint64_t epoch,
                    uint32_t max_pages, const struct llm_digest *digest,
                    const uint32_t ids[LLM_PAGE_TOKENS])
{
    const uint8_t *bytes = r->out + buffer * r->page_bytes;
    struct fake_value *v = fake_redis_find(owner, digest);

    if (epoch != r->epoch) {
        fake_redis_tell(owner);
    }
    if (epoch != 0 && epoch != r->epoch) {
        llm_redis_drop(r, buffer);
        return;
    }
    r->saves++;
    r->max_pages = max_pages;
    if (v == NULL) {
        if (r->n_values == r->max_values) {
            r->max_values = 2 * r->max_values + 16;
            r->values = realloc(r->values, r->max_values * sizeof(*r->values));
            redis_must(r->values != NULL);
        }
        v = &r->values[r->n_values++];
        memcpy(v->owner, owner, sizeof(v->owner));
        memcpy(v->ids, ids, sizeof(v->ids));
        v->digest = *digest;
        v->bytes = malloc(r->page_bytes);
        redis_must(v->bytes != NULL);
        memcpy(v->bytes, bytes, r->page_bytes);
    }
    redis_must(memcmp(v->ids, ids, sizeof(v->ids)) == 0);
    llm_redis_drop(r, buffer);
    r->drops--;
}

struct llm_redis_rates llm_redis_rates(const struct llm_redis *r)
{
    return r->rates;
}

void llm_redis_forget_tenant(struct llm_redis *r, const uint8_t owner[32])
{
    uint32_t n = 0;

    r->forgets++;
    for (uint32_t i = 0; i < r->n_values; i++) {
        if (memcmp(r->values[i].owner, owner, 32) == 0) {
            free(r->values[i].bytes);
        } else {
            r->values[n++] = r->values[i];
        }
    }
    r->n_values = n;
    for (uint32_t i = 0; i < r->n_under_way; i++) {
        r->under_way[i].cancelled |= memcmp(r->under_way[i].owner, owner, 32) == 0;
    }
}

#endif
