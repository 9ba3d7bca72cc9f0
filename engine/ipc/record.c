/* Everything but SUBMIT: TOKEN and the payloads of fixed size. */

#include "engine/ipc/record.h"
#include "engine/ipc/utf8.h"

#include <math.h>
#include <string.h>

/* --- TOKEN --- */

static bool logprob_ok(const struct llm_ipc_logprob_view *l)
{
    return isfinite(l->logprob) != 0;
}

/* Takes the entry at *at; false when it does not fit into what is left. */
static bool take_logprob(const struct llm_ipc_token_view *v, size_t *at,
                         struct llm_ipc_logprob_view *out)
{
    struct llm_ipc_logprob entry;
    size_t left = v->head.logprobs_length - *at;

    if (left < sizeof(entry)) {
        return false;
    }
    memcpy(&entry, v->logprobs + *at, sizeof(entry)); /* no alignment after a text */
    left -= sizeof(entry);

    if (entry.text_length > left) {
        return false;
    }

    out->id = entry.id;
    out->logprob = entry.logprob;
    out->text = (const char *) v->logprobs + *at + sizeof(entry);
    out->text_length = entry.text_length;
    *at += sizeof(entry) + entry.text_length;
    return true;
}

bool llm_ipc_logprob_next(const struct llm_ipc_token_view *v, size_t *at,
                          struct llm_ipc_logprob_view *out)
{
    return *at < v->head.logprobs_length && take_logprob(v, at, out);
}

/* Either there are none, or n_top + 1 entries for each id and nothing behind. */
static bool logprobs_ok(const struct llm_ipc_token_view *v)
{
    struct llm_ipc_logprob_view entry;
    uint32_t n = (uint32_t) v->head.n_ids * (v->head.n_top + 1u);
    size_t at = 0;

    if (v->head.logprobs_length == 0) {
        return v->head.n_top == 0;
    }

    for (uint32_t i = 0; i < n; i++) {
        if (!take_logprob(v, &at, &entry) || !logprob_ok(&entry)) {
            return false;
        }
    }
    return at == v->head.logprobs_length;
}

int llm_ipc_token_read(const struct llm_ipc_record *r, struct llm_ipc_token_view *v)
{
    const uint8_t *at = r->data;
    uint64_t length;

    if (r->length < sizeof(v->head)) {
        return LLM_IPC_BROKEN;
    }
    memcpy(&v->head, at, sizeof(v->head));
    at += sizeof(v->head);

    length = sizeof(v->head) + (uint64_t) v->head.n_ids * sizeof(uint32_t) + v->head.text_length
             + v->head.logprobs_length;
    if (length != r->length) {
        return LLM_IPC_BROKEN;
    }

    v->ids = (const uint32_t *) at;
    at += v->head.n_ids * sizeof(uint32_t);
    v->text = (const char *) at;
    at += v->head.text_length;
    v->logprobs = at;

    if (v->head.choice >= LLM_IPC_MAX_CHOICES || v->head.kind < LLM_IPC_TEXT_CONTENT
        || v->head.kind > LLM_IPC_TEXT_TOOL_ARGUMENTS
        || v->head.n_top > LLM_IPC_MAX_TOP_LOGPROBS || v->head.reserved != 0
        || !llm_ipc_utf8_valid(v->text, v->head.text_length) || !logprobs_ok(v))
    {
        return LLM_IPC_BROKEN;
    }
    return LLM_IPC_DONE;
}

/* --- fixed size --- */

/* Copies a payload of at least min_size bytes, zero-filled or cut to this side's size. */
static int fixed_read(const struct llm_ipc_record *r, size_t min_size, void *out, size_t size)
{
    if (r->length < min_size) {
        return LLM_IPC_BROKEN;
    }

    memset(out, 0, size);
    memcpy(out, r->data, r->length < size ? r->length : size);
    return LLM_IPC_DONE;
}

int llm_ipc_counted_read(const struct llm_ipc_record *r, struct llm_ipc_counted *out)
{
    return fixed_read(r, offsetof(struct llm_ipc_counted, cached_tokens_estimate), out,
                      sizeof(*out));
}

int llm_ipc_release_read(const struct llm_ipc_record *r, struct llm_ipc_release *out)
{
    return fixed_read(r, sizeof(*out), out, sizeof(*out));
}

int llm_ipc_revoke_read(const struct llm_ipc_record *r, struct llm_ipc_revoke *out)
{
    return fixed_read(r, sizeof(*out), out, sizeof(*out));
}

int llm_ipc_purge_read(const struct llm_ipc_record *r, struct llm_ipc_purge *out)
{
    return fixed_read(r, sizeof(*out), out, sizeof(*out));
}

int llm_ipc_credit_read(const struct llm_ipc_record *r, struct llm_ipc_credit *out)
{
    return fixed_read(r, sizeof(*out), out, sizeof(*out));
}

int llm_ipc_choice_end_read(const struct llm_ipc_record *r, struct llm_ipc_choice_end *out)
{
    int rc = fixed_read(r, sizeof(*out), out, sizeof(*out));

    if (rc == LLM_IPC_DONE
        && (out->choice >= LLM_IPC_MAX_CHOICES || out->reason < LLM_IPC_FINISH_STOP
            || out->reason > LLM_IPC_FINISH_ERROR))
    {
        return LLM_IPC_BROKEN;
    }
    return rc;
}

/* A text that goes into logs and answers: printable ASCII, and its end is there. */
static bool detail_ok(const char *text, size_t size)
{
    size_t i;

    for (i = 0; i < size && text[i] >= 0x20 && text[i] < 0x7f; i++) {
    }
    return i < size && text[i] == '\0';
}

int llm_ipc_finished_read(const struct llm_ipc_record *r, struct llm_ipc_finished *out)
{
    int rc = fixed_read(r, offsetof(struct llm_ipc_finished, detail), out, sizeof(*out));

    if (rc == LLM_IPC_DONE
        && (out->status > LLM_IPC_FAILED || !detail_ok(out->detail, sizeof(out->detail))))
    {
        return LLM_IPC_BROKEN;
    }
    return rc;
}

int llm_ipc_purged_read(const struct llm_ipc_record *r, struct llm_ipc_purged *out)
{
    return fixed_read(r, sizeof(*out), out, sizeof(*out));
}
