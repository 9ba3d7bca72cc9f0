/* The host tier's memory: slots of a page each. */

#ifndef LLM_CACHE_HOST_H
#define LLM_CACHE_HOST_H

#include "engine/cache/pool.h"

struct llm_host {
    struct llm_pool slots;
    uint64_t page_bytes;
    uint8_t *memory; /* [slots.n_pages][page_bytes]; NULL: no slots */
};

int llm_host_init(struct llm_host *h, uint32_t n_slots, uint64_t page_bytes,
                  struct llm_error *err);
void llm_host_free(struct llm_host *h);

void *llm_host_slot(const struct llm_host *h, uint32_t slot);

#endif
