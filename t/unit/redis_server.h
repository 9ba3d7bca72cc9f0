/* A redis-server of the test's own, as conf/redis.conf has it, and an administrator's connection to
 * it. Call scratch_init first. */

#ifndef T_UNIT_REDIS_SERVER_H
#define T_UNIT_REDIS_SERVER_H

#include "engine/base/clock.h"
#include "t/unit/redis_page.h"
#include "t/unit/scratch.h"

#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

struct server {
    pid_t pid;
    char socket[300], url[400];
    redisContext *admin;
};

__attribute__((unused)) static bool server_try(struct server *s)
{
    redisReply *reply;
    bool good;

    s->admin = redisConnectUnix(s->socket);
    if (s->admin == NULL || s->admin->err != 0) {
        redisFree(s->admin);
        s->admin = NULL;
        return false;
    }
    reply = redisCommand(s->admin, "AUTH test anything");
    good = reply != NULL && reply->type == REDIS_REPLY_STATUS;
    freeReplyObject(reply);
    if (!good) {
        redisFree(s->admin);
        s->admin = NULL;
    }
    return good;
}

/* port: 0 for none. */
__attribute__((unused)) static void server_start(struct server *s, const char *port)
{
    uint64_t end = llm_now_ns() + 20 * LLM_NS_PER_S;

    snprintf(s->socket, sizeof(s->socket), "%s", scratch_path("redis.sock"));
    snprintf(s->url, sizeof(s->url), "redis+unix://llm-engine:change-me@%s", s->socket);
    unlink(s->socket);
    fflush(stdout);
    s->pid = fork();
    need(s->pid >= 0, "no process");
    if (s->pid == 0) {
        int log = open(scratch_path("redis.log"), O_WRONLY | O_CREAT | O_APPEND, 0600);

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(log, 1);
        dup2(log, 2);
        execlp("redis-server", "redis-server", "conf/redis.conf", "--port", port, "--bind",
               "127.0.0.1", "--unixsocket", s->socket, "--dir", scratch_dir, "--maxmemory", "1gb",
               "--enable-debug-command", "yes", "--user", "test", "on", "nopass", "~*", "&*",
               "+@all", (char *) NULL);
        _exit(127);
    }
    while (!server_try(s)) {
        need(llm_now_ns() < end && waitpid(s->pid, NULL, WNOHANG) == 0,
             "redis-server does not start");
        usleep(10000);
    }
}

__attribute__((unused)) static void server_stop(struct server *s)
{
    redisFree(s->admin);
    s->admin = NULL;
    kill(s->pid, SIGKILL);
    waitpid(s->pid, NULL, 0);
    s->pid = 0;
}

/* An administrator's command; its reply is the caller's to free. */
__attribute__((format(printf, 2, 3), unused)) static redisReply *server_do(struct server *s,
                                                                           const char *fmt, ...)
{
    redisReply *reply;
    va_list ap;

    va_start(ap, fmt);
    reply = redisvCommand(s->admin, fmt, ap);
    va_end(ap);
    need(reply != NULL, "the administrator's connection is gone");
    return reply;
}

/* The same, for its number: of elements where it is an array, 0 where it is neither. */
#define server_count(s, ...)                                                                      \
    __extension__({                                                                               \
        redisReply *counted = server_do(s, __VA_ARGS__);                                          \
        long long server_n = counted->type == REDIS_REPLY_ARRAY ? (long long) counted->elements   \
                                                                : counted->integer;               \
        freeReplyObject(counted);                                                                 \
        server_n;                                                                                 \
    })

/* A port of this machine that nobody listens on, for the moment. */
__attribute__((unused)) static uint16_t free_port(void)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof(addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    need(fd >= 0 && bind(fd, (struct sockaddr *) &addr, len) == 0
             && getsockname(fd, (struct sockaddr *) &addr, &len) == 0,
         "no port");
    close(fd);
    return ntohs(addr.sin_port);
}

#endif
