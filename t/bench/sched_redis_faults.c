/* What a Redis that is in trouble costs: first tokens of prompts whose beginning it has, without
 * Redis, and with one that is not there, that takes connections and says nothing, and that answers
 * 50 ms late. Every fourth engine has never asked it for anything. Goal: no more than 2 % or 2 ms
 * at p99.
 *
 *     make bench-sched_redis_faults
 *
 * All are measured in turns, so that what else the machine does falls on all of them; and without
 * Redis twice, which tells what of a difference is the machine's. */

#include "t/bench/redis.h"

#define RUNS 150
#define SHARED 1000
#define OWN 20
#define WARM 600
#define PAGES 60

struct row {
    const char *what;
    const char *url; /* NULL: none */
    struct llm_redis *redis;
    double ms[RUNS];
    uint64_t tokens; /* loaded */
};

static void measure(struct driver *d, struct row *r, int run)
{
    const struct llm_page_layout *layout = &llm_backend_cpu.info(d->backend)->layout;
    struct llm_sched_options options = {
        .max_batch_tokens = 512,
        .max_seqs = 4,
        .max_step_ns = 100 * LLM_NS_PER_MS,
        .redis_ttl = BENCH_TTL,
        .load_ns = BENCH_DEADLINE_MS * LLM_NS_PER_MS,
    };
    struct job *warm = bench_job(d, 2, 0, WARM, 1);

    if (r->url != NULL && run % 4 == 0) {
        llm_redis_close(r->redis);
        r->redis = bench_tier(r->url, layout);
    }
    options.redis = r->redis;
    bench_open_sched(d, options);
    warm->request.scope = LLM_SCOPE_OFF;
    warm->sequence.digests = NULL;
    bench_first_token(d, warm);
    r->ms[run] = bench_first_token(d, bench_job(d, 1, SHARED, OWN, 1));
    r->tokens += llm_cache_counts(llm_sched_cache(d->sched)).hit_tokens[LLM_TIER_REDIS];
    bench_close_sched(d);
}

int main(int argc, char **argv)
{
    struct relay hangs = {.swallows = true}, slow = {.delay_ns = 50 * LLM_NS_PER_MS};
    struct server server;
    struct driver d;
    char nobody[128];

    scratch_init();
    server_start(&server, "0");
    bench_relay(&hangs, &server);
    bench_relay(&slow, &server);
    bench_no_redis(nobody);
    bench_open_model(&d, argc > 1 ? argv[1] : "models/demo", argc > 1);
    bench_start(&d, PAGES, (struct llm_sched_options){.max_batch_tokens = 512, .max_seqs = 4});
    bench_close_sched(&d);

    struct row rows[] = {
        {.what = "no Redis"},
        {.what = "no Redis, again"},
        {.what = "Redis is down", .url = nobody},
        {.what = "Redis hangs", .url = hangs.url},
        {.what = "Redis is 50 ms late", .url = slow.url},
        {.what = "Redis is well", .url = server.url},
    };
    const int n_rows = sizeof(rows) / sizeof(*rows);

    rows[n_rows - 1].redis = bench_tier(server.url, &llm_backend_cpu.info(d.backend)->layout);
    bench_open_sched(&d, (struct llm_sched_options){
        .max_batch_tokens = 512, .max_seqs = 4, .redis = rows[n_rows - 1].redis,
        .redis_ttl = BENCH_TTL,
        .load_ns = BENCH_DEADLINE_MS * LLM_NS_PER_MS});
    bench_fill(&d, rows[n_rows - 1].redis, bench_job(&d, 1, SHARED, OWN, 1));
    bench_close_sched(&d);
    for (int run = 0; run < RUNS; run++) {
        for (int i = 0; i < n_rows; i++) {
            measure(&d, &rows[(i + run) % n_rows], run);
        }
    }

    printf("%s: first tokens of %u prompts of %u tokens\n%-24s %10s %10s %10s %14s\n",
           llm_backend_cpu.info(d.backend)->device, RUNS, SHARED + OWN, "", "median", "p99",
           "p99 more", "tokens loaded");
    for (int i = 0; i < n_rows; i++) {
        double median = bench_percentile(rows[i].ms, RUNS, 50);
        double p99 = bench_percentile(rows[i].ms, RUNS, 99);

        printf("%-24s %7.1f ms %7.1f ms %8.1f %% %14llu\n", rows[i].what, median, p99,
               100 * (p99 / bench_percentile(rows[0].ms, RUNS, 99) - 1),
               (unsigned long long) rows[i].tokens);
        llm_redis_close(rows[i].redis);
    }
    llm_backend_cpu.free(d.backend);
    llm_model_close(d.model);
    server_stop(&server);
    return 0;
}
