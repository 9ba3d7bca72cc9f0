/* $llm_prefix: what sends requests that begin alike to the same node, or engine. nginx computes it
 * of a body, and where there are several engines both sides of a SUBMIT record; the definition is
 * here because nodes of different versions must agree on it. No nginx types. */

#ifndef LLM_IPC_PREFIX_H
#define LLM_IPC_PREFIX_H

#include "engine/ipc/record.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LLM_IPC_PREFIX_SIZE 16

/* How much of the text counts: of a chat the contents of its leading system messages (developer is
 * system), joined; of a completion its first prompt, a token id being four bytes, little-endian.
 * Without text there is no prefix: nothing is shared. */
#define LLM_IPC_PREFIX_CHAT 65536
#define LLM_IPC_PREFIX_PROMPT 1024

/* The first bytes of SHA-256(tenant, SHA-256(text)), where tenant is the SHA-256 of the tenant's
 * name as in SUBMIT. */
void llm_ipc_prefix(const uint8_t tenant[32], const void *text, size_t len,
                    uint8_t out[LLM_IPC_PREFIX_SIZE]);

/* That of a request, whose tenant and scope are set. False: there is none. */
bool llm_ipc_submit_prefix(const struct llm_ipc_submit_view *v, uint8_t out[LLM_IPC_PREFIX_SIZE]);

#endif
