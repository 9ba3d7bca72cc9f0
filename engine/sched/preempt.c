/* Who gives way. What a preempted sequence has computed stays in the cache as long as there is
 * room, so coming back costs it little; nothing that was sampled is lost.
 *
 * A tenant's share of slots and pages is by weight, among the active tenants. A tenant below its
 * share may take from the one furthest above, which must not fall below its own by that: so nobody
 * takes back what was just taken. A paused sequence has no use for what it holds: it goes before
 * the others of its tenant, and at any time for one of them that waits. While nothing but paused
 * sequences run, anyone who waits may take from them: nobody waits for slow clients alone. */

#include "engine/sched/sched_internal.h"

enum resource { SLOTS, PAGES };

/* Without what has been chosen to be taken from it. */
static double held(const struct llm_tenant *t, enum resource what)
{
    return (double) (what == SLOTS ? t->sequences : t->pages) - t->chosen;
}

static double share(const struct llm_sched *s, const struct llm_tenant *t, enum resource what)
{
    return llm_fair_share(&s->fair, t, what == SLOTS ? s->options.max_seqs
                                                     : llm_cache_total(s->cache));
}

/* Whether a tenant keeps its share without so much. */
static bool can_spare(const struct llm_sched *s, const struct llm_tenant *t, enum resource what,
                      uint32_t gain)
{
    return held(t, what) - gain >= share(s, t, what);
}

/* Whether a is to be preempted rather than b. */
static bool rather(const struct llm_sequence *a, const struct llm_sequence *b, enum resource what)
{
    const struct llm_tenant *ta = a->request->tenant, *tb = b->request->tenant;

    if (ta != tb) {
        return held(ta, what) / ta->weight > held(tb, what) / tb->weight;
    }
    if (a->request->paused != b->request->paused) {
        return a->request->paused;
    }
    return a->arrival > b->arrival;
}

struct llm_sequence *llm_sched_furthest_over(const struct llm_sched *s)
{
    struct llm_sequence *victim = s->running.first;

    for (struct llm_sequence *q = s->running.first; q != NULL; q = q->next) {
        victim = rather(q, victim, PAGES) ? q : victim;
    }
    return victim;
}

/* --- on behalf of one that waits --- */

static bool all_paused(const struct llm_sched *s)
{
    for (const struct llm_sequence *q = s->running.first; q != NULL; q = q->next) {
        if (!q->request->paused) {
            return false;
        }
    }
    return true;
}

/* From whom is taken. */
enum victims {
    OWN_PAUSED, /* the tenant's own that stand still */
    OTHERS,     /* other tenants', who keep their share */
    ANY,
};

static bool may_take(const struct llm_sched *s, const struct llm_sequence *q,
                     const struct llm_tenant *asking, enum resource what, enum victims whom)
{
    const struct llm_tenant *t = q->request->tenant;

    switch (whom) {
    case OWN_PAUSED:
        return t == asking && q->request->paused;
    case OTHERS:
        return t != asking && t->passed != s->rounds && can_spare(s, t, what, 1);
    case ANY:
        break;
    }
    return true;
}

/* The best of the running that are not chosen yet. */
static struct llm_sequence *best_victim(const struct llm_sched *s, const struct llm_tenant *asking,
                                        enum resource what, enum victims whom)
{
    struct llm_sequence *victim = NULL;

    for (struct llm_sequence *q = s->running.first; q != NULL; q = q->next) {
        if (!q->chosen && may_take(s, q, asking, what, whom) &&
            (victim == NULL || rather(q, victim, what))) {
            victim = q;
        }
    }
    return victim;
}

/* Marks sequences that together give `missing` of what is wanted. How much is missing still. */
static uint32_t choose(struct llm_sched *s, const struct llm_tenant *asking, enum resource what,
                       uint32_t missing, enum victims whom)
{
    struct llm_sequence *q;

    s->rounds++;
    while (missing > 0 && (q = best_victim(s, asking, what, whom)) != NULL) {
        struct llm_tenant *t = q->request->tenant;
        uint32_t gain = what == SLOTS ? 1 : llm_pages_own(s, q);

        if (whom == OTHERS && !can_spare(s, t, what, gain)) {
            t->passed = s->rounds; /* this search is done with him */
            continue;
        }
        q->chosen = true;
        t->chosen += gain;
        missing -= gain < missing ? gain : missing;
    }
    return missing;
}

/* Marks who is to give way. False: it would not be enough. */
static bool choose_all(struct llm_sched *s, const struct llm_tenant *asking, enum resource what,
                       uint32_t missing)
{
    if (all_paused(s)) {
        /* pages that they share count for none of them: whatever comes free is worth a try */
        choose(s, asking, what, missing, ANY);
        return s->running.n > 0;
    }
    missing = choose(s, asking, what, missing, OWN_PAUSED);
    if (missing > 0 && held(asking, what) < share(s, asking, what)) {
        missing = choose(s, asking, what, missing, OTHERS);
    }
    return missing == 0;
}

static bool preempt_for(struct llm_sched *s, struct llm_sequence *asking, enum resource what,
                        uint32_t missing)
{
    bool found = choose_all(s, asking->request->tenant, what, missing);
    struct llm_sequence *next;

    for (struct llm_sequence *q = s->running.first; q != NULL; q = next) {
        next = q->next;
        q->request->tenant->chosen = 0;
        if (q->chosen) {
            q->chosen = false;
            if (found) {
                llm_sched_leave(s, q, LLM_SEQUENCE_PREEMPTED);
            }
        }
    }
    s->heir = found ? asking : NULL;
    return found;
}

bool llm_sched_preempt_for_slot(struct llm_sched *s, struct llm_sequence *q)
{
    return preempt_for(s, q, SLOTS, 1);
}

bool llm_sched_preempt_for_pages(struct llm_sched *s, struct llm_sequence *q, uint32_t missing)
{
    return preempt_for(s, q, PAGES, missing);
}
