/* Sampling against the CPU's, token by token: every parameter, ties, masks, biases, slots that are
 * over, and the same tokens from one block as from a team of them. */

#include "engine/backend/philox.h"
#include "kernels/cpu/sample.h"
#include "t/gpu/gpu.h"

#define MAX_ROWS 9
#define MAX_BIAS 40

static const struct llm_cuda_queue queue;

struct slot {
    struct llm_cuda_sampling s;
    uint32_t bias_ids[MAX_BIAS];
    float bias[MAX_BIAS];
    uint32_t *counts, *seen;
};

/* The distributions that matter: peaked, flat, nothing but ties, few different values. */
static float random_logit(int kind)
{
    float u = uniform();

    switch (kind) {
    case 0:
        return 12 * u * u * u;
    case 1:
        return 0.01f * u;
    case 2:
        return 1.5f;
    default:
        return roundf(3 * u);
    }
}

static void random_slot(struct slot *slot, uint32_t n_vocab)
{
    struct llm_cuda_sampling *s = &slot->s;

    *s = (struct llm_cuda_sampling){
        .temperature = rnd(6) ? 0.3f + 0.5f * (float) rnd(4) : 0,
        .top_p = rnd(2) ? 1 : 0.5f + 0.49f * fabsf(uniform()),
        .min_p = rnd(3) ? 0 : 0.3f * fabsf(uniform()),
        .top_k = rnd(2) ? 0 : 1 + rnd(rnd(2) ? 50 : 2 * n_vocab),
        .repetition_penalty = rnd(2) ? 1 : 1.3f,
        .presence_penalty = rnd(2) ? 0 : 0.5f * uniform(),
        .frequency_penalty = rnd(2) ? 0 : 0.5f * uniform(),
        .choice = rnd(3),
        .seed = (uint64_t) rnd(1u << 31) << 20,
        .n_vocab = n_vocab,
        .n_top_logprobs = rnd(2) ? 0 : rnd(LLM_CUDA_MAX_TOP_LOGPROBS + 1),
        .logprobs = rnd(2),
        .n_bias = rnd(2) ? 0 : rnd(MAX_BIAS + 1),
    };
    if (rnd(20) == 0) {
        s->top_p = 0;
    }
    for (uint32_t i = 0; i < s->n_bias; i++) {
        slot->bias_ids[i] = rnd(n_vocab);
        slot->bias[i] = rnd(9) ? 5 * uniform() : -INFINITY;
    }
    slot->counts = calloc(n_vocab, 4);
    slot->seen = calloc((n_vocab + 31) / 32, 4);
    for (uint32_t i = 0; i < n_vocab / 4; i++) {
        uint32_t id = rnd(n_vocab);

        slot->counts[id] += rnd(2);
        slot->seen[id / 32] |= 1u << id % 32;
    }
}

static void test(uint32_t n, uint32_t vocab, uint32_t n_vocab, int kind)
{
    uint32_t mask_words = (n_vocab + 31) / 32, n_slots = n + 2, n_finite = 0;
    size_t ld = vocab + rnd(3), mask_step = mask_words + rnd(2);
    float *logits = allocate(n * ld * 4);
    struct slot *slots = allocate(n_slots * sizeof(*slots));
    struct llm_cuda_sampling *sampling = allocate(n_slots * sizeof(*sampling));
    uint32_t row_slot[MAX_ROWS], positions[MAX_ROWS], mask_of[MAX_ROWS], over[MAX_ROWS + 2];
    uint32_t last[MAX_ROWS + 2], *masks = allocate(n * mask_step * 4);
    void *scratch = allocate(llm_cpu_sample_scratch(vocab));
    const struct llm_cpu_kernels *k = llm_cpu_kernels_pick(NULL);
    bool right = true, with_masks = rnd(2);
    double worst = 0;

    for (uint32_t i = 0; i < n; i++) {
        for (size_t j = 0; j < ld; j++) {
            logits[i * ld + j] = random_logit(kind);
        }
        if (rnd(12) == 0) {
            logits[i * ld + rnd(n_vocab)] = rnd(2) ? NAN : -INFINITY;
        }
        row_slot[i] = i == 1 ? LLM_CUDA_NO_SLOT : n_slots - 1 - i;
        positions[i] = rnd(5000);
        mask_of[i] = rnd(3) ? i : LLM_CUDA_NO_MASK;
        for (uint32_t j = 0; j < mask_words; j++) {
            masks[i * mask_step + j] = rnd(10) ? rnd(1u << 31) & rnd(1u << 31) : 0;
        }
    }
    for (uint32_t i = 0; i < n_slots; i++) {
        last[i] = 7;
        over[i] = rnd(12) == 0;
        random_slot(&slots[i], n_vocab);
        sampling[i] = slots[i].s;
        sampling[i].bias_ids = device_copy(slots[i].bias_ids, MAX_BIAS * 4);
        sampling[i].bias = device_copy(slots[i].bias, MAX_BIAS * 4);
        sampling[i].counts = NULL;
        sampling[i].seen = NULL;
        if (slots[i].s.frequency_penalty != 0 || slots[i].s.presence_penalty != 0) {
            sampling[i].counts = device_copy(slots[i].counts, n_vocab * 4);
        }
        if (slots[i].s.repetition_penalty != 1) {
            sampling[i].seen = device_copy(slots[i].seen, mask_words * 4);
        }
    }

    uint32_t *d_masks = device_copy(masks, n * mask_step * 4);
    uint32_t *d_mask_of = device_copy(mask_of, n * 4);
    size_t n_top = n * LLM_CUDA_MAX_TOP_LOGPROBS;
    struct llm_cuda_sample a = {
        .n = n,
        .vocab = vocab,
        .logits = device_copy(logits, n * ld * 4),
        .ld_logits = ld,
        .slots = device_copy(row_slot, n * 4),
        .positions = device_copy(positions, n * 4),
        .sampling = device_copy(sampling, n_slots * sizeof(*sampling)),
        .mask_of = with_masks ? d_mask_of : NULL,
        .masks = d_masks,
        .mask_step = mask_step,
        .last = device_copy(last, n_slots * 4),
        .over = device_copy(over, n_slots * 4),
        .tokens = device_poisoned(n * 4),
        .logprobs = device_poisoned(n * 4),
        .top_ids = device_poisoned(n_top * 4),
        .top_logprobs = device_poisoned(n_top * 4),
        .scratch = device_poisoned((size_t) n * vocab * 4),
        .one_block = rnd(2),
    };
    CUDA(llm_cuda_sample(&a, queue));

    uint32_t *tokens = fetch(a.tokens, n * 4), *got_last = fetch(a.last, n_slots * 4);
    uint32_t *got_over = fetch(a.over, n_slots * 4), *top_ids = fetch(a.top_ids, n_top * 4);
    float *logprobs = fetch(a.logprobs, n * 4), *top = fetch(a.top_logprobs, n_top * 4);

    for (uint32_t i = 0; i < n; i++) {
        const float *row = logits + i * ld;
        uint32_t id = row_slot[i], want, want_top[LLM_CUDA_MAX_TOP_LOGPROBS];

        if (id == LLM_CUDA_NO_SLOT) {
            right &= tokens[i] == UINT32_MAX && isnan(logprobs[i]);
            continue;
        }
        struct slot *slot = &slots[id];
        struct llm_cpu_sampling s = {
            .n_vocab = n_vocab,
            .n_bias = slot->s.n_bias,
            .bias_ids = slot->bias_ids,
            .bias = slot->bias,
            .repetition_penalty = slot->s.repetition_penalty,
            .seen = slot->seen,
            .frequency_penalty = slot->s.frequency_penalty,
            .presence_penalty = slot->s.presence_penalty,
            .counts = slot->counts,
            .mask = with_masks && mask_of[i] != LLM_CUDA_NO_MASK ? masks + i * mask_step : NULL,
            .temperature = slot->s.temperature,
            .top_p = slot->s.top_p,
            .min_p = slot->s.min_p,
            .top_k = slot->s.top_k,
        };
        float u = llm_philox_uniform(slot->s.seed, positions[i], slot->s.choice,
                                     LLM_PHILOX_SAMPLE);

        want = over[id] ? LLM_CPU_NO_TOKEN : llm_cpu_sample(k, &s, row, u, scratch);
        if (tokens[i] != want || got_over[id] != (want == LLM_CPU_NO_TOKEN)
            || got_last[id] != (want == LLM_CPU_NO_TOKEN ? 7 : want)) {
            diag("row %u: token %u for %u; over %u, last %u; temperature %g, top_k %u, top_p %g, "
                 "min_p %g", i, tokens[i], want, got_over[id], got_last[id], s.temperature,
                 s.top_k, s.top_p, s.min_p);
            right = false;
        }
        if (want == LLM_CPU_NO_TOKEN) {
            continue;
        }
        n_finite++;
        slot->counts[want]++;
        slot->seen[want / 32] |= 1u << want % 32;

        if (slot->s.logprobs || slot->s.n_top_logprobs > 0) {
            float all = llm_cpu_log_sum_exp(k, row, vocab, scratch);
            uint32_t m = slot->s.n_top_logprobs < n_vocab ? slot->s.n_top_logprobs : n_vocab;

            worst = fmax(worst, fabs(logprobs[i] - (row[want] - all)));
            llm_cpu_top(row, n_vocab, m, want_top);
            for (uint32_t j = 0; j < m; j++) {
                size_t at = i * LLM_CUDA_MAX_TOP_LOGPROBS + j;

                right &= top_ids[at] == want_top[j];
                worst = fmax(worst, fabs(top[at] - (row[want_top[j]] - all)));
            }
        }
    }
    for (uint32_t i = 0; i < n_slots; i++) {
        if (sampling[i].counts != NULL) {
            uint32_t *counts = fetch(sampling[i].counts, n_vocab * 4);

            right &= memcmp(counts, slots[i].counts, n_vocab * 4) == 0;
            free(counts);
        }
        if (sampling[i].seen != NULL) {
            uint32_t *seen = fetch(sampling[i].seen, mask_words * 4);

            right &= memcmp(seen, slots[i].seen, mask_words * 4) == 0;
            free(seen);
        }
    }
    if (!ok(right && worst < 1e-5, "%u rows of %u logits, kind %d, %u sampled from%s%s", n, vocab,
            kind, n_finite, with_masks ? ", masks" : "", a.one_block ? ", one block" : "")) {
        diag("tokens are %s, log-probabilities differ by %g", right ? "right" : "wrong", worst);
    }

    for (uint32_t i = 0; i < n_slots; i++) {
        CUDA(cudaFree((void *) sampling[i].bias_ids));
        CUDA(cudaFree((void *) sampling[i].bias));
        CUDA(cudaFree(sampling[i].counts));
        CUDA(cudaFree(sampling[i].seen));
        free(slots[i].counts);
        free(slots[i].seen);
    }
    const void *of_device[] = {d_masks,  d_mask_of, a.logits,  a.slots,        a.positions,
                               a.last,   a.over,    a.tokens,  a.logprobs,     a.sampling,
                               a.scratch, a.top_ids, a.top_logprobs};
    for (size_t i = 0; i < sizeof(of_device) / sizeof(of_device[0]); i++) {
        CUDA(cudaFree((void *) of_device[i]));
    }
    void *of_host[] = {logits, slots,    sampling, masks,    scratch, tokens,
                       got_last, got_over, top_ids,  logprobs, top};
    for (size_t i = 0; i < sizeof(of_host) / sizeof(of_host[0]); i++) {
        free(of_host[i]);
    }
}

int main(int argc, char **argv)
{
    uint32_t count = argc > 1 ? (uint32_t) strtoul(argv[1], NULL, 10) : 100;

    test(1, 1, 1, 0);
    test(MAX_ROWS, 102400, 102400, 0);
    test(3, 129280, 128815, 1);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t vocab = 1 + rnd(rnd(4) ? 600 : 20000);

        test(1 + rnd(MAX_ROWS), vocab, 1 + rnd(vocab), (int) (i % 4));
    }
    return done_testing();
}
