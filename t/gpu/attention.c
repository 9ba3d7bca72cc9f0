/* Attention over latent pages against plain double arithmetic on the same bytes: both forms of
 * rows, any number of heads, queries and splits, pages in any order, and NaN wherever no row of
 * the sequence is. */

#include "t/gpu/latent_rows.h"

#define PAGE LLM_CUDA_PAGE_TOKENS

struct fixture {
    struct llm_cuda_attention a;
    uint32_t n_pages, *pages, *n_keys;
    uint8_t *latents;
    uint16_t *queries;
    size_t row_bytes;
};

/* Sequences of at most max_keys; sharpness: of the softmax. */
static struct fixture random_fixture(enum llm_cuda_latent_dtype dtype, uint32_t n_seqs,
                                     uint32_t n_queries, uint32_t n_heads, uint32_t max_keys,
                                     uint32_t split_pages, float sharpness)
{
    struct fixture f = {.row_bytes = dtype == LLM_CUDA_LATENT_BF16 ? LLM_CUDA_LATENT_BF16_BYTES
                                                                   : LLM_CUDA_LATENT_FP8_BYTES};
    struct llm_cuda_attention *a = &f.a;
    size_t n_values = (size_t) n_seqs * n_queries * n_heads * WIDTH;
    uint32_t longest = (max_keys + PAGE - 1) / PAGE;

    *a = (struct llm_cuda_attention){
        .dtype = dtype,
        .page_step = f.row_bytes * PAGE + rnd(3) * 16,
        .pages_step = longest + rnd(3),
        .n_seqs = n_seqs,
        .n_queries = n_queries,
        .n_heads = n_heads,
        .split_pages = split_pages,
        .max_splits = (longest + split_pages - 1) / split_pages,
        .scale = sharpness,
    };
    f.n_pages = longest * n_seqs + 3;
    f.pages = allocate(a->pages_step * n_seqs * sizeof(*f.pages));
    f.n_keys = allocate(n_seqs * sizeof(*f.n_keys));
    f.latents = allocate(f.n_pages * a->page_step);
    f.queries = allocate(n_values * sizeof(*f.queries));
    memset(f.latents, 0xFF, f.n_pages * a->page_step);

    for (uint32_t i = 0, free = rnd(f.n_pages); i < n_seqs; i++) {
        f.n_keys[i] = i == 0 ? max_keys : n_queries + rnd(max_keys - n_queries + 1);
        for (uint32_t p = 0; p < a->pages_step; p++) {
            f.pages[i * a->pages_step + p] = p < longest ? free++ % f.n_pages : 1u << 31;
        }
        for (uint32_t k = 0; k < f.n_keys[i]; k++) {
            random_row(dtype, f.latents + f.pages[i * a->pages_step + k / PAGE] * a->page_step
                                  + k % PAGE * f.row_bytes);
        }
    }
    for (size_t i = 0; i < n_values; i++) {
        f.queries[i] = bf16_of_f32(uniform());
    }

    a->latents = device_copy(f.latents, f.n_pages * a->page_step);
    a->pages = device_copy(f.pages, a->pages_step * n_seqs * sizeof(*f.pages));
    a->n_keys = device_copy(f.n_keys, n_seqs * sizeof(*f.n_keys));
    a->queries = device_copy(f.queries, n_values * sizeof(*f.queries));
    a->out = device_poisoned((size_t) n_seqs * n_queries * n_heads * RANK * 2);
    a->partial = device_poisoned(llm_cuda_attention_floats(a) * sizeof(float));
    return f;
}

static void release(struct fixture *f)
{
    CUDA(cudaFree((void *) f->a.latents));
    CUDA(cudaFree((void *) f->a.pages));
    CUDA(cudaFree((void *) f->a.n_keys));
    CUDA(cudaFree((void *) f->a.queries));
    CUDA(cudaFree(f->a.out));
    CUDA(cudaFree(f->a.partial));
    free(f->pages);
    free(f->n_keys);
    free(f->latents);
    free(f->queries);
}

static float *result(const struct fixture *f)
{
    size_t n = (size_t) f->a.n_seqs * f->a.n_queries * f->a.n_heads * RANK;
    float *out = allocate(n * sizeof(*out));
    uint16_t *h = (uint16_t *) out;

    CUDA(cudaMemcpy(out, f->a.out, n * 2, cudaMemcpyDeviceToHost));
    for (size_t i = n; i-- > 0;) {
        out[i] = f32_of_bf16(h[i]);
    }
    return out;
}

static void attend(const struct fixture *f, size_t vector, const double *rows, double *out)
{
    const struct llm_cuda_attention *a = &f->a;
    uint32_t seq = (uint32_t) (vector / a->n_heads / a->n_queries);
    uint32_t n = f->n_keys[seq] - (a->n_queries - 1 - vector / a->n_heads % a->n_queries);
    double *score = allocate(n * sizeof(*score)), max = -INFINITY, total = 0;

    for (uint32_t t = 0; t < n; t++) {
        score[t] = 0;
        for (int i = 0; i < WIDTH; i++) {
            score[t] += f32_of_bf16(f->queries[vector * WIDTH + i]) * rows[t * (size_t) WIDTH + i];
        }
        score[t] *= a->scale;
        max = fmax(max, score[t]);
    }
    memset(out, 0, RANK * sizeof(*out));
    for (uint32_t t = 0; t < n; t++) {
        double p = exp(score[t] - max);

        total += p;
        for (int i = 0; i < RANK; i++) {
            out[i] += p * rows[t * (size_t) WIDTH + i];
        }
    }
    for (int i = 0; i < RANK; i++) {
        out[i] /= total;
    }
    free(score);
}

static double error_of(const struct fixture *f)
{
    const struct llm_cuda_attention *a = &f->a;
    size_t per_seq = (size_t) a->n_queries * a->n_heads, n = per_seq * a->n_seqs;
    double *want = allocate(n * RANK * sizeof(*want)), d;
    float *got = result(f);

    for (size_t s = 0; s < a->n_seqs; s++) {
        double *rows = allocate((size_t) f->n_keys[s] * WIDTH * sizeof(*rows));

        for (uint32_t k = 0; k < f->n_keys[s]; k++) {
            unpack_row(a->dtype,
                       f->latents + f->pages[s * a->pages_step + k / PAGE] * a->page_step
                           + k % PAGE * f->row_bytes,
                       rows + k * (size_t) WIDTH);
        }
        for (size_t v = s * per_seq; v < (s + 1) * per_seq; v++) {
            attend(f, v, rows, want + v * RANK);
        }
        free(rows);
    }
    d = distance(got, want, n * RANK);
    free(want);
    free(got);
    return d;
}

static void test(enum llm_cuda_latent_dtype dtype, uint32_t n_seqs, uint32_t n_queries,
                 uint32_t n_heads, uint32_t max_keys, uint32_t split_pages, float sharpness)
{
    struct fixture f = random_fixture(dtype, n_seqs, n_queries, n_heads, max_keys, split_pages,
                                      sharpness);
    struct llm_cuda_queue q = {.overlap = rnd(2)};
    double d;

    CUDA(llm_cuda_attend(&f.a, q));
    CUDA(cudaDeviceSynchronize());
    d = error_of(&f);
    if (!ok(d < 4e-3, "%s: %u sequences, %u queries, %u heads, %u keys, splits of %u pages",
            dtype == LLM_CUDA_LATENT_BF16 ? "bf16" : "fp8", n_seqs, n_queries, n_heads, max_keys,
            split_pages)) {
        diag("error %g", d);
    }
    release(&f);
}

/* The same sequence alone and among others: the same bits. */
static void test_mates(enum llm_cuda_latent_dtype dtype)
{
    struct fixture f = random_fixture(dtype, 5, 1, 16, 700, 2, 0.3f);
    struct llm_cuda_attention one = f.a;
    struct llm_cuda_queue q = {0};
    float *all, *alone;
    bool same = true;

    CUDA(llm_cuda_attend(&f.a, q));
    all = result(&f);
    one.n_seqs = 1;
    for (uint32_t i = 0; i < 5; i++) {
        one.pages = f.a.pages + i * f.a.pages_step;
        one.n_keys = f.a.n_keys + i;
        one.queries = (const uint16_t *) f.a.queries + i * 16 * WIDTH;
        CUDA(cudaMemset(f.a.out, 0xFF, 5 * 16 * RANK * 2));
        CUDA(llm_cuda_attend(&one, q));
        alone = result(&f);
        same &= memcmp(alone, all + i * 16 * RANK, 16 * RANK * sizeof(*all)) == 0;
        free(alone);
    }
    ok(same, "%s: the bits of a sequence do not depend on the others",
       dtype == LLM_CUDA_LATENT_BF16 ? "bf16" : "fp8");
    free(all);
    release(&f);
}

int main(int argc, char **argv)
{
    uint32_t count = argc > 1 ? (uint32_t) strtoul(argv[1], NULL, 10) : 60;

    for (int d = 0; d < 2; d++) {
        enum llm_cuda_latent_dtype dtype = (enum llm_cuda_latent_dtype) d;

        test(dtype, 1, 1, 16, 1, 1, 0.1f);
        test(dtype, 1, 4, 1, 4, 1, 0.1f);
        test(dtype, 2, 2, 128, 65, 1, 0.1f);
        test(dtype, 1, 1, 20, 900, 100, 3);
        test(dtype, 2, 4, 16, 66, 1, 0.1f); /* queries that see nothing of the last page */
        test_mates(dtype);
        for (uint32_t i = 0; i < count / 2; i++) {
            uint32_t n_queries = 1 + rnd(4);

            test(dtype, 1 + rnd(4), n_queries, 1 + rnd(rnd(4) ? 40 : 128),
                 n_queries + rnd(rnd(4) ? 300 : 1500), 1 + rnd(5), 0.5f + 0.5f * uniform());
        }
    }
    return done_testing();
}
