/* The reply scanner: what Redis answers, what a hostile server may, and whether hiredis agrees. */

#include "t/unit/redis_reply_check.h"
#include "t/unit/scratch.h"
#include "t/unit/tap.h"

#include "engine/base/buf.h"

#define MAX_BULK 1000
#define TIB "1099511627776"

static enum llm_reply_state scan(const char *data, size_t n, size_t *used)
{
    struct llm_reply_scan s;

    llm_reply_scan_start(&s, MAX_BULK);
    return llm_reply_scan(&s, data, n, used);
}

static void test_replies(void)
{
    static const char *const replies[] = {
        "+OK\r\n",
        "+\r\n",
        "-OOM command not allowed when used memory > 'maxmemory'.\r\n",
        "-MOVED 3999 127.0.0.1:6381\r\n",
        ":0\r\n",
        ":1\r\n",
        ":-1\r\n",
        ":9223372036854775807\r\n",
        ":-9223372036854775808\r\n",
        "$-1\r\n",
        "$0\r\n\r\n",
        "$5\r\nhello\r\n",
        "$6\r\na\r\nb\r\n\r\n",
        "*0\r\n",
        "*1\r\n+OK\r\n",
        "*2\r\n$1\r\n0\r\n*0\r\n",
        "*2\r\n$2\r\n17\r\n*3\r\n$1\r\na\r\n$-1\r\n$2\r\nbc\r\n",
        "*3\r\n*1\r\n:1\r\n*2\r\n:2\r\n:3\r\n:4\r\n",
    };
    char followed[256];
    size_t used;

    for (size_t i = 0; i < sizeof(replies) / sizeof(*replies); i++) {
        size_t n = strlen(replies[i]);
        const char *wrong = NULL;
        uint32_t ends;

        snprintf(followed, sizeof(followed), "%s+next\r\n", replies[i]);
        ok(scan(followed, strlen(followed), &used) == LLM_REPLY_END && used == n,
           "reply %zu ends where it does", i);
        for (size_t cut = 0; cut < n; cut++) {
            if (scan(replies[i], cut, &used) != LLM_REPLY_MORE || used != cut) {
                wrong = "it ends too early";
            }
        }
        for (size_t piece = 1; piece <= n && wrong == NULL; piece++) {
            wrong = check_scan(followed, strlen(followed), piece, MAX_BULK, &ends);
            wrong = wrong == NULL && ends != 2 ? "there are not two replies" : wrong;
        }
        is_str(wrong != NULL ? wrong : "", "", "in whatever pieces");
    }
}

static void test_refusals(void)
{
    static const char *const bad[] = {
        "$" TIB "\r\n",
        "$9223372036854775807\r\n",
        "$18446744073709551616\r\n",
        "$1001\r\n",
        "$-2\r\n",
        "$\r\n",
        "$ 5\r\n",
        "$+5\r\n",
        "$05\r\n",
        "$5x\r\n",
        "$5\n",
        "$5\r\r\n",
        "$5\r\nhelloXX",
        "$5\r\nhello\rX",
        "$1000000000000000000000000000000000\r\n",
        "*1000000000\r\n",
        "*4097\r\n",
        "*-1\r\n",
        "*\r\n",
        "*2147483648\r\n",
        "*1\r\n*1\r\n*1\r\n",
        "*2\r\n:1\r\n*1\r\n*0\r\n",
        ":\r\n",
        ":-\r\n",
        ":-0\r\n",
        ":00\r\n",
        ":1.5\r\n",
        ":0x10\r\n",
        ":9223372036854775808\r\n",
        ":-9223372036854775809\r\n",
        "*1\r\n>2\r\n",
        "\r\n",
        "\n",
        "HTTP/1.1 400 Bad Request\r\n",
        "+a\nb\r\n",
        "+a\rb\r\n",
    };
    static const char resp3[] = "%~_#,(=>!|.";
    size_t used;

    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        is_int(scan(bad[i], strlen(bad[i]), &used), LLM_REPLY_BAD, "no reply: %zu", i);
    }
    for (size_t i = 0; i < sizeof(resp3); i++) { /* NUL, too */
        char text[] = "?1\r\n";

        text[0] = resp3[i];
        ok(scan(text, 4, &used) == LLM_REPLY_BAD && used == 1, "nor one of type %d", resp3[i]);
    }
}

/* n times the same behind a beginning. */
static enum llm_reply_state scan_many(const char *begin, const char *each, size_t n,
                                      uint64_t max_bulk, size_t *used)
{
    struct llm_reply_scan s;
    struct llm_buf b = {0};
    enum llm_reply_state state;

    llm_buf_puts(&b, begin);
    for (size_t i = 0; i < n; i++) {
        llm_buf_puts(&b, each);
    }
    llm_reply_scan_start(&s, max_bulk);
    state = b.failed ? LLM_REPLY_MORE : llm_reply_scan(&s, b.data, b.len, used);
    llm_buf_free(&b);
    return state;
}

static void test_limits(void)
{
    char line[LLM_REPLY_MAX_LINE + 8];
    struct llm_reply_scan s;
    size_t used;

    memset(line, 'x', sizeof(line));
    line[0] = '-';
    memcpy(line + LLM_REPLY_MAX_LINE, "\r\n", 2);
    ok(scan(line, sizeof(line), &used) == LLM_REPLY_END && used == LLM_REPLY_MAX_LINE + 2,
       "a line of 512 bytes");
    memset(line, 'x', sizeof(line));
    line[0] = '-';
    ok(scan(line, sizeof(line), &used) == LLM_REPLY_BAD && used == LLM_REPLY_MAX_LINE + 1,
       "no longer one: before its end is seen");

    is_int(scan_many("*4096\r\n", ":1\r\n", 4096, 0, &used), LLM_REPLY_END, "4096 elements");
    is_int(scan_many("*2\r\n:1\r\n*4094\r\n", ":1\r\n", 4094, 0, &used), LLM_REPLY_END,
           "in two arrays");
    is_int(scan_many("*2\r\n:1\r\n*4095\r\n", ":1\r\n", 1, 0, &used), LLM_REPLY_BAD, "no more");
    is_int(scan_many("", "*1\r\n", 1000000, 0, &used), LLM_REPLY_BAD, "a million levels");
    is_int(used, 12, "refused at the third");

    is_int(scan_many("$1000\r\n", "0123456789", 100, 1000, &used), LLM_REPLY_MORE,
           "a string of all bytes that are allowed");
    is_int(scan_many("$1000\r\n", "", 0, 999, &used), LLM_REPLY_BAD, "of one more");
    is_int(scan_many("*10\r\n", "$3\r\nabc\r\n", 10, 30, &used), LLM_REPLY_END,
           "ten strings together");
    is_int(scan_many("*10\r\n", "$3\r\nabc\r\n", 10, 29, &used), LLM_REPLY_BAD,
           "are no more than one may be");

    llm_reply_scan_start(&s, 3);
    is_int(llm_reply_scan(&s, "$3\r\nabc\r\n", 9, &used), LLM_REPLY_END, "a reply");
    is_int(llm_reply_scan(&s, "$3\r\nabc\r\n", 9, &used), LLM_REPLY_END,
           "each reply may be that long");
    is_int(llm_reply_scan(&s, "*4096\r\n*0\r\n", 11, &used), LLM_REPLY_MORE, "an array");
    is_int(llm_reply_scan(&s, "?", 1, &used), LLM_REPLY_BAD, "what is not a reply");
    is_int(llm_reply_scan(&s, "+OK\r\n", 5, &used), LLM_REPLY_BAD, "and nothing after it");
    is_int(used, 0, "is looked at");
}

static void test_needs(void)
{
    struct llm_reply_scan s;
    size_t used;

    llm_reply_scan_start(&s, MAX_BULK);
    is_int(llm_reply_scan_needs(&s), 1, "of a reply that has not begun a byte is needed");
    llm_reply_scan(&s, "$1000\r", 6, &used);
    is_int(llm_reply_scan_needs(&s), 1, "in a line, too");
    llm_reply_scan(&s, "\n", 1, &used);
    is_int(llm_reply_scan_needs(&s), 1002, "then all of the string with its end");
    llm_reply_scan(&s, "abc", 3, &used);
    is_int(llm_reply_scan_needs(&s), 999, "or what is left of it");
}

static void put_random_reply(struct llm_buf *b, uint64_t *seed, int depth)
{
    uint32_t n = scratch_random(seed) % 12;

    switch (scratch_random(seed) % (depth < 3 ? 6 : 4)) {
    case 0:
        llm_buf_printf(b, "%c%.*s\r\n", "+-"[n % 2], (int) n, "ERR no thing");
        break;
    case 1:
        llm_buf_printf(b, ":%d\r\n", (int) scratch_random(seed) - (1 << 30));
        break;
    case 2:
        llm_buf_printf(b, "$%u\r\n%.*s\r\n", n, (int) n, "\r\n$1\r\n*:+-ab");
        break;
    case 3:
        llm_buf_puts(b, "$-1\r\n");
        break;
    default:
        llm_buf_printf(b, "*%u\r\n", n);
        for (uint32_t i = 0; i < n; i++) {
            put_random_reply(b, seed, depth + 1);
        }
    }
}

/* A few bytes become others, mostly such as mean something. */
static void mutate(struct llm_buf *b, uint64_t *seed)
{
    static const char bytes[] = "0123456789-+:$*\r\n>%_x";

    for (uint32_t n = scratch_random(seed) % 4; n > 0 && b->len > 0; n--) {
        size_t at = scratch_random(seed) % b->len;

        switch (scratch_random(seed) % 3) {
        case 0:
            b->data[at] = bytes[scratch_random(seed) % (sizeof(bytes) - 1)];
            break;
        case 1: /* one is missing */
            memmove(b->data + at, b->data + at + 1, --b->len - at);
            break;
        default: /* the end is missing */
            b->len = at;
        }
    }
}

static void test_against_hiredis(void)
{
    uint32_t n = getenv("LLM_LONG") != NULL ? 2000000 : 50000, all_ends = 0, ends;
    uint64_t seed = 20230601;
    const char *wrong = NULL;

    for (uint32_t i = 0; i < n && wrong == NULL; i++) {
        struct llm_buf b = {0};

        put_random_reply(&b, &seed, 0);
        put_random_reply(&b, &seed, 0);
        mutate(&b, &seed);
        if (b.len > 0) {
            wrong = check_scan(b.data, b.len, 1 + scratch_random(&seed) % 20, MAX_BULK, &ends);
            all_ends += ends;
        }
        if (wrong != NULL) {
            diag("%s: %.*s", wrong, (int) b.len, b.data);
        }
        llm_buf_free(&b);
    }
    ok(wrong == NULL, "of %u random texts hiredis thinks the same", n);
    ok(all_ends > n / 4, "in which there are %u replies", all_ends);
}

int main(void)
{
    test_replies();
    test_refusals();
    test_limits();
    test_needs();
    test_against_hiredis();
    return done_testing();
}
