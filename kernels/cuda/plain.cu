/* Linear operations of the general path: any width, any type of weights, activations, products
 * and sums in fp32 on the ordinary cores, which bound them: 60 TFLOP/s on an H200, less what
 * reading from shared memory costs, about half.
 *
 * A block makes 32 outputs of 8 or of 32 rows. Its warps divide the inputs among them in chunks of
 * 32, and their sums are added in the order of the warps, so that the bits are the same for either
 * number of rows. */

#include "kernels/cuda/element.cuh"

namespace llm {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kOuts = 32;           /* of a block: a lane makes one, of every row */
constexpr int kInputs = 32;         /* of a chunk */
constexpr int kPitch = kInputs + 4; /* floats: float4 of eight rows in other banks */
constexpr int kFewRows = 8, kManyRows = 32;

/* Outputs first … of `n` that a block makes. Output i has w's row `row` + i, or its column i, of
 * rows row … row + n_inputs. */
struct outputs {
    struct llm_cuda_matrix w;
    uint32_t row, n_inputs;
    uint32_t first, n;
};

template <int Dtype, bool Transposed>
__device__ __forceinline__ void load_weights(const outputs &o, uint32_t chunk, float *tile)
{
    int lane = threadIdx.x % kWarp;

#pragma unroll
    for (int i = 0; i < kOuts; i++) {
        uint32_t out = o.first + (Transposed ? lane : i);
        uint32_t input = chunk * kInputs + (Transposed ? i : lane);
        float v = 0;

        if (out < o.n && input < o.n_inputs) {
            v = Transposed ? element<Dtype>(o.w, o.row + input, out)
                           : element<Dtype>(o.w, o.row + out, input);
        }
        tile[Transposed ? lane * kPitch + i : i * kPitch + lane] = v;
    }
}

/* Gives a thread the sums of row i / kOuts and output i % kOuts for i = j * kThreads + its number;
 * x_of(r) is where row r < n_rows is. All threads of the block call. */
template <int Rows, bool Transposed, typename RowOf>
__device__ __forceinline__ void sum_tile(const outputs &o, uint32_t n_rows, RowOf x_of,
                                         float *shared, float (&sums)[Rows / kWarps])
{
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    float *weights = shared + warp * (kOuts + Rows) * kPitch, *inputs = weights + kOuts * kPitch;
    uint32_t n_chunks = (o.n_inputs + kInputs - 1) / kInputs;
    float acc[Rows] = {};

    for (uint32_t chunk = warp; chunk < n_chunks; chunk += kWarps) {
        uint32_t input = chunk * kInputs + lane;

        with_dtype(o.w.dtype, [&](auto dtype) {
            load_weights<decltype(dtype)::value, Transposed>(o, chunk, weights);
        });
#pragma unroll
        for (int r = 0; r < Rows; r++) {
            inputs[r * kPitch + lane] =
                (uint32_t) r < n_rows && input < o.n_inputs ? x_of(r)[input] : 0;
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < kInputs; i += 4) {
            float4 w = *reinterpret_cast<const float4 *>(weights + lane * kPitch + i);

#pragma unroll
            for (int r = 0; r < Rows; r++) {
                float4 x = *reinterpret_cast<const float4 *>(inputs + r * kPitch + i);

                acc[r] += x.x * w.x;
                acc[r] += x.y * w.y;
                acc[r] += x.z * w.z;
                acc[r] += x.w * w.w;
            }
        }
        __syncwarp();
    }

    __syncthreads();
#pragma unroll
    for (int r = 0; r < Rows; r++) {
        shared[(warp * Rows + r) * kOuts + lane] = acc[r];
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < Rows / kWarps; j++) {
        sums[j] = 0;
        for (int v = 0; v < kWarps; v++) {
            sums[j] += shared[v * Rows * kOuts + j * kThreads + threadIdx.x];
        }
    }
    __syncthreads();
}

template <int Rows>
constexpr int kShared = kWarps * (kOuts + Rows) * kPitch * 4;

struct plain_args {
    struct llm_cuda_plain l;
    uint32_t n_rows;
};

template <int Rows, bool Transposed>
__global__ void __launch_bounds__(kThreads) plain_kernel(const __grid_constant__ plain_args a)
{
    extern __shared__ __align__(16) float shared[];

    const struct llm_cuda_plain &l = a.l;
    uint32_t row = blockIdx.y * Rows, member = blockIdx.z, n_rows = min(a.n_rows - row, Rows);
    outputs o = {l.w, l.first + member * l.first_step, Transposed ? l.n : l.w.cols,
                 blockIdx.x * kOuts, Transposed ? l.w.cols : l.n};
    const float *x = l.x + member * l.x_step + row * l.ldx;
    float sums[Rows / kWarps];

    wait_for_previous();
    let_next_begin();
    sum_tile<Rows, Transposed>(
        o, n_rows, [&](uint32_t r) { return x + r * l.ldx; }, shared, sums);

#pragma unroll
    for (int j = 0; j < Rows / kWarps; j++) {
        uint32_t r = (j * kThreads + threadIdx.x) / kOuts, i = o.first + threadIdx.x % kOuts;

        if (r < n_rows && i < o.n) {
            float *out = l.out + member * l.out_step + (row + r) * l.ldo + i;
            float sum = l.bias != NULL ? sums[j] + l.bias[i] : sums[j];

            *out = l.add ? *out + sum : sum;
        }
    }
}

struct expert_args {
    struct llm_cuda_plain_experts e;
    struct llm_cuda_pairs p;
    const float *x;
    size_t ldx;
    float *out;
    size_t ldo;
};

__device__ __forceinline__ struct llm_cuda_matrix matrix_of(const struct llm_cuda_matrix &m,
                                                            uint32_t expert, size_t step,
                                                            size_t scale_step)
{
    struct llm_cuda_matrix own = m;

    own.data = static_cast<const uint8_t *>(m.data) + expert * step;
    own.scale = m.scale + expert * scale_step;
    return own;
}

/* The pairs of blockIdx.y's tile of rows of active expert blockIdx.z. */
template <int Rows, bool Up>
__global__ void __launch_bounds__(kThreads) experts_kernel(const __grid_constant__ expert_args a)
{
    extern __shared__ __align__(16) float shared[];

    wait_for_previous();
    let_next_begin();
    if (blockIdx.z >= *a.p.n_active) {
        return;
    }

    uint32_t expert = a.p.expert[blockIdx.z], end = a.p.first[blockIdx.z + 1];
    uint32_t pair = a.p.first[blockIdx.z] + blockIdx.y * Rows;
    if (pair >= end) {
        return;
    }

    uint32_t n_rows = min(end - pair, Rows);
    auto x_of = [&](uint32_t r) {
        return a.x + (Up ? a.p.token[pair + r] : pair + r) * a.ldx;
    };
    outputs o = {{}, 0, Up ? a.e.gate.cols : a.e.down.cols, blockIdx.x * kOuts,
                 Up ? a.e.gate.rows : a.e.down.rows};
    float sums[Rows / kWarps], ups[Rows / kWarps];

    if (Up) {
        o.w = matrix_of(a.e.up, expert, a.e.up_step, a.e.up_scale_step);
        sum_tile<Rows, false>(o, n_rows, x_of, shared, ups);
        o.w = matrix_of(a.e.gate, expert, a.e.gate_step, a.e.gate_scale_step);
    } else {
        o.w = matrix_of(a.e.down, expert, a.e.down_step, a.e.down_scale_step);
    }
    sum_tile<Rows, false>(o, n_rows, x_of, shared, sums);

#pragma unroll
    for (int j = 0; j < Rows / kWarps; j++) {
        uint32_t r = (j * kThreads + threadIdx.x) / kOuts, i = o.first + threadIdx.x % kOuts;

        if (r < n_rows && i < o.n) {
            a.out[(pair + r) * a.ldo + i] =
                Up ? sums[j] / (1 + expf(-sums[j])) * ups[j] : sums[j];
        }
    }
}

/* A launch of blocks that make `Rows` rows each of at most n_rows, `n_outs` outputs of each of n_z
 * matrices. */
template <int Rows, typename Args>
int launch_tiles(void (*kernel)(Args), uint32_t n_rows, uint32_t n_outs, uint32_t n_z,
                 const struct llm_cuda_queue &q, const Args &args)
{
    cudaError_t allowed =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared<Rows>);

    if (allowed != cudaSuccess) {
        return allowed;
    }
    return launch(kernel, dim3((n_outs + kOuts - 1) / kOuts, (n_rows + Rows - 1) / Rows, n_z),
                  kThreads, kShared<Rows>, q, args);
}

template <bool Up>
int launch_experts(const expert_args &a, uint32_t n_outs, const struct llm_cuda_queue &q)
{
    if (a.p.n_tokens <= kFewRows) {
        return launch_tiles<kFewRows>(experts_kernel<kFewRows, Up>, a.p.n_tokens, n_outs,
                                      a.p.max_active, q, a);
    }
    return launch_tiles<kManyRows>(experts_kernel<kManyRows, Up>, a.p.n_tokens, n_outs,
                                   a.p.max_active, q, a);
}

template <bool Transposed>
int launch_plain(const plain_args &a, const struct llm_cuda_queue &q)
{
    uint32_t n_outs = Transposed ? a.l.w.cols : a.l.n;

    if (a.n_rows <= kFewRows) {
        return launch_tiles<kFewRows>(plain_kernel<kFewRows, Transposed>, a.n_rows, n_outs,
                                      a.l.n_batch, q, a);
    }
    return launch_tiles<kManyRows>(plain_kernel<kManyRows, Transposed>, a.n_rows, n_outs,
                                   a.l.n_batch, q, a);
}

} // namespace
} // namespace llm

extern "C" int llm_cuda_plain_linear(const struct llm_cuda_plain *l, uint32_t n_rows,
                                     struct llm_cuda_queue q)
{
    llm::plain_args a = {*l, n_rows};

    return l->transposed ? llm::launch_plain<true>(a, q) : llm::launch_plain<false>(a, q);
}

extern "C" int llm_cuda_plain_experts_up(const struct llm_cuda_plain_experts *e,
                                         const struct llm_cuda_pairs *p, const float *x,
                                         size_t ldx, float *h, size_t ldh,
                                         struct llm_cuda_queue q)
{
    llm::expert_args a = {*e, *p, x, ldx, h, ldh};

    return llm::launch_experts<true>(a, e->gate.rows, q);
}

extern "C" int llm_cuda_plain_experts_down(const struct llm_cuda_plain_experts *e,
                                           const struct llm_cuda_pairs *p, const float *h,
                                           size_t ldh, float *y, size_t ldy,
                                           struct llm_cuda_queue q)
{
    llm::expert_args a = {*e, *p, h, ldh, y, ldy};

    return llm::launch_experts<false>(a, e->down.rows, q);
}
