/* A Redis for benches, on a Unix socket and on TCP, and a relay in front of it that is as slow as
 * one likes. */

#ifndef T_BENCH_REDIS_H
#define T_BENCH_REDIS_H

#include "engine/cache/redis/redis.h"
#include "t/bench/driver.h"
#include "t/unit/redis_server.h"

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>

/* --- the relay --- */

struct relay {
    uint64_t bytes_per_s; /* of answers; 0: no bound */
    uint64_t delay_ns;    /* of what is asked */
    bool swallows;        /* what is asked */
    const char *socket;   /* of the server */
    int listening;
    char url[128];
};

struct relayed {
    const struct relay *relay;
    int client, server;
};

static void bench_sleep(uint64_t ns)
{
    nanosleep(&(struct timespec){.tv_sec = (time_t) (ns / LLM_NS_PER_S),
                                 .tv_nsec = (long) (ns % LLM_NS_PER_S)}, NULL);
}

static bool bench_write(int fd, const char *data, size_t n)
{
    while (n > 0) {
        ssize_t done = send(fd, data, n, MSG_NOSIGNAL);

        if (done <= 0) {
            return false;
        }
        data += done;
        n -= (size_t) done;
    }
    return true;
}

/* Answers, at their rate. */
static void *bench_relay_back(void *arg)
{
    const struct relayed *c = arg;
    uint64_t rate = c->relay->bytes_per_s, free_at = 0;
    static _Thread_local char data[1 << 16];
    size_t most = rate > 0 && rate / 500 < sizeof(data) ? rate / 500 + 1 : sizeof(data);
    ssize_t n;

    while ((n = recv(c->server, data, most, 0)) > 0 && bench_write(c->client, data, (size_t) n)) {
        uint64_t now = llm_now_ns();

        if (rate > 0) {
            free_at = (free_at > now ? free_at : now) + (uint64_t) n * LLM_NS_PER_S / rate;
            bench_sleep(free_at - now);
        }
    }
    shutdown(c->client, SHUT_RDWR);
    shutdown(c->server, SHUT_RDWR);
    return NULL;
}

/* What is asked, until the connection ends. */
static void *bench_relay_one(void *arg)
{
    struct relayed *c = arg;
    static _Thread_local char data[1 << 16];
    pthread_t back;
    ssize_t n;

    if (pthread_create(&back, NULL, bench_relay_back, c) != 0) {
        exit(1);
    }
    while ((n = recv(c->client, data, sizeof(data), 0)) > 0) {
        bench_sleep(c->relay->delay_ns);
        if (!c->relay->swallows && !bench_write(c->server, data, (size_t) n)) {
            break;
        }
    }
    shutdown(c->client, SHUT_RDWR);
    shutdown(c->server, SHUT_RDWR);
    pthread_join(back, NULL);
    close(c->client);
    close(c->server);
    free(c);
    return NULL;
}

static void *bench_relay_all(void *arg)
{
    const struct relay *r = arg;
    int fd;

    while ((fd = accept(r->listening, NULL, NULL)) >= 0) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        struct relayed *c = calloc(1, sizeof(*c));
        pthread_t thread;

        if (c == NULL) {
            exit(1);
        }
        *c = (struct relayed){r, fd, socket(AF_UNIX, SOCK_STREAM, 0)};
        snprintf(address.sun_path, sizeof(address.sun_path), "%s", r->socket);
        if (connect(c->server, (struct sockaddr *) &address, sizeof(address)) != 0 ||
            pthread_create(&thread, NULL, bench_relay_one, c) != 0) {
            exit(1);
        }
        pthread_detach(thread);
    }
    return NULL;
}

static int bench_listen(uint16_t *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    need(bind(fd, (struct sockaddr *) &address, size) == 0 && listen(fd, 16) == 0 &&
             getsockname(fd, (struct sockaddr *) &address, &size) == 0, "no port");
    *port = ntohs(address.sin_port);
    return fd;
}

/* Starts it; it ends with the program. */
__attribute__((unused)) static void bench_relay(struct relay *r, const struct server *server)
{
    pthread_t thread;
    uint16_t port;

    r->socket = server->socket;
    r->listening = bench_listen(&port);
    snprintf(r->url, sizeof(r->url), "redis://llm-engine:change-me@127.0.0.1:%u", port);
    need(pthread_create(&thread, NULL, bench_relay_all, r) == 0, "no thread");
    pthread_detach(thread);
}

/* A port that nobody listens on. */
__attribute__((unused)) static void bench_no_redis(char url[128])
{
    uint16_t port;

    close(bench_listen(&port));
    snprintf(url, 128, "redis://llm-engine:change-me@127.0.0.1:%u", port);
}

/* --- the tier --- */

#define BENCH_DEADLINE_MS 1000
#define BENCH_TTL 3600 /* s */

static struct llm_redis *bench_tier(const char *url, const struct llm_page_layout *layout)
{
    struct llm_redis *redis;
    struct llm_error err;

    if (llm_redis_open(&(struct llm_redis_options){.url = url,
                                                   .master = {1},
                                                   .ttl = BENCH_TTL,
                                                   .deadline_ms = BENCH_DEADLINE_MS,
                                                   .layout = layout},
                       &redis, &err) != LLM_OK) {
        bench_fail(&err);
    }
    return redis;
}

/* Runs the prompt and waits until its pages are in Redis. */
__attribute__((unused)) static void bench_fill(struct driver *d, struct llm_redis *redis,
                                               struct job *j)
{
    uint32_t n = j->sequence.n_prompt / LLM_PAGE_TOKENS;
    struct llm_redis_counts c = {0};
    struct llm_error err;
    uint64_t end;

    bench_first_token(d, j);
    end = llm_now_ns() + 20 * LLM_NS_PER_S;
    do {
        if (llm_now_ns() > end) {
            fprintf(stderr, "%llu of %u pages are saved\n",
                    (unsigned long long) (c.saved + c.already_there), n);
            exit(1);
        }
        llm_sched_begin(d->sched, &err);
        bench_sleep(10 * LLM_NS_PER_MS);
        c = llm_redis_counts(redis);
    } while (c.saved + c.already_there < n);
}

#endif
