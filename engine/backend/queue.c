#include "engine/backend/queue.h"

#include <pthread.h>
#include <stdlib.h>

struct llm_queue {
    pthread_mutex_t lock;
    pthread_cond_t pushed, finished;
    struct llm_job jobs[LLM_QUEUE_CAPACITY]; /* job number i at i % LLM_QUEUE_CAPACITY */
    uint64_t n_pushed, n_done;
    bool stop;
    llm_job_fn *fn;
    void *ctx;
    pthread_t thread;
};

static void *thread_main(void *arg)
{
    struct llm_queue *q = arg;

    pthread_mutex_lock(&q->lock);
    for (;;) {
        struct llm_job job;

        while (q->n_done == q->n_pushed && !q->stop) {
            pthread_cond_wait(&q->pushed, &q->lock);
        }
        if (q->n_done == q->n_pushed) {
            break;
        }
        job = q->jobs[(q->n_done + 1) % LLM_QUEUE_CAPACITY];
        pthread_mutex_unlock(&q->lock);

        q->fn(q->ctx, &job);

        pthread_mutex_lock(&q->lock);
        q->n_done++;
        pthread_cond_broadcast(&q->finished);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

int llm_queue_start(llm_job_fn *fn, void *ctx, struct llm_queue **out,
                        struct llm_error *err)
{
    struct llm_queue *q = calloc(1, sizeof(*q));

    if (q == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    q->fn = fn;
    q->ctx = ctx;
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->pushed, NULL);
    pthread_cond_init(&q->finished, NULL);

    if (pthread_create(&q->thread, NULL, thread_main, q) != 0) {
        free(q);
        return llm_fail(err, LLM_ENOMEM, "cannot start the backend's thread");
    }
    *out = q;
    return LLM_OK;
}

void llm_queue_stop(struct llm_queue *q)
{
    if (q == NULL) {
        return;
    }
    pthread_mutex_lock(&q->lock);
    q->stop = true;
    pthread_cond_signal(&q->pushed);
    pthread_mutex_unlock(&q->lock);

    pthread_join(q->thread, NULL);
    pthread_cond_destroy(&q->finished);
    pthread_cond_destroy(&q->pushed);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

uint64_t llm_queue_push(struct llm_queue *q, const struct llm_job *job)
{
    uint64_t number;

    pthread_mutex_lock(&q->lock);
    while (q->n_pushed - q->n_done == LLM_QUEUE_CAPACITY) {
        pthread_cond_wait(&q->finished, &q->lock);
    }
    number = ++q->n_pushed;
    q->jobs[number % LLM_QUEUE_CAPACITY] = *job;
    q->jobs[number % LLM_QUEUE_CAPACITY].number = number;
    pthread_cond_signal(&q->pushed);
    pthread_mutex_unlock(&q->lock);
    return number;
}

bool llm_queue_done(struct llm_queue *q, uint64_t number)
{
    bool done;

    pthread_mutex_lock(&q->lock);
    done = q->n_done >= number;
    pthread_mutex_unlock(&q->lock);
    return done;
}

void llm_queue_wait(struct llm_queue *q, uint64_t number)
{
    pthread_mutex_lock(&q->lock);
    while (q->n_done < number) {
        pthread_cond_wait(&q->finished, &q->lock);
    }
    pthread_mutex_unlock(&q->lock);
}
