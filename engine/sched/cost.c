#include "engine/sched/cost.h"

#include <math.h>
#include <string.h>

#define GUESS_NS_PER_ROW 1e5

/* What is left of a step's weight when the next one is learnt. */
#define FORGETTING 0.98

/* A margin, as far as it is above 1, with each step that is in time, and with one that is late, at
 * least: in the long run one step in 220 is late (0.999^220 = 1 / 1.25), whatever the odds. */
#define LATE_KEPT 0.999
#define LATE_GROWS 1.25

/* Rounds of improving one term after the other; each step goes on where the last one stopped. */
#define ROUNDS 16

struct llm_work llm_work_of(uint32_t position, uint32_t n_rows)
{
    uint64_t n = n_rows;

    /* row i attends to the position + i rows before it and to itself */
    return (struct llm_work){.rows = n, .pairs = n * position + n * (n + 1) / 2};
}

struct llm_work llm_work_sum(struct llm_work a, struct llm_work b)
{
    return (struct llm_work){.rows = a.rows + b.rows, .pairs = a.pairs + b.pairs};
}

void llm_cost_init(struct llm_cost *c)
{
    *c = (struct llm_cost){.ns[LLM_COST_ROW] = GUESS_NS_PER_ROW};
}

bool llm_cost_known(const struct llm_cost *c)
{
    return c->xx[LLM_COST_FIXED][LLM_COST_FIXED] > 0;
}

/* Coordinate descent on the normal equations with every term held at zero or above (Franc, Hlavac,
 * Navara, "Sequential coordinate-wise algorithm for the non-negative least squares problem",
 * 2005). Rows are asked before the fixed cost, so that what cannot be told apart counts as rows:
 * then a long step is made shorter, and the next one tells. */
static void solve(struct llm_cost *c)
{
    static const int order[LLM_COST_TERMS] = {LLM_COST_ROW, LLM_COST_PAIR, LLM_COST_FIXED};

    for (int round = 0; round < ROUNDS; round++) {
        for (int k = 0; k < LLM_COST_TERMS; k++) {
            int i = order[k];
            double residual = c->xy[i];

            for (int j = 0; j < LLM_COST_TERMS; j++) {
                residual -= c->xx[i][j] * c->ns[j];
            }
            c->ns[i] = fmax(0, c->ns[i] + residual / c->xx[i][i]);
        }
    }
}

void llm_cost_learn(struct llm_cost *c, struct llm_work step, uint64_t ns)
{
    const double x[LLM_COST_TERMS] = {1, (double) step.rows, (double) step.pairs};

    if (!llm_cost_known(c)) {
        memset(c->ns, 0, sizeof(c->ns));
    }
    for (int i = 0; i < LLM_COST_TERMS; i++) {
        for (int j = 0; j < LLM_COST_TERMS; j++) {
            c->xx[i][j] = FORGETTING * c->xx[i][j] + x[i] * x[j];
        }
        c->xy[i] = FORGETTING * c->xy[i] + x[i] * (double) ns;
    }
    c->most_rows = fmax(FORGETTING * c->most_rows, x[LLM_COST_ROW]);
    solve(c);
}

double llm_cost_of_part(const struct llm_cost *c, struct llm_work part)
{
    return c->ns[LLM_COST_ROW] * (double) part.rows + c->ns[LLM_COST_PAIR] * (double) part.pairs;
}

double llm_cost_of_step(const struct llm_cost *c, struct llm_work step)
{
    return c->ns[LLM_COST_FIXED] + llm_cost_of_part(c, step);
}

double llm_cost_margin(double margin, double expected, uint64_t ns)
{
    double late = (double) ns / fmax(1, expected);

    return late > margin ? fmin(2, fmax(late, 1 + LATE_GROWS * (margin - 1)))
                         : 1 + LATE_KEPT * (margin - 1);
}

uint32_t llm_cost_fit(const struct llm_cost *c, struct llm_work work, uint32_t position,
                      uint32_t max, uint64_t ns)
{
    double known = fmax(0, 2 * c->most_rows - (double) work.rows);
    uint32_t fits = 0, too_many = (uint32_t) fmin(max, known) + 1;

    while (too_many - fits > 1) {
        uint32_t n = fits + (too_many - fits) / 2;
        struct llm_work step = llm_work_sum(work, llm_work_of(position, n));

        *(llm_cost_of_step(c, step) <= (double) ns ? &fits : &too_many) = n;
    }
    return fits;
}
