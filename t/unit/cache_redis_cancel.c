/* Loads that are cancelled, and tenants forgotten, while their commands are on their way: no answer
 * ever comes to the wrong one, and no page is taken for one of another epoch. */

#include "t/unit/redis_hostile.h"
#include "t/unit/redis_tier.h"

#define N_PAGES 20
#define TURNS 1000

static const struct {
    uint32_t tenant;
    const char *what;
} kinds[] = {{1, "cancelled"}, {2, "wanted"}};

struct turn {
    uint64_t cancelled, wanted; /* loads */
    bool is_cancelled, cancelled_ended, wanted_ended;
    uint32_t n_wanted; /* pages that came */
};

/* Takes what has come; false: something that should not have. */
static bool take(struct tier *t, struct turn *turn)
{
    struct llm_redis_arrival a;

    while (llm_redis_arrived(t->redis, &a)) {
        bool wanted = a.load == turn->wanted;

        if (!wanted && a.load != turn->cancelled) {
            return false;
        }
        if (a.ended) {
            *(wanted ? &turn->wanted_ended : &turn->cancelled_ended) = true;
            continue;
        }
        if (!wanted && turn->is_cancelled) {
            return false;
        }
        t->came[a.index] = false;
        tier_look(t, &a, kinds[wanted].tenant, 0);
        llm_redis_give_back(t->redis, a.buffer);
        turn->n_wanted += wanted;
    }
    return true;
}

/* One load is cancelled while it is under way, another one asked for before or after that. */
static bool run_turn(struct tier *t, uint64_t *seed, uint32_t i, struct turn *turn)
{
    uint64_t end = llm_now_ns() + 10 * LLM_NS_PER_S;
    bool after = scratch_random(seed) % 2 == 0;
    uint8_t owner[32];

    *turn = (struct turn){.is_cancelled = false};
    tier_save(t, 3, i); /* SETs are on their way too */
    turn->cancelled = tier_ask(t, kinds[0].tenant, 0, 1 + scratch_random(seed) % N_PAGES);
    if (!after) {
        turn->wanted = tier_ask(t, kinds[1].tenant, 0, N_PAGES);
    }
    usleep(scratch_random(seed) % 400);
    if (!take(t, turn)) {
        return false;
    }
    turn->is_cancelled = true;
    llm_redis_cancel(t->redis, turn->cancelled);
    if (i % 7 == 0) {
        tier_owner(3, owner);
        llm_redis_forget_tenant(t->redis, owner);
    }
    while (turn->wanted == 0 && llm_now_ns() < end) {
        turn->wanted = tier_ask(t, kinds[1].tenant, 0, N_PAGES);
    }
    while ((!turn->wanted_ended || (turn->cancelled != 0 && !turn->cancelled_ended))
           && llm_now_ns() < end) {
        if (!take(t, turn)) {
            return false;
        }
        usleep(50);
    }
    return turn->wanted_ended && (turn->cancelled == 0 || turn->cancelled_ended);
}

/* What any thread may do, all the while. */
struct bystander {
    struct tier *tier;
    pthread_t thread;
    atomic_bool quit;
    uint64_t n_hits;
};

static void *stand_by(void *arg)
{
    struct bystander *b = arg;
    uint8_t owner[32];

    tier_owner(99, owner);
    while (!atomic_load(&b->quit)) {
        b->n_hits = llm_redis_counts(b->tier->redis).hits;
        if (llm_redis_rates(b->tier->redis).first_ns != 0) {
            llm_redis_forget_tenant(b->tier->redis, owner);
        }
        usleep(20000); /* more forgets at a time than are remembered would be everybody's */
    }
    return NULL;
}

static void cancels(struct tier *t, const char *how)
{
    struct llm_redis_counts before = llm_redis_counts(t->redis), after;
    struct bystander bystander = {.tier = t};
    uint64_t seed = 42;
    uint32_t n_good = 0, n_whole = 0;

    need(pthread_create(&bystander.thread, NULL, stand_by, &bystander) == 0, "no thread");
    for (uint32_t i = 0; i < TURNS; i++) {
        struct turn turn;

        n_good += run_turn(t, &seed, i, &turn);
        n_whole += turn.n_wanted == N_PAGES;
    }
    atomic_store(&bystander.quit, true);
    pthread_join(bystander.thread, NULL);
    after = llm_redis_counts(t->redis);
    ok(bystander.n_hits > before.hits && bystander.n_hits <= after.hits, "another thread looks on");
    is_int(n_good, TURNS, "%s: nothing came of what was cancelled, and all loads ended", how);
    ok(!t->wrong, "what came was what was asked for");
    ok(n_whole == TURNS, "and it came, all of it: %u of %d; %llu pages were late, %llu down",
       n_whole, TURNS, (unsigned long long) after.misses[LLM_REDIS_LATE],
       (unsigned long long) after.misses[LLM_REDIS_DOWN]);
    ok(after.drops - before.drops > TURNS / 50, "connections were dropped: %llu",
       (unsigned long long) (after.drops - before.drops));
    is_int(after.misses[LLM_REDIS_CORRUPT] + after.misses[LLM_REDIS_PROTOCOL], 0,
           "no answer was out of place");
}

static void begin(struct tier *t, const struct llm_redis_options *options)
{
    tier_open(t, options);
    need(tier_up(t), "the tier does not connect");
    for (size_t i = 0; i < 2; i++) {
        tier_save_all(t, kinds[i].tenant, N_PAGES);
    }
}

static uint64_t epoch_of(struct server *s, const char *name)
{
    redisReply *reply = server_do(s, "GET %s", name);
    uint64_t epoch = reply->type == REDIS_REPLY_STRING ? strtoull(reply->str, NULL, 10) : 0;

    freeReplyObject(reply);
    return epoch;
}

/* A load that is asked for again, as its connection goes with another one's, while its tenant is
 * purged: the pages that have come are of the epoch that was. */
static void hears_of_both_epochs(struct server *s, struct hostile *h, struct tier *t)
{
    uint64_t end = llm_now_ns() + 10 * LLM_NS_PER_S, was, is, stale, told[2];
    struct turn turn = {.n_wanted = 0};
    uint32_t n_told = 0;
    uint8_t owner[32];
    struct llm_redis_epoch heard;
    char name[LLM_REDIS_NAME_MAX];
    redisReply *all;

    freeReplyObject(server_do(s, "FLUSHALL"));
    tier_save_all(t, kinds[1].tenant, 1); /* learns that there is no epoch any more */
    tier_save_all(t, kinds[1].tenant, N_PAGES);
    while (llm_redis_heard(t->redis, &heard)) {
    }
    all = server_do(s, "KEYS llm1:{*}:epoch");
    need(all->elements == 1, "not one epoch");
    snprintf(name, sizeof(name), "%s", all->element[0]->str);
    freeReplyObject(all);
    was = epoch_of(s, name);
    tier_save_all(t, kinds[0].tenant, 1);
    tier_save_all(t, kinds[0].tenant, N_PAGES);
    stale = tier_missed(t, LLM_REDIS_STALE);

    hostile_set(h, (struct hostile_act){.mode = HOSTILE_RATE, .ms = 2});
    turn.wanted = tier_ask(t, kinds[1].tenant, 0, N_PAGES);
    turn.cancelled = tier_ask(t, kinds[0].tenant, 0, N_PAGES);
    while (turn.n_wanted == 0 && llm_now_ns() < end) {
        need(take(t, &turn), "what comes is wrong");
    }
    is = (uint64_t) server_count(s, "INCRBY %s 1", name);
    tier_save_all(t, kinds[1].tenant, 1); /* the tier knows of it then */
    while (llm_redis_heard(t->redis, &heard)) {
    }
    turn.is_cancelled = true;
    llm_redis_cancel(t->redis, turn.cancelled);
    while (!turn.wanted_ended && llm_now_ns() < end) {
        need(take(t, &turn), "what comes is wrong");
    }
    ok(turn.n_wanted > 0 && turn.n_wanted < N_PAGES, "of %d pages %u came before a purge", N_PAGES,
       turn.n_wanted);
    is_int(tier_missed(t, LLM_REDIS_STALE) - stale, N_PAGES - turn.n_wanted, "and none after it");
    tier_owner(kinds[1].tenant, owner);
    while (n_told < 2 && llm_redis_heard(t->redis, &heard)) {
        if (memcmp(heard.owner, owner, sizeof(owner)) == 0) {
            told[n_told++] = heard.epoch;
        }
    }
    ok(n_told == 2 && told[0] == was && told[1] == is, "their epoch is told, then the other one");
    hostile_set(h, (struct hostile_act){.mode = HOSTILE_RELAY});
}

int main(void)
{
    struct tier t = {.layout = make_layout(LLM_LATENT_BF16, 256, 32, 0)};
    struct llm_redis_options options;
    struct hostile h;
    struct server s;

    scratch_init();
    server_start(&s, "0");
    hostile_start(&h, &s);
    options = tier_options(&t, h.url);
    options.deadline_ms = 5000;
    begin(&t, &options);
    cancels(&t, "through a relay");
    hears_of_both_epochs(&s, &h, &t);
    llm_redis_close(t.redis);
    hostile_stop(&h);

    options.url = s.url;
    begin(&t, &options);
    cancels(&t, "straight");
    llm_redis_close(t.redis);
    server_stop(&s);
    llm_page_layout_free(&t.layout);
    return done_testing();
}
