/* What the Redis tier measures of its link: how fast it is, and how fast it has become. */

#include "t/unit/redis_hostile.h"
#include "t/unit/redis_tier.h"

#define N_PAGES 24
#define MB 1000000.0

static struct llm_redis_rates load(struct tier *t, uint32_t n_pages, uint32_t times)
{
    for (uint32_t i = 0; i < times; i++) {
        need(tier_up(t) && tier_load(t, 1, n_pages) == n_pages, "a page does not come");
    }
    return llm_redis_rates(t->redis);
}

int main(void)
{
    struct tier t = {.layout = make_layout(LLM_LATENT_BF16, 512, 64, 1)};
    struct llm_redis_options options;
    struct llm_redis_rates rates, before;
    struct hostile h;
    struct server s;

    scratch_init();
    server_start(&s, "0");
    hostile_start(&h, &s);
    options = tier_options(&t, h.url);
    options.deadline_ms = 20000;
    tier_open(&t, &options);
    need(tier_up(&t), "the tier does not connect");
    tier_save_all(&t, 1, N_PAGES);
    rates = llm_redis_rates(t.redis);
    ok(rates.up && rates.first_ns == 0 && rates.bytes_per_s == 0, "nothing is known at first");

    hostile_set(&h, (struct hostile_act){.mode = HOSTILE_RATE, .ms = 20});
    rates = load(&t, 1, 1);
    ok(rates.bytes_per_s > 0 && (double) rates.bytes_per_s < 20 * MB,
       "a page over a link of 20 MB/s: at least %.1f MB/s", (double) rates.bytes_per_s / MB);
    rates = load(&t, N_PAGES, 6);
    ok((double) rates.bytes_per_s > 2 * MB && (double) rates.bytes_per_s < 21 * MB,
       "many pages: %.1f MB/s", (double) rates.bytes_per_s / MB);

    hostile_set(&h, (struct hostile_act){.mode = HOSTILE_DELAY, .ms = 20});
    rates = load(&t, 1, 10);
    ok(rates.first_ns > 30 * LLM_NS_PER_MS, "answers 20 ms late: the first page after %.1f ms",
       (double) rates.first_ns / LLM_NS_PER_MS);

    before = rates;
    hostile_set(&h, (struct hostile_act){.mode = HOSTILE_RELAY});
    rates = load(&t, 1, 20);
    ok(rates.first_ns < before.first_ns / 2, "a link that has become fast: %.1f ms",
       (double) rates.first_ns / LLM_NS_PER_MS);
    rates = load(&t, N_PAGES, 10);
    ok(rates.bytes_per_s > before.bytes_per_s, "%.1f MB/s", (double) rates.bytes_per_s / MB);

    llm_redis_close(t.redis);
    hostile_stop(&h);
    server_stop(&s);
    llm_page_layout_free(&t.layout);
    return done_testing();
}
