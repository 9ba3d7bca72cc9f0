#include "engine/sched/sched.h"

#include "engine/base/clock.h"
#include "engine/sched/sched_internal.h"

#include <stdlib.h>
#include <string.h>

/* Steps of the longest kind that a tenant which has been away may be ahead of others. */
#define ALLOWANCE_STEPS 4

#define COPY_BYTES_PER_NS 2

static uint64_t monotonic(void *ctx)
{
    (void) ctx;
    return llm_now_ns();
}

static int open_cache(struct llm_sched *s, struct llm_error *err)
{
    const struct llm_sched_options *o = &s->options;
    const struct llm_cache_options options = {
        .host_bytes = o->host_bytes,
        .redis = o->redis,
        .redis_ttl = o->redis_ttl,
        .tenant_percent = o->tenant_percent != 0 ? o->tenant_percent : 100,
        .now = o->now,
        .now_ctx = o->now_ctx,
    };

    return llm_cache_new(s->ops, s->backend, &options, &s->cache, err);
}

int llm_sched_new(const struct llm_backend_ops *ops, struct llm_backend *backend,
                  const struct llm_sched_options *options, const struct llm_sched_sink *sink,
                  struct llm_sched **out, struct llm_error *err)
{
    const struct llm_backend_info *info = ops->info(backend);
    struct llm_sched *s = calloc(1, sizeof(*s));
    int rc = LLM_OK;

    if (s == NULL) {
        return llm_fail(err, LLM_ENOMEM, "no memory for the scheduler");
    }
    s->ops = ops;
    s->backend = backend;
    s->options = *options;
    s->options.now = options->now != NULL ? options->now : monotonic;
    s->sink = *sink;
    s->one_form = info->one_form || !options->deterministic;
    s->page_bytes = info->layout.page_bytes;
    s->copy_ns = info->layout.page_bytes / COPY_BYTES_PER_NS + 1;
    s->margin = LLM_COST_MARGIN;
    s->fair.allowance = ALLOWANCE_STEPS * (double) options->max_step_ns;
    llm_cost_init(&s->prefill_cost);
    llm_cost_init(&s->decode_cost);

    s->charged = calloc(info->n_pages, sizeof(*s->charged));
    if (s->charged == NULL) {
        rc = llm_fail(err, LLM_ENOMEM, "no memory for the books of %u pages", info->n_pages);
    }
    for (unsigned i = 0; rc == LLM_OK && i < LLM_STEPS_IN_FLIGHT; i++) {
        rc = llm_batch_init(&s->batches[i], options->max_batch_tokens, options->max_seqs);
        if (rc != LLM_OK) {
            llm_fail(err, rc, "no memory for batches of %u tokens", options->max_batch_tokens);
        }
    }
    if (rc == LLM_OK) {
        rc = open_cache(s, err);
    }

    if (rc != LLM_OK) {
        llm_sched_free(s);
        return rc;
    }
    *out = s;
    return LLM_OK;
}

/* --- the end of a sequence --- */

static void retire(struct llm_sched *s, struct llm_request *r)
{
    if (r->owner != NULL) {
        llm_cache_leave(s->cache, r->owner);
        r->owner = NULL;
    }
    if (r->tenant != NULL) {
        r->tenant->running -= r->started;
        llm_fair_leave(&s->fair, r->tenant);
        r->tenant = NULL;
    }
    s->sink.retired(s->sink.ctx, r);
}

void llm_sequence_free_arrays(struct llm_sequence *q)
{
    free(q->tokens);
    free(q->pages);
    free(q->chained);
    free(q->mask);
    q->tokens = q->pages = q->mask = NULL;
    q->chained = NULL;
}

/* The last sequence to go takes the request with it. */
static void let_go(struct llm_sched *s, struct llm_request *r)
{
    if (--r->n_alive == 0) {
        retire(s, r);
    }
}

static void go(struct llm_sched *s, struct llm_sequence *q)
{
    llm_sequence_free_arrays(q);
    q->state = LLM_SEQUENCE_GONE;
    let_go(s, q->request);
}

void llm_sched_leave_slot(struct llm_sched *s, struct llm_sequence *q)
{
    if (q->in_flight > 0) {
        return;
    }
    s->ops->seq_free(s->backend, q->slot);
    llm_list_remove(&s->leaving, q);
    if (q->state == LLM_SEQUENCE_PREEMPTED) {
        q->state = LLM_SEQUENCE_QUEUED;
        llm_list_insert(&q->request->tenant->waiting, q);
        s->n_waiting++;
    } else {
        go(s, q);
    }
}

void llm_sched_leave(struct llm_sched *s, struct llm_sequence *q, enum llm_sequence_state state)
{
    struct llm_tenant *t = q->request->tenant;

    llm_pages_end(s, q);
    t->sequences--;
    t->reserved -= llm_sequence_pages(q->n_prompt, q->max_tokens);
    llm_list_remove(&s->running, q);
    llm_list_append(&s->leaving, q);
    q->state = state;
    llm_sched_leave_slot(s, q);
}

/* Ends a sequence in whatever state it is. The request may be retired on return. */
static void end_sequence(struct llm_sched *s, struct llm_sequence *q)
{
    switch (q->state) {
    case LLM_SEQUENCE_QUEUED:
        s->heir = s->heir != q ? s->heir : NULL;
        llm_list_remove(&q->request->tenant->waiting, q);
        s->n_waiting--;
        go(s, q);
        break;

    case LLM_SEQUENCE_RUNNING:
        llm_sched_leave(s, q, LLM_SEQUENCE_ENDED);
        break;

    case LLM_SEQUENCE_PREEMPTED:
        q->state = LLM_SEQUENCE_ENDED;
        llm_sched_leave_slot(s, q);
        break;

    case LLM_SEQUENCE_ENDED:
    case LLM_SEQUENCE_GONE:
        break;
    }
}

void llm_sched_end_request(struct llm_sched *s, struct llm_request *r, enum llm_outcome outcome)
{
    if (r->outcome == LLM_OUTCOME_DONE) {
        r->outcome = outcome;
    }

    r->n_alive++; /* not retired while we look at it */
    for (uint32_t i = 0; i < r->n_sequences; i++) {
        end_sequence(s, &r->sequences[i]);
    }
    let_go(s, r);
}

bool llm_request_expired(const struct llm_request *r, uint64_t now)
{
    return (r->deadline != 0 && now >= r->deadline) ||
           (!r->started && r->queue_deadline != 0 && now >= r->queue_deadline);
}

/* --- the beginning --- */

static bool fits_alone(const struct llm_sched *s, const struct llm_request *r)
{
    for (uint32_t i = 0; i < r->n_sequences; i++) {
        const struct llm_sequence *q = &r->sequences[i];

        if (llm_sequence_pages(q->n_prompt, q->max_tokens) > llm_cache_total(s->cache)) {
            return false;
        }
    }
    return true;
}

/* Enters it in the books of tenants. False: no memory. */
static bool enter(struct llm_sched *s, struct llm_request *r)
{
    r->tenant = llm_fair_enter(&s->fair, r->tenant_digest, r->weight);
    if (r->tenant == NULL) {
        return false;
    }
    if (r->scope != LLM_SCOPE_OFF) {
        r->owner = llm_cache_join(s->cache, r->owner_digest, r->tenant->weight);
        if (r->owner != NULL) {
            llm_cache_limit(s->cache, r->owner, r->max_pages);
        }
    }
    return r->scope == LLM_SCOPE_OFF || r->owner != NULL;
}

void llm_sched_submit(struct llm_sched *s, struct llm_request *r)
{
    r->outcome = fits_alone(s, r) ? LLM_OUTCOME_DONE : LLM_OUTCOME_TOO_LARGE;
    r->paused = false;
    r->started = false;
    r->purged = false;
    r->cached_tokens = 0;
    r->n_alive = r->n_sequences;
    r->tenant = NULL;
    r->owner = NULL;

    if (r->outcome == LLM_OUTCOME_DONE && !enter(s, r)) {
        r->outcome = LLM_OUTCOME_NO_MEMORY;
    }
    if (r->outcome != LLM_OUTCOME_DONE) {
        r->n_alive = 0;
        retire(s, r);
        return;
    }

    for (uint32_t i = 0; i < r->n_sequences; i++) {
        struct llm_sequence *q = &r->sequences[i];

        q->request = r;
        q->arrival = ++s->arrivals;
        q->tokens = q->pages = q->mask = NULL;
        q->chained = NULL;
        q->n_pages = q->n_chained = q->asked = q->sampled = 0;
        q->position = q->in_flight = q->pages_wanted = 0;
        q->begun = false;
        q->load = 0;
        q->step = 0;
        q->chosen = false;
        q->state = LLM_SEQUENCE_QUEUED;
        llm_list_append(&r->tenant->waiting, q);
        s->n_waiting++;
    }
}

/* --- from outside --- */

void llm_sched_cancel(struct llm_sched *s, struct llm_request *r)
{
    llm_sched_end_request(s, r, LLM_OUTCOME_CANCELLED);
}

void llm_sched_end(struct llm_sched *s, struct llm_sequence *seq)
{
    end_sequence(s, seq);
}

void llm_sched_pause(struct llm_sched *s, struct llm_request *r, bool paused)
{
    (void) s;
    r->paused = paused;
}

static void purge_list(const struct llm_list *l, const uint8_t owner[32])
{
    for (struct llm_sequence *q = l->first; q != NULL; q = q->next) {
        struct llm_request *r = q->request;

        if (q->begun && memcmp(r->owner_digest, owner, sizeof(r->owner_digest)) == 0) {
            r->purged = true;
        }
    }
}

uint32_t llm_sched_purge(struct llm_sched *s, const uint8_t owner[32])
{
    for (const struct llm_tenant *t = s->fair.active.oldest; t != NULL; t = t->newer) {
        purge_list(&t->waiting, owner); /* those that had to give way */
    }
    purge_list(&s->running, owner);
    purge_list(&s->leaving, owner);
    return llm_cache_purge(s->cache, owner);
}

struct llm_sched_load llm_sched_load(const struct llm_sched *s)
{
    return (struct llm_sched_load){
        .free_pages = llm_cache_available(s->cache),
        .total_pages = llm_cache_total(s->cache),
        .running = s->running.n + s->leaving.n,
        .queued = s->n_waiting,
        .prefill_rate = llm_batch_prefill_rate(s),
        .decode_rate = llm_batch_decode_rate(s),
    };
}

uint64_t llm_sched_steps(const struct llm_sched *s)
{
    return s->n_steps;
}

struct llm_sched_loads llm_sched_loads(const struct llm_sched *s)
{
    return s->loads;
}

const struct llm_cache *llm_sched_cache(const struct llm_sched *s)
{
    return s->cache;
}

static void free_list(const struct llm_list *l)
{
    for (struct llm_sequence *q = l->first; q != NULL; q = q->next) {
        llm_sequence_free_arrays(q);
    }
}

void llm_sched_free(struct llm_sched *s)
{
    if (s == NULL) {
        return;
    }
    for (struct llm_tenant *t = s->fair.active.oldest; t != NULL; t = t->newer) {
        free_list(&t->waiting);
    }
    free_list(&s->running);
    free_list(&s->leaving);
    for (unsigned i = 0; i < LLM_STEPS_IN_FLIGHT; i++) {
        llm_batch_free(&s->batches[i]);
    }
    llm_fair_free(&s->fair);
    llm_cache_free(s->cache);
    free(s->charged);
    free(s);
}
