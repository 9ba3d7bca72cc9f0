#include "engine/cache/host.h"
#include "engine/base/memory.h"

#include <inttypes.h>
#include <stddef.h>

int llm_host_init(struct llm_host *h, uint32_t n_slots, uint64_t page_bytes,
                  struct llm_error *err)
{
    int rc;

    *h = (struct llm_host){.page_bytes = page_bytes};
    rc = llm_pool_init(&h->slots, n_slots, err);
    if (rc != LLM_OK || n_slots == 0) {
        return rc;
    }
    h->memory = llm_memory_map(n_slots * page_bytes);
    if (h->memory == NULL) {
        return llm_fail(err, LLM_ENOMEM, "cannot map %" PRIu64 " MB for the host tier",
                        n_slots * page_bytes >> 20);
    }
    return LLM_OK;
}

void llm_host_free(struct llm_host *h)
{
    llm_memory_unmap(h->memory, h->slots.n_pages * h->page_bytes);
    llm_pool_free(&h->slots);
    *h = (struct llm_host){0};
}

void *llm_host_slot(const struct llm_host *h, uint32_t slot)
{
    return h->memory + slot * h->page_bytes;
}
