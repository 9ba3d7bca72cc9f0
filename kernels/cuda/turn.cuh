/* Products of stored weights and few rows of activations on the tensor cores, a turn of 128 columns
 * at a time: what the kernels that are bound by the bytes of weights have in common.
 *
 * Weights are the left operand (16 rows), activations the right one (8 columns), so that one row
 * of activations costs what eight do; the order of columns within a fragment is the one in which
 * 16 bytes per thread come from a row, the same for both operands. e4m3 becomes bf16 in registers,
 * exactly; its scale is applied to the fp32 sums of a turn. A warp fetches whole lines of 128
 * bytes, which L2 takes to, into a slot of shared memory that is its own: no warp waits for
 * another. */

#ifndef KERNELS_CUDA_TURN_CUH
#define KERNELS_CUDA_TURN_CUH

#include "kernels/cuda/device.cuh"

namespace llm {

constexpr int kChunk = LLM_CUDA_SCALE_BLOCK; /* columns of a turn */

/* A row's columns of a turn are kLines lines of 128 bytes, a line is 8 pieces of 16. Thread t of
 * four feeds piece j * 4 + t of a row to the tensor cores in step j. */
template <int Dtype>
struct format {
    static constexpr int kBytes = Dtype == LLM_CUDA_BF16 ? 2 : 1;
    static constexpr int kLines = kChunk * kBytes / 128;
    static constexpr int kPiece = 16 / kBytes; /* columns */
    static constexpr int kSteps = kLines * 2;
    static constexpr int kWords = kPiece / 2; /* of activations that meet a piece */
};

/* The weights of a turn of a warp: RowTiles x 16 rows. */
template <int Dtype, int RowTiles>
struct slot {
    static constexpr int kRowPieces = format<Dtype>::kLines * 8;
    static constexpr int kPieces = RowTiles * 16 * kRowPieces;
    static constexpr int kBytes = kPieces * 16;
    static constexpr int kCopies = RowTiles * 4; /* a warp copies lines of four rows at once */
};

/* Copies columns [chunk * kChunk, + kChunk) of the rows whose offsets from w this thread has:
 * offset[i] is of row i * 4 + lane / 8. What is beyond `cols` is zero. */
template <int Dtype, int RowTiles>
__device__ __forceinline__ void fetch_turn(uint4 *to, const uint8_t *w,
                                           const uint32_t (&offset)[RowTiles * 4], uint32_t chunk,
                                           uint32_t cols)
{
    using f = format<Dtype>;
    int lane = threadIdx.x % kWarp;

#pragma unroll
    for (int j = 0; j < f::kLines; j++) {
        uint32_t at = chunk * kChunk * f::kBytes + j * 128 + lane % 8 * 16;
        int left = (int) (cols * f::kBytes - at);
        uint32_t n = left >= 16 ? 16 : left > 0 ? left : 0;

#pragma unroll
        for (int i = 0; i < RowTiles * 4; i++) {
            int r = i * 4 + lane / 8;

            /* odd rows are turned by half a line: other banks */
            copy_async(&to[r * slot<Dtype, RowTiles>::kRowPieces + j * 8 + (lane % 8 ^ r % 2 * 4)],
                       n > 0 ? w + offset[i] + at : w, n);
        }
    }
}

/* 8 activations from column k on; beyond `cols` they are zero. */
__device__ __forceinline__ uint4 load_activations(const __nv_bfloat16 *x, uint32_t k,
                                                  uint32_t cols)
{
    uint32_t v[4] = {};

    if (k + 8 <= cols) {
        return load16(x + k);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i / 2] |= k + i < cols ? (uint32_t) __bfloat16_as_ushort(x[k + i]) << i % 2 * 16 : 0;
    }
    return {v[0], v[1], v[2], v[3]};
}

/* Columns [col, col + kPiece) of activations as right operand, in the order in which weights come
 * out of the registers; x[c] is this thread's row among rows c * 8 … + 7, that of lane / 4. */
template <int Dtype, int ColTiles>
__device__ __forceinline__ void load_words(const __nv_bfloat16 *const (&x)[ColTiles], uint32_t col,
                                           uint32_t cols,
                                           uint32_t (&words)[ColTiles][format<Dtype>::kWords])
{
#pragma unroll
    for (int c = 0; c < ColTiles; c++) {
#pragma unroll
        for (int i = 0; i < format<Dtype>::kWords; i += 4) {
            uint4 v = load_activations(x[c], col + i * 2, cols);

            words[c][i] = v.x;
            words[c][i + 1] = v.y;
            words[c][i + 2] = v.z;
            words[c][i + 3] = v.w;
        }
#pragma unroll
        for (int i = 0; Dtype == LLM_CUDA_E4M3 && i < format<Dtype>::kWords; i += 2) {
            uint32_t low = words[c][i], high = words[c][i + 1];

            words[c][i] = __byte_perm(low, high, 0x5410);
            words[c][i + 1] = __byte_perm(low, high, 0x7632);
        }
    }
}

/* sums += weights * activations for step j of a turn, its words loaded. */
template <int Dtype, int ColTiles, int RowTiles>
__device__ __forceinline__ void multiply_step(float (&sums)[RowTiles][ColTiles][4],
                                              const uint4 *slots, int j,
                                              const uint32_t (&b)[ColTiles][format<Dtype>::kWords])
{
    constexpr int kRowPieces = slot<Dtype, RowTiles>::kRowPieces;
    int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;

#pragma unroll
    for (int m = 0; m < RowTiles; m++) {
        const uint4 *piece = slots + (m * 16 + g) * kRowPieces + (j * 4 + t ^ g % 2 * 4);
        uint4 low = piece[0], high = piece[8 * kRowPieces];
        const uint32_t lo[4] = {low.x, low.y, low.z, low.w};
        const uint32_t hi[4] = {high.x, high.y, high.z, high.w};

#pragma unroll
        for (int i = 0; i < format<Dtype>::kWords / 2; i++) {
            uint32_t a0, a1, a2, a3;

            if (Dtype == LLM_CUDA_BF16) {
                a0 = lo[2 * i % 4];
                a1 = hi[2 * i % 4];
                a2 = lo[(2 * i + 1) % 4];
                a3 = hi[(2 * i + 1) % 4];
            } else {
                a0 = bf16_of_e4m3<false>(lo[i]);
                a1 = bf16_of_e4m3<false>(hi[i]);
                a2 = bf16_of_e4m3<true>(lo[i]);
                a3 = bf16_of_e4m3<true>(hi[i]);
            }
#pragma unroll
            for (int c = 0; c < ColTiles; c++) {
                mma(sums[m][c], a0, a1, a2, a3, b[c][2 * i], b[c][2 * i + 1]);
            }
        }
    }
}

/* A turn: adds its products to sums; scale[m] is of tile m of rows. Its activations are loaded
 * first, then fetch_next() makes a group of copies for a later turn, then the turn's own weights
 * are waited for: all but the last `Later` groups must hold them. */
template <int Dtype, int ColTiles, int RowTiles, int Later, typename Fetch>
__device__ __forceinline__ void take_turn(float (&sums)[RowTiles][ColTiles][4], const uint4 *slots,
                                          const __nv_bfloat16 *const (&x)[ColTiles],
                                          uint32_t chunk, uint32_t cols,
                                          const float (&scale)[RowTiles], Fetch fetch_next)
{
    using f = format<Dtype>;
    constexpr int kAhead = ColTiles <= 2 ? f::kSteps : 1;
    uint32_t words[kAhead][ColTiles][f::kWords];
    float part[RowTiles][ColTiles][4] = {};
    uint32_t col = chunk * kChunk + threadIdx.x % 4 * f::kPiece;

#pragma unroll
    for (int j = 0; kAhead > 1 && j < kAhead; j++) {
        load_words<Dtype>(x, col + j * 4 * f::kPiece, cols, words[j]);
    }
    __syncwarp();
    fetch_next();
    wait_for_copies<Later>();
    __syncwarp();
#pragma unroll
    for (int j = 0; j < f::kSteps; j++) {
        if (kAhead == 1) {
            load_words<Dtype>(x, col + j * 4 * f::kPiece, cols, words[0]);
        }
        multiply_step<Dtype, ColTiles, RowTiles>(Dtype == LLM_CUDA_BF16 ? sums : part, slots, j,
                                                 words[kAhead > 1 ? j : 0]);
    }
#pragma unroll
    for (int m = 0; Dtype == LLM_CUDA_E4M3 && m < RowTiles; m++) {
#pragma unroll
        for (int i = 0; i < ColTiles * 4; i++) {
            (&sums[m][0][0])[i] += (&part[m][0][0])[i] * scale[m];
        }
    }
}

} // namespace llm

#endif
