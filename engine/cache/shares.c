#include "engine/cache/shares.h"

#include <assert.h>
#include <stddef.h>

typedef unsigned __int128 uint128;

static bool is_before(const struct llm_claim *a, const struct llm_claim *b)
{
    uint64_t x = (uint64_t) a->pages * b->weight, y = (uint64_t) b->pages * a->weight;

    return x != y ? x < y : a->used < b->used;
}

static bool is_over(const struct llm_shares *s, const struct llm_claim *c)
{
    return (uint128) c->pages * s->weights > (uint128) s->pages * c->weight;
}

/* --- the tree --- */

static struct llm_claim **place_of(struct llm_shares *s, const struct llm_claim *c)
{
    if (c->parent == NULL) {
        return &s->root;
    }
    return c->parent->left == c ? &c->parent->left : &c->parent->right;
}

/* What is below: its own page, or an older one of a child. */
static void look_below(struct llm_claim *c)
{
    const struct llm_claim *children[] = {c->left, c->right};

    c->used_below = c->used;
    c->entry_below = c->entry;
    for (int i = 0; i < 2; i++) {
        if (children[i] != NULL && children[i]->used_below < c->used_below) {
            c->used_below = children[i]->used_below;
            c->entry_below = children[i]->entry_below;
        }
    }
}

/* Changes places with its parent; the order stays. */
static void rotate_up(struct llm_shares *s, struct llm_claim *c)
{
    struct llm_claim *p = c->parent, *moves;

    *place_of(s, p) = c;
    c->parent = p->parent;
    if (p->left == c) {
        moves = p->left = c->right;
        c->right = p;
    } else {
        moves = p->right = c->left;
        c->left = p;
    }
    if (moves != NULL) {
        moves->parent = p;
    }
    p->parent = c;

    c->used_below = p->used_below;
    c->entry_below = p->entry_below;
    look_below(p);
}

static uint32_t draw_priority(struct llm_shares *s)
{
    s->random = s->random * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t) (s->random >> 32) | 1;
}

static void insert(struct llm_shares *s, struct llm_claim *c)
{
    struct llm_claim **place = &s->root;

    while (*place != NULL) {
        c->parent = *place;
        place = is_before(c, *place) ? &c->parent->left : &c->parent->right;
    }
    *place = c;
    look_below(c);
    for (struct llm_claim *p = c->parent; p != NULL && p->used_below > c->used; p = p->parent) {
        p->used_below = c->used;
        p->entry_below = c->entry;
    }
    while (c->parent != NULL && c->parent->priority < c->priority) {
        rotate_up(s, c);
    }
}

static struct llm_claim *upper_child(const struct llm_claim *c)
{
    if (c->left == NULL || c->right == NULL) {
        return c->left != NULL ? c->left : c->right;
    }
    return c->left->priority > c->right->priority ? c->left : c->right;
}

void llm_shares_remove(struct llm_shares *s, struct llm_claim *c)
{
    struct llm_claim *child;

    if (c->priority == 0) {
        return;
    }
    while ((child = upper_child(c)) != NULL) {
        rotate_up(s, child);
    }
    *place_of(s, c) = NULL;
    for (struct llm_claim *p = c->parent; p != NULL && p->used_below == c->used; p = p->parent) {
        look_below(p);
    }
    s->pages -= c->pages;
    s->weights -= c->weight;
    *c = (struct llm_claim){0};
}

void llm_shares_set(struct llm_shares *s, struct llm_claim *c, uint32_t pages, uint32_t weight,
                    uint64_t used, uint32_t entry)
{
    assert(pages > 0 && pages <= INT32_MAX);
    llm_shares_remove(s, c);
    *c = (struct llm_claim){
        .used = used,
        .entry = entry,
        .pages = pages,
        .weight = weight,
        .priority = draw_priority(s),
    };
    s->pages += pages;
    s->weights += weight;
    insert(s, c);
}

bool llm_shares_next(const struct llm_shares *s, uint32_t *entry)
{
    uint64_t used = UINT64_MAX;

    if (s->root == NULL) {
        return false;
    }
    *entry = s->root->entry_below;
    for (const struct llm_claim *c = s->root; c != NULL;) {
        if (!is_over(s, c)) {
            c = c->right;
            continue;
        }
        if (c->used < used) {
            used = c->used;
            *entry = c->entry;
        }
        if (c->right != NULL && c->right->used_below < used) {
            used = c->right->used_below;
            *entry = c->right->entry_below;
        }
        c = c->left;
    }
    return true;
}

/* --- the check --- */

static const struct llm_claim *leftmost(const struct llm_claim *c)
{
    while (c != NULL && c->left != NULL) {
        c = c->left;
    }
    return c;
}

static const struct llm_claim *successor(const struct llm_claim *c)
{
    if (c->right != NULL) {
        return leftmost(c->right);
    }
    while (c->parent != NULL && c->parent->right == c) {
        c = c->parent;
    }
    return c->parent;
}

static const char *check_claim(const struct llm_claim *c)
{
    const struct llm_claim *children[] = {c->left, c->right};
    struct llm_claim right = *c;

    for (int i = 0; i < 2; i++) {
        if (children[i] != NULL && children[i]->parent != c) {
            return "a claim whose parent is another";
        }
        if (children[i] != NULL && children[i]->priority > c->priority) {
            return "a claim above one of higher priority";
        }
    }
    look_below(&right);
    if (right.used_below != c->used_below || right.entry_below != c->entry_below) {
        return "a claim that does not know what is below";
    }
    return NULL;
}

const char *llm_shares_check(const struct llm_shares *s)
{
    const struct llm_claim *last = NULL;
    uint64_t pages = 0, weights = 0;

    if (s->root != NULL && s->root->parent != NULL) {
        return "a root below another";
    }
    for (const struct llm_claim *c = leftmost(s->root); c != NULL; c = successor(c)) {
        const char *wrong = check_claim(c);

        if (wrong != NULL) {
            return wrong;
        }
        if (last != NULL && !is_before(last, c)) {
            return "claims out of order";
        }
        last = c;
        pages += c->pages;
        weights += c->weight;
    }
    return pages != s->pages || weights != s->weights ? "claims whose sum is another" : NULL;
}
