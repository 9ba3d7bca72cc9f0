/* What the cache counts, as a worker reads it in the engine's state. */

#include "engine/base/clock.h"
#include "engine/ipc/session.h"
#include "engine/serve/tally.h"
#include "t/unit/tap.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* In the place of the real cache: what it counts, and for whom. */
#define MAX_TENANTS 2000

static struct {
    struct llm_cache_counts all, tenants[MAX_TENANTS];
    bool known[MAX_TENANTS];
    uint64_t used[MAX_TENANTS], clock; /* when it last used the cache */
    uint32_t n_looked_at;
} books;

static void owner_of(uint32_t i, uint8_t owner[32])
{
    memset(owner, 0, 32);
    memcpy(owner, &(uint32_t){i * 2654435761u + 1}, sizeof(i));
    memcpy(owner + 4, &i, sizeof(i));
}

struct llm_cache_counts llm_cache_counts(const struct llm_cache *c)
{
    (void) c;
    return books.all;
}

struct llm_cache_counts llm_cache_tenant_counts(const struct llm_cache *c, const uint8_t owner[32])
{
    uint32_t i;

    (void) c;
    memcpy(&i, owner + 4, sizeof(i));
    books.n_looked_at++;
    return books.tenants[i];
}

static int by_use(const void *a, const void *b)
{
    uint64_t x = books.used[*(const uint32_t *) a], y = books.used[*(const uint32_t *) b];

    return x < y ? 1 : x > y ? -1 : 0;
}

void llm_cache_last_tenants(const struct llm_cache *c, uint32_t n, llm_cache_tenant_fn *fn,
                            void *ctx)
{
    uint32_t tenants[MAX_TENANTS], n_known = 0;

    (void) c;
    for (uint32_t i = 0; i < MAX_TENANTS; i++) {
        if (books.known[i]) {
            tenants[n_known++] = i;
        }
    }
    qsort(tenants, n_known, sizeof(tenants[0]), by_use);
    for (uint32_t i = 0; i < n && i < n_known; i++) {
        uint8_t owner[32];

        owner_of(tenants[i], owner);
        books.n_looked_at++;
        fn(ctx, owner, &books.tenants[tenants[i]]);
    }
}

static void hit(uint32_t tenant, uint64_t tokens)
{
    books.known[tenant] = true;
    books.used[tenant] = ++books.clock;
    books.tenants[tenant].hit_tokens[LLM_TIER_HOST] += tokens;
    books.all.hit_tokens[LLM_TIER_HOST] += tokens;
}

static void keep(uint32_t tenant, uint64_t bytes)
{
    books.known[tenant] = true;
    books.all.bytes[LLM_TIER_MEMORY] += bytes - books.tenants[tenant].bytes[LLM_TIER_MEMORY];
    books.tenants[tenant].bytes[LLM_TIER_MEMORY] = bytes;
}

/* It has nothing left: the cache forgets what it counted for it. */
static void leave(uint32_t tenant)
{
    keep(tenant, 0);
    books.known[tenant] = false;
    books.tenants[tenant] = (struct llm_cache_counts){0};
}

/* --- what a worker sees --- */

static struct llm_tally tally;
static struct llm_ipc_session session; /* as a worker has it: what it reads of the state */
static uint64_t now;

static void tell(void)
{
    now += LLM_NS_PER_S;
    llm_tally_tell(&tally, NULL, now, false);
}

/* The tenant's entry; false: it has none. */
static bool entry_of(uint32_t tenant, struct llm_ipc_tenant *out)
{
    uint8_t owner[32];

    owner_of(tenant, owner);
    for (uint32_t i = 1; i < LLM_IPC_TENANTS; i++) {
        if (llm_ipc_state_tenant(&session, i, out) && memcmp(out->tenant, owner, 32) == 0) {
            return true;
        }
    }
    return false;
}

static uint64_t hits_of(uint32_t tenant)
{
    struct llm_ipc_tenant e;

    return entry_of(tenant, &e) ? e.counters[LLM_IPC_COUNT_HIT_TOKENS + LLM_IPC_TIER_HOST]
                                : UINT64_MAX;
}

static uint64_t hits_of_others(void)
{
    struct llm_ipc_tenant e;

    return llm_ipc_state_tenant(&session, 0, &e)
               ? e.counters[LLM_IPC_COUNT_HIT_TOKENS + LLM_IPC_TIER_HOST]
               : UINT64_MAX;
}

/* All entries together are what is counted in all. */
static bool adds_up(void)
{
    uint64_t sums[LLM_IPC_TENANT_COUNTS] = {0};
    struct llm_ipc_tenant e;

    for (uint32_t i = 0; i < LLM_IPC_TENANTS; i++) {
        for (int k = 0; llm_ipc_state_tenant(&session, i, &e) && k < LLM_IPC_TENANT_COUNTS; k++) {
            sums[k] += e.counters[k];
        }
    }
    return memcmp(sums, session.state->counters, sizeof(sums)) == 0;
}

static void test_counts(void)
{
    struct llm_ipc_tenant e;

    ok(!llm_ipc_state_tenant(&session, 0, &e) && !llm_ipc_state_tenant(&session, 1, &e),
       "nothing is counted yet");
    books.known[1] = true;
    books.tenants[1] = books.all = (struct llm_cache_counts){
        .hit_tokens = {128, 64}, .miss_tokens = 640, .evicted_pages = {3, 2}, .bytes = {8000, 900},
    };
    tell();
    ok(entry_of(1, &e) && e.version == 2, "a tenant has an entry");
    ok(e.counters[LLM_IPC_COUNT_HIT_TOKENS] == 128 &&
           e.counters[LLM_IPC_COUNT_HIT_TOKENS + 1] == 64 &&
           e.counters[LLM_IPC_COUNT_EVICTED_PAGES] == 3 &&
           e.counters[LLM_IPC_COUNT_EVICTED_PAGES + 1] == 2 &&
           e.counters[LLM_IPC_COUNT_CACHED_BYTES] == 8000 &&
           e.counters[LLM_IPC_COUNT_CACHED_BYTES + 1] == 900 &&
           e.counters[LLM_IPC_COUNT_MISS_TOKENS] == 640, "with all that was counted");
    ok(memcmp(e.counters, session.state->counters, sizeof(e.counters)) == 0, "as much as in all");
    is_int(hits_of_others(), 0, "nobody else has anything");

    hit(1, 6);
    books.all.hit_tokens[LLM_TIER_HOST] += 5; /* of a tenant that was gone before it was seen */
    tell();
    is_int(hits_of(1), 70, "counts go on");
    is_int(hits_of_others(), 5, "and what is nobody's is the others'");
    ok(adds_up(), "the table adds up");

    leave(1);
    tell();
    ok(hits_of(1) == 70 && entry_of(1, &e) && e.counters[LLM_IPC_COUNT_CACHED_BYTES] == 0,
       "who has left has no bytes, but his counts stay");
    hit(1, 100);
    tell();
    is_int(hits_of(1), 170, "and go on when he comes back, more than he had before");
    leave(1);
    tell();
    hit(1, 1);
    tell();
    ok(hits_of(1) == 171 && entry_of(1, &e) && e.version == 2, "or less, in the same entry");
    ok(adds_up(), "the table adds up");
}

static void test_periods(void)
{
    hit(1, 1);
    tell();
    hit(1, 1);
    llm_tally_tell(&tally, NULL, now + LLM_NS_PER_MS, false);
    is_int(hits_of(1), 172, "while there is work nothing is told all the time");
    llm_tally_tell(&tally, NULL, now + LLM_NS_PER_MS, true);
    is_int(hits_of(1), 173, "but at once when there is none");
}

static void test_full(void)
{
    struct llm_ipc_tenant before, after;
    uint64_t others = hits_of_others();
    uint32_t lost = 0;

    keep(1, 1000); /* and nothing else for long: the oldest, though it holds something */
    tell();
    for (uint32_t i = 2; i <= LLM_IPC_TENANTS; i++) {
        entry_of(1, &before);
        hit(i, i);
        tell();
    }
    ok(hits_of(1) == UINT64_MAX && hits_of(2) == 2 && hits_of(LLM_IPC_TENANTS) == LLM_IPC_TENANTS,
       "the entry of the oldest one goes to one more tenant than there are entries");
    ok(entry_of(LLM_IPC_TENANTS, &after) && after.version == before.version + 2,
       "its version tells");
    is_int(hits_of_others(), others + 173, "his counts are the others' now");
    ok(adds_up(), "the table adds up");

    hit(2, 1); /* so 3 is the oldest */
    tell();
    hit(1, 7);
    tell();
    is_int(hits_of(1), 7, "he comes back and begins anew");
    ok(hits_of(3) == UINT64_MAX && hits_of(2) == 3, "in the place of the oldest");
    ok(entry_of(1, &after) && after.counters[LLM_IPC_COUNT_CACHED_BYTES] == 1000,
       "with all the bytes he has");

    for (uint32_t i = 0; i < MAX_TENANTS; i++) {
        hit(i, 10);
    }
    tell();
    for (uint32_t i = 0; i < MAX_TENANTS; i++) {
        lost += hits_of(i) == UINT64_MAX;
    }
    is_int(lost, MAX_TENANTS - LLM_IPC_TENANTS + 1, "more tenants than entries at once");
    ok(adds_up(), "the table adds up");
    for (uint32_t i = 0; i < MAX_TENANTS; i++) {
        leave(i);
    }
    tell();
    ok(adds_up(), "also when all are gone");
}

/* However many tenants there are, a few are looked at. */
static void test_bounded(void)
{
    for (uint32_t i = 0; i < MAX_TENANTS; i++) {
        hit(i, 1);
    }
    books.n_looked_at = 0;
    tell();
    ok(books.n_looked_at > 0 && books.n_looked_at < 2 * LLM_IPC_TENANTS,
       "two thousand tenants at once: %u are looked at", books.n_looked_at);
    ok(adds_up(), "the table adds up");
}

/* Of every entry that stays the same tenant's. */
static bool has_fallen(const struct llm_ipc_tenant *before, const struct llm_ipc_tenant *after)
{
    for (int i = 0; i < LLM_IPC_TENANT_COUNTS && before->version == after->version; i++) {
        bool is_sum = i < LLM_IPC_COUNT_CACHED_BYTES || i >= LLM_IPC_COUNT_MISS_TOKENS;

        if (is_sum && after->counters[i] < before->counters[i]) {
            return true;
        }
    }
    return false;
}

static void test_random(void)
{
    static struct llm_ipc_tenant before[LLM_IPC_TENANTS], after;
    uint32_t n_fallen = 0, n_wrong = 0;

    srand(1);
    for (int round = 0; round < 2000; round++) {
        for (int i = rand() % 200; i > 0; i--) {
            uint32_t tenant = (uint32_t) (rand() % MAX_TENANTS);

            if (rand() % 4 == 0) {
                leave(tenant);
            } else {
                hit(tenant, (uint64_t) (rand() % 100));
                keep(tenant, (uint64_t) (rand() % 1000));
            }
        }
        for (uint32_t i = 0; i < LLM_IPC_TENANTS; i++) {
            llm_ipc_state_tenant(&session, i, &before[i]);
        }
        tell();
        for (uint32_t i = 0; i < LLM_IPC_TENANTS; i++) {
            n_fallen += llm_ipc_state_tenant(&session, i, &after) && has_fallen(&before[i], &after);
        }
        n_wrong += !adds_up();
    }
    is_int(n_fallen, 0, "tenants that come and go: no sum ever falls");
    is_int(n_wrong, 0, "and the table always adds up");
}

/* Offsets and counts that a worker must not believe. */
static void test_hostile(void)
{
    struct llm_ipc_state *state = tally.state;
    struct llm_ipc_tenant e;

    hit(1, 1);
    tell();
    ok(llm_ipc_state_tenant(&session, 0, &e), "the table is there");
    ok(!llm_ipc_state_tenant(&session, LLM_IPC_TENANTS, &e), "it has an end");
    state->n_tenants = UINT32_MAX;
    ok(!llm_ipc_state_tenant(&session, 0, &e), "more entries than the region has");
    state->n_tenants = LLM_IPC_TENANTS;
    state->tenants_offset = LLM_IPC_STATE_SIZE - 64;
    ok(!llm_ipc_state_tenant(&session, 0, &e), "a table over the region's end");
    state->tenants_offset = LLM_IPC_TENANTS_OFFSET + 4;
    ok(!llm_ipc_state_tenant(&session, 0, &e), "one that is not aligned");
    state->tenants_offset = LLM_IPC_TENANTS_OFFSET;
    ((struct llm_ipc_tenant *) ((char *) state + LLM_IPC_TENANTS_OFFSET))->version = 7;
    ok(!llm_ipc_state_tenant(&session, 0, &e), "an entry that changes hands for ever");
}

int main(void)
{
    int memfd;

    if (llm_ipc_state_create(&tally.state, &memfd) != LLM_IPC_DONE) {
        printf("Bail out! no state\n");
        return 1;
    }
    session.state = mmap(NULL, LLM_IPC_STATE_SIZE, PROT_READ, MAP_SHARED, memfd, 0);
    session.state_size = LLM_IPC_STATE_SIZE;

    test_counts();
    test_periods();
    test_full();
    test_bounded();
    test_random();
    test_hostile();

    munmap((void *) session.state, LLM_IPC_STATE_SIZE);
    munmap(tally.state, LLM_IPC_STATE_SIZE);
    close(memfd);
    llm_tally_free(&tally);
    return done_testing();
}
