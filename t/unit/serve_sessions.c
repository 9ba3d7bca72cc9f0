/* What workers do to an engine besides asking: cancel, revoke, fall silent, break the protocol,
 * die; and what the engine does at its ends: loading, draining, failing. */

#include "engine/serve/control.h"
#include "t/unit/engine_process.h"

#include <fcntl.h>

static uint64_t rng = 11;

static uint32_t below(uint32_t n)
{
    return scratch_random(&rng) % n;
}

static uint32_t prompt[4096];

static void plain(struct submit *s, uint32_t n_prompt, uint32_t max_tokens)
{
    for (uint32_t i = 0; i < n_prompt; i++) {
        prompt[i] = 100 + below(3000);
    }
    submit_ids(s, prompt, n_prompt, max_tokens);
    s->head.flags = LLM_IPC_IGNORE_EOS;
}

static struct answer *send_plain(struct worker *w, uint32_t slot, uint32_t n_prompt,
                                 uint32_t max_tokens)
{
    struct submit s;

    plain(&s, n_prompt, max_tokens);
    return worker_submit(w, slot, &s);
}

static pid_t start(const char *option, const char *value)
{
    char *options[] = {(char *) "--max-batch-tokens", (char *) "64", (char *) option,
                       (char *) value};

    return engine_start(options, option != NULL ? 4 : 2);
}

/* --- cancelling --- */

static void test_cancel(struct worker *w)
{
    int wrong = 0, cancelled = 0, done = 0;

    for (int round = 0; round < 30; round++) {
        for (uint32_t i = 0; i < 10; i++) {
            struct submit s;

            plain(&s, 1 + below(600), 1 + below(60));
            s.head.flags |= below(4) == 0 ? LLM_IPC_AWAIT_RELEASE : 0;
            s.head.credit = below(4) == 0 ? 10 : 0;
            worker_submit(w, i, &s);
            usleep(below(500));
        }
        for (uint32_t i = 0; i < 10; i++) {
            worker_pump(w, (int) below(3));
            if (w->answers[i].open) {
                worker_cancel(w, i);
            }
        }
        for (uint32_t i = 0; i < 10; i++) {
            struct answer *a = &w->answers[i];

            wrong += !worker_await(w, a);
            cancelled += a->finished.status == LLM_IPC_CANCELLED;
            done += a->finished.status == LLM_IPC_OK;
        }
    }
    is_int(wrong, 0, "300 requests, cancelled at any stage: each finished once");
    is_int(cancelled + done, 300, "%d cancelled, %d done before", cancelled, done);
    ok(worker_await_idle(w), "all is given back");
}

/* While a tokenizer thread has it. */
static void test_cancel_preparing(struct worker *w)
{
    static char text[1 << 20];
    int wrong = 0;

    for (size_t i = 0; i + 1 < sizeof(text); i++) {
        text[i] = i % 7 == 0 ? ' ' : (char) ('a' + below(26));
    }
    for (int round = 0; round < 5; round++) {
        struct submit s;
        struct answer *a;

        submit_text(&s, text, 1);
        a = worker_submit(w, 0, &s);
        usleep(2000);
        worker_cancel(w, 0);
        wrong += !worker_ends(w, a, LLM_IPC_CANCELLED) || a->finished.prompt_tokens != 0;
    }
    is_int(wrong, 0, "cancelled while their text becomes tokens: told so, without usage");
    ok(worker_await_idle(w), "all is given back");
}

static void test_cancel_is_prompt(struct worker *w)
{
    struct answer *a = send_plain(w, 0, 50, 4000);
    uint32_t steps;

    worker_await_text(w, a);
    worker_cancel(w, 0);
    ok(worker_ends(w, a, LLM_IPC_CANCELLED), "cancelled in the middle of a stream");
    steps = a->finished.completion_tokens;
    ok(steps < 4000, "after %u tokens", steps);

    /* both slots and generations are free again at once */
    a = send_plain(w, 0, 5, 5);
    ok(worker_ends(w, a, LLM_IPC_OK), "the slot serves again");
    worker_record(w, LLM_IPC_CANCEL, 0, a->generation, NULL, 0);
    worker_record(w, LLM_IPC_CANCEL, 77, 1, NULL, 0);
    ok(worker_await_idle(w), "a CANCEL that comes too late does nothing");
}

static void test_revoke(struct worker *w, struct worker *other)
{
    struct llm_ipc_revoke revoke = {.key_id = "key of tenant a"}, none = {{0}};
    const char *const keys[] = {"key of tenant a", "key of tenant a", "key of tenant b", NULL};
    struct answer *a[4];
    struct submit s;

    for (uint32_t i = 0; i < 4; i++) {
        plain(&s, 50, 4000);
        if (keys[i] != NULL) {
            memcpy(s.head.key_id, keys[i], sizeof(s.head.key_id));
        }
        a[i] = worker_submit(w, i, &s);
    }
    worker_await_text(w, a[3]);
    worker_record(other, LLM_IPC_REVOKE, 0, 0, &none, sizeof(none));
    worker_record(other, LLM_IPC_REVOKE, 0, 0, &revoke, sizeof(revoke));
    ok(worker_ends(w, a[0], LLM_IPC_REVOKED) && worker_ends(w, a[1], LLM_IPC_REVOKED),
       "a key revoked in another session ends its requests");
    worker_watch(w, 100);
    ok(a[2]->n_finished == 0, "not another key's");
    ok(a[3]->n_finished == 0, "nor those without a key");
    worker_cancel(w, 2);
    worker_cancel(w, 3);
    ok(worker_ends(w, a[2], LLM_IPC_CANCELLED) && worker_ends(w, a[3], LLM_IPC_CANCELLED),
       "which can still be cancelled");
    ok(worker_await_idle(w), "all is given back");
}

/* A REVOKE that is read in a later turn, behind many records, makes an answer in a session that has
 * nothing to do. That one was opened last, so that its turn is over by then. */
static void test_revoke_late(struct worker *w)
{
    struct llm_ipc_revoke revoke = {.key_id = "key of tenant c"};
    struct llm_ipc_credit credit = {.bytes = 1};
    struct llm_ipc_iovec part = {&credit, sizeof(credit)};
    struct worker *idle = worker_open(engine_socket);
    struct answer *a;
    struct submit s;

    plain(&s, 5, 5);
    s.head.flags |= LLM_IPC_AWAIT_RELEASE;
    memcpy(s.head.key_id, revoke.key_id, sizeof(s.head.key_id));
    a = worker_submit(idle, 0, &s);
    while (!a->counted) {
        worker_pump(idle, 10);
    }
    worker_watch(idle, 100);
    for (int i = 0; i < 300; i++) {
        worker_must(llm_ipc_send(&w->ipc, LLM_IPC_CREDIT, 9, 1, &part, 1) == LLM_IPC_DONE);
    }
    worker_record(w, LLM_IPC_REVOKE, 0, 0, &revoke, sizeof(revoke));
    idle->patience_ns = LLM_NS_PER_S;
    ok(worker_ends(idle, a, LLM_IPC_REVOKED), "a session that sleeps hears of a late REVOKE");
    worker_close(idle);
}

/* What was submitted before a REVOKE, in another session's ring that is long, is read before it. */
static void test_revoke_in_order(pid_t pid, struct worker *w, struct worker *other)
{
    struct llm_ipc_revoke revoke = {.key_id = "key of tenant d"};
    struct llm_ipc_credit credit = {.bytes = 1};
    struct llm_ipc_iovec part = {&credit, sizeof(credit)};
    struct answer *a;
    struct submit s;

    kill(pid, SIGSTOP); /* so that it finds all of it at once */
    for (int i = 0; i < 12000; i++) {
        worker_must(llm_ipc_send(&w->ipc, LLM_IPC_CREDIT, 9, 1, &part, 1) == LLM_IPC_DONE);
    }
    plain(&s, 5, 4000);
    memcpy(s.head.key_id, revoke.key_id, sizeof(s.head.key_id));
    a = worker_submit(w, 0, &s);
    worker_record(other, LLM_IPC_REVOKE, 0, 0, &revoke, sizeof(revoke));
    kill(pid, SIGCONT);
    ok(worker_ends(w, a, LLM_IPC_REVOKED), "a REVOKE overtakes no SUBMIT");

    plain(&s, 5, 4000);
    memcpy(s.head.key_id, revoke.key_id, sizeof(s.head.key_id));
    a = worker_submit(w, 0, &s);
    worker_await_text(w, a);
    ok(a->n_finished == 0, "and holds for none that follows");
    worker_cancel(w, 0);
    ok(worker_ends(w, a, LLM_IPC_CANCELLED) && worker_await_idle(w), "all is given back");
}

/* --- queues and deadlines --- */

static bool await_queued(const struct worker *w, uint32_t n)
{
    struct llm_ipc_state state;

    for (int i = 0; i < 500; i++) {
        llm_ipc_state_read(&w->ipc, &state);
        if (state.queued_requests == n) {
            return true;
        }
        usleep(10000);
    }
    return false;
}

static void test_queue(struct worker *w)
{
    struct answer *running, *waiting, *a;
    struct submit s;

    plain(&s, 50, 8000);
    s.head.flags = LLM_IPC_IGNORE_EOS;
    s.head.max_running = 1;
    running = worker_submit(w, 0, &s);
    worker_await_text(w, running);

    plain(&s, 50, 10);
    s.head.max_running = s.head.max_queued = 1;
    waiting = worker_submit(w, 1, &s);
    plain(&s, 50, 10);
    s.head.max_running = s.head.max_queued = 1;
    a = worker_submit(w, 2, &s);
    ok(worker_ends(w, a, LLM_IPC_TENANT_FULL), "one more than the tenant may have waiting");
    ok(a->finished.retry_after_ms > 0, "may be tried again");

    plain(&s, 50, 10);
    s.head.max_running = 1;
    s.head.queue_deadline = llm_now_ns() + 100 * LLM_NS_PER_MS;
    a = worker_submit(w, 3, &s);
    ok(worker_ends(w, a, LLM_IPC_TIMEOUT_QUEUE), "a deadline in the queue");
    ok(waiting->n_finished == 0, "the others wait on");

    for (uint32_t i = 10; i < 15; i++) {
        plain(&s, 50, 10);
        s.head.max_running = 1;
        worker_submit(w, i, &s);
    }
    ok(worker_ends(w, &w->answers[14], LLM_IPC_TENANT_FULL), "the sixth is one too many");

    for (uint32_t i = 11; i < 14; i++) {
        worker_cancel(w, i);
        worker_await(w, &w->answers[i]);
    }
    ok(await_queued(w, 2), "who is cancelled leaves the queue");
    plain(&s, 5, 10);
    submit_item(&s, LLM_IPC_ITEM_PROMPT_IDS, 0, prompt, 20);
    s.head.n = 3;
    a = worker_submit(w, 4, &s);
    ok(worker_ends(w, a, LLM_IPC_TENANT_FULL), "two prompts with three choices each are six");

    for (uint32_t i = 20; i < 29; i++) { /* each a tenant of its own; held, so that they wait */
        plain(&s, 50, 10);
        s.head.tenant[0] = (uint8_t) i;
        s.head.flags |= LLM_IPC_AWAIT_RELEASE;
        worker_submit(w, i, &s);
    }
    ok(worker_ends(w, &w->answers[28], LLM_IPC_QUEUE_FULL), "the eleventh of all is too many too");
    ok(w->answers[28].finished.retry_after_ms >= 1000, "may be tried again");
    ok(await_queued(w, 10) && w->ipc.state->queue_limit_requests == 10,
       "as many wait as may, which every worker can read");
    for (uint32_t i = 20; i < 28; i++) {
        worker_cancel(w, i);
        worker_await(w, &w->answers[i]);
    }
    worker_cancel(w, 10);
    worker_await(w, &w->answers[10]);

    worker_cancel(w, 0);
    ok(worker_ends(w, running, LLM_IPC_CANCELLED) && worker_ends(w, waiting, LLM_IPC_OK),
       "when the first ends the next one starts");
    ok(worker_await_idle(w), "all is given back");
}

static void test_deadlines(struct worker *w)
{
    struct answer *a;
    struct submit s;

    plain(&s, 50, 4000);
    s.head.deadline = llm_now_ns() + 100 * LLM_NS_PER_MS;
    a = worker_submit(w, 0, &s);
    ok(worker_ends(w, a, LLM_IPC_TIMEOUT) && a->n_records > 0, "a deadline for the whole");

    plain(&s, 4000, 4000);
    s.head.first_token_deadline = llm_now_ns() + 10 * LLM_NS_PER_MS;
    a = worker_submit(w, 0, &s);
    ok(worker_ends(w, a, LLM_IPC_TIMEOUT_FIRST_TOKEN) && a->n_records == 0,
       "a deadline for the first token");

    plain(&s, 5, 50);
    s.head.first_token_deadline = llm_now_ns() + 2 * LLM_NS_PER_S;
    s.head.queue_deadline = llm_now_ns() + 2 * LLM_NS_PER_S;
    a = worker_submit(w, 0, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "in time");

    plain(&s, 5, 50);
    s.head.queue_deadline = 1;
    a = worker_submit(w, 0, &s);
    ok(worker_ends(w, a, LLM_IPC_TIMEOUT_QUEUE), "past its deadline when it comes");
    ok(worker_await_idle(w), "all is given back");
}

/* --- bad workers --- */

/* Sends one SUBMIT with random bytes changed; true when the session lived. */
static bool send_damaged(const char *path)
{
    struct worker *bad = worker_open(path);
    struct submit s;
    uint8_t *payload;
    size_t len;
    bool lived;

    submit_begin(&s, LLM_IPC_KIND_CHAT);
    s.head.max_tokens = 3;
    submit_message(&s, LLM_IPC_SYSTEM, "You are terse.");
    submit_message(&s, LLM_IPC_USER, "Hello there");
    submit_stop(&s, "stop");
    payload = submit_end(&s, &len);
    for (uint32_t n = 1 + below(4); n > 0; n--) {
        payload[below((uint32_t) len)] = (uint8_t) below(below(2) ? 256 : 8);
    }
    if (below(4) == 0) {
        len = below((uint32_t) len);
    }
    bad->answers[5].open = true;
    bad->answers[5].generation = 1;
    worker_record(bad, LLM_IPC_SUBMIT, 5, 1, payload, len);
    free(payload);

    while (!bad->gone && bad->answers[5].n_finished == 0) {
        worker_pump(bad, 1000);
        if (bad->answers[5].counted && bad->answers[5].open) { /* understood after all */
            worker_record(bad, LLM_IPC_CANCEL, 5, 1, NULL, 0);
        }
    }
    lived = !bad->gone;
    worker_close(bad);
    return lived;
}

static void test_damaged(struct worker *w, int n)
{
    struct answer *a = send_plain(w, 0, 50, 4000);
    int lived = 0;

    for (int i = 0; i < n; i++) {
        lived += send_damaged(engine_socket);
    }
    ok(lived > 0 && lived < n, "%d damaged requests: %d sessions dropped, %d lived", n, n - lived,
       lived);
    worker_await_text(w, a);
    ok(a->n_records > 0, "another session's stream went on");
    worker_cancel(w, 0);
    ok(worker_ends(w, a, LLM_IPC_CANCELLED), "to its end");
    ok(worker_await_idle(w), "all is given back");
}

static void dropped_after(const char *what, uint16_t type, uint32_t slot, const void *data,
                          size_t len)
{
    struct worker *bad = worker_open(engine_socket);
    struct answer *a = send_plain(bad, 1, 50, 4000);

    worker_await_text(bad, a);
    worker_record(bad, type, slot, a->generation, data, len);
    for (int i = 0; i < 100 && !bad->gone; i++) {
        worker_pump(bad, 100);
    }
    ok(bad->gone, "dropped after %s", what);
    worker_close(bad);
}

static bool await_end(struct worker *w)
{
    for (int i = 0; i < 100 && !w->gone; i++) {
        worker_pump(w, 100);
    }
    return w->gone;
}

/* A session of an operator's commands is not for requests. */
static void test_control(void)
{
    struct worker *control = worker_open_as(engine_socket, LLM_IPC_ROLE_CONTROL);
    struct llm_ipc_purge purge = {{1}};

    send_plain(control, 0, 5, 5);
    ok(await_end(control) && control->answers[0].n_finished == 0,
       "dropped after SUBMIT in a control session");
    worker_close(control);

    control = worker_open_as(engine_socket, LLM_IPC_ROLE_CONTROL);
    worker_record(control, LLM_IPC_PURGE, 0, 1, &purge, sizeof(purge) - 1);
    ok(await_end(control), "after a short PURGE");
    worker_close(control);

    control = worker_open_as(engine_socket, LLM_IPC_ROLE_CONTROL);
    for (uint32_t i = 1; i <= 2; i++) {
        struct llm_ipc_iovec part = {&purge, sizeof(purge)};

        worker_must(llm_ipc_send(&control->ipc, LLM_IPC_PURGE, 0, i, &part, 1) == LLM_IPC_DONE);
    }
    llm_ipc_flush(&control->ipc);
    control->answers[0].open = false;
    for (int i = 0; i < 100 && !control->gone; i++) {
        struct pollfd p = {.fd = control->sock, .events = POLLIN};

        control->gone = poll(&p, 1, 100) == 1;
    }
    ok(control->gone, "after a second PURGE before the first was answered");
    worker_close(control);
}

/* A prompt's pages: found while another tenant is purged, not found when its own is. */
static void test_purge(struct worker *w)
{
    struct llm_ipc_purged purged;
    struct llm_error err;
    char address[320];
    uint8_t owner[32] = {1}; /* the tenant of submit_begin */
    struct answer *a;
    struct submit s;

    snprintf(address, sizeof(address), "unix:%s", engine_socket);
    plain(&s, 200, 5);
    a = worker_submit(w, 0, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "a prompt of three pages");
    owner[0] = 2;
    is_int(llm_control_purge(address, owner, 5000, &purged, &err), LLM_OK, "another is purged");
    is_int(purged.pages, 0, "who has nothing");
    submit_ids(&s, prompt, 200, 5);
    a = worker_submit(w, 0, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "the prompt again");
    is_int(a->finished.cached_tokens, 192, "is found");
    owner[0] = 1;
    is_int(llm_control_purge(address, owner, 5000, &purged, &err), LLM_OK, "its tenant is purged");
    ok(purged.pages >= 3, "of all its pages");
    submit_ids(&s, prompt, 200, 5);
    a = worker_submit(w, 0, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "once more");
    is_int(a->finished.cached_tokens, 0, "is not");
    is_int(llm_control_purge("unix:/nowhere", owner, 100, &purged, &err), LLM_EIO,
           "where no engine is");
    is_int(llm_control_purge("nowhere", owner, 100, &purged, &err), LLM_EINVAL, "no address");
}

static void test_protocol_errors(struct worker *w)
{
    struct submit s;
    uint8_t *payload;
    size_t len;

    plain(&s, 5, 5);
    payload = submit_end(&s, &len);
    dropped_after("SUBMIT for a slot in use", LLM_IPC_SUBMIT, 1, payload, len);
    free(payload);
    dropped_after("an empty SUBMIT", LLM_IPC_SUBMIT, 2, NULL, 0);
    dropped_after("a short RELEASE", LLM_IPC_RELEASE, 1, "x", 1);
    dropped_after("a short REVOKE", LLM_IPC_REVOKE, 0, "x", 1);
    dropped_after("a short CREDIT", LLM_IPC_CREDIT, 1, "x", 1);
    dropped_after("a record of the other side", LLM_IPC_TOKEN, 1, NULL, 0);
    dropped_after("a PURGE of a worker", LLM_IPC_PURGE, 0, &(struct llm_ipc_purge){{1}},
                  sizeof(struct llm_ipc_purge));
    test_control();
    ok(worker_await_idle(w), "all is given back");
}

static void test_death(struct worker *w)
{
    for (int round = 0; round < 10; round++) {
        struct worker *dying = worker_open(engine_socket);

        for (uint32_t i = 0; i < 20; i++) {
            send_plain(dying, i, 1 + below(600), 4000);
        }
        for (int i = 0; i < round; i++) {
            worker_pump(dying, 5);
        }
        worker_close(dying);
    }
    ok(worker_await_idle(w), "ten workers die with 20 requests each: all is given back");
}

static void test_strangers(struct worker *w)
{
    int silent = worker_connect(engine_socket), rude = worker_connect(engine_socket);
    struct answer *a;

    worker_must(send(rude, "hello?", 6, MSG_NOSIGNAL) == 6);
    ok(worker_readable(rude, 5000), "somebody who says something else is answered or cut");
    a = send_plain(w, 0, 5, 5);
    ok(worker_ends(w, a, LLM_IPC_OK), "and disturbs nobody");
    close(silent);
    close(rude);
}

/* A worker that takes nothing for a while: the ring fills up, and nothing is lost. */
static void test_full_ring(struct worker *w)
{
    static struct answer *a[40];
    int wrong = 0;
    struct submit s;

    for (uint32_t i = 0; i < 40; i++) {
        plain(&s, 5, 1200);
        s.head.flags |= LLM_IPC_LOGPROBS;
        s.head.top_logprobs = 20;
        a[i] = worker_submit(w, i, &s);
    }
    sleep(3);
    for (uint32_t i = 0; i < 40; i++) {
        wrong += !worker_ends(w, a[i], LLM_IPC_OK) || a[i]->choices[0].n_ids != 1200 ||
                 a[i]->choices[0].n_logprobs != 1200 * 21;
    }
    is_int(wrong, 0, "40 streams to a worker that sleeps at first: all whole");
    ok(worker_await_idle(w), "all is given back");
}

/* kB of memory that a process has. */
static long resident(pid_t pid)
{
    char path[64], line[256];
    long kb = -1;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/status", (int) pid);
    f = fopen(path, "r");
    worker_must(f != NULL);
    while (kb < 0 && fgets(line, sizeof(line), f) != NULL) {
        sscanf(line, "VmRSS: %ld", &kb);
    }
    fclose(f);
    return kb;
}

/* A request that is refused, with so many bytes of a prompt, as soon as there is room for it. */
static void send_refused(struct worker *w, uint32_t slot, const char *text, size_t len)
{
    struct llm_ipc_iovec part;
    struct submit s;
    uint8_t *payload;
    int rc;

    submit_begin(&s, LLM_IPC_KIND_COMPLETION);
    submit_item(&s, LLM_IPC_ITEM_PROMPT_TEXT, 0, text, len);
    s.head.n = LLM_IPC_MAX_N + 1;
    payload = submit_end(&s, &part.len);
    part.data = payload;
    while ((rc = llm_ipc_send(&w->ipc, LLM_IPC_SUBMIT, slot, 1, &part, 1)) == LLM_IPC_AGAIN) {
        llm_ipc_flush(&w->ipc);
        worker_must(worker_readable(w->ipc.own_event, 10000));
        llm_ipc_awake(&w->ipc);
    }
    worker_must(rc == LLM_IPC_DONE);
    llm_ipc_flush(&w->ipc);
    free(payload);
}

/* A worker that does not hear: when the ring is full of answers, the others wait with what they
 * are about, and a prompt that was refused is none of that. */
static void test_refused(pid_t pid)
{
    static char text[1 << 20];
    const uint32_t n_answers = LLM_IPC_DEFAULT_E_ARENA / sizeof(struct llm_ipc_finished);
    const uint32_t n_large = 200;
    struct worker *w = worker_open(engine_socket);
    struct llm_ipc_record r;
    uint32_t n = 0;
    uint64_t end;
    long kb;

    for (uint32_t i = 0; i < n_answers; i++) {
        send_refused(w, i % LLM_IPC_MIN_SLOTS, "x", 1);
    }
    kb = resident(pid);
    memset(text, 'x', sizeof(text));
    for (uint32_t i = 0; i < n_large; i++) {
        send_refused(w, (n_answers + i) % LLM_IPC_MIN_SLOTS, text, sizeof(text));
    }
    kb = resident(pid) - kb;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* they keep what is freed */
    ok(kb < 32 << 10, "%u refused prompts of 1 MB: %ld kB more", n_large, kb);
#endif

    end = llm_now_ns() + w->patience_ns;
    while (n < n_answers + n_large && llm_now_ns() < end) {
        if (llm_ipc_recv(&w->ipc, &r, &w->buffer) == LLM_IPC_DONE) {
            n += r.type == LLM_IPC_FINISHED;
        } else if (llm_ipc_sleep(&w->ipc)) {
            worker_readable(w->ipc.own_event, 100);
            llm_ipc_awake(&w->ipc);
        }
    }
    is_int(n, n_answers + n_large, "and all are answered");
    worker_close(w);
}

static void test_running(void)
{
    pid_t pid;
    struct worker *w, *other;

    fake.step_ns = 200000;
    pid = start("--max-queue-requests", "10");
    w = worker_open(engine_socket);
    other = worker_open(engine_socket);
    ok(worker_await_ready(w), "the engine is ready");
    test_cancel_is_prompt(w);
    test_revoke(w, other);
    test_revoke_late(w);
    test_revoke_in_order(pid, w, other);
    test_queue(w);
    test_deadlines(w);
    worker_close(other);
    is_int(engine_stop(pid), 0, "and ends when told");
    worker_close(w);

    pid = start(NULL, NULL);
    w = worker_open(engine_socket);
    ok(worker_await_ready(w), "the engine is ready");
    test_cancel(w);
    test_cancel_preparing(w);
    test_damaged(w, getenv("LLM_LONG") != NULL ? 5000 : 300);
    test_protocol_errors(w);
    test_purge(w);
    test_death(w);
    test_strangers(w);
    test_full_ring(w);
    test_refused(pid);
    is_int(engine_stop(pid), 0, "and ends when told");
    worker_close(w);
}

/* --- steps that take long --- */

/* A prompt that takes several steps of 400 ms, and one token. */
static struct answer *send_long(struct worker *w, uint64_t queue_deadline_ms)
{
    struct submit s;

    plain(&s, 150, 1);
    if (queue_deadline_ms != 0) {
        s.head.queue_deadline = llm_now_ns() + queue_deadline_ms * LLM_NS_PER_MS;
    }
    return worker_submit(w, 0, &s);
}

/* Ends within 200 ms, though the step goes on for longer. */
static bool ends_at_once(struct worker *w, const struct answer *a, enum llm_ipc_status status)
{
    uint64_t begin = llm_now_ns();

    return worker_ends(w, a, status) && llm_now_ns() - begin < 200 * LLM_NS_PER_MS;
}

static void test_told_at_once(struct worker *w)
{
    struct answer *a, *again;
    struct submit s;

    plain(&s, 150, 1);
    s.head.deadline = llm_now_ns() + 100 * LLM_NS_PER_MS;
    a = worker_submit(w, 1, &s);
    worker_watch(w, 50);
    ok(ends_at_once(w, a, LLM_IPC_TIMEOUT), "a deadline during a step is told at once");

    again = send_plain(w, 1, 150, 1);
    worker_watch(w, 50);
    worker_cancel(w, 1);
    ok(ends_at_once(w, again, LLM_IPC_CANCELLED), "so is a cancel, of a slot that serves again");
    ok(worker_await_idle(w), "and all is given back when the step is done");
}

static void test_long_steps(void)
{
    struct llm_ipc_state state;
    struct answer *a;
    struct worker *w;
    pid_t pid;

    fake.step_ns = 400 * LLM_NS_PER_MS;
    pid = start(NULL, NULL);
    w = worker_open(engine_socket);
    worker_await_ready(w);

    a = send_long(w, 200);
    worker_watch(w, 150);
    llm_ipc_state_read(&w->ipc, &state);
    ok(state.running_requests == 1 && state.queued_requests == 0 &&
           state.free_pages < state.total_pages,
       "what has started shows while its first step runs");
    ok(worker_ends(w, a, LLM_IPC_OK), "a queue's deadline during the first step ends nothing");
    ok(a->finished.queue_ns < 200 * LLM_NS_PER_MS, "the step is no part of the time in the queue");

    test_told_at_once(w);

    a = send_long(w, 0);
    worker_watch(w, 150);
    kill(pid, SIGTERM);
    ok(worker_ends(w, a, LLM_IPC_OK), "SIGTERM during the first step: what runs comes to its end");
    is_int(engine_status(pid), 0, "then the engine ends");
    worker_close(w);

    fake.step_ns = 3 * LLM_NS_PER_S; /* longer than what is cut may take */
    pid = start(NULL, NULL);
    w = worker_open(engine_socket);
    worker_await_ready(w);
    a = send_long(w, 0);
    worker_watch(w, 150);
    kill(pid, SIGTERM);
    worker_watch(w, 50);
    kill(pid, SIGTERM);
    ok(ends_at_once(w, a, LLM_IPC_DRAINING), "what is cut during a step is told at once");
    is_int(engine_status(pid), 0, "then the engine ends");
    worker_close(w);
    fake.step_ns = 0;
}

/* --- the engine's own ends --- */

static void test_loading(void)
{
    struct llm_ipc_purged purged;
    struct llm_error err;
    char address[320];
    struct worker *w;
    struct answer *a;
    pid_t pid;

    engine_load_ns = LLM_NS_PER_S;
    pid = start(NULL, NULL);
    w = worker_open(engine_socket);
    ok((worker_flags(w) & LLM_IPC_STATE_READY) == 0, "a session while the model loads");
    a = send_plain(w, 0, 5, 5);
    ok(worker_ends(w, a, LLM_IPC_QUEUE_FULL), "a request must be tried again");
    is_str(a->finished.detail, "the model is still loading", "and says why");
    snprintf(address, sizeof(address), "unix:%s", engine_socket);
    is_int(llm_control_purge(address, (uint8_t[32]){1}, 500, &purged, &err), LLM_OK,
           "a purge is answered at once");
    is_int(purged.pages, 0, "as nothing is there yet");
    ok((worker_flags(w) & LLM_IPC_STATE_READY) == 0, "while it still loads");
    ok(worker_await_ready(w), "then it is ready");
    a = send_plain(w, 0, 5, 5);
    ok(worker_ends(w, a, LLM_IPC_OK), "and serves the same session");
    is_int(engine_stop(pid), 0, "it ends when told");
    worker_close(w);

    pid = start(NULL, NULL);
    w = worker_open(engine_socket);
    is_int(engine_stop(pid), 0, "told to end while it loads");
    ok(access(engine_socket, F_OK) != 0, "it takes its socket away");
    worker_close(w);
    engine_load_ns = 0;
}

static void test_draining(void)
{
    struct answer *running, *waiting, *held, *late;
    struct worker *w;
    struct submit s;
    pid_t pid;

    fake.step_ns = 1000000;
    pid = start(NULL, NULL);
    w = worker_open(engine_socket);
    worker_await_ready(w);
    plain(&s, 5, 300);
    s.head.max_running = 1;
    running = worker_submit(w, 0, &s);
    worker_await_text(w, running);
    plain(&s, 5, 300);
    s.head.max_running = 1;
    waiting = worker_submit(w, 1, &s);
    plain(&s, 5, 300);
    s.head.flags |= LLM_IPC_AWAIT_RELEASE;
    held = worker_submit(w, 2, &s);
    while (!held->counted) {
        worker_pump(w, 10);
    }
    kill(pid, SIGTERM);
    ok(worker_ends(w, waiting, LLM_IPC_DRAINING) && worker_ends(w, held, LLM_IPC_DRAINING),
       "SIGTERM: what has not started is sent away");
    ok((worker_flags(w) & LLM_IPC_STATE_DRAINING) != 0, "the state says so");
    ok(access(engine_socket, F_OK) != 0, "the path is free for another engine");
    late = send_plain(w, 3, 5, 5);
    ok(worker_ends(w, late, LLM_IPC_DRAINING), "what comes later too");
    ok(worker_ends(w, running, LLM_IPC_OK) && running->choices[0].reason == LLM_IPC_FINISH_LENGTH,
       "what runs comes to its end");
    is_int(engine_status(pid), 0, "then the engine ends");
    worker_close(w);

    pid = start(NULL, NULL);
    w = worker_open(engine_socket);
    worker_await_ready(w);
    running = send_plain(w, 0, 5, 8000);
    worker_await_text(w, running);
    kill(pid, SIGINT);
    worker_watch(w, 100);
    ok(running->n_finished == 0, "SIGINT drains too");
    kill(pid, SIGTERM);
    ok(worker_ends(w, running, LLM_IPC_DRAINING), "a second signal cuts");
    is_int(engine_status(pid), 0, "and the engine ends");
    worker_close(w);
    fake.step_ns = 0;
}

static void test_failing(void)
{
    struct answer *running, *held;
    struct llm_ipc_state state;
    struct worker *w;
    struct submit s;
    pid_t pid;

    fake.fail_at = 100;
    pid = start(NULL, NULL);
    w = worker_open(engine_socket);
    worker_await_ready(w);
    plain(&s, 5, 300);
    s.head.flags |= LLM_IPC_AWAIT_RELEASE;
    held = worker_submit(w, 1, &s);
    while (!held->counted) {
        worker_pump(w, 10);
    }
    running = send_plain(w, 0, 5, 300);
    ok(worker_ends(w, running, LLM_IPC_FAILED) && running->n_records > 0,
       "the backend fails: a stream is told");
    ok(worker_ends(w, held, LLM_IPC_FAILED), "and who waits");
    ok((worker_flags(w) & LLM_IPC_STATE_FAILED) != 0, "the state says so");
    is_int(engine_status(pid), -LLM_EINTERNAL, "the engine ends with an error");
    llm_ipc_state_read(&w->ipc, &state);
    ok(state.running_requests == 0 && state.queued_requests == 0, "and counts no request any more");
    worker_close(w);
    fake.fail_at = 0;
}

static bool notified(int sock, const char *what)
{
    char text[512];
    ssize_t n = worker_readable(sock, 5000) ? recv(sock, text, sizeof(text) - 1, 0) : 0;

    text[n > 0 ? n : 0] = '\0';
    if (strstr(text, what) == NULL) {
        diag("got %s", text);
    }
    return strstr(text, what) != NULL;
}

static void test_notify(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    pid_t pid;

    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", scratch_path("notify"));
    worker_must(bind(sock, (struct sockaddr *) &addr, sizeof(addr)) == 0);
    setenv("NOTIFY_SOCKET", addr.sun_path, 1);
    setenv("WATCHDOG_USEC", "900000", 1);
    pid = start(NULL, NULL);
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");

    ok(notified(sock, "WATCHDOG=1"), "the watchdog is fed at once");
    ok(notified(sock, "READY=1"), "ready is told");
    ok(notified(sock, "WATCHDOG=1") && notified(sock, "WATCHDOG=1"), "the watchdog is fed on");
    kill(pid, SIGTERM);
    while (!notified(sock, "STOPPING=1")) {
    }
    ok(true, "stopping is told");
    is_int(engine_status(pid), 0, "and it ends");
    close(sock);
}

/* A model thread that hangs starves the watchdog. */
static void test_watchdog(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct worker *w;
    unsigned fed = 0;
    char text[512];
    pid_t pid;

    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", scratch_path("watchdog"));
    worker_must(bind(sock, (struct sockaddr *) &addr, sizeof(addr)) == 0);
    setenv("NOTIFY_SOCKET", addr.sun_path, 1);
    setenv("WATCHDOG_USEC", "300000", 1);
    fake.step_ns = 3 * LLM_NS_PER_S;
    pid = start(NULL, NULL);
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    w = worker_open(engine_socket);
    worker_await_ready(w);
    send_plain(w, 0, 5, 5);
    usleep(700000);
    while (recv(sock, text, sizeof(text), MSG_DONTWAIT) > 0) {
    }
    usleep(1000000);
    while (recv(sock, text, sizeof(text), MSG_DONTWAIT) > 0) {
        fed++;
    }
    is_int(fed, 0, "a step that takes too long: the watchdog starves");
    kill(pid, SIGKILL);
    engine_status(pid);
    worker_close(w);
    close(sock);
    fake.step_ns = 0;
}

int main(void)
{
    scratch_init();
    fake.n_pages = 1000;
    test_running();
    test_long_steps();
    test_loading();
    test_draining();
    test_failing();
    test_notify();
    test_watchdog();
    return done_testing();
}
