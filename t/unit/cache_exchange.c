/* What passes between the pool and Redis: which arrivals become pages, which pages are offered, and
 * that no buffer changes hands while a copy uses it. */

#include "engine/cache/cache.h"
#include "t/unit/cache_backend.h"
#include "t/unit/fake_redis.h"
#include "t/unit/tap.h"

#define N 6 /* pages of a prompt */
#define TTL 100 /* s */

static const uint8_t alice_digest[32] = "alice", bob_digest[32] = "bob";
static const char writer[] = "somebody";

static uint64_t clock_ns;

static uint64_t now(void *ctx)
{
    (void) ctx;
    return clock_ns;
}

static struct llm_backend backend;
static struct llm_cache *cache;
static struct llm_cache_tenant *alice;

static uint32_t ids[N * LLM_PAGE_TOKENS], pages[N];
static struct llm_digest digests[N];

/* alice has a prompt's pages, which are pending. */
static void open_cache(uint32_t n_pages, uint32_t n_slots)
{
    const struct llm_cache_options options = {
        .host_bytes = n_slots * PAGE_BYTES,
        .tenant_percent = 100,
        .redis = &fake_redis,
        .redis_ttl = TTL,
        .now = now,
    };
    const struct llm_chain chain = {.secret = "alice"};
    struct llm_error err;
    bool right;

    backend_init(&backend, n_pages);
    fake_redis_open(PAGE_BYTES);
    right = llm_cache_new(&backend_ops, &backend, &options, &cache, &err) == LLM_OK;
    alice = llm_cache_join(cache, alice_digest, 1);
    for (uint32_t i = 0; i < N * LLM_PAGE_TOKENS; i++) {
        ids[i] = i;
    }
    right = right && llm_page_digests(&chain, NULL, ids, N, digests) == LLM_OK &&
            llm_cache_take(cache, N, pages) == LLM_OK;
    for (uint32_t i = 0; i < N; i++) {
        right = right && llm_cache_publish(cache, alice, pages[i], &digests[i],
                                           ids + i * LLM_PAGE_TOKENS, writer);
    }
    if (!right) {
        abort();
    }
}

static void close_cache(const char *test)
{
    const char *wrong = llm_cache_check(cache);

    ok(wrong == NULL, "%s: the books are right", test);
    if (wrong != NULL) {
        diag("%s", wrong);
    }
    llm_cache_free(cache);
    fake_redis_idle();
    ok(backend.n_done == backend.n_begun, "%s: all buffers are back, all copies made", test);
    fake_redis_close();
    backend_free(&backend);
}

static void wait_copies(void)
{
    backend_fence_wait(&backend, backend.n_begun);
}

/* What page i of the prompt holds. */
static void fill(uint8_t bytes[PAGE_BYTES], uint32_t i)
{
    for (uint32_t k = 0; k < PAGE_BYTES; k++) {
        bytes[k] = (uint8_t) (digests[i].bytes[k % LLM_DIGEST_BYTES] + k);
    }
}

static bool holds(const uint8_t *bytes, uint32_t i)
{
    uint8_t want[PAGE_BYTES];

    fill(want, i);
    return memcmp(bytes, want, PAGE_BYTES) == 0;
}

/* Puts page i where another engine would have put it. */
static void put(uint32_t i)
{
    uint32_t buffer;
    uint8_t *bytes = llm_redis_save_buffer(&fake_redis, &buffer);

    fill(bytes, i);
    llm_redis_save(&fake_redis, buffer, alice_digest, 0, 0, &digests[i],
                   ids + i * LLM_PAGE_TOKENS);
}

static void load(uint32_t first, uint32_t n)
{
    static uint64_t loads;

    llm_redis_load(&fake_redis, ++loads, alice_digest, digests + first,
                   ids + first * LLM_PAGE_TOKENS, n);
}

static void complete(uint32_t first, uint32_t n)
{
    for (uint32_t i = first; i < first + n; i++) {
        fill(backend_page(&backend, pages[i]), i);
        llm_cache_complete(cache, pages[i]);
    }
}

static void forget(uint32_t i)
{
    llm_cache_forget(cache, alice, &digests[i], ids + i * LLM_PAGE_TOKENS);
}

static void prove(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        llm_cache_prove(cache, pages[i]);
    }
}

static uint32_t count_given(void)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < FAKE_IN; i++) {
        n += fake_redis.given[i];
    }
    return n;
}

static void test_arrivals(void)
{
    struct llm_cache_arrival a;
    struct llm_cache_counts c;
    uint32_t some[8];

    open_cache(8, 0);
    put(2);
    put(4);
    ok(!llm_cache_arrived(cache, &a), "nothing has been asked for");
    complete(0, 2);
    load(1, 4);
    ok(llm_cache_arrived(cache, &a) && a.taken && !a.ended, "a pending page has come");
    ok(a.writer == writer, "its writer is told");
    ok(!llm_cache_pending(cache, pages[2]) && llm_cache_writer(cache, pages[2]) == NULL,
       "it is complete");
    is_int(llm_cache_fence(cache), backend.n_begun, "as soon as it is copied");
    is_int(count_given(), 1, "until then its buffer is used");
    ok(llm_cache_arrived(cache, &a) && a.taken, "another one");
    ok(llm_cache_pending(cache, pages[3]), "the one between them is missing");
    is_int(count_given(), 2, "nothing has been copied");
    wait_copies();
    ok(llm_cache_arrived(cache, &a) && a.ended && !a.taken, "the end");
    is_int(count_given(), 0, "the buffers go back when they have been copied");
    ok(holds(backend_page(&backend, pages[2]), 2) && holds(backend_page(&backend, pages[4]), 4),
       "byte for byte");
    c = llm_cache_tenant_counts(cache, alice_digest);
    is_int(c.hit_tokens[LLM_TIER_REDIS], 2 * LLM_PAGE_TOKENS, "alice's tokens");
    is_int(llm_cache_counts(cache).hit_tokens[LLM_TIER_REDIS], 2 * LLM_PAGE_TOKENS, "all tokens");

    complete(3, 1);
    load(2, 1);
    ok(llm_cache_arrived(cache, &a) && !a.taken && !a.ended, "a page that is complete as it is");
    is_int(count_given(), 0, "is given back at once");
    ok(llm_cache_arrived(cache, &a) && a.ended, "the end");

    complete(5, 1);
    put(5);
    load(5, 1);
    forget(5);
    ok(llm_cache_arrived(cache, &a) && !a.taken && !a.ended, "one that is not indexed any more");
    ok(llm_cache_arrived(cache, &a) && a.ended && !llm_cache_arrived(cache, &a), "the end");
    close_cache("arrivals");

    open_cache(8, 8);
    put(0);
    complete(0, N);
    llm_cache_drop(cache, pages, N);
    llm_cache_take(cache, 8, some);
    load(0, 1);
    ok(llm_cache_arrived(cache, &a) && !a.taken && !a.ended, "one that is in the host tier alone");
    ok(llm_cache_arrived(cache, &a) && a.ended, "the end");
    llm_cache_drop(cache, some, 8);
    close_cache("the host tier");

    open_cache(8, 0);
    put(0);
    load(0, 1);
    backend.refuse = true;
    ok(llm_cache_arrived(cache, &a) && !a.taken, "a copy that is refused");
    ok(llm_cache_pending(cache, pages[0]) && count_given() == 0, "leaves the page as it was");
    backend.refuse = false;
    close_cache("refused copies");

    open_cache(8, 0);
    put(0);
    put(1);
    load(0, 2);
    llm_cache_arrived(cache, &a);
    llm_cache_arrived(cache, &a);
    is_int(count_given(), 2, "copies are under way");
    close_cache("the end amid copies");
}

static bool saved(uint32_t i)
{
    const struct fake_value *v = fake_redis_find(alice_digest, &digests[i]);

    return v != NULL && holds(v->bytes, i);
}

static void test_offers(void)
{
    uint32_t some[8];

    open_cache(8, 0);
    llm_cache_limit(cache, alice, 9);
    complete(0, 4);
    llm_cache_offer(cache, 8);
    is_int(backend.n_out, 0, "what nobody vouches for is not offered");
    prove(6);
    llm_cache_offer(cache, 1);
    is_int(backend.n_out, 1, "one at a time");
    is_int(llm_cache_fence(cache), 0, "no step waits for that");
    llm_cache_offer(cache, 0);
    is_int(fake_redis.saves, 0, "it is not handed over before it is copied");
    wait_copies();
    llm_cache_offer(cache, 0);
    is_int(fake_redis.saves, 1, "and then it is");
    is_int(fake_redis.max_pages, 9, "with its tenant's limit");
    llm_cache_offer(cache, 8);
    is_int(backend.n_out, 4, "the complete ones, each once");
    wait_copies();
    llm_cache_offer(cache, 8);
    ok(saved(0) && saved(1) && saved(2) && saved(3), "byte for byte");
    is_int(fake_redis.n_values, 4, "no pending ones");

    complete(4, 2);
    prove(6);
    llm_cache_offer(cache, 8);
    llm_cache_drop(cache, pages, N);
    llm_cache_take(cache, 8, some);
    is_int(llm_cache_fence(cache), backend.n_begun, "who has the page next waits for the copy");
    wait_copies();
    llm_cache_offer(cache, 8);
    ok(saved(4) && saved(5), "a page that has been pushed out meanwhile");
    llm_cache_drop(cache, some, 8);
    close_cache("offers");

    open_cache(8, 0);
    complete(0, 6);
    prove(6);
    fake_redis.rates.up = false;
    llm_cache_offer(cache, 8);
    is_int(backend.n_out, 0, "nothing is copied while Redis is down");
    fake_redis.rates.up = true;
    llm_cache_offer(cache, 8);
    is_int(backend.n_out, FAKE_OUT, "as many as there are buffers");
    wait_copies();
    llm_cache_offer(cache, 8);
    is_int(backend.n_out, 6, "and then the others");
    close_cache("buffers"); /* amid copies */

    open_cache(8, 0);
    complete(0, 1);
    prove(1);
    backend.refuse = true;
    llm_cache_offer(cache, 8);
    is_int(fake_redis.drops, 1, "a copy that is refused");
    backend.refuse = false;
    llm_cache_offer(cache, 8);
    wait_copies();
    llm_cache_offer(cache, 8);
    ok(saved(0), "is made later");
    close_cache("refused copies");
}

/* What is used is kept in Redis, what is not may expire there. */
static void test_again(void)
{
    struct llm_cache_arrival a;

    open_cache(8, 0);
    put(2);
    load(2, 1);
    llm_cache_arrived(cache, &a);
    llm_cache_arrived(cache, &a);
    fake_redis_flush();
    complete(0, 2);
    prove(3);
    llm_cache_offer(cache, 8);
    is_int(backend.n_out, 2, "two pages are offered, and one has come");
    wait_copies();
    llm_cache_offer(cache, 8);
    prove(3);
    llm_cache_offer(cache, 8);
    is_int(backend.n_out, 2, "used again, they are not offered again");

    clock_ns += TTL / 2 * 1000000000ull;
    prove(1);
    fake_redis_flush();
    llm_cache_offer(cache, 8);
    wait_copies();
    llm_cache_offer(cache, 8);
    is_int(backend.n_out, 5, "but half a ttl later");
    ok(saved(0) && saved(1) && saved(2), "whatever Redis has lost");
    clock_ns += TTL / 2 * 1000000000ull;
    llm_cache_offer(cache, 8);
    is_int(backend.n_out, 5, "what nobody has used since is not");
    prove(1);
    llm_cache_offer(cache, 8);
    is_int(backend.n_out, 6, "what somebody has is");
    clock_ns = 0;
    close_cache("offered again");
}

static void test_not_wanted(void)
{
    struct llm_cache_found found;
    uint32_t some[8];
    uint8_t owner[32];

    open_cache(8, 0);
    complete(0, 2);
    prove(2);
    llm_cache_offer(cache, 2);
    forget(0);
    wait_copies();
    llm_cache_offer(cache, 2);
    ok(!saved(0) && saved(1), "what is forgotten while it is copied is not saved");
    llm_cache_outdated(cache, owner); /* hears of the epoch */
    forget(1);
    ok(!saved(1) && fake_redis.deletes == 2, "what is there is deleted");
    put(3);
    forget(3);
    ok(saved(3) && llm_cache_pending(cache, pages[3]), "but a page that is being computed stays");
    llm_cache_drop(cache, &pages[5], 1); /* it was pending: it is nowhere */
    put(5);
    forget(5);
    ok(!saved(5), "one that is in Redis alone goes");
    llm_cache_hold(cache, pages[4]);
    pages[5] = pages[4];
    close_cache("forgotten");

    open_cache(8, 0);
    complete(0, 3);
    prove(2);
    llm_cache_offer(cache, 2);
    prove(3);
    llm_cache_purge(cache, bob_digest);
    is_int(fake_redis.forgets, 1, "a purge is told to the tier");
    llm_cache_purge(cache, alice_digest);
    wait_copies();
    llm_cache_offer(cache, 4);
    is_int(backend.n_out, 2, "what was purged is not copied");
    is_int(fake_redis.n_values, 0, "nor handed over");
    is_int(fake_redis.drops, 2, "its buffers are free");
    close_cache("purged");

    open_cache(8, 8);
    complete(0, 6);
    prove(6);
    llm_cache_drop(cache, pages, N);
    llm_cache_take(cache, 8, some);
    llm_cache_drop(cache, some, 8);
    llm_cache_match(cache, alice, digests, ids, N, pages, &found);
    is_int(found.n_host, 6, "pages come back from the host tier");
    llm_cache_offer(cache, 8);
    is_int(fake_redis.saves + backend.n_out, 6, "nobody vouches for them yet");
    prove(6);
    llm_cache_offer(cache, 8);
    is_int(backend.n_out, 6 + FAKE_OUT, "now somebody does");
    close_cache("from the host tier");
}

/* Somebody else has purged alice, and this engine hears of it by what Redis says. */
static void test_outdated(void)
{
    struct llm_cache_arrival a;
    uint8_t owner[32];

    open_cache(8, 0);
    complete(0, 4);
    prove(1);
    llm_cache_offer(cache, 8);
    wait_copies();
    llm_cache_offer(cache, 8);
    ok(saved(0), "the first epoch is as good as any");
    ok(!llm_cache_outdated(cache, owner), "nobody was purged before it");
    prove(3);
    llm_cache_offer(cache, 1);
    fake_redis.epoch++;
    wait_copies();
    llm_cache_offer(cache, 0);
    is_int(fake_redis.n_values, 1, "what is older than another epoch is not saved");
    ok(llm_cache_outdated(cache, owner) && memcmp(owner, alice_digest, sizeof(owner)) == 0,
       "alice is to be purged");
    is_int(llm_cache_purge(cache, owner), 6, "all of it");
    ok(!llm_cache_outdated(cache, owner), "once");

    load(4, 1);
    ok(llm_cache_arrived(cache, &a) && a.ended && !llm_cache_outdated(cache, owner),
       "the same epoch again");
    fake_redis.epoch++;
    load(4, 1);
    ok(llm_cache_arrived(cache, &a) && a.ended && llm_cache_outdated(cache, owner),
       "another one is heard of by a load, too");
    close_cache("another epoch");
}

int main(void)
{
    test_arrivals();
    test_offers();
    test_again();
    test_not_wanted();
    test_outdated();
    return done_testing();
}
