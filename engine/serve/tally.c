#include "engine/serve/tally.h"

#include "engine/base/clock.h"

#include <stdlib.h>
#include <string.h>

#define PERIOD_NS (100 * LLM_NS_PER_MS)
#define N_BUCKETS (sizeof(((struct llm_tally *) NULL)->buckets) / sizeof(void *))
#define N LLM_IPC_TENANT_COUNTS

_Static_assert((int) LLM_TIER_MEMORY == LLM_IPC_TIER_MEMORY &&
                   (int) LLM_TIER_HOST == LLM_IPC_TIER_HOST && (int) LLM_N_TIERS <= LLM_IPC_TIERS,
               "tiers");

struct llm_tally_tenant {
    uint8_t owner[32];
    uint32_t round;     /* in which the cache last knew it */
    uint32_t entry;     /* 0: none */
    uint64_t counts[N]; /* as the cache said last; it forgets a tenant that has nothing left */
    uint64_t told[N];   /* what its entry says */
    struct llm_tally_tenant *next;          /* in the bucket */
    struct llm_tally_tenant *newer, *older; /* among those with an entry */
};

static void gather(const struct llm_cache_counts *c, uint64_t counts[N])
{
    memset(counts, 0, N * sizeof(*counts));
    for (int i = 0; i < LLM_N_TIERS; i++) {
        counts[LLM_IPC_COUNT_HIT_TOKENS + i] = c->hit_tokens[i];
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

/* A free entry, or that of the tenant that has not changed for longest. */
static uint32_t take_entry(struct llm_tally *t)
{
    struct llm_tally_tenant *o = t->oldest;
    uint32_t entry;

    if (t->n_entries < LLM_IPC_TENANTS) {
        return t->n_entries++;
    }
    entry = o->entry;
    unlink_entry(t, o);
    for (int i = 0; i < N; i++) {
        t->named[i] -= o->told[i];
    }
    o->entry = 0;
    return entry;
}

/* --- tenants --- */

static struct llm_tally_tenant **bucket_of(struct llm_tally *t, const uint8_t owner[32])
{
    uint32_t h;

    memcpy(&h, owner, sizeof(h)); /* a digest is as good as any hash of it */
    return &t->buckets[h % N_BUCKETS];
}

/* Made if need be; NULL: no memory. */
static struct llm_tally_tenant *find(struct llm_tally *t, const uint8_t owner[32])
{
    struct llm_tally_tenant **bucket = bucket_of(t, owner), *o = *bucket;

    while (o != NULL && memcmp(o->owner, owner, sizeof(o->owner)) != 0) {
        o = o->next;
    }
    if (o == NULL) {
        o = calloc(1, sizeof(*o));
        if (o != NULL) {
            memcpy(o->owner, owner, sizeof(o->owner));
            o->next = *bucket;
            *bucket = o;
        }
    }
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

/* The tenant has these counts now. */
static void change(struct llm_tally *t, struct llm_tally_tenant *o, const uint64_t counts[N])
{
    if (memcmp(o->counts, counts, sizeof(o->counts)) == 0) {
        return;
    }

    if (o->entry == 0) {
        o->entry = take_entry(t);
        memset(o->told, 0, sizeof(o->told));
        hand_over(entry_at(t, o->entry), o->owner);
    } else {
        unlink_entry(t, o);
    }
    link_newest(t, o);

    if (begins_anew(o->counts, counts)) {
        memset(o->counts, 0, sizeof(o->counts));
    }
    for (int i = 0; i < N; i++) {
        uint64_t told = is_sum(i) ? o->told[i] + counts[i] - o->counts[i] : counts[i];

        t->named[i] += told - o->told[i];
        o->told[i] = told;
        o->counts[i] = counts[i];
    }
    store(entry_at(t, o->entry)->counters, o->told, N);
}

static void on_tenant(void *ctx, const uint8_t owner[32], const struct llm_cache_counts *c)
{
    struct llm_tally *t = ctx;
    struct llm_tally_tenant *o = find(t, owner);
    uint64_t counts[N];

    if (o != NULL) {
        gather(c, counts);
        change(t, o, counts);
        o->round = t->round;
    }
}

/* The cache no longer knows it: it has no bytes, and its counts would begin at zero. */
static void forget(struct llm_tally *t, struct llm_tally_tenant *o)
{
    for (int i = 0; i < N; i++) {
        if (!is_sum(i)) {
            t->named[i] -= o->told[i];
            o->told[i] = 0;
        }
    }
    memset(o->counts, 0, sizeof(o->counts));
    store(entry_at(t, o->entry)->counters, o->told, N);
}

static void sweep(struct llm_tally *t)
{
    for (unsigned i = 0; i < N_BUCKETS; i++) {
        for (struct llm_tally_tenant **p = &t->buckets[i], *o; (o = *p) != NULL;) {
            if (o->round != t->round && o->entry == 0) {
                *p = o->next;
                free(o);
                continue;
            }
            if (o->round + 1 == t->round) {
                forget(t, o);
            }
            p = &o->next;
        }
    }
}

void llm_tally_tell(struct llm_tally *t, const struct llm_cache *cache, uint64_t now_ns, bool idle)
{
    const struct llm_cache_counts c = llm_cache_counts(cache);
    uint64_t counts[N], others[N];

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

    t->round++;
    llm_cache_each_tenant(cache, on_tenant, t);
    sweep(t);

    for (int i = 0; i < N; i++) {
        others[i] = counts[i] - t->named[i];
    }
    store(entry_at(t, 0)->counters, others, N);
    store(t->state->counters, counts, N);
}

void llm_tally_free(struct llm_tally *t)
{
    for (unsigned i = 0; i < N_BUCKETS; i++) {
        for (struct llm_tally_tenant *o = t->buckets[i], *next; o != NULL; o = next) {
            next = o->next;
            free(o);
        }
    }
    *t = (struct llm_tally){0};
}
