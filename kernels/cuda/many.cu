/* Products of stored weights and many rows of activations, as of prompts: bound by the tensor
 * cores. groups.cu makes them on Hopper; here is what other processors do, and Hopper for tests.
 *
 * A block of eight warps makes 128 outputs of 128 rows (for the experts' up 64 of the gate and the
 * same 64 of up), 64 columns at a time. Weights are the left operand: e4m3 comes out of registers
 * and becomes bf16 on the way, exactly; its scale is applied to the fp32 sums after each 128
 * columns. Chunks of columns are on their way while one is multiplied, and of two blocks of a
 * processor one multiplies while the other waits, begins or stores. */

#include "kernels/cuda/group.cuh"
#include "kernels/cuda/many.cuh"

namespace llm {
namespace {

constexpr int kThreads = 256;
constexpr int kHalf = 64, kOuts = 2 * kHalf, kRows = 128; /* half of the outputs have one scale */
constexpr int kChunk = 64;            /* columns: a row of activations of 128 bytes */
constexpr int kSteps = kChunk / 16;   /* of the tensor cores */
constexpr int kLine = kOuts + 4;      /* floats of a row of sums: columns in other banks */
static_assert(2 * kChunk == LLM_CUDA_SCALE_BLOCK, "two chunks have one scale");

template <int Dtype>
struct stage {
    static constexpr int kBytes = Dtype == LLM_CUDA_BF16 ? 2 : 1; /* of a weight */
    static constexpr int kRowBytes = kChunk * kBytes;
    static constexpr int kPitch = Dtype == LLM_CUDA_BF16 ? 128 : kRowBytes + 16; /* other banks */
    static constexpr int kWeights = kRows * kChunk * 2;   /* behind the activations */
    static constexpr int kSize = (kWeights + kOuts * kPitch + 1023) / 1024 * 1024;
    static constexpr int kStages = 3; /* two blocks have room, and one on Ada */
    static constexpr int kAhead = kStages - 1; /* chunks */
    static constexpr int kPieces = kRowBytes / 16;
    static constexpr int kCopies = kOuts * kPieces / kThreads;
};
constexpr int kRowCopies = kRows * 8 / kThreads;

template <int Dtype>
constexpr int kShared = stage<Dtype>::kStages * stage<Dtype>::kSize + 1024; /* to be aligned */
static_assert(kRows * kLine * 4 <= stage<LLM_CUDA_BF16>::kStages * stage<LLM_CUDA_BF16>::kSize
                  && kRows * kLine * 4
                         <= stage<LLM_CUDA_E4M3>::kStages * stage<LLM_CUDA_E4M3>::kSize,
              "the sums' place");

/* What a block multiplies: outputs i < 128 have the weights at w + offset of this thread's copies,
 * rows x[j] of activations are those of its copies. scale: of this warp's outputs, one for each 128
 * columns. */
template <int Dtype>
struct operands {
    const uint8_t *w;
    uint32_t offset[stage<Dtype>::kCopies];
    const __nv_bfloat16 *x[kRowCopies]; /* NULL: zeros */
    const float *scale;
    uint32_t cols;
};

/* A chunk of columns on its way. Copy j of a thread is piece thread % pieces of row
 * (thread + j * kThreads) / pieces. */
template <int Dtype>
__device__ __forceinline__ void fetch_chunk(const operands<Dtype> &o, uint32_t chunk,
                                            uint8_t *shared)
{
    using s = stage<Dtype>;
    uint8_t *to = shared + chunk % s::kStages * s::kSize;
    uint32_t piece = threadIdx.x % 8, col = chunk * kChunk + piece * 8;
    uint32_t n = col + 8 <= o.cols ? 16 : col < o.cols ? (o.cols - col) * 2 : 0;

#pragma unroll
    for (int j = 0; j < kRowCopies; j++) {
        uint32_t row = threadIdx.x / 8 + j * (kThreads / 8);
        bool there = n > 0 && o.x[j] != NULL;

        copy_async(to + row * 128 + (piece ^ row % 8) * 16, there ? o.x[j] + col : (void *) o.w,
                   there ? n : 0);
    }

    uint32_t at = chunk * s::kRowBytes + threadIdx.x % s::kPieces * 16;
    int left = (int) (o.cols * s::kBytes - at);
    n = left >= 16 ? 16 : left > 0 ? left : 0;
#pragma unroll
    for (int j = 0; j < s::kCopies; j++) {
        uint32_t row = (threadIdx.x + j * kThreads) / s::kPieces, place = piece % s::kPieces;

        place ^= Dtype == LLM_CUDA_BF16 ? row % 8 : 0;
        copy_async(to + s::kWeights + row * s::kPitch + place * 16,
                   n > 0 ? o.w + o.offset[j] + at : o.w, n);
    }
}

/* The left operands of a chunk of e4m3, 16 rows of weights for each warp. */
__device__ __forceinline__ void load_left(uint32_t (&a)[kSteps][4], const uint8_t *weights)
{
    constexpr int kPitch = stage<LLM_CUDA_E4M3>::kPitch;
    int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp * 16 + lane / 4;

#pragma unroll
    for (int k = 0; k < kSteps; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint8_t *p =
                weights + (row + i % 2 * 8) * kPitch + k * 16 + i / 2 * 8 + lane % 4 * 2;
            uint32_t two = *reinterpret_cast<const uint16_t *>(p);

            a[k][i] = bf16_of_e4m3<false>(__byte_perm(two, 0, 0x4140));
        }
    }
}

/* Sums of products of weights whose scale is `last` become those of weights whose scale is `next`:
 * the products of all scales are added up in place. Of weights of scale 0 nothing remains, as of
 * any that are 2^100 smaller than others of their row. */
__device__ __forceinline__ void change_unit(float (&sums)[kSums], float &last, float next)
{
    next = fmaxf(fabsf(next), fabsf(last) * 0x1p-100f) * (next < 0 ? -1.0f : 1.0f);

    float factor = next != 0 ? last / next : 1;
#pragma unroll
    for (int i = 0; i < kSums; i++) {
        sums[i] *= factor;
    }
    last = next;
}

/* The left operands of step k of a chunk of bf16. */
__device__ __forceinline__ void load_left_bf16(uint32_t (&a)[4], const uint8_t *weights, int k)
{
    int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp * 16 + lane % 16;

    load_matrices(a, weights + row * 128 + (k * 2 + lane / 16 ^ row % 8) * 16);
}

/* sums += a times the activations of step k. */
__device__ __forceinline__ void multiply_step(float (&sums)[kSums], const uint32_t (&a)[4],
                                              const uint8_t *x, int k)
{
    int lane = threadIdx.x % kWarp;

#pragma unroll
    for (int j = 0; j < kSums; j += 8) {
        int row = j * 2 + lane % 8 + lane / 16 * 8, piece = k * 2 + lane / 8 % 2;
        uint32_t b[4];

        load_matrices(b, x + row * 128 + (piece ^ row % 8) * 16);
        mma(*reinterpret_cast<float(*)[4]>(&sums[j]), a[0], a[1], a[2], a[3], b[0], b[1]);
        mma(*reinterpret_cast<float(*)[4]>(&sums[j + 4]), a[0], a[1], a[2], a[3], b[2], b[3]);
    }
}

/* sums += the products of a chunk in shared memory. */
template <int Dtype>
__device__ __forceinline__ void multiply_chunk(float (&sums)[kSums], const uint8_t *x,
                                               const uint8_t *w)
{
    uint32_t left[kSteps][4];

    if (Dtype == LLM_CUDA_E4M3) {
        load_left(left, w);
    }
#pragma unroll
    for (int k = 0; k < kSteps; k++) {
        if (Dtype == LLM_CUDA_BF16) {
            load_left_bf16(left[k], w, k);
        }
        multiply_step(sums, left[k], x, k);
    }
}

/* sums = weights * activations over all columns; of row g (+ 8) of the warp's 16 and of columns
 * 8 j + 2 t (+ 1) at sums[4 j …], as the tensor cores have them. */
template <int Dtype>
__device__ __forceinline__ void multiply_all(const operands<Dtype> &o, uint8_t *shared,
                                             float (&sums)[kSums])
{
    using s = stage<Dtype>;
    uint32_t n_chunks = (o.cols + kChunk - 1) / kChunk;
    float last = 0;

    auto fetch = [&](uint32_t chunk) {
        if (chunk < n_chunks) {
            fetch_chunk<Dtype>(o, chunk, shared);
        }
        commit_copies();
    };

#pragma unroll
    for (int i = 0; i < kSums; i++) {
        sums[i] = 0;
    }
    for (int c = 0; c < s::kAhead; c++) {
        fetch(c);
    }
    for (uint32_t c = 0; c < n_chunks; c++) {
        const uint8_t *x = shared + c % s::kStages * s::kSize, *w = x + s::kWeights;

        if (Dtype == LLM_CUDA_E4M3 && c % 2 == 0) {
            change_unit(sums, last, o.scale[c / 2]);
        }
        wait_for_copies<s::kAhead - 1>();
        __syncthreads();
        fetch(c + s::kAhead); /* where the chunk before this was, which all have multiplied */
        multiply_chunk<Dtype>(sums, x, w);
    }
    if (Dtype == LLM_CUDA_E4M3) {
#pragma unroll
        for (int i = 0; i < kSums; i++) {
            sums[i] *= last;
        }
    }
    wait_for_copies<0>();
    __syncthreads();
}

/* Puts the block's sums into shared memory: row r, output i at [r * kLine + i]. */
__device__ __forceinline__ void store_sums(const float (&sums)[kSums], float *shared)
{
    int lane = threadIdx.x % kWarp, out = threadIdx.x / kWarp * 16 + lane / 4;

#pragma unroll
    for (int i = 0; i < kSums; i++) {
        shared[(i / 4 * 8 + lane % 4 * 2 + i % 2) * kLine + out + i / 2 % 2 * 8] = sums[i];
    }
    __syncthreads();
}

struct linear_args {
    struct llm_cuda_linear l[LLM_CUDA_MAX_LINEARS];
    uint32_t end[LLM_CUDA_MAX_LINEARS]; /* one past its last block */
    uint32_t n_rows;
};

template <int Dtype>
__global__ void __launch_bounds__(kThreads, 2)
    linear_many_kernel(const __grid_constant__ linear_args a)
{
    using s = stage<Dtype>;
    uint8_t *shared = aligned_shared();
    uint32_t which = 0, block = blockIdx.x, row = blockIdx.y * kRows;

    while (block >= a.end[which]) {
        which++;
    }
    block -= which > 0 ? a.end[which - 1] : 0;

    const struct llm_cuda_linear &l = a.l[which];
    uint32_t n_tiles = (l.w.rows + kOuts - 1) / kOuts, member = block / n_tiles;
    uint32_t first = block % n_tiles * kOuts, n_rows = min(a.n_rows - row, kRows);
    uint32_t own = first + threadIdx.x / (kThreads / 2) * kHalf;
    const __nv_bfloat16 *x = static_cast<const __nv_bfloat16 *>(l.x) + member * l.x_step;
    operands<Dtype> o;
    float sums[kSums];

    o.w = static_cast<const uint8_t *>(l.w.data) + member * l.w_step;
    o.cols = l.w.cols;
    o.scale = l.w.scale + member * l.scale_step
              + min(own, l.w.rows - 1) / LLM_CUDA_SCALE_BLOCK * l.w.scale_stride;
    for (int j = 0; j < s::kCopies; j++) {
        uint32_t out = first + (threadIdx.x + j * kThreads) / s::kPieces;

        o.offset[j] = min(out, l.w.rows - 1) * (uint32_t) l.w.stride;
    }
    for (int j = 0; j < kRowCopies; j++) {
        uint32_t r = threadIdx.x / 8 + j * (kThreads / 8);

        o.x[j] = r < n_rows ? x + (row + r) * l.ldx : NULL;
    }

    wait_for_previous();
    let_next_begin();
    multiply_all<Dtype>(o, shared, sums);

    float *all = reinterpret_cast<float *>(shared);
    store_sums(sums, all);
    for (uint32_t i = threadIdx.x; i < n_rows * kOuts; i += kThreads) {
        uint32_t r = i / kOuts, n = i % kOuts;
        size_t at = member * l.out_step + (row + r) * l.ldo + first + n;
        float sum = all[r * kLine + n];

        if (first + n >= l.w.rows) {
            continue;
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

struct expert_args {
    struct llm_cuda_experts e;
    struct llm_cuda_pairs p;
    const __nv_bfloat16 *x;
    size_t ldx;
    __nv_bfloat16 *out; /* h or y */
    size_t ldo;
};

/* The pairs of a block: up to kRows of one expert, from `first` on; n 0: none. */
struct tile {
    uint32_t expert, first, n;
};

/* Tile blockIdx.y of all experts, each of which has as many as its pairs take. */
__device__ __forceinline__ tile find_tile(const struct llm_cuda_pairs &p)
{
    __shared__ uint32_t ends[kThreads / kWarp];
    __shared__ tile found;
    uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, n_active = *p.n_active;
    uint32_t before = 0;

    if (threadIdx.x == 0) {
        found.n = 0;
    }
    for (uint32_t i = 0; i < n_active && before <= blockIdx.y; i += kThreads) {
        uint32_t own = i + threadIdx.x, begin = own < n_active ? p.first[own] : 0;
        uint32_t end = own < n_active ? p.first[own + 1] : 0;
        uint32_t tiles = (end - begin + kRows - 1) / kRows, sum = tiles;

#pragma unroll
        for (int j = 1; j < kWarp; j *= 2) {
            uint32_t other = __shfl_up_sync(~0u, sum, j);

            sum += lane >= (uint32_t) j ? other : 0;
        }
        __syncthreads();
        if (lane == kWarp - 1) {
            ends[warp] = sum;
        }
        __syncthreads();
        for (uint32_t j = 0; j < kThreads / kWarp; j++) {
            sum += j < warp ? ends[j] : 0;
        }
        sum += before;
        if (blockIdx.y >= sum - tiles && blockIdx.y < sum) {
            uint32_t first = begin + (blockIdx.y - (sum - tiles)) * kRows;

            found = {p.expert[own], first, min(end - first, (uint32_t) kRows)};
        }
        for (uint32_t j = 0; j < kThreads / kWarp; j++) {
            before += ends[j];
        }
    }
    __syncthreads();
    return found;
}

template <int Dtype, bool Up>
__global__ void __launch_bounds__(kThreads, 2)
    experts_many_kernel(const __grid_constant__ expert_args a)
{
    using s = stage<Dtype>;
    constexpr int kMade = Up ? kHalf : kOuts; /* outputs of the block */
    uint8_t *shared = aligned_shared();
    const struct llm_cuda_matrix &m = Up ? a.e.gate_up : a.e.down;
    uint32_t n_outs = Up ? a.e.down.cols : m.rows, first = blockIdx.x * kMade;

    wait_for_previous();
    let_next_begin();

    tile t = find_tile(a.p);
    if (t.n == 0) {
        return;
    }

    /* of output i of the block: the gate's rows and then up's, or down's */
    auto weight_row = [&](uint32_t i) {
        return Up ? min(first + i % kHalf, n_outs - 1) + i / kHalf * n_outs
                  : min(first + i, n_outs - 1);
    };
    operands<Dtype> o;
    float sums[kSums];

    o.w = static_cast<const uint8_t *>(m.data)
          + t.expert * (Up ? a.e.gate_up_step : a.e.down_step);
    o.cols = m.cols;
    o.scale = m.scale + t.expert * (Up ? a.e.gate_up_scale_step : a.e.down_scale_step)
              + weight_row(threadIdx.x / (kThreads / 2) * kHalf) / LLM_CUDA_SCALE_BLOCK
                    * m.scale_stride;
    for (int j = 0; j < s::kCopies; j++) {
        o.offset[j] =
            weight_row((threadIdx.x + j * kThreads) / s::kPieces) * (uint32_t) m.stride;
    }
    for (int j = 0; j < kRowCopies; j++) {
        uint32_t r = threadIdx.x / 8 + j * (kThreads / 8), pair = t.first + r;

        o.x[j] = r < t.n ? a.x + pair * a.ldx : NULL;
    }
    multiply_all<Dtype>(o, shared, sums);

    float *all = reinterpret_cast<float *>(shared);
    store_sums(sums, all);
    for (uint32_t i = threadIdx.x; i < t.n * kMade; i += kThreads) {
        uint32_t r = i / kMade, n = i % kMade;
        float v = all[r * kLine + n];

        if (first + n < n_outs) {
            v = Up ? v / (1 + __expf(-v)) * all[r * kLine + kHalf + n] : v;
            a.out[(t.first + r) * a.ldo + first + n] = __float2bfloat16_rn(v);
        }
    }
}

template <typename Args>
int launch_many(void (*kernel)(Args), dim3 grid, int shared, const struct llm_cuda_queue &q,
                const Args &args)
{
    cudaError_t allowed =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);

    return allowed != cudaSuccess ? allowed : launch(kernel, grid, kThreads, shared, q, args);
}

template <int Dtype, bool Up>
int launch_experts(const expert_args &a, uint32_t max_pairs, const struct llm_cuda_queue &q)
{
    uint32_t n_outs = Up ? a.e.down.cols : a.e.down.rows, made = Up ? kHalf : kOuts;
    dim3 grid((n_outs + made - 1) / made, max_pairs / kRows + a.p.max_active);

    return launch_many(experts_many_kernel<Dtype, Up>, grid, kShared<Dtype>, q, a);
}

template <bool Up>
int launch_experts(const expert_args &a, uint32_t max_pairs, const struct llm_cuda_queue &q)
{
    return a.e.down.dtype == LLM_CUDA_BF16 ? launch_experts<LLM_CUDA_BF16, Up>(a, max_pairs, q)
                                           : launch_experts<LLM_CUDA_E4M3, Up>(a, max_pairs, q);
}

template <int Dtype>
int launch_linears(const linear_args &a, uint32_t blocks, const struct llm_cuda_queue &q)
{
    return launch_many(linear_many_kernel<Dtype>,
                       dim3(blocks, (a.n_rows + kRows - 1) / kRows), kShared<Dtype>, q, a);
}

struct spread_args {
    struct llm_cuda_pairs p;
    const uint4 *x;
    size_t ldx, ldo; /* pieces of 16 bytes, as the next */
    uint32_t n;
    uint4 *out;
};

constexpr int kSpreadThreads = 128;

__global__ void __launch_bounds__(kSpreadThreads)
    spread_kernel(const __grid_constant__ spread_args a)
{
    uint32_t pair = blockIdx.x;

    wait_for_previous();
    let_next_begin();
    if (pair >= a.p.first[*a.p.n_active]) {
        return;
    }

    const uint4 *x = a.x + a.p.token[pair] * a.ldx;
    for (uint32_t i = threadIdx.x; i < a.n; i += kSpreadThreads) {
        a.out[pair * a.ldo + i] = x[i];
    }
}

} // namespace
} // namespace llm

extern "C" int llm_cuda_spread_rows(const struct llm_cuda_pairs *p, uint32_t max_pairs,
                                    const void *x, size_t ldx, uint32_t width, void *out,
                                    size_t ldo, struct llm_cuda_queue q)
{
    llm::spread_args a = {*p,      static_cast<const uint4 *>(x),
                          ldx / 8, ldo / 8,
                          (width + 7) / 8, static_cast<uint4 *>(out)};

    return llm::launch(llm::spread_kernel, dim3(max_pairs), llm::kSpreadThreads, 0, q, a);
}

extern "C" int llm_cuda_linears_many(const struct llm_cuda_linear *l, uint32_t n, uint32_t n_rows,
                                     struct llm_cuda_queue q)
{
    llm::linear_args a = {};
    uint32_t blocks = 0;

    if (llm::runs_groups()) {
        return llm::linears_by_groups(l, n, n_rows, q);
    }
    for (uint32_t i = 0; i < n; i++) {
        a.l[i] = l[i];
        blocks += (l[i].w.rows + llm::kOuts - 1) / llm::kOuts * l[i].n_batch;
        a.end[i] = blocks;
    }
    a.n_rows = n_rows;

    return l[0].w.dtype == LLM_CUDA_BF16 ? llm::launch_linears<LLM_CUDA_BF16>(a, blocks, q)
                                         : llm::launch_linears<LLM_CUDA_E4M3>(a, blocks, q);
}

extern "C" int llm_cuda_experts_up_many(const struct llm_cuda_experts *e,
                                        const struct llm_cuda_pairs *p, uint32_t max_pairs,
                                        const void *x, size_t ldx, void *h, size_t ldh,
                                        struct llm_cuda_queue q)
{
    llm::expert_args a = {*e,  *p,
                          static_cast<const __nv_bfloat16 *>(x), ldx,
                          static_cast<__nv_bfloat16 *>(h), ldh};

    if (llm::runs_groups()) {
        return llm::experts_up_by_groups(*e, *p, max_pairs, x, ldx, h, ldh, q);
    }
    return llm::launch_experts<true>(a, max_pairs, q);
}

extern "C" int llm_cuda_experts_down_many(const struct llm_cuda_experts *e,
                                          const struct llm_cuda_pairs *p, uint32_t max_pairs,
                                          const void *h, size_t ldh, void *y, size_t ldy,
                                          struct llm_cuda_queue q)
{
    llm::expert_args a = {*e,  *p,
                          static_cast<const __nv_bfloat16 *>(h), ldh,
                          static_cast<__nv_bfloat16 *>(y), ldy};

    if (llm::runs_groups()) {
        return llm::experts_down_by_groups(*e, *p, max_pairs, h, ldh, y, ldy, q);
    }
    return llm::launch_experts<false>(a, max_pairs, q);
}
