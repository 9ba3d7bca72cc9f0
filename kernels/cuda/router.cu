/* Which experts the tokens of a step go to, and the lists of their pairs. A warp routes a row at a
 * time; its scores lie in shared memory.
 *
 * Up to 64 rows it is one launch of one block: the tokens of an expert are the bits of a mask, so
 * that a pair's place is a number of bits. More rows take three: routing, counting, placing, the
 * last two with a block for each expert that reads what all rows chose. */

#include "kernels/cuda/device.cuh"

namespace llm {
namespace {

constexpr int kFewRows = 64, kMaskWords = kFewRows / 32;
constexpr int kMaxWarps = 32;
constexpr int kRouteWarps = 8;          /* of a block, where there are many rows */
constexpr uint32_t kMaxShared = 96 << 10; /* bytes, of any processor since Ampere */

/* What a row chose is kept in scratch, by ascending expert; UINT32_MAX for idle rows. */
struct choices {
    uint32_t *experts; /* [n][per_token] */
    float *weights;    /* the same */
    uint32_t *counts;  /* [experts] */
};

__host__ __device__ uint32_t n_all(const struct llm_cuda_router &r)
{
    return r.n_experts + r.n_shared;
}

__host__ __device__ uint32_t per_token(const struct llm_cuda_router &r)
{
    return r.n_used + r.n_shared;
}

__device__ __forceinline__ choices choices_of(const struct llm_cuda_route &a)
{
    size_t n = (size_t) a.n * per_token(a.router);

    return {a.scratch, reinterpret_cast<float *>(a.scratch + n), a.scratch + 2 * n};
}

/* Words of shared memory of a warp: what experts are chosen by, the groups' scores, bits of those
 * that are taken. */
__host__ __device__ uint32_t warp_words(const struct llm_cuda_router &r)
{
    return r.n_experts + r.n_groups + (r.n_experts + 31) / 32;
}

/* NaN comes last. */
__device__ __forceinline__ bool is_larger(float a, float b)
{
    return a > b || (isnan(b) && !isnan(a));
}

__device__ __forceinline__ float max_of_warp(float x)
{
#pragma unroll
    for (int i = 1; i < kWarp; i *= 2) {
        x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    }
    return x;
}

__device__ __forceinline__ float sum_of_warp(float x)
{
#pragma unroll
    for (int i = 1; i < kWarp; i *= 2) {
        x += __shfl_xor_sync(~0u, x, i);
    }
    return x;
}

/* Of a row's logits; the divisor and the maximum are those of the softmax. */
struct scores {
    const float *logits;
    bool sigmoid;
    float max, sum;

    __device__ __forceinline__ float of(uint32_t expert) const
    {
        return sigmoid ? 1 / (1 + expf(-logits[expert])) : expf(logits[expert] - max) / sum;
    }
};

__device__ __forceinline__ scores scores_of(const struct llm_cuda_router &r, const float *logits)
{
    scores s = {logits, r.sigmoid, -INFINITY, 0};

    for (uint32_t i = threadIdx.x % kWarp; !r.sigmoid && i < r.n_experts; i += kWarp) {
        s.max = fmaxf(s.max, logits[i]);
    }
    s.max = max_of_warp(s.max);
    for (uint32_t i = threadIdx.x % kWarp; !r.sigmoid && i < r.n_experts; i += kWarp) {
        s.sum += expf(logits[i] - s.max);
    }
    s.sum = sum_of_warp(s.sum);
    return s;
}

__device__ __forceinline__ float group_score(const float *x, uint32_t n, enum llm_cuda_gate gate)
{
    float first = -INFINITY, second = -INFINITY;

    for (uint32_t i = 0; i < n; i++) {
        if (x[i] > first) {
            second = first;
            first = x[i];
        } else if (x[i] > second) {
            second = x[i];
        }
    }
    return gate == LLM_CUDA_GATE_NOAUX && n > 1 ? first + second : first;
}

/* Leaves the best groups their scores and takes the other experts out. */
__device__ __forceinline__ void limit_groups(const struct llm_cuda_router &r, float *choice,
                                             float *groups)
{
    uint32_t size = r.n_experts / r.n_groups;

    for (uint32_t g = threadIdx.x % kWarp; g < r.n_groups; g += kWarp) {
        groups[g] = group_score(choice + g * size, size, r.gate);
    }
    __syncwarp();
    for (uint32_t g = threadIdx.x % kWarp; g < r.n_groups; g += kWarp) {
        uint32_t before = 0;

        for (uint32_t h = 0; h < r.n_groups; h++) {
            before += h < g ? !is_larger(groups[g], groups[h]) : is_larger(groups[h], groups[g]);
        }
        for (uint32_t i = 0; before >= r.n_groups_used && i < size; i++) {
            choice[g * size + i] = -INFINITY;
        }
    }
    __syncwarp();
}

/* The largest that is not taken yet, lowest index first; takes it. */
__device__ __forceinline__ uint32_t take_largest(const float *choice, uint32_t n, uint32_t *taken)
{
    uint32_t lane = threadIdx.x % kWarp, best = UINT32_MAX;
    float largest = 0;

    for (uint32_t i = lane; i < n; i += kWarp) {
        if (!(taken[i / 32] >> lane & 1) && (best == UINT32_MAX || is_larger(choice[i], largest))) {
            best = i;
            largest = choice[i];
        }
    }
#pragma unroll
    for (int i = 1; i < kWarp; i *= 2) {
        uint32_t other = __shfl_xor_sync(~0u, best, i);
        float x = __shfl_xor_sync(~0u, largest, i);

        if (other != UINT32_MAX
            && (best == UINT32_MAX || is_larger(x, largest)
                || (!is_larger(largest, x) && other < best))) {
            best = other;
            largest = x;
        }
    }
    if (lane == 0) {
        taken[best / 32] |= 1u << best % 32;
    }
    __syncwarp();
    return best;
}

/* Gives a row's experts and weights, by ascending expert. A warp; `shared` has warp_words. */
__device__ __forceinline__ void route_row(const struct llm_cuda_route &a, uint32_t row,
                                          uint32_t *experts, float *weights, uint32_t *shared)
{
    const struct llm_cuda_router &r = a.router;
    uint32_t lane = threadIdx.x % kWarp;
    float *choice = reinterpret_cast<float *>(shared), *groups = choice + r.n_experts;
    uint32_t *taken = shared + r.n_experts + r.n_groups;

    if (a.flags != NULL && a.flags[row] & LLM_CUDA_ROW_IDLE) {
        for (uint32_t i = lane; i < per_token(r); i += kWarp) {
            experts[i] = UINT32_MAX;
        }
        return;
    }

    scores s = scores_of(r, a.logits + row * a.ld_logits);
    for (uint32_t i = lane; i < r.n_experts; i += kWarp) {
        choice[i] = s.of(i) + (a.bias != NULL ? a.bias[i] : 0);
    }
    for (uint32_t i = lane; i < (r.n_experts + 31) / 32; i += kWarp) {
        taken[i] = 0;
    }
    __syncwarp();
    if (r.gate != LLM_CUDA_GATE_GREEDY && r.n_groups > 1) {
        limit_groups(r, choice, groups);
    }
    for (uint32_t i = 0; i < r.n_used; i++) {
        take_largest(choice, r.n_experts, taken);
    }

    /* in ascending order: a chosen expert's place is the number of those below it */
    uint32_t before = 0;
    for (uint32_t i = 0; i < (r.n_experts + 31) / 32; i++) {
        if (taken[i] >> lane & 1) {
            experts[before + __popc(taken[i] & ((1u << lane) - 1))] = i * 32 + lane;
        }
        before += __popc(taken[i]);
    }
    __syncwarp();

    bool normalise = r.normalise && (r.gate == LLM_CUDA_GATE_NOAUX || r.n_used > 1);
    float sum = 0, factor = normalise && r.gate != LLM_CUDA_GATE_NOAUX ? 1 : r.factor;
    for (uint32_t i = lane; i < r.n_used; i += kWarp) {
        weights[i] = s.of(experts[i]);
    }
    __syncwarp();
    for (uint32_t i = 0; normalise && i < r.n_used; i++) {
        sum += weights[i];
    }
    __syncwarp();
    for (uint32_t i = lane; i < r.n_used; i += kWarp) {
        weights[i] = (normalise ? weights[i] / (sum + 1e-20f) : weights[i]) * factor;
    }
    for (uint32_t i = lane; i < r.n_shared; i += kWarp) {
        experts[r.n_used + i] = r.n_experts + i;
        weights[r.n_used + i] = 1;
    }
}

__device__ __forceinline__ void place_pair(const struct llm_cuda_route &a, const choices &c,
                                           uint32_t i, uint32_t pair)
{
    a.token[pair] = i / per_token(a.router);
    a.weight[pair] = c.weights[i];
    a.pair_of[i] = pair;
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

/* All of up to 64 rows. Shared memory: for each expert the words of its mask and its first pair,
 * then the warps'. */
__global__ void __launch_bounds__(kMaxWarps *kWarp)
    route_few_kernel(const __grid_constant__ struct llm_cuda_route a)
{
    extern __shared__ uint32_t shared[];
    uint32_t n = n_all(a.router), per = per_token(a.router), warp = threadIdx.x / kWarp;
    uint32_t *masks = shared, *firsts = shared + n * kMaskWords;
    uint32_t *own = firsts + n + warp * warp_words(a.router);
    two total;

    for (uint32_t i = threadIdx.x; i < n * kMaskWords; i += blockDim.x) {
        masks[i] = 0;
    }
    wait_for_previous();
    let_next_begin();

    choices c = choices_of(a);
    for (uint32_t row = warp; row < a.n; row += blockDim.x / kWarp) {
        route_row(a, row, c.experts + row * per, c.weights + row * per, own);
        __syncwarp();
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < a.n * per; i += blockDim.x) {
        uint32_t row = i / per;

        if (c.experts[i] != UINT32_MAX) {
            atomicOr(&masks[c.experts[i] * kMaskWords + row / 32], 1u << row % 32);
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

    for (uint32_t i = threadIdx.x; i < a.n * per; i += blockDim.x) {
        uint32_t e = c.experts[i], row = i / per;

        if (e == UINT32_MAX) {
            a.pair_of[i] = UINT32_MAX;
            continue;
        }
        uint32_t low = masks[e * kMaskWords], below = (1u << row % 32) - 1;
        place_pair(a, c, i,
                   firsts[e]
                       + (row < 32 ? __popc(low & below)
                                   : __popc(low) + __popc(masks[e * kMaskWords + 1] & below)));
    }
}

__global__ void __launch_bounds__(kRouteWarps *kWarp)
    route_kernel(const __grid_constant__ struct llm_cuda_route a)
{
    extern __shared__ uint32_t shared[];
    uint32_t per = per_token(a.router), warp = threadIdx.x / kWarp;
    uint32_t row = blockIdx.x * (blockDim.x / kWarp) + warp;

    wait_for_previous();
    let_next_begin();

    choices c = choices_of(a);
    if (row < a.n) {
        route_row(a, row, c.experts + row * per, c.weights + row * per,
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

    choices c = choices_of(a);
    for (uint32_t i = threadIdx.x; i < a.n * per; i += kThreads) {
        count += c.experts[i] == blockIdx.x;
    }
    sum_before({count, 0}, &total);
    if (threadIdx.x == 0) {
        c.counts[blockIdx.x] = total.pairs;
    }
}

__global__ void __launch_bounds__(kThreads)
    place_kernel(const __grid_constant__ struct llm_cuda_route a)
{
    uint32_t n = n_all(a.router), per = per_token(a.router), expert = blockIdx.x;
    two sum = {}, total;

    wait_for_previous();
    let_next_begin();

    choices c = choices_of(a);
    for (uint32_t e = threadIdx.x; e < expert; e += kThreads) {
        sum.pairs += c.counts[e];
        sum.active += c.counts[e] > 0;
    }
    sum_before(sum, &total);
    uint32_t pair = total.pairs, active = total.active, count = c.counts[expert];
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
            place_pair(a, c, own * per + k, pair + sum.pairs);
        }
        pair += total.pairs;
    }
}

/* As many warps as there is shared memory for, at least one, at most `most`. */
uint32_t warps_that_fit(const struct llm_cuda_router &r, uint32_t words, uint32_t most)
{
    uint32_t n = (kMaxShared / 4 - words) / warp_words(r);

    return n < 1 ? 1 : n < most ? n : most;
}

int allow_shared(const void *kernel)
{
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxShared);
}

int route_few(const struct llm_cuda_route &a, const struct llm_cuda_queue &q)
{
    uint32_t words = n_all(a.router) * (kMaskWords + 1);
    uint32_t warps = warps_that_fit(a.router, words, a.n < 8 ? 8 : kMaxWarps);
    int rc = allow_shared(reinterpret_cast<const void *>(route_few_kernel));

    return rc != 0 ? rc
                   : launch(route_few_kernel, dim3(1), warps * kWarp,
                            (words + warps * warp_words(a.router)) * 4, q, a);
}

int route_many(const struct llm_cuda_route &a, const struct llm_cuda_queue &q)
{
    uint32_t warps = warps_that_fit(a.router, 0, kRouteWarps), n = n_all(a.router);
    int rc = allow_shared(reinterpret_cast<const void *>(route_kernel));

    if (rc == 0) {
        rc = launch(route_kernel, dim3((a.n + warps - 1) / warps), warps * kWarp,
                    warps * warp_words(a.router) * 4, q, a);
    }
    if (rc == 0) {
        rc = launch(count_kernel, dim3(n), kThreads, 0, q, a);
    }
    return rc != 0 ? rc : launch(place_kernel, dim3(n), kThreads, 0, q, a);
}

} // namespace
} // namespace llm

extern "C" size_t llm_cuda_route_words(const struct llm_cuda_router *r, uint32_t n)
{
    return 2 * (size_t) n * llm::per_token(*r) + llm::n_all(*r);
}

extern "C" int llm_cuda_route(const struct llm_cuda_route *r, struct llm_cuda_queue q)
{
    return r->n <= llm::kFewRows ? llm::route_few(*r, q) : llm::route_many(*r, q);
}
