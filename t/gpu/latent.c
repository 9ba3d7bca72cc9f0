/* Latents on their way into pages and queries: rotation and norm against plain double arithmetic,
 * the rounding against the CPU's to the bit, rows that must not be written, and nothing beside the
 * rows. */

#include "kernels/cpu/kernels.h"
#include "t/gpu/gpu.h"

#define PAGE LLM_CUDA_PAGE_TOKENS

static const struct llm_cuda_queue queue;
static const char *const names[] = {"bf16", "fp8", "f32"};

static struct llm_cuda_plane plane_of(enum llm_cuda_latent_dtype dtype, uint32_t rank,
                                      uint32_t rope)
{
    struct llm_cuda_plane p = {.dtype = dtype, .rank = rank, .rope = rope};

    switch (dtype) {
    case LLM_CUDA_LATENT_F32:
        p.rope_offset = rank * 4;
        p.row_bytes = p.rope_offset + rope * 4;
        break;
    case LLM_CUDA_LATENT_BF16:
        p.rope_offset = rank * 2;
        p.row_bytes = p.rope_offset + rope * 2;
        break;
    case LLM_CUDA_LATENT_FP8:
        p.scale_offset = rank;
        p.rope_offset = rank + (rank + 127) / 128 * 4;
        p.row_bytes = (p.rope_offset + rope * 2 + 15) & ~15u;
        break;
    }
    p.page_step = p.row_bytes * PAGE + rnd(3) * 64;
    return p;
}

/* A row of fp32 latents as another type. */
static void pack(const struct llm_cuda_plane *p, const float *latent, uint8_t *row)
{
    const struct llm_cpu_kernels *k = &llm_cpu_kernels_scalar;

    if (p->dtype == LLM_CUDA_LATENT_BF16) {
        k->pack_bf16(latent, p->rank + p->rope, row);
        return;
    }
    memset(row, 0, p->row_bytes);
    k->pack_e4m3(latent, p->rank, 128, row, row + p->scale_offset);
    k->pack_bf16(latent + p->rank, p->rope, row + p->rope_offset);
}

static void rotate(const struct llm_cuda_rope *r, const float *inv_freq, uint32_t position,
                   uint32_t n_pairs, const double *from, double *to)
{
    for (uint32_t i = 0; i < n_pairs; i++) {
        float angle = (float) position * inv_freq[i];
        double c = cos(angle) * r->magnitude, s = sin(angle) * r->magnitude;

        to[2 * i] = from[2 * i] * c - from[2 * i + 1] * s;
        to[2 * i + 1] = from[2 * i] * s + from[2 * i + 1] * c;
    }
}

static void test(enum llm_cuda_latent_dtype dtype, enum llm_cuda_dtype activations, uint32_t rank,
                 uint32_t rope, uint32_t n_heads, uint32_t nope, bool special)
{
    uint32_t n = 1 + rnd(20), n_seqs = 3, n_pages = 8, width = rank + rope, longest = 2;
    size_t pages_step = longest + rnd(2), ld_kv = width + rnd(3), q_width = nope + rope;
    size_t ld_q = n_heads * q_width + rnd(3), n_q = n * ld_q, pool;
    uint32_t positions[20], seqs[20], pages[9];
    uint8_t flags[20];
    float *inv_freq = random_floats(rope / 2), *kv = random_floats(n * ld_kv);
    float *bias = random_floats(width), *norm = random_floats(rank), *q = random_floats(n_q);
    uint16_t *q_bf16 = allocate(n_q * 2);
    struct llm_cuda_plane f32 = plane_of(LLM_CUDA_LATENT_F32, rank, rope);
    struct llm_cuda_plane own = plane_of(dtype, rank, rope);
    bool with_bias = rnd(2), with_kv = rnd(8) > 0, with_q = !with_kv || rnd(2);

    for (uint32_t i = 0; i < n_seqs * pages_step; i++) {
        pages[i] = i % pages_step < longest ? (i / pages_step * longest + i % pages_step) % n_pages
                                            : 1u << 31;
    }
    for (uint32_t i = 0; i < n; i++) {
        seqs[i] = i % n_seqs;
        positions[i] = i * 6 + rnd(6); /* no row twice */
        flags[i] = rnd(4) ? (uint8_t) rnd(4)
                          : rnd(2) ? LLM_CUDA_ROW_NO_WRITE : LLM_CUDA_ROW_IDLE;
    }
    for (size_t i = 0; i < n_q; i++) {
        q_bf16[i] = bf16_of_f32(q[i]);
        q[i] = activations == LLM_CUDA_BF16 ? f32_of_bf16(q_bf16[i]) : q[i];
    }
    if (special && n > 4) { /* in the rope part, and so large a row that its norm is not finite */
        kv[rank] = NAN;
        kv[ld_kv] = 1e38f;
        kv[2 * ld_kv + rank + 1] = INFINITY;
    }

    pool = n_pages * (f32.page_step > own.page_step ? f32.page_step : own.page_step);
    uint8_t *d_f32 = device_poisoned(pool), *d_own = device_poisoned(pool);
    float *d_bias = device_copy(bias, width * 4);
    struct llm_cuda_latents l = {
        .rows =
            {
                .n = n,
                .positions = device_copy(positions, sizeof(positions)),
                .seqs = device_copy(seqs, sizeof(seqs)),
                .flags = device_copy(flags, sizeof(flags)),
                .pages = device_copy(pages, sizeof(pages)),
                .pages_step = pages_step,
            },
        .plane = f32,
        .rope = {device_copy(inv_freq, rope / 2 * 4), 1.25f},
        .ld_kv = ld_kv,
        .kv_bias = with_bias ? d_bias : NULL,
        .kv_norm = device_copy(norm, rank * 4),
        .eps = 1e-6f,
        .ld_q = ld_q,
        .nope = nope,
        .n_heads = n_heads,
        .query = device_poisoned((size_t) n * n_heads * width * 4),
        .dtype = activations,
    };
    float *d_kv = device_copy(kv, n * ld_kv * 4);
    void *d_q = activations == LLM_CUDA_BF16 ? device_copy(q_bf16, n_q * 2)
                                             : device_copy(q, n_q * 4);
    uint8_t *got_f32, *got, *want = allocate(pool);
    float *query;
    double *want_kv = allocate(width * sizeof(double)), worst = 0;
    bool same, untouched = true;

    l.plane.data = d_f32;
    l.kv = with_kv ? d_kv : NULL;
    if (with_kv) {
        CUDA(llm_cuda_latents(&l, queue));
    }
    l.plane = own;
    l.plane.data = d_own;
    l.q = with_q ? d_q : NULL;
    CUDA(llm_cuda_latents(&l, queue));
    got_f32 = fetch(d_f32, pool);
    got = fetch(d_own, pool);
    memset(want, 0xFF, pool);

    for (uint32_t i = 0; i < n && with_kv; i++) {
        uint32_t page = pages[seqs[i] * pages_step + positions[i] / PAGE];
        uint32_t row = positions[i] % PAGE;
        const float *from = (const float *) (got_f32 + page * f32.page_step + row * f32.row_bytes);
        double sum = 0, rotated[512], d;

        if (flags[i] & (LLM_CUDA_ROW_NO_WRITE | LLM_CUDA_ROW_IDLE)) {
            continue;
        }
        if (dtype == LLM_CUDA_LATENT_F32) {
            memcpy(want + page * own.page_step + row * own.row_bytes, from, own.row_bytes);
        } else {
            pack(&own, from, want + page * own.page_step + row * own.row_bytes);
        }
        for (uint32_t j = 0; j < width; j++) {
            want_kv[j] = kv[i * ld_kv + j] + (with_bias ? bias[j] : 0);
            sum += j < rank ? want_kv[j] * want_kv[j] : 0;
        }
        for (uint32_t j = 0; j < rank; j++) {
            want_kv[j] *= norm[j] / sqrt(sum / rank + 1e-6);
        }
        rotate(&l.rope, inv_freq, positions[i], rope / 2, want_kv + rank, rotated);
        memcpy(want_kv + rank, rotated, rope * sizeof(double));
        d = special && i < 3 ? 0 : distance(from, want_kv, width);
        worst = d <= worst ? worst : d;
    }
    same = memcmp(got, want, pool) == 0;

    if (activations == LLM_CUDA_BF16) {
        query = fetch_bf16(l.query, (size_t) n * n_heads * width);
    } else {
        query = fetch(l.query, (size_t) n * n_heads * width * 4);
    }
    for (uint32_t v = 0; v < n * n_heads; v++) {
        const float *from = q + v / n_heads * ld_q + v % n_heads * q_width + nope;
        double in[512], out[512], d;

        for (uint32_t j = 0; j < rank; j++) {
            untouched &= isnan(query[(size_t) v * width + j]);
        }
        if (!with_q) {
            untouched &= isnan(query[(size_t) v * width + rank]);
            continue;
        }
        for (uint32_t j = 0; j < rope; j++) {
            in[j] = from[j];
        }
        rotate(&l.rope, inv_freq, positions[v / n_heads], rope / 2, in, out);
        d = distance(query + (size_t) v * width + rank, out, rope);
        d = activations == LLM_CUDA_BF16 ? d * 1e-3 : d;
        worst = d <= worst ? worst : d;
    }
    if (!ok(worst < 4e-6 && same && untouched, "%s: %u rows of %u + %u, %u heads%s%s%s",
            names[dtype], n, rank, rope, n_heads, with_kv ? ", latents" : "",
            with_q ? ", queries" : "", special ? ", not all finite" : "")) {
        diag("error %g, bytes %s, %s", worst, same ? "right" : "wrong",
             untouched ? "nothing else touched" : "others touched");
    }

    CUDA(cudaFree((void *) l.rows.positions));
    CUDA(cudaFree((void *) l.rows.seqs));
    CUDA(cudaFree((void *) l.rows.flags));
    CUDA(cudaFree((void *) l.rows.pages));
    CUDA(cudaFree((void *) l.rope.inv_freq));
    CUDA(cudaFree((void *) l.kv_norm));
    CUDA(cudaFree(l.query));
    CUDA(cudaFree(d_f32));
    CUDA(cudaFree(d_own));
    CUDA(cudaFree(d_bias));
    CUDA(cudaFree(d_kv));
    CUDA(cudaFree(d_q));
    free(inv_freq);
    free(kv);
    free(bias);
    free(norm);
    free(q);
    free(q_bf16);
    free(got_f32);
    free(got);
    free(want);
    free(want_kv);
    free(query);
}

int main(int argc, char **argv)
{
    uint32_t count = argc > 1 ? (uint32_t) strtoul(argv[1], NULL, 10) : 60;

    for (uint32_t i = 0; i < count; i++) {
        enum llm_cuda_latent_dtype dtype = (enum llm_cuda_latent_dtype) (i % 3);
        enum llm_cuda_dtype activations = i / 3 % 2 ? LLM_CUDA_F32 : LLM_CUDA_BF16;

        test(dtype, activations, 512, 64, 1 + rnd(20), 128, i % 5 == 0);
        test(dtype, activations, 1 + rnd(700), 2 + rnd(40) * 2, 1 + rnd(9), 1 + rnd(50),
             i % 5 == 0);
    }
    return done_testing();
}
