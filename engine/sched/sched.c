#include "engine/sched/sched.h"

#include "engine/base/clock.h"
#include "engine/cache/pool.h"
#include "engine/sched/batch.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define STEPS_IN_FLIGHT 2

struct list {
    struct llm_sequence *first, *last;
    uint32_t n;
};

/* Tokens and the time they took; older steps count for less and less. */
struct rate {
    double tokens, seconds;
};

struct llm_sched {
    const struct llm_backend_ops *ops;
    struct llm_backend *backend;
    struct llm_sched_options options;
    struct llm_sched_sink sink;

    struct llm_pool pool;
    struct llm_tenants tenants;
    struct list queue, running, ended; /* by state; the last two have slots and pages */

    struct llm_batch batches[STEPS_IN_FLIGHT]; /* oldest, then the others in flight */
    unsigned oldest, n_in_flight;

    struct rate prefill, decode;
};

static void list_append(struct list *l, struct llm_sequence *s)
{
    s->prev = l->last;
    s->next = NULL;
    *(l->last != NULL ? &l->last->next : &l->first) = s;
    l->last = s;
    l->n++;
}

static void list_remove(struct list *l, struct llm_sequence *s)
{
    *(s->prev != NULL ? &s->prev->next : &l->first) = s->next;
    *(s->next != NULL ? &s->next->prev : &l->last) = s->prev;
    s->prev = s->next = NULL;
    l->n--;
}

int llm_sched_new(const struct llm_backend_ops *ops, struct llm_backend *backend,
                  const struct llm_sched_options *options, const struct llm_sched_sink *sink,
                  struct llm_sched **out, struct llm_error *err)
{
    struct llm_sched *s = calloc(1, sizeof(*s));
    int rc;

    if (s == NULL) {
        return llm_fail(err, LLM_ENOMEM, "no memory for the scheduler");
    }
    s->ops = ops;
    s->backend = backend;
    s->options = *options;
    s->sink = *sink;

    rc = llm_pool_init(&s->pool, ops->info(backend)->n_pages, err);
    for (unsigned i = 0; rc == LLM_OK && i < STEPS_IN_FLIGHT; i++) {
        rc = llm_batch_init(&s->batches[i], options->max_batch_tokens, options->max_seqs);
        if (rc != LLM_OK) {
            llm_fail(err, rc, "no memory for batches of %u tokens", options->max_batch_tokens);
        }
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
    if (r->tenant != NULL) {
        r->tenant->running -= r->started;
        llm_tenants_drop(&s->tenants, r->tenant);
        r->tenant = NULL;
    }
    s->sink.retired(s->sink.ctx, r);
}

/* One of the n_alive of r is gone; the last one takes the request with it. */
static void let_go(struct llm_sched *s, struct llm_request *r)
{
    if (--r->n_alive == 0) {
        retire(s, r);
    }
}

static void free_arrays(struct llm_sequence *q)
{
    free(q->pages);
    free(q->mask);
    q->pages = q->mask = NULL;
}

/* Gives back slot and pages of an ended sequence that no step names. */
static void release(struct llm_sched *s, struct llm_sequence *q)
{
    assert(q->in_flight == 0);

    s->ops->seq_free(s->backend, q->slot);
    llm_pool_drop(&s->pool, q->pages, q->n_pages);
    q->request->tenant->pages -= q->n_pages;
    list_remove(&s->ended, q);
    free_arrays(q);
    q->state = LLM_SEQUENCE_GONE;
    let_go(s, q->request);
}

/* Ends a sequence in whatever state it is. The request may be retired on return. */
static void end_sequence(struct llm_sched *s, struct llm_sequence *q)
{
    switch (q->state) {
    case LLM_SEQUENCE_QUEUED:
        list_remove(&s->queue, q);
        q->state = LLM_SEQUENCE_GONE;
        let_go(s, q->request);
        break;

    case LLM_SEQUENCE_RUNNING:
        list_remove(&s->running, q);
        list_append(&s->ended, q);
        q->state = LLM_SEQUENCE_ENDED;
        if (q->in_flight == 0) {
            release(s, q);
        }
        break;

    case LLM_SEQUENCE_ENDED:
    case LLM_SEQUENCE_GONE:
        break;
    }
}

/* Ends all sequences of r. The request may be retired on return. */
static void end_request(struct llm_sched *s, struct llm_request *r, enum llm_outcome outcome)
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

/* --- the beginning --- */

void llm_sched_submit(struct llm_sched *s, struct llm_request *r)
{
    r->outcome = LLM_OUTCOME_DONE;
    r->paused = false;
    r->started = false;
    r->n_alive = r->n_sequences;

    r->tenant = llm_tenants_hold(&s->tenants, r->tenant_digest);
    if (r->tenant == NULL) {
        r->outcome = LLM_OUTCOME_NO_MEMORY;
        r->n_alive = 0;
        retire(s, r);
        return;
    }

    for (uint32_t i = 0; i < r->n_sequences; i++) {
        struct llm_sequence *q = &r->sequences[i];

        q->request = r;
        q->pages = q->mask = NULL;
        q->position = q->asked = q->sampled = q->in_flight = 0;
        q->n_pages = llm_sequence_pages(q->n_prompt, q->max_tokens);
        q->state = LLM_SEQUENCE_QUEUED;
        list_append(&s->queue, q);
    }
}

/* All ids may be sampled but the stop ids. */
static uint32_t *new_mask(const struct llm_request *r, uint32_t n_vocab)
{
    uint32_t words = (n_vocab + 31) / 32;
    uint32_t *mask = malloc(words * sizeof(*mask));

    if (mask != NULL) {
        memset(mask, 0xff, words * sizeof(*mask));
        for (uint32_t i = 0; i < r->n_stop_ids; i++) {
            mask[r->stop_ids[i] / 32] &= ~(1u << r->stop_ids[i] % 32);
        }
    }
    return mask;
}

/* Gives a queued sequence slot and pages, of which there are enough: LLM_OK, LLM_ENOMEM, or what
 * the backend has against it. */
static int start(struct llm_sched *s, struct llm_sequence *q)
{
    struct llm_request *r = q->request;
    struct llm_sampling sampling = r->sampling;
    int rc = LLM_ENOMEM;

    q->pages = malloc(q->n_pages * sizeof(*q->pages));
    q->mask = r->min_tokens > 0 ? new_mask(r, s->options.n_vocab) : NULL;
    sampling.choice = q->nth;
    sampling.n_vocab = s->options.n_vocab;
    if (q->pages != NULL && (r->min_tokens == 0 || q->mask != NULL)) {
        rc = s->ops->seq_create(s->backend, &sampling, q->prompt, q->n_prompt, 0, &q->slot);
    }
    if (rc != LLM_OK) {
        free_arrays(q);
        return rc;
    }

    llm_pool_take(&s->pool, q->n_pages, q->pages);
    r->tenant->pages += q->n_pages;
    list_remove(&s->queue, q);
    list_append(&s->running, q);
    q->state = LLM_SEQUENCE_RUNNING;
    if (!r->started) {
        r->started = true;
        r->tenant->running++;
        s->sink.started(s->sink.ctx, r);
    }
    return LLM_OK;
}

static bool tenant_may_start(const struct llm_sequence *q)
{
    const struct llm_request *r = q->request;

    if (!r->started && r->max_running != 0 && r->tenant->running >= r->max_running) {
        return false;
    }
    return r->max_pages == 0 || r->tenant->pages + q->n_pages <= r->max_pages;
}

static bool expired(const struct llm_request *r, uint64_t now)
{
    return (r->deadline != 0 && now >= r->deadline) ||
           (!r->started && r->queue_deadline != 0 && now >= r->queue_deadline);
}

/* Starts what may start, in order of arrival; only who waits for his own tenant is passed. */
static void admit(struct llm_sched *s)
{
    struct llm_sequence *q = s->queue.first;
    uint64_t now = q != NULL ? llm_now_ns() : 0;
    int rc;

    while (q != NULL && s->running.n + s->ended.n < s->options.max_seqs) {
        struct llm_sequence *next = q->next;

        if (expired(q->request, now)) {
            end_request(s, q->request, LLM_OUTCOME_EXPIRED);
            next = s->queue.first; /* others of the request may have stood next */
        } else if (tenant_may_start(q)) {
            if (q->n_pages > s->pool.n_free) {
                break;
            }
            rc = start(s, q);
            if (rc != LLM_OK) {
                end_request(s, q->request,
                            rc == LLM_ENOMEM ? LLM_OUTCOME_NO_MEMORY : LLM_OUTCOME_INVALID);
                next = s->queue.first;
            }
        }
        q = next;
    }
}

/* --- steps --- */

static struct llm_batch *batch_in_flight(struct llm_sched *s, unsigned i)
{
    return &s->batches[(s->oldest + i) % STEPS_IN_FLIGHT];
}

static bool has_prompt_rows(const struct list *running)
{
    for (const struct llm_sequence *q = running->first; q != NULL; q = q->next) {
        if (q->position < q->n_prompt && !q->request->paused) {
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
           (s->n_in_flight < STEPS_IN_FLIGHT && batch_in_flight(s, 0)->n_prompt_rows == 0 &&
            !has_prompt_rows(&s->running));
}

static int submit_steps(struct llm_sched *s, struct llm_error *err)
{
    while (may_submit(s)) {
        struct llm_batch *b = batch_in_flight(s, s->n_in_flight);
        struct llm_step step;

        llm_batch_fill(b, s->running.first);
        if (b->n_rows == 0) {
            break;
        }
        step = llm_batch_step(b);
        if (s->ops->submit(s->backend, &step, &b->ticket) != LLM_OK) {
            return llm_fail(err, LLM_EINTERNAL, "the backend refused a step");
        }
        s->n_in_flight++;
    }
    return LLM_OK;
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

/* The tokens sampled for a running sequence. The request may be retired on return. */
static void deliver(struct llm_sched *s, struct llm_sequence *q, const struct llm_sampled *sampled)
{
    struct llm_request *r = q->request;

    if (sampled->n_tokens == 0) {
        end_request(s, r, LLM_OUTCOME_NON_FINITE);
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

        q->sampled++;
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
    struct rate *r = b->n_prompt_rows > 0 ? &s->prefill : &s->decode;

    r->tokens += b->n_rows - r->tokens / 8;
    r->seconds += (double) ns / (double) LLM_NS_PER_S - r->seconds / 8;
}

/* Waits for the oldest step in flight. */
static int wait_step(struct llm_sched *s, struct llm_step_result *result, struct llm_error *err)
{
    if (s->ops->wait(s->backend, batch_in_flight(s, 0)->ticket, result, err) != LLM_OK) {
        return LLM_EINTERNAL;
    }
    s->oldest = (s->oldest + 1) % STEPS_IN_FLIGHT;
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

        q->in_flight--;
        if (q->state == LLM_SEQUENCE_ENDED) {
            if (q->in_flight == 0) {
                release(s, q);
            }
        } else if (sampled != NULL) {
            deliver(s, q, sampled);
        }
    }
    return LLM_OK;
}

int llm_sched_begin(struct llm_sched *s, struct llm_error *err)
{
    int rc;

    admit(s);
    rc = submit_steps(s, err);
    return rc == LLM_OK && s->n_in_flight == 0 ? LLM_EAGAIN : rc;
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
    return deliver_step(s, b, &result, err);
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
    end_request(s, r, LLM_OUTCOME_CANCELLED);
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

static uint32_t per_second(const struct rate *r)
{
    return r->seconds > 0 ? (uint32_t) fmin(r->tokens / r->seconds, UINT32_MAX) : 0;
}

struct llm_sched_load llm_sched_load(const struct llm_sched *s)
{
    return (struct llm_sched_load){
        .free_pages = s->pool.n_free,
        .total_pages = s->pool.n_pages,
        .running = s->running.n,
        .queued = s->queue.n,
        .prefill_rate = per_second(&s->prefill),
        .decode_rate = per_second(&s->decode),
    };
}

const struct llm_cache *llm_sched_cache(const struct llm_sched *s)
{
    (void) s;
    return NULL;
}

/* Adds up the pages of a list; false when the list is not what it should be. */
static bool check_list(const struct list *l, enum llm_sequence_state state, uint32_t *pages)
{
    const struct llm_sequence *q, *last = NULL;
    uint32_t n = 0;

    for (q = l->first; q != NULL; q = q->next) {
        if (q->state != state || q->prev != last || q->asked > q->max_tokens ||
            q->asked > q->sampled + q->in_flight) {
            return false;
        }
        n++;
        *pages += q->pages != NULL ? q->n_pages : 0;
        last = q;
    }
    return n == l->n && last == l->last;
}

const char *llm_sched_check(const struct llm_sched *s)
{
    const char *wrong = llm_pool_check(&s->pool);
    uint32_t pages = 0;

    if (wrong != NULL) {
        return wrong;
    }
    if (!check_list(&s->queue, LLM_SEQUENCE_QUEUED, &pages) ||
        !check_list(&s->running, LLM_SEQUENCE_RUNNING, &pages) ||
        !check_list(&s->ended, LLM_SEQUENCE_ENDED, &pages)) {
        return "a list of sequences";
    }
    if (s->running.n + s->ended.n > s->options.max_seqs) {
        return "more sequences than slots";
    }
    if (s->ended.n > 0 && s->n_in_flight == 0) {
        return "an ended sequence that nothing holds up";
    }
    return pages != s->pool.n_pages - s->pool.n_free ? "pages that no sequence holds" : NULL;
}

static void free_list(const struct list *l)
{
    for (struct llm_sequence *q = l->first; q != NULL; q = q->next) {
        free_arrays(q);
    }
}

void llm_sched_free(struct llm_sched *s)
{
    if (s == NULL) {
        return;
    }
    free_list(&s->running);
    free_list(&s->ended);
    for (unsigned i = 0; i < STEPS_IN_FLIGHT; i++) {
        llm_batch_free(&s->batches[i]);
    }
    llm_tenants_clear(&s->tenants);
    llm_pool_free(&s->pool);
    free(s);
}
