/* What it costs a stream that pages are saved to Redis meanwhile: the time of 400 tokens after a
 * prompt of 2,000, whose pages go to Redis then, beside the same without Redis. Goal: no more than
 * 2 %.
 *
 *     make bench-sched_redis_decode          the demo model
 *     … build/bench/sched_redis_decode DIR   dummy weights of DIR/config.json's shape
 *
 * Both are measured in turns, so that what else the machine does falls on both. */

#include "t/bench/redis.h"

#define RUNS 15
#define PROMPT 2000
#define TOKENS 400
#define PAGES 100

static double per_token(struct driver *d, struct llm_redis *redis)
{
    const struct llm_sched_options options = {
        .max_batch_tokens = 512,
        .max_seqs = 4,
        .max_step_ns = 100 * LLM_NS_PER_MS,
        .redis = redis,
        .redis_ttl = BENCH_TTL,
        .load_ns = BENCH_DEADLINE_MS * LLM_NS_PER_MS,
    };
    struct job *j = bench_job(d, 1, 0, PROMPT, TOKENS);
    double ms;

    bench_open_sched(d, options);
    bench_submit(d, j);
    while (!j->retired) {
        bench_turn(d);
    }
    ms = (double) (j->last - j->first) / (double) LLM_NS_PER_MS / (TOKENS - 1);
    bench_close_sched(d);
    free(j);
    return ms;
}

int main(int argc, char **argv)
{
    double without[RUNS], with[RUNS], ratio[RUNS];
    struct llm_redis_counts before, after;
    struct llm_redis *redis;
    struct server server;
    struct driver d;

    scratch_init();
    server_start(&server, "0");
    bench_open_model(&d, argc > 1 ? argv[1] : "models/demo", argc > 1);
    bench_start(&d, PAGES, (struct llm_sched_options){.max_batch_tokens = 512, .max_seqs = 4});
    bench_close_sched(&d);
    redis = bench_tier(server.url, &llm_backend_cpu.info(d.backend)->layout);

    per_token(&d, NULL);
    per_token(&d, redis);
    before = llm_redis_counts(redis);
    for (int i = 0; i < RUNS; i++) {
        without[i] = per_token(&d, NULL);
        with[i] = per_token(&d, redis);
        ratio[i] = with[i] / without[i];
    }
    after = llm_redis_counts(redis);

    printf("%s: %u tokens after %u, medians of %u\n", llm_backend_cpu.info(d.backend)->device,
           TOKENS, PROMPT, RUNS);
    printf("without Redis     %8.3f ms a token\n", bench_percentile(without, RUNS, 50));
    printf("while it saves    %8.3f ms a token\n", bench_percentile(with, RUNS, 50));
    printf("ratio, in pairs   %8.3f median\n", bench_percentile(ratio, RUNS, 50));
    printf("pages saved: %llu of %u, of %llu KB\n",
           (unsigned long long) (after.saved - before.saved),
           RUNS * ((PROMPT + TOKENS) / LLM_PAGE_TOKENS),
           (unsigned long long) llm_backend_cpu.info(d.backend)->layout.page_bytes >> 10);

    llm_redis_close(redis);
    llm_backend_cpu.free(d.backend);
    llm_model_close(d.model);
    server_stop(&server);
    return 0;
}
