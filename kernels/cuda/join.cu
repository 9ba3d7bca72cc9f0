/* What lies between attention and the experts of a row that is alone in its step, in one launch:
 * the sum of what the heads add, the norm, the router's logits and the choice. A cluster does it:
 * each of its blocks has an eighth of the elements, then an eighth of the experts, a warp one of
 * them; the first block chooses. One H200: 6 us, of which the choice takes 2. */

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/route.cuh"

namespace llm {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kWidth = LLM_CUDA_MAX_ALONE;
constexpr int kPieces = kWidth / kWarp / 8; /* of 8 elements, of a lane */
constexpr int kAhead = 16;                  /* parts of a sum on their way together */
constexpr int kOwn = LLM_CUDA_MAX_JOIN / kWarp;
static_assert(kWidth == kPeers * kThreads, "an element for each thread");
static_assert(LLM_CUDA_MAX_JOIN == kPeers * kWarps, "an expert for each warp");

/* Of two pairs of bf16. */
__device__ __forceinline__ float dot(uint32_t a, uint32_t b)
{
    return __uint_as_float(a << 16) * __uint_as_float(b << 16)
           + __uint_as_float(a & 0xffff0000) * __uint_as_float(b & 0xffff0000);
}

__global__ void __launch_bounds__(kThreads)
    join_kernel(const __grid_constant__ struct llm_cuda_join a)
{
    __shared__ float x[kWidth];
    __shared__ alignas(16) uint16_t normed[kWidth];
    __shared__ float squares[kPeers], logits[LLM_CUDA_MAX_JOIN];
    __shared__ uint32_t experts[LLM_CUDA_MAX_JOIN], words[3 * LLM_CUDA_MAX_JOIN];
    __shared__ float weights[LLM_CUDA_MAX_JOIN];
    uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, rank = blockIdx.x;
    uint32_t share = a.width / kPeers, i = rank * share + threadIdx.x;
    uint32_t expert = rank * kWarps + warp;
    bool has_element = threadIdx.x < share;
    bool has_expert = a.router.data != NULL && expert < a.router.rows;
    const uint8_t *row = static_cast<const uint8_t *>(a.router.data) + expert * a.router.stride;
    uint4 router[kPieces];

    reach_meeting(); /* whoever is told something must be there */
#pragma unroll
    for (int j = 0; j < kPieces; j++) {
        uint32_t at = (j * kWarp + lane) * 8;

        router[j] = has_expert && at < a.width ? load16(row + at * 2) : make_uint4(0, 0, 0, 0);
    }
    float weight = has_element ? a.weight[i] : 0;
    float sum = has_element && a.bias != NULL ? a.bias[i] : 0;

    wait_for_previous();
    let_next_begin();

    if (has_element) {
        float before = a.x[i];

        for (uint32_t first = 0; first < a.n_add; first += kAhead) {
            float part[kAhead];

#pragma unroll
            for (int j = 0; j < kAhead; j++) {
                part[j] = first + j < a.n_add ? a.add[(size_t) (first + j) * a.width + i] : 0;
            }
#pragma unroll
            for (int j = 0; j < kAhead; j++) {
                sum += part[j];
            }
        }
        sum += before;
        a.x[i] = sum;
    } else {
        sum = 0;
    }
    float square = sum_of_block<kThreads>(sum * sum);
    leave_meeting();
    if (has_element) {
#pragma unroll
        for (int peer = 0; peer < kPeers; peer++) {
            tell(peer, &x[i], sum * weight);
        }
    }
    if (threadIdx.x < kPeers) {
        tell(threadIdx.x, &squares[rank], square);
    }
    meet();

    square = 0;
#pragma unroll
    for (int j = 0; j < kPeers; j++) {
        square += squares[j];
    }
    float r = 1 / sqrtf(square / (float) a.width + a.eps);
    for (uint32_t at = threadIdx.x; at < a.width; at += kThreads) {
        normed[at] = bf16_of_f32(x[at] * r);
    }
    __syncthreads();
    if (has_element) {
        static_cast<uint16_t *>(a.normed)[i] = normed[i];
    }
    if (a.router.data == NULL) {
        return;
    }

    float logit = 0;
#pragma unroll
    for (int j = 0; j < kPieces; j++) {
        uint32_t at = (j * kWarp + lane) * 8;

        if (at < a.width) {
            uint4 v = load16(normed + at);

            logit += dot(router[j].x, v.x) + dot(router[j].y, v.y) + dot(router[j].z, v.z)
                     + dot(router[j].w, v.w);
        }
    }
    logit = sum_of_warp(logit);
    if (has_expert && lane == 0) {
        tell(0, &logits[expert], logit);
    }
    meet();
    if (rank > 0 || warp > 0) {
        return;
    }

    struct llm_cuda_route route = a.route;
    uint32_t n = per_token(route.router), n_active;
    route.logits = logits;
    route_row<kOwn>(route, 0, experts, weights, words);
    n_active = experts[0] == UINT32_MAX ? 0 : n; /* of an idle row */
    for (uint32_t k = lane; k < n; k += kWarp) {
        route.pair_of[k] = k < n_active ? k : UINT32_MAX;
        if (k < n_active) {
            route.expert[k] = experts[k];
            route.first[k] = k;
            route.token[k] = 0;
            route.weight[k] = weights[k];
        }
    }
    if (lane == 0) {
        *route.n_active = n_active;
        route.first[n_active] = n_active;
    }
}

} // namespace
} // namespace llm

extern "C" int llm_cuda_join(const struct llm_cuda_join *j, struct llm_cuda_queue q)
{
    return llm::launch_clusters(llm::join_kernel, dim3(llm::kPeers), llm::kThreads, 0, q, *j);
}
