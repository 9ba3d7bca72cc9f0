/* What happens to a real redis-server, and to what lies in it: counted misses, and no more. */

#include "engine/cache/redis/breaker.h"
#include "t/unit/redis_server.h"
#include "t/unit/redis_tier.h"

#include <arpa/inet.h>

#define N_PAGES 16
#define HEX_8 "????????"
#define PAGES "llm1:{*}:" HEX_8 HEX_8 HEX_8 HEX_8 HEX_8 HEX_8 HEX_8 HEX_8

static uint64_t missed(struct tier *t, const struct llm_redis_counts *before,
                       enum llm_redis_miss reason)
{
    return llm_redis_counts(t->redis).misses[reason] - before->misses[reason];
}

/* All pages are there, and found. */
static bool well(struct tier *t)
{
    if (!tier_up(t)) {
        return false;
    }
    for (int i = 0; i < 10; i++) {
        tier_save_all(t, 1, N_PAGES);
        if (tier_load(t, 1, N_PAGES) == N_PAGES && !t->wrong) {
            return true;
        }
    }
    return false;
}

static bool is_closed(struct tier *t)
{
    return llm_redis_counts(t->redis).breaker == LLM_REDIS_CLOSED;
}

static bool is_open(struct tier *t)
{
    return llm_redis_counts(t->redis).breaker != LLM_REDIS_CLOSED;
}

static void is_not_there_yet(struct server *s, struct tier *t)
{
    uint64_t begin = llm_now_ns();
    struct llm_redis_options options;

    snprintf(s->url, sizeof(s->url), "redis+unix://llm-engine:change-me@%s",
             scratch_path("redis.sock"));
    options = tier_options(t, s->url);
    options.deadline_ms = 200;
    tier_open(t, &options);
    is_int(tier_load(t, 1, N_PAGES), 0, "without a server nothing is found");
    ok(!tier_save(t, 1, 0), "nor saved");
    ok(llm_now_ns() - begin < LLM_NS_PER_S, "at once");
    is_int(tier_missed(t, LLM_REDIS_DOWN), N_PAGES, "it is down");
    usleep(400000);
    is_int(llm_redis_counts(t->redis).breaker, LLM_REDIS_OPEN, "the breaker opens");
    server_start(s, "0");
    ok(tier_up(t), "it comes, and the tier comes to it");
    is_int(tier_load(t, 1, N_PAGES), 0, "it does not know the tenant");
    ok(tier_wait(is_closed, t, 1000), "but has answered: the breaker is closed");
    ok(well(t), "and works");
}

static void hangs(struct server *s, struct tier *t, const char *how, const char *command)
{
    struct llm_redis_counts before = llm_redis_counts(t->redis);
    void *reply = NULL;
    uint64_t begin;

    need(redisAppendCommand(s->admin, command) == REDIS_OK, "no command");
    redisBufferWrite(s->admin, &(int){0});
    usleep(50000);
    begin = llm_now_ns();
    is_int(tier_load(t, 1, N_PAGES), 0, "%s: nothing is found", how);
    ok(llm_now_ns() - begin < 1200 * LLM_NS_PER_MS, "the deadline holds");
    is_int(missed(t, &before, LLM_REDIS_LATE), N_PAGES, "late");
    need(redisGetReply(s->admin, &reply) == REDIS_OK, "the server is gone");
    freeReplyObject(reply);
    ok(well(t), "then all is well");
}

static void dies(struct server *s, struct tier *t)
{
    uint64_t load = tier_ask(t, 1, 0, N_PAGES);

    server_stop(s);
    ok(load != 0 && tier_take(t, load, 1, 0, 5000), "killed in the middle: the load ends");
    usleep(20000);
    is_int(tier_load(t, 1, N_PAGES), 0, "then nothing is found");
    server_start(s, "0");
    ok(tier_up(t), "another server is found");
    is_int(tier_load(t, 1, N_PAGES), 0, "which has nothing");
    ok(well(t), "but works");
}

/* Writes are refused; what is there is found. */
static void only_reads(struct server *s, struct tier *t, const char *how)
{
    struct llm_redis_counts before = llm_redis_counts(t->redis), after;
    uint64_t end = llm_now_ns() + 5 * LLM_NS_PER_S;
    uint32_t n = 0;

    while (n < 4 && llm_now_ns() < end) {
        n += tier_save(t, 5, n);
        if (tier_load(t, 1, N_PAGES) != N_PAGES) {
            break;
        }
    }
    usleep(50000);
    after = llm_redis_counts(t->redis);
    is_int(n, 4, "%s: pages are found all the same", how);
    is_int(after.unsaved - before.unsaved, 4, "none is saved");
    ok(after.drops > before.drops, "who refuses to, also an epoch, is left alone");
    is_int(after.breaker, LLM_REDIS_CLOSED, "loading has a breaker of its own");
    freeReplyObject(server_do(s, "CONFIG SET maxmemory 1gb"));
    freeReplyObject(server_do(s, "REPLICAOF NO ONE"));
    ok(well(t), "then all is well");
}

static void loses_keys(struct server *s, struct tier *t)
{
    uint32_t n_found = 0;

    for (int i = 0; i < 40; i++) {
        uint64_t load;

        tier_save_all(t, 1, N_PAGES);
        load = tier_ask(t, 1, 0, N_PAGES);
        freeReplyObject(server_do(s, "FLUSHALL"));
        if (load == 0 || !tier_take(t, load, 1, 0, 5000)) {
            t->wrong = true;
        }
        n_found += t->n_came;
    }
    ok(!t->wrong, "FLUSHALL forty times under load: %u of %d pages are found, none is wrong",
       n_found, 40 * N_PAGES);
    ok(well(t), "then all is well");

    freeReplyObject(server_do(s, "CONFIG SET maxmemory-policy allkeys-random"));
    freeReplyObject(server_do(s, "CONFIG SET maxmemory 2100kb"));
    n_found = 0;
    for (int i = 0; i < 20; i++) {
        tier_save_all(t, 1, N_PAGES);
        n_found += tier_load(t, 1, N_PAGES);
    }
    ok(!t->wrong && n_found < 20 * N_PAGES, "eviction: %u of %d are found, none is wrong", n_found,
       20 * N_PAGES);
    freeReplyObject(server_do(s, "CONFIG SET maxmemory 1gb"));
    ok(well(t), "then all is well");
}

/* Any page of the tenant; its name. */
static void a_page(struct server *s, const char *pattern, char name[LLM_REDIS_NAME_MAX])
{
    redisReply *all = server_do(s, "KEYS %s", pattern);

    need(all->elements > 0, "no page");
    snprintf(name, LLM_REDIS_NAME_MAX, "%s", all->element[0]->str);
    freeReplyObject(all);
}

static void put(struct server *s, const char *name, const char *value, size_t n)
{
    const char *words[] = {"SET", name, value};
    const size_t lens[] = {3, strlen(name), n};
    redisReply *reply = redisCommandArgv(s->admin, 3, words, lens);

    need(reply != NULL, "the administrator's connection is gone");
    freeReplyObject(reply);
}

/* One page is no good: the others are found, it is missed for this reason, and deleted. */
static void is_no_good(struct server *s, struct tier *t, const char *name,
                       enum llm_redis_miss reason, const char *what)
{
    struct llm_redis_counts before = llm_redis_counts(t->redis);
    uint64_t end = llm_now_ns() + 5 * LLM_NS_PER_S;
    uint32_t n = tier_load(t, 1, N_PAGES);

    ok(n < N_PAGES && !t->wrong, "%s is not taken for a page", what);
    ok(missed(t, &before, reason) > 0, "it is counted");
    while (server_count(s, "EXISTS %s", name) == 1 && llm_now_ns() < end) {
        usleep(1000);
    }
    is_int(server_count(s, "EXISTS %s", name), 0, "and deleted");
    ok(well(t), "another one takes its place");
}

static void holds_rubbish(struct server *s, struct tier *t)
{
    size_t n = llm_redis_value_bytes(&t->layout);
    char name[LLM_REDIS_NAME_MAX], *other = calloc(1, n + 1);
    redisReply *value, *all;

    need(other != NULL, "out of memory");
    freeReplyObject(server_do(s, "FLUSHALL"));
    need(well(t), "not well");
    a_page(s, PAGES, name);
    value = server_do(s, "GET %s", name);

    freeReplyObject(server_do(s, "DEL %s", name));
    freeReplyObject(server_do(s, "LPUSH %s x", name));
    is_no_good(s, t, name, LLM_REDIS_CORRUPT, "a list");
    put(s, name, "", 0);
    is_no_good(s, t, name, LLM_REDIS_CORRUPT, "an empty value");
    put(s, name, value->str, n - 1);
    is_no_good(s, t, name, LLM_REDIS_CORRUPT, "a value that is cut");
    memcpy(other, value->str, n);
    put(s, name, other, n + 1);
    is_no_good(s, t, name, LLM_REDIS_PROTOCOL, "a value that is too long");
    other[n / 2] ^= 1;
    put(s, name, other, n);
    is_no_good(s, t, name, LLM_REDIS_CORRUPT, "a value with another bit");

    all = server_do(s, "KEYS %s", PAGES);
    need(all->elements == N_PAGES, "not all pages");
    freeReplyObject(value);
    value = server_do(s, "GET %s", all->element[strcmp(all->element[0]->str, name) == 0]->str);
    put(s, name, value->str, value->len);
    is_no_good(s, t, name, LLM_REDIS_CORRUPT, "the value of another page");

    tier_save_all(t, 9, 1);
    freeReplyObject(all);
    freeReplyObject(value);
    all = server_do(s, "KEYS %s", PAGES);
    for (size_t i = 0; i < all->elements; i++) {
        /* the one of the other tenant has another tag */
        if (strncmp(all->element[i]->str, name, 5 + 2 + LLM_REDIS_TAG_CHARS) != 0) {
            value = server_do(s, "GET %s", all->element[i]->str);
            put(s, name, value->str, value->len);
            freeReplyObject(value);
        }
    }
    freeReplyObject(all);
    is_no_good(s, t, name, LLM_REDIS_CORRUPT, "the value of another tenant");
    free(other);
}

/* An epoch that is longer than a number can be: whoever comes upon it first deletes it. */
static void holds_a_long_epoch(struct server *s, struct tier *t)
{
    static const char rubbish[] = "1111111111222222222233333333334444444444";
    uint64_t end = llm_now_ns() + 5 * LLM_NS_PER_S;
    char epoch[LLM_REDIS_NAME_MAX];

    freeReplyObject(server_do(s, "FLUSHALL"));
    need(well(t), "not well");
    a_page(s, "llm1:{*}:epoch", epoch);
    put(s, epoch, rubbish, sizeof(rubbish) - 1);
    is_no_good(s, t, epoch, LLM_REDIS_PROTOCOL, "a long epoch");

    put(s, epoch, rubbish, sizeof(rubbish) - 1);
    tier_save_all(t, 1, 1);
    while (server_count(s, "EXISTS %s", epoch) == 1 && llm_now_ns() < end) {
        usleep(1000);
    }
    is_int(server_count(s, "EXISTS %s", epoch), 0, "nor when something is saved");
    ok(well(t), "then all is well");
}

/* An ACL, or a password, that does not let us in. */
static void is_refused(struct tier *t, const char *url, const char *what)
{
    struct tier other = {.layout = t->layout};
    struct llm_redis_options options = tier_options(&other, url);

    tier_open(&other, &options);
    ok(tier_wait(is_open, &other, 2000), "%s: it is told at once", what);
    is_int(tier_load(&other, 1, N_PAGES), 0, "%s: nothing is found", what);
    ok(!llm_redis_rates(other.redis).up, "it is not up");
    ok(llm_redis_counts(other.redis).connects == 0, "and never was");
    llm_redis_close(other.redis);
}

static void who_may(struct server *s, struct tier *t)
{
    char url[600];

    snprintf(url, sizeof(url), "redis+unix://llm-engine:wrong@%s", s->socket);
    is_refused(t, url, "a wrong password");
    snprintf(url, sizeof(url), "redis+unix://%s", s->socket);
    is_refused(t, url, "no password");
    freeReplyObject(server_do(s, "ACL SETUSER writer on >pw ~llm1:* -@all +set"));
    snprintf(url, sizeof(url), "redis+unix://writer:pw@%s", s->socket);
    is_refused(t, url, "a user that may not GET");
}

/* What somebody has put under a name that connections once asked for keeps nobody out. */
static void is_greeted(struct server *s, struct tier *t)
{
    static const char *const hello[] = {"SET llm1:hello %0100d", "LPUSH llm1:hello %d"};

    for (int i = 0; i < 2; i++) {
        struct tier other = {.layout = t->layout};
        struct llm_redis_options options = tier_options(&other, s->url);

        freeReplyObject(server_do(s, "DEL llm1:hello"));
        freeReplyObject(server_do(s, hello[i], 1));
        tier_open(&other, &options);
        ok(tier_up(&other), "%.*s: no matter", 15, hello[i]);
        is_int(llm_redis_counts(other.redis).drops, 0, "the first connection is good");
        llm_redis_close(other.redis);
    }
}

static bool has_lost(struct tier *t, uint64_t n)
{
    return llm_redis_counts(t->redis).drops >= n;
}

/* Redis closes what nobody uses: that is no failure. */
static void is_left_alone(struct server *s, struct tier *t)
{
    uint64_t end = llm_now_ns() + 20 * LLM_NS_PER_S;
    struct tier other = {.layout = t->layout};
    struct llm_redis_options options = tier_options(&other, s->url);
    bool good = true;

    freeReplyObject(server_do(s, "CONFIG SET timeout 1"));
    tier_open(&other, &options);
    need(tier_up(&other), "no tier");
    while (!has_lost(&other, 2 * (LLM_BREAKER_LIMIT + 1)) && llm_now_ns() < end) {
        good = good && is_closed(&other);
        freeReplyObject(server_do(s, "PING"));
        usleep(10000);
    }
    ok(has_lost(&other, 2 * (LLM_BREAKER_LIMIT + 1)), "both connections are closed many times");
    ok(good, "no breaker opens");
    ok(well(&other), "pages are saved and found at once");
    freeReplyObject(server_do(s, "CONFIG SET timeout 0"));

    for (int i = 0; i < LLM_BREAKER_LIMIT && is_closed(&other); i++) {
        need(tier_up(&other), "no tier");
        freeReplyObject(server_do(s, "CLIENT KILL USER llm-engine"));
        usleep(20000);
    }
    ok(tier_wait(is_open, &other, 1000), "but who hangs up again and again is left alone");
    llm_redis_close(other.redis);
}

static void by_tcp(struct server *s, struct tier *t)
{
    static const char *const hosts[] = {"127.0.0.1", "localhost"};
    uint64_t begin;
    struct tier other = {.layout = t->layout};
    struct llm_redis_options options;
    char url[600];
    uint16_t port = free_port();

    freeReplyObject(server_do(s, "CONFIG SET port %d", port));
    for (int i = 0; i < 2; i++) {
        snprintf(url, sizeof(url), "redis://llm-engine:change-me@%s:%d", hosts[i], port);
        options = tier_options(&other, url);
        tier_open(&other, &options);
        ok(well(&other), "over TCP, by %s", hosts[i]);
        llm_redis_close(other.redis);
    }

    options = tier_options(&other, "redis://name.invalid:1234");
    begin = llm_now_ns();
    tier_open(&other, &options);
    is_int(tier_load(&other, 1, N_PAGES), 0, "at a name that nobody has nothing is found");
    llm_redis_close(other.redis);
    ok(llm_now_ns() - begin < LLM_NS_PER_S, "and nobody waits for it to be looked up");
}

int main(void)
{
    struct tier t = {.layout = make_layout(LLM_LATENT_BF16, 256, 64, 0)};
    struct server s;

    scratch_init();
    is_not_there_yet(&s, &t);
    hangs(&s, &t, "a server that sleeps", "DEBUG SLEEP 0.6");
    hangs(&s, &t, "one that is paused", "CLIENT PAUSE 600 ALL");
    dies(&s, &t);
    freeReplyObject(server_do(&s, "REPLICAOF 127.0.0.1 1"));
    only_reads(&s, &t, "a replica");
    freeReplyObject(server_do(&s, "CONFIG SET maxmemory-policy noeviction"));
    freeReplyObject(server_do(&s, "CONFIG SET maxmemory 1"));
    only_reads(&s, &t, "no memory");
    loses_keys(&s, &t);
    holds_rubbish(&s, &t);
    holds_a_long_epoch(&s, &t);
    who_may(&s, &t);
    is_greeted(&s, &t);
    is_left_alone(&s, &t);
    by_tcp(&s, &t);
    llm_redis_close(t.redis);
    server_stop(&s);
    llm_page_layout_free(&t.layout);
    return done_testing();
}
