/* The engine's state region: what every worker can read without asking.
 *
 * The control thread writes all of it but the beat, which belongs to whoever computes, and what the
 * model thread counts: its steps, and what the cache does (tally.h). */

#ifndef LLM_SERVE_STATE_H
#define LLM_SERVE_STATE_H

#include "engine/ipc/filter.h"
#include "engine/ipc/session.h"
#include "engine/base/error.h"

#include <stdint.h>

struct llm_served;
struct llm_settings;

struct llm_names {
    uint32_t n;
    char names[LLM_IPC_MAX_NAMES][LLM_IPC_MAX_NAME];
};

/* The names that are served: a list with commas, or, when it is NULL, the last part of the model's
 * path. LLM_EINVAL says what is wrong with one. */
int llm_names_read(struct llm_names *n, const char *list, const char *model,
                   struct llm_error *err);

struct llm_state {
    struct llm_ipc_state *shared;
    int memfd;
    struct llm_ipc_filter prefixes;
};

/* Begins with the names that are served: settings' list, or the last part of the model's path. */
int llm_state_init(struct llm_state *s, const struct llm_settings *settings,
                   struct llm_error *err);
void llm_state_free(struct llm_state *s);

/* The model is loaded: fills in what is fixed from now on, then says so. */
void llm_state_ready(struct llm_state *s, const struct llm_served *served);

void llm_state_raise(struct llm_state *s, uint32_t flag); /* enum llm_ipc_state_flag */

struct llm_state_load {
    uint32_t queued_requests, running_requests;
    uint64_t queued_tokens;
    uint32_t free_pages, total_pages;
    uint32_t prefill_rate, decode_rate;
    uint32_t sessions;
};

void llm_state_set_load(struct llm_state *s, const struct llm_state_load *load);

/* How many steps the model thread has submitted. */
void llm_state_set_steps(struct llm_state *s, uint64_t steps);

/* A sign of life of the model thread. Any thread; ctx is the struct llm_state. */
void llm_state_beat(void *ctx);
uint64_t llm_state_last_beat(const struct llm_state *s);

#endif
