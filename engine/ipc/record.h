/* Payloads with structure: writing and checked reading of SUBMIT and TOKEN.
 *
 * Readers work on a private copy of the payload (see llm_ipc_recv) and trust nothing in it: every
 * length and count is checked, every enum and float is in range, or the record is refused. */

#ifndef LLM_IPC_RECORD_H
#define LLM_IPC_RECORD_H

#include "engine/ipc/session.h"

/* --- writing: a flat growing payload, built with the caller's allocator --- */

struct llm_ipc_writer { /* zeroed but for limit, grow and ctx; data stays the caller's */
    uint8_t *data;
    size_t len, cap;
    bool failed; /* no memory, or over the limit: the calls that follow do nothing */
    size_t limit; /* of len */
    uint32_t n_items;
    /* must return memory of at least size bytes holding old's first old_len, or NULL */
    void *(*grow)(void *ctx, void *old, size_t old_len, size_t size);
    void *ctx;
};

void llm_ipc_submit_begin(struct llm_ipc_writer *w, const struct llm_ipc_submit *head);
void llm_ipc_submit_item(struct llm_ipc_writer *w, uint16_t type, uint16_t arg, const void *data,
                         size_t len);
/* Stores the number of items; false when the writer failed. */
bool llm_ipc_submit_end(struct llm_ipc_writer *w);

/* --- reading --- */

struct llm_ipc_submit_view {
    struct llm_ipc_submit head; /* zero-filled or cut to this side's size */
    const uint8_t *items;
    size_t items_length;
    uint32_t n_items;
    const char *error; /* fixed text when refused */
    uint16_t status;   /* then: enum llm_ipc_status to answer with (LLM_IPC_INVALID) */
};

/* LLM_IPC_DONE; LLM_IPC_BROKEN when the payload's structure is wrong (lengths, counts, order of
 * items, enums and flags that a client does not choose: only a faulty worker can send that);
 * LLM_IPC_REFUSED with error and status when all of that is right but a value is not (floats not
 * finite, n = 0, empty tenant, text that is not UTF-8 …). The view points into the record. */
int llm_ipc_submit_read(const struct llm_ipc_record *r, struct llm_ipc_submit_view *v);

struct llm_ipc_item_view {
    uint16_t type, arg;
    uint32_t length;
    const uint8_t *data;
};

/* Walks the items of a checked view: *at starts at 0; false at the end. */
bool llm_ipc_submit_next(const struct llm_ipc_submit_view *v, size_t *at,
                         struct llm_ipc_item_view *item);

struct llm_ipc_token_view {
    struct llm_ipc_token head;
    const uint32_t *ids;
    const char *text;
    const uint8_t *logprobs;
};

/* LLM_IPC_DONE or LLM_IPC_BROKEN (lengths that do not add up, text that is not UTF-8, a choice or
 * kind out of range). */
int llm_ipc_token_read(const struct llm_ipc_record *r, struct llm_ipc_token_view *v);

struct llm_ipc_logprob_view {
    uint32_t id;
    float logprob;
    const char *text;
    uint32_t text_length;
};
bool llm_ipc_logprob_next(const struct llm_ipc_token_view *v, size_t *at,
                          struct llm_ipc_logprob_view *out);

/* Fixed-size payloads: copies, zero-filling what an older peer left out. LLM_IPC_BROKEN when the
 * length is impossible. */
int llm_ipc_counted_read(const struct llm_ipc_record *r, struct llm_ipc_counted *out);
int llm_ipc_release_read(const struct llm_ipc_record *r, struct llm_ipc_release *out);
int llm_ipc_revoke_read(const struct llm_ipc_record *r, struct llm_ipc_revoke *out);
int llm_ipc_purge_read(const struct llm_ipc_record *r, struct llm_ipc_purge *out);
int llm_ipc_credit_read(const struct llm_ipc_record *r, struct llm_ipc_credit *out);
int llm_ipc_choice_end_read(const struct llm_ipc_record *r, struct llm_ipc_choice_end *out);
int llm_ipc_finished_read(const struct llm_ipc_record *r, struct llm_ipc_finished *out);
int llm_ipc_purged_read(const struct llm_ipc_record *r, struct llm_ipc_purged *out);

#endif
