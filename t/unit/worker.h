/* The worker's side of a session, for tests of the engine: sends requests, gathers answers, and
 * checks what must hold of every answer. */

#ifndef T_UNIT_WORKER_H
#define T_UNIT_WORKER_H

#include "engine/base/buf.h"
#include "engine/base/clock.h"
#include "engine/ipc/record.h"
#include "t/unit/tap.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define WORKER_SLOTS 256 /* that the tests use */
#define WORKER_CHOICES 8

struct worker_logprob {
    uint32_t id;
    float logprob;
};

struct answer_choice {
    struct llm_buf text, id_bytes, entry_bytes;
    const uint32_t *ids;                  /* [n_ids], in id_bytes */
    const struct worker_logprob *entries; /* [n_logprobs], in entry_bytes */
    uint32_t n_ids, n_logprobs;
    unsigned reason; /* enum llm_ipc_finish; 0: not ended */
};

struct answer {
    uint32_t generation;
    bool open, counted;
    uint32_t prompt_tokens, cached_guess; /* of COUNTED */
    unsigned n_finished;
    struct llm_ipc_finished finished;
    uint32_t n_records; /* TOKEN */
    struct answer_choice choices[WORKER_CHOICES];
};

struct worker {
    int sock;
    struct llm_ipc_session ipc;
    struct llm_ipc_buffer buffer;
    uint64_t patience_ns; /* how long worker_await waits */
    uint32_t generations;
    bool gone; /* the engine has ended the session */
    struct answer answers[WORKER_SLOTS];
};

#define worker_must(cond)                                                                         \
    do {                                                                                          \
        if (!(cond)) {                                                                            \
            printf("Bail out! worker.h:%d: %s (%s)\n", __LINE__, #cond, strerror(errno));         \
            fflush(stdout);                                                                       \
            exit(2);                                                                              \
        }                                                                                         \
    } while (0)

/* --- session --- */

static bool worker_readable(int fd, int ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, ms) == 1;
}

static int worker_connect(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    worker_must(sock >= 0 && strlen(path) < sizeof(addr.sun_path));
    strcpy(addr.sun_path, path);
    for (int i = 0; connect(sock, (struct sockaddr *) &addr, sizeof(addr)) != 0; i++) {
        worker_must((errno == ENOENT || errno == ECONNREFUSED) && i < 1000);
        usleep(10000);
    }
    return sock;
}

static struct worker *worker_open_as(const char *path, enum llm_ipc_role role)
{
    const struct llm_ipc_options options = {
        .slots = LLM_IPC_MIN_SLOTS,
        .arena_size = LLM_IPC_DEFAULT_W_ARENA,
        .build_id = "worker of a test",
        .role = role,
    };
    struct worker *w = calloc(1, sizeof(*w));

    worker_must(w != NULL);
    w->patience_ns = 10 * LLM_NS_PER_S;
    w->sock = worker_connect(path);
    worker_must(llm_ipc_worker_hello(&w->ipc, w->sock, &options) == LLM_IPC_DONE);
    worker_must(worker_readable(w->sock, 10000));
    worker_must(llm_ipc_worker_welcome(&w->ipc, w->sock) == LLM_IPC_DONE);
    return w;
}

static struct worker *worker_open(const char *path)
{
    return worker_open_as(path, LLM_IPC_ROLE_WORKER);
}

static void answer_clear(struct answer *a)
{
    for (unsigned i = 0; i < WORKER_CHOICES; i++) {
        llm_buf_free(&a->choices[i].text);
        llm_buf_free(&a->choices[i].entry_bytes);
        llm_buf_free(&a->choices[i].id_bytes);
    }
    memset(a, 0, sizeof(*a));
}

static void worker_close(struct worker *w)
{
    for (unsigned i = 0; i < WORKER_SLOTS; i++) {
        answer_clear(&w->answers[i]);
    }
    llm_ipc_close(&w->ipc);
    llm_ipc_buffer_free(&w->buffer);
    close(w->sock);
    free(w);
}

static uint32_t worker_flags(const struct worker *w)
{
    return __atomic_load_n(&w->ipc.state->flags, __ATOMIC_ACQUIRE);
}

static bool worker_await_ready(const struct worker *w)
{
    for (int i = 0; i < 3000 && (worker_flags(w) & LLM_IPC_STATE_READY) == 0; i++) {
        usleep(10000);
    }
    return (worker_flags(w) & LLM_IPC_STATE_READY) != 0;
}

/* True when, within some seconds, the engine holds nothing any more. */
static bool worker_await_idle(const struct worker *w)
{
    struct llm_ipc_state s;

    for (int i = 0; i < 1000; i++) {
        llm_ipc_state_read(&w->ipc, &s);
        if (s.queued_requests == 0 && s.running_requests == 0 && s.queued_tokens == 0 &&
            s.free_pages == s.total_pages) {
            return true;
        }
        usleep(10000);
    }
    diag("queued %u, running %u, queued tokens %llu, pages %u of %u free", s.queued_requests,
         s.running_requests, (unsigned long long) s.queued_tokens, s.free_pages, s.total_pages);
    return false;
}

/* --- records out --- */

static void *worker_grow(void *ctx, void *old, size_t old_len, size_t size)
{
    (void) ctx;
    (void) old_len;
    return realloc(old, size);
}

/* A request to be: greedy, one choice. Fill in the head, add items, then send it. */
struct submit {
    struct llm_ipc_submit head;
    struct llm_ipc_writer writer;
};

static void submit_item(struct submit *s, uint16_t type, uint16_t arg, const void *data,
                        size_t len)
{
    llm_ipc_submit_item(&s->writer, type, arg, data, len);
}

static void submit_begin(struct submit *s, enum llm_ipc_kind kind)
{
    *s = (struct submit){
        .head = {.kind = (uint8_t) kind, .n = 1, .weight = 1, .top_p = 1, .repetition_penalty = 1},
        .writer = {.limit = LLM_IPC_DEFAULT_W_ARENA / 2, .grow = worker_grow},
    };
    s->head.tenant[0] = 1;
    llm_ipc_submit_begin(&s->writer, &s->head);
    submit_item(s, LLM_IPC_ITEM_TENANT, 0, "tester", 6);
}

static void submit_ids(struct submit *s, const uint32_t *ids, uint32_t n, uint32_t max_tokens)
{
    submit_begin(s, LLM_IPC_KIND_COMPLETION);
    s->head.max_tokens = max_tokens;
    submit_item(s, LLM_IPC_ITEM_PROMPT_IDS, 0, ids, n * sizeof(*ids));
}

__attribute__((unused)) static void submit_text(struct submit *s, const char *text,
                                                uint32_t max_tokens)
{
    submit_begin(s, LLM_IPC_KIND_COMPLETION);
    s->head.max_tokens = max_tokens;
    submit_item(s, LLM_IPC_ITEM_PROMPT_TEXT, 0, text, strlen(text));
}

__attribute__((unused)) static void submit_message(struct submit *s,
                                                   enum llm_ipc_message_role role,
                                                   const char *content)
{
    submit_item(s, LLM_IPC_ITEM_MESSAGE, (uint16_t) role, NULL, 0);
    submit_item(s, LLM_IPC_ITEM_CONTENT, 0, content, strlen(content));
}

__attribute__((unused)) static void submit_stop(struct submit *s, const char *stop)
{
    submit_item(s, LLM_IPC_ITEM_STOP, 0, stop, strlen(stop));
}

static void worker_record(struct worker *w, uint16_t type, uint32_t slot, uint32_t generation,
                          const void *data, size_t len)
{
    struct llm_ipc_iovec part = {data, len};

    worker_must(llm_ipc_send(&w->ipc, type, slot, generation, &part, 1) == LLM_IPC_DONE);
    llm_ipc_flush(&w->ipc);
}

/* The payload as it is sent, owned by the caller. */
static uint8_t *submit_end(struct submit *s, size_t *len)
{
    worker_must(llm_ipc_submit_end(&s->writer));
    /* what the test changed in the head since it began */
    s->head.size = sizeof(s->head);
    s->head.n_items = s->writer.n_items;
    memcpy(s->writer.data, &s->head, sizeof(s->head));
    *len = s->writer.len;
    return s->writer.data;
}

static struct answer *worker_submit(struct worker *w, uint32_t slot, struct submit *s)
{
    struct answer *a = &w->answers[slot];
    size_t len;
    uint8_t *payload = submit_end(s, &len);

    worker_must(!a->open);
    answer_clear(a);
    a->generation = ++w->generations;
    a->open = true;
    worker_record(w, LLM_IPC_SUBMIT, slot, a->generation, payload, len);
    free(payload);
    return a;
}

__attribute__((unused)) static void worker_cancel(struct worker *w, uint32_t slot)
{
    worker_record(w, LLM_IPC_CANCEL, slot, w->answers[slot].generation, NULL, 0);
}

/* --- records in --- */

static void worker_take_token(struct answer *a, const struct llm_ipc_record *r)
{
    struct llm_ipc_token_view v;
    struct llm_ipc_logprob_view l;
    struct answer_choice *c;

    worker_must(llm_ipc_token_read(r, &v) == LLM_IPC_DONE);
    worker_must(v.head.choice < WORKER_CHOICES);
    c = &a->choices[v.head.choice];
    worker_must(c->reason == 0 && v.head.kind == LLM_IPC_TEXT_CONTENT);
    worker_must(v.head.text_length > 0 || v.head.logprobs_length > 0);
    llm_buf_append(&c->id_bytes, v.ids, v.head.n_ids * sizeof(*v.ids));
    c->ids = (const uint32_t *) (const void *) c->id_bytes.data;
    c->n_ids += v.head.n_ids;
    llm_buf_append(&c->text, v.text, v.head.text_length);
    for (size_t at = 0; llm_ipc_logprob_next(&v, &at, &l);) {
        struct worker_logprob entry = {l.id, l.logprob};

        llm_buf_append(&c->entry_bytes, &entry, sizeof(entry));
        c->n_logprobs++;
    }
    c->entries = (const struct worker_logprob *) (const void *) c->entry_bytes.data;
    a->n_records++;
}

static void worker_take(struct worker *w, const struct llm_ipc_record *r)
{
    struct llm_ipc_choice_end end;
    struct llm_ipc_counted counted;
    struct answer *a;

    worker_must(r->slot < WORKER_SLOTS);
    a = &w->answers[r->slot];
    worker_must(a->open && a->generation == r->generation && a->n_finished == 0);

    switch (r->type) {
    case LLM_IPC_COUNTED:
        worker_must(!a->counted && llm_ipc_counted_read(r, &counted) == LLM_IPC_DONE);
        a->counted = true;
        a->prompt_tokens = counted.prompt_tokens;
        a->cached_guess = counted.cached_tokens_estimate;
        break;
    case LLM_IPC_TOKEN:
        worker_must(a->counted);
        worker_take_token(a, r);
        break;
    case LLM_IPC_CHOICE_END:
        worker_must(llm_ipc_choice_end_read(r, &end) == LLM_IPC_DONE);
        worker_must(end.choice < WORKER_CHOICES && a->choices[end.choice].reason == 0);
        a->choices[end.choice].reason = end.reason;
        break;
    case LLM_IPC_FINISHED:
        worker_must(llm_ipc_finished_read(r, &a->finished) == LLM_IPC_DONE);
        a->n_finished++;
        a->open = false;
        break;
    }
}

/* Takes what comes within ms; returns early when something came. */
static void worker_pump(struct worker *w, int ms)
{
    struct llm_ipc_record r;
    unsigned n = 0;
    int rc;

    while ((rc = llm_ipc_recv(&w->ipc, &r, &w->buffer)) == LLM_IPC_DONE) {
        worker_take(w, &r);
        n++;
    }
    worker_must(rc == LLM_IPC_AGAIN);
    if (n == 0 && llm_ipc_sleep(&w->ipc)) {
        struct pollfd p[2] = {{.fd = w->ipc.own_event, .events = POLLIN},
                              {.fd = w->sock, .events = POLLIN}};

        poll(p, 2, ms);
        w->gone = w->gone || p[1].revents != 0;
    }
    llm_ipc_awake(&w->ipc);
    llm_ipc_flush(&w->ipc);
}

/* Takes all that comes within ms. */
__attribute__((unused)) static void worker_watch(struct worker *w, uint64_t ms)
{
    uint64_t end = llm_now_ns() + ms * LLM_NS_PER_MS;

    while (llm_now_ns() < end) {
        worker_pump(w, 10);
    }
}

/* Until the request is finished; false when that takes too long. */
static bool worker_await(struct worker *w, const struct answer *a)
{
    uint64_t end = llm_now_ns() + w->patience_ns;

    while (a->n_finished == 0 && llm_now_ns() < end && !w->gone) {
        worker_pump(w, 100);
    }
    worker_pump(w, 0); /* the records of the moment in which it went */
    return a->n_finished == 1;
}

/* The same with the status that is expected. */
__attribute__((unused)) static bool worker_ends(struct worker *w, const struct answer *a,
                                                enum llm_ipc_status status)
{
    bool good = worker_await(w, a) && a->finished.status == (uint32_t) status;

    if (!good) {
        diag("finished %u times, status %u (%s), want %u", a->n_finished, a->finished.status,
             a->finished.detail, (unsigned) status);
    }
    return good;
}

/* Until some text has come. */
__attribute__((unused)) static bool worker_await_text(struct worker *w, const struct answer *a)
{
    uint64_t end = llm_now_ns() + w->patience_ns;

    while (a->n_records == 0 && a->n_finished == 0 && llm_now_ns() < end) {
        worker_pump(w, 100);
    }
    return a->n_records > 0;
}

#endif
