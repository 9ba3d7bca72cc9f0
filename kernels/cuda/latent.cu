/* What lies between the down and up projections: bound by the launch, 2 to 3 us on one H200 for up
 * to 64 rows. A row's latents are one block's, the rope elements of its queries those of as many as
 * it takes. */

#include "kernels/cuda/element.cuh"

namespace llm {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kOwn = LLM_CUDA_SCALE_BLOCK / kWarp; /* elements of a block of e4m3 a lane makes */

struct pair {
    float x, y;
};

__device__ __forceinline__ pair rotated(const struct llm_cuda_rope &r, uint32_t position,
                                        uint32_t i, pair p)
{
    float sine, cosine;

    sincosf((float) position * r.inv_freq[i], &sine, &cosine);
    sine *= r.magnitude;
    cosine *= r.magnitude;
    return {p.x * cosine - p.y * sine, p.x * sine + p.y * cosine};
}

__device__ __forceinline__ void store_bf16(uint8_t *to, float v)
{
    uint16_t h = bf16_of_f32(v);

    to[0] = (uint8_t) h; /* of any alignment: behind scales that are behind an odd rank */
    to[1] = (uint8_t) (h >> 8);
}

/* Warps take the blocks of a row in turn; normed(i) is its element i. */
template <typename F>
__device__ __forceinline__ void store_e4m3(const struct llm_cuda_plane &p, uint8_t *row, F normed)
{
    uint32_t lane = threadIdx.x % kWarp;

    for (uint32_t at = threadIdx.x / kWarp * LLM_CUDA_SCALE_BLOCK; at < p.rank;
         at += kWarps * LLM_CUDA_SCALE_BLOCK) {
        float v[kOwn];
        uint32_t largest = 0; /* as bits, where infinity is above all numbers, NaN above that */

#pragma unroll
        for (int j = 0; j < kOwn; j++) {
            uint32_t i = at + j * kWarp + lane;

            v[j] = i < p.rank ? normed(i) : 0;
            largest = max(largest, __float_as_uint(v[j]) & 0x7fffffff);
        }
#pragma unroll
        for (int i = 1; i < kWarp; i *= 2) {
            largest = max(largest, __shfl_xor_sync(~0u, largest, i));
        }

        float factor = __uint_as_float(largest) / 448;
        factor = factor < FLT_MIN ? FLT_MIN : factor;
#pragma unroll
        for (int j = 0; j < kOwn; j++) {
            uint32_t i = at + j * kWarp + lane;

            if (i < p.rank) {
                row[i] = e4m3_of_f32(v[j] / factor);
            }
        }
        if (lane < 4) {
            row[p.scale_offset + at / LLM_CUDA_SCALE_BLOCK * 4 + lane] =
                (uint8_t) (__float_as_uint(factor) >> lane * 8);
        }
    }
}

__device__ __forceinline__ void append_latent(const struct llm_cuda_latents &a, uint32_t row,
                                              uint32_t position)
{
    const struct llm_cuda_plane &p = a.plane;
    const float *kv = a.kv + row * a.ld_kv;
    uint32_t page =
        a.rows.pages[a.rows.seqs[row] * a.rows.pages_step + position / LLM_CUDA_PAGE_TOKENS];
    uint8_t *to = static_cast<uint8_t *>(p.data) + page * p.page_step
                  + position % LLM_CUDA_PAGE_TOKENS * p.row_bytes;
    float sum = 0;

    auto biased = [&](uint32_t i) { return a.kv_bias != NULL ? kv[i] + a.kv_bias[i] : kv[i]; };
    for (uint32_t i = threadIdx.x; i < p.rank; i += kThreads) {
        float v = biased(i);

        sum += v * v;
    }
    float r = 1 / sqrtf(sum_of_block<kThreads>(sum) / (float) p.rank + a.eps);
    auto normed = [&](uint32_t i) { return biased(i) * r * a.kv_norm[i]; };

    if (p.dtype == LLM_CUDA_LATENT_FP8) {
        uint32_t end = p.rope_offset + p.rope * 2;

        store_e4m3(p, to, normed);
        for (uint32_t i = end + threadIdx.x; i < p.row_bytes; i += kThreads) {
            to[i] = 0;
        }
    } else {
        for (uint32_t i = threadIdx.x; i < p.rank; i += kThreads) {
            if (p.dtype == LLM_CUDA_LATENT_F32) {
                reinterpret_cast<float *>(to)[i] = normed(i);
            } else {
                reinterpret_cast<uint16_t *>(to)[i] = bf16_of_f32(normed(i));
            }
        }
    }
    for (uint32_t i = threadIdx.x; i < p.rope / 2; i += kThreads) {
        pair v = rotated(a.rope, position, i,
                         {biased(p.rank + 2 * i), biased(p.rank + 2 * i + 1)});
        uint8_t *at = to + p.rope_offset;

        if (p.dtype == LLM_CUDA_LATENT_F32) {
            reinterpret_cast<float *>(at)[2 * i] = v.x;
            reinterpret_cast<float *>(at)[2 * i + 1] = v.y;
        } else {
            store_bf16(at + i * 4, v.x);
            store_bf16(at + i * 4 + 2, v.y);
        }
    }
}

/* A pair of a head's rope elements, the i-th of all heads. */
template <typename T>
__device__ __forceinline__ void rotate_query(const struct llm_cuda_latents &a, uint32_t row,
                                             uint32_t position, uint32_t i)
{
    uint32_t pairs = a.plane.rope / 2, head = i / pairs, width = a.plane.rank + a.plane.rope;
    const T *from = static_cast<const T *>(a.q) + row * a.ld_q
                    + (size_t) head * (a.nope + a.plane.rope) + a.nope + i % pairs * 2;
    T *to = static_cast<T *>(a.query) + ((size_t) row * a.n_heads + head) * width + a.plane.rank
            + i % pairs * 2;
    pair v = rotated(a.rope, position, i % pairs, {(float) from[0], (float) from[1]});

    to[0] = (T) v.x;
    to[1] = (T) v.y;
}

/* Blocks y of row x: the first is of the latent where there is one, the others of the query. */
__global__ void __launch_bounds__(kThreads)
    latents_kernel(const __grid_constant__ struct llm_cuda_latents a)
{
    uint32_t row = blockIdx.x, block = blockIdx.y;

    wait_for_previous();
    let_next_begin();

    uint32_t position = a.rows.positions[row];
    if (a.kv != NULL && block == 0) {
        if (!(a.rows.flags[row] & (LLM_CUDA_ROW_NO_WRITE | LLM_CUDA_ROW_IDLE))) {
            append_latent(a, row, position);
        }
        return;
    }

    uint32_t i = (block - (a.kv != NULL)) * kThreads + threadIdx.x;
    if (i < a.n_heads * (a.plane.rope / 2)) {
        if (a.dtype == LLM_CUDA_BF16) {
            rotate_query<__nv_bfloat16>(a, row, position, i);
        } else {
            rotate_query<float>(a, row, position, i);
        }
    }
}

} // namespace
} // namespace llm

extern "C" int llm_cuda_latents(const struct llm_cuda_latents *l, struct llm_cuda_queue q)
{
    uint32_t n_pairs = l->q != NULL ? l->n_heads * (l->plane.rope / 2) : 0;
    uint32_t blocks = (l->kv != NULL) + (n_pairs + llm::kThreads - 1) / llm::kThreads;

    return llm::launch(llm::latents_kernel, dim3(l->rows.n, blocks), llm::kThreads, 0, q, *l);
}
