/* The rules of the cache one by one: what is found, who holds what, which page goes, what comes
 * back from the host tier, what is counted. */

#include "engine/cache/cache.h"
#include "t/unit/cache_backend.h"
#include "t/unit/tap.h"

#define MAX_PAGES 64

static const uint8_t alice_digest[32] = "alice", bob_digest[32] = "bob";
static const char writer[] = "somebody";

/* --- a cache and prompts to use it with --- */

static uint64_t clock_ns = 1;

static uint64_t now(void *ctx)
{
    (void) ctx;
    return clock_ns;
}

static struct llm_backend backend;
static struct llm_cache *cache;
static struct llm_cache_tenant *alice, *bob;

static void open_cache(uint32_t n_pages, uint32_t n_slots, uint32_t percent)
{
    struct llm_cache_options options = {
        .host_bytes = n_slots * PAGE_BYTES,
        .tenant_percent = percent,
        .now = now,
    };
    struct llm_error err;

    backend_init(&backend, n_pages);
    if (llm_cache_new(&backend_ops, &backend, &options, &cache, &err) != LLM_OK) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    alice = llm_cache_join(cache, alice_digest, 1);
    bob = llm_cache_join(cache, bob_digest, 1);
}

static void close_cache(const char *test)
{
    const char *wrong = llm_cache_check(cache);

    ok(wrong == NULL, "%s: the books are right", test);
    if (wrong != NULL) {
        diag("%s", wrong);
    }
    llm_cache_free(cache);
    ok(backend.n_done == backend.n_begun, "%s: no copy is under way in the end", test);
    backend_free(&backend);
}

struct prompt {
    uint32_t n;
    struct llm_digest digests[MAX_PAGES];
    uint32_t ids[MAX_PAGES * LLM_PAGE_TOKENS];
    uint32_t pages[MAX_PAGES];
};

/* A prompt of n pages; equal seeds and owners begin alike. */
static struct prompt prompt_of(const uint8_t owner[32], uint32_t seed, uint32_t n)
{
    struct prompt p = {.n = n};
    struct llm_chain chain = {.numerics_id = "test"};

    memcpy(chain.secret, owner, sizeof(chain.secret));
    for (uint32_t i = 0; i < n * LLM_PAGE_TOKENS; i++) {
        p.ids[i] = seed * 1000 + i;
    }
    if (llm_page_digests(&chain, NULL, p.ids, n, p.digests) != LLM_OK) {
        printf("Bail out! no digests\n");
        exit(1);
    }
    return p;
}

static struct llm_cache_found match(struct llm_cache_tenant *t, struct prompt *p)
{
    struct llm_cache_found found;

    llm_cache_match(cache, t, p->digests, p->ids, p->n, p->pages, &found);
    return found;
}

static void publish(struct llm_cache_tenant *t, const struct prompt *p, uint32_t from)
{
    for (uint32_t i = from; i < p->n; i++) {
        ok(llm_cache_publish(cache, t, p->pages[i], &p->digests[i],
                             p->ids + i * LLM_PAGE_TOKENS, writer),
           "page %u published", i);
    }
}

static void forget(struct llm_cache_tenant *t, const struct prompt *p, uint32_t i)
{
    llm_cache_forget(cache, t, &p->digests[i], p->ids + i * LLM_PAGE_TOKENS);
}

/* What a page of the prompt holds once it is computed. */
static void fill(const struct prompt *p, uint32_t i, uint8_t bytes[PAGE_BYTES])
{
    for (uint32_t j = 0; j < PAGE_BYTES; j++) {
        bytes[j] = p->digests[i].bytes[j % LLM_DIGEST_BYTES] + j;
    }
}

static void complete(const struct prompt *p, uint32_t from)
{
    for (uint32_t i = from; i < p->n; i++) {
        backend_fence_wait(&backend, llm_cache_fence(cache));
        fill(p, i, backend_page(&backend, p->pages[i]));
        llm_cache_complete(cache, p->pages[i]);
    }
}

/* The whole life of a request: what is not found is computed. Says what was found. */
static struct llm_cache_found run(struct llm_cache_tenant *t, struct prompt *p)
{
    struct llm_cache_found found = match(t, p);

    if (llm_cache_take(cache, p->n - found.n, p->pages + found.n) != LLM_OK) {
        printf("Bail out! no pages\n");
        exit(1);
    }
    llm_cache_count(cache, t, &found, p->n);
    for (uint32_t i = found.n; i < p->n; i++) {
        llm_cache_publish(cache, t, p->pages[i], &p->digests[i], p->ids + i * LLM_PAGE_TOKENS,
                          writer);
    }
    complete(p, found.n);
    llm_cache_drop(cache, p->pages, p->n);
    return found;
}

static bool holds(const struct prompt *p, uint32_t i)
{
    uint8_t want[PAGE_BYTES];

    backend_fence_wait(&backend, llm_cache_fence(cache));
    fill(p, i, want);
    return memcmp(backend_page(&backend, p->pages[i]), want, PAGE_BYTES) == 0;
}

/* --- the tests --- */

static void test_users(void)
{
    struct prompt p = prompt_of(alice_digest, 1, 3);
    struct llm_cache_found found;
    uint32_t all[8];

    open_cache(8, 0, 100);
    is_int(llm_cache_total(cache), 8, "eight pages");
    is_int(llm_cache_available(cache), 8, "all to be had");
    is_int(llm_cache_take(cache, 9, all), LLM_EAGAIN, "nine are not");
    is_int(match(alice, &p).n, 0, "nothing is found in an empty cache");
    is_int(llm_cache_estimate(cache, p.digests, 3), 0, "nor expected");

    is_int(llm_cache_take(cache, 3, p.pages), LLM_OK, "three are taken");
    is_int(llm_cache_available(cache), 5, "five are left");
    ok(!llm_cache_shared(cache, p.pages[0]), "with one user each");
    publish(alice, &p, 0);
    ok(llm_cache_indexed(cache, p.pages[0]), "they are indexed");
    ok(llm_cache_pending(cache, p.pages[0]), "pending");
    ok(llm_cache_writer(cache, p.pages[0]) == writer, "with their writer");
    ok(!llm_cache_shared(cache, p.pages[0]), "and still one user");
    is_int(llm_cache_estimate(cache, p.digests, 3), 3, "a match would find them");

    found = match(alice, &p);
    is_int(found.n, 3, "a match finds them");
    is_int(found.n_pending, 3, "pending");
    is_int(found.n_host, 0, "in the pool");
    ok(llm_cache_shared(cache, p.pages[2]), "two users now");
    llm_cache_set_writer(cache, p.pages[2], NULL);
    ok(llm_cache_writer(cache, p.pages[2]) == NULL, "the last one is abandoned");

    complete(&p, 0);
    ok(!llm_cache_pending(cache, p.pages[0]), "complete");
    ok(llm_cache_writer(cache, p.pages[0]) == NULL, "without a writer");
    llm_cache_drop(cache, p.pages, 3);
    ok(!llm_cache_shared(cache, p.pages[0]), "one user again");
    is_int(llm_cache_available(cache), 5, "so they cannot be had");
    llm_cache_drop(cache, p.pages, 3);
    is_int(llm_cache_available(cache), 8, "idle pages can be");

    found = match(alice, &p);
    is_int(found.n, 3, "what is idle is found");
    is_int(found.n_pending, 0, "complete");
    is_int(llm_cache_available(cache), 5, "and in use again");
    llm_cache_hold(cache, p.pages[1]);
    ok(llm_cache_shared(cache, p.pages[1]), "a page is held once more");
    llm_cache_drop(cache, &p.pages[1], 1);

    forget(alice, &p, 0);
    ok(!llm_cache_indexed(cache, p.pages[0]), "a page is forgotten");
    is_int(llm_cache_estimate(cache, p.digests, 3), 0, "and not found any more");
    is_int(llm_cache_available(cache), 5, "but is its user's");
    llm_cache_drop(cache, p.pages, 3);
    is_int(llm_cache_take(cache, 8, all), LLM_OK, "all are taken");
    is_int(llm_cache_estimate(cache, p.digests + 1, 1), 0, "and what was idle is not found");
    llm_cache_drop(cache, all, 8);
    close_cache("users");
}

static void test_pending(void)
{
    struct prompt p = prompt_of(alice_digest, 1, 4), q = p;
    struct llm_cache_found found;

    open_cache(8, 0, 100);
    llm_cache_take(cache, 4, p.pages);
    publish(alice, &p, 0);
    llm_cache_drop(cache, p.pages, 4);
    is_int(llm_cache_available(cache), 8, "pending pages without users are free");
    is_int(match(alice, &p).n, 0, "and not found");

    llm_cache_take(cache, 4, p.pages);
    publish(alice, &p, 0);
    ok(!llm_cache_publish(cache, alice, (llm_cache_take(cache, 1, q.pages), q.pages[0]),
                          &p.digests[0], p.ids, writer),
       "a digest is published once");
    ok(!llm_cache_indexed(cache, q.pages[0]), "the second page is its user's own");
    llm_cache_drop(cache, q.pages, 1);

    llm_cache_complete(cache, p.pages[0]);
    llm_cache_complete(cache, p.pages[2]);
    found = match(alice, &q);
    is_int(found.n, 2, "a match ends with the first pending pages");
    is_int(found.n_pending, 1, "one here");
    llm_cache_drop(cache, q.pages, 2);
    llm_cache_drop(cache, p.pages, 4);
    close_cache("pending");
}

static void test_ids(void)
{
    struct prompt p = prompt_of(alice_digest, 1, 1), q = p;

    open_cache(8, 0, 100);
    run(alice, &p);
    q.ids[LLM_PAGE_TOKENS - 1]++;
    is_int(match(alice, &q).n, 0, "other ids under the same digest are a miss");
    llm_cache_take(cache, 1, q.pages);
    ok(!llm_cache_publish(cache, alice, q.pages[0], q.digests, q.ids, writer),
       "and cannot be published");
    llm_cache_drop(cache, q.pages, 1);
    is_int(match(alice, &p).n, 1, "the right ids are a hit");
    llm_cache_drop(cache, p.pages, 1);
    close_cache("ids");
}

/* Same tokens under two secrets: nothing is shared. */
static void test_tenants_apart(void)
{
    struct prompt p = prompt_of(alice_digest, 1, 4), q = prompt_of(bob_digest, 1, 4);

    open_cache(16, 4, 100);
    run(alice, &p);
    is_int(llm_cache_estimate(cache, q.digests, 4), 0, "another's prompt is not expected");
    is_int(run(bob, &q).n, 0, "nor found");
    is_int(run(alice, &p).n, 4, "one's own is");
    close_cache("tenants apart");
}

static void test_order(void)
{
    struct prompt p = prompt_of(alice_digest, 1, 4), q = prompt_of(alice_digest, 2, 4);
    uint32_t some[6];

    open_cache(8, 0, 100);
    run(alice, &p);
    run(alice, &q);
    llm_cache_take(cache, 2, some);
    is_int(llm_cache_estimate(cache, p.digests, 4), 2, "the tail of the older prompt goes first");
    is_int(llm_cache_estimate(cache, q.digests, 4), 4, "the newer one stays");
    is_int(run(alice, &p).n, 2, "the older one is used again");
    llm_cache_drop(cache, some, 2);
    llm_cache_take(cache, 2, some);
    llm_cache_take(cache, 2, some + 2);
    is_int(llm_cache_estimate(cache, p.digests, 4), 4, "now it is the newer one");
    is_int(llm_cache_estimate(cache, q.digests, 4), 0, "and the other goes");
    llm_cache_drop(cache, some, 4);
    close_cache("order");
}

/* Alice has what she uses; Bob runs one prompt after the other. */
static void test_share(void)
{
    struct prompt p = prompt_of(alice_digest, 1, 6), q, r;
    struct llm_cache_tenant *public;
    uint8_t public_digest[32];
    uint32_t hits = 0;

    open_cache(16, 0, 100);
    run(alice, &p);
    for (uint32_t i = 0; i < 200; i++) {
        q = prompt_of(bob_digest, i, 4);
        run(bob, &q);
        if (i % 10 == 9) {
            hits += run(alice, &p).n;
        }
    }
    ok(hits >= 20 * 6 * 9 / 10, "beside a flood %u of 120 pages are found", hits);

    llm_cache_join(cache, bob_digest, 7);
    for (uint32_t i = 0; i < 10; i++) {
        q = prompt_of(bob_digest, i, 4);
        run(bob, &q);
    }
    is_int(llm_cache_estimate(cache, p.digests, 6), 1,
           "beside seven times her weight Alice has an eighth of the 12 to 16 idle pages");
    close_cache("weights");

    /* half of the 12 to 16 pages of both, though somebody heavy uses what is public */
    open_cache(16, 0, 100);
    llm_scope_owner(LLM_SCOPE_PUBLIC, bob_digest, public_digest);
    public = llm_cache_join(cache, public_digest, 7);
    run(alice, &p);
    for (uint32_t i = 0; i < 10; i++) {
        q = prompt_of(public_digest, i, 4);
        run(public, &q);
    }
    is_int(llm_cache_estimate(cache, p.digests, 6), 6, "what is public weighs no more than one");
    close_cache("the weight of what is public");

    open_cache(16, 0, 100);
    p.n = 4;
    run(alice, &p);
    q = prompt_of(bob_digest, 1, 12);
    run(bob, &q);
    clock_ns += 601 * 1000000000ull;
    q = prompt_of(bob_digest, 2, 2);
    run(bob, &q);
    is_int(llm_cache_estimate(cache, p.digests, 4), 2, "who was away for long has no share");
    close_cache("away");

    /* most of the pool is in use by Bob: that counts, too */
    open_cache(16, 0, 100);
    run(alice, &p);
    r = prompt_of(bob_digest, 1000, 10);
    match(bob, &r);
    llm_cache_take(cache, r.n, r.pages);
    publish(bob, &r, 0);
    for (uint32_t i = 0; i < 50; i++) {
        q = prompt_of(bob_digest, i, 1);
        run(bob, &q);
    }
    is_int(llm_cache_estimate(cache, p.digests, 4), 4, "what Bob uses is part of his share");
    llm_cache_drop(cache, r.pages, r.n);
    close_cache("in use");
}

static void test_alone(void)
{
    struct prompt p = prompt_of(alice_digest, 1, 16), q = prompt_of(alice_digest, 2, 4);

    open_cache(16, 0, 100);
    run(alice, &p);
    is_int(run(alice, &p).n, 16, "who is alone has all of it");
    close_cache("alone");

    open_cache(16, 8, 25);
    run(alice, &p);
    is_int(llm_cache_available(cache), 16, "with a quota of a quarter");
    is_int(llm_cache_counts(cache).bytes[LLM_TIER_MEMORY], 4 * PAGE_BYTES, "four pages stay");
    is_int(llm_cache_counts(cache).bytes[LLM_TIER_HOST], 2 * PAGE_BYTES, "two in the host tier");
    is_int(llm_cache_estimate(cache, p.digests, 16), 6, "the first ones");
    run(bob, &(struct prompt){0});
    run(alice, &q);
    is_int(llm_cache_estimate(cache, q.digests, 4), 4, "the newest are kept");
    is_int(llm_cache_estimate(cache, p.digests, 16), 2, "its own oldest are pushed down");
    close_cache("quota");
}

static uint64_t pages_in(enum llm_cache_tier tier)
{
    return llm_cache_counts(cache).bytes[tier] / PAGE_BYTES;
}

/* A limit of the tenant's own, in each tier. */
static void test_limit(void)
{
    struct prompt p = prompt_of(alice_digest, 1, 10), q = prompt_of(alice_digest, 2, 3), r;
    struct llm_cache_tenant *public;
    uint8_t public_digest[32];

    open_cache(32, 16, 100);
    llm_cache_limit(cache, alice, 4);
    run(alice, &p);
    is_int(pages_in(LLM_TIER_MEMORY), 4, "with a limit of four pages, so many stay");
    is_int(pages_in(LLM_TIER_HOST), 4, "and four in the host tier");
    is_int(llm_cache_estimate(cache, p.digests, 10), 8, "the first ones");

    is_int(llm_cache_take(cache, 3, q.pages), LLM_OK, "three are wanted");
    publish(alice, &q, 0);
    is_int(pages_in(LLM_TIER_MEMORY), 4, "what is in use is among the four");
    complete(&q, 0);
    llm_cache_drop(cache, q.pages, 3);
    is_int(llm_cache_estimate(cache, q.digests, 3), 3, "and stays");

    is_int(llm_cache_take(cache, 10, p.pages), LLM_OK, "ten are wanted");
    r = prompt_of(alice_digest, 3, 10);
    memcpy(r.pages, p.pages, sizeof(r.pages));
    publish(alice, &r, 0);
    is_int(pages_in(LLM_TIER_MEMORY), 10, "what is in use is never taken");
    complete(&r, 0);
    llm_cache_drop(cache, r.pages, 10);
    is_int(pages_in(LLM_TIER_MEMORY), 4, "until it is idle");

    r = prompt_of(bob_digest, 4, 12);
    run(bob, &r);
    is_int(llm_cache_estimate(cache, r.digests, 12), 12, "another tenant has no limit");
    close_cache("a limit");

    open_cache(32, 16, 100);
    llm_cache_limit(cache, alice, 4);
    llm_cache_limit(cache, alice, 0);
    run(alice, &p);
    is_int(pages_in(LLM_TIER_MEMORY), 10, "the last limit that was said counts");
    llm_cache_limit(cache, alice, 3);
    llm_cache_save(cache, 16);
    is_int(pages_in(LLM_TIER_HOST), 3, "no more are saved");
    close_cache("another limit");

    open_cache(32, 16, 100);
    llm_scope_owner(LLM_SCOPE_PUBLIC, alice_digest, public_digest);
    public = llm_cache_join(cache, public_digest, 1);
    llm_cache_limit(cache, public, 4);
    run(public, &p);
    is_int(pages_in(LLM_TIER_MEMORY), 10, "what is public has none");
    close_cache("no limit");
}

static void test_host(void)
{
    struct prompt p = prompt_of(alice_digest, 1, 6), q = prompt_of(alice_digest, 2, 8), r = q;
    struct llm_cache_found found;
    uint32_t some[8];
    bool same = true;

    open_cache(8, 8, 100);
    run(alice, &p);
    is_int(llm_cache_fence(cache), 0, "no copy yet");
    is_int(run(alice, &q).n, 0, "another prompt fills the pool");
    is_int(backend.n_out, 6, "six pages are copied out");
    is_int(llm_cache_fence(cache), backend.n_begun, "the fence is the last one's");
    is_int(llm_cache_estimate(cache, p.digests, 6), 6, "they are still known");
    is_int(llm_cache_counts(cache).bytes[LLM_TIER_HOST], 6 * PAGE_BYTES, "in the host tier");

    found = match(alice, &p);
    is_int(found.n, 6, "and found");
    is_int(found.n_host, 6, "there");
    is_int(backend.n_in, 6, "copied in");
    is_int(llm_cache_fence(cache), backend.n_begun, "the fence is the last copy's");
    for (uint32_t i = 0; i < 6; i++) {
        same = same && holds(&p, i);
    }
    ok(same, "byte for byte");
    is_int(llm_cache_available(cache), 2, "in pages of the pool");
    llm_cache_drop(cache, p.pages, 6);

    /* q is half here, half there; p is in both */
    found = match(alice, &q);
    is_int(found.n, 4, "the tail had no slot");
    is_int(found.n_host, 2, "what was pushed out for p comes back");
    same = true;
    for (uint32_t i = 0; i < found.n; i++) {
        same = same && holds(&q, i);
    }
    ok(same, "byte for byte");
    llm_cache_drop(cache, q.pages, found.n);

    found = match(alice, &p);
    is_int(found.n, 6, "the first one again");
    llm_cache_take(cache, 2, some);
    ok(llm_cache_estimate(cache, r.digests, r.n) > 0, "the other is known");
    is_int(match(alice, &r).n, 0, "but a match ends where no page of the pool is to be had");
    close_cache("host");
}

static void test_save(void)
{
    struct prompt p = prompt_of(alice_digest, 1, 4), q = prompt_of(alice_digest, 2, 8);
    uint32_t some[2];

    open_cache(8, 6, 100);
    llm_cache_take(cache, 1, q.pages);
    llm_cache_publish(cache, alice, q.pages[0], &q.digests[0], q.ids, writer);
    llm_cache_save(cache, 8);
    is_int(backend.n_out, 0, "nothing is saved that is not there yet");
    llm_cache_drop(cache, q.pages, 1);

    run(alice, &p);
    llm_cache_save(cache, 3);
    is_int(backend.n_out, 3, "no more than asked for is saved");
    llm_cache_save(cache, 8);
    llm_cache_save(cache, 8);
    is_int(backend.n_out, 4, "and nothing twice");
    is_int(llm_cache_fence(cache), 0, "no step waits for that");
    is_int(llm_cache_counts(cache).bytes[LLM_TIER_HOST], 4 * PAGE_BYTES, "it is in both tiers");

    run(alice, &q);
    is_int(backend.n_out, 4, "what was saved is not copied when it is pushed out");
    is_int(llm_cache_fence(cache), backend.n_begun, "but its page waits for the copy");
    llm_cache_save(cache, 8);
    is_int(backend.n_out, 6, "nothing is pushed out to save something");
    is_int(match(alice, &p).n_host, 4, "the saved pages are found");
    ok(holds(&p, 0) && holds(&p, 3), "byte for byte");
    ok(llm_cache_take(cache, 2, some) == LLM_OK, "pages besides");
    close_cache("saved");

    open_cache(8, 6, 100);
    run(alice, &p);
    llm_cache_save(cache, 1);
    is_int(llm_cache_fence(cache), 0, "a page is being saved");
    match(alice, &p);
    for (uint32_t i = 0; i < p.n; i++) {
        forget(alice, &p, i);
    }
    is_int(llm_cache_fence(cache), backend.n_begun, "who writes it after it is forgotten waits");
    llm_cache_drop(cache, p.pages, p.n);
    close_cache("forgotten while it is saved");

    open_cache(8, 8, 25);
    run(alice, &q);
    llm_cache_save(cache, 8);
    is_int(llm_cache_counts(cache).bytes[LLM_TIER_HOST], 2 * PAGE_BYTES, "no more than the quota");
    close_cache("quota of what is saved");
}

/* What is behind a page that is missing is forgotten, too, and what there is no room for. */
static void test_forget(void)
{
    struct prompt p = prompt_of(alice_digest, 1, 4);
    uint32_t all[4];

    open_cache(4, 8, 100);
    run(alice, &p);
    is_int(llm_cache_take(cache, 4, all), LLM_OK, "all pages are taken");
    is_int(llm_cache_estimate(cache, p.digests, 4), 4, "a prompt is in the host tier alone");
    forget(alice, &p, 1);
    forget(alice, &p, 3);
    is_int(llm_cache_counts(cache).bytes[LLM_TIER_HOST], 2 * PAGE_BYTES, "two pages go");
    ok(llm_cache_estimate(cache, p.digests, 4) == 1
           && llm_cache_estimate(cache, p.digests + 2, 2) == 1, "those that were named");
    forget(alice, &p, 3);
    llm_cache_drop(cache, all, 4);
    close_cache("forgotten");
}

static void test_purge(void)
{
    struct prompt idle = prompt_of(alice_digest, 1, 2), used = prompt_of(alice_digest, 2, 3);
    struct prompt pending = prompt_of(alice_digest, 3, 1), again, other;
    struct llm_cache_counts c;

    open_cache(16, 8, 100);
    other = prompt_of(bob_digest, 1, 2);
    run(bob, &other);
    run(alice, &idle);
    run(alice, &used);
    llm_cache_save(cache, 4);
    match(alice, &used);
    llm_cache_take(cache, 1, pending.pages);
    publish(alice, &pending, 0);
    is_int(llm_cache_purge(cache, (const uint8_t[32]){"carol"}), 0, "who has nothing");
    is_int(llm_cache_purge(cache, alice_digest), 6, "all pages of a tenant are purged");

    ok(llm_cache_check(cache) == NULL, "the books are right");
    is_int(llm_cache_estimate(cache, idle.digests, 2) + llm_cache_estimate(cache, used.digests, 3)
               + llm_cache_estimate(cache, pending.digests, 1), 0, "none is expected");
    again = used;
    is_int(match(alice, &again).n, 0, "nor found");
    is_int(llm_cache_fence(cache), backend.n_begun, "who writes one anew waits for its copy");
    is_int(llm_cache_available(cache), 12, "idle ones are free, those in use are not");
    c = llm_cache_tenant_counts(cache, alice_digest);
    is_int(c.bytes[LLM_TIER_MEMORY], 4 * PAGE_BYTES, "those in use are in the pool");
    is_int(c.bytes[LLM_TIER_HOST], 0, "none in the host tier");
    is_int(llm_cache_purge(cache, alice_digest), 0, "once");
    llm_cache_save(cache, 8);
    is_int(llm_cache_tenant_counts(cache, alice_digest).bytes[LLM_TIER_HOST], 0,
           "and they do not go there");

    ok(llm_cache_pending(cache, pending.pages[0])
           && llm_cache_writer(cache, pending.pages[0]) == writer,
       "what is being computed is still its writer's");
    complete(&pending, 0);
    ok(holds(&used, 2), "what is in use is there");
    again = pending;
    is_int(run(alice, &again).n, 0, "the same prompt is computed again");
    is_int(run(alice, &again).n, 1, "and found");
    llm_cache_drop(cache, used.pages, 3);
    llm_cache_drop(cache, pending.pages, 1);
    is_int(llm_cache_tenant_counts(cache, alice_digest).bytes[LLM_TIER_MEMORY], PAGE_BYTES,
           "what was purged is free when its last user drops it");
    is_int(match(bob, &other).n, 2, "another's pages are there");
    close_cache("purge");

    open_cache(8, 0, 100);
    run(alice, &idle);
    llm_cache_leave(cache, alice);
    is_int(llm_cache_purge(cache, alice_digest), 2, "a tenant that has left");
    is_int(llm_cache_purge(cache, alice_digest), 0, "is gone then");
    alice = llm_cache_join(cache, alice_digest, 1);
    close_cache("purge of one that has left");
}

static void test_refused_copies(void)
{
    struct prompt p = prompt_of(alice_digest, 1, 4), q = prompt_of(alice_digest, 2, 4);
    uint32_t some[4];

    open_cache(4, 4, 100);
    run(alice, &p);
    backend.refuse = true;
    llm_cache_take(cache, 4, some);
    is_int(llm_cache_estimate(cache, p.digests, 4), 0, "a page that is not copied out is gone");
    ok(llm_cache_check(cache) == NULL, "the books are right");
    llm_cache_drop(cache, some, 4);

    backend.refuse = false;
    run(alice, &p);
    run(alice, &q);
    backend.refuse = true;
    is_int(match(alice, &p).n, 0, "a page that is not copied in is not found");
    close_cache("refused copies");
}

struct seen {
    uint32_t n;
    struct llm_cache_counts of_alice;
};

static void see(void *ctx, const uint8_t owner[32], const struct llm_cache_counts *counts)
{
    struct seen *s = ctx;

    s->n++;
    if (memcmp(owner, alice_digest, 32) == 0) {
        s->of_alice = *counts;
    }
}

static void test_counts(void)
{
    struct prompt p = prompt_of(alice_digest, 1, 4), q = prompt_of(bob_digest, 2, 6);
    struct llm_cache_counts c;
    struct seen seen = {0};

    open_cache(8, 2, 100);
    run(alice, &p);
    llm_cache_drop(cache, p.pages, match(alice, &p).n); /* nothing comes of it */
    run(alice, &p);
    run(bob, &q);
    p.n = 3;
    run(alice, &p);
    c = llm_cache_counts(cache);
    llm_cache_last_tenants(cache, UINT32_MAX, see, &seen);
    is_int(seen.n, 2, "two tenants");
    seen = (struct seen){0};
    llm_cache_last_tenants(cache, 1, see, &seen);
    ok(seen.n == 1 && seen.of_alice.miss_tokens > 0, "the one that used pages last comes first");
    seen.of_alice = llm_cache_tenant_counts(cache, alice_digest);
    is_int(seen.of_alice.hit_tokens[LLM_TIER_MEMORY], 6 * 64, "alice's hits in memory");
    is_int(seen.of_alice.hit_tokens[LLM_TIER_HOST], 1 * 64, "in the host tier");
    is_int(seen.of_alice.miss_tokens, 4 * 64, "misses");
    is_int(seen.of_alice.evicted_pages[LLM_TIER_MEMORY], 2, "pages pushed out of memory");
    is_int(seen.of_alice.evicted_pages[LLM_TIER_HOST], 1, "of the host tier");
    is_int(seen.of_alice.bytes[LLM_TIER_MEMORY], 3 * PAGE_BYTES, "bytes in memory");
    is_int(seen.of_alice.bytes[LLM_TIER_HOST], 1 * PAGE_BYTES, "in the host tier");
    is_int(c.miss_tokens, 10 * 64, "misses of all");
    is_int(c.hit_tokens[LLM_TIER_MEMORY], 6 * 64, "hits of all");
    is_int(c.evicted_pages[LLM_TIER_MEMORY], 3, "pages of all pushed out of memory");
    is_int(c.bytes[LLM_TIER_MEMORY], 8 * PAGE_BYTES, "bytes of all");

    llm_cache_leave(cache, alice);
    llm_cache_leave(cache, bob);
    seen.n = 0;
    llm_cache_last_tenants(cache, UINT32_MAX, see, &seen);
    is_int(seen.n, 2, "who left is there while its pages are");
    alice = llm_cache_join(cache, alice_digest, 1);
    is_int(match(alice, &p).n, 3, "and finds them again");
    llm_cache_drop(cache, p.pages, 3);
    llm_cache_leave(cache, alice);
    alice = llm_cache_join(cache, (const uint8_t[32]){"carol"}, 1);
    llm_cache_leave(cache, alice);
    seen.n = 0;
    llm_cache_last_tenants(cache, UINT32_MAX, see, &seen);
    is_int(seen.n, 2, "who has neither users nor pages is not");
    c = llm_cache_tenant_counts(cache, (const uint8_t[32]){"carol"});
    is_int(c.miss_tokens + c.bytes[LLM_TIER_MEMORY], 0, "and has no counts");
    close_cache("counts");
}

static void test_options(void)
{
    struct llm_cache_options options = {.host_bytes = PAGE_BYTES - 1, .tenant_percent = 100};
    struct llm_error err = {0};

    backend_init(&backend, 4);
    is_int(llm_cache_new(&backend_ops, &backend, &options, &cache, &err), LLM_ENOMEM,
           "a host tier of no page");
    is_str(err.text, "a host tier of 127 bytes holds no page: one takes 128", "told so");
    backend_free(&backend);
}

int main(void)
{
    test_users();
    test_pending();
    test_ids();
    test_tenants_apart();
    test_order();
    test_share();
    test_alone();
    test_limit();
    test_host();
    test_save();
    test_forget();
    test_purge();
    test_refused_copies();
    test_counts();
    test_options();
    return done_testing();
}
