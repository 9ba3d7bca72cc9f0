/* A request's body to a SUBMIT payload: whatever the body, what comes out is one that the engine's
 * border takes, or an error in fixed words; also when memory runs out at any allocation.
 * LLM_LONG=1 asks for more bodies, LLM_SEED for the same ones again. */

#include "ngx_module/ngx_http_llm_json.h"
#include "ngx_module/ngx_http_llm_params.h"
#include "t/unit/tap.h"

#include <time.h>

static const char *const seeds[] = {
    "{\"model\":\"m\",\"prompt\":\"hello\",\"max_tokens\":5,\"stream\":true,\"stream_options\":"
    "{\"include_usage\":"
    "true}}",
    "{\"prompt\":[\"a\",\"b\"],\"stop\":[\"x\",\"y\"],\"stop_token_ids\":[1,2],\"logit_bias\":{"
    "\"1\":-1.5,\"70\":100},"
    "\"seed\":-7,\"min_tokens\":1,\"top_k\":-1}",
    "{\"prompt\":[[1,2,3],[4]],\"temperature\":0.7,\"top_p\":0.9,\"min_p\":0.1,\"presence_penal"
    "ty\":-2,"
    "\"frequency_penalty\":2,\"repetition_penalty\":1.1,\"n\":1,\"best_of\":1,\"echo\":false,\""
    "suffix\":null}",
    "{\"prompt\":[\"a\",\"b\",\"c\"],\"n\":3,\"best_of\":3}",
    "{\"prompt\":[1,2,3],\"ignore_eos\":true,\"skip_special_tokens\":false,\"user\":\"u\",\"unk"
    "nown\":{\"a\":[]}}",
    "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":[{\""
    "type\":\"text\",\"text\":"
    "\"\\u00e9\\n\"}],\"name\":\"n\"},{\"role\":\"assistant\",\"content\":null,\"reasoning_cont"
    "ent\":\"r\",\"tool_calls\":"
    "[{\"id\":\"c\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]}"
    ",{\"role\":\"tool\","
    "\"tool_call_id\":\"c\",\"content\":\"7\"},{\"role\":\"assistant\",\"content\":\"begin\",\""
    "prefix\":true}]}",
    "{\"messages\":[{\"role\":\"developer\",\"content\":\"\"}],\"tools\":[{\"type\":\"function"
    "\",\"function\":{\"name\":"
    "\"f\",\"parameters\":{}}}],\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":"
    "\"f\"}},"
    "\"parallel_tool_calls\":false,\"chat_template_kwargs\":{\"thinking\":true,\"x\":1},\"max_c"
    "ompletion_tokens\":9}",
};

#define N_SEEDS (sizeof(seeds) / sizeof(seeds[0]))

static uint64_t state;

static uint32_t draw(uint32_t below)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t) (state >> 33) % below;
}

static int parse(ngx_http_llm_params_t *p, const char *body, size_t len, int kind)
{
    *p = (ngx_http_llm_params_t){.body = (const unsigned char *) body,
                                 .len = len,
                                 .kind = kind,
                                 .tenant = (const unsigned char *) "t",
                                 .tenant_len = 1,
                                 .max_tokens = 4096,
                                 .limit = 1 << 20};
    return ngx_http_llm_params_parse(p);
}

/* NULL, or what is wrong with the result. */
static const char *wrong(const ngx_http_llm_params_t *p, int rc)
{
    struct llm_ipc_record r = {
        .type = LLM_IPC_SUBMIT, .length = (uint32_t) p->payload_len, .data = p->payload};
    struct llm_ipc_submit_view v;

    if (strnlen(p->ignored, sizeof(p->ignored)) != p->ignored_len) {
        return "the list of ignored fields";
    }
    if (rc != NGX_HTTP_LLM_PARAMS_OK) {
        if (p->fault.status < 400 || p->fault.status > 599 || p->fault.message[0] == '\0') {
            return "an error without status or text";
        }
        for (const char *c = p->fault.param; *c != '\0'; c++) {
            if (*c <= ' ' || *c > '~') {
                return "a parameter's name with odd characters";
            }
        }
        return NULL;
    }
    if (llm_ipc_submit_read(&r, &v) != LLM_IPC_DONE) {
        return v.error != NULL ? v.error : "a payload that makes no sense";
    }
    if (p->n_choices == 0 || p->n_choices > LLM_IPC_MAX_CHOICES || p->n_max_tokens == 0) {
        return "counts";
    }
    return NULL;
}

static int kind_of(size_t seed)
{
    return seed < 5 ? LLM_IPC_KIND_COMPLETION : LLM_IPC_KIND_CHAT;
}

static void test_seeds(void)
{
    for (size_t i = 0; i < N_SEEDS; i++) {
        ngx_http_llm_params_t p;
        int rc = parse(&p, seeds[i], strlen(seeds[i]), kind_of(i));
        const char *why = wrong(&p, rc);

        ok(rc == NGX_HTTP_LLM_PARAMS_OK && why == NULL, "body %zu", i);
        if (rc != NGX_HTTP_LLM_PARAMS_OK || why != NULL) {
            diag("%s: %s", p.fault.message, why != NULL ? why : "refused");
        }
        ngx_http_llm_params_free(&p);
    }
}

/* Values and names that meet the edges. */
static const char *const pieces[] = {
    "null", "true", "-1", "0", "1", "2147483647", "2147483648", "4294967296", "9223372036854775807",
    "1e400", "1e-400", "-0", "0.5", "\"\"", "\"x\"", "[]", "{}", "[[]]", "[null]", "{\"a\":1}",
    "\"\\ud83d\\ude00\"", "\"\\u0000\"", "\"\\ud800\"", "\"n\":2,", "\"tools\":[],",
    "\"stop\":\"\",",
    "\"max_tokens\":4096,", "\"max_tokens\":1,", "\"messages\":[],", "\"prompt\":[\"\",\"\"],",
    ",", ":", "\"",
    "{", "}", "[", "]", "\xff", "\xc0\x80",
};

/* Changes a body at a few places; its length never exceeds size. */
static size_t mutate(char *body, size_t len, size_t size)
{
    for (uint32_t n = 1 + draw(4); n > 0; n--) {
        const char *piece = pieces[draw(sizeof(pieces) / sizeof(pieces[0]))];
        size_t at = draw((uint32_t) len + 1), cut = draw(8), add = strlen(piece);

        if (cut > len - at) {
            cut = len - at;
        }
        switch (draw(4)) {
        case 0: /* one byte */
            if (at < len) {
                body[at] = (char) draw(256);
            }
            continue;
        case 1: /* cut */
            add = 0;
            break;
        case 2: /* insert */
            cut = 0;
            break;
        }
        if (len - cut + add > size) {
            continue;
        }
        memmove(body + at + add, body + at + cut, len - at - cut);
        memcpy(body + at, piece, add);
        len += add - cut;
    }
    return len;
}

/* Replaces the value behind a colon by a piece: stays JSON often enough to meet the checks. */
static size_t replace_value(char *body, size_t len, size_t size)
{
    const char *piece = pieces[draw(23)];
    size_t add = strlen(piece), at = draw((uint32_t) len), end;

    while (at < len && body[at] != ':') {
        at++;
    }
    for (end = ++at; end < len && body[end] != ',' && body[end] != '}' && body[end] != ']'; end++) {
    }
    if (at >= len || len - (end - at) + add > size) {
        return len;
    }
    memmove(body + at + add, body + end, len - end);
    memcpy(body + at, piece, add);
    return len - (end - at) + add;
}

static void test_mutations(void)
{
    const char *seed = getenv("LLM_SEED");
    uint32_t count = getenv("LLM_LONG") != NULL ? 5000000 : 200000, accepted = 0, bad = 0;

    state = seed != NULL ? strtoull(seed, NULL, 10) : (uint64_t) time(NULL);
    diag("LLM_SEED=%llu", (unsigned long long) state);

    for (uint32_t i = 0; i < count && bad < 5; i++) {
        char body[4096];
        size_t which = draw(N_SEEDS), len = strlen(seeds[which]);
        ngx_http_llm_params_t p;
        const char *why;
        char *exact;
        int rc;

        memcpy(body, seeds[which], len);
        len = draw(2) != 0 ? mutate(body, len, sizeof(body))
                           : replace_value(body, len, sizeof(body));
        exact = malloc(len + (len == 0));
        memcpy(exact, body, len);

        rc = parse(&p, exact, len, kind_of(which));
        why = wrong(&p, rc);
        accepted += rc == NGX_HTTP_LLM_PARAMS_OK;
        if (why != NULL) {
            bad++;
            diag("%s: %.*s", why, (int) len, exact);
        }
        ngx_http_llm_params_free(&p);
        free(exact);
    }
    ok(bad == 0, "%u bodies", count);
    ok(accepted > count / 50 && accepted < count / 50 * 49, "some are good (%u), some are not",
       accepted);
}

/* --- without memory: an error, if not always the right one (jansson's lexer takes a failed
 * allocation for a malformed token) --- */

static long allocations_left;

static void *scarce(size_t size)
{
    return allocations_left-- > 0 ? malloc(size) : NULL;
}

static void test_memory(void)
{
    json_set_alloc_funcs(scarce, free);
    for (size_t i = 0; i < N_SEEDS; i++) {
        long n = 0;
        bool good = true;
        int rc;

        do {
            ngx_http_llm_params_t p;

            allocations_left = n++;
            rc = parse(&p, seeds[i], strlen(seeds[i]), kind_of(i));
            good = good && wrong(&p, rc) == NULL;
            ngx_http_llm_params_free(&p);
        } while (rc != NGX_HTTP_LLM_PARAMS_OK && n < 10000);

        ok(good && rc == NGX_HTTP_LLM_PARAMS_OK, "body %zu with each of %ld allocations failing",
           i, n);
    }
    json_set_alloc_funcs(malloc, free);
}

/* --- the scan --- */

static void test_scan(void)
{
    char deep[NGX_HTTP_LLM_JSON_MAX_DEPTH + 1];
    ngx_http_llm_params_t p = {.body = (const unsigned char *) "{\"prompt\": [1, 2]}",
                               .len = 18,
                               .kind = LLM_IPC_KIND_COMPLETION,
                               .tenant = (const unsigned char *) "t",
                               .tenant_len = 1,
                               .max_tokens = 4096,
                               .limit = 1 << 20};

    ngx_http_llm_params_scan(&p);
    is_int(p.structural, 6, "what a body's scan counts");

    /* which the parser believes: it does not look at the body a second time */
    memset(deep, '[', sizeof(deep));
    p.body = (const unsigned char *) deep;
    p.len = sizeof(deep);
    p.scanned = 0;
    ngx_http_llm_params_scan(&p);
    p.body = (const unsigned char *) seeds[0];
    p.len = strlen(seeds[0]);
    ok(ngx_http_llm_params_parse(&p) != NGX_HTTP_LLM_PARAMS_OK
           && strstr(p.fault.message, "nested deeper") != NULL,
       "a body is scanned once");
    ngx_http_llm_params_free(&p);
}

/* --- limits --- */

static void test_limit(void)
{
    ngx_http_llm_params_t p = {.body = (const unsigned char *) seeds[0],
                               .len = strlen(seeds[0]),
                               .kind = LLM_IPC_KIND_COMPLETION,
                               .tenant = (const unsigned char *) "t",
                               .tenant_len = 1,
                               .max_tokens = 4096,
                               .limit = 200};

    ok(ngx_http_llm_params_parse(&p) != NGX_HTTP_LLM_PARAMS_OK && p.fault.status == 413,
       "a payload beyond the limit");
    ngx_http_llm_params_free(&p);
}

/* What all choices together may have. */
static void test_choices(void)
{
    static const struct {
        const char *fields;
        int max_tokens; /* 0: refused */
    } cases[] = {
        {"\"n\":1", 2000000},
        {"\"n\":1,\"max_tokens\":2000000", 2000000},
        {"\"n\":128", 8192},
        {"\"n\":128,\"max_tokens\":8192", 8192},
        {"\"n\":128,\"max_tokens\":8193", 0},
        {"\"n\":2,\"max_tokens\":2000000", 0},
        {"\"n\":128,\"min_tokens\":8192", 8192},
        {"\"n\":128,\"min_tokens\":8193", 0},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ngx_http_llm_params_t p = {.kind = LLM_IPC_KIND_COMPLETION,
                                   .tenant = (const unsigned char *) "t",
                                   .tenant_len = 1,
                                   .max_tokens = 2000000,
                                   .limit = 4096};
        char body[128];
        int rc;

        p.body = (const unsigned char *) body;
        p.len = (size_t) sprintf(body, "{\"prompt\":\"x\",%s}", cases[i].fields);
        rc = ngx_http_llm_params_parse(&p);
        if (cases[i].max_tokens > 0) {
            ok(rc == NGX_HTTP_LLM_PARAMS_OK && (int) p.n_max_tokens == cases[i].max_tokens,
               "%s: %u tokens each", cases[i].fields, p.n_max_tokens);
        } else {
            ok(rc == NGX_HTTP_LLM_PARAMS_ERROR && p.fault.status == 400 &&
                   strcmp(p.fault.param, "n") == 0 && strstr(p.fault.message, "max_tokens") != NULL,
               "%s: refused", cases[i].fields);
        }
        ngx_http_llm_params_free(&p);
    }
}

int main(void)
{
    json_object_seed(1);
    test_seeds();
    test_mutations();
    test_memory();
    test_scan();
    test_limit();
    test_choices();
    return done_testing();
}
