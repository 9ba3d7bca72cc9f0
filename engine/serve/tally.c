#include "engine/serve/tally.h"

#include "engine/base/clock.h"

#include <stdlib.h>
#include <string.h>

#define PERIOD_NS (100 * LLM_NS_PER_MS)
#define N_BUCKETS (sizeof(((struct llm_tally *) NULL)->buckets) / sizeof(void *))
#define N LLM_IPC_TENANT_COUNTS
#define MAX_NEWCOMERS 64 /* looked at when telling */

_Static_assert((int) LLM_TIER_MEMORY == LLM_IPC_TIER_MEMORY &&
                   (int) LLM_TIER_HOST == LLM_IPC_TIER_HOST &&
                   (int) LLM_TIER_REDIS == LLM_IPC_TIER_REDIS &&
                   (int) LLM_N_SOURCES <= LLM_IPC_TIERS,
               "tiers");
_Static_assert((int) LLM_REDIS_ABSENT == LLM_IPC_REDIS_ABSENT &&
                   (int) LLM_REDIS_UNWANTED == LLM_IPC_REDIS_UNWANTED &&
                   (int) LLM_REDIS_N_MISSES <= LLM_IPC_REDIS_MISSES,
               "reasons of misses");

/* Who has an entry. */
struct llm_tally_tenant {
    uint8_t owner[32];
    uint32_t entry;
    uint64_t counts[N]; /* as the cache said last; it forgets a tenant that has nothing left */
    uint64_t told[N];   /* what the entry says */
    struct llm_tally_tenant *next; /* in the bucket */
    struct llm_tally_tenant *newer, *older;
};

static void gather(const struct llm_cache_counts *c, uint64_t counts[N])
{
    memset(counts, 0, N * sizeof(*counts));
    for (int i = 0; i < LLM_N_SOURCES; i++) {
        counts[LLM_IPC_COUNT_HIT_TOKENS + i] = c->hit_tokens[i];
    }
    for (int i = 0; i < LLM_N_TIERS; i++) {
        counts[LLM_IPC_COUNT_EVICTED_PAGES + i] = c->evicted_pages[i];
        counts[LLM_IPC_COUNT_CACHED_BYTES + i] = c->bytes[i];
    }
    counts[LLM_IPC_COUNT_MISS_TOKENS] = c->miss_tokens;
}

/* A sum goes on from what it was; CACHED_BYTES is what there is. */
static bool is_sum(int i)
{
    return i < LLM_IPC_COUNT_CACHED_BYTES || i >= LLM_IPC_COUNT_CACHED_BYTES + LLM_IPC_TIERS;
}

/* Whoever reads one of these words sees what was stored before it, a new version above all. */
static void store(uint64_t *words, const uint64_t *values, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        __atomic_store_n(&words[i], values[i], __ATOMIC_RELEASE);
    }
}

/* --- entries of the table --- */

static struct llm_ipc_tenant *entry_at(const struct llm_tally *t, uint32_t i)
{
    return (struct llm_ipc_tenant *) ((char *) t->state + LLM_IPC_TENANTS_OFFSET) + i;
}

/* The entry is that tenant's now, with all counters at zero. */
static void hand_over(struct llm_ipc_tenant *entry, const uint8_t owner[32])
{
    static const uint64_t zero[N];
    uint32_t version = entry->version;
    uint64_t words[4];

    memcpy(words, owner, sizeof(words));
    __atomic_store_n(&entry->version, version + 1, __ATOMIC_RELAXED);
    store((uint64_t *) (void *) entry->tenant, words, 4);
    store(entry->counters, zero, N);
    __atomic_store_n(&entry->version, version + 2, __ATOMIC_RELEASE);
}

static void unlink_entry(struct llm_tally *t, struct llm_tally_tenant *o)
{
    *(o->newer != NULL ? &o->newer->older : &t->newest) = o->older;
    *(o->older != NULL ? &o->older->newer : &t->oldest) = o->newer;
}

static void link_newest(struct llm_tally *t, struct llm_tally_tenant *o)
{
    o->newer = NULL;
    o->older = t->newest;
    *(o->older != NULL ? &o->older->newer : &t->oldest) = o;
    t->newest = o;
}

/* --- tenants --- */

static struct llm_tally_tenant **bucket_of(struct llm_tally *t, const uint8_t owner[32])
{
    uint32_t h;

    memcpy(&h, owner, sizeof(h)); /* a digest is as good as any hash of it */
    return &t->buckets[h % N_BUCKETS];
}

/* Where the tenant is linked, or would be. */
static struct llm_tally_tenant **find(struct llm_tally *t, const uint8_t owner[32])
{
    struct llm_tally_tenant **p = bucket_of(t, owner);

    while (*p != NULL && memcmp((*p)->owner, owner, sizeof((*p)->owner)) != 0) {
        p = &(*p)->next;
    }
    return p;
}

/* Takes the entry from who has not asked for pages for longest; what it said is the others'. */
static struct llm_tally_tenant *dispossess(struct llm_tally *t)
{
    struct llm_tally_tenant *o = t->oldest;

    *find(t, o->owner) = o->next;
    unlink_entry(t, o);
    for (int i = 0; i < N; i++) {
        t->named[i] -= o->told[i];
        t->others[i] += o->told[i];
    }
    return o;
}

/* Gives the tenant an entry, all zero; NULL: no memory. */
static struct llm_tally_tenant *name(struct llm_tally *t, const uint8_t owner[32])
{
    bool full = t->n_entries == LLM_IPC_TENANTS;
    struct llm_tally_tenant *o = full ? dispossess(t) : malloc(sizeof(*o)), **bucket;

    if (o == NULL) {
        return NULL;
    }
    bucket = bucket_of(t, owner);
    *o = (struct llm_tally_tenant){.entry = full ? o->entry : t->n_entries++, .next = *bucket};
    memcpy(o->owner, owner, sizeof(o->owner));
    *bucket = o;
    link_newest(t, o);
    hand_over(entry_at(t, o->entry), owner);
    return o;
}

/* Whether the cache had forgotten the tenant in between. When it cannot be seen, because it has
 * more than before, what is not known of it is the others'. */
static bool begins_anew(const uint64_t before[N], const uint64_t counts[N])
{
    for (int i = 0; i < N; i++) {
        if (is_sum(i) && counts[i] < before[i]) {
            return true;
        }
    }
    return false;
}

static void say(struct llm_tally *t, struct llm_tally_tenant *o, int i, uint64_t told)
{
    t->named[i] += told - o->told[i];
    o->told[i] = told;
}

static bool has_asked(const uint64_t before[N], const uint64_t counts[N])
{
    return counts[LLM_IPC_COUNT_MISS_TOKENS] != before[LLM_IPC_COUNT_MISS_TOKENS] ||
           memcmp(&counts[LLM_IPC_COUNT_HIT_TOKENS], &before[LLM_IPC_COUNT_HIT_TOKENS],
                  LLM_IPC_TIERS * sizeof(*counts)) != 0;
}

/* The tenant has these counts now. */
static void change(struct llm_tally *t, struct llm_tally_tenant *o, const uint64_t counts[N])
{
    if (memcmp(o->counts, counts, sizeof(o->counts)) == 0) {
        return;
    }

    if (begins_anew(o->counts, counts)) {
        memset(o->counts, 0, sizeof(o->counts));
    }
    if (has_asked(o->counts, counts)) {
        unlink_entry(t, o);
        link_newest(t, o);
    }
    for (int i = 0; i < N; i++) {
        say(t, o, i, is_sum(i) ? o->told[i] + counts[i] - o->counts[i] : counts[i]);
    }
    memcpy(o->counts, counts, sizeof(o->counts));
    store(entry_at(t, o->entry)->counters, o->told, N);
}

/* Who the cache has forgotten has no bytes any more; what it did stays counted. */
static void look_at_named(struct llm_tally *t, const struct llm_cache *cache)
{
    for (struct llm_tally_tenant *o = t->newest, *older; o != NULL; o = older) {
        const struct llm_cache_counts c = llm_cache_tenant_counts(cache, o->owner);
        uint64_t counts[N];

        older = o->older; /* it may become the newest */
        gather(&c, counts);
        change(t, o, counts);
    }
}

struct newcomers {
    struct llm_tally *tally;
    uint64_t spare[N]; /* of the sums, what no entry has said yet */
};

/* One of those that used the cache last: it is named, if it is not. What of its sums the others'
 * entry said before stays there, so that no sum ever falls. */
static void on_tenant(void *ctx, const uint8_t owner[32], const struct llm_cache_counts *c)
{
    static const uint64_t zero[N];
    struct newcomers *n = ctx;
    struct llm_tally *t = n->tally;
    struct llm_tally_tenant *o;
    uint64_t counts[N];

    gather(c, counts);
    if (memcmp(counts, zero, sizeof(counts)) == 0 || *find(t, owner) != NULL) {
        return;
    }
    o = name(t, owner);
    if (o == NULL) {
        return;
    }

    memcpy(o->counts, counts, sizeof(o->counts));
    for (int i = 0; i < N; i++) {
        if (is_sum(i)) {
            counts[i] = counts[i] < n->spare[i] ? counts[i] : n->spare[i];
            n->spare[i] -= counts[i];
        }
        say(t, o, i, counts[i]);
    }
    store(entry_at(t, o->entry)->counters, o->told, N);
}

static void look_at_newcomers(struct llm_tally *t, const struct llm_cache *cache,
                              const uint64_t counts[N])
{
    struct newcomers n = {.tally = t};

    for (int i = 0; i < N; i++) {
        n.spare[i] = counts[i] - t->named[i] - t->others[i];
    }
    llm_cache_last_tenants(cache, MAX_NEWCOMERS, on_tenant, &n);
}

void llm_tally_tell(struct llm_tally *t, const struct llm_cache *cache, uint64_t now_ns, bool idle)
{
    const struct llm_cache_counts c = llm_cache_counts(cache);
    uint64_t counts[N];

    gather(&c, counts);
    if ((now_ns < t->next_ns && !idle) || memcmp(counts, t->told, sizeof(counts)) == 0) {
        return;
    }
    t->next_ns = now_ns + PERIOD_NS;
    memcpy(t->told, counts, sizeof(counts));
    if (t->n_entries == 0) {
        static const uint8_t nobody[32];

        hand_over(entry_at(t, t->n_entries++), nobody);
    }

    look_at_named(t, cache);
    look_at_newcomers(t, cache, counts);

    for (int i = 0; i < N; i++) {
        t->others[i] = counts[i] - t->named[i];
    }
    store(entry_at(t, 0)->counters, t->others, N);
    store(t->state->counters, counts, N);
}

void llm_tally_tell_redis(struct llm_ipc_state *state, const struct llm_redis *redis,
                          struct llm_sched_loads loads)
{
    const struct llm_redis_counts c = llm_redis_counts(redis);
    const struct llm_redis_rates rates = llm_redis_rates(redis);
    const uint64_t words[] = {
        c.loads, c.hits, c.saved, c.already_there, c.over_quota, c.unsaved, c.bytes_in,
        c.bytes_out, c.connects, c.drops, (uint64_t) c.breaker + 1, rates.first_ns,
        rates.bytes_per_s, loads.chosen, loads.declined, loads.probes,
    };

    store(&state->counters[LLM_IPC_COUNT_REDIS_LOADS], words, sizeof(words) / sizeof(words[0]));
    store(&state->counters[LLM_IPC_COUNT_REDIS_MISSES], c.misses, LLM_REDIS_N_MISSES);
}

void llm_tally_free(struct llm_tally *t)
{
    for (struct llm_tally_tenant *o = t->newest, *older; o != NULL; o = older) {
        older = o->older;
        free(o);
    }
    *t = (struct llm_tally){0};
}
