/* What the kernels share: instructions that CUDA C++ has no name for, and numbers in fragments of
 * the tensor cores (PTX ISA, "Matrix Fragments for mma.m16n8k16"). */

#ifndef KERNELS_CUDA_DEVICE_CUH
#define KERNELS_CUDA_DEVICE_CUH

#include "kernels/cuda/kernels.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace llm {

constexpr int kWarp = 32;

/* Until everything that the launch before this one wrote can be read. */
__device__ __forceinline__ void wait_for_previous()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The next launch may take the processors that this one leaves. */
__device__ __forceinline__ void let_next_begin()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* 16 bytes to shared memory, of which the first n are read and the others zero. */
__device__ __forceinline__ void copy_async(void *to, const void *from, uint32_t n)
{
    uint32_t s = (uint32_t) __cvta_generic_to_shared(to);

    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(s), "l"(from), "r"(n));
}

__device__ __forceinline__ void commit_copies()
{
    asm volatile("cp.async.commit_group;");
}

/* Until all but the last N groups of this thread are there. */
template <int N>
__device__ __forceinline__ void wait_for_copies()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* n bytes, a multiple of 16, on their way into L2. */
__device__ __forceinline__ void fetch_into_cache(const void *from, uint32_t n)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(n));
#endif
}

/* c += a b for a of 16 x 16, row by row, and b of 16 x 8, column by column. */
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* Four matrices of 8 x 8 b16; thread i names row i % 8 of matrix i / 8. */
__device__ __forceinline__ void load_matrices(uint32_t (&m)[4], const void *row)
{
    uint32_t s = (uint32_t) __cvta_generic_to_shared(row);

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(s)
                 : "memory");
}

__device__ __forceinline__ void load_transposed(uint32_t (&m)[4], const void *row)
{
    uint32_t s = (uint32_t) __cvta_generic_to_shared(row);

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(s)
                 : "memory");
}

/* Two e4m3 as bf16, which holds them exactly: bytes 1 and 3 of e (Odd), or bytes 0 and 2. Exponent
 * and mantissa go where bf16 has them and are 2^120 too small there; the product is exact for
 * subnormal numbers, too. */
template <bool Odd>
__device__ __forceinline__ uint32_t bf16_of_e4m3(uint32_t e)
{
    uint32_t size = (Odd ? e >> 4 : e << 4) & 0x07f007f0;
    uint32_t bits = ((Odd ? e : e << 8) & 0x80008000) | size, out;

    asm("fma.rn.bf16x2 %0, %1, %2, %3;"
        : "=r"(out)
        : "r"(bits), "r"(0x7b807b80), "r"(0x80008000)); /* plus -0 */
    return out;
}

__device__ __forceinline__ uint4 load16(const void *p)
{
    return *static_cast<const uint4 *>(p);
}

/* A launch of `kernel` with one argument; with q.overlap it may begin before the last one ends. */
template <typename Args>
int launch(void (*kernel)(Args), dim3 grid, unsigned threads, size_t shared,
           const struct llm_cuda_queue &q, const Args &args)
{
    cudaLaunchAttribute overlap = {};
    cudaLaunchConfig_t config = {};

    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = q.stream;
    config.attrs = &overlap;
    config.numAttrs = q.overlap ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, args);
}

} // namespace llm

#endif
