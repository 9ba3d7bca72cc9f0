/* Prints what the prefix index costs with a million pages in it: the time to find a prompt of 4,000
 * tokens, hashing included, and the memory of a page.
 *
 *   cache_lookup [PAGES] */

#include "engine/base/clock.h"
#include "engine/cache/cache.h"
#include "t/unit/cache_backend.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#define PROMPT_TOKENS 4000
#define PROMPT_PAGES (PROMPT_TOKENS / LLM_PAGE_TOKENS)
#define LOOKUPS 5000

struct times {
    const char *name;
    uint64_t ns[LOOKUPS];
};

static uint32_t ids[PROMPT_PAGES * LLM_PAGE_TOKENS];
static struct llm_digest digests[PROMPT_PAGES];
static uint32_t pages[PROMPT_PAGES];
static struct llm_cache *cache;
static struct llm_cache_tenant *tenant;

static void must(bool cond, const char *what)
{
    if (!cond) {
        fprintf(stderr, "%s\n", what);
        exit(1);
    }
}

static uint64_t resident_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    uint64_t total, resident = 0;

    must(f != NULL && fscanf(f, "%" SCNu64 " %" SCNu64, &total, &resident) == 2,
         "/proc/self/statm cannot be read");
    fclose(f);
    return resident * (uint64_t) sysconf(_SC_PAGESIZE);
}

static void make_page(uint32_t prompt, uint32_t page, uint32_t page_ids[LLM_PAGE_TOKENS])
{
    uint64_t state = (uint64_t) prompt * PROMPT_PAGES + page;

    for (uint32_t i = 0; i < LLM_PAGE_TOKENS; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        page_ids[i] = (uint32_t) (state >> 47);
    }
}

static void make_prompt(uint32_t prompt)
{
    for (uint32_t i = 0; i < PROMPT_PAGES; i++) {
        make_page(prompt, i, ids + i * LLM_PAGE_TOKENS);
    }
}

static void hash(struct llm_digest *d)
{
    static const struct llm_chain chain = {.secret = "bench"};

    must(llm_page_digests(&chain, NULL, ids, PROMPT_PAGES, d) == LLM_OK, "no digests");
}

/* The first pages of all prompts, then their second ones …: those of a prompt lie far apart. */
static void fill(uint32_t n_prompts, const struct llm_digest *all)
{
    for (uint32_t i = 0; i < PROMPT_PAGES; i++) {
        for (uint32_t p = 0; p < n_prompts; p++) {
            uint32_t page;

            make_page(p, i, ids);
            must(llm_cache_take(cache, 1, &page) == LLM_OK, "no page");
            must(llm_cache_publish(cache, tenant, page, &all[p * PROMPT_PAGES + i], ids, tenant),
                 "a page is there already");
            llm_cache_complete(cache, page);
            llm_cache_drop(cache, &page, 1);
        }
    }
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

    return (x > y) - (x < y);
}

static void print(struct times *t)
{
    qsort(t->ns, LOOKUPS, sizeof(*t->ns), by_value);
    printf("%-28s median %6.1f us   p99 %6.1f us\n", t->name, t->ns[LOOKUPS / 2] / 1e3,
           t->ns[LOOKUPS * 99 / 100] / 1e3);
}

static void look_up(uint32_t n_prompts)
{
    static struct times hashing = {.name = "  hashing"}, matching = {.name = "  finding"};
    static struct times both = {.name = "hashing and finding"};
    static struct times guessing = {.name = "estimate"}, dropping = {.name = "giving back"};

    for (uint32_t i = 0; i < LOOKUPS; i++) {
        struct llm_cache_found found;
        uint64_t t[5];

        make_prompt((uint32_t) (i * 2654435761u) % n_prompts);
        t[0] = llm_now_ns();
        hash(digests);
        t[1] = llm_now_ns();
        llm_cache_match(cache, tenant, digests, ids, PROMPT_PAGES, pages, &found);
        t[2] = llm_now_ns();
        llm_cache_drop(cache, pages, found.n);
        t[3] = llm_now_ns();
        must(found.n == PROMPT_PAGES, "a prompt is not found");
        must(llm_cache_estimate(cache, digests, PROMPT_PAGES) == PROMPT_PAGES, "not expected");
        t[4] = llm_now_ns();
        hashing.ns[i] = t[1] - t[0];
        matching.ns[i] = t[2] - t[1];
        both.ns[i] = t[2] - t[0];
        dropping.ns[i] = t[3] - t[2];
        guessing.ns[i] = t[4] - t[3];
    }
    print(&both);
    print(&hashing);
    print(&matching);
    print(&dropping);
    print(&guessing);
}

int main(int argc, char **argv)
{
    uint32_t n_pages = argc > 1 ? (uint32_t) strtoul(argv[1], NULL, 10) : 1000000;
    uint32_t n_prompts = n_pages / PROMPT_PAGES;
    struct llm_cache_options options = {.tenant_percent = 100};
    struct llm_digest *all = calloc(n_prompts, PROMPT_PAGES * sizeof(*all));
    struct llm_backend backend;
    struct llm_error err;
    uint64_t before, after;

    must(n_prompts > 0 && all != NULL, "fewer pages than a prompt has, or no memory");
    for (uint32_t p = 0; p < n_prompts; p++) {
        make_prompt(p);
        hash(all + p * PROMPT_PAGES);
    }
    backend_init(&backend, n_pages);
    before = resident_bytes();
    must(llm_cache_new(&backend_ops, &backend, &options, &cache, &err) == LLM_OK, err.text);
    tenant = llm_cache_join(cache, (const uint8_t[32]){"bench"}, 1);
    must(tenant != NULL, "no memory");
    fill(n_prompts, all);
    after = resident_bytes();

    printf("%u pages indexed, %d of them a prompt of %d tokens\n", n_prompts * PROMPT_PAGES,
           PROMPT_PAGES, PROMPT_TOKENS);
    printf("memory of a page: %.0f bytes, 256 of them its token ids\n",
           (double) (after - before) / n_pages);
    look_up(n_prompts);
    llm_cache_free(cache);
    backend_free(&backend);
    free(all);
    return 0;
}
