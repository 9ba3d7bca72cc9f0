#include "engine/cache/redis/tenants.h"

#include <string.h>

struct llm_redis_tenant *llm_redis_tenant(struct llm_redis_tenants *t, const uint8_t owner[32])
{
    /* an owner is a hash: any bits of it spread them well */
    uint32_t slot = (owner[0] | (uint32_t) owner[1] << 8) % LLM_REDIS_TENANTS;
    struct llm_redis_tenant *tenant = &t->slots[slot];

    if (!tenant->used || memcmp(tenant->owner, owner, 32) != 0) {
        *tenant = (struct llm_redis_tenant){0};
        if (llm_redis_tenant_keys(t->master, owner, &tenant->keys) != LLM_OK) {
            return NULL;
        }
        memcpy(tenant->owner, owner, 32);
        tenant->used = true;
    }
    if (tenant->epoch != 0 && llm_redis_forgotten(t->forgets, owner, tenant->then)) {
        tenant->epoch = 0;
    }
    return tenant;
}

uint64_t llm_redis_number_read(const char *text, size_t len)
{
    uint64_t number = 0;

    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9' || number > (INT64_MAX - 9) / 10) {
            return 0;
        }
        number = number * 10 + (uint64_t) (text[i] - '0');
    }
    return number;
}
