/* Random requests of several tenants, with prefixes in common, choices, cancels and pauses, over
 * pools that are too small for them: every answer is what the model says, and in the end everything
 * is back where it was. The fake backend dies at the first row that its reader does not expect. */

#include "t/unit/sched_jobs.h"

#define AT_ONCE 40
#define FAMILIES 6
#define LONGEST 800
#define PAGE LLM_PAGE_TOKENS

static uint32_t families[FAMILIES][LONGEST]; /* what prompts begin with */

static void make_families(void)
{
    for (int i = 0; i < FAMILIES; i++) {
        for (int k = 0; k < LONGEST; k++) {
            families[i][k] = 10 + below(VOCAB - 10);
        }
    }
}

/* Now and then prompts have a beginning in common that nothing good can come of. */
static void spoil_families(void)
{
    uint32_t *family = families[below(FAMILIES)];

    if (below(10) != 0) {
        return;
    }
    if (below(3) == 0) {
        family[below(PAGE)] = FAKE_POISON;
    } else {
        for (int k = 0; k < PAGE; k++) {
            family[k] += family[k] == FAKE_POISON;
        }
    }
}

static struct job *random_job(void)
{
    bool one_prompt = below(4) == 0;
    struct job *j = make_job(1 + below(one_prompt ? MAX_CHOICES : 2), one_prompt,
                             1 + below(below(3) == 0 ? 700 : 200), 1 + below(120));
    struct llm_request *r = &j->request;

    spoil_families();
    for (uint32_t i = 0; i < r->n_sequences; i++) {
        uint32_t n = below(j->sequences[i].n_prompt + 1);

        if (j->prompts[i] != NULL && below(4) != 0) {
            memcpy(j->prompts[i], families[below(FAMILIES)], n * sizeof(*j->prompts[i]));
        }
    }
    if (below(50) == 0) {
        j->prompts[0][below(j->sequences[0].n_prompt)] = FAKE_POISON;
    }
    if (below(50) == 0) {
        r->sampling.top_k = FAKE_REFUSED_TOP_K;
    }
    r->min_tokens = below(4) == 0 ? below(20) : 0;
    r->sampling.n_top_logprobs = below(4) == 0 ? 5 : 0;
    r->sampling.logprobs = true;
    r->weight = 1 + below(3);
    r->max_running = below(8) == 0 ? 3 : 0;
    share(j, (uint8_t) below(5), below(6) == 0   ? LLM_SCOPE_OFF
                                 : below(2) == 0 ? LLM_SCOPE_PUBLIC
                                                 : LLM_SCOPE_TENANT);
    return j;
}

/* The next turn of a chat: what was asked and answered, and then some. */
static void remember(const struct job *j)
{
    uint32_t *family = families[below(FAMILIES)];
    uint32_t n_prompt = j->sequences[0].n_prompt, n = n_prompt + j->n_out[0];

    if (n <= LONGEST && below(20) == 0) {
        memcpy(family, j->prompts[0], n_prompt * sizeof(*family));
        memcpy(family + n_prompt, j->out[0], j->n_out[0] * sizeof(*family));
        for (; n < LONGEST; n++) {
            family[n] = 10 + below(VOCAB - 10);
        }
        for (n = 0; n < LONGEST; n++) { /* a stop id in between is as good as any, poison not */
            family[n] += family[n] == FAKE_POISON;
        }
    }
}

static bool has_poison(const struct job *j)
{
    for (uint32_t i = 0; i < j->request.n_sequences; i++) {
        for (uint32_t k = 0; k < j->sequences[i].n_prompt; k++) {
            if (j->sequences[i].prompt[k] == FAKE_POISON) {
                return true;
            }
        }
    }
    return false;
}

/* Whether a request that is over ended as it had to. */
static bool ended_well(const struct job *j)
{
    switch (j->request.outcome) {
    case LLM_OUTCOME_DONE:
        return !has_poison(j) && as_expected(j);
    case LLM_OUTCOME_CANCELLED:
        return true;
    case LLM_OUTCOME_NON_FINITE:
        return has_poison(j);
    case LLM_OUTCOME_INVALID:
        return j->request.sampling.top_k == FAKE_REFUSED_TOP_K;
    default:
        diag("outcome %d", j->request.outcome);
        return false;
    }
}

struct figures {
    uint32_t cancel_one_in;
    int wrong, cancelled, cached;
    uint64_t turns;
};

/* Something happens to request i: it comes, is cancelled, stands still or goes on. */
static void disturb(struct job **job, int *left, struct figures *f)
{
    struct job *j = *job;

    if (j == NULL && *left > 0) {
        *job = random_job();
        llm_sched_submit(sched, &(*job)->request);
        --*left;
    } else if (j != NULL && !j->retired && below(f->cancel_one_in) == 0) {
        llm_sched_cancel(sched, &j->request);
        f->cancelled++;
    } else if (j != NULL && !j->retired && below(10) == 0) {
        llm_sched_pause(sched, &j->request, !j->request.paused);
    }
}

/* Clears away those that are over; when no more come, nobody stands still. Says how many are
 * left. */
static int sweep(struct job **jobs, int left, struct figures *f)
{
    int n = 0;

    for (uint32_t i = 0; i < AT_ONCE; i++) {
        struct job *j = jobs[i];

        if (j != NULL && j->retired) {
            f->wrong += !ended_well(j);
            f->cached += j->request.cached_tokens > 0;
            if (j->request.outcome == LLM_OUTCOME_DONE) {
                remember(j);
            }
            free_job(j);
            jobs[i] = j = NULL;
        }
        if (j != NULL && left == 0 && j->request.paused) {
            llm_sched_pause(sched, &j->request, false);
        }
        n += j != NULL;
    }
    return n;
}

static void soak(const char *name, int n, uint32_t n_pages, bool two_forms,
                 struct llm_sched_options options)
{
    struct job *jobs[AT_ONCE] = {0};
    struct figures f = {.cancel_one_in = n_pages < 50 ? 400 : 130};
    int left = n;

    open_with(n_pages, two_forms, options);
    fake.fixed_ns = 100000;
    fake.row_ns = 1000;
    fake.pair_ns = 10;
    while (left > 0 || sweep(jobs, left, &f) > 0) {
        disturb(&jobs[below(AT_ONCE)], &left, &f);
        if (below(4) == 0 || left == 0) {
            turn();
            sweep(jobs, left, &f);
            if (++f.turns == (uint64_t) n * 200) {
                break;
            }
        }
    }
    is_int(f.wrong, 0, "%s: %d random requests, %d of them cancelled: every token as by hand", name,
           n, f.cancelled);
    ok(f.turns < (uint64_t) n * 200, "%s: and all of them in %llu turns", name,
       (unsigned long long) f.turns);
    ok(f.cached > n / 200 && fake.page_copies > 0 && fake.resumed > 0,
       "%s: %d found a prefix, %llu came back, %llu pages were copied", name, f.cached,
       (unsigned long long) fake.resumed, (unsigned long long) fake.page_copies);
    ok(fake.queued_prompts == 0, "%s: steps that read a prompt run alone", name);
    if (options.host_bytes > 0) {
        ok(fake.page_ins > 0, "%s: %llu pages came from the host tier", name,
           (unsigned long long) fake.page_ins);
    }
    is_idle(name);
    close_sched();
}

int main(void)
{
    int n = getenv("LLM_LONG") != NULL ? 25000 : 2500;
    const struct llm_sched_options plain = {.max_batch_tokens = 128, .max_seqs = 16};
    struct llm_sched_options host = plain, exact = plain;

    host.host_bytes = 60 * LLM_PAGE_TOKENS * sizeof(struct fake_row);
    host.max_step_ns = 200000;
    host.tenant_percent = 50;
    exact.deterministic = true;

    make_families();
    soak("a fair pool", n, 100, false, plain);
    soak("a tiny pool", n, 16, false, plain);
    soak("a tiny pool over a host tier", n, 20, false, host);
    soak("a tiny pool, two forms", n, 16, true, exact);
    return done_testing();
}
