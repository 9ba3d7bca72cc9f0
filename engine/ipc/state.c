#include "engine/ipc/region.h"

#include <stdatomic.h>
#include <string.h>

#define TENANT_TRIES 100

int llm_ipc_state_create(struct llm_ipc_state **state, int *memfd)
{
    void *base;
    int rc;

    rc = llm_ipc_memfd_create("llm-state", LLM_IPC_STATE_SIZE, &base, memfd);
    if (rc != LLM_IPC_DONE) {
        return rc;
    }

    *state = base;
    (*state)->magic = LLM_IPC_MAGIC;
    (*state)->version = LLM_IPC_VERSION;
    (*state)->size = sizeof(struct llm_ipc_state);
    (*state)->tenants_offset = LLM_IPC_TENANTS_OFFSET;
    (*state)->n_tenants = LLM_IPC_TENANTS;
    (*state)->prefix_filter_offset = LLM_IPC_FILTER_OFFSET;
    (*state)->prefix_filter_size = LLM_IPC_FILTER_SIZE;
    return LLM_IPC_DONE;
}

void llm_ipc_state_read(const struct llm_ipc_session *s, struct llm_ipc_state *out)
{
    memcpy(out, s->state, sizeof(*out));
    atomic_signal_fence(memory_order_seq_cst); /* from here on the copy is meant */

    if (out->n_names > LLM_IPC_MAX_NAMES) {
        out->n_names = LLM_IPC_MAX_NAMES;
    }
    for (unsigned i = 0; i < LLM_IPC_MAX_NAMES; i++) {
        out->names[i][LLM_IPC_MAX_NAME - 1] = '\0';
    }
}

/* The entry, if it lies where the peer may have put it. */
static const struct llm_ipc_tenant *tenant_at(const struct llm_ipc_session *s, uint32_t i)
{
    uint64_t offset = __atomic_load_n(&s->state->tenants_offset, __ATOMIC_RELAXED);
    uint64_t n = __atomic_load_n(&s->state->n_tenants, __ATOMIC_RELAXED);

    if (i >= n || offset % _Alignof(struct llm_ipc_tenant) != 0
        || offset + n * sizeof(struct llm_ipc_tenant) > s->state_size)
    {
        return NULL;
    }
    return (const struct llm_ipc_tenant *) ((const uint8_t *) s->state + offset) + i;
}

/* The version is read again after the last of these words. */
static void load(uint64_t *to, const uint64_t *from, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        to[i] = __atomic_load_n(&from[i], __ATOMIC_ACQUIRE);
    }
}

bool llm_ipc_state_tenant(const struct llm_ipc_session *s, uint32_t i, struct llm_ipc_tenant *out)
{
    const struct llm_ipc_tenant *entry = tenant_at(s, i);

    for (int tries = 0; entry != NULL && tries < TENANT_TRIES; tries++) {
        uint32_t version = __atomic_load_n(&entry->version, __ATOMIC_ACQUIRE);

        if (version == 0) {
            return false;
        }
        load((uint64_t *) (void *) out->tenant, (const uint64_t *) (const void *) entry->tenant,
             sizeof(out->tenant) / sizeof(uint64_t));
        load(out->counters, entry->counters, LLM_IPC_TENANT_COUNTS);
        if (version % 2 == 0 && __atomic_load_n(&entry->version, __ATOMIC_RELAXED) == version) {
            out->version = version;
            out->reserved = 0;
            return true;
        }
    }
    return false;
}
