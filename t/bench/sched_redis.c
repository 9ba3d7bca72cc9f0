/* The first token of a prompt whose beginning is in Redis: 2,000 shared tokens and 20 of its own,
 * in an engine that has none of it in memory and knows what its steps cost, beside the same cold.
 * Over a Unix socket, over TCP, and through a relay that is slow; and what a prompt costs that is
 * not in Redis. The decision is printed with each.
 *
 *     make bench-sched_redis                   V2-Lite's shape cut to 4 layers, and the demo model
 *     … build/bench/sched_redis MB_PER_S DIR   dummy weights of DIR/config.json's shape
 *
 * All are measured in turns, so that what else the machine does falls on all of them. */

#include "t/bench/redis.h"

#define RUNS 7
#define SHARED 2000
#define OWN 20
#define WARM 1024 /* tokens that tell what steps cost */
#define PAGES 100

enum { SHARER = 1, OTHER = 2 };

/* A prompt that nobody is to find. */
static struct job *lonely_job(struct driver *d, uint32_t n)
{
    struct job *j = bench_job(d, OTHER, 0, n, 1);

    j->request.scope = LLM_SCOPE_OFF;
    j->sequence.digests = NULL;
    return j;
}

struct row {
    const char *what;
    struct llm_redis *redis; /* NULL: none */
    bool novel;              /* it is not there */
    double ms[RUNS];
    struct llm_sched_loads loads; /* of all runs together */
    uint64_t tokens;              /* loaded */
};

static void measure(struct driver *d, struct row *r, int run)
{
    const struct llm_sched_options options = {
        .max_batch_tokens = 512,
        .max_seqs = 4,
        .max_step_ns = 100 * LLM_NS_PER_MS,
        .redis = r->redis,
        .redis_ttl = BENCH_TTL,
        .load_ns = BENCH_DEADLINE_MS * LLM_NS_PER_MS,
    };
    struct llm_sched_loads loads;

    bench_open_sched(d, options);
    bench_first_token(d, lonely_job(d, WARM));
    r->ms[run] = bench_first_token(d, r->redis == NULL ? lonely_job(d, SHARED + OWN)
                                      : r->novel       ? bench_job(d, OTHER, 0, SHARED + OWN, 1)
                                                       : bench_job(d, SHARER, SHARED, OWN, 1));
    loads = llm_sched_loads(d->sched);
    r->loads.chosen += loads.chosen;
    r->loads.declined += loads.declined;
    r->loads.probes += loads.probes;
    r->tokens += llm_cache_counts(llm_sched_cache(d->sched)).hit_tokens[LLM_TIER_REDIS];
    bench_close_sched(d);
}

static void print_row(struct row *r, double cold)
{
    double ms = bench_percentile(r->ms, RUNS, 50);
    struct llm_redis_rates rates = {0};

    if (r->redis != NULL) {
        rates = llm_redis_rates(r->redis);
    }
    printf("%-34s %9.1f ms %7.1f %% %6llu %6llu %6llu %8llu %8.2f ms %8.1f MB/s\n", r->what, ms,
           100 * ms / cold, (unsigned long long) r->loads.chosen,
           (unsigned long long) r->loads.declined, (unsigned long long) r->loads.probes,
           (unsigned long long) r->tokens, (double) rates.first_ns / 1e6,
           (double) rates.bytes_per_s / 1e6);
}

static void compare(const struct server *server, const char *tcp, const char *dir, bool dummy,
                    uint64_t relay_bytes_per_s)
{
    struct relay relay = {.bytes_per_s = relay_bytes_per_s};
    const struct llm_page_layout *layout;
    struct llm_redis *unix_tier;
    struct driver d;
    char slow[64];
    double cold;

    bench_open_model(&d, dir, dummy);
    bench_start(&d, PAGES, (struct llm_sched_options){.max_batch_tokens = 512, .max_seqs = 4});
    bench_close_sched(&d);
    layout = &llm_backend_cpu.info(d.backend)->layout;
    bench_relay(&relay, server);
    snprintf(slow, sizeof(slow), "through a relay of %.0f MB/s", (double) relay_bytes_per_s / 1e6);

    unix_tier = bench_tier(server->url, layout);
    struct row rows[] = {
        {.what = "cold, no Redis"},
        {.what = "cold, not in Redis", .redis = unix_tier, .novel = true},
        {.what = "from Redis, Unix socket", .redis = unix_tier},
        {.what = "from Redis, TCP", .redis = bench_tier(tcp, layout)},
        {.what = slow, .redis = bench_tier(relay.url, layout)},
    };
    const int n_rows = sizeof(rows) / sizeof(*rows);

    bench_open_sched(&d, (struct llm_sched_options){
        .max_batch_tokens = 512, .max_seqs = 4, .redis = unix_tier,
        .redis_ttl = BENCH_TTL,
        .load_ns = BENCH_DEADLINE_MS * LLM_NS_PER_MS});
    bench_fill(&d, unix_tier, bench_job(&d, SHARER, SHARED, OWN, 1));
    bench_close_sched(&d);
    for (int i = 1; i < n_rows; i++) { /* so that all know how fast their way is */
        measure(&d, &rows[i], 0);
        rows[i].loads = (struct llm_sched_loads){0};
        rows[i].tokens = 0;
    }
    for (int run = 0; run < RUNS; run++) {
        for (int i = 0; i < n_rows; i++) {
            measure(&d, &rows[i], run);
        }
    }

    printf("\n%s, %s: %u tokens, %llu KB a page, medians of %u\n"
           "%-34s %12s %9s %6s %6s %6s %8s %11s %13s\n",
           dir, llm_backend_cpu.info(d.backend)->device, SHARED + OWN,
           (unsigned long long) layout->page_bytes >> 10, RUNS, "", "first token", "of cold",
           "chosen", "declin", "probes", "tokens", "to first", "then");
    cold = bench_percentile(rows[0].ms, RUNS, 50);
    for (int i = 0; i < n_rows; i++) {
        print_row(&rows[i], cold);
    }
    for (int i = 2; i < n_rows; i++) { /* the first of them is that of the one before, too */
        llm_redis_close(rows[i].redis);
    }
    llm_backend_cpu.free(d.backend);
    llm_model_close(d.model);
}

int main(int argc, char **argv)
{
    uint64_t mb_per_s = argc > 1 ? strtoull(argv[1], NULL, 10) : 20;
    struct server server;
    char tcp[128], port[16];
    uint16_t number;

    scratch_init();
    close(bench_listen(&number));
    snprintf(port, sizeof(port), "%u", number);
    snprintf(tcp, sizeof(tcp), "redis://llm-engine:change-me@127.0.0.1:%u", number);
    server_start(&server, port);
    if (argc > 2) {
        compare(&server, tcp, argv[2], true, mb_per_s * 1000000);
    } else {
        compare(&server, tcp, "t/data/v2-lite-4", true, mb_per_s * 1000000);
        compare(&server, tcp, "models/demo", false, mb_per_s * 1000000);
    }
    server_stop(&server);
    return 0;
}
