/* Prefixes that are computed once: found in the cache, read together, forked; and those that must
 * not be found. */

#include "t/unit/sched_jobs.h"

#define PAGE LLM_PAGE_TOKENS

/* A job whose prompt begins like another's. */
static struct job *like(const struct job *j, uint32_t n_common, uint32_t n_prompt,
                        uint32_t max_tokens)
{
    struct job *k = new_job(1, n_prompt, max_tokens);

    memcpy(k->prompts[0], j->prompts[0], n_common * sizeof(*k->prompts[0]));
    return k;
}

static void test_found(void)
{
    struct job *first = new_job(1, 200, 10), *again, *whole, *same;
    uint64_t before;

    open_sched(64, 64, 8);
    share(first, 1, LLM_SCOPE_TENANT);
    run_job(first);
    is_int(first->request.cached_tokens, 0, "nothing is found the first time");

    again = like(first, 200, 200, 10);
    share(again, 1, LLM_SCOPE_TENANT);
    before = fake.rows_read;
    run_job(again);
    ok(as_expected(first) && as_expected(again), "the same prompt twice");
    is_int(again->request.cached_tokens, 3 * PAGE, "its full pages are found");
    is_int(fake.rows_read - before, 200 - 3 * PAGE, "and only the rest is computed");

    whole = like(first, 2 * PAGE, 2 * PAGE, 10);
    share(whole, 1, LLM_SCOPE_TENANT);
    before = fake.rows_read;
    run_job(whole);
    ok(as_expected(whole), "a prompt that is cached as a whole");
    is_int(whole->request.cached_tokens, 2 * PAGE - 1, "all but its last token is found");
    ok(fake.rows_read == before && fake.rows_again == 1, "which runs again and writes nothing");

    same = like(first, 3 * PAGE, 300, 10);
    share(same, 1, LLM_SCOPE_TENANT);
    run_job(same);
    is_int(same->request.cached_tokens, 3 * PAGE, "a prompt that goes on otherwise");
    is_idle("after hits");
    close_sched();
    free_job(first);
    free_job(again);
    free_job(whole);
    free_job(same);
}

/* A limit of pages is one of what stays, too, and its requests find no more than that. */
static void test_limit(void)
{
    struct job *first = new_job(1, 400, 10), *again, *small = new_job(1, 100, 10);

    open_sched(64, 64, 8);
    share(first, 1, LLM_SCOPE_TENANT);
    first->request.max_pages = 7;
    run_job(first);

    again = like(first, 400, 400, 10);
    share(again, 1, LLM_SCOPE_TENANT);
    again->request.max_pages = 8;
    run_job(again);
    ok(as_expected(again), "a tenant with a limit of pages");
    is_int(again->request.cached_tokens, 6 * PAGE, "finds what is within it");
    free_job(again);

    share(small, 1, LLM_SCOPE_TENANT);
    small->request.max_pages = 2;
    run_job(small);
    again = like(first, 400, 400, 10);
    share(again, 1, LLM_SCOPE_TENANT);
    run_job(again);
    is_int(again->request.cached_tokens, PAGE, "a request with less leaves the others less");
    is_idle("after a limit");
    close_sched();
    free_job(first);
    free_job(again);
    free_job(small);
}

static void test_scopes(void)
{
    static const struct {
        uint8_t tenant;
        enum llm_scope scope;
        bool found;
        const char *what;
    } rows[] = {
        {1, LLM_SCOPE_TENANT, false, "a tenant's first"},
        {2, LLM_SCOPE_TENANT, false, "another tenant"},
        {2, LLM_SCOPE_OFF, false, "who wants nothing shared"},
        {2, LLM_SCOPE_TENANT, true, "the other tenant again"},
        {3, LLM_SCOPE_PUBLIC, false, "the public's first"},
        {4, LLM_SCOPE_PUBLIC, true, "somebody else in public"},
        {4, LLM_SCOPE_TENANT, false, "the same on his own"},
        {5, LLM_SCOPE_OFF, false, "nothing shared once more"},
        {5, LLM_SCOPE_OFF, false, "not even with himself"},
    };
    struct job *pattern = new_job(1, 150, 5);

    open_sched(64, 64, 8);
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        struct job *j = like(pattern, 150, 150, 5);

        share(j, rows[i].tenant, rows[i].scope);
        run_job(j);
        is_int(j->request.cached_tokens, rows[i].found ? 2 * PAGE : 0, "%s: %s", rows[i].what,
               rows[i].found ? "found" : "not found");
        free_job(j);
    }
    is_idle("after scopes");
    close_sched();
    free_job(pattern);
}

/* What was sampled can be found, too: the next turn of a chat. */
static void chat(const char *what, bool two_forms, uint32_t n_cached)
{
    struct job *first = new_job(1, 20, 200), *next;

    open_with(64, two_forms, (struct llm_sched_options){
        .max_batch_tokens = 64, .max_seqs = 8, .deterministic = two_forms});
    fake.healed = true; /* any token may be sampled and asked again */
    first->request.n_stop_ids = 0;
    share(first, 1, LLM_SCOPE_TENANT);
    run_job(first);
    next = new_job(1, 300, 50);
    memcpy(next->prompts[0], first->prompts[0], 20 * sizeof(uint32_t));
    memcpy(next->prompts[0] + 20, first->out[0], 200 * sizeof(uint32_t));
    share(next, 1, LLM_SCOPE_TENANT);
    run_job(next);
    ok(as_expected(first) && as_expected(next), "two turns of a chat, %s", what);
    is_int(next->request.cached_tokens, n_cached, "%u tokens of the first are found", n_cached);
    is_idle("after a chat");
    close_sched();
    free_job(first);
    free_job(next);
}

/* What a step in flight is computing may come to nothing. */
static void test_chat_in_flight(void)
{
    struct job *j = new_job(1, 20, 200);
    const struct llm_sequence *q = &j->sequences[0];

    open_sched(64, 64, 8);
    j->request.n_stop_ids = 0;
    share(j, 1, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &j->request);
    llm_sched_begin(sched, &err);
    while (20 + q->sampled < PAGE) {
        llm_sched_finish(sched, &err);
        llm_sched_begin(sched, &err);
    }
    ok(q->position > PAGE && q->in_flight == 2, "the last row of a page of tokens is in flight");
    llm_sched_cancel(sched, &j->request);
    is_int(llm_cache_counts(llm_sched_cache(sched)).bytes[0], 0, "it is not to be found yet");
    llm_sched_finish(sched, &err);
    llm_sched_finish(sched, &err);
    is_idle("after that");
    close_sched();
    free_job(j);
}

/* Several at once with the same prefix; `disturb` spoils it for the one that computes it. */
#define N_TOGETHER 6
#define COMMON (15 * PAGE)

static void begin_together(struct job **j, uint32_t n_pages)
{
    open_sched(n_pages, 100, 8);
    for (int i = 0; i < N_TOGETHER; i++) {
        j[i] = i == 0 ? new_job(1, COMMON + 50, 40) : like(j[0], COMMON, COMMON + 50, 40);
        j[i]->request.n_stop_ids = 0;
        share(j[i], 1, LLM_SCOPE_TENANT);
        llm_sched_submit(sched, &j[i]->request);
    }
}

static void end_together(struct job **j)
{
    is_idle("after that");
    close_sched();
    for (int i = 0; i < N_TOGETHER; i++) {
        free_job(j[i]);
    }
}

static void test_together(void)
{
    struct job *j[N_TOGETHER];

    begin_together(j, 200);
    run();
    for (int i = 0; i < N_TOGETHER; i++) {
        ok(as_expected(j[i]), "request %d of those with a prefix in common", i);
    }
    is_int(fake.rows_read, COMMON + N_TOGETHER * 50, "which is computed once");
    ok(j[0]->request.cached_tokens == 0 && j[1]->request.cached_tokens == COMMON,
       "and found by all but the first");
    end_together(j);
}

/* There is room for all of them in one step, and for one that has nothing to do with them. */
static void test_same_step(void)
{
    struct job *j[4];
    bool right = true;

    open_sched(64, 1024, 8);
    for (int i = 0; i < 4; i++) {
        j[i] = new_job(1, 2 * PAGE + 20, 5);
        if (i < 3) {
            memcpy(j[i]->prompts[0], j[0]->prompts[0], 2 * PAGE * sizeof(uint32_t));
        }
        share(j[i], 1, LLM_SCOPE_TENANT);
        llm_sched_submit(sched, &j[i]->request);
    }
    turn();
    is_int(fake.rows_read, 2 * (2 * PAGE + 20),
           "what one step computes is not read in the same step; others are not held up");
    run();
    for (int i = 0; i < 4; i++) {
        right = as_expected(j[i]) && right;
        free_job(j[i]);
    }
    ok(right, "but in the next");
    is_int(fake.rows_read, 2 * 2 * PAGE + 4 * 20, "and computed once");
    is_idle("after that");
    close_sched();
}

static void test_writer_cancelled(void)
{
    for (int stage = 0; stage < 10; stage++) {
        struct job *j[N_TOGETHER];
        bool right = true;

        begin_together(j, 200);
        for (int i = 0; i < stage; i++) {
            turn();
        }
        llm_sched_cancel(sched, &j[0]->request);
        run();
        for (int i = 1; i < N_TOGETHER; i++) {
            right = as_expected(j[i]) && right;
        }
        ok(right && j[0]->retired, "the one that computes it is cancelled after %d turns", stage);
        ok(fake.rows_read <= COMMON + PAGE + N_TOGETHER * 50, "another takes over where it was");
        end_together(j);
    }
}

static void test_writer_paused(void)
{
    struct job *j[N_TOGETHER];
    uint32_t position;
    bool right = true;

    begin_together(j, 200);
    for (int i = 0; i < 4; i++) {
        turn();
    }
    llm_sched_pause(sched, &j[0]->request, true);
    position = j[0]->sequences[0].position;
    run();
    for (int i = 1; i < N_TOGETHER; i++) {
        right = as_expected(j[i]) && right;
    }
    ok(right, "the one that computes it stands still: another goes on");
    ok(fake.rows_read <= COMMON + PAGE + N_TOGETHER * 50, "and computes at most a page again");
    ok(j[0]->sequences[0].position == position && !j[0]->retired, "while the first one waits");
    llm_sched_pause(sched, &j[0]->request, false);
    run();
    ok(as_expected(j[0]), "and goes on behind what is there now");
    end_together(j);
}

/* Each is to compute a page that the other needs, and in one step the later one comes up to the
 * page that the first one has not begun. */
static void test_writers_of_each_other(void)
{
    struct job *a = new_job(1, 3 * PAGE, 5), *b = like(a, 3 * PAGE, 3 * PAGE, 5);

    open_sched(64, 48, 8);
    share(a, 1, LLM_SCOPE_TENANT);
    share(b, 1, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &a->request);
    turn();
    turn();
    is_int(a->sequences[0].position, 96, "one stands still in the second of three pages");
    llm_sched_pause(sched, &a->request, true);
    llm_sched_submit(sched, &b->request);
    turn();
    is_int(b->sequences[0].position, 112, "another takes over, but does not come to the third");
    llm_sched_pause(sched, &a->request, false);
    run();
    ok(as_expected(a) && as_expected(b), "then they share the work, and wait for each other");
    is_idle("after that");
    close_sched();
    free_job(a);
    free_job(b);
}

/* Turns until it has its first token; 1000: never. */
static int turns_to_first(const struct job *j)
{
    int n = 0;

    while (j->n_out[0] == 0 && ++n < 1000) {
        turn();
    }
    return n;
}

/* What one waits for is not behind what the other's tenant wants done first. */
static void test_no_inversion(void)
{
    struct job *greedy[6], *light;
    int n;

    open_sched(400, 128, 16);
    for (int i = 0; i < 6; i++) { /* the last one's prompt is read last */
        greedy[i] = new_job(1, 2000, 5);
        share(greedy[i], 1, i < 5 ? LLM_SCOPE_TENANT : LLM_SCOPE_PUBLIC);
        llm_sched_submit(sched, &greedy[i]->request);
    }
    for (int i = 0; i < 4; i++) {
        turn();
    }
    light = like(greedy[5], 1000, 1020, 5);
    share(light, 2, LLM_SCOPE_PUBLIC);
    llm_sched_submit(sched, &light->request);
    n = turns_to_first(light);
    ok(n <= 2 * 1020 / 128 + 4, "a prefix that a greedy tenant is to compute: read in %d steps", n);
    ok(n >= 1020 / 128 + 6, "in his place, but on the account of who waits for it");
    is_int(light->request.cached_tokens, 1000 / PAGE * PAGE, "which counts as found");
    run();
    ok(as_expected(light), "and right");
    for (int i = 0; i < 6; i++) {
        ok(as_expected(greedy[i]), "so is the greedy one's %d", i);
        free_job(greedy[i]);
    }
    is_idle("after that");
    close_sched();
    free_job(light);
}

/* Who waits for a page pays for it, not for the prompt of the other one. */
static void test_pays_for_own(void)
{
    struct job *writer = new_job(1, 60 * PAGE, 5), *follower;

    open_sched(256, 1024, 8);
    fake.row_ns = 1000;
    share(writer, 1, LLM_SCOPE_PUBLIC);
    llm_sched_submit(sched, &writer->request);
    turn();
    follower = like(writer, 17 * PAGE, 17 * PAGE + 20, 5);
    share(follower, 2, LLM_SCOPE_PUBLIC);
    llm_sched_submit(sched, &follower->request);
    follower->request.tenant->counter -= 1e6; /* it is his turn */
    turn();
    is_int(writer->sequences[0].position, 17 * PAGE,
           "a turn of who waits for a page ends with that page");
    run();
    ok(as_expected(writer) && as_expected(follower), "both are answered");
    is_idle("after that");
    close_sched();
    free_job(writer);
    free_job(follower);
}

/* Who came first pays for a prefix, until he goes: then one of those who use it on. */
static void test_who_pays(void)
{
    struct job *first, *on[2], *again;

    open_sched(64, 256, 8);
    first = new_job(1, 30 * PAGE + 10, 5);
    first->request.n_stop_ids = 0;
    share(first, 1, LLM_SCOPE_PUBLIC);
    llm_sched_submit(sched, &first->request);
    turn();
    for (int i = 0; i < 2; i++) {
        on[i] = like(first, 30 * PAGE, 30 * PAGE + 10, 100);
        on[i]->request.n_stop_ids = 0;
        share(on[i], (uint8_t) (2 + i), LLM_SCOPE_PUBLIC);
        llm_sched_submit(sched, &on[i]->request);
    }
    turn();
    ok(first->request.tenant->pages == 31 && on[0]->request.tenant->pages == 1 &&
       on[1]->request.tenant->pages == 1, "who came first pays for a prefix");
    while (!first->retired) {
        turn();
    }
    again = new_job(1, 10, 100);
    share(again, 1, LLM_SCOPE_PUBLIC);
    llm_sched_submit(sched, &again->request);
    turn();
    is_int(again->request.tenant->pages, 1, "but not when he is gone");
    ok(on[0]->request.tenant->pages + on[1]->request.tenant->pages == 32,
       "somebody who uses it on does");
    run();
    ok(as_expected(first) && as_expected(on[0]) && as_expected(on[1]), "all are answered");
    is_idle("after that");
    close_sched();
    free_job(first);
    free_job(on[0]);
    free_job(on[1]);
    free_job(again);
}

static void test_choices(uint32_t n_prompt, enum llm_scope scope)
{
    struct job *j = make_job(4, true, n_prompt, 100), *other = new_job(1, 100, 100);
    bool partial = n_prompt % PAGE != 0;

    open_sched(64, 64, 8);
    j->request.n_stop_ids = 0;
    share(j, 1, scope);
    share(other, 1, scope);
    llm_sched_submit(sched, &j->request);
    llm_sched_submit(sched, &other->request);
    run();
    ok(as_expected(j) && as_expected(other), "four choices of a prompt of %u, scope %d", n_prompt,
       scope);
    is_int(fake.rows_read, n_prompt + 100, "it is read once");
    is_int(fake.rows_again, 3, "and its last token for each of the others");
    is_int(fake.page_copies, partial ? 3 : 0, "who get their own last page, if it is not full");
    is_int(j->request.cached_tokens, 0, "which is no hit");
    is_idle("after choices");
    close_sched();
    free_job(j);
    free_job(other);
}

static void test_no_copy(void)
{
    struct job *j = make_job(2, true, 100, 20);

    open_sched(64, 64, 8);
    fake.fail_copies = true;
    share(j, 1, LLM_SCOPE_TENANT);
    run_job(j);
    ok(j->retired == 1 && j->request.outcome == LLM_OUTCOME_FAILED,
       "a page that cannot be copied is no fault of the request");
    run();
    is_idle("after that");
    close_sched();
    free_job(j);
}

/* Nobody waits for choices that wait for their first. */
static void test_choices_passed(void)
{
    struct job *choices = make_job(4, true, 4000, 3), *other = new_job(1, 10, 3);

    open_sched(128, 64, 8);
    choices->request.n_stop_ids = 0;
    share(choices, 1, LLM_SCOPE_TENANT);
    share(other, 1, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &choices->request);
    llm_sched_submit(sched, &other->request);
    turn();
    ok(other->started, "choices that wait for their first are passed over");
    run();
    ok(as_expected(choices) && as_expected(other), "all are answered");
    is_int(fake.rows_again, 3, "and the choices' prompt is read once");
    is_idle("after that");
    close_sched();
    free_job(choices);
    free_job(other);
}

/* The first of several choices goes before the others have started. */
static void test_first_choice_ends(void)
{
    for (int stage = 0; stage < 8; stage++) {
        struct job *j = make_job(3, true, 200, 20);

        open_sched(64, 32, 8);
        j->request.n_stop_ids = 0;
        share(j, 1, LLM_SCOPE_TENANT);
        llm_sched_submit(sched, &j->request);
        for (int i = 0; i < stage; i++) {
            turn();
        }
        llm_sched_end(sched, &j->sequences[0]);
        run();
        ok(j->retired && j->n_out[1] == 20 && j->n_out[2] == 20,
           "the first of three choices ends after %d turns", stage);
        is_idle("after that");
        close_sched();
        free_job(j);
    }
}

static void test_non_finite(void)
{
    struct job *bad = new_job(1, 200, 10), *waits, *healed;

    open_sched(64, 64, 8);
    bad->prompts[0][10] = FAKE_POISON;
    share(bad, 1, LLM_SCOPE_TENANT);
    waits = like(bad, 150, 160, 10);
    share(waits, 1, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &bad->request);
    llm_sched_submit(sched, &waits->request);
    run();
    ok(bad->request.outcome == LLM_OUTCOME_NON_FINITE &&
       waits->request.outcome == LLM_OUTCOME_NON_FINITE, "logits that are not finite");

    fake.healed = true;
    healed = like(bad, 200, 200, 10);
    share(healed, 1, LLM_SCOPE_TENANT);
    run_job(healed);
    is_int(healed->request.cached_tokens, 0, "the pages that led to them are not found again");
    ok(as_expected(healed), "but computed");
    is_idle("after that");
    close_sched();
    free_job(bad);
    free_job(waits);
    free_job(healed);
}

/* What a sequence has computed before it had to give way is still its own. */
static void test_non_finite_again(void)
{
    struct job *bad, *other, *light, *healed;

    open_sched(64, 64, 2);
    other = new_job(1, 20, 200);
    bad = new_job(1, 400, 10);
    bad->prompts[0][10] = FAKE_POISON;
    light = new_job(1, 20, 5);
    share(other, 1, LLM_SCOPE_TENANT);
    share(bad, 1, LLM_SCOPE_TENANT);
    share(light, 2, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &other->request);
    llm_sched_submit(sched, &bad->request);
    turn();
    turn();
    turn();
    run_job(light);
    ok(as_expected(light) && bad->sequences[0].state != LLM_SEQUENCE_RUNNING && !bad->retired,
       "one gives way while its prompt is read");
    run();
    ok(bad->request.outcome == LLM_OUTCOME_NON_FINITE, "comes back, and its logits are not finite");

    fake.healed = true;
    healed = like(bad, 400, 400, 10);
    share(healed, 1, LLM_SCOPE_TENANT);
    run_job(healed);
    is_int(healed->request.cached_tokens, 0, "nothing of it is found again");
    close_sched();
    free_job(bad);
    free_job(other);
    free_job(light);
    free_job(healed);
}

/* Two that wait for a page that is spoilt: only one of them computes it anew. */
static void test_non_finite_together(void)
{
    struct job *bad = new_job(1, 200, 10), *waits[2];

    open_sched(64, 256, 8);
    bad->prompts[0][10] = FAKE_POISON;
    share(bad, 1, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &bad->request);
    for (int i = 0; i < 2; i++) {
        waits[i] = like(bad, 192, 200, 10);
        share(waits[i], 1, LLM_SCOPE_TENANT);
        llm_sched_submit(sched, &waits[i]->request);
    }
    turn();
    fake.healed = true; /* for who begins from now on */
    run();
    ok(bad->request.outcome == LLM_OUTCOME_NON_FINITE && as_expected(waits[0]) &&
       as_expected(waits[1]), "who was to read what is spoilt begins again");
    is_int(fake.rows_read, 200 + 192 + 2 * 8, "and they read it together");
    is_idle("after that");
    close_sched();
    free_job(bad);
    free_job(waits[0]);
    free_job(waits[1]);
}

/* Pages that nobody looked at: what led to them was cancelled before a token was sampled. */
static void test_non_finite_found(void)
{
    for (int stage = 3; stage <= 7; stage += 4) { /* steps; the last one is in flight */
        struct job *bad = new_job(1, 400, 10), *next;

        open_sched(64, 64, 8);
        bad->prompts[0][10] = FAKE_POISON;
        share(bad, 1, LLM_SCOPE_TENANT);
        llm_sched_submit(sched, &bad->request);
        for (int i = 1; i < stage; i++) {
            turn();
        }
        llm_sched_begin(sched, &err);
        llm_sched_cancel(sched, &bad->request);
        llm_sched_finish(sched, &err);
        ok(bad->request.outcome == LLM_OUTCOME_CANCELLED, "cancelled in step %d", stage);

        for (int i = 0; stage < 7 && i < 2; i++) {
            next = like(bad, 400, 400, 10);
            share(next, 1, LLM_SCOPE_TENANT);
            run_job(next);
            ok(next->request.outcome == LLM_OUTCOME_NON_FINITE &&
               next->request.cached_tokens == (i == 0 ? 3 * PAGE : 0),
               "what is found is forgotten when it turns out not finite");
            free_job(next);
        }
        fake.healed = true;
        next = like(bad, 400, 400, 10);
        share(next, 1, LLM_SCOPE_TENANT);
        run_job(next);
        ok(as_expected(next) && next->request.cached_tokens == 0, "nothing of it is found again");
        is_idle("after that");
        close_sched();
        free_job(bad);
        free_job(next);
    }
}

/* The first pages have gone from the index, and are being computed anew, when those behind them
 * turn out spoilt: these are not found again, and who was to read them begins again. */
static void test_non_finite_behind(void)
{
    struct job *bad = new_job(1, 400, 100), *waits[2];
    struct llm_cache *cache;
    struct llm_cache_tenant *t;
    uint64_t before;

    open_sched(64, 64, 8);
    cache = (struct llm_cache *) llm_sched_cache(sched);
    share(bad, 1, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &bad->request);
    while (bad->n_out[0] < 2) {
        turn();
    }
    t = llm_cache_join(cache, bad->request.owner_digest, 1);
    for (uint32_t i = 0; i < 2; i++) {
        llm_cache_forget(cache, t, &bad->digests[0][i], bad->prompts[0] + i * PAGE);
    }
    llm_cache_leave(cache, t);
    for (int i = 0; i < 2; i++) {
        waits[i] = like(bad, 384, 390, 10);
        share(waits[i], 1, LLM_SCOPE_TENANT);
        llm_sched_submit(sched, &waits[i]->request);
    }
    while (waits[0]->sequences[0].position == 0) {
        turn();
    }
    ok(waits[0]->sequences[0].position < 2 * PAGE, "what is missing is being computed");

    backend->seqs[bad->sequences[0].slot].poisoned = true;
    while (!bad->retired) {
        turn();
    }
    before = fake.rows_read;
    run();
    ok(as_expected(waits[0]) && as_expected(waits[1]), "who was to read what is spoilt is right");
    is_int(fake.rows_read - before, 384 + 2 * 6, "as he begins again, together with the other");
    is_idle("after that");
    close_sched();
    free_job(bad);
    free_job(waits[0]);
    free_job(waits[1]);
}

/* A prefix is found, but the rest has no room yet. */
static void test_found_late(void)
{
    struct job *first, *big, *late;

    open_sched(10, 512, 8);
    first = new_job(1, 4 * PAGE, 1);
    share(first, 1, LLM_SCOPE_TENANT);
    run_job(first);
    big = new_job(1, 5 * PAGE, 30);
    big->request.n_stop_ids = 0;
    llm_sched_submit(sched, &big->request);
    turn();
    late = like(first, 4 * PAGE, 6 * PAGE + 10, 5);
    share(late, 1, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &late->request);
    turn();
    ok(!late->started, "one that finds its prefix waits for pages");
    run();
    ok(as_expected(late) && as_expected(big), "and gets them");
    is_int(late->request.cached_tokens, 4 * PAGE, "the prefix counts when it starts");
    is_idle("after that");
    close_sched();
    free_job(first);
    free_job(big);
    free_job(late);
}

static void test_host_tier(void)
{
    struct job *j[3], *again;
    uint64_t before;
    double counter;

    open_with(20, false, (struct llm_sched_options){
        .max_batch_tokens = 64, .max_seqs = 8,
        .host_bytes = 40 * PAGE * sizeof(struct fake_row)});
    for (int i = 0; i < 3; i++) {
        j[i] = new_job(1, 15 * PAGE + 10, 5);
        share(j[i], 1, LLM_SCOPE_TENANT);
        run_job(j[i]);
    }
    ok(fake.page_outs > 0, "what the pool has no room for goes to the host");
    again = like(j[0], 15 * PAGE + 10, 15 * PAGE + 10, 5);
    share(again, 1, LLM_SCOPE_TENANT);
    before = fake.rows_read;
    llm_sched_submit(sched, &again->request);
    counter = again->request.tenant->counter;
    turn();
    ok(again->request.tenant->counter - counter >= 15.0 * PAGE * sizeof(struct fake_row) / 2,
       "whose copies are charged");
    run();
    ok(as_expected(again) && fake.page_ins > 0, "and comes back");
    is_int(again->request.cached_tokens, 15 * PAGE, "as a hit");
    is_int(fake.rows_read - before, 10, "nothing of it is computed again");
    is_idle("after the host tier");
    close_sched();
    for (int i = 0; i < 3; i++) {
        free_job(j[i]);
    }
    free_job(again);
}

int main(void)
{
    test_found();
    test_scopes();
    chat("one form", false, 219 / PAGE * PAGE);
    chat("two forms, deterministic", true, 0);
    test_chat_in_flight();
    test_together();
    test_same_step();
    test_writer_cancelled();
    test_writer_paused();
    test_writers_of_each_other();
    test_no_inversion();
    test_pays_for_own();
    test_who_pays();
    test_choices(200, LLM_SCOPE_TENANT);
    test_choices(200, LLM_SCOPE_OFF);
    test_choices(3 * PAGE, LLM_SCOPE_TENANT);
    test_choices(10, LLM_SCOPE_TENANT);
    test_no_copy();
    test_choices_passed();
    test_first_choice_ends();
    test_non_finite();
    test_non_finite_again();
    test_non_finite_together();
    test_non_finite_found();
    test_non_finite_behind();
    test_found_late();
    test_host_tier();
    test_limit();
    return done_testing();
}
