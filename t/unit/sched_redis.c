/* Prompts whose pages are in Redis: what is asked for, what becomes of what arrives, and that a
 * request says what it would have said without it. */

#include "engine/sched/sched_internal.h"
#include "t/unit/fake_redis.h"
#include "t/unit/sched_jobs.h"

#define PAGE LLM_PAGE_TOKENS
#define ROWS (2 * PAGE) /* of a step */
#define ROW_NS 10000
#define TTL 100 /* s */

static const struct llm_sched_options usual = {
    .max_batch_tokens = ROWS,
    .max_seqs = 8,
    .load_ns = LLM_NS_PER_S,
    .redis = &fake_redis,
    .redis_ttl = TTL,
};

/* An engine that has seen nothing but what its steps cost, on the Redis that there is. */
static void open_engine(uint32_t n_pages)
{
    struct job *j = new_job(1, 4 * ROWS, 1);

    open_with(n_pages, false, usual);
    fake.row_ns = ROW_NS;
    fake.fixed_ns = 10 * ROW_NS;
    run_job(j);
    free_job(j);
}

static struct job *like(const struct job *j, uint32_t n_common, uint32_t n_prompt, uint8_t tenant,
                        enum llm_scope scope)
{
    struct job *k = new_job(1, n_prompt, 5);

    memcpy(k->prompts[0], j->prompts[0], n_common * sizeof(*k->prompts[0]));
    share(k, tenant, scope);
    return k;
}

/* Turns without anything to do: what is to be saved is saved. */
static void rest(void)
{
    for (int i = 0; i < 20; i++) {
        fake_must(!turn());
        fake_move_until(backend, backend->moves_asked);
    }
}

static void close_engine(void)
{
    close_sched();
    fake_redis_idle();
}

/* A prompt of eight pages and a bit, which one engine has computed; another begins. */
static struct job *saved_by_another(void)
{
    struct job *j = new_job(1, 8 * PAGE + 20, 5);

    fake_redis_open(PAGE * sizeof(struct fake_row));
    share(j, 1, LLM_SCOPE_TENANT);
    open_engine(64);
    run_job(j);
    rest();
    close_engine();
    open_engine(64);
    return j;
}

static uint64_t loaded(void)
{
    return llm_cache_counts(llm_sched_cache(sched)).hit_tokens[LLM_TIER_REDIS];
}

/* --- the usual way --- */

static void test_found(void)
{
    struct job *first = saved_by_another(), *again, *whole;
    uint64_t before = fake.rows_read;

    is_int(fake_redis.n_values, 8, "an engine has saved the full pages of a prompt");
    is_int(fake_redis.saves, 8, "each once");
    again = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1, LLM_SCOPE_TENANT);
    run_job(again);
    ok(as_expected(again), "another engine says the same");
    is_int(loaded(), 6 * PAGE, "what the first step does not compute is loaded");
    is_int(fake.rows_read - before, ROWS + 20, "and only the rest is computed");
    is_int(again->request.cached_tokens, 6 * PAGE, "loaded tokens are cached ones");
    is_int(llm_cache_tenant_counts(llm_sched_cache(sched), again->request.owner_digest)
               .hit_tokens[LLM_TIER_REDIS], 6 * PAGE, "and the tenant's");
    is_int(llm_sched_loads(sched).chosen, 1, "one load was chosen");
    ok(llm_sched_loads(sched).faster, "as it is faster");
    rest();
    is_int(fake_redis.saves, 10, "what has come from Redis is not offered to it");
    is_int(fake_redis.n_values, 8, "nothing new");

    whole = like(first, 8 * PAGE, 8 * PAGE, 2, LLM_SCOPE_TENANT);
    run_job(whole);
    ok(as_expected(whole), "another tenant's prompt of whole pages");
    is_int(whole->request.cached_tokens, 0, "finds nothing");
    rest();
    is_int(fake_redis.n_values, 16, "but is saved for himself");
    is_idle("after loads");
    close_engine();

    free_job(whole);
    open_engine(64);
    whole = like(first, 8 * PAGE, 8 * PAGE, 2, LLM_SCOPE_TENANT);
    run_job(whole);
    ok(as_expected(whole), "a prompt that is loaded to its last token");
    is_int(whole->request.cached_tokens, 6 * PAGE, "is read on from there");
    ok(fake.rows_again == 1, "and its last token runs again");
    is_idle("after that");
    close_engine();
    fake_redis_close();
    free_job(first);
    free_job(again);
    free_job(whole);
}

/* Long prompts are loaded a few pages at a time, as there are buffers. */
static void test_long(void)
{
    struct job *first = new_job(1, 40 * PAGE, 5), *again;

    fake_redis_open(PAGE * sizeof(struct fake_row));
    share(first, 1, LLM_SCOPE_PUBLIC);
    open_engine(128);
    run_job(first);
    rest();
    is_int(fake_redis.n_values, 40, "a long prompt is saved");
    close_engine();

    open_engine(128);
    again = like(first, 40 * PAGE, 40 * PAGE, 3, LLM_SCOPE_PUBLIC);
    run_job(again);
    ok(as_expected(again), "and loaded by another tenant, as it is public");
    ok(loaded() >= 28 * PAGE, "most of it: %llu tokens", (unsigned long long) loaded());
    ok(llm_sched_loads(sched).chosen >= 4, "by several loads");
    close_engine();
    fake_redis_close();
    free_job(first);
    free_job(again);
}

/* --- what must not be there --- */

static void test_not_saved(void)
{
    struct job *off = new_job(1, 4 * PAGE, 5), *bad = new_job(1, 4 * PAGE, 5);

    fake_redis_open(PAGE * sizeof(struct fake_row));
    open_engine(64);
    share(off, 1, LLM_SCOPE_OFF);
    off->sequences[0].digests = NULL;
    run_job(off);
    rest();
    is_int(fake_redis.n_values, 0, "nothing is saved of who wants nothing shared");

    bad->prompts[0][PAGE] = FAKE_POISON;
    share(bad, 1, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &bad->request);
    while (!bad->retired && turn()) {
        fake_move_until(backend, backend->moves_asked);
    }
    rest();
    is_int(bad->request.outcome, LLM_OUTCOME_NON_FINITE, "logits that are not finite");
    is_int(fake_redis.saves, 0, "nor what led to them");
    close_engine();
    fake_redis_close();
    free_job(off);
    free_job(bad);
}

/* Pages that were saved long ago turn out to be no good. */
static void test_spoilt(void)
{
    struct job *first = saved_by_another(), *bad;
    struct job *again = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1, LLM_SCOPE_TENANT);

    run_job(again);
    rest();
    is_int(fake_redis.n_values, 8, "pages of a prompt are saved");
    bad = like(first, 4 * PAGE, 6 * PAGE, 1, LLM_SCOPE_TENANT);
    bad->prompts[0][5 * PAGE] = FAKE_POISON;
    llm_sched_submit(sched, &bad->request);
    while (!bad->retired && turn()) {
        fake_move_until(backend, backend->moves_asked);
    }
    rest();
    is_int(bad->request.outcome, LLM_OUTCOME_NON_FINITE, "logits that are not finite");
    is_int(fake_redis.n_values, 4, "what led to them is deleted");
    close_engine();
    fake_redis_close();
    free_job(first);
    free_job(again);
    free_job(bad);
}

static void test_full(void)
{
    struct job *first = new_job(1, 4 * PAGE, 5);

    fake_redis_open(PAGE * sizeof(struct fake_row));
    open_engine(64);
    share(first, 1, LLM_SCOPE_TENANT);
    fake_redis.full = true;
    run_job(first);
    rest();
    is_int(fake_redis.saves, 0, "without a buffer nothing is saved");
    fake_redis.full = false;
    fake_redis.rates.up = false;
    rest();
    is_int(fake.page_outs, 0, "nor copied while Redis is down");
    fake_redis.rates.up = true;
    rest();
    is_int(fake_redis.saves, 4, "later all of it");
    close_engine();
    fake_redis_close();
    free_job(first);
}

/* --- the decision --- */

static void test_slow(void)
{
    struct job *first = saved_by_another(), *again = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1,
                                                         LLM_SCOPE_TENANT);
    uint64_t loads = fake_redis.loads;
    struct job *brief;

    /* a page takes 64 rows' time, and a tenth of a step's other cost: 0.69 ms */
    fake_redis.rates.bytes_per_s = fake_redis.page_bytes * 1400;
    run_job(again);
    ok(as_expected(again) && again->request.cached_tokens == 0, "a Redis that is slow");
    is_int(llm_sched_loads(sched).chosen, 0, "no load is chosen");
    is_int(llm_sched_loads(sched).declined, 1, "but declined, once");
    is_int(llm_sched_loads(sched).probes, 1, "and asked how slow it is");
    ok(fake_redis.loads == loads + 1 && fake_redis.cancels == 0, "so a page or two were asked for");

    brief = new_job(1, ROWS, 5);
    share(brief, 1, LLM_SCOPE_TENANT);
    run_job(brief);
    ok(as_expected(brief), "a prompt that one step computes");
    is_int(llm_sched_loads(sched).declined, 1, "is not declined, as nothing of it can be loaded");
    close_engine();
    fake_redis_close();
    free_job(first);
    free_job(again);
    free_job(brief);
}

/* Far away, but fast: what will have been computed by then is not asked for. */
static void test_far(void)
{
    struct job *first = saved_by_another(), *again = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1,
                                                         LLM_SCOPE_TENANT);

    fake_redis.rates.first_ns = 2 * ROWS * ROW_NS; /* not quite two steps */
    run_job(again);
    ok(as_expected(again), "a Redis that is far away");
    is_int(fake_redis.first_asked, again->prompts[0][4 * PAGE], "the front's next pages are left");
    is_int(loaded(), 4 * PAGE, "to be computed, the others are loaded");

    free_job(again);
    again = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1, LLM_SCOPE_TENANT);
    close_engine();
    open_engine(64);
    sched->options.load_ns = 3 * ROWS * ROW_NS; /* of which half is left for what goes wrong */
    run_job(again);
    ok(as_expected(again) && llm_sched_loads(sched).chosen == 0,
       "nothing is asked for that would come too late");
    close_engine();
    fake_redis_close();
    free_job(first);
    free_job(again);
}

static void test_unknown(void)
{
    struct job *first = saved_by_another(), *again;
    uint64_t loads = fake_redis.loads, pages = fake_redis.pages_asked;

    close_engine();
    open_with(64, false, usual); /* it does not even know what steps cost */
    fake.row_ns = ROW_NS;
    fake_redis.rates = (struct llm_redis_rates){.up = true};
    again = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &again->request);
    turn();
    is_int(fake_redis.loads, loads + 1, "what is not known is asked");
    is_int(fake_redis.pages_asked, pages + 2, "of two pages");
    is_int(llm_sched_loads(sched).declined, 0, "and nothing decided");
    fake_redis.rates = (struct llm_redis_rates){1, UINT64_C(1) << 40, true};
    run();
    ok(as_expected(again), "the first prompt of an engine");
    is_int(loaded(), 4 * PAGE, "what was asked for to know it, and more as soon as it is known");
    close_engine();

    open_with(64, false, usual);
    fake.row_ns = ROW_NS;
    free_job(again);
    again = new_job(1, 8 * PAGE, 5);
    share(again, 1, LLM_SCOPE_TENANT);
    fake_redis.rates = (struct llm_redis_rates){.up = true};
    run_job(again);
    ok(as_expected(again) && llm_sched_loads(sched).probes == 1, "a prompt that is not there");
    free_job(again);
    again = new_job(1, 20 * PAGE, 5);
    share(again, 1, LLM_SCOPE_TENANT);
    fake_redis.rates = (struct llm_redis_rates){1, UINT64_C(1) << 40, true};
    run_job(again);
    ok(as_expected(again) && llm_sched_loads(sched).chosen == 1, "is asked for once");
    close_engine();
    fake_redis_close();
    free_job(first);
    free_job(again);
}

static void test_refused(void)
{
    struct job *first = saved_by_another(), *again = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1,
                                                         LLM_SCOPE_TENANT);

    fake_redis.refuses = true;
    run_job(again);
    ok(as_expected(again) && loaded() == 0, "a Redis that takes no loads");
    is_int(llm_sched_loads(sched).chosen, 0, "and none counts as chosen");
    is_int(fake_redis.refused, 1, "it is asked once");
    close_engine();
    fake_redis_close();
    free_job(first);
    free_job(again);
}

/* --- races --- */

/* Pages that come when the front is there, or has passed, are of no use, but do no harm. */
static void test_late(void)
{
    struct job *first = saved_by_another(), *again = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1,
                                                         LLM_SCOPE_TENANT);

    fake_redis.silent = 100;
    llm_sched_submit(sched, &again->request);
    turn();
    turn();
    turn();
    is_int(again->sequences[0].position, 3 * ROWS, "the front goes on");
    fake_redis.silent = 0;
    turn();
    ok(loaded() == 2 * PAGE && fake_redis.hits > 2, "what it has passed is given back");
    run();
    ok(as_expected(again), "the answer is right");
    is_int(again->request.cached_tokens, 2 * PAGE, "and the rest counts");
    free_job(again);

    again = new_job(1, 8 * PAGE + 20, 5);
    share(again, 1, LLM_SCOPE_TENANT);
    fake_redis.silent = 100;
    llm_sched_submit(sched, &again->request);
    while (again->n_out[0] < 2) {
        turn();
    }
    is_int(fake_redis.cancels, 1, "nothing comes at all, so what the front has passed is given up");
    run();
    ok(as_expected(again), "and all is right");
    close_engine();
    fake_redis_close();
    free_job(first);
    free_job(again);
}

/* A page comes while its rows are being written: the writer goes on behind it. */
static void test_amid(void)
{
    struct llm_sched_options options = usual;
    struct job *first = saved_by_another(), *again, *waits;
    uint64_t before, asked;

    close_engine();
    options.max_batch_tokens = PAGE / 2 + 10;
    open_with(64, false, options);
    fake.row_ns = ROW_NS;
    again = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1, LLM_SCOPE_TENANT);
    waits = like(first, 8 * PAGE, 8 * PAGE + 30, 1, LLM_SCOPE_TENANT);
    run_job(waits); /* so that the cost of steps is known */
    free_job(waits);
    close_engine();

    open_with(64, false, options);
    fake.row_ns = ROW_NS;
    fake_redis.silent = 100;
    asked = fake_redis.pages_asked;
    waits = like(first, 8 * PAGE, 8 * PAGE + 30, 1, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &again->request);
    llm_sched_submit(sched, &waits->request);
    while (again->sequences[0].position < PAGE) {
        turn();
    }
    is_int(again->sequences[0].position % PAGE, 2 * (PAGE / 2 + 10) % PAGE, "amid a page");
    before = fake.rows_read;
    fake_redis.silent = 0;
    run();
    ok(as_expected(again) && as_expected(waits), "the writer, and one who waits, are right");
    ok(fake_redis.pages_asked - asked <= 8, "nothing is asked for by both");
    ok(loaded() >= 6 * PAGE, "%llu tokens were loaded", (unsigned long long) loaded());
    ok(fake.rows_read - before < 3 * PAGE, "the page's other rows are not computed");
    is_int(waits->request.cached_tokens, 8 * PAGE, "who waits has all of it cached");
    is_idle("after a page amid its rows");
    close_engine();
    fake_redis_close();
    free_job(first);
    free_job(again);
    free_job(waits);
}

/* Who had asked goes; somebody else waits for the same pages. */
static void test_cancel(void)
{
    struct job *first = saved_by_another(), *goes, *waits;

    goes = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1, LLM_SCOPE_TENANT);
    waits = like(first, 8 * PAGE, 8 * PAGE + 30, 1, LLM_SCOPE_TENANT);
    fake_redis.silent = 100;
    llm_sched_submit(sched, &goes->request);
    llm_sched_submit(sched, &waits->request);
    turn();
    llm_sched_cancel(sched, &goes->request);
    is_int(fake_redis.cancels, 1, "with the request its load is given up");
    fake_redis.silent = 0;
    run();
    ok(as_expected(waits) && goes->request.outcome == LLM_OUTCOME_CANCELLED,
       "another one goes on");
    ok(loaded() > 0, "and loads for himself");
    is_idle("after a cancel");
    close_engine();
    fake_redis_close();
    free_job(first);
    free_job(goes);
    free_job(waits);
}

static void test_purge(void)
{
    struct job *first = saved_by_another(), *again, *after;

    again = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1, LLM_SCOPE_TENANT);
    fake_redis.silent = 100;
    llm_sched_submit(sched, &again->request);
    turn();
    is_int(llm_sched_purge(sched, again->request.owner_digest), 8, "a purge while pages load");
    is_int(fake_redis.forgets, 1, "is told to the tier");
    fake_redis.silent = 0;
    run();
    ok(as_expected(again) && loaded() == 0, "nothing comes of the load");
    rest();
    is_int(fake_redis.n_values, 0, "and nothing that was computed before is saved");

    after = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1, LLM_SCOPE_TENANT);
    run_job(after);
    turn(); /* copies out are under way */
    ok(fake.page_outs > 0 && backend->moves_made < backend->moves_asked, "pages are being saved");
    llm_sched_purge(sched, again->request.owner_digest);
    rest();
    ok(fake_redis.n_values == 0 && fake_redis.drops > 0, "a purge comes before that");
    close_engine();
    fake_redis_close();
    free_job(first);
    free_job(again);
    free_job(after);
}

/* A purge that somebody told to Redis and to another engine. */
static void test_purged_elsewhere(void)
{
    struct job *first = new_job(1, 8 * PAGE + 20, 5), *longer, *after;

    fake_redis_open(PAGE * sizeof(struct fake_row));
    share(first, 1, LLM_SCOPE_TENANT);
    open_engine(64);
    run_job(first);
    rest();
    is_int(fake_redis.n_values, 8, "an engine knows an epoch, under which it has saved");

    fake_redis_flush();
    fake_redis.epoch++;
    longer = like(first, 8 * PAGE, 10 * PAGE + 20, 1, LLM_SCOPE_TENANT);
    run_job(longer);
    ok(as_expected(longer), "a request after a purge elsewhere");
    rest();
    is_int(fake_redis.n_values, 0, "nothing is saved of what it has found or begun with that");
    is_int(fake_redis.forgets, 1, "then the engine knows");
    after = like(first, 8 * PAGE, 8 * PAGE + 20, 1, LLM_SCOPE_TENANT);
    run_job(after);
    ok(as_expected(after) && after->request.cached_tokens == 0, "and has purged its memory");
    rest();
    is_int(fake_redis.n_values, 8, "what it computes from then on is saved");
    is_int(fake_redis.forgets, 1, "and no other purge heard of");
    is_idle("after a purge elsewhere");
    close_engine();
    fake_redis_close();
    free_job(first);
    free_job(longer);
    free_job(after);
}

/* The scheduler goes while copies are under way in both directions. */
static void test_close(void)
{
    struct job *first = saved_by_another(), *again, *other;
    double counter;

    again = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1, LLM_SCOPE_TENANT);
    other = new_job(1, 4 * PAGE, 5);
    share(other, 1, LLM_SCOPE_TENANT);
    run_job(other);
    llm_sched_submit(sched, &again->request);
    turn();
    counter = again->request.tenant->counter;
    llm_loads_take(sched);
    ok(again->request.tenant->counter - counter == 6.0 * (double) sched->copy_ns,
       "pages that come are charged as copies");
    llm_cache_offer(sched->cache, 4);
    ok(backend->moves_made < backend->moves_asked, "copies are under way");
    close_engine(); /* sees that all buffers are back */
    fake_redis_close();
    free_job(first);
    free_job(again);
    free_job(other);
}


/* Pages come ahead of the front, and somebody else before that is there: he has them, too. */
static void test_ahead(void)
{
    struct job *first = saved_by_another(), *again, *after;
    uint64_t before = fake.rows_read;

    fake_redis.rates.first_ns = 2 * ROWS * ROW_NS; /* not quite two steps: four pages are left */
    again = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1, LLM_SCOPE_TENANT);
    after = like(first, 8 * PAGE, 8 * PAGE + 30, 1, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &again->request);
    turn();
    is_int(again->sequences[0].n_done, 2 * PAGE, "two of the four pages before them are computed");
    llm_sched_submit(sched, &after->request);
    turn();
    ok(loaded() == 4 * PAGE && after->started, "the others come, and then somebody else");
    run();
    ok(as_expected(again) && as_expected(after), "both are right");
    is_int(after->request.cached_tokens, 8 * PAGE, "he has all of it cached");
    is_int(fake.rows_read - before, 4 * PAGE + 20 + 30, "and nothing is computed twice");
    is_idle("after pages ahead");
    close_engine();
    fake_redis_close();
    free_job(first);
    free_job(again);
    free_job(after);
}

/* Who had asked for them goes when they have come, but not what is before them. */
static void test_left(void)
{
    struct job *first = saved_by_another(), *goes, *after;
    uint64_t before;

    fake_redis.rates.first_ns = 3 * ROWS * ROW_NS; /* six pages are left */
    goes = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1, LLM_SCOPE_TENANT);
    after = like(first, 8 * PAGE, 8 * PAGE + 30, 1, LLM_SCOPE_TENANT);
    llm_sched_submit(sched, &goes->request);
    turn();
    turn();
    llm_sched_cancel(sched, &goes->request);
    is_int(loaded(), 2 * PAGE, "a cancel when the last two pages have come");

    fake_redis.refuses = true;
    before = fake.rows_read;
    run_job(after);
    ok(as_expected(after), "the next one is right");
    is_int(after->request.cached_tokens, 6 * PAGE, "and finds them");
    is_int(fake.rows_read - before, 2 * PAGE + 30, "so only the two before them are computed");
    is_idle("after pages that were left");
    close_engine();
    fake_redis_close();
    free_job(first);
    free_job(goes);
    free_job(after);
}

/* Who would compute the pages stands still, so who waits for them loads them. */
static void test_paused(void)
{
    struct job *first = saved_by_another(), *stands, *waits;

    stands = like(first, 8 * PAGE + 20, 8 * PAGE + 20, 1, LLM_SCOPE_TENANT);
    waits = like(first, 8 * PAGE, 8 * PAGE + 30, 1, LLM_SCOPE_TENANT);
    fake_redis.refuses = true;
    llm_sched_submit(sched, &stands->request);
    turn();
    llm_sched_pause(sched, &stands->request, true);
    fake_redis.refuses = false;
    run_job(waits);
    ok(as_expected(waits), "who waits for one that is paused is right");
    is_int(loaded(), 4 * PAGE, "and loads what his next step does not compute");
    llm_sched_pause(sched, &stands->request, false);
    run();
    ok(as_expected(stands), "as is the other");
    is_idle("after a pause");
    close_engine();
    fake_redis_close();
    free_job(first);
    free_job(stands);
    free_job(waits);
}

/* --- many at once --- */

static void test_many(void)
{
    enum { JOBS = 300, AT_ONCE = 12 };
    static struct job *jobs[AT_ONCE];
    struct job *trunks[3];
    uint64_t hits = 0;
    bool right = true;

    fake_redis_open(PAGE * sizeof(struct fake_row));
    for (int i = 0; i < 3; i++) {
        trunks[i] = new_job(1, 10 * PAGE, 5);
    }
    for (int round = 0; round < 4; round++) {
        uint32_t n = 0;

        open_engine(round % 2 == 0 ? 64 : 30);
        fake_redis.silent = 30;
        fake_redis.missing = 5;
        for (uint32_t done = 0; done < JOBS;) {
            for (uint32_t i = 0; i < AT_ONCE; i++) {
                struct job *j = jobs[i];

                if (j == NULL && n < JOBS && below(4) == 0) {
                    uint32_t common = below(10 * PAGE);

                    jobs[i] = j = like(trunks[below(3)], common, common + 1 + below(2 * PAGE),
                                       (uint8_t) below(2),
                                       below(3) == 0 ? LLM_SCOPE_PUBLIC : LLM_SCOPE_TENANT);
                    llm_sched_submit(sched, &j->request);
                    n++;
                } else if (j != NULL && j->retired) {
                    right = right && (j->request.outcome == LLM_OUTCOME_CANCELLED ||
                                      as_expected(j));
                    free_job(j);
                    jobs[i] = NULL;
                    done++;
                } else if (j != NULL && below(100) == 0) {
                    llm_sched_cancel(sched, &j->request);
                } else if (j != NULL && below(300) == 0) {
                    llm_sched_purge(sched, j->request.owner_digest);
                }
            }
            turn();
            if (below(3) == 0) {
                fake_move_until(backend, backend->moves_asked);
            }
            fake_redis.refuses = below(20) == 0;
        }
        fake_redis.refuses = false;
        fake_redis.silent = fake_redis.missing = 0;
        rest();
        hits += loaded();
        is_idle("after many requests");
        close_engine();
    }
    ok(right, "%d requests on four engines say what they must", 4 * JOBS);
    ok(hits > 0 && fake_redis.cancels > 0, "%llu pages were loaded, %llu loads given up",
       (unsigned long long) hits / PAGE, (unsigned long long) fake_redis.cancels);
    for (int i = 0; i < 3; i++) {
        free_job(trunks[i]);
    }
    fake_redis_close();
}

int main(void)
{
    test_found();
    test_long();
    test_not_saved();
    test_spoilt();
    test_full();
    test_slow();
    test_far();
    test_unknown();
    test_refused();
    test_late();
    test_amid();
    test_cancel();
    test_purge();
    test_purged_elsewhere();
    test_close();
    test_ahead();
    test_left();
    test_paused();
    test_many();
    return done_testing();
}
