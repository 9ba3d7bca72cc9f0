/* Choosing tokens where the logits are. A row belongs to a team of blocks, each with a slice of the
 * ids: a cluster of eight where the processor has clusters, one block elsewhere. Bound by the
 * passes over the slice and the clusters' barriers, of which a cut takes three and eight.
 *
 * The order of all tokens by probability is never made. p = exp((logit - max) / temperature) is a
 * float in (0, 1], and the difference of its bits from those of 1 is a key of 30 bits that ascends
 * as p falls. Any cut of the order (the k largest, so much mass, the chosen token) lies at a key
 * that three histograms of 1,024 bins find, ten bits each. All p of a bin have the same exponent,
 * so that their mass is a sum of integers: exact, whatever order it is made in. Tokens of one key
 * are told apart by their ids.
 *
 * p is what kernels/cpu makes of the same logits, to the bit, and so are masses but for rounding in
 * the last place of a double.
 *
 * One H200, 102,400 logits of 1 and of 64 rows, microseconds (t/bench/gpu/small.c): greedy 6 and
 * 30, with 20 log-probabilities 39 and 191, temperature alone 47 and 242, with top_p 64 and 325,
 * with top_k, top_p and min_p 83 and 423. */

#include "kernels/cuda/device.cuh"

#include <cooperative_groups.h>
#include <float.h>

namespace llm {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTeam = 8;
constexpr int kAhead = 8; /* loads of a thread */
constexpr int kLevelBits = 10, kLevels = 3, kBins = 1 << kLevelBits;
constexpr uint32_t kOneBits = 0x3f800000;
constexpr uint32_t kMaxSlice = 1 << 18; /* ids: sums of 13 bits of p fit into 32 */

using u64 = unsigned long long;

/* Of a level: tokens, and the sums of p's low 12 bits and of the rest. */
struct bins {
    uint32_t counts[kBins], low[kBins], high[kBins];
};

/* A bin, by its last ten bits, what comes before it and how many tokens it has. */
struct place {
    uint32_t bin, before_count, count;
    double before_mass;
};

struct number {
    u64 whole;
    double real;
};

struct shared_state {
    struct bins first, later; /* levels */
    number told[2];           /* to the team, in turns */
    u64 top[LLM_CUDA_MAX_TOP_LOGPROBS];
    u64 warp_keys[kWarps];
    double warp_sums[kWarps];
    uint32_t warp_counts[kWarps];
    uint32_t reached, last; /* bins: where the limit is, the last that is not empty */
    place found;
};

/* The blocks of a row. */
template <int Blocks>
struct team {
    shared_state &s;
    uint32_t turn = 0;

    __device__ __forceinline__ explicit team(shared_state &own) : s(own) {}

    __device__ __forceinline__ static uint32_t rank() { return Blocks > 1 ? blockIdx.x : 0; }

    __device__ __forceinline__ static void sync()
    {
#if __CUDA_ARCH__ >= 900
        if (Blocks > 1) {
            cooperative_groups::this_cluster().sync();
            return;
        }
#endif
        __syncthreads();
    }

    __device__ __forceinline__ const shared_state &peer(int of) const
    {
#if __CUDA_ARCH__ >= 900
        if (Blocks > 1) {
            return *cooperative_groups::this_cluster().map_shared_rank(&s, of);
        }
#endif
        return s;
    }

    /* What each block tells, given to f in the order of blocks. */
    template <typename F>
    __device__ __forceinline__ void exchange(number mine, F f)
    {
        number all[Blocks];

        if (threadIdx.x == 0) {
            s.told[turn] = mine;
        }
        sync();
#pragma unroll
        for (int i = 0; i < Blocks; i++) {
            all[i] = peer(i).told[turn];
        }
#pragma unroll
        for (int i = 0; i < Blocks; i++) {
            f(i, all[i]);
        }
        turn ^= 1;
    }

    __device__ __forceinline__ u64 max(u64 key)
    {
        u64 all = 0;

        exchange({max_of_block(key), 0},
                 [&](int, number n) { all = n.whole > all ? n.whole : all; });
        return all;
    }

    __device__ __forceinline__ double sum(double x)
    {
        double all = 0;

#pragma unroll
        for (int i = 1; i < kWarp; i *= 2) {
            x += __shfl_xor_sync(~0u, x, i);
        }
        if (threadIdx.x % kWarp == 0) {
            s.warp_sums[threadIdx.x / kWarp] = x;
        }
        __syncthreads();
        x = 0;
#pragma unroll
        for (int i = 0; i < kWarps; i++) {
            x += s.warp_sums[i];
        }
        exchange({0, x}, [&](int, number n) { all += n.real; });
        return all;
    }

    __device__ __forceinline__ u64 max_of_block(u64 key)
    {
#pragma unroll
        for (int i = 1; i < kWarp; i *= 2) {
            u64 other = __shfl_xor_sync(~0u, key, i);

            key = other > key ? other : key;
        }
        __syncthreads();
        if (threadIdx.x % kWarp == 0) {
            s.warp_keys[threadIdx.x / kWarp] = key;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kWarps; i++) {
            key = s.warp_keys[i] > key ? s.warp_keys[i] : key;
        }
        return key;
    }
};

/* The ids [0, n) of a block: thread t has begin + t, and every kThreads-th after it. */
struct slice {
    uint32_t begin, end;
};

template <int Blocks>
__device__ __forceinline__ slice slice_of(uint32_t n)
{
    uint32_t share = (n + Blocks - 1) / Blocks, begin = min(team<Blocks>::rank() * share, n);

    return {begin, min(begin + share, n)};
}

/* f(id, x[id]) for this thread's ids, several loads under way. */
template <typename F>
__device__ __forceinline__ void for_ids(slice own, const float *x, F f)
{
    for (uint32_t first = own.begin + threadIdx.x; first < own.end; first += kThreads * kAhead) {
        float v[kAhead];

#pragma unroll
        for (int j = 0; j < kAhead; j++) {
            v[j] = first + j * kThreads < own.end ? x[first + j * kThreads] : 0;
        }
#pragma unroll
        for (int j = 0; j < kAhead; j++) {
            if (first + j * kThreads < own.end) {
                f(first + j * kThreads, v[j]);
            }
        }
    }
}

/* Orders (logit, id): larger ones first, of equal ones the lowest id. Above 0. */
__device__ __forceinline__ u64 key_of(float x, uint32_t id)
{
    uint32_t bits = __float_as_uint(x + 0.0f); /* -0 is 0 */

    bits = bits >> 31 ? ~bits : bits | 0x80000000;
    return (u64) bits << 32 | (uint32_t) ~id;
}

__device__ __forceinline__ uint32_t id_of(u64 key)
{
    return ~(uint32_t) key;
}

__device__ __forceinline__ float logit_of(u64 key)
{
    uint32_t bits = (uint32_t) (key >> 32);

    return __uint_as_float(bits >> 31 ? bits & 0x7fffffff : ~bits);
}

/* e^((x - shift) * scale), 0 below the smallest normal float: vf_exp of kernels/cpu, operation by
 * operation. */
__device__ __forceinline__ float exp_scaled(float x, float shift, float scale)
{
    float v = __fmul_rn(__fsub_rn(x, shift), scale);
    float c = fminf(88.37f, fmaxf(-87.33f, v)), n = rintf(__fmul_rn(c, 1.44269504088896341f));
    float r = __fmaf_rn(n, 2.12194440e-4f, __fmaf_rn(n, -0.693359375f, c));
    float p = 1.9875691500e-4f;

    p = __fmaf_rn(p, r, 1.3981999507e-3f);
    p = __fmaf_rn(p, r, 8.3334519073e-3f);
    p = __fmaf_rn(p, r, 4.1665795894e-2f);
    p = __fmaf_rn(p, r, 1.6666665459e-1f);
    p = __fmaf_rn(p, r, 5.0000001201e-1f);
    p = __fadd_rn(__fmaf_rn(__fmul_rn(r, r), p, r), 1);
    return v < -87.33f ? 0 : __fmul_rn(p, __uint_as_float((uint32_t) ((int) n + 127) << 23));
}

/* Philox4x32-10 (Salmon et al., SC11) as engine/backend/philox.h has it: 24 bits in [0, 1) for
 * choosing the token at a position. */
__device__ __forceinline__ float uniform_of(uint64_t seed, uint32_t position, uint32_t choice)
{
    uint32_t k0 = (uint32_t) seed, k1 = (uint32_t) (seed >> 32);
    uint32_t c0 = position, c1 = choice, c2 = 0, c3 = 0;

    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t) 0xD2511F53u * c0, p1 = (uint64_t) 0xCD9E8D57u * c2;

        c0 = (uint32_t) (p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t) p1;
        c2 = (uint32_t) (p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t) p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (float) (c0 >> 8) * 0x1p-24f;
}

/* The logits after bias, penalties and mask, of this block's slice. */
__device__ __forceinline__ const float *adjust(const struct llm_cuda_sample &a,
                                               const struct llm_cuda_sampling &p, uint32_t i,
                                               slice own, const float *logits)
{
    bool repetition = p.repetition_penalty != 1 && p.seen != NULL;
    bool counted = (p.frequency_penalty != 0 || p.presence_penalty != 0) && p.counts != NULL;
    const uint32_t *mask = a.mask_of != NULL && a.mask_of[i] != LLM_CUDA_NO_MASK
                               ? a.masks + a.mask_of[i] * a.mask_step
                               : NULL;
    float *out = a.scratch + (size_t) i * a.vocab;

    if (p.n_bias == 0 && !repetition && !counted && mask == NULL) {
        return logits;
    }
    for_ids(own, logits, [&](uint32_t id, float x) { out[id] = x; });
    __syncthreads();
    for (uint32_t j = threadIdx.x; j < p.n_bias; j += kThreads) {
        uint32_t id = p.bias_ids[j];
        bool is_first = id >= own.begin && id < own.end;

        for (uint32_t k = 0; is_first && k < j; k++) {
            is_first = p.bias_ids[k] != id;
        }
        for (uint32_t k = j; is_first && k < p.n_bias; k++) {
            if (p.bias_ids[k] == id) {
                out[id] += p.bias[k];
            }
        }
    }
    __syncthreads();
    for_ids(own, out, [&](uint32_t id, float x) {
        if (repetition && p.seen[id / 32] >> id % 32 & 1) {
            x = x > 0 ? x / p.repetition_penalty : x * p.repetition_penalty;
        }
        if (counted && p.counts[id] > 0) {
            x -= __fadd_rn(__fmul_rn((float) p.counts[id], p.frequency_penalty),
                           p.presence_penalty);
        }
        out[id] = mask != NULL && !(mask[id / 32] >> id % 32 & 1) ? -INFINITY : x;
    });
    __syncthreads();
    return out;
}

/* The tokens with keys below `key` and of those with that key the `ties` lowest ids. */
struct prefix {
    uint32_t key, ties;
    double mass;
};

/* Where a prefix ends: with the first token at which it holds so many, or so much mass. */
struct limit {
    uint32_t count;
    double mass;

    __device__ __forceinline__ bool reached(uint32_t n, double m) const
    {
        return n >= count || m >= mass;
    }
};

__device__ __forceinline__ uint32_t key_of_p(float p)
{
    return kOneBits - __float_as_uint(p);
}

/* The exponent, as in a float's bits, of the smallest p of a bin of the first level. */
__device__ __forceinline__ uint32_t exponent_of(uint32_t bin)
{
    return (kOneBits - ((bin + 1) << (kLevels - 1) * kLevelBits) + 1) >> 23;
}

__device__ __forceinline__ void clear(struct bins &b)
{
    for (int i = threadIdx.x; i < kBins; i += kThreads) {
        b.counts[i] = b.low[i] = b.high[i] = 0;
    }
    __syncthreads();
}

/* Counts a token of p > 0 into the bin of its key at `shift`. */
__device__ __forceinline__ void count_into(struct bins &b, float p, int shift)
{
    uint32_t bits = __float_as_uint(p), key = kOneBits - bits, bin = key >> shift & (kBins - 1);
    uint32_t exponent = exponent_of(key >> (kLevels - 1) * kLevelBits);
    uint32_t m = (bits & 0x7fffff | 0x800000) << ((bits >> 23) - exponent);

    atomicAdd(&b.counts[bin], 1);
    atomicAdd(&b.low[bin], m & 0xfff);
    atomicAdd(&b.high[bin], m >> 12);
}

/* Of all the team's bins the first with which the limit is reached, else the last that is not
 * empty. path: the bits of the levels before. Each block looks at a segment of the bins; the one in
 * whose segment the limit lies finds it. The bins are complete once the team has met. */
template <int Blocks>
__device__ __forceinline__ place find_bin(team<Blocks> &t, struct bins shared_state::*of,
                                          int level, uint32_t path, limit l, place from)
{
    constexpr int kSegment = kBins / Blocks, kOwn = (kSegment + kThreads - 1) / kThreads;
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    uint32_t own = threadIdx.x * kOwn, counts[kOwn] = {}, n = 0, n_before = from.before_count;
    double masses[kOwn] = {}, mass = 0, mass_before = from.before_mass;

#pragma unroll
    for (int j = 0; j < kOwn && own < kSegment; j++) {
        uint32_t bin = t.rank() * kSegment + own + j;
        uint32_t first = level == 0 ? bin : path >> (level - 1) * kLevelBits;
        u64 integer = 0;

#pragma unroll
        for (int i = 0; i < Blocks; i++) {
            const struct bins &b = t.peer(i).*of;

            counts[j] += b.counts[bin];
            integer += b.low[bin] + ((u64) b.high[bin] << 12);
        }
        /* in units of the last place of the smallest p of the bin */
        masses[j] = (double) integer
                    * __longlong_as_double((long long) (exponent_of(first) - 150 + 1023) << 52);
        n += counts[j];
        mass += masses[j];
    }

    /* over the threads up to this one, then over all */
    uint32_t sum_n = n;
    double sum = mass;
#pragma unroll
    for (int i = 1; i < kWarp; i *= 2) {
        uint32_t other_n = __shfl_up_sync(~0u, sum_n, i);
        double other = __shfl_up_sync(~0u, sum, i);

        sum_n += lane >= i ? other_n : 0;
        sum += lane >= i ? other : 0;
    }
    if (lane == kWarp - 1) {
        t.s.warp_counts[warp] = sum_n;
        t.s.warp_sums[warp] = sum;
    }
    if (threadIdx.x == 0) {
        t.s.reached = UINT32_MAX;
        t.s.last = 0;
    }
    __syncthreads();
    uint32_t all_n = 0, warps_n = 0;
    double all_mass = 0, warps_mass = 0;
#pragma unroll
    for (int i = 0; i < kWarps; i++) {
        warps_n += i < warp ? t.s.warp_counts[i] : 0;
        warps_mass += i < warp ? t.s.warp_sums[i] : 0;
        all_n += t.s.warp_counts[i];
        all_mass += t.s.warp_sums[i];
    }

    int finder = 0;
    bool found = false;
    uint32_t count = from.before_count;
    double cumulated = from.before_mass;
    t.exchange({all_n, all_mass}, [&](int i, number segment) {
        if (i == (int) t.rank()) {
            n_before = count;
            mass_before = cumulated;
        }
        count += (uint32_t) segment.whole;
        cumulated += segment.real;
        if (segment.whole > 0 && !found) {
            finder = i;
            found = l.reached(count, cumulated);
        }
    });

    if (finder == (int) t.rank()) {
        uint32_t at_n[kOwn];
        double at_mass[kOwn], lanes_mass = __shfl_up_sync(~0u, sum, 1);

        n_before += warps_n + sum_n - n;
        mass_before += warps_mass + (lane > 0 ? lanes_mass : 0);
#pragma unroll
        for (int j = 0; j < kOwn; j++) {
            at_n[j] = n_before;
            at_mass[j] = mass_before;
            n_before += counts[j];
            mass_before += masses[j];
            if (counts[j] > 0) {
                atomicMax(&t.s.last, own + j);
            }
            if (counts[j] > 0 && l.reached(n_before, mass_before)) {
                atomicMin(&t.s.reached, own + j);
            }
        }
        __syncthreads();
        uint32_t bin = t.s.reached == UINT32_MAX ? t.s.last : t.s.reached;
#pragma unroll
        for (int j = 0; j < kOwn; j++) {
            if (own + j == bin) {
                t.s.found = {t.rank() * kSegment + bin, at_n[j], counts[j], at_mass[j]};
            }
        }
    }
    t.sync();
    return t.peer(finder).found;
}

/* The prefix up to where the limit is reached, or of everything. The first level's bins are there
 * already. */
template <int Blocks>
__device__ __forceinline__ prefix cut(team<Blocks> &t, slice own, const float *p, limit l)
{
    place at = find_bin(t, &shared_state::first, 0, 0, l, {});
    uint32_t path = at.bin;

    for (int level = 1; level < kLevels; level++) {
        int shift = (kLevels - 1 - level) * kLevelBits;

        clear(t.s.later);
        for_ids(own, p, [&](uint32_t, float v) {
            if (v > 0 && key_of_p(v) >> (shift + kLevelBits) == path) {
                count_into(t.s.later, v, shift);
            }
        });
        t.sync();
        at = find_bin(t, &shared_state::later, level, path, l, at);
        path = path << kLevelBits | at.bin;
    }

    double each = __uint_as_float(kOneBits - path), mass = at.before_mass;
    double wanted = ceil((l.mass - mass) / each);
    uint32_t ties = wanted < 1 ? 1 : wanted < at.count ? (uint32_t) wanted : at.count;
    while (ties > 1 && mass + (ties - 1) * each >= l.mass) {
        ties--;
    }
    while (ties < at.count && mass + ties * each < l.mass) {
        ties++;
    }
    ties = min(ties, l.count - at.before_count);
    return {path, ties, mass + ties * each};
}

__device__ __forceinline__ prefix shorter(prefix a, prefix b)
{
    return a.key < b.key || (a.key == b.key && a.ties <= b.ties) ? a : b;
}

/* Calls f with the id of the last token of a prefix, in the one thread of the team that finds it.
 * Here a warp looks at ids side by side. */
template <int Blocks, typename F>
__device__ __forceinline__ void find_last(team<Blocks> &t, slice own, const float *p,
                                          prefix chosen, F f)
{
    uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    uint32_t share = (own.end - own.begin + kWarps - 1) / kWarps;
    uint32_t begin = min(own.begin + warp * share, own.end), end = min(begin + share, own.end);
    uint32_t n = 0, before = 0, of_block = 0;

    auto look = [&](auto found) {
        for (uint32_t first = begin; first < end; first += kWarp * kAhead) {
            float v[kAhead];

#pragma unroll
            for (int j = 0; j < kAhead; j++) {
                uint32_t id = first + j * kWarp + lane;

                v[j] = id < end ? p[id] : 0;
            }
#pragma unroll
            for (int j = 0; j < kAhead; j++) {
                bool tie = v[j] > 0 && key_of_p(v[j]) == chosen.key;

                found(first + j * kWarp + lane, tie, __ballot_sync(~0u, tie));
            }
        }
    };
    look([&](uint32_t, bool, uint32_t ties) { n += __popc(ties); });
    if (lane == 0) {
        t.s.warp_counts[warp] = n;
    }
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < kWarps; i++) {
        before += i < warp ? t.s.warp_counts[i] : 0;
        of_block += t.s.warp_counts[i];
    }
    t.exchange({of_block, 0}, [&](int i, number other) {
        before += i < (int) t.rank() ? (uint32_t) other.whole : 0;
    });
    if (before >= chosen.ties || before + n < chosen.ties) {
        return;
    }
    look([&](uint32_t id, bool tie, uint32_t ties) {
        if (tie && before + __popc(ties & ((1u << lane) - 1)) + 1 == chosen.ties) {
            f(id);
        }
        before += __popc(ties);
    });
}

/* Chooses by inverse transform; x: the logits, the largest is max. */
template <int Blocks, typename F>
__device__ __forceinline__ void draw(team<Blocks> &t, const struct llm_cuda_sampling &s, slice own,
                                     const float *x, float max, float *p, float u, F f)
{
    float inverse = 1 / s.temperature;
    double mass = 0;

    clear(t.s.first);
    for_ids(own, x, [&](uint32_t id, float v) {
        float e = exp_scaled(v, max, inverse);

        p[id] = e;
        mass += e;
        if (e > 0) {
            count_into(t.s.first, e, (kLevels - 1) * kLevelBits);
        }
    });
    prefix kept = {kOneBits, 0, t.sum(mass)}; /* everything */
    if (s.top_k > 0) {
        kept = shorter(kept, cut(t, own, p, {s.top_k, INFINITY}));
    }
    if (s.top_p < 1) {
        kept = shorter(kept, cut(t, own, p, {UINT32_MAX, fmax(s.top_p * kept.mass, DBL_MIN)}));
    }
    if (s.min_p > 0) {
        prefix likely = {key_of_p(s.min_p) + 1, 0, 0};

        for_ids(own, p, [&](uint32_t, float v) { likely.mass += v >= s.min_p ? v : 0; });
        likely.mass = t.sum(likely.mass);
        kept = shorter(kept, likely);
    }
    /* the first token whose cumulated mass is above, not at, u of the whole: as u is at least 2^-24
     * below 1, it is one of those that were kept */
    double above = __longlong_as_double(__double_as_longlong(u * kept.mass) + 1);
    find_last(t, own, p, cut(t, own, p, {UINT32_MAX, above}), f);
}

/* The logarithm of the sum of exp(x) over all of a row's logits. */
template <int Blocks>
__device__ __forceinline__ float log_sum_exp(team<Blocks> &t, const float *logits, uint32_t n)
{
    slice own = slice_of<Blocks>(n);
    u64 best = 0;
    double sum = 0;

    for_ids(own, logits, [&](uint32_t id, float x) {
        u64 key = key_of(x, id);

        best = key > best ? key : best;
    });
    float max = logit_of(t.max(best));
    for_ids(own, logits, [&](uint32_t, float x) { sum += exp_scaled(x, max, 1); });
    return max + (float) log(t.sum(sum));
}

/* The n largest logits of a row, and their log-probabilities. Each block finds its own n, one after
 * the other: a thread has the two largest of its ids that are left. */
template <int Blocks>
__device__ __forceinline__ void list_top(team<Blocks> &t, slice own, const float *logits,
                                         uint32_t n, float all, uint32_t *ids, float *logprobs)
{
    u64 limit = UINT64_MAX, best = 0, second = 0;

    auto find_two = [&] {
        for_ids(own, logits, [&](uint32_t id, float x) {
            u64 key = key_of(x, id);

            if (key < limit && key > second) {
                second = key > best ? best : key;
                best = key > best ? key : best;
            }
        });
    };
    find_two();
    for (uint32_t i = 0; i < n; i++) {
        limit = t.max_of_block(best);
        if (threadIdx.x == 0) {
            t.s.top[i] = limit; /* 0 when the slice has no more */
        }
        if (best == limit && best != 0) {
            best = second;
            second = 0;
            if (best == 0) {
                find_two();
            }
        }
    }
    t.sync();
    for (uint32_t i = threadIdx.x; t.rank() == 0 && i < Blocks * n; i += kThreads) {
        u64 key = t.peer(i / n).top[i % n];
        uint32_t place = 0;

        for (uint32_t j = 0; j < Blocks * n; j++) {
            place += t.peer(j / n).top[j % n] > key;
        }
        if (key != 0 && place < n) {
            ids[place] = id_of(key);
            logprobs[place] = logits[id_of(key)] - all;
        }
    }
}

/* Row blockIdx.y, by the blocks of blockIdx.x. */
template <int Blocks>
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const __grid_constant__ struct llm_cuda_sample a)
{
    __shared__ shared_state state;
    uint32_t i = blockIdx.y;
    team<Blocks> t(state);

    wait_for_previous();
    let_next_begin();

    uint32_t slot = a.slots[i];
    if (slot == LLM_CUDA_NO_SLOT) {
        return;
    }
    bool first = t.rank() == 0 && threadIdx.x == 0;
    if (a.over[slot]) {
        if (first) {
            a.tokens[i] = LLM_CUDA_NO_TOKEN;
        }
        return;
    }

    const struct llm_cuda_sampling &s = a.sampling[slot];
    const float *logits = a.logits + i * a.ld_logits;
    slice own = slice_of<Blocks>(s.n_vocab);
    const float *x = adjust(a, s, i, own, logits);
    bool bad = false;
    u64 best = 0;

    auto look = [&](uint32_t, float v) { bad |= !(fabsf(v) <= FLT_MAX); };
    if (x != logits) {
        for_ids(own, logits, look);
    }
    for_ids(own, x, [&](uint32_t id, float v) {
        u64 key = key_of(v, id);

        if (x == logits) {
            look(id, v);
        }
        best = key > best ? key : best;
    });
    best = t.max(bad ? key_of(INFINITY, 0) : best);
    if (!isfinite(logit_of(best))) {
        if (first) {
            a.over[slot] = 1; /* the whole team has looked at it */
            a.tokens[i] = LLM_CUDA_NO_TOKEN;
        }
        t.sync(); /* nobody leaves while his shared memory may be read */
        return;
    }

    float all = 0;
    uint32_t n_top = min(s.n_top_logprobs, s.n_vocab);
    if (s.logprobs || n_top > 0) {
        all = log_sum_exp(t, logits, a.vocab);
        list_top(t, own, logits, n_top, all, a.top_ids + (size_t) i * LLM_CUDA_MAX_TOP_LOGPROBS,
                 a.top_logprobs + (size_t) i * LLM_CUDA_MAX_TOP_LOGPROBS);
    }
    auto choose = [&](uint32_t id) {
        a.tokens[i] = a.last[slot] = id;
        if (s.logprobs || n_top > 0) {
            a.logprobs[i] = logits[id] - all;
        }
        if (s.counts != NULL) {
            s.counts[id]++;
        }
        if (s.seen != NULL) {
            s.seen[id / 32] |= 1u << id % 32;
        }
    };
    if (isfinite(1 / s.temperature)) {
        draw(t, s, own, x, logit_of(best), a.scratch + (size_t) i * a.vocab,
             uniform_of(s.seed, a.positions[i], s.choice), choose);
    } else if (first) {
        choose(id_of(best));
    }
    t.sync();
}

template <int Blocks>
int launch_sample(const struct llm_cuda_sample &a, const struct llm_cuda_queue &q)
{
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};

    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {Blocks, 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(Blocks, a.n);
    config.blockDim = dim3(kThreads);
    config.stream = q.stream;
    config.attrs = Blocks > 1 ? attributes : attributes + 1;
    config.numAttrs = (Blocks > 1) + (q.overlap ? 1 : 0);
    return cudaLaunchKernelEx(&config, sample_kernel<Blocks>, a);
}

} // namespace
} // namespace llm

extern "C" int llm_cuda_sample(const struct llm_cuda_sample *s, struct llm_cuda_queue q)
{
    int of_device = 0, major = 0, rc = cudaGetDevice(&of_device);

    if (rc == cudaSuccess) {
        rc = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, of_device);
    }
    if (rc != cudaSuccess) {
        return rc;
    }

    bool team = major >= 9 && !s->one_block;
    if (s->vocab > (team ? llm::kTeam : 1) * llm::kMaxSlice) {
        return cudaErrorInvalidValue;
    }
    return team ? llm::launch_sample<llm::kTeam>(*s, q) : llm::launch_sample<1>(*s, q);
}
