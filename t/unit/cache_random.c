/* Random requests of four tenants in a small cache, against a model that keeps the same rules in
 * the plainest way: what a match finds and where, who may have pages, what the pages hold. All
 * books are checked after every operation. Another thread asks for estimates meanwhile. */

#include "engine/cache/cache.h"
#include "t/unit/cache_backend.h"
#include "t/unit/tap.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#define N_PAGES 40
#define MAX_SLOTS 20
#define N_TENANTS 4
#define N_PROMPTS 4
#define PROMPT_PAGES 8
#define N_NODES 22 /* of a tenant's tree of prompts */
#define N_SEQS 10
#define UNKNOWN N_PAGES /* a page in use of which the model has not been told */
#define MINUTE (60 * 1000000000ull)

/* --- the prompts: the same ids for all tenants, each with a secret of its own --- */

static uint32_t ids[N_PROMPTS][PROMPT_PAGES * LLM_PAGE_TOKENS];
static struct llm_digest digests[N_TENANTS][N_PROMPTS][PROMPT_PAGES];

/* All prompts begin with the same two pages; every other one goes on with the same two. */
static uint32_t node_of(uint32_t prompt, uint32_t page)
{
    if (page < 2) {
        return page;
    }
    return page < 4 ? 2 + prompt % 2 * 2 + page - 2 : 6 + prompt * 4 + page - 4;
}

static void make_prompts(void)
{
    for (uint32_t p = 0; p < N_PROMPTS; p++) {
        for (uint32_t i = 0; i < PROMPT_PAGES * LLM_PAGE_TOKENS; i++) {
            ids[p][i] = node_of(p, i / LLM_PAGE_TOKENS) * LLM_PAGE_TOKENS + i % LLM_PAGE_TOKENS;
        }
        for (uint8_t t = 0; t < N_TENANTS; t++) {
            struct llm_chain chain = {.secret = {t}};

            if (llm_page_digests(&chain, NULL, ids[p], PROMPT_PAGES, digests[t][p]) != LLM_OK) {
                abort();
            }
        }
    }
}

/* --- the model --- */

struct node { /* an indexed page */
    bool there[LLM_N_TIERS], pending, kept;
    uint64_t used[LLM_N_TIERS];
    uint32_t page;
    uint8_t pattern; /* what the page is filled with */
};

static struct {
    uint32_t n_slots, most[LLM_N_TIERS];
    struct node nodes[N_TENANTS][N_NODES];
    uint32_t users[N_PAGES + 1];
    uint32_t hidden_of[N_PAGES]; /* pages in use of a tenant, + 1, that was purged; 0: none */
    bool active[N_TENANTS];
    uint64_t used_ns[N_TENANTS];
    uint64_t last_use[N_TENANTS]; /* in order, also of those at the same time */
    uint32_t weights[N_TENANTS];
    uint64_t uses;
    uint32_t cursor;
    struct llm_cache_counts counts;
} model;

static uint64_t clock_ns;

static uint64_t now(void *ctx)
{
    (void) ctx;
    return clock_ns;
}

static bool is_idle(const struct node *n, enum llm_cache_tier tier)
{
    if (!n->there[tier] || n->kept) {
        return false;
    }
    return tier == LLM_TIER_HOST || (!n->pending && model.users[n->page] == 0);
}

static uint32_t count_pages(uint32_t t, enum llm_cache_tier tier, bool idle)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < N_NODES; i++) {
        const struct node *n = &model.nodes[t][i];

        count += idle ? is_idle(n, tier) : n->there[tier];
    }
    for (uint32_t i = 0; i < N_PAGES && tier == LLM_TIER_MEMORY && !idle; i++) {
        count += model.hidden_of[i] == t + 1;
    }
    return count;
}

static uint32_t count_all(enum llm_cache_tier tier, bool idle)
{
    uint32_t count = 0;

    for (uint32_t t = 0; t < N_TENANTS; t++) {
        count += count_pages(t, tier, idle);
    }
    return count;
}

static uint32_t model_free(void)
{
    uint32_t taken = count_all(LLM_TIER_MEMORY, true);

    for (uint32_t i = 0; i < N_PAGES; i++) {
        taken += model.users[i] > 0;
    }
    return N_PAGES - taken;
}

static void use(uint32_t t)
{
    model.active[t] = true;
    model.used_ns[t] = clock_ns;
    model.last_use[t] = ++model.uses;
}

/* Of the tenants that are active without having used a page for long, the one that has not for
 * longest ceases to be. */
static void age(void)
{
    uint32_t oldest = N_TENANTS;

    for (uint32_t t = 0; t < N_TENANTS; t++) {
        if (model.active[t] && clock_ns - model.used_ns[t] > 10 * MINUTE
            && (oldest == N_TENANTS || model.last_use[t] < model.last_use[oldest])) {
            oldest = t;
        }
    }
    if (oldest < N_TENANTS) {
        model.active[oldest] = false;
    }
}

static bool is_over(uint32_t t, enum llm_cache_tier tier)
{
    double pages = 0, weights = 0, weight = 0;

    for (uint32_t i = 0; i < N_TENANTS; i++) {
        if (count_pages(i, tier, true) > 0) {
            double w = model.active[i] ? model.weights[i] : 0;

            pages += count_pages(i, tier, false);
            weights += w;
            weight = i == t ? w : weight;
        }
    }
    return count_pages(t, tier, false) * weights > pages * weight || weight == 0;
}

/* The idle page of the tenant, or of all with that much, that was used longest ago. */
static struct node *oldest(enum llm_cache_tier tier, const bool of[N_TENANTS])
{
    struct node *best = NULL;

    for (uint32_t t = 0; t < N_TENANTS; t++) {
        for (uint32_t i = 0; of[t] && i < N_NODES; i++) {
            struct node *n = &model.nodes[t][i];

            if (is_idle(n, tier) && (best == NULL || n->used[tier] < best->used[tier])) {
                best = n;
            }
        }
    }
    return best;
}

static struct node *oldest_of(enum llm_cache_tier tier, uint32_t t)
{
    bool of[N_TENANTS] = {0};

    of[t] = true;
    return oldest(tier, of);
}

static struct node *next_to_go(enum llm_cache_tier tier)
{
    bool over[N_TENANTS], all[N_TENANTS];
    struct node *n;

    age();
    for (uint32_t t = 0; t < N_TENANTS; t++) {
        over[t] = is_over(t, tier);
        all[t] = true;
    }
    n = oldest(tier, over);
    return n != NULL ? n : oldest(tier, all);
}

static uint32_t tenant_of(const struct node *n)
{
    return (uint32_t) (n - model.nodes[0]) / N_NODES;
}

static void model_push_out(struct node *n, enum llm_cache_tier tier)
{
    uint32_t t = tenant_of(n);

    model.counts.evicted_pages[tier]++;
    if (tier == LLM_TIER_MEMORY && model.n_slots > 0) {
        struct node *goes = NULL;

        if (n->there[LLM_TIER_HOST]) {
            n->used[LLM_TIER_HOST] = ++model.uses;
        } else {
            if (count_pages(t, LLM_TIER_HOST, false) >= model.most[LLM_TIER_HOST]) {
                goes = oldest_of(LLM_TIER_HOST, t);
            } else if (count_all(LLM_TIER_HOST, false) == model.n_slots) {
                goes = next_to_go(LLM_TIER_HOST);
            }
            if (goes != NULL) {
                model_push_out(goes, LLM_TIER_HOST);
            }
            if (count_pages(t, LLM_TIER_HOST, false) < model.most[LLM_TIER_HOST]
                && count_all(LLM_TIER_HOST, false) < model.n_slots) {
                n->there[LLM_TIER_HOST] = true;
                n->used[LLM_TIER_HOST] = ++model.uses;
            }
        }
    }
    n->there[tier] = false;
}

static bool model_make_room(uint32_t n)
{
    if (model_free() + count_all(LLM_TIER_MEMORY, true) < n) {
        return false;
    }
    while (model_free() < n) {
        model_push_out(next_to_go(LLM_TIER_MEMORY), LLM_TIER_MEMORY);
    }
    return true;
}

static struct node *node_at(uint32_t page)
{
    for (uint32_t t = 0; t < N_TENANTS; t++) {
        for (uint32_t i = 0; i < N_NODES; i++) {
            struct node *n = &model.nodes[t][i];

            if (n->there[LLM_TIER_MEMORY] && n->page == page) {
                return n;
            }
        }
    }
    return NULL;
}

static void model_drop(uint32_t page)
{
    struct node *n = node_at(page);
    uint32_t t;

    if (--model.users[page] > 0 || n == NULL) {
        model.hidden_of[page] = model.users[page] > 0 ? model.hidden_of[page] : 0;
        return;
    }
    if (n->pending) {
        *n = (struct node){0};
        return;
    }
    t = tenant_of(n);
    use(t);
    n->used[LLM_TIER_MEMORY] = ++model.uses;
    if (count_pages(t, LLM_TIER_MEMORY, true) > model.most[LLM_TIER_MEMORY]) {
        model_push_out(oldest_of(LLM_TIER_MEMORY, t), LLM_TIER_MEMORY);
    }
}

/* What a match finds. */
static struct llm_cache_found model_match(uint32_t t, uint32_t prompt, uint32_t n_pages,
                                          struct node *found[PROMPT_PAGES])
{
    struct llm_cache_found f = {0};
    uint32_t run = 0, n_pending = 0;
    bool from_host[PROMPT_PAGES] = {0};

    for (; run < n_pages; run++) {
        struct node *n = found[run] = &model.nodes[t][node_of(prompt, run)];

        if (!n->there[LLM_TIER_MEMORY] && !n->there[LLM_TIER_HOST]) {
            break;
        }
        if (n_pending > 0 && !n->pending) {
            break;
        }
        n_pending += n->pending;
        from_host[run] = !n->there[LLM_TIER_MEMORY];
    }
    for (uint32_t i = 0; i < run; i++) {
        if (from_host[i]) {
            found[i]->kept = true;
        } else {
            model.users[found[i]->page]++;
        }
    }
    for (; f.n < run; f.n++) {
        if (from_host[f.n]) {
            uint32_t users = 0;

            /* the unknown pages are not free */
            for (uint32_t i = 0; i < f.n; i++) {
                users += from_host[i];
            }
            if (!model_make_room(users + 1)) {
                break;
            }
            f.n_host++;
            found[f.n]->there[LLM_TIER_MEMORY] = true;
            found[f.n]->page = UNKNOWN;
        }
    }
    f.n_pending = f.n == run ? n_pending : 0;
    for (uint32_t i = run; i-- > 0;) {
        if (from_host[i]) {
            found[i]->kept = false;
            found[i]->used[LLM_TIER_HOST] = ++model.uses;
        }
        if (i >= f.n && !from_host[i]) {
            model_drop(found[i]->page);
        }
    }
    if (f.n > 0) {
        use(t);
    }
    return f;
}

/* --- the cache, and both together --- */

struct seq {
    uint32_t n; /* 0: not there */
    uint32_t pages[PROMPT_PAGES + 2];
};

static struct llm_backend backend;
static struct llm_cache *cache;
static struct llm_cache_tenant *tenants[N_TENANTS];
static struct seq seqs[N_SEQS];
static uint64_t state;
static uint64_t n_found, n_shared;

static uint32_t draw(uint32_t n)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t) (state >> 33) % n;
}

#define must(cond)                                                                                \
    do {                                                                                          \
        if (!(cond)) {                                                                            \
            diag("line %d: %s", __LINE__, #cond);                                                 \
            return false;                                                                         \
        }                                                                                         \
    } while (0)

static bool holds(uint32_t page, uint8_t pattern)
{
    const uint8_t *bytes = backend_page(&backend, page);

    backend_fence_wait(&backend, llm_cache_fence(cache));
    for (uint32_t i = 0; i < PAGE_BYTES; i++) {
        if (bytes[i] != (uint8_t) (pattern + i)) {
            return false;
        }
    }
    return true;
}

static void fill(uint32_t page, uint8_t pattern)
{
    uint8_t *bytes = backend_page(&backend, page);

    backend_fence_wait(&backend, llm_cache_fence(cache));
    for (uint32_t i = 0; i < PAGE_BYTES; i++) {
        bytes[i] = (uint8_t) (pattern + i);
    }
}

/* A page that is written right away: whatever it held must not be wanted any more. */
static bool take(struct seq *q, uint32_t n)
{
    bool room = model_make_room(n);

    must((llm_cache_take(cache, n, q->pages + q->n) == LLM_OK) == room);
    for (uint32_t i = 0; room && i < n; i++, q->n++) {
        must(model.users[q->pages[q->n]] == 0 && node_at(q->pages[q->n]) == NULL);
        must(model.hidden_of[q->pages[q->n]] == 0);
        model.users[q->pages[q->n]] = 1;
        fill(q->pages[q->n], 0);
    }
    return true;
}

static bool drop(struct seq *q)
{
    for (uint32_t i = 0; i < q->n; i++) {
        if (llm_cache_writer(cache, q->pages[i]) == q) {
            llm_cache_set_writer(cache, q->pages[i], NULL);
        }
    }
    llm_cache_drop(cache, q->pages, q->n);
    for (uint32_t i = q->n; i-- > 0;) {
        model_drop(q->pages[i]);
    }
    q->n = 0;
    return true;
}

static bool begin(struct seq *q)
{
    uint32_t t = draw(N_TENANTS), p = draw(N_PROMPTS), n = 1 + draw(PROMPT_PAGES), before;
    struct node *nodes[PROMPT_PAGES];
    struct llm_cache_found got, want;

    for (before = 0; before < n; before++) {
        const struct node *node = &model.nodes[t][node_of(p, before)];

        if (!node->there[LLM_TIER_MEMORY] && !node->there[LLM_TIER_HOST]) {
            break;
        }
    }
    must(llm_cache_estimate(cache, digests[t][p], n) == before);

    want = model_match(t, p, n, nodes);
    llm_cache_match(cache, tenants[t], digests[t][p], ids[p], n, q->pages, &got);
    must(got.n == want.n && got.n_pending == want.n_pending && got.n_host == want.n_host);
    for (uint32_t i = 0; i < got.n; i++) {
        uint32_t page = q->pages[i];

        if (nodes[i]->page == UNKNOWN) {
            must(model.users[page] == 0 && node_at(page) == NULL);
            nodes[i]->page = page;
            model.users[page] = 1;
        }
        must(nodes[i]->page == page);
        must(nodes[i]->pending == llm_cache_pending(cache, page));
        must(nodes[i]->pending || holds(page, nodes[i]->pattern));
        n_shared += llm_cache_shared(cache, page);
    }
    n_found += got.n;
    q->n = got.n;

    before = q->n;
    must(take(q, n - q->n));
    if (q->n == before && before < n) {
        return drop(q); /* there is no room */
    }
    llm_cache_count(cache, tenants[t], &got, n);
    model.counts.hit_tokens[LLM_TIER_MEMORY] += (got.n - got.n_host) * LLM_PAGE_TOKENS;
    model.counts.hit_tokens[LLM_TIER_HOST] += got.n_host * LLM_PAGE_TOKENS;
    model.counts.miss_tokens += (n - got.n) * LLM_PAGE_TOKENS;
    for (uint32_t i = before; i < n; i++) {
        bool is_new;

        nodes[i] = &model.nodes[t][node_of(p, i)];
        is_new = !nodes[i]->there[LLM_TIER_MEMORY] && !nodes[i]->there[LLM_TIER_HOST];
        must(llm_cache_publish(cache, tenants[t], q->pages[i], &digests[t][p][i],
                               ids[p] + i * LLM_PAGE_TOKENS, q) == is_new);
        if (is_new) {
            *nodes[i] = (struct node){.page = q->pages[i], .pending = true};
            nodes[i]->there[LLM_TIER_MEMORY] = true;
            use(t);
        }
    }
    return true;
}

/* The next pending page that it may compute. */
static bool complete(struct seq *q)
{
    for (uint32_t i = 0; i < q->n; i++) {
        const void *writer = llm_cache_writer(cache, q->pages[i]);
        struct node *n = node_at(q->pages[i]);
        bool hidden = model.hidden_of[q->pages[i]] != 0;

        must(llm_cache_indexed(cache, q->pages[i]) == (n != NULL || hidden));
        if (hidden && llm_cache_pending(cache, q->pages[i])) {
            llm_cache_complete(cache, q->pages[i]); /* as if it had not been purged */
            break;
        }
        if (n != NULL && n->pending && (writer == q || writer == NULL)) {
            n->pattern = (uint8_t) (1 + draw(255));
            fill(n->page, n->pattern);
            llm_cache_set_writer(cache, n->page, q);
            llm_cache_complete(cache, n->page);
            n->pending = false;
            break;
        }
    }
    return true;
}

static bool fork_seq(struct seq *q, const struct seq *from)
{
    for (; q->n < from->n; q->n++) {
        q->pages[q->n] = from->pages[q->n];
        llm_cache_hold(cache, q->pages[q->n]);
        model.users[q->pages[q->n]]++;
    }
    return true;
}

/* Any page, be it used, idle, in the host tier alone, pending or nowhere. */
static bool forget(void)
{
    uint32_t t = draw(N_TENANTS), p = draw(N_PROMPTS), i = draw(PROMPT_PAGES);
    struct node *n = &model.nodes[t][node_of(p, i)];

    llm_cache_forget(cache, tenants[t], &digests[t][p][i], ids[p] + i * LLM_PAGE_TOKENS);
    if (!n->pending) {
        *n = (struct node){0};
    }
    return true;
}

static bool purge(uint32_t t)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < N_NODES; i++) {
        struct node *node = &model.nodes[t][i];

        if (node->there[LLM_TIER_MEMORY] && model.users[node->page] > 0) {
            model.hidden_of[node->page] = t + 1;
        }
        n += node->there[LLM_TIER_MEMORY] || node->there[LLM_TIER_HOST];
        *node = (struct node){0};
    }
    must(llm_cache_purge(cache, (uint8_t[32]){(uint8_t) t}) == n);
    return true;
}

static bool rejoin(uint32_t t)
{
    uint8_t owner[32] = {(uint8_t) t};

    llm_cache_leave(cache, tenants[t]);
    model.weights[t] = 1 + draw(3);
    if (count_pages(t, LLM_TIER_MEMORY, false) + count_pages(t, LLM_TIER_HOST, false) == 0) {
        model.active[t] = false;
    }
    tenants[t] = llm_cache_join(cache, owner, model.weights[t]);
    return tenants[t] != NULL;
}

static bool save(void)
{
    uint32_t n = 1 + draw(4);

    llm_cache_save(cache, n);
    for (uint32_t i = 0; i < N_PAGES && n > 0; i++) {
        struct node *next;
        uint32_t t;

        if (count_all(LLM_TIER_HOST, false) == model.n_slots) {
            break;
        }
        next = node_at(model.cursor);
        model.cursor = (model.cursor + 1) % N_PAGES;
        if (next == NULL || next->pending || next->there[LLM_TIER_HOST]) {
            continue;
        }
        t = tenant_of(next);
        if (count_pages(t, LLM_TIER_HOST, false) < model.most[LLM_TIER_HOST]) {
            next->there[LLM_TIER_HOST] = true;
            next->used[LLM_TIER_HOST] = ++model.uses;
            n--;
        }
    }
    return true;
}

static bool operate(void)
{
    struct seq *q = &seqs[draw(N_SEQS)];
    uint32_t what = draw(100);

    clock_ns += draw(2) * MINUTE / 4;
    if (what == 0) {
        clock_ns += 11 * MINUTE;
    } else if (what < 3) {
        return rejoin(draw(N_TENANTS));
    } else if (what == 3) {
        return draw(2) == 0 ? save() : purge(draw(N_TENANTS));
    } else if (q->n == 0) {
        struct seq *other = &seqs[draw(N_SEQS)];

        return what < 10 && other->n > 0 ? fork_seq(q, other) : begin(q);
    } else if (what < 6) {
        return forget();
    } else if (what < 10) {
        return q->n > PROMPT_PAGES || take(q, 1 + draw(2));
    } else if (what < 30) {
        return drop(q);
    } else {
        return complete(q);
    }
    return true;
}

static bool same_counts(void)
{
    struct llm_cache_counts got = llm_cache_counts(cache);

    model.counts.bytes[LLM_TIER_MEMORY] = count_all(LLM_TIER_MEMORY, false) * PAGE_BYTES;
    model.counts.bytes[LLM_TIER_HOST] = count_all(LLM_TIER_HOST, false) * PAGE_BYTES;
    must(memcmp(&got, &model.counts, sizeof(got)) == 0);
    must(llm_cache_available(cache) == model_free() + count_all(LLM_TIER_MEMORY, true));
    return true;
}

static _Atomic bool stop;

static void *estimate(void *arg)
{
    bool *right = arg;

    for (uint32_t i = 0; !atomic_load(&stop); i++) {
        *right = *right
                 && llm_cache_estimate(cache, digests[i % N_TENANTS][i / N_TENANTS % N_PROMPTS],
                                       PROMPT_PAGES) <= PROMPT_PAGES;
        usleep(10); /* and leaves the other some time */
    }
    return NULL;
}

static void run(uint32_t n_slots, uint32_t percent, uint32_t n)
{
    struct llm_cache_options options = {
        .host_bytes = n_slots * PAGE_BYTES,
        .tenant_percent = percent,
        .now = now,
    };
    const char *wrong = NULL;
    struct llm_error err;
    bool right = true, estimates_right = true;
    pthread_t thread;
    uint32_t i;

    memset(&model, 0, sizeof(model));
    model.users[UNKNOWN] = 1;
    model.n_slots = n_slots;
    model.most[LLM_TIER_MEMORY] = N_PAGES * percent / 100;
    model.most[LLM_TIER_HOST] = n_slots * percent / 100;
    clock_ns = 100 * MINUTE;
    state = n_slots * 1000 + percent;
    n_found = n_shared = 0;
    backend_init(&backend, N_PAGES);
    if (llm_cache_new(&backend_ops, &backend, &options, &cache, &err) != LLM_OK) {
        abort();
    }
    for (uint8_t t = 0; t < N_TENANTS; t++) {
        model.weights[t] = 1;
        tenants[t] = llm_cache_join(cache, (uint8_t[32]){t}, 1);
    }

    atomic_store(&stop, false);
    if (pthread_create(&thread, NULL, estimate, &estimates_right) != 0) {
        abort();
    }
    for (i = 0; i < n && right && wrong == NULL; i++) {
        right = operate() && same_counts();
        wrong = llm_cache_check(cache);
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    if (wrong != NULL) {
        diag("%s", wrong);
    }
    ok(right && estimates_right && wrong == NULL,
       "%u operations with %u host slots and %u %% a tenant", i, n_slots, percent);
    diag("%llu pages found, %llu of them shared, %llu and %llu pushed out, %llu copied in",
         (unsigned long long) n_found, (unsigned long long) n_shared,
         (unsigned long long) model.counts.evicted_pages[LLM_TIER_MEMORY],
         (unsigned long long) model.counts.evicted_pages[LLM_TIER_HOST],
         (unsigned long long) backend.n_in);

    for (uint32_t j = 0; j < N_SEQS && right; j++) {
        drop(&seqs[j]);
    }
    ok(llm_cache_check(cache) == NULL, "the books are right");
    is_int(llm_cache_available(cache), N_PAGES, "all pages can be had in the end");
    llm_cache_free(cache);
    backend_free(&backend);
    memset(seqs, 0, sizeof(seqs));
}

int main(void)
{
    make_prompts();
    run(0, 100, 30000);
    run(MAX_SLOTS, 100, 60000);
    run(MAX_SLOTS, 30, 30000);
    run(5, 100, 30000);
    return done_testing();
}
