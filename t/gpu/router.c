/* Routing against the CPU's, and the lists of pairs: all gates, ties, NaN, idle rows, few rows and
 * many. */

#include "kernels/cpu/router.h"
#include "t/gpu/gpu.h"

static const struct llm_cuda_queue queue;

struct lists {
    uint32_t n_active, *expert, *first, *token, *pair_of;
    float *weight;
};

/* The row's experts, ascending, and weights, as the lists have them; false where the lists are
 * wrong in themselves. */
static bool read_row(const struct lists *l, uint32_t row, uint32_t per, bool idle,
                     uint32_t *experts, float *weights)
{
    for (uint32_t k = 0; k < per; k++) {
        uint32_t p = l->pair_of[row * per + k], a = 0;

        if (idle) {
            if (p != UINT32_MAX) {
                return false;
            }
            continue;
        }
        if (p >= l->first[l->n_active] || l->token[p] != row) {
            return false;
        }
        while (l->first[a + 1] <= p) {
            a++;
        }
        experts[k] = l->expert[a];
        weights[k] = l->weight[p];
    }
    return true;
}

static bool lists_ok(const struct lists *l, uint32_t n_pairs)
{
    bool right = l->first[0] == 0 && l->first[l->n_active] == n_pairs;

    for (uint32_t a = 0; right && a < l->n_active; a++) {
        right = l->first[a + 1] > l->first[a] && (a == 0 || l->expert[a] > l->expert[a - 1]);
        for (uint32_t p = l->first[a] + 1; right && p < l->first[a + 1]; p++) {
            right = l->token[p] > l->token[p - 1];
        }
    }
    return right;
}

static void test(enum llm_cuda_gate gate, uint32_t n, uint32_t n_groups, uint32_t group,
                 uint32_t n_used, uint32_t n_shared, bool ties)
{
    uint32_t n_experts = n_groups * group, all = n_experts + n_shared, per = n_used + n_shared;
    uint32_t n_groups_used = (n_used + group - 1) / group, n_pairs = 0;
    struct llm_cuda_route a = {
        .router =
            {
                .gate = gate,
                .sigmoid = rnd(2),
                .n_experts = n_experts,
                .n_used = n_used,
                .n_groups = n_groups,
                .n_groups_used = n_groups_used + rnd(n_groups - n_groups_used + 1),
                .normalise = rnd(2),
                .factor = 2.5f,
                .n_shared = n_shared,
            },
        .ld_logits = n_experts + rnd(3),
        .n = n,
    };
    struct llm_cpu_router r = {
        .gate = (enum llm_cpu_gate) gate,
        .sigmoid = a.router.sigmoid,
        .n_experts = n_experts,
        .n_used = n_used,
        .n_groups = n_groups,
        .n_groups_used = a.router.n_groups_used,
        .normalise = a.router.normalise,
        .factor = a.router.factor,
    };
    float *logits = random_floats(n * a.ld_logits), *bias = random_floats(n_experts);
    float *scratch = allocate((2 * n_experts + n_groups) * sizeof(float));
    uint8_t *flags = allocate(n);
    uint32_t *experts = allocate(per * 4), *want = allocate(per * 4);
    float *weights = allocate(per * 4), *want_weights = allocate(per * 4);
    bool right = true, with_bias = rnd(2), with_flags = rnd(2);
    double worst = 0;

    for (size_t i = 0; i < n * a.ld_logits; i++) {
        logits[i] = ties ? roundf(4 * logits[i]) : 4 * logits[i];
        logits[i] = ties && rnd(200) == 0 ? NAN : logits[i];
    }
    for (uint32_t i = 0; i < n_experts; i++) {
        bias[i] = ties ? roundf(bias[i]) : bias[i];
    }
    for (uint32_t i = 0; i < n; i++) {
        flags[i] = rnd(5) ? (uint8_t) rnd(8) : LLM_CUDA_ROW_IDLE;
        n_pairs += with_flags && flags[i] == LLM_CUDA_ROW_IDLE ? 0 : per;
    }

    float *d_bias = device_copy(bias, n_experts * 4);
    uint8_t *d_flags = device_copy(flags, n);
    a.logits = device_copy(logits, n * a.ld_logits * 4);
    a.bias = with_bias ? d_bias : NULL;
    a.flags = with_flags ? d_flags : NULL;
    a.n_active = device_poisoned(4);
    a.expert = device_poisoned(all * 4);
    a.first = device_poisoned((all + 1) * 4);
    a.token = device_poisoned(n * per * 4);
    a.pair_of = device_poisoned(n * per * 4);
    a.weight = device_poisoned(n * per * 4);
    a.scratch = device_poisoned(llm_cuda_route_words(&a.router, n) * 4);
    CUDA(llm_cuda_route(&a, queue));

    uint32_t *n_active = fetch(a.n_active, 4);
    struct lists l = {
        .n_active = *n_active,
        .expert = fetch(a.expert, all * 4),
        .first = fetch(a.first, (all + 1) * 4),
        .token = fetch(a.token, n * per * 4),
        .pair_of = fetch(a.pair_of, n * per * 4),
        .weight = fetch(a.weight, n * per * 4),
    };
    right = l.n_active <= all && lists_ok(&l, n_pairs);
    for (uint32_t i = 0; right && i < n; i++) {
        bool idle = with_flags && flags[i] == LLM_CUDA_ROW_IDLE;

        right = read_row(&l, i, per, idle, experts, weights);
        if (idle || !right) {
            continue;
        }
        llm_cpu_route(&r, logits + i * a.ld_logits, with_bias ? bias : NULL, scratch, want,
                      want_weights);
        for (uint32_t k = 0; k < n_shared; k++) {
            want[n_used + k] = n_experts + k;
            want_weights[n_used + k] = 1;
        }
        right = memcmp(experts, want, per * 4) == 0;
        for (uint32_t k = 0; k < per; k++) {
            double d = fabs(weights[k] - want_weights[k]) / fmax(1e-3, fabs(want_weights[k]));

            right &= isnan(weights[k]) == isnan(want_weights[k]);
            worst = d > worst ? d : worst;
        }
    }
    if (!ok(right && worst < 2e-5,
            "gate %d, %s: %u rows, %u of %u experts in %u of %u groups, %u shared%s", (int) gate,
            r.sigmoid ? "sigmoid" : "softmax", n, n_used, n_experts, r.n_groups_used, n_groups,
            n_shared, ties ? ", ties" : "")) {
        diag("lists are %s, weights differ by %g", right ? "right" : "wrong", worst);
    }
    const void *of_device[] = {d_bias,  d_flags,   a.logits, a.n_active, a.expert, a.first,
                               a.token, a.pair_of, a.weight, a.scratch};
    for (size_t i = 0; i < sizeof(of_device) / sizeof(of_device[0]); i++) {
        CUDA(cudaFree((void *) of_device[i]));
    }
    void *of_host[] = {logits,   bias,    scratch, flags,     experts,  want,    weights,
                       n_active, l.expert, l.first, l.token, l.pair_of, l.weight, want_weights};
    for (size_t i = 0; i < sizeof(of_host) / sizeof(of_host[0]); i++) {
        free(of_host[i]);
    }
}

int main(int argc, char **argv)
{
    uint32_t count = argc > 1 ? (uint32_t) strtoul(argv[1], NULL, 10) : 60;

    test(LLM_CUDA_GATE_NOAUX, 64, 8, 32, 8, 1, false);
    test(LLM_CUDA_GATE_GREEDY, 1, 1, 64, 6, 2, false);
    test(LLM_CUDA_GATE_NOAUX, 700, 8, 32, 8, 1, false);
    test(LLM_CUDA_GATE_NOAUX, 3, 4, 1024, 40, 0, false);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t n_groups = 1 + rnd(8), group = 2 + rnd(rnd(3) ? 12 : 60);

        test((enum llm_cuda_gate) (i % 3), 1 + rnd(i % 4 ? 64 : 600), n_groups, group,
             1 + rnd(rnd(4) ? (n_groups * group < 8 ? n_groups * group : 8) : n_groups * group),
             rnd(3), i % 2);
    }
    return done_testing();
}
