/* SUBMIT, TOKEN and the fixed records: what is written is read, and every check refuses. */

#include "engine/ipc/utf8.h"
#include "t/unit/ipc_samples.h"
#include "t/unit/tap.h"

#include <math.h>

/* Reads a payload from memory of its exact size, so that a sanitizer sees a byte too many. */
static int read_exact(uint16_t type, const void *data, size_t length,
                      struct llm_ipc_submit_view *v)
{
    uint8_t *copy = malloc(length > 0 ? length : 1);
    struct llm_ipc_record r = {.type = type, .length = (uint32_t) length, .data = copy};
    uint64_t sum = 0;
    int rc;

    if (copy == NULL) {
        die("memory");
    }
    memcpy(copy, data, length);
    rc = read_record(&r, &sum);
    if (type == LLM_IPC_SUBMIT && v != NULL) {
        llm_ipc_submit_read(&r, v);
        v->items = NULL;
    }
    free(copy);
    return rc;
}

/* --- what is written is read --- */

static void test_submit(void)
{
    struct llm_ipc_writer w = sample_submit(LLM_IPC_KIND_CHAT);
    struct llm_ipc_record r = {.type = LLM_IPC_SUBMIT, .length = (uint32_t) w.len, .data = w.data};
    struct llm_ipc_submit_view v;
    struct llm_ipc_item_view it;
    size_t at = 0;
    uint32_t n = 0;

    is_int(llm_ipc_submit_read(&r, &v), LLM_IPC_DONE, "a chat");
    is_int(v.head.seed, 42, "its seed");
    is_int(v.head.max_tokens, 100, "its max_tokens");
    ok(v.head.temperature == 1, "its temperature");
    ok(v.error == NULL, "no error");
    while (llm_ipc_submit_next(&v, &at, &it)) {
        n++;
        if (n == 1) {
            ok(it.type == LLM_IPC_ITEM_TENANT && it.length == 6
                   && memcmp(it.data, "tenant", 6) == 0,
               "the tenant");
        }
        if (n == 3) {
            ok(it.type == LLM_IPC_ITEM_MESSAGE && it.arg == LLM_IPC_SYSTEM && it.length == 0,
               "the first message");
        }
        if ((uintptr_t) it.data % 4 != 0) {
            ok(false, "item %u is not aligned", n);
        }
    }
    is_int(n, v.n_items, "all items");
    free(w.data);

    w = sample_submit(LLM_IPC_KIND_COMPLETION);
    is_int(read_exact(LLM_IPC_SUBMIT, w.data, w.len, NULL), LLM_IPC_DONE, "a completion");
    free(w.data);
}

/* Heads of other versions: shorter, with zeroes for what is missing; longer, cut. */
static void test_other_heads(void)
{
    struct llm_ipc_writer w = sample_submit(LLM_IPC_KIND_CHAT);
    const uint32_t size = sizeof(struct llm_ipc_submit);
    const struct {
        uint32_t size;
        int rc;
    } cases[] = {
        {size - 8, LLM_IPC_DONE},    {size, LLM_IPC_DONE},     {size + 8, LLM_IPC_DONE},
        {4096, LLM_IPC_DONE},        {4104, LLM_IPC_BROKEN},   {size - 16, LLM_IPC_BROKEN},
        {size + 4, LLM_IPC_BROKEN},
    };
    struct llm_ipc_submit_view v;
    uint8_t *other = malloc(w.len + 4104);

    if (other == NULL) {
        die("memory");
    }
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint32_t n = cases[i].size;

        memset(other, 0xff, w.len + 4104);
        memcpy(other, w.data, n < size ? n : size);
        memcpy(other, &n, sizeof(n));
        memcpy(other + n, w.data + size, w.len - size);
        is_int(read_exact(LLM_IPC_SUBMIT, other, w.len - size + n, &v), cases[i].rc,
               "a head of %u bytes", n);
        if (cases[i].rc == LLM_IPC_DONE) {
            is_int(v.head.seed, n < size ? 0 : 42, "and its seed");
        }
    }
    free(other);
    free(w.data);
}

static void *no_memory(void *ctx, void *old, size_t old_len, size_t size)
{
    (void) ctx;
    (void) old;
    (void) old_len;
    (void) size;
    return NULL;
}

static void test_writer(void)
{
    struct llm_ipc_submit head = sample_head(LLM_IPC_KIND_CHAT);
    struct llm_ipc_writer none = {.limit = 1u << 20, .grow = no_memory};
    struct llm_ipc_writer w = WRITER(sizeof(head) + 16);
    struct llm_ipc_writer huge = WRITER(1000);
    struct llm_ipc_writer small = WRITER(sizeof(head) - 1);

    llm_ipc_submit_begin(&small, &head);
    ok(!llm_ipc_submit_end(&small), "a limit below the head");

    llm_ipc_submit_begin(&none, &head);
    item(&none, LLM_IPC_ITEM_TENANT, "t");
    ok(!llm_ipc_submit_end(&none), "a writer without memory");

    llm_ipc_submit_begin(&w, &head);
    item(&w, LLM_IPC_ITEM_TENANT, "12345678");
    ok(llm_ipc_submit_end(&w), "a writer just below its limit");
    item(&w, LLM_IPC_ITEM_MODEL, "");
    ok(!llm_ipc_submit_end(&w), "and above it");
    free(w.data);

    llm_ipc_submit_begin(&huge, &head);
    llm_ipc_submit_item(&huge, LLM_IPC_ITEM_CONTENT, 0, "", SIZE_MAX - 3);
    ok(!llm_ipc_submit_end(&huge), "an item larger than memory");
    free(huge.data);
}

/* --- every check of a SUBMIT --- */

struct part {
    uint16_t type, arg;
    const char *data;
    size_t length;
};

#define MAX_PARTS 8

/* A payload of this head and these parts (up to type 0, the last one `times` times). */
static void check(const char *name, const struct llm_ipc_submit *head, const struct part *parts,
                  int times, int want)
{
    struct llm_ipc_writer w = WRITER(1u << 20);
    struct llm_ipc_submit_view v;

    llm_ipc_submit_begin(&w, head);
    for (int i = 0; i < MAX_PARTS && parts[i].type != 0; i++) {
        bool last = i == MAX_PARTS - 1 || parts[i + 1].type == 0;

        for (int k = 0; k < (last ? times : 1); k++) {
            llm_ipc_submit_item(&w, parts[i].type, parts[i].arg, parts[i].data, parts[i].length);
        }
    }
    if (!llm_ipc_submit_end(&w)) {
        die("writer");
    }

    is_int(read_exact(LLM_IPC_SUBMIT, w.data, w.len, &v), want, "%s", name);
    if (want == LLM_IPC_REFUSED) {
        ok(v.error != NULL && v.status == LLM_IPC_INVALID, "with a reason: %s", v.error);
    }
    free(w.data);
}

#define TEXT(type, text) {LLM_IPC_ITEM_##type, 0, text, sizeof(text) - 1}
#define MESSAGE(role) {LLM_IPC_ITEM_MESSAGE, LLM_IPC_##role, NULL, 0}

static void test_heads(void)
{
    static const struct part chat[MAX_PARTS] = {TEXT(TENANT, "t"), MESSAGE(USER)};
    struct llm_ipc_submit h;

#define HEAD(change, want)                                                                        \
    h = sample_head(LLM_IPC_KIND_CHAT);                                                           \
    h.change;                                                                                     \
    check(#change, &h, chat, 1, LLM_IPC_##want)

    HEAD(n = 1, DONE);
    HEAD(n = LLM_IPC_MAX_N, DONE);
    HEAD(n = 0, REFUSED);
    HEAD(n = LLM_IPC_MAX_N + 1, REFUSED);
    HEAD(weight = 1000, DONE);
    HEAD(weight = 0, REFUSED);
    HEAD(weight = 1001, REFUSED);
    HEAD(min_tokens = 100, DONE);
    HEAD(min_tokens = 101, REFUSED);
    HEAD(max_tokens = 0, DONE);
    HEAD(top_logprobs = 20, DONE);
    HEAD(top_logprobs = 21, REFUSED);
    HEAD(temperature = 0, DONE);
    HEAD(temperature = 1000, DONE);
    HEAD(temperature = 1000.5f, REFUSED);
    HEAD(temperature = -0.1f, REFUSED);
    HEAD(temperature = NAN, REFUSED);
    HEAD(temperature = INFINITY, REFUSED);
    HEAD(top_p = 0, DONE);
    HEAD(top_p = 1.01f, REFUSED);
    HEAD(top_p = -0.01f, REFUSED);
    HEAD(top_p = NAN, REFUSED);
    HEAD(min_p = 1, DONE);
    HEAD(min_p = 1.01f, REFUSED);
    HEAD(min_p = -1, REFUSED);
    HEAD(min_p = NAN, REFUSED);
    HEAD(repetition_penalty = 100, DONE);
    HEAD(repetition_penalty = 0, REFUSED);
    HEAD(repetition_penalty = -1, REFUSED);
    HEAD(repetition_penalty = 101, REFUSED);
    HEAD(repetition_penalty = NAN, REFUSED);
    HEAD(presence_penalty = -100, DONE);
    HEAD(presence_penalty = -101, REFUSED);
    HEAD(presence_penalty = 101, REFUSED);
    HEAD(presence_penalty = NAN, REFUSED);
    HEAD(frequency_penalty = 100, DONE);
    HEAD(frequency_penalty = -101, REFUSED);
    HEAD(frequency_penalty = INFINITY, REFUSED);
    HEAD(frequency_penalty = NAN, REFUSED);
    HEAD(scope = LLM_IPC_SCOPE_OFF, DONE);
    HEAD(scope = LLM_IPC_SCOPE_OFF + 1, BROKEN);
    HEAD(kind = 0, BROKEN);
    HEAD(kind = 3, BROKEN);
    HEAD(tool_choice = LLM_IPC_TOOLS_REQUIRED, DONE);
    HEAD(tool_choice = LLM_IPC_TOOLS_NAMED, REFUSED);
    HEAD(tool_choice = LLM_IPC_TOOLS_NAMED + 1, BROKEN);
    HEAD(flags = LLM_IPC_FIT_CONTEXT | LLM_IPC_THINKING_ON, DONE);
    HEAD(flags = LLM_IPC_THINKING_OFF | LLM_IPC_THINKING_ON, REFUSED);
    HEAD(flags = LLM_IPC_FIT_CONTEXT << 1, BROKEN);
    HEAD(flags = 1u << 31, BROKEN);
    HEAD(reserved0 = 1, BROKEN);
    HEAD(reserved1 = 1, BROKEN);
#undef HEAD
}

#define LONG_256                                                                                  \
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"                            \
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"                            \
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"                            \
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static const struct items_case {
    const char *name;
    uint8_t kind;
    int want;
    struct part parts[MAX_PARTS];
    int times; /* of the last part; 0 is 1 */
} items_cases[] = {
#define CHAT LLM_IPC_KIND_CHAT
#define COMPLETION LLM_IPC_KIND_COMPLETION
#define DONE LLM_IPC_DONE
#define BROKEN LLM_IPC_BROKEN
#define REFUSED LLM_IPC_REFUSED
#define T TEXT(TENANT, "t")
#define P TEXT(PROMPT_TEXT, "p")
    {"nothing", CHAT, BROKEN, {{0}}, 0},
    {"no tenant", CHAT, BROKEN, {MESSAGE(USER)}, 0},
    {"two tenants", CHAT, BROKEN, {MESSAGE(USER), T, T}, 0},
    {"an empty tenant", CHAT, REFUSED, {MESSAGE(USER), TEXT(TENANT, "")}, 0},
    {"a tenant of any bytes", CHAT, DONE, {MESSAGE(USER), TEXT(TENANT, "\xff\0\n")}, 0},
    {"a long tenant", CHAT, REFUSED, {MESSAGE(USER), TEXT(TENANT, LONG_256)}, 0},
    {"no message", CHAT, REFUSED, {T}, 0},
    {"no prompt", COMPLETION, REFUSED, {T}, 0},
    {"a prompt", COMPLETION, DONE, {T, P}, 0},
    {"an empty prompt", COMPLETION, DONE, {T, TEXT(PROMPT_TEXT, "")}, 0},
    {"prompts of a chat", CHAT, BROKEN, {T, MESSAGE(USER), P}, 0},
    {"ids of a chat", CHAT, BROKEN, {T, MESSAGE(USER), TEXT(PROMPT_IDS, "1234")}, 0},
    {"suffix of a chat", CHAT, BROKEN, {T, MESSAGE(USER), TEXT(SUFFIX, "s")}, 0},
    {"messages of a completion", COMPLETION, BROKEN, {T, P, MESSAGE(USER)}, 0},
    {"tools of a completion", COMPLETION, BROKEN, {T, P, TEXT(TOOLS, "[]")}, 0},
    {"a tool's name of a completion", COMPLETION, BROKEN, {T, P, TEXT(TOOL_NAME, "f")}, 0},
    {"content before a message", CHAT, BROKEN, {T, TEXT(CONTENT, "c"), MESSAGE(USER)}, 0},
    {"content of a completion", COMPLETION, BROKEN, {T, P, TEXT(CONTENT, "c")}, 0},
    {"reasoning before a message", CHAT, BROKEN, {T, TEXT(REASONING, "c"), MESSAGE(USER)}, 0},
    {"a name before a message", CHAT, BROKEN, {T, TEXT(NAME, "c"), MESSAGE(USER)}, 0},
    {"a call before a message", CHAT, BROKEN, {T, TEXT(TOOL_CALL, "c"), MESSAGE(USER)}, 0},
    {"a call's id before a message", CHAT, BROKEN, {T, TEXT(TOOL_CALL_ID, "c"), MESSAGE(USER)}, 0},
    {"unknown role 0", CHAT, BROKEN, {T, {LLM_IPC_ITEM_MESSAGE, 0, NULL, 0}}, 0},
    {"unknown role 5", CHAT, BROKEN, {T, {LLM_IPC_ITEM_MESSAGE, 5, NULL, 0}}, 0},
    {"a message with data", CHAT, BROKEN, {T, {LLM_IPC_ITEM_MESSAGE, LLM_IPC_USER, "x", 1}}, 0},
    {"an argument where none is", CHAT, BROKEN,
     {T, MESSAGE(USER), {LLM_IPC_ITEM_CONTENT, 1, "x", 1}}, 0},
    {"an unknown item", CHAT, BROKEN, {T, MESSAGE(USER), {20, 0, "x", 1}}, 0},
    {"a far unknown item", CHAT, BROKEN, {T, MESSAGE(USER), {65535, 0, "x", 1}}, 0},
    {"two models", CHAT, BROKEN, {T, MESSAGE(USER), TEXT(MODEL, "m"), TEXT(MODEL, "m")}, 0},
    {"tools twice", CHAT, BROKEN, {T, MESSAGE(USER), TEXT(TOOLS, "[]")}, 2},
    {"a tool's name twice", CHAT, BROKEN, {T, MESSAGE(USER), TEXT(TOOL_NAME, "f")}, 2},
    {"response format twice", CHAT, BROKEN, {T, MESSAGE(USER), TEXT(RESPONSE_FORMAT, "{}")}, 2},
    {"suffix twice", COMPLETION, BROKEN, {T, P, TEXT(SUFFIX, "s")}, 2},
    {"content twice", CHAT, DONE, {T, MESSAGE(USER), TEXT(CONTENT, "c")}, 2},

    {"a call", CHAT, DONE,
     {T, MESSAGE(ASSISTANT), TEXT(TOOL_CALL, "i"), TEXT(TOOL_CALL_NAME, "f"),
      TEXT(TOOL_CALL_ARGUMENTS, "{}"), TEXT(CONTENT, "c")}, 0},
    {"a call without all", CHAT, BROKEN, {T, MESSAGE(ASSISTANT), TEXT(TOOL_CALL, "i")}, 0},
    {"a call without arguments", CHAT, BROKEN,
     {T, MESSAGE(ASSISTANT), TEXT(TOOL_CALL, "i"), TEXT(TOOL_CALL_NAME, "f")}, 0},
    {"a call without name", CHAT, BROKEN,
     {T, MESSAGE(ASSISTANT), TEXT(TOOL_CALL, "i"), TEXT(TOOL_CALL_ARGUMENTS, "{}")}, 0},
    {"a call interrupted", CHAT, BROKEN,
     {T, MESSAGE(ASSISTANT), TEXT(TOOL_CALL, "i"), TEXT(CONTENT, "c"), TEXT(TOOL_CALL_NAME, "f"),
      TEXT(TOOL_CALL_ARGUMENTS, "{}")}, 0},
    {"a call's name alone", CHAT, BROKEN, {T, MESSAGE(ASSISTANT), TEXT(TOOL_CALL_NAME, "f")}, 0},
    {"arguments alone", CHAT, BROKEN, {T, MESSAGE(ASSISTANT), TEXT(TOOL_CALL_ARGUMENTS, "f")}, 0},
    {"a call of the user", CHAT, REFUSED,
     {T, MESSAGE(USER), TEXT(TOOL_CALL, "i"), TEXT(TOOL_CALL_NAME, "f"),
      TEXT(TOOL_CALL_ARGUMENTS, "{}")}, 0},
    {"a call's id of a tool", CHAT, DONE, {T, MESSAGE(TOOL), TEXT(TOOL_CALL_ID, "i")}, 0},
    {"a call's id of the user", CHAT, REFUSED, {T, MESSAGE(USER), TEXT(TOOL_CALL_ID, "i")}, 0},

    {"ids of no whole number", COMPLETION, BROKEN, {T, TEXT(PROMPT_IDS, "12345")}, 0},
    {"stop ids of no whole number", COMPLETION, BROKEN, {T, P, TEXT(STOP_IDS, "123")}, 0},
    {"biases of no whole pair", COMPLETION, BROKEN, {T, P, TEXT(LOGIT_BIAS, "1234")}, 0},
    {"bias 1000", COMPLETION, DONE, {T, P, TEXT(LOGIT_BIAS, "\1\0\0\0\0\0\x7a\x44")}, 0},
    {"bias above 1000", COMPLETION, REFUSED, {T, P, TEXT(LOGIT_BIAS, "\1\0\0\0\1\0\x7a\x44")}, 0},
    {"bias below -1000", COMPLETION, REFUSED, {T, P, TEXT(LOGIT_BIAS, "\1\0\0\0\1\0\x7a\xc4")}, 0},
    {"bias not a number", COMPLETION, REFUSED, {T, P, TEXT(LOGIT_BIAS, "\1\0\0\0\0\0\xc0\x7f")}, 0},
    {"bias infinite", COMPLETION, REFUSED, {T, P, TEXT(LOGIT_BIAS, "\1\0\0\0\0\0\x80\x7f")}, 0},
    {"an empty stop", COMPLETION, REFUSED, {T, P, TEXT(STOP, "")}, 0},
    {"a long stop", COMPLETION, DONE, {T, P, TEXT(STOP, LONG_256 LONG_256 LONG_256 LONG_256)}, 0},
    {"a stop too long", COMPLETION, REFUSED,
     {T, P, TEXT(STOP, LONG_256 LONG_256 LONG_256 LONG_256 "x")}, 0},

    {"stops, as many as there may be", COMPLETION, DONE, {T, P, TEXT(STOP, "s")},
     LLM_IPC_MAX_STOPS},
    {"a stop too many", COMPLETION, REFUSED, {T, P, TEXT(STOP, "s")}, LLM_IPC_MAX_STOPS + 1},
    {"stop ids, as many as there may be", COMPLETION, DONE, {T, P, TEXT(STOP_IDS, "12341234")},
     LLM_IPC_MAX_STOPS / 2},
    {"a stop id too many", COMPLETION, REFUSED, {T, P, TEXT(STOP_IDS, "1234")},
     LLM_IPC_MAX_STOPS + 1},
    {"biases, as many as there may be", COMPLETION, DONE, {T, P, TEXT(LOGIT_BIAS, "1234\0\0\0\0")},
     LLM_IPC_MAX_BIAS},
    {"a bias too many", COMPLETION, REFUSED, {T, P, TEXT(LOGIT_BIAS, "1234\0\0\0\0")},
     LLM_IPC_MAX_BIAS + 1},
    {"prompts, as many as there may be", COMPLETION, DONE, {T, P}, LLM_IPC_MAX_PROMPTS},
    {"a prompt too many", COMPLETION, REFUSED, {T, P}, LLM_IPC_MAX_PROMPTS + 1},
    {"ids count as prompts", COMPLETION, REFUSED, {T, TEXT(PROMPT_IDS, "1234")},
     LLM_IPC_MAX_PROMPTS + 1},

#define BAD_UTF8(type, kind, before)                                                              \
    {"bytes as " #type, kind, REFUSED, {T, before, TEXT(type, "a\xff")}, 0}
    BAD_UTF8(MODEL, CHAT, MESSAGE(USER)),
    BAD_UTF8(CONTENT, CHAT, MESSAGE(USER)),
    BAD_UTF8(REASONING, CHAT, MESSAGE(USER)),
    BAD_UTF8(NAME, CHAT, MESSAGE(USER)),
    BAD_UTF8(TOOL_CALL_ID, CHAT, MESSAGE(TOOL)),
    BAD_UTF8(TOOLS, CHAT, MESSAGE(USER)),
    BAD_UTF8(TOOL_NAME, CHAT, MESSAGE(USER)),
    BAD_UTF8(RESPONSE_FORMAT, CHAT, MESSAGE(USER)),
    BAD_UTF8(PROMPT_TEXT, COMPLETION, P),
    BAD_UTF8(SUFFIX, COMPLETION, P),
    BAD_UTF8(STOP, COMPLETION, P),
    {"bytes in a call", CHAT, REFUSED,
     {T, MESSAGE(ASSISTANT), TEXT(TOOL_CALL, "\xff"), TEXT(TOOL_CALL_NAME, "f"),
      TEXT(TOOL_CALL_ARGUMENTS, "{}")}, 0},
    {"bytes in a call's name", CHAT, REFUSED,
     {T, MESSAGE(ASSISTANT), TEXT(TOOL_CALL, "i"), TEXT(TOOL_CALL_NAME, "\xff"),
      TEXT(TOOL_CALL_ARGUMENTS, "{}")}, 0},
    {"bytes in a call's arguments", CHAT, REFUSED,
     {T, MESSAGE(ASSISTANT), TEXT(TOOL_CALL, "i"), TEXT(TOOL_CALL_NAME, "f"),
      TEXT(TOOL_CALL_ARGUMENTS, "\xff")}, 0},
    {"refused, then broken", CHAT, BROKEN,
     {T, MESSAGE(USER), TEXT(CONTENT, "\xff"), TEXT(PROMPT_TEXT, "p")}, 0},
#undef CHAT
#undef COMPLETION
#undef DONE
#undef BROKEN
#undef REFUSED
#undef T
#undef P
};

static void test_items(void)
{
    static const struct part prompts[MAX_PARTS] = {TEXT(TENANT, "t"), TEXT(PROMPT_TEXT, "p")};
    static const struct part tool[MAX_PARTS] = {TEXT(TENANT, "t"), MESSAGE(USER),
                                                TEXT(TOOL_NAME, "f")};
    struct llm_ipc_submit head;

    for (size_t i = 0; i < sizeof(items_cases) / sizeof(items_cases[0]); i++) {
        const struct items_case *c = &items_cases[i];

        head = sample_head(c->kind);
        check(c->name, &head, c->parts, c->times > 0 ? c->times : 1, c->want);
    }

    head = sample_head(LLM_IPC_KIND_COMPLETION);
    head.n = 16;
    check("64 prompts times 16", &head, prompts, 64, LLM_IPC_DONE);
    check("65 prompts times 16", &head, prompts, 65, LLM_IPC_REFUSED);

    head = sample_head(LLM_IPC_KIND_CHAT);
    head.tool_choice = LLM_IPC_TOOLS_NAMED;
    check("a tool by name", &head, tool, 1, LLM_IPC_DONE);
}

/* Sizes and counts of the payload itself. */
static void test_structure(void)
{
    struct llm_ipc_writer w = sample_submit(LLM_IPC_KIND_CHAT);
    struct llm_ipc_submit *head = (struct llm_ipc_submit *) w.data;
    struct llm_ipc_item *first = (struct llm_ipc_item *) (w.data + sizeof(*head));
    struct llm_ipc_submit good = *head;
    int broken = 0;

    for (size_t n = 0; n < w.len; n++) {
        broken += read_exact(LLM_IPC_SUBMIT, w.data, n, NULL) == LLM_IPC_BROKEN;
    }
    is_int(broken, w.len, "cut anywhere");

#define STRUCTURE(change)                                                                         \
    *head = good;                                                                                 \
    head->change;                                                                                 \
    is_int(read_exact(LLM_IPC_SUBMIT, w.data, w.len, NULL), LLM_IPC_BROKEN, #change)

    STRUCTURE(n_items = good.n_items - 1);
    STRUCTURE(n_items = good.n_items + 1);
    STRUCTURE(n_items = 0);
    STRUCTURE(n_items = UINT32_MAX);
    STRUCTURE(size = 0);
    STRUCTURE(size = offsetof(struct llm_ipc_submit, seed) - 8);
    STRUCTURE(size = sizeof(good) + 4);
    STRUCTURE(size = 4104);
    STRUCTURE(size = UINT32_MAX);
    STRUCTURE(size = (uint32_t) w.len + 8);
#undef STRUCTURE
    *head = good;

    first->length = (uint32_t) w.len;
    is_int(read_exact(LLM_IPC_SUBMIT, w.data, w.len, NULL), LLM_IPC_BROKEN, "an item too long");
    first->length = UINT32_MAX;
    is_int(read_exact(LLM_IPC_SUBMIT, w.data, w.len, NULL), LLM_IPC_BROKEN, "far too long");
    first->length = UINT32_MAX - 7;
    is_int(read_exact(LLM_IPC_SUBMIT, w.data, w.len, NULL), LLM_IPC_BROKEN, "just as far");
    free(w.data);

    /* data that ends with the payload, its padding missing */
    w = sample_submit(LLM_IPC_KIND_CHAT);
    w.len -= 8;
    is_int(read_exact(LLM_IPC_SUBMIT, w.data, w.len, NULL), LLM_IPC_BROKEN, "padding missing");
    free(w.data);
}

/* --- TOKEN --- */

static void test_token(void)
{
    uint8_t token[256], changed[512];
    size_t length = sample_token(token);
    struct llm_ipc_record r = {.type = LLM_IPC_TOKEN, .length = (uint32_t) length, .data = token};
    struct llm_ipc_token *head = (struct llm_ipc_token *) changed;
    struct llm_ipc_token_view v;
    struct llm_ipc_logprob_view l;
    float nan = NAN;
    size_t at = 0;
    int n = 0, broken = 0;

    is_int(llm_ipc_token_read(&r, &v), LLM_IPC_DONE, "a token");
    ok(v.head.n_ids == 2 && v.ids[0] == 10 && v.ids[1] == 20, "its ids");
    ok(v.head.text_length == 6 && memcmp(v.text, "Hello ", 6) == 0, "its text");
    while (llm_ipc_logprob_next(&v, &at, &l)) {
        n++;
    }
    is_int(n, 4, "its log-probabilities");
    ok(l.text_length == 1 && (uint8_t) l.text[0] == 0xff, "whose texts may be parts of characters");

    for (size_t i = 0; i < length; i++) {
        broken += read_exact(LLM_IPC_TOKEN, token, i, NULL) == LLM_IPC_BROKEN;
    }
    is_int(broken, length, "cut anywhere");

#define TOKEN(change, want)                                                                       \
    memcpy(changed, token, sizeof(token));                                                        \
    head->change;                                                                                 \
    is_int(read_exact(LLM_IPC_TOKEN, changed, length, NULL), LLM_IPC_##want, #change)

    TOKEN(choice = 1023, DONE);
    TOKEN(choice = 1024, BROKEN);
    TOKEN(kind = LLM_IPC_TEXT_TOOL_ARGUMENTS, DONE);
    TOKEN(kind = 0, BROKEN);
    TOKEN(kind = 5, BROKEN);
    TOKEN(reserved = 1, BROKEN);
    TOKEN(n_top = 0, BROKEN);
    TOKEN(n_top = 2, BROKEN);
    TOKEN(n_top = 21, BROKEN);
    TOKEN(n_ids = 1, BROKEN);
    TOKEN(n_ids = 65535, BROKEN);
    TOKEN(text_length = 7, BROKEN);
    TOKEN(text_length = UINT32_MAX, BROKEN);
    TOKEN(logprobs_length = 0, BROKEN);
    TOKEN(logprobs_length = UINT32_MAX, BROKEN);
#undef TOKEN

    memcpy(changed, token, sizeof(token));
    memset(changed + 16 + 8, 0xe2, 6);
    is_int(read_exact(LLM_IPC_TOKEN, changed, length, NULL), LLM_IPC_BROKEN, "text not UTF-8");

    memcpy(changed, token, sizeof(token));
    memcpy(changed + 16 + 8 + 6 + 4, &nan, sizeof(nan));
    is_int(read_exact(LLM_IPC_TOKEN, changed, length, NULL), LLM_IPC_BROKEN, "not a number");

    memcpy(changed, token, sizeof(token));
    memset(changed + 16 + 8 + 6 + 8, 0xff, 4);
    is_int(read_exact(LLM_IPC_TOKEN, changed, length, NULL), LLM_IPC_BROKEN, "an entry too long");

    /* without ids and log-probabilities; with n_top and nothing behind it */
    memset(changed, 0, sizeof(changed));
    *head = (struct llm_ipc_token){.kind = 1, .text_length = 3};
    memcpy(changed + 16, "abc", 3);
    is_int(read_exact(LLM_IPC_TOKEN, changed, 19, NULL), LLM_IPC_DONE, "text alone");
    head->n_top = 1;
    is_int(read_exact(LLM_IPC_TOKEN, changed, 19, NULL), LLM_IPC_BROKEN, "alternatives of nothing");

    /* one id with as many alternatives as there may be, and one more */
    for (uint8_t top = LLM_IPC_MAX_TOP_LOGPROBS; top <= LLM_IPC_MAX_TOP_LOGPROBS + 1; top++) {
        uint32_t entries = (top + 1u) * (uint32_t) sizeof(struct llm_ipc_logprob);

        memset(changed, 0, sizeof(changed));
        *head = (struct llm_ipc_token){
            .kind = 1, .n_ids = 1, .n_top = top, .logprobs_length = entries};
        is_int(read_exact(LLM_IPC_TOKEN, changed, sizeof(*head) + 4 + entries, NULL),
               top > LLM_IPC_MAX_TOP_LOGPROBS ? LLM_IPC_BROKEN : LLM_IPC_DONE,
               "%u alternatives", top);
    }
}

/* --- fixed size --- */

static void test_fixed(void)
{
    struct llm_ipc_finished f = {.status = LLM_IPC_INVALID, .detail = "no such thing"};
    struct llm_ipc_choice_end e = {.choice = 1023, .reason = LLM_IPC_FINISH_ERROR};
    struct llm_ipc_counted c = {7, 5};
    struct llm_ipc_record r = {.data = (const uint8_t *) &c, .length = 4};
    struct llm_ipc_counted got = {1, 1};
    uint8_t longer[200] = {0};

    is_int(llm_ipc_counted_read(&r, &got), LLM_IPC_DONE, "a shorter COUNTED");
    ok(got.prompt_tokens == 7 && got.cached_tokens_estimate == 0, "zero-filled");

    is_int(read_exact(LLM_IPC_COUNTED, &c, 3, NULL), LLM_IPC_BROKEN, "COUNTED too short");
    is_int(read_exact(LLM_IPC_COUNTED, longer, 40, NULL), LLM_IPC_DONE, "COUNTED longer");
    is_int(read_exact(LLM_IPC_RELEASE, longer, 3, NULL), LLM_IPC_BROKEN, "RELEASE too short");
    is_int(read_exact(LLM_IPC_RELEASE, longer, 4, NULL), LLM_IPC_DONE, "RELEASE");
    is_int(read_exact(LLM_IPC_REVOKE, longer, 15, NULL), LLM_IPC_BROKEN, "REVOKE too short");
    is_int(read_exact(LLM_IPC_REVOKE, longer, 16, NULL), LLM_IPC_DONE, "REVOKE");
    is_int(read_exact(LLM_IPC_CREDIT, longer, 3, NULL), LLM_IPC_BROKEN, "CREDIT too short");
    is_int(read_exact(LLM_IPC_CREDIT, longer, 4, NULL), LLM_IPC_DONE, "CREDIT");
    is_int(read_exact(LLM_IPC_PURGE, longer, 31, NULL), LLM_IPC_BROKEN, "PURGE too short");
    is_int(read_exact(LLM_IPC_PURGE, longer, 32, NULL), LLM_IPC_DONE, "PURGE");
    is_int(read_exact(LLM_IPC_PURGED, longer, 7, NULL), LLM_IPC_BROKEN, "PURGED too short");
    is_int(read_exact(LLM_IPC_PURGED, longer, 8, NULL), LLM_IPC_DONE, "PURGED");

    is_int(read_exact(LLM_IPC_CHOICE_END, &e, 4, NULL), LLM_IPC_DONE, "CHOICE_END");
    is_int(read_exact(LLM_IPC_CHOICE_END, &e, 3, NULL), LLM_IPC_BROKEN, "CHOICE_END too short");
    e.choice = 1024;
    is_int(read_exact(LLM_IPC_CHOICE_END, &e, 4, NULL), LLM_IPC_BROKEN, "a choice too high");
    e = (struct llm_ipc_choice_end){.reason = 0};
    is_int(read_exact(LLM_IPC_CHOICE_END, &e, 4, NULL), LLM_IPC_BROKEN, "reason 0");
    e.reason = LLM_IPC_FINISH_ERROR + 1;
    is_int(read_exact(LLM_IPC_CHOICE_END, &e, 4, NULL), LLM_IPC_BROKEN, "an unknown reason");

    is_int(read_exact(LLM_IPC_FINISHED, &f, sizeof(f), NULL), LLM_IPC_DONE, "FINISHED");
    is_int(read_exact(LLM_IPC_FINISHED, &f, offsetof(struct llm_ipc_finished, detail), NULL),
           LLM_IPC_DONE, "FINISHED without detail");
    is_int(read_exact(LLM_IPC_FINISHED, &f, offsetof(struct llm_ipc_finished, detail) - 1, NULL),
           LLM_IPC_BROKEN, "FINISHED too short");
    f.status = LLM_IPC_FAILED + 1;
    is_int(read_exact(LLM_IPC_FINISHED, &f, sizeof(f), NULL), LLM_IPC_BROKEN, "unknown status");
    f.status = LLM_IPC_FAILED;
    f.detail[3] = '\n';
    is_int(read_exact(LLM_IPC_FINISHED, &f, sizeof(f), NULL), LLM_IPC_BROKEN, "a line end");
    memset(f.detail, 'x', sizeof(f.detail));
    is_int(read_exact(LLM_IPC_FINISHED, &f, sizeof(f), NULL), LLM_IPC_BROKEN, "text without end");
    f.detail[sizeof(f.detail) - 1] = '\0';
    is_int(read_exact(LLM_IPC_FINISHED, &f, sizeof(f), NULL), LLM_IPC_DONE, "the longest text");
}

/* --- UTF-8 --- */

/* Straight from the definition: decode the bits, then judge the number. */
static bool utf8_by_definition(const uint8_t *p, size_t len)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};

    while (len > 0) {
        size_t n = p[0] < 0x80       ? 1
                   : p[0] >> 5 == 6  ? 2
                   : p[0] >> 4 == 14 ? 3
                   : p[0] >> 3 == 30 ? 4
                                     : 0;
        uint32_t c;

        if (n == 0 || n > len) {
            return false;
        }
        c = n == 1 ? p[0] : p[0] & (0x7fu >> n);
        for (size_t i = 1; i < n; i++) {
            if (p[i] >> 6 != 2) {
                return false;
            }
            c = c << 6 | (p[i] & 0x3f);
        }
        if ((n > 1 && c < least[n]) || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff)) {
            return false;
        }
        p += n;
        len -= n;
    }
    return true;
}

static void test_utf8(uint64_t seed)
{
    static const uint8_t edges[] = {0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1,
                                    0xc2, 0xdf, 0xe0, 0xe1, 0xec, 0xed, 0xee, 0xef, 0xf0, 0xf1,
                                    0xf3, 0xf4, 0xf5, 0xf8, 0xff};
    uint8_t text[64], b[4];
    long wrong = 0, n = 0, valid = 0;

    ok(llm_ipc_utf8_valid("", 0), "nothing is UTF-8");

    /* every first pair of bytes, followed by the edges; at the start and behind eight letters */
    memset(text, 'a', sizeof(text));
    for (uint32_t i = 0; i < 65536; i++) {
        for (size_t k = 0; k < sizeof(edges); k++) {
            for (size_t len = 1; len <= 4; len++) {
                memcpy(b, (uint8_t[]){(uint8_t) (i >> 8), (uint8_t) i, edges[k],
                                      edges[(k + 1) % sizeof(edges)]},
                       4);
                memcpy(text + 8, b, 4);
                n++;
                wrong += llm_ipc_utf8_valid(b, len) != utf8_by_definition(b, len)
                         || llm_ipc_utf8_valid(text, 8 + len) != utf8_by_definition(b, len);
            }
        }
    }
    is_int(wrong, 0, "%ld sequences as the definition has it", n);

    /* random strings of fragments */
    wrong = 0;
    n = scaled(200000);
    for (long i = 0; i < n; i++) {
        static const char *const parts[] = {"a", "abcdefgh", "\xc3\xa9", "\xe2\x82\xac",
                                            "\xf0\x9f\x98\x80", "\xed\x9f\xbf", "\xee\x80\x80",
                                            "\xff", "\xe2\x82", "\x80"};
        size_t len = 0;

        while (len < 40) {
            uint64_t x = next_random(&seed) >> 20;
            const char *part = parts[x % 64 < 60 ? x % 7 : 7 + x % 3];

            memcpy(text + len, part, strlen(part));
            len += strlen(part);
        }
        valid += utf8_by_definition(text, len);
        wrong += llm_ipc_utf8_valid(text, len) != utf8_by_definition(text, len);
    }
    is_int(wrong, 0, "%ld strings, %ld of them valid", n, valid);
}

/* --- any bytes --- */

static void test_mutations(uint64_t seed)
{
    struct llm_ipc_writer w[2] = {sample_submit(LLM_IPC_KIND_CHAT),
                                  sample_submit(LLM_IPC_KIND_COMPLETION)};
    uint8_t token[256], bytes[4096];
    size_t token_length = sample_token(token);
    long n = scaled(200000), done = 0, broken = 0, refused = 0;

    for (long i = 0; i < n; i++) {
        uint64_t x = next_random(&seed);
        const struct llm_ipc_writer *from = &w[x >> 20 & 1];
        uint16_t type = x >> 21 & 1 ? LLM_IPC_SUBMIT : LLM_IPC_TOKEN;
        size_t length = type == LLM_IPC_SUBMIT ? from->len : token_length;
        int rc;

        memcpy(bytes, type == LLM_IPC_SUBMIT ? from->data : token, length);
        for (uint64_t k = x >> 40 & 3; k > 0; k--) {
            uint64_t y = next_random(&seed) >> 8;

            /* a byte, or a word that looks like a length */
            if (y & 1) {
                bytes[y % length] = (uint8_t) (y >> 40);
            } else {
                uint32_t word = (uint32_t) (y >> 20) >> (y % 32);

                memcpy(bytes + (y >> 6) % (length / 4) * 4, &word, sizeof(word));
            }
        }
        rc = read_exact(type, bytes, length, NULL);
        done += rc == LLM_IPC_DONE;
        broken += rc == LLM_IPC_BROKEN;
        refused += rc == LLM_IPC_REFUSED;
    }
    diag("%ld accepted, %ld broken, %ld refused", done, broken, refused);
    is_int(done + broken + refused, n, "mutations are read, refused or broken");
    ok(done > 0 && broken > 0 && refused > 0, "each happened");
    free(w[0].data);
    free(w[1].data);
}

int main(void)
{
    uint64_t seed = first_seed();

    test_submit();
    test_other_heads();
    test_writer();
    test_heads();
    test_items();
    test_structure();
    test_token();
    test_fixed();
    test_utf8(seed);
    test_mutations(seed);
    return done_testing();
}
