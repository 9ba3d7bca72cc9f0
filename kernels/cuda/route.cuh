/* Which experts a row goes to: a warp's work, a lane has every 32nd expert in its registers. */

#ifndef KERNELS_CUDA_ROUTE_CUH
#define KERNELS_CUDA_ROUTE_CUH

#include "kernels/cuda/device.cuh"

namespace llm {

__host__ __device__ inline uint32_t n_all(const struct llm_cuda_router &r)
{
    return r.n_experts + r.n_shared;
}

__host__ __device__ inline uint32_t per_token(const struct llm_cuda_router &r)
{
    return r.n_used + r.n_shared;
}

/* Words of shared memory of a warp: what experts are chosen by, groups' scores, what is kept. */
__host__ __device__ inline uint32_t warp_words(const struct llm_cuda_router &r)
{
    return r.n_groups > 1 ? r.n_experts + 2 * r.n_groups : 0;
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

/* Numbers as integers in the same order, above 0: NaN first, then minus infinity. */
__device__ __forceinline__ uint32_t rank_of(float x)
{
    uint32_t bits = __float_as_uint(x + 0.0f); /* -0 is 0 */

    return isnan(x) ? 1 : bits >> 31 ? ~bits : bits | 0x80000000;
}

/* scores[i] is that of expert i * 32 + lane. */
template <int Own>
__device__ __forceinline__ void score_row(const struct llm_cuda_router &r, const float *logits,
                                          float (&scores)[Own])
{
    float max = -INFINITY, sum = 0;

#pragma unroll
    for (int i = 0; i < Own; i++) {
        uint32_t e = i * kWarp + threadIdx.x % kWarp;

        scores[i] = e < r.n_experts ? logits[e] : -INFINITY;
        max = fmaxf(max, scores[i]);
    }
    max = r.sigmoid ? 0 : max_of_warp(max);
#pragma unroll
    for (int i = 0; i < Own; i++) {
        scores[i] = r.sigmoid ? 1 / (1 + expf(-scores[i])) : expf(scores[i] - max);
        sum += scores[i];
    }
    sum = r.sigmoid ? 1 : sum_of_warp(sum);
#pragma unroll
    for (int i = 0; i < Own; i++) {
        scores[i] /= sum;
    }
}

/* Sets keep[g] where g is one of the n_groups_used best groups, of which best[g] is the score. */
__device__ __forceinline__ void pick_groups(const struct llm_cuda_router &r, const float *choice,
                                            float *best, uint32_t *keep)
{
    uint32_t size = r.n_experts / r.n_groups, lanes = kWarp, lane = threadIdx.x % kWarp;

    while (lanes > 1 && lanes * r.n_groups > kWarp) {
        lanes /= 2; /* that look at a group */
    }
    for (uint32_t first = 0; first < r.n_groups; first += kWarp / lanes) {
        uint32_t g = first + lane / lanes;
        float x = -INFINITY, y = -INFINITY; /* the two largest */

        for (uint32_t i = lane % lanes; g < r.n_groups && i < size; i += lanes) {
            float v = choice[g * size + i];

            y = v > x ? x : v > y ? v : y;
            x = v > x ? v : x;
        }
        for (uint32_t i = 1; i < lanes; i *= 2) {
            float other_x = __shfl_xor_sync(~0u, x, i), other_y = __shfl_xor_sync(~0u, y, i);

            y = fmaxf(fminf(x, other_x), fmaxf(y, other_y));
            x = fmaxf(x, other_x);
        }
        if (g < r.n_groups && lane % lanes == 0) {
            best[g] = r.gate == LLM_CUDA_GATE_NOAUX && size > 1 ? x + y : x;
        }
    }
    __syncwarp();
    for (uint32_t g = lane; g < r.n_groups; g += kWarp) {
        uint32_t before = 0;

        for (uint32_t h = 0; h < r.n_groups; h++) {
            uint32_t own = rank_of(best[g]), other = rank_of(best[h]);

            before += other > own || (other == own && h < g);
        }
        keep[g] = before < r.n_groups_used;
    }
    __syncwarp();
}

/* Gives a row's experts and weights, by ascending expert. A warp; `shared` has warp_words. */
template <int Own>
__device__ __forceinline__ void route_row(const struct llm_cuda_route &a, uint32_t row,
                                          uint32_t *experts, float *weights, uint32_t *shared)
{
    const struct llm_cuda_router &r = a.router;
    uint32_t lane = threadIdx.x % kWarp, rank[Own]; /* 0: taken */
    float scores[Own];

    if (a.flags != NULL && a.flags[row] & LLM_CUDA_ROW_IDLE) {
        for (uint32_t i = lane; i < per_token(r); i += kWarp) {
            experts[i] = UINT32_MAX;
        }
        return;
    }

    score_row<Own>(r, a.logits + row * a.ld_logits, scores);
    bool limited = r.gate != LLM_CUDA_GATE_GREEDY && r.n_groups > 1;
    float *choice = reinterpret_cast<float *>(shared);
    uint32_t *keep = shared + r.n_experts + r.n_groups;
#pragma unroll
    for (int i = 0; i < Own; i++) {
        uint32_t e = i * kWarp + lane;
        float by = e < r.n_experts && a.bias != NULL ? scores[i] + a.bias[e] : scores[i];

        rank[i] = e < r.n_experts ? rank_of(by) : 0;
        if (limited && e < r.n_experts) {
            choice[e] = by;
        }
    }
    if (limited) {
        __syncwarp();
        pick_groups(r, choice, choice + r.n_experts, keep);
#pragma unroll
        for (int i = 0; i < Own; i++) {
            uint32_t e = i * kWarp + lane;

            if (e < r.n_experts && !keep[e / (r.n_experts / r.n_groups)]) {
                rank[i] = rank_of(-INFINITY);
            }
        }
    }

    for (uint32_t k = 0; k < r.n_used; k++) {
        uint32_t largest = 0, best = 0;

#pragma unroll
        for (int i = 0; i < Own; i++) {
            best = rank[i] > largest ? i * kWarp + lane : best;
            largest = max(largest, rank[i]);
        }
        uint32_t most = __reduce_max_sync(~0u, largest);
        uint32_t taken = __reduce_min_sync(~0u, largest == most ? best : UINT32_MAX);
#pragma unroll
        for (int i = 0; i < Own; i++) {
            rank[i] = i * kWarp + lane == taken ? 0 : rank[i];
        }
    }

    /* a chosen expert's place is the number of those below it */
    uint32_t before = 0;
#pragma unroll
    for (int i = 0; i < Own; i++) {
        bool is_taken = rank[i] == 0 && i * kWarp + lane < r.n_experts;
        uint32_t taken = __ballot_sync(~0u, is_taken);

        if (is_taken) {
            experts[before + __popc(taken & ((1u << lane) - 1))] = i * kWarp + lane;
            weights[before + __popc(taken & ((1u << lane) - 1))] = scores[i];
        }
        before += __popc(taken);
    }
    __syncwarp();

    bool normalise = r.normalise && (r.gate == LLM_CUDA_GATE_NOAUX || r.n_used > 1);
    float sum = 0, factor = normalise && r.gate != LLM_CUDA_GATE_NOAUX ? 1 : r.factor;
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
    __syncwarp();
}

} // namespace llm

#endif
