/* Which backend computes. That of the CPU is linked in; others are shared objects,
 * llm_backend_NAME.so, that lie beside the program or, where it is installed, in
 * ../lib/llm-engine from there. */

#ifndef LLM_BACKEND_DEVICE_H
#define LLM_BACKEND_DEVICE_H

#include "engine/backend/backend.h"

struct llm_device {
    const struct llm_backend_ops *ops;
    uint32_t index; /* for struct llm_backend_options */
};

/* Whether a name is one that llm_device_open knows; LLM_EINVAL lists those. */
int llm_device_check(const char *name, struct llm_error *err);

/* Opens "cpu", "cuda" (the first GPU), "cuda:N", or "auto": cuda where its backend and a GPU that
 * it can use are there, else cpu. dir: in the place of the program's directory; NULL: that. What
 * was opened stays open. */
int llm_device_open(const char *name, const char *dir, struct llm_device *out,
                    struct llm_error *err);

#endif
