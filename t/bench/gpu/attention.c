/* Attention over latent pages: time of a launch with its combining launch, over layers that are
 * together several times the L2 cache. */

#include "t/bench/gpu/bench.h"

#define PAGE LLM_CUDA_PAGE_TOKENS

struct run {
    struct llm_cuda_attention a;
    size_t bytes, n_copies;
};

static void enqueue(void *ctx, uint32_t i, struct llm_cuda_queue q)
{
    const struct run *r = ctx;
    struct llm_cuda_attention a = r->a;

    a.latents = (const char *) a.latents + i % r->n_copies * r->bytes;
    CUDA(llm_cuda_attend(&a, q));
}

static void bench(enum llm_cuda_latent_dtype dtype, uint32_t n_heads, uint32_t n_seqs,
                  uint32_t n_keys, uint32_t split_pages, const uint8_t *pool, uint8_t *scratch)
{
    size_t row = dtype == LLM_CUDA_LATENT_BF16 ? LLM_CUDA_LATENT_BF16_BYTES
                                               : LLM_CUDA_LATENT_FP8_BYTES;
    uint32_t n_pages = n_keys / PAGE, *pages = allocate(n_pages * n_seqs * sizeof(*pages));
    uint32_t *keys = allocate(n_seqs * sizeof(*keys));
    struct run r = {
        .a =
            {
                .dtype = dtype,
                .latents = pool,
                .page_step = row * PAGE,
                .pages_step = n_pages,
                .n_seqs = n_seqs,
                .n_queries = 1,
                .n_heads = n_heads,
                .split_pages = split_pages,
                .max_splits = (n_pages + split_pages - 1) / split_pages,
                .scale = 0.01f,
                .queries = pool,
                .out = scratch,
                .partial = (float *) (scratch + (32 << 20)),
            },
        .bytes = (size_t) n_seqs * n_keys * row,
    };
    char name[100];

    for (uint32_t i = 0; i < n_pages * n_seqs; i++) {
        pages[i] = n_pages * n_seqs - 1 - i;
    }
    for (uint32_t i = 0; i < n_seqs; i++) {
        keys[i] = n_keys;
    }
    r.a.pages = device_copy(pages, n_pages * n_seqs * sizeof(*pages));
    r.a.n_keys = device_copy(keys, n_seqs * sizeof(*keys));
    r.n_copies = POOL_BYTES / r.bytes;
    snprintf(name, sizeof(name), "%s, %u heads, %u x %u keys, splits of %u",
             dtype == LLM_CUDA_LATENT_BF16 ? "bf16" : "fp8", n_heads, n_seqs, n_keys, split_pages);
    if (llm_cuda_attention_floats(&r.a) * sizeof(float) < SCRATCH_BYTES - (32 << 20)) {
        report(name, r.bytes, enqueue, &r);
    }
    CUDA(cudaFree((void *) r.a.pages));
    CUDA(cudaFree((void *) r.a.n_keys));
    free(pages);
    free(keys);
}

int main(void)
{
    static const struct {
        uint32_t n_seqs, n_keys;
    } loads[] = {{1, 1024}, {1, 4096}, {1, 32768}, {8, 4096}, {64, 4096}};
    static const uint32_t heads[] = {16, 128}, splits[] = {1, 2, 4, 8, 16};
    void *pool = random_pool(), *scratch = small_scales();

    for (int d = 0; d < 2; d++) {
        for (size_t h = 0; h < 2; h++) {
            for (size_t i = 0; i < sizeof(loads) / sizeof(loads[0]); i++) {
                for (size_t j = 0; j < sizeof(splits) / sizeof(splits[0]); j++) {
                    bench((enum llm_cuda_latent_dtype) d, heads[h], loads[i].n_seqs,
                          loads[i].n_keys, splits[j], pool, scratch);
                }
            }
        }
    }
    return 0;
}
