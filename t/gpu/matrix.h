/* Random matrices of every type that the general path takes, and their elements. */

#ifndef T_GPU_MATRIX_H
#define T_GPU_MATRIX_H

#include "t/gpu/gpu.h"

/* n matrices one behind the other, `step` bytes and `scale_step` floats apart, with NaN between
 * rows; m is that of the device. aligned: as the fast path has them. */
struct matrices {
    struct llm_cuda_matrix m;
    size_t step, scale_step;
    uint8_t *data;
    float *scale;
};

static size_t element_size(enum llm_cuda_dtype dtype)
{
    return dtype == LLM_CUDA_F32 ? 4 : dtype == LLM_CUDA_E4M3 ? 1 : 2;
}

static float f32_of_f16(uint16_t h)
{
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    double v = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);

    return (float) (h & 0x8000 ? -v : v);
}

__attribute__((unused)) static struct matrices random_matrices(enum llm_cuda_dtype dtype,
                                                               uint32_t rows, uint32_t cols,
                                                               uint32_t n, bool aligned)
{
    size_t size = element_size(dtype), n_scales;
    struct matrices m = {.m = {.dtype = dtype, .rows = rows, .cols = cols}};

    m.m.stride = aligned ? (cols * size + 15) / 16 * 16 + rnd(2) * 16 : (cols + rnd(3)) * size;
    m.step = m.m.stride * rows + rnd(3) * (aligned ? 16 : 4 * size);
    m.m.block_rows = aligned || rnd(2) ? 128 : 1 + rnd(40);
    m.m.block_cols = aligned || rnd(2) ? 128 : 1 + rnd(40);
    m.m.scale_stride = (cols + m.m.block_cols - 1) / m.m.block_cols + rnd(2);
    m.scale_step = m.m.scale_stride * ((rows + m.m.block_rows - 1) / m.m.block_rows) + rnd(2);
    n_scales = m.scale_step * n;

    m.data = allocate(m.step * n);
    memset(m.data, 0xFF, m.step * n);
    for (uint32_t b = 0; b < n; b++) {
        for (size_t i = 0; i < (size_t) rows * cols; i++) {
            uint8_t *p = m.data + b * m.step + i / cols * m.m.stride + i % cols * size;
            float v = 0.1f * uniform();
            uint16_t h = dtype == LLM_CUDA_BF16 ? bf16_of_f32(v)
                                                : (uint16_t) (rnd(2) << 15 | rnd(0x3000));

            if (dtype == LLM_CUDA_E4M3) {
                *p = (uint8_t) (rnd(2) * 128 + rnd(127));
            } else if (dtype == LLM_CUDA_F32) {
                memcpy(p, &v, 4);
            } else {
                memcpy(p, &h, 2);
            }
        }
    }
    m.scale = allocate(n_scales * sizeof(float));
    for (size_t i = 0; i < n_scales; i++) {
        m.scale[i] = 0.002f + 0.001f * uniform();
    }
    m.m.data = device_copy(m.data, m.step * n);
    m.m.scale = device_copy(m.scale, n_scales * sizeof(float));
    return m;
}

/* Element (row, col) of the b-th; as fp32, of which e4m3's is a rounded product. */
__attribute__((unused)) static float element(const struct matrices *m, uint32_t b, uint32_t row,
                                             uint32_t col)
{
    const uint8_t *p = m->data + b * m->step + row * m->m.stride + col * element_size(m->m.dtype);
    uint16_t h;
    float v;

    switch (m->m.dtype) {
    case LLM_CUDA_F32:
        memcpy(&v, p, 4);
        return v;
    case LLM_CUDA_E4M3:
        return f32_of_e4m3(*p)
               * m->scale[b * m->scale_step + row / m->m.block_rows * m->m.scale_stride
                          + col / m->m.block_cols];
    default:
        memcpy(&h, p, 2);
        return m->m.dtype == LLM_CUDA_BF16 ? f32_of_bf16(h) : f32_of_f16(h);
    }
}

__attribute__((unused)) static void release_matrices(struct matrices *m)
{
    CUDA(cudaFree((void *) m->m.data));
    CUDA(cudaFree((void *) m->m.scale));
    free(m->data);
    free(m->scale);
}

#endif
