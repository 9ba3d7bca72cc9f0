/* A purge while requests of the tenant run: they notice nothing, and nothing of theirs is found. */

#include "t/unit/sched_jobs.h"

#define PAGE LLM_PAGE_TOKENS

/* A tenant's job whose prompt begins like another's. */
static struct job *like(const struct job *j, uint32_t n_common, uint32_t n_prompt,
                        uint32_t max_tokens, uint8_t tenant)
{
    struct job *k = new_job(1, n_prompt, max_tokens);

    memcpy(k->prompts[0], j->prompts[0], n_common * sizeof(*k->prompts[0]));
    share(k, tenant, LLM_SCOPE_TENANT);
    return k;
}

static uint32_t purge(uint8_t tenant)
{
    uint8_t owner[32], digest[32];

    memset(digest, tenant, sizeof(digest));
    llm_scope_owner(LLM_SCOPE_TENANT, digest, owner);
    return llm_sched_purge(sched, owner);
}

/* One reads a prompt, others wait for its pages; one of them has not begun. */
static void test_readers(void)
{
    struct job *pattern = new_job(1, 6 * PAGE + 10, 5), *reads, *waits, *queued, *after, *other;

    open_sched(64, PAGE, 3);
    reads = like(pattern, 6 * PAGE, 6 * PAGE + 10, 5, 1);
    waits = like(pattern, 6 * PAGE, 6 * PAGE + 20, 5, 1);
    other = like(pattern, 6 * PAGE, 6 * PAGE, 5, 2);
    queued = like(pattern, 6 * PAGE, 6 * PAGE + 30, 5, 1);
    llm_sched_submit(sched, &reads->request);
    llm_sched_submit(sched, &waits->request);
    llm_sched_submit(sched, &other->request);
    for (int i = 0; i < 5; i++) {
        turn();
    }
    llm_sched_submit(sched, &queued->request);
    ok(reads->sequences[0].position >= PAGE && reads->sequences[0].position < 6 * PAGE &&
           queued->started == 0, "a prompt is half read");
    is_int(purge(1), 6, "its pages are purged, read or not");
    ok(llm_sched_check(sched) == NULL, "the books are right");
    run();
    ok(as_expected(reads) && as_expected(waits) && as_expected(queued) && as_expected(other),
       "all of them go on");
    is_int(waits->request.cached_tokens, 6 * PAGE, "who waited for pages had them");
    is_int(queued->request.cached_tokens, 0, "who had not begun found nothing");

    after = like(pattern, 6 * PAGE, 6 * PAGE + 40, 5, 1);
    run_job(after);
    is_int(after->request.cached_tokens, 6 * PAGE, "what was computed after the purge is found");
    is_int(purge(1), 6, "all of that is purged");
    is_int(purge(3), 0, "who has nothing");
    is_idle("after a purge");
    free_job(after);
    after = like(pattern, 6 * PAGE, 6 * PAGE, 5, 2);
    run_job(after);
    is_int(after->request.cached_tokens, 6 * PAGE - 1, "another tenant's pages are there");

    close_sched();
    free_job(pattern);
    free_job(reads);
    free_job(waits);
    free_job(queued);
    free_job(other);
    free_job(after);
}

/* What a sequence samples is not indexed any more, whether it runs on or has to begin again. */
static void test_sampled(bool preempted)
{
    struct job *first = new_job(1, 20, 200), *other = NULL, *next;

    open_sched(preempted ? 6 : 64, 64, 8);
    fake.healed = true;
    first->request.n_stop_ids = 0;
    share(first, 1, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &first->request);
    while (first->n_out[0] < 100) {
        turn();
    }
    is_int(purge(1), 1, "what was sampled first is purged");
    if (preempted) {
        other = new_job(1, 3 * PAGE, 20);
        share(other, 2, LLM_SCOPE_TENANT);
        other->request.weight = 8; /* so it is the first one who gives way */
        llm_sched_submit(sched, &other->request);
    }
    run();
    is_int(fake.resumed > 0, preempted, "it had %s begin again", preempted ? "to" : "not to");
    ok(as_expected(first), "and is what it would have been");
    is_int(llm_cache_tenant_counts(llm_sched_cache(sched), first->request.owner_digest)
               .bytes[LLM_TIER_MEMORY], 0, "nothing of it is indexed");

    next = new_job(1, 300, 20);
    memcpy(next->prompts[0], first->prompts[0], 20 * sizeof(uint32_t));
    memcpy(next->prompts[0] + 20, first->out[0], 200 * sizeof(uint32_t));
    share(next, 1, LLM_SCOPE_TENANT);
    run_job(next);
    ok(as_expected(next), "the next turn of the chat");
    is_int(next->request.cached_tokens, 0, "finds nothing");
    is_idle("after a purge");
    close_sched();
    free_job(first);
    free_job(next);
    if (other != NULL) {
        free_job(other);
    }
}

int main(void)
{
    test_readers();
    test_sampled(false);
    test_sampled(true);
    return done_testing();
}
