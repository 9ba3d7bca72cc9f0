/* Products by warpgroups, on Hopper: instructions that CUDA C++ has no name for (PTX ISA,
 * "Asynchronous Warpgroup Level Matrix Multiply-Accumulate"). Operands in shared memory are rows of
 * 128 bytes, eight of them a kilobyte, with piece p of 16 bytes of row r at p ^ r % 8. */

#ifndef KERNELS_CUDA_GROUP_CUH
#define KERNELS_CUDA_GROUP_CUH

#include "kernels/cuda/device.cuh"

#include <stdlib.h>

namespace llm {

constexpr int kGroupThreads = 4 * kWarp;
constexpr int kSums = 64; /* of a thread: 64 x 128 of the group */

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LLM_ON_HOPPER(...) asm volatile(__VA_ARGS__)
#else
#define LLM_ON_HOPPER(...) __trap() /* what others run is chosen by runs_groups */
#endif

__device__ __forceinline__ void begin_products()
{
    LLM_ON_HOPPER("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit_products()
{
    LLM_ON_HOPPER("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int N>
__device__ __forceinline__ void wait_for_products()
{
    LLM_ON_HOPPER("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* Until sums are there: what reads them stays behind. */
template <int N>
__device__ __forceinline__ void wait_for_sums(float (&c)[N])
{
    wait_for_products<0>();
#pragma unroll
    for (int i = 0; i < N; i++) {
        asm volatile("" : "+f"(c[i])::"memory");
    }
}

/* What the copies wrote into shared memory can be read by the tensor cores. */
__device__ __forceinline__ void publish_copies()
{
    LLM_ON_HOPPER("fence.proxy.async.shared::cta;" ::: "memory");
}

/* An operand whose rows run along the sum: 16 columns of them. Or across it: 16 rows, of which the
 * next 64 columns are `step` bytes on. */
__device__ __forceinline__ uint64_t descriptor_of(const void *p, uint32_t step = 16)
{
    uint64_t at = __cvta_generic_to_shared(p);

    return (at & 0x3ffff) >> 4 | (uint64_t) (step >> 4) << 16 | (uint64_t) (1024 >> 4) << 32
           | (uint64_t) 1 << 62;
}

#define LLM_SUMS_8(c, i)                                                                          \
    "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]),   \
        "+f"(c[i + 6]), "+f"(c[i + 7])

#define LLM_PRODUCT(add)                                                                          \
    "{\n"                                                                                         \
    ".reg .pred p;\n"                                                                             \
    "setp.ne.b32 p, " add ", 0;\n"                                                                \
    "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "                                      \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                     \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "            \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "            \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "

#define LLM_SUMS_32(c, i)                                                                         \
    LLM_SUMS_8(c, i), LLM_SUMS_8(c, i + 8), LLM_SUMS_8(c, i + 16), LLM_SUMS_8(c, i + 24)

#define LLM_SUMS_64(c) LLM_SUMS_32(c, 0), LLM_SUMS_32(c, 32)

/* c = (add ? c : 0) + a b for a of 64 x 16 and b of 16 x 128, in shared memory. */
__device__ __forceinline__ void multiply(float (&c)[kSums], uint64_t a, uint64_t b, bool add)
{
    LLM_ON_HOPPER(LLM_PRODUCT("%66") "%64, %65, p, 1, 1, 0, 0;\n}\n"
                 : LLM_SUMS_64(c)
                 : "l"(a), "l"(b), "r"((int) add));
}

/* The same for a of the warpgroup's registers and b whose rows run across the sum. */
__device__ __forceinline__ void multiply_across(float (&c)[kSums], const uint32_t (&a)[4],
                                                uint64_t b, bool add)
{
    LLM_ON_HOPPER(LLM_PRODUCT("%69") "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
                 : LLM_SUMS_64(c)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int) add));
}

/* Operands %0 … of so many sums. */
#define LLM_NAMES_32                                                                              \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "       \
    "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"

#define LLM_NAMES_64                                                                              \
    LLM_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "       \
    "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, "       \
    "%63"

#define LLM_NAMES_96                                                                              \
    LLM_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "       \
    "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, "       \
    "%95"

#define LLM_NAMES_128                                                                             \
    LLM_NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, "         \
    "%108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, "        \
    "%122, %123, %124, %125, %126, %127"

#define LLM_SUMS_96(c) LLM_SUMS_64(c), LLM_SUMS_32(c, 64)
#define LLM_SUMS_128(c) LLM_SUMS_96(c), LLM_SUMS_32(c, 96)

#define LLM_PRODUCT_OF(n, names, operands)                                                        \
    "{\n"                                                                                         \
    ".reg .pred p;\n"                                                                             \
    "setp.eq.u32 p, 0, 0;\n"                                                                      \
    "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" names "}, " operands ";\n}\n"

/* c += a b for a of 64 x 16, of the warpgroup's registers or of shared memory, and b of 16 x N. */
template <int N>
__device__ __forceinline__ void multiply(float (&c)[N / 2], const uint32_t (&a)[4], uint64_t b)
{
    if constexpr (N == 64) {
        LLM_ON_HOPPER(LLM_PRODUCT_OF("64", LLM_NAMES_32,
                                     "{%32, %33, %34, %35}, %36, p, 1, 1, 0")
                      : LLM_SUMS_32(c, 0)
                      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    } else if constexpr (N == 128) {
        LLM_ON_HOPPER(LLM_PRODUCT_OF("128", LLM_NAMES_64,
                                     "{%64, %65, %66, %67}, %68, p, 1, 1, 0")
                      : LLM_SUMS_64(c)
                      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    } else if constexpr (N == 192) {
        LLM_ON_HOPPER(LLM_PRODUCT_OF("192", LLM_NAMES_96,
                                     "{%96, %97, %98, %99}, %100, p, 1, 1, 0")
                      : LLM_SUMS_96(c)
                      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    } else {
        static_assert(N == 256, "64, 128, 192 or 256 rows");
        LLM_ON_HOPPER(LLM_PRODUCT_OF("256", LLM_NAMES_128,
                                     "{%128, %129, %130, %131}, %132, p, 1, 1, 0")
                      : LLM_SUMS_128(c)
                      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
}

template <int N>
__device__ __forceinline__ void multiply(float (&c)[N / 2], uint64_t a, uint64_t b)
{
    if constexpr (N == 64) {
        LLM_ON_HOPPER(LLM_PRODUCT_OF("64", LLM_NAMES_32,
                                     "%32, %33, p, 1, 1, 0, 0")
                      : LLM_SUMS_32(c, 0)
                      : "l"(a), "l"(b));
    } else if constexpr (N == 128) {
        LLM_ON_HOPPER(LLM_PRODUCT_OF("128", LLM_NAMES_64,
                                     "%64, %65, p, 1, 1, 0, 0")
                      : LLM_SUMS_64(c)
                      : "l"(a), "l"(b));
    } else if constexpr (N == 192) {
        LLM_ON_HOPPER(LLM_PRODUCT_OF("192", LLM_NAMES_96,
                                     "%96, %97, p, 1, 1, 0, 0")
                      : LLM_SUMS_96(c)
                      : "l"(a), "l"(b));
    } else {
        static_assert(N == 256, "64, 128, 192 or 256 rows");
        LLM_ON_HOPPER(LLM_PRODUCT_OF("256", LLM_NAMES_128,
                                     "%128, %129, p, 1, 1, 0, 0")
                      : LLM_SUMS_128(c)
                      : "l"(a), "l"(b));
    }
}

extern __shared__ uint8_t dynamic[];

/* Shared memory from the next kilobyte on. */
__device__ __forceinline__ uint8_t *aligned_shared()
{
    uint32_t at = (uint32_t) __cvta_generic_to_shared(dynamic);

    return dynamic + (1024 - at % 1024) % 1024;
}

/* Whether the device that is chosen has them; LLM_CUDA_MMA in the environment says that it has not,
 * for tests. */
inline bool runs_groups()
{
    int device = 0, major = 0;

    return getenv("LLM_CUDA_MMA") == NULL && cudaGetDevice(&device) == cudaSuccess
           && cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)
                  == cudaSuccess
           && major == 9;
}

} // namespace llm

#endif
