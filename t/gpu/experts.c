/* Experts of few tokens against plain double arithmetic: both dtypes, shapes that are no multiple
 * of anything, experts with one pair and with one for every token; and the same bits for a token
 * whatever the others are. */

#include "t/gpu/gpu.h"

#define MAX_TOKENS LLM_CUDA_MAX_LINEAR_ROWS

struct fixture {
    struct llm_cuda_experts e;
    struct llm_cuda_pairs p; /* of the device */
    uint32_t hidden, width, n_experts, n_active, n_pairs;
    uint32_t expert[300], first[301], token[300 * MAX_TOKENS];
    float weight[300 * MAX_TOKENS];
    uint8_t *gate_up, *down;
    float *gate_up_scale, *down_scale;
    uint16_t *x, *d_x, *d_h;
    size_t ldx, ldh, ldo;
    float *before, *d_out;
};

/* Random rows, each so far from the next; NaN between them. */
static uint8_t *random_matrices(struct llm_cuda_matrix *m, size_t *step, uint32_t n)
{
    size_t size = m->dtype == LLM_CUDA_BF16 ? 2 : 1;
    uint8_t *data;

    m->stride = (m->cols * size + 15) / 16 * 16 + rnd(2) * 16;
    *step = m->stride * m->rows + rnd(2) * 32;
    data = allocate(*step * n);
    memset(data, 0xFF, *step * n);
    for (size_t e = 0; e < n; e++) {
        for (size_t i = 0; i < (size_t) m->rows * m->cols; i++) {
            uint8_t *p = data + e * *step + i / m->cols * m->stride + i % m->cols * size;
            uint16_t h = bf16_of_f32(0.1f * uniform());

            *p = (uint8_t) (rnd(2) * 128 + rnd(127));
            if (size == 2) {
                memcpy(p, &h, 2);
            }
        }
    }
    m->data = device_copy(data, *step * n);
    return data;
}

static float *random_scales(struct llm_cuda_matrix *m, size_t *step, uint32_t n)
{
    float *scales;

    m->scale_stride = (m->cols + 127) / 128 + rnd(2);
    *step = m->scale_stride * ((m->rows + 127) / 128) + rnd(2);
    scales = allocate(*step * n * sizeof(*scales));
    for (size_t i = 0; i < *step * n; i++) {
        scales[i] = 0.002f + 0.001f * uniform();
    }
    m->scale = device_copy(scales, *step * n * sizeof(*scales));
    return scales;
}

static double weight(const struct llm_cuda_matrix *m, const uint8_t *data, const float *scales,
                     uint32_t row, uint32_t col)
{
    uint16_t h;

    if (m->dtype == LLM_CUDA_BF16) {
        memcpy(&h, data + row * m->stride + col * 2, 2);
        return f32_of_bf16(h);
    }
    return (double) f32_of_e4m3(data[row * m->stride + col])
           * scales[row / 128 * m->scale_stride + col / 128];
}

/* Every token goes to n_used of the experts at random, and to the last. */
static void random_pairs(struct fixture *f, uint32_t n_tokens, uint32_t n_used)
{
    f->n_active = f->n_pairs = 0;
    for (uint32_t e = 0; e < f->n_experts; e++) {
        f->first[f->n_active] = f->n_pairs;
        for (uint32_t t = 0; t < n_tokens; t++) {
            if (e == f->n_experts - 1 || rnd(f->n_experts - 1) < n_used) {
                f->token[f->n_pairs] = t;
                f->weight[f->n_pairs++] = e == f->n_experts - 1 ? 1 : uniform();
            }
        }
        if (f->n_pairs > f->first[f->n_active]) {
            f->expert[f->n_active++] = e;
        }
    }
    f->first[f->n_active] = f->n_pairs;

    f->p.n_tokens = n_tokens;
    f->p.max_active = f->n_experts;
    f->p.n_active = device_copy(&f->n_active, sizeof(f->n_active));
    f->p.expert = device_copy(f->expert, sizeof(f->expert));
    f->p.first = device_copy(f->first, sizeof(f->first));
    f->p.token = device_copy(f->token, sizeof(f->token));
    f->p.weight = device_copy(f->weight, sizeof(f->weight));
}

static void random_fixture(struct fixture *f, enum llm_cuda_dtype dtype, uint32_t hidden,
                           uint32_t width, uint32_t n_experts, uint32_t n_used, uint32_t n_tokens)
{
    *f = (struct fixture){.hidden = hidden, .width = width, .n_experts = n_experts};
    f->e.gate_up = (struct llm_cuda_matrix){.dtype = dtype, .rows = 2 * width, .cols = hidden};
    f->e.down = (struct llm_cuda_matrix){.dtype = dtype, .rows = hidden, .cols = width};
    f->gate_up = random_matrices(&f->e.gate_up, &f->e.gate_up_step, n_experts);
    f->down = random_matrices(&f->e.down, &f->e.down_step, n_experts);
    f->gate_up_scale = random_scales(&f->e.gate_up, &f->e.gate_up_scale_step, n_experts);
    f->down_scale = random_scales(&f->e.down, &f->e.down_scale_step, n_experts);
    random_pairs(f, n_tokens, n_used);

    f->ldx = (hidden + 7) / 8 * 8 + rnd(2) * 8;
    f->ldh = (width + 7) / 8 * 8 + rnd(2) * 8;
    f->ldo = hidden + rnd(4);
    f->x = allocate(n_tokens * f->ldx * 2);
    for (size_t i = 0; i < n_tokens * f->ldx; i++) {
        f->x[i] = i % f->ldx < hidden ? bf16_of_f32(uniform()) : 0xFFFF;
    }
    f->before = allocate(n_tokens * f->ldo * sizeof(float));
    for (size_t i = 0; i < n_tokens * f->ldo; i++) {
        f->before[i] = uniform();
    }
    f->d_x = device_copy(f->x, n_tokens * f->ldx * 2);
    f->d_h = device_poisoned(f->n_pairs * f->ldh * 2);
    f->d_out = device_copy(f->before, n_tokens * f->ldo * sizeof(float));
}

static void release(struct fixture *f)
{
    const void *of_device[] = {f->e.gate_up.data, f->e.gate_up.scale, f->e.down.data,
                               f->e.down.scale,   f->p.n_active,      f->p.expert,
                               f->p.first,        f->p.token,         f->p.weight,
                               f->d_x,            f->d_h,             f->d_out};

    for (size_t i = 0; i < sizeof(of_device) / sizeof(of_device[0]); i++) {
        CUDA(cudaFree((void *) of_device[i]));
    }
    free(f->gate_up);
    free(f->down);
    free(f->gate_up_scale);
    free(f->down_scale);
    free(f->x);
    free(f->before);
}

static void run(struct fixture *f)
{
    struct llm_cuda_queue q = {.overlap = rnd(2)};

    CUDA(llm_cuda_experts_up(&f->e, &f->p, f->d_x, f->ldx, f->d_h, f->ldh, q));
    CUDA(llm_cuda_experts_down(&f->e, &f->p, f->d_h, f->ldh, f->d_out, f->ldo, q));
    CUDA(cudaDeviceSynchronize());
}

/* sum over i of row `row` of expert e's matrix and x */
static double dot(const struct llm_cuda_matrix *m, const uint8_t *data, const float *scales,
                  uint32_t row, const uint16_t *x)
{
    double sum = 0;

    for (uint32_t i = 0; i < m->cols; i++) {
        sum += weight(m, data, scales, row, i) * f32_of_bf16(x[i]);
    }
    return sum;
}

static double up_error(const struct fixture *f, const uint16_t *h)
{
    size_t n = 0;
    float *got = allocate((size_t) f->n_pairs * f->width * sizeof(*got));
    double *want = allocate((size_t) f->n_pairs * f->width * sizeof(*want)), d;

    for (uint32_t i = 0; i < f->n_active; i++) {
        const uint8_t *w = f->gate_up + f->expert[i] * f->e.gate_up_step;
        const float *s = f->gate_up_scale + f->expert[i] * f->e.gate_up_scale_step;

        for (uint32_t p = f->first[i]; p < f->first[i + 1]; p++) {
            const uint16_t *x = f->x + f->token[p] * f->ldx;

            for (uint32_t j = 0; j < f->width; j++) {
                double gate = dot(&f->e.gate_up, w, s, j, x);

                want[n] = gate / (1 + exp(-gate)) * dot(&f->e.gate_up, w, s, f->width + j, x);
                got[n++] = f32_of_bf16(h[p * f->ldh + j]);
            }
        }
    }
    d = distance(got, want, n);
    free(got);
    free(want);
    return d;
}

/* from what up made */
static double down_error(const struct fixture *f, const uint16_t *h, const float *out)
{
    size_t n = f->p.n_tokens * f->ldo;
    double *want = allocate(n * sizeof(*want)), d;

    for (size_t i = 0; i < n; i++) {
        want[i] = f->before[i]; /* between the rows, too */
    }
    for (uint32_t i = 0; i < f->n_active; i++) {
        for (uint32_t p = f->first[i]; p < f->first[i + 1]; p++) {
            for (uint32_t j = 0; j < f->hidden; j++) {
                want[f->token[p] * f->ldo + j] +=
                    f->weight[p]
                    * dot(&f->e.down, f->down + f->expert[i] * f->e.down_step,
                          f->down_scale + f->expert[i] * f->e.down_scale_step, j,
                          h + p * f->ldh);
            }
        }
    }
    d = distance(out, want, n);
    free(want);
    return d;
}

static void test(enum llm_cuda_dtype dtype, uint32_t hidden, uint32_t width, uint32_t n_experts,
                 uint32_t n_used, uint32_t n_tokens)
{
    struct fixture *f = allocate(sizeof(*f));
    double up, down;
    uint16_t *h;
    float *out;

    random_fixture(f, dtype, hidden, width, n_experts, n_used, n_tokens);
    run(f);
    h = allocate(f->n_pairs * f->ldh * 2);
    out = allocate(n_tokens * f->ldo * sizeof(*out));
    CUDA(cudaMemcpy(h, f->d_h, f->n_pairs * f->ldh * 2, cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(out, f->d_out, n_tokens * f->ldo * sizeof(*out), cudaMemcpyDeviceToHost));
    up = up_error(f, h);
    down = down_error(f, h, out);
    if (!ok(up < 4e-3 && down < 1e-6, "%s, %u x %u, %u of %u experts, %u tokens",
            dtype == LLM_CUDA_BF16 ? "bf16" : "e4m3", hidden, width, f->n_active, n_experts,
            n_tokens)) {
        diag("errors %g and %g", up, down);
    }
    release(f);
    free(f);
    free(h);
    free(out);
}

/* Each token by itself with the pairs it has among all. */
static void test_mates(enum llm_cuda_dtype dtype)
{
    struct fixture *f = allocate(sizeof(*f)), one;
    uint32_t n_tokens = 20;
    bool same = true;
    float *all, *alone;

    random_fixture(f, dtype, 200, 384, 24, 6, n_tokens);
    run(f);
    all = allocate(n_tokens * f->ldo * sizeof(*all));
    alone = allocate(f->ldo * sizeof(*alone));
    CUDA(cudaMemcpy(all, f->d_out, n_tokens * f->ldo * sizeof(*all), cudaMemcpyDeviceToHost));
    for (uint32_t t = 0; t < n_tokens; t++) {
        one = *f;
        one.n_active = one.n_pairs = 0;
        for (uint32_t i = 0; i < f->n_active; i++) {
            for (uint32_t p = f->first[i]; p < f->first[i + 1]; p++) {
                if (f->token[p] == t) {
                    one.expert[one.n_active] = f->expert[i];
                    one.first[one.n_active++] = one.n_pairs;
                    one.token[one.n_pairs] = 0;
                    one.weight[one.n_pairs++] = f->weight[p];
                }
            }
        }
        one.first[one.n_active] = one.n_pairs;
        one.p.n_tokens = 1;
        one.d_x = f->d_x + t * f->ldx;
        CUDA(cudaMemcpy((void *) f->p.n_active, &one.n_active, 4, cudaMemcpyHostToDevice));
        CUDA(cudaMemcpy((void *) f->p.expert, one.expert, sizeof(one.expert),
                        cudaMemcpyHostToDevice));
        CUDA(cudaMemcpy((void *) f->p.first, one.first, sizeof(one.first), cudaMemcpyHostToDevice));
        CUDA(cudaMemcpy((void *) f->p.token, one.token, sizeof(one.token), cudaMemcpyHostToDevice));
        CUDA(cudaMemcpy((void *) f->p.weight, one.weight, sizeof(one.weight),
                        cudaMemcpyHostToDevice));
        CUDA(cudaMemcpy(f->d_out, f->before + t * f->ldo, f->ldo * sizeof(*alone),
                        cudaMemcpyHostToDevice));
        run(&one);
        CUDA(cudaMemcpy(alone, f->d_out, f->ldo * sizeof(*alone), cudaMemcpyDeviceToHost));
        same &= memcmp(alone, all + t * f->ldo, f->hidden * sizeof(*alone)) == 0;
    }
    ok(same, "%s: the bits of a token do not depend on the others",
       dtype == LLM_CUDA_BF16 ? "bf16" : "e4m3");
    release(f);
    free(f);
    free(all);
    free(alone);
}

int main(int argc, char **argv)
{
    uint32_t count = argc > 1 ? (uint32_t) strtoul(argv[1], NULL, 10) : 40;

    for (int d = 0; d < 2; d++) {
        enum llm_cuda_dtype dtype = (enum llm_cuda_dtype) d;

        test(dtype, 64, 128, 1, 1, 1); /* the shared one alone */
        test_mates(dtype);
        for (uint32_t i = 0; i < count / 2; i++) {
            uint32_t hidden = rnd(2) ? 64 * (1 + rnd(8)) : 1 + rnd(500);
            uint32_t width = dtype == LLM_CUDA_E4M3 ? 128 * (1 + rnd(3)) : 1 + rnd(400);
            uint32_t n_tokens = 1 + rnd(rnd(3) ? 8 : MAX_TOKENS);

            test(dtype, hidden, width, 2 + rnd(20), 1 + rnd(6), n_tokens);
        }
    }
    return done_testing();
}
