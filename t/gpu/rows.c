/* What is done row by row, against plain double arithmetic: any widths, lists of rows, and the
 * types of what is gathered. */

#include "t/gpu/matrix.h"

static const struct llm_cuda_queue queue;

static void test_embed(enum llm_cuda_dtype dtype)
{
    uint32_t width = 1 + rnd(700), n = 1 + rnd(20), vocab = 1 + rnd(90), n_slots = 4;
    struct matrices m = random_matrices(dtype, vocab, width, 1, false);
    uint32_t tokens[20], slots[20], last[4];
    struct llm_cuda_rows rows = {.n = n};
    size_t ldx = width + rnd(3);
    float *x = device_poisoned(n * ldx * 4), *got;
    bool same = true;

    for (uint32_t i = 0; i < n_slots; i++) {
        last[i] = rnd(vocab);
    }
    for (uint32_t i = 0; i < n; i++) {
        tokens[i] = rnd(3) ? rnd(vocab) : LLM_CUDA_TOKEN_LAST;
        slots[i] = rnd(n_slots);
    }
    rows.tokens = device_copy(tokens, sizeof(tokens));
    rows.slots = device_copy(slots, sizeof(slots));
    uint32_t *d_last = device_copy(last, sizeof(last));

    CUDA(llm_cuda_embed(&m.m, &rows, d_last, x, ldx, queue));
    got = fetch(x, n * ldx * 4);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t token = tokens[i] == LLM_CUDA_TOKEN_LAST ? last[slots[i]] : tokens[i];

        for (uint32_t j = 0; j < width; j++) {
            same &= got[i * ldx + j] == element(&m, 0, token, j);
        }
    }
    ok(same, "embedding of type %d: %u rows, %u wide", dtype, n, width);
    CUDA(cudaFree((void *) rows.tokens));
    CUDA(cudaFree((void *) rows.slots));
    CUDA(cudaFree(d_last));
    CUDA(cudaFree(x));
    free(got);
    release_matrices(&m);
}

static void test_norm(uint32_t width, bool listed, bool added)
{
    uint32_t n_x = 1 + rnd(20), n = listed ? 1 + rnd(n_x) : n_x, list[20];
    size_t ldx = width + rnd(3), ldo = width + rnd(3), ld_add = rnd(2) ? width : 0;
    float *x = random_floats(n_x * ldx), *weight = random_floats(width);
    float *add = random_floats(n * width), *got, *got_bf16, *after;
    double *want = allocate(n * width * sizeof(*want)), d, d_bf16;
    float *want_x = allocate(n_x * ldx * 4);
    uint32_t *d_list;
    bool same = true;
    struct llm_cuda_norm a = {
        .n = n,
        .width = width,
        .x = device_copy(x, n_x * ldx * 4),
        .ldx = ldx,
        .weight = device_copy(weight, width * sizeof(*weight)),
        .eps = 1e-6f,
        .out_f32 = device_poisoned(n * ldo * sizeof(float)),
        .out_bf16 = device_poisoned(n * ldo * 2),
        .ld_f32 = ldo,
        .ld_bf16 = ldo,
    };
    float *d_add = device_copy(add, n * width * sizeof(*add));

    for (uint32_t i = 0; i < n_x; i++) {
        uint32_t j = rnd(i + 1);

        list[i] = list[j];
        list[j] = i;
    }
    d_list = device_copy(list, sizeof(list));
    a.rows = listed ? d_list : NULL;
    a.add = added ? d_add : NULL;
    a.ld_add = ld_add;
    memcpy(want_x, x, n_x * ldx * 4);
    for (uint32_t i = 0; i < n; i++) {
        float *row = want_x + (listed ? list[i] : i) * ldx;
        double sum = 0;

        for (uint32_t j = 0; j < width; j++) {
            row[j] += added ? add[i * ld_add + j] : 0;
            sum += (double) row[j] * row[j];
        }
        for (uint32_t j = 0; j < width; j++) {
            want[i * width + j] = weight[j] * row[j] / sqrt(sum / width + a.eps);
        }
    }

    CUDA(llm_cuda_rms_norm(&a, queue));
    got = fetch(a.out_f32, n * ldo * 4);
    got_bf16 = fetch_bf16(a.out_bf16, n * ldo);
    after = fetch(a.x, n_x * ldx * 4);
    for (uint32_t i = 0; i < n; i++) {
        memmove(got + i * width, got + i * ldo, width * sizeof(*got));
        memmove(got_bf16 + i * width, got_bf16 + i * ldo, width * sizeof(*got));
    }
    for (uint32_t i = 0; i < n_x; i++) {
        same &= memcmp(after + i * ldx, want_x + i * ldx, width * sizeof(*after)) == 0;
    }
    d = distance(got, want, n * width);
    d_bf16 = distance(got_bf16, want, n * width);
    if (!ok(d < 1e-6 && d_bf16 < 3e-3 && same, "norm: %u rows, %u wide%s%s", n, width,
            listed ? ", listed" : "", added ? ", added" : "")) {
        diag("errors %g and %g", d, d_bf16);
    }
    CUDA(cudaFree(a.x));
    CUDA(cudaFree((void *) a.weight));
    CUDA(cudaFree(a.out_f32));
    CUDA(cudaFree(a.out_bf16));
    CUDA(cudaFree(d_list));
    CUDA(cudaFree(d_add));
    free(x);
    free(weight);
    free(add);
    free(want);
    free(want_x);
    free(got);
    free(got_bf16);
    free(after);
}

static void test_elements(void)
{
    uint32_t n = 1 + rnd(20), width = 1 + rnd(900);
    size_t ld = 2 * width + rnd(3), ldo = width + rnd(3);
    float *gate_up = random_floats(n * ld), *y = random_floats(n * ldo), *got, *got_bf16, *sum;
    double *want = allocate(n * width * sizeof(*want));
    float *d_in = device_copy(gate_up, n * ld * 4);
    float *d_f32 = device_poisoned(n * ldo * 4);
    void *d_bf16 = device_poisoned(n * ldo * 2);
    float *d_y = device_copy(y, n * ldo * 4);
    bool same = true;

    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < width; j++) {
            double g = gate_up[i * ld + j];

            want[i * width + j] = g / (1 + exp(-g)) * gate_up[i * ld + width + j];
        }
    }
    CUDA(llm_cuda_silu_mul(d_in, ld, n, width, d_bf16, ldo, d_f32, ldo, queue));
    got = fetch(d_f32, n * ldo * 4);
    got_bf16 = fetch_bf16(d_bf16, n * ldo);
    CUDA(llm_cuda_add(d_f32, ldo, d_y, n % 2 ? 0 : ldo, n, width, queue));
    sum = fetch(d_f32, n * ldo * 4);
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < width; j++) {
            same &= sum[i * ldo + j] == got[i * ldo + j] + y[(n % 2 ? 0 : i * ldo) + j];
        }
        memmove(got + i * width, got + i * ldo, width * sizeof(*got));
        memmove(got_bf16 + i * width, got_bf16 + i * ldo, width * sizeof(*got));
    }
    ok(distance(got, want, n * width) < 1e-6 && distance(got_bf16, want, n * width) < 4e-3 && same,
       "silu and adding: %u rows, %u wide", n, width);
    CUDA(cudaFree(d_in));
    CUDA(cudaFree(d_f32));
    CUDA(cudaFree(d_bf16));
    CUDA(cudaFree(d_y));
    free(gate_up);
    free(y);
    free(want);
    free(got);
    free(got_bf16);
    free(sum);
}

static void test_add_experts(enum llm_cuda_dtype dtype)
{
    uint32_t n = 1 + rnd(20), per = 1 + rnd(8), n_pairs = n * per, width = 1 + rnd(700);
    size_t ldy = width + rnd(3), ldo = width + rnd(3);
    float *y = random_floats(n_pairs * ldy), *weight = random_floats(n_pairs), *got;
    float *out = random_floats(n * ldo);
    uint16_t *h = allocate(n_pairs * ldy * 2);
    uint32_t *pair_of = allocate(n_pairs * sizeof(*pair_of));
    double *want = allocate(n * width * sizeof(*want));

    for (size_t i = 0; i < n_pairs * ldy; i++) {
        h[i] = bf16_of_f32(y[i]);
        y[i] = dtype == LLM_CUDA_BF16 ? f32_of_bf16(h[i]) : y[i];
    }
    for (uint32_t i = 0; i < n_pairs; i++) {
        pair_of[i] = rnd(5) ? n_pairs - 1 - i : UINT32_MAX;
    }
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < width; j++) {
            double sum = out[i * ldo + j];

            for (uint32_t k = 0; k < per; k++) {
                uint32_t p = pair_of[i * per + k];

                sum += p != UINT32_MAX ? (double) weight[p] * y[p * ldy + j] : 0;
            }
            want[i * width + j] = sum;
        }
    }

    float *d_out = device_copy(out, n * ldo * 4);
    void *d_y = dtype == LLM_CUDA_BF16 ? device_copy(h, n_pairs * ldy * 2)
                                       : device_copy(y, n_pairs * ldy * 4);
    struct llm_cuda_pairs p = {
        .n_tokens = n,
        .per_token = per,
        .pair_of = device_copy(pair_of, n_pairs * sizeof(*pair_of)),
        .weight = device_copy(weight, n_pairs * sizeof(*weight)),
    };
    CUDA(llm_cuda_add_experts(&p, dtype, d_y, ldy, width, d_out, ldo, queue));
    got = fetch(d_out, n * ldo * 4);
    for (uint32_t i = 0; i < n; i++) {
        memmove(got + i * width, got + i * ldo, width * sizeof(*got));
    }
    ok(distance(got, want, n * width) < 1e-6, "experts of type %d added: %u tokens, %u wide",
       dtype, n, width);
    CUDA(cudaFree(d_out));
    CUDA(cudaFree(d_y));
    CUDA(cudaFree((void *) p.pair_of));
    CUDA(cudaFree((void *) p.weight));
    free(y);
    free(weight);
    free(out);
    free(h);
    free(pair_of);
    free(want);
    free(got);
}

static void test_unpack(enum llm_cuda_dtype dtype, enum llm_cuda_dtype to)
{
    uint32_t rows = 1 + rnd(50), cols = 1 + rnd(300);
    struct matrices m = random_matrices(dtype, rows, cols, 1, false);
    size_t ldo = cols + rnd(3);
    void *out = device_poisoned(rows * ldo * 4);
    float *got;
    bool same = true;

    CUDA(llm_cuda_unpack(&m.m, to, out, ldo, queue));
    got = to == LLM_CUDA_F32 ? fetch(out, rows * ldo * 4) : fetch_bf16(out, rows * ldo);
    for (uint32_t i = 0; i < rows; i++) {
        for (uint32_t j = 0; j < cols; j++) {
            float v = element(&m, 0, i, j);

            same &= got[i * ldo + j] == (to == LLM_CUDA_F32 ? v : f32_of_bf16(bf16_of_f32(v)));
        }
    }
    ok(same, "type %d unpacked to %d: %u x %u", dtype, to, rows, cols);
    CUDA(cudaFree(out));
    free(got);
    release_matrices(&m);
}

static void test_transpose(uint32_t size)
{
    uint32_t n = 1 + rnd(3), rows = 1 + rnd(90), cols = 1 + rnd(90);
    struct llm_cuda_transpose t = {
        .n = n, .rows = rows, .cols = cols, .size = size, .ld_from = cols + rnd(3),
        .ld_to = rows + rnd(3)};
    uint8_t *from, *to;
    bool same = true;

    t.from_step = t.ld_from * rows + rnd(9);
    t.to_step = t.ld_to * cols + rnd(9);
    from = allocate(t.from_step * n * size);
    to = allocate(t.to_step * n * size);
    for (size_t i = 0; i < t.from_step * n * size; i++) {
        from[i] = (uint8_t) rnd(256);
    }
    t.from = device_copy(from, t.from_step * n * size);
    t.to = device_poisoned(t.to_step * n * size);
    CUDA(llm_cuda_transpose(&t, queue));
    CUDA(cudaMemcpy(to, t.to, t.to_step * n * size, cudaMemcpyDeviceToHost));
    for (uint32_t b = 0; b < n; b++) {
        for (uint32_t i = 0; i < rows; i++) {
            for (uint32_t j = 0; j < cols; j++) {
                same &= memcmp(to + (b * t.to_step + j * t.ld_to + i) * size,
                               from + (b * t.from_step + i * t.ld_from + j) * size, size)
                        == 0;
            }
        }
    }
    ok(same, "transposed: %u of %u x %u, %u bytes each", n, rows, cols, size);
    CUDA(cudaFree((void *) t.from));
    CUDA(cudaFree(t.to));
    free(from);
    free(to);
}

int main(int argc, char **argv)
{
    uint32_t count = argc > 1 ? (uint32_t) strtoul(argv[1], NULL, 10) : 40;

    test_norm(2048, false, false);
    test_norm(9000, true, true);
    for (uint32_t i = 0; i < count; i++) {
        enum llm_cuda_dtype dtype = (enum llm_cuda_dtype) (i % 4);

        test_embed(dtype);
        test_norm(1 + rnd(rnd(3) ? 300 : 3000), rnd(2), rnd(2));
        test_elements();
        test_add_experts(i % 2 ? LLM_CUDA_F32 : LLM_CUDA_BF16);
        test_unpack(dtype, rnd(2) ? LLM_CUDA_F32 : LLM_CUDA_BF16);
        test_transpose(1u << i % 3);
    }
    return done_testing();
}
