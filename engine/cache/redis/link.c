#include "engine/cache/redis/link.h"

#include <errno.h>
#include <hiredis/sds.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <unistd.h>

/* Of a connection's first commands, which are the link's own. */
#define KIND_GREETING UINT32_MAX

/* Read at a time as long as it is not known how long the answer is: answers behind it that come
 * along are moved in memory once more, at most so many bytes. */
#define READ_AHEAD 16384

#define MAX_READS 16 /* in a turn */

/* --- answers: hiredis calls these with what it has parsed --- */

static struct llm_redis_asked *oldest(struct llm_redis_link *l)
{
    return &l->asked[l->first_asked % LLM_LINK_ASKED];
}

bool llm_redis_answer_is_error(const struct llm_redis_answer *a, const char *word)
{
    size_t len = strlen(word);

    return a->kind == LLM_ANSWER_ERROR && a->len > len && memcmp(a->text, word, len) == 0
           && a->text[len] == ' ';
}

/* The word that an error begins with; "an error" if it is none. */
static void tell_error(struct llm_redis_link *l, const struct llm_redis_answer *answer)
{
    size_t n = 0;

    while (n < answer->len && n < 16 && answer->text[n] >= 'A' && answer->text[n] <= 'Z') {
        n++;
    }
    snprintf(l->why, sizeof(l->why), "it answers %.*s", n > 0 ? (int) n : 8,
             n > 0 ? answer->text : "an error");
}

static enum llm_redis_miss greeted(struct llm_redis_link *l, const struct llm_redis_answer *answer)
{
    if (answer->kind == LLM_ANSWER_ERROR) {
        return LLM_REDIS_REFUSED;
    }
    if (l->next_asked - l->first_asked == 1) {
        l->state = LLM_LINK_UP;
        l->connects++;
    }
    return LLM_LINK_FINE;
}

static void *take_answer(const redisReadTask *task, const struct llm_redis_answer *answer)
{
    struct llm_redis_link *l = task->privdata;
    const struct llm_redis_asked *asked = oldest(l);

    if (answer->kind == LLM_ANSWER_ERROR) {
        tell_error(l, answer);
    }
    l->verdict = asked->kind == KIND_GREETING ? greeted(l, answer)
                                              : l->answered(l->ctx, asked, answer);
    return l;
}

static void *take_string(const redisReadTask *task, char *text, size_t len)
{
    struct llm_redis_answer answer = {.kind = LLM_ANSWER_STRING, .text = text, .len = len};

    if (task->type == REDIS_REPLY_STATUS) {
        answer.kind = LLM_ANSWER_STATUS;
    } else if (task->type == REDIS_REPLY_ERROR) {
        answer.kind = LLM_ANSWER_ERROR;
    }
    return take_answer(task, &answer);
}

static void *take_integer(const redisReadTask *task, long long value)
{
    return take_answer(task,
                       &(struct llm_redis_answer){.kind = LLM_ANSWER_INTEGER, .integer = value});
}

static void *take_nil(const redisReadTask *task)
{
    return take_answer(task, &(struct llm_redis_answer){.kind = LLM_ANSWER_NIL});
}

/* No command that is sent here is answered by an array: the reader fails. */
static void *refuse_array(const redisReadTask *task, int n)
{
    (void) task, (void) n;
    return NULL;
}

static void free_nothing(void *answer)
{
    (void) answer;
}

static redisReplyObjectFunctions functions = {
    .createString = take_string,
    .createArray = refuse_array,
    .createInteger = take_integer,
    .createNil = take_nil,
    .freeObject = free_nothing,
};

/* --- the connection --- */

void llm_redis_link_init(struct llm_redis_link *l, struct llm_redis_place *place, size_t room,
                         llm_redis_answered *answered, void *ctx)
{
    memset(l, 0, sizeof(*l));
    l->place = place;
    l->room = room;
    l->answered = answered;
    l->ctx = ctx;
    l->fd = -1;
}

static void close_all(struct llm_redis_link *l)
{
    if (l->fd >= 0) {
        close(l->fd);
    }
    if (l->reader != NULL) {
        redisReaderFree(l->reader);
    }
    l->fd = -1;
    l->reader = NULL;
    l->unscanned = 0;
    l->first_asked = l->next_asked;
    l->body = NULL;
    l->state = LLM_LINK_DOWN;
    if (l->out.data != NULL) {
        explicit_bzero(l->out.data, l->out.cap); /* the password */
    }
    llm_buf_free(&l->out);
}

void llm_redis_link_free(struct llm_redis_link *l)
{
    close_all(l);
}

void llm_redis_link_drop(struct llm_redis_link *l)
{
    if (l->state != LLM_LINK_DOWN) {
        l->drops++;
        close_all(l);
    }
}

void llm_redis_link_fail(struct llm_redis_link *l, uint64_t now, const char *why)
{
    uint32_t random = 0;

    if (why != l->why) {
        snprintf(l->why, sizeof(l->why), "%s", why);
    }
    llm_redis_link_drop(l);
    if (getrandom(&random, sizeof(random), GRND_NONBLOCK) != sizeof(random)) {
        random = (uint32_t) now; /* of no secret */
    }
    llm_breaker_failure(&l->breaker, now, random);
}

void llm_redis_link_success(struct llm_redis_link *l)
{
    llm_breaker_success(&l->breaker);
}

static enum llm_redis_miss unreachable(struct llm_redis_link *l, uint64_t now, const char *why)
{
    l->address++;
    llm_redis_place_failed(l->place);
    llm_redis_link_fail(l, now, why);
    return LLM_REDIS_DOWN;
}

static void ask_greeting(struct llm_redis_link *l, const char *const *words, uint32_t n_words)
{
    static const struct llm_redis_asked asked = {.kind = KIND_GREETING, .max_bulk = 64};

    llm_redis_link_ask(l, &asked, words, n_words, NULL, 0);
}

/* A name that nobody has given to anything: what stands under one that others know may be of any
 * kind, and of any length. */
static bool unheard_of(char name[64])
{
    uint64_t random[2];

    if (getrandom(random, sizeof(random), GRND_NONBLOCK) != sizeof(random)) {
        return false;
    }
    snprintf(name, 64, "llm1:hello:%016" PRIx64 "%016" PRIx64, random[0], random[1]);
    return true;
}

/* Says who we are, and asks for something: a server that is loading, or does not know us, says so
 * now. */
static enum llm_redis_miss greet(struct llm_redis_link *l, uint64_t now)
{
    const struct llm_redis_url *url = l->place->url;
    char db[16], name[64];

    l->reader = redisReaderCreateWithFunctions(&functions);
    if (l->reader != NULL) {
        sds buf = sdsMakeRoomFor(l->reader->buf, l->room + READ_AHEAD);

        l->reader->buf = buf != NULL ? buf : l->reader->buf;
        l->reader->privdata = l;
    }
    if (l->reader == NULL || sdsavail(l->reader->buf) < l->room + READ_AHEAD) {
        llm_redis_link_fail(l, now, "out of memory");
        return LLM_REDIS_DOWN;
    }
    if (!unheard_of(name)) {
        llm_redis_link_fail(l, now, "no random numbers are to be had");
        return LLM_REDIS_DOWN;
    }

    l->state = LLM_LINK_GREETING;
    if (url->password[0] != '\0' && url->user[0] != '\0') {
        ask_greeting(l, (const char *[]){"AUTH", url->user, url->password}, 3);
    } else if (url->password[0] != '\0') {
        ask_greeting(l, (const char *[]){"AUTH", url->password}, 2);
    }
    if (url->db != 0) {
        snprintf(db, sizeof(db), "%u", url->db);
        ask_greeting(l, (const char *[]){"SELECT", db}, 2);
    }
    ask_greeting(l, (const char *[]){"GET", name}, 2);
    llm_reply_scan_start(&l->scan, oldest(l)->max_bulk);
    return LLM_LINK_FINE;
}

static enum llm_redis_miss begin(struct llm_redis_link *l, uint64_t now)
{
    const struct llm_redis_address *a = llm_redis_place_address(l->place, l->address);
    int one = 1;

    if (a == NULL) {
        return unreachable(l, now, "its name has no address");
    }
    l->fd = socket(a->addr.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd < 0) {
        return unreachable(l, now, strerror(errno));
    }
    l->state = LLM_LINK_CONNECTING;
    l->limit = now + LLM_LINK_GREETING_NS;
    if (a->addr.ss_family != AF_UNIX) {
        setsockopt(l->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        setsockopt(l->fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    }
    if (connect(l->fd, (const struct sockaddr *) &a->addr, a->len) == 0) {
        return greet(l, now);
    }
    return errno == EINPROGRESS ? LLM_LINK_FINE : unreachable(l, now, strerror(errno));
}

static enum llm_redis_miss go_on(struct llm_redis_link *l, uint64_t now)
{
    socklen_t len = sizeof(int);
    int error = 0;

    if (getsockopt(l->fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0 || error != 0) {
        return unreachable(l, now, strerror(error));
    }
    return greet(l, now);
}

/* --- sending --- */

uint32_t llm_redis_link_free_asks(const struct llm_redis_link *l)
{
    return LLM_LINK_ASKED - (l->next_asked - l->first_asked);
}

void llm_redis_link_ask(struct llm_redis_link *l, const struct llm_redis_asked *asked,
                        const char *const *words, uint32_t n_words, const void *body,
                        size_t n_body)
{
    llm_buf_printf(&l->out, "*%u\r\n", n_words);
    for (uint32_t i = 0; i < n_words; i++) {
        llm_buf_printf(&l->out, "$%zu\r\n", words[i] != NULL ? strlen(words[i]) : n_body);
        if (words[i] != NULL) {
            llm_buf_puts(&l->out, words[i]);
        } else {
            l->body = body;
            l->n_body = n_body;
            l->body_at = l->out.len;
            l->body_sent = 0;
        }
        llm_buf_puts(&l->out, "\r\n");
    }
    if (l->next_asked == l->first_asked && l->state == LLM_LINK_UP) {
        llm_reply_scan_start(&l->scan, asked->max_bulk);
    }
    l->asked[l->next_asked++ % LLM_LINK_ASKED] = *asked;
}

/* n bytes are gone. */
static void sent(struct llm_redis_link *l, size_t n)
{
    size_t before = l->body != NULL && n > l->body_at ? l->body_at : n;

    llm_buf_consume(&l->out, before);
    n -= before;
    if (l->body == NULL) {
        return;
    }

    l->body_at -= before;
    if (n < l->n_body - l->body_sent) {
        l->body_sent += n;
    } else {
        n -= l->n_body - l->body_sent;
        l->body = NULL;
        llm_buf_consume(&l->out, n);
    }
}

enum llm_redis_miss llm_redis_link_flush(struct llm_redis_link *l, uint64_t now)
{
    if (l->out.failed) {
        llm_redis_link_fail(l, now, "out of memory");
        return LLM_REDIS_DOWN;
    }
    while (l->state >= LLM_LINK_GREETING && l->out.len > 0) {
        size_t head = l->body != NULL ? l->body_at : l->out.len;
        struct iovec iov[3] = {
            {l->out.data, head},
            {(void *) (l->body + l->body_sent), l->n_body - l->body_sent},
            {l->out.data + head, l->out.len - head},
        };
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = l->body != NULL ? 3 : 1};
        ssize_t n = sendmsg(l->fd, &msg, MSG_NOSIGNAL);

        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            break;
        }
        if (n < 0) {
            llm_redis_link_fail(l, now, strerror(errno));
            return LLM_REDIS_DOWN;
        }
        sent(l, (size_t) n);
    }
    return LLM_LINK_FINE;
}

/* --- receiving --- */

/* A whole answer is in the reader's buffer. */
static enum llm_redis_miss read_answer(struct llm_redis_link *l)
{
    void *answer = NULL;

    l->verdict = LLM_REDIS_PROTOCOL;
    if (redisReaderGetReply(l->reader, &answer) != REDIS_OK || answer == NULL) {
        return LLM_REDIS_PROTOCOL;
    }
    if (l->verdict != LLM_LINK_FINE) {
        return l->verdict;
    }
    l->first_asked++;
    if (l->first_asked != l->next_asked) {
        llm_reply_scan_start(&l->scan, oldest(l)->max_bulk);
    }
    return LLM_LINK_FINE;
}

/* Looks at what has been received; LLM_LINK_FINE: more is to come, or nothing is outstanding. */
static enum llm_redis_miss scan(struct llm_redis_link *l)
{
    enum llm_redis_miss verdict = LLM_LINK_FINE;

    while (l->unscanned > 0 && verdict == LLM_LINK_FINE) {
        const char *data = l->reader->buf + l->reader->len - l->unscanned;
        enum llm_reply_state state = LLM_REPLY_BAD;
        size_t used = 0;

        if (l->first_asked != l->next_asked) {
            state = llm_reply_scan(&l->scan, data, l->unscanned, &used);
        }
        l->unscanned -= used;
        if (state == LLM_REPLY_BAD) {
            verdict = LLM_REDIS_PROTOCOL;
        } else if (state == LLM_REPLY_END) {
            verdict = read_answer(l);
        }
    }
    if (verdict == LLM_REDIS_PROTOCOL) {
        snprintf(l->why, sizeof(l->why), "it answers what nobody asked");
    }
    return verdict;
}

/* The rest of a string whose length is known, and nothing behind it: it stays where it is. */
static size_t read_size(const struct llm_redis_link *l)
{
    uint64_t needs = llm_reply_scan_needs(&l->scan);

    return l->first_asked != l->next_asked && needs > 1 ? (size_t) needs : READ_AHEAD;
}

/* Nobody uses the connection: who hangs up now may well be there for the next one. But not one that
 * was had a moment ago, lest it go on like that. */
static bool is_idle(const struct llm_redis_link *l, uint64_t now)
{
    return l->state == LLM_LINK_UP && l->first_asked == l->next_asked
           && now - l->heard_ns >= LLM_LINK_IDLE_NS;
}

static enum llm_redis_miss receive(struct llm_redis_link *l, uint64_t now)
{
    redisReader *reader = l->reader;

    for (int i = 0; i < MAX_READS; i++) {
        size_t want = read_size(l);
        sds buf = sdsMakeRoomFor(reader->buf, want);
        enum llm_redis_miss verdict;
        ssize_t n;

        if (buf == NULL) {
            llm_redis_link_fail(l, now, "out of memory");
            return LLM_REDIS_DOWN;
        }
        reader->buf = buf;
        n = recv(l->fd, buf + reader->len, want, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            return LLM_LINK_FINE;
        }
        if (n <= 0 && is_idle(l, now)) {
            llm_redis_link_drop(l);
            return LLM_LINK_FINE;
        }
        if (n <= 0) {
            llm_redis_link_fail(l, now, n < 0 ? strerror(errno) : "it closed the connection");
            return LLM_REDIS_DOWN;
        }
        l->heard_ns = now;
        sdsIncrLen(buf, (int) n);
        reader->len += (size_t) n;
        l->unscanned += (size_t) n;

        verdict = scan(l);
        if (verdict != LLM_LINK_FINE) {
            l->faulty = l->first_asked != l->next_asked ? *oldest(l) : (struct llm_redis_asked){0};
            llm_redis_link_fail(l, now, l->why);
            return verdict;
        }
        if ((size_t) n < want) {
            return LLM_LINK_FINE;
        }
    }
    return LLM_LINK_FINE;
}

/* --- in turn --- */

struct pollfd llm_redis_link_poll(const struct llm_redis_link *l)
{
    struct pollfd p = {.fd = l->fd, .events = POLLIN};

    if (l->state == LLM_LINK_CONNECTING) {
        p.events = POLLOUT;
    } else if (l->out.len > 0) {
        p.events |= POLLOUT;
    }
    return p;
}

uint64_t llm_redis_link_next(const struct llm_redis_link *l)
{
    if (l->state == LLM_LINK_DOWN) {
        return l->breaker.until;
    }
    return l->state < LLM_LINK_UP ? l->limit : UINT64_MAX;
}

enum llm_redis_miss llm_redis_link_turn(struct llm_redis_link *l, short revents, uint64_t now)
{
    enum llm_redis_miss verdict = LLM_LINK_FINE;

    if (l->state == LLM_LINK_DOWN && llm_breaker_try(&l->breaker, now)) {
        verdict = begin(l, now);
    } else if (l->state == LLM_LINK_CONNECTING && revents != 0) {
        verdict = go_on(l, now);
    } else if (l->state >= LLM_LINK_GREETING && (revents & ~POLLOUT) != 0) {
        verdict = receive(l, now);
    }
    if (l->state >= LLM_LINK_GREETING) {
        verdict = llm_redis_link_flush(l, now);
    }
    if ((l->state == LLM_LINK_CONNECTING || l->state == LLM_LINK_GREETING) && now >= l->limit) {
        verdict = unreachable(l, now, "it does not answer");
    }
    return verdict;
}
