#include "engine/cache/redis/url.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DB 65535

/* A piece of the url: not terminated. */
struct piece {
    const char *p;
    size_t n;
};

/* What stands before the first c in *rest, which goes on behind it; false: there is none. */
static bool cut(struct piece *rest, char c, struct piece *before)
{
    const char *at = memchr(rest->p, c, rest->n);

    if (at == NULL) {
        return false;
    }
    before->p = rest->p;
    before->n = (size_t) (at - rest->p);
    rest->n -= before->n + 1;
    rest->p = at + 1;
    return true;
}

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : isxdigit((unsigned char) c) ? (c | 32) - 'a' + 10 : -1;
}

/* Into out[size], its %XX decoded and terminated. */
static bool decode(struct piece in, char *out, size_t size)
{
    size_t n = 0;

    for (size_t i = 0; i < in.n; i++) {
        char c = in.p[i];

        if (c == '%') {
            if (in.n - i < 3 || hex(in.p[i + 1]) < 0 || hex(in.p[i + 2]) < 0) {
                return false;
            }
            c = (char) (hex(in.p[i + 1]) << 4 | hex(in.p[i + 2]));
            i += 2;
        }
        if (c == '\0' || n + 1 >= size) {
            return false;
        }
        out[n++] = c;
    }
    out[n] = '\0';
    return true;
}

static bool number(struct piece in, uint32_t max, uint32_t *out)
{
    uint32_t value = 0;

    for (size_t i = 0; i < in.n; i++) {
        if (!isdigit((unsigned char) in.p[i])) {
            return false;
        }
        value = value * 10 + (uint32_t) (in.p[i] - '0');
        if (value > max) {
            return false;
        }
    }
    *out = value;
    return in.n > 0;
}

static int parse_user(struct piece in, struct llm_redis_url *u, struct llm_error *err)
{
    struct piece user = in, password = {0};

    if (cut(&in, ':', &user)) {
        password = in;
        if (password.n == 0 || !decode(password, u->password, sizeof(u->password))) {
            return llm_fail(err, LLM_EINVAL, "its password is empty, too long or wrongly encoded");
        }
    }
    if (!decode(user, u->user, sizeof(u->user))) {
        return llm_fail(err, LLM_EINVAL, "its user is too long or wrongly encoded");
    }
    if (u->user[0] != '\0' && u->password[0] == '\0') {
        return llm_fail(err, LLM_EINVAL, "it has a user but no password");
    }
    return LLM_OK;
}

static int parse_unix(struct piece path, struct llm_redis_url *u, struct llm_error *err)
{
    static const char db[] = "db=";
    struct piece query = path;

    if (cut(&query, '?', &path)) {
        if (query.n < sizeof(db) - 1 || memcmp(query.p, db, sizeof(db) - 1) != 0) {
            return llm_fail(err, LLM_EINVAL, "behind the path only ?db=N may stand");
        }
        query.p += sizeof(db) - 1;
        query.n -= sizeof(db) - 1;
        if (!number(query, MAX_DB, &u->db)) {
            return llm_fail(err, LLM_EINVAL, "its database is not a number up to %d", MAX_DB);
        }
    }
    if (path.n < 2 || !decode(path, u->path, sizeof(u->path))) {
        return llm_fail(err, LLM_EINVAL, "the path of its socket is missing, longer than %zu "
                        "characters or wrongly encoded", sizeof(u->path) - 1);
    }
    return LLM_OK;
}

static int parse_host(struct piece in, struct llm_redis_url *u, struct llm_error *err)
{
    struct piece host = in, port = {"6379", 4};
    uint32_t value;

    if (in.n > 0 && in.p[0] == '[') {
        in.p++;
        in.n--;
        if (!cut(&in, ']', &host) || (in.n > 0 && in.p[0] != ':')) {
            return llm_fail(err, LLM_EINVAL, "its address has no end");
        }
        if (in.n > 0) {
            port = (struct piece){in.p + 1, in.n - 1};
        }
    } else if (cut(&in, ':', &host)) {
        port = in;
    }

    if (host.n == 0 || host.n >= sizeof(u->host) || memchr(host.p, '%', host.n) != NULL) {
        return llm_fail(err, LLM_EINVAL, "its host is missing, too long or wrong");
    }
    if (port.n >= sizeof(u->port) || !number(port, 65535, &value) || value == 0) {
        return llm_fail(err, LLM_EINVAL, "its port is not a number from 1 to 65535");
    }
    memcpy(u->host, host.p, host.n);
    memcpy(u->port, port.p, port.n);
    return LLM_OK;
}

static int parse_tcp(struct piece rest, struct llm_redis_url *u, struct llm_error *err)
{
    struct piece authority = rest;

    if (cut(&rest, '/', &authority) && rest.n > 0 && !number(rest, MAX_DB, &u->db)) {
        return llm_fail(err, LLM_EINVAL, "its database is not a number up to %d", MAX_DB);
    }
    return parse_host(authority, u, err);
}

/* After the scheme. */
static int parse_rest(struct piece rest, bool is_unix, struct llm_redis_url *u,
                      struct llm_error *err)
{
    struct piece authority = rest, user;
    int rc;

    /* an @ behind the first / is the path's */
    (void) cut(&(struct piece){rest.p, rest.n}, '/', &authority);
    if (cut(&authority, '@', &user)) {
        rc = parse_user(user, u, err);
        if (rc != LLM_OK) {
            return rc;
        }
        rest.p += user.n + 1;
        rest.n -= user.n + 1;
    }

    if (!is_unix) {
        return parse_tcp(rest, u, err);
    }
    if (rest.n == 0 || rest.p[0] != '/') {
        return llm_fail(err, LLM_EINVAL, "it names no path, as redis+unix:///run/redis.sock does");
    }
    return parse_unix(rest, u, err);
}

int llm_redis_url_parse(const char *url, struct llm_redis_url *u, struct llm_error *err)
{
    static const char tcp[] = "redis://", local[] = "redis+unix://", tls[] = "rediss://";
    bool is_unix = strncmp(url, local, sizeof(local) - 1) == 0;
    const char *rest = url + (is_unix ? sizeof(local) : sizeof(tcp)) - 1;
    int rc;

    memset(u, 0, sizeof(*u));
    if (strncmp(url, tls, sizeof(tls) - 1) == 0) {
        return llm_fail(err, LLM_EUNSUPPORTED,
                        "rediss:// is not supported, as this hiredis has no TLS: let stunnel speak "
                        "TLS to Redis and connect to stunnel by redis:// or redis+unix://");
    }
    if (!is_unix && strncmp(url, tcp, sizeof(tcp) - 1) != 0) {
        return llm_fail(err, LLM_EINVAL,
                        "the URL of Redis begins with neither redis:// nor redis+unix://");
    }

    rc = parse_rest((struct piece){rest, strlen(rest)}, is_unix, u, err);
    if (rc != LLM_OK) {
        explicit_bzero(u, sizeof(*u));
        llm_error_prefix(err, "the URL of Redis is wrong");
    }
    return rc;
}
