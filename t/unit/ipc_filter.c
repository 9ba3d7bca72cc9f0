/* engine/ipc/filter.h and prefix.h: what is read of late is found, little else is, and a state that
 * lies about its filter is not believed. */

#include "engine/ipc/filter.h"
#include "t/unit/tap.h"

#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct llm_ipc_state *state;
static struct llm_ipc_session session;
static struct llm_ipc_filter filter;

/* Digests are random: so are these. */
static const uint8_t *prefix(uint64_t i)
{
    static uint8_t digest[SHA256_DIGEST_LENGTH];

    SHA256((const uint8_t *) &i, sizeof(i), digest);
    return digest;
}

static unsigned found(uint64_t from, uint64_t to)
{
    unsigned n = 0;

    for (uint64_t i = from; i < to; i++) {
        n += llm_ipc_filter_has(&session, prefix(i));
    }
    return n;
}

static void test_filter(void)
{
    const uint64_t many = 4 * LLM_IPC_FILTER_PREFIXES + 100;
    unsigned wrong;

    ok(found(0, 1000) == 0, "nothing is in an empty filter");
    llm_ipc_filter_add(&filter, prefix(0));
    ok(found(0, 1) == 1, "what was added is in it");
    ok(found(1, 10000) == 0, "and nothing else");

    for (uint64_t i = 0; i < many; i++) {
        llm_ipc_filter_add(&filter, prefix(i));
    }
    ok(found(many - LLM_IPC_FILTER_PREFIXES, many) == LLM_IPC_FILTER_PREFIXES,
       "as many as a half takes are always there, the last ones");
    wrong = found(0, LLM_IPC_FILTER_PREFIXES);
    ok(wrong < LLM_IPC_FILTER_PREFIXES / 50, "the first ones are gone: %u are left", wrong);
    wrong = found(1000000, 1100000);
    ok(wrong < 1000, "one wrong yes in a hundred at most: %u of 100000", wrong);

    for (unsigned i = 0; i < 10 * LLM_IPC_FILTER_PREFIXES; i++) {
        llm_ipc_filter_add(&filter, prefix(many - 1 - i % 100));
    }
    ok(found(many - 5000, many) == 5000, "the same again pushes nobody out");
}

static void test_hostile(void)
{
    static const struct {
        uint32_t offset, size;
    } wrong[] = {{0, 0}, {8, 15}, {LLM_IPC_STATE_SIZE, 1024}, {LLM_IPC_FILTER_OFFSET, 0x80000000},
                 {LLM_IPC_FILTER_OFFSET + 8, LLM_IPC_FILTER_SIZE}, {4, 1024},
                 {0xfffffff8, 1024}, {0xfffffff8, 0xfffffff8}};

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        state->prefix_filter_offset = wrong[i].offset;
        state->prefix_filter_size = wrong[i].size;
        ok(found(0, 1000) == 0, "a filter at %u of %u bytes is none", wrong[i].offset,
           wrong[i].size);
    }
    state->prefix_filter_offset = LLM_IPC_FILTER_OFFSET;
    state->prefix_filter_size = LLM_IPC_FILTER_SIZE;
}

/* --- the prefix of a request --- */

static uint8_t payload[1 << 20];

static void *grow(void *ctx, void *old, size_t old_len, size_t size)
{
    (void) ctx;
    (void) old;
    (void) old_len;
    return size <= sizeof(payload) ? payload : NULL;
}

struct part {
    uint16_t type, arg;
    const void *data;
    size_t len;
};

/* Whether that of a request of these items is that of the text; text NULL: whether it has none. */
static bool is(unsigned kind, unsigned scope, const struct part *parts, size_t n,
               const char *tenant, const void *text, size_t len)
{
    struct llm_ipc_submit head = {.size = sizeof(head), .kind = (uint8_t) kind,
                                  .scope = (uint8_t) scope, .n = 1};
    struct llm_ipc_writer w = {.grow = grow, .limit = sizeof(payload)};
    struct llm_ipc_submit_view v = {0};
    uint8_t digest[32], want[LLM_IPC_PREFIX_SIZE], have[LLM_IPC_PREFIX_SIZE];

    SHA256((const uint8_t *) "acme", 4, head.tenant);
    llm_ipc_submit_begin(&w, &head);
    for (size_t i = 0; i < n; i++) {
        llm_ipc_submit_item(&w, parts[i].type, parts[i].arg, parts[i].data, parts[i].len);
    }
    llm_ipc_submit_end(&w);
    memcpy(&v.head, payload, sizeof(v.head));
    v.items = payload + sizeof(v.head);
    v.items_length = w.len - sizeof(v.head);

    if (!llm_ipc_submit_prefix(&v, have)) {
        return text == NULL;
    }
    if (text == NULL) {
        return false;
    }
    SHA256((const uint8_t *) tenant, strlen(tenant), digest);
    llm_ipc_prefix(digest, text, len, want);
    return memcmp(have, want, sizeof(want)) == 0;
}

#define IS(kind, scope, parts, tenant, text) \
    is(kind, scope, parts, sizeof(parts) / sizeof(parts[0]), tenant, text, strlen(text))
#define NONE(kind, scope, parts) \
    is(kind, scope, parts, sizeof(parts) / sizeof(parts[0]), "", NULL, 0)

static void test_prefix(void)
{
    static char large[LLM_IPC_PREFIX_CHAT + 100];
    static const uint32_t ids[] = {1, 2, 3};
    static const struct part chat[] = {
        {LLM_IPC_ITEM_TENANT, 0, "acme", 4},       {LLM_IPC_ITEM_MESSAGE, LLM_IPC_SYSTEM, "", 0},
        {LLM_IPC_ITEM_CONTENT, 0, "You ", 4},      {LLM_IPC_ITEM_CONTENT, 0, "are", 3},
        {LLM_IPC_ITEM_NAME, 0, "x", 1},            {LLM_IPC_ITEM_MESSAGE, LLM_IPC_SYSTEM, "", 0},
        {LLM_IPC_ITEM_CONTENT, 0, " kind", 5},     {LLM_IPC_ITEM_MESSAGE, LLM_IPC_USER, "", 0},
        {LLM_IPC_ITEM_CONTENT, 0, "Hi", 2},        {LLM_IPC_ITEM_MESSAGE, LLM_IPC_SYSTEM, "", 0},
        {LLM_IPC_ITEM_CONTENT, 0, "no more", 7},
    };
    static const struct part user[] = {{LLM_IPC_ITEM_TENANT, 0, "acme", 4},
                                       {LLM_IPC_ITEM_MESSAGE, LLM_IPC_USER, "", 0},
                                       {LLM_IPC_ITEM_CONTENT, 0, "Hi", 2}};
    static const struct part prompts[] = {{LLM_IPC_ITEM_TENANT, 0, "acme", 4},
                                          {LLM_IPC_ITEM_PROMPT_TEXT, 0, "one", 3},
                                          {LLM_IPC_ITEM_PROMPT_TEXT, 0, "two", 3}};
    const struct part of_ids[] = {{LLM_IPC_ITEM_PROMPT_IDS, 0, ids, sizeof(ids)}};
    const struct part long_chat[] = {{LLM_IPC_ITEM_MESSAGE, LLM_IPC_SYSTEM, "", 0},
                                     {LLM_IPC_ITEM_CONTENT, 0, large, sizeof(large)},
                                     {LLM_IPC_ITEM_CONTENT, 0, "more", 4}};
    const struct part long_prompt[] = {{LLM_IPC_ITEM_PROMPT_TEXT, 0, large, sizeof(large)}};

    memset(large, 'x', sizeof(large));

    ok(IS(LLM_IPC_KIND_CHAT, LLM_IPC_SCOPE_TENANT, chat, "acme", "You are kind"),
       "a chat: what leads to its user");
    ok(IS(LLM_IPC_KIND_CHAT, LLM_IPC_SCOPE_PUBLIC, chat, "*public*", "You are kind"),
       "everybody's");
    ok(NONE(LLM_IPC_KIND_CHAT, LLM_IPC_SCOPE_OFF, chat), "nobody's");
    ok(NONE(LLM_IPC_KIND_CHAT, LLM_IPC_SCOPE_TENANT, user), "a chat that its user begins");
    ok(IS(LLM_IPC_KIND_COMPLETION, LLM_IPC_SCOPE_TENANT, prompts, "acme", "one"),
       "a completion: its first prompt");
    ok(is(LLM_IPC_KIND_COMPLETION, LLM_IPC_SCOPE_TENANT, of_ids, 1, "acme", ids, sizeof(ids)),
       "of ids");
    ok(is(LLM_IPC_KIND_CHAT, LLM_IPC_SCOPE_TENANT, long_chat, 3, "acme", large,
          LLM_IPC_PREFIX_CHAT), "no more of a chat than counts");
    ok(is(LLM_IPC_KIND_COMPLETION, LLM_IPC_SCOPE_TENANT, long_prompt, 1, "acme", large,
          LLM_IPC_PREFIX_PROMPT), "nor of a prompt");
}

int main(void)
{
    int memfd;

    if (llm_ipc_state_create(&state, &memfd) != LLM_IPC_DONE) {
        return 1;
    }
    session.state = state;
    session.state_size = LLM_IPC_STATE_SIZE;
    filter.state = state;

    test_filter();
    test_hostile();
    test_prefix();

    munmap(state, LLM_IPC_STATE_SIZE);
    close(memfd);
    return done_testing();
}
