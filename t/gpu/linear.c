/* Linear operations on few rows against plain double arithmetic: every dtype and store, shapes
 * that are no multiple of anything, several matrices and batches in a launch, and the same bits
 * whatever the number of rows. */

#include "t/gpu/gpu.h"

#define GAP 8 /* between rows of an output: stays as it was */

struct operand {
    struct llm_cuda_linear l;
    uint8_t *w;
    float *scale;
    uint16_t *x;
    float *before; /* what an ADD adds to */
    size_t w_bytes, n_scales, n_x, n_out;
};

static double weight(const struct operand *o, uint32_t member, uint32_t row, uint32_t col)
{
    const struct llm_cuda_matrix *m = &o->l.w;
    const uint8_t *p = o->w + member * o->l.w_step + row * m->stride;
    uint16_t h;

    if (m->dtype == LLM_CUDA_BF16) {
        memcpy(&h, p + col * 2, 2);
        return f32_of_bf16(h);
    }
    return (double) f32_of_e4m3(p[col])
           * o->scale[member * o->l.scale_step + row / 128 * m->scale_stride + col / 128];
}

/* Everything beyond what an operation may read is NaN. */
static struct operand random_operand(enum llm_cuda_dtype dtype, uint32_t rows, uint32_t cols,
                                     uint32_t n_rows, uint32_t n_batch)
{
    struct operand o = {.l = {.w = {.dtype = dtype, .rows = rows, .cols = cols}}};
    size_t size = dtype == LLM_CUDA_BF16 ? 2 : 1;
    struct llm_cuda_linear *l = &o.l;

    l->n_batch = n_batch;
    l->w.stride = (cols * size + 15) / 16 * 16 + rnd(3) * 16;
    l->w_step = l->w.stride * (rows + rnd(3));
    l->w.scale_stride = (cols + 127) / 128 + rnd(3);
    l->scale_step = l->w.scale_stride * ((rows + 127) / 128 + rnd(2));
    l->ldx = (cols + 7) / 8 * 8 + rnd(3) * 8;
    l->x_step = l->ldx * n_rows;
    l->ldo = rows + GAP;
    l->out_step = l->ldo * n_rows;
    l->store = (enum llm_cuda_store) rnd(3);

    o.w_bytes = l->w_step * n_batch;
    o.n_scales = l->scale_step * n_batch;
    o.n_x = l->x_step * n_batch;
    o.n_out = l->out_step * n_batch;
    o.w = allocate(o.w_bytes);
    o.scale = allocate(o.n_scales * sizeof(*o.scale));
    o.x = allocate(o.n_x * sizeof(*o.x));
    o.before = allocate(o.n_out * sizeof(*o.before));
    memset(o.w, 0xFF, o.w_bytes);
    memset(o.x, 0xFF, o.n_x * sizeof(*o.x));
    for (size_t i = 0; i < o.n_scales; i++) {
        o.scale[i] = 0.02f + 0.01f * uniform();
    }
    for (size_t i = 0; i < o.n_out; i++) {
        o.before[i] = uniform();
    }

    for (uint32_t b = 0; b < n_batch; b++) {
        for (size_t row = 0; row < rows; row++) {
            for (size_t col = 0; col < cols; col++) {
                uint8_t *p = o.w + b * l->w_step + row * l->w.stride + col * size;
                uint16_t h = bf16_of_f32(uniform());

                *p = (uint8_t) (rnd(2) * 128 + rnd(127));
                if (dtype == LLM_CUDA_BF16) {
                    memcpy(p, &h, 2);
                }
            }
        }
        for (size_t r = 0; r < n_rows; r++) {
            for (size_t i = 0; i < cols; i++) {
                o.x[b * l->x_step + r * l->ldx + i] = bf16_of_f32(uniform());
            }
        }
    }
    return o;
}

static void to_device(struct operand *o)
{
    o->l.w.data = device_copy(o->w, o->w_bytes);
    o->l.w.scale = device_copy(o->scale, o->n_scales * sizeof(*o->scale));
    o->l.x = device_copy(o->x, o->n_x * sizeof(*o->x));
    o->l.out = o->l.store == LLM_CUDA_ADD_F32
                   ? device_copy(o->before, o->n_out * sizeof(*o->before))
                   : device_poisoned(o->n_out * sizeof(*o->before));
}

static void release(struct operand *o)
{
    CUDA(cudaFree((void *) o->l.w.data));
    CUDA(cudaFree((void *) o->l.w.scale));
    CUDA(cudaFree((void *) o->l.x));
    CUDA(cudaFree(o->l.out));
    free(o->w);
    free(o->scale);
    free(o->x);
    free(o->before);
}

static float *result(const struct operand *o)
{
    float *out = allocate(o->n_out * sizeof(*out));
    size_t size = o->l.store == LLM_CUDA_SET_BF16 ? 2 : 4;
    uint16_t *h = (uint16_t *) out;

    CUDA(cudaMemcpy(out, o->l.out, o->n_out * size, cudaMemcpyDeviceToHost));
    for (size_t i = o->n_out; size == 2 && i-- > 0;) {
        out[i] = f32_of_bf16(h[i]);
    }
    return out;
}

static double error_of(const struct operand *o, uint32_t n_rows, bool *kept_gap)
{
    const struct llm_cuda_linear *l = &o->l;
    float *out = result(o), *got = allocate(o->n_out * sizeof(*got));
    double *want = allocate(o->n_out * sizeof(*want)), d;
    double *row = allocate(l->w.cols * sizeof(*row));
    size_t n = 0;

    for (uint32_t b = 0; b < l->n_batch; b++) {
        for (uint32_t i = 0; i < l->w.rows + GAP; i++) {
            for (uint32_t k = 0; i < l->w.rows && k < l->w.cols; k++) {
                row[k] = weight(o, b, i, k);
            }
            for (size_t r = 0; r < n_rows; r++) {
                size_t at = b * l->out_step + r * l->ldo + i;
                const uint16_t *x = o->x + b * l->x_step + r * l->ldx;
                double sum = l->store == LLM_CUDA_ADD_F32 ? o->before[at] : 0;

                if (i >= l->w.rows) {
                    *kept_gap &= l->store == LLM_CUDA_ADD_F32 ? out[at] == o->before[at]
                                                              : isnan(out[at]);
                    continue;
                }
                for (uint32_t k = 0; k < l->w.cols; k++) {
                    sum += row[k] * f32_of_bf16(x[k]);
                }
                want[n] = sum;
                got[n++] = out[at];
            }
        }
    }
    d = distance(got, want, n);
    free(out);
    free(got);
    free(want);
    free(row);
    return d;
}

static void test_random(uint32_t count)
{
    static const uint32_t most[] = {1, 8, 16, 32, 64};

    for (uint32_t i = 0; i < count; i++) {
        struct operand o[LLM_CUDA_MAX_LINEARS];
        struct llm_cuda_linear l[LLM_CUDA_MAX_LINEARS];
        enum llm_cuda_dtype dtype = (enum llm_cuda_dtype) (i % 2);
        uint32_t n = 1 + rnd(LLM_CUDA_MAX_LINEARS), n_rows = 1 + rnd(most[i / 2 % 5]);
        struct llm_cuda_queue q = {.overlap = rnd(2)};
        bool right = true, kept = true;
        double worst = 0;

        for (uint32_t j = 0; j < n; j++) {
            uint32_t cols = rnd(2) ? (1 + rnd(16)) * 64 : 1 + rnd(2500), rows = 1 + rnd(300);

            if (rnd(4) == 0) {
                rows = 1 + rnd(6000);
                cols = 1 + rnd(260);
            }
            o[j] = random_operand(dtype, rows, cols, n_rows, 1 + rnd(3));
            to_device(&o[j]);
            l[j] = o[j].l;
        }
        CUDA(llm_cuda_linears(l, n, n_rows, q));
        CUDA(cudaDeviceSynchronize());
        for (uint32_t j = 0; j < n; j++) {
            double d = error_of(&o[j], n_rows, &kept);

            right &= d < (o[j].l.store == LLM_CUDA_SET_BF16 ? 3e-3 : 1e-6);
            worst = d > worst || isnan(d) ? d : worst;
            release(&o[j]);
        }
        if (!ok(right && kept, "%s, %u matrices, %u rows", dtype == LLM_CUDA_BF16 ? "bf16" : "e4m3",
                n, n_rows)) {
            diag("error %g, beyond the rows %s", worst, kept ? "nothing" : "something");
        }
    }
}

/* Row by row, and all at once. */
static void test_rows(enum llm_cuda_dtype dtype, uint32_t rows, uint32_t cols)
{
    struct operand o = random_operand(dtype, rows, cols, 64, 1);
    struct llm_cuda_queue q = {0};
    bool same = true;
    float *all, *one;

    o.l.store = LLM_CUDA_SET_F32;
    to_device(&o);
    CUDA(llm_cuda_linears(&o.l, 1, 64, q));
    all = result(&o);
    for (uint32_t n = 1; n < 64; n = n * 2 + 1) {
        struct llm_cuda_linear l = o.l;
        uint32_t first = rnd(64 - n);

        CUDA(cudaMemset(o.l.out, 0xFF, o.n_out * sizeof(float)));
        l.x = (const uint16_t *) l.x + first * l.ldx;
        CUDA(llm_cuda_linears(&l, 1, n, q));
        one = result(&o);
        for (uint32_t r = 0; r < n; r++) {
            same &= memcmp(one + r * l.ldo, all + (first + r) * l.ldo, rows * sizeof(*one)) == 0;
        }
        free(one);
    }
    ok(same, "%s, %u x %u: the bits of a row do not depend on the others",
       dtype == LLM_CUDA_BF16 ? "bf16" : "e4m3", rows, cols);
    free(all);
    release(&o);
}

/* Every value that a weight can have, times one, by a scale of one. */
static void test_e4m3(void)
{
    struct operand o = random_operand(LLM_CUDA_E4M3, 256, 16, 1, 1);
    struct llm_cuda_queue q = {0};
    bool exact = true;
    float *out;

    for (uint32_t i = 0; i < 256; i++) {
        memset(o.w + i * o.l.w.stride, 0, 16);
        o.w[i * o.l.w.stride + i % 16] = (uint8_t) i;
    }
    for (uint32_t i = 0; i < 16; i++) {
        o.x[i] = bf16_of_f32(1);
    }
    for (size_t i = 0; i < o.n_scales; i++) {
        o.scale[i] = 1;
    }
    o.l.store = LLM_CUDA_SET_F32;
    to_device(&o);
    CUDA(llm_cuda_linears(&o.l, 1, 1, q));
    out = result(&o);
    for (uint32_t i = 0; i < 256; i++) {
        exact &= out[i] == f32_of_e4m3((uint8_t) i);
    }
    ok(exact, "e4m3: all 256 codes");
    free(out);
    release(&o);
}

int main(int argc, char **argv)
{
    test_e4m3();
    for (int d = 0; d < 2; d++) { /* every way a launch can go */
        test_rows((enum llm_cuda_dtype) d, 176, 1408);
        test_rows((enum llm_cuda_dtype) d, 2400, 320);
        test_rows((enum llm_cuda_dtype) d, 4400, 320);
        test_rows((enum llm_cuda_dtype) d, 4400, 8320);
    }
    test_random(argc > 1 ? (uint32_t) strtoul(argv[1], NULL, 10) : 200);
    return done_testing();
}
