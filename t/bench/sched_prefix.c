/* The first token of a prompt whose beginning is cached: 2,000 shared tokens and 20 of its own,
 * beside a cold prompt made of what is not cached of it alone, and beside the whole of it cold.
 *
 *     make bench-sched_prefix            the demo model
 *     … build/bench/sched_prefix DIR     dummy weights of DIR/config.json's shape
 *
 * The four are measured in turns, so that what else the machine does falls on all of them. */

#include "t/bench/driver.h"

#define RUNS 15
#define SHARED 2000
#define OWN 20
#define CACHED (SHARED / LLM_PAGE_TOKENS * LLM_PAGE_TOKENS)
#define TAIL (SHARED + OWN - CACHED)
#define PAGES 32 /* of the small pool: what one prompt needs */

enum { SHARER = 1, OTHER = 2 };

static void must_hit(struct driver *d, enum llm_cache_tier tier, uint64_t before)
{
    uint64_t hit = llm_cache_counts(llm_sched_cache(d->sched)).hit_tokens[tier] - before;

    if (hit != CACHED) {
        fprintf(stderr, "%llu tokens came from the cache, not %u\n", (unsigned long long) hit,
                CACHED);
        exit(1);
    }
}

static double shared_prompt(struct driver *d, enum llm_cache_tier tier)
{
    uint64_t before = llm_cache_counts(llm_sched_cache(d->sched)).hit_tokens[tier];
    double ms = bench_first_token(d, bench_job(d, SHARER, SHARED, OWN, 1));

    must_hit(d, tier, before);
    return ms;
}

/* The median, which is returned, and its ratio to that of the tail alone; 0: it is that. */
static double print_row(const char *what, double times[RUNS], double tail)
{
    double ms = bench_percentile(times, RUNS, 50);

    printf("%-44s %10.2f ms %8.2fx\n", what, ms, tail != 0 ? ms / tail : 1);
    return ms;
}

int main(int argc, char **argv)
{
    const struct llm_sched_options options = {.max_batch_tokens = 512, .max_seqs = 4};
    struct llm_sched_options small_options = options;
    double tail[RUNS], cold[RUNS], memory[RUNS], host[RUNS];
    double alone, from_memory, from_host, all;
    struct driver large, small;

    bench_open_model(&large, argc > 1 ? argv[1] : "models/demo", argc > 1);
    small = large;
    small_options.host_bytes = 4096ull << 20;
    bench_start(&large, 400, options);
    bench_start(&small, PAGES, small_options);

    bench_first_token(&large, bench_job(&large, SHARER, SHARED, OWN, 1));
    bench_first_token(&small, bench_job(&small, SHARER, SHARED, OWN, 1));
    for (int i = 0; i < RUNS; i++) {
        tail[i] = bench_first_token(&large, bench_job(&large, OTHER, 0, TAIL, 1));
        memory[i] = shared_prompt(&large, LLM_TIER_MEMORY);
        cold[i] = bench_first_token(&small, bench_job(&small, OTHER, 0, SHARED + OWN, 1));
        host[i] = shared_prompt(&small, LLM_TIER_HOST); /* the one before has pushed it out */
    }

    printf("%s\n%u tokens, %u of them cached, %u computed; medians of %u\n",
           llm_backend_cpu.info(large.backend)->device, SHARED + OWN, CACHED, TAIL, RUNS);
    alone = print_row("cold, the tail alone", tail, 0);
    from_memory = print_row("prefix from memory", memory, alone);
    from_host = print_row("prefix from the host tier", host, alone);
    all = print_row("cold, all of it", cold, alone);
    printf("share of cold: memory %.1f %%, host tier %.1f %%\n", 100 * from_memory / all,
           100 * from_host / all);

    bench_stop(&large);
    bench_stop(&small);
    llm_model_close(large.model);
    return 0;
}
