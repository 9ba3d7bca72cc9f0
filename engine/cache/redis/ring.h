/* A queue between two threads: one puts, the other takes, nobody waits. It never overflows, because
 * its owner knows how many notes there can be. */

#ifndef LLM_CACHE_REDIS_RING_H
#define LLM_CACHE_REDIS_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

struct llm_redis_note {
    int kind;
    uint32_t buffer, page;
    void *run;
};

struct llm_redis_ring {
    struct llm_redis_note *notes;
    uint32_t mask;
    _Atomic uint32_t head, tail; /* free-running: taken, put */
};

/* For at least this many notes at a time; false: no memory. */
static inline bool llm_redis_ring_init(struct llm_redis_ring *r, uint32_t most)
{
    uint32_t size = 1;

    while (size < most) {
        size *= 2;
    }
    r->notes = calloc(size, sizeof(*r->notes));
    r->mask = size - 1;
    atomic_init(&r->head, 0);
    atomic_init(&r->tail, 0);
    return r->notes != NULL;
}

static inline void llm_redis_ring_free(struct llm_redis_ring *r)
{
    free(r->notes);
    r->notes = NULL;
}

/* True when it may have been empty: the taker may sleep. A taker that finds it empty and sleeps
 * then has stored its head before it read the tail, a putter its tail before it reads the head, all
 * four sequentially consistent: one of them sees the other. */
static inline bool llm_redis_ring_put(struct llm_redis_ring *r, const struct llm_redis_note *note)
{
    uint32_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);

    r->notes[tail & r->mask] = *note;
    atomic_store(&r->tail, tail + 1);
    return atomic_load(&r->head) == tail;
}

static inline bool llm_redis_ring_take(struct llm_redis_ring *r, struct llm_redis_note *note)
{
    uint32_t head = atomic_load_explicit(&r->head, memory_order_relaxed);

    if (atomic_load(&r->tail) == head) {
        return false;
    }
    *note = r->notes[head & r->mask];
    atomic_store(&r->head, head + 1);
    return true;
}

#endif
