/* Attention of prompts with the keys and values of every head made out of the latents: a third of
 * the absorbed form's products. Bound by the tensor cores and the exponentials between.
 *
 * A block takes 128 queries of a head, half of them for each of two warpgroups, through 128 keys at
 * a time; the next are on their way meanwhile. Scores and probabilities stay in registers.
 *
 * One H200: microseconds, the share of 790 TFLOP/s, and what attention.cu's absorbed form takes
 * (t/bench/gpu/many.c; making keys and values, heads * 256 * 512 products a key, comes on top):
 *
 *   16 heads, 4,096 queries of 4,096 keys      249   44 %     4,656
 *   16 heads, 512 queries of 8,192 keys        190   28 %     1,151
 *   128 heads, 1,024 queries of 1,024 keys     150   36 %     2,457
 *
 * Both warpgroups wait for the tensor cores and then for the exponentials at about the same time:
 * taking turns is what is left. */

#include "kernels/cuda/element.cuh"
#include "kernels/cuda/group.cuh"

namespace llm {
namespace {

struct gather_args {
    struct llm_cuda_plane plane;
    const uint32_t *pages;
    uint16_t *rows;
    size_t ld;
};

constexpr int kGatherThreads = 128;

template <int Dtype>
__device__ __forceinline__ void gather_row(const gather_args &a, uint32_t t, const uint8_t *row)
{
    for (uint32_t i = threadIdx.x; i < a.plane.rank + a.plane.rope; i += kGatherThreads) {
        a.rows[t * a.ld + i] = bf16_of_f32(latent<Dtype>(a.plane, row, i));
    }
}

__global__ void __launch_bounds__(kGatherThreads)
    gather_kernel(const __grid_constant__ gather_args a)
{
    uint32_t t = blockIdx.x;

    wait_for_previous();
    let_next_begin();

    const uint8_t *row = static_cast<const uint8_t *>(a.plane.data)
                         + a.pages[t / LLM_CUDA_PAGE_TOKENS] * a.plane.page_step
                         + t % LLM_CUDA_PAGE_TOKENS * a.plane.row_bytes;
    switch (a.plane.dtype) {
    case LLM_CUDA_LATENT_BF16:
        gather_row<LLM_CUDA_LATENT_BF16>(a, t, row);
        break;
    case LLM_CUDA_LATENT_FP8:
        gather_row<LLM_CUDA_LATENT_FP8>(a, t, row);
        break;
    case LLM_CUDA_LATENT_F32:
        gather_row<LLM_CUDA_LATENT_F32>(a, t, row);
        break;
    }
}

constexpr int kGroups = 2, kThreads = kGroups * kGroupThreads;
constexpr int kQueries = 64 * kGroups, kKeys = 128;
constexpr int kTile = 128 * 128;      /* bytes: 64 columns of 128 rows */
constexpr int kKeyTiles = (LLM_CUDA_NOPE + LLM_CUDA_ROPE) / 64;
constexpr int kTiles = kKeyTiles + LLM_CUDA_V / 64; /* of keys, then of values */
constexpr int kShared = (kKeyTiles + 2 * kTiles) * kTile + 1024; /* queries, two sets of keys */
static_assert(kQueries == 128 && LLM_CUDA_V == 128, "what the tensor cores take");

/* 64 columns of 128 rows, ld elements apart, on their way; rows from n on are zero. */
__device__ __forceinline__ void fetch_tile(uint8_t *to, const __nv_bfloat16 *from, size_t ld,
                                           uint32_t n)
{
    uint32_t piece = threadIdx.x % 8;

#pragma unroll
    for (int j = 0; j < 128 * 8 / kThreads; j++) {
        uint32_t row = threadIdx.x / 8 + j * (kThreads / 8);

        copy_async(to + row * 128 + (piece ^ row % 8) * 16,
                   row < n ? from + row * ld + piece * 8 : from, row < n ? 16 : 0);
    }
}

/* Keys first … of a head, then their values. */
__device__ __forceinline__ void fetch_keys(const struct llm_cuda_prompt &a, uint32_t head,
                                           uint32_t first, uint8_t *to)
{
    const __nv_bfloat16 *kv = static_cast<const __nv_bfloat16 *>(a.kv) + first * a.ld_kv
                              + head * (LLM_CUDA_NOPE + LLM_CUDA_V);
    const __nv_bfloat16 *rope = static_cast<const __nv_bfloat16 *>(a.rope) + first * a.ld_rope;
    uint32_t n = a.n_keys - first;

#pragma unroll
    for (int i = 0; i < LLM_CUDA_NOPE / 64; i++) {
        fetch_tile(to + i * kTile, kv + i * 64, a.ld_kv, n);
    }
    fetch_tile(to + LLM_CUDA_NOPE / 64 * kTile, rope, a.ld_rope, n);
#pragma unroll
    for (int i = 0; i < LLM_CUDA_V / 64; i++) {
        fetch_tile(to + (kKeyTiles + i) * kTile, kv + LLM_CUDA_NOPE + i * 64, a.ld_kv, n);
    }
}

/* A thread's two rows: i is 0 or 1 for row g or g + 8 of the warp's. */
struct softmax {
    float max[2], sum[2];
};

/* Scores become probabilities; those of keys from `seen` on (counted from the first of these) are
 * none. Returns what earlier sums are multiplied by. */
__device__ __forceinline__ void soften(softmax &s, float (&scores)[kSums], const int (&seen)[2],
                                       float scale, float (&decay)[2])
{
    int column = threadIdx.x % 4 * 2;

#pragma unroll
    for (int i = 0; i < 2; i++) {
        float largest = s.max[i], sum = 0;

        if (seen[i] < kKeys) {
#pragma unroll
            for (int j = 0; j < kSums / 2; j++) {
                int at = j / 2 * 4 + i * 2 + j % 2;

                if (j / 2 * 8 + column + j % 2 >= seen[i]) {
                    scores[at] = -INFINITY;
                }
            }
        }
#pragma unroll
        for (int j = 0; j < kSums / 2; j++) {
            largest = fmaxf(largest, scores[j / 2 * 4 + i * 2 + j % 2]);
        }
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));

        float shift = largest * scale;
        decay[i] = exp2f(s.max[i] * scale - shift); /* every row sees the first key */
        s.max[i] = largest;
#pragma unroll
        for (int j = 0; j < kSums / 2; j++) {
            float &x = scores[j / 2 * 4 + i * 2 + j % 2];

            x = exp2f(x * scale - shift);
            sum += x;
        }
        s.sum[i] = s.sum[i] * decay[i] + sum; /* of this thread's columns */
    }
}

/* Queries blockIdx.x * 128 … from the end, which see most, of head blockIdx.y. */
__global__ void __launch_bounds__(kThreads, 1)
    prompt_kernel(const __grid_constant__ struct llm_cuda_prompt a)
{
    uint8_t *queries = aligned_shared(), *sets = queries + kKeyTiles * kTile;
    uint32_t group = threadIdx.x / kGroupThreads, head = blockIdx.y;
    uint32_t first = (gridDim.x - 1 - blockIdx.x) * kQueries;
    uint32_t n = min(a.n_queries - first, kQueries), before = a.n_keys - a.n_queries;
    uint32_t n_sets = (before + first + n + kKeys - 1) / kKeys;
    uint32_t row = first + threadIdx.x / kWarp * 16 + threadIdx.x % kWarp / 4;
    const __nv_bfloat16 *q = static_cast<const __nv_bfloat16 *>(a.q) + first * a.ld_q
                             + head * a.q_step;
    const __nv_bfloat16 *q_rope = static_cast<const __nv_bfloat16 *>(a.q_rope)
                                  + first * a.ld_q_rope + head * a.q_rope_step;
    float scale = a.scale * 1.4426950408889634f; /* exp2 is what there is */
    float scores[kSums], out[kSums];
    softmax s = {{-INFINITY, -INFINITY}, {0, 0}};

    wait_for_previous();
    let_next_begin();

#pragma unroll
    for (int i = 0; i < LLM_CUDA_NOPE / 64; i++) {
        fetch_tile(queries + i * kTile, q + i * 64, a.ld_q, n);
    }
    fetch_tile(queries + LLM_CUDA_NOPE / 64 * kTile, q_rope, a.ld_q_rope, n);
    fetch_keys(a, head, 0, sets);
    commit_copies();
#pragma unroll
    for (int i = 0; i < kSums; i++) {
        out[i] = 0;
    }

    for (uint32_t set = 0; set < n_sets; set++) {
        const uint8_t *keys = sets + set % 2 * kTiles * kTile, *values = keys + kKeyTiles * kTile;
        uint32_t key = set * kKeys;
        float decay[2];

        wait_for_copies<0>();
        publish_copies();
        __syncthreads(); /* all have done with the set before */
        if (set + 1 < n_sets) {
            fetch_keys(a, head, key + kKeys, sets + (set + 1) % 2 * kTiles * kTile);
        }
        commit_copies();

        begin_products();
#pragma unroll
        for (int k = 0; k < kKeyTiles * 4; k++) {
            multiply(scores,
                     descriptor_of(queries + k / 4 * kTile + group * kTile / kGroups + k % 4 * 32),
                     descriptor_of(keys + k / 4 * kTile + k % 4 * 32), k > 0);
        }
        commit_products();
        wait_for_sums(scores);

        const int seen[2] = {(int) (before + row + 1 - key), (int) (before + row + 9 - key)};
        soften(s, scores, seen, scale, decay);

        uint32_t chances[kKeys / 16][4];
#pragma unroll
        for (int i = 0; i < kSums; i += 2) {
            __nv_bfloat162 two = __floats2bfloat162_rn(scores[i], scores[i + 1]);

            chances[i / 8][i / 2 % 4] = *reinterpret_cast<const uint32_t *>(&two);
            out[i] *= decay[i / 2 % 2];
            out[i + 1] *= decay[i / 2 % 2];
        }
        begin_products();
#pragma unroll
        for (int k = 0; k < kKeys / 16; k++) {
            multiply_across(out, chances[k], descriptor_of(values + k * 2048, kTile), true);
        }
        commit_products();
        wait_for_sums(out);
    }

#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t own = row + i * 8;
        __nv_bfloat16 *to = static_cast<__nv_bfloat16 *>(a.out) + own * a.ld_out
                            + head * LLM_CUDA_V + threadIdx.x % 4 * 2;

        s.sum[i] += __shfl_xor_sync(~0u, s.sum[i], 1);
        s.sum[i] += __shfl_xor_sync(~0u, s.sum[i], 2);
#pragma unroll
        for (int j = 0; j < kSums / 4 && own < a.n_queries; j++) {
            *reinterpret_cast<__nv_bfloat162 *>(to + j * 8) = __floats2bfloat162_rn(
                out[j * 4 + i * 2] / s.sum[i], out[j * 4 + i * 2 + 1] / s.sum[i]);
        }
    }
}

} // namespace
} // namespace llm

extern "C" int llm_cuda_gather(const struct llm_cuda_plane *plane, const uint32_t *pages,
                               uint32_t n_keys, void *rows, size_t ld, struct llm_cuda_queue q)
{
    llm::gather_args a = {*plane, pages, static_cast<uint16_t *>(rows), ld};

    return llm::launch(llm::gather_kernel, dim3(n_keys), llm::kGatherThreads, 0, q, a);
}

extern "C" int llm_cuda_attend_prompt(const struct llm_cuda_prompt *p, struct llm_cuda_queue q)
{
    cudaError_t allowed = cudaErrorNotSupported;

    if (llm::runs_groups()) {
        allowed = cudaFuncSetAttribute(llm::prompt_kernel,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, llm::kShared);
    }
    return allowed != cudaSuccess
               ? allowed
               : llm::launch(llm::prompt_kernel,
                             dim3((p->n_queries + llm::kQueries - 1) / llm::kQueries, p->n_heads),
                             llm::kThreads, llm::kShared, q, *p);
}

extern "C" bool llm_cuda_attends_prompts(void)
{
    return llm::runs_groups();
}
