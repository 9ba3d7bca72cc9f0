#include "engine/cache/owners.h"

#include <assert.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b)
{
    const struct llm_cache_tenant *ta = a, *tb = b;

    return memcmp(ta->owner, tb->owner, sizeof(ta->owner));
}

void llm_owners_free(struct llm_owners *o)
{
    tdestroy(o->by_owner, free);
    free(o->seats);
    *o = (struct llm_owners){0};
}

static bool seat(struct llm_owners *o, struct llm_cache_tenant *t)
{
    if (o->n == o->room) {
        uint32_t room = o->room != 0 ? 2 * o->room : 16;
        struct llm_seat *seats = reallocarray(o->seats, room, sizeof(*seats));

        if (seats == NULL) {
            return false;
        }
        o->seats = seats;
        o->room = room;
    }
    t->seat = o->n++;
    o->seats[t->seat] = (struct llm_seat){.tenant = t};
    return true;
}

static struct llm_cache_tenant *add(struct llm_owners *o, const uint8_t owner[32])
{
    struct llm_cache_tenant *t = calloc(1, sizeof(*t));

    if (t == NULL) {
        return NULL;
    }
    memcpy(t->owner, owner, sizeof(t->owner));
    if (tsearch(t, &o->by_owner, compare) == NULL) {
        free(t);
        return NULL;
    }
    if (!seat(o, t)) {
        tdelete(t, &o->by_owner, compare);
        free(t);
        return NULL;
    }
    return t;
}

struct llm_cache_tenant *llm_owners_join(struct llm_owners *o, const uint8_t owner[32],
                                         uint32_t weight)
{
    struct llm_cache_tenant key, *t, *const *found;

    assert(weight > 0);
    memcpy(key.owner, owner, sizeof(key.owner));
    found = tfind(&key, &o->by_owner, compare);
    t = found != NULL ? *found : add(o, owner);
    if (t != NULL) {
        t->users++;
        llm_seat_of(o, t)->weight = weight;
    }
    return t;
}

void llm_owners_leave(struct llm_owners *o, struct llm_cache_tenant *t)
{
    assert(t->users > 0);
    t->users--;
    llm_owners_let_go(o, t);
}

void llm_owners_let_go(struct llm_owners *o, struct llm_cache_tenant *t)
{
    struct llm_seat *own = llm_seat_of(o, t);

    if (t->users > 0) {
        return;
    }
    for (int i = 0; i < LLM_N_TIERS; i++) {
        if (own->parts[i].n_pages > 0) {
            return;
        }
    }

    /* the last seat moves up */
    *own = o->seats[--o->n];
    own->tenant->seat = t->seat;
    tdelete(t, &o->by_owner, compare);
    free(t);
}
