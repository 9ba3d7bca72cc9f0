/* Prints what it costs to make room in a full pool: the time to take 63 pages (a prompt of 4,000
 * tokens, say), by how many tenants have pages there, without and with a host tier. Each page is
 * some tenant's, at random; half of them have not used one for ten minutes.
 *
 *   cache_evict [PAGES] */

#include "engine/base/clock.h"
#include "engine/cache/cache.h"
#include "t/unit/cache_backend.h"

#include <stdio.h>

#define N_TAKEN 63
#define ROUNDS 2000

static uint64_t state;
static uint64_t clock_ns;
static struct llm_backend backend;
static struct llm_cache *cache;

static void must(bool cond, const char *what)
{
    if (!cond) {
        fprintf(stderr, "%s\n", what);
        exit(1);
    }
}

static uint64_t draw(void)
{
    uint64_t x = state += 0x9E3779B97F4A7C15ull; /* splitmix64: digests must be as good as a hash */

    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
}

static uint64_t now(void *ctx)
{
    (void) ctx;
    return clock_ns;
}

/* Pages that one tenant or another computes and leaves behind. */
static void use(const uint32_t *pages, uint32_t n, uint32_t n_owners)
{
    static const uint32_t ids[LLM_PAGE_TOKENS];

    for (uint32_t i = 0; i < n; i++) {
        uint64_t owner[4] = {draw() % n_owners * 0x9E3779B97F4A7C15ull};
        uint64_t digest[4] = {draw(), draw(), draw(), draw()};
        struct llm_cache_tenant *t = llm_cache_join(cache, (const uint8_t *) owner, 1);

        must(t != NULL, "no memory");
        must(llm_cache_publish(cache, t, pages[i], (const struct llm_digest *) digest, ids, pages),
             "a page is there already");
        llm_cache_complete(cache, pages[i]);
        llm_cache_drop(cache, &pages[i], 1);
        llm_cache_leave(cache, t);
        clock_ns += 1200 * LLM_NS_PER_S / n_owners;
    }
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

    return (x > y) - (x < y);
}

static void measure(uint32_t n_pages, uint32_t n_slots, uint32_t n_owners)
{
    struct llm_cache_options options = {
        .host_bytes = (uint64_t) n_slots * PAGE_BYTES,
        .tenant_percent = 100,
        .now = now,
    };
    uint64_t times[ROUNDS];
    uint32_t pages[N_TAKEN];
    struct llm_error err;

    backend_init(&backend, n_pages);
    must(llm_cache_new(&backend_ops, &backend, &options, &cache, &err) == LLM_OK, err.text);
    for (uint32_t n = 0; n < 2 * (n_pages + n_slots); n += N_TAKEN) {
        must(llm_cache_take(cache, N_TAKEN, pages) == LLM_OK, "no pages");
        use(pages, N_TAKEN, n_owners);
    }
    for (uint32_t i = 0; i < ROUNDS; i++) {
        uint64_t start = llm_now_ns();

        must(llm_cache_take(cache, N_TAKEN, pages) == LLM_OK, "no pages");
        times[i] = llm_now_ns() - start;
        use(pages, N_TAKEN, n_owners);
    }
    qsort(times, ROUNDS, sizeof(*times), by_value);
    printf("%6u tenants%s   median %6.1f us   p99 %6.1f us\n", n_owners,
           n_slots > 0 ? ", host tier" : "           ", times[ROUNDS / 2] / 1e3,
           times[ROUNDS * 99 / 100] / 1e3);
    llm_cache_free(cache);
    backend_free(&backend);
}

int main(int argc, char **argv)
{
    uint32_t n_pages = argc > 1 ? (uint32_t) strtoul(argv[1], NULL, 10) : 100000;

    must(n_pages >= N_TAKEN, "fewer pages than are taken at once");
    printf("%d pages of a full pool of %u\n", N_TAKEN, n_pages);
    for (uint32_t n_slots = 0; n_slots <= n_pages; n_slots += n_pages) {
        for (uint32_t n_owners = 100; n_owners <= 100000; n_owners *= 10) {
            measure(n_pages, n_slots, n_owners);
        }
    }
    return 0;
}
