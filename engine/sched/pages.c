/* A sequence's pages. Its first ones may be shared: full ones, each written by one sequence at a
 * time, its writer, and read by others when it is complete; should the writer stop, the next one
 * begins the page anew, with the same tokens. All others belong to it alone. So nobody ever writes
 * a row that somebody else may read, and rows are handed over strictly in order: a sequence reads
 * no byte of a page that it, or the writer of a shared page, has not written. A page that is
 * forgotten has no writer to tell of any more: it is held only by those that are past it. */

#include "engine/sched/sched_internal.h"

#include <string.h>

/* --- whom a page in use is charged to: the tenant that came first, of those that use it --- */

static void charge(struct llm_sched *s, struct llm_tenant *t, const uint32_t *pages, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (s->charged[pages[i]] == NULL) {
            s->charged[pages[i]] = t;
            t->holders++;
            t->pages++;
        }
    }
}

static bool holds(const struct llm_sequence *q, uint32_t i, uint32_t page)
{
    return i < q->n_pages && q->pages[i] == page;
}

/* Another sequence that holds page i of q, of the same tenant if there is one; NULL: nobody does.
 * Most likely it is the one that holds the page before. */
static const struct llm_sequence *other_holder(const struct llm_sched *s,
                                               const struct llm_sequence *q, uint32_t i,
                                               const struct llm_sequence *likely)
{
    const struct llm_sequence *found = NULL;

    if (likely != NULL && holds(likely, i, q->pages[i])) {
        return likely;
    }
    for (const struct llm_sequence *o = s->running.first; o != NULL; o = o->next) {
        if (o != q && holds(o, i, q->pages[i]) &&
            (found == NULL || o->request->tenant == q->request->tenant)) {
            found = o;
        }
    }
    return found;
}

/* Before the pages of q are dropped: who uses them on pays for what its tenant has paid for. */
static void discharge(struct llm_sched *s, const struct llm_sequence *q)
{
    struct llm_tenant *t = q->request->tenant;
    const struct llm_sequence *heir = NULL;

    for (uint32_t i = 0; i < q->n_pages; i++) {
        uint32_t page = q->pages[i];

        if (s->charged[page] != t) {
            continue; /* he uses it on */
        }
        heir = llm_cache_shared(s->cache, page) ? other_holder(s, q, i, heir) : NULL;
        if (heir == NULL || heir->request->tenant != t) {
            s->charged[page] = NULL;
            t->pages--;
            llm_tenants_drop(&s->fair.tenants, t);
            if (heir != NULL) {
                charge(s, heir->request->tenant, &page, 1);
            }
        }
    }
}

/* --- the beginning --- */

/* Pages for its tokens and one more. */
static uint32_t pages_needed(const struct llm_sequence *q)
{
    return q->n_known / LLM_PAGE_TOKENS + 1;
}

/* What is indexed of the n pages of q from `first` on; what has to be copied is paid for. */
static void match(struct llm_sched *s, struct llm_sequence *q, uint32_t first, uint32_t n,
                  uint32_t *pages, struct llm_cache_found *found)
{
    llm_cache_match(s->cache, q->request->owner, q->chained + first,
                    q->tokens + (size_t) first * LLM_PAGE_TOKENS, n, pages, found);
    llm_fair_charge(q->request->tenant, (double) (found->n_host * s->copy_ns));
}

/* Takes the page that is indexed in place of its own, though one before it is missing: it has come
 * from Redis ahead of what computes, or was left by one that went before it had read all. */
static void adopt(struct llm_sched *s, struct llm_sequence *q, uint32_t i,
                  struct llm_cache_found *sum)
{
    struct llm_cache_found found;
    uint32_t page;

    match(s, q, i, 1, &page, &found);
    if (found.n > 0) {
        llm_cache_drop(s->cache, &q->pages[i], 1);
        q->pages[i] = page;
    }
    sum->n += found.n;
    sum->n_host += found.n_host;
}

/* Full pages of others are not computed again; those that are missing are promised to others.
 * found: the first ones; when it returns, all of them. */
static void publish_prompt(struct llm_sched *s, struct llm_sequence *q,
                           struct llm_cache_found *found)
{
    for (uint32_t i = found->n; i < q->n_chained && !q->request->purged; i++) {
        if (!llm_cache_publish(s->cache, q->request->owner, q->pages[i], &q->chained[i],
                               q->tokens + (size_t) i * LLM_PAGE_TOKENS, q)) {
            adopt(s, q, i, found);
        }
    }
}

static uint32_t count_shared(const struct llm_sched *s, const struct llm_sequence *q, uint32_t n)
{
    uint32_t shared = 0;

    for (uint32_t i = 0; i < n; i++) {
        shared += llm_cache_shared(s->cache, q->pages[i]);
    }
    return shared;
}

/* Takes new pages after the first n of them, which are there. */
static int take_rest(struct llm_sched *s, struct llm_sequence *q, uint32_t n)
{
    uint32_t needed = pages_needed(q);

    if (llm_cache_take(s->cache, needed - n, q->pages + n) != LLM_OK) {
        q->pages_wanted = needed - count_shared(s, q, n);
        llm_cache_drop(s->cache, q->pages, n);
        return LLM_EAGAIN;
    }
    q->pages_wanted = 0;
    q->n_pages = needed;
    return LLM_OK;
}

int llm_pages_begin(struct llm_sched *s, struct llm_sequence *q)
{
    struct llm_cache_found found = {0};

    if (q->n_chained > 0) {
        match(s, q, 0, q->n_chained, q->pages, &found);
    }
    if (take_rest(s, q, found.n) != LLM_OK) {
        return LLM_EAGAIN;
    }
    publish_prompt(s, q, &found);
    charge(s, q->request->tenant, q->pages, q->n_pages);
    if (q->n_chained > 0) {
        llm_cache_count(s->cache, q->request->owner, &found, q->n_chained);
    }
    q->n_matched = found.n;
    q->n_there = q->position = q->n_done = q->n_proven = 0;
    return LLM_OK;
}

int llm_pages_fork(struct llm_sched *s, struct llm_sequence *q, const struct llm_sequence *leader)
{
    uint32_t n_full = q->n_prompt / LLM_PAGE_TOKENS, n_rest = q->n_prompt % LLM_PAGE_TOKENS;

    for (uint32_t i = 0; i < n_full; i++) {
        q->pages[i] = leader->pages[i];
        llm_cache_hold(s->cache, q->pages[i]);
    }
    if (take_rest(s, q, n_full) != LLM_OK) {
        return LLM_EAGAIN;
    }
    charge(s, q->request->tenant, q->pages, q->n_pages);
    /* both go on in the last page: the next row of either is a write, so the copy is made now */
    if (n_rest > 0 && s->ops->page_copy(s->backend, leader->pages[n_full], q->pages[n_full],
                                        n_rest) != LLM_OK) {
        llm_pages_end(s, q);
        return LLM_EINTERNAL;
    }
    q->n_there = q->n_prompt;
    q->n_proven = 0;
    q->position = q->n_done = q->n_prompt - 1;
    return LLM_OK;
}

/* --- reading together --- */

static bool is_there(const struct llm_sched *s, uint32_t page)
{
    return llm_cache_indexed(s->cache, page) && !llm_cache_pending(s->cache, page);
}

struct llm_sequence *llm_pages_writer(const struct llm_sched *s, const struct llm_sequence *q,
                                      uint32_t page)
{
    struct llm_sequence *w;

    if (!llm_cache_pending(s->cache, page)) {
        return NULL;
    }
    w = (struct llm_sequence *) llm_cache_writer(s->cache, page);
    return w == NULL || w == q || w->request->paused ? NULL : w;
}

void llm_pages_skip(const struct llm_sched *s, struct llm_sequence *q)
{
    uint32_t i = q->position / LLM_PAGE_TOKENS;

    while (i < q->n_chained && is_there(s, q->pages[i])) {
        q->n_there = ++i * LLM_PAGE_TOKENS;
    }
    if (q->position < q->n_there) {
        q->position = q->n_there < q->n_known ? q->n_there : q->n_known - 1;
    }
}

/* A writer that waits itself waits for an earlier page, so this comes to an end; but one that has
 * rows in this step is behind pages that nobody can read yet. */
struct llm_sequence *llm_pages_turn(const struct llm_sched *s, struct llm_sequence *q)
{
    struct llm_sequence *w = q;

    do {
        q = w;
        w = llm_pages_writer(s, q, q->pages[q->position / LLM_PAGE_TOKENS]);
    } while (w != NULL && q->step != s->n_steps);
    return q;
}

uint32_t llm_pages_run(struct llm_sched *s, struct llm_sequence *q, uint32_t max)
{
    uint32_t left = q->n_read - q->position, end;

    max = left < max ? left : max;
    end = q->position + max;
    if (q->position < q->n_there) {
        return 1; /* the last token again */
    }
    for (uint32_t i = q->position / LLM_PAGE_TOKENS; i * LLM_PAGE_TOKENS < end; i++) {
        uint32_t page = q->pages[i];

        if (is_there(s, page) || llm_pages_writer(s, q, page) != NULL) {
            return i * LLM_PAGE_TOKENS - q->position;
        }
        if (llm_cache_pending(s->cache, page)) {
            llm_cache_set_writer(s->cache, page, q);
        }
    }
    return max;
}

uint32_t llm_pages_common(const struct llm_sequence *w, const struct llm_sequence *q, uint32_t max)
{
    uint32_t i = w->position / LLM_PAGE_TOKENS + 1, n;

    while (i < w->n_pages && holds(q, i, w->pages[i])) {
        i++;
    }
    n = i * LLM_PAGE_TOKENS - w->position;
    return n < max ? n : max;
}

void llm_pages_written(struct llm_sched *s, struct llm_sequence *q, uint32_t from)
{
    uint32_t end = q->position / LLM_PAGE_TOKENS;

    for (uint32_t i = from / LLM_PAGE_TOKENS; i < end; i++) {
        if (llm_cache_pending(s->cache, q->pages[i])) {
            llm_cache_complete(s->cache, q->pages[i]);
        }
    }
    if (q->position > q->n_there) {
        q->n_there = q->position;
    }
}

/* --- growing, ending --- */

int llm_pages_grow(struct llm_sched *s, struct llm_sequence *q)
{
    if (q->position < q->n_pages * LLM_PAGE_TOKENS) {
        return LLM_OK;
    }
    if (llm_cache_take(s->cache, 1, q->pages + q->n_pages) != LLM_OK) {
        return LLM_EAGAIN;
    }
    charge(s, q->request->tenant, q->pages + q->n_pages, 1);
    q->n_pages++;
    return LLM_OK;
}

void llm_pages_index_sampled(struct llm_sched *s, struct llm_sequence *q)
{
    const struct llm_request *r = q->request;
    uint32_t full = q->n_done / LLM_PAGE_TOKENS;

    if (r->owner == NULL || q->digests == NULL || !s->one_form || r->purged) {
        return;
    }
    for (; q->n_chained < full; q->n_chained++) {
        uint32_t i = q->n_chained;
        const uint32_t *ids = q->tokens + (size_t) i * LLM_PAGE_TOKENS;

        if (llm_page_digests(&r->chain, i > 0 ? &q->chained[i - 1] : NULL, ids, 1,
                             &q->chained[i]) != LLM_OK) {
            return;
        }
        if (llm_cache_publish(s->cache, r->owner, q->pages[i], &q->chained[i], ids, q)) {
            llm_cache_complete(s->cache, q->pages[i]);
        }
    }
}

void llm_pages_prove(struct llm_sched *s, struct llm_sequence *q)
{
    uint32_t done = q->n_done / LLM_PAGE_TOKENS;

    for (; q->n_proven < done && q->n_proven < q->n_chained; q->n_proven++) {
        llm_cache_prove(s->cache, q->pages[q->n_proven]);
    }
}

/* Others who wait for its pages compute them themselves. */
static void abandon(struct llm_sched *s, const struct llm_sequence *q)
{
    for (uint32_t i = 0; i < q->n_pages; i++) {
        uint32_t page = q->pages[i];

        if (llm_cache_pending(s->cache, page) && llm_cache_writer(s->cache, page) == q) {
            llm_cache_set_writer(s->cache, page, NULL);
        }
    }
}

void llm_pages_end(struct llm_sched *s, struct llm_sequence *q)
{
    llm_pages_index_sampled(s, q);
    llm_loads_cancel(s, q);
    abandon(s, q);
    discharge(s, q);
    llm_cache_drop(s->cache, q->pages, q->n_pages);
    q->n_pages = 0;
    s->n_freed++;
}

/* --- what must not be found again --- */

/* Among the pages that q has yet to read is one of those that `spoilt` was made of. */
static bool is_to_read(const struct llm_sched *s, const struct llm_sequence *q,
                       const struct llm_sequence *spoilt)
{
    for (uint32_t i = q->position / LLM_PAGE_TOKENS; i < q->n_chained && i < spoilt->n_chained;
         i++) {
        if (memcmp(&q->chained[i], &spoilt->chained[i], sizeof(*q->chained)) != 0) {
            return false; /* nor are those behind it the same */
        }
        if (is_there(s, q->pages[i])) {
            return true;
        }
    }
    return false;
}

/* Those who hold a page that is forgotten would all compute it anew, each of them for himself but
 * into the same page: so they begin again. */
static void turn_away(struct llm_sched *s, const struct llm_sequence *spoilt)
{
    struct llm_sequence *next;

    for (struct llm_sequence *q = s->running.first; q != NULL; q = next) {
        next = q->next;
        if (is_to_read(s, q, spoilt)) {
            llm_sched_leave(s, q, LLM_SEQUENCE_PREEMPTED);
        }
    }
}

void llm_pages_forget(struct llm_sched *s, const struct llm_sequence *q)
{
    turn_away(s, q);
    for (uint32_t i = 0; i < q->n_chained; i++) {
        llm_cache_forget(s->cache, q->request->owner, &q->chained[i],
                         q->tokens + (size_t) i * LLM_PAGE_TOKENS);
    }
}

uint32_t llm_pages_own(const struct llm_sched *s, const struct llm_sequence *q)
{
    return q->n_pages - count_shared(s, q, q->n_pages);
}
