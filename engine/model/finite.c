#include "engine/model/finite.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* A float is NaN or infinite when its exponent is all ones; e4m3 has no infinity, and NaN alone has
 * all seven bits set. So a number is not finite when adding the lowest of these bits to them
 * carries into the bit of the sign, and never further: the numbers of a word are added at once. */
struct pattern {
    uint64_t ones, lowest, carry; /* in every number of a word */
};

static const struct pattern patterns[] = {
    [LLM_F32] = {0x7f8000007f800000, 0x0080000000800000, 0x8000000080000000},
    [LLM_F16] = {0x7c007c007c007c00, 0x0400040004000400, 0x8000800080008000},
    [LLM_BF16] = {0x7f807f807f807f80, 0x0080008000800080, 0x8000800080008000},
    [LLM_F8_E4M3] = {0x7f7f7f7f7f7f7f7f, 0x0101010101010101, 0x8080808080808080},
};

#define E4M3_MAX 448

/* What every processor of its kind has a register for, so that a page in its caches is looked at
 * five times as fast as it is decrypted. */
typedef uint64_t words __attribute__((vector_size(16)));

bool llm_all_finite(enum llm_dtype dtype, const void *data, size_t bytes)
{
    const struct pattern p = patterns[dtype];
    const char *at = data;
    words w, carries = {0};
    uint64_t any = 0;

    for (; bytes >= sizeof(w); at += sizeof(w), bytes -= sizeof(w)) {
        memcpy(&w, at, sizeof(w));
        carries |= (w & p.ones) + p.lowest;
    }
    w = (words){0};
    memcpy(&w, at, bytes);
    carries |= (w & p.ones) + p.lowest;

    for (size_t i = 0; i < sizeof(w) / sizeof(any); i++) {
        any |= carries[i];
    }
    return (any & p.carry) == 0;
}

static bool scales_are_finite(const char *scales, size_t bytes)
{
    float scale;

    for (size_t i = 0; i < bytes; i += sizeof(scale)) {
        memcpy(&scale, scales + i, sizeof(scale));
        if (!(fabsf(scale) <= FLT_MAX / E4M3_MAX)) {
            return false;
        }
    }
    return true;
}

static bool fp8_rows_are_finite(const struct llm_plane *p, const char *row)
{
    for (uint32_t i = 0; i < LLM_PAGE_TOKENS; i++, row += p->row_bytes) {
        if (!llm_all_finite(LLM_F8_E4M3, row, p->rank)
            || !scales_are_finite(row + p->scale_offset, p->rope_offset - p->scale_offset)
            || !llm_all_finite(LLM_BF16, row + p->rope_offset, (size_t) p->rope * 2)) {
            return false;
        }
    }
    return true;
}

bool llm_plane_is_finite(const struct llm_plane *p, enum llm_latent_dtype dtype, const void *rows)
{
    size_t bytes = (size_t) p->row_bytes * LLM_PAGE_TOKENS;

    switch (dtype) {
    case LLM_LATENT_F32:
        return llm_all_finite(LLM_F32, rows, bytes);
    case LLM_LATENT_BF16:
        return llm_all_finite(LLM_BF16, rows, bytes);
    case LLM_LATENT_FP8:
        return fp8_rows_are_finite(p, rows);
    }
    return false;
}
