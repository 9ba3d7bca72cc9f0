/* From the tenants' queues to the running: always the first that may start of the tenant that has
 * had least, by weight. Who is held up by a limit of his own tenant is passed; who lacks a slot or
 * pages holds up everybody, so that nobody starves because small ones keep overtaking him. */

#include "engine/sched/sched_internal.h"

#include <stdlib.h>
#include <string.h>

static bool within_limits(const struct llm_sequence *q)
{
    const struct llm_request *r = q->request;
    const struct llm_tenant *t = r->tenant;
    uint32_t pages = llm_sequence_pages(q->n_prompt, q->max_tokens);

    if (!r->started && r->max_running != 0 && t->running >= r->max_running) {
        return false;
    }
    return r->max_pages == 0 || (uint64_t) t->reserved + pages <= r->max_pages;
}

/* Another choice of the same prompt that runs: the one that has read it, if there is one. */
static const struct llm_sequence *sibling(const struct llm_sequence *q)
{
    const struct llm_request *r = q->request;
    const struct llm_sequence *found = NULL;

    for (uint32_t i = 0; i < r->n_sequences; i++) {
        const struct llm_sequence *other = &r->sequences[i];

        if (other->state == LLM_SEQUENCE_RUNNING && other->prompt == q->prompt &&
            (found == NULL || other->position >= other->n_prompt)) {
            found = other;
        }
    }
    return found;
}

/* The prompt of several choices is read once: the others wait until the first has read it. */
static bool waits_for_sibling(const struct llm_sequence *q)
{
    const struct llm_sequence *other = q->sampled == 0 ? sibling(q) : NULL;

    return other != NULL && other->position < other->n_prompt;
}

/* The next sequence of a tenant; NULL: none may start now. Those that have nothing to do yet are
 * passed over. */
static struct llm_sequence *next_of(const struct llm_tenant *t)
{
    const uint32_t *unread = NULL; /* a prompt that somebody is reading, perhaps for many */
    struct llm_sequence *q;

    for (q = t->waiting.first; q != NULL; q = q->next) {
        if (q->request->paused || (q->sampled == 0 && q->prompt == unread)) {
            continue;
        }
        if (!waits_for_sibling(q)) {
            break;
        }
        unread = q->prompt;
    }
    return q == NULL || !within_limits(q) ? NULL : q;
}

/* The one for whom others gave way goes before them, or they would take back what they gave. */
static struct llm_sequence *next(const struct llm_sched *s)
{
    struct llm_sequence *best = NULL, *q;
    double least = 0;

    if (s->heir != NULL && next_of(s->heir->request->tenant) == s->heir) {
        return s->heir;
    }
    for (const struct llm_tenant *t = s->fair.active.oldest; t != NULL; t = t->newer) {
        if (t->waiting.n > 0 && (best == NULL || t->counter < least) &&
            (q = next_of(t)) != NULL) {
            best = q;
            least = t->counter;
        }
    }
    return best;
}

/* --- a start --- */

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

/* What a sequence needs from its first start to its end. False: no memory. */
static bool make_arrays(const struct llm_sched *s, struct llm_sequence *q)
{
    const struct llm_request *r = q->request;
    uint32_t n_pages = llm_sequence_pages(q->n_prompt, q->max_tokens);
    bool indexed = r->owner != NULL && q->digests != NULL;

    q->tokens = malloc(((size_t) q->n_prompt + q->max_tokens) * sizeof(*q->tokens));
    q->pages = malloc(n_pages * sizeof(*q->pages));
    q->chained = indexed ? malloc(n_pages * sizeof(*q->chained)) : NULL;
    q->mask = r->min_tokens > 0 ? new_mask(r, s->options.n_vocab) : NULL;
    if (q->tokens == NULL || q->pages == NULL || (indexed && q->chained == NULL) ||
        (r->min_tokens > 0 && q->mask == NULL)) {
        llm_sequence_free_arrays(q);
        return false;
    }

    memcpy(q->tokens, q->prompt, q->n_prompt * sizeof(*q->tokens));
    q->n_chained = indexed ? q->n_prompt / LLM_PAGE_TOKENS : 0;
    if (indexed) {
        memcpy(q->chained, q->digests, q->n_chained * sizeof(*q->chained));
    }
    return true;
}

static int take_pages(struct llm_sched *s, struct llm_sequence *q)
{
    const struct llm_sequence *leader = q->sampled == 0 ? sibling(q) : NULL;

    return leader != NULL ? llm_pages_fork(s, q, leader) : llm_pages_begin(s, q);
}

static int make_slot(struct llm_sched *s, struct llm_sequence *q)
{
    struct llm_sampling sampling = q->request->sampling;

    sampling.choice = q->nth;
    sampling.n_vocab = s->options.n_vocab;
    return s->ops->seq_create(s->backend, &sampling, q->tokens, q->n_prompt, q->sampled,
                              &q->slot);
}

static void enter_running(struct llm_sched *s, struct llm_sequence *q)
{
    struct llm_request *r = q->request;
    struct llm_tenant *t = r->tenant;

    llm_list_remove(&t->waiting, q);
    s->n_waiting--;
    llm_list_insert(&s->running, q);
    q->state = LLM_SEQUENCE_RUNNING;
    t->sequences++;
    t->reserved += llm_sequence_pages(q->n_prompt, q->max_tokens);
    llm_loads_begin(q, !q->begun);
    q->begun = true;
    if (!r->started) {
        r->started = true;
        t->running++;
        s->sink.started(s->sink.ctx, r);
    }
}

/* LLM_EAGAIN when the pages are not to be had; else LLM_OK, or why it cannot run. */
static int start(struct llm_sched *s, struct llm_sequence *q)
{
    int rc;

    if (q->tokens == NULL && !make_arrays(s, q)) {
        return LLM_ENOMEM;
    }
    q->n_known = q->n_prompt + q->sampled;
    q->n_read = s->one_form ? q->n_known : q->n_prompt;
    rc = take_pages(s, q);
    if (rc != LLM_OK) {
        return rc;
    }
    rc = make_slot(s, q);
    if (rc != LLM_OK) { /* its request ends */
        llm_pages_end(s, q);
        return rc;
    }
    enter_running(s, q);
    return LLM_OK;
}

/* A slot that is about to come free is waited for. */
static bool has_slot(struct llm_sched *s, struct llm_sequence *q)
{
    bool full = s->running.n + s->leaving.n == s->options.max_seqs;

    return !full || (s->leaving.n == 0 && llm_sched_preempt_for_slot(s, q) && s->leaving.n == 0);
}

static enum llm_outcome outcome_of(int rc)
{
    return rc == LLM_ENOMEM   ? LLM_OUTCOME_NO_MEMORY
           : rc == LLM_EINVAL ? LLM_OUTCOME_INVALID
                              : LLM_OUTCOME_FAILED;
}

static bool lacks_pages(const struct llm_sched *s, const struct llm_sequence *q)
{
    return llm_cache_available(s->cache) < q->pages_wanted;
}

static bool make_room_for(struct llm_sched *s, struct llm_sequence *q)
{
    return lacks_pages(s, q) &&
           llm_sched_preempt_for_pages(s, q, q->pages_wanted - llm_cache_available(s->cache));
}

void llm_sched_admit(struct llm_sched *s)
{
    uint64_t now = s->n_waiting > 0 ? llm_sched_now(s) : 0, began;
    struct llm_sequence *q;

    while (s->n_started < s->options.max_seqs && (q = next(s)) != NULL) {
        struct llm_tenant *t = q->request->tenant;
        int rc;

        if (llm_request_expired(q->request, now)) {
            llm_sched_end_request(s, q->request, LLM_OUTCOME_EXPIRED);
            continue;
        }
        if (lacks_pages(s, q) && !make_room_for(s, q)) {
            s->heir = NULL;
            break;
        }
        if (!has_slot(s, q)) { /* after the pages: nobody loses his slot to one that lacks them */
            break;
        }
        rc = start(s, q);
        if (rc == LLM_EAGAIN) {
            continue;
        }
        s->heir = NULL;
        if (rc != LLM_OK) {
            llm_sched_end_request(s, q->request, outcome_of(rc));
            continue;
        }
        s->n_started++;
        began = now;
        now = llm_sched_now(s);
        llm_fair_charge(t, (double) (now - began)); /* what was found costs as much */
    }
}
