/* Experts of few tokens, bound by the bytes of the experts that have any.
 *
 * Up: a block makes 16 elements of h for the pairs of an expert, from 16 rows of the gate and the
 * same 16 of up. Down: a block makes 16 outputs of all tokens, and takes all experts through them
 * one after the other, so that no sum crosses blocks. Its warps divide the columns of each expert
 * among them, beginning with another warp for each expert; a warp adds up its share of a token's
 * pairs in their order, then the warps are added up in theirs.
 *
 * One H200, in a graph of launches, uniform routing, weights from memory: microseconds, and the
 * share of them that reading the active experts takes at 4.66 TB/s (t/bench/gpu/experts.c):
 *
 *                              bf16: up        down           fp8: up        down
 *   V2-Lite, 1 token         24.5  81 %    15.4  64 %      16.9  59 %    11.9  42 %
 *   V2-Lite, 8 tokens        96.2  93 %    52.5  85 %      52.9  87 %    47.0  49 %
 *   V2-Lite, 64 tokens      192.7  84 %   114.5  70 %     131.9  61 %   104.5  39 %
 *   V3, 1 token             124.1  91 %    70.2  81 %      65.5  87 %    66.4  43 %
 *   V3, 4 tokens            413.4  95 %   226.3  86 %     218.8  92 %   214.8  47 %
 *
 * Down has as many blocks as 16 outputs take, one to a processor: with the short turns of fp8 that
 * is too few bytes under way, and with 128 of them (V2-Lite) too long a beginning. */

#include "kernels/cuda/turn.cuh"

namespace llm {
namespace {

struct expert_args {
    struct llm_cuda_experts e;
    struct llm_cuda_pairs p;
    const __nv_bfloat16 *x;
    size_t ldx;
    void *out; /* h in bf16, or fp32 sums */
    size_t ldo;
};

constexpr int kUpWarps = 4, kDownWarps = 16; /* part of the numerics */

__device__ __forceinline__ const float *scales_of(const struct llm_cuda_matrix &w, size_t step,
                                                  uint32_t expert, uint32_t row)
{
    return w.scale + expert * step + row / LLM_CUDA_SCALE_BLOCK * w.scale_stride;
}

template <int Dtype, int ColTiles, int Stages>
__global__ void __launch_bounds__(kUpWarps *kWarp, ColTiles == 1 ? 5 : 3)
    up_kernel(const __grid_constant__ expert_args a)
{
    using slot = slot<Dtype, 2>;
    constexpr int kLine = 16 + 4;
    extern __shared__ uint4 shared[];

    const struct llm_cuda_matrix &m = a.e.gate_up;
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
    uint32_t width = a.e.down.cols, row = blockIdx.x * 16, cols = m.cols;
    uint32_t n_chunks = (cols + kChunk - 1) / kChunk;
    uint4 *ring = shared + warp * Stages * slot::kPieces;
    float *sums = reinterpret_cast<float *>(shared);
    uint32_t offset[slot::kCopies]; /* rows beyond the last are the last once more, not stored */

#pragma unroll
    for (int i = 0; i < slot::kCopies; i++) {
        uint32_t r = min(row + i % 4 * 4 + lane / 8, width - 1);

        offset[i] = (i < 4 ? r : width + r) * (uint32_t) m.stride;
    }

    wait_for_previous();
    let_next_begin();
    if (blockIdx.y >= *a.p.n_active) {
        return;
    }

    uint32_t expert = a.p.expert[blockIdx.y], end = a.p.first[blockIdx.y + 1];
    const uint8_t *w = static_cast<const uint8_t *>(m.data) + expert * a.e.gate_up_step;
    const float *gate_scales = scales_of(m, a.e.gate_up_scale_step, expert, row);
    const float *up_scales = scales_of(m, a.e.gate_up_scale_step, expert, width + row);

    auto fetch = [&](uint32_t chunk, int stage) {
        if (chunk < n_chunks) {
            fetch_turn<Dtype, 2>(ring + stage * slot::kPieces, w, offset, chunk, cols);
        }
        commit_copies();
    };

    for (uint32_t pair = a.p.first[blockIdx.y]; pair < end; pair += ColTiles * 8) {
        uint32_t n_rows = min(end - pair, (uint32_t) ColTiles * 8);
        const __nv_bfloat16 *x[ColTiles];
        float acc[2][ColTiles][4] = {};
        int stage = 0;

#pragma unroll
        for (int s = 0; s < Stages - 1; s++) {
            fetch(warp + s * kUpWarps, s);
        }
#pragma unroll
        for (int c = 0; c < ColTiles; c++) {
            x[c] = a.x + a.p.token[pair + min(c * 8 + g, n_rows - 1)] * a.ldx;
        }
        for (uint32_t chunk = warp; chunk < n_chunks; chunk += kUpWarps) {
            float scale[2] = {1, 1};

            if (Dtype == LLM_CUDA_E4M3) {
                scale[0] = gate_scales[chunk];
                scale[1] = up_scales[chunk];
            }
            take_turn<Dtype, ColTiles, 2, Stages - 1>(
                acc, ring + stage * slot::kPieces, x, chunk, cols, scale, [&] {
                    fetch(chunk + (Stages - 1) * kUpWarps, stage == 0 ? Stages - 1 : stage - 1);
                });
            stage = stage == Stages - 1 ? 0 : stage + 1;
        }

        wait_for_copies<0>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 2 * ColTiles * 4; i++) {
            int tile = i / (ColTiles * 4), c = i / 4 % ColTiles;
            int r = c * 8 + t * 2 + i % 2, n = g + i % 4 / 2 * 8;

            sums[((warp * 2 + tile) * ColTiles * 8 + r) * kLine + n] = acc[tile][c][i % 4];
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n_rows * 16; i += kUpWarps * kWarp) {
            uint32_t r = i / 16, n = i % 16;
            float gate = 0, up = 0;

            for (int v = 0; v < kUpWarps; v++) {
                gate += sums[(v * 2 * ColTiles * 8 + r) * kLine + n];
                up += sums[((v * 2 + 1) * ColTiles * 8 + r) * kLine + n];
            }
            if (row + n < width) {
                static_cast<__nv_bfloat16 *>(a.out)[(pair + r) * a.ldo + row + n] =
                    __float2bfloat16_rn(gate / (1 + __expf(-gate)) * up);
            }
        }
        __syncthreads();
    }
}

/* A warp's way through the experts: of each the pairs, ColTiles x 8 at a time, and of those some
 * chunks of columns. */
template <int ColTiles>
struct way {
    const uint32_t *expert, *first; /* of the active ones */
    uint32_t n_active, n_chunks;
    uint32_t active, pair, chunk;

    __device__ __forceinline__ void begin_pairs()
    {
        uint32_t turned = expert[active] * n_chunks % kDownWarps;

        chunk = (threadIdx.x / kWarp + kDownWarps - turned) % kDownWarps;
    }

    __device__ __forceinline__ bool more() const { return active < n_active; }
    __device__ __forceinline__ uint32_t n_rows() const
    {
        return min(first[active + 1] - pair, (uint32_t) ColTiles * 8);
    }

    /* the next pairs */
    __device__ __forceinline__ void next_pairs()
    {
        pair += ColTiles * 8;
        if (pair >= first[active + 1]) {
            pair = first[++active];
        }
        if (more()) {
            begin_pairs();
        }
    }

    /* to where there is a chunk, if anywhere */
    __device__ __forceinline__ void settle()
    {
        while (more() && chunk >= n_chunks) {
            next_pairs();
        }
    }
};

template <int Dtype, int ColTiles, int Stages>
__global__ void __launch_bounds__(kDownWarps *kWarp, 1)
    down_kernel(const __grid_constant__ expert_args a)
{
    using slot = slot<Dtype, 1>;
    extern __shared__ uint4 shared[];

    const struct llm_cuda_matrix &m = a.e.down;
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
    uint32_t row = blockIdx.x * 16, n_tokens = a.p.n_tokens;
    uint4 *ring = shared + warp * Stages * slot::kPieces;
    float *sums = reinterpret_cast<float *>(shared + kDownWarps * Stages * slot::kPieces);
    uint32_t *lists = reinterpret_cast<uint32_t *>(sums + kDownWarps * n_tokens * 16);
    float *own = sums + warp * n_tokens * 16;
    uint32_t offset[slot::kCopies];

#pragma unroll
    for (int i = 0; i < slot::kCopies; i++) {
        offset[i] = min(row + i * 4 + lane / 8, m.rows - 1) * (uint32_t) m.stride;
    }
    for (uint32_t i = threadIdx.x; i < kDownWarps * n_tokens * 16; i += kDownWarps * kWarp) {
        sums[i] = 0;
    }

    /* the lists are older than what is waited for */
    struct way<ColTiles> now = {};
    now.n_active = *a.p.n_active;
    now.n_chunks = (m.cols + kChunk - 1) / kChunk;
    now.expert = lists;
    now.first = lists + a.p.max_active;
    for (uint32_t i = threadIdx.x; i <= now.n_active; i += kDownWarps * kWarp) {
        lists[a.p.max_active + i] = a.p.first[i];
        if (i < now.n_active) {
            lists[i] = a.p.expert[i];
        }
    }
    __syncthreads();
    if (now.more()) {
        now.pair = now.first[0];
        now.begin_pairs();
        now.settle();
    }

    struct way<ColTiles> next = now;
    auto fetch = [&](int stage) {
        if (next.more()) {
            const uint8_t *w = static_cast<const uint8_t *>(m.data)
                               + next.expert[next.active] * a.e.down_step;

            fetch_turn<Dtype, 1>(ring + stage * slot::kPieces, w, offset, next.chunk, m.cols);
            next.chunk += kDownWarps;
            next.settle();
        }
        commit_copies();
    };

#pragma unroll
    for (int s = 0; s < Stages - 1; s++) {
        fetch(s);
    }
    wait_for_previous();
    let_next_begin();
    for (int stage = 0; now.more(); now.settle()) {
        uint32_t n_rows = now.n_rows();
        const float *scales = scales_of(m, a.e.down_scale_step, now.expert[now.active], row);
        const __nv_bfloat16 *x[ColTiles];
        float acc[1][ColTiles][4] = {}, factor[ColTiles * 2];
        uint32_t place[ColTiles * 2]; /* of a pair's sum */

        /* read before they are needed: the turns take longer than that */
#pragma unroll
        for (int i = 0; i < ColTiles * 2; i++) {
            uint32_t pair = now.pair + min(i / 2 * 8 + t * 2 + i % 2, n_rows - 1);

            place[i] = a.p.token[pair] * 16 + g;
            factor[i] = a.p.weight[pair];
        }
#pragma unroll
        for (int c = 0; c < ColTiles; c++) {
            x[c] = a.x + (now.pair + min(c * 8 + g, n_rows - 1)) * a.ldx;
        }
        for (; now.chunk < now.n_chunks; now.chunk += kDownWarps) {
            float scale[1] = {Dtype == LLM_CUDA_E4M3 ? scales[now.chunk] : 1};

            take_turn<Dtype, ColTiles, 1, Stages - 1>(
                acc, ring + stage * slot::kPieces, x, now.chunk, m.cols, scale,
                [&] { fetch(stage == 0 ? Stages - 1 : stage - 1); });
            stage = stage == Stages - 1 ? 0 : stage + 1;
        }
#pragma unroll
        for (int i = 0; i < ColTiles * 2; i++) {
            if (i / 2 * 8 + t * 2 + i % 2 < n_rows) {
                own[place[i]] += factor[i] * acc[0][i / 2][i % 2];
                own[place[i] + 8] += factor[i] * acc[0][i / 2][i % 2 + 2];
            }
        }
        __syncwarp();
    }

    wait_for_copies<0>();
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n_tokens * 16; i += kDownWarps * kWarp) {
        float sum = 0;

        for (int v = 0; v < kDownWarps; v++) {
            sum += sums[v * n_tokens * 16 + i];
        }
        if (row + i % 16 < m.rows) {
            static_cast<float *>(a.out)[i / 16 * a.ldo + row + i % 16] += sum;
        }
    }
}

template <int Dtype, int ColTiles>
int launch_up(const expert_args &a, const struct llm_cuda_queue &q)
{
    constexpr int kStages = 2;
    constexpr int kShared = kUpWarps * kStages * slot<Dtype, 2>::kBytes;
    static_assert(kShared >= kUpWarps * 2 * ColTiles * 8 * 20 * 4, "the sums' place");
    auto kernel = up_kernel<Dtype, ColTiles, kStages>;
    static const cudaError_t allowed =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);

    if (allowed != cudaSuccess) {
        return allowed;
    }
    return launch(kernel, dim3((a.e.down.cols + 15) / 16, a.p.max_active), kUpWarps * kWarp,
                  kShared, q, a);
}

template <int Dtype, int ColTiles>
int launch_down(const expert_args &a, const struct llm_cuda_queue &q)
{
    constexpr int kStages = Dtype == LLM_CUDA_BF16 && ColTiles > 1 ? 2 : 3;
    size_t shared = kDownWarps * (kStages * slot<Dtype, 1>::kBytes + a.p.n_tokens * 16 * 4)
                    + (2 * (size_t) a.p.max_active + 1) * 4;
    auto kernel = down_kernel<Dtype, ColTiles, kStages>;
    static const cudaError_t allowed =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 << 10);

    if (allowed != cudaSuccess) {
        return allowed;
    }
    return launch(kernel, dim3((a.e.down.rows + 15) / 16), kDownWarps * kWarp, shared, q, a);
}

} // namespace
} // namespace llm

extern "C" int llm_cuda_experts_up(const struct llm_cuda_experts *e,
                                   const struct llm_cuda_pairs *p, const void *x, size_t ldx,
                                   void *h, size_t ldh, struct llm_cuda_queue q)
{
    llm::expert_args a = {*e, *p, static_cast<const __nv_bfloat16 *>(x), ldx, h, ldh};

    if (e->gate_up.dtype == LLM_CUDA_BF16) {
        return p->n_tokens <= 8 ? llm::launch_up<LLM_CUDA_BF16, 1>(a, q)
                                : llm::launch_up<LLM_CUDA_BF16, 2>(a, q);
    }
    return p->n_tokens <= 8 ? llm::launch_up<LLM_CUDA_E4M3, 1>(a, q)
                            : llm::launch_up<LLM_CUDA_E4M3, 2>(a, q);
}

extern "C" int llm_cuda_experts_down(const struct llm_cuda_experts *e,
                                     const struct llm_cuda_pairs *p, const void *h, size_t ldh,
                                     float *out, size_t ldo, struct llm_cuda_queue q)
{
    llm::expert_args a = {*e, *p, static_cast<const __nv_bfloat16 *>(h), ldh, out, ldo};

    if (e->down.dtype == LLM_CUDA_BF16) {
        return p->n_tokens <= 8 ? llm::launch_down<LLM_CUDA_BF16, 1>(a, q)
                                : llm::launch_down<LLM_CUDA_BF16, 2>(a, q);
    }
    return p->n_tokens <= 8 ? llm::launch_down<LLM_CUDA_E4M3, 1>(a, q)
                            : llm::launch_down<LLM_CUDA_E4M3, 2>(a, q);
}
