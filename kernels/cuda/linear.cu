/* Linear operations on few rows, bound by the bytes of their weights.
 *
 * A block makes 16 or 32 outputs of every row. Its warps divide the columns of the weights among
 * them in turns (turn.cuh); nothing waits for another warp before the sums are added up.
 *
 * One H200, in a graph of launches that overlap, weights from memory: microseconds, and the share
 * of them that reading the weights takes at 4.66 TB/s (t/bench/gpu/linear.c):
 *
 *                              bf16: 1 row    16 rows         fp8: 1 row     16 rows
 *   V2-Lite q and kv_a           4.6  70 %    5.5  59 %       3.9  41 %     4.4  36 %
 *   V2-Lite o                    3.1  58 %    4.4  41 %       2.6  34 %     3.6  25 %
 *   V2-Lite dense gate and up   20.8  93 %   24.8  78 %      12.6  76 %    16.5  58 %
 *   V2-Lite dense down          11.5  84 %   13.8  70 %       7.3  66 %     9.9  49 %
 *   V2-Lite head                92.3  98 %  100.8  89 %      48.5  93 %    65.4  69 %
 *   V3 q_a and kv_a              8.1  80 %    9.8  66 %       5.2  62 %     7.0  47 %
 *   V3 q_b                      18.4  88 %   23.3  69 %      11.3  71 %    14.7  55 %
 *   V3 o                        54.9  92 %   61.0  83 %      30.4  83 %    39.6  64 %
 *   V3 dense gate and up       117.6  97 %  132.6  86 %      63.0  90 %    82.3  69 %
 *
 * Matrices below 20 MB are bound by the time from a launch to the first bytes. With 64 rows the
 * activations, which every block reads anew, cost more than the weights: 37 % of the bound at best
 * (bf16), 24 % (fp8). */

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/turn.cuh"

namespace llm {
namespace {

constexpr uint32_t kFewTiles = 132; /* processors of an H200 */
constexpr uint32_t kManyCols = 8192;

struct linear_args {
    struct llm_cuda_linear l[LLM_CUDA_MAX_LINEARS];
    uint32_t end[LLM_CUDA_MAX_LINEARS]; /* one past its last block */
    uint32_t n_rows;
    struct llm_cuda_norm norm; /* of one row */
};

/* One row's norm, which every block makes for itself. */
template <int Threads>
struct row_norm {
    static constexpr int kOwn = LLM_CUDA_MAX_ALONE / 4 / Threads; /* fours of elements */
    float4 weight[kOwn];

    /* before the row is there */
    __device__ __forceinline__ explicit row_norm(const struct llm_cuda_norm &a)
    {
#pragma unroll
        for (int i = 0; i < kOwn; i++) {
            uint32_t at = (i * Threads + threadIdx.x) * 4;

            if (at < a.width) {
                weight[i] = *reinterpret_cast<const float4 *>(a.weight + at);
            }
        }
    }

    __device__ __forceinline__ void make(const struct llm_cuda_norm &a, __nv_bfloat16 *to)
    {
        float4 v[kOwn];
        float sum = 0;

#pragma unroll
        for (int i = 0; i < kOwn; i++) {
            uint32_t at = (i * Threads + threadIdx.x) * 4;

            if (at < a.width) {
                v[i] = *reinterpret_cast<const float4 *>(a.x + at);
                sum += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
            }
        }
        float r = 1 / sqrtf(sum_of_block<Threads>(sum) / (float) a.width + a.eps);
#pragma unroll
        for (int i = 0; i < kOwn; i++) {
            uint32_t at = (i * Threads + threadIdx.x) * 4;

            if (at < a.width) {
                const float4 &w = weight[i];
                auto *pairs = reinterpret_cast<__nv_bfloat162 *>(to + at);

                pairs[0] = __floats2bfloat162_rn(v[i].x * r * w.x, v[i].y * r * w.y);
                pairs[1] = __floats2bfloat162_rn(v[i].z * r * w.z, v[i].w * r * w.w);
            }
        }
        __syncthreads();
    }
};

template <int Dtype, int ColTiles, int RowTiles, int Stages, int Warps, int PerSm, bool Normed>
__global__ void __launch_bounds__(Warps * kWarp, PerSm)
    linear_kernel(const __grid_constant__ linear_args a)
{
    using slot = slot<Dtype, RowTiles>;
    constexpr int kTileRows = 16 * RowTiles;
    extern __shared__ uint4 shared[];

    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
    uint32_t which = 0, block = blockIdx.x;
    uint32_t first = blockIdx.y * ColTiles * 8, n_rows = min(a.n_rows - first, ColTiles * 8);

    while (block >= a.end[which]) {
        which++;
    }
    block -= which > 0 ? a.end[which - 1] : 0;

    const struct llm_cuda_linear &l = a.l[which];
    uint32_t n_tiles = (l.w.rows + kTileRows - 1) / kTileRows;
    uint32_t member = block / n_tiles, row = block % n_tiles * kTileRows;
    uint32_t cols = l.w.cols, n_chunks = (cols + kChunk - 1) / kChunk;
    const uint8_t *w = static_cast<const uint8_t *>(l.w.data) + member * l.w_step
                       + row * l.w.stride;
    const float *scales = l.w.scale + member * l.scale_step
                          + row / LLM_CUDA_SCALE_BLOCK * l.w.scale_stride;
    uint4 *ring = shared + warp * Stages * slot::kPieces;
    uint32_t offset[slot::kCopies]; /* rows beyond the last are the last once more, not stored */
    const __nv_bfloat16 *x[ColTiles];
    float acc[RowTiles][ColTiles][4] = {};

#pragma unroll
    for (int i = 0; i < slot::kCopies; i++) {
        offset[i] = min(i * 4 + lane / 8, l.w.rows - 1 - row) * (uint32_t) l.w.stride;
    }
#pragma unroll
    for (int c = 0; c < ColTiles; c++) {
        x[c] = static_cast<const __nv_bfloat16 *>(l.x) + member * l.x_step
               + (first + min(c * 8 + g, n_rows - 1)) * l.ldx;
    }

    auto fetch = [&](uint32_t chunk, int stage) {
        if (chunk < n_chunks) {
            fetch_turn<Dtype, RowTiles>(ring + stage * slot::kPieces, w, offset, chunk, cols);
        }
        commit_copies();
    };

    /* of a normed row all stages, as many as there are turns where the row is short */
#pragma unroll
    for (int s = 0; s < (Normed ? Stages : Stages - 1); s++) {
        fetch(warp + s * Warps, s);
    }
    if constexpr (Normed) {
        auto *normed = reinterpret_cast<__nv_bfloat16 *>(shared + Warps * Stages * slot::kPieces);
        row_norm<Warps * kWarp> norm(a.norm);

        wait_for_previous();
        let_next_begin();
        norm.make(a.norm, normed);
        x[0] = normed;
    } else {
        wait_for_previous();
        let_next_begin();
    }

    int stage = 0;
    for (uint32_t chunk = warp; chunk < n_chunks; chunk += Warps) {
        float scale[RowTiles];

#pragma unroll
        for (int m = 0; m < RowTiles; m++) {
            scale[m] = Dtype == LLM_CUDA_E4M3 ? scales[chunk] : 1;
        }
        take_turn<Dtype, ColTiles, RowTiles, Stages - 1>(
            acc, ring + stage * slot::kPieces, x, chunk, cols, scale, [&] {
                if (Normed && chunk < Warps) {
                    commit_copies();
                    return;
                }
                fetch(chunk + (Stages - 1) * Warps, stage == 0 ? Stages - 1 : stage - 1);
            });
        stage = stage == Stages - 1 ? 0 : stage + 1;
    }

    /* the warps' sums, in the order of the warps */
    constexpr int kLine = kTileRows + 4;
    float *sums = reinterpret_cast<float *>(shared);

    wait_for_copies<0>();
    __syncthreads();
#pragma unroll
    for (int m = 0; m < RowTiles; m++) {
#pragma unroll
        for (int c = 0; c < ColTiles; c++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int r = c * 8 + t * 2 + i % 2, n = m * 16 + g + i / 2 * 8;

                sums[(warp * ColTiles * 8 + r) * kLine + n] = acc[m][c][i];
            }
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n_rows * kTileRows; i += Warps * kWarp) {
        uint32_t r = i / kTileRows, n = i % kTileRows;
        size_t at = member * l.out_step + (first + r) * l.ldo + row + n;
        float sum = 0;

        if (row + n >= l.w.rows) {
            continue;
        }
        for (int v = 0; v < Warps; v++) {
            sum += sums[(v * ColTiles * 8 + r) * kLine + n];
        }
        if (l.store == LLM_CUDA_SET_BF16) {
            static_cast<__nv_bfloat16 *>(l.out)[at] = __float2bfloat16_rn(sum);
        } else if (l.store == LLM_CUDA_SET_F32) {
            static_cast<float *>(l.out)[at] = sum;
        } else {
            static_cast<float *>(l.out)[at] += sum;
        }
    }
}

template <int Dtype, int ColTiles, int RowTiles, int Stages, int Warps, int PerSm,
          bool Normed = false>
int launch_linears(linear_args &a, uint32_t n, const struct llm_cuda_queue &q)
{
    constexpr int kRow = Normed ? LLM_CUDA_MAX_ALONE * 2 : 0;
    constexpr int kRing = Stages * Warps * slot<Dtype, RowTiles>::kBytes + kRow;
    constexpr int kSums = Warps * ColTiles * 8 * (16 * RowTiles + 4) * 4;
    constexpr int kShared = kRing > kSums ? kRing : kSums;
    auto kernel = linear_kernel<Dtype, ColTiles, RowTiles, Stages, Warps, PerSm, Normed>;
    static const cudaError_t allowed =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    uint32_t blocks = 0;

    if (allowed != cudaSuccess) {
        return allowed;
    }
    for (uint32_t i = 0; i < n; i++) {
        blocks += (a.l[i].w.rows + 16 * RowTiles - 1) / (16 * RowTiles) * a.l[i].n_batch;
        a.end[i] = blocks;
    }
    return launch(kernel, dim3(blocks, (a.n_rows + ColTiles * 8 - 1) / (ColTiles * 8)),
                  Warps * kWarp, kShared, q, a);
}

/* At most one block for a processor, of sixteen warps: they share the columns of a tile. */
template <int Dtype>
int launch_few(linear_args &a, uint32_t n, const struct llm_cuda_queue &q)
{
    if (a.n_rows <= 8) {
        return launch_linears<Dtype, 1, 1, 2, 16, 1>(a, n, q);
    }
    if (a.n_rows <= 16) {
        return launch_linears<Dtype, 2, 1, 2, 16, 1>(a, n, q);
    }
    return launch_linears<Dtype, 4, 1, 2, 16, 1>(a, n, q);
}

template <int Dtype, int RowTiles, int Stages, int PerSm>
int launch_many(linear_args &a, uint32_t n, const struct llm_cuda_queue &q)
{
    if (a.n_rows <= 8) {
        return launch_linears<Dtype, 1, RowTiles, Stages, 8, PerSm>(a, n, q);
    }
    if (a.n_rows <= 16) {
        return launch_linears<Dtype, 2, RowTiles, Stages, 8, 2>(a, n, q);
    }
    return a.n_rows <= 32 ? launch_linears<Dtype, 4, 2, 2, 8, 1>(a, n, q)
                          : launch_linears<Dtype, 8, 2, 2, 8, 1>(a, n, q);
}

/* Of one row, whose norm comes later than all of a tile's columns. Other blocks have room beside
 * these. */
template <int Dtype>
int launch_normed(linear_args &a, uint32_t n, const struct llm_cuda_queue &q)
{
    return launch_linears<Dtype, 1, 1, 2, 8, 4, true>(a, n, q);
}

/* How many warps share a tile's columns is part of the numerics, and must not depend on the number
 * of rows. The rest is what measured best. */
template <int Dtype>
int launch_all(linear_args &a, uint32_t n, const struct llm_cuda_queue &q)
{
    uint32_t tiles = 0, cols = 0;

    for (uint32_t i = 0; i < n; i++) {
        tiles += (a.l[i].w.rows + 15) / 16 * a.l[i].n_batch;
        cols = a.l[i].w.cols > cols ? a.l[i].w.cols : cols;
    }
    if (tiles <= kFewTiles) {
        return launch_few<Dtype>(a, n, q);
    }
    if (Dtype == LLM_CUDA_E4M3 && tiles <= 2 * kFewTiles) {
        return launch_many<Dtype, 1, 3, 3>(a, n, q);
    }
    if (cols > kManyCols) {
        return launch_many<Dtype, Dtype == LLM_CUDA_E4M3 ? 2 : 1, 3, 2>(a, n, q);
    }
    return launch_many<Dtype, Dtype == LLM_CUDA_E4M3 ? 2 : 1, 2, 3>(a, n, q);
}

} // namespace
} // namespace llm

extern "C" int llm_cuda_linears(const struct llm_cuda_linear *l, uint32_t n, uint32_t n_rows,
                                struct llm_cuda_queue q)
{
    llm::linear_args a = {};

    for (uint32_t i = 0; i < n; i++) {
        a.l[i] = l[i];
    }
    a.n_rows = n_rows;
    return l[0].w.dtype == LLM_CUDA_BF16 ? llm::launch_all<LLM_CUDA_BF16>(a, n, q)
                                         : llm::launch_all<LLM_CUDA_E4M3>(a, n, q);
}

extern "C" int llm_cuda_linears_normed(const struct llm_cuda_linear *l, uint32_t n,
                                       const struct llm_cuda_norm *norm, struct llm_cuda_queue q)
{
    llm::linear_args a = {};

    for (uint32_t i = 0; i < n; i++) {
        a.l[i] = l[i];
    }
    a.n_rows = 1;
    a.norm = *norm;
    return l[0].w.dtype == LLM_CUDA_BF16 ? llm::launch_normed<LLM_CUDA_BF16>(a, n, q)
                                         : llm::launch_normed<LLM_CUDA_E4M3>(a, n, q);
}
