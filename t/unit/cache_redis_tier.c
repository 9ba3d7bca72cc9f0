/* The Redis tier against a real redis-server, as it should be: what is saved is found, by whoever
 * has the same secret, and by nobody else. */

#include "t/unit/redis_server.h"
#include "t/unit/redis_tier.h"

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
    llm_redis_close(t.redis);
    server_stop(&s);
    llm_page_layout_free(&t.layout);
    return done_testing();
}
