/* The Redis tier against a real redis-server, as it should be: what is saved is found, by whoever
 * has the same secret, and by nobody else. */

#include "t/unit/redis_hostile.h"
#include "t/unit/redis_tier.h"

#include <pthread.h>
#include <stdatomic.h>

static void finds_what_it_saved(struct server *s, struct tier *t)
{
    struct llm_redis_counts c;
    struct llm_redis_rates rates;

    is_int(tier_load(t, 1, 8), 0, "an empty Redis has nothing");
    is_int(tier_missed(t, LLM_REDIS_ABSENT), 8, "eight misses: absent");

    tier_save_all(t, 1, 100);
    is_int(llm_redis_counts(t->redis).saved, 100, "a hundred pages are saved");
    is_int(server_count(s, "KEYS llm1:*"), 101, "they and an epoch are in Redis");

    is_int(tier_load(t, 1, 100), 100, "all are found");
    ok(!t->wrong, "each is itself");
    is_int(tier_load(t, 1, 120), 100, "of a longer prefix too");
    is_int(tier_load(t, 2, 100), 0, "another tenant finds nothing");

    tier_save_all(t, 1, 100);
    c = llm_redis_counts(t->redis);
    is_int(c.saved, 100, "nothing is saved twice");
    is_int(c.already_there, 100, "it is there already");
    is_int(c.unsaved + c.over_quota, 0, "nothing else happened");
    is_int(c.hits, 200, "hits");
    is_int(c.misses[LLM_REDIS_ABSENT], 8 + 20 + 100, "misses");
    is_int(c.drops, 0, "no connection was dropped");

    rates = llm_redis_rates(t->redis);
    ok(rates.first_ns > 0 && rates.bytes_per_s > 0, "rates are known: %.3f ms, %.1f MB/s",
       (double) rates.first_ns / 1e6, (double) rates.bytes_per_s / 1e6);
}

#define HEX_8 "????????"
#define PAGES "llm1:{*}:" HEX_8 HEX_8 HEX_8 HEX_8 HEX_8 HEX_8 HEX_8 HEX_8

/* The names of all pages in Redis, or of what else is asked for. */
static redisReply *names(struct server *s, const char *pattern)
{
    return server_do(s, "KEYS %s", pattern);
}

static void keeps_what_is_used(struct server *s, struct tier *t)
{
    redisReply *all = names(s, PAGES);
    uint64_t end = llm_now_ns() + 10 * LLM_NS_PER_S;
    uint32_t n_renewed = 0;

    for (size_t i = 0; i < all->elements; i++) {
        server_count(s, "EXPIRE %s 100", all->element[i]->str);
    }
    is_int(tier_load(t, 1, 10), 10, "ten pages are used");
    while (n_renewed < 10 && llm_now_ns() < end) {
        n_renewed = 0;
        for (size_t i = 0; i < all->elements; i++) {
            n_renewed += server_count(s, "TTL %s", all->element[i]->str) > 3000;
        }
    }
    is_int(n_renewed, 10, "they stay for another ttl, the others do not");
    tier_save_all(t, 1, 100);
    is_int(server_count(s, "TTL %s", all->element[0]->str) > 3000, 1, "what is saved again does");
    freeReplyObject(all);
}

/* The text of the only key of this pattern, in the caller's buffer. */
static void only_name(struct server *s, const char *pattern, char name[LLM_REDIS_NAME_MAX])
{
    redisReply *all = names(s, pattern);

    need(all->elements == 1, "not one key");
    snprintf(name, LLM_REDIS_NAME_MAX, "%s", all->element[0]->str);
    freeReplyObject(all);
}

static void a_purge_hides(struct server *s, struct tier *t)
{
    struct tier other = {.layout = t->layout};
    struct llm_redis_options options = tier_options(&other, s->url);
    struct llm_redis_counts before = llm_redis_counts(t->redis), c;
    char epoch[LLM_REDIS_NAME_MAX];

    tier_open(&other, &options);
    need(tier_up(&other), "no second tier");
    is_int(tier_load(&other, 1, 100), 100, "a second engine finds what the first one saved");

    only_name(s, "llm1:{*}:epoch", epoch);
    server_count(s, "INCRBY %s 1", epoch);
    is_int(tier_load(t, 1, 100), 0, "after a purge nothing is found");
    c = llm_redis_counts(t->redis);
    is_int(c.misses[LLM_REDIS_STALE] - before.misses[LLM_REDIS_STALE], 100, "a hundred are stale");
    is_int(tier_load(t, 1, 100), 0, "nor by the new names");
    is_int(tier_missed(t, LLM_REDIS_ABSENT) - before.misses[LLM_REDIS_ABSENT], 100, "absent");

    tier_save_all(&other, 1, 1);
    is_int(llm_redis_counts(other.redis).unsaved, 1, "who knows the old epoch saves nothing");
    tier_save_all(&other, 1, 5);
    is_int(llm_redis_counts(other.redis).saved, 5, "and from then on by the new one");
    is_int(tier_load(t, 1, 100), 5, "that is found");

    freeReplyObject(server_do(s, "DEL %s", epoch));
    is_int(tier_load(t, 1, 100), 0, "where the epoch is lost nothing is found");
    tier_save_all(t, 1, 3);
    is_int(tier_load(t, 1, 100), 3, "only what is saved then");
    freeReplyObject(server_do(s, "SET %s nonsense", epoch));
    is_int(tier_load(t, 1, 100), 0, "an epoch that is no number is none");
    is_int(tier_missed(t, LLM_REDIS_CORRUPT), 100, "corrupt");
    tier_save_all(&other, 1, 1); /* learns that there is none */
    tier_save_all(&other, 1, 3);
    is_int(tier_load(t, 1, 100), 3, "another is made");
    freeReplyObject(server_do(s, "DEL %s", epoch));
    freeReplyObject(server_do(s, "LPUSH %s x", epoch));
    tier_save_all(&other, 1, 1); /* deletes it */
    tier_save_all(&other, 1, 1); /* learns that there is none */
    tier_save_all(&other, 1, 3);
    is_int(tier_load(t, 1, 100), 0, "(nobody has told this engine)");
    is_int(tier_load(t, 1, 100), 3, "in the place of a list too");

    freeReplyObject(server_do(s, "DEL %s", epoch));
    freeReplyObject(server_do(s, "SET %s 99999999999999999999", epoch));
    is_int(tier_load(t, 1, 100), 0, "a number that is too large is no epoch");
    is_int(tier_missed(t, LLM_REDIS_CORRUPT), 200, "corrupt");

    ok(!other.wrong && !t->wrong, "nothing wrong came");
    llm_redis_close(other.redis);
}

/* Who has been told of a purge does not go by the old epoch first. */
static void hears_of_a_purge(struct server *s, struct tier *t)
{
    struct tier other = {.layout = t->layout};
    struct llm_redis_options options = tier_options(&other, s->url);
    char epoch[LLM_REDIS_NAME_MAX];
    uint8_t owner[32];

    tier_owner(1, owner);
    llm_redis_forget_tenant(t->redis, owner);
    tier_save_all(t, 1, 10);
    is_int(tier_load(t, 1, 10), 10, "an epoch is known");
    only_name(s, "llm1:{*}:epoch", epoch);
    server_count(s, "INCRBY %s 1", epoch);
    tier_open(&other, &options);
    need(tier_up(&other), "no second tier");
    tier_save_all(&other, 1, 10);
    llm_redis_close(other.redis);

    llm_redis_forget_tenant(t->redis, owner);
    is_int(tier_load(t, 1, 10), 10, "who hears of a purge finds what was saved after it at once");
}

/* What was said last of a tenant's epoch, in this many seconds; 0: nothing. */
static uint64_t heard(struct tier *t, uint32_t tenant, uint32_t s)
{
    uint64_t end = llm_now_ns() + s * LLM_NS_PER_S, epoch = 0;
    struct llm_redis_epoch e;
    uint8_t owner[32];

    tier_owner(tenant, owner);
    do {
        while (llm_redis_heard(t->redis, &e)) {
            epoch = memcmp(e.owner, owner, sizeof(owner)) == 0 ? e.epoch : epoch;
        }
        usleep(1000);
    } while (epoch == 0 && llm_now_ns() < end);
    return epoch;
}

/* Pages that were computed before a purge, whoever hears of it first. */
static void saves_what_belongs_to_an_epoch(struct server *s, struct tier *t)
{
    struct llm_redis_counts before;
    char epoch[LLM_REDIS_NAME_MAX];
    uint8_t owner[32];

    heard(t, 5, 0);
    freeReplyObject(server_do(s, "FLUSHALL"));
    tier_save_all(t, 5, 2);
    t->epoch = heard(t, 5, 10);
    ok(t->epoch != 0, "an epoch is told when pages are saved");
    only_name(s, "llm1:{*}:epoch", epoch);
    tier_save_all(t, 5, 4);
    is_int(heard(t, 5, 0), 0, "and not again where it is what it was");
    is_int(tier_load(t, 5, 4), 4, "pages that belong to it are saved");
    is_int(heard(t, 5, 0) == t->epoch, true, "a load tells it too");

    server_count(s, "INCRBY %s 1", epoch);
    is_int(tier_load(t, 5, 1), 0, "a purge");
    is_int(heard(t, 5, 10) == t->epoch + 1, true, "is heard of by who loads");
    before = llm_redis_counts(t->redis);
    tier_save_all(t, 5, 6);
    is_int(llm_redis_counts(t->redis).unsaved - before.unsaved, 6,
           "pages that are older are not saved, though the tier knows the new epoch");
    is_int(heard(t, 5, 10) == t->epoch + 1, true, "it is heard of by who saves");
    tier_owner(5, owner);
    llm_redis_forget_tenant(t->redis, owner);
    tier_save_all(t, 5, 1);
    is_int(llm_redis_counts(t->redis).unsaved - before.unsaved, 7, "nor if it forgets it");
    t->epoch++;
    tier_save_all(t, 5, 3);
    is_int(tier_load(t, 5, 4), 3, "those that were computed since are");

    heard(t, 5, 0);
    freeReplyObject(server_do(s, "FLUSHALL"));
    before = llm_redis_counts(t->redis);
    tier_save_all(t, 5, 2);
    is_int(llm_redis_counts(t->redis).unsaved - before.unsaved, 2,
           "where the epoch is lost nothing is saved of what was");
    ok(heard(t, 5, 10) != t->epoch, "but there is another one");
    t->epoch = 0;
}

/* Pages that are on their way when their tenant is purged. */
static void does_not_save_what_is_forgotten(struct server *s, struct tier *t)
{
    uint64_t unsaved = llm_redis_counts(t->redis).unsaved, ended = tier_saves_ended(t);
    uint64_t end = llm_now_ns() + 10 * LLM_NS_PER_S;
    uint8_t owner[32];

    kill(s->pid, SIGSTOP);
    for (uint32_t i = 0; i < 4; i++) {
        tier_save(t, 4, i);
    }
    usleep(20000);
    tier_owner(4, owner);
    llm_redis_forget_tenant(t->redis, owner);
    kill(s->pid, SIGCONT);
    while (tier_saves_ended(t) < ended + 4 && llm_now_ns() < end) {
        usleep(200);
    }
    is_int(llm_redis_counts(t->redis).unsaved - unsaved, 4, "what is forgotten is not saved");
}

static void takes_on_only_so_much(struct server *s, struct tier *t)
{
    uint64_t down = tier_missed(t, LLM_REDIS_DOWN), loads[100];
    uint64_t unwanted = tier_missed(t, LLM_REDIS_UNWANTED);
    uint32_t n = 0;

    kill(s->pid, SIGSTOP);
    while (n < 100 && (loads[n] = tier_ask(t, 1, 0, TIER_PAGES)) != 0) {
        n++;
    }
    is_int(n, 8192 / TIER_PAGES, "so many pages are asked for at a time, and no more");
    is_int(tier_missed(t, LLM_REDIS_DOWN) - down, TIER_PAGES, "the others are missed");
    for (uint32_t i = 0; i < n; i++) {
        llm_redis_cancel(t->redis, loads[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        tier_take(t, loads[i], 1, 0, 5000);
    }
    ok(tier_missed(t, LLM_REDIS_UNWANTED) > unwanted, "what is cancelled is not waited for");
    kill(s->pid, SIGCONT);
    ok(tier_up(t) && tier_load(t, 1, 10) == 10, "then there is room again");
}

static void forgets_a_tenant(struct tier *t)
{
    struct llm_redis_arrival a;
    uint8_t owner[32];
    uint64_t load, hits = llm_redis_counts(t->redis).hits, end;
    uint32_t n = 0;
    bool ended = false;

    tier_save_all(t, 3, 50);
    end = llm_now_ns() + 10 * LLM_NS_PER_S;
    load = tier_ask(t, 3, 0, 50);
    while (load != 0 && llm_redis_counts(t->redis).hits == hits && llm_now_ns() < end) {
        usleep(100);
    }
    usleep(20000); /* pages lie in the ring */
    tier_owner(3, owner);
    llm_redis_forget_tenant(t->redis, owner);
    while (!ended && llm_now_ns() < end) {
        if (llm_redis_arrived(t->redis, &a)) {
            ended = a.ended;
            n += !a.ended;
        }
    }
    ok(load != 0 && ended, "a load of a tenant that was purged ends");
    is_int(n, 0, "and nothing of it comes any more");
    need(tier_up(t), "the tier does not come back"); /* its connection may have been dropped */
    is_int(tier_load(t, 3, 50), 50, "what is asked for after that comes");
}

/* The name of the window before the one whose name this is. */
static void window_before(const char *name, char before[LLM_REDIS_NAME_MAX])
{
    const char *window = strrchr(name, ':') + 1;

    snprintf(before, LLM_REDIS_NAME_MAX, "%.*s%llu", (int) (window - name), name,
             strtoull(window, NULL, 10) - 1);
}

/* What stands for the window before is no number: a page is not saved, and costs nothing. */
static void gives_back_what_it_did_not_write(struct server *s, struct tier *t)
{
    char name[LLM_REDIS_NAME_MAX], before[LLM_REDIS_NAME_MAX];
    uint64_t unsaved, end;

    freeReplyObject(server_do(s, "FLUSHALL"));
    tier_save_all(t, 7, 1); /* learns that there is no epoch any more */
    tier_save_all(t, 7, 1);
    only_name(s, "llm1:{*}:bytes:*", name);
    window_before(name, before);
    freeReplyObject(server_do(s, "SET %s 0", name));
    freeReplyObject(server_do(s, "LPUSH %s x", before));
    unsaved = llm_redis_counts(t->redis).unsaved;
    tier_save_all(t, 7, 2);
    is_int(llm_redis_counts(t->redis).unsaved - unsaved, 1, "a quota that is a list: not saved");
    end = llm_now_ns() + 5 * LLM_NS_PER_S;
    while (server_count(s, "INCRBY %s 0", name) != 0 && llm_now_ns() < end) {
        usleep(1000);
    }
    is_int(server_count(s, "INCRBY %s 0", name), 0, "nor charged");
}

/* What is taken back where Redis has lost the number in between: that is forgotten, too. */
static void keeps_no_number_for_ever(struct server *s, const struct tier *t)
{
    uint64_t end = llm_now_ns() + 10 * LLM_NS_PER_S;
    struct tier a = {.layout = t->layout, .max_pages = 1};
    char name[LLM_REDIS_NAME_MAX];
    struct hostile h;
    struct llm_redis_options options;

    hostile_start(&h, s);
    options = tier_options(&a, h.url);
    tier_open(&a, &options);
    need(tier_up(&a), "no tier");
    freeReplyObject(server_do(s, "FLUSHALL"));
    tier_save_all(&a, 7, 1);
    only_name(s, "llm1:{*}:bytes:*", name);
    hostile_set(&h, (struct hostile_act){.mode = HOSTILE_DELAY, .ms = 100});
    need(tier_save(&a, 7, 1), "no buffer");
    while (server_count(s, "INCRBY %s 0", name) < (long long) llm_redis_value_bytes(&a.layout) * 2
           && llm_now_ns() < end) {
        usleep(1000);
    }
    freeReplyObject(server_do(s, "DEL %s", name));
    while (server_count(s, "EXISTS %s", name) == 0 && llm_now_ns() < end) {
        usleep(1000);
    }
    usleep(20000);
    is_int(llm_redis_counts(a.redis).over_quota, 1, "what was not written is taken back");
    ok(server_count(s, "TTL %s", name) > 3600, "from a number that expires");
    llm_redis_close(a.redis);
    hostile_stop(&h);
}

static void keeps_quotas(struct server *s, struct tier *t)
{
    struct tier a = {.layout = t->layout}, b = {.layout = t->layout};
    struct llm_redis_options options = tier_options(&a, s->url);
    size_t value_bytes = llm_redis_value_bytes(&t->layout);
    redisReply *all;

    options.tenant_bytes = 10 * value_bytes;
    tier_open(&a, &options);
    tier_open(&b, &options);
    need(tier_up(&a) && tier_up(&b), "no tiers");

    tier_save_all(&a, 7, 6);
    is_int(llm_redis_counts(a.redis).saved, 6, "a tenant has room for ten pages: six are saved");
    tier_save_all(&b, 7, 12);
    is_int(llm_redis_counts(b.redis).already_there, 6, "another engine does not save them again");
    is_int(llm_redis_counts(b.redis).saved, 4, "four more are");
    is_int(llm_redis_counts(b.redis).over_quota, 2, "the rest is over its quota");
    tier_save_all(&a, 8, 4);
    is_int(llm_redis_counts(a.redis).saved, 10, "another tenant has its own");

    all = names(s, "llm1:{*}:bytes:*");
    is_int(all->elements, 2, "the bytes that each has written are in Redis");
    for (size_t i = 0; i < all->elements; i++) {
        const char *name = all->element[i]->str;
        char before[LLM_REDIS_NAME_MAX];

        ok(server_count(s, "TTL %s", name) > 3600, "for two ttls");
        window_before(name, before);
        freeReplyObject(server_do(s, "RENAME %s %s", name, before));
    }
    freeReplyObject(all);
    tier_save_all(&a, 7, 11);
    is_int(llm_redis_counts(a.redis).saved, 10, "what was written in the last window counts");

    all = names(s, "llm1:{*}:bytes:*");
    for (size_t i = 0; i < all->elements; i++) {
        freeReplyObject(server_do(s, "SET %s 0", all->element[i]->str));
    }
    freeReplyObject(all);
    tier_save_all(&a, 7, 12);
    is_int(llm_redis_counts(a.redis).saved, 12, "nothing, where all of it was taken back");

    gives_back_what_it_did_not_write(s, &a);
    llm_redis_close(a.redis);
    llm_redis_close(b.redis);
    keeps_no_number_for_ever(s, t);
}

/* A tenant's own limit, with and without one that all have. */
static void keeps_limits(struct server *s, struct tier *t)
{
    struct tier a = {.layout = t->layout, .max_pages = 3};
    struct llm_redis_options options = tier_options(&a, s->url);

    tier_open(&a, &options);
    need(tier_up(&a), "no tier");
    tier_save_all(&a, 21, 5);
    is_int(llm_redis_counts(a.redis).saved, 3, "three pages of who may have three");
    is_int(llm_redis_counts(a.redis).over_quota, 2, "and no more");
    a.max_pages = 0;
    tier_save_all(&a, 21, 5);
    is_int(llm_redis_counts(a.redis).saved, 5, "all without a limit");
    llm_redis_close(a.redis);

    options.tenant_bytes = 4 * llm_redis_value_bytes(&t->layout);
    tier_open(&a, &options);
    need(tier_up(&a), "no tier");
    a.max_pages = 2;
    tier_save_all(&a, 22, 5);
    is_int(llm_redis_counts(a.redis).saved, 2, "the smaller one of two limits counts");
    a.max_pages = 9;
    tier_save_all(&a, 22, 6);
    is_int(llm_redis_counts(a.redis).saved, 4, "whichever that is");
    llm_redis_close(a.redis);
}

static void delete_page(struct tier *t, uint32_t tenant, uint32_t page, uint64_t epoch)
{
    struct llm_digest digest = tier_digest(tenant, page);
    uint8_t owner[32];

    tier_owner(tenant, owner);
    llm_redis_delete(t->redis, owner, epoch, &digest);
}

/* Pages that turn out to be no good: they are there, on their way, or to be handed over again. */
static void deletes_what_is_spoilt(struct server *s, struct tier *t)
{
    uint64_t end = llm_now_ns() + 10 * LLM_NS_PER_S, ended, unsaved, epoch;

    heard(t, 6, 0);
    tier_save_all(t, 6, 4);
    epoch = heard(t, 6, 10);
    delete_page(t, 6, 1, epoch);
    delete_page(t, 6, 3, 0); /* the tier knows the epoch */
    delete_page(t, 6, 0, epoch + 1);
    while (server_count(s, "DBSIZE") > 3 && llm_now_ns() < end) {
        usleep(1000);
    }
    is_int(tier_load(t, 6, 4), 2, "pages that are there are deleted");
    ok(t->came[0] && t->came[2], "none but those that were named");

    ended = tier_saves_ended(t);
    unsaved = llm_redis_counts(t->redis).unsaved;
    kill(s->pid, SIGSTOP);
    for (uint32_t i = 4; i < 7; i++) {
        tier_save(t, 6, i);
    }
    usleep(20000);
    for (uint32_t i = 4; i < 6; i++) {
        delete_page(t, 6, i, epoch);
    }
    kill(s->pid, SIGCONT);
    while (tier_saves_ended(t) < ended + 3 && llm_now_ns() < end) {
        usleep(1000);
    }
    is_int(llm_redis_counts(t->redis).unsaved - unsaved, 2, "those on their way are given up");
    is_int(tier_load(t, 6, 7), 3, "and are not there");
    tier_save_all(t, 6, 7);
    is_int(tier_load(t, 6, 7), 7, "when they are computed again they are saved again");
}

static atomic_bool holds_on, is_held;
static pthread_t main_thread;

/* A clock that keeps the tier's thread waiting. */
static uint64_t now(void *ctx)
{
    (void) ctx;
    while (atomic_load(&holds_on) && !pthread_equal(pthread_self(), main_thread)) {
        atomic_store(&is_held, true);
        usleep(100);
    }
    return llm_now_ns();
}

/* What is beyond the 256 that are remembered is not deleted, and does no harm. */
static void deletes_so_many(struct server *s, const struct tier *like)
{
    struct tier t = {.layout = like->layout};
    struct llm_redis_options options = tier_options(&t, s->url);
    uint64_t end = llm_now_ns() + 10 * LLM_NS_PER_S;

    main_thread = pthread_self();
    options.now = now;
    tier_open(&t, &options);
    need(tier_up(&t), "no tier");
    freeReplyObject(server_do(s, "FLUSHALL"));
    tier_save_all(&t, 9, 300);
    is_int(server_count(s, "DBSIZE"), 301, "three hundred pages");

    atomic_store(&holds_on, true);
    delete_page(&t, 9, 0, 0);
    while (!atomic_load(&is_held)) {
        usleep(100);
    }
    for (uint32_t i = 0; i < 300; i++) {
        delete_page(&t, 9, i, 0);
    }
    atomic_store(&holds_on, false);
    while (tier_load(&t, 9, 255) > 0 && llm_now_ns() < end) {
        usleep(1000);
    }
    is_int(t.n_came, 0, "the first of those that were named are deleted");
    ok(server_count(s, "DBSIZE") >= 45, "but no more than can be remembered");
    llm_redis_close(t.redis);
}

int main(void)
{
    struct tier t = {.layout = make_layout(LLM_LATENT_BF16, 512, 64, 1)};
    struct llm_redis_options options;
    struct server s;

    scratch_init();
    server_start(&s, "0");
    options = tier_options(&t, s.url);
    tier_open(&t, &options);
    ok(tier_up(&t), "it connects");
    finds_what_it_saved(&s, &t);
    keeps_what_is_used(&s, &t);
    a_purge_hides(&s, &t);
    hears_of_a_purge(&s, &t);
    forgets_a_tenant(&t);
    does_not_save_what_is_forgotten(&s, &t);
    takes_on_only_so_much(&s, &t);
    keeps_quotas(&s, &t);
    keeps_limits(&s, &t);
    saves_what_belongs_to_an_epoch(&s, &t);
    freeReplyObject(server_do(&s, "FLUSHALL"));
    deletes_what_is_spoilt(&s, &t);
    deletes_so_many(&s, &t);
    ok(!t.wrong, "nothing wrong came");
    llm_redis_close(t.redis);
    server_stop(&s);
    llm_page_layout_free(&t.layout);
    return done_testing();
}
