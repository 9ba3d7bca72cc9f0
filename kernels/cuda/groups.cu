/* Products of many rows on Hopper, by warpgroups.
 *
 * A cluster of two blocks stays on its processors and takes one item after the other: 2 x 128
 * outputs of up to 256 rows, 64 columns at a time. The copy engine fetches chunks of columns into
 * the shared memory of both: each block half of the rows, for both, and its own weights. So a
 * processor reads 32 KB from L2 for 128 x 256 x 64 products in bf16, 24 in e4m3; for smaller tiles
 * L2 is what bounds them. One thread asks for chunks, ahead of the items that two warpgroups
 * multiply; sums go from registers to memory.
 *
 * Weights are the left operand: e4m3 becomes bf16 in registers, exactly; its scale is applied to
 * the fp32 sums after each 128 columns.
 *
 * One H200, weights and activations mostly in L2: microseconds, and the share of 790 TFLOP/s
 * (t/bench/gpu/many.c, the best of three runs, which differ by up to 8 %):
 *
 *                                           bf16             fp8
 *   8,192 of 8,192, 8,192 rows          1,461   95 %     1,969   71 %
 *   3,072 of 2,048, 4,096 rows             76   86 %       107   61 %
 *   2,048 of 10,944, 4,096 rows           233  100 %       313   74 %
 *   V2-Lite's experts, up, 4,096 tokens   664   72 %       837   57 %
 *                      down               335   71 %       408   59 %
 *                      up, 512 tokens     221   27 %       272   22 %
 *                      down               130   23 %       139   22 %
 *   V3's experts, up, 4,096 tokens        995   92 %     1,193   77 %
 *                 down                    570   80 %       716   64 %
 *
 * Without the other block's rows bf16 is 5 % slower and e4m3 the same. Warpgroups that multiply
 * e4m3 strictly by turns, one while the other changes its unit, were 3 % faster for V2-Lite's
 * experts and 2 % slower elsewhere. */

#include "kernels/cuda/many.cuh"
#include "kernels/cuda/tensor.cuh"

namespace llm {
namespace {

constexpr int kMakers = 2; /* warpgroups that multiply */
constexpr int kThreads = (kMakers + 1) * kGroupThreads;
constexpr int kGroupOuts = 64, kOuts = kMakers * kGroupOuts;
constexpr int kMaxRows = 256, kRowStep = 64; /* of an item */
constexpr int kRowTile = 32;                 /* that are fetched at once */
constexpr int kChunk = 64;                   /* columns */
constexpr int kSteps = kChunk / 16;          /* of the tensor cores */
constexpr int kHalf = kSteps / 2;

template <int Dtype>
struct stage {
    static constexpr int kBytes = Dtype == LLM_CUDA_BF16 ? 2 : 1; /* of a weight */
    static constexpr int kPitch = kChunk * kBytes;
    static constexpr int kRows = kMaxRows * kChunk * 2, kWeights = kOuts * kPitch; /* bytes */
    static constexpr int kSize = kRows + kWeights;
    static constexpr int kStages = Dtype == LLM_CUDA_BF16 ? 4 : 5;
    static constexpr int kShared = kStages * kSize + 1024; /* to be aligned */
};

/* The stages one after the other; every time around the barriers' phase is another one. */
template <int N>
struct ring {
    uint32_t at, parity;

    __device__ __forceinline__ void advance()
    {
        at = at + 1 == N ? 0 : at + 1;
        parity ^= at == 0;
    }
};

/* A block's share of an item; outputs of Up are its expert's. */
struct item {
    uint32_t which, member; /* of several linears, of a batch or of the experts */
    uint32_t out, row, n;   /* its first output, its first row and how many */
};

/* --- the parts of a block --- */

template <int Dtype>
struct place {
    uint8_t *shared;
    uint64_t *full, *empty;

    __device__ __forceinline__ uint8_t *rows(uint32_t stage_at) const
    {
        return shared + stage_at * stage<Dtype>::kSize;
    }
    __device__ __forceinline__ uint8_t *weights(uint32_t stage_at) const
    {
        return rows(stage_at) + stage<Dtype>::kRows;
    }
    /* This warp has done with a stage: both blocks may fill it, each for both. */
    __device__ __forceinline__ void release(uint32_t stage_at) const
    {
        __syncwarp();
        if (threadIdx.x % kWarp < kCluster) {
            arrive_at(&empty[stage_at], threadIdx.x % kWarp);
        }
    }
};

template <int Dtype, typename Job>
__device__ __forceinline__ void fetch_all(const Job &job, const place<Dtype> &p)
{
    using s = stage<Dtype>;
    uint32_t block = block_of_cluster();
    ring<s::kStages> r = {0, 1};
    typename Job::walk walk(job);
    item t;

    while (walk.next(t)) {
        uint32_t half = (t.n + kRowStep - 1) / kRowStep * kRowStep / kCluster;
        uint32_t n_chunks = job.chunks(t);

        for (uint32_t c = 0; c < n_chunks; c++) {
            wait_for_phase(&p.empty[r.at], r.parity);
            expect_bytes(&p.full[r.at], s::kWeights + half * kCluster * kChunk * 2);
            job.fetch_weights(t, c, p.weights(r.at), &p.full[r.at]);
            for (uint32_t i = block * half; i < (block + 1) * half; i += kRowTile) {
                fetch_tile_for_all(p.rows(r.at) + i * kChunk * 2, job.rows_map(t), c * kChunk,
                                   t.row + i, job.rows_member(t), &p.full[r.at]);
            }
            r.advance();
        }
    }
}

/* The left operands of half a chunk of e4m3, 16 rows of weights for each warp. */
__device__ __forceinline__ void load_left(uint32_t (&a)[kHalf][4], const uint8_t *weights, int half)
{
    int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp * 16 + lane / 4;

#pragma unroll
    for (int k = 0; k < kHalf; k++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint8_t *p = weights + (row + i * 8) * kChunk
                               + (half * kHalf + k ^ (row + i * 8) / 2 % 4) * 16 + lane % 4 * 2;
            uint32_t low = *reinterpret_cast<const uint16_t *>(p);
            uint32_t high = *reinterpret_cast<const uint16_t *>(p + 8);
            uint32_t four = __byte_perm(low, high, 0x5140);

            a[k][i] = bf16_of_e4m3<false>(four);
            a[k][2 + i] = bf16_of_e4m3<true>(four);
        }
    }
#pragma unroll
    for (int i = 0; i < kHalf * 4; i++) { /* before the products that they go into begin */
        asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
    }
}

/* The scales of a warpgroup's outputs: of rows g and g + 8 of each warp's 16, one for each 128
 * columns. */
struct scales {
    const float *at[2];
    float last[2], next[2], factor[2];
};

/* What makes sums of products of weights whose scale is the last one those of weights whose scale
 * is the next, so that the products of all scales are added up in place; `after` is fetched for the
 * next time. Of weights of scale 0 nothing remains, as of any that are 2^100 smaller than others of
 * their row. */
__device__ __forceinline__ void find_factors(scales &s, uint32_t after)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float next = s.next[i];

        s.next[i] = s.at[i][after];
        next = fmaxf(fabsf(next), fabsf(s.last[i]) * 0x1p-100f) * (next < 0 ? -1.0f : 1.0f);
        s.factor[i] = next != 0 ? s.last[i] / next : 1;
        s.last[i] = next;
    }
}

/* sums = weights * rows over all columns: of row g (+ 8) of the warp's 16 and of rows
 * 8 j + 2 t (+ 1) at sums[4 j …], as the tensor cores have them. */
template <int N>
__device__ __forceinline__ void multiply_all(float (&sums)[N / 2],
                                             const place<LLM_CUDA_BF16> &p,
                                             ring<stage<LLM_CUDA_BF16>::kStages> &r,
                                             uint32_t n_chunks, scales &)
{
    uint32_t before = 0, own = threadIdx.x / kGroupThreads * kGroupOuts * 128;

    for (uint32_t c = 0; c < n_chunks; c++) {
        wait_for_phase(&p.full[r.at], r.parity);
        begin_products();
#pragma unroll
        for (int k = 0; k < kSteps; k++) {
            multiply<N>(sums, descriptor_of(p.weights(r.at) + own + k * 32),
                        descriptor_of(p.rows(r.at) + k * 32));
        }
        commit_products();
        wait_for_products<1>();
        if (c > 0) {
            p.release(before);
        }
        before = r.at;
        r.advance();
    }
    wait_for_sums(sums);
    p.release(before);
}

template <int N>
__device__ __forceinline__ void multiply_all(float (&sums)[N / 2],
                                             const place<LLM_CUDA_E4M3> &p,
                                             ring<stage<LLM_CUDA_E4M3>::kStages> &r,
                                             uint32_t n_chunks, scales &s)
{
    uint32_t before = 0, left[2][kHalf][4];

    auto take = [&](int half) {
        begin_products();
#pragma unroll
        for (int k = 0; k < kHalf; k++) {
            multiply<N>(sums, left[half][k],
                        descriptor_of(p.rows(r.at) + (half * kHalf + k) * 32));
        }
        commit_products();
    };
    auto take_second = [&]() {
        load_left(left[1], p.weights(r.at), 1);
        take(1);
        wait_for_products<1>();
        before = r.at;
        r.advance();
    };
    uint32_t n_blocks = n_chunks / 2, last_block = (n_chunks - 1) / 2;
    /* the first chunk of a block of columns: its weights come while the one before is multiplied */
    auto begin = [&](uint32_t block) {
        wait_for_phase(&p.full[r.at], r.parity);
        load_left(left[0], p.weights(r.at), 0);
        find_factors(s, min(block + 1, last_block));
        wait_for_sums(sums);
        if (block > 0) {
            p.release(before);
        }
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            sums[i] *= s.factor[i / 2 % 2];
        }
        take(0);
        take_second();
    };

    s.next[0] = s.at[0][0];
    s.next[1] = s.at[1][0];
    for (uint32_t i = 0; i < n_blocks; i++) {
        begin(i);
        wait_for_phase(&p.full[r.at], r.parity);
        load_left(left[0], p.weights(r.at), 0);
        take(0);
        wait_for_products<1>();
        p.release(before);
        take_second();
    }
    if (n_chunks % 2 != 0) {
        begin(n_blocks);
    }
    wait_for_sums(sums);
    p.release(before);
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        sums[i] *= s.last[i / 2 % 2];
    }
}

template <int Dtype, int N, typename Job>
__device__ __forceinline__ void make(const Job &job, const place<Dtype> &p,
                                     ring<stage<Dtype>::kStages> &r, const item &t)
{
    float sums[N / 2];
    scales s = {};

    if (Dtype == LLM_CUDA_E4M3) {
        job.find_scales(t, s);
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        sums[i] = 0;
    }
    multiply_all<N>(sums, p, r, job.chunks(t), s);
    job.template store<N>(t, sums);
}

template <int Dtype, typename Job>
__device__ __forceinline__ void make_all(const Job &job, const place<Dtype> &p)
{
    ring<stage<Dtype>::kStages> r = {0, 0};
    typename Job::walk walk(job);
    item t;

    while (walk.next(t)) {
        if (t.n <= 64) {
            make<Dtype, 64>(job, p, r, t);
        } else if (t.n <= 128) {
            make<Dtype, 128>(job, p, r, t);
        } else if (t.n <= 192) {
            make<Dtype, 192>(job, p, r, t);
        } else {
            make<Dtype, 256>(job, p, r, t);
        }
    }
}

template <int Dtype, typename Job>
__global__ void __launch_bounds__(kThreads, 1) groups_kernel(const __grid_constant__ Job job)
{
    using s = stage<Dtype>;
    __shared__ alignas(8) uint64_t full[s::kStages], empty[s::kStages];
    place<Dtype> p = {aligned_shared(), full, empty};

    if (threadIdx.x == 0) {
        for (int i = 0; i < s::kStages; i++) {
            init_barrier(&full[i], 1);
            init_barrier(&empty[i], kCluster * kMakers * 4);
        }
        publish_barriers();
    }
    sync_cluster();
    wait_for_previous();
    let_next_begin();

    if (threadIdx.x >= kMakers * kGroupThreads) {
        leave_registers<40>();
        if (threadIdx.x == kMakers * kGroupThreads) {
            fetch_all<Dtype>(job, p);
        }
    } else {
        take_registers<232>();
        make_all<Dtype>(job, p);
    }
    sync_cluster(); /* the other block may have barriers of this one to tell */
}

/* --- where sums go --- */

__device__ __forceinline__ uint32_t pack(float low, float high)
{
    __nv_bfloat162 two = __floats2bfloat162_rn(low, high);

    return *reinterpret_cast<const uint32_t *>(&two);
}

/* Of a matrix of 8 x 8 bf16 the warp's threads have two of a row each, and then of a column. */
__device__ __forceinline__ uint32_t transpose(uint32_t two)
{
    uint32_t out;

    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(two));
    return out;
}

/* Two outputs, of which there are `left`. */
__device__ __forceinline__ void put(__nv_bfloat16 *to, uint32_t two, int left)
{
    if (left >= 2) {
        *reinterpret_cast<uint32_t *>(to) = two;
    } else if (left == 1) {
        *reinterpret_cast<uint16_t *>(to) = (uint16_t) two;
    }
}

/* The first output of a warp's, of `each` that each has. */
__device__ __forceinline__ uint32_t warp_out(const item &t, uint32_t each)
{
    return t.out + threadIdx.x / kWarp * each;
}

/* Of an item whose row 0 is at out, as bf16. */
template <int N>
__device__ __forceinline__ void store_bf16(const item &t, const float (&sums)[N / 2],
                                           __nv_bfloat16 *out, size_t ldo, uint32_t n_outs)
{
    uint32_t first = warp_out(t, 16) + threadIdx.x % 4 * 2, row = threadIdx.x % kWarp / 4;
    int left = (int) (n_outs - first);

    out += row * ldo + first;
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        uint32_t low = transpose(pack(sums[4 * j], sums[4 * j + 1]));
        uint32_t high = transpose(pack(sums[4 * j + 2], sums[4 * j + 3]));

        if (row + j * 8 < t.n) {
            put(out, low, left);
            put(out + 8, high, left - 8);
        }
        out += 8 * ldo;
    }
}

template <int N>
__device__ __forceinline__ void store_f32(const item &t, const float (&sums)[N / 2], float *out,
                                          size_t ldo, uint32_t n_outs, bool add)
{
    uint32_t first = warp_out(t, 16) + threadIdx.x % kWarp / 4, row = threadIdx.x % 4 * 2;

    out += row * ldo + first;
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        float *to = out + (i / 4 * 8 + i % 2) * ldo + i / 2 % 2 * 8;

        if (row + i / 4 * 8 + i % 2 < t.n && first + i / 2 % 2 * 8 < n_outs) {
            if (add) {
                atomicAdd(to, sums[i]); /* the only one: not to wait for what was there */
            } else {
                *to = sums[i];
            }
        }
    }
}

/* --- what there is to do --- */

struct linear_job {
    CUtensorMap w, x;
    uint32_t n_outs, n_chunks, n_pairs, end; /* pairs of 128 outputs; one past its last item */
    const float *scale;
    size_t scale_step, scale_stride;
    void *out;
    size_t ldo, out_step;
    enum llm_cuda_store store;
};

struct linears_job {
    linear_job l[LLM_CUDA_MAX_LINEARS];
    uint32_t n, n_rows, item_rows, n_tiles;

    struct walk {
        const linears_job &job;
        uint32_t index;

        __device__ explicit walk(const linears_job &j) : job(j), index(blockIdx.x / kCluster) {}
        __device__ __forceinline__ bool next(item &t)
        {
            uint32_t which = 0, i = index;

            while (which < job.n && i >= job.l[which].end) {
                which++;
            }
            if (which == job.n) {
                return false;
            }
            i -= which > 0 ? job.l[which - 1].end : 0;
            index += gridDim.x / kCluster;

            uint32_t pair = i % job.l[which].n_pairs, tile = i / job.l[which].n_pairs;
            t.which = which;
            t.member = tile / job.n_tiles;
            t.out = (pair * kCluster + block_of_cluster()) * kOuts;
            t.row = tile % job.n_tiles * job.item_rows;
            t.n = min(job.n_rows - t.row, job.item_rows);
            return true;
        }
    };

    __device__ __forceinline__ uint32_t chunks(const item &t) const { return l[t.which].n_chunks; }
    __device__ __forceinline__ const CUtensorMap *rows_map(const item &t) const
    {
        return &l[t.which].x;
    }
    __device__ __forceinline__ uint32_t rows_member(const item &t) const { return t.member; }
    __device__ __forceinline__ void fetch_weights(const item &t, uint32_t chunk, void *to,
                                                  uint64_t *b) const
    {
        fetch_tile(to, &l[t.which].w, chunk * kChunk, t.out, t.member, b);
    }
    __device__ __forceinline__ void find_scales(const item &t, scales &s) const
    {
        const linear_job &j = l[t.which];
        uint32_t out = min(t.out, j.n_outs - 1) / LLM_CUDA_SCALE_BLOCK;

        s.at[0] = s.at[1] = j.scale + t.member * j.scale_step + out * j.scale_stride;
    }
    template <int N>
    __device__ __forceinline__ void store(const item &t, const float (&sums)[N / 2]) const
    {
        const linear_job &j = l[t.which];
        size_t at = t.member * j.out_step + t.row * j.ldo;

        if (j.store == LLM_CUDA_SET_BF16) {
            store_bf16<N>(t, sums, static_cast<__nv_bfloat16 *>(j.out) + at, j.ldo, j.n_outs);
        } else {
            store_f32<N>(t, sums, static_cast<float *>(j.out) + at, j.ldo, j.n_outs,
                         j.store == LLM_CUDA_ADD_F32);
        }
    }
};

/* Up: outputs of the gate and of up by turns of 8, so that a thread has both of a product. */
template <bool Up>
struct experts_job {
    CUtensorMap w, x;
    uint32_t n_outs, n_chunks, n_pairs;
    const float *scale;
    size_t scale_step, scale_stride;
    const uint32_t *n_active, *expert, *first;
    __nv_bfloat16 *out;
    size_t ldo;

    static constexpr int kMade = Up ? kOuts / 2 : kOuts; /* outputs of a block */

    /* The items of an expert's rows are about as large as one another. */
    struct walk {
        const experts_job &job;
        uint32_t index, n_active, i, before; /* expert i of those that are active; items' rows */

        __device__ explicit walk(const experts_job &j)
            : job(j), index(blockIdx.x / kCluster), n_active(*j.n_active), i(0), before(0)
        {
        }
        __device__ __forceinline__ bool next(item &t)
        {
            uint32_t tile = index / job.n_pairs, pair = index % job.n_pairs;

            for (; i < n_active; i++) {
                uint32_t begin = job.first[i], n = job.first[i + 1] - begin;
                uint32_t n_tiles = (n + kMaxRows - 1) / kMaxRows;

                if (tile < before + n_tiles) {
                    uint32_t each = (n + n_tiles - 1) / n_tiles;

                    each = (each + kRowStep - 1) / kRowStep * kRowStep;
                    t.which = 0;
                    t.member = job.expert[i];
                    t.out = (pair * kCluster + block_of_cluster()) * kMade;
                    t.row = (tile - before) * each;
                    t.n = min(n - t.row, each);
                    t.row += begin;
                    index += gridDim.x / kCluster;
                    return true;
                }
                before += n_tiles;
            }
            return false;
        }
    };

    __device__ __forceinline__ uint32_t chunks(const item &) const { return n_chunks; }
    __device__ __forceinline__ const CUtensorMap *rows_map(const item &) const { return &x; }
    __device__ __forceinline__ uint32_t rows_member(const item &) const { return 0; }
    __device__ __forceinline__ void fetch_weights(const item &t, uint32_t chunk, void *to,
                                                  uint64_t *b) const
    {
        if (Up) {
            fetch_tile(to, &w, chunk * kChunk, 0, 0, t.out / 8, t.member, b);
        } else {
            fetch_tile(to, &w, chunk * kChunk, t.out, t.member, b);
        }
    }
    __device__ __forceinline__ void find_scales(const item &t, scales &s) const
    {
        uint32_t out = min(t.out, n_outs - 1);

        for (int i = 0; i < 2; i++) {
            s.at[i] = scale + t.member * scale_step
                      + (out + (Up ? i * n_outs : 0)) / LLM_CUDA_SCALE_BLOCK * scale_stride;
        }
    }
    template <int N>
    __device__ __forceinline__ void store(const item &t, const float (&sums)[N / 2]) const
    {
        if (!Up) {
            store_bf16<N>(t, sums, out + t.row * ldo, ldo, n_outs);
            return;
        }
        uint32_t own = warp_out(t, 8) + threadIdx.x % 4 * 2, row = threadIdx.x % kWarp / 4;
        __nv_bfloat16 *to = out + (t.row + row) * ldo + own;

#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            float h[2];

#pragma unroll
            for (int i = 0; i < 2; i++) {
                float gate = sums[4 * j + i];

                h[i] = gate / (1 + __expf(-gate)) * sums[4 * j + 2 + i];
            }
            uint32_t two = transpose(pack(h[0], h[1]));
            if (row + j * 8 < t.n) {
                put(to, two, (int) (n_outs - own));
            }
            to += 8 * ldo;
        }
    }
};

/* --- on the host --- */

/* w.rows x w.cols of n matrices of weights, in tiles of kOuts rows. */
tensor weights_of(const struct llm_cuda_matrix &w, uint32_t n, size_t step)
{
    bool bf16 = w.dtype == LLM_CUDA_BF16;
    tensor t = {};

    t.type = bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8;
    t.data = w.data;
    t.n_dims = 3;
    t.sizes[0] = w.cols;
    t.sizes[1] = w.rows;
    t.sizes[2] = n;
    t.steps[0] = w.stride;
    t.steps[1] = n > 1 ? step : 16;
    t.tile[0] = kChunk;
    t.tile[1] = kOuts;
    t.tile[2] = 1;
    t.row_bytes = bf16 ? kChunk * 2 : kChunk;
    return t;
}

/* Those of gate and up: 8 rows of each, and again. */
tensor both_of(const struct llm_cuda_matrix &w, uint32_t n, size_t step)
{
    tensor t = weights_of(w, n, step);

    t.n_dims = 5;
    t.sizes[1] = 8;
    t.sizes[2] = 2;
    t.sizes[3] = w.rows / 2 / 8;
    t.sizes[4] = n;
    t.steps[1] = w.rows / 2 * w.stride;
    t.steps[2] = 8 * w.stride;
    t.steps[3] = n > 1 ? step : 16;
    t.tile[1] = 8;
    t.tile[2] = 2;
    t.tile[3] = kOuts / 16;
    t.tile[4] = 1;
    return t;
}

/* n rows of bf16 of each member, ld elements apart. */
tensor rows_of(const void *x, uint32_t cols, uint32_t n, size_t ld, uint32_t n_members, size_t step)
{
    tensor t = {};

    t.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    t.data = x;
    t.n_dims = 3;
    t.sizes[0] = cols;
    t.sizes[1] = n;
    t.sizes[2] = n_members;
    t.steps[0] = ld * 2;
    t.steps[1] = n_members > 1 ? step * 2 : 16;
    t.tile[0] = kChunk;
    t.tile[1] = kRowTile;
    t.tile[2] = 1;
    t.row_bytes = kChunk * 2;
    return t;
}

int count_clusters(uint32_t *n)
{
    int device = 0, processors = 0;
    cudaError_t error = cudaGetDevice(&device);

    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    }
    *n = (uint32_t) processors / kCluster;
    return error;
}

/* How many rows an item has: those with which the clusters are done first. An item takes as long as
 * its rows, and a bit. */
uint32_t choose_rows(const linears_job &job, const uint32_t *n_members, uint32_t n_clusters)
{
    uint32_t best = 0;
    uint64_t least = UINT64_MAX;

    for (uint32_t rows = kMaxRows; rows > 0; rows -= kRowStep) {
        uint64_t n_tiles = (job.n_rows + rows - 1) / rows, items = 0, time;

        for (uint32_t i = 0; i < job.n; i++) {
            items += n_tiles * job.l[i].n_pairs * n_members[i];
        }
        time = (items + n_clusters - 1) / n_clusters * (rows + 32);
        if (time < least) {
            least = time;
            best = rows;
        }
    }
    return best;
}

template <int Dtype, typename Job>
int launch_job(const Job &job, uint32_t n_clusters, const struct llm_cuda_queue &q)
{
    return launch_clusters(groups_kernel<Dtype, Job>, n_clusters, kThreads,
                           stage<Dtype>::kShared, q, job);
}

template <bool Up>
int launch_experts(const struct llm_cuda_experts &e, const struct llm_cuda_pairs &p,
                   uint32_t max_pairs, const void *x, size_t ldx, void *out, size_t ldo,
                   const struct llm_cuda_queue &q)
{
    const struct llm_cuda_matrix &w = Up ? e.gate_up : e.down;
    experts_job<Up> job = {};
    uint32_t n_clusters;
    int error = count_clusters(&n_clusters);

    if (error == cudaSuccess) {
        error = make_map(&job.w, Up ? both_of(w, p.max_active, e.gate_up_step)
                                    : weights_of(w, p.max_active, e.down_step));
    }
    if (error == cudaSuccess) {
        error = make_map(&job.x, rows_of(x, w.cols, max_pairs, ldx, 1, 0));
    }
    if (error != cudaSuccess) {
        return error;
    }
    job.n_outs = Up ? w.rows / 2 : w.rows;
    job.n_chunks = (w.cols + kChunk - 1) / kChunk;
    job.n_pairs = (job.n_outs + kCluster * job.kMade - 1) / (kCluster * job.kMade);
    job.scale = w.scale;
    job.scale_step = Up ? e.gate_up_scale_step : e.down_scale_step;
    job.scale_stride = w.scale_stride;
    job.n_active = p.n_active;
    job.expert = p.expert;
    job.first = p.first;
    job.out = static_cast<__nv_bfloat16 *>(out);
    job.ldo = ldo;
    return w.dtype == LLM_CUDA_BF16 ? launch_job<LLM_CUDA_BF16>(job, n_clusters, q)
                                    : launch_job<LLM_CUDA_E4M3>(job, n_clusters, q);
}

} // namespace

int linears_by_groups(const struct llm_cuda_linear *l, uint32_t n, uint32_t n_rows,
                      const struct llm_cuda_queue &q)
{
    linears_job job = {};
    uint32_t n_clusters, n_members[LLM_CUDA_MAX_LINEARS], items = 0;
    int error = count_clusters(&n_clusters);

    job.n = n;
    job.n_rows = n_rows;
    for (uint32_t i = 0; i < n && error == cudaSuccess; i++) {
        linear_job &j = job.l[i];

        error = make_map(&j.w, weights_of(l[i].w, l[i].n_batch, l[i].w_step));
        if (error == cudaSuccess) {
            error = make_map(&j.x, rows_of(l[i].x, l[i].w.cols, n_rows, l[i].ldx, l[i].n_batch,
                                           l[i].x_step));
        }
        n_members[i] = l[i].n_batch;
        j.n_outs = l[i].w.rows;
        j.n_chunks = (l[i].w.cols + kChunk - 1) / kChunk;
        j.n_pairs = (l[i].w.rows + kCluster * kOuts - 1) / (kCluster * kOuts);
        j.scale = l[i].w.scale;
        j.scale_step = l[i].scale_step;
        j.scale_stride = l[i].w.scale_stride;
        j.out = l[i].out;
        j.ldo = l[i].ldo;
        j.out_step = l[i].out_step;
        j.store = l[i].store;
    }
    if (error != cudaSuccess) {
        return error;
    }
    job.item_rows = choose_rows(job, n_members, n_clusters);
    job.n_tiles = (n_rows + job.item_rows - 1) / job.item_rows;
    for (uint32_t i = 0; i < n; i++) {
        items += job.l[i].n_pairs * job.n_tiles * n_members[i];
        job.l[i].end = items;
    }
    n_clusters = items < n_clusters ? items : n_clusters;
    return l[0].w.dtype == LLM_CUDA_BF16 ? launch_job<LLM_CUDA_BF16>(job, n_clusters, q)
                                         : launch_job<LLM_CUDA_E4M3>(job, n_clusters, q);
}

int experts_up_by_groups(const struct llm_cuda_experts &e, const struct llm_cuda_pairs &p,
                         uint32_t max_pairs, const void *x, size_t ldx, void *h, size_t ldh,
                         const struct llm_cuda_queue &q)
{
    return launch_experts<true>(e, p, max_pairs, x, ldx, h, ldh, q);
}

int experts_down_by_groups(const struct llm_cuda_experts &e, const struct llm_cuda_pairs &p,
                           uint32_t max_pairs, const void *h, size_t ldh, void *y, size_t ldy,
                           const struct llm_cuda_queue &q)
{
    return launch_experts<false>(e, p, max_pairs, h, ldh, y, ldy, q);
}

} // namespace llm
