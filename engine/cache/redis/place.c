#include "engine/cache/redis/place.h"

#include <netdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

/* Shared by the place and the thread; the last of the two frees it. */
struct llm_redis_lookup {
    atomic_uint users;
    atomic_bool done;
    char host[256], port[6];
    struct llm_redis_address addresses[LLM_REDIS_ADDRESSES];
    uint32_t n;
};

static void let_go(struct llm_redis_lookup *l)
{
    if (l != NULL && atomic_fetch_sub(&l->users, 1) == 1) {
        free(l);
    }
}

static uint32_t resolve(const char *host, const char *port, int flags,
                        struct llm_redis_address *out)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags | AI_NUMERICSERV};
    struct addrinfo *list;
    uint32_t n = 0;

    if (getaddrinfo(host, port, &hints, &list) != 0) {
        return 0;
    }
    for (struct addrinfo *a = list; a != NULL && n < LLM_REDIS_ADDRESSES; a = a->ai_next) {
        if (a->ai_addrlen <= sizeof(out[n].addr)) {
            memcpy(&out[n].addr, a->ai_addr, a->ai_addrlen);
            out[n++].len = a->ai_addrlen;
        }
    }
    freeaddrinfo(list);
    return n;
}

static void *lookup_main(void *arg)
{
    struct llm_redis_lookup *l = arg;

    l->n = resolve(l->host, l->port, 0, l->addresses);
    atomic_store(&l->done, true);
    let_go(l);
    return NULL;
}

static void start_lookup(struct llm_redis_place *p)
{
    struct llm_redis_lookup *l = calloc(1, sizeof(*l));
    pthread_attr_t attr;
    pthread_t thread;

    if (l == NULL) {
        return;
    }
    memcpy(l->host, p->url->host, sizeof(l->host));
    memcpy(l->port, p->url->port, sizeof(l->port));
    atomic_init(&l->users, 2);
    atomic_init(&l->done, false);

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &attr, lookup_main, l) != 0) {
        free(l);
        l = NULL;
    }
    pthread_attr_destroy(&attr);
    p->lookup = l;
}

static void end_lookup(struct llm_redis_place *p)
{
    struct llm_redis_lookup *l = p->lookup;

    if (l == NULL || !atomic_load(&l->done)) {
        return;
    }
    if (l->n > 0) {
        memcpy(p->addresses, l->addresses, sizeof(p->addresses));
        p->n = l->n;
    }
    p->lookup = NULL;
    let_go(l);
}

static void set_unix(struct llm_redis_place *p)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    _Static_assert(sizeof(p->url->path) == sizeof(addr.sun_path), "a path fits");
    memcpy(addr.sun_path, p->url->path, sizeof(addr.sun_path));
    memcpy(&p->addresses[0].addr, &addr, sizeof(addr));
    p->addresses[0].len = sizeof(addr);
    p->n = 1;
}

void llm_redis_place_init(struct llm_redis_place *p, const struct llm_redis_url *url)
{
    *p = (struct llm_redis_place){.url = url};
    if (url->path[0] != '\0') {
        set_unix(p);
    } else {
        p->n = resolve(url->host, url->port, AI_NUMERICHOST, p->addresses);
    }
    p->named = p->n == 0;
    if (p->named) {
        start_lookup(p);
    }
}

void llm_redis_place_free(struct llm_redis_place *p)
{
    let_go(p->lookup);
    p->lookup = NULL;
}

const struct llm_redis_address *llm_redis_place_address(struct llm_redis_place *p,
                                                        uint32_t which)
{
    end_lookup(p);
    return p->n > 0 ? &p->addresses[which % p->n] : NULL;
}

void llm_redis_place_failed(struct llm_redis_place *p)
{
    end_lookup(p);
    if (p->named && p->lookup == NULL) {
        start_lookup(p);
    }
}
