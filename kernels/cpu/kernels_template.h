/* The kernels of kernels.h in terms of one instruction set's vectors: included by
 * kernels_<isa>.c after simd_<isa>.h and KERNELS_NAME, KERNELS_ISA, KERNELS_TITLE.
 *
 * A tile is a piece of a stored matrix as fp32: blocks of LANES rows x LANES columns, row-major
 * inside, block rows one after the other, padded with zeros. dot finds the same columns of LANES
 * rows side by side; for mix a block row is LANES terms of every column. */

#include "kernels/cpu/kernels.h"

#include <float.h>
#include <math.h>
#include <string.h>

_Static_assert(LANES <= LLM_CPU_MAX_LANES && LLM_CPU_MAX_LANES % LANES == 0, "tiles fit");

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

#define BLOCK (LANES * LANES)
#define BLOCKS(n) (((size_t) (n) + LANES - 1) / LANES)

/* e^x; 0 below the logarithm of the smallest normal float, the largest one's neighbourhood above.
 * Relative error below 2e-7; exp(0) == 1. Cephes' expf: range reduction by ln 2 in two parts and
 * a polynomial of degree six. */
static vf vf_exp(vf x)
{
    vf c = vf_min(vf_set1(88.37f), vf_max(vf_set1(-87.33f), x));
    vf n = vf_rint(vf_mul(c, vf_set1(1.44269504088896341f)));
    vf r = vf_fma(n, vf_set1(-0.693359375f), c);
    vf p = vf_set1(1.9875691500e-4f);

    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_add(vf_fma(vf_mul(r, r), p, r), vf_set1(1));
    return vf_zero_below(x, -87.33f, vf_mul(p, vf_pow2(n)));
}

static float vf_sum(vf v)
{
    vf all[LANES];
    float sum[LANES];

    UNROLL
    for (uint32_t i = 0; i < LANES; i++) {
        all[i] = v;
    }
    vf_store(sum, vf_reduce(all));
    return sum[0];
}

/* unpack */

INLINE size_t element_size(enum llm_cpu_dtype dtype)
{
    return dtype == LLM_CPU_F32 ? 4 : dtype == LLM_CPU_E4M3 ? 1 : 2;
}

/* LANES elements; factor: of E4M3 alone, times 256. */
INLINE vf convert(enum llm_cpu_dtype dtype, const uint8_t *p, float factor)
{
    switch (dtype) {
    case LLM_CPU_F16:
        return vf_from_f16(p);
    case LLM_CPU_BF16:
        return vf_from_bf16(p);
    case LLM_CPU_E4M3:
        return vf_mul(vf_from_e4m3(p), vf_set1(factor));
    default:
        return vf_load((const float *) (const void *) p);
    }
}

/* n <= LANES of them, then zeros. */
static vf convert_n(enum llm_cpu_dtype dtype, const uint8_t *p, uint32_t n, float factor)
{
    uint8_t all[LANES * 4] = {0};

    memcpy(all, p, n * element_size(dtype));
    return convert(dtype, all, factor);
}

/* n_rows <= LANES rows of n elements, row r all of factor[r], to vectors at out: the i-th vector
 * of row r is at i * step + r * LANES. Down the rows first, so that the tile is written from front
 * to back; the rows after these are fetched meanwhile, as they are likely to come next. */
INLINE void unpack_band(enum llm_cpu_dtype dtype, const uint8_t *p, size_t stride,
                        uint32_t n_rows, uint32_t n, const float *factor, float *out, size_t step)
{
    uint32_t i = 0;

    for (; i + 2 * LANES <= n; i += 2 * LANES, out += 2 * step) {
        const uint8_t *from = p + i * element_size(dtype);

        for (uint32_t r = 0; r < n_rows; r++, from += stride) {
            vf pair[2];

            __builtin_prefetch(from + LANES * stride, 0, 2);
            if (dtype == LLM_CPU_E4M3) {
                vf_from_e4m3_pair(from, pair);
                pair[0] = vf_mul(pair[0], vf_set1(factor[r]));
                pair[1] = vf_mul(pair[1], vf_set1(factor[r]));
            } else {
                pair[0] = convert(dtype, from, 1);
                pair[1] = convert(dtype, from + LANES * element_size(dtype), 1);
            }
            vf_store(out + r * LANES, pair[0]);
            vf_store(out + step + r * LANES, pair[1]);
        }
    }

    for (; i < n; i += LANES, out += step) {
        const uint8_t *from = p + i * element_size(dtype);

        for (uint32_t r = 0; r < n_rows; r++, from += stride) {
            vf v = convert_n(dtype, from, n - i < LANES ? n - i : LANES, factor[r]);

            vf_store(out + r * LANES, v);
        }
    }
}

/* The same for e4m3 where a change of scale falls inside a vector: n elements from `at` on. */
static void unpack_ragged(const uint8_t *p, size_t stride, uint32_t n_rows, uint32_t n,
                          const float *factor, float *out, size_t step, uint32_t at)
{
    float one[LANES];

    for (uint32_t r = 0; r < n_rows; r++, p += stride) {
        for (uint32_t i = 0; i < n; i++) {
            vf_store(one, convert_n(LLM_CPU_E4M3, p + i, 1, factor[r]));
            out[(at + i) / LANES * step + r * LANES + (at + i) % LANES] = one[0];
        }
    }
}

/* Columns [col, end) of rows row … row + n_rows, run by run of one scale. */
static void unpack_band_e4m3(const struct llm_cpu_matrix *m, uint32_t row, uint32_t n_rows,
                             uint32_t col, uint32_t end, float *out, size_t step)
{
    const uint8_t *data = (const uint8_t *) m->data + row * m->stride;
    uint32_t at = 0, n;
    float factor[LANES];

    for (uint32_t r = 0; (end - col) % LANES != 0 && r < n_rows; r++) {
        vf_store(out + (end - col) / LANES * step + r * LANES, vf_zero());
    }

    for (; col < end; col += n, at += n) {
        n = m->block_cols - col % m->block_cols;
        n = n < end - col ? n : end - col;
        for (uint32_t r = 0; r < n_rows; r++) {
            memcpy(&factor[r],
                   (const uint8_t *) m->scale + (row + r) / m->block_rows * m->scale_stride
                       + col / m->block_cols * sizeof(factor[r]),
                   sizeof(factor[r]));
            factor[r] *= 256;
        }
        if (at % LANES == 0 && (n % LANES == 0 || col + n == end)) {
            unpack_band(LLM_CPU_E4M3, data + col, m->stride, n_rows, n, factor,
                        out + at / LANES * step, step);
        } else {
            unpack_ragged(data + col, m->stride, n_rows, n, factor, out, step, at);
        }
    }
}

INLINE void unpack_rows(const struct llm_cpu_matrix *m, uint32_t row, uint32_t n_rows,
                        uint32_t col, uint32_t n_cols, float *out, size_t step)
{
    static const float no_factor[LANES];
    const uint8_t *p =
        (const uint8_t *) m->data + row * m->stride + col * element_size(m->dtype);

    switch (m->dtype) {
    case LLM_CPU_F32:
        unpack_band(LLM_CPU_F32, p, m->stride, n_rows, n_cols, no_factor, out, step);
        break;
    case LLM_CPU_F16:
        unpack_band(LLM_CPU_F16, p, m->stride, n_rows, n_cols, no_factor, out, step);
        break;
    case LLM_CPU_BF16:
        unpack_band(LLM_CPU_BF16, p, m->stride, n_rows, n_cols, no_factor, out, step);
        break;
    case LLM_CPU_E4M3:
        unpack_band_e4m3(m, row, n_rows, col, col + n_cols, out, step);
        break;
    }
}

static void unpack(const struct llm_cpu_matrix *m, uint32_t row, uint32_t n_rows, uint32_t col,
                   uint32_t n_cols, float *tiles)
{
    for (uint32_t r = 0; r < n_rows; r += LANES, tiles += BLOCKS(n_cols) * BLOCK) {
        uint32_t n = n_rows - r < LANES ? n_rows - r : LANES;

        unpack_rows(m, row + r, n, col, n_cols, tiles, BLOCK);
        for (size_t b = 0; n < LANES && b < BLOCKS(n_cols); b++) {
            memset(tiles + b * BLOCK + n * LANES, 0, (LANES - n) * LANES * sizeof(*tiles));
        }
    }
}

static void unpack_row(const struct llm_cpu_matrix *m, uint32_t row, float *out)
{
    uint32_t whole = m->cols / LANES * LANES;
    float tail[LANES];

    if (whole > 0) {
        unpack_rows(m, row, 1, 0, whole, out, LANES);
    }
    if (whole < m->cols) {
        unpack_rows(m, row, 1, whole, m->cols - whole, tail, LANES);
        memcpy(out + whole, tail, (m->cols - whole) * sizeof(*out));
    }
}

/* dot */

/* k columns of the product, for n_outs <= LANES outputs. n_r rows are taken with n_o outputs at a
 * time, n_r * n_o == LANES, so that there are as many accumulators as lanes to add. */
struct dot_piece {
    const float *tile;
    uint32_t n_outs, k;
    float *carry; /* [rows][LANES outputs][LANES]: sums over the pieces before */
    bool first, last;
};

/* The same LANES columns of n_r rows of x and of n_o outputs that stand side by side in w. */
INLINE void dot_step(const vf x[4], const float *w, vf acc[LANES], const uint32_t n_r,
                     const uint32_t n_o)
{
    UNROLL
    for (uint32_t n = 0; n < n_o; n++) {
        vf wv = vf_load(w + n * LANES);

        UNROLL
        for (uint32_t r = 0; r < n_r; r++) {
            acc[r * n_o + n] = vf_fma(x[r], wv, acc[r * n_o + n]);
        }
    }
}

INLINE void dot_block(const float *const x[4], const float *w, uint32_t k, vf acc[LANES],
                      const uint32_t n_r, const uint32_t n_o)
{
    size_t i = 0;
    vf xv[4];

    for (; i + LANES <= k; i += LANES, w += BLOCK) {
        UNROLL
        for (uint32_t r = 0; r < n_r; r++) {
            xv[r] = vf_load(x[r] + i);
        }
        dot_step(xv, w, acc, n_r, n_o);
    }
    if (i < k) {
        UNROLL
        for (uint32_t r = 0; r < n_r; r++) {
            xv[r] = vf_load_n(x[r] + i, (uint32_t) (k - i));
        }
        dot_step(xv, w, acc, n_r, n_o);
    }
}

/* n sums of one row. */
INLINE void store_sums(const float *sums, uint32_t n, enum llm_cpu_store store, float weight,
                       float *out)
{
    if (store == LLM_CPU_ADD || store == LLM_CPU_ADD_WEIGHTED) {
        for (uint32_t i = 0; i < n; i++) {
            out[i] += weight * sums[i];
        }
    } else {
        memcpy(out, sums, n * sizeof(*out));
    }
}

/* Rows row … row + n_r of the batch; carry is that of the first. */
INLINE void dot_rows(const struct dot_piece *p, struct llm_cpu_input x, uint32_t row,
                     struct llm_cpu_output out, float *carry, const uint32_t n_r)
{
    const uint32_t n_o = LANES / n_r;
    const float *in[4];
    float sums[LANES], *to[4], weight[4];

    for (uint32_t r = 0; r < n_r; r++) {
        in[r] = x.data + (x.rows != NULL ? x.rows[row + r] : row + r) * x.ld;
        to[r] = out.data + (out.rows != NULL ? out.rows[row + r] : row + r) * out.ld;
        weight[r] = out.store == LLM_CPU_ADD_WEIGHTED ? out.weights[row + r] : 1;
    }

    for (uint32_t n = 0; n < p->n_outs; n += n_o) {
        uint32_t left = p->n_outs - n;
        vf acc[LANES];

        UNROLL
        for (uint32_t i = 0; i < LANES; i++) {
            acc[i] = vf_zero();
        }
        if (!p->first) {
            UNROLL
            for (uint32_t i = 0; i < LANES; i++) {
                acc[i] = vf_load(carry + (i / n_o * LANES + n + i % n_o) * LANES);
            }
        }
        dot_block(in, p->tile + n * LANES, p->k, acc, n_r, n_o);
        if (!p->last) {
            UNROLL
            for (uint32_t i = 0; i < LANES; i++) {
                vf_store(carry + (i / n_o * LANES + n + i % n_o) * LANES, acc[i]);
            }
            continue;
        }

        vf_store(sums, vf_reduce(acc));
        UNROLL
        for (uint32_t r = 0; r < n_r; r++) {
            if (left >= n_o) {
                store_sums(sums + r * n_o, n_o, out.store, weight[r], to[r] + n);
            } else {
                store_sums(sums + r * n_o, left, out.store, weight[r], to[r] + n);
            }
        }
    }
}

static void dot_piece(const struct dot_piece *p, struct llm_cpu_input x, uint32_t row,
                      uint32_t n_rows, struct llm_cpu_output out)
{
    float *carry = p->carry;
    uint32_t end = row + n_rows;

    for (; row + 4 <= end; row += 4, carry += 4 * BLOCK) {
        dot_rows(p, x, row, out, carry, 4);
    }
    if (row + 2 <= end) {
        dot_rows(p, x, row, out, carry, 2);
        row += 2;
        carry += 2 * BLOCK;
    }
    if (row < end) {
        dot_rows(p, x, row, out, carry, 1);
    }
}

static void dot(const struct llm_cpu_matrix *w, uint32_t row, uint32_t n_outs,
                struct llm_cpu_input x, uint32_t n_rows, struct llm_cpu_output out,
                float *scratch)
{
    const uint32_t widest = LLM_CPU_TILE_FLOATS / LANES;
    uint32_t n_pieces = (w->cols + widest - 1) / widest;
    uint32_t width = (uint32_t) BLOCKS((w->cols + n_pieces - 1) / n_pieces) * LANES;
    uint32_t rows = n_pieces == 1 ? n_rows : LLM_CPU_CARRY_ROWS;

    for (uint32_t n = 0; n < n_outs; n += LANES, out.data += LANES) {
        struct dot_piece p = {
            .tile = scratch,
            .n_outs = n_outs - n < LANES ? n_outs - n : LANES,
            .carry = scratch + LLM_CPU_TILE_FLOATS,
        };

        for (uint32_t r = 0; r < n_rows; r += rows) {
            for (uint32_t col = 0; col < w->cols; col += width) {
                struct llm_cpu_input from = {x.data + col, x.ld, x.rows};

                p.k = w->cols - col < width ? w->cols - col : width;
                p.first = col == 0;
                p.last = col + p.k == w->cols;
                unpack(w, row + n, p.n_outs, col, p.k, scratch);
                dot_piece(&p, from, r, n_rows - r < rows ? n_rows - r : rows, out);
            }
        }
    }
}

/* mix */

/* Rows of a that are taken at a time, with LANES / 4 vectors of columns: with as many accumulators
 * as the registers hold the multipliers never wait for one. */
#define MIX_ROWS 6

/* A tile of n_t x n_cols, the weights of its rows and where the sums go: as mix says of them. */
struct mix_piece {
    const float *tile;
    uint32_t n_t, n_cols;
    const float *a;
    size_t lda;
    const float *decay;
    float *out;
    size_t ldo;
};

/* Rows row … row + n_r times n_v vectors of columns from col on, the last of them `last` lanes
 * wide. */
INLINE void mix_block(const struct mix_piece *p, uint32_t row, uint32_t col, uint32_t last,
                      const uint32_t n_r, const uint32_t n_v)
{
    size_t per_row = BLOCKS(p->n_cols) * BLOCK, lda = p->lda, ldo = p->ldo;
    const float *a = p->a + row * lda, *w = p->tile + col / LANES * BLOCK;
    float *out = p->out + row * ldo + col;
    uint32_t n_t = p->n_t;
    vf acc[MIX_ROWS * LANES / 4], av;

    UNROLL
    for (uint32_t r = 0; r < n_r; r++) {
        UNROLL
        for (uint32_t v = 0; v < n_v; v++) {
            acc[r * n_v + v] = vf_zero();
            if (p->decay != NULL) {
                vf old = v + 1 < n_v || last == LANES
                             ? vf_load(out + r * ldo + v * LANES)
                             : vf_load_n(out + r * ldo + v * LANES, last);

                acc[r * n_v + v] = vf_mul(old, vf_set1(p->decay[row + r]));
            }
        }
    }

    for (uint32_t t0 = 0; t0 < n_t; t0 += LANES, w += per_row) {
        uint32_t n = n_t - t0 < LANES ? n_t - t0 : LANES;

        for (uint32_t t = 0; t < n; t++) {
            UNROLL
            for (uint32_t r = 0; r < n_r; r++) {
                av = vf_set1(a[r * lda + t0 + t]);
                UNROLL
                for (uint32_t v = 0; v < n_v; v++) {
                    acc[r * n_v + v] =
                        vf_fma(av, vf_load(w + v * BLOCK + t * LANES), acc[r * n_v + v]);
                }
            }
        }
    }

    UNROLL
    for (uint32_t r = 0; r < n_r; r++) {
        UNROLL
        for (uint32_t v = 0; v < n_v; v++) {
            if (v + 1 < n_v || last == LANES) {
                vf_store(out + r * ldo + v * LANES, acc[r * n_v + v]);
            } else {
                vf_store_n(out + r * ldo + v * LANES, last, acc[r * n_v + v]);
            }
        }
    }
}

INLINE void mix_rows(const struct mix_piece *p, uint32_t row, const uint32_t n_r)
{
    const uint32_t n_v = LANES / 4;
    uint32_t c = 0;

    for (; c + n_v * LANES <= p->n_cols; c += n_v * LANES) {
        mix_block(p, row, c, LANES, n_r, n_v);
    }
    for (; c < p->n_cols; c += LANES) {
        mix_block(p, row, c, p->n_cols - c < LANES ? p->n_cols - c : LANES, n_r, 1);
    }
}

static void mix_piece(const struct mix_piece *p, uint32_t n_rows)
{
    uint32_t row = 0;

    for (; row + MIX_ROWS <= n_rows; row += MIX_ROWS) {
        mix_rows(p, row, MIX_ROWS);
    }
    if (row + 4 <= n_rows) {
        mix_rows(p, row, 4);
        row += 4;
    }
    if (row + 2 <= n_rows) {
        mix_rows(p, row, 2);
        row += 2;
    }
    if (row < n_rows) {
        mix_rows(p, row, 1);
    }
}

static void mix(const struct llm_cpu_matrix *w, uint32_t row, uint32_t n_t, uint32_t col,
                uint32_t n_cols, const float *a, size_t lda, uint32_t n_rows, const float *decay,
                float *out, size_t ldo, float *scratch)
{
    struct mix_piece p = {
        .tile = scratch,
        .n_t = n_t,
        .a = a,
        .lda = lda,
        .decay = decay,
        .ldo = ldo,
    };

    for (uint32_t c = 0; c < n_cols; c += p.n_cols) {
        p.n_cols = n_cols - c < LLM_CPU_MIX_COLS ? n_cols - c : LLM_CPU_MIX_COLS;
        p.out = out + c;
        unpack(w, row, n_t, col + c, p.n_cols, scratch);
        mix_piece(&p, n_rows);
    }
}

/* by rows and elements */

static void softmax(float *s, size_t lds, uint32_t n_q, const uint32_t *n_valid, float scale,
                    float *max, float *sum, float *decay)
{
    for (uint32_t q = 0; q < n_q; q++, s += lds) {
        vf m = vf_set1(-INFINITY), total = vf_zero();
        float lanes[LANES], new_max = max[q];

        if (n_valid[q] == 0) {
            memset(s, 0, lds * sizeof(*s));
            decay[q] = 1;
            continue;
        }

        for (size_t i = n_valid[q]; i < lds; i++) {
            s[i] = -INFINITY;
        }
        for (size_t i = 0; i < lds; i += LANES) {
            vf v = vf_mul(vf_load(s + i), vf_set1(scale));

            vf_store(s + i, v);
            m = vf_max(m, v);
        }
        vf_store(lanes, m);
        for (uint32_t i = 0; i < LANES; i++) {
            new_max = lanes[i] > new_max ? lanes[i] : new_max;
        }

        for (size_t i = 0; i < lds; i += LANES) {
            vf e = vf_exp(vf_sub(vf_load(s + i), vf_set1(new_max)));

            vf_store(s + i, e);
            total = vf_add(total, e);
        }
        vf_store(lanes, vf_exp(vf_set1(max[q] - new_max)));
        decay[q] = lanes[0];
        sum[q] = sum[q] * decay[q] + vf_sum(total);
        max[q] = new_max;
    }
}

static void rms_norm(const float *x, const float *weight, uint32_t n, float eps, float *out)
{
    vf acc[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()}, v, r;
    uint32_t i = 0;

    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        UNROLL
        for (uint32_t j = 0; j < 4; j++) {
            v = vf_load(x + i + j * LANES);
            acc[j] = vf_fma(v, v, acc[j]);
        }
    }
    for (; i < n; i += LANES) {
        v = vf_load_n(x + i, n - i < LANES ? n - i : LANES);
        acc[0] = vf_fma(v, v, acc[0]);
    }

    acc[0] = vf_add(vf_add(acc[0], acc[1]), vf_add(acc[2], acc[3]));
    r = vf_set1(1 / sqrtf(vf_sum(acc[0]) / (float) n + eps));
    for (i = 0; i + LANES <= n; i += LANES) {
        vf_store(out + i, vf_mul(vf_mul(vf_load(x + i), r), vf_load(weight + i)));
    }
    if (i < n) {
        vf_store_n(out + i, n - i,
                   vf_mul(vf_mul(vf_load_n(x + i, n - i), r), vf_load_n(weight + i, n - i)));
    }
}

INLINE vf silu_mul_vector(vf gate, vf up)
{
    vf e = vf_exp(vf_sub(vf_zero(), gate));

    return vf_mul(vf_div(gate, vf_add(vf_set1(1), e)), up);
}

static void silu_mul(const float *gate, const float *up, size_t n, float *out)
{
    size_t i;

    for (i = 0; i + LANES <= n; i += LANES) {
        vf_store(out + i, silu_mul_vector(vf_load(gate + i), vf_load(up + i)));
    }
    if (i < n) {
        uint32_t left = (uint32_t) (n - i);

        vf_store_n(out + i, left,
                   silu_mul_vector(vf_load_n(gate + i, left), vf_load_n(up + i, left)));
    }
}

static void combine(float *out, float a, const float *x, float b, size_t n)
{
    vf av = vf_set1(a), bv = vf_set1(b);
    size_t i;

    for (i = 0; i + LANES <= n; i += LANES) {
        vf_store(out + i, vf_fma(vf_load(x + i), bv, vf_mul(vf_load(out + i), av)));
    }
    if (i < n) {
        uint32_t left = (uint32_t) (n - i);

        vf_store_n(out + i, left,
                   vf_fma(vf_load_n(x + i, left), bv, vf_mul(vf_load_n(out + i, left), av)));
    }
}

static void scale(float *x, float a, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        x[i] *= a;
    }
}

/* n <= LANES values that are bf16 already. */
INLINE void store_bf16(vf v, size_t n, char *out)
{
    uint32_t bits[LANES];
    uint16_t halves[LANES];

    memcpy(bits, &v, sizeof(bits));
    for (size_t i = 0; i < LANES; i++) {
        halves[i] = (uint16_t) (bits[i] >> 16);
    }
    memcpy(out, halves, n * sizeof(halves[0]));
}

static void pack_bf16(const float *x, size_t n, void *out)
{
    char *to = out;
    size_t i;

    for (i = 0; i + LANES <= n; i += LANES) {
        store_bf16(vf_round_bf16(vf_load(x + i)), LANES, to + 2 * i);
    }
    if (i < n) {
        store_bf16(vf_round_bf16(vf_load_n(x + i, (uint32_t) (n - i))), n - i, to + 2 * i);
    }
}

INLINE uint32_t bits_of(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

INLINE float float_of(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof(x));
    return x;
}

/* The code of the e4m3 nearest to x, which is at most 448 but for rounding; of anything for a NaN.
 * Below 2^-6 its values stand 2^-9 apart, as floats do from 2^14 on; elsewhere it keeps three bits
 * of the fraction. */
INLINE uint8_t e4m3_of(float x)
{
    uint32_t bits = bits_of(x), a = bits & 0x7fffffff;
    uint32_t normal = ((a + 0x7ffff + (a >> 20 & 1)) >> 20) - ((127 - 7) << 3);
    uint32_t subnormal = bits_of(float_of(a) + 0x1p14f) - bits_of(0x1p14f);

    return (uint8_t) ((bits >> 24 & 0x80) | (a < bits_of(0x1p-6f) ? subnormal : normal));
}

/* In plain C, which the compiler turns into vectors: nothing here rounds in more than one way. */
static void pack_e4m3(const float *x, size_t n, size_t block, uint8_t *out, void *scales)
{
    char *to = scales;

    for (size_t at = 0, m; at < n; at += m, to += sizeof(float)) {
        uint32_t largest = 0; /* as bits, where infinity is above all numbers and NaN above that */
        float factor;

        m = n - at < block ? n - at : block;
        for (size_t i = at; i < at + m; i++) {
            uint32_t a = bits_of(x[i]) & 0x7fffffff;

            largest = a > largest ? a : largest;
        }
        factor = float_of(largest) / 448;
        factor = factor < FLT_MIN ? FLT_MIN : factor;
        memcpy(to, &factor, sizeof(factor));
        for (size_t i = at; i < at + m; i++) {
            out[i] = e4m3_of(x[i] / factor);
        }
    }
}

static void exp_scaled(const float *x, float shift, float factor, size_t n, float *out)
{
    vf s = vf_set1(shift), f = vf_set1(factor);
    size_t i;

    for (i = 0; i + LANES <= n; i += LANES) {
        vf_store(out + i, vf_exp(vf_mul(vf_sub(vf_load(x + i), s), f)));
    }
    if (i < n) {
        uint32_t left = (uint32_t) (n - i);

        vf_store_n(out + i, left, vf_exp(vf_mul(vf_sub(vf_load_n(x + i, left), s), f)));
    }
}

const struct llm_cpu_kernels KERNELS_NAME = {
    .isa = KERNELS_ISA,
    .title = KERNELS_TITLE,
    .unpack_row = unpack_row,
    .dot = dot,
    .mix = mix,
    .softmax = softmax,
    .rms_norm = rms_norm,
    .silu_mul = silu_mul,
    .combine = combine,
    .scale = scale,
    .pack_bf16 = pack_bf16,
    .pack_e4m3 = pack_e4m3,
    .exp_scaled = exp_scaled,
};
