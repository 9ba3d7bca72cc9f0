/* The text that $llm_prefix stands for: what counts of which body, and that no body of any form is
 * read beyond its end or further than it has to be. LLM_LONG=1 asks for more bodies, LLM_SEED for
 * the same ones again. */

#include "ngx_module/ngx_http_llm_lead.h"
#include "ngx_module/ngx_http_llm_params.h"
#include "t/unit/tap.h"

#include <time.h>

static unsigned char text[NGX_HTTP_LLM_LEAD_SIZE];

/* Reads memory of its exact size, so that a sanitizer sees a byte too many. */
static size_t lead(const char *body, size_t len)
{
    unsigned char *copy = malloc(len > 0 ? len : 1);
    size_t n;

    memcpy(copy, body, len);
    n = ngx_http_llm_lead(copy, len, text);
    free(copy);
    return n;
}

#define TEXT(s) (s), sizeof(s) - 1

static const struct {
    const char *body, *text;
    size_t len;
} good[] = {
    /* chats: leading system messages */
    {"{\"messages\":[{\"role\":\"system\",\"content\":\"abc\"},{\"role\":\"user\",\"content\":\"x"
     "\"}]}",
     TEXT("abc")},
    {" {\t\"model\" : \"m\" ,\r\n\"messages\" : [ { \"content\" : \"abc\" , \"role\" : \"system\""
     " } ] , \"n\" : 1 } \n",
     TEXT("abc")},
    {"{\"messages\":[{\"role\":\"system\",\"content\":\"a\"},{\"role\":\"developer\",\"content\":"
     "\"b\"},{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"system\",\"content\":\"d\"}]}",
     TEXT("ab")},
    {"{\"messages\":[{\"role\":\"system\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
     "{\"text\":\"b\",\"type\":\"text\"}]}]}",
     TEXT("ab")},
    {"{\"messages\":[{\"content\":[{\"text\":\"a\",\"x\":[{}],\"type\":\"text\"}],\"name\":\"n\","
     "\"role\":\"system\"},{\"role\":\"system\",\"content\":\"b\"}]}",
     TEXT("ab")},
    {"{\"messages\":[{\"role\":\"system\",\"content\":\"\"},{\"role\":\"system\",\"content\":\"a\"}"
     "]}",
     TEXT("a")},
    /* names and roles in other letters */
    {"{\"messag\\u0065s\":[{\"r\\u006fle\":\"sys\\u0074em\",\"\\u0063ontent\":\"abc\"}]}",
     TEXT("abc")},
    /* completions: the first prompt */
    {"{\"prompt\":\"abc\"}", TEXT("abc")},
    {"{\"prompt\":[\"abc\",\"d\"]}", TEXT("abc")},
    {"{\"prompt\":\"abc\",\"messages\":null}", TEXT("abc")},
    {"{\"messages\":null,\"prompt\":\"abc\"}", TEXT("abc")},
    {"{\"prompt\":[97,  25186,1633837924]}", TEXT("a\0\0\0bb\0\0dcba")},
    {"{\"prompt\":[[97],[98]]}", TEXT("a\0\0\0")},
    /* nothing of other members counts */
    {"{\"a\":{\"messages\":1},\"b\":[\"prompt\",{}],\"c\":\"\\\"\",\"prompt\":\"x\",\"d\":-1.5e3}",
     TEXT("x")},
    {"{\"parallel_tool_calls\":null,\"chat_template_kwargs\":{},\"prompt\":\"x\"}", TEXT("x")},
    /* escapes */
    {"{\"prompt\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"}", TEXT("\"\\/\b\f\n\r\t")},
    {"{\"prompt\":\"\\u0041\\u00e9\\u20AC\\ud83d\\ude00\"}", TEXT("A\u00e9\u20ac\U0001f600")},
};

/* No text, or none that others may begin with. */
static const char *const bad[] = {
    "", " ", "null", "[]", "\"prompt\"", "{", "{}", "{} ", "{\"a\":1}", "{\"prompt\"}",
    "{\"prompt\":}", "{\"prompt\":\"x", "{\"prompt\":\"x\\", "{\"prompt\":\"\"}",
    "{\"prompt\":1}", "{\"prompt\":null}", "{\"prompt\":{}}", "{\"prompt\":[]}",
    "{\"prompt\":[-1]}", "{\"prompt\":[null]}", "{\"prompt\":[[]",
    "{\"prompt\":[[\"a\"]]}", "{\"prompt\":[1.5]}", "{\"prompt\":[1", "{\"prompt\":[[[1]]]}",
    "{prompt:\"a\"}", "{\"prompt\" \"a\"}", "{\"a\":1 \"prompt\":\"a\"}",
    "{\"a\":1]\"prompt\":\"a\"}",
    "{\"prompt\":\"a\nb\"}", "{\"prompt\":\"\\x\"}",
    "{\"prompt\":\"\\u004\"}", "{\"prompt\":\"\\u004g\"}", "{\"prompt\":\"\\u0000\"}",
    "{\"prompt\":\"\\ud83d\"}", "{\"prompt\":\"\\ud83d\\n\"}", "{\"prompt\":\"\\ud83d\\u0041\"}",
    "{\"prompt\":\"\\ude00\"}", "{\"prompt\":\"\\ude00\\ude00\"}", "{\"a\\x\":1,\"prompt\":\"a\"}",
    "{\"messages\":{}}", "{\"messages\":\"x\"}", "{\"messages\":[1]}", "{\"messages\":[{}]}",
    "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}",
    "{\"messages\":[{\"role\":\"systems\",\"content\":\"x\"}]}",
    "{\"messages\":[]}", "{\"messages\":[ ]}",
    "{\"messages\":[{\"role\":\"system\",\"content\":[]}]}",
    "{\"messages\":[{\"role\":\"system\",\"content\":\"\"}]}",
    "{\"messages\":[{\"content\":\"x\"}]}", "{\"messages\":[{\"role\":\"system\"}]}",
    "{\"messages\":[{\"role\":1,\"content\":\"x\"}]}",
    "{\"messages\":[{\"role\":\"system\",\"content\":null}]}",
    "{\"messages\":[{\"role\":\"system\",\"content\":[{\"type\":\"image\",\"text\":\"x\"}]}]}",
    "{\"messages\":[{\"role\":\"system\",\"content\":[{\"type\":\"text\"}]}]}",
    "{\"messages\":[{\"role\":\"system\",\"content\":[\"x\"]}]}",
};

/* What follows the text may be anything. */
static const char *const open_ended[] = {
    "{\"prompt\":\"x\"", "{\"prompt\":\"x\"]", "{\"prompt\":\"x\"} y", "{\"prompt\":\"x\",}",
    "{\"prompt\":\"x\",\"prompt\":\"b\"}", "{\"prompt\":\"x\",\"messages\":[]}",
    "{\"prompt\":[\"x\"",
    "{\"messages\":[{\"role\":\"system\",\"content\":\"x\"}}",
    "{\"messages\":[{\"role\":\"system\",\"content\":\"x\"} {\"role\":\"system\",\"content\":\"y\"}"
    "]}",
    "{\"messages\":[{\"role\":\"system\",\"content\":\"x\",\"content\":\"y\"}]}",
    "{\"messages\":[{\"role\":\"system\",\"content\":\"x\",\"role\":\"system\"}]}",
    "{\"messages\":[{\"content\":\"x\",\"role\":\"system\",\"role\":\"system\"}]}",
    "{\"messages\":[{\"role\":\"system\",\"content\":\"x\"},{\"content\":\"y\"},"
    "{\"role\":\"system\",\"content\":\"z\"}]}",
    "{\"messages\":[{\"role\":\"system\",\"content\":\"x\"},{\"content\":\"y",
    "{\"messages\":[{\"role\":\"system\",\"content\":[{\"type\":\"text\",\"text\":\"x\"},{\"type\":"
    "\"image\"}]}]}",
    "{\"messages\":[{\"role\":\"system\",\"content\":\"x\"}]",
    "{\"messages\":[{\"role\":\"system\",\"content\":\"x\"},{\"role\":\"user\"",
    "{\"messages\":[{\"role\":\"system\",\"content\":\"x\"}],\"prompt\":\"y\"}",
};

static void test_texts(void)
{
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        size_t n = lead(good[i].body, strlen(good[i].body));

        ok(n == good[i].len && memcmp(text, good[i].text, good[i].len) == 0, "body %zu", i);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ok(lead(bad[i], strlen(bad[i])) == 0, "nothing in %zu", i);
    }
    for (size_t i = 0; i < sizeof(open_ended) / sizeof(open_ended[0]); i++) {
        size_t n = lead(open_ended[i], strlen(open_ended[i]));

        ok(n == 1 && text[0] == 'x', "the beginning of %zu", i);
    }
}

/* The text of a SUBMIT record: of its leading system messages, or of its first prompt. */
static size_t text_of(const ngx_http_llm_params_t *p, unsigned char *out)
{
    const struct llm_ipc_record r = {
        .type = LLM_IPC_SUBMIT, .length = (uint32_t) p->payload_len, .data = p->payload};
    struct llm_ipc_submit_view v;
    struct llm_ipc_item_view item;
    bool leading = true;
    size_t at = 0, len = 0;

    if (llm_ipc_submit_read(&r, &v) != LLM_IPC_DONE) {
        return SIZE_MAX;
    }
    while (leading && llm_ipc_submit_next(&v, &at, &item)) {
        bool prompt = item.type == LLM_IPC_ITEM_PROMPT_TEXT || item.type == LLM_IPC_ITEM_PROMPT_IDS;

        if (prompt || item.type == LLM_IPC_ITEM_CONTENT) {
            memcpy(out + len, item.data, item.length);
            len += item.length;
        }
        leading = !prompt && (item.type != LLM_IPC_ITEM_MESSAGE || item.arg == LLM_IPC_SYSTEM);
    }
    return len;
}

/* What is sent to the engine begins with the same text. */
static void test_same_as_submit(void)
{
    unsigned char out[512];

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        ngx_http_llm_params_t p = {.body = (const unsigned char *) good[i].body,
                                   .len = strlen(good[i].body),
                                   .kind = strstr(good[i].body, "\"prompt\":") == NULL
                                               ? LLM_IPC_KIND_CHAT
                                               : LLM_IPC_KIND_COMPLETION,
                                   .tenant = (const unsigned char *) "t",
                                   .tenant_len = 1,
                                   .max_tokens = 1,
                                   .limit = 4096};

        ok(ngx_http_llm_params_parse(&p) == NGX_HTTP_LLM_PARAMS_OK &&
               text_of(&p, out) == good[i].len && memcmp(out, good[i].text, good[i].len) == 0,
           "body %zu as SUBMIT: %s", i, p.fault.message);
        ngx_http_llm_params_free(&p);
    }
}

/* The text is cut, wherever a character ends. */
static void test_lengths(void)
{
    static const char *const begin[] = {
        "{\"messages\":[{\"role\":\"system\",\"content\":\"", "{\"prompt\":\""};
    static const char *const end[] = {"\"}]}", "\"}"};
    static const int most[] = {LLM_IPC_PREFIX_CHAT, LLM_IPC_PREFIX_PROMPT};
    char *body = malloc(2 * LLM_IPC_PREFIX_CHAT + 100);

    for (int i = 0; i < 2; i++) {
        for (int n = most[i] - 5; n <= most[i] + 5; n++) {
            int at = sprintf(body, "%s", begin[i]);

            memset(body + at, 'a', (size_t) n);
            strcpy(body + at + n, "\\ud83d\\ude00");
            strcat(body, end[i]);
            is_int((long long) lead(body, strlen(body)), n + 4 < most[i] ? n + 4 : most[i],
                   "%d bytes", n + 4);
        }
    }
    free(body);
}

static uint64_t state;

static uint32_t draw(uint32_t below)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t) (state >> 33) % below;
}

/* Bodies cut and with bytes changed: the sanitizers see what is read. */
static void test_any_body(void)
{
    static const char bytes[] = "{}[]\",:\\u0d8 1a\n";
    const char *seed = getenv("LLM_SEED");
    int rounds = getenv("LLM_LONG") != NULL ? 10000000 : 200000;
    bool sane = true;
    char body[512];

    state = seed != NULL ? strtoull(seed, NULL, 10) : (uint64_t) time(NULL);
    diag("LLM_SEED=%llu", (unsigned long long) state);
    for (int i = 0; i < rounds && sane; i++) {
        const char *from = good[draw(sizeof(good) / sizeof(good[0]))].body;
        size_t len = strlen(from);

        memcpy(body, from, len);
        for (uint32_t k = draw(4); k > 0; k--) {
            body[draw((uint32_t) len)] = bytes[draw(sizeof(bytes) - 1)];
        }
        len = draw(2) == 0 ? len : draw((uint32_t) len + 1);
        sane = lead(body, len) <= len * 4;
    }
    ok(sane, "%d bodies of any form", rounds);
}

/* The digest is written down: nodes of different versions must agree. */
static void test_digest(void)
{
    static const uint8_t none[32], one[32] = {1};
    uint8_t a[LLM_IPC_PREFIX_SIZE], b[LLM_IPC_PREFIX_SIZE];
    char hex[2 * LLM_IPC_PREFIX_SIZE + 1];

    llm_ipc_prefix(none, "abc", 3, a);
    for (int i = 0; i < LLM_IPC_PREFIX_SIZE; i++) {
        sprintf(hex + 2 * i, "%02x", a[i]);
    }
    is_str(hex, "589f9ffed4c477966bfb8d41f37895b0", "the digest");
    llm_ipc_prefix(one, "abc", 3, b);
    ok(memcmp(a, b, sizeof(a)) != 0, "another tenant's is another");
    llm_ipc_prefix(none, "abd", 3, b);
    ok(memcmp(a, b, sizeof(a)) != 0, "another text's is another");
}

int main(void)
{
    test_texts();
    test_same_as_submit();
    test_lengths();
    test_any_body();
    test_digest();
    return done_testing();
}
