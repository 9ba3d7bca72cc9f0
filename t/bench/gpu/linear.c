/* Linear operations on few rows: time of a launch within a graph of many, on matrices that are
 * together several times the L2 cache, and the share of the time that reading their bytes takes
 * at 4.66 TB/s. */

#include "t/bench/gpu/bench.h"

static const struct shape {
    const char *name;
    uint32_t rows, cols, n_batch;
} shapes[] = {
    {"V2-Lite q, kv_a", 3648, 2048, 1},   {"V2-Lite o", 2048, 2048, 1},
    {"V2-Lite W_UV", 128, 512, 16},       {"V2-Lite dense down", 2048, 10944, 1},
    {"V2-Lite dense gate, up", 21888, 2048, 1},
    {"V2-Lite head", 102400, 2048, 1},    {"V3 q_a, kv_a", 2112, 7168, 1},
    {"V3 q_b", 24576, 1536, 1},           {"V3 W_UV", 128, 512, 128},
    {"V3 o", 7168, 16384, 1},             {"V3 dense gate, up", 36864, 7168, 1},
};

struct run {
    struct llm_cuda_linear l;
    uint32_t n_rows;
    size_t bytes, n_copies;
};

static void enqueue(void *ctx, uint32_t i, struct llm_cuda_queue q)
{
    const struct run *r = ctx;
    struct llm_cuda_linear l = r->l;

    l.w.data = (const char *) l.w.data + i % r->n_copies * r->bytes;
    CUDA(llm_cuda_linears(&l, 1, r->n_rows, q));
}

static void bench(const struct shape *s, enum llm_cuda_dtype dtype, uint32_t n_rows,
                  const void *pool, void *scratch)
{
    size_t size = dtype == LLM_CUDA_BF16 ? 2 : 1;
    struct run r = {
        .l =
            {
                .w = {dtype, s->rows, s->cols, pool, s->cols * size, scratch,
                      (s->cols + 127) / 128},
                .x = pool,
                .ldx = s->cols * (size_t) s->n_batch,
                .out = (char *) scratch + (16 << 20),
                .ldo = s->rows * (size_t) s->n_batch,
                .store = LLM_CUDA_SET_BF16,
                .n_batch = s->n_batch,
                .w_step = s->rows * s->cols * size,
                .x_step = s->cols,
                .out_step = s->rows,
            },
        .n_rows = n_rows,
        .bytes = (size_t) s->rows * s->cols * size * s->n_batch,
    };
    char name[100];

    r.n_copies = POOL_BYTES / r.bytes;
    snprintf(name, sizeof(name), "%s %s, %u rows", s->name,
             dtype == LLM_CUDA_BF16 ? "bf16" : "fp8", n_rows);
    report(name, r.bytes, enqueue, &r);
}

int main(void)
{
    static const uint32_t rows[] = {1, 4, 8, 16, 32, 64};
    void *pool = random_pool(), *scratch = small_scales();

    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        for (int d = 0; d < 2; d++) {
            for (size_t j = 0; j < sizeof(rows) / sizeof(rows[0]); j++) {
                bench(&shapes[i], (enum llm_cuda_dtype) d, rows[j], pool, scratch);
            }
        }
    }
    return 0;
}
