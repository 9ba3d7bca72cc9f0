/* The decoder of values, with its seal looked at and not. An input is a byte, whose lowest bits say
 * which type of latents is wanted and its highest whether what follows is cut or filled to the
 * length of a value, then the value. */

#include <stdbool.h>

static bool seal_counts;
#define LLM_REDIS_SEAL_HOLDS(holds) ((holds) || !seal_counts)
#include "engine/cache/redis/value.c"

#include "t/unit/redis_page.h"

#include <math.h>

#define FIT 0x80
#define DTYPE 3

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void must(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static float float_at(const uint8_t *p)
{
    float x;

    memcpy(&x, p, sizeof(x));
    return x;
}

static float bf16_at(const uint8_t *p)
{
    const uint8_t wide[4] = {0, 0, p[0], p[1]};

    return float_at(wide);
}

/* In fp8: the largest that has its scale. */
static float latent_at(const struct llm_plane *p, enum llm_latent_dtype dtype, const uint8_t *row,
                       uint32_t i)
{
    switch (dtype) {
    case LLM_LATENT_F32:
        return float_at(row + 4 * i);
    case LLM_LATENT_BF16:
        return bf16_at(row + 2 * i);
    default:
        return (row[i] & 0x7f) == 0x7f
                   ? NAN
                   : 448 * float_at(row + p->scale_offset + i / LLM_LATENT_BLOCK * 4);
    }
}

/* Number by number. */
static bool row_is_finite(const struct llm_plane *p, enum llm_latent_dtype dtype,
                          const uint8_t *row)
{
    for (uint32_t i = 0; i < p->rank; i++) {
        if (!isfinite(latent_at(p, dtype, row, i))) {
            return false;
        }
    }
    row += p->rope_offset;
    for (uint32_t i = 0; i < p->rope; i++) {
        if (!isfinite(dtype == LLM_LATENT_F32 ? float_at(row + 4 * i) : bf16_at(row + 2 * i))) {
            return false;
        }
    }
    return true;
}

static bool page_is_finite(const struct llm_page_layout *layout, const uint8_t *page)
{
    for (uint32_t i = 0; i < layout->n_planes; i++) {
        const struct llm_plane *p = &layout->planes[i];

        for (uint32_t row = 0; row < LLM_PAGE_TOKENS; row++) {
            if (!row_is_finite(p, layout->dtype, page + p->offset + row * p->row_bytes)) {
                return false;
            }
        }
    }
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const uint32_t ranks[] = {4, 4, 130};
    struct llm_redis_tenant_keys keys = make_keys(1, 1);
    enum llm_latent_dtype dtype;
    enum llm_redis_value_fault open, closed;
    uint32_t ids[LLM_PAGE_TOKENS] = {0};
    char name[LLM_REDIS_NAME_MAX];
    struct llm_page_layout layout;
    uint8_t *value, *page;
    size_t n_value;

    if (n == 0) {
        return 0;
    }
    make_name(&keys, 1, 1, name);
    dtype = (data[0] & DTYPE) % 3;
    layout = make_layout(dtype, ranks[dtype], 2, 0);
    n_value = (data[0] & FIT) != 0 ? llm_redis_value_bytes(&layout) : n - 1;
    value = calloc(1, n_value + (n_value == 0));
    page = calloc(1, layout.page_bytes);
    must(value != NULL && page != NULL, "out of memory");
    memcpy(value, data + 1, n - 1 < n_value ? n - 1 : n_value);

    seal_counts = false;
    open = llm_redis_value_open(&keys, name, &layout, ids, value, n_value, page);
    must(open != LLM_VALUE_GOOD || page_is_finite(&layout, page), "a page is not finite");
    must(open != LLM_VALUE_NUMBERS || !page_is_finite(&layout, page), "a page is finite");
    seal_counts = true;
    closed = llm_redis_value_open(&keys, name, &layout, ids, value, n_value, page);
    must(closed == open || closed == LLM_VALUE_SEAL, "the seal makes another difference");

    free(page);
    free(value);
    llm_page_layout_free(&layout);
    return 0;
}
