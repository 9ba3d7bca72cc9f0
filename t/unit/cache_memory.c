/* Memory that cannot be had: each allocation in turn fails, and what asked for it says so, leaks
 * nothing and works the next time. */

#include "engine/base/memory.h"
#include "engine/cache/cache.h"
#include "t/unit/cache_backend.h"
#include "t/unit/tap.h"

static uint64_t fails_in; /* so many allocations from now; 0: none does */

/* Sanitizers allocate before they are ready to look at anything. */
#define REPLACES __attribute__((visibility("default"), no_sanitize("address", "thread")))

__attribute__((no_sanitize("address", "thread"))) static bool fails(void)
{
    return fails_in > 0 && --fails_in == 0;
}

/* The program's own stand before the library's, which have another name beside. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LIBRARY(name) __interceptor_##name
#else
#define LIBRARY(name) __libc_##name
#endif

void *LIBRARY(malloc)(size_t size);
void *LIBRARY(calloc)(size_t n, size_t size);
void *LIBRARY(realloc)(void *p, size_t size);

REPLACES void *malloc(size_t size)
{
    return fails() ? NULL : LIBRARY(malloc)(size);
}

REPLACES void *calloc(size_t n, size_t size)
{
    return fails() ? NULL : LIBRARY(calloc)(n, size);
}

REPLACES void *realloc(void *p, size_t size)
{
    return fails() ? NULL : LIBRARY(realloc)(p, size);
}

void *llm_memory_map(uint64_t bytes)
{
    return calloc(bytes, 1);
}

void llm_memory_unmap(void *p, uint64_t bytes)
{
    (void) bytes;
    free(p);
}

static int open_cache(struct llm_backend *b, struct llm_cache **c, struct llm_error *err)
{
    struct llm_cache_options options = {.host_bytes = 4 * PAGE_BYTES, .tenant_percent = 100};

    return llm_cache_new(&backend_ops, b, &options, c, err);
}

static void test_new(void)
{
    uint32_t n = 0, n_failed = 0;
    struct llm_backend b;
    struct llm_cache *c;
    struct llm_error err;
    bool right = true, all_there;

    backend_init(&b, 8);
    do {
        int rc;

        err = (struct llm_error){0};
        fails_in = ++n;
        rc = open_cache(&b, &c, &err);
        all_there = fails_in > 0;
        fails_in = 0;
        if (rc == LLM_OK) {
            right = right && llm_cache_check(c) == NULL;
            llm_cache_free(c);
        } else {
            right = right && rc == LLM_ENOMEM && err.text[0] != '\0';
            n_failed++;
        }
    } while (!all_there);
    ok(right, "memory that is not there for a cache is an error with its text");
    ok(n_failed >= 15, "%u of %u allocations that failed", n_failed, n - 1);
    backend_free(&b);
}

static void test_join(void)
{
    struct llm_cache_tenant *t;
    struct llm_backend b;
    struct llm_cache *c;
    struct llm_error err;
    bool right = true;

    backend_init(&b, 8);
    open_cache(&b, &c, &err);
    for (uint8_t i = 0; i < 40; i++) {
        uint32_t n = 0;

        do {
            fails_in = ++n;
            t = llm_cache_join(c, (uint8_t[32]){i}, 1);
            fails_in = 0;
            right = right && llm_cache_check(c) == NULL;
        } while (t == NULL);
        right = right && n >= 2;
    }
    ok(right, "a tenant that there is no memory for leaves nothing behind");
    ok(llm_cache_check(c) == NULL, "forty tenants");
    llm_cache_free(c);
    backend_free(&b);
}

int main(void)
{
    test_new();
    test_join();
    return done_testing();
}
