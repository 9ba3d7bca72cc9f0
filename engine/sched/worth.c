#include "engine/sched/worth.h"

#include "engine/model/plane.h"

#include <math.h>

/* How much faster loading must be to begin with it, and to stay with it. */
#define BEGIN 1.5
#define STAY 1.2

bool llm_worth_loading(const struct llm_front *f, const struct llm_fetch *l, bool was)
{
    double computed_ns = f->step_ns * LLM_PAGE_TOKENS / f->rows;

    return l->page_ns * (was ? STAY : BEGIN) <= computed_ns;
}

uint32_t llm_worth_skip(const struct llm_front *f, const struct llm_fetch *l, uint32_t n)
{
    double steps = fmax(1, ceil(l->first_ns / fmax(1, f->step_ns))); /* the first one begins now */
    double pages = ceil(steps * f->rows / LLM_PAGE_TOKENS);

    return pages < n ? (uint32_t) pages : n;
}

uint32_t llm_worth_count(const struct llm_fetch *l, uint32_t n, double ns)
{
    double pages = ns < l->first_ns ? 0 : 1 + floor((ns - l->first_ns) / fmax(1, l->page_ns));

    return pages < n ? (uint32_t) pages : n;
}
