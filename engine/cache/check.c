/* The cache's books, looked at all at once: for tests. */

#include "engine/cache/cache_internal.h"

static const char *check_page(const struct llm_cache *c, uint32_t page)
{
    const struct llm_cache_page *p = &c->pages[page];

    if (p->entry == LLM_NO_ENTRY) {
        return p->pending || p->hidden || p->writer != NULL
                   ? "a page that is not indexed is pending or hidden, or has a writer"
                   : NULL;
    }
    if (p->entry >= c->index.capacity || c->entries[p->entry].page != page) {
        return "a page whose entry is of another";
    }
    if (!p->pending && p->writer != NULL) {
        return "a complete page has a writer";
    }
    if (c->pool.refs[page] == 0) {
        return "an indexed page is free";
    }
    if ((p->pending || p->hidden) && c->pool.refs[page] == 1) {
        return "a page that is pending or hidden has no user";
    }
    if (llm_tier_idle(&c->tiers[LLM_TIER_MEMORY], p->entry) != (c->pool.refs[page] == 1)) {
        return "a page without users is not idle, or one with users is";
    }
    return NULL;
}

static const char *check_entry(const struct llm_cache *c, uint32_t e)
{
    const struct llm_cache_entry *entry = &c->entries[e];

    if (entry->tenant == NULL) {
        return llm_tier_idle(&c->tiers[LLM_TIER_MEMORY], e)
                       || llm_tier_idle(&c->tiers[LLM_TIER_HOST], e)
                   ? "a free entry is idle"
                   : NULL;
    }
    if (entry->page == LLM_NO_PAGE && entry->slot == LLM_NO_PAGE) {
        return "an entry is nowhere";
    }
    if (entry->page != LLM_NO_PAGE
        && (entry->page >= c->pool.n_pages || c->pages[entry->page].entry != e)) {
        return "an entry whose page is of another";
    }
    if (entry->slot != LLM_NO_PAGE
        && (entry->slot >= c->host.slots.n_pages || c->host.slots.refs[entry->slot] != 1)) {
        return "an entry whose slot is free";
    }
    if (entry->slot != LLM_NO_PAGE && entry->page != LLM_NO_PAGE
        && (c->pages[entry->page].pending || c->pages[entry->page].hidden)) {
        return "a page that is pending or hidden is in the host tier";
    }
    if (llm_tier_idle(&c->tiers[LLM_TIER_HOST], e) != (entry->slot != LLM_NO_PAGE)) {
        return "a page of the host tier is not idle, or one is that is not there";
    }
    return NULL;
}

/* What the entries say of each tenant and tier, against the books. */
static const char *check_sums(const struct llm_cache *c)
{
    uint32_t n_used = 0, n_slots = 0;

    for (const struct llm_cache_tenant *t = c->owners.newest; t != NULL; t = t->older) {
        uint32_t n[LLM_N_TIERS] = {0};

        for (uint32_t e = 0; e < c->index.capacity; e++) {
            if (c->entries[e].tenant == t) {
                n[LLM_TIER_MEMORY] += c->entries[e].page != LLM_NO_PAGE;
                n[LLM_TIER_HOST] += c->entries[e].slot != LLM_NO_PAGE;
                n_used++;
            }
        }
        if (n[LLM_TIER_MEMORY] != t->parts[LLM_TIER_MEMORY].n_pages
            || n[LLM_TIER_HOST] != t->parts[LLM_TIER_HOST].n_pages) {
            return "a tenant's pages are counted wrong";
        }
        n_slots += n[LLM_TIER_HOST];
    }
    if (n_used + c->index.n_free != c->index.capacity) {
        return "an entry of nobody";
    }
    if (n_slots + c->host.slots.n_free != c->host.slots.n_pages) {
        return "a host slot is lost";
    }
    return NULL;
}

const char *llm_cache_check(const struct llm_cache *c)
{
    const char *wrong = llm_pool_check(&c->pool);

    wrong = wrong != NULL ? wrong : llm_pool_check(&c->host.slots);
    wrong = wrong != NULL ? wrong : llm_index_check(&c->index);
    wrong = wrong != NULL ? wrong : llm_owners_check(&c->owners);
    for (int i = 0; i < LLM_N_TIERS && wrong == NULL; i++) {
        wrong = llm_tier_check(&c->tiers[i], &c->owners);
    }
    for (uint32_t i = 0; i < c->pool.n_pages && wrong == NULL; i++) {
        wrong = check_page(c, i);
    }
    for (uint32_t i = 0; i < c->index.capacity && wrong == NULL; i++) {
        wrong = check_entry(c, i);
    }
    return wrong != NULL ? wrong : check_sums(c);
}
