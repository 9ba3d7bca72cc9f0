/* A layer of a row that is alone: attention from queries to what each head adds, what joins it to
 * the residual stream and chooses experts, and products with a norm of their own, against plain
 * double arithmetic on the same bytes. NaN wherever nothing is. */

#include "kernels/cpu/router.h"
#include "t/gpu/latent_rows.h"
#include "t/gpu/matrix.h"

#define PAGE LLM_CUDA_PAGE_TOKENS
#define ROPE LLM_CUDA_ROPE
#define NOPE LLM_CUDA_NOPE
#define VALUE LLM_CUDA_V
#define MAX_KEYS 1200

static const char *const names[] = {"bf16", "fp8"};

static struct llm_cuda_plane plane_of(enum llm_cuda_latent_dtype dtype)
{
    struct llm_cuda_plane p = {.dtype = dtype, .rank = RANK, .rope = ROPE};

    if (dtype == LLM_CUDA_LATENT_FP8) {
        p.scale_offset = RANK;
        p.rope_offset = RANK + 16;
        p.row_bytes = LLM_CUDA_LATENT_FP8_BYTES;
    } else {
        p.rope_offset = RANK * 2;
        p.row_bytes = LLM_CUDA_LATENT_BF16_BYTES;
    }
    p.page_step = p.row_bytes * PAGE + rnd(3) * 64;
    return p;
}

/* What a head makes of its query and the rows: its part of all outputs. */
static void attend(const struct matrices *w_uk, const struct matrices *kv_b,
                   const struct matrices *o, uint32_t head, const double *q, double scale,
                   const double *rows, uint32_t n, double *out)
{
    double query[WIDTH], context[RANK] = {0}, value[VALUE] = {0}, max = -INFINITY, total = 0;
    double *scores = allocate(n * sizeof(*scores));

    for (uint32_t i = 0; i < RANK; i++) {
        query[i] = 0;
        for (uint32_t j = 0; j < NOPE; j++) {
            query[i] += q[j] * element(w_uk, 0, head * RANK + i, j);
        }
    }
    memcpy(query + RANK, q + NOPE, ROPE * sizeof(*q));
    for (uint32_t t = 0; t < n; t++) {
        scores[t] = 0;
        for (uint32_t i = 0; i < WIDTH; i++) {
            scores[t] += query[i] * rows[t * WIDTH + i] * scale;
        }
        max = fmax(max, scores[t]);
    }
    for (uint32_t t = 0; t < n; t++) {
        double p = exp(scores[t] - max);

        total += p;
        for (uint32_t i = 0; i < RANK; i++) {
            context[i] += p * rows[t * WIDTH + i];
        }
    }
    for (uint32_t i = 0; i < VALUE; i++) {
        for (uint32_t j = 0; j < RANK; j++) {
            value[i] += context[j] / total
                        * element(kv_b, 0, head * (NOPE + VALUE) + NOPE + i, j);
        }
    }
    for (uint32_t i = 0; i < o->m.rows; i++) {
        out[i] = 0;
        for (uint32_t j = 0; j < VALUE; j++) {
            out[i] += value[j] * element(o, 0, i, head * VALUE + j);
        }
    }
    free(scores);
}

static void test_attention(enum llm_cuda_latent_dtype latents, enum llm_cuda_dtype weights,
                           uint32_t n_keys, uint32_t n_heads, uint32_t hidden, uint8_t flags)
{
    struct llm_cuda_plane plane = plane_of(latents);
    uint32_t n_pages = (n_keys + PAGE - 1) / PAGE, position = n_keys - 1, seq = 0;
    uint32_t pages[MAX_KEYS / PAGE + 1], q_width = NOPE + ROPE;
    size_t pool = (n_pages + 2) * plane.page_step, own;
    uint8_t *bytes = allocate(pool), *want_bytes = allocate(pool), *got_bytes;
    float *inv_freq = random_floats(ROPE / 2), *kv = random_floats(WIDTH);
    float *bias = random_floats(WIDTH), *norm = random_floats(RANK);
    float *values = random_floats(n_heads * q_width);
    uint16_t *q = allocate(n_heads * q_width * 2);
    struct matrices w_uk = random_matrices(weights, n_heads * RANK, NOPE, 1, true);
    struct matrices kv_b = random_matrices(weights, n_heads * (NOPE + VALUE), RANK, 1, true);
    struct matrices o = random_matrices(weights, hidden, n_heads * VALUE, 1, true);
    double *rows = allocate(n_keys * WIDTH * sizeof(*rows));
    double *want = allocate((size_t) n_heads * hidden * sizeof(*want)), d;
    bool with_bias = rnd(2), same;
    double row_error = 0;

    memset(bytes, 0xFF, pool);
    for (uint32_t i = 0, page = rnd(n_pages + 2); i < n_pages; i++) {
        pages[i] = page++ % (n_pages + 2);
    }
    for (uint32_t t = 0; t < position; t++) {
        random_row(latents, bytes + pages[t / PAGE] * plane.page_step + t % PAGE * plane.row_bytes);
    }
    for (uint32_t i = 0; i < n_heads * q_width; i++) {
        q[i] = bf16_of_f32(values[i]);
    }
    plane.data = device_copy(bytes, pool);

    struct llm_cuda_alone a = {
        .latents =
            {
                .rows =
                    {
                        .n = 1,
                        .positions = device_copy(&position, 4),
                        .seqs = device_copy(&seq, 4),
                        .flags = device_copy(&flags, 1),
                        .pages = device_copy(pages, sizeof(pages)),
                        .pages_step = n_pages,
                    },
                .plane = plane,
                .rope = {device_copy(inv_freq, ROPE / 2 * 4), 1.25f},
                .kv = device_copy(kv, WIDTH * 4),
                .ld_kv = WIDTH,
                .kv_bias = with_bias ? device_copy(bias, WIDTH * 4) : NULL,
                .kv_norm = device_copy(norm, RANK * 4),
                .eps = 1e-6f,
                .q = device_copy(q, n_heads * q_width * 2),
                .ld_q = n_heads * q_width,
                .nope = NOPE,
                .n_heads = n_heads,
                .dtype = LLM_CUDA_BF16,
            },
        .w_uk = w_uk.m,
        .w_uv = kv_b.m,
        .o = o.m,
        .value_step = NOPE + VALUE,
        .scale = 0.1f + 0.1f * uniform(),
        .out = device_poisoned((size_t) n_heads * hidden * 4),
    };
    struct llm_cuda_latents one = a.latents;
    struct llm_cuda_queue queue = {.overlap = rnd(2)};

    a.w_uv.data = (const char *) kv_b.m.data + NOPE * kv_b.m.stride;
    a.w_uv.scale += kv_b.m.scale_stride;
    CUDA(llm_cuda_alone(&a, queue));
    got_bytes = fetch(plane.data, pool);

    /* the row's own latent as llm_cuda_latents makes it, but for the order of a sum */
    one.q = NULL;
    CUDA(cudaMemset((void *) one.rows.flags, 0, 1));
    CUDA(llm_cuda_latents(&one, queue));
    CUDA(cudaMemcpy(want_bytes, plane.data, pool, cudaMemcpyDeviceToHost));
    for (uint32_t t = 0; t < n_keys; t++) {
        own = pages[t / PAGE] * plane.page_step + t % PAGE * plane.row_bytes;
        unpack_row(latents, want_bytes + own, rows + t * (size_t) WIDTH);
    }
    own = pages[position / PAGE] * plane.page_step + position % PAGE * plane.row_bytes;
    if (!(flags & LLM_CUDA_ROW_NO_WRITE)) {
        double stored[WIDTH];
        float as_made[WIDTH];

        unpack_row(latents, got_bytes + own, stored);
        for (uint32_t i = 0; i < WIDTH; i++) {
            as_made[i] = (float) rows[(size_t) position * WIDTH + i];
        }
        row_error = distance(as_made, stored, WIDTH);
        memcpy(rows + (size_t) position * WIDTH, stored, sizeof(stored));
        memcpy(bytes + own, got_bytes + own, plane.row_bytes);
    }
    same = memcmp(got_bytes, bytes, pool) == 0;

    for (uint32_t h = 0; h < n_heads; h++) {
        double query[NOPE + ROPE];

        for (uint32_t i = 0; i < q_width; i++) {
            query[i] = f32_of_bf16(q[h * q_width + i]);
        }
        for (uint32_t i = 0; i < ROPE / 2; i++) {
            float angle = (float) position * inv_freq[i];
            double x = query[NOPE + 2 * i], y = query[NOPE + 2 * i + 1];

            query[NOPE + 2 * i] = (x * cos(angle) - y * sin(angle)) * 1.25;
            query[NOPE + 2 * i + 1] = (x * sin(angle) + y * cos(angle)) * 1.25;
        }
        attend(&w_uk, &kv_b, &o, h, query, a.scale, rows, n_keys, want + (size_t) h * hidden);
    }
    float *got = fetch(a.out, (size_t) n_heads * hidden * 4);
    d = distance(got, want, (size_t) n_heads * hidden);
    if (!ok(d < 2e-5 && row_error < 1e-3 && same,
            "weights %s, latents %s: %u keys, %u heads, %u outputs%s", names[weights],
            names[latents], n_keys, n_heads, hidden,
            flags & LLM_CUDA_ROW_NO_WRITE ? ", row not written" : "")) {
        diag("errors %g and, of the row, %g; pages %s", d, row_error, same ? "right" : "wrong");
    }

    const void *of_device[] = {plane.data, one.rows.positions, one.rows.seqs, one.rows.flags,
                               one.rows.pages, one.rope.inv_freq, one.kv, one.kv_bias, one.kv_norm,
                               a.latents.q, a.out};
    for (size_t i = 0; i < sizeof(of_device) / sizeof(of_device[0]); i++) {
        CUDA(cudaFree((void *) of_device[i]));
    }
    void *of_host[] = {bytes,  want_bytes, got_bytes, inv_freq, kv,   bias,
                       norm, values,     q,         rows,     want, got};
    for (size_t i = 0; i < sizeof(of_host) / sizeof(of_host[0]); i++) {
        free(of_host[i]);
    }
    release_matrices(&w_uk);
    release_matrices(&kv_b);
    release_matrices(&o);
}

static bool lists_ok(const struct llm_cuda_route *r, uint32_t per, const uint32_t *want,
                     const float *want_weights)
{
    uint32_t *n_active = fetch(r->n_active, 4), *expert = fetch(r->expert, per * 4);
    uint32_t *first = fetch(r->first, (per + 1) * 4), *token = fetch(r->token, per * 4);
    uint32_t *pair_of = fetch(r->pair_of, per * 4);
    float *weight = fetch(r->weight, per * 4);
    bool right = *n_active == per && first[per] == per && memcmp(expert, want, per * 4) == 0;

    for (uint32_t k = 0; k < per; k++) {
        right &= first[k] == k && pair_of[k] == k && token[k] == 0
                 && fabsf(weight[k] - want_weights[k]) < 1e-4f * (1e-3f + want_weights[k]);
    }
    free(n_active);
    free(expert);
    free(first);
    free(token);
    free(pair_of);
    free(weight);
    return right;
}

static void test_join(uint32_t width, uint32_t n_add, uint32_t n_experts, uint32_t n_used,
                      uint32_t n_shared, enum llm_cuda_gate gate)
{
    uint32_t per = n_used + n_shared, n_groups = n_experts / 4 >= n_used ? 4 : 1;
    uint8_t flags = 0;
    float *x = random_floats(width), *add = random_floats((size_t) n_add * width + 1);
    float *bias = random_floats(width), *weight = random_floats(width);
    float *by = random_floats(LLM_CUDA_MAX_JOIN);
    struct matrices router = random_matrices(LLM_CUDA_BF16, n_experts > 0 ? n_experts : 1, width, 1,
                                             true);
    double *want = allocate(width * sizeof(*want)), *want_normed = allocate(width * sizeof(*want));
    double square = 0, d, normed_d;
    uint32_t want_experts[LLM_CUDA_MAX_JOIN];
    float want_weights[LLM_CUDA_MAX_JOIN], logits[LLM_CUDA_MAX_JOIN];
    float scratch[3 * LLM_CUDA_MAX_JOIN];
    bool with_bias = rnd(2), with_choice_bias = rnd(2), right = true;
    struct llm_cuda_join j = {
        .x = device_copy(x, width * 4),
        .add = device_copy(add, (size_t) n_add * width * 4),
        .n_add = n_add,
        .width = width,
        .bias = with_bias ? device_copy(bias, width * 4) : NULL,
        .weight = device_copy(weight, width * 4),
        .eps = 1e-6f,
        .normed = device_poisoned(width * 2),
    };
    struct llm_cuda_route *r = &j.route;
    struct llm_cuda_queue queue = {.overlap = rnd(2)};

    if (n_experts > 0) {
        j.router = router.m;
        *r = (struct llm_cuda_route){
            .router = {.gate = gate, .sigmoid = rnd(2), .n_experts = n_experts, .n_used = n_used,
                       .n_groups = n_groups, .n_groups_used = 1 + rnd(n_groups),
                       .normalise = rnd(2), .factor = 2.5f, .n_shared = n_shared},
            .bias = with_choice_bias ? device_copy(by, n_experts * 4) : NULL,
            .n = 1,
            .flags = device_copy(&flags, 1),
            .n_active = device_poisoned(4),
            .expert = device_poisoned((n_experts + n_shared) * 4),
            .first = device_poisoned((n_experts + n_shared + 1) * 4),
            .token = device_poisoned(per * 4),
            .pair_of = device_poisoned(per * 4),
            .weight = device_poisoned(per * 4),
        };
    }
    CUDA(llm_cuda_join(&j, queue));

    for (uint32_t i = 0; i < width; i++) {
        want[i] = x[i] + (with_bias ? bias[i] : 0);
        for (uint32_t k = 0; k < n_add; k++) {
            want[i] += add[(size_t) k * width + i];
        }
        square += want[i] * want[i];
    }
    for (uint32_t i = 0; i < width; i++) {
        want_normed[i] = want[i] * weight[i] / sqrt(square / width + 1e-6);
    }
    float *got = fetch(j.x, width * 4), *normed = fetch_bf16(j.normed, width);
    d = distance(got, want, width);
    normed_d = distance(normed, want_normed, width);
    if (n_experts > 0) {
        struct llm_cpu_router cpu = {
            .gate = (enum llm_cpu_gate) gate, .sigmoid = r->router.sigmoid, .n_experts = n_experts,
            .n_used = n_used, .n_groups = n_groups, .n_groups_used = r->router.n_groups_used,
            .normalise = r->router.normalise, .factor = 2.5f};

        for (uint32_t e = 0; e < n_experts; e++) {
            double logit = 0;

            for (uint32_t i = 0; i < width; i++) {
                logit += (double) normed[i] * element(&router, 0, e, i);
            }
            logits[e] = (float) logit;
        }
        llm_cpu_route(&cpu, logits, with_choice_bias ? by : NULL, scratch, want_experts,
                      want_weights);
        for (uint32_t k = 0; k < n_shared; k++) {
            want_experts[n_used + k] = n_experts + k;
            want_weights[n_used + k] = 1;
        }
        right = lists_ok(r, per, want_experts, want_weights);
    }
    if (!ok(d < 1e-6 && normed_d < 3e-3 && right,
            "%u elements, %u parts: norm, %u + %u of %u experts in %u groups, gate %d", width,
            n_add, n_used, n_shared, n_experts, n_groups, (int) gate)) {
        diag("errors %g and %g, choice %s", d, normed_d, right ? "right" : "wrong");
    }

    const void *of_device[] = {j.x, j.add, j.bias, j.weight, j.normed, r->bias, r->flags,
                               r->n_active, r->expert, r->first, r->token, r->pair_of, r->weight};
    for (size_t i = 0; i < sizeof(of_device) / sizeof(of_device[0]); i++) {
        CUDA(cudaFree((void *) of_device[i]));
    }
    void *of_host[] = {x, add, bias, weight, by, want, want_normed, got, normed};
    for (size_t i = 0; i < sizeof(of_host) / sizeof(of_host[0]); i++) {
        free(of_host[i]);
    }
    release_matrices(&router);
}

static void test_normed(enum llm_cuda_dtype dtype, uint32_t rows, uint32_t more, uint32_t cols)
{
    struct matrices w[2] = {random_matrices(dtype, rows, cols, 1, true),
                            random_matrices(dtype, more, cols, 1, true)};
    float *x = random_floats(cols), *weight = random_floats(cols);
    struct llm_cuda_norm norm = {
        .n = 1, .width = cols, .x = device_copy(x, cols * 4), .eps = 1e-6f,
        .weight = device_copy(weight, cols * 4), .out_bf16 = device_poisoned(cols * 2)};
    struct llm_cuda_linear l[2];
    struct llm_cuda_queue queue = {.overlap = rnd(2)};
    double worst = 0;

    for (int i = 0; i < 2; i++) {
        l[i] = (struct llm_cuda_linear){
            .w = w[i].m, .out = device_poisoned(w[i].m.rows * 4), .ldo = w[i].m.rows,
            .store = i == 0 ? LLM_CUDA_SET_BF16 : LLM_CUDA_SET_F32, .n_batch = 1};
    }
    CUDA(llm_cuda_linears_normed(l, 2, &norm, queue));
    CUDA(llm_cuda_rms_norm(&norm, queue));
    float *normed = fetch_bf16(norm.out_bf16, cols);
    for (int i = 0; i < 2; i++) {
        uint32_t n = w[i].m.rows;
        float *got = i == 0 ? fetch_bf16(l[i].out, n) : fetch(l[i].out, n * 4);
        double *want = allocate(n * sizeof(*want)), d;

        for (uint32_t r = 0; r < n; r++) {
            want[r] = 0;
            for (uint32_t k = 0; k < cols; k++) {
                want[r] += (double) normed[k] * element(&w[i], 0, r, k);
            }
        }
        d = distance(got, want, n);
        worst = d > worst || isnan(d) ? d : worst;
        CUDA(cudaFree(l[i].out));
        free(got);
        free(want);
        release_matrices(&w[i]);
    }
    if (!ok(worst < 4e-3, "%s: %u and %u rows of the norm of %u", names[dtype], rows, more, cols)) {
        diag("error %g", worst);
    }
    CUDA(cudaFree(norm.x));
    CUDA(cudaFree((void *) norm.weight));
    CUDA(cudaFree(norm.out_bf16));
    free(x);
    free(weight);
    free(normed);
}

int main(int argc, char **argv)
{
    uint32_t count = argc > 1 ? (uint32_t) strtoul(argv[1], NULL, 10) : 40;

    int major;

    CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    if (major < 9) {
        puts("1..0 # SKIP a processor without clusters");
        return 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        enum llm_cuda_latent_dtype latents = (enum llm_cuda_latent_dtype) (i % 2);
        enum llm_cuda_dtype weights = (enum llm_cuda_dtype) (i / 2 % 2);

        test_attention(latents, weights, i < 8 ? 1 + i / 4 * 64 : 1 + rnd(rnd(3) ? 300 : MAX_KEYS),
                       1 + rnd(4), 256 * (1 + rnd(rnd(3) ? 2 : 8)),
                       rnd(4) ? 0 : LLM_CUDA_ROW_NO_WRITE);
    }
    test_join(2048, 16, 64, 6, 2, LLM_CUDA_GATE_GREEDY);
    test_join(2048, 0, 64, 6, 2, LLM_CUDA_GATE_NOAUX);
    test_join(64, 3, 0, 0, 0, LLM_CUDA_GATE_GREEDY);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t n_experts = rnd(4) ? 8 * (1 + rnd(8)) : 0;

        test_join(64 * (1 + rnd(32)), rnd(40), n_experts, n_experts > 0 ? 1 + rnd(8) : 0, rnd(3),
                  (enum llm_cuda_gate) (i % 3));
        test_normed((enum llm_cuda_dtype) (i % 2), 16 * (1 + rnd(100)), 1 + rnd(600),
                    64 * (1 + rnd(32)));
    }
    return done_testing();
}
