#include "engine/cache/owners.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int llm_owners_init(struct llm_owners *o, uint32_t n_entries, struct llm_error *err)
{
    *o = (struct llm_owners){.n_buckets = n_entries / 2 + 1};
    o->buckets = calloc(o->n_buckets, sizeof(struct llm_cache_tenant *));
    if (o->buckets == NULL) {
        return llm_fail(err, LLM_ENOMEM, "no memory for the tenants of %u latent pages",
                        n_entries);
    }
    return LLM_OK;
}

void llm_owners_free(struct llm_owners *o)
{
    for (struct llm_cache_tenant *t = o->newest, *older; t != NULL; t = older) {
        older = t->older;
        free(t);
    }
    free(o->buckets);
    *o = (struct llm_owners){0};
}

/* --- the list --- */

/* Between two that are neighbours; NULL: the list ends there. */
static void link_between(struct llm_owners *o, struct llm_cache_tenant *older,
                         struct llm_cache_tenant *t, struct llm_cache_tenant *newer)
{
    t->older = older;
    t->newer = newer;
    *(older != NULL ? &older->newer : &o->oldest) = t;
    *(newer != NULL ? &newer->older : &o->newest) = t;
}

static void unlink_from_list(struct llm_owners *o, struct llm_cache_tenant *t)
{
    *(t->older != NULL ? &t->older->newer : &o->oldest) = t->newer;
    *(t->newer != NULL ? &t->newer->older : &o->newest) = t->older;
    if (o->oldest_active == t) {
        o->oldest_active = t->newer;
    }
}

bool llm_owners_use(struct llm_owners *o, struct llm_cache_tenant *t, uint64_t now_ns)
{
    bool was_active = t->active;

    unlink_from_list(o, t);
    link_between(o, o->newest, t, NULL);
    t->used_ns = now_ns;
    t->active = true;
    if (o->oldest_active == NULL) {
        o->oldest_active = t;
    }
    return !was_active;
}

struct llm_cache_tenant *llm_owners_age(struct llm_owners *o, uint64_t now_ns)
{
    struct llm_cache_tenant *t = o->oldest_active;

    if (t == NULL || now_ns - t->used_ns <= LLM_ACTIVE_NS) {
        return NULL;
    }
    t->active = false;
    o->oldest_active = t->newer;
    return t;
}

/* --- the table --- */

static struct llm_cache_tenant **bucket_of(const struct llm_owners *o, const uint8_t owner[32])
{
    uint64_t h;

    memcpy(&h, owner, sizeof(h)); /* a digest is as good as any hash of it */
    return &o->buckets[h % o->n_buckets];
}

struct llm_cache_tenant *llm_owners_find(const struct llm_owners *o, const uint8_t owner[32])
{
    struct llm_cache_tenant *t = *bucket_of(o, owner);

    while (t != NULL && memcmp(t->owner, owner, sizeof(t->owner)) != 0) {
        t = t->next;
    }
    return t;
}

struct llm_cache_tenant *llm_owners_join(struct llm_owners *o, const uint8_t owner[32])
{
    struct llm_cache_tenant **bucket, *t = llm_owners_find(o, owner);

    if (t != NULL) {
        t->users++;
        return t;
    }

    t = calloc(1, sizeof(*t));
    if (t == NULL) {
        return NULL;
    }
    memcpy(t->owner, owner, sizeof(t->owner));
    t->users = 1;
    bucket = bucket_of(o, owner);
    t->next = *bucket;
    *bucket = t;
    link_between(o, NULL, t, o->oldest);
    return t;
}

bool llm_owner_gone(const struct llm_cache_tenant *t)
{
    for (int i = 0; i < LLM_N_TIERS; i++) {
        if (t->parts[i].n_pages > 0) {
            return false;
        }
    }
    return t->users == 0;
}

void llm_owners_remove(struct llm_owners *o, struct llm_cache_tenant *t)
{
    struct llm_cache_tenant **p;

    for (p = bucket_of(o, t->owner); *p != t; p = &(*p)->next) {
        /* it is there */
    }
    *p = t->next;
    unlink_from_list(o, t);
    free(t);
}

/* --- the check --- */

const char *llm_owners_check(const struct llm_owners *o)
{
    const struct llm_cache_tenant *newer = NULL;
    bool active = true; /* those that come first */

    for (const struct llm_cache_tenant *t = o->newest; t != NULL; newer = t, t = t->older) {
        if (t->newer != newer || (newer != NULL && t->used_ns > newer->used_ns)) {
            return "tenants out of order";
        }
        if (t->active && !active) {
            return "a tenant is active behind one that is not";
        }
        active = t->active;
        if (active && (t->older == NULL || !t->older->active) && o->oldest_active != t) {
            return "the oldest active tenant is another";
        }
        if (llm_owner_gone(t)) {
            return "a tenant without users or pages";
        }
    }
    if (o->oldest != newer) {
        return "a list of tenants that ends elsewhere";
    }
    return o->oldest_active != NULL && !o->oldest_active->active ? "nobody is active" : NULL;
}
