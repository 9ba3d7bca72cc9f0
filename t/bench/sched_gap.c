/* How much a running stream feels of long prompts: the gaps between its tokens alone, and while
 * prompts of 4,000 tokens arrive one after the other.
 *
 *     make bench-sched_gap */

#include "t/bench/driver.h"

#define STEP_MS 50
#define ALONE 2000 /* tokens */
#define PROMPTS 8
#define PROMPT 4000

static double gaps[MAX_TOKENS];
static uint32_t n_gaps;
static struct job *stream;

static void on_gap(struct job *j, uint64_t gap)
{
    if (j == stream && n_gaps < MAX_TOKENS) {
        gaps[n_gaps++] = (double) gap / (double) LLM_NS_PER_MS;
    }
}

int main(int argc, char **argv)
{
    struct driver d;
    double alone, worst_alone, median, largest, total;
    uint64_t begin;

    bench_open_model(&d, argc > 1 ? argv[1] : "models/demo", argc > 1);
    d.token = on_gap;
    bench_start(&d, 400, (struct llm_sched_options){
        .max_batch_tokens = 512, .max_seqs = 8, .max_step_ns = STEP_MS * LLM_NS_PER_MS});

    /* so that the cost of steps is known */
    bench_first_token(&d, bench_job(&d, 2, 0, PROMPT, 1));

    stream = bench_job(&d, 1, 0, 16, MAX_TOKENS - 100);
    bench_submit(&d, stream);
    while (n_gaps < ALONE) {
        bench_turn(&d);
    }
    alone = bench_percentile(gaps, n_gaps, 50);
    worst_alone = gaps[n_gaps - 1];

    n_gaps = 0;
    begin = llm_now_ns();
    for (int i = 0; i < PROMPTS; i++) {
        bench_first_token(&d, bench_job(&d, 2, 0, PROMPT, 1));
    }
    total = (double) (llm_now_ns() - begin) / (double) LLM_NS_PER_S;
    median = bench_percentile(gaps, n_gaps, 50);
    largest = gaps[n_gaps - 1];

    printf("%s, --max-step-ms %d, --max-batch-tokens 512\n",
           llm_backend_cpu.info(d.backend)->device, STEP_MS);
    printf("%-40s median %8.2f ms, largest %.2f\n", "gaps of a stream alone", alone, worst_alone);
    printf("%-40s median %8.2f ms, p99 %.2f, largest %.2f (%u gaps)\n",
           "while prompts of 4,000 tokens arrive", median,
           bench_percentile(gaps, n_gaps, 99), largest, n_gaps);
    printf("%-40s %.2f ms: %s\n", "largest - median alone", largest - alone,
           largest - alone <= STEP_MS ? "within one step bound" : "MORE than one step bound");
    printf("prefill meanwhile: %.0f tok/s\n", PROMPTS * PROMPT / total);

    llm_sched_cancel(d.sched, &stream->request);
    while (!stream->retired) {
        bench_turn(&d);
    }
    free(stream);
    bench_stop(&d);
    llm_model_close(d.model);
    return 0;
}
