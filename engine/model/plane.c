#include "engine/model/plane.h"

#include <stdlib.h>

static void lay_out_row(struct llm_plane *p, enum llm_latent_dtype dtype)
{
    uint32_t n_scales = (p->rank + LLM_LATENT_BLOCK - 1) / LLM_LATENT_BLOCK;

    switch (dtype) {
    case LLM_LATENT_F32:
        p->rope_offset = p->rank * 4;
        p->row_bytes = p->rope_offset + p->rope * 4;
        break;
    case LLM_LATENT_BF16:
        p->rope_offset = p->rank * 2;
        p->row_bytes = p->rope_offset + p->rope * 2;
        break;
    case LLM_LATENT_FP8:
        p->scale_offset = p->rank;
        p->rope_offset = p->scale_offset + n_scales * 4;
        p->row_bytes = (p->rope_offset + p->rope * 2 + 15) & ~15u;
        break;
    }
}

int llm_page_layout_init(struct llm_page_layout *l, const struct llm_model_config *c,
                         enum llm_latent_dtype dtype, struct llm_error *err)
{
    *l = (struct llm_page_layout){
        .dtype = dtype,
        .n_planes = c->n_layers + c->n_mtp_layers,
    };

    l->planes = calloc(l->n_planes, sizeof(*l->planes));
    if (l->planes == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }

    for (uint32_t i = 0; i < l->n_planes; i++) {
        struct llm_plane *p = &l->planes[i];
        bool mtp = i >= c->n_layers;

        *p = (struct llm_plane){
            .kind = mtp ? LLM_PLANE_MTP_LATENT : LLM_PLANE_LATENT,
            .layer = mtp ? i - c->n_layers : i,
            .rank = c->kv_lora_rank,
            .rope = c->qk_rope_dim,
            .offset = l->page_bytes,
        };
        lay_out_row(p, dtype);
        /* 64 rows: whatever the row, a multiple of 64 */
        l->page_bytes += (uint64_t) p->row_bytes * LLM_PAGE_TOKENS;
    }
    return LLM_OK;
}

void llm_page_layout_free(struct llm_page_layout *l)
{
    free(l->planes);
    *l = (struct llm_page_layout){0};
}
