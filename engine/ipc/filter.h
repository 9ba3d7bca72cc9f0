/* The filter of prefixes in an engine's state: which $llm_prefix values (prefix.h) it has read of
 * late, so that a worker can send what begins alike to the engine that has it. No nginx types, no
 * engine types.
 *
 * Two Bloom filters, each half of the region. One takes what comes; when it has taken enough the
 * other one is emptied and takes its place, so what was read last is always in one of them. A wrong
 * yes, one in two hundred, only costs a request the work that it would have anywhere else. */

#ifndef LLM_IPC_FILTER_H
#define LLM_IPC_FILTER_H

#include "engine/ipc/prefix.h"
#include "engine/ipc/session.h"

#define LLM_IPC_FILTER_PREFIXES 8192 /* that one half takes */

/* Engine. */
struct llm_ipc_filter { /* zero-initialised but for `state` */
    struct llm_ipc_state *state;
    unsigned half; /* that takes what comes */
    unsigned n;    /* what it has taken */
};

void llm_ipc_filter_add(struct llm_ipc_filter *f, const uint8_t prefix[LLM_IPC_PREFIX_SIZE]);

/* Worker. False also where the engine has no filter. */
bool llm_ipc_filter_has(const struct llm_ipc_session *s, const uint8_t prefix[LLM_IPC_PREFIX_SIZE]);

#endif
