/* Stands between the tier and a redis-server, in a thread of the test's, and does to replies what a
 * bad server or network would. */

#ifndef T_UNIT_REDIS_HOSTILE_H
#define T_UNIT_REDIS_HOSTILE_H

#include "engine/cache/redis/reply.h"
#include "t/unit/redis_server.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>

#define HOSTILE_CONNS 16
#define HOSTILE_BUFFER (8u << 20)
#define HOSTILE_PAGE 1000 /* a reply longer than that is a page */

enum hostile_mode {
    HOSTILE_RELAY,
    HOSTILE_REFUSE,  /* hangs up at once, on those that are connected too */
    HOSTILE_SILENT,  /* takes everything, answers nothing */
    HOSTILE_DELAY,   /* of every reply, by `ms` */
    HOSTILE_DRIBBLE, /* a byte every `ms` */
    HOSTILE_RATE,    /* a KiB in the time that it takes at `ms` MB/s */
    HOSTILE_CUT,     /* hangs up in the middle of a page */
    HOSTILE_FLIP,    /* a bit of each page */
    HOSTILE_SWAP,    /* the replies of two pages change places */
    HOSTILE_TWICE,   /* every reply */
    HOSTILE_STUTTER, /* the next page twice, once */
    HOSTILE_PAGES,   /* `text` in the place of pages, and then junk */
    HOSTILE_ALL,     /* `text` in the place of every reply */
    HOSTILE_BEFORE,  /* `text` before every reply */
};

struct hostile_act {
    enum hostile_mode mode;
    uint32_t ms;
    const char *text; /* [n_text]; outlives the hostile */
    size_t n_text;
};

struct hostile_conn {
    int down, up; /* -1: free */
    char *buf, *held;
    size_t len, n_held;
};

struct hostile {
    char socket[300], url[400], upstream[300];
    int listener;
    pthread_t thread;
    atomic_bool quit;
    pthread_mutex_t lock;
    struct hostile_act act; /* under the lock */
    atomic_uint turn;       /* counts acts */
    struct hostile_conn conns[HOSTILE_CONNS];
};

static struct hostile_act hostile_now(struct hostile *h)
{
    struct hostile_act act;

    pthread_mutex_lock(&h->lock);
    act = h->act;
    pthread_mutex_unlock(&h->lock);
    return act;
}

__attribute__((unused)) static void hostile_set(struct hostile *h, struct hostile_act act)
{
    pthread_mutex_lock(&h->lock);
    h->act = act;
    pthread_mutex_unlock(&h->lock);
    atomic_fetch_add(&h->turn, 1);
}

static void hostile_close(struct hostile_conn *c)
{
    close(c->down);
    close(c->up);
    free(c->buf);
    free(c->held);
    *c = (struct hostile_conn){.down = -1, .up = -1};
}

/* False: the client is gone, or another act has begun. */
static bool hostile_send(struct hostile *h, struct hostile_conn *c, const char *data, size_t n)
{
    uint32_t turn = atomic_load(&h->turn);

    while (n > 0) {
        struct pollfd p = {.fd = c->down, .events = POLLOUT};
        ssize_t sent;

        if (atomic_load(&h->quit) || atomic_load(&h->turn) != turn) {
            return false;
        }
        if (poll(&p, 1, 10) <= 0) {
            continue;
        }
        sent = send(c->down, data, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN) {
            return false;
        }
        data += sent > 0 ? sent : 0;
        n -= sent > 0 ? (size_t) sent : 0;
    }
    return true;
}

static bool hostile_send_slowly(struct hostile *h, struct hostile_conn *c, const char *data,
                                size_t n, size_t piece, uint32_t us)
{
    for (size_t i = 0; i < n; i += piece) {
        usleep(us);
        if (!hostile_send(h, c, data + i, n - i < piece ? n - i : piece)) {
            return false;
        }
    }
    return true;
}

/* Up to 64 MiB that mean nothing. */
static bool hostile_send_junk(struct hostile *h, struct hostile_conn *c)
{
    static const char junk[65536] = "x";

    for (int i = 0; i < 1024; i++) {
        if (!hostile_send(h, c, junk, sizeof(junk))) {
            return false;
        }
    }
    return true;
}

static bool hostile_swap(struct hostile *h, struct hostile_conn *c, const char *reply, size_t n)
{
    bool good;

    if (c->held == NULL) {
        c->held = malloc(n);
        need(c->held != NULL, "out of memory");
        memcpy(c->held, reply, n);
        c->n_held = n;
        return true;
    }
    good = hostile_send(h, c, reply, n) && hostile_send(h, c, c->held, c->n_held);
    free(c->held);
    c->held = NULL;
    return good;
}

/* A whole reply of the server's, which may be changed. False: the connection is to be closed. */
static bool hostile_reply(struct hostile *h, struct hostile_conn *c, char *reply, size_t n)
{
    struct hostile_act act = hostile_now(h);
    bool page = n > HOSTILE_PAGE;

    switch (act.mode) {
    case HOSTILE_SILENT:
        return true;
    case HOSTILE_DELAY:
        usleep(act.ms * 1000);
        return hostile_send(h, c, reply, n);
    case HOSTILE_DRIBBLE:
        return hostile_send_slowly(h, c, reply, n, 1, act.ms * 1000);
    case HOSTILE_RATE:
        return hostile_send_slowly(h, c, reply, n, 16384, 16384 / act.ms);
    case HOSTILE_CUT:
        return hostile_send(h, c, reply, page ? n / 2 : n) && !page;
    case HOSTILE_FLIP:
        reply[page ? n / 2 : 0] ^= page ? 4 : 0;
        return hostile_send(h, c, reply, n);
    case HOSTILE_SWAP:
        return page ? hostile_swap(h, c, reply, n) : hostile_send(h, c, reply, n);
    case HOSTILE_TWICE:
        return hostile_send(h, c, reply, n) && hostile_send(h, c, reply, n);
    case HOSTILE_STUTTER:
        if (page) {
            pthread_mutex_lock(&h->lock);
            h->act.mode = HOSTILE_RELAY;
            pthread_mutex_unlock(&h->lock);
        }
        return hostile_send(h, c, reply, n) && (!page || hostile_send(h, c, reply, n));
    case HOSTILE_PAGES:
        return page ? hostile_send(h, c, act.text, act.n_text) && hostile_send_junk(h, c)
                    : hostile_send(h, c, reply, n);
    case HOSTILE_ALL:
        return hostile_send(h, c, act.text, act.n_text);
    case HOSTILE_BEFORE:
        return hostile_send(h, c, act.text, act.n_text) && hostile_send(h, c, reply, n);
    default:
        return hostile_send(h, c, reply, n);
    }
}

/* The server has spoken. */
static bool hostile_up(struct hostile *h, struct hostile_conn *c)
{
    ssize_t n = recv(c->up, c->buf + c->len, HOSTILE_BUFFER - c->len, 0);
    struct llm_reply_scan scan;
    size_t begin = 0, used = 0;
    bool good = n > 0;

    c->len += n > 0 ? (size_t) n : 0;
    llm_reply_scan_start(&scan, HOSTILE_BUFFER);
    while (good && begin < c->len
           && llm_reply_scan(&scan, c->buf + begin, c->len - begin, &used) == LLM_REPLY_END) {
        good = hostile_reply(h, c, c->buf + begin, used);
        begin += used;
        llm_reply_scan_start(&scan, HOSTILE_BUFFER);
    }
    memmove(c->buf, c->buf + begin, c->len - begin);
    c->len -= begin;
    return good;
}

static bool hostile_down(struct hostile_conn *c)
{
    static char buf[65536];
    ssize_t n = recv(c->down, buf, sizeof(buf), 0);

    return n > 0 && send(c->up, buf, (size_t) n, MSG_NOSIGNAL) == n;
}

static struct sockaddr_un hostile_address(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    need(strlen(path) < sizeof(addr.sun_path), "a long path");
    memcpy(addr.sun_path, path, strlen(path));
    return addr;
}

static int hostile_connect(const char *path)
{
    struct sockaddr_un addr = hostile_address(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0 && connect(fd, (struct sockaddr *) &addr, sizeof(addr)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void hostile_accept(struct hostile *h)
{
    int down = accept4(h->listener, NULL, NULL, SOCK_CLOEXEC);
    int up = hostile_now(h).mode == HOSTILE_REFUSE ? -1 : hostile_connect(h->upstream);
    char *buf = malloc(HOSTILE_BUFFER);

    need(buf != NULL, "out of memory");
    for (int i = 0; i < HOSTILE_CONNS && up >= 0; i++) {
        if (h->conns[i].down < 0) {
            h->conns[i] = (struct hostile_conn){.down = down, .up = up, .buf = buf};
            return;
        }
    }
    free(buf);
    close(down);
    if (up >= 0) {
        close(up);
    }
}

static void hostile_serve(struct hostile *h, const struct pollfd *fds)
{
    for (int i = 0; i < HOSTILE_CONNS; i++) {
        struct hostile_conn *c = &h->conns[i];
        bool good = hostile_now(h).mode != HOSTILE_REFUSE;

        if (c->down >= 0 && good && fds[1 + 2 * i].revents != 0) {
            good = hostile_down(c);
        }
        if (c->down >= 0 && good && fds[2 + 2 * i].revents != 0) {
            good = hostile_up(h, c);
        }
        if (c->down >= 0 && !good) {
            hostile_close(c);
        }
    }
}

static void *hostile_main(void *arg)
{
    struct hostile *h = arg;

    while (!atomic_load(&h->quit)) {
        struct pollfd fds[1 + 2 * HOSTILE_CONNS] = {{.fd = h->listener, .events = POLLIN}};

        for (int i = 0; i < HOSTILE_CONNS; i++) {
            fds[1 + 2 * i] = (struct pollfd){.fd = h->conns[i].down, .events = POLLIN};
            fds[2 + 2 * i] = (struct pollfd){.fd = h->conns[i].up, .events = POLLIN};
        }
        if (poll(fds, 1 + 2 * HOSTILE_CONNS, 10) < 0) {
            continue;
        }
        hostile_serve(h, fds);
        if (fds[0].revents != 0) {
            hostile_accept(h);
        }
    }
    for (int i = 0; i < HOSTILE_CONNS; i++) {
        if (h->conns[i].down >= 0) {
            hostile_close(&h->conns[i]);
        }
    }
    return NULL;
}

__attribute__((unused)) static void hostile_start(struct hostile *h, const struct server *s)
{
    struct sockaddr_un addr;

    *h = (struct hostile){.act = {HOSTILE_RELAY, 0, NULL, 0}};
    snprintf(h->upstream, sizeof(h->upstream), "%s", s->socket);
    snprintf(h->socket, sizeof(h->socket), "%s", scratch_path("hostile.sock"));
    snprintf(h->url, sizeof(h->url), "redis+unix://llm-engine:change-me@%s", h->socket);
    for (int i = 0; i < HOSTILE_CONNS; i++) {
        h->conns[i].down = h->conns[i].up = -1;
    }
    pthread_mutex_init(&h->lock, NULL);
    h->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    addr = hostile_address(h->socket);
    need(bind(h->listener, (struct sockaddr *) &addr, sizeof(addr)) == 0
             && listen(h->listener, 16) == 0
             && pthread_create(&h->thread, NULL, hostile_main, h) == 0,
         "no hostile server");
}

__attribute__((unused)) static void hostile_stop(struct hostile *h)
{
    atomic_store(&h->quit, true);
    pthread_join(h->thread, NULL);
    close(h->listener);
    pthread_mutex_destroy(&h->lock);
}

#endif
