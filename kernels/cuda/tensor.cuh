/* Hopper's copy engine, which brings tiles of matrices into the shared memory of one block or of
 * both blocks of a cluster, and the barriers that tell when they are there (PTX ISA, "Tensors",
 * "mbarrier"). Tiles lie as the tensor cores want them: group.cuh. */

#ifndef KERNELS_CUDA_TENSOR_CUH
#define KERNELS_CUDA_TENSOR_CUH

#include "kernels/cuda/group.cuh"

#include <cuda.h>

namespace llm {

constexpr int kCluster = 2; /* blocks */

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t) __cvta_generic_to_shared(p);
}

__device__ __forceinline__ void init_barrier(uint64_t *b, uint32_t count)
{
    LLM_ON_HOPPER("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count));
}

/* Other blocks of the cluster and the copy engine see barriers as they have been made. */
__device__ __forceinline__ void publish_barriers()
{
    LLM_ON_HOPPER("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* Arrives, and makes the phase last until so many bytes have come, too. */
__device__ __forceinline__ void expect_bytes(uint64_t *b, uint32_t n)
{
    LLM_ON_HOPPER("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
                  "r"(n)
                  : "memory");
}

/* Arrives at that barrier of a block of the cluster. It tells of what has been read: to tell the
 * whole cluster of what was written would take 0.4 us. */
__device__ __forceinline__ void arrive_at(uint64_t *b, uint32_t block)
{
    LLM_ON_HOPPER("{\n"
                  ".reg .b32 there;\n"
                  "mapa.shared::cluster.u32 there, %0, %1;\n"
                  "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                  "}" ::"r"(shared_address(b)),
                  "r"(block)
                  : "memory");
}

__device__ __forceinline__ void wait_for_phase(uint64_t *b, uint32_t parity)
{
    uint32_t done = 0;

    while (done == 0) {
        LLM_ON_HOPPER("{\n"
                      ".reg .pred p;\n"
                      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                      "selp.u32 %0, 1, 0, p;\n"
                      "}"
                      : "=r"(done)
                      : "r"(shared_address(b)), "r"(parity)
                      : "memory");
    }
}

__device__ __forceinline__ void sync_cluster()
{
    LLM_ON_HOPPER("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

__device__ __forceinline__ uint32_t block_of_cluster()
{
    uint32_t rank = 0;

    LLM_ON_HOPPER("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* Registers of a thread of this warpgroup from now on. */
template <int N>
__device__ __forceinline__ void take_registers()
{
    LLM_ON_HOPPER("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N>
__device__ __forceinline__ void leave_registers()
{
    LLM_ON_HOPPER("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

/* The tile at column i, row j, matrix k, into this block. */
__device__ __forceinline__ void fetch_tile(void *to, const CUtensorMap *map, uint32_t i, uint32_t j,
                                           uint32_t k, uint64_t *b)
{
    LLM_ON_HOPPER("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                  "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
                  "l"(map), "r"(shared_address(b)), "r"(i), "r"(j), "r"(k)
                  : "memory");
}

/* The same of five dimensions. */
__device__ __forceinline__ void fetch_tile(void *to, const CUtensorMap *map, uint32_t i, uint32_t j,
                                           uint32_t k, uint32_t l, uint32_t m, uint64_t *b)
{
    LLM_ON_HOPPER("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
                  "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared_address(to)),
                  "l"(map), "r"(shared_address(b)), "r"(i), "r"(j), "r"(k), "r"(l), "r"(m)
                  : "memory");
}

/* Into the same place of both blocks of the cluster, whose barriers at this place are told. */
__device__ __forceinline__ void fetch_tile_for_all(void *to, const CUtensorMap *map, uint32_t i,
                                                   uint32_t j, uint32_t k, uint64_t *b)
{
    LLM_ON_HOPPER("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                  ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(
                      shared_address(to)),
                  "l"(map), "r"(shared_address(b)), "r"(i), "r"(j), "r"(k),
                  "h"((uint16_t) ((1 << kCluster) - 1))
                  : "memory");
}

/* What a map is made of: sizes and steps (bytes; of the dimensions but the first) from the one that
 * runs fastest on, a tile's sizes likewise. A tile's row of 128 or 64 bytes has its pieces of 16
 * swapped as group.cuh says, or, of 64, p ^ r / 2 % 4. */
struct tensor {
    CUtensorMapDataType type;
    const void *data;
    uint32_t n_dims;
    cuuint64_t sizes[5], steps[4];
    cuuint32_t tile[5];
    uint32_t row_bytes;
};

inline int make_map(CUtensorMap *map, const tensor &t)
{
    const cuuint32_t ones[5] = {1, 1, 1, 1, 1};
    cudaDriverEntryPointQueryResult found;
    void *entry = NULL;
    cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                         cudaEnableDefault, &found);

    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
        return error != cudaSuccess ? error : cudaErrorNotSupported;
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
               map, t.type, t.n_dims, const_cast<void *>(t.data), t.sizes, t.steps, t.tile, ones,
               CU_TENSOR_MAP_INTERLEAVE_NONE,
               t.row_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
                   == CUDA_SUCCESS
               ? cudaSuccess
               : cudaErrorInvalidValue;
}

/* A launch of so many clusters of a kernel that takes `shared` bytes of shared memory. */
template <typename Args>
int launch_clusters(void (*kernel)(Args), uint32_t n_clusters, unsigned threads, size_t shared,
                    const struct llm_cuda_queue &q, const Args &args)
{
    cudaLaunchAttribute attrs[2] = {};
    cudaLaunchConfig_t config = {};
    cudaError_t allowed = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int) shared);

    if (allowed != cudaSuccess) {
        return allowed;
    }
    attrs[0].id = cudaLaunchAttributeClusterDimension;
    attrs[0].val.clusterDim = {kCluster, 1, 1};
    attrs[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(n_clusters * kCluster);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = q.stream;
    config.attrs = attrs;
    config.numAttrs = q.overlap ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel, args);
}

} // namespace llm

#endif
