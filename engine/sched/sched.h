/* Which sequence runs when: between the requests and the backend.
 *
 * Sequences join and leave at every step. A step takes one row of every sequence that decodes, then
 * prompt chunks while rows and time are left (max_step_ns, by what steps have cost), the tenant
 * with the smallest counter first (fair.h). While no prompt is left to be read, steps are submitted
 * two deep, so that the backend never waits for the host; a token that turns out to follow an end
 * is dropped. A step with prompt rows is never one of two.
 *
 * A sequence starts when there are pages for its tokens and one more, and grows page by page. Pages
 * that are indexed are found and shared, also before they are computed: then one sequence computes
 * them and the others wait. Choices of the same prompt read it once. When slots or pages run out,
 * who is furthest over his share gives way (preempt.c) and comes back later with all its tokens.
 *
 * One thread, the model thread, calls everything here; the sink is called from within. */

#ifndef LLM_SCHED_SCHED_H
#define LLM_SCHED_SCHED_H

#include "engine/cache/cache.h"
#include "engine/cache/redis/redis.h"
#include "engine/sched/request.h"

struct llm_sched;

struct llm_sched_options {
    uint32_t max_batch_tokens; /* rows of a step, >= max_seqs */
    uint32_t max_seqs;         /* running at once; the backend has as many slots */
    uint32_t n_vocab;          /* ids that may be sampled */
    bool deterministic;        /* what the backend was loaded with */
    uint64_t max_step_ns;      /* a step is made no longer, as far as can be told; 0: no bound */
    uint64_t host_bytes;       /* of the cache's host tier; 0: none */
    struct llm_redis *redis;   /* the cache's lowest tier; NULL: none. Outlives the scheduler */
    uint32_t redis_ttl;        /* seconds that an unused page stays there */
    uint64_t load_ns;          /* deadline of a load from there */
    uint32_t tenant_percent;   /* of the cache that one tenant's idle pages may fill; 0: all */
    uint64_t (*now)(void *ctx); /* ns; NULL: CLOCK_MONOTONIC */
    void *now_ctx;
};

struct llm_token {
    uint32_t id;
    float logprob; /* when asked for */
    uint32_t n_top;
    const uint32_t *top_ids; /* [n_top], valid during the call */
    const float *top_logprobs;
};

/* What becomes of requests. Half a turn calls each of the first three at most max_seqs times
 * (tokens: times one more than the drafts of a step). */
struct llm_sched_sink {
    void *ctx;
    void (*started)(void *ctx, struct llm_request *r); /* its first sequence runs */
    void (*token)(void *ctx, struct llm_sequence *s, const struct llm_token *t);
    void (*ended)(void *ctx, struct llm_sequence *s, enum llm_end end);
    /* Once a request, with r->outcome set: the scheduler forgets it. */
    void (*retired)(void *ctx, struct llm_request *r);
};

struct llm_sched_load {
    uint32_t free_pages, total_pages;
    uint32_t running;                   /* sequences */
    uint32_t queued;                    /* sequences */

    /* tokens a second, by what steps have cost, whatever steps those were; 0: none yet */
    uint32_t prefill_rate; /* of a prompt that fills its steps, at its beginning */
    uint32_t decode_rate;  /* of all that run now, together; of one where none does */
};

int llm_sched_new(const struct llm_backend_ops *ops, struct llm_backend *backend,
                  const struct llm_sched_options *options, const struct llm_sched_sink *sink,
                  struct llm_sched **out, struct llm_error *err);

/* No step may be in flight any more (llm_sched_quiesce), or the backend must have failed. Requests
 * that are still there are forgotten, not retired; their memory must still be there. */
void llm_sched_free(struct llm_sched *s);

/* Takes a request, until it is retired. */
void llm_sched_submit(struct llm_sched *s, struct llm_request *r);

/* Ends it: what waits is retired at once, what runs when the steps that name it are done. */
void llm_sched_cancel(struct llm_sched *s, struct llm_request *r);

/* Nothing more is wanted of this sequence (a stop string was found). No sink->ended. */
void llm_sched_end(struct llm_sched *s, struct llm_sequence *seq);

/* A paused request keeps its pages and gets no rows. */
void llm_sched_pause(struct llm_sched *s, struct llm_request *r, bool paused);

/* Nothing that was computed for this owner (llm_scope_owner) so far is found any more, in any tier
 * of this process, nor what those of his requests that have begun go on to compute; they notice
 * nothing. What is on its way from Redis for him, or to it, is given up (llm_redis_forget_tenant).
 * How many pages that were indexed are not any more. */
uint32_t llm_sched_purge(struct llm_sched *s, const uint8_t owner[32]);

/* The first half of a turn, which does not wait: starts what may start and submits the steps that
 * may be submitted. LLM_OK: a step is in flight; LLM_EAGAIN: none is, and there is nothing to do
 * until something is submitted, cancelled or resumed; LLM_EINTERNAL: the backend failed, nothing
 * works any more. */
int llm_sched_begin(struct llm_sched *s, struct llm_error *err);

/* The second half, after LLM_OK from the first: waits for the oldest step in flight and delivers
 * its tokens. LLM_OK or LLM_EINTERNAL. */
int llm_sched_finish(struct llm_sched *s, struct llm_error *err);

/* Both, for who need not hear of what started before the step is done. */
int llm_sched_turn(struct llm_sched *s, struct llm_error *err);

/* Waits for the steps in flight and drops what they sampled: the scheduler is of no use after. */
int llm_sched_quiesce(struct llm_sched *s, struct llm_error *err);

struct llm_sched_load llm_sched_load(const struct llm_sched *s);
uint64_t llm_sched_steps(const struct llm_sched *s); /* submitted since the start */

/* What was decided about loading from Redis: sums since the start, but `faster`. */
struct llm_sched_loads {
    uint64_t chosen;   /* loads asked for, as that was faster than computing */
    uint64_t declined; /* prompts of several steps that were rather computed, as that was as fast */
    uint64_t probes;   /* loads of a page or two asked for to learn how fast it is */
    bool faster;       /* the last comparison */
};
struct llm_sched_loads llm_sched_loads(const struct llm_sched *s);

/* Its cache: to be counted on the model thread, estimated on any, while the scheduler lives. */
const struct llm_cache *llm_sched_cache(const struct llm_sched *s);

/* Looks at all books at once: NULL, or what is wrong. For tests. */
const char *llm_sched_check(const struct llm_sched *s);

#endif
