/* The scheduler over the fake backend, which dies when it is given a step that is wrong. */

#include "engine/base/clock.h"
#include "engine/sched/sched.h"
#include "t/unit/fake_backend.h"
#include "t/unit/tap.h"

#define VOCAB 97
#define STOP_ID 1
#define MAX_OUT 512

/* One request and what became of it. */
struct job {
    struct llm_request request;
    struct llm_sequence sequences[4];
    uint32_t prompts[4][700];
    uint32_t out[4][MAX_OUT], n_out[4];
    uint32_t logprobs;
    int started, retired, ended[4];
    enum llm_end end[4];
    uint64_t serial; /* order of `started` */
};

static struct llm_backend *backend;
static struct llm_sched *sched;
static uint64_t serials;
static struct llm_error err;
static const uint32_t stop_ids[] = {STOP_ID};

static struct job *job_of(struct llm_request *r)
{
    return (struct job *) ((char *) r - offsetof(struct job, request));
}

static void on_started(void *ctx, struct llm_request *r)
{
    (void) ctx;
    job_of(r)->started++;
    job_of(r)->serial = ++serials;
}

static void on_token(void *ctx, struct llm_sequence *s, const struct llm_token *t)
{
    struct job *j = job_of(s->request);

    (void) ctx;
    fake_must(!j->retired && !j->ended[s->choice] && j->n_out[s->choice] < MAX_OUT);
    j->out[s->choice][j->n_out[s->choice]++] = t->id;
    j->logprobs += t->n_top;
}

static void on_ended(void *ctx, struct llm_sequence *s, enum llm_end end)
{
    struct job *j = job_of(s->request);

    (void) ctx;
    j->ended[s->choice]++;
    j->end[s->choice] = end;
}

static void on_retired(void *ctx, struct llm_request *r)
{
    (void) ctx;
    job_of(r)->retired++;
}

static void open_sched(uint32_t n_pages, uint32_t max_batch_tokens, uint32_t max_seqs)
{
    const struct llm_backend_options options = {
        .max_context = 4096, .max_batch_tokens = max_batch_tokens, .max_seqs = max_seqs};
    const struct llm_sched_sink sink = {
        .started = on_started, .token = on_token, .ended = on_ended, .retired = on_retired};

    memset(&fake, 0, sizeof(fake));
    fake.n_pages = n_pages;
    fake_must(fake_ops.load(NULL, &options, &backend, &err) == LLM_OK);
    fake_must(llm_sched_new(&fake_ops, backend,
                            &(struct llm_sched_options){.max_batch_tokens = max_batch_tokens,
                                                        .max_seqs = max_seqs,
                                                        .n_vocab = VOCAB},
                            &sink, &sched, &err) == LLM_OK);
}

static void close_sched(void)
{
    llm_sched_free(sched);
    fake_ops.free(backend);
}

static uint32_t rng = 1;

static uint32_t below(uint32_t n)
{
    rng = rng * 1664525 + 1013904223;
    return (uint32_t) ((uint64_t) (rng >> 4) * n >> 28);
}

static struct job *new_job(uint32_t n_sequences, uint32_t n_prompt, uint32_t max_tokens)
{
    struct job *j = calloc(1, sizeof(*j));

    fake_must(j != NULL);
    for (uint32_t i = 0; i < n_sequences; i++) {
        for (uint32_t k = 0; k < n_prompt; k++) {
            j->prompts[i][k] = 10 + below(VOCAB - 10);
        }
        j->sequences[i] = (struct llm_sequence){
            .prompt = j->prompts[i], .n_prompt = n_prompt, .max_tokens = max_tokens, .choice = i};
    }
    j->request = (struct llm_request){
        .stop_ids = stop_ids,
        .n_stop_ids = 1,
        .sequences = j->sequences,
        .n_sequences = n_sequences,
    };
    return j;
}

/* What the sequence must say, worked out without any scheduler. */
static uint32_t expect(const struct job *j, uint32_t i, uint32_t *out, enum llm_end *end)
{
    const struct llm_sequence *s = &j->sequences[i];
    uint32_t mask[(VOCAB + 31) / 32], n = 0;
    uint64_t hash = 0;

    memset(mask, 0xff, sizeof(mask));
    for (uint32_t k = 0; k < j->request.n_stop_ids; k++) {
        mask[j->request.stop_ids[k] / 32] &= ~(1u << j->request.stop_ids[k] % 32);
    }
    for (uint32_t k = 0; k < s->n_prompt; k++) {
        hash = fake_mix(hash, s->prompt[k]);
    }
    while (n < s->max_tokens) {
        uint32_t id = fake_token(hash, VOCAB, n < j->request.min_tokens ? mask : NULL);

        if (id == STOP_ID && j->request.n_stop_ids > 0) {
            *end = LLM_END_STOP;
            return n;
        }
        out[n++] = id;
        hash = fake_mix(hash, id);
    }
    *end = LLM_END_LENGTH;
    return n;
}

static bool as_expected(const struct job *j)
{
    static uint32_t want[MAX_OUT];
    enum llm_end end;

    for (uint32_t i = 0; i < j->request.n_sequences; i++) {
        uint32_t n = expect(j, i, want, &end);

        if (j->n_out[i] != n || memcmp(j->out[i], want, n * sizeof(*want)) != 0 ||
            j->ended[i] != 1 || j->end[i] != end) {
            diag("sequence %u: %u tokens, want %u; ended %d", i, j->n_out[i], n, j->ended[i]);
            return false;
        }
    }
    return j->retired == 1 && j->started == 1 && j->request.outcome == LLM_OUTCOME_DONE;
}

/* Turns until there is nothing to do, checking the books each time. */
static void run(void)
{
    int rc;

    while ((rc = llm_sched_turn(sched, &err)) == LLM_OK) {
        const char *wrong = llm_sched_check(sched);

        if (wrong != NULL) {
            ok(false, "the books: %s", wrong);
            exit(done_testing());
        }
    }
    fake_must(rc == LLM_EAGAIN);
}

static void is_idle(const char *when)
{
    struct llm_sched_load load = llm_sched_load(sched);

    ok(load.free_pages == load.total_pages && load.running == 0 && load.queued == 0,
       "%s: all pages, slots and places are back", when);
    ok(llm_sched_check(sched) == NULL, "%s: the books are right", when);
}

static void test_one(void)
{
    struct job *j = new_job(1, 100, 60);

    open_sched(64, 32, 8);
    llm_sched_submit(sched, &j->request);
    run();
    ok(as_expected(j), "a prompt of 100 in chunks of 32: every token as computed by hand");
    is_int(fake.most_rows, 32, "no step is larger than the budget");
    ok(fake.two_in_flight > 0, "steps of decoding are submitted two deep");
    is_idle("after one");
    close_sched();
    free(j);
}

static void test_together(void)
{
    struct job *j[12];

    open_sched(64, 16, 8);
    for (int i = 0; i < 12; i++) {
        j[i] = new_job(1 + i % 3, 1 + 7 * (uint32_t) i, 40);
        llm_sched_submit(sched, &j[i]->request);
    }
    run();
    for (int i = 0; i < 12; i++) {
        ok(as_expected(j[i]), "request %d of twelve at once, %u sequences", i,
           j[i]->request.n_sequences);
        ok(i == 0 || j[i]->serial > j[i - 1]->serial, "and it started in its turn");
    }
    for (int i = 0; i < 12; i++) {
        free(j[i]);
    }
    is_int(fake.most_rows, 16, "no step is larger than the budget");
    is_idle("after twelve");
    close_sched();
}

static void test_pages(void)
{
    struct job *big = new_job(1, 400, 200), *small = new_job(1, 10, 20);
    struct job *first = new_job(1, 300, 20);

    open_sched(10, 64, 8); /* 640 tokens */
    llm_sched_submit(sched, &first->request); /* 5 pages */
    llm_sched_submit(sched, &big->request);   /* 7 pages to start with */
    llm_sched_submit(sched, &small->request); /* 1 page: would fit beside the first */
    llm_sched_turn(sched, &err);
    ok(first->started && !big->started && !small->started,
       "who does not fit holds up those behind him");
    run();
    ok(as_expected(first) && as_expected(big) && as_expected(small), "and all get their turn");
    is_idle("after a full pool");
    close_sched();
    free(first);
    free(big);
    free(small);
}

static void test_ends(void)
{
    struct job *min = new_job(1, 5, 300), *ignore = new_job(1, 5, 300), *cut = new_job(2, 5, 300);

    open_sched(64, 64, 8);
    min->request.min_tokens = 200;
    ignore->request.n_stop_ids = 0;
    cut->request.n_stop_ids = 0;
    llm_sched_submit(sched, &min->request);
    llm_sched_submit(sched, &ignore->request);
    llm_sched_submit(sched, &cut->request);
    while (cut->n_out[0] < 10) {
        llm_sched_turn(sched, &err);
    }
    llm_sched_end(sched, &cut->sequences[0]);
    run();
    ok(as_expected(min) && min->n_out[0] >= 200, "no stop id before min_tokens");
    ok(as_expected(ignore) && ignore->n_out[0] == 300 && ignore->end[0] == LLM_END_LENGTH,
       "max_tokens without stop ids");
    ok(cut->n_out[0] == 10 && !cut->ended[0] && cut->n_out[1] == 300,
       "a sequence that is ended gets no more tokens, its neighbour all");
    ok(cut->retired == 1 && cut->request.outcome == LLM_OUTCOME_DONE, "and the request is done");
    is_idle("after the ends");
    close_sched();
    free(min);
    free(ignore);
    free(cut);
}

static void test_cancel(void)
{
    for (int stage = 0; stage < 12; stage++) {
        struct job *j = new_job(2, 100, 50), *other = new_job(1, 20, 50);

        open_sched(64, 32, 8);
        j->request.n_stop_ids = 0;
        llm_sched_submit(sched, &other->request);
        llm_sched_submit(sched, &j->request);
        for (int i = 0; i < stage; i++) {
            llm_sched_turn(sched, &err);
        }
        llm_sched_cancel(sched, &j->request);
        for (int i = 0; i < 2 && !j->retired; i++) {
            llm_sched_turn(sched, &err);
        }
        ok(j->retired == 1 && j->request.outcome == LLM_OUTCOME_CANCELLED,
           "cancelled after %d turns: retired with the steps in flight", stage);
        run();
        ok(as_expected(other), "and the other request is as if alone");
        is_idle("after a cancel");
        close_sched();
        free(j);
        free(other);
    }
}

static void test_pause(void)
{
    struct job *j = new_job(1, 10, 100), *other = new_job(1, 10, 100);

    open_sched(64, 32, 8);
    j->request.n_stop_ids = other->request.n_stop_ids = 0;
    llm_sched_submit(sched, &j->request);
    llm_sched_submit(sched, &other->request);
    while (j->n_out[0] < 10) {
        llm_sched_turn(sched, &err);
    }
    llm_sched_pause(sched, &j->request, true);
    run();
    ok(as_expected(other), "the other one goes on");
    ok(j->n_out[0] < 14 && !j->retired, "the paused one stands still, two deep at most");
    llm_sched_pause(sched, &j->request, false);
    run();
    ok(as_expected(j), "and goes on where it stood");
    is_idle("after a pause");

    free(j);
    j = new_job(1, 10, 100);
    llm_sched_submit(sched, &j->request);
    llm_sched_pause(sched, &j->request, true);
    run();
    llm_sched_cancel(sched, &j->request);
    ok(j->retired == 1, "a paused request can be cancelled");
    is_idle("after that");
    close_sched();
    free(j);
    free(other);
}

static void test_tenants(void)
{
    struct job *j[6];

    open_sched(64, 32, 8);
    for (int i = 0; i < 6; i++) {
        j[i] = new_job(1, 100, 30);
        j[i]->request.n_stop_ids = 0;
        j[i]->request.tenant_digest[0] = i < 2 ? 1 : i < 5 ? 2 : 3;
        j[i]->request.max_running = i < 2 ? 1 : 0;
        j[i]->request.max_pages = i >= 2 && i < 5 ? 6 : 0; /* three pages each */
        llm_sched_submit(sched, &j[i]->request);
    }
    llm_sched_turn(sched, &err);
    ok(j[0]->started && !j[1]->started, "one running at most for this tenant");
    ok(j[2]->started && j[3]->started && !j[4]->started, "six pages at most for that one");
    ok(j[5]->started, "another passes those who wait for their own");
    run();
    for (int i = 0; i < 6; i++) {
        ok(as_expected(j[i]), "and request %d gets its turn", i);
        free(j[i]);
    }
    is_idle("after caps");
    close_sched();
}

static void test_deadlines(void)
{
    struct job *late = new_job(3, 10, 10), *queue = new_job(1, 10, 10), *fine = new_job(1, 10, 10);

    open_sched(64, 32, 8);
    late->request.deadline = llm_now_ns() - 1;
    queue->request.queue_deadline = llm_now_ns() - 1;
    fine->request.queue_deadline = fine->request.deadline = llm_now_ns() + 100 * LLM_NS_PER_S;
    llm_sched_submit(sched, &late->request);
    llm_sched_submit(sched, &queue->request);
    llm_sched_submit(sched, &fine->request);
    run();
    ok(late->retired == 1 && !late->started && late->request.outcome == LLM_OUTCOME_EXPIRED,
       "past its deadline when its turn comes: not started");
    ok(queue->retired == 1 && !queue->started && queue->request.outcome == LLM_OUTCOME_EXPIRED,
       "nor past the queue's deadline");
    ok(as_expected(fine), "in time");
    is_idle("after deadlines");
    close_sched();
    free(late);
    free(queue);
    free(fine);
}

static void test_non_finite(void)
{
    struct job *bad = new_job(3, 40, 30), *good = new_job(1, 40, 30);

    open_sched(64, 256, 8);
    bad->prompts[1][20] = FAKE_POISON;
    bad->request.n_stop_ids = good->request.n_stop_ids = 0;
    llm_sched_submit(sched, &bad->request);
    llm_sched_submit(sched, &good->request);
    run();
    ok(bad->retired == 1 && bad->request.outcome == LLM_OUTCOME_NON_FINITE,
       "logits that are not finite end the request");
    ok(as_expected(good), "and no other");
    is_idle("after that");
    close_sched();
    free(bad);
    free(good);
}

static void test_failure(void)
{
    struct job *j = new_job(1, 40, 30);
    int rc;

    open_sched(64, 32, 8);
    fake.fail_at = 5;
    llm_sched_submit(sched, &j->request);
    while ((rc = llm_sched_turn(sched, &err)) == LLM_OK) {
    }
    is_int(rc, LLM_EINTERNAL, "a failing backend is told");
    close_sched();
    free(j);
}

/* What has started is known before its first step is waited for. */
static void test_halves(void)
{
    struct job *j = new_job(1, 10, 5);

    open_sched(64, 32, 8);
    is_int(llm_sched_begin(sched, &err), LLM_EAGAIN, "nothing to begin");
    llm_sched_submit(sched, &j->request);
    is_int(llm_sched_begin(sched, &err), LLM_OK, "the first half of a turn");
    ok(j->started == 1 && fake.steps == 0, "starts the request and waits for no step");
    is_int(llm_sched_finish(sched, &err), LLM_OK, "the second half");
    ok(fake.steps == 1 && j->n_out[0] == 1, "brings the first token");
    run();
    ok(as_expected(j), "and so on");
    is_idle("after halves");
    close_sched();
    free(j);
}

/* Random requests, a fifth of them cancelled at random moments. */
static void test_soak(int n)
{
    enum { AT_ONCE = 40 };
    struct job *jobs[AT_ONCE] = {0};
    int wrong = 0, cancelled = 0, submitted = 0, finished = 0;

    open_sched(100, 128, 16);
    while (finished < n) {
        uint32_t i = below(AT_ONCE);
        struct job *j = jobs[i];

        if (j == NULL && submitted < n) {
            j = jobs[i] = new_job(1 + below(3), 1 + below(below(4) == 0 ? 700 : 60),
                                  1 + below(80));
            j->request.min_tokens = below(4) == 0 ? below(20) : 0;
            j->request.sampling.n_top_logprobs = below(4) == 0 ? 5 : 0;
            j->request.sampling.logprobs = true;
            j->request.tenant_digest[0] = (uint8_t) below(5);
            j->request.max_running = below(2) == 0 ? 3 : 0;
            llm_sched_submit(sched, &j->request);
            submitted++;
        } else if (j != NULL && !j->retired && below(100) == 0) {
            llm_sched_cancel(sched, &j->request);
            cancelled++;
        } else if (j != NULL && !j->retired && below(10) == 0) {
            llm_sched_pause(sched, &j->request, !j->request.paused);
        }

        if (below(4) == 0 || submitted == n) {
            if (llm_sched_turn(sched, &err) == LLM_EINTERNAL) {
                break;
            }
            wrong += llm_sched_check(sched) != NULL;
        }
        for (i = 0; i < AT_ONCE; i++) {
            j = jobs[i];
            if (j != NULL && submitted == n && j->request.paused && !j->retired) {
                llm_sched_pause(sched, &j->request, false);
            }
            if (j != NULL && j->retired) {
                wrong += j->request.outcome == LLM_OUTCOME_DONE ? !as_expected(j)
                         : j->request.outcome != LLM_OUTCOME_CANCELLED;
                free(j);
                jobs[i] = NULL;
                finished++;
            }
        }
    }
    is_int(wrong, 0, "%d random requests, %d of them cancelled: every token as by hand", n,
           cancelled);
    is_int(fake.most_rows, 128, "full steps, and none larger");
    ok(fake.two_in_flight > 0 && fake.queued_prompts == 0,
       "steps of decoding go two deep, those that read a prompt alone");
    is_idle("after all that");
    close_sched();
}

int main(void)
{
    const char *n = getenv("LLM_LONG");

    test_one();
    test_together();
    test_pages();
    test_ends();
    test_cancel();
    test_pause();
    test_tenants();
    test_deadlines();
    test_non_finite();
    test_failure();
    test_halves();
    test_soak(n != NULL ? 10000 : 2000);
    return done_testing();
}
