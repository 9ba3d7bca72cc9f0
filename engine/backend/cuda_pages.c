/* Pages on their way between the pool and host memory, which is not pinned: a thread of its own
 * copies them through a pinned buffer, so that the model thread waits for none but those that its
 * next step needs. */

#include "engine/backend/cuda_internal.h"

#include <stdlib.h>
#include <string.h>

/* Runs one copy, after what was in the compute stream when it was asked for. */
static void run_job(void *ctx, const struct llm_job *job)
{
    struct llm_backend *b = ctx;
    const struct llm_plane *planes = b->layout.planes;
    uint64_t first = planes[job->first].offset;
    uint64_t end = job->first + job->n < b->layout.n_planes ? planes[job->first + job->n].offset
                                                            : b->layout.page_bytes;
    char *page = b->pool + job->page * b->layout.page_bytes + first;
    cudaError_t error = cudaSetDevice((int) b->options.device);

    if (error == cudaSuccess) {
        error = cudaStreamWaitEvent(b->copies, b->copy_after[job->number % LLM_QUEUE_CAPACITY], 0);
    }
    if (job->kind == LLM_JOB_PAGE_IN) {
        memcpy(b->bounce, job->in, end - first);
        if (error == cudaSuccess) {
            error = cudaMemcpyAsync(page, b->bounce, end - first, cudaMemcpyHostToDevice,
                                    b->copies);
        }
    } else if (error == cudaSuccess) {
        error = cudaMemcpyAsync(b->bounce, page, end - first, cudaMemcpyDeviceToHost, b->copies);
    }
    if (error == cudaSuccess) {
        error = cudaStreamSynchronize(b->copies);
    }
    if (error != cudaSuccess) {
        atomic_store(&b->copy_error, (int) error);
    } else if (job->kind == LLM_JOB_PAGE_OUT) {
        memcpy(job->out, b->bounce, end - first);
    }
}

int llm_cuda_pages_init(struct llm_backend *b, struct llm_error *err)
{
    void *bounce = NULL;
    cudaError_t error = cudaMallocHost(&bounce, b->layout.page_bytes);

    b->bounce = bounce;
    for (int i = 0; i < LLM_QUEUE_CAPACITY && error == cudaSuccess; i++) {
        error = cudaEventCreateWithFlags(&b->copy_after[i], cudaEventDisableTiming);
    }
    if (error != cudaSuccess) {
        return llm_cuda_fail(err, error, "setting up copies");
    }
    b->page_copies = calloc(b->info.n_pages, sizeof(*b->page_copies));
    if (b->page_copies == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    return llm_queue_start(run_job, b, &b->queue, err);
}

void llm_cuda_pages_free(struct llm_backend *b)
{
    llm_queue_stop(b->queue);
    for (int i = 0; i < LLM_QUEUE_CAPACITY; i++) {
        if (b->copy_after[i] != NULL) {
            cudaEventDestroy(b->copy_after[i]);
        }
    }
    cudaFreeHost(b->bounce);
    free(b->page_copies);
}

static int push(struct llm_backend *b, struct llm_job job, uint64_t *fence)
{
    uint64_t number = b->last_copy + 1;

    if (job.page >= b->info.n_pages || job.n == 0 || job.n > b->layout.n_planes
        || job.first > b->layout.n_planes - job.n) {
        return LLM_EINVAL;
    }
    if (number > LLM_QUEUE_CAPACITY) { /* the copy that waits for this event, too */
        llm_queue_wait(b->queue, number - LLM_QUEUE_CAPACITY);
    }
    llm_cuda_try(b, cudaEventRecord(b->copy_after[number % LLM_QUEUE_CAPACITY], b->compute),
                 "a copy of a page");
    *fence = b->last_copy = b->page_copies[job.page] = llm_queue_push(b->queue, &job);
    return LLM_OK;
}

int llm_cuda_page_out(struct llm_backend *b, uint32_t page, uint32_t first, uint32_t n, void *host,
                      uint64_t *fence)
{
    return push(b,
                (struct llm_job){.kind = LLM_JOB_PAGE_OUT,
                                 .page = page,
                                 .first = first,
                                 .n = n,
                                 .out = host},
                fence);
}

int llm_cuda_page_in(struct llm_backend *b, uint32_t page, uint32_t first, uint32_t n,
                     const void *host, uint64_t *fence)
{
    return push(b,
                (struct llm_job){.kind = LLM_JOB_PAGE_IN,
                                 .page = page,
                                 .first = first,
                                 .n = n,
                                 .in = host},
                fence);
}

bool llm_cuda_fence_done(struct llm_backend *b, uint64_t fence)
{
    return llm_queue_done(b->queue, fence) && atomic_load(&b->copy_error) == 0;
}

int llm_cuda_fence_wait(struct llm_backend *b, uint64_t fence)
{
    llm_queue_wait(b->queue, fence);
    return atomic_load(&b->copy_error) == 0 ? LLM_OK : LLM_EINTERNAL;
}

/* It is this thread that waits, not the stream: a stream that waits for another thread's calls
 * hangs for good when a call of ours, loading a kernel for the first time perhaps, waits for the
 * stream. Nothing is lost but that the results of the step before are read later. */
void llm_cuda_after_copy(struct llm_backend *b, uint64_t fence)
{
    llm_queue_wait(b->queue, fence);
}

int llm_cuda_page_copy(struct llm_backend *b, uint32_t from, uint32_t to, uint32_t n_rows)
{
    const struct llm_plane *p = &b->layout.planes[0]; /* all are alike */
    uint64_t plane = (uint64_t) p->row_bytes * LLM_PAGE_TOKENS;

    if (from >= b->info.n_pages || to >= b->info.n_pages || from == to
        || n_rows > LLM_PAGE_TOKENS) {
        return LLM_EINVAL;
    }
    llm_cuda_after_copy(b, b->page_copies[from]);
    llm_cuda_after_copy(b, b->page_copies[to]);
    llm_cuda_try(b,
                 cudaMemcpy2DAsync(b->pool + to * b->layout.page_bytes, plane,
                                   b->pool + from * b->layout.page_bytes, plane,
                                   (uint64_t) n_rows * p->row_bytes, b->layout.n_planes,
                                   cudaMemcpyDeviceToDevice, b->compute),
                 "a copy inside the pool");
    return LLM_OK;
}

int llm_cuda_page_clear(struct llm_backend *b, uint32_t page)
{
    if (page >= b->info.n_pages) {
        return LLM_EINVAL;
    }
    llm_cuda_after_copy(b, b->page_copies[page]);
    llm_cuda_try(b,
                 cudaMemsetAsync(b->pool + page * b->layout.page_bytes, 0, b->layout.page_bytes,
                                 b->compute),
                 "clearing a page");
    return LLM_OK;
}
