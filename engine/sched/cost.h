/* What a step costs: fixed + per row + per pair of a row and a position that it attends to, learnt
 * from the steps that were run. Pure: no clock, no state but struct llm_cost. */

#ifndef LLM_SCHED_COST_H
#define LLM_SCHED_COST_H

#include <stdbool.h>
#include <stdint.h>

/* What makes a step long. */
struct llm_work {
    uint64_t rows, pairs;
};

/* Rows [position, position + n_rows) of one sequence. */
struct llm_work llm_work_of(uint32_t position, uint32_t n_rows);
struct llm_work llm_work_sum(struct llm_work a, struct llm_work b);

enum llm_cost_term { LLM_COST_FIXED, LLM_COST_ROW, LLM_COST_PAIR, LLM_COST_TERMS };

/* Least squares over the steps, older ones counting for less and less. */
struct llm_cost {
    double ns[LLM_COST_TERMS]; /* of each term, >= 0 */
    double most_rows;          /* of a step that was learnt from, less for each one since */
    double xx[LLM_COST_TERMS][LLM_COST_TERMS], xy[LLM_COST_TERMS];
};

/* Nothing learnt: a guess, for what has to be compared before the first step is done. */
void llm_cost_init(struct llm_cost *c);
bool llm_cost_known(const struct llm_cost *c);

void llm_cost_learn(struct llm_cost *c, struct llm_work step, uint64_t ns);

double llm_cost_of_step(const struct llm_cost *c, struct llm_work step);

/* Of a part of a step, without the fixed cost. */
double llm_cost_of_part(const struct llm_cost *c, struct llm_work part);

/* How many times longer than expected the worst of the late steps took, 1 … 2: what it is with one
 * step more. A step planned to take so much less than it may is most likely done in time. */
#define LLM_COST_MARGIN 1.15 /* before there was any */
double llm_cost_margin(double margin, double expected, uint64_t ns);

/* The most rows, 0 … max, from `position` that a step with `work` can take in and still be done
 * within `ns`; no more than twice the rows of what has been learnt. */
uint32_t llm_cost_fit(const struct llm_cost *c, struct llm_work work, uint32_t position,
                      uint32_t max, uint64_t ns);

#endif
