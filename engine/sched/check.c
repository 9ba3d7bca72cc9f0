/* The scheduler's books, looked at all at once: for tests. */

#include "engine/sched/sched_internal.h"

#include <stdlib.h>

static bool sequence_right(const struct llm_sequence *q)
{
    bool runs = q->state == LLM_SEQUENCE_RUNNING;

    return q->asked <= q->max_tokens && q->asked <= q->sampled + q->in_flight && !q->chosen &&
           (runs || q->n_pages == 0) && (q->state != LLM_SEQUENCE_QUEUED || q->in_flight == 0);
}

static bool list_right(const struct llm_list *l, bool sorted)
{
    const struct llm_sequence *q, *last = NULL;
    uint32_t n = 0;

    for (q = l->first; q != NULL; q = q->next) {
        if (q->prev != last || !sequence_right(q) ||
            (sorted && last != NULL && last->arrival >= q->arrival)) {
            return false;
        }
        n++;
        last = q;
    }
    return n == l->n && last == l->last;
}

static bool states_right(const struct llm_sched *s)
{
    for (const struct llm_sequence *q = s->running.first; q != NULL; q = q->next) {
        if (q->state != LLM_SEQUENCE_RUNNING) {
            return false;
        }
    }
    for (const struct llm_sequence *q = s->leaving.first; q != NULL; q = q->next) {
        if ((q->state != LLM_SEQUENCE_ENDED && q->state != LLM_SEQUENCE_PREEMPTED) ||
            q->in_flight == 0) {
            return false;
        }
    }
    return true;
}

static const char *check_tenants(const struct llm_sched *s)
{
    uint32_t n = 0, waiting = 0, sequences = 0;
    uint64_t weights = 0;

    for (const struct llm_tenant *t = s->fair.active.oldest; t != NULL; t = t->newer) {
        if (t->requests == 0 || t->resting || t->chosen != 0 || !list_right(&t->waiting, true)) {
            return "an active tenant";
        }
        n++;
        waiting += t->waiting.n;
        sequences += t->sequences;
        weights += t->weight;
    }
    if (n != s->fair.active.n || weights != s->fair.weights) {
        return "the active tenants";
    }
    if (waiting != s->n_waiting) {
        return "a sequence that waits nowhere";
    }
    return sequences != s->running.n ? "a sequence that runs for nobody" : NULL;
}

enum use { UNUSED, USED, PAID_FOR }; /* by one of those who use it */

/* Every page in use is charged to somebody who uses it, every other to nobody; none is shared
 * before it is computed or promised. */
static const char *check_pages(const struct llm_sched *s, enum use *used)
{
    uint32_t total = llm_cache_total(s->cache), n = 0;

    for (const struct llm_sequence *q = s->running.first; q != NULL; q = q->next) {
        for (uint32_t i = 0; i < q->n_pages; i++) {
            uint32_t page = q->pages[i];

            if (llm_cache_shared(s->cache, page) && !llm_cache_indexed(s->cache, page) &&
                (i + 1) * LLM_PAGE_TOKENS > q->n_there) {
                return "a shared page that is not there";
            }
            n += used[page] == UNUSED;
            if (used[page] != PAID_FOR) {
                used[page] = s->charged[page] == q->request->tenant ? PAID_FOR : USED;
            }
        }
    }
    for (uint32_t i = 0; i < total; i++) {
        if (used[i] == USED || (used[i] == UNUSED && s->charged[i] != NULL)) {
            return "a page charged wrongly";
        }
    }
    return n != total - llm_cache_available(s->cache) ? "pages that no sequence holds" : NULL;
}

const char *llm_sched_check(const struct llm_sched *s)
{
    const char *wrong = llm_cache_check(s->cache);
    enum use *used;

    if (wrong != NULL) {
        return wrong;
    }
    if (!list_right(&s->running, true) || !list_right(&s->leaving, false) || !states_right(s)) {
        return "a list of sequences";
    }
    if (s->running.n + s->leaving.n > s->options.max_seqs) {
        return "more sequences than slots";
    }
    wrong = check_tenants(s);
    if (wrong != NULL) {
        return wrong;
    }

    used = calloc(llm_cache_total(s->cache), sizeof(*used));
    if (used == NULL) {
        return "no memory to check the pages";
    }
    wrong = check_pages(s, used);
    free(used);
    return wrong;
}
