/* Whether loading is worth it: by hand, and against a race that is played out. */

#include "engine/model/plane.h"
#include "engine/sched/worth.h"
#include "t/unit/tap.h"

static void test_rates(void)
{
    const struct llm_front front = {.rows = 128, .step_ns = 2e6}; /* a page a ms */
    struct llm_fetch fetch = {.first_ns = 0, .page_ns = 1e6};
    bool was = false;
    int changes = 0;

    ok(!llm_worth_loading(&front, &fetch, false), "as fast as computing is not worth it");
    fetch.page_ns = 0.6e6;
    ok(llm_worth_loading(&front, &fetch, false), "clearly faster is");
    fetch.page_ns = 0.75e6;
    ok(!llm_worth_loading(&front, &fetch, false), "a little faster is not");
    ok(llm_worth_loading(&front, &fetch, true), "unless it was");
    fetch.page_ns = 0.9e6;
    ok(!llm_worth_loading(&front, &fetch, true), "and not when it is hardly faster");
    fetch.page_ns = 1 / 0.0;
    ok(!llm_worth_loading(&front, &fetch, true), "an unknown rate is no reason");

    for (int i = 0; i < 100; i++) { /* measurements that differ by a tenth */
        bool is;

        fetch.page_ns = i % 2 == 0 ? 0.7e6 : 0.77e6;
        is = llm_worth_loading(&front, &fetch, was);
        changes += is != was;
        was = is;
    }
    is_int(changes, 0, "noise changes nothing");
}

static void test_skip(void)
{
    struct llm_front front = {.rows = 128, .step_ns = 1e6};
    struct llm_fetch fetch = {.first_ns = 1, .page_ns = 1};

    is_int(llm_worth_skip(&front, &fetch, 100), 2, "what the next step computes is left to it");
    fetch.first_ns = 0;
    is_int(llm_worth_skip(&front, &fetch, 100), 2, "as it begins now");
    fetch.first_ns = 1e6;
    is_int(llm_worth_skip(&front, &fetch, 100), 2, "what is there when it ends is loaded");
    fetch.first_ns = 1.1e6;
    is_int(llm_worth_skip(&front, &fetch, 100), 4, "a little later, two steps' pages are left");
    fetch.first_ns = 1e9;
    is_int(llm_worth_skip(&front, &fetch, 100), 100, "no more than there are");
    front.rows = 16;
    fetch.first_ns = 1e6;
    is_int(llm_worth_skip(&front, &fetch, 100), 1, "a page that is begun is computed");
    front.step_ns = 0;
    is_int(llm_worth_skip(&front, &fetch, 100), 100, "steps that take no time");
}

static void test_count(void)
{
    const struct llm_fetch fetch = {.first_ns = 10e6, .page_ns = 1e6};

    is_int(llm_worth_count(&fetch, 100, 9.9e6), 0, "nothing before the first");
    is_int(llm_worth_count(&fetch, 100, 10e6), 1, "the first");
    is_int(llm_worth_count(&fetch, 100, 19.5e6), 10, "and the others after it");
    is_int(llm_worth_count(&fetch, 7, 1e9), 7, "no more than there are");
}

/* The race as it goes: how long until all n pages are there; with `loads`, with pages from `first`
 * on coming from elsewhere. */
static double race(const struct llm_front *f, const struct llm_fetch *l, uint32_t n, bool loads,
                   uint32_t first)
{
    double now = 0;
    uint32_t row = 0;

    while (row < n * LLM_PAGE_TOKENS) {
        uint32_t page = row / LLM_PAGE_TOKENS, left = n * LLM_PAGE_TOKENS - row, rows;

        if (loads && page >= first && now >= l->first_ns + (page - first) * l->page_ns) {
            row = (page + 1) * LLM_PAGE_TOKENS;
            continue;
        }
        rows = left < f->rows ? left : f->rows;
        for (uint32_t i = page + 1; loads && i * LLM_PAGE_TOKENS < row + rows; i++) {
            if (i >= first && now >= l->first_ns + (i - first) * l->page_ns) {
                rows = i * LLM_PAGE_TOKENS - row;
            }
        }
        now += f->step_ns * rows / f->rows;
        row += rows;
    }
    return now;
}

static void test_race(void)
{
    uint32_t wins = 0, lost = 0, wasted = 0, n_chosen = 0;

    srand(1);
    for (int i = 0; i < 20000; i++) {
        const struct llm_front f = {.rows = 16 + (uint32_t) rand() % 500,
                                    .step_ns = 1e5 * (1 + rand() % 1000)};
        const struct llm_fetch l = {.first_ns = 1e5 * (rand() % 2000),
                                    .page_ns = 1e4 * (1 + rand() % 2000)};
        uint32_t n = 1 + (uint32_t) rand() % 200, first = llm_worth_skip(&f, &l, n);

        if (!llm_worth_loading(&f, &l, false) || first == n) {
            continue;
        }
        n_chosen++;
        wins += race(&f, &l, n, true, first) < race(&f, &l, n, false, 0);
        lost += race(&f, &l, n, true, first) > race(&f, &l, n, false, 0) * 1.000001;
        for (uint32_t k = first; k < n; k++) { /* the front reaches k no sooner than this */
            wasted += l.first_ns + (k - first) * l.page_ns >
                      f.step_ns / f.rows * LLM_PAGE_TOKENS * k + f.step_ns;
        }
    }
    ok(n_chosen > 1000, "%u races out of 20,000 are run", n_chosen);
    is_int(wins, n_chosen, "all of them are won");
    is_int(lost, 0, "none is lost");
    is_int(wasted, 0, "no page comes too late");
}

int main(void)
{
    test_rates();
    test_skip();
    test_count();
    test_race();
    return done_testing();
}
