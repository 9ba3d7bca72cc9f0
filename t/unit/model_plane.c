#include "engine/model/plane.h"
#include "t/unit/tap.h"

static struct llm_error err;

static void test_layout(const char *name, uint32_t layers, uint32_t mtp, uint32_t rank,
                        uint32_t rope, enum llm_latent_dtype dtype, uint32_t rope_offset,
                        uint32_t row_bytes)
{
    struct llm_model_config c = {
        .n_layers = layers, .n_mtp_layers = mtp, .kv_lora_rank = rank, .qk_rope_dim = rope,
    };
    struct llm_page_layout l;
    bool good = true;

    ok(llm_page_layout_init(&l, &c, dtype, &err) == LLM_OK, "%s", name);
    is_int(l.n_planes, layers + mtp, "a plane for every layer");
    is_int(l.page_bytes, 64ull * row_bytes * (layers + mtp), "bytes of the page");
    is_int(l.page_bytes % 64, 0, "a multiple of 64");

    for (uint32_t i = 0; i < l.n_planes; i++) {
        const struct llm_plane *p = &l.planes[i];
        bool draft = i >= layers;

        good = good && p->kind == (draft ? LLM_PLANE_MTP_LATENT : LLM_PLANE_LATENT)
               && p->layer == (draft ? i - layers : i) && p->rank == rank && p->rope == rope
               && p->scale_offset == (dtype == LLM_LATENT_FP8 ? rank : 0)
               && p->rope_offset == rope_offset && p->row_bytes == row_bytes
               && p->offset == 64ull * row_bytes * i;
    }
    ok(good, "planes in the order of layers, MTP last, rows of %u bytes", row_bytes);

    llm_page_layout_free(&l);
    ok(l.planes == NULL && l.n_planes == 0, "freed");
}

int main(void)
{
    /* the bytes of a page are fixed for ever: caches hold them */
    test_layout("V3, f32", 61, 1, 512, 64, LLM_LATENT_F32, 2048, 2304);
    test_layout("V3, bf16", 61, 1, 512, 64, LLM_LATENT_BF16, 1024, 1152);
    test_layout("V3, fp8: 512 e4m3, 4 scales, 64 bf16", 61, 1, 512, 64, LLM_LATENT_FP8, 528, 656);
    test_layout("V3 without its MTP layer, bf16", 61, 0, 512, 64, LLM_LATENT_BF16, 1024, 1152);
    test_layout("V2-Lite, bf16", 27, 0, 512, 64, LLM_LATENT_BF16, 1024, 1152);
    test_layout("a last block that is not full: 144 + 2 scales + 16 bf16 = 184, padded", 3, 0, 144,
                16, LLM_LATENT_FP8, 152, 192);
    test_layout("odd sizes, bf16", 2, 1, 33, 6, LLM_LATENT_BF16, 66, 78);
    test_layout("odd sizes, fp8: 33 + 4 + 12 = 49, padded", 2, 1, 33, 6, LLM_LATENT_FP8, 37, 64);
    return done_testing();
}
