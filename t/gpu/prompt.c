/* Attention of prompts against plain double arithmetic: any number of queries after any number of
 * keys, NaN wherever nothing may be read; and rows gathered from pages of every type. */

#include "t/gpu/gpu.h"

#define PAGE LLM_CUDA_PAGE_TOKENS
#define NOPE LLM_CUDA_NOPE
#define ROPE LLM_CUDA_ROPE
#define V LLM_CUDA_V
#define QUERY (NOPE + ROPE)

static struct llm_cuda_queue queue;

static uint16_t *random_bf16(size_t n)
{
    uint16_t *p = allocate(n * 2);

    for (size_t i = 0; i < n; i++) {
        p[i] = bf16_of_f32(uniform());
    }
    return p;
}

static void attend(const struct llm_cuda_prompt *a, const uint16_t *q, const uint16_t *kv,
                   const uint16_t *rope, uint32_t i, uint32_t head, double *out)
{
    uint32_t n = a->n_keys - a->n_queries + i + 1;
    const uint16_t *own = q + i * a->ld_q + head * QUERY;
    double *score = allocate(n * sizeof(*score)), max = -INFINITY, total = 0;

    for (uint32_t t = 0; t < n; t++) {
        const uint16_t *k = kv + t * a->ld_kv + head * (NOPE + V);

        score[t] = 0;
        for (int j = 0; j < NOPE; j++) {
            score[t] += (double) f32_of_bf16(own[j]) * f32_of_bf16(k[j]);
        }
        for (int j = 0; j < ROPE; j++) {
            score[t] += (double) f32_of_bf16(own[NOPE + j]) * f32_of_bf16(rope[t * a->ld_rope + j]);
        }
        score[t] *= a->scale;
        max = fmax(max, score[t]);
    }
    memset(out, 0, V * sizeof(*out));
    for (uint32_t t = 0; t < n; t++) {
        double p = exp(score[t] - max);

        total += p;
        for (int j = 0; j < V; j++) {
            out[j] += p * f32_of_bf16(kv[t * a->ld_kv + head * (NOPE + V) + NOPE + j]);
        }
    }
    for (int j = 0; j < V; j++) {
        out[j] /= total;
    }
    free(score);
}

static void test(uint32_t n_queries, uint32_t before, uint32_t n_heads)
{
    uint32_t n_keys = before + n_queries;
    struct llm_cuda_prompt a = {
        .n_queries = n_queries,
        .n_keys = n_keys,
        .n_heads = n_heads,
        .scale = 0.1f + 0.3f * fabsf(uniform()),
        .ld_q = n_heads * QUERY + rnd(2) * 8,
        .q_step = QUERY,
        .ld_q_rope = n_heads * QUERY,
        .q_rope_step = QUERY,
        .ld_kv = n_heads * (NOPE + V) + rnd(2) * 8,
        .ld_rope = LLM_CUDA_LATENT_WIDTH,
        .ld_out = n_heads * V + rnd(2) * 8,
    };
    a.ld_q_rope = a.ld_q;
    uint16_t *q = random_bf16(n_queries * a.ld_q), *kv = random_bf16(n_keys * a.ld_kv);
    uint16_t *rope = random_bf16(n_keys * a.ld_rope);
    double *want = allocate(n_queries * a.ld_out * sizeof(*want)), d;
    float *got;

    a.q = device_copy(q, n_queries * a.ld_q * 2);
    a.q_rope = (const uint16_t *) a.q + NOPE;
    a.kv = device_copy(kv, n_keys * a.ld_kv * 2);
    a.rope = device_copy(rope, n_keys * a.ld_rope * 2);
    a.out = device_poisoned(n_queries * a.ld_out * 2);
    queue.overlap = rnd(2);
    CUDA(llm_cuda_attend_prompt(&a, queue));
    got = fetch_bf16(a.out, n_queries * a.ld_out);
    for (uint32_t i = 0; i < n_queries; i++) {
        for (uint32_t h = 0; h < n_heads; h++) {
            attend(&a, q, kv, rope, i, h, want + (i * n_heads + h) * V);
        }
        memmove(got + i * n_heads * V, got + i * a.ld_out, n_heads * V * sizeof(*got));
    }
    d = distance(got, want, n_queries * n_heads * V);
    if (!ok(d < 4e-3, "%u queries after %u rows, %u heads", n_queries, before, n_heads)) {
        diag("error %g", d);
    }
    CUDA(cudaFree((void *) a.q));
    CUDA(cudaFree((void *) a.kv));
    CUDA(cudaFree((void *) a.rope));
    CUDA(cudaFree(a.out));
    free(q);
    free(kv);
    free(rope);
    free(want);
    free(got);
}

static void test_gather(enum llm_cuda_latent_dtype dtype, uint32_t n_keys)
{
    uint32_t rank = LLM_CUDA_RANK, width = LLM_CUDA_LATENT_WIDTH, pages[8];
    uint32_t size = dtype == LLM_CUDA_LATENT_F32 ? 4 : 2;
    bool fp8 = dtype == LLM_CUDA_LATENT_FP8, same = true;
    struct llm_cuda_plane p = {
        .dtype = dtype,
        .rank = rank,
        .rope = ROPE,
        .row_bytes = fp8 ? LLM_CUDA_LATENT_FP8_BYTES : width * size,
        .scale_offset = rank,
        .rope_offset = fp8 ? rank + 16 : rank * size,
    };
    size_t ld = width + rnd(2) * 8;
    float *values = random_floats((size_t) n_keys * width), *got;

    p.page_step = p.row_bytes * PAGE + 64;
    uint8_t *pool = allocate(8 * p.page_step);
    memset(pool, 0xFF, 8 * p.page_step);
    for (uint32_t i = 0; i < 8; i++) {
        pages[i] = 7 - i;
    }
    for (uint32_t t = 0; t < n_keys; t++) {
        uint8_t *row = pool + pages[t / PAGE] * p.page_step + t % PAGE * p.row_bytes;
        float scale = 0;

        for (uint32_t i = 0; i < width; i++) {
            float *v = &values[(size_t) t * width + i];
            uint16_t h = bf16_of_f32(*v);

            if (dtype == LLM_CUDA_LATENT_F32) {
                memcpy(row + i * 4, v, 4);
            } else if (fp8 && i < rank) {
                scale = i % 128 == 0 ? 0.002f + 0.001f * *v : scale;
                memcpy(row + rank + i / 128 * 4, &scale, 4);
                row[i] = (uint8_t) (rnd(2) * 128 + rnd(127));
                *v = f32_of_e4m3(row[i]) * scale;
            } else {
                memcpy(fp8 ? row + p.rope_offset + (i - rank) * 2 : row + i * 2, &h, 2);
            }
        }
    }
    p.data = device_copy(pool, 8 * p.page_step);
    uint32_t *d_pages = device_copy(pages, sizeof(pages));
    void *rows = device_poisoned(n_keys * ld * 2);
    CUDA(llm_cuda_gather(&p, d_pages, n_keys, rows, ld, queue));
    got = fetch_bf16(rows, n_keys * ld);
    for (uint32_t t = 0; t < n_keys; t++) {
        for (uint32_t i = 0; i < width; i++) {
            same &= got[t * ld + i] == f32_of_bf16(bf16_of_f32(values[(size_t) t * width + i]));
        }
    }
    ok(same, "%u rows gathered from pages of type %d", n_keys, (int) dtype);
    CUDA(cudaFree(p.data));
    CUDA(cudaFree(d_pages));
    CUDA(cudaFree(rows));
    free(values);
    free(pool);
    free(got);
}

int main(int argc, char **argv)
{
    uint32_t count = argc > 1 ? (uint32_t) strtoul(argv[1], NULL, 10) : 24;

    test(1, 0, 1);
    test(128, 0, 2);
    test(300, 700, 2);
    for (uint32_t i = 0; i < count; i++) {
        test(1 + rnd(i % 3 ? 300 : 20), rnd(3) ? rnd(400) : 0, 1 + rnd(4));
        test_gather((enum llm_cuda_latent_dtype) (i % 3), 1 + rnd(8 * PAGE));
    }
    return done_testing();
}
