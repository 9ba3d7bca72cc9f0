/* Several arrays in one block of memory, of which it is known how large it has to be before there
 * is any. */

#ifndef LLM_BACKEND_LAYOUT_H
#define LLM_BACKEND_LAYOUT_H

#include "engine/base/checked.h"

#define LLM_LAYOUT_ALIGNMENT 256

/* Hands out pieces of a block; while base is NULL it only adds up how large that has to be. */
struct llm_layout {
    char *base;
    uint64_t used;
    bool overflow;
};

static inline void *llm_layout_take(struct llm_layout *l, uint64_t n, uint64_t m, uint64_t size)
{
    uint64_t at = l->used, bytes;

    if (!llm_mul_u64(n, m, &bytes) || !llm_mul_u64(bytes, size, &bytes)
        || !llm_add_u64(bytes, LLM_LAYOUT_ALIGNMENT - 1, &bytes)
        || !llm_add_u64(l->used, bytes / LLM_LAYOUT_ALIGNMENT * LLM_LAYOUT_ALIGNMENT, &l->used)) {
        l->overflow = true;
        return NULL;
    }
    return l->base != NULL ? l->base + at : NULL;
}

/* An array of n * m of what `pointer` points to. */
#define LLM_TAKE(l, pointer, n, m) ((pointer) = llm_layout_take(l, n, m, sizeof(*(pointer))))

#endif
