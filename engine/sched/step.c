/* Turns: steps are submitted, waited for, learnt from, and what they sampled is handed out. */

#include "engine/sched/sched_internal.h"

/* --- what goes out --- */

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
        llm_loads_ask(s);
        llm_batch_fill(s, b);
        if (b->n_rows == 0) {
            break;
        }
        rc = submit_step(s, b, err);
    }
    return rc;
}

/* --- what comes back --- */

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

    if (q->state == LLM_SEQUENCE_RUNNING) {
        llm_pages_prove(s, q);
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
            llm_sched_end(s, q);
            return;
        }
        s->sink.token(s->sink.ctx, q, &t);
        if (q->sampled == q->max_tokens) {
            s->sink.ended(s->sink.ctx, q, LLM_END_LENGTH);
            llm_sched_end(s, q);
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
            llm_sched_leave_slot(s, q);
        }
    }
    return LLM_OK;
}

/* --- turns --- */

/* Pages are copied down into the host tier, and to Redis, ahead of time: when there is nothing else
 * to do, and each for a small part of the time that steps take. To Redis a page is copied, sealed
 * and sent, by the processors that the steps run on, if these run on some. */
#define SAVES_AT_ONCE 16
#define SAVE_PART 50
#define OFFER_COPIES 4

/* How many pages that take page_ns each a step pays for; *ns is what earlier ones have left. */
static uint32_t paid_by(uint64_t step_ns, uint64_t page_ns, uint64_t *ns)
{
    uint64_t n = (*ns + step_ns / SAVE_PART) / page_ns;

    *ns = (*ns + step_ns / SAVE_PART) % page_ns;
    return n < SAVES_AT_ONCE ? (uint32_t) n : SAVES_AT_ONCE;
}

static void save_pages(struct llm_sched *s, uint64_t step_ns)
{
    llm_cache_save(s->cache, paid_by(step_ns, s->copy_ns, &s->save_ns));
    llm_cache_offer(s->cache, paid_by(step_ns, OFFER_COPIES * s->copy_ns, &s->offer_ns));
}

int llm_sched_begin(struct llm_sched *s, struct llm_error *err)
{
    uint64_t freed;
    int rc;

    s->n_started = 0;
    llm_loads_take(s);
    do { /* again where all that ran had to give way, so that there is room for what waits */
        freed = s->n_freed;
        llm_sched_admit(s);
        rc = submit_steps(s, err);
    } while (rc == LLM_OK && s->n_in_flight == 0 && s->n_freed != freed);
    if (rc == LLM_OK && s->n_in_flight == 0) {
        llm_cache_save(s->cache, SAVES_AT_ONCE);
        llm_cache_offer(s->cache, SAVES_AT_ONCE);
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
