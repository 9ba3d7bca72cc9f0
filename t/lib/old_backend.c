/* A backend of an older version, which a program must not use (t/unit/backend_device.c). */

#include "engine/backend/backend.h"

static const struct llm_backend_ops ops = {.in_host_memory = true};

static int probe(uint32_t device, struct llm_error *err)
{
    (void) device, (void) err;
    return LLM_OK;
}

extern const struct llm_backend_module llm_backend_module;

__attribute__((visibility("default"))) const struct llm_backend_module llm_backend_module = {
    .abi = LLM_BACKEND_ABI - 1,
    .model_bytes = sizeof(struct llm_model),
    .options_bytes = sizeof(struct llm_backend_options),
    .ops = &ops,
    .probe = probe,
};
