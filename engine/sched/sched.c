#include "engine/sched/sched.h"

#include "engine/base/clock.h"
#include "engine/sched/sched_internal.h"

#include <stdlib.h>

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

/* A sequence that is leaving gives its slot back, if no step names it any more. The request may be
 * retired on return. */
static void leave_slot(struct llm_sched *s, struct llm_sequence *q)
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
    leave_slot(s, q);
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
        leave_slot(s, q);
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
    }
    return r->scope == LLM_SCOPE_OFF || r->owner != NULL;
}

void llm_sched_submit(struct llm_sched *s, struct llm_request *r)
{
    r->outcome = fits_alone(s, r) ? LLM_OUTCOME_DONE : LLM_OUTCOME_TOO_LARGE;
    r->paused = false;
    r->started = false;
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
        q->step = 0;
        q->chosen = false;
        q->state = LLM_SEQUENCE_QUEUED;
        llm_list_append(&r->tenant->waiting, q);
        s->n_waiting++;
    }
}

/* --- steps --- */

static struct llm_batch *batch_in_flight(struct llm_sched *s, unsigned i)
{
    return &s->batches[(s->oldest + i) % LLM_STEPS_IN_FLIGHT];
}

static bool has_readers(const struct llm_sched *s)
{
    for (const struct llm_sequence *q = s->running.first; q != NULL; q = q->next) {
        if (llm_sequence_reads(q) && !q->request->paused) {
            return true;
        }
    }
    return false;
}

/* A step with prompt rows runs alone: it is long, so there is nothing to gain from a queue before
 * or behind it, and a cancel, an end or a newcomer would have to wait for both. */
static bool may_submit(struct llm_sched *s)
{
    return s->n_in_flight == 0 ||
           (s->n_in_flight < LLM_STEPS_IN_FLIGHT && batch_in_flight(s, 0)->n_prompt_rows == 0 &&
            !has_readers(s));
}

/* Sees to it that a sequence can have rows of the next step. False: it, or another, has left. */
static bool make_ready(struct llm_sched *s, struct llm_sequence *q, uint64_t now)
{
    if (llm_sequence_reads(q) && !q->request->paused) {
        if (llm_request_expired(q->request, now)) {
            llm_sched_end_request(s, q->request, LLM_OUTCOME_EXPIRED);
            return false;
        }
        llm_pages_skip(s, q);
    }
    if (llm_sequence_decodes(q) && llm_pages_grow(s, q) != LLM_OK) {
        llm_sched_leave(s, llm_sched_furthest_over(s), LLM_SEQUENCE_PREEMPTED);
        return false;
    }
    return true;
}

static void make_all_ready(struct llm_sched *s)
{
    uint64_t now = has_readers(s) ? llm_sched_now(s) : 0;
    struct llm_sequence *q = s->running.first;

    while (q != NULL) {
        q = make_ready(s, q, now) ? q->next : s->running.first;
    }
}

static int submit_step(struct llm_sched *s, struct llm_batch *b, struct llm_error *err)
{
    struct llm_step step = llm_batch_step(b);

    step.fence = llm_cache_fence(s->cache);
    if (s->ops->submit(s->backend, &step, &b->ticket) != LLM_OK) {
        return llm_fail(err, LLM_EINTERNAL, "the backend refused a step");
    }
    s->n_in_flight++;
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        llm_pages_written(s, b->members[i], b->seqs[i].position);
    }
    return LLM_OK;
}

static int submit_steps(struct llm_sched *s, struct llm_error *err)
{
    int rc = LLM_OK;

    while (rc == LLM_OK && may_submit(s)) {
        struct llm_batch *b = batch_in_flight(s, s->n_in_flight);

        make_all_ready(s);
        llm_batch_fill(s, b);
        if (b->n_rows == 0) {
            break;
        }
        rc = submit_step(s, b, err);
    }
    return rc;
}

static bool is_stop_id(const struct llm_request *r, uint32_t id)
{
    for (uint32_t i = 0; i < r->n_stop_ids; i++) {
        if (r->stop_ids[i] == id) {
            return true;
        }
    }
    return false;
}

/* The tokens sampled for a sequence that has not ended. */
static void deliver(struct llm_sched *s, struct llm_sequence *q, const struct llm_sampled *sampled)
{
    struct llm_request *r = q->request;

    if (sampled->n_tokens == 0) {
        llm_sched_end_request(s, r, LLM_OUTCOME_NON_FINITE);
        return;
    }

    for (uint32_t i = 0; i < sampled->n_tokens; i++) {
        struct llm_token t = {
            .id = sampled->tokens[i],
            .logprob = sampled->logprobs[i],
            .n_top = sampled->n_top,
            .top_ids = sampled->top_ids + (size_t) i * sampled->n_top,
            .top_logprobs = sampled->top_logprobs + (size_t) i * sampled->n_top,
        };

        q->tokens[q->n_prompt + q->sampled++] = t.id;
        if (is_stop_id(r, t.id)) {
            s->sink.ended(s->sink.ctx, q, LLM_END_STOP);
            end_sequence(s, q);
            return;
        }
        s->sink.token(s->sink.ctx, q, &t);
        if (q->sampled == q->max_tokens) {
            s->sink.ended(s->sink.ctx, q, LLM_END_LENGTH);
            end_sequence(s, q);
            return;
        }
    }
}

static void measure(struct llm_sched *s, const struct llm_batch *b, uint64_t ns)
{
    struct llm_cost *cost = b->n_prompt_rows > 0 ? &s->prefill_cost : &s->decode_cost;
    double expected = llm_cost_of_step(cost, b->work);

    /* short ones tell little of those that are to be done in time */
    if (b->n_prompt_rows > 0 && llm_cost_known(cost) &&
        expected >= (double) s->options.max_step_ns / 4) {
        s->margin = llm_cost_margin(s->margin, expected, ns);
    }
    llm_cost_learn(cost, b->work, ns);
}

/* Waits for the oldest step in flight. */
static int wait_step(struct llm_sched *s, struct llm_step_result *result, struct llm_error *err)
{
    if (s->ops->wait(s->backend, batch_in_flight(s, 0)->ticket, result, err) != LLM_OK) {
        return LLM_EINTERNAL;
    }
    s->oldest = (s->oldest + 1) % LLM_STEPS_IN_FLIGHT;
    s->n_in_flight--;
    return LLM_OK;
}

/* Hands out what a step has sampled. */
static int deliver_step(struct llm_sched *s, const struct llm_batch *b,
                        const struct llm_step_result *result, struct llm_error *err)
{
    uint32_t next = 0;

    for (uint32_t i = 0; i < b->n_seqs; i++) {
        struct llm_sequence *q = b->members[i];
        const struct llm_sampled *sampled = NULL;

        if (llm_batch_samples(b, i)) {
            if (next == result->n_sampled) {
                return llm_fail(err, LLM_EINTERNAL, "the backend sampled too few tokens");
            }
            sampled = &result->sampled[next++];
        }

        q->n_done = b->seqs[i].position + b->seqs[i].n_rows;
        if (sampled != NULL && q->state != LLM_SEQUENCE_ENDED) {
            deliver(s, q, sampled);
        }
        if (sampled != NULL && sampled->n_tokens == 0) {
            llm_pages_forget(s, q); /* wanted or not */
        }
        q->in_flight--;
        if (q->state == LLM_SEQUENCE_RUNNING) {
            llm_pages_index_sampled(s, q);
        } else {
            leave_slot(s, q);
        }
    }
    return LLM_OK;
}

/* Pages are copied down into the host tier ahead of time: when there is nothing else to do, and
 * for a small part of the time that steps take. */
#define SAVES_AT_ONCE 16
#define SAVE_PART 50

static void save_pages(struct llm_sched *s, uint64_t step_ns)
{
    uint64_t n = (s->save_ns + step_ns / SAVE_PART) / s->copy_ns;

    s->save_ns = (s->save_ns + step_ns / SAVE_PART) % s->copy_ns;
    llm_cache_save(s->cache, n < SAVES_AT_ONCE ? (uint32_t) n : SAVES_AT_ONCE);
}

int llm_sched_begin(struct llm_sched *s, struct llm_error *err)
{
    uint64_t freed;
    int rc;

    s->n_started = 0;
    do { /* again where all that ran had to give way, so that there is room for what waits */
        freed = s->n_freed;
        llm_sched_admit(s);
        rc = submit_steps(s, err);
    } while (rc == LLM_OK && s->n_in_flight == 0 && s->n_freed != freed);
    if (rc == LLM_OK && s->n_in_flight == 0) {
        llm_cache_save(s->cache, SAVES_AT_ONCE);
        return LLM_EAGAIN;
    }
    return rc;
}

int llm_sched_finish(struct llm_sched *s, struct llm_error *err)
{
    const struct llm_batch *b = batch_in_flight(s, 0);
    struct llm_step_result result;
    int rc = wait_step(s, &result, err);

    if (rc != LLM_OK) {
        return rc;
    }
    measure(s, b, result.ns);
    rc = deliver_step(s, b, &result, err);
    save_pages(s, result.ns);
    return rc;
}

int llm_sched_turn(struct llm_sched *s, struct llm_error *err)
{
    int rc = llm_sched_begin(s, err);

    return rc == LLM_OK ? llm_sched_finish(s, err) : rc;
}

int llm_sched_quiesce(struct llm_sched *s, struct llm_error *err)
{
    struct llm_step_result dropped;
    int rc = LLM_OK;

    while (s->n_in_flight > 0 && rc == LLM_OK) {
        rc = wait_step(s, &dropped, err);
    }
    return rc;
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
