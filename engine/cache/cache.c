#include "engine/cache/cache.h"
#include "engine/base/clock.h"
#include "engine/cache/cache_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#define SAVE_LOOKS 256 /* pages that llm_cache_save looks at */

/* --- making and freeing --- */

/* What a page costs beside its token ids: an entry, and its place in the pool; a slot's is less. */
#define ENTRY_BYTES                                                                               \
    (sizeof(uint32_t) + 2 * sizeof(uint64_t) + sizeof(struct llm_digest) /* index */              \
     + sizeof(struct llm_cache_entry) + LLM_N_TIERS * sizeof(struct llm_link)                     \
     + sizeof(struct llm_cache_tenant *) / 2 /* a bucket for two */)
#define PLACE_BYTES (2 * sizeof(uint32_t) + sizeof(struct llm_cache_page))

_Static_assert(ENTRY_BYTES + PLACE_BYTES <= 128, "the index takes at most 128 bytes a page");

static uint64_t monotonic(void *ctx)
{
    (void) ctx;
    return llm_now_ns();
}

static uint32_t percent_of(uint32_t n, uint32_t percent)
{
    return (uint32_t) (((uint64_t) n * percent + 99) / 100);
}

static int count_slots(const struct llm_cache *c, uint64_t host_bytes, uint32_t n_pages,
                       uint32_t *n_slots, struct llm_error *err)
{
    uint64_t n;

    *n_slots = 0;
    if (host_bytes == 0) {
        return LLM_OK;
    }
    if (host_bytes < c->page_bytes) {
        return llm_fail(err, LLM_ENOMEM,
                        "a host tier of %" PRIu64 " bytes holds no page: one takes %" PRIu64,
                        host_bytes, c->page_bytes);
    }
    n = host_bytes / c->page_bytes;
    *n_slots = n < LLM_MAX_ENTRIES - n_pages ? (uint32_t) n : LLM_MAX_ENTRIES - n_pages;
    return LLM_OK;
}

static int init(struct llm_cache *c, const struct llm_cache_options *options,
                struct llm_error *err)
{
    const struct llm_backend_info *info = c->ops->info(c->backend);
    uint32_t n_pages = info->n_pages, n_slots;
    int rc;

    assert(n_pages > 0 && n_pages < LLM_MAX_ENTRIES);
    assert(options->tenant_percent >= 1 && options->tenant_percent <= 100);
    assert(options->redis == NULL || options->redis_ttl > 0);
    c->page_bytes = info->layout.page_bytes;
    c->n_planes = info->layout.n_planes;
    c->now = options->now != NULL ? options->now : monotonic;
    c->now_ctx = options->now_ctx;
    c->exchange.redis = options->redis;
    c->exchange.round_ns = options->redis_ttl * LLM_NS_PER_S / 2;

    rc = count_slots(c, options->host_bytes, n_pages, &n_slots, err);
    if (rc != LLM_OK) {
        return rc;
    }
    c->most_of_tenant[LLM_TIER_MEMORY] = percent_of(n_pages, options->tenant_percent);
    c->most_of_tenant[LLM_TIER_HOST] = percent_of(n_slots, options->tenant_percent);

    rc = llm_pool_init(&c->pool, n_pages, err);
    if (rc == LLM_OK) {
        rc = llm_host_init(&c->host, n_slots, c->page_bytes, err);
    }
    if (rc == LLM_OK) {
        rc = llm_index_init(&c->index, n_pages + n_slots, err);
    }
    if (rc == LLM_OK) {
        rc = llm_owners_init(&c->owners, n_pages + n_slots, err);
    }
    for (int i = 0; i < LLM_N_TIERS && rc == LLM_OK; i++) {
        rc = llm_tier_init(&c->tiers[i], i, n_pages + n_slots, err);
    }
    if (rc != LLM_OK) {
        return rc;
    }

    c->pages = calloc(n_pages, sizeof(*c->pages));
    c->entries = calloc(c->index.capacity, sizeof(*c->entries));
    if (c->pages == NULL || c->entries == NULL) {
        return llm_fail(err, LLM_ENOMEM, "no memory for the books of %u latent pages", n_pages);
    }
    for (uint32_t i = 0; i < n_pages; i++) {
        c->pages[i].entry = LLM_NO_ENTRY;
    }
    return LLM_OK;
}

int llm_cache_new(const struct llm_backend_ops *ops, struct llm_backend *backend,
                  const struct llm_cache_options *options, struct llm_cache **out,
                  struct llm_error *err)
{
    struct llm_cache *c = calloc(1, sizeof(*c));
    int rc;

    if (c == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    c->ops = ops;
    c->backend = backend;
    rc = init(c, options, err);
    if (rc != LLM_OK) {
        llm_cache_free(c);
        return rc;
    }
    *out = c;
    return LLM_OK;
}

void llm_cache_free(struct llm_cache *c)
{
    if (c == NULL) {
        return;
    }
    if (c->last_copy != 0) {
        c->ops->fence_wait(c->backend, c->last_copy);
    }
    llm_exchange_close(c);
    for (int i = 0; i < LLM_N_TIERS; i++) {
        llm_tier_free(&c->tiers[i]);
    }
    llm_owners_free(&c->owners);
    llm_host_free(&c->host);
    llm_pool_free(&c->pool);
    llm_index_free(&c->index);
    free(c->pages);
    free(c->entries);
    free(c);
}

/* --- tenants --- */

/* What it weighs for its share is another. */
static void reweigh(struct llm_cache *c, struct llm_cache_tenant *t)
{
    for (int i = 0; i < LLM_N_TIERS; i++) {
        llm_tier_reweigh(&c->tiers[i], t);
    }
}

static void let_go(struct llm_cache *c, struct llm_cache_tenant *t)
{
    if (!llm_owner_gone(t)) {
        return;
    }
    for (int i = 0; i < LLM_N_TIERS; i++) {
        llm_tier_forget(&c->tiers[i], t);
    }
    llm_owners_remove(&c->owners, t);
}

struct llm_cache_tenant *llm_cache_join(struct llm_cache *c, const uint8_t owner[32],
                                        uint32_t weight)
{
    struct llm_cache_tenant *t = llm_owners_join(&c->owners, owner);

    assert(weight > 0);
    weight = llm_owner_is_public(owner) ? 1 : weight;
    if (t != NULL && t->weight != weight) {
        t->weight = weight;
        reweigh(c, t);
    }
    return t;
}

void llm_cache_leave(struct llm_cache *c, struct llm_cache_tenant *t)
{
    assert(t->users > 0);
    t->users--;
    let_go(c, t);
}

void llm_cache_limit(struct llm_cache *c, struct llm_cache_tenant *t, uint32_t max_pages)
{
    (void) c;
    t->max_pages = llm_owner_is_public(t->owner) ? 0 : max_pages;
}

/* Whether the tenant may have that many pages in a tier. */
static bool is_allowed(const struct llm_cache_tenant *t, uint32_t n_pages)
{
    return t->max_pages == 0 || n_pages <= t->max_pages;
}

static void used_by(struct llm_cache *c, struct llm_cache_tenant *t, uint64_t now)
{
    if (llm_owners_use(&c->owners, t, now)) {
        reweigh(c, t);
    }
}

/* --- an entry's places --- */

/* What was pushed out counts for the cache and for the tenant. */
static void count_evicted(struct llm_cache *c, uint32_t e, enum llm_cache_tier tier)
{
    c->counts.evicted_pages[tier]++;
    c->entries[e].tenant->counts.evicted_pages[tier]++;
}

/* The index's part of a page in the pool. */
static void enter_pool(struct llm_cache *c, uint32_t e, uint32_t page)
{
    c->entries[e].page = page;
    c->pages[page].entry = e;
    llm_tier_enter(&c->tiers[LLM_TIER_MEMORY], c->entries[e].tenant);
}

static void leave_pool(struct llm_cache *c, uint32_t e)
{
    struct llm_cache_entry *entry = &c->entries[e];
    uint32_t page = entry->page;

    llm_tier_leave(&c->tiers[LLM_TIER_MEMORY], entry->tenant, e);
    entry->page = LLM_NO_PAGE;
    c->pages[page] = (struct llm_cache_page){.entry = LLM_NO_ENTRY};
    llm_pool_drop(&c->pool, &page, 1);
}

static void enter_host(struct llm_cache *c, uint32_t e, uint32_t slot)
{
    struct llm_tier *tier = &c->tiers[LLM_TIER_HOST];

    c->entries[e].slot = slot;
    llm_tier_enter(tier, c->entries[e].tenant);
    llm_tier_put(tier, c->entries[e].tenant, e);
}

/* Copies under way from or to the slot come before those of its next user. */
static void leave_host(struct llm_cache *c, uint32_t e)
{
    struct llm_cache_entry *entry = &c->entries[e];

    llm_tier_leave(&c->tiers[LLM_TIER_HOST], entry->tenant, e);
    llm_pool_drop(&c->host.slots, &entry->slot, 1);
    entry->slot = LLM_NO_PAGE;
}

/* An entry that is nowhere is none. */
static void settle(struct llm_cache *c, uint32_t e)
{
    struct llm_cache_entry *entry = &c->entries[e];
    struct llm_cache_tenant *t = entry->tenant;

    if (entry->page == LLM_NO_PAGE && entry->slot == LLM_NO_PAGE) {
        entry->tenant = NULL;
        llm_index_remove(&c->index, e);
        let_go(c, t);
    }
}

static void unindex(struct llm_cache *c, uint32_t e)
{
    if (c->entries[e].slot != LLM_NO_PAGE) {
        leave_host(c, e);
    }
    if (c->entries[e].page != LLM_NO_PAGE) {
        leave_pool(c, e);
    }
    settle(c, e);
}

/* --- pushing out --- */

/* After a quiet time many may have ceased to be active: one with each page that goes, so that none
 * takes long. */
static uint32_t next_to_go(struct llm_cache *c, enum llm_cache_tier tier, uint64_t now)
{
    struct llm_cache_tenant *away = llm_owners_age(&c->owners, now);

    if (away != NULL) {
        reweigh(c, away);
    }
    return llm_tier_next(&c->tiers[tier]);
}

static void push_out_of_host(struct llm_cache *c, uint32_t e)
{
    count_evicted(c, e, LLM_TIER_HOST);
    leave_host(c, e);
    settle(c, e);
}

/* A slot for a page of the tenant; LLM_NO_PAGE: there is none to be had. */
static uint32_t take_slot(struct llm_cache *c, const struct llm_cache_tenant *t, uint64_t now)
{
    const struct llm_part *part = &t->parts[LLM_TIER_HOST];
    uint32_t slot, goes = LLM_NO_ENTRY;

    if (part->n_pages >= c->most_of_tenant[LLM_TIER_HOST] || !is_allowed(t, part->n_pages + 1)) {
        if (part->n_idle == 0) {
            return LLM_NO_PAGE;
        }
        goes = part->oldest;
    } else if (c->host.slots.n_free == 0) {
        goes = next_to_go(c, LLM_TIER_HOST, now);
    }
    if (goes != LLM_NO_ENTRY) {
        push_out_of_host(c, goes);
    }
    return llm_pool_take(&c->host.slots, 1, &slot) == LLM_OK ? slot : LLM_NO_PAGE;
}

static void copy_out(struct llm_cache *c, uint32_t e, uint32_t slot)
{
    if (c->ops->page_out(c->backend, c->entries[e].page, 0, c->n_planes,
                         llm_host_slot(&c->host, slot), &c->last_copy)
        != LLM_OK) {
        llm_pool_drop(&c->host.slots, &slot, 1);
        return;
    }
    enter_host(c, e, slot);
}

/* Sees to it that an entry is in the host tier, if it can be: its page is about to be used anew. */
static void bring_down(struct llm_cache *c, uint32_t e, uint64_t now)
{
    struct llm_tier *tier = &c->tiers[LLM_TIER_HOST];
    struct llm_cache_entry *entry = &c->entries[e];
    uint32_t slot;

    if (entry->slot != LLM_NO_PAGE) {
        /* there already; used there from now on */
        llm_tier_pull(tier, entry->tenant, e);
        llm_tier_put(tier, entry->tenant, e);
    } else {
        slot = take_slot(c, entry->tenant, now);
        if (slot != LLM_NO_PAGE) {
            copy_out(c, e, slot);
        }
    }
    c->fence = c->last_copy;
}

/* An idle page goes, down into the host tier if it can. */
static void push_out_of_pool(struct llm_cache *c, uint32_t e, uint64_t now)
{
    count_evicted(c, e, LLM_TIER_MEMORY);
    bring_down(c, e, now);
    leave_pool(c, e);
    settle(c, e);
}

/* Idle pages go while the tenant leaves, or has, more in the pool than it may. */
static void keep_limits(struct llm_cache *c, struct llm_cache_tenant *t, uint64_t now)
{
    const struct llm_part *part = &t->parts[LLM_TIER_MEMORY];

    while (part->n_idle > c->most_of_tenant[LLM_TIER_MEMORY] ||
           (part->n_idle > 0 && !is_allowed(t, part->n_pages))) {
        push_out_of_pool(c, part->oldest, now);
    }
}

/* --- users --- */

uint32_t llm_cache_available(const struct llm_cache *c)
{
    return c->pool.n_free + c->tiers[LLM_TIER_MEMORY].n_idle;
}

uint32_t llm_cache_total(const struct llm_cache *c)
{
    return c->pool.n_pages;
}

static int take(struct llm_cache *c, uint32_t n, uint32_t *pages, uint64_t now)
{
    if (n > llm_cache_available(c)) {
        return LLM_EAGAIN;
    }
    while (c->pool.n_free < n) {
        push_out_of_pool(c, next_to_go(c, LLM_TIER_MEMORY, now), now);
    }
    return llm_pool_take(&c->pool, n, pages);
}

int llm_cache_take(struct llm_cache *c, uint32_t n, uint32_t *pages)
{
    return take(c, n, pages, c->now(c->now_ctx));
}

/* Whether somebody holds the page, the index aside. */
static bool in_use(const struct llm_cache *c, uint32_t page)
{
    return page < c->pool.n_pages && c->pool.refs[page] > llm_cache_indexed(c, page);
}

void llm_cache_hold(struct llm_cache *c, uint32_t page)
{
    assert(in_use(c, page));
    llm_pool_hold(&c->pool, page);
}

/* A page that nobody but the index holds any more. */
static void become_idle(struct llm_cache *c, uint32_t e, uint64_t now)
{
    struct llm_cache_tenant *t = c->entries[e].tenant;

    used_by(c, t, now);
    llm_tier_put(&c->tiers[LLM_TIER_MEMORY], t, e);
    keep_limits(c, t, now);
}

static void drop_one(struct llm_cache *c, uint32_t page, uint64_t now)
{
    uint32_t e;

    assert(in_use(c, page));
    e = c->pages[page].entry;
    llm_pool_drop(&c->pool, &page, 1);
    if (e == LLM_NO_ENTRY || c->pool.refs[page] > 1) {
        return;
    }
    if (c->pages[page].pending || c->pages[page].hidden) {
        unindex(c, e);
    } else {
        become_idle(c, e, now);
    }
}

void llm_cache_drop(struct llm_cache *c, const uint32_t *pages, uint32_t n)
{
    uint64_t now = c->now(c->now_ctx);

    /* from the end: a prefix without its head is worth nothing, so its tail is to go first */
    for (uint32_t i = n; i-- > 0;) {
        drop_one(c, pages[i], now);
    }
}

bool llm_cache_shared(const struct llm_cache *c, uint32_t page)
{
    return c->pool.refs[page] > (llm_cache_indexed(c, page) ? 2 : 1);
}

/* --- looking up --- */

/* Nothing pushes a page out that is kept: one in the pool has a user more, one in the host tier is
 * not idle. */
static void keep(struct llm_cache *c, uint32_t e)
{
    const struct llm_cache_entry *entry = &c->entries[e];

    if (entry->page == LLM_NO_PAGE) {
        llm_tier_pull(&c->tiers[LLM_TIER_HOST], entry->tenant, e);
        return;
    }
    if (llm_tier_idle(&c->tiers[LLM_TIER_MEMORY], e)) {
        llm_tier_pull(&c->tiers[LLM_TIER_MEMORY], entry->tenant, e);
    }
    llm_pool_hold(&c->pool, entry->page);
}

/* A kept page in the host tier gets a page of the pool, with a user. */
static bool bring_in(struct llm_cache *c, uint32_t e, uint64_t now)
{
    const struct llm_cache_entry *entry = &c->entries[e];
    uint32_t page;

    if (take(c, 1, &page, now) != LLM_OK) {
        return false;
    }
    if (c->ops->page_in(c->backend, page, 0, c->n_planes, llm_host_slot(&c->host, entry->slot),
                        &c->last_copy)
        != LLM_OK) {
        llm_pool_drop(&c->pool, &page, 1);
        return false;
    }
    c->fence = c->last_copy;
    enter_pool(c, e, page);
    llm_pool_hold(&c->pool, page);
    return true;
}

static bool is_pending(const struct llm_cache *c, uint32_t e)
{
    return c->entries[e].page != LLM_NO_PAGE && c->pages[c->entries[e].page].pending;
}

/* How many pages from the first are indexed; their entries. Behind a pending page only pending ones
 * count: who waits for one computes what follows, or waits for that. */
static uint32_t look_up(const struct llm_cache *c, const struct llm_digest *digests,
                        const uint32_t *ids, uint32_t n, uint32_t *entries, uint32_t *n_pending)
{
    uint32_t run;

    *n_pending = 0;
    for (run = 0; run < n; run++) {
        uint32_t e = llm_index_find(&c->index, &digests[run],
                                    ids + (size_t) run * LLM_PAGE_TOKENS);

        if (e == LLM_NO_ENTRY) {
            break;
        }
        if (is_pending(c, e)) {
            ++*n_pending;
        } else if (*n_pending > 0) {
            break;
        }
        entries[run] = e;
    }
    return run;
}

void llm_cache_match(struct llm_cache *c, struct llm_cache_tenant *t,
                     const struct llm_digest *digests, const uint32_t *ids, uint32_t n,
                     uint32_t *pages, struct llm_cache_found *found)
{
    uint64_t now = c->now(c->now_ctx);
    uint32_t *entries = pages; /* until it is known where they are */
    uint32_t n_pending, run = look_up(c, digests, ids, n, entries, &n_pending);

    *found = (struct llm_cache_found){0};
    for (uint32_t i = 0; i < run; i++) {
        keep(c, entries[i]);
    }
    for (; found->n < run; found->n++) {
        if (c->entries[entries[found->n]].page == LLM_NO_PAGE) {
            if (!bring_in(c, entries[found->n], now)) {
                break;
            }
            found->n_host++;
        }
    }
    found->n_pending = found->n == run ? n_pending : 0;

    /* from the end, as in drop: the tail is to go first */
    for (uint32_t i = run; i-- > 0;) {
        const struct llm_cache_entry *entry = &c->entries[entries[i]];

        if (entry->slot != LLM_NO_PAGE && !llm_tier_idle(&c->tiers[LLM_TIER_HOST], entries[i])) {
            llm_tier_put(&c->tiers[LLM_TIER_HOST], entry->tenant, entries[i]);
        }
        if (i < found->n) {
            pages[i] = entry->page;
        } else if (entry->page != LLM_NO_PAGE) {
            drop_one(c, entry->page, now);
        }
    }

    if (found->n > 0) {
        used_by(c, t, now);
    }
}

static void count_found(struct llm_cache_counts *counts, const struct llm_cache_found *found,
                        uint32_t n)
{
    counts->hit_tokens[LLM_TIER_MEMORY] += (uint64_t) (found->n - found->n_host) * LLM_PAGE_TOKENS;
    counts->hit_tokens[LLM_TIER_HOST] += (uint64_t) found->n_host * LLM_PAGE_TOKENS;
    counts->miss_tokens += (uint64_t) (n - found->n) * LLM_PAGE_TOKENS;
}

void llm_cache_count(struct llm_cache *c, struct llm_cache_tenant *t,
                     const struct llm_cache_found *found, uint32_t n)
{
    count_found(&c->counts, found, n);
    count_found(&t->counts, found, n);
}

uint32_t llm_cache_estimate(const struct llm_cache *c, const struct llm_digest *digests,
                            uint32_t n)
{
    uint32_t run = 0;

    while (run < n && llm_index_guess(&c->index, &digests[run])) {
        run++;
    }
    return run;
}

/* --- the life of an indexed page --- */

bool llm_cache_publish(struct llm_cache *c, struct llm_cache_tenant *t, uint32_t page,
                       const struct llm_digest *digest, const uint32_t ids[LLM_PAGE_TOKENS],
                       const void *writer)
{
    uint64_t now = c->now(c->now_ctx);
    uint32_t e;

    assert(in_use(c, page) && !llm_cache_indexed(c, page));
    assert(writer != NULL);
    e = llm_index_add(&c->index, digest, ids);
    if (e == LLM_NO_ENTRY) {
        return false;
    }
    c->entries[e] = (struct llm_cache_entry){.page = LLM_NO_PAGE, .slot = LLM_NO_PAGE, .tenant = t};
    enter_pool(c, e, page);
    llm_pool_hold(&c->pool, page);
    c->pages[page].pending = true;
    c->pages[page].writer = writer;
    used_by(c, t, now);
    keep_limits(c, t, now); /* idle pages, for one that is not */
    return true;
}

void llm_cache_complete(struct llm_cache *c, uint32_t page)
{
    assert(llm_cache_pending(c, page));
    c->pages[page].pending = false;
    c->pages[page].writer = NULL;
}

void llm_cache_prove(struct llm_cache *c, uint32_t page)
{
    c->pages[page].proven = llm_cache_indexed(c, page) && !llm_cache_pending(c, page);
}

bool llm_cache_indexed(const struct llm_cache *c, uint32_t page)
{
    return c->pages[page].entry != LLM_NO_ENTRY;
}

bool llm_cache_pending(const struct llm_cache *c, uint32_t page)
{
    return c->pages[page].pending;
}

const void *llm_cache_writer(const struct llm_cache *c, uint32_t page)
{
    return c->pages[page].writer;
}

void llm_cache_set_writer(struct llm_cache *c, uint32_t page, const void *writer)
{
    assert(llm_cache_pending(c, page));
    c->pages[page].writer = writer;
}

void llm_cache_forget(struct llm_cache *c, const struct llm_cache_tenant *t,
                      const struct llm_digest *digest, const uint32_t ids[LLM_PAGE_TOKENS])
{
    uint32_t e = llm_index_find(&c->index, digest, ids);

    if (e != LLM_NO_ENTRY && is_pending(c, e)) {
        return;
    }
    llm_exchange_forget(c, t, digest);
    if (e != LLM_NO_ENTRY) {
        c->fence = c->last_copy; /* it may be being saved: who writes it next waits for that */
        unindex(c, e);
    }
}

/* A page in use stays as it is for its users, pending or not, but for being found. */
static bool hide(struct llm_cache *c, uint32_t e)
{
    struct llm_cache_page *page = &c->pages[c->entries[e].page];

    if (page->hidden) {
        return false;
    }
    if (c->entries[e].slot != LLM_NO_PAGE) {
        leave_host(c, e);
    }
    llm_index_hide(&c->index, e);
    page->hidden = true;
    return true;
}

uint32_t llm_cache_purge(struct llm_cache *c, const uint8_t owner[32])
{
    struct llm_cache_tenant *t = llm_owners_find(&c->owners, owner);
    uint32_t n = 0;

    llm_exchange_purge(c, owner);
    if (t == NULL) {
        return 0;
    }
    c->fence = c->last_copy; /* as in forget */
    t->users++;              /* it goes last */
    for (uint32_t e = 0; e < c->index.capacity; e++) {
        if (c->entries[e].tenant != t) {
            continue;
        }
        if (in_use(c, c->entries[e].page)) {
            n += hide(c, e);
        } else {
            unindex(c, e);
            n++;
        }
    }
    llm_cache_leave(c, t);
    return n;
}

static bool may_be_saved(const struct llm_cache *c, uint32_t page)
{
    uint32_t e = c->pages[page].entry;
    const struct llm_cache_tenant *t = e != LLM_NO_ENTRY ? c->entries[e].tenant : NULL;
    enum llm_cache_tier tier = LLM_TIER_HOST;

    return e != LLM_NO_ENTRY && !c->pages[page].pending && !c->pages[page].hidden
           && c->entries[e].slot == LLM_NO_PAGE
           && t->parts[tier].n_pages < c->most_of_tenant[tier]
           && is_allowed(t, t->parts[tier].n_pages + 1);
}

void llm_cache_save(struct llm_cache *c, uint32_t n)
{
    uint32_t looks = c->pool.n_pages < SAVE_LOOKS ? c->pool.n_pages : SAVE_LOOKS, slot;

    while (n > 0 && looks-- > 0 && c->host.slots.n_free > 0) {
        uint32_t page = c->cursor;

        c->cursor = (c->cursor + 1) % c->pool.n_pages;
        if (may_be_saved(c, page) && llm_pool_take(&c->host.slots, 1, &slot) == LLM_OK) {
            copy_out(c, c->pages[page].entry, slot);
            n--;
        }
    }
}

uint64_t llm_cache_fence(const struct llm_cache *c)
{
    return c->fence;
}

/* --- counts --- */

struct llm_cache_counts llm_cache_counts(const struct llm_cache *c)
{
    struct llm_cache_counts counts = c->counts;

    for (int i = 0; i < LLM_N_TIERS; i++) {
        counts.bytes[i] = c->tiers[i].n_pages * c->page_bytes;
    }
    return counts;
}

static struct llm_cache_counts counts_of(const struct llm_cache *c,
                                         const struct llm_cache_tenant *t)
{
    struct llm_cache_counts counts = t->counts;

    for (int i = 0; i < LLM_N_TIERS; i++) {
        counts.bytes[i] = t->parts[i].n_pages * c->page_bytes;
    }
    return counts;
}

struct llm_cache_counts llm_cache_tenant_counts(const struct llm_cache *c, const uint8_t owner[32])
{
    const struct llm_cache_tenant *t = llm_owners_find(&c->owners, owner);

    return t != NULL ? counts_of(c, t) : (struct llm_cache_counts){0};
}

void llm_cache_last_tenants(const struct llm_cache *c, uint32_t n, llm_cache_tenant_fn *fn,
                            void *ctx)
{
    for (const struct llm_cache_tenant *t = c->owners.newest; t != NULL && n > 0; t = t->older) {
        const struct llm_cache_counts counts = counts_of(c, t);

        fn(ctx, t->owner, &counts);
        n--;
    }
}
