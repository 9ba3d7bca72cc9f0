/* One connection to Redis: commands go out in a pipeline, answers come back in their order, each to
 * what was asked for it.
 *
 * Nothing here waits: llm_redis_link_turn does what can be done, and the owner polls. After any
 * fault the connection is dropped with all that is outstanding, so that no answer can come to what
 * was asked later. A breaker says when to connect again. One thread. */

#ifndef LLM_CACHE_REDIS_LINK_H
#define LLM_CACHE_REDIS_LINK_H

#include "engine/base/buf.h"
#include "engine/cache/redis/breaker.h"
#include "engine/cache/redis/place.h"
#include "engine/cache/redis/reply.h"

#include <hiredis/read.h>
#include <poll.h>

#define LLM_LINK_ASKED 256 /* commands outstanding at most */

/* From the connection's beginning to its first answer. */
#define LLM_LINK_GREETING_NS 1000000000ull

/* After so long without a word a connection is idle: Redis may close it (`timeout`), which is no
 * failure. A second is the least that it can be told. */
#define LLM_LINK_IDLE_NS 1000000000ull

/* No fault; else the reason of the misses that it causes. */
#define LLM_LINK_FINE LLM_REDIS_N_MISSES

/* A command that is to be answered; kind, index and who are its owner's. */
struct llm_redis_asked {
    uint32_t kind, index;
    void *who;
    uint64_t max_bulk; /* longest string that it can be answered with */
};

enum llm_redis_answer_kind {
    LLM_ANSWER_STATUS,
    LLM_ANSWER_ERROR,
    LLM_ANSWER_INTEGER,
    LLM_ANSWER_NIL,
    LLM_ANSWER_STRING,
};

struct llm_redis_answer {
    enum llm_redis_answer_kind kind;
    const char *text; /* [len], but of INTEGER and NIL; as it was received, gone after the call */
    size_t len;
    int64_t integer;
};

/* Whether it is an error that begins with this word. */
bool llm_redis_answer_is_error(const struct llm_redis_answer *a, const char *word);

/* LLM_LINK_FINE, or why the connection is of no more use. May not ask for anything. */
typedef enum llm_redis_miss llm_redis_answered(void *ctx, const struct llm_redis_asked *asked,
                                               const struct llm_redis_answer *answer);

enum llm_redis_link_state { LLM_LINK_DOWN, LLM_LINK_CONNECTING, LLM_LINK_GREETING, LLM_LINK_UP };

struct llm_redis_link {
    struct llm_redis_place *place;
    llm_redis_answered *answered;
    void *ctx;
    size_t room; /* for the longest answer */

    enum llm_redis_link_state state;
    struct llm_breaker breaker;
    uint32_t address; /* which of the place's is tried */
    uint64_t limit;    /* ns: of connecting and greeting */
    uint64_t heard_ns; /* when something came last */
    char why[80];     /* of the last fault, for the log */
    struct llm_redis_asked faulty; /* what was answered wrongly; who: NULL where it was nothing */
    uint64_t connects, drops;

    int fd;
    struct llm_buf out; /* commands that are still to be sent */
    const char *body;   /* [n_body], to be sent behind body_at bytes of `out`; NULL: none */
    size_t n_body, body_at, body_sent;

    redisReader *reader;
    size_t unscanned; /* bytes at the end of its buffer */
    struct llm_reply_scan scan;
    struct llm_redis_asked asked[LLM_LINK_ASKED]; /* number i at i % LLM_LINK_ASKED */
    uint32_t first_asked, next_asked;             /* free-running */
    enum llm_redis_miss verdict;                  /* on the answer just read */
};

/* room: bytes of the longest answer that will be asked for. */
void llm_redis_link_init(struct llm_redis_link *l, struct llm_redis_place *place, size_t room,
                         llm_redis_answered *answered, void *ctx);
void llm_redis_link_free(struct llm_redis_link *l);

/* What to poll for. */
struct pollfd llm_redis_link_poll(const struct llm_redis_link *l);

/* When there is something to do in turn even if nothing happens, in ns; UINT64_MAX: never. */
uint64_t llm_redis_link_next(const struct llm_redis_link *l);

/* Connects, sends and receives, as far as it goes without waiting; a bounded amount. revents: what
 * poll found. Not LLM_LINK_FINE: the connection is gone, or could not be had. */
enum llm_redis_miss llm_redis_link_turn(struct llm_redis_link *l, short revents, uint64_t now);

/* Sends what was asked for. */
enum llm_redis_miss llm_redis_link_flush(struct llm_redis_link *l, uint64_t now);

/* How many commands can be asked for before there is an answer. */
uint32_t llm_redis_link_free_asks(const struct llm_redis_link *l);

/* Asks, on a connection that is up, where that is free. words: n_words of them, terminated; in the
 * place of one that is NULL stands body, which stays where it is until it is sent: one at a
 * time. */
void llm_redis_link_ask(struct llm_redis_link *l, const struct llm_redis_asked *asked,
                        const char *const *words, uint32_t n_words, const void *body,
                        size_t n_body);

static inline bool llm_redis_link_body_gone(const struct llm_redis_link *l)
{
    return l->body == NULL;
}

/* Up, or about to be again after it was dropped of nobody's fault. */
static inline bool llm_redis_link_is_good(const struct llm_redis_link *l)
{
    return l->state == LLM_LINK_UP || (l->connects > 0 && l->breaker.failures == 0);
}

/* Drops the connection; of nobody's fault, so that the next may follow at once. */
void llm_redis_link_drop(struct llm_redis_link *l);

/* Drops it as a failure of Redis. why: for the log. */
void llm_redis_link_fail(struct llm_redis_link *l, uint64_t now, const char *why);

/* Redis has done what it is there for. */
void llm_redis_link_success(struct llm_redis_link *l);

#endif
