/* A control session as an operator's command has it: the other end of an engine's socket. It waits
 * for the engine. */

#ifndef LLM_SERVE_CONTROL_H
#define LLM_SERVE_CONTROL_H

#include "engine/base/error.h"
#include "engine/ipc/abi.h"

/* Has the engine at "unix:PATH" drop all that it holds of a tenant (its pages are still there for
 * requests that use them, but nobody else finds them); *out says what that was. LLM_EINVAL: that
 * is no address; LLM_EIO: there is no engine, or none that does it within timeout_ms. */
int llm_control_purge(const char *address, const uint8_t owner[32], uint32_t timeout_ms,
                      struct llm_ipc_purged *out, struct llm_error *err);

#endif
