/* Attention of a row that is alone in its step, from the queries to what each head adds to the
 * residual stream, in one launch: what takes five launches of many rows is bound by their latency
 * here.
 *
 * A cluster has a head, its eight blocks an eighth of everything: of W_UK's outputs, of the keys
 * (a warp every 64th), of the latents whose sums meet W_UV, of the outputs of W_O. What they make
 * of it they give one another through shared memory, three times. Weights, and the first keys, are
 * fetched before the launch before is waited for. Activations are fp32 from the queries on.
 *
 * All heads read all latents, so that this is for short contexts. Two blocks must fit into a
 * processor: with one, an H200 takes fewer than 16 clusters at once, and 16 heads twice as long. */

#include "kernels/cuda/cluster.cuh"

namespace llm {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRank = LLM_CUDA_RANK, kRope = LLM_CUDA_ROPE;
constexpr int kNope = LLM_CUDA_NOPE, kValue = LLM_CUDA_V;
constexpr int kOwnRank = kRank / kPeers;
constexpr int kAllWarps = kPeers * kWarps; /* of a cluster */
constexpr int kKeys = 2;                /* of a warp at once */
constexpr int kLatents = kRank / kWarp; /* of a lane */

/* The rest of it is two tiles of weights. */
struct shared_state {
    float q[kNope], query[kRank + kRope];
    float parts[kWarps][kRank]; /* of the warps' keys */
    float2 stats[kWarps];
    float contexts[kPeers][kOwnRank], maxima[kPeers], totals[kPeers], context[kOwnRank];
    float values[kPeers][kValue], value[kValue];
};

template <int Dtype>
struct sizes {
    static constexpr int kBytes = Dtype == LLM_CUDA_BF16 ? 2 : 1;
    static constexpr int kKeyTile = kOwnRank * kNope * kBytes;
    static constexpr int kValueTile = kValue * kOwnRank * kBytes;
};

/* Cols columns of n rows, one behind the other. */
template <int Dtype, int Cols>
__device__ __forceinline__ void fetch_tile(uint8_t *to, const uint8_t *from, size_t stride, int n)
{
    constexpr int kPieces = Cols * sizes<Dtype>::kBytes / 16;

    for (int i = threadIdx.x; i < n * kPieces; i += kThreads) {
        copy_async(to + i * 16, from + i / kPieces * stride + i % kPieces * 16, 16);
    }
    commit_copies();
}

__device__ __forceinline__ void f32_of_pair(uint32_t pair, float &low, float &high)
{
    low = __uint_as_float(pair << 16);
    high = __uint_as_float(pair & 0xffff0000);
}

/* 16 bytes of weights, without their scale. */
template <int Dtype>
__device__ __forceinline__ void unpack(uint4 w, float (&v)[16 / sizes<Dtype>::kBytes])
{
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};

#pragma unroll
    for (int i = 0; i < 4; i++) {
        if constexpr (Dtype == LLM_CUDA_BF16) {
            f32_of_pair(words[i], v[i * 2], v[i * 2 + 1]);
        } else {
            f32_of_pair(bf16_of_e4m3<false>(words[i]), v[i * 4], v[i * 4 + 2]);
            f32_of_pair(bf16_of_e4m3<true>(words[i]), v[i * 4 + 1], v[i * 4 + 3]);
        }
    }
}

/* The sum of every one of N numbers over Lanes lanes; a lane is given the one that its place among
 * them, as a share of all N, says. */
template <int N, int Lanes>
__device__ __forceinline__ float share_sums(const float (&sums)[N])
{
    if constexpr (Lanes == 1) {
        return sums[0];
    } else if constexpr (N == 1) {
        return share_sums<1, Lanes / 2>({sums[0] + __shfl_xor_sync(~0u, sums[0], Lanes / 2)});
    } else {
        bool upper = threadIdx.x & Lanes / 2;
        float half[N / 2];

#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            float kept = upper ? sums[i + N / 2] : sums[i];
            float given = upper ? sums[i] : sums[i + N / 2];

            half[i] = kept + __shfl_xor_sync(~0u, given, Lanes / 2);
        }
        return share_sums<N / 2, Lanes / 2>(half);
    }
}

/* A warp's products of Rows rows of Cols columns of weights, and x. Every lane has one, that of the
 * row that row() says; kSame lanes have the same. Piece p * kWarp + lane of the rows' pieces of 16
 * bytes is that of pass p. */
template <int Dtype, int Cols, int Rows>
struct products {
    static constexpr int kPiece = 16 / sizes<Dtype>::kBytes;
    static constexpr int kLanes = Cols / kPiece; /* of a row */
    static constexpr int kAtOnce = kWarp / kLanes;
    static constexpr int kPasses = Rows / kAtOnce;
    static constexpr int kSame = kLanes / kPasses;

    __device__ static uint32_t row()
    {
        uint32_t lane = threadIdx.x % kWarp;

        return lane % kLanes / kSame * kAtOnce + lane / kLanes;
    }

    template <typename Piece>
    __device__ static float make(const float *x, Piece piece)
    {
        uint32_t lane = threadIdx.x % kWarp;
        float own[kPiece], sums[kPasses];

#pragma unroll
        for (int i = 0; i < kPiece; i++) {
            own[i] = x[lane % kLanes * kPiece + i];
        }
#pragma unroll
        for (int p = 0; p < kPasses; p++) {
            float w[kPiece];

            unpack<Dtype>(piece(p), w);
            sums[p] = 0;
#pragma unroll
            for (int i = 0; i < kPiece; i++) {
                sums[p] += w[i] * own[i];
            }
        }
        return share_sums<kPasses, kLanes>(sums);
    }

    __device__ static float make_of_tile(const float *x, const uint8_t *tile)
    {
        return make(x, [&](int p) {
            return load16(tile + (p * kWarp + threadIdx.x % kWarp) * 16);
        });
    }
};

/* A lane's part of a key: latents, as stored, and two rope elements. */
template <bool Fp8>
struct key_part {
    uint4 latents[Fp8 ? 1 : 2];
    uint32_t rope;
    float scale;

    __device__ __forceinline__ void load(const struct llm_cuda_plane &p, const uint8_t *row)
    {
        uint32_t lane = threadIdx.x % kWarp;

        latents[0] = load16(row + lane * 16);
        if (Fp8) {
            scale = *reinterpret_cast<const float *>(row + p.scale_offset
                                                     + lane * kLatents / LLM_CUDA_SCALE_BLOCK * 4);
        } else {
            latents[Fp8 ? 0 : 1] = load16(row + kRank + lane * 16);
        }
        rope = *reinterpret_cast<const uint32_t *>(row + p.rope_offset + lane * 4);
    }

    /* The row's own, of normed latents and rotated elements, rounded as kernels/cpu does it. */
    __device__ __forceinline__ void make(const float (&v)[kLatents], float x, float y)
    {
        uint32_t words[8];

        rope = bf16_of_f32(x) | (uint32_t) bf16_of_f32(y) << 16;
        if constexpr (Fp8) {
            uint32_t largest = 0; /* as bits, where infinity is above all numbers, NaN above that */

#pragma unroll
            for (int i = 0; i < kLatents; i++) {
                largest = max(largest, __float_as_uint(v[i]) & 0x7fffffff);
            }
#pragma unroll
            for (int step = 1; step < LLM_CUDA_SCALE_BLOCK / kLatents; step *= 2) {
                largest = max(largest, __shfl_xor_sync(~0u, largest, step));
            }
            scale = __uint_as_float(largest) / 448;
            scale = scale < FLT_MIN ? FLT_MIN : scale;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                words[i] = 0;
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    words[i] |= (uint32_t) e4m3_of_f32(v[i * 4 + j] / scale) << j * 8;
                }
            }
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                words[i] = bf16_of_f32(v[i * 2]) | (uint32_t) bf16_of_f32(v[i * 2 + 1]) << 16;
            }
            latents[Fp8 ? 0 : 1] = make_uint4(words[4], words[5], words[6], words[7]);
        }
        latents[0] = make_uint4(words[0], words[1], words[2], words[3]);
    }

    __device__ __forceinline__ void store(const struct llm_cuda_plane &p, uint8_t *row) const
    {
        uint32_t lane = threadIdx.x % kWarp, block = lane * kLatents / LLM_CUDA_SCALE_BLOCK;

        *reinterpret_cast<uint4 *>(row + lane * 16) = latents[0];
        if (!Fp8) {
            *reinterpret_cast<uint4 *>(row + kRank + lane * 16) = latents[Fp8 ? 0 : 1];
        } else if (lane * kLatents % LLM_CUDA_SCALE_BLOCK == 0) {
            *reinterpret_cast<float *>(row + p.scale_offset + block * 4) = scale;
        }
        *reinterpret_cast<uint32_t *>(row + p.rope_offset + lane * 4) = rope;
    }

    /* which latent the lane's i-th is */
    __device__ static uint32_t latent(int i)
    {
        uint32_t lane = threadIdx.x % kWarp;

        return Fp8 ? lane * kLatents + i : i / 8 * (kRank / 2) + lane * 8 + i % 8;
    }

    __device__ __forceinline__ void unpack_latents(float (&v)[kLatents]) const
    {
        if constexpr (Fp8) {
            unpack<LLM_CUDA_E4M3>(latents[0], v);
        } else {
            float half[8];

#pragma unroll
            for (int j = 0; j < 2; j++) {
                unpack<LLM_CUDA_BF16>(latents[j], half);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    v[j * 8 + i] = half[i];
                }
            }
        }
    }
};

/* A warp's sums over its keys. */
template <bool Fp8>
struct attended {
    float query[kLatents], query_rope[2];
    float sums[kLatents] = {}, max = -INFINITY, total = 0;

    __device__ __forceinline__ explicit attended(const float *q)
    {
        uint32_t lane = threadIdx.x % kWarp;

#pragma unroll
        for (int i = 0; i < kLatents; i++) {
            query[i] = q[key_part<Fp8>::latent(i)];
        }
        query_rope[0] = q[kRank + lane * 2];
        query_rope[1] = q[kRank + lane * 2 + 1];
    }

    /* the first n of them */
    template <int Keys>
    __device__ __forceinline__ void add(const key_part<Fp8> (&keys)[Keys], uint32_t n)
    {
        float v[Keys][kLatents], scores[Keys], largest = max;

#pragma unroll
        for (int k = 0; k < Keys; k++) {
            float low, high, score = 0;

            keys[k].unpack_latents(v[k]);
#pragma unroll
            for (int i = 0; i < kLatents; i++) {
                score += v[k][i] * query[i];
            }
            f32_of_pair(keys[k].rope, low, high);
            scores[k] = (Fp8 ? score * keys[k].scale : score) + low * query_rope[0]
                        + high * query_rope[1];
        }
#pragma unroll
        for (int step = 1; step < kWarp; step *= 2) {
#pragma unroll
            for (int k = 0; k < Keys; k++) {
                scores[k] += __shfl_xor_sync(~0u, scores[k], step);
            }
        }
#pragma unroll
        for (int k = 0; k < Keys; k++) {
            scores[k] = (uint32_t) k < n ? scores[k] : -INFINITY;
            largest = fmaxf(largest, scores[k]);
        }
        if (largest == -INFINITY) {
            return;
        }

        float decay = exp2f(max - largest);
        max = largest;
        total *= decay;
#pragma unroll
        for (int i = 0; i < kLatents; i++) {
            sums[i] *= decay;
        }
#pragma unroll
        for (int k = 0; k < Keys; k++) {
            float p = exp2f(scores[k] - largest), weight = Fp8 ? p * keys[k].scale : p;

            total += p;
#pragma unroll
            for (int i = 0; (uint32_t) k < n && i < kLatents; i++) {
                sums[i] += weight * v[k][i];
            }
        }
    }
};

/* The weight of sums up to `max` among such up to `all`, of which any may be of nothing. */
__device__ __forceinline__ float share_of(float max, float all)
{
    return max == -INFINITY ? 0 : exp2f(max - all);
}

template <int Dtype, bool Fp8>
__global__ void __launch_bounds__(kThreads, 2)
    alone_kernel(const __grid_constant__ struct llm_cuda_alone a)
{
    using size = sizes<Dtype>;
    extern __shared__ __align__(16) uint8_t shared[];
    shared_state &s = *reinterpret_cast<shared_state *>(shared);
    uint8_t *key_tile = shared + (sizeof(s) + 15) / 16 * 16;
    uint8_t *value_tile = key_tile + size::kKeyTile;

    const struct llm_cuda_plane &plane = a.latents.plane;
    const struct llm_cuda_rows &rows = a.latents.rows;
    uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    uint32_t rank = blockIdx.x, head = blockIdx.y, first = rank * kWarps + warp;
    uint32_t n_out = a.o.rows / kPeers; /* of this block */

    auto at = [](const struct llm_cuda_matrix &m, size_t row, size_t col) {
        return static_cast<const uint8_t *>(m.data) + row * m.stride + col * size::kBytes;
    };
    auto scale_at = [](const struct llm_cuda_matrix &m, size_t row, size_t col) {
        return Dtype == LLM_CUDA_BF16 ? 1
                                      : m.scale[row / LLM_CUDA_SCALE_BLOCK * m.scale_stride
                                                + col / LLM_CUDA_SCALE_BLOCK];
    };

    reach_meeting(); /* whoever is told something must be there */
    fetch_tile<Dtype, kNope>(key_tile, at(a.w_uk, head * kRank + rank * kOwnRank, 0),
                             a.w_uk.stride, kOwnRank);
    fetch_tile<Dtype, kOwnRank>(value_tile, at(a.w_uv, head * a.value_step, rank * kOwnRank),
                                a.w_uv.stride, kValue);
    if (threadIdx.x < n_out) {
        fetch_into_cache(at(a.o, rank * n_out + threadIdx.x, head * kValue), kValue * size::kBytes);
    }

    /* the row's own latent comes last: it is not there yet */
    uint32_t position = rows.positions[0];
    const uint32_t *pages = rows.pages + rows.seqs[0] * rows.pages_step;
    auto row_of = [&](uint32_t t) {
        return static_cast<uint8_t *>(plane.data)
               + pages[t / LLM_CUDA_PAGE_TOKENS] * plane.page_step
               + t % LLM_CUDA_PAGE_TOKENS * plane.row_bytes;
    };
    key_part<Fp8> keys[kKeys];
    auto load_keys = [&](uint32_t from) {
#pragma unroll
        for (int k = 0; k < kKeys; k++) {
            uint32_t t = from + k * kAllWarps;

            if (t < position) {
                keys[k].load(plane, row_of(t));
            }
        }
    };
    load_keys(first);

    float sine, cosine, scale = a.scale * 1.4426950408889634f; /* exp2 is what there is */
    sincosf((float) position * a.latents.rope.inv_freq[lane], &sine, &cosine);
    sine *= a.latents.rope.magnitude;
    cosine *= a.latents.rope.magnitude;

    wait_for_previous();
    let_next_begin();

    const __nv_bfloat16 *q = static_cast<const __nv_bfloat16 *>(a.latents.q)
                             + head * (kNope + kRope);
    if (threadIdx.x < kNope) {
        s.q[threadIdx.x] = (float) q[threadIdx.x] * scale;
    }
    if (warp == kWarps - 1) {
        float x = (float) q[kNope + lane * 2] * scale, y = (float) q[kNope + lane * 2 + 1] * scale;

        s.query[kRank + lane * 2] = x * cosine - y * sine;
        s.query[kRank + lane * 2 + 1] = x * sine + y * cosine;
    }
    bool own = position % kAllWarps == first;
    key_part<Fp8> last[1];
    if (own) {
        const struct llm_cuda_latents &l = a.latents;
        auto biased = [&](uint32_t i) {
            return l.kv_bias != NULL ? l.kv[i] + l.kv_bias[i] : l.kv[i];
        };
        float v[kLatents], sum = 0, x = biased(kRank + lane * 2), y = biased(kRank + lane * 2 + 1);

#pragma unroll
        for (int i = 0; i < kLatents; i++) {
            v[i] = biased(key_part<Fp8>::latent(i));
            sum += v[i] * v[i];
        }
#pragma unroll
        for (int step = 1; step < kWarp; step *= 2) {
            sum += __shfl_xor_sync(~0u, sum, step);
        }
        float r = 1 / sqrtf(sum / (float) kRank + l.eps);
#pragma unroll
        for (int i = 0; i < kLatents; i++) {
            v[i] *= r * l.kv_norm[key_part<Fp8>::latent(i)];
        }
        last[0].make(v, x * cosine - y * sine, x * sine + y * cosine);
        if (head == 0 && !(rows.flags[0] & (LLM_CUDA_ROW_NO_WRITE | LLM_CUDA_ROW_IDLE))) {
            last[0].store(plane, row_of(position));
        }
    }
    wait_for_copies<1>();
    __syncthreads();

    {
        using make = products<Dtype, kNope, kOwnRank / kWarps>;
        uint32_t row = rank * kOwnRank + warp * (kOwnRank / kWarps);
        float v = make::make_of_tile(s.q, key_tile + warp * (size::kKeyTile / kWarps))
                  * scale_at(a.w_uk, head * kRank + row, 0);

        leave_meeting();
        for (uint32_t peer = lane % make::kSame; peer < kPeers; peer += make::kSame) {
            tell(peer, &s.query[row + make::row()], v);
        }
    }
    meet();

    attended<Fp8> mine(s.query);
    for (uint32_t t = first; t < position; t += kKeys * kAllWarps) {
        key_part<Fp8> now[kKeys];
        uint32_t n = (position - t + kAllWarps - 1) / kAllWarps;

#pragma unroll
        for (int k = 0; k < kKeys; k++) {
            now[k] = keys[k];
        }
        load_keys(t + kKeys * kAllWarps);
        mine.add(now, n);
    }
    if (own) {
        mine.add(last, 1);
    }

    /* the warps' sums, then the blocks': each gets those of its latents */
#pragma unroll
    for (int i = 0; i < kLatents; i++) {
        s.parts[warp][key_part<Fp8>::latent(i)] = mine.sums[i];
    }
    if (lane == 0) {
        s.stats[warp] = make_float2(mine.max, mine.total);
    }
    __syncthreads();
    float max = -INFINITY, total = 0, weights[kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; w++) {
        max = fmaxf(max, s.stats[w].x);
    }
#pragma unroll
    for (int w = 0; w < kWarps; w++) {
        weights[w] = share_of(s.stats[w].x, max);
        total += s.stats[w].y * weights[w];
    }
    for (uint32_t i = threadIdx.x; i < kRank; i += kThreads) {
        float sum = 0;

#pragma unroll
        for (int w = 0; w < kWarps; w++) {
            sum += s.parts[w][i] * weights[w];
        }
        tell(i / kOwnRank, &s.contexts[rank][i % kOwnRank], sum);
    }
    if (threadIdx.x < kPeers) {
        tell(threadIdx.x, &s.maxima[rank], max);
        tell(threadIdx.x, &s.totals[rank], total);
    }
    reach_meeting();

    using last_products = products<Dtype, kValue, kWarp>;
    uint4 out_pieces[last_products::kPasses];
    uint32_t out_row = rank * n_out + warp * kWarp;
    bool has_outputs = warp * kWarp < n_out;
    if (has_outputs) {
#pragma unroll
        for (int p = 0; p < last_products::kPasses; p++) {
            out_pieces[p] = load16(at(a.o,
                                      out_row + p * last_products::kAtOnce
                                          + lane / last_products::kLanes,
                                      head * kValue)
                                   + lane % last_products::kLanes * 16);
        }
    }
    leave_meeting();

    if (threadIdx.x < kOwnRank) {
        float sum = 0;

        max = -INFINITY;
        total = 0;
#pragma unroll
        for (int i = 0; i < kPeers; i++) {
            max = fmaxf(max, s.maxima[i]);
        }
#pragma unroll
        for (int i = 0; i < kPeers; i++) {
            float weight = share_of(s.maxima[i], max);

            sum += s.contexts[i][threadIdx.x] * weight;
            total += s.totals[i] * weight;
        }
        s.context[threadIdx.x] = sum / total;
    }
    wait_for_copies<0>();
    __syncthreads();
    {
        using make = products<Dtype, kOwnRank, kValue / kWarps>;
        uint32_t row = warp * (kValue / kWarps);
        float v = make::make_of_tile(s.context, value_tile + warp * (size::kValueTile / kWarps))
                  * scale_at(a.w_uv, head * a.value_step, rank * kOwnRank);

        for (uint32_t peer = lane % make::kSame; peer < kPeers; peer += make::kSame) {
            tell(peer, &s.values[rank][row + make::row()], v);
        }
    }
    meet();

    if (threadIdx.x < kValue) {
        float sum = 0;

#pragma unroll
        for (int i = 0; i < kPeers; i++) {
            sum += s.values[i][threadIdx.x];
        }
        s.value[threadIdx.x] = sum;
    }
    __syncthreads();
    if (has_outputs) {
        a.out[(size_t) head * a.o.rows + out_row + last_products::row()] =
            last_products::make(s.value, [&](int p) { return out_pieces[p]; })
            * scale_at(a.o, out_row, head * kValue);
    }
}

template <int Dtype, bool Fp8>
int launch_alone(const struct llm_cuda_alone &a, const struct llm_cuda_queue &q)
{
    using size = sizes<Dtype>;
    constexpr int kShared = (sizeof(shared_state) + 15) / 16 * 16 + size::kKeyTile
                            + size::kValueTile;
    auto kernel = alone_kernel<Dtype, Fp8>;
    static const cudaError_t allowed =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);

    if (allowed != cudaSuccess) {
        return allowed;
    }
    return launch_clusters(kernel, dim3(kPeers, a.latents.n_heads), kThreads, kShared, q, a);
}

template <int Dtype>
int launch_alone(const struct llm_cuda_alone &a, const struct llm_cuda_queue &q)
{
    return a.latents.plane.dtype == LLM_CUDA_LATENT_FP8 ? launch_alone<Dtype, true>(a, q)
                                                        : launch_alone<Dtype, false>(a, q);
}

} // namespace
} // namespace llm

extern "C" int llm_cuda_alone(const struct llm_cuda_alone *a, struct llm_cuda_queue q)
{
    return a->o.dtype == LLM_CUDA_BF16 ? llm::launch_alone<LLM_CUDA_BF16>(*a, q)
                                       : llm::launch_alone<LLM_CUDA_E4M3>(*a, q);
}
