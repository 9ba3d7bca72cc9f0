/* What is done row by row, on either path: bound by launches for few rows, by the bytes of the
 * rows for many. Where widths and addresses allow it, a thread takes four elements at once; a row
 * of a norm stays in registers up to kThreads * kKept times that many. */

#include "kernels/cuda/element.cuh"

namespace llm {
namespace {

struct embed_args {
    struct llm_cuda_matrix w;
    struct llm_cuda_rows rows;
    const uint32_t *last;
    float *x;
    size_t ldx;
};

constexpr int kEmbedThreads = 256;

__global__ void __launch_bounds__(kEmbedThreads)
    embed_kernel(const __grid_constant__ embed_args a)
{
    uint32_t row = blockIdx.x;

    wait_for_previous();
    let_next_begin();

    uint32_t token = a.rows.tokens[row];
    if (token == LLM_CUDA_TOKEN_LAST) {
        token = a.last[a.rows.slots[row]];
    }
    with_dtype(a.w.dtype, [&](auto dtype) {
        for (uint32_t i = threadIdx.x; i < a.w.cols; i += kEmbedThreads) {
            a.x[row * a.ldx + i] = element<decltype(dtype)::value>(a.w, token, i);
        }
    });
}

/* N elements at once: four, aligned to their size, or one. */
template <int N>
__device__ __forceinline__ void load(float (&v)[N], const float *p)
{
    if constexpr (N == 4) {
        float4 t = *reinterpret_cast<const float4 *>(p);

        v[0] = t.x;
        v[1] = t.y;
        v[2] = t.z;
        v[3] = t.w;
    } else {
        v[0] = *p;
    }
}

template <int N>
__device__ __forceinline__ void load(float (&v)[N], const uint16_t *p)
{
    if constexpr (N == 4) {
        uint2 t = *reinterpret_cast<const uint2 *>(p);

        v[0] = f32_of_bf16((uint16_t) t.x);
        v[1] = f32_of_bf16((uint16_t) (t.x >> 16));
        v[2] = f32_of_bf16((uint16_t) t.y);
        v[3] = f32_of_bf16((uint16_t) (t.y >> 16));
    } else {
        v[0] = f32_of_bf16(*p);
    }
}

template <int N>
__device__ __forceinline__ void store(float *p, const float (&v)[N])
{
    if constexpr (N == 4) {
        *reinterpret_cast<float4 *>(p) = make_float4(v[0], v[1], v[2], v[3]);
    } else {
        *p = v[0];
    }
}

template <int N>
__device__ __forceinline__ void store(__nv_bfloat16 *p, const float (&v)[N])
{
    if constexpr (N == 4) {
        __nv_bfloat162 low = __floats2bfloat162_rn(v[0], v[1]);
        __nv_bfloat162 high = __floats2bfloat162_rn(v[2], v[3]);

        *reinterpret_cast<uint2 *>(p) = make_uint2(*reinterpret_cast<uint32_t *>(&low),
                                                   *reinterpret_cast<uint32_t *>(&high));
    } else {
        *p = __float2bfloat16_rn(v[0]);
    }
}

/* Whether all rows of an array, or none, begin where four elements can be taken at once. */
bool fours(const void *p, size_t ld, size_t element)
{
    return p == NULL || (reinterpret_cast<uintptr_t>(p) % (4 * element) == 0 && ld % 4 == 0);
}

constexpr int kThreads = 256;
constexpr int kKept = 8; /* that a thread keeps, of N elements */

template <int N>
__global__ void __launch_bounds__(kThreads)
    norm_kernel(const __grid_constant__ struct llm_cuda_norm a)
{
    uint32_t i = blockIdx.x, n = a.width / N;
    float weight[kKept][N], kept[kKept][N] = {}, sum = 0;

#pragma unroll
    for (int j = 0; j < kKept; j++) {
        uint32_t at = threadIdx.x + j * kThreads;

        if (at < n) {
            load(weight[j], a.weight + at * N);
        }
    }
    wait_for_previous();
    let_next_begin();

    float *x = a.x + (a.rows != NULL ? a.rows[i] : i) * a.ldx;
    const float *add = a.add != NULL ? a.add + i * a.ld_add : NULL;

    auto take = [&](float (&v)[N], uint32_t at) {
        load(v, x + at * N);
        if (add != NULL) {
            float more[N];

            load(more, add + at * N);
            for (int e = 0; e < N; e++) {
                v[e] += more[e];
            }
            store(x + at * N, v);
        }
        for (int e = 0; e < N; e++) {
            sum += v[e] * v[e];
        }
    };

#pragma unroll
    for (int j = 0; j < kKept; j++) {
        uint32_t at = threadIdx.x + j * kThreads;

        if (at < n) {
            take(kept[j], at);
        }
    }
    for (uint32_t at = threadIdx.x + kKept * kThreads; at < n; at += kThreads) {
        float v[N];

        take(v, at);
    }
    sum = sum_of_block<kThreads>(sum);

    float r = 1 / sqrtf(sum / (float) a.width + a.eps);

    auto give = [&](float (&v)[N], const float (&w)[N], uint32_t at) {
        for (int e = 0; e < N; e++) {
            v[e] = v[e] * r * w[e];
        }
        if (a.out_f32 != NULL) {
            store(a.out_f32 + i * a.ld_f32 + at * N, v);
        }
        if (a.out_bf16 != NULL) {
            store(static_cast<__nv_bfloat16 *>(a.out_bf16) + i * a.ld_bf16 + at * N, v);
        }
    };

#pragma unroll
    for (int j = 0; j < kKept; j++) {
        uint32_t at = threadIdx.x + j * kThreads;

        if (at < n) {
            give(kept[j], weight[j], at);
        }
    }
    for (uint32_t at = threadIdx.x + kKept * kThreads; at < n; at += kThreads) {
        float v[N], w[N];

        load(v, x + at * N);
        load(w, a.weight + at * N);
        give(v, w, at);
    }
}

struct silu_args {
    const float *gate_up;
    size_t ld;
    uint32_t width;
    __nv_bfloat16 *out_bf16;
    size_t ld_bf16;
    float *out_f32;
    size_t ld_f32;
};

constexpr int kFlatThreads = 256; /* of kernels that take elements one by one */

__global__ void __launch_bounds__(kFlatThreads) silu_kernel(const __grid_constant__ silu_args a)
{
    uint32_t i = blockIdx.y * kFlatThreads + threadIdx.x;
    size_t row = blockIdx.x;

    wait_for_previous();
    let_next_begin();
    if (i >= a.width) {
        return;
    }

    float gate = a.gate_up[row * a.ld + i], up = a.gate_up[row * a.ld + a.width + i];
    float v = gate / (1 + expf(-gate)) * up;
    if (a.out_bf16 != NULL) {
        a.out_bf16[row * a.ld_bf16 + i] = __float2bfloat16_rn(v);
    }
    if (a.out_f32 != NULL) {
        a.out_f32[row * a.ld_f32 + i] = v;
    }
}

struct add_args {
    float *x;
    size_t ldx;
    const float *y;
    size_t ldy;
    uint32_t width;
};

__global__ void __launch_bounds__(kFlatThreads) add_kernel(const __grid_constant__ add_args a)
{
    uint32_t i = blockIdx.y * kFlatThreads + threadIdx.x;

    wait_for_previous();
    let_next_begin();
    if (i < a.width) {
        a.x[blockIdx.x * a.ldx + i] += a.y[blockIdx.x * a.ldy + i];
    }
}

struct add_experts_args {
    struct llm_cuda_pairs p;
    enum llm_cuda_dtype dtype;
    const void *y;
    size_t ldy;
    uint32_t width;
    float *out;
    size_t ldo;
};

constexpr int kPairs = 8; /* of a token, whose elements are on their way together */

template <typename Y, int N>
__global__ void __launch_bounds__(kFlatThreads)
    add_experts_kernel(const __grid_constant__ add_experts_args a)
{
    uint32_t i = (blockIdx.y * kFlatThreads + threadIdx.x) * N;
    size_t token = blockIdx.x;
    float sum[N] = {}, out[N];

    wait_for_previous();
    let_next_begin();
    if (i >= a.width) {
        return;
    }

    const uint32_t *pairs = a.p.pair_of + token * a.p.per_token;
    for (uint32_t first = 0; first < a.p.per_token; first += kPairs) {
        float y[kPairs][N], weight[kPairs];

#pragma unroll
        for (uint32_t k = 0; k < kPairs; k++) {
            uint32_t pair = first + k < a.p.per_token ? pairs[first + k] : UINT32_MAX;

            weight[k] = 0;
            if (pair != UINT32_MAX) {
                weight[k] = a.p.weight[pair];
                load(y[k], static_cast<const Y *>(a.y) + pair * a.ldy + i);
            } else {
                for (int e = 0; e < N; e++) {
                    y[k][e] = 0;
                }
            }
        }
#pragma unroll
        for (uint32_t k = 0; k < kPairs; k++) {
            for (int e = 0; e < N; e++) {
                sum[e] += weight[k] * y[k][e];
            }
        }
    }

    load(out, a.out + token * a.ldo + i);
    for (int e = 0; e < N; e++) {
        out[e] += sum[e];
    }
    store(a.out + token * a.ldo + i, out);
}

struct unpack_args {
    struct llm_cuda_matrix w;
    enum llm_cuda_dtype to;
    void *out;
    size_t ldo;
};

__global__ void __launch_bounds__(kFlatThreads) unpack_kernel(const __grid_constant__ unpack_args a)
{
    uint32_t row = blockIdx.x;

    wait_for_previous();
    let_next_begin();
    with_dtype(a.w.dtype, [&](auto dtype) {
        for (uint32_t i = threadIdx.x; i < a.w.cols; i += kFlatThreads) {
            float v = element<decltype(dtype)::value>(a.w, row, i);

            if (a.to == LLM_CUDA_F32) {
                static_cast<float *>(a.out)[row * a.ldo + i] = v;
            } else {
                static_cast<uint16_t *>(a.out)[row * a.ldo + i] = bf16_of_f32(v);
            }
        }
    });
}

constexpr int kTile = 32; /* of transposing: rows and columns of a block */

template <typename T>
__global__ void __launch_bounds__(kTile *kTile)
    transpose_kernel(const __grid_constant__ struct llm_cuda_transpose a)
{
    __shared__ T tile[kTile][kTile + 4 / sizeof(T)]; /* columns in other banks */
    const T *from = static_cast<const T *>(a.from) + blockIdx.z * a.from_step;
    T *to = static_cast<T *>(a.to) + blockIdx.z * a.to_step;
    uint32_t x = threadIdx.x % kTile, y = threadIdx.x / kTile;
    uint32_t row = blockIdx.y * kTile, col = blockIdx.x * kTile;

    wait_for_previous();
    let_next_begin();
    if (row + y < a.rows && col + x < a.cols) {
        tile[y][x] = from[(row + y) * a.ld_from + col + x];
    }
    __syncthreads();
    if (row + x < a.rows && col + y < a.cols) {
        to[(col + y) * a.ld_to + row + x] = tile[x][y];
    }
}

dim3 flat_grid(uint32_t width, uint32_t n)
{
    return dim3(n, (width + kFlatThreads - 1) / kFlatThreads);
}

template <typename T>
int transpose(const struct llm_cuda_transpose &t, const struct llm_cuda_queue &q)
{
    return launch(transpose_kernel<T>,
                  dim3((t.cols + kTile - 1) / kTile, (t.rows + kTile - 1) / kTile, t.n),
                  kTile * kTile, 0, q, t);
}

} // namespace
} // namespace llm

extern "C" int llm_cuda_embed(const struct llm_cuda_matrix *w, const struct llm_cuda_rows *rows,
                              const uint32_t *last, float *x, size_t ldx, struct llm_cuda_queue q)
{
    llm::embed_args a = {*w, *rows, last, x, ldx};

    return llm::launch(llm::embed_kernel, dim3(rows->n), llm::kEmbedThreads, 0, q, a);
}

extern "C" int llm_cuda_rms_norm(const struct llm_cuda_norm *norm, struct llm_cuda_queue q)
{
    bool fours = norm->width % 4 == 0 && llm::fours(norm->x, norm->ldx, 4)
                 && llm::fours(norm->add, norm->ld_add, 4) && llm::fours(norm->weight, 0, 4)
                 && llm::fours(norm->out_f32, norm->ld_f32, 4)
                 && llm::fours(norm->out_bf16, norm->ld_bf16, 2);

    return llm::launch(fours ? llm::norm_kernel<4> : llm::norm_kernel<1>, dim3(norm->n),
                       llm::kThreads, 0, q, *norm);
}

extern "C" int llm_cuda_silu_mul(const float *gate_up, size_t ld, uint32_t n, uint32_t width,
                                 void *out_bf16, size_t ld_bf16, float *out_f32, size_t ld_f32,
                                 struct llm_cuda_queue q)
{
    llm::silu_args a = {
        gate_up, ld, width, static_cast<__nv_bfloat16 *>(out_bf16), ld_bf16, out_f32, ld_f32};

    return llm::launch(llm::silu_kernel, llm::flat_grid(width, n), llm::kFlatThreads, 0, q, a);
}

extern "C" int llm_cuda_add(float *x, size_t ldx, const float *y, size_t ldy, uint32_t n,
                            uint32_t width, struct llm_cuda_queue q)
{
    llm::add_args a = {x, ldx, y, ldy, width};

    return llm::launch(llm::add_kernel, llm::flat_grid(width, n), llm::kFlatThreads, 0, q, a);
}

extern "C" int llm_cuda_add_experts(const struct llm_cuda_pairs *p, enum llm_cuda_dtype dtype,
                                    const void *y, size_t ldy, uint32_t width, float *out,
                                    size_t ldo, struct llm_cuda_queue q)
{
    llm::add_experts_args a = {*p, dtype, y, ldy, width, out, ldo};

    bool fours = width % 4 == 0 && llm::fours(out, ldo, 4)
                 && llm::fours(y, ldy, dtype == LLM_CUDA_F32 ? 4 : 2);
    auto kernel = dtype == LLM_CUDA_F32 ? fours ? llm::add_experts_kernel<float, 4>
                                                : llm::add_experts_kernel<float, 1>
                  : fours ? llm::add_experts_kernel<uint16_t, 4>
                          : llm::add_experts_kernel<uint16_t, 1>;

    return llm::launch(kernel, llm::flat_grid(fours ? width / 4 : width, p->n_tokens),
                       llm::kFlatThreads, 0, q, a);
}

extern "C" int llm_cuda_unpack(const struct llm_cuda_matrix *w, enum llm_cuda_dtype to, void *out,
                               size_t ldo, struct llm_cuda_queue q)
{
    llm::unpack_args a = {*w, to, out, ldo};

    return llm::launch(llm::unpack_kernel, dim3(w->rows), llm::kFlatThreads, 0, q, a);
}

extern "C" int llm_cuda_transpose(const struct llm_cuda_transpose *t, struct llm_cuda_queue q)
{
    switch (t->size) {
    case 1:
        return llm::transpose<uint8_t>(*t, q);
    case 2:
        return llm::transpose<uint16_t>(*t, q);
    case 4:
        return llm::transpose<uint32_t>(*t, q);
    default:
        return cudaErrorInvalidValue;
    }
}
