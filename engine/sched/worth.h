/* Whether pages of a prompt are worth loading, and from which one on. Pure: no clock, no state.
 *
 * Two race from a prompt's first missing page on. The front computes steps of so many rows, and
 * sees what has arrived only between them, so a page is of use if it is there when the step begins
 * that would compute it. Loading skips the pages that the front will have begun before the first
 * one can be there, and is faster than the front from then on, or it is not worth it at all: every
 * page that comes too late has cost the computing threads time for nothing. */

#ifndef LLM_SCHED_WORTH_H
#define LLM_SCHED_WORTH_H

#include <stdbool.h>
#include <stdint.h>

struct llm_front {
    uint32_t rows;  /* of a step, >= 1 */
    double step_ns; /* that it takes */
};

struct llm_fetch {
    double first_ns; /* until the first page is there */
    double page_ns;  /* from one to the next */
};

/* Whether pages come faster than they are computed: clearly so, or still so where they did (`was`:
 * the last answer), lest it change with every measurement. */
bool llm_worth_loading(const struct llm_front *f, const struct llm_fetch *l, bool was);

/* How many pages, of n from the front on, the front will have begun when the first page can be
 * there; n: all. */
uint32_t llm_worth_skip(const struct llm_front *f, const struct llm_fetch *l, uint32_t n);

/* How many pages, of n, are there after ns. */
uint32_t llm_worth_count(const struct llm_fetch *l, uint32_t n, double ns);

#endif
