/* What the tests and benches of the CUDA kernels share: random numbers, the formats in plain
 * arithmetic, memory of the device. */

#ifndef T_GPU_GPU_H
#define T_GPU_GPU_H

#include "kernels/cuda/kernels.h"
#include "t/unit/tap.h"

#include <cuda_runtime_api.h>
#include <math.h>

static uint64_t random_state = 1;

__attribute__((unused)) static uint32_t rnd(uint32_t below)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t) (random_state >> 33) % below;
}

__attribute__((unused)) static float uniform(void)
{
    return (float) rnd(1 << 24) * 0x1p-23f - 1;
}

__attribute__((unused)) static float f32_of_bf16(uint16_t h)
{
    uint32_t u = (uint32_t) h << 16;
    float f;

    memcpy(&f, &u, sizeof(f));
    return f;
}

__attribute__((unused)) static uint16_t bf16_of_f32(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof(u));
    return (uint16_t) ((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

__attribute__((unused)) static float f32_of_e4m3(uint8_t b)
{
    int exponent = b >> 3 & 15, mantissa = b & 7;
    double v = exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, exponent - 10);

    return (float) (b & 0x80 ? -v : v);
}

__attribute__((unused)) static void *allocate(size_t n)
{
    void *p = malloc(n + 1);

    if (p == NULL) {
        puts("Bail out! out of memory");
        exit(1);
    }
    return p;
}

#define CUDA(call) cuda_ok((int) (call), #call)

__attribute__((unused)) static void cuda_ok(int error, const char *call)
{
    if (error != 0) {
        printf("Bail out! %s: %s\n", call, cudaGetErrorString((cudaError_t) error));
        exit(1);
    }
}

__attribute__((unused)) static void *device(size_t n)
{
    void *p;

    CUDA(cudaMalloc(&p, n + 16));
    return p;
}

__attribute__((unused)) static void *device_copy(const void *from, size_t n)
{
    void *p = device(n);

    CUDA(cudaMemcpy(p, from, n, cudaMemcpyHostToDevice));
    return p;
}

/* NaN, as fp32 and as bf16 */
__attribute__((unused)) static void *device_poisoned(size_t n)
{
    void *p = device(n);

    CUDA(cudaMemset(p, 0xFF, n));
    return p;
}

__attribute__((unused)) static float *random_floats(size_t n)
{
    float *p = allocate(n * sizeof(*p));

    for (size_t i = 0; i < n; i++) {
        p[i] = uniform();
    }
    return p;
}

/* The device's, as long as the host wants them. */
__attribute__((unused)) static void *fetch(const void *from, size_t n_bytes)
{
    void *p = allocate(n_bytes);

    CUDA(cudaMemcpy(p, from, n_bytes, cudaMemcpyDeviceToHost));
    return p;
}

__attribute__((unused)) static float *fetch_bf16(const void *from, size_t n)
{
    uint16_t *h = fetch(from, n * sizeof(*h));
    float *p = allocate(n * sizeof(*p));

    for (size_t i = 0; i < n; i++) {
        p[i] = f32_of_bf16(h[i]);
    }
    free(h);
    return p;
}

/* ‖got − want‖ / ‖want‖; NaN where one is. */
__attribute__((unused)) static double distance(const float *got, const double *want, size_t n)
{
    double diff = 0, norm = 0;

    for (size_t i = 0; i < n; i++) {
        diff += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    return norm > 0 ? sqrt(diff / norm) : sqrt(diff);
}

#endif
