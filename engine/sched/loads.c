/* Pages from Redis. A prompt is computed from its first missing page on, at once; what arrives
 * ahead of the front is jumped over (llm_pages_skip). Nothing here waits, so Redis can take no more
 * than the time that its own thread needs; therefore pages are asked for only where they come
 * faster than they are computed (worth.h), by what loads and steps have reached. As long as that is
 * not known, and now and then where it speaks against loading, a page or two of a prompt that is
 * being computed anyway are asked for to learn it. */

#include "engine/sched/sched_internal.h"

#include "engine/base/clock.h"

#define PROBE_PAGES 2
#define PROBE_EVERY_NS LLM_NS_PER_S

/* --- what has come --- */

static struct llm_sequence *asked_by(const struct llm_sched *s, uint64_t load)
{
    struct llm_sequence *q = s->running.first;

    while (q != NULL && q->load != load) {
        q = q->next;
    }
    return q;
}

/* Of its prompt, what was found or loaded: the last token is run again in any case. */
static uint32_t cached_tokens(const struct llm_sequence *q)
{
    uint32_t n = (q->n_matched + q->n_loaded) * LLM_PAGE_TOKENS;

    return n < q->n_prompt ? n : q->n_prompt - 1;
}

void llm_loads_begin(struct llm_sequence *q, bool first)
{
    q->load = 0;
    q->load_left = q->n_loaded = 0;
    q->load_done = q->load_decided = false;
    q->counts = first && q->nth == 0;
    if (q->counts) {
        q->request->cached_tokens += cached_tokens(q);
    }
}

/* A page that the sequence would have computed. */
static void spare(struct llm_sched *s, struct llm_sequence *q)
{
    uint32_t before = cached_tokens(q);

    llm_fair_charge(q->request->tenant, (double) s->copy_ns);
    q->n_loaded++;
    if (q->counts) {
        q->request->cached_tokens += cached_tokens(q) - before;
    }
}

void llm_loads_take(struct llm_sched *s)
{
    struct llm_cache_arrival a;
    uint8_t owner[32];

    while (llm_cache_arrived(s->cache, &a)) {
        struct llm_sequence *q = asked_by(s, a.load);

        if (a.ended && q != NULL) {
            q->load = 0;
            q->load_done = q->load_left > 0; /* what is missing once is missing */
        } else if (!a.ended && q != NULL) {
            q->load_left--;
        }
        if (a.taken && a.writer != NULL) {
            spare(s, (struct llm_sequence *) a.writer);
        }
    }
    while (llm_cache_outdated(s->cache, owner)) {
        llm_sched_purge(s, owner);
    }
}

void llm_loads_cancel(struct llm_sched *s, struct llm_sequence *q)
{
    if (q->load != 0) {
        llm_redis_cancel(s->options.redis, q->load);
        q->load = 0;
        q->load_done = true;
    }
}

/* --- what is asked for --- */

/* The next pages of q that nobody else is about to compute: [first, end). */
static uint32_t end_of_run(const struct llm_sched *s, const struct llm_sequence *q, uint32_t first)
{
    uint32_t i = first;

    while (i < q->n_chained && llm_cache_pending(s->cache, q->pages[i]) &&
           llm_pages_writer(s, q, q->pages[i]) == NULL) {
        i++;
    }
    return i;
}

/* How many pages can be asked for without more arriving than there are buffers for: those are given
 * back between steps alone, and who waits for them may miss his deadline. Buffers that are being
 * copied from count as free: they come back with the next step, before which what is asked for now
 * is of no use anyway. */
static uint32_t room(const struct llm_sched *s)
{
    uint32_t most = llm_redis_load_most(s->options.redis), n = 0;

    for (const struct llm_sequence *q = s->running.first; q != NULL; q = q->next) {
        n += q->load != 0 ? q->load_left : 0;
    }
    return n < most ? most - n : 0;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Of pages [first, first + n) of q. False: it is not done. */
static bool ask(struct llm_sched *s, struct llm_sequence *q, uint32_t first, uint32_t n)
{
    s->asked_ns = llm_sched_now(s);
    if (!llm_redis_load(s->options.redis, ++s->last_load, q->request->owner_digest,
                        q->chained + first, q->tokens + (size_t) first * LLM_PAGE_TOKENS, n)) {
        return false;
    }
    q->load = s->last_load;
    q->load_left = n;
    q->load_end = first + n;
    return true;
}

/* Of at most n pages. */
static void probe(struct llm_sched *s, struct llm_sequence *q, uint32_t first, uint32_t n)
{
    if (s->asked_ns == 0 || llm_sched_now(s) - s->asked_ns >= PROBE_EVERY_NS) {
        s->loads.probes += ask(s, q, first, least(n, PROBE_PAGES));
    }
}

/* Whether the next step computes n pages anyway: then there is nothing to decide. */
static bool is_one_step(const struct llm_front *f, uint32_t n)
{
    return llm_worth_skip(f, &(struct llm_fetch){0}, n) == n;
}

/* [first, end) is what can be asked for. */
static void choose(struct llm_sched *s, struct llm_sequence *q, uint32_t first, uint32_t end)
{
    const struct llm_redis_rates rates = llm_redis_rates(s->options.redis);
    const struct llm_front front = llm_batch_front(s, q->position);
    const struct llm_fetch fetch = {
        .first_ns = (double) rates.first_ns,
        .page_ns = (double) s->page_bytes * LLM_NS_PER_S / (double) rates.bytes_per_s,
    };
    uint32_t skip = llm_worth_skip(&front, &fetch, end - first), free = room(s), n;

    if (free == 0) {
        return;
    }

    if (rates.bytes_per_s == 0 || !llm_cost_known(&s->prefill_cost)) {
        first = skip < end - first ? first + skip : end - 1;
        probe(s, q, first, least(end - first, free));
        return;
    }
    s->loads.faster = llm_worth_loading(&front, &fetch, s->loads.faster);
    n = s->loads.faster ? llm_worth_count(&fetch, end - first - skip,
                                          (double) s->options.load_ns / 2)
                        : 0;
    if (n == 0) {
        if (!is_one_step(&front, end - first)) {
            s->loads.declined += !q->load_decided;
            q->load_decided = true;
        }
        probe(s, q, first, least(end - first, free));
    } else if (ask(s, q, first + skip, least(n, free))) {
        s->loads.chosen++;
        q->load_decided = true;
    } else {
        q->load_done = true;
    }
}

/* A load that the front has passed is of no use; a short one will have ended by then, and costs
 * less than to give it up. */
static void look_after(struct llm_sched *s, struct llm_sequence *q, uint32_t front)
{
    if (front >= q->load_end && q->load_left > PROBE_PAGES) {
        llm_loads_cancel(s, q);
    }
}

void llm_loads_ask(struct llm_sched *s)
{
    if (s->options.redis == NULL) {
        return;
    }
    for (struct llm_sequence *q = s->running.first; q != NULL; q = q->next) {
        uint32_t first = (q->position + LLM_PAGE_TOKENS - 1) / LLM_PAGE_TOKENS, end;

        if (q->load != 0) {
            look_after(s, q, first);
        } else if (llm_sequence_reads(q) && !q->load_done && !q->request->paused &&
                   !q->request->purged) {
            end = end_of_run(s, q, first);
            if (first < end) {
                choose(s, q, first, end);
            }
        }
    }
}
