/* A SUBMIT of each kind and a TOKEN, valid and with something of everything. */

#ifndef T_UNIT_IPC_SAMPLES_H
#define T_UNIT_IPC_SAMPLES_H

#include "t/unit/ipc_pair.h"

static inline void *grow_by_realloc(void *ctx, void *old, size_t old_len, size_t size)
{
    (void) ctx;
    (void) old_len;
    return realloc(old, size);
}

#define WRITER(max) {.limit = (max), .grow = grow_by_realloc}

static inline struct llm_ipc_submit sample_head(uint8_t kind)
{
    return (struct llm_ipc_submit){
        .kind = kind,
        .weight = 1,
        .n = 2,
        .max_tokens = 100,
        .temperature = 1,
        .top_p = 1,
        .repetition_penalty = 1,
        .seed = 42,
    };
}

static inline void item(struct llm_ipc_writer *w, uint16_t type, const char *text)
{
    llm_ipc_submit_item(w, type, 0, text, strlen(text));
}

static inline void message(struct llm_ipc_writer *w, uint16_t role)
{
    llm_ipc_submit_item(w, LLM_IPC_ITEM_MESSAGE, role, NULL, 0);
}

/* Free w.data. */
static inline struct llm_ipc_writer sample_submit(uint8_t kind)
{
    struct llm_ipc_writer w = WRITER(1u << 20);
    struct llm_ipc_submit head = sample_head(kind);
    uint32_t ids[3] = {1, 2, 3}, bias[4] = {7, 0, 8, 0};

    llm_ipc_submit_begin(&w, &head);
    item(&w, LLM_IPC_ITEM_TENANT, "tenant");
    item(&w, LLM_IPC_ITEM_MODEL, "demo");
    if (kind == LLM_IPC_KIND_CHAT) {
        message(&w, LLM_IPC_SYSTEM);
        item(&w, LLM_IPC_ITEM_CONTENT, "Be brief.");
        message(&w, LLM_IPC_USER);
        item(&w, LLM_IPC_ITEM_NAME, "ann");
        item(&w, LLM_IPC_ITEM_CONTENT, "Gr\xc3\xbc\xc3\x9f");
        item(&w, LLM_IPC_ITEM_CONTENT, " Gott");
        message(&w, LLM_IPC_ASSISTANT);
        item(&w, LLM_IPC_ITEM_REASONING, "hm");
        item(&w, LLM_IPC_ITEM_TOOL_CALL, "call_1");
        item(&w, LLM_IPC_ITEM_TOOL_CALL_NAME, "f");
        item(&w, LLM_IPC_ITEM_TOOL_CALL_ARGUMENTS, "{}");
        item(&w, LLM_IPC_ITEM_TOOL_CALL, "call_2");
        item(&w, LLM_IPC_ITEM_TOOL_CALL_NAME, "g");
        item(&w, LLM_IPC_ITEM_TOOL_CALL_ARGUMENTS, "{\"x\":1}");
        message(&w, LLM_IPC_TOOL);
        item(&w, LLM_IPC_ITEM_TOOL_CALL_ID, "call_1");
        item(&w, LLM_IPC_ITEM_CONTENT, "42");
        item(&w, LLM_IPC_ITEM_TOOLS, "[]");
        item(&w, LLM_IPC_ITEM_TOOL_NAME, "f");
    } else {
        item(&w, LLM_IPC_ITEM_PROMPT_TEXT, "Once upon a time");
        llm_ipc_submit_item(&w, LLM_IPC_ITEM_PROMPT_IDS, 0, ids, sizeof(ids));
        item(&w, LLM_IPC_ITEM_SUFFIX, "the end");
    }
    item(&w, LLM_IPC_ITEM_STOP, "\n\n");
    llm_ipc_submit_item(&w, LLM_IPC_ITEM_STOP_IDS, 0, ids, sizeof(ids));
    llm_ipc_submit_item(&w, LLM_IPC_ITEM_LOGIT_BIAS, 0, bias, sizeof(bias));
    item(&w, LLM_IPC_ITEM_RESPONSE_FORMAT, "{\"type\":\"text\"}");
    if (!llm_ipc_submit_end(&w)) {
        die("writer");
    }
    return w;
}

/* Two ids with one alternative each. Returns the length. */
static inline size_t sample_token(uint8_t out[256])
{
    static const char *const texts[4] = {"Hel", "Hal", "lo", "\xff"};
    struct llm_ipc_token t = {
        .kind = LLM_IPC_TEXT_CONTENT, .n_top = 1, .n_ids = 2, .text_length = 6};
    uint32_t ids[2] = {10, 20};
    size_t at = sizeof(t);

    memcpy(out + at, ids, sizeof(ids));
    at += sizeof(ids);
    memcpy(out + at, "Hello ", 6);
    at += 6;
    for (int i = 0; i < 4; i++) {
        struct llm_ipc_logprob l = {
            .id = 10, .logprob = -0.5f, .text_length = (uint32_t) strlen(texts[i])};

        memcpy(out + at, &l, sizeof(l));
        memcpy(out + at + sizeof(l), texts[i], l.text_length);
        at += sizeof(l) + l.text_length;
        t.logprobs_length += (uint32_t) sizeof(l) + l.text_length;
    }
    memcpy(out, &t, sizeof(t));
    return at;
}

/* Reads a record with the reader of its type, and everything that the reader lets through. Returns
 * what the reader said; the sum of all bytes seen goes to *sum, so that they are read. */
static inline int read_record(const struct llm_ipc_record *r, uint64_t *sum)
{
    struct llm_ipc_submit_view submit;
    struct llm_ipc_item_view view;
    struct llm_ipc_token_view token;
    struct llm_ipc_logprob_view logprob;
    union {
        struct llm_ipc_counted counted;
        struct llm_ipc_release release;
        struct llm_ipc_revoke revoke;
        struct llm_ipc_credit credit;
        struct llm_ipc_purge purge;
        struct llm_ipc_purged purged;
        struct llm_ipc_choice_end choice_end;
        struct llm_ipc_finished finished;
    } fixed;
    size_t at = 0;
    int rc;

    switch (r->type) {
    case LLM_IPC_SUBMIT:
        rc = llm_ipc_submit_read(r, &submit);
        while (rc == LLM_IPC_DONE && llm_ipc_submit_next(&submit, &at, &view)) {
            for (uint32_t i = 0; i < view.length; i++) {
                *sum += view.data[i];
            }
        }
        return rc;
    case LLM_IPC_TOKEN:
        rc = llm_ipc_token_read(r, &token);
        if (rc != LLM_IPC_DONE) {
            return rc;
        }
        for (uint32_t i = 0; i < token.head.n_ids; i++) {
            *sum += token.ids[i];
        }
        for (uint32_t i = 0; i < token.head.text_length; i++) {
            *sum += (uint8_t) token.text[i];
        }
        while (llm_ipc_logprob_next(&token, &at, &logprob)) {
            for (uint32_t i = 0; i < logprob.text_length; i++) {
                *sum += (uint8_t) logprob.text[i];
            }
        }
        return rc;
    case LLM_IPC_RELEASE:
        return llm_ipc_release_read(r, &fixed.release);
    case LLM_IPC_REVOKE:
        return llm_ipc_revoke_read(r, &fixed.revoke);
    case LLM_IPC_CREDIT:
        return llm_ipc_credit_read(r, &fixed.credit);
    case LLM_IPC_PURGE:
        return llm_ipc_purge_read(r, &fixed.purge);
    case LLM_IPC_COUNTED:
        return llm_ipc_counted_read(r, &fixed.counted);
    case LLM_IPC_CHOICE_END:
        return llm_ipc_choice_end_read(r, &fixed.choice_end);
    case LLM_IPC_FINISHED:
        rc = llm_ipc_finished_read(r, &fixed.finished);
        *sum += rc == LLM_IPC_DONE ? strlen(fixed.finished.detail) : 0;
        return rc;
    case LLM_IPC_PURGED:
        return llm_ipc_purged_read(r, &fixed.purged);
    default:
        return LLM_IPC_DONE;
    }
}

#endif
