/* Attention of the general path: any rank, rope, heads and type of latents, in fp32 on the ordinary
 * cores. Bound by reading shared memory: about a quarter of what the cores could multiply.
 *
 * A block takes the queries of 16 heads of one row through a split of pages after the other, or
 * through one split. Its scores stay in shared memory whole, so that keys and then values pass by
 * in strips of columns and no width is too large. */

#include "kernels/cuda/element.cuh"

namespace llm {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kHeads = 16;  /* of a block */
constexpr int kStrip = 32;  /* columns at a time */
constexpr int kPitch = kStrip + 1;
constexpr int kKeys = LLM_CUDA_PLAIN_SPLIT_PAGES * LLM_CUDA_PAGE_TOKENS; /* of a split */
constexpr int kOwn = kHeads * kStrip / kThreads; /* heads whose sums of a column a thread makes */
static_assert(kKeys == kThreads, "a thread makes the scores of one key");

/* Floats of a block's shared memory. */
constexpr int kRows = 0;                           /* a strip of keys or values */
constexpr int kQueries = kRows + kKeys * kPitch;   /* a strip of queries: [column][head] */
constexpr int kScores = kQueries + kStrip * kHeads; /* [head][key] */
constexpr int kStats = kScores + kHeads * kKeys;   /* of a head: see struct stats */
constexpr int kShared = (kStats + kHeads * 4) * 4;

/* Of a head: the largest score and the sum of what the softmax divides by, over all splits so far,
 * and what the sums so far and those of the split are multiplied by when they are added. */
struct stats {
    float max, sum, old_factor, factor;
};

/* Columns col … of keys [first, n_keys) of a sequence, in fp32; zeros beyond `end` and n_keys. */
template <int Dtype>
__device__ __forceinline__ void load_strip(const struct llm_cuda_plain_attention &a,
                                           const uint32_t *pages, uint32_t first, uint32_t n_keys,
                                           uint32_t col, uint32_t end, float *rows)
{
    uint32_t c = col + threadIdx.x % kStrip;

#pragma unroll 8
    for (int i = threadIdx.x / kStrip; i < kKeys; i += kThreads / kStrip) {
        uint32_t key = first + i;
        float v = 0;

        if (key < n_keys && c < end) {
            const uint8_t *row = static_cast<const uint8_t *>(a.plane.data)
                                 + pages[key / LLM_CUDA_PAGE_TOKENS] * a.plane.page_step
                                 + key % LLM_CUDA_PAGE_TOKENS * a.plane.row_bytes;

            v = latent<Dtype>(a.plane, row, c);
        }
        rows[i * kPitch + threadIdx.x % kStrip] = v;
    }
}

__device__ __forceinline__ void load_any_strip(const struct llm_cuda_plain_attention &a,
                                               const uint32_t *pages, uint32_t first,
                                               uint32_t n_keys, uint32_t col, uint32_t end,
                                               float *rows)
{
    switch (a.plane.dtype) {
    case LLM_CUDA_LATENT_F32:
        load_strip<LLM_CUDA_LATENT_F32>(a, pages, first, n_keys, col, end, rows);
        break;
    case LLM_CUDA_LATENT_BF16:
        load_strip<LLM_CUDA_LATENT_BF16>(a, pages, first, n_keys, col, end, rows);
        break;
    case LLM_CUDA_LATENT_FP8:
        load_strip<LLM_CUDA_LATENT_FP8>(a, pages, first, n_keys, col, end, rows);
        break;
    }
}

/* scores[head][key] of a split's keys, minus infinity for those that are not there. */
__device__ __forceinline__ void score(const struct llm_cuda_plain_attention &a,
                                      const uint32_t *pages, uint32_t first, uint32_t n_keys,
                                      const float *queries, uint32_t n_heads, float *shared)
{
    uint32_t width = a.plane.rank + a.plane.rope;
    float sums[kHeads] = {};

    for (uint32_t col = 0; col < width; col += kStrip) {
        __syncthreads();
        load_any_strip(a, pages, first, n_keys, col, width, shared + kRows);
        for (int i = threadIdx.x; i < kStrip * kHeads; i += kThreads) {
            uint32_t c = col + i % kStrip, head = i / kStrip;

            shared[kQueries + i % kStrip * kHeads + head] =
                c < width && head < n_heads ? queries[head * width + c] : 0;
        }
        __syncthreads();
#pragma unroll 8
        for (int c = 0; c < kStrip; c++) {
            float k = shared[kRows + threadIdx.x * kPitch + c];

#pragma unroll
            for (int h = 0; h < kHeads; h++) {
                sums[h] += k * shared[kQueries + c * kHeads + h];
            }
        }
    }
#pragma unroll
    for (int h = 0; h < kHeads; h++) {
        shared[kScores + h * kKeys + threadIdx.x] =
            first + threadIdx.x < n_keys ? sums[h] * a.scale : -INFINITY;
    }
    __syncthreads();
}

/* What sums of two sets of keys with these maxima and divisors are multiplied by to be added. */
__device__ __forceinline__ struct stats merge(float max, float sum, float own_max, float own_sum)
{
    struct stats s;

    s.max = fmaxf(max, own_max);
    s.old_factor = expf(max - s.max);
    s.factor = expf(own_max - s.max);
    s.sum = __fmaf_rn(own_sum, s.factor, sum * s.old_factor);
    return s;
}

__device__ __forceinline__ float merged(float old_sum, float old_factor, float sum, float factor)
{
    return __fmaf_rn(sum, factor, old_sum * old_factor);
}

/* Turns scores into exp(score - max) and adds the split to each head's stats. */
__device__ __forceinline__ void soften(bool is_first, float *shared)
{
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    struct stats *all = reinterpret_cast<struct stats *>(shared + kStats);

    for (int h = warp; h < kHeads; h += kWarps) {
        float *scores = shared + kScores + h * kKeys, max = -INFINITY, sum = 0;

        for (int i = lane; i < kKeys; i += kWarp) {
            max = fmaxf(max, scores[i]);
        }
        for (int i = 1; i < kWarp; i *= 2) {
            max = fmaxf(max, __shfl_xor_sync(~0u, max, i));
        }
        for (int i = lane; i < kKeys; i += kWarp) {
            scores[i] = expf(scores[i] - max);
            sum += scores[i];
        }
        for (int i = 1; i < kWarp; i *= 2) {
            sum += __shfl_xor_sync(~0u, sum, i);
        }
        if (lane == 0) {
            all[h] = is_first ? stats{max, sum, 0, 1}
                              : merge(all[h].max, all[h].sum, max, sum);
        }
    }
    __syncthreads();
}

/* Hands f the weighted sum of each head's values, column by column: f(head, column, sum). */
template <typename F>
__device__ __forceinline__ void mix(const struct llm_cuda_plain_attention &a,
                                    const uint32_t *pages, uint32_t first, uint32_t n_keys,
                                    float *shared, F f)
{
    uint32_t column = threadIdx.x % kStrip, head = threadIdx.x / kStrip * kOwn;

    for (uint32_t col = 0; col < a.plane.rank; col += kStrip) {
        float sums[kOwn] = {};

        __syncthreads();
        load_any_strip(a, pages, first, n_keys, col, a.plane.rank, shared + kRows);
        __syncthreads();
#pragma unroll 8
        for (int i = 0; i < kKeys; i++) {
            float v = shared[kRows + i * kPitch + column];

#pragma unroll
            for (int h = 0; h < kOwn; h++) {
                sums[h] += shared[kScores + (head + h) * kKeys + i] * v;
            }
        }
#pragma unroll
        for (int h = 0; h < kOwn; h++) {
            if (col + column < a.plane.rank) {
                f(head + h, col + column, sums[h]);
            }
        }
    }
}

/* Where the sums of a head over a split are: a.plane.rank of them, the maximum, the divisor. */
__device__ __forceinline__ float *partial_of(const struct llm_cuda_plain_attention &a,
                                             uint32_t row, uint32_t head, uint32_t split)
{
    return a.partial
           + (((size_t) row * a.n_heads + head) * a.max_splits + split) * (a.plane.rank + 2);
}

__device__ __forceinline__ bool is_idle(const struct llm_cuda_rows &rows, uint32_t row)
{
    return (rows.flags[row] & LLM_CUDA_ROW_IDLE) != 0;
}

__global__ void __launch_bounds__(kThreads)
    plain_attend_kernel(const __grid_constant__ struct llm_cuda_plain_attention a)
{
    extern __shared__ __align__(16) float shared[];
    const struct stats *all = reinterpret_cast<const struct stats *>(shared + kStats);
    uint32_t row = blockIdx.x, first_head = blockIdx.y * kHeads, rank = a.plane.rank;
    uint32_t n_heads = min(a.n_heads - first_head, kHeads);

    wait_for_previous();
    let_next_begin();

    bool idle = is_idle(a.rows, row), alone = a.max_splits == 1;
    uint32_t n_keys = idle ? 0 : a.rows.positions[row] + 1;
    uint32_t n_splits = (n_keys + kKeys - 1) / kKeys;
    uint32_t begin = alone ? 0 : blockIdx.z, end = alone ? n_splits : min(begin + 1, n_splits);
    size_t vector = (size_t) row * a.n_heads + first_head;
    const float *queries = a.queries + vector * (rank + a.plane.rope);
    float *out = a.out + vector * rank;

    for (uint32_t i = threadIdx.x; idle && begin == 0 && i < n_heads * rank; i += kThreads) {
        out[i] = 0;
    }
    for (uint32_t split = begin; split < end; split++) {
        const uint32_t *pages = a.rows.pages + a.rows.seqs[row] * a.rows.pages_step;
        bool is_first = split == begin, is_last = alone && split + 1 == end;

        score(a, pages, split * kKeys, n_keys, queries, n_heads, shared);
        soften(is_first, shared);
        mix(a, pages, split * kKeys, n_keys, shared, [&](uint32_t head, uint32_t col, float sum) {
            if (head >= n_heads) {
                return;
            }
            struct stats s = all[head];
            float *to = alone ? out + (size_t) head * rank
                              : partial_of(a, row, first_head + head, split);

            if (!is_first) {
                sum = merged(to[col], s.old_factor, sum, s.factor);
            }
            to[col] = is_last ? sum / s.sum : sum;
        });
        if (!alone && threadIdx.x < n_heads) {
            float *to = partial_of(a, row, first_head + threadIdx.x, split) + rank;

            to[0] = all[threadIdx.x].max;
            to[1] = all[threadIdx.x].sum;
        }
    }
}

/* The splits of one head of a row, added as a block that is alone adds them. */
__global__ void __launch_bounds__(kThreads)
    plain_combine_kernel(const __grid_constant__ struct llm_cuda_plain_attention a)
{
    uint32_t row = blockIdx.x, head = blockIdx.y, rank = a.plane.rank;

    wait_for_previous();
    let_next_begin();
    if (is_idle(a.rows, row)) {
        return;
    }

    uint32_t n_splits = (a.rows.positions[row] + kKeys) / kKeys;
    const float *parts = partial_of(a, row, head, 0);
    for (uint32_t col = threadIdx.x; col < rank; col += kThreads) {
        struct stats s = {parts[rank], parts[rank + 1], 0, 1};
        float sum = parts[col];

        for (uint32_t split = 1; split < n_splits; split++) {
            const float *part = parts + split * (size_t) (rank + 2);

            s = merge(s.max, s.sum, part[rank], part[rank + 1]);
            sum = merged(sum, s.old_factor, part[col], s.factor);
        }
        a.out[((size_t) row * a.n_heads + head) * rank + col] = sum / s.sum;
    }
}

} // namespace
} // namespace llm

extern "C" size_t llm_cuda_plain_attention_floats(const struct llm_cuda_plain_attention *a)
{
    return a->max_splits == 1 ? 0
                              : (size_t) a->rows.n * a->n_heads * a->max_splits
                                    * (a->plane.rank + 2);
}

extern "C" int llm_cuda_plain_attend(const struct llm_cuda_plain_attention *a,
                                     struct llm_cuda_queue q)
{
    uint32_t groups = (a->n_heads + llm::kHeads - 1) / llm::kHeads;
    cudaError_t allowed =
        cudaFuncSetAttribute(llm::plain_attend_kernel,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, llm::kShared);
    int rc = allowed != cudaSuccess
                 ? allowed
                 : llm::launch(llm::plain_attend_kernel, dim3(a->rows.n, groups, a->max_splits),
                               llm::kThreads, llm::kShared, q, *a);

    if (rc == 0 && a->max_splits > 1) {
        rc = llm::launch(llm::plain_combine_kernel, dim3(a->rows.n, a->n_heads), llm::kThreads, 0,
                         q, *a);
    }
    return rc;
}
