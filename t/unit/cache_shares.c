/* Claims of many tenants that come, change and go at random: whose page is next, against a look at
 * all of them. */

#include "engine/cache/shares.h"
#include "t/unit/tap.h"

#define MAX_CLAIMS 1000

static struct llm_claim claims[MAX_CLAIMS];
static struct llm_shares shares;
static uint64_t state;

static uint32_t draw(uint32_t n)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t) (state >> 33) % n;
}

static bool is_there(uint32_t i)
{
    return claims[i].priority != 0;
}

/* By what the claims say alone. */
static bool next_of(uint32_t n, uint32_t *entry)
{
    const struct llm_claim *best = NULL;
    double pages = 0, weights = 0;
    bool best_over = false;

    for (uint32_t i = 0; i < n; i++) {
        pages += is_there(i) ? claims[i].pages : 0;
        weights += is_there(i) ? claims[i].weight : 0;
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct llm_claim *c = &claims[i];
        bool over = c->pages * weights > pages * c->weight;

        if (is_there(i) && (best == NULL || over > best_over
                            || (over == best_over && c->used < best->used))) {
            best = c;
            best_over = over;
        }
    }
    *entry = best != NULL ? best->entry : 0;
    return best != NULL;
}

static void run(uint32_t n, uint32_t max_pages, uint32_t max_weight, uint32_t n_changes)
{
    const char *wrong = NULL;
    uint32_t i, n_next = 0, differ = 0;

    memset(claims, 0, sizeof(claims));
    memset(&shares, 0, sizeof(shares));
    for (i = 0; i < n_changes && differ == 0 && wrong == NULL; i++) {
        struct llm_claim *c = &claims[draw(n)];
        uint32_t want, got = 0;
        bool there = next_of(n, &want);

        differ += llm_shares_next(&shares, &got) != there || got != want;
        n_next += there;
        if (draw(3) == 0) {
            llm_shares_remove(&shares, c);
        } else {
            /* now, or an older page of the same tenant; no other's has that time */
            uint64_t age = draw(4) * draw(1000), used = (1000000 + i - age) * MAX_CLAIMS;

            llm_shares_set(&shares, c, 1 + draw(max_pages), draw(max_weight + 1),
                           used + (uint64_t) (c - claims), i + 1);
        }
        wrong = llm_shares_check(&shares);
    }
    if (wrong != NULL) {
        diag("%s", wrong);
    }
    ok(differ == 0 && wrong == NULL, "%u choices of %u changes among %u claims", n_next, i, n);
}

static uint32_t depth_of(const struct llm_claim *c)
{
    uint32_t depth = 0;

    for (; c != NULL; c = c->parent) {
        depth++;
    }
    return depth;
}

/* One after the other, as a flood of new tenants comes. */
static void test_depth(void)
{
    uint32_t deepest = 0;

    memset(claims, 0, sizeof(claims));
    memset(&shares, 0, sizeof(shares));
    for (uint32_t i = 0; i < MAX_CLAIMS; i++) {
        llm_shares_set(&shares, &claims[i], 1, 1, i + 1, i);
    }
    for (uint32_t i = 0; i < MAX_CLAIMS; i++) {
        uint32_t depth = depth_of(&claims[i]);

        deepest = depth > deepest ? depth : deepest;
    }
    ok(deepest < 40, "%d claims in order are %u deep", MAX_CLAIMS, deepest);
}

/* Products of what is as large as can be. */
static void test_large(void)
{
    uint32_t entry;

    memset(claims, 0, sizeof(claims));
    memset(&shares, 0, sizeof(shares));
    llm_shares_set(&shares, &claims[0], 1, UINT32_MAX, 1, 10);
    llm_shares_set(&shares, &claims[1], 1, UINT32_MAX, 2, 11);
    llm_shares_set(&shares, &claims[2], INT32_MAX, UINT32_MAX, 3, 12);
    ok(llm_shares_next(&shares, &entry) && entry == 12, "who has nearly all is over his share");
    ok(llm_shares_check(&shares) == NULL, "in order");
}

int main(void)
{
    run(1, 3, 1, 200);
    run(3, 5, 3, 20000);
    run(40, 3, 1, 20000);
    run(200, 1000, 7, 5000);
    run(MAX_CLAIMS, 2, 1, 3000);
    test_depth();
    test_large();
    return done_testing();
}
