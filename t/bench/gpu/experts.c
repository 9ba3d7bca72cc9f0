/* Experts of few tokens, by uniform routing: the time of up and down, over as many layers as are
 * together several times the L2 cache. */

#include "t/bench/gpu/bench.h"

#define MAX_PAIRS 1024

static const struct shape {
    const char *name;
    uint32_t hidden, width, n_routed, n_used, n_shared;
} shapes[] = {{"V2-Lite", 2048, 1408, 64, 6, 2}, {"V3", 7168, 2048, 256, 8, 1}};

struct run {
    struct llm_cuda_experts e;
    struct llm_cuda_pairs p;
    const void *x;
    void *h;
    float *out;
    size_t span; /* of the pool, where an expert of a launch may begin */
};

/* of launch i: far from those of the launches before it */
static size_t offset(const struct run *r, uint32_t i)
{
    return i * 7 % 16 * (r->span / 16 / 4096 * 4096);
}

static void enqueue_up(void *ctx, uint32_t i, struct llm_cuda_queue q)
{
    const struct run *r = ctx;
    struct llm_cuda_experts e = r->e;

    e.gate_up.data = (const char *) e.gate_up.data + offset(r, i);
    CUDA(llm_cuda_experts_up(&e, &r->p, r->x, e.gate_up.cols, r->h, e.down.cols, q));
}

static void enqueue_down(void *ctx, uint32_t i, struct llm_cuda_queue q)
{
    const struct run *r = ctx;
    struct llm_cuda_experts e = r->e;

    e.down.data = (const char *) e.down.data + offset(r, i);
    CUDA(llm_cuda_experts_down(&e, &r->p, r->h, e.down.cols, r->out, e.down.rows, q));
}

static void bench(const struct shape *s, enum llm_cuda_dtype dtype, uint32_t n_tokens, char *pool,
                  char *scratch)
{
    size_t size = dtype == LLM_CUDA_BF16 ? 2 : 1, bytes = (size_t) s->hidden * s->width * size;
    uint32_t n_experts = s->n_routed + s->n_shared, n_active = 0, n_pairs = 0;
    uint32_t *expert = allocate(MAX_PAIRS * 4), *first = allocate(MAX_PAIRS * 4);
    uint32_t *token = allocate(MAX_PAIRS * 4), (*used)[16] = allocate(64 * sizeof(*used));
    float *weight = allocate(MAX_PAIRS * 4);
    struct run r = {
        .e = {.gate_up = {dtype, 2 * s->width, s->hidden, pool, s->hidden * size,
                          (float *) scratch, s->hidden / 128},
              .down = {dtype, s->hidden, s->width, pool, s->width * size, (float *) scratch,
                       s->width / 128}},
        .x = pool,
        .h = scratch + (16 << 20),
        .out = (float *) (scratch + (64 << 20)),
    };
    char name[100];

    for (uint32_t t = 0; t < n_tokens; t++) {
        for (uint32_t i = 0; i < s->n_used; i++) {
            used[t][i] = rnd(s->n_routed);
            for (uint32_t j = 0; j < i; j++) {
                if (used[t][j] == used[t][i]) {
                    i--;
                    break;
                }
            }
        }
    }
    for (uint32_t e = 0; e < n_experts; e++) {
        first[n_active] = n_pairs;
        for (uint32_t t = 0; t < n_tokens; t++) {
            for (uint32_t i = 0; i < s->n_used; i++) {
                if (used[t][i] == e || (e >= s->n_routed && i == 0)) {
                    token[n_pairs] = t;
                    weight[n_pairs++] = 0.1f;
                }
            }
        }
        if (n_pairs > first[n_active]) {
            expert[n_active] = n_active; /* one after the other in the pool */
            n_active++;
        }
    }
    first[n_active] = n_pairs;
    r.e.gate_up_step = 2 * bytes;
    r.e.down_step = bytes;
    r.p = (struct llm_cuda_pairs){
        .n_active = device_copy(&n_active, 4),
        .expert = device_copy(expert, MAX_PAIRS * 4),
        .first = device_copy(first, MAX_PAIRS * 4),
        .token = device_copy(token, MAX_PAIRS * 4),
        .weight = device_copy(weight, MAX_PAIRS * 4),
        .max_active = n_active,
        .n_tokens = n_tokens,
    };

    r.span = POOL_BYTES > n_active * 2 * bytes ? POOL_BYTES - n_active * 2 * bytes : 0;
    if (r.span >= (size_t) 256 << 20) {
        snprintf(name, sizeof(name), "%s %s up, %u tokens, %u experts", s->name,
                 dtype == LLM_CUDA_BF16 ? "bf16" : "fp8", n_tokens, n_active);
        report(name, n_active * 2 * bytes, enqueue_up, &r);
        snprintf(name, sizeof(name), "%s %s down, %u tokens, %u experts", s->name,
                 dtype == LLM_CUDA_BF16 ? "bf16" : "fp8", n_tokens, n_active);
        report(name, n_active * bytes, enqueue_down, &r);
    }
    CUDA(cudaFree((void *) r.p.n_active));
    CUDA(cudaFree((void *) r.p.expert));
    CUDA(cudaFree((void *) r.p.first));
    CUDA(cudaFree((void *) r.p.token));
    CUDA(cudaFree((void *) r.p.weight));
    free(expert);
    free(first);
    free(token);
    free(used);
    free(weight);
}

int main(void)
{
    static const uint32_t tokens[] = {1, 4, 8, 16, 64};
    void *pool = random_pool(), *scratch = small_scales();

    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
        for (int d = 0; d < 2; d++) {
            for (size_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++) {
                bench(&shapes[s], (enum llm_cuda_dtype) d, tokens[i], pool, scratch);
            }
        }
    }
    return 0;
}
