/* Attention of the general path against plain double arithmetic on the same bytes: every type and
 * width, prompts and answers mixed, NaN wherever no row of the sequence is, and the same bits for
 * any way of sharing the work out. */

#include "t/gpu/gpu.h"

#define PAGE LLM_CUDA_PAGE_TOKENS
#define MAX_ROWS 12

static const struct llm_cuda_queue queue;
static const char *const names[] = {"bf16", "fp8", "f32"};

static void random_row(const struct llm_cuda_plane *p, uint8_t *row, double *value)
{
    float scale = 0;

    for (uint32_t i = 0; i < p->rank + p->rope; i++) {
        uint8_t *rope = row + p->rope_offset + (i - p->rank) * 2;
        float v = uniform();
        uint16_t h = bf16_of_f32(v);

        if (p->dtype == LLM_CUDA_LATENT_F32) {
            memcpy(row + i * 4, &v, 4);
            value[i] = v;
        } else if (p->dtype == LLM_CUDA_LATENT_BF16 || i >= p->rank) {
            memcpy(p->dtype == LLM_CUDA_LATENT_BF16 ? row + i * 2 : rope, &h, 2);
            value[i] = f32_of_bf16(h);
        } else {
            if (i % 128 == 0) {
                scale = 0.002f + 0.001f * uniform();
                memcpy(row + p->scale_offset + i / 128 * 4, &scale, 4);
            }
            row[i] = (uint8_t) (rnd(2) * 128 + rnd(127));
            value[i] = f32_of_e4m3(row[i]) * scale;
        }
    }
}

static void attend(const float *query, const double *keys, uint32_t n, uint32_t rank,
                   uint32_t width, double scale, double *out)
{
    double *score = allocate(n * sizeof(*score)), max = -INFINITY, total = 0;

    for (uint32_t t = 0; t < n; t++) {
        score[t] = 0;
        for (uint32_t i = 0; i < width; i++) {
            score[t] += query[i] * keys[t * (size_t) width + i];
        }
        score[t] *= scale;
        max = fmax(max, score[t]);
    }
    memset(out, 0, rank * sizeof(*out));
    for (uint32_t t = 0; t < n; t++) {
        double p = exp(score[t] - max);

        total += p;
        for (uint32_t i = 0; i < rank; i++) {
            out[i] += p * keys[t * (size_t) width + i];
        }
    }
    for (uint32_t i = 0; i < rank; i++) {
        out[i] /= total;
    }
    free(score);
}

static void test(enum llm_cuda_latent_dtype dtype, uint32_t rank, uint32_t rope, uint32_t n_heads,
                 uint32_t longest)
{
    uint32_t n_seqs = 1 + rnd(3), n = 1 + rnd(MAX_ROWS), width = rank + rope;
    uint32_t n_pages = (longest + PAGE - 1) / PAGE, seqs[MAX_ROWS], positions[MAX_ROWS];
    size_t pages_step = n_pages + rnd(3), n_out = (size_t) n * n_heads * rank;
    uint8_t flags[MAX_ROWS];
    uint32_t *pages = allocate(n_seqs * pages_step * 4);
    struct llm_cuda_plain_attention a = {
        .plane = {.dtype = dtype, .rank = rank, .rope = rope},
        .n_heads = n_heads,
        .max_splits = 1,
        .scale = 4 / sqrtf((float) width),
    };
    struct llm_cuda_plane *p = &a.plane;
    uint32_t size = dtype == LLM_CUDA_LATENT_F32 ? 4 : 2;

    p->rope_offset = dtype == LLM_CUDA_LATENT_FP8 ? rank + (rank + 127) / 128 * 4 : rank * size;
    p->scale_offset = rank;
    p->row_bytes = p->rope_offset + rope * size;
    p->row_bytes = dtype == LLM_CUDA_LATENT_FP8 ? (p->row_bytes + 15) & ~15u : p->row_bytes;
    p->page_step = p->row_bytes * PAGE + rnd(3) * 64;

    size_t pool = n_pages * n_seqs * p->page_step;
    uint8_t *latents = allocate(pool);
    double *keys = allocate(n_seqs * (size_t) longest * width * sizeof(double));
    float *queries = random_floats((size_t) n * n_heads * width), *one, *many;
    double *want = allocate(n_out * sizeof(double)), d;

    memset(latents, 0xFF, pool);
    for (uint32_t s = 0; s < n_seqs; s++) {
        for (uint32_t i = 0; i < pages_step; i++) {
            pages[s * pages_step + i] = i < n_pages ? i * n_seqs + s : 1u << 31;
        }
        for (uint32_t t = 0; t < longest; t++) {
            random_row(p, latents + pages[s * pages_step + t / PAGE] * p->page_step
                              + t % PAGE * p->row_bytes,
                       keys + (s * (size_t) longest + t) * width);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        seqs[i] = rnd(n_seqs);
        positions[i] = i == 0 ? longest - 1 : rnd(longest);
        flags[i] = i > 0 && rnd(6) == 0 ? LLM_CUDA_ROW_IDLE : (uint8_t) rnd(8);
        for (uint32_t h = 0; h < n_heads; h++) {
            size_t v = (size_t) i * n_heads + h;

            if (flags[i] & LLM_CUDA_ROW_IDLE) {
                memset(want + v * rank, 0, rank * sizeof(*want));
            } else {
                attend(queries + v * width, keys + seqs[i] * (size_t) longest * width,
                       positions[i] + 1, rank, width, a.scale, want + v * rank);
            }
        }
    }

    p->data = device_copy(latents, pool);
    a.rows = (struct llm_cuda_rows){
        .n = n,
        .positions = device_copy(positions, sizeof(positions)),
        .seqs = device_copy(seqs, sizeof(seqs)),
        .flags = device_copy(flags, sizeof(flags)),
        .pages = device_copy(pages, n_seqs * pages_step * 4),
        .pages_step = pages_step,
    };
    a.queries = device_copy(queries, (size_t) n * n_heads * width * 4);
    a.out = device_poisoned(n_out * 4);
    CUDA(llm_cuda_plain_attend(&a, queue));
    one = fetch(a.out, n_out * 4);
    d = distance(one, want, n_out);

    a.max_splits = (longest + LLM_CUDA_PLAIN_SPLIT_PAGES * PAGE - 1)
                       / (LLM_CUDA_PLAIN_SPLIT_PAGES * PAGE)
                   + rnd(2);
    a.partial = device_poisoned(llm_cuda_plain_attention_floats(&a) * 4);
    CUDA(cudaMemset(a.out, 0xFF, n_out * 4));
    CUDA(llm_cuda_plain_attend(&a, queue));
    many = fetch(a.out, n_out * 4);
    bool same = memcmp(one, many, n_out * 4) == 0;

    if (!ok(d < 2e-6 && same, "%s: %u rows of %u sequences, %u + %u, %u heads, %u keys",
            names[dtype], n, n_seqs, rank, rope, n_heads, longest)) {
        diag("error %g, %s bits by %u splits", d, same ? "the same" : "other", a.max_splits);
    }
    CUDA(cudaFree(p->data));
    CUDA(cudaFree((void *) a.rows.positions));
    CUDA(cudaFree((void *) a.rows.seqs));
    CUDA(cudaFree((void *) a.rows.flags));
    CUDA(cudaFree((void *) a.rows.pages));
    CUDA(cudaFree((void *) a.queries));
    CUDA(cudaFree(a.out));
    CUDA(cudaFree(a.partial));
    free(pages);
    free(latents);
    free(keys);
    free(queries);
    free(want);
    free(one);
    free(many);
}

int main(int argc, char **argv)
{
    uint32_t count = argc > 1 ? (uint32_t) strtoul(argv[1], NULL, 10) : 60;

    for (uint32_t i = 0; i < count; i++) {
        enum llm_cuda_latent_dtype dtype = (enum llm_cuda_latent_dtype) (i % 3);

        test(dtype, i % 4 ? 1 + rnd(200) : 512, 2 + rnd(20) * 2, 1 + rnd(rnd(3) ? 6 : 40),
             1 + rnd(rnd(3) ? 300 : 900));
    }
    return done_testing();
}
