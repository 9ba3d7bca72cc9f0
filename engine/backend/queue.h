/* A backend's thread and its queue of jobs, done one after the other in the order they came: on the
 * CPU steps and page copies, on a GPU copies between its pages and host memory. Numbers count up
 * from 1 and serve as tickets and as fences. */

#ifndef LLM_BACKEND_QUEUE_H
#define LLM_BACKEND_QUEUE_H

#include "engine/base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define LLM_QUEUE_CAPACITY 256

enum llm_job_kind {
    LLM_JOB_STEP,
    LLM_JOB_PAGE_OUT,
    LLM_JOB_PAGE_IN,
    LLM_JOB_PAGE_COPY,
    LLM_JOB_PAGE_CLEAR,
};

struct llm_job {
    enum llm_job_kind kind;
    uint64_t number;    /* the queue's own */
    uint32_t page, to;  /* to: PAGE_COPY */
    uint32_t first, n;  /* planes; rows n of PAGE_COPY */
    union {
        void *out;
        const void *in;
        void *step;
    };
};

typedef void llm_job_fn(void *ctx, const struct llm_job *job);

struct llm_queue;

/* Starts the thread, which calls fn for every job. */
int llm_queue_start(llm_job_fn *fn, void *ctx, struct llm_queue **out,
                        struct llm_error *err);

/* Does what is queued, then ends the thread. NULL is fine. */
void llm_queue_stop(struct llm_queue *q);

/* One thread pushes; it waits while the queue is full. Returns the job's number. */
uint64_t llm_queue_push(struct llm_queue *q, const struct llm_job *job);

/* From any thread. Number 0 is always done. */
bool llm_queue_done(struct llm_queue *q, uint64_t number);
void llm_queue_wait(struct llm_queue *q, uint64_t number);

#endif
