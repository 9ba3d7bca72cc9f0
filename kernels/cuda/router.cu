/* Which experts the tokens of a step go to, and the lists of their pairs. A warp routes a row at a
 * time; a lane has every 32nd expert in its registers.
 *
 * Up to 64 rows it is one launch of one block: the tokens of an expert are the bits of a mask, so
 * that a pair's place is a number of bits. More rows take three: routing, counting, placing, the
 * last two with a block for each expert that reads what all rows chose.
 *
 * One H200: 3 us for a row of V2-Lite, 9 for 64; 7 and 25 for V3 (t/bench/gpu/small.c), where a
 * row's eight choices, one after the other, and the groups before them take most. */

#include "kernels/cuda/route.cuh"

namespace llm {
namespace {

constexpr int kFewRows = 64, kMaskWords = kFewRows / 32;
constexpr int kMaxWarps = 32;
constexpr int kRouteWarps = 8;          /* of a block, where there are many rows */
constexpr uint32_t kMaxShared = 96 << 10; /* bytes, of any processor since Ampere */

/* What the rows chose, by ascending expert; UINT32_MAX for idle rows. */
struct choices {
    uint32_t *experts; /* [n][per_token] */
    float *weights;    /* the same */
};

/* At the beginning of those words; llm_cuda_route_words end with a count for each expert. */
__device__ __forceinline__ choices choices_in(const struct llm_cuda_route &a, uint32_t *words)
{
    return {words, reinterpret_cast<float *>(words + (size_t) a.n * per_token(a.router))};
}

__device__ __forceinline__ uint32_t *counts_of(const struct llm_cuda_route &a)
{
    return a.scratch + 2 * (size_t) a.n * per_token(a.router);
}

/* Sums over the threads before this one, of two numbers; totals over all. All threads call. */
struct two {
    uint32_t pairs, active;
};

__device__ __forceinline__ two sum_before(two own, two *total)
{
    __shared__ two warps[kMaxWarps];
    uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    two sum = own, before = {};

#pragma unroll
    for (int i = 1; i < kWarp; i *= 2) {
        uint32_t pairs = __shfl_up_sync(~0u, sum.pairs, i);
        uint32_t active = __shfl_up_sync(~0u, sum.active, i);

        if (lane >= (uint32_t) i) {
            sum.pairs += pairs;
            sum.active += active;
        }
    }
    if (lane == kWarp - 1) {
        warps[warp] = sum;
    }
    __syncthreads();
    *total = {};
    for (uint32_t i = 0; i < blockDim.x / kWarp; i++) {
        before.pairs += i < warp ? warps[i].pairs : 0;
        before.active += i < warp ? warps[i].active : 0;
        total->pairs += warps[i].pairs;
        total->active += warps[i].active;
    }
    __syncthreads();
    return {before.pairs + sum.pairs - own.pairs, before.active + sum.active - own.active};
}

struct few_args {
    struct llm_cuda_route a;
    bool choices_fit;
};

/* All of up to 64 rows. Shared memory: for each expert the words of its mask and its first pair,
 * the warps' words, and the rows' choices where there is room for them. */
template <int Own>
__global__ void __launch_bounds__(kMaxWarps *kWarp)
    route_few_kernel(const __grid_constant__ few_args f)
{
    extern __shared__ uint32_t shared[];
    const struct llm_cuda_route &a = f.a;
    uint32_t n = n_all(a.router), per = per_token(a.router), n_warps = blockDim.x / kWarp;
    uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    uint32_t *masks = shared, *firsts = shared + n * kMaskWords, *of_warps = firsts + n;
    choices c = choices_in(
        a, f.choices_fit ? of_warps + n_warps * warp_words(a.router) : a.scratch);
    two total;

    for (uint32_t i = threadIdx.x; i < n * kMaskWords; i += blockDim.x) {
        masks[i] = 0;
    }
    __syncthreads();
    wait_for_previous();
    let_next_begin();

    for (uint32_t row = warp; row < a.n; row += n_warps) {
        route_row<Own>(a, row, c.experts + row * per, c.weights + row * per,
                       of_warps + warp * warp_words(a.router));
        for (uint32_t k = lane; k < per; k += kWarp) {
            uint32_t e = c.experts[row * per + k];

            if (e != UINT32_MAX) {
                atomicOr(&masks[e * kMaskWords + row / 32], 1u << row % 32);
            }
        }
    }
    __syncthreads();

    /* a thread's share of the experts, side by side */
    uint32_t share = (n + blockDim.x - 1) / blockDim.x;
    uint32_t begin = min(threadIdx.x * share, n), end = min(begin + share, n);
    auto count = [&](uint32_t e) {
        return (uint32_t) (__popc(masks[e * kMaskWords]) + __popc(masks[e * kMaskWords + 1]));
    };
    two sum = {};
    for (uint32_t e = begin; e < end; e++) {
        sum.pairs += count(e);
        sum.active += count(e) > 0;
    }
    sum = sum_before(sum, &total);
    for (uint32_t e = begin; e < end; e++) {
        firsts[e] = sum.pairs;
        if (count(e) > 0) {
            a.expert[sum.active] = e;
            a.first[sum.active++] = sum.pairs;
            sum.pairs += count(e);
        }
    }
    if (threadIdx.x == 0) {
        *a.n_active = total.active;
        a.first[total.active] = total.pairs;
    }
    __syncthreads();

    for (uint32_t row = warp; row < a.n; row += n_warps) {
        uint32_t below = (1u << row % 32) - 1;

        for (uint32_t k = lane; k < per; k += kWarp) {
            uint32_t e = c.experts[row * per + k], pair = UINT32_MAX;

            if (e != UINT32_MAX) {
                uint32_t low = masks[e * kMaskWords], high = masks[e * kMaskWords + 1];

                pair = firsts[e]
                       + (row < 32 ? __popc(low & below) : __popc(low) + __popc(high & below));
                a.token[pair] = row;
                a.weight[pair] = c.weights[row * per + k];
            }
            a.pair_of[row * per + k] = pair;
        }
    }
}

template <int Own>
__global__ void __launch_bounds__(kRouteWarps *kWarp)
    route_kernel(const __grid_constant__ struct llm_cuda_route a)
{
    extern __shared__ uint32_t shared[];
    uint32_t per = per_token(a.router), warp = threadIdx.x / kWarp;
    uint32_t row = blockIdx.x * (blockDim.x / kWarp) + warp;
    choices c = choices_in(a, a.scratch);

    wait_for_previous();
    let_next_begin();
    if (row < a.n) {
        route_row<Own>(a, row, c.experts + row * per, c.weights + row * per,
                       shared + warp * warp_words(a.router));
    }
}

constexpr int kThreads = 256; /* of the next two */

/* Which of a row's choices is the expert, or UINT32_MAX. */
__device__ __forceinline__ uint32_t find(const uint32_t *experts, uint32_t n, uint32_t expert)
{
    for (uint32_t k = 0; k < n; k++) {
        if (experts[k] == expert) {
            return k;
        }
    }
    return UINT32_MAX;
}

__global__ void __launch_bounds__(kThreads)
    count_kernel(const __grid_constant__ struct llm_cuda_route a)
{
    uint32_t per = per_token(a.router), count = 0;
    two total;

    wait_for_previous();
    let_next_begin();

    for (uint32_t i = threadIdx.x; i < a.n * per; i += kThreads) {
        count += a.scratch[i] == blockIdx.x;
    }
    sum_before({count, 0}, &total);
    if (threadIdx.x == 0) {
        counts_of(a)[blockIdx.x] = total.pairs;
    }
}

__global__ void __launch_bounds__(kThreads)
    place_kernel(const __grid_constant__ struct llm_cuda_route a)
{
    uint32_t n = n_all(a.router), per = per_token(a.router), expert = blockIdx.x;
    const uint32_t *counts = counts_of(a);
    choices c = choices_in(a, a.scratch);
    two sum = {}, total;

    wait_for_previous();
    let_next_begin();

    for (uint32_t e = threadIdx.x; e < expert; e += kThreads) {
        sum.pairs += counts[e];
        sum.active += counts[e] > 0;
    }
    sum_before(sum, &total);
    uint32_t pair = total.pairs, active = total.active, count = counts[expert];
    if (threadIdx.x == 0 && count > 0) {
        a.expert[active] = expert;
        a.first[active] = pair;
    }
    if (threadIdx.x == 0 && expert == n - 1) {
        *a.n_active = active + (count > 0);
        a.first[active + (count > 0)] = pair + count;
    }

    for (uint32_t row = 0; row < a.n; row += kThreads) {
        uint32_t own = row + threadIdx.x, k = UINT32_MAX;

        if (own < a.n) {
            k = find(c.experts + own * per, per, expert);
            if (expert == 0 && c.experts[own * per] == UINT32_MAX) {
                for (uint32_t i = 0; i < per; i++) {
                    a.pair_of[own * per + i] = UINT32_MAX; /* an idle row */
                }
            }
        }
        sum = sum_before({k != UINT32_MAX, 0}, &total);
        if (k != UINT32_MAX) {
            a.token[pair + sum.pairs] = own;
            a.weight[pair + sum.pairs] = c.weights[own * per + k];
            a.pair_of[own * per + k] = pair + sum.pairs;
        }
        pair += total.pairs;
    }
}

/* As many warps as there is shared memory for, at least one, at most `most`. */
uint32_t warps_that_fit(const struct llm_cuda_router &r, uint32_t words, uint32_t most)
{
    uint32_t each = warp_words(r), n = each > 0 ? (kMaxShared / 4 - words) / each : most;

    return n < 1 ? 1 : n < most ? n : most;
}

template <typename Args>
int launch_shared(void (*kernel)(Args), uint32_t blocks, uint32_t warps, uint32_t words,
                  const struct llm_cuda_queue &q, const Args &args)
{
    cudaError_t allowed =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxShared);

    return allowed != cudaSuccess ? allowed
                                  : launch(kernel, dim3(blocks), warps * kWarp, words * 4, q, args);
}

template <int Own>
int route_few(const struct llm_cuda_route &a, const struct llm_cuda_queue &q)
{
    uint32_t words = n_all(a.router) * (kMaskWords + 1);
    uint32_t warps = warps_that_fit(a.router, words, a.n <= 8 ? 8 : kMaxWarps);
    uint32_t choices = 2 * a.n * per_token(a.router);

    words += warps * warp_words(a.router);
    few_args f = {a, words + choices <= kMaxShared / 4};
    return launch_shared(route_few_kernel<Own>, 1, warps, words + (f.choices_fit ? choices : 0), q,
                         f);
}

template <int Own>
int route_many(const struct llm_cuda_route &a, const struct llm_cuda_queue &q)
{
    uint32_t warps = warps_that_fit(a.router, 0, kRouteWarps), n = n_all(a.router);
    int rc = launch_shared(route_kernel<Own>, (a.n + warps - 1) / warps, warps,
                           warps * warp_words(a.router), q, a);

    if (rc == 0) {
        rc = launch(count_kernel, dim3(n), kThreads, 0, q, a);
    }
    return rc != 0 ? rc : launch(place_kernel, dim3(n), kThreads, 0, q, a);
}

template <int Own>
int route(const struct llm_cuda_route &a, const struct llm_cuda_queue &q)
{
    return a.n <= kFewRows ? route_few<Own>(a, q) : route_many<Own>(a, q);
}

} // namespace
} // namespace llm

extern "C" size_t llm_cuda_route_words(const struct llm_cuda_router *r, uint32_t n)
{
    return 2 * (size_t) n * llm::per_token(*r) + llm::n_all(*r);
}

extern "C" int llm_cuda_route(const struct llm_cuda_route *r, struct llm_cuda_queue q)
{
    uint32_t own = (r->router.n_experts + llm::kWarp - 1) / llm::kWarp; /* of a lane */

    return own <= 2    ? llm::route<2>(*r, q)
           : own <= 8  ? llm::route<8>(*r, q)
           : own <= 32 ? llm::route<32>(*r, q)
                       : llm::route<LLM_CUDA_MAX_EXPERTS / llm::kWarp>(*r, q);
}
