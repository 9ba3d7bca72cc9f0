/* The Redis tier as the model thread sees it, for tests: pages that can be told apart, and what has
 * arrived of them. */

#ifndef T_UNIT_REDIS_TIER_H
#define T_UNIT_REDIS_TIER_H

#include "engine/base/clock.h"
#include "engine/base/log.h"
#include "engine/cache/redis/redis.h"
#include "t/unit/redis_page.h"
#include "t/unit/tap.h"

#include <unistd.h>

#define TIER_PAGES 256

struct tier {
    struct llm_redis *redis;
    struct llm_page_layout layout;
    uint64_t last_load;
    uint64_t epoch; /* that what is saved belongs to; 0: any */
    uint32_t max_pages; /* of whom it is; 0: no limit */
    /* of the load that tier_load has seen the end of */
    bool came[TIER_PAGES];
    uint32_t n_came;
    bool wrong; /* something came that was not asked for, or is not what was saved */
};

static void tier_owner(uint32_t tenant, uint8_t owner[32])
{
    memset(owner, 0, 32);
    memcpy(owner, &tenant, sizeof(tenant));
}

static struct llm_digest tier_digest(uint32_t tenant, uint32_t page)
{
    struct llm_digest d = {{1}};

    memcpy(d.bytes + 8, &tenant, sizeof(tenant));
    memcpy(d.bytes + 16, &page, sizeof(page));
    return d;
}

static void tier_ids(uint32_t tenant, uint32_t page, uint32_t ids[LLM_PAGE_TOKENS])
{
    for (uint32_t i = 0; i < LLM_PAGE_TOKENS; i++) {
        ids[i] = tenant * 1000000 + page * LLM_PAGE_TOKENS + i;
    }
}

/* Finite numbers, those of each page other ones. */
static void tier_fill(const struct tier *t, uint32_t tenant, uint32_t page, uint8_t *bytes)
{
    for (uint64_t i = 0; i < t->layout.page_bytes; i++) {
        bytes[i] = (uint8_t) ((i * 7 + page * 13 + tenant * 29 + i / 101) % 101);
    }
}

static bool tier_is(const struct tier *t, uint32_t tenant, uint32_t page, const uint8_t *bytes)
{
    for (uint64_t i = 0; i < t->layout.page_bytes; i++) {
        if (bytes[i] != (uint8_t) ((i * 7 + page * 13 + tenant * 29 + i / 101) % 101)) {
            return false;
        }
    }
    return true;
}

__attribute__((unused)) static struct llm_redis_options tier_options(const struct tier *t,
                                                                     const char *url)
{
    return (struct llm_redis_options){
        .url = url,
        .master = {1, 2, 3},
        .ttl = 3600,
        .deadline_ms = 2000,
        .layout = &t->layout,
    };
}

static bool tier_wait(bool (*done)(struct tier *t), struct tier *t, uint32_t ms)
{
    uint64_t end = llm_now_ns() + ms * LLM_NS_PER_MS;

    while (!done(t)) {
        if (llm_now_ns() >= end) {
            return false;
        }
        usleep(200);
    }
    return true;
}

static bool tier_is_up(struct tier *t)
{
    uint32_t buffer;
    void *p;

    if (!llm_redis_rates(t->redis).up) {
        return false;
    }
    p = llm_redis_save_buffer(t->redis, &buffer);
    if (p != NULL) {
        llm_redis_drop(t->redis, buffer);
    }
    return p != NULL;
}

__attribute__((unused)) static void tier_open(struct tier *t,
                                              const struct llm_redis_options *options)
{
    static bool quiet; /* set once, before there is any thread that logs */
    struct llm_error err;

    if (!quiet) {
        llm_log_set_level(LLM_LOG_ERROR);
        quiet = true;
    }
    need(llm_redis_open(options, &t->redis, &err) == LLM_OK, "the tier does not open");
}

__attribute__((unused)) static bool tier_up(struct tier *t)
{
    return tier_wait(tier_is_up, t, 10000);
}

static uint64_t tier_saves_ended(struct tier *t)
{
    struct llm_redis_counts c = llm_redis_counts(t->redis);

    return c.saved + c.already_there + c.over_quota + c.unsaved;
}

/* Hands a page over; false: no buffer. */
__attribute__((unused)) static bool tier_save(struct tier *t, uint32_t tenant, uint32_t page)
{
    struct llm_digest digest = tier_digest(tenant, page);
    uint32_t buffer, ids[LLM_PAGE_TOKENS];
    uint8_t owner[32], *bytes = llm_redis_save_buffer(t->redis, &buffer);

    if (bytes == NULL) {
        return false;
    }
    tier_owner(tenant, owner);
    tier_ids(tenant, page, ids);
    tier_fill(t, tenant, page, bytes);
    llm_redis_save(t->redis, buffer, owner, t->epoch, t->max_pages, &digest, ids);
    return true;
}

/* Hands over pages [0, n) and waits until that is over. */
__attribute__((unused)) static void tier_save_all(struct tier *t, uint32_t tenant, uint32_t n)
{
    uint64_t end = llm_now_ns() + 20 * LLM_NS_PER_S, before = tier_saves_ended(t);

    for (uint32_t i = 0; i < n && llm_now_ns() < end;) {
        i += tier_save(t, tenant, i);
    }
    while (tier_saves_ended(t) < before + n && llm_now_ns() < end) {
        usleep(200);
    }
}

/* Asks for pages [first, first + n); 0: it is not done. */
__attribute__((unused)) static uint64_t tier_ask(struct tier *t, uint32_t tenant, uint32_t first,
                                                 uint32_t n)
{
    static struct llm_digest digests[TIER_PAGES];
    static uint32_t ids[TIER_PAGES * LLM_PAGE_TOKENS];
    uint8_t owner[32];

    for (uint32_t i = 0; i < n; i++) {
        digests[i] = tier_digest(tenant, first + i);
        tier_ids(tenant, first + i, ids + i * LLM_PAGE_TOKENS);
    }
    tier_owner(tenant, owner);
    t->last_load++;
    return llm_redis_load(t->redis, t->last_load, owner, digests, ids, n) ? t->last_load : 0;
}

static void tier_look(struct tier *t, const struct llm_redis_arrival *a, uint32_t tenant,
                      uint32_t first)
{
    struct llm_digest digest = tier_digest(tenant, first + a->index);
    uint32_t ids[LLM_PAGE_TOKENS];

    tier_ids(tenant, first + a->index, ids);
    if (t->came[a->index] || memcmp(&digest, &a->digest, sizeof(digest)) != 0
        || memcmp(ids, a->ids, sizeof(ids)) != 0
        || !tier_is(t, tenant, first + a->index, a->bytes)) {
        t->wrong = true;
    }
    t->came[a->index] = true;
    t->n_came++;
}

/* Takes what comes until the end of this load; false: none within ms. */
__attribute__((unused)) static bool tier_take(struct tier *t, uint64_t load, uint32_t tenant,
                                              uint32_t first, uint32_t ms)
{
    uint64_t end = llm_now_ns() + ms * LLM_NS_PER_MS;
    struct llm_redis_arrival a;

    memset(t->came, 0, sizeof(t->came));
    t->n_came = 0;
    while (llm_now_ns() < end) {
        if (!llm_redis_arrived(t->redis, &a)) {
            usleep(100);
            continue;
        }
        if (a.load != load) {
            t->wrong = true;
            return false;
        }
        if (a.ended) {
            return true;
        }
        tier_look(t, &a, tenant, first);
        llm_redis_give_back(t->redis, a.buffer);
    }
    return false;
}

/* Asks for pages [0, n) and waits for the end: how many came. */
__attribute__((unused)) static uint32_t tier_load(struct tier *t, uint32_t tenant, uint32_t n)
{
    uint64_t load = tier_ask(t, tenant, 0, n);

    if (load == 0) {
        return 0;
    }
    if (!tier_take(t, load, tenant, 0, 20000)) {
        t->wrong = true;
    }
    return t->n_came;
}

__attribute__((unused)) static uint64_t tier_missed(struct tier *t, enum llm_redis_miss reason)
{
    return llm_redis_counts(t->redis).misses[reason];
}

#endif
