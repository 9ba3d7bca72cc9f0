/* Weights on their way to the device. One thread alone copies slower than the link takes them, so
 * there are several, each with two pinned buffers: while one is on its way the other is filled. */

#include "engine/backend/cuda_internal.h"
#include "engine/base/machine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define MAX_THREADS 12
#define BUFFER_BYTES ((uint64_t) 8 << 20)

struct load {
    const struct llm_cuda_upload *uploads;
    uint64_t n;
    uint32_t device;
    uint64_t buffer_bytes; /* at least the longest row */

    pthread_mutex_t lock;  /* of the place */
    uint64_t upload, row;  /* what nobody has begun */

    _Atomic uint64_t done, total;
    _Atomic int error; /* cudaError_t */
};

struct worker {
    struct load *load;
    pthread_t thread;
    char *buffers[2];
    cudaEvent_t sent[2];
    cudaStream_t stream;
};

/* Takes as many rows as fit into a buffer. False: there are none left. */
static bool take_rows(struct load *l, struct llm_cuda_upload *out)
{
    const struct llm_cuda_upload *u;
    uint64_t rows;
    bool found = false;

    pthread_mutex_lock(&l->lock);
    while (l->upload < l->n && l->row == l->uploads[l->upload].rows) {
        l->upload++;
        l->row = 0;
    }
    if (l->upload < l->n) {
        u = &l->uploads[l->upload];
        rows = l->buffer_bytes / u->row_bytes;
        rows = rows < u->rows - l->row ? rows : u->rows - l->row;
        *out = *u;
        out->from += l->row * u->from_step;
        out->to += l->row * u->to_step;
        out->rows = rows;
        l->row += rows;
        found = true;
    }
    pthread_mutex_unlock(&l->lock);
    return found;
}

static cudaError_t send_rows(struct worker *w, const struct llm_cuda_upload *u, int i)
{
    cudaError_t error = cudaEventSynchronize(w->sent[i]);

    if (error != cudaSuccess) {
        return error;
    }
    if (u->from_step == u->row_bytes) {
        memcpy(w->buffers[i], u->from, u->rows * u->row_bytes);
    } else {
        for (uint64_t r = 0; r < u->rows; r++) {
            memcpy(w->buffers[i] + r * u->row_bytes, u->from + r * u->from_step, u->row_bytes);
        }
    }
    if (u->to_step == u->row_bytes) {
        error = cudaMemcpyAsync(u->to, w->buffers[i], u->rows * u->row_bytes,
                                cudaMemcpyHostToDevice, w->stream);
    } else {
        error = cudaMemcpy2DAsync(u->to, u->to_step, w->buffers[i], u->row_bytes, u->row_bytes,
                                  u->rows, cudaMemcpyHostToDevice, w->stream);
    }
    return error == cudaSuccess ? cudaEventRecord(w->sent[i], w->stream) : error;
}

static cudaError_t open_worker(struct worker *w)
{
    cudaError_t error = cudaSetDevice((int) w->load->device);

    if (error == cudaSuccess) {
        error = cudaStreamCreateWithFlags(&w->stream, cudaStreamNonBlocking);
    }
    for (int i = 0; i < 2 && error == cudaSuccess; i++) {
        void *buffer = NULL;

        error = cudaMallocHost(&buffer, w->load->buffer_bytes);
        w->buffers[i] = buffer;
        if (error == cudaSuccess) {
            error = cudaEventCreateWithFlags(&w->sent[i], cudaEventDisableTiming);
        }
    }
    return error;
}

static void close_worker(struct worker *w)
{
    for (int i = 0; i < 2; i++) {
        cudaFreeHost(w->buffers[i]);
        if (w->sent[i] != NULL) {
            cudaEventDestroy(w->sent[i]);
        }
    }
    if (w->stream != NULL) {
        cudaStreamDestroy(w->stream);
    }
}

/* progress is told by the thread that called, alone. */
static void work(struct worker *w, llm_progress_fn *progress, void *progress_ctx)
{
    struct load *l = w->load;
    struct llm_cuda_upload u;
    cudaError_t error = open_worker(w);

    for (int i = 0; error == cudaSuccess && atomic_load(&l->error) == 0 && take_rows(l, &u);
         i = !i) {
        error = send_rows(w, &u, i);
        atomic_fetch_add(&l->done, u.rows * u.row_bytes);
        if (progress != NULL) {
            progress(progress_ctx, atomic_load(&l->done), atomic_load(&l->total));
        }
    }
    if (error == cudaSuccess) {
        error = cudaStreamSynchronize(w->stream);
    }
    if (error != cudaSuccess) {
        atomic_store(&l->error, (int) error);
    }
    close_worker(w);
}

static void *thread_main(void *arg)
{
    work(arg, NULL, NULL);
    return NULL;
}

int llm_cuda_upload(const struct llm_cuda_upload *uploads, uint64_t n, uint32_t device,
                    llm_progress_fn *progress, void *progress_ctx, struct llm_error *err)
{
    struct load l = {
        .uploads = uploads, .n = n, .device = device, .buffer_bytes = BUFFER_BYTES};
    struct worker workers[MAX_THREADS] = {{0}};
    uint32_t n_threads = llm_usable_cores(""), n_started = 1;

    for (uint64_t i = 0; i < n; i++) {
        l.total += uploads[i].rows * uploads[i].row_bytes;
        if (uploads[i].row_bytes > l.buffer_bytes) {
            l.buffer_bytes = uploads[i].row_bytes;
        }
    }
    if (pthread_mutex_init(&l.lock, NULL) != 0) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }

    n_threads = n_threads < MAX_THREADS ? n_threads : MAX_THREADS;
    if (n_threads > l.total / l.buffer_bytes + 1) { /* setting up a buffer takes time, too */
        n_threads = (uint32_t) (l.total / l.buffer_bytes + 1);
    }
    workers[0].load = &l;
    while (n_started < n_threads) {
        workers[n_started].load = &l;
        if (pthread_create(&workers[n_started].thread, NULL, thread_main, &workers[n_started])
            != 0) {
            break;
        }
        n_started++;
    }
    work(&workers[0], progress, progress_ctx);
    for (uint32_t i = 1; i < n_started; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    pthread_mutex_destroy(&l.lock);

    if (atomic_load(&l.error) != 0) {
        return llm_cuda_fail(err, (cudaError_t) atomic_load(&l.error), "copying the weights");
    }
    if (progress != NULL) {
        progress(progress_ctx, atomic_load(&l.total), atomic_load(&l.total));
    }
    return LLM_OK;
}
