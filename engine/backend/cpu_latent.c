/* Rows of latents in the three forms that engine/model/plane.h gives them. */

#include "engine/backend/cpu_internal.h"

#include <string.h>

void llm_cpu_latent_pack(const struct llm_backend *b, const float *latent, char *row)
{
    const struct llm_plane *p = &b->layout.planes[0]; /* all are alike */
    uint32_t end;

    switch (b->layout.dtype) {
    case LLM_LATENT_F32:
        memcpy(row, latent, b->latent_width * sizeof(*latent));
        break;
    case LLM_LATENT_BF16:
        b->kernels->pack_bf16(latent, b->latent_width, row);
        break;
    case LLM_LATENT_FP8:
        end = p->rope_offset + p->rope * 2;
        b->kernels->pack_e4m3(latent, p->rank, LLM_LATENT_BLOCK, (uint8_t *) row,
                              row + p->scale_offset);
        b->kernels->pack_bf16(latent + p->rank, p->rope, row + p->rope_offset);
        memset(row + end, 0, p->row_bytes - end);
        break;
    }
}

struct llm_cpu_latents llm_cpu_latents_of(const struct llm_backend *b, uint32_t page,
                                          uint32_t layer, uint32_t n)
{
    static const enum llm_cpu_dtype dtypes[] = {
        [LLM_LATENT_F32] = LLM_CPU_F32,
        [LLM_LATENT_BF16] = LLM_CPU_BF16,
        [LLM_LATENT_FP8] = LLM_CPU_E4M3,
    };
    const struct llm_plane *p = &b->layout.planes[layer];
    const char *rows = llm_cpu_latent_row(b, page, layer, 0);
    struct llm_cpu_matrix m = {
        .dtype = dtypes[b->layout.dtype],
        .rows = n,
        .cols = b->latent_width,
        .data = rows,
        .stride = p->row_bytes,
    };
    struct llm_cpu_latents l = {{m}, 1};

    if (b->layout.dtype == LLM_LATENT_FP8) {
        l.n_parts = 2;
        l.part[1] = m;
        l.part[1].dtype = LLM_CPU_BF16;
        l.part[1].cols = p->rope;
        l.part[1].data = rows + p->rope_offset;

        l.part[0].cols = p->rank;
        l.part[0].scale = rows + p->scale_offset;
        l.part[0].scale_stride = p->row_bytes;
        l.part[0].block_rows = 1;
        l.part[0].block_cols = LLM_LATENT_BLOCK;
    }
    return l;
}
