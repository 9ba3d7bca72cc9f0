/* Linear operations, experts and attention of prompts: time of a launch, and what it makes of the
 * tensor cores, of which 790 TFLOP/s are taken for all. */

#include "t/bench/gpu/bench.h"

#define FLOPS_PER_US 790e6

struct run {
    struct llm_cuda_linear l;
    uint32_t n_rows;
    struct llm_cuda_experts e;
    struct llm_cuda_pairs p;
    uint32_t n_pairs;
    void *x, *h, *y;
    size_t hidden, width;
};

static void enqueue_linear(void *ctx, uint32_t i, struct llm_cuda_queue q)
{
    const struct run *r = ctx;

    (void) i;
    CUDA(llm_cuda_linears_many(&r->l, 1, r->n_rows, q));
}

static void enqueue_spread(void *ctx, uint32_t i, struct llm_cuda_queue q)
{
    const struct run *r = ctx;

    (void) i;
    CUDA(llm_cuda_spread_rows(&r->p, r->n_pairs, r->x, r->hidden, (uint32_t) r->hidden, r->y,
                              r->hidden, q));
}

static void enqueue_up(void *ctx, uint32_t i, struct llm_cuda_queue q)
{
    const struct run *r = ctx;

    (void) i;
    CUDA(llm_cuda_experts_up_many(&r->e, &r->p, r->n_pairs, r->x, r->hidden, r->h, r->width, q));
}

static void enqueue_down(void *ctx, uint32_t i, struct llm_cuda_queue q)
{
    const struct run *r = ctx;

    (void) i;
    CUDA(llm_cuda_experts_down_many(&r->e, &r->p, r->n_pairs, r->h, r->width, r->y, r->hidden, q));
}

static void report_flops(const char *name, double flops, enqueue_fn *enqueue, void *ctx)
{
    double us = launch_us(enqueue, ctx, 5, false);

    printf("%-60s %9.1f us %6.1f TFLOP/s %5.1f %%\n", name, us, flops / us / 1e6,
           100 * flops / us / FLOPS_PER_US);
    fflush(stdout);
}

static const char *const names[] = {"bf16", "fp8"};

static void bench_linear(enum llm_cuda_dtype dtype, uint32_t rows, uint32_t cols, uint32_t n_rows,
                         uint8_t *pool, char *scratch)
{
    struct run r = {
        .l =
            {
                .w = {.dtype = dtype, .rows = rows, .cols = cols, .data = pool,
                      .stride = dtype == LLM_CUDA_BF16 ? 2 * (size_t) cols : cols,
                      .scale = (float *) (void *) scratch,
                      .scale_stride = (cols + 127) / 128},
                .x = pool + POOL_BYTES / 2,
                .ldx = cols,
                .out = scratch + (16 << 20),
                .ldo = rows,
                .store = LLM_CUDA_SET_BF16,
                .n_batch = 1,
            },
        .n_rows = n_rows,
    };
    char name[100];

    snprintf(name, sizeof(name), "%s, %u of %u, %u rows", names[dtype], rows, cols, n_rows);
    report_flops(name, 2.0 * rows * cols * n_rows, enqueue_linear, &r);
}

/* Every token goes to n_used of n_experts in turn, so that all have about as many, and to n_shared
 * more. */
static void bench_experts(enum llm_cuda_dtype dtype, uint32_t hidden, uint32_t width,
                          uint32_t n_experts, uint32_t n_used, uint32_t n_shared,
                          uint32_t n_tokens, uint8_t *pool, char *scratch)
{
    uint32_t all = n_experts + n_shared, n_pairs = n_tokens * (n_used + n_shared), at = 0;
    uint32_t *expert = allocate(all * 4), *first = allocate((all + 1) * 4);
    uint32_t *token = allocate(n_pairs * 4);
    size_t size = dtype == LLM_CUDA_BF16 ? 2 : 1, matrix = (size_t) hidden * width * size;
    struct run r = {.hidden = hidden, .width = width, .n_pairs = n_pairs};
    char name[100];

    for (uint32_t e = 0; e < all; e++) {
        expert[e] = e;
        first[e] = at;
        for (uint32_t t = 0; t < n_tokens; t++) {
            uint32_t from = t * 7 % n_experts;

            if (e >= n_experts || (e + n_experts - from) % n_experts < n_used) {
                token[at++] = t;
            }
        }
    }
    first[all] = at;
    r.p = (struct llm_cuda_pairs){
        .n_active = device_copy(&all, 4),
        .expert = device_copy(expert, all * 4),
        .first = device_copy(first, (all + 1) * 4),
        .token = device_copy(token, n_pairs * 4),
        .max_active = all,
        .n_tokens = n_tokens,
    };
    r.e.gate_up = (struct llm_cuda_matrix){
        .dtype = dtype, .rows = 2 * width, .cols = hidden, .data = pool, .stride = hidden * size,
        .scale = (float *) (void *) scratch, .scale_stride = (hidden + 127) / 128};
    r.e.down = (struct llm_cuda_matrix){
        .dtype = dtype, .rows = hidden, .cols = width, .data = pool + matrix,
        .stride = width * size, .scale = (float *) (void *) scratch,
        .scale_stride = (width + 127) / 128};
    r.e.gate_up_step = r.e.down_step = matrix; /* they overlap, but are as many bytes */
    r.x = pool + POOL_BYTES / 2;
    r.h = pool + POOL_BYTES * 3 / 4;
    r.y = device((size_t) n_pairs * hidden * 2);

    printf("rows of %u pairs: %.1f us\n", n_pairs, launch_us(enqueue_spread, &r, 5, false));
    snprintf(name, sizeof(name), "%s, up of %u experts of %u x %u, %u tokens", names[dtype], all,
             hidden, width, n_tokens);
    report_flops(name, 4.0 * hidden * width * n_pairs, enqueue_up, &r);
    snprintf(name, sizeof(name), "%s, down", names[dtype]);
    report_flops(name, 2.0 * hidden * width * n_pairs, enqueue_down, &r);

    CUDA(cudaFree((void *) r.p.n_active));
    CUDA(cudaFree((void *) r.p.expert));
    CUDA(cudaFree((void *) r.p.first));
    CUDA(cudaFree((void *) r.p.token));
    CUDA(cudaFree(r.y));
    free(expert);
    free(first);
    free(token);
}

static void enqueue_prompt(void *ctx, uint32_t i, struct llm_cuda_queue q)
{
    (void) i;
    CUDA(llm_cuda_attend_prompt(ctx, q));
}

static void enqueue_absorbed(void *ctx, uint32_t i, struct llm_cuda_queue q)
{
    (void) i;
    CUDA(llm_cuda_attend_many(ctx, q));
}

/* Both forms; products are counted as the decompressed one has them. */
static void bench_attention(uint32_t n_heads, uint32_t n_queries, uint32_t n_keys, uint8_t *pool,
                            char *scratch)
{
    uint32_t n_pages = n_keys / LLM_CUDA_PAGE_TOKENS, *pages = allocate(n_pages * 4);
    struct llm_cuda_prompt p = {
        .n_queries = n_queries,
        .n_keys = n_keys,
        .n_heads = n_heads,
        .scale = 0.01f,
        .q = pool,
        .ld_q = n_heads * (LLM_CUDA_NOPE + LLM_CUDA_ROPE),
        .q_step = LLM_CUDA_NOPE + LLM_CUDA_ROPE,
        .q_rope = pool + LLM_CUDA_NOPE * 2,
        .ld_q_rope = n_heads * (LLM_CUDA_NOPE + LLM_CUDA_ROPE),
        .q_rope_step = LLM_CUDA_NOPE + LLM_CUDA_ROPE,
        .kv = pool + POOL_BYTES / 2,
        .ld_kv = n_heads * (LLM_CUDA_NOPE + LLM_CUDA_V),
        .rope = pool + POOL_BYTES / 4,
        .ld_rope = LLM_CUDA_LATENT_WIDTH,
        .out = scratch + (16 << 20),
        .ld_out = n_heads * LLM_CUDA_V,
    };
    struct llm_cuda_attention a = {
        .dtype = LLM_CUDA_LATENT_BF16,
        .latents = pool,
        .page_step = LLM_CUDA_LATENT_BF16_BYTES * LLM_CUDA_PAGE_TOKENS,
        .pages_step = n_pages,
        .n_keys = device_copy(&n_keys, 4),
        .n_seqs = 1,
        .n_queries = n_queries,
        .n_heads = n_heads,
        .scale = 0.01f,
        .queries = pool + POOL_BYTES / 2,
        .out = scratch + (16 << 20),
    };
    double seen = (double) n_queries * (n_keys - 0.5 * n_queries), flops;
    char name[100];

    for (uint32_t i = 0; i < n_pages; i++) {
        pages[i] = i;
    }
    a.pages = device_copy(pages, n_pages * 4);
    flops = 2 * seen * n_heads * (LLM_CUDA_NOPE + LLM_CUDA_ROPE + LLM_CUDA_V);
    snprintf(name, sizeof(name), "attention, %u heads, %u queries, %u keys", n_heads, n_queries,
             n_keys);
    report_flops(name, flops, enqueue_prompt, &p);
    report_flops("  absorbed", flops, enqueue_absorbed, &a);
    CUDA(cudaFree((void *) a.n_keys));
    CUDA(cudaFree((void *) a.pages));
    free(pages);
}

int main(void)
{
    uint8_t *pool = random_pool();
    char *scratch = small_scales();

    for (int d = 0; d < 2; d++) {
        enum llm_cuda_dtype dtype = (enum llm_cuda_dtype) d;

        bench_linear(dtype, 8192, 8192, 8192, pool, scratch);
        bench_linear(dtype, 3072, 2048, 4096, pool, scratch);
        bench_linear(dtype, 2048, 10944, 4096, pool, scratch);
        bench_experts(dtype, 2048, 1408, 64, 6, 2, 4096, pool, scratch);
        bench_experts(dtype, 2048, 1408, 64, 6, 2, 512, pool, scratch);
        bench_experts(dtype, 7168, 2048, d == 0 ? 8 : 16, 2, 1, 4096, pool, scratch);
    }
    bench_attention(16, 4096, 4096, pool, scratch);
    bench_attention(16, 512, 8192, pool, scratch);
    bench_attention(128, 1024, 1024, pool, scratch);
    return 0;
}
