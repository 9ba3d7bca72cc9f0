/* Times launches: a graph of many, replayed. */

#ifndef T_BENCH_GPU_BENCH_H
#define T_BENCH_GPU_BENCH_H

#include "t/gpu/gpu.h"

#define BYTES_PER_US 4.66e6 /* what one H200 reads */
#define POOL_BYTES ((size_t) 2 << 30)
#define SCRATCH_BYTES ((size_t) 256 << 20)

/* Bytes that are finite numbers, as bf16 (of magnitude 2^-15 to 2) and as e4m3. */
__attribute__((unused)) static void *random_pool(void)
{
    size_t piece = (size_t) 64 << 20;
    uint8_t *host = allocate(piece), *pool = device(POOL_BYTES);

    for (size_t i = 0; i < piece; i += 2) {
        uint32_t r = rnd(1u << 31);
        uint16_t h = (uint16_t) ((r & 0x807F) | (112 + (r >> 16 & 15)) << 7);

        h = (h & 0x7F) == 0x7F ? h ^ 1 : h; /* the low byte as e4m3 */
        memcpy(host + i, &h, 2);
    }
    for (size_t i = 0; i < POOL_BYTES; i += piece) {
        CUDA(cudaMemcpy(pool + i, host, piece, cudaMemcpyHostToDevice));
    }
    free(host);
    return pool;
}

/* Scratch that begins with 16 MB of fp32 scales. */
__attribute__((unused)) static void *small_scales(void)
{
    size_t n = (size_t) 4 << 20;
    float *host = allocate(n * sizeof(*host));
    char *scratch = device_poisoned(SCRATCH_BYTES);

    for (size_t i = 0; i < n; i++) {
        host[i] = 0.01f + 0.005f * uniform();
    }
    CUDA(cudaMemcpy(scratch, host, n * sizeof(*host), cudaMemcpyHostToDevice));
    free(host);
    return scratch;
}

typedef void enqueue_fn(void *ctx, uint32_t i, struct llm_cuda_queue q);

static int by_value(const void *a, const void *b)
{
    float x = *(const float *) a, y = *(const float *) b;

    return (x > y) - (x < y);
}

/* The median time of one of `n` launches, in microseconds. */
static double launch_us(enqueue_fn *enqueue, void *ctx, uint32_t n, bool overlap)
{
    struct llm_cuda_queue q = {.overlap = overlap};
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t begin, end;
    float ms[7];

    CUDA(cudaStreamCreate(&q.stream));
    CUDA(cudaEventCreate(&begin));
    CUDA(cudaEventCreate(&end));
    CUDA(cudaStreamBeginCapture(q.stream, cudaStreamCaptureModeGlobal));
    for (uint32_t i = 0; i < n; i++) {
        enqueue(ctx, i, q);
    }
    CUDA(cudaStreamEndCapture(q.stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = -1; i < 7; i++) {
        CUDA(cudaEventRecord(begin, q.stream));
        CUDA(cudaGraphLaunch(exec, q.stream));
        CUDA(cudaEventRecord(end, q.stream));
        CUDA(cudaStreamSynchronize(q.stream));
        CUDA(cudaEventElapsedTime(&ms[i < 0 ? 0 : i], begin, end));
    }
    qsort(ms, 7, sizeof(ms[0]), by_value);
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaEventDestroy(begin));
    CUDA(cudaEventDestroy(end));
    CUDA(cudaStreamDestroy(q.stream));
    return ms[3] * 1000.0 / n;
}

/* One line: time and share of the bound of a launch that reads `bytes`, one after the other and
 * overlapped. */
__attribute__((unused)) static void report(const char *name, size_t bytes, enqueue_fn *enqueue,
                                           void *ctx)
{
    double bound = (double) bytes / BYTES_PER_US;
    uint32_t n = bound > 100 ? 20 : bound > 10 ? 60 : 200;
    double alone = launch_us(enqueue, ctx, n, false), overlapped = launch_us(enqueue, ctx, n, true);

    printf("%-46s %8.2f MB %8.2f us %5.0f GB/s %5.1f %%  overlapped %8.2f us %5.1f %%\n", name,
           (double) bytes / 1e6, alone, (double) bytes / alone / 1e3, 100 * bound / alone,
           overlapped, 100 * bound / overlapped);
    fflush(stdout);
}

#endif
