/* The bytes of a latent page.
 *
 * A page holds LLM_PAGE_TOKENS positions of one sequence; it is the planes below, one after the
 * other, the same bytes in the pool, the host tier, Redis, on the CPU and on a GPU. A plane is
 * LLM_PAGE_TOKENS rows; a row is `rank` normed latents, then `rope` rotated key elements in the
 * checkpoint's order (adjacent pairs), little-endian, rounded to nearest even:
 *
 *   f32    rank * 4 + rope * 4 bytes
 *   bf16   rank * 2 + rope * 2 bytes
 *   fp8    rank e4m3 values, ceil(rank / 128) fp32 scales, rope bf16 values, zero padding to 16;
 *          a latent is its value times the scale of its 128
 *
 * The main layers' planes come first, in layer order, then one per MTP layer, where the entry for
 * (hidden state i, token i + 1) stands in row i + 1. */

#ifndef LLM_MODEL_PLANE_H
#define LLM_MODEL_PLANE_H

#include "engine/model/config.h"

#define LLM_PAGE_TOKENS 64
#define LLM_LATENT_BLOCK 128 /* fp8: values that share a scale */

enum llm_latent_dtype { LLM_LATENT_F32, LLM_LATENT_BF16, LLM_LATENT_FP8 };

enum llm_plane_kind { LLM_PLANE_LATENT, LLM_PLANE_MTP_LATENT };

struct llm_plane {
    enum llm_plane_kind kind;
    uint32_t layer;      /* index among its kind */
    uint32_t rank, rope; /* elements of a row */
    uint32_t scale_offset, rope_offset; /* inside a row; scales: fp8 alone */
    uint32_t row_bytes;
    uint64_t offset;     /* of the plane inside the page */
};

struct llm_page_layout {
    enum llm_latent_dtype dtype;
    uint32_t n_planes;
    struct llm_plane *planes; /* owned */
    uint64_t page_bytes;      /* multiple of 64 */
};

int llm_page_layout_init(struct llm_page_layout *l, const struct llm_model_config *c,
                         enum llm_latent_dtype dtype, struct llm_error *err);
void llm_page_layout_free(struct llm_page_layout *l);

#endif
