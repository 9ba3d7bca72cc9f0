/* Every kernel of every instruction set against plain double arithmetic, on shapes that are no
 * multiple of anything, with outputs that were NaN before. */

#include "kernels/cpu/kernels.h"
#include "t/unit/tap.h"

#include <float.h>
#include <math.h>

static uint64_t random_state = 20;

static uint32_t rnd(uint32_t below)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t) (random_state >> 33) % below;
}

static float uniform(void)
{
    return (float) rnd(1 << 24) * 0x1p-23f - 1;
}

static void *allocate(size_t n)
{
    void *p = malloc(n);

    if (p == NULL) {
        puts("Bail out! out of memory");
        exit(1);
    }
    return p;
}

static float *floats(size_t n)
{
    float *p = allocate((n + 1) * sizeof(*p));

    for (size_t i = 0; i < n; i++) {
        p[i] = uniform();
    }
    return p;
}

static float *poisoned(size_t n)
{
    float *p = allocate((n + 1) * sizeof(*p));

    for (size_t i = 0; i < n; i++) {
        p[i] = NAN;
    }
    return p;
}

static bool same_bits(float a, float b)
{
    return memcmp(&a, &b, sizeof(a)) == 0 || (isnan(a) && isnan(b));
}

static float from_bits(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof(f));
    return f;
}

/* the formats, straight from their definitions; of e4m3's NaN see kernels.h */

static float e4m3(uint8_t b)
{
    int exponent = b >> 3 & 15, mantissa = b & 7;
    double v = exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, exponent - 10);

    return (float) (b & 0x80 ? -v : v);
}

static float f16(uint16_t h)
{
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    double v = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);

    if (exponent == 31) {
        v = mantissa != 0 ? NAN : INFINITY;
    }
    return (float) (h & 0x8000 ? -v : v);
}

static float stored(const struct llm_cpu_matrix *m, uint32_t row, uint32_t col)
{
    const uint8_t *p = (const uint8_t *) m->data + row * m->stride;
    const uint8_t *s;
    uint16_t h;
    float f;

    switch (m->dtype) {
    case LLM_CPU_F32:
        memcpy(&f, p + col * 4, 4);
        return f;
    case LLM_CPU_F16:
        memcpy(&h, p + col * 2, 2);
        return f16(h);
    case LLM_CPU_BF16:
        memcpy(&h, p + col * 2, 2);
        return from_bits((uint32_t) h << 16);
    default:
        s = (const uint8_t *) m->scale + row / m->block_rows * m->scale_stride;
        memcpy(&f, s + col / m->block_cols * 4, 4);
        return e4m3(p[col]) * f;
    }
}

static const uint32_t element_bytes[] = {4, 2, 2, 1};

/* A random matrix of random type, one byte off any alignment and as large as it is (for the
 * sanitizer), all of it finite and about 1. */
static struct llm_cpu_matrix random_matrix(uint32_t rows, uint32_t cols)
{
    static const uint32_t blocks[][2] = {{128, 128}, {64, 16}, {5, 7}, {1, 128}};
    struct llm_cpu_matrix m = {.dtype = (enum llm_cpu_dtype) rnd(4), .rows = rows, .cols = cols};
    uint32_t b = rnd(4), scale_rows, scale_cols;
    uint8_t *data, *scale;

    m.stride = cols * element_bytes[m.dtype] + rnd(3);
    data = allocate(rows * m.stride + 1);
    m.data = data + 1;
    for (size_t i = 0; i <= rows * m.stride; i++) {
        data[i] = (uint8_t) rnd(256);
    }
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t c = 0; c < cols; c++) {
            uint8_t *p = data + 1 + r * m.stride + c * element_bytes[m.dtype];
            float f = uniform();
            uint32_t u;
            uint16_t h = (uint16_t) (rnd(2) << 15 | (1 + rnd(14)) << 10 | rnd(1024));

            memcpy(&u, &f, sizeof(u));
            if (m.dtype == LLM_CPU_F32) {
                memcpy(p, &f, sizeof(f));
            } else if (m.dtype == LLM_CPU_E4M3) {
                *p = (uint8_t) (rnd(2) << 7 | rnd(0x40));
            } else {
                h = m.dtype == LLM_CPU_BF16 ? (uint16_t) (u >> 16) : h;
                memcpy(p, &h, sizeof(h));
            }
        }
    }
    if (m.dtype != LLM_CPU_E4M3) {
        return m;
    }

    m.block_rows = blocks[b][0];
    m.block_cols = blocks[b][1];
    scale_rows = (rows - 1) / m.block_rows + 1;
    scale_cols = (cols - 1) / m.block_cols + 1;
    m.scale_stride = scale_cols * 4 + 4;
    scale = allocate(scale_rows * m.scale_stride + 1);
    m.scale = scale + 1;
    for (uint32_t i = 0; i < scale_rows * m.scale_stride / 4; i++) {
        float f = uniform();

        memcpy(scale + 1 + i * 4, &f, sizeof(f));
    }
    return m;
}

static void free_matrix(struct llm_cpu_matrix *m)
{
    free((uint8_t *) m->data - 1);
    if (m->scale != NULL) {
        free((uint8_t *) m->scale - 1);
    }
}

static void test_unpack_row(const struct llm_cpu_kernels *k)
{
    static uint16_t halves[65536];
    uint8_t codes[256];
    float one = 1, *out = poisoned(65537);
    struct llm_cpu_matrix m = {LLM_CPU_E4M3, 1, 256, codes, 256, &one, 4, 128, 256};
    bool good = true;

    for (uint32_t i = 0; i < 256; i++) {
        codes[i] = (uint8_t) i;
    }
    k->unpack_row(&m, 0, out);
    for (uint32_t i = 0; i < 256; i++) {
        good &= same_bits(out[i], e4m3((uint8_t) i));
    }
    ok(good && isnan(out[256]), "%s: unpack_row: all codes of e4m3", k->isa);

    for (uint32_t i = 0; i < 65536; i++) {
        halves[i] = (uint16_t) i;
    }
    m = (struct llm_cpu_matrix){LLM_CPU_F16, 1, 65536, halves, sizeof(halves), NULL, 0, 0, 0};
    k->unpack_row(&m, 0, out);
    good = true;
    for (uint32_t i = 0; i < 65536; i++) {
        good &= same_bits(out[i], f16((uint16_t) i));
    }
    ok(good && isnan(out[65536]), "%s: unpack_row: all codes of f16", k->isa);
    free(out);

    good = true;
    for (int round = 0; round < 300; round++) {
        m = random_matrix(1 + rnd(150), 1 + rnd(300));
        out = poisoned(m.cols + 1);
        for (uint32_t row = rnd(m.rows), c = 0; c <= m.cols; c++) {
            if (c == 0) {
                k->unpack_row(&m, row, out);
            }
            good &= c < m.cols ? same_bits(out[c], stored(&m, row, c)) : isnan(out[c]);
        }
        free(out);
        free_matrix(&m);
    }
    ok(good, "%s: unpack_row: all types, blocks and widths", k->isa);
}

/* Random rows of x into random rows of out, stored in all ways. */
static void test_dot(const struct llm_cpu_kernels *k)
{
    enum { MAX_ROWS = 140 };
    bool values = true, alone = true, borders = true;

    for (int round = 0; round < 400; round++) {
        bool large = round % 20 == 0;
        uint32_t n_rows = rnd(large ? MAX_ROWS : 14), n = 1 + rnd(large ? 5000 : 330);
        uint32_t n_outs = 1 + rnd(70), first = rnd(40), in[MAX_ROWS], to[MAX_ROWS];
        size_t ldx = n + rnd(5), ldo = n_outs + 1 + rnd(5), n_out = (MAX_ROWS + 1) * ldo;
        struct llm_cpu_matrix w = random_matrix(first + n_outs, n);
        float *x = floats(20 * ldx), *weights = floats(MAX_ROWS);
        float *scratch = poisoned(LLM_CPU_DOT_SCRATCH), *row = poisoned(n);
        struct llm_cpu_input input = {x, ldx, in};
        struct llm_cpu_output output = {
            NULL, ldo, rnd(2) ? to : NULL, (enum llm_cpu_store) (round % 3), weights};
        bool adds = output.store != LLM_CPU_SET;
        float *before = adds ? floats(n_out) : poisoned(n_out);
        float *out = floats(n_out), *single = floats(n_out);

        for (uint32_t r = 0; r < MAX_ROWS; r++) {
            in[r] = rnd(20);
            to[r] = MAX_ROWS - 1 - r;
        }
        if (n_rows <= 20 && rnd(2)) {
            input.rows = NULL;
        }
        memcpy(out, before, n_out * sizeof(*out));
        memcpy(single, before, n_out * sizeof(*out));
        output.data = out;
        k->dot(&w, first, n_outs, input, n_rows, output, scratch);

        for (uint32_t r = 0; r < n_rows; r++) {
            size_t at = (output.rows != NULL ? to[r] : r) * ldo;

            k->dot(&w, first, n_outs,
                   (struct llm_cpu_input){x + (input.rows != NULL ? in[r] : r) * ldx, 0, NULL}, 1,
                   (struct llm_cpu_output){single + at, 0, NULL, output.store, weights + r},
                   scratch);
        }
        for (uint32_t o = 0; o < n_outs; o++) {
            k->unpack_row(&w, first + o, row);
            for (uint32_t r = 0; r < n_rows; r++) {
                const float *xr = x + (input.rows != NULL ? in[r] : r) * ldx;
                size_t at = (output.rows != NULL ? to[r] : r) * ldo + o;
                double sum = 0, size = 0;

                for (uint32_t i = 0; i < n; i++) {
                    sum += (double) xr[i] * row[i];
                    size += fabs((double) xr[i] * row[i]);
                }
                sum *= output.store == LLM_CPU_ADD_WEIGHTED ? weights[r] : 1;
                sum += adds ? before[at] : 0;
                values &= fabs(sum - out[at]) < 1e-6 * (size + 1);
            }
        }
        for (size_t i = 0; i < n_out; i++) {
            alone &= same_bits(out[i], single[i]);
        }
        for (uint32_t r = 0; r <= MAX_ROWS; r++) {
            borders &= same_bits(out[r * ldo + n_outs], before[r * ldo + n_outs]);
        }

        free_matrix(&w);
        free(x);
        free(weights);
        free(scratch);
        free(row);
        free(before);
        free(out);
        free(single);
    }
    ok(values, "%s: dot: values", k->isa);
    ok(alone, "%s: dot: rows one by one give the same bits", k->isa);
    ok(borders, "%s: dot: nothing written beyond the outputs", k->isa);
}

static void test_mix(const struct llm_cpu_kernels *k)
{
    bool values = true, alone = true, borders = true;

    for (int round = 0; round < 300; round++) {
        bool large = round % 20 == 0;
        uint32_t n_rows = rnd(14), n_t = 1 + rnd(large ? 1500 : 140), first = rnd(40);
        uint32_t n_cols = 1 + rnd(330), col = rnd(3) * 16 + rnd(2) * rnd(20);
        size_t lda = n_t + rnd(5), ldo = n_cols + 1 + rnd(5);
        struct llm_cpu_matrix w = random_matrix(first + n_t, col + n_cols);
        float *a = floats(14 * lda), *decay = rnd(2) ? floats(14) : NULL;
        float *before = decay != NULL ? floats(15 * ldo) : poisoned(15 * ldo);
        float *out = floats(15 * ldo), *single = floats(ldo), *row = poisoned(w.cols);
        float *scratch = poisoned(llm_cpu_mix_scratch(n_t));
        double *sums = calloc(14 * n_cols, sizeof(*sums)), *sizes = calloc(14 * n_cols, 8);

        memcpy(out, before, 15 * ldo * sizeof(*out));
        k->mix(&w, first, n_t, col, n_cols, a, lda, n_rows, decay, out, ldo, scratch);

        for (uint32_t t = 0; t < n_t; t++) {
            k->unpack_row(&w, first + t, row);
            for (uint32_t i = 0; i < n_rows * n_cols; i++) {
                double p = (double) a[i / n_cols * lda + t] * row[col + i % n_cols];

                sums[i] += p;
                sizes[i] += fabs(p);
            }
        }
        for (uint32_t r = 0; r < n_rows; r++) {
            memcpy(single, before + r * ldo, ldo * sizeof(*single));
            k->mix(&w, first, n_t, col, n_cols, a + r * lda, 0, 1,
                   decay != NULL ? decay + r : NULL, single, 0, scratch);
            alone &= memcmp(single, out + r * ldo, n_cols * sizeof(*out)) == 0;
            for (uint32_t c = 0; c < n_cols; c++) {
                double want = sums[r * n_cols + c];

                want += decay != NULL ? (double) before[r * ldo + c] * decay[r] : 0;
                values &= fabs(want - out[r * ldo + c]) < 1e-6 * (sizes[r * n_cols + c] + 1);
            }
            borders &= same_bits(out[r * ldo + n_cols], before[r * ldo + n_cols]);
        }
        borders &= same_bits(out[n_rows * ldo], before[n_rows * ldo]);

        free_matrix(&w);
        free(a);
        free(decay);
        free(before);
        free(out);
        free(single);
        free(row);
        free(scratch);
        free(sums);
        free(sizes);
    }
    ok(values, "%s: mix: values", k->isa);
    ok(alone, "%s: mix: a row alone gives the same bits", k->isa);
    ok(borders, "%s: mix: nothing written beyond the columns", k->isa);
}

/* Three pages of 64 scores, with as many valid as the test says, against one plain softmax. */
static void test_softmax(const struct llm_cpu_kernels *k)
{
    bool terms = true, sums = true;

    for (int round = 0; round < 200; round++) {
        float s[3][64], scores[3][64], max = -INFINITY, sum = 0, decay[3];
        uint32_t valid[3] = {rnd(65), rnd(65), rnd(65)};
        double top = -INFINITY, total = 0;

        for (uint32_t p = 0; p < 3; p++) {
            for (uint32_t i = 0; i < 64; i++) {
                scores[p][i] = i < valid[p] ? 40 * uniform() : NAN;
                if (i < valid[p] && scores[p][i] * 0.7 > top) {
                    top = scores[p][i] * 0.7;
                }
            }
        }
        memcpy(s, scores, sizeof(s));
        for (uint32_t p = 0; p < 3; p++) {
            k->softmax(s[p], 64, 1, &valid[p], 0.7f, &max, &sum, &decay[p]);
        }

        for (uint32_t p = 0; p < 3; p++) {
            for (uint32_t i = 0; i < 64; i++) {
                double want = i < valid[p] ? exp(scores[p][i] * 0.7 - top) : 0, got = s[p][i];

                for (uint32_t later = p + 1; later < 3; later++) {
                    got *= decay[later];
                }
                terms &= fabs(got - want) <= 2e-6 * (want + 1e-6);
                total += want;
            }
        }
        sums &= fabs(sum - total) <= 2e-6 * total
                && (total == 0 || fabs(max - top) < 1e-5);
    }
    ok(terms, "%s: softmax: terms, decayed over the pages", k->isa);
    ok(sums, "%s: softmax: running sum and maximum", k->isa);
}

static uint16_t bf16_reference(float f)
{
    uint32_t u, low;

    memcpy(&u, &f, sizeof(u));
    low = u & 0xffff;
    u >>= 16;
    if (isnan(f)) {
        return (uint16_t) (u | 0x40);
    }
    return (uint16_t) (u + (low > 0x8000 || (low == 0x8000 && u & 1)));
}

static void test_elements(const struct llm_cpu_kernels *k)
{
    static const uint16_t lows[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    bool good = true, mul = true, sum = true, scaled = true;

    for (uint32_t i = 0; i < 6; i++) {
        float *x = floats(65536 - i);
        uint16_t *packed = allocate((65536 - i) * sizeof(*packed));

        for (uint32_t h = 0; h < 65536 - i; h++) {
            x[h] = from_bits(h << 16 | lows[i]);
        }
        k->pack_bf16(x, 65536 - i, packed);
        for (uint32_t h = 0; h < 65536 - i; h++) {
            good &= packed[h] == bf16_reference(from_bits(h << 16 | lows[i]));
        }
        free(x);
        free(packed);
    }
    ok(good, "%s: pack_bf16: ties to even, NaN stays NaN", k->isa);

    good = true;
    for (uint32_t n = 1; n < 300; n += 1 + rnd(9)) {
        float *x = floats(n), *w = floats(n), *out = poisoned(n + 1);
        double mean = 0;

        for (uint32_t i = 0; i < n; i++) {
            mean += (double) x[i] * x[i] / n;
        }
        k->rms_norm(x, w, n, 1e-6f, out);
        for (uint32_t i = 0; i < n; i++) {
            good &= fabs(x[i] / sqrt(mean + 1e-6f) * w[i] - out[i]) < 2e-6;
        }
        good &= isnan(out[n]);

        for (uint32_t i = 0; i < n; i++) {
            x[i] *= 100;
        }
        out[n] = NAN;
        k->silu_mul(x, w, n, out);
        for (uint32_t i = 0; i < n; i++) {
            double want = x[i] / (1 + exp(-(double) x[i])) * w[i];

            mul &= fabs(want - out[i]) <= 1e-6 * fabs(want) + 1e-30;
        }
        mul &= isnan(out[n]);

        for (uint32_t i = 0; i < n; i++) {
            out[i] = w[i];
        }
        k->combine(out, 0.3f, x, 0.6f, n);
        for (uint32_t i = 0; i < n; i++) {
            sum &= fabs(0.3 * w[i] + 0.6 * x[i] - out[i]) < 1e-5;
        }
        sum &= isnan(out[n]);
        memcpy(out, w, n * sizeof(*w));
        k->scale(out, 0.37f, n);
        for (uint32_t i = 0; i < n; i++) {
            scaled &= out[i] == w[i] * 0.37f;
        }
        scaled &= isnan(out[n]);
        free(x);
        free(w);
        free(out);
    }
    ok(good, "%s: rms_norm", k->isa);
    ok(mul, "%s: silu_mul, also far from zero", k->isa);
    ok(sum, "%s: combine", k->isa);
    ok(scaled, "%s: scale", k->isa);
}

/* The nearest of all codes, of two equally near the even one; no code beyond 448, no NaN. */
static uint8_t e4m3_reference(float x)
{
    uint8_t best = 0, sign = signbit(x) ? 0x80 : 0;
    double least = INFINITY;

    for (uint32_t c = 0; c < 0x7f; c++) {
        double off = fabs(fabs((double) x) - e4m3((uint8_t) c));

        if (off < least || (off == least && c % 2 == 0)) {
            least = off;
            best = (uint8_t) c;
        }
    }
    return best | sign;
}

/* A block's values: ordinary ones, zeros, the largest and smallest floats, halfway between two
 * codes, of all magnitudes. */
static void fill_block(float *x, size_t n)
{
    int kind = (int) rnd(6);
    float size = kind == 2 ? FLT_MAX : kind == 3 ? 0x1p-140f : 1;

    for (size_t i = 0; i < n; i++) {
        x[i] = kind == 1 ? 0 : uniform() * size;
        if (kind == 4) { /* with 448 the scale is 1 */
            x[i] = i == 0 ? -448 : (e4m3((uint8_t) rnd(0x7e)) + e4m3((uint8_t) rnd(0x7e))) / 2;
        } else if (kind == 5) {
            x[i] = from_bits(rnd(1 << 16) << 16 | rnd(1 << 16));
            x[i] = isfinite(x[i]) ? x[i] : -0.0f;
        }
    }
}

static void test_pack_e4m3(const struct llm_cpu_kernels *k)
{
    bool codes = true, scales = true, borders = true, whole = true;

    for (int round = 0; round < 600; round++) {
        size_t block = round % 2 ? 128 : 1 + rnd(40), n = 1 + rnd(600), at = 0;
        size_t n_scales = (n + block - 1) / block;
        float *x = floats(n);
        uint8_t *out = allocate(n + 1), *factors = allocate(n_scales * 4 + 2) ;

        for (at = 0; at < n; at += block) {
            fill_block(x + at, n - at < block ? n - at : block);
        }
        out[n] = 0xee;
        factors[0] = factors[n_scales * 4 + 1] = 0xee;
        k->pack_e4m3(x, n, block, out, factors + 1); /* of no alignment */
        borders &= out[n] == 0xee && factors[0] == 0xee && factors[n_scales * 4 + 1] == 0xee;

        for (size_t i = 0; i < n; i++) {
            float largest = 0, factor;

            for (size_t j = i / block * block; j < n && j < (i / block + 1) * block; j++) {
                largest = fmaxf(largest, fabsf(x[j]));
            }
            memcpy(&factor, factors + 1 + i / block * 4, sizeof(factor));
            scales &= factor == fmaxf(largest / 448, FLT_MIN);
            codes &= out[i] == e4m3_reference(x[i] / factor);
            whole &= x[i] != largest || largest < 448 * FLT_MIN || out[i] == 0x7e;
        }
        free(x);
        free(out);
        free(factors);
    }
    ok(codes, "%s: pack_e4m3: the nearest code, ties to even", k->isa);
    ok(scales && whole, "%s: pack_e4m3: the largest becomes 448", k->isa);
    ok(borders, "%s: pack_e4m3: nothing written beyond", k->isa);

    for (int i = 0; i < 3; i++) {
        static const float bad[] = {NAN, INFINITY, -INFINITY};
        float x[256], factors[2], back[256];
        struct llm_cpu_matrix m = {LLM_CPU_E4M3, 1, 256, NULL, 256, factors, 8, 1, 128};
        uint8_t out[256];
        bool good = true;

        for (int j = 0; j < 256; j++) {
            x[j] = uniform();
        }
        x[17] = bad[i];
        k->pack_e4m3(x, 256, 128, out, factors);
        m.data = out;
        k->unpack_row(&m, 0, back);
        for (int j = 0; j < 256; j++) {
            good &= (out[j] & 0x7f) != 0x7f && (j >= 128) == isfinite(back[j]);
        }
        ok(good, "%s: pack_e4m3: a block with %f is not finite, the next one is", k->isa,
           (double) bad[i]);
    }
}

static void test_exp(const struct llm_cpu_kernels *k)
{
    float special[] = {0, -INFINITY, -88, 1000, NAN}, out[5];
    bool good = true;

    for (int round = 0; round < 100; round++) {
        float x[37], y[38];

        y[37] = NAN;
        for (uint32_t i = 0; i < 37; i++) {
            x[i] = 87 * uniform();
        }
        k->exp_scaled(x, 0.5f, 0.9f, 37, y);
        for (uint32_t i = 0; i < 37; i++) {
            float at = (x[i] - 0.5f) * 0.9f;

            good &= fabs(y[i] / exp(at) - 1) < 2e-7;
        }
        good &= isnan(y[37]);
        k->exp_scaled(x, 0.5f, 0.9f, 37, x);
        good &= memcmp(x, y, sizeof(x)) == 0;
    }
    ok(good, "%s: exp_scaled: to 2e-7, in place too", k->isa);

    k->exp_scaled(special, 0, 1, 5, out);
    ok(out[0] == 1 && out[1] == 0 && out[2] == 0 && out[3] > 2e38f && isnan(out[4]),
       "%s: exp_scaled: 0, -inf, underflow, overflow, NaN", k->isa);
}

int main(void)
{
    static const char *const names[] = {"scalar", "avx2", "avx512"};

    for (int i = 0; i < 3; i++) {
        const struct llm_cpu_kernels *k = llm_cpu_kernels_pick(names[i]);

        if (k == NULL) {
            ok(i > 0, "%s # SKIP not on this processor", names[i]);
            continue;
        }
        is_str(k->isa, names[i], "%s: picked by name", names[i]);
        test_unpack_row(k);
        test_dot(k);
        test_mix(k);
        test_softmax(k);
        test_elements(k);
        test_pack_e4m3(k);
        test_exp(k);
    }
    ok(llm_cpu_kernels_pick(NULL) != NULL, "the best one here");
    ok(llm_cpu_kernels_pick("avx1024") == NULL, "an unknown one");
    return done_testing();
}
