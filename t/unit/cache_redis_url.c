/* Where Redis is, as people write it. */

#include "engine/cache/redis/url.h"
#include "t/unit/tap.h"

struct good {
    const char *url, *path, *host, *port, *user, *password;
    uint32_t db;
};

static const struct good good[] = {
    {"redis://h", "", "h", "6379", "", "", 0},
    {"redis://10.0.0.1:7000", "", "10.0.0.1", "7000", "", "", 0},
    {"redis://h:1/", "", "h", "1", "", "", 0},
    {"redis://h/15", "", "h", "6379", "", "", 15},
    {"redis://:secret@h", "", "h", "6379", "", "secret", 0},
    {"redis://u:p%40%2F%3a@h:65535/1", "", "h", "65535", "u", "p@/:", 1},
    {"redis://u:a:b@h", "", "h", "6379", "u", "a:b", 0},
    {"redis://[::1]", "", "::1", "6379", "", "", 0},
    {"redis://u:p@[fe80::1]:6380/2", "", "fe80::1", "6380", "u", "p", 2},
    {"redis+unix:///run/redis.sock", "/run/redis.sock", "", "", "", "", 0},
    {"redis+unix://u:p@/run/a%20b?db=3", "/run/a b", "", "", "u", "p", 3},
    {"redis+unix:///run/a@b", "/run/a@b", "", "", "", "", 0},
};

#define DIGITS_50 "01234567890123456789012345678901234567890123456789"

static const char *const bad[] = {
    "", "h", "http://h", "redis:/h", "redis://", "redis://:6379", "redis://h:", "redis://h:0",
    "redis://h:65536", "redis://h:6379x", "redis://h:999999", "redis://h/x", "redis://h/65536",
    "redis://h/1/2", "redis://user@h", "redis://user:@h", "redis://u:%@h", "redis://u:%4@h",
    "redis://u:%zz@h", "redis://u:p%00@h", "redis://[::1", "redis://[::1]x", "redis://a%20b",
    "redis+unix://", "redis+unix://run", "redis+unix:///", "redis+unix://u:p@run/x",
    "redis+unix:///run?x=1", "redis+unix:///run?db=", "redis+unix:///run?db=-1",
    "redis+unix:///" DIGITS_50 DIGITS_50 DIGITS_50,
};

static void is_understood(const struct good *g)
{
    struct llm_redis_url u;
    struct llm_error err = {0};

    ok(llm_redis_url_parse(g->url, &u, &err) == LLM_OK && strcmp(u.path, g->path) == 0
           && strcmp(u.host, g->host) == 0 && strcmp(u.port, g->port) == 0
           && strcmp(u.user, g->user) == 0 && strcmp(u.password, g->password) == 0
           && u.db == g->db,
       "%s", g->url);
    if (err.code != LLM_OK) {
        diag("%s", err.text);
    }
}

int main(void)
{
    char url[1000] = "redis://u:";
    struct llm_redis_url u;
    struct llm_error err;

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        is_understood(&good[i]);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        is_int(llm_redis_url_parse(bad[i], &u, &err), LLM_EINVAL, "refused: \"%s\"", bad[i]);
    }
    memset(url + strlen(url), 'p', 600);
    strcat(url, "@h");
    is_int(llm_redis_url_parse(url, &u, &err), LLM_EINVAL, "a password that is too long");

    is_int(llm_redis_url_parse("redis://u:hunter2@h:x", &u, &err), LLM_EINVAL, "a wrong port");
    ok(strstr(err.text, "hunter2") == NULL && strstr(err.text, "port") != NULL,
       "the text says what is wrong, not the password");
    is_int(u.password[0], 0, "which is not kept");
    is_int(llm_redis_url_parse("rediss://h", &u, &err), LLM_EUNSUPPORTED, "no TLS");
    ok(strstr(err.text, "stunnel") != NULL, "the text says what to do");
    return done_testing();
}
