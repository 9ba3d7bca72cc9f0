/* CPU kernels: pure functions on pointers and shapes, one table of them per instruction set.
 *
 * Arithmetic is fp32 with fused multiply-add where the instruction set has it. Stored matrices
 * are unpacked a tile of 32 KB at a time, into scratch of the calling thread, and used from there
 * for every row of a batch; nothing is expanded as a whole. Activations stay fp32: on the
 * processor measured (Emerald Rapids) fp32 FMA do twice what VDPBF16PS does in the same time.
 *
 * Every output element is accumulated in one order that depends on nothing but the shape of the
 * operation: not on the number of rows, nor on which thread computes it. That is what makes
 * results independent of batch mates and chunking, bit for bit.
 *
 * All pointers to float may have any float alignment; data and scale of a stored matrix may have
 * none. Outputs never overlap inputs but where said. */

#ifndef KERNELS_CPU_KERNELS_H
#define KERNELS_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum llm_cpu_dtype { LLM_CPU_F32, LLM_CPU_F16, LLM_CPU_BF16, LLM_CPU_E4M3 };

/* A matrix as stored, row-major, little-endian. E4M3 has an fp32 scale for each block: element
 * (i, j) is value * scale[i / block_rows][j / block_cols], rounded to fp32. Its two codes for NaN,
 * 0x7F and 0xFF, which no weight may hold, are read as +-480, the numbers that would follow. */
struct llm_cpu_matrix {
    enum llm_cpu_dtype dtype;
    uint32_t rows, cols;
    const void *data;
    size_t stride; /* bytes from row to row */
    const void *scale;
    size_t scale_stride; /* bytes from row to row of scale */
    uint32_t block_rows, block_cols;
};

/* Row r is at data + (rows != NULL ? rows[r] : r) * ld. */
struct llm_cpu_input {
    const float *data;
    size_t ld;
    const uint32_t *rows;
};

enum llm_cpu_store {
    LLM_CPU_SET,
    LLM_CPU_ADD,          /* onto what is there */
    LLM_CPU_ADD_WEIGHTED, /* the same, sums of row r times weights[r] */
};

/* Rows as above, no row twice. */
struct llm_cpu_output {
    float *data;
    size_t ld;
    const uint32_t *rows;
    enum llm_cpu_store store;
    const float *weights;
};

/* Scratch of dot, and of mix with n_t rows, in floats. */
#define LLM_CPU_TILE_FLOATS 8192
#define LLM_CPU_MAX_LANES 16
#define LLM_CPU_CARRY_ROWS 128
#define LLM_CPU_DOT_SCRATCH                                                                       \
    (LLM_CPU_TILE_FLOATS + LLM_CPU_CARRY_ROWS * LLM_CPU_MAX_LANES * LLM_CPU_MAX_LANES)

#define LLM_CPU_MIX_COLS 64 /* at a time */

static inline size_t llm_cpu_mix_scratch(uint32_t n_t)
{
    return ((size_t) n_t + LLM_CPU_MAX_LANES) * LLM_CPU_MIX_COLS;
}

struct llm_cpu_kernels {
    const char *isa;
    const char *title; /* for people: "AVX-512" */

    /* out = row `row` of m as fp32. */
    void (*unpack_row)(const struct llm_cpu_matrix *m, uint32_t row, float *out);

    /* Dot products of rows r < n_rows of x, w->cols wide, with rows [row, row + n_outs) of w:
     * sums[r][n] = sum over i of x[r][i] * w[row + n][i], stored as `out` says. The i-th product
     * goes to lane i % lanes; the lanes are added as a tree. */
    void (*dot)(const struct llm_cpu_matrix *w, uint32_t row, uint32_t n_outs,
                struct llm_cpu_input x, uint32_t n_rows, struct llm_cpu_output out,
                float *scratch);

    /* Weighted sums of rows [row, row + n_t) of w, columns [col, col + n_cols) of them:
     * out[r][j] = decay[r] * out[r][j] + sum over t of a[r][t] * w[row + t][col + j], ascending
     * in t, for r < n_rows. decay NULL: the sum alone, whatever out held. */
    void (*mix)(const struct llm_cpu_matrix *w, uint32_t row, uint32_t n_t, uint32_t col,
                uint32_t n_cols, const float *a, size_t lda, uint32_t n_rows, const float *decay,
                float *out, size_t ldo, float *scratch);

    /* One page of an online softmax, for each row q < n_q of s (lds floats apart, a multiple of
     * LLM_CPU_MAX_LANES): scores s[q][0 … n_valid[q]) become exp(scale * s - max'), the others
     * up to lds zero, where max' is the running maximum max[q] updated; sum[q] is decayed and
     * grows by the new terms, and decay[q] is what earlier sums have to be multiplied by.
     * Before the first page max = -INFINITY, sum = 0. */
    void (*softmax)(float *s, size_t lds, uint32_t n_q, const uint32_t *n_valid, float scale,
                    float *max, float *sum, float *decay);

    /* out[i] = weight[i] * x[i] / sqrt(mean(x^2) + eps); out may be x. */
    void (*rms_norm)(const float *x, const float *weight, uint32_t n, float eps, float *out);

    /* out[i] = silu(gate[i]) * up[i], silu(z) = z / (1 + exp(-z)); out may be gate or up. */
    void (*silu_mul)(const float *gate, const float *up, size_t n, float *out);

    /* out[i] = a * out[i] + b * x[i], a * out[i] rounded first. */
    void (*combine)(float *out, float a, const float *x, float b, size_t n);

    /* x[i] = a * x[i] */
    void (*scale)(float *x, float a, size_t n);

    /* To the nearest bf16, ties to even; NaN stays NaN. out: n times two bytes of any alignment. */
    void (*pack_bf16)(const float *x, size_t n, void *out);

    /* To the nearest e4m3, ties to even, by blocks of `block` values, the last of which may be
     * shorter: x[i] is about out[i] * scales[i / block]. A scale is a 448th of the largest
     * magnitude in its block, but at least the smallest normal float. No value becomes a code for
     * NaN: a block that holds a NaN or an infinity has one for its scale. scales: floats of any
     * alignment. The same bits from every instruction set. */
    void (*pack_e4m3)(const float *x, size_t n, size_t block, uint8_t *out, void *scales);

    /* out[i] = exp((x[i] - shift) * scale), 0 where that is below the smallest normal; out may be
     * x. */
    void (*exp_scaled)(const float *x, float shift, float scale, size_t n, float *out);
};

extern const struct llm_cpu_kernels llm_cpu_kernels_scalar, llm_cpu_kernels_avx2,
    llm_cpu_kernels_avx512;

/* The named instruction set ("scalar", "avx2", "avx512"), or with NULL the best one that this
 * processor and operating system can run. NULL when the name is unknown or cannot run here. */
const struct llm_cpu_kernels *llm_cpu_kernels_pick(const char *isa);

#endif
