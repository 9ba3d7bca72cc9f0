/* CUDA kernels: pure functions on pointers, shapes and a stream.
 *
 * All pointers below are to memory of the device, all sizes are in elements unless said. What
 * every launch has in common:
 *  - It returns 0, or the cudaError_t of the launch; what goes wrong on the device later shows
 *    where the stream is waited for. It allocates nothing and waits for nothing, so that it may
 *    be captured into a graph.
 *  - Activations are bf16, sums are fp32, products are exact.
 *  - Every output is summed up in one order that depends on nothing but the shapes of what is
 *    launched: not on the number of rows or sequences, nor on which block computes it.
 *  - Pointers to rows are aligned to 16 bytes and so are the steps from row to row. */

#ifndef KERNELS_CUDA_KERNELS_H
#define KERNELS_CUDA_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st; /* cudaStream_t points to one */

/* Where a launch goes. overlap: its blocks may begin, and fetch weights, while the launch before
 * it in the stream still runs; that must be one of these kernels, too. What any launch reads
 * except weights and their scales it reads after the one before it has ended. */
struct llm_cuda_queue {
    struct CUstream_st *stream;
    bool overlap;
};

enum llm_cuda_dtype { LLM_CUDA_BF16, LLM_CUDA_E4M3 };

#define LLM_CUDA_SCALE_BLOCK 128

/* A matrix as a checkpoint stores it, row-major. E4M3 has an fp32 scale for each block of 128 x
 * 128: element (i, j) is value * scale[i / 128 * scale_stride + j / 128]. No value may be a code
 * for NaN: they are read as +-480. */
struct llm_cuda_matrix {
    enum llm_cuda_dtype dtype;
    uint32_t rows, cols;
    const void *data;
    size_t stride; /* bytes from row to row */
    const float *scale;
    size_t scale_stride; /* floats from row to row of blocks */
};

/* --- linear.cu --- */

enum llm_cuda_store {
    LLM_CUDA_SET_BF16, /* rounded to nearest even */
    LLM_CUDA_SET_F32,
    LLM_CUDA_ADD_F32, /* onto what is there */
};

/* out[r][n] = sum over k of x[r][k] * w[n][k], for rows r of x: bf16, ldx apart. Of a batch,
 * member b has its own w, x and out, so far apart: bytes of w, floats of scale, elements. */
struct llm_cuda_linear {
    struct llm_cuda_matrix w;
    const void *x;
    size_t ldx;
    void *out;
    size_t ldo;
    enum llm_cuda_store store;
    uint32_t n_batch; /* 1 or more */
    size_t w_step, scale_step, x_step, out_step;
};

#define LLM_CUDA_MAX_LINEARS 4
#define LLM_CUDA_MAX_LINEAR_ROWS 64

/* n <= LLM_CUDA_MAX_LINEARS operations on n_rows <= LLM_CUDA_MAX_LINEAR_ROWS rows each, in one
 * launch; all matrices of one dtype. */
int llm_cuda_linears(const struct llm_cuda_linear *l, uint32_t n, uint32_t n_rows,
                     struct llm_cuda_queue q);

/* --- experts.cu --- */

/* The pairs of a token and an expert of a step, by expert: the i-th expert that has any is
 * expert[i], ascending; its pairs are first[i] … first[i + 1] - 1, of different tokens, pair p of
 * token[p] with weight[p]. A shared expert is one more, of all tokens, with weight 1. */
struct llm_cuda_pairs {
    const uint32_t *n_active; /* experts that have pairs, at most max_active */
    const uint32_t *expert, *first, *token;
    const float *weight;
    uint32_t max_active, n_tokens; /* n_tokens at most LLM_CUDA_MAX_LINEAR_ROWS */
};

/* Expert e has its matrices e steps (bytes, and floats of scale) behind these. gate_up is the
 * gate's rows and then up's, each as many as down has columns; for e4m3 a multiple of 128. */
struct llm_cuda_experts {
    struct llm_cuda_matrix gate_up, down;
    size_t gate_up_step, gate_up_scale_step, down_step, down_scale_step;
};

/* h[pair] = silu(gate x) * up x for x of the pair's token; x and h in bf16, ldx and ldh apart. */
int llm_cuda_experts_up(const struct llm_cuda_experts *e, const struct llm_cuda_pairs *p,
                        const void *x, size_t ldx, void *h, size_t ldh, struct llm_cuda_queue q);

/* out[token] += sum over the token's pairs, in their order, of weight * down h[pair]; in fp32. */
int llm_cuda_experts_down(const struct llm_cuda_experts *e, const struct llm_cuda_pairs *p,
                          const void *h, size_t ldh, float *out, size_t ldo,
                          struct llm_cuda_queue q);

/* --- attention.cu --- */

#define LLM_CUDA_PAGE_TOKENS 64
#define LLM_CUDA_RANK 512 /* latents of a row */
#define LLM_CUDA_ROPE 64  /* rotated elements of a row */
#define LLM_CUDA_LATENT_WIDTH (LLM_CUDA_RANK + LLM_CUDA_ROPE)

/* How a row of a page is stored (engine/model/plane.h): 576 bf16, or 512 e4m3, an fp32 scale for
 * each 128 of them and 64 bf16. */
enum llm_cuda_latent_dtype { LLM_CUDA_LATENT_BF16, LLM_CUDA_LATENT_FP8 };

#define LLM_CUDA_LATENT_BF16_BYTES 1152
#define LLM_CUDA_LATENT_FP8_BYTES 656

/* Attention in the absorbed form (DeepSeek-V2, arXiv 2405.04434, section 2.1): for each sequence
 * s < n_seqs, query i < n_queries of it and head,
 *
 *   out = sum over t of softmax_t(scale * query . row_t) * (latents of row_t)
 *
 * over the first n_keys[s] - (n_queries - 1 - i) rows t of the sequence, at least one. Row t is
 * row t % 64 of page pages[s * pages_step + t / 64], which begins at latents + page * page_step
 * bytes. Queries are bf16 [n_seqs][n_queries][n_heads][576], out is bf16 the same with 512.
 *
 * The sums over each split_pages pages are made on their own and added in order: split_pages is
 * part of the numerics. No sequence may have more than max_splits of them. partial: scratch of
 * llm_cuda_attention_floats floats, of none for max_splits 1. */
struct llm_cuda_attention {
    enum llm_cuda_latent_dtype dtype;
    const void *latents;
    size_t page_step;
    const uint32_t *pages;
    size_t pages_step;
    const uint32_t *n_keys;
    uint32_t n_seqs, n_queries, n_heads;
    uint32_t split_pages, max_splits;
    float scale;
    const void *queries;
    void *out;
    float *partial;
};

size_t llm_cuda_attention_floats(const struct llm_cuda_attention *a);
int llm_cuda_attend(const struct llm_cuda_attention *a, struct llm_cuda_queue q);

#ifdef __cplusplus
}
#endif

#endif
