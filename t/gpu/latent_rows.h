/* Rows of latents as pages have them: made up, and what they say. */

#ifndef T_GPU_LATENT_ROWS_H
#define T_GPU_LATENT_ROWS_H

#include "t/gpu/gpu.h"

#define RANK LLM_CUDA_RANK
#define WIDTH LLM_CUDA_LATENT_WIDTH

static void random_row(enum llm_cuda_latent_dtype dtype, uint8_t *row)
{
    for (int i = 0; i < WIDTH; i++) {
        float scale = 0.002f + 0.001f * uniform();
        uint16_t h = bf16_of_f32(uniform());

        if (dtype == LLM_CUDA_LATENT_BF16) {
            memcpy(row + i * 2, &h, 2);
        } else if (i < RANK) {
            row[i] = (uint8_t) (rnd(2) * 128 + rnd(127));
            memcpy(row + RANK + i / 128 * 4, &scale, 4);
        } else {
            memcpy(row + RANK + 16 + (i - RANK) * 2, &h, 2);
        }
    }
}

static void unpack_row(enum llm_cuda_latent_dtype dtype, const uint8_t *row, double *out)
{
    const uint8_t *rope = row + (dtype == LLM_CUDA_LATENT_FP8 ? RANK + 16 : RANK * 2);

    for (int i = 0; i < WIDTH; i++) {
        uint16_t h;
        float scale;

        if (dtype == LLM_CUDA_LATENT_FP8 && i < RANK) {
            memcpy(&scale, row + RANK + i / 128 * 4, 4);
            out[i] = (double) f32_of_e4m3(row[i]) * scale;
        } else {
            memcpy(&h, i < RANK ? row + i * 2 : rope + (i - RANK) * 2, 2);
            out[i] = f32_of_bf16(h);
        }
    }
}

#endif
