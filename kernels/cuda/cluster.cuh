/* Clusters of eight blocks that hand one another small vectors: what they need not launch for. A
 * block writes into its peers' shared memory, then all of them meet. */

#ifndef KERNELS_CUDA_CLUSTER_CUH
#define KERNELS_CUDA_CLUSTER_CUH

#include "kernels/cuda/element.cuh"

namespace llm {

constexpr int kPeers = 8; /* blocks of a cluster */

/* Of a thread that has reached a meeting, and of one that goes on after it. Everything that was
 * written before is seen behind it. */
__device__ __forceinline__ void reach_meeting()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void leave_meeting()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void meet()
{
    reach_meeting();
    leave_meeting();
}

/* *own in the shared memory of a peer. */
__device__ __forceinline__ void tell(uint32_t peer, float *own, float v)
{
#if __CUDA_ARCH__ >= 900
    uint32_t at = (uint32_t) __cvta_generic_to_shared(own);

    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "st.shared::cluster.f32 [there], %2;\n"
                 "}" ::"r"(at),
                 "r"(peer), "f"(v)
                 : "memory");
#endif
}

/* A launch of `kernel` by clusters along x. */
template <typename Args>
int launch_clusters(void (*kernel)(Args), dim3 grid, unsigned threads, size_t shared,
                    const struct llm_cuda_queue &q, const Args &args)
{
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};

    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {kPeers, 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = q.stream;
    config.attrs = attributes;
    config.numAttrs = q.overlap ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel, args);
}

} // namespace llm

#endif
