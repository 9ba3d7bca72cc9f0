/* The module's JSON text: bounds before a parser, members' own bytes, escaping. */

#include "ngx_module/ngx_http_llm_json.h"
#include "t/unit/tap.h"

#include <stdint.h>

static unsigned char *bytes(const char *s)
{
    return (unsigned char *) s;
}

/* Scans memory of its exact size, so that a sanitizer sees a byte too many. */
static int scan(const char *text, size_t len, size_t *structural)
{
    unsigned char *copy = malloc(len > 0 ? len : 1);
    int rc;

    memcpy(copy, text, len);
    *structural = 12345;
    rc = ngx_http_llm_json_scan(copy, len, structural);
    free(copy);
    return rc;
}

static char *repeat(const char *s, size_t n, size_t *len)
{
    size_t one = strlen(s);
    char *text = malloc(one * n + 1);

    for (size_t i = 0; i < n; i++) {
        memcpy(text + i * one, s, one);
    }
    *len = one * n;
    text[*len] = '\0';
    return text;
}

static void test_scan(void)
{
    static const struct {
        const char *text;
        size_t structural;
    } good[] = {
        {"", 0},
        {"{}", 2},
        {"[1, 2, 3]", 4},
        {"{\"a\": [1, {\"b\": \"c\"}]}", 9},
        {"\"{}[],:\"", 0},
        {"\"a\\\"{\\\\\" []", 2},
        {"\"open {{{", 0},
        {"\"open \\", 0},
        {"]]]]", 4},
    };
    const int depth = NGX_HTTP_LLM_JSON_MAX_DEPTH;
    const size_t most = NGX_HTTP_LLM_JSON_MAX_STRUCTURAL;
    size_t n, len;
    char *text;

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        is_int(scan(good[i].text, strlen(good[i].text), &n), NGX_HTTP_LLM_JSON_OK, "scan %s",
               good[i].text);
        is_int(n, good[i].structural, "counts %s", good[i].text);
    }

    text = repeat("[", (size_t) depth + 1, &len);
    is_int(scan(text, len - 1, &n), NGX_HTTP_LLM_JSON_OK, "as deep as may be");
    is_int(scan(text, len, &n), NGX_HTTP_LLM_JSON_DEEP, "one deeper");
    free(text);

    text = repeat(",", most + 1, &len);
    is_int(scan(text, len - 1, &n), NGX_HTTP_LLM_JSON_OK, "as many as may be");
    is_int(n, most, "all are counted");
    is_int(scan(text, len, &n), NGX_HTTP_LLM_JSON_MANY, "one more");
    free(text);

    text = repeat("[]", most, &len);
    is_int(scan(text, len, &n), NGX_HTTP_LLM_JSON_MANY, "what closes counts too");
    free(text);
}

static void test_member(void)
{
    static const char object[] =
        " {\"a\" : 1 ,\"b\\\"}\":\"x,\\\"}\", \"\\u0063\":[ {\"d\":[]}, \"]\" ] ,\"e\": {\"f\":"
        "{}} ,\"g\":null } ";
    static const char *const values[] = {"1", "\"x,\\\"}\"", "[ {\"d\":[]}, \"]\" ]",
                                         "{\"f\":{}}", "null"};
    const unsigned char *value;
    size_t len;

    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        ngx_http_llm_json_member(bytes(object), strlen(object), i, &value, &len);
        ok(len == strlen(values[i]) && memcmp(value, values[i], len) == 0, "member %zu: %.*s", i,
           (int) len, (const char *) value);
    }
}

/* Strings of any length with quotes and backslashes anywhere, against one step at a time. */
static void test_skip_string(void)
{
    uint32_t random = 1;
    bool same = true;

    for (int i = 0; i < 100000 && same; i++) {
        unsigned char text[100];
        size_t len, n, most;

        random = random * 1664525 + 1013904223;
        len = (random >> 16) % (sizeof(text) + 1);
        most = (random >> 8) % 64 + 2;
        for (size_t k = 0; k < len; k++) {
            random = random * 1664525 + 1013904223;
            text[k] = (unsigned char) "\"\\a"[(random >> 16) % most > 1 ? 2 : random >> 31];
        }
        for (n = 0; n < len && text[n] != '"'; n++) {
            n += text[n] == '\\';
        }
        n = n < len ? n + 1 : len;
        same = ngx_http_llm_json_skip_string(text, text + len) == text + n;
    }
    ok(same, "strings of any form end where they end");
}

/* Escapes into buffers of `room` bytes, one after the other. */
static void escape(const char *text, size_t len, size_t room, char *out, size_t *out_len)
{
    const unsigned char *p = bytes(text), *end = p + len;

    *out_len = 0;
    while (p < end) {
        unsigned char *buffer = malloc(room);
        size_t n = (size_t) (ngx_http_llm_json_escape(buffer, buffer + room, &p, end) - buffer);

        memcpy(out + *out_len, buffer, n);
        *out_len += n;
        free(buffer);
    }
    out[*out_len] = '\0';
}

static void test_escape(void)
{
    static const struct {
        const char *text, *want;
    } cases[] = {
        {"plain", "plain"},
        {"", ""},
        {"\"\\/", "\\\"\\\\/"},
        {"\b\t\n\f\r", "\\b\\t\\n\\f\\r"},
        {"\x01\x1f\x7f", "\\u0001\\u001f\x7f"},
        {"\xc3\xa9\xe6\xbc\xa2\xf0\x9f\x98\x80", "\xc3\xa9\xe6\xbc\xa2\xf0\x9f\x98\x80"},
        {"a\xe2\x80\xa8" "b\xe2\x80\xa9" "c\xc2\x85" "d", "a\\u2028b\\u2029c\\u0085d"},
        {"\xe2\x80\xa7\xe2\x80\xaa\xc2\x84\xc2\x86\xe2\x81\xa8",
         "\xe2\x80\xa7\xe2\x80\xaa\xc2\x84\xc2\x86\xe2\x81\xa8"},
        {"\xe2\x80", "\xe2\x80"},
        {"\xc2", "\xc2"},
    };
    char out[256];
    size_t len;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        bool same = true;

        for (size_t room = NGX_HTTP_LLM_JSON_MAX_ESCAPE; room < 40; room++) {
            escape(cases[i].text, strlen(cases[i].text), room, out, &len);
            same = same && strcmp(out, cases[i].want) == 0;
        }
        ok(same, "escape %zu, in buffers of any size", i);
    }
    escape("a\0b", 3, 64, out, &len);
    is_str(out, "a\\u0000b", "a zero byte");
}

int main(void)
{
    test_scan();
    test_member();
    test_skip_string();
    test_escape();
    return done_testing();
}
