#include "engine/cache/tier.h"

#include <assert.h>
#include <stdlib.h>

int llm_tier_init(struct llm_tier *t, enum llm_cache_tier which, struct llm_owners *owners,
                  uint32_t n_entries, struct llm_error *err)
{
    *t = (struct llm_tier){.which = which, .owners = owners};
    t->links = calloc(n_entries, sizeof(*t->links));
    if (t->links == NULL) {
        return llm_fail(err, LLM_ENOMEM, "no memory for the list of %u latent pages", n_entries);
    }
    return LLM_OK;
}

void llm_tier_free(struct llm_tier *t)
{
    free(t->links);
    *t = (struct llm_tier){0};
}

void llm_tier_enter(struct llm_tier *t, struct llm_cache_tenant *tenant)
{
    t->n_pages++;
    llm_part_of(t->owners, tenant, t->which)->n_pages++;
}

void llm_tier_leave(struct llm_tier *t, struct llm_cache_tenant *tenant)
{
    t->n_pages--;
    llm_part_of(t->owners, tenant, t->which)->n_pages--;
}

bool llm_tier_idle(const struct llm_tier *t, uint32_t entry)
{
    return t->links[entry].used != 0;
}

void llm_tier_put(struct llm_tier *t, struct llm_cache_tenant *tenant, uint32_t entry)
{
    struct llm_part *p = llm_part_of(t->owners, tenant, t->which);

    assert(!llm_tier_idle(t, entry));
    t->links[entry] = (struct llm_link){
        .used = ++t->uses,
        .older = p->n_idle > 0 ? p->newest : LLM_NO_ENTRY,
        .newer = LLM_NO_ENTRY,
    };
    if (p->n_idle > 0) {
        t->links[p->newest].newer = entry;
    } else {
        p->oldest = entry;
        p->oldest_used = t->uses;
    }
    p->newest = entry;
    p->n_idle++;
    t->n_idle++;
}

void llm_tier_pull(struct llm_tier *t, struct llm_cache_tenant *tenant, uint32_t entry)
{
    struct llm_part *p = llm_part_of(t->owners, tenant, t->which);
    struct llm_link *l = &t->links[entry];

    assert(llm_tier_idle(t, entry));
    *(l->older != LLM_NO_ENTRY ? &t->links[l->older].newer : &p->oldest) = l->newer;
    *(l->newer != LLM_NO_ENTRY ? &t->links[l->newer].older : &p->newest) = l->older;
    l->used = 0;
    p->n_idle--;
    t->n_idle--;
    if (p->n_idle > 0) {
        p->oldest_used = t->links[p->oldest].used;
    }
}

typedef unsigned __int128 uint128;

static uint32_t weight_now(const struct llm_seat *s, uint64_t now_ns)
{
    return now_ns - s->used_ns <= LLM_ACTIVE_NS ? s->weight : 0;
}

uint32_t llm_tier_next(const struct llm_tier *t, uint64_t now_ns)
{
    const struct llm_seat *seats = t->owners->seats;
    const struct llm_part *best = NULL;
    uint64_t pages = 0, weights = 0;
    bool best_over = false;

    for (uint32_t i = 0; i < t->owners->n; i++) {
        if (seats[i].parts[t->which].n_idle > 0) {
            pages += seats[i].parts[t->which].n_pages;
            weights += weight_now(&seats[i], now_ns);
        }
    }

    for (uint32_t i = 0; i < t->owners->n; i++) {
        const struct llm_part *p = &seats[i].parts[t->which];
        bool over;

        if (p->n_idle == 0) {
            continue;
        }
        over = (uint128) p->n_pages * weights > (uint128) pages * weight_now(&seats[i], now_ns);
        if (best == NULL || over > best_over
            || (over == best_over && p->oldest_used < best->oldest_used)) {
            best = p;
            best_over = over;
        }
    }
    return best != NULL ? best->oldest : LLM_NO_ENTRY;
}

/* A tenant's list: the ends meet, and uses go up. */
static const char *check_part(const struct llm_tier *t, const struct llm_part *p)
{
    uint32_t entry = p->oldest, older = LLM_NO_ENTRY;
    uint64_t used = 0;

    for (uint32_t i = 0; i < p->n_idle; i++) {
        const struct llm_link *l = &t->links[entry];

        if (l->older != older || l->used <= used) {
            return "a list of idle pages out of order";
        }
        used = l->used;
        older = entry;
        entry = l->newer;
    }
    if (p->n_idle > 0 && p->oldest_used != t->links[p->oldest].used) {
        return "a list of idle pages that is older than it says";
    }
    if (p->n_idle > 0 && (p->newest != older || entry != LLM_NO_ENTRY)) {
        return "a list of idle pages that does not end";
    }
    return NULL;
}

const char *llm_tier_check(const struct llm_tier *t)
{
    uint64_t n_pages = 0, n_idle = 0;

    for (uint32_t i = 0; i < t->owners->n; i++) {
        const struct llm_part *p = &t->owners->seats[i].parts[t->which];
        const char *wrong = check_part(t, p);

        if (wrong != NULL) {
            return wrong;
        }
        if (p->n_idle > p->n_pages) {
            return "more idle pages than pages";
        }
        n_pages += p->n_pages;
        n_idle += p->n_idle;
    }
    if (n_pages != t->n_pages || n_idle != t->n_idle) {
        return "a tier is not the sum of its tenants";
    }
    return NULL;
}
