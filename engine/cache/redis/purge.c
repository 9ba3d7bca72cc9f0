#include "engine/cache/redis/purge.h"

#include "engine/base/clock.h"
#include "engine/cache/redis/key.h"
#include "engine/cache/redis/reply.h"
#include "engine/cache/redis/url.h"

#include <errno.h>
#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define LOOKS 10            /* at all keys, at most */
#define PATIENCE 10         /* times what an answer may take: all looks and deletes together */
#define SCAN_COUNT "256"    /* keys that a SCAN looks at */
#define CURSOR_MAX 24       /* 64 bits in decimal, terminated */
#define MAX_BULK (1u << 20) /* bytes of all strings of a reply: names, and error texts */

struct llm_redis_purge {
    struct llm_redis_tenant_keys keys;
    uint32_t timeout_ms;
    redisContext *redis; /* for its connection and its reader: what is read is looked at before */
};

/* --- one command, one reply --- */

static int wait_for(const struct llm_redis_purge *p, short events, uint64_t until,
                    struct llm_error *err)
{
    struct pollfd fd = {.fd = p->redis->fd, .events = events};
    uint64_t now = llm_now_ns();
    int n = 0;

    if (now < until) {
        n = poll(&fd, 1, (int) ((until - now) / LLM_NS_PER_MS) + 1);
    }
    return n > 0 || (n < 0 && errno == EINTR)
               ? LLM_OK
               : llm_fail(err, LLM_EIO, "Redis does not answer in %u ms", p->timeout_ms);
}

static int send_all(const struct llm_redis_purge *p, const char *data, size_t len, uint64_t until,
                    struct llm_error *err)
{
    while (len > 0) {
        ssize_t n = send(p->redis->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n > 0) {
            data += n;
            len -= (size_t) n;
        } else if (errno != EAGAIN && errno != EINTR) {
            return llm_fail(err, LLM_EIO, "Redis: %s", strerror(errno));
        } else if (wait_for(p, POLLOUT, until, err) != LLM_OK) {
            return LLM_EIO;
        }
    }
    return LLM_OK;
}

/* Reads the bytes of one reply into hiredis's reader, which sees none that the scanner refuses. */
static int receive(const struct llm_redis_purge *p, uint64_t until, struct llm_error *err)
{
    enum llm_reply_state state = LLM_REPLY_MORE;
    struct llm_reply_scan scan;
    char data[16384];

    llm_reply_scan_start(&scan, MAX_BULK);
    while (state == LLM_REPLY_MORE) {
        uint64_t needs = llm_reply_scan_needs(&scan);
        ssize_t n = recv(p->redis->fd, data, needs < sizeof(data) ? needs : sizeof(data),
                         MSG_DONTWAIT);
        size_t used;

        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            if (wait_for(p, POLLIN, until, err) != LLM_OK) {
                return LLM_EIO;
            }
            continue;
        }
        if (n <= 0) {
            return llm_fail(err, LLM_EIO, "Redis: %s", n == 0 ? "it hangs up" : strerror(errno));
        }
        state = llm_reply_scan(&scan, data, (size_t) n, &used);
        if (state == LLM_REPLY_BAD || redisReaderFeed(p->redis->reader, data, used) != REDIS_OK) {
            return llm_fail(err, LLM_EIO, "what answers is no Redis");
        }
    }
    return LLM_OK;
}

/* Says why, as far as it can be printed. Redis repeats the words of a command that it does not
 * know: of what it says to AUTH only the first one is told. */
static int refuse(const char *command, const redisReply *reply, struct llm_error *err)
{
    char first = strcmp(command, "AUTH") == 0 ? '!' : ' '; /* of what is printed on */
    size_t n = 0;

    while (n < reply->len && reply->str[n] >= first && reply->str[n] <= '~') {
        n++;
    }
    return llm_fail(err, LLM_EIO, "Redis refuses %s: %.*s", command, (int) n, reply->str);
}

/* The reply, which the caller frees, is of that type. */
static int ask(const struct llm_redis_purge *p, const char *const *words, int n_words, int type,
               redisReply **out, struct llm_error *err)
{
    uint64_t until = llm_now_ns() + p->timeout_ms * LLM_NS_PER_MS;
    redisReply *reply = NULL;
    char *command;
    int len, rc;

    *out = NULL;
    len = redisFormatCommandArgv(&command, n_words, (const char **) words, NULL);
    if (len < 0) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    rc = send_all(p, command, (size_t) len, until, err);
    OPENSSL_cleanse(command, (size_t) len); /* it may be the password */
    redisFreeCommand(command);
    if (rc == LLM_OK) {
        rc = receive(p, until, err);
    }
    if (rc != LLM_OK) {
        return rc;
    }

    if (redisReaderGetReply(p->redis->reader, (void **) &reply) != REDIS_OK || reply == NULL) {
        return llm_fail(err, LLM_EIO, "what answers is no Redis");
    }
    if (reply->type == REDIS_REPLY_ERROR) {
        rc = refuse(words[0], reply, err);
    } else if (reply->type != type) {
        rc = llm_fail(err, LLM_EIO, "what answers %s is no Redis", words[0]);
    }
    if (rc != LLM_OK) {
        freeReplyObject(reply);
        return rc;
    }
    *out = reply;
    return LLM_OK;
}

/* A command that answers OK. */
static int tell(const struct llm_redis_purge *p, const char *const *words, int n_words,
                struct llm_error *err)
{
    redisReply *reply;
    int rc = ask(p, words, n_words, REDIS_REPLY_STATUS, &reply, err);

    if (rc == LLM_OK) {
        freeReplyObject(reply);
    }
    return rc;
}

/* --- the connection --- */

static int greet(const struct llm_redis_purge *p, const struct llm_redis_url *url,
                 struct llm_error *err)
{
    const char *auth[] = {"AUTH", url->user, url->password};
    const char *login[] = {"AUTH", url->password};
    char db[16];
    const char *select[] = {"SELECT", db};
    int rc = LLM_OK;

    if (url->user[0] != '\0') {
        rc = tell(p, auth, 3, err);
    } else if (url->password[0] != '\0') {
        rc = tell(p, login, 2, err);
    }
    if (rc == LLM_OK && url->db != 0) {
        snprintf(db, sizeof(db), "%" PRIu32, url->db);
        rc = tell(p, select, 2, err);
    }
    return rc;
}

static int connect_to(struct llm_redis_purge *p, const struct llm_redis_url *url,
                      struct llm_error *err)
{
    struct timeval timeout = {p->timeout_ms / 1000, (suseconds_t) (p->timeout_ms % 1000) * 1000};

    p->redis = url->path[0] != '\0'
                   ? redisConnectUnixWithTimeout(url->path, timeout)
                   : redisConnectWithTimeout(url->host, (int) strtol(url->port, NULL, 10), timeout);
    if (p->redis == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    return p->redis->err == 0
               ? greet(p, url, err)
               : llm_fail(err, LLM_EIO, "cannot connect to Redis: %s", p->redis->errstr);
}

int llm_redis_purge_open(const char *url, const uint8_t master[32], const uint8_t owner[32],
                         uint32_t timeout_ms, struct llm_redis_purge **out, struct llm_error *err)
{
    struct llm_redis_purge *p = calloc(1, sizeof(*p));
    struct llm_redis_url where;
    int rc;

    if (p == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    p->timeout_ms = timeout_ms;

    rc = llm_redis_url_parse(url, &where, err);
    if (rc == LLM_OK && llm_redis_tenant_keys(master, owner, &p->keys) != LLM_OK) {
        rc = llm_fail(err, LLM_EINTERNAL, "OpenSSL failed");
    }
    if (rc == LLM_OK) {
        rc = connect_to(p, &where, err);
    }
    OPENSSL_cleanse(&where, sizeof(where));
    if (rc != LLM_OK) {
        llm_redis_purge_close(p);
        return rc;
    }
    *out = p;
    return LLM_OK;
}

void llm_redis_purge_close(struct llm_redis_purge *p)
{
    if (p == NULL) {
        return;
    }
    if (p->redis != NULL) {
        redisFree(p->redis);
    }
    OPENSSL_cleanse(p, sizeof(*p));
    free(p);
}

/* --- the epoch --- */

/* Whatever stands there, be it a number of the past or none at all. */
int llm_redis_purge_epoch(struct llm_redis_purge *p, struct llm_error *err)
{
    char name[LLM_REDIS_NAME_MAX], epoch[LLM_REDIS_EPOCH_MAX];
    const char *set[] = {"SET", name, epoch};

    if (!llm_redis_draw_epoch(epoch)) {
        return llm_fail(err, LLM_EIO, "no random numbers to be had");
    }
    llm_redis_epoch_name(&p->keys, name);
    return tell(p, set, 3, err);
}

/* --- the pages --- */

static bool is_name(const redisReply *r, const char *pattern)
{
    return r->type == REDIS_REPLY_STRING && r->len == strlen(pattern)
           && memcmp(r->str, pattern, strcspn(pattern, "?")) == 0;
}

/* A cursor, then names that match the pattern. */
static bool is_scan(const redisReply *r, const char *pattern)
{
    if (r->elements != 2 || r->element[0]->type != REDIS_REPLY_STRING
        || r->element[1]->type != REDIS_REPLY_ARRAY) {
        return false;
    }
    for (size_t i = 0; i < r->element[1]->elements; i++) {
        if (!is_name(r->element[1]->element[i], pattern)) {
            return false;
        }
    }
    return true;
}

static int delete_names(const struct llm_redis_purge *p, const redisReply *names,
                        uint64_t *deleted, struct llm_error *err)
{
    const char *words[1 + LLM_REPLY_MAX_ELEMENTS] = {"DEL"};
    redisReply *reply;
    int rc;

    if (names->elements == 0) {
        return LLM_OK;
    }
    for (size_t i = 0; i < names->elements; i++) {
        words[1 + i] = names->element[i]->str;
    }
    rc = ask(p, words, (int) names->elements + 1, REDIS_REPLY_INTEGER, &reply, err);
    if (rc == LLM_OK) {
        *deleted += reply->integer > 0 ? (uint64_t) reply->integer : 0;
        freeReplyObject(reply);
    }
    return rc;
}

/* Where a SCAN has come by. */
struct trail {
    uint64_t n; /* cursors so far */
    char kept[CURSOR_MAX]; /* the last one of those whose number is a power of two */
};

/* Whether it has been there before, noticed on the second round at the latest (Brent's way). */
static bool comes_round(struct trail *t, const char *cursor)
{
    if (t->n > 0 && strcmp(cursor, t->kept) == 0) {
        return true;
    }
    t->n++;
    if ((t->n & (t->n - 1)) == 0) {
        snprintf(t->kept, sizeof(t->kept), "%s", cursor);
    }
    return false;
}

/* A look at all keys: SCAN finds all that are there from its beginning to its end. */
static int look(const struct llm_redis_purge *p, uint64_t until, struct llm_redis_purged *done,
                struct llm_error *err)
{
    char pattern[LLM_REDIS_NAME_MAX], cursor[CURSOR_MAX] = "0";
    const char *scan[] = {"SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT};
    struct trail trail = {0};
    redisReply *reply;
    int rc;

    llm_redis_page_pattern(&p->keys, pattern);
    done->left = 0;
    do {
        rc = ask(p, scan, 6, REDIS_REPLY_ARRAY, &reply, err);
        if (rc != LLM_OK) {
            return rc;
        }
        if (!is_scan(reply, pattern) || reply->element[0]->len >= sizeof(cursor)) {
            rc = llm_fail(err, LLM_EIO, "what answers SCAN is no Redis");
        } else {
            done->left += reply->element[1]->elements;
            memcpy(cursor, reply->element[0]->str, reply->element[0]->len + 1);
            rc = delete_names(p, reply->element[1], &done->deleted, err);
        }
        freeReplyObject(reply);
        if (rc != LLM_OK || strcmp(cursor, "0") == 0) {
            return rc;
        }
        if (comes_round(&trail, cursor)) {
            return llm_fail(err, LLM_EIO, "Redis: SCAN goes round in circles");
        }
    } while (llm_now_ns() < until);
    return llm_fail(err, LLM_EIO, "Redis: SCAN has not come to its end in %" PRIu64 " s",
                    (uint64_t) p->timeout_ms * PATIENCE / 1000);
}

int llm_redis_purge_delete(struct llm_redis_purge *p, struct llm_redis_purged *done,
                           struct llm_error *err)
{
    uint64_t until = llm_now_ns() + p->timeout_ms * LLM_NS_PER_MS * PATIENCE;

    *done = (struct llm_redis_purged){0};
    for (int i = 0; i < LOOKS; i++) {
        int rc = look(p, until, done, err);

        if (rc != LLM_OK || done->left == 0) {
            return rc;
        }
    }
    return LLM_OK;
}
