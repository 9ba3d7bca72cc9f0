/* Attention in the absorbed form over latent pages, for decoding.
 *
 * A block takes 16 query vectors (queries and heads of a sequence, in that order) through the
 * pages of one split, a page of 64 rows at a time; three halves of pages are on their way into
 * shared memory while one is worked on. Rows are read from there twice, as keys and as values.
 * Of the 16 warps four share the elements of a score and four the rows; then each warp has one
 * vector's softmax; then each has 32 latents of the sums.
 *
 * Rows of e4m3 become bf16 in shared memory, exactly. Their scales are applied where they are one
 * factor of a row: to the score of each 128 latents, and to the probabilities that meet them.
 *
 * One H200, both launches, in a graph, pages from memory, the best split: microseconds, and the
 * share of them that reading the rows takes at 4.66 TB/s (t/bench/gpu/attention.c):
 *
 *                         bf16: 16 heads    128 heads       fp8: 16 heads    128 heads
 *   1 x  1,024 keys          9.8   3 %     12.5   2 %        10.4   1 %     12.9   1 %
 *   1 x  4,096 keys         13.1   8 %     20.0   5 %        13.5   4 %     22.3   3 %
 *   1 x 32,768 keys         29.9  27 %     92.5   9 %        34.3  13 %    117.4   4 %
 *   8 x  4,096 keys         21.3  38 %     91.7   9 %        23.6  20 %    116.7   4 %
 *   64 x 4,096 keys         95.2  68 %    677.4  10 %       117.7  31 %    856.6   4 %
 *
 * A page takes a block 2.1 us (fp8: 3 us) however few blocks there are: shared memory and the way
 * from phase to phase, not device memory, so that 16 query vectors a block hold it back. More of
 * them, which wgmma takes from shared memory at once, are what 128 heads need. */

#include "kernels/cuda/device.cuh"

namespace llm {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
constexpr int kVectors = 16; /* of a block */
constexpr int kRows = LLM_CUDA_PAGE_TOKENS;
constexpr int kHalf = kRows / 2;
constexpr int kSlots = 5; /* halves of pages */
constexpr int kBlocks = LLM_CUDA_RANK / LLM_CUDA_SCALE_BLOCK;
constexpr int kSteps = LLM_CUDA_SCALE_BLOCK / 16; /* of 16 elements */
constexpr int kPitch = LLM_CUDA_LATENT_WIDTH * 2 + 16; /* bytes: rows of bf16 in other banks */
constexpr int kScorePitch = kRows + 8;                 /* floats */
constexpr int kChance = kRows * 2 + 16;                /* bytes of a vector's probabilities */

template <bool Fp8>
struct layout {
    static constexpr int kBytes = Fp8 ? LLM_CUDA_LATENT_FP8_BYTES : LLM_CUDA_LATENT_BF16_BYTES;
    static constexpr int kRowStep = Fp8 ? kBytes : kPitch; /* 41 pieces: in other banks anyway */
    static constexpr int kSlot = kHalf * kRowStep;
    static constexpr int kScaled = Fp8 ? kBlocks : 1;
    static constexpr int kTile = kSlots * kSlot; /* rows of bf16 made of e4m3 */
    static constexpr int kScores = kTile + (Fp8 ? kRows * kPitch : 0);
    static constexpr int kChances = kScores + kBlocks * kVectors * kScorePitch * 4;
    static constexpr int kDecay = kChances + kScaled * kVectors * kChance;
    static constexpr int kShared = kDecay + kVectors * 4;
};

/* Half of a page's rows, as copies of 16 bytes; those from n on are zero. */
template <bool Fp8>
__device__ __forceinline__ void fetch_rows(uint8_t *to, const uint8_t *from, uint32_t n)
{
    constexpr int kPieces = layout<Fp8>::kBytes / 16;

#pragma unroll
    for (int j = 0; j < (kHalf * kPieces + kThreads - 1) / kThreads; j++) {
        int i = threadIdx.x + j * kThreads, row = i / kPieces;
        int pad = (layout<Fp8>::kRowStep - layout<Fp8>::kBytes) * row;

        if (row < kHalf) {
            copy_async(to + i * 16 + pad, from + i * 16, (uint32_t) row < n ? 16 : 0);
        }
    }
}

/* Rows of e4m3, stored as they are, as rows of bf16 without their scales. */
__device__ __forceinline__ void unpack_rows(uint8_t *tile, const uint8_t *slot)
{
    constexpr int kPieces = LLM_CUDA_RANK / 16, kRopePieces = LLM_CUDA_ROPE / 8;

#pragma unroll
    for (int i = threadIdx.x; i < kHalf * kPieces; i += kThreads) {
        int row = i / kPieces, piece = i % kPieces;
        uint4 e = load16(slot + row * LLM_CUDA_LATENT_FP8_BYTES + piece * 16);
        const uint32_t words[4] = {e.x, e.y, e.z, e.w};
        uint32_t out[8];

#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t even = bf16_of_e4m3<false>(words[j]), odd = bf16_of_e4m3<true>(words[j]);

            out[j * 2] = __byte_perm(even, odd, 0x5410);
            out[j * 2 + 1] = __byte_perm(even, odd, 0x7632);
        }
        uint4 *to = reinterpret_cast<uint4 *>(tile + row * kPitch + piece * 32);
        to[0] = make_uint4(out[0], out[1], out[2], out[3]);
        to[1] = make_uint4(out[4], out[5], out[6], out[7]);
    }
    if (threadIdx.x < kHalf * kRopePieces) {
        int row = threadIdx.x / kRopePieces, piece = threadIdx.x % kRopePieces;

        *reinterpret_cast<uint4 *>(tile + row * kPitch + LLM_CUDA_RANK * 2 + piece * 16) =
            load16(slot + row * LLM_CUDA_LATENT_FP8_BYTES + LLM_CUDA_RANK + kBlocks * 4
                   + piece * 16);
    }
}

/* Where the sums of query vector v of sequence s over a split are. */
__device__ __forceinline__ size_t partial_row(const struct llm_cuda_attention &a, uint32_t s,
                                              uint32_t split, uint32_t v)
{
    return ((size_t) s * a.max_splits + split) * a.n_queries * a.n_heads + v;
}

/* The maxima and sums of the probabilities come after the rows of all partial sums. */
__device__ __forceinline__ float2 *partial_stats(const struct llm_cuda_attention &a)
{
    return reinterpret_cast<float2 *>(a.partial + partial_row(a, a.n_seqs, 0, 0) * LLM_CUDA_RANK);
}

template <bool Fp8>
__global__ void __launch_bounds__(kThreads, 1)
    attend_kernel(const __grid_constant__ struct llm_cuda_attention a)
{
    using l = layout<Fp8>;
    extern __shared__ __align__(16) uint8_t shared[];

    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
    int block = warp / 4, group = warp % 4; /* of elements and of rows, for the scores */
    uint32_t seq = blockIdx.z, split = blockIdx.y, first = blockIdx.x * kVectors;
    uint32_t n_vectors = a.n_queries * a.n_heads, vector = min(first + warp, n_vectors - 1);
    float *scores = reinterpret_cast<float *>(shared + l::kScores);
    float *decays = reinterpret_cast<float *>(shared + l::kDecay);

    uint32_t n_keys = a.n_keys[seq], n_pages = (n_keys + kRows - 1) / kRows;
    uint32_t begin = split * a.split_pages, end = min(begin + a.split_pages, n_pages);
    uint32_t seen = n_keys - (a.n_queries - 1 - vector / a.n_heads);
    const uint32_t *pages = a.pages + seq * a.pages_step;

    if (begin >= end) {
        wait_for_previous(); /* nothing ends before what it follows */
        return;
    }

    /* half i of the split's pages, in page `where`: that was read a turn before, and nothing waits
     * for it */
    auto fetch = [&](uint32_t i, uint32_t where) {
        uint32_t row = (begin + i / 2) * kRows + i % 2 * kHalf;

        if (begin + i / 2 < end) {
            fetch_rows<Fp8>(shared + i % kSlots * l::kSlot,
                            static_cast<const uint8_t *>(a.latents) + where * a.page_step
                                + i % 2 * kHalf * l::kBytes,
                            n_keys > row ? n_keys - row : 0);
        }
        commit_copies();
    };
    uint32_t after = pages[min(begin + 1, end - 1)], later = pages[min(begin + 2, end - 1)];

    fetch(0, pages[begin]);
    fetch(1, pages[begin]);
    fetch(2, after);
    wait_for_previous();
    let_next_begin();

    /* the query vectors as left operand: this warp's block of latents, and as much of the rest */
    uint32_t query[kSteps + 1][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t v = min(first + g + i * 8, n_vectors - 1);
        const uint32_t *from = static_cast<const uint32_t *>(a.queries)
                               + ((size_t) seq * n_vectors + v) * LLM_CUDA_LATENT_WIDTH / 2 + t;
#pragma unroll
        for (int k = 0; k <= kSteps; k++) {
            int step = k < kSteps ? block * kSteps + k : kBlocks * kSteps + block;

            query[k][i] = from[step * 8];
            query[k][i + 2] = from[step * 8 + 4];
        }
    }

    float sums[4][4] = {}, max = -INFINITY, total = 0;
    float scale = a.scale * 1.4426950408889634f; /* exp2 is what there is */

    for (uint32_t page = begin; page < end; page++) {
        uint32_t half = (page - begin) * 2;
        const uint8_t *slot[2], *rows[2];

        wait_for_copies<1>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            rows[i] = slot[i] = shared + (half + i) % kSlots * l::kSlot;
            if (Fp8) {
                rows[i] = shared + l::kTile + i * kHalf * kPitch;
                unpack_rows(const_cast<uint8_t *>(rows[i]), slot[i]);
            }
        }
        if (Fp8) {
            __syncthreads();
        }

        /* scores of rows group * 16 … + 15 over the block's elements */
        const uint8_t *keys = (group < 2 ? rows[0] : rows[1])
                              + (group % 2 * 16 + lane % 8 + lane / 16 * 8) * kPitch
                              + lane / 8 % 2 * 16;
        float part[2][4] = {}, rest[2][4] = {};
#pragma unroll
        for (int k = 0; k <= kSteps; k++) {
            int step = k < kSteps ? block * kSteps + k : kBlocks * kSteps + block;
            uint32_t b[4];

            load_matrices(b, keys + step * 32);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                /* of bf16 two sums take turns, and do not wait for one another */
                mma(k < kSteps && (Fp8 || k % 2 == 0) ? part[i] : rest[i], query[k][0], query[k][1],
                    query[k][2], query[k][3], b[i * 2], b[i * 2 + 1]);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float x = 1, y = 1;
            int row = group % 2 * 16 + i * 8 + t * 2;

            if (Fp8) {
                const uint8_t *from = (group < 2 ? slot[0] : slot[1]) + row * l::kBytes
                                      + LLM_CUDA_RANK + block * 4;

                x = *reinterpret_cast<const float *>(from);
                y = *reinterpret_cast<const float *>(from + l::kBytes);
            }
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float *to = scores + (block * kVectors + g + j * 8) * kScorePitch
                            + group / 2 * kHalf + row;

                *reinterpret_cast<float2 *>(to) =
                    make_float2(part[i][j * 2] * x + rest[i][j * 2],
                                part[i][j * 2 + 1] * y + rest[i][j * 2 + 1]);
            }
        }
        fetch(half + 3, after);
        __syncthreads();

        /* probabilities of vector `warp`: rows lane * 2 and lane * 2 + 1 */
        float x = 0, y = 0, decay;
#pragma unroll
        for (int j = 0; j < kBlocks; j++) {
            float2 v = *reinterpret_cast<const float2 *>(
                scores + (j * kVectors + warp) * kScorePitch + lane * 2);

            x += v.x;
            y += v.y;
        }
        x = page * kRows + lane * 2 < seen ? x * scale : -INFINITY;
        y = page * kRows + lane * 2 + 1 < seen ? y * scale : -INFINITY;
        float largest = fmaxf(x, y);
#pragma unroll
        for (int i = 1; i < kWarp; i *= 2) {
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, i));
        }
        largest = fmaxf(largest, max);
        /* of a vector that has seen no row yet all is zero */
        decay = max == -INFINITY ? 0 : exp2f(max - largest);
        x = largest == -INFINITY ? 0 : exp2f(x - largest);
        y = largest == -INFINITY ? 0 : exp2f(y - largest);
        max = largest;
        total = total * decay + (x + y);
        if (lane == 0) {
            decays[warp] = decay;
        }

        float factor[2][kBlocks];
#pragma unroll
        for (int i = 0; Fp8 && i < 2; i++) {
            int row = lane % (kHalf / 2) * 2 + i;
            const float *scales = reinterpret_cast<const float *>(
                (lane < kHalf / 2 ? slot[0] : slot[1]) + row * l::kBytes + LLM_CUDA_RANK);
#pragma unroll
            for (int j = 0; j < kBlocks; j++) {
                factor[i][j] = scales[j];
            }
        }
#pragma unroll
        for (int j = 0; j < l::kScaled; j++) {
            uint8_t *to = shared + l::kChances + (j * kVectors + warp) * kChance;

            reinterpret_cast<__nv_bfloat162 *>(to)[lane] = __floats2bfloat162_rn(
                Fp8 ? x * factor[0][j] : x, Fp8 ? y * factor[1][j] : y);
        }
        fetch(half + 4, later);
        after = later;
        later = pages[min(page + 3, end - 1)];
        __syncthreads();

        /* sums of latents warp * 32 … + 31 */
        const uint8_t *chances = shared + l::kChances + (Fp8 ? block * kVectors * kChance : 0);
        float low = decays[g], high = decays[g + 8];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            sums[n][0] *= low;
            sums[n][1] *= low;
            sums[n][2] *= high;
            sums[n][3] *= high;
        }
#pragma unroll
        for (int k = 0; k < kRows / 16; k++) {
            uint32_t c[4];

            load_matrices(c, chances + lane % 16 * kChance + k * 32 + lane / 16 * 16);
#pragma unroll
            for (int n = 0; n < 4; n += 2) {
                uint32_t b[4];

                load_transposed(b, rows[k / 2] + (k % 2 * 16 + lane % 16) * kPitch
                                       + (warp * 32 + n * 8 + lane / 16 * 8) * 2);
                mma(sums[n], c[0], c[1], c[2], c[3], b[0], b[1]);
                mma(sums[n + 1], c[0], c[1], c[2], c[3], b[2], b[3]);
            }
        }
    }

#pragma unroll
    for (int i = 1; i < kWarp; i *= 2) {
        total += __shfl_xor_sync(~0u, total, i);
    }
    __syncthreads();
    if (lane == 0) {
        decays[warp] = total;
        if (first + warp < n_vectors && a.max_splits > 1) {
            partial_stats(a)[partial_row(a, seq, split, vector)] = make_float2(max, total);
        }
    }
    __syncthreads();

#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t v = first + g + i * 8;
        float sum = decays[g + i * 8];

#pragma unroll
        for (int n = 0; n < 4 && v < n_vectors; n++) {
            size_t at = partial_row(a, seq, split, v) * LLM_CUDA_RANK + warp * 32 + n * 8 + t * 2;
            float x = sums[n][i * 2], y = sums[n][i * 2 + 1];

            if (a.max_splits > 1) {
                *reinterpret_cast<float2 *>(a.partial + at) = make_float2(x, y);
            } else {
                *reinterpret_cast<__nv_bfloat162 *>(static_cast<__nv_bfloat16 *>(a.out) + at) =
                    __floats2bfloat162_rn(x / sum, y / sum);
            }
        }
    }
}

constexpr int kLanes = 4; /* part of the numerics: every fourth split is added to one sum */
constexpr int kCombineThreads = kLanes * LLM_CUDA_RANK / 4;

/* The splits of a query vector. */
__global__ void __launch_bounds__(kCombineThreads)
    combine_kernel(const __grid_constant__ struct llm_cuda_attention a)
{
    __shared__ float maxima[kCombineThreads / kWarp], totals[kLanes];
    __shared__ float4 parts[kLanes][LLM_CUDA_RANK / 4];
    uint32_t v = blockIdx.x, seq = blockIdx.y, i = threadIdx.x % (LLM_CUDA_RANK / 4);
    uint32_t own = threadIdx.x / (LLM_CUDA_RANK / 4);
    float4 sums = {};
    float max = -INFINITY, total = 0;

    wait_for_previous();
    let_next_begin();

    uint32_t n_pages = (a.n_keys[seq] + kRows - 1) / kRows;
    uint32_t n_splits = (n_pages + a.split_pages - 1) / a.split_pages;
    const float2 *stats = partial_stats(a);

    for (uint32_t split = threadIdx.x; split < n_splits; split += kCombineThreads) {
        max = fmaxf(max, stats[partial_row(a, seq, split, v)].x);
    }
#pragma unroll
    for (int j = 1; j < kWarp; j *= 2) {
        max = fmaxf(max, __shfl_xor_sync(~0u, max, j));
    }
    if (threadIdx.x % kWarp == 0) {
        maxima[threadIdx.x / kWarp] = max;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kCombineThreads / kWarp; j++) {
        max = fmaxf(max, maxima[j]);
    }

#pragma unroll 8
    for (uint32_t split = own; split < n_splits; split += kLanes) {
        size_t row = partial_row(a, seq, split, v);
        float4 part = reinterpret_cast<const float4 *>(a.partial + row * LLM_CUDA_RANK)[i];
        float2 s = stats[row];
        float weight = exp2f(s.x - max);

        total += s.y * weight;
        sums.x += part.x * weight;
        sums.y += part.y * weight;
        sums.z += part.z * weight;
        sums.w += part.w * weight;
    }
    parts[own][i] = sums;
    if (i == 0) {
        totals[own] = total;
    }
    __syncthreads();
    if (own > 0) {
        return;
    }
    for (int j = 1; j < kLanes; j++) {
        sums.x += parts[j][i].x;
        sums.y += parts[j][i].y;
        sums.z += parts[j][i].z;
        sums.w += parts[j][i].w;
        total += totals[j];
    }

    __nv_bfloat162 *out = static_cast<__nv_bfloat162 *>(a.out)
                          + ((size_t) seq * gridDim.x + v) * LLM_CUDA_RANK / 2 + i * 2;
    out[0] = __floats2bfloat162_rn(sums.x / total, sums.y / total);
    out[1] = __floats2bfloat162_rn(sums.z / total, sums.w / total);
}

template <bool Fp8>
int attend(const struct llm_cuda_attention &a, const struct llm_cuda_queue &q)
{
    static const cudaError_t allowed =
        cudaFuncSetAttribute(attend_kernel<Fp8>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             layout<Fp8>::kShared);
    uint32_t groups = (a.n_queries * a.n_heads + kVectors - 1) / kVectors;

    if (allowed != cudaSuccess) {
        return allowed;
    }
    return launch(attend_kernel<Fp8>, dim3(groups, a.max_splits, a.n_seqs), kThreads,
                  layout<Fp8>::kShared, q, a);
}

} // namespace
} // namespace llm

extern "C" size_t llm_cuda_attention_floats(const struct llm_cuda_attention *a)
{
    size_t rows = (size_t) a->n_seqs * a->max_splits * a->n_queries * a->n_heads;

    return a->max_splits > 1 ? rows * (LLM_CUDA_RANK + 2) : 0;
}

extern "C" int llm_cuda_attend(const struct llm_cuda_attention *a, struct llm_cuda_queue q)
{
    int error = a->dtype == LLM_CUDA_LATENT_FP8 ? llm::attend<true>(*a, q)
                                                : llm::attend<false>(*a, q);

    if (error != 0 || a->max_splits == 1) {
        return error;
    }
    q.overlap = true; /* with the launch above */
    return llm::launch(llm::combine_kernel, dim3(a->n_queries * a->n_heads, a->n_seqs),
                       llm::kCombineThreads, 0, q, *a);
}

extern "C" int llm_cuda_attend_many(const struct llm_cuda_attention *a, struct llm_cuda_queue q)
{
    struct llm_cuda_attention whole = *a;

    whole.split_pages = UINT32_MAX / LLM_CUDA_PAGE_TOKENS;
    whole.max_splits = 1;
    return llm_cuda_attend(&whole, q);
}
