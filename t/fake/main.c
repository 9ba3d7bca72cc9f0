/* fake-engine: speaks the ABI of engine/ipc without a model, answers by script and misbehaves on
 * command, so that the nginx module can be tested in milliseconds.
 *
 *   fake-engine --listen unix:PATH [--name NAME[,ALIAS…]] [--script WORDS] [--set WORDS]
 *               [--arena BYTES] [--ring ENTRIES] [--control]
 *
 * t/fake/script.h documents the words that requests obey. It prints "ready" when it listens, and
 * its counters when it ends (SIGTERM, SIGINT; with --control also the end of standard input).
 *
 * With --control it obeys commands, one a line of standard input, each answered by one line:
 *
 *   set WORDS      see below                          → ok, or "error: …"
 *   script WORDS   the script before every request's  → ok
 *   drop           closes all sessions                → ok
 *   counters                                          → "sessions=0 requests=0 accepted=1 …"
 *
 * The words of `set`
 *   state=ready|loading|draining|failed
 *   beat=on|off          off: the beat goes stale
 *   consume=on|off       off: takes nothing out of the workers' rings
 *   accept=normal|silent|close|garbage|reject   what happens to a HELLO
 *   reject=N             code of accept=reject (enum llm_ipc_reject_code)
 *   queued=N             queued_requests in the state
 *   queue_limit=N        its limit, queue_limit_requests
 *   queued_tokens=N token_limit=N   the same in tokens
 *   prefill_rate=N       tokens a second
 *   max_context=N
 *   counterI=N           counters[I] (enum llm_ipc_counter)
 *
 * In the state every open request runs and holds one of the pages, so a leak shows there as it
 * does with the real engine. */

#include "t/fake/fake.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define BEAT_MS 20
#define TOTAL_PAGES 100000
#define RECORDS_PER_TURN 4096

uint64_t fake_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t) t.tv_sec * 1000000000u + (uint64_t) t.tv_nsec;
}

static void die(const char *what)
{
    fprintf(stderr, "fake-engine: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* Nothing looks at the data: a turn of the loop looks after everything. */
static void watch(struct fake *f, int fd)
{
    struct epoll_event e = {.events = EPOLLIN};

    e.data.fd = fd;
    if (epoll_ctl(f->epoll, EPOLL_CTL_ADD, fd, &e) != 0) {
        die("epoll_ctl");
    }
}

/* --- sessions --- */

static void session_free(struct session *s)
{
    struct fake *f = s->fake;

    while (s->requests != NULL) {
        request_free(s->requests);
    }
    f->counters.sessions -= s->open;
    llm_ipc_close(&s->ipc);
    llm_ipc_buffer_free(&s->buffer);
    free(s->slots);
    close(s->sock);
    free(s);
}

static void session_new(struct fake *f, int sock)
{
    struct session *s = calloc(1, sizeof(*s));

    if (s == NULL) {
        abort();
    }
    s->fake = f;
    s->sock = sock;
    s->next = f->sessions;
    f->sessions = s;
    watch(f, sock);
}

/* True when it was there. Closing a socket with something unread resets the connection: an answer
 * would be lost. */
static bool drop_hello(int sock)
{
    char hello[512];

    return recv(sock, hello, sizeof(hello), MSG_DONTWAIT) >= 0;
}

/* Answers a HELLO that is there to be read, as `set accept=` says. */
static void session_greet(struct session *s)
{
    struct fake *f = s->fake;
    struct llm_ipc_reject no = {.magic = LLM_IPC_MAGIC, .type = LLM_IPC_REJECT,
                                .size = sizeof(no), .code = f->reject_code,
                                .text = "refused by the script"};
    uint8_t garbage[sizeof(struct llm_ipc_welcome)];
    int rc;

    switch (f->accept) {
    case ACCEPT_NORMALLY:
        rc = llm_ipc_engine_accept(&s->ipc, s->sock, &f->options, f->state_memfd);
        if (rc == LLM_IPC_AGAIN) {
            return;
        }
        if (rc != LLM_IPC_DONE) {
            f->counters.refused++;
            s->dropped = true;
            return;
        }
        s->slots = calloc(s->ipc.slots, sizeof(s->slots[0]));
        if (s->slots == NULL) {
            abort();
        }
        s->open = true;
        f->counters.sessions++;
        f->counters.accepted++;
        watch(f, s->ipc.own_event);
        return;
    case ACCEPT_SILENT:
        return;
    case ACCEPT_CLOSE:
        s->dropped = true;
        return;
    case ACCEPT_REJECT:
        if (!drop_hello(s->sock)) {
            return;
        }
        send(s->sock, &no, sizeof(no), MSG_NOSIGNAL);
        break;
    case ACCEPT_GARBAGE:
        if (!drop_hello(s->sock)) {
            return;
        }
        memset(garbage, 0xa5, sizeof(garbage));
        send(s->sock, garbage, sizeof(garbage), MSG_NOSIGNAL);
        break;
    }
    f->counters.refused++;
    s->dropped = true;
}

/* The socket only tells, by its end, that the worker is gone. */
static bool session_gone(const struct session *s)
{
    char byte;
    ssize_t n = recv(s->sock, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

    return n >= 0 ? s->open || n == 0 : errno != EAGAIN && errno != EINTR;
}

static void revoke_key(struct fake *f, const struct llm_ipc_revoke *r)
{
    for (struct session *s = f->sessions; s != NULL; s = s->next) {
        for (struct request *q = s->requests; q != NULL; q = q->next) {
            if (memcmp(q->submit.key_id, r->key_id, sizeof(r->key_id)) == 0) {
                request_revoke(q);
            }
        }
    }
}

/* Obeys one record; false for a breach of the protocol. */
static bool obey(struct session *s, const struct llm_ipc_record *r)
{
    struct counters *n = &s->fake->counters;
    struct request *q = s->slots[r->slot];
    struct llm_ipc_release release;
    struct llm_ipc_credit credit;
    struct llm_ipc_revoke rev;

    switch (r->type) {
    case LLM_IPC_SUBMIT:
        request_submit(s, r);
        return true;
    case LLM_IPC_REVOKE:
        if (llm_ipc_revoke_read(r, &rev) != LLM_IPC_DONE) {
            return false;
        }
        revoke_key(s->fake, &rev);
        return true;
    }

    if (q == NULL || q->generation != r->generation) {
        n->late++; /* it crossed FINISHED on its way */
        return true;
    }
    switch (r->type) {
    case LLM_IPC_CANCEL:
        request_cancel(q);
        return true;
    case LLM_IPC_RELEASE:
        if (llm_ipc_release_read(r, &release) != LLM_IPC_DONE) {
            return false;
        }
        n->released++;
        request_release(q, release.max_tokens);
        return true;
    case LLM_IPC_CREDIT:
        if (llm_ipc_credit_read(r, &credit) != LLM_IPC_DONE) {
            return false;
        }
        n->credited += credit.bytes;
        request_credit(q, credit.bytes);
        return true;
    }
    return false;
}

static void session_receive(struct session *s)
{
    struct llm_ipc_record r;
    int rc = LLM_IPC_DONE;

    for (unsigned i = 0; i < RECORDS_PER_TURN && !s->dropped; i++) {
        rc = llm_ipc_recv(&s->ipc, &r, &s->buffer);
        if (rc == LLM_IPC_AGAIN) {
            return;
        }
        if (rc != LLM_IPC_DONE || !obey(s, &r)) {
            fprintf(stderr, "fake-engine: session dropped: %s\n",
                    s->ipc.error != NULL ? s->ipc.error : "malformed record");
            s->fake->counters.broken++;
            s->dropped = true;
        }
    }
}

static void session_turn(struct session *s)
{
    struct request *q, *next;
    uint64_t now;

    if (session_gone(s)) {
        s->fake->counters.gone += s->open;
        s->dropped = true;
        return;
    }
    if (!s->open) {
        session_greet(s);
        return;
    }

    llm_ipc_awake(&s->ipc);
    if (s->fake->consume) {
        session_receive(s);
    }
    now = fake_now(); /* what has just come is due */
    for (q = s->requests; q != NULL && !s->dropped; q = next) {
        next = q->next;
        request_run(q, now);
    }
    if (!s->dropped) {
        llm_ipc_flush(&s->ipc);
    }
}

static void reap(struct fake *f)
{
    struct session **at = &f->sessions;

    while (*at != NULL) {
        struct session *s = *at;

        if (s->dropped) {
            *at = s->next;
            session_free(s);
        } else {
            at = &s->next;
        }
    }
}

/* --- settings and commands --- */

static bool set_word(struct fake *f, const char *name, const char *value)
{
    static const char *const accepts[] = {"normal", "silent", "close", "reject", "garbage"};
    static const struct {
        const char *name;
        uint32_t flags;
    } states[] = {{"ready", LLM_IPC_STATE_READY},
                  {"loading", 0},
                  {"draining", LLM_IPC_STATE_READY | LLM_IPC_STATE_DRAINING},
                  {"failed", LLM_IPC_STATE_FAILED}};
    struct llm_ipc_state *state = f->state;
    uint32_t number = (uint32_t) strtoul(value, NULL, 10);
    bool on = strcmp(value, "on") == 0;

    if (strcmp(name, "state") == 0) {
        for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++) {
            if (strcmp(states[i].name, value) == 0) {
                __atomic_store_n(&state->flags, states[i].flags, __ATOMIC_RELEASE);
                return true;
            }
        }
        return false;
    }
    if (strcmp(name, "accept") == 0) {
        for (unsigned i = 0; i < sizeof(accepts) / sizeof(accepts[0]); i++) {
            if (strcmp(accepts[i], value) == 0) {
                f->accept = i;
                return true;
            }
        }
        return false;
    }
    if (strcmp(name, "beat") == 0) {
        f->beat = on;
    } else if (strcmp(name, "consume") == 0) {
        f->consume = on;
    } else if (strcmp(name, "reject") == 0) {
        f->reject_code = number;
    } else if (strcmp(name, "queued") == 0) {
        state->queued_requests = number;
    } else if (strcmp(name, "queue_limit") == 0) {
        state->queue_limit_requests = number;
    } else if (strcmp(name, "queued_tokens") == 0) {
        state->queued_tokens = number;
    } else if (strcmp(name, "token_limit") == 0) {
        state->queue_limit_tokens = number;
    } else if (strcmp(name, "prefill_rate") == 0) {
        state->prefill_rate = number;
    } else if (strcmp(name, "max_context") == 0) {
        state->max_context = number;
    } else if (strncmp(name, "counter", 7) == 0) {
        state->counters[strtoul(name + 7, NULL, 10) % 256] = number;
    } else {
        return false;
    }
    return true;
}

static bool set_words(struct fake *f, const char *words)
{
    char *copy = strdup(words), *save, *word;
    bool good = copy != NULL;

    for (word = strtok_r(copy, " ", &save); word != NULL && good;
         word = strtok_r(NULL, " ", &save)) {
        char *value = strchr(word, '=');

        if (value != NULL) {
            *value++ = '\0';
        }
        good = value != NULL && set_word(f, word, value);
    }
    free(copy);
    return good;
}

static void set_script(struct fake *f, const char *words)
{
    free(f->default_script);
    f->default_script = strdup(words);
    if (f->default_script == NULL) {
        abort();
    }
}

static void print_counters(const struct fake *f)
{
    const struct counters *n = &f->counters;

    printf("sessions=%" PRIu64 " requests=%" PRIu64 " accepted=%" PRIu64 " refused=%" PRIu64
           " broken=%" PRIu64 " gone=%" PRIu64 " submitted=%" PRIu64 " finished=%" PRIu64
           " cancelled=%" PRIu64 " late=%" PRIu64 " revoked=%" PRIu64 " released=%" PRIu64
           " credited=%" PRIu64 " invalid=%" PRIu64 " read=%" PRIu64 " cached=%" PRIu64
           " made=%" PRIu64 "\n",
           n->sessions, n->requests, n->accepted, n->refused, n->broken, n->gone, n->submitted,
           n->finished, n->cancelled, n->late, n->revoked, n->released, n->credited, n->invalid,
           n->read, n->cached, n->made);
}

static void command(struct fake *f, char *line)
{
    char *rest = strchr(line, ' ');

    if (rest != NULL) {
        *rest++ = '\0';
    } else {
        rest = line + strlen(line);
    }

    if (strcmp(line, "counters") == 0) {
        print_counters(f);
    } else if (strcmp(line, "set") == 0) {
        puts(set_words(f, rest) ? "ok" : "error: unknown word");
    } else if (strcmp(line, "script") == 0) {
        struct script s;

        script_init(&s);
        set_script(f, rest);
        puts(script_parse(&s, rest, strlen(rest)) == 0 ? "ok" : "error: unknown value");
    } else if (strcmp(line, "drop") == 0) {
        for (struct session *s = f->sessions; s != NULL; s = s->next) {
            s->dropped = true;
        }
        reap(f);
        puts("ok");
    } else {
        puts("error: unknown command");
    }
}

/* Commands are short and come from a pipe in one piece each. */
static void read_commands(struct fake *f)
{
    char lines[4096], *save;
    ssize_t n = read(f->control, lines, sizeof(lines) - 1);

    if (n < 0 && errno == EAGAIN) {
        return;
    }
    if (n <= 0) {
        f->stop = true;
        return;
    }
    lines[n] = '\0';
    for (char *line = strtok_r(lines, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        command(f, line);
    }
}

/* --- the loop --- */

static void publish_state(struct fake *f, uint64_t now)
{
    struct llm_ipc_state *state = f->state;
    uint32_t running = (uint32_t) f->counters.requests;

    __atomic_store_n(&state->running_requests, running, __ATOMIC_RELAXED);
    __atomic_store_n(&state->free_pages, state->total_pages - running, __ATOMIC_RELAXED);
    if (f->beat) {
        __atomic_store_n(&state->beat_ns, now, __ATOMIC_RELEASE);
        state->beats++;
    }
}

/* Milliseconds until something is due, 0 when a worker already waits. */
static int sleep_time(struct fake *f, uint64_t now)
{
    uint64_t ms = BEAT_MS;

    if (f->consume) {
        for (struct session *s = f->sessions; s != NULL; s = s->next) {
            if (s->open && !llm_ipc_sleep(&s->ipc)) {
                return 0;
            }
        }
    }
    if (f->next_due <= now) {
        return 0;
    }
    if ((f->next_due - now) / 1000000 < ms) {
        ms = (f->next_due - now + 999999) / 1000000;
    }
    return (int) ms;
}

static void accept_all(struct fake *f)
{
    int sock;

    while ((sock = accept4(f->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        session_new(f, sock);
    }
}

static void loop(struct fake *f)
{
    struct epoll_event events[64];

    while (!f->stop) {
        uint64_t now;
        int n;

        f->next_due = UINT64_MAX;
        accept_all(f);
        for (struct session *s = f->sessions; s != NULL; s = s->next) {
            session_turn(s);
        }
        reap(f);
        now = fake_now();
        publish_state(f, now);

        n = epoll_wait(f->epoll, events, 64, sleep_time(f, now));
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == f->signals) {
                f->stop = true;
            } else if (events[i].data.fd == f->control) {
                read_commands(f);
            }
        }
    }
}

static void listen_on(struct fake *f, const char *where)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    const char *path = strncmp(where, "unix:", 5) == 0 ? where + 5 : where;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        errno = ENAMETOOLONG;
        die(path);
    }
    memcpy(addr.sun_path, path, strlen(path) + 1);
    unlink(path);
    f->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (f->listener < 0 || bind(f->listener, (struct sockaddr *) &addr, sizeof(addr)) != 0 ||
        listen(f->listener, 128) != 0) {
        die(path);
    }
    watch(f, f->listener);
}

static void set_names(struct llm_ipc_state *state, const char *names)
{
    const char *end;

    for (state->n_names = 0; state->n_names < LLM_IPC_MAX_NAMES; names = end + 1) {
        end = strchrnul(names, ',');
        snprintf(state->names[state->n_names++], LLM_IPC_MAX_NAME, "%.*s", (int) (end - names),
                 names);
        if (*end == '\0') {
            return;
        }
    }
}

static void set_up(struct fake *f)
{
    sigset_t signals;

    if (llm_ipc_state_create(&f->state, &f->state_memfd) != LLM_IPC_DONE) {
        die("state");
    }
    f->prefixes.state = f->state;
    f->state->start_time = 1700000000;
    memcpy(f->state->fingerprint, "\xfa\xce\xfa\xce\xfa\xce\xfa\xce", 8);
    f->state->total_pages = f->state->free_pages = TOTAL_PAGES;
    f->state->max_context = 4096;
    f->state->vocab_size = 4096;
    f->state->beat_ns = fake_now();
    f->state->flags = LLM_IPC_STATE_READY;

    f->epoll = epoll_create1(EPOLL_CLOEXEC);
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    f->signals = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
    if (f->epoll < 0 || f->signals < 0) {
        die("set-up");
    }
    watch(f, f->signals);
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
}

static void usage(void)
{
    fputs("usage: fake-engine --listen unix:PATH [--name NAME[,ALIAS...]] [--script WORDS]\n"
          "                   [--set WORDS] [--arena BYTES] [--ring ENTRIES] [--control]\n",
          stderr);
    exit(2);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"listen", required_argument, NULL, 'l'}, {"name", required_argument, NULL, 'n'},
        {"script", required_argument, NULL, 's'}, {"set", required_argument, NULL, 'S'},
        {"arena", required_argument, NULL, 'a'},  {"ring", required_argument, NULL, 'r'},
        {"control", no_argument, NULL, 'c'},      {NULL, 0, NULL, 0}};
    struct fake f = {.listener = -1, .control = -1, .consume = true, .beat = true,
                     .reject_code = LLM_IPC_REJECT_VERSION,
                     .options = {.arena_size = LLM_IPC_DEFAULT_E_ARENA, .build_id = "fake"}};
    int option;

    set_up(&f);
    set_script(&f, "");
    set_names(f.state, "fake");
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'l':
            listen_on(&f, optarg);
            break;
        case 'n':
            set_names(f.state, optarg);
            break;
        case 's':
            set_script(&f, optarg);
            break;
        case 'S':
            if (!set_words(&f, optarg)) {
                usage();
            }
            break;
        case 'a':
            f.options.arena_size = strtoull(optarg, NULL, 10);
            break;
        case 'r':
            f.options.ring_entries = (uint32_t) strtoul(optarg, NULL, 10);
            break;
        case 'c':
            f.control = STDIN_FILENO;
            watch(&f, f.control);
            break;
        default:
            usage();
        }
    }
    if (f.listener < 0 || optind < argc) {
        usage();
    }

    puts("ready");
    loop(&f);
    print_counters(&f);

    for (struct session *s = f.sessions; s != NULL; s = s->next) {
        s->dropped = true;
    }
    reap(&f);
    free(f.default_script);
    return 0;
}
