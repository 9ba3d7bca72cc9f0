/* Single elements of stored matrices and of rows of latents as fp32, for the kernels that take
 * every type; and fp32 as bf16 and e4m3 as kernels/cpu makes them, to the bit. */

#ifndef KERNELS_CUDA_ELEMENT_CUH
#define KERNELS_CUDA_ELEMENT_CUH

#include "kernels/cuda/device.cuh"

#include <cuda_fp16.h>
#include <float.h>

namespace llm {

/* A code for NaN is +-480. */
__device__ __forceinline__ float f32_of_e4m3(uint8_t e)
{
    float size = __uint_as_float((uint32_t) (e & 0x7f) << 20) * 0x1p120f;

    return e & 0x80 ? -size : size;
}

__device__ __forceinline__ float f32_of_bf16(uint16_t h)
{
    return __uint_as_float((uint32_t) h << 16);
}

/* Ties to even; NaN stays NaN. */
__device__ __forceinline__ uint16_t bf16_of_f32(float x)
{
    uint32_t u = __float_as_uint(x);

    return (uint16_t) ((x != x ? u | 0x400000 : u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* Ties to even, for x of at most 448 but for rounding; of anything for a NaN. Below 2^-6 the
 * values stand 2^-9 apart, as floats do from 2^14 on; elsewhere three bits of the fraction stay. */
__device__ __forceinline__ uint8_t e4m3_of_f32(float x)
{
    uint32_t bits = __float_as_uint(x), a = bits & 0x7fffffff;
    uint32_t normal = ((a + 0x7ffff + (a >> 20 & 1)) >> 20) - ((127 - 7) << 3);
    uint32_t subnormal = __float_as_uint(__uint_as_float(a) + 0x1p14f) - __float_as_uint(0x1p14f);

    return (uint8_t) ((bits >> 24 & 0x80) | (a < __float_as_uint(0x1p-6f) ? subnormal : normal));
}

/* Element (row, col) of a matrix of that type. */
template <int Dtype>
__device__ __forceinline__ float element(const struct llm_cuda_matrix &m, uint32_t row,
                                         uint32_t col)
{
    const uint8_t *p = static_cast<const uint8_t *>(m.data) + row * m.stride;

    if (Dtype == LLM_CUDA_F32) {
        return reinterpret_cast<const float *>(p)[col];
    }
    if (Dtype == LLM_CUDA_BF16) {
        return f32_of_bf16(reinterpret_cast<const uint16_t *>(p)[col]);
    }
    if (Dtype == LLM_CUDA_F16) {
        return __half2float(reinterpret_cast<const __half *>(p)[col]);
    }
    return f32_of_e4m3(p[col])
           * m.scale[row / m.block_rows * m.scale_stride + col / m.block_cols];
}

/* Column col of a row of latents, the rope elements behind the rank; bytes of any alignment. */
template <int Dtype>
__device__ __forceinline__ float latent(const struct llm_cuda_plane &p, const uint8_t *row,
                                        uint32_t col)
{
    if (Dtype == LLM_CUDA_LATENT_F32) {
        return reinterpret_cast<const float *>(row)[col];
    }
    if (Dtype == LLM_CUDA_LATENT_BF16) {
        return f32_of_bf16(reinterpret_cast<const uint16_t *>(row)[col]);
    }
    if (col >= p.rank) {
        const uint8_t *h = row + p.rope_offset + (col - p.rank) * 2;

        return f32_of_bf16((uint16_t) (h[0] | h[1] << 8));
    }
    const uint8_t *s = row + p.scale_offset + col / LLM_CUDA_SCALE_BLOCK * 4;
    return f32_of_e4m3(row[col])
           * __uint_as_float(s[0] | s[1] << 8 | s[2] << 16 | (uint32_t) s[3] << 24);
}

/* f, called with the type of a matrix as a template argument. */
template <typename F>
__device__ __forceinline__ void with_dtype(enum llm_cuda_dtype dtype, F f)
{
    switch (dtype) {
    case LLM_CUDA_BF16:
        f(std::integral_constant<int, LLM_CUDA_BF16>());
        break;
    case LLM_CUDA_E4M3:
        f(std::integral_constant<int, LLM_CUDA_E4M3>());
        break;
    case LLM_CUDA_F16:
        f(std::integral_constant<int, LLM_CUDA_F16>());
        break;
    case LLM_CUDA_F32:
        f(std::integral_constant<int, LLM_CUDA_F32>());
        break;
    }
}

/* The sum of every thread's x, in the order of lanes (as a tree) and warps. All threads call. */
template <int Threads>
__device__ __forceinline__ float sum_of_block(float x)
{
    __shared__ float sums[Threads / kWarp];

#pragma unroll
    for (int i = 1; i < kWarp; i *= 2) {
        x += __shfl_xor_sync(~0u, x, i);
    }
    if (threadIdx.x % kWarp == 0) {
        sums[threadIdx.x / kWarp] = x;
    }
    __syncthreads();
    x = 0;
#pragma unroll
    for (int i = 0; i < Threads / kWarp; i++) {
        x += sums[i];
    }
    __syncthreads();
    return x;
}

} // namespace llm

#endif
