#include "engine/cache/tier.h"

#include <assert.h>
#include <stdlib.h>

int llm_tier_init(struct llm_tier *t, enum llm_cache_tier which, uint32_t n_entries,
                  struct llm_error *err)
{
    *t = (struct llm_tier){.which = which};
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

/* --- claims --- */

static void settle(struct llm_tier *t)
{
    struct llm_cache_tenant *tenant = t->changed;
    struct llm_part *p;

    if (tenant == NULL) {
        return;
    }
    t->changed = NULL;
    p = &tenant->parts[t->which];
    if (p->n_idle == 0) {
        llm_shares_remove(&t->shares, &p->claim);
    } else {
        llm_shares_set(&t->shares, &p->claim, p->n_pages, tenant->active ? tenant->weight : 0,
                       t->links[p->oldest].used, p->oldest);
    }
}

/* The claim is put right when it matters, or another's changes: many changes of one cost little. */
static void change(struct llm_tier *t, struct llm_cache_tenant *tenant)
{
    if (t->changed != tenant) {
        settle(t);
        t->changed = tenant;
    }
}

void llm_tier_reweigh(struct llm_tier *t, struct llm_cache_tenant *tenant)
{
    change(t, tenant);
}

void llm_tier_forget(struct llm_tier *t, const struct llm_cache_tenant *tenant)
{
    if (t->changed == tenant) {
        settle(t);
    }
}

uint32_t llm_tier_next(struct llm_tier *t)
{
    uint32_t entry;

    settle(t);
    return llm_shares_next(&t->shares, &entry) ? entry : LLM_NO_ENTRY;
}

/* --- pages --- */

bool llm_tier_idle(const struct llm_tier *t, uint32_t entry)
{
    return t->links[entry].used != 0;
}

void llm_tier_enter(struct llm_tier *t, struct llm_cache_tenant *tenant)
{
    t->n_pages++;
    tenant->parts[t->which].n_pages++;
    change(t, tenant);
}

void llm_tier_leave(struct llm_tier *t, struct llm_cache_tenant *tenant, uint32_t entry)
{
    if (llm_tier_idle(t, entry)) {
        llm_tier_pull(t, tenant, entry);
    }
    t->n_pages--;
    tenant->parts[t->which].n_pages--;
    change(t, tenant);
}

void llm_tier_put(struct llm_tier *t, struct llm_cache_tenant *tenant, uint32_t entry)
{
    struct llm_part *p = &tenant->parts[t->which];

    assert(!llm_tier_idle(t, entry));
    t->links[entry] = (struct llm_link){
        .used = ++t->uses,
        .older = p->n_idle > 0 ? p->newest : LLM_NO_ENTRY,
        .newer = LLM_NO_ENTRY,
    };
    *(p->n_idle > 0 ? &t->links[p->newest].newer : &p->oldest) = entry;
    p->newest = entry;
    p->n_idle++;
    t->n_idle++;
    change(t, tenant);
}

void llm_tier_pull(struct llm_tier *t, struct llm_cache_tenant *tenant, uint32_t entry)
{
    struct llm_part *p = &tenant->parts[t->which];
    struct llm_link *l = &t->links[entry];

    assert(llm_tier_idle(t, entry));
    *(l->older != LLM_NO_ENTRY ? &t->links[l->older].newer : &p->oldest) = l->newer;
    *(l->newer != LLM_NO_ENTRY ? &t->links[l->newer].older : &p->newest) = l->older;
    l->used = 0;
    p->n_idle--;
    t->n_idle--;
    change(t, tenant);
}

/* --- the check --- */

/* A tenant's list: the ends meet, and uses go up. */
static const char *check_list(const struct llm_tier *t, const struct llm_part *p)
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
    if (p->n_idle > 0 && (p->newest != older || entry != LLM_NO_ENTRY)) {
        return "a list of idle pages that does not end";
    }
    return p->n_idle > p->n_pages ? "more idle pages than pages" : NULL;
}

static const char *check_claim(const struct llm_tier *t, const struct llm_cache_tenant *tenant)
{
    const struct llm_part *p = &tenant->parts[t->which];
    const struct llm_claim *c = &p->claim;

    if (tenant == t->changed) {
        return NULL;
    }
    if ((p->n_idle > 0) != (c->priority != 0)) {
        return "a claim without idle pages, or none where there are some";
    }
    if (p->n_idle > 0
        && (c->pages != p->n_pages || c->weight != (tenant->active ? tenant->weight : 0)
            || c->entry != p->oldest || c->used != t->links[p->oldest].used)) {
        return "a claim that is not right";
    }
    return NULL;
}

const char *llm_tier_check(const struct llm_tier *t, const struct llm_owners *owners)
{
    uint64_t n_pages = 0, n_idle = 0;

    for (const struct llm_cache_tenant *o = owners->newest; o != NULL; o = o->older) {
        const char *wrong = check_list(t, &o->parts[t->which]);

        wrong = wrong != NULL ? wrong : check_claim(t, o);
        if (wrong != NULL) {
            return wrong;
        }
        n_pages += o->parts[t->which].n_pages;
        n_idle += o->parts[t->which].n_idle;
    }
    if (n_pages != t->n_pages || n_idle != t->n_idle) {
        return "a tier is not the sum of its tenants";
    }
    return llm_shares_check(&t->shares);
}
