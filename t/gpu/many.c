/* Linear operations and experts of many rows against plain double arithmetic: both dtypes, shapes
 * that are no multiple of anything, any number of rows; and the same bits for a row whatever the
 * others are. */

#include "t/gpu/matrix.h"

static const char *const names[] = {"bf16", "e4m3"};

/* Rows of bf16, ld apart, with NaN behind the columns. */
static uint16_t *random_rows(uint32_t n, uint32_t cols, size_t ld)
{
    uint16_t *x = allocate(n * ld * 2);

    for (size_t i = 0; i < n * ld; i++) {
        x[i] = i % ld < cols ? bf16_of_f32(uniform()) : 0xFFFF;
    }
    return x;
}

/* x times row i of the b-th matrix. */
static double product(const struct matrices *m, uint32_t b, uint32_t i, const uint16_t *x)
{
    double sum = 0;

    for (uint32_t k = 0; k < m->m.cols; k++) {
        sum += (double) f32_of_bf16(x[k]) * element(m, b, i, k);
    }
    return sum;
}

static void test_linears(enum llm_cuda_dtype dtype, uint32_t n_rows, uint32_t rows, uint32_t cols)
{
    uint32_t n = 1 + rnd(2), n_batch = 1 + rnd(3);
    enum llm_cuda_store store = (enum llm_cuda_store) rnd(3);
    struct llm_cuda_queue q = {.overlap = rnd(2)};
    struct llm_cuda_linear l[2];
    struct matrices m[2];
    uint16_t *x[2];
    float *before[2], *got;
    double worst = 0;
    bool same = true;

    for (uint32_t i = 0; i < n; i++) {
        m[i] = random_matrices(dtype, rows + i * 7, cols, n_batch, true);
        l[i] = (struct llm_cuda_linear){
            .w = m[i].m,
            .store = store,
            .n_batch = n_batch,
            .w_step = m[i].step,
            .scale_step = m[i].scale_step,
            .x_step = (cols + 7) / 8 * 8,
            .out_step = (rows + i * 7 + 7) / 8 * 8,
        };
        l[i].ldx = l[i].x_step * n_batch;
        l[i].ldo = l[i].out_step * n_batch;
        x[i] = random_rows(n_rows * n_batch, cols, l[i].x_step);
        before[i] = random_floats(n_rows * l[i].ldo);
        l[i].x = device_copy(x[i], n_rows * l[i].ldx * 2);
        l[i].out = store == LLM_CUDA_ADD_F32 ? device_copy(before[i], n_rows * l[i].ldo * 4)
                                             : device_poisoned(n_rows * l[i].ldo * 4);
    }
    CUDA(llm_cuda_linears_many(l, n, n_rows, q));

    for (uint32_t i = 0; i < n; i++) {
        double diff = 0, norm = 0;

        got = store == LLM_CUDA_SET_BF16 ? fetch_bf16(l[i].out, n_rows * l[i].ldo)
                                         : fetch(l[i].out, n_rows * l[i].ldo * 4);
        for (uint32_t r = 0; r < n_rows; r++) {
            for (uint32_t j = 0; j < n_batch * l[i].w.rows; j++) {
                uint32_t b = j / l[i].w.rows, o = j % l[i].w.rows;
                size_t at = r * l[i].ldo + b * l[i].out_step + o;
                double want = product(&m[i], b, o, x[i] + r * l[i].ldx + b * l[i].x_step)
                              + (store == LLM_CUDA_ADD_F32 ? before[i][at] : 0);

                diff += (got[at] - want) * (got[at] - want);
                norm += want * want;
            }
        }
        worst = sqrt(diff / norm) <= worst ? worst : sqrt(diff / norm);

        if (store == LLM_CUDA_SET_F32) { /* the last row alone */
            struct llm_cuda_linear one = l[i];
            size_t last = n_rows - 1;
            float *alone;

            one.x = (const uint16_t *) one.x + last * one.ldx;
            CUDA(cudaMemset(one.out, 0xFF, one.ldo * 4));
            CUDA(llm_cuda_linears_many(&one, 1, 1, q));
            alone = fetch(one.out, one.ldo * 4);
            same &= memcmp(alone, got + last * one.ldo, one.w.rows * 4) == 0;
            free(alone);
        }
        free(got);
        CUDA(cudaFree((void *) l[i].x));
        CUDA(cudaFree(l[i].out));
        free(x[i]);
        free(before[i]);
        release_matrices(&m[i]);
    }
    if (!ok(worst < (store == LLM_CUDA_SET_BF16 ? 3e-3 : 1e-6) && same,
            "%s: %u rows, %u of %u x %u, batch of %u, stored as %d", names[dtype], n_rows, n, rows,
            cols, n_batch, (int) store)) {
        diag("error %g, %s bits for a row alone", worst, same ? "the same" : "other");
    }
}

static void test_experts(enum llm_cuda_dtype dtype, uint32_t n_tokens, uint32_t hidden,
                         uint32_t width, uint32_t n_experts)
{
    struct matrices up = random_matrices(dtype, 2 * width, hidden, n_experts, true);
    struct matrices down = random_matrices(dtype, hidden, width, n_experts, true);
    struct llm_cuda_experts e = {
        .gate_up = up.m,
        .down = down.m,
        .gate_up_step = up.step,
        .gate_up_scale_step = up.scale_step,
        .down_step = down.step,
        .down_scale_step = down.scale_step,
    };
    uint32_t *expert = allocate(n_experts * 4), *first = allocate((n_experts + 1) * 4);
    uint32_t *token = allocate(n_experts * n_tokens * 4), n_active = 0, n_pairs = 0;
    size_t ldx = (hidden + 7) / 8 * 8 + rnd(2) * 8, ldh = (width + 7) / 8 * 8 + rnd(2) * 8;
    uint16_t *x = random_rows(n_tokens, hidden, ldx), *h;
    struct llm_cuda_queue q = {.overlap = rnd(2)};
    float *got_h, *got_y;
    double diff_h = 0, norm_h = 0, diff_y = 0, norm_y = 0;

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
    uint32_t max_pairs = n_pairs + rnd(200);
    void *d_x = device_copy(x, n_tokens * ldx * 2);
    void *d_h = device_poisoned(max_pairs * ldh * 2), *d_y = device_poisoned(max_pairs * ldx * 2);

    CUDA(llm_cuda_spread_rows(&p, max_pairs, d_x, ldx, hidden, d_y, ldx, q));
    CUDA(llm_cuda_experts_up_many(&e, &p, max_pairs, d_y, ldx, d_h, ldh, q));
    CUDA(llm_cuda_experts_down_many(&e, &p, max_pairs, d_h, ldh, d_y, ldx, q));
    got_h = fetch_bf16(d_h, n_pairs * ldh);
    got_y = fetch_bf16(d_y, n_pairs * ldx);
    h = fetch(d_h, n_pairs * ldh * 2);
    for (uint32_t i = 0, a = 0; i < n_pairs; i++) {
        a += i == first[a + 1];
        for (uint32_t j = 0; j < width; j++) {
            double g = product(&up, expert[a], j, x + token[i] * ldx);
            double want = g / (1 + exp(-g))
                          * product(&up, expert[a], width + j, x + token[i] * ldx);

            diff_h += (got_h[i * ldh + j] - want) * (got_h[i * ldh + j] - want);
            norm_h += want * want;
        }
        for (uint32_t j = 0; j < hidden; j++) {
            double want = product(&down, expert[a], j, h + i * ldh);

            diff_y += (got_y[i * ldx + j] - want) * (got_y[i * ldx + j] - want);
            norm_y += want * want;
        }
    }
    if (!ok(sqrt(diff_h / norm_h) < 4e-3 && sqrt(diff_y / norm_y) < 4e-3,
            "%s: %u experts of %u x %u, %u tokens, %u pairs", names[dtype], n_experts, hidden,
            width, n_tokens, n_pairs)) {
        diag("errors %g and %g", sqrt(diff_h / norm_h), sqrt(diff_y / norm_y));
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
    free(got_h);
    free(got_y);
    release_matrices(&up);
    release_matrices(&down);
}

int main(int argc, char **argv)
{
    uint32_t count = argc > 1 ? (uint32_t) strtoul(argv[1], NULL, 10) : 20;

    for (uint32_t i = 0; i < count; i++) {
        enum llm_cuda_dtype dtype = (enum llm_cuda_dtype) (i % 2);
        uint32_t width = dtype == LLM_CUDA_E4M3 ? 128 * (1 + rnd(2)) : 8 * (1 + rnd(19));

        test_linears(dtype, 1 + rnd(i % 3 ? 300 : 20), 1 + rnd(300), 1 + rnd(i % 5 ? 700 : 90));
        test_experts(dtype, 1 + rnd(i % 3 ? 200 : 20), 1 + rnd(300), width, 1 + rnd(5));
    }
    return done_testing();
}
