/* What lies between the products of a step, and sampling: time of a launch, alone and overlapped,
 * for a model of V2-Lite's and one of V3's shape. All of it is bound by the launch, but for logits:
 * the share of the bound is theirs. */

#include "t/bench/gpu/bench.h"

#define MAX_ROWS 64

struct model {
    const char *name;
    uint32_t hidden, n_heads, vocab;
    struct llm_cuda_router router;
};

struct run {
    const struct model *m;
    struct llm_cuda_norm norm;
    struct llm_cuda_latents latents;
    struct llm_cuda_route route;
    struct llm_cuda_sample sample;
};

static void enqueue_norm(void *ctx, uint32_t i, struct llm_cuda_queue q)
{
    (void) i;
    CUDA(llm_cuda_rms_norm(&((struct run *) ctx)->norm, q));
}

static void enqueue_latents(void *ctx, uint32_t i, struct llm_cuda_queue q)
{
    (void) i;
    CUDA(llm_cuda_latents(&((struct run *) ctx)->latents, q));
}

static void enqueue_route(void *ctx, uint32_t i, struct llm_cuda_queue q)
{
    (void) i;
    CUDA(llm_cuda_route(&((struct run *) ctx)->route, q));
}

static void enqueue_sample(void *ctx, uint32_t i, struct llm_cuda_queue q)
{
    (void) i;
    CUDA(llm_cuda_sample(&((struct run *) ctx)->sample, q));
}

static void bench_sampling(struct run *r, const char *name, struct llm_cuda_sampling s)
{
    struct llm_cuda_sampling all[MAX_ROWS];
    char title[100];

    for (uint32_t i = 0; i < MAX_ROWS; i++) {
        all[i] = s;
        all[i].n_vocab = r->m->vocab;
        all[i].repetition_penalty = 1;
        all[i].seed = i;
    }
    r->sample.sampling = device_copy(all, sizeof(all));
    snprintf(title, sizeof(title), "%s, %u rows: %s", r->m->name, r->sample.n, name);
    report(title, (size_t) r->sample.n * r->m->vocab * 4, enqueue_sample, r);
    CUDA(cudaFree((void *) r->sample.sampling));
}

static void bench(const struct model *m, uint32_t n)
{
    uint32_t index[MAX_ROWS], zeros[MAX_ROWS] = {0}, per = m->router.n_used + m->router.n_shared;
    uint32_t all = m->router.n_experts + m->router.n_shared;
    float *floats = random_floats((size_t) MAX_ROWS * m->vocab);
    struct run r = {.m = m};
    char title[100];

    for (size_t i = 0; i < (size_t) MAX_ROWS * m->vocab; i++) {
        floats[i] *= 9 * fabsf(floats[i]);
    }
    for (uint32_t i = 0; i < MAX_ROWS; i++) {
        index[i] = i;
    }
    float *values = device_copy(floats, (size_t) MAX_ROWS * m->vocab * 4);
    uint32_t *indices = device_copy(index, sizeof(index));
    uint32_t *nothing = device_copy(zeros, sizeof(zeros));
    uint8_t *flags = device_copy(zeros, MAX_ROWS);
    float *out = device_poisoned((size_t) MAX_ROWS * m->vocab * 4);
    uint8_t *pool = device((size_t) MAX_ROWS * LLM_CUDA_LATENT_BF16_BYTES * LLM_CUDA_PAGE_TOKENS);
    uint32_t *words = device_poisoned((size_t) 10 * MAX_ROWS * (all + per) * 4);

    r.norm = (struct llm_cuda_norm){
        .n = n, .width = m->hidden, .x = values, .ldx = m->hidden, .weight = values,
        .eps = 1e-6f, .out_bf16 = out, .ld_bf16 = m->hidden};
    r.latents = (struct llm_cuda_latents){
        .rows = {.n = n, .positions = nothing, .seqs = indices, .flags = flags, .pages = indices,
                 .pages_step = 1},
        .plane = {.dtype = LLM_CUDA_LATENT_BF16, .data = pool,
                  .page_step = LLM_CUDA_LATENT_BF16_BYTES * LLM_CUDA_PAGE_TOKENS,
                  .rank = LLM_CUDA_RANK, .rope = LLM_CUDA_ROPE,
                  .row_bytes = LLM_CUDA_LATENT_BF16_BYTES, .rope_offset = LLM_CUDA_RANK * 2},
        .rope = {values, 1},
        .kv = values,
        .ld_kv = LLM_CUDA_LATENT_WIDTH,
        .kv_norm = values,
        .eps = 1e-6f,
        .q = values,
        .ld_q = m->n_heads * 192,
        .nope = 128,
        .n_heads = m->n_heads,
        .query = out,
        .dtype = LLM_CUDA_BF16,
    };
    r.route = (struct llm_cuda_route){
        .router = m->router, .logits = values, .ld_logits = m->router.n_experts,
        .bias = m->router.gate == LLM_CUDA_GATE_NOAUX ? values : NULL, .n = n,
        .n_active = words, .expert = words + 1, .first = words + 1 + all,
        .token = words + 2 + 2 * all, .pair_of = words + 2 + 2 * all + n * per,
        .weight = (float *) (words + 2 + 2 * all + 2 * n * per),
        .scratch = words + 2 + 2 * all + 3 * n * per};
    r.sample = (struct llm_cuda_sample){
        .n = n, .vocab = m->vocab, .logits = values, .ld_logits = m->vocab, .slots = indices,
        .positions = indices, .last = nothing, .over = device_copy(zeros, sizeof(zeros)),
        .tokens = words, .logprobs = (float *) words, .top_ids = words + MAX_ROWS,
        .top_logprobs = (float *) words + 32 * MAX_ROWS, .scratch = out};

    snprintf(title, sizeof(title), "%s, %u rows: norm", m->name, n);
    report(title, (size_t) n * m->hidden * 4, enqueue_norm, &r);
    snprintf(title, sizeof(title), "%s, %u rows: latents and queries", m->name, n);
    report(title, (size_t) n * LLM_CUDA_LATENT_WIDTH * 4, enqueue_latents, &r);
    snprintf(title, sizeof(title), "%s, %u rows: routing", m->name, n);
    report(title, (size_t) n * m->router.n_experts * 4, enqueue_route, &r);
    bench_sampling(&r, "greedy", (struct llm_cuda_sampling){.top_p = 1});
    bench_sampling(&r, "temperature", (struct llm_cuda_sampling){.top_p = 1, .temperature = 1});
    bench_sampling(&r, "top_p", (struct llm_cuda_sampling){.top_p = 0.95f, .temperature = 1});
    bench_sampling(&r, "top_k, top_p, min_p",
                   (struct llm_cuda_sampling){
                       .top_k = 50, .top_p = 0.95f, .min_p = 0.05f, .temperature = 1});
    bench_sampling(&r, "greedy, 20 log-probabilities",
                   (struct llm_cuda_sampling){.top_p = 1, .logprobs = 1, .n_top_logprobs = 20});

    const void *of_device[] = {values, indices, nothing, flags, out, pool, words, r.sample.over};
    for (size_t i = 0; i < sizeof(of_device) / sizeof(of_device[0]); i++) {
        CUDA(cudaFree((void *) of_device[i]));
    }
    free(floats);
}

int main(void)
{
    static const struct model models[] = {
        {"V2-Lite", 2048, 16, 102400,
         {.gate = LLM_CUDA_GATE_GREEDY, .n_experts = 64, .n_used = 6, .n_groups = 1,
          .n_groups_used = 1, .factor = 1, .n_shared = 2}},
        {"V3", 7168, 128, 129280,
         {.gate = LLM_CUDA_GATE_NOAUX, .sigmoid = true, .n_experts = 256, .n_used = 8,
          .n_groups = 8, .n_groups_used = 4, .normalise = true, .factor = 2.5f, .n_shared = 1}},
    };

    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++) {
        bench(&models[i], 1);
        bench(&models[i], MAX_ROWS);
    }
    return 0;
}
