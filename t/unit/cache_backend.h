/* A backend for tests of the cache: pages of a few bytes, and copies that wait, in their order,
 * until somebody waits for them. */

#ifndef T_UNIT_CACHE_BACKEND_H
#define T_UNIT_CACHE_BACKEND_H

#include "engine/backend/backend.h"

#include <stdlib.h>
#include <string.h>

#define PAGE_BYTES 128
#define N_PLANES 2
#define MAX_COPIES 1024

struct copy {
    void *to;
    const void *from;
};

struct llm_backend {
    struct llm_backend_info info;
    uint8_t *pages; /* [n_pages][PAGE_BYTES] */
    struct copy copies[MAX_COPIES]; /* number i at i % MAX_COPIES */
    uint64_t n_begun, n_done;
    uint64_t n_out, n_in; /* copies begun */
    bool refuse;          /* the next ones */
};

static uint8_t *backend_page(struct llm_backend *b, uint32_t page)
{
    return b->pages + (size_t) page * PAGE_BYTES;
}

static int backend_fence_wait(struct llm_backend *b, uint64_t fence)
{
    while (b->n_done < fence) {
        struct copy *c = &b->copies[++b->n_done % MAX_COPIES];

        memcpy(c->to, c->from, PAGE_BYTES);
    }
    return LLM_OK;
}

static bool backend_fence_done(struct llm_backend *b, uint64_t fence)
{
    return fence <= b->n_done;
}

static int backend_begin(struct llm_backend *b, void *to, const void *from, uint64_t *fence)
{
    if (b->refuse) {
        return LLM_EINTERNAL;
    }
    if (b->n_begun - b->n_done == MAX_COPIES - 1) {
        backend_fence_wait(b, b->n_begun);
    }
    *fence = ++b->n_begun;
    b->copies[*fence % MAX_COPIES] = (struct copy){to, from};
    return LLM_OK;
}

static int backend_page_out(struct llm_backend *b, uint32_t page, uint32_t first, uint32_t n,
                            void *host, uint64_t *fence)
{
    if (first != 0 || n != N_PLANES || page >= b->info.n_pages) {
        abort();
    }
    b->n_out++;
    return backend_begin(b, host, backend_page(b, page), fence);
}

static int backend_page_in(struct llm_backend *b, uint32_t page, uint32_t first, uint32_t n,
                           const void *host, uint64_t *fence)
{
    if (first != 0 || n != N_PLANES || page >= b->info.n_pages) {
        abort();
    }
    b->n_in++;
    return backend_begin(b, backend_page(b, page), host, fence);
}

static const struct llm_backend_info *backend_info(const struct llm_backend *b)
{
    return &b->info;
}

static const struct llm_backend_ops backend_ops = {
    .info = backend_info,
    .page_out = backend_page_out,
    .page_in = backend_page_in,
    .fence_done = backend_fence_done,
    .fence_wait = backend_fence_wait,
};

static void backend_init(struct llm_backend *b, uint32_t n_pages)
{
    *b = (struct llm_backend){
        .info = {.n_pages = n_pages, .layout = {.n_planes = N_PLANES, .page_bytes = PAGE_BYTES}},
        .pages = calloc(n_pages, PAGE_BYTES),
    };
    if (b->pages == NULL) {
        abort();
    }
}

static void backend_free(struct llm_backend *b)
{
    free(b->pages);
}

#endif
