/* Linear operations of the general path against plain double arithmetic: every type, shapes that
 * are no multiple of anything, and the same bits whatever the number of rows. */

#include "t/gpu/matrix.h"

static const struct llm_cuda_queue queue;
static const char *const names[] = {"bf16", "e4m3", "f16", "f32"};

/* What a linear does to a row of member b. */
static void multiply(const struct llm_cuda_plain *l, const struct matrices *m, uint32_t b,
                     const float *x, const float *bias, double *out)
{
    uint32_t first = l->first + b * l->first_step;
    uint32_t n_in = l->transposed ? l->n : l->w.cols, n_out = l->transposed ? l->w.cols : l->n;

    for (uint32_t i = 0; i < n_out; i++) {
        double sum = bias != NULL ? bias[i] : 0;

        for (uint32_t k = 0; k < n_in; k++) {
            sum += (double) x[k]
                   * (l->transposed ? element(m, 0, first + k, i) : element(m, 0, first + i, k));
        }
        out[i] = sum;
    }
}

static void test_linear(enum llm_cuda_dtype dtype, uint32_t n_rows, uint32_t n, uint32_t cols,
                        bool transposed)
{
    uint32_t n_batch = 1 + rnd(3), first = rnd(9), step = n + rnd(5);
    uint32_t n_in = transposed ? n : cols, n_out = transposed ? cols : n;
    uint32_t rows = first + step * (n_batch - 1) + n;
    struct matrices m = random_matrices(dtype, rows, cols, 1, false);
    struct llm_cuda_plain l = {
        .w = m.m,
        .first = first,
        .n = n,
        .first_step = step,
        .transposed = transposed,
        .add = rnd(2),
        .x_step = n_in,
        .ldx = n_in * n_batch + rnd(3),
        .out_step = n_out,
        .ldo = n_out * n_batch + rnd(3),
        .n_batch = n_batch,
    };
    float *x = random_floats(n_rows * l.ldx), *out = random_floats(n_rows * l.ldo);
    float *bias = random_floats(n_out), *got, *alone, *d_bias;
    double *want = allocate(n_rows * l.ldo * sizeof(*want)), d;

    for (size_t i = 0; i < n_rows * l.ldo; i++) {
        want[i] = out[i];
    }
    d_bias = device_copy(bias, n_out * 4);
    l.bias = rnd(2) ? d_bias : NULL;
    for (uint32_t r = 0; r < n_rows; r++) {
        for (uint32_t b = 0; b < n_batch; b++) {
            multiply(&l, &m, b, x + r * l.ldx + b * l.x_step, l.bias != NULL ? bias : NULL,
                     want + r * l.ldo + b * l.out_step);
        }
        for (uint32_t i = 0; l.add && i < n_out * n_batch; i++) {
            want[r * l.ldo + i] += out[r * l.ldo + i];
        }
    }

    l.x = device_copy(x, n_rows * l.ldx * 4);
    l.out = device_copy(out, n_rows * l.ldo * 4);
    CUDA(llm_cuda_plain_linear(&l, n_rows, queue));
    got = fetch(l.out, n_rows * l.ldo * 4);
    d = distance(got, want, n_rows * l.ldo);

    /* the last row on its own */
    uint32_t last = n_rows - 1;
    struct llm_cuda_plain one = l;
    one.x += last * l.ldx;
    one.out += last * l.ldo;
    CUDA(cudaMemcpy(one.out, out + last * l.ldo, l.ldo * sizeof(float), cudaMemcpyHostToDevice));
    CUDA(llm_cuda_plain_linear(&one, 1, queue));
    alone = fetch(one.out, l.ldo * 4);
    bool same = memcmp(alone, got + last * l.ldo, l.ldo * 4) == 0;

    if (!ok(d < 1e-6 && same, "%s: %u rows, %u of %u%s, batch of %u", names[dtype], n_rows, n,
            cols, transposed ? ", transposed" : "", n_batch)) {
        diag("error %g, %s bits for a row alone", d, same ? "the same" : "other");
    }
    CUDA(cudaFree((void *) l.x));
    CUDA(cudaFree(l.out));
    CUDA(cudaFree(d_bias));
    free(x);
    free(out);
    free(bias);
    free(want);
    free(got);
    free(alone);
    release_matrices(&m);
}

static void test_experts(enum llm_cuda_dtype dtype, uint32_t n_tokens, uint32_t hidden,
                         uint32_t width, uint32_t n_experts)
{
    struct matrices gate = random_matrices(dtype, width, hidden, n_experts, false);
    struct matrices up = random_matrices(dtype, width, hidden, n_experts, false);
    struct matrices down = random_matrices(dtype, hidden, width, n_experts, false);
    struct llm_cuda_plain_experts e = {
        .gate = gate.m, .gate_step = gate.step, .gate_scale_step = gate.scale_step,
        .up = up.m,     .up_step = up.step,     .up_scale_step = up.scale_step,
        .down = down.m, .down_step = down.step, .down_scale_step = down.scale_step,
    };
    uint32_t *expert = allocate(n_experts * 4), *first = allocate((n_experts + 1) * 4);
    uint32_t *token = allocate(n_experts * n_tokens * 4), n_active = 0, n_pairs = 0;
    size_t ldx = hidden + rnd(3), ldh = width + rnd(3), ldy = hidden + rnd(3);
    float *x = random_floats(n_tokens * ldx), *h, *y;

    for (uint32_t i = 0; i < n_experts; i++) {
        first[n_active] = n_pairs;
        for (uint32_t t = 0; t < n_tokens; t++) {
            if (rnd(3) == 0 || i == n_experts - 1) {
                token[n_pairs++] = t;
            }
        }
        if (n_pairs > first[n_active]) {
            expert[n_active++] = i;
        }
    }
    first[n_active] = n_pairs;

    struct llm_cuda_pairs p = {
        .n_active = device_copy(&n_active, 4),
        .expert = device_copy(expert, n_experts * 4),
        .first = device_copy(first, (n_experts + 1) * 4),
        .token = device_copy(token, n_pairs * 4),
        .max_active = n_experts,
        .n_tokens = n_tokens,
    };
    float *d_x = device_copy(x, n_tokens * ldx * 4), *d_h = device_poisoned(n_pairs * ldh * 4);
    float *d_y = device_poisoned(n_pairs * ldy * 4);
    double *want_h = allocate(n_pairs * width * sizeof(double));
    double *want_y = allocate(n_pairs * hidden * sizeof(double)), d_up, d_down;

    CUDA(llm_cuda_plain_experts_up(&e, &p, d_x, ldx, d_h, ldh, queue));
    CUDA(llm_cuda_plain_experts_down(&e, &p, d_h, ldh, d_y, ldy, queue));
    h = fetch(d_h, n_pairs * ldh * 4);
    y = fetch(d_y, n_pairs * ldy * 4);
    for (uint32_t i = 0, a = 0; i < n_pairs; i++) {
        a += i == first[a + 1];
        for (uint32_t j = 0; j < width; j++) {
            double g = 0, u = 0;

            for (uint32_t k = 0; k < hidden; k++) {
                g += (double) x[token[i] * ldx + k] * element(&gate, expert[a], j, k);
                u += (double) x[token[i] * ldx + k] * element(&up, expert[a], j, k);
            }
            want_h[i * width + j] = g / (1 + exp(-g)) * u;
        }
        memmove(h + i * width, h + i * ldh, width * sizeof(*h));
        for (uint32_t j = 0; j < hidden; j++) {
            want_y[i * hidden + j] = 0;
            for (uint32_t k = 0; k < width; k++) {
                want_y[i * hidden + j] += (double) h[i * width + k]
                                          * element(&down, expert[a], j, k);
            }
        }
        memmove(y + i * hidden, y + i * ldy, hidden * sizeof(*y));
    }
    d_up = distance(h, want_h, n_pairs * width);
    d_down = distance(y, want_y, n_pairs * hidden);
    if (!ok(d_up < 2e-6 && d_down < 1e-6, "%s: %u experts of %u x %u, %u tokens", names[dtype],
            n_experts, hidden, width, n_tokens)) {
        diag("errors %g and %g", d_up, d_down);
    }
    CUDA(cudaFree((void *) p.n_active));
    CUDA(cudaFree((void *) p.expert));
    CUDA(cudaFree((void *) p.first));
    CUDA(cudaFree((void *) p.token));
    CUDA(cudaFree(d_x));
    CUDA(cudaFree(d_h));
    CUDA(cudaFree(d_y));
    free(expert);
    free(first);
    free(token);
    free(x);
    free(h);
    free(y);
    free(want_h);
    free(want_y);
    release_matrices(&gate);
    release_matrices(&up);
    release_matrices(&down);
}

int main(int argc, char **argv)
{
    uint32_t count = argc > 1 ? (uint32_t) strtoul(argv[1], NULL, 10) : 40;

    for (uint32_t i = 0; i < count; i++) {
        enum llm_cuda_dtype dtype = (enum llm_cuda_dtype) (i % 4);

        test_linear(dtype, 1 + rnd(rnd(2) ? 8 : 70), 1 + rnd(150), 1 + rnd(600), rnd(2));
        test_experts(dtype, 1 + rnd(rnd(2) ? 8 : 70), 1 + rnd(150), 1 + rnd(80), 1 + rnd(6));
    }
    return done_testing();
}
