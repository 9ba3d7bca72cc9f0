#include "engine/sched/fair.h"

#include <stddef.h>

static void append(struct llm_fair_list *l, struct llm_tenant *t)
{
    t->older = l->newest;
    t->newer = NULL;
    *(l->newest != NULL ? &l->newest->newer : &l->oldest) = t;
    l->newest = t;
    l->n++;
}

static void cut(struct llm_fair_list *l, struct llm_tenant *t)
{
    *(t->older != NULL ? &t->older->newer : &l->oldest) = t->newer;
    *(t->newer != NULL ? &t->newer->older : &l->newest) = t->older;
    t->newer = t->older = NULL;
    l->n--;
}

/* Only ever rises: while nobody is active it stays where the last one left. */
static void raise_floor(struct llm_fair *f)
{
    const struct llm_tenant *t = f->active.oldest;
    double least;

    if (t == NULL) {
        return;
    }
    least = t->counter;
    for (; t != NULL; t = t->newer) {
        least = t->counter < least ? t->counter : least;
    }
    f->floor = least > f->floor ? least : f->floor;
}

/* What a tenant's counter is lifted to when it comes. */
static double least_of(const struct llm_fair *f, const struct llm_tenant *t)
{
    return f->floor - f->allowance / t->weight;
}

/* A resting tenant holds itself. */
static void rest(struct llm_fair *f, struct llm_tenant *t)
{
    append(&f->resting, t);
    t->holders++;
    t->resting = true;
}

static void wake(struct llm_fair *f, struct llm_tenant *t)
{
    cut(&f->resting, t);
    t->resting = false;
    llm_tenants_drop(&f->tenants, t);
}

/* Forgets those whose counter says nothing any more, as far as they are oldest, and who is one too
 * many. */
static void forget_old(struct llm_fair *f)
{
    while (f->resting.n > LLM_FAIR_RESTING ||
           (f->resting.n > 0 &&
            f->resting.oldest->counter <= least_of(f, f->resting.oldest))) {
        wake(f, f->resting.oldest);
    }
}

static void activate(struct llm_fair *f, struct llm_tenant *t)
{
    raise_floor(f);
    if (t->counter < least_of(f, t)) {
        t->counter = least_of(f, t);
    }
    append(&f->active, t);
}

struct llm_tenant *llm_fair_enter(struct llm_fair *f, const uint8_t digest[32], uint32_t weight)
{
    struct llm_tenant *t = llm_tenants_hold(&f->tenants, digest);

    if (t == NULL) {
        return NULL;
    }
    if (t->resting) {
        wake(f, t);
    }
    if (t->requests > 0) {
        f->weights -= t->weight;
    }
    t->weight = weight > 0 ? weight : 1;
    f->weights += t->weight;
    if (t->requests++ == 0) {
        activate(f, t);
    }
    return t;
}

void llm_fair_leave(struct llm_fair *f, struct llm_tenant *t)
{
    if (--t->requests == 0) {
        raise_floor(f);
        cut(&f->active, t);
        f->weights -= t->weight;
        if (f->active.n == 0) {
            f->floor = t->counter > f->floor ? t->counter : f->floor;
        }
        if (t->counter > least_of(f, t)) {
            rest(f, t);
        }
        forget_old(f);
    }
    llm_tenants_drop(&f->tenants, t);
}

void llm_fair_free(struct llm_fair *f)
{
    llm_tenants_clear(&f->tenants);
    *f = (struct llm_fair){0};
}

void llm_fair_charge(struct llm_tenant *t, double ns)
{
    t->counter += ns / t->weight;
}

double llm_fair_share(const struct llm_fair *f, const struct llm_tenant *t, uint32_t total)
{
    return (double) total * t->weight / (double) f->weights;
}
