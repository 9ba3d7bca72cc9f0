/* Pages between the pool and Redis: see exchange.h, and the cache's promises in cache.h. */

#include "engine/cache/cache_internal.h"

#include <string.h>

#define OFFER_LOOKS 256 /* pages that llm_cache_offer looks at for each that it may copy */

static struct llm_page_in *page_in_at(struct llm_exchange *x, uint32_t i)
{
    return &x->in[i % LLM_EXCHANGE_IN];
}

static struct llm_page_out *page_out_at(struct llm_exchange *x, uint32_t i)
{
    return &x->out[i % LLM_EXCHANGE_OUT];
}

static bool is_copied(const struct llm_cache *c, uint64_t fence)
{
    return c->ops->fence_done(c->backend, fence);
}

/* One of 255; after so many it may be taken for another: then a page is offered a round later. */
static uint8_t this_round(const struct llm_cache *c)
{
    return (uint8_t) (1 + c->now(c->now_ctx) / c->exchange.round_ns % UINT8_MAX);
}

/* --- in --- */

/* Gives back the buffers that have been copied. */
static void settle_in(struct llm_cache *c)
{
    struct llm_exchange *x = &c->exchange;

    while (x->in_done != x->in_begun && is_copied(c, page_in_at(x, x->in_done)->fence)) {
        llm_redis_give_back(x->redis, page_in_at(x, x->in_done++)->buffer);
    }
}

static void count_loaded(struct llm_cache *c, struct llm_cache_tenant *t)
{
    c->counts.hit_tokens[LLM_TIER_REDIS] += LLM_PAGE_TOKENS;
    t->counts.hit_tokens[LLM_TIER_REDIS] += LLM_PAGE_TOKENS;
}

/* A page that is pending becomes what has arrived. False: there is none, or it is complete. */
static bool fill(struct llm_cache *c, const struct llm_redis_arrival *a, const void **writer)
{
    struct llm_exchange *x = &c->exchange;
    uint32_t e = llm_index_find(&c->index, &a->digest, a->ids), page;

    if (e == LLM_NO_ENTRY) {
        return false;
    }
    page = c->entries[e].page;
    if (page == LLM_NO_PAGE || !c->pages[page].pending
        || c->ops->page_in(c->backend, page, 0, c->n_planes, a->bytes, &c->last_copy) != LLM_OK) {
        return false;
    }
    c->fence = c->last_copy;
    *page_in_at(x, x->in_begun++) = (struct llm_page_in){c->last_copy, a->buffer};
    *writer = c->pages[page].writer;
    llm_cache_complete(c, page);
    c->pages[page].offered = this_round(c); /* it is there already */
    count_loaded(c, c->entries[e].tenant);
    return true;
}

bool llm_cache_arrived(struct llm_cache *c, struct llm_cache_arrival *out)
{
    struct llm_exchange *x = &c->exchange;
    struct llm_redis_arrival a;

    if (x->redis == NULL) {
        return false;
    }
    settle_in(c);
    if (x->in_begun - x->in_done == LLM_EXCHANGE_IN || !llm_redis_arrived(x->redis, &a)) {
        return false;
    }
    *out = (struct llm_cache_arrival){.load = a.load, .ended = a.ended};
    if (!a.ended) {
        out->taken = fill(c, &a, &out->writer);
        if (!out->taken) {
            llm_redis_give_back(x->redis, a.buffer);
        }
    }
    return true;
}

/* --- out --- */

/* Hands over the buffers that have been copied to. */
static void settle_out(struct llm_cache *c)
{
    struct llm_exchange *x = &c->exchange;

    while (x->out_done != x->out_begun && is_copied(c, page_out_at(x, x->out_done)->fence)) {
        const struct llm_page_out *p = page_out_at(x, x->out_done++);

        if (p->unwanted) {
            llm_redis_drop(x->redis, p->buffer);
        } else {
            llm_redis_save(x->redis, p->buffer, p->owner, p->epoch, p->max_pages, &p->digest,
                           p->ids);
        }
    }
}

static bool may_be_offered(const struct llm_cache_page *p, uint8_t round)
{
    return p->entry != LLM_NO_ENTRY && p->proven && p->offered != round && !p->hidden;
}

/* False: it has to wait. */
static bool offer(struct llm_cache *c, uint32_t page, uint8_t round)
{
    struct llm_exchange *x = &c->exchange;
    struct llm_page_out *p = page_out_at(x, x->out_begun);
    uint32_t e = c->pages[page].entry;
    void *buffer;

    if (x->out_begun - x->out_done == LLM_EXCHANGE_OUT) {
        return false;
    }
    buffer = llm_redis_save_buffer(x->redis, &p->buffer);
    if (buffer == NULL) {
        return false;
    }
    if (c->ops->page_out(c->backend, page, 0, c->n_planes, buffer, &c->last_copy) != LLM_OK) {
        llm_redis_drop(x->redis, p->buffer);
        return false;
    }
    p->fence = c->last_copy;
    p->unwanted = false;
    memcpy(p->owner, c->entries[e].tenant->owner, sizeof(p->owner));
    p->epoch = c->entries[e].tenant->epoch;
    p->max_pages = c->entries[e].tenant->max_pages;
    p->digest = c->index.digests[e];
    memcpy(p->ids, llm_index_ids(&c->index, e), sizeof(p->ids));
    x->out_begun++;
    c->pages[page].offered = round;
    c->pages[page].proven = false;
    return true;
}

void llm_cache_offer(struct llm_cache *c, uint32_t n)
{
    struct llm_exchange *x = &c->exchange;
    uint64_t looks = (uint64_t) n * OFFER_LOOKS;
    uint8_t round;

    if (x->redis == NULL) {
        return;
    }
    settle_out(c);
    if (n == 0 || !llm_redis_rates(x->redis).up) {
        return;
    }
    round = this_round(c);
    while (looks-- > 0 && n > 0) {
        if (may_be_offered(&c->pages[x->cursor], round)) {
            if (!offer(c, x->cursor, round)) {
                return;
            }
            n--;
        }
        x->cursor = (x->cursor + 1) % c->pool.n_pages;
    }
}

/* --- what is not wanted any more --- */

bool llm_cache_outdated(struct llm_cache *c, uint8_t owner[32])
{
    struct llm_redis_epoch heard;

    while (c->exchange.redis != NULL && llm_redis_heard(c->exchange.redis, &heard)) {
        struct llm_cache_tenant *t = llm_owners_find(&c->owners, heard.owner);
        uint64_t before = t != NULL ? t->epoch : 0;

        if (t != NULL) {
            t->epoch = heard.epoch;
        }
        if (before != 0 && before != heard.epoch) {
            memcpy(owner, heard.owner, sizeof(heard.owner));
            return true;
        }
    }
    return false;
}

void llm_exchange_forget(struct llm_cache *c, const struct llm_cache_tenant *t,
                         const struct llm_digest *digest)
{
    struct llm_exchange *x = &c->exchange;

    if (x->redis == NULL) {
        return;
    }
    for (uint32_t i = x->out_done; i != x->out_begun; i++) {
        struct llm_page_out *p = page_out_at(x, i);

        p->unwanted |= memcmp(&p->digest, digest, sizeof(*digest)) == 0;
    }
    llm_redis_delete(x->redis, t->owner, t->epoch, digest);
}

void llm_exchange_purge(struct llm_cache *c, const uint8_t owner[32])
{
    struct llm_exchange *x = &c->exchange;

    if (x->redis == NULL) {
        return;
    }
    for (uint32_t i = x->out_done; i != x->out_begun; i++) {
        struct llm_page_out *p = page_out_at(x, i);

        p->unwanted |= memcmp(p->owner, owner, sizeof(p->owner)) == 0;
    }
    llm_redis_forget_tenant(x->redis, owner);
}

void llm_exchange_close(struct llm_cache *c)
{
    struct llm_exchange *x = &c->exchange;

    for (; x->in_done != x->in_begun; x->in_done++) {
        llm_redis_give_back(x->redis, page_in_at(x, x->in_done)->buffer);
    }
    for (; x->out_done != x->out_begun; x->out_done++) {
        llm_redis_drop(x->redis, page_out_at(x, x->out_done)->buffer);
    }
}
