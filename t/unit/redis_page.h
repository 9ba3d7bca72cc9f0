/* Small pages, tenants and names, for the tests of what is kept in Redis. */

#ifndef T_UNIT_REDIS_PAGE_H
#define T_UNIT_REDIS_PAGE_H

#include "engine/cache/redis/value.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ends the test when something that is no test of its own fails. */
__attribute__((unused)) static void need(bool good, const char *what)
{
    if (!good) {
        printf("Bail out! %s\n", what);
        exit(1);
    }
}

__attribute__((unused)) static struct llm_page_layout
make_layout(enum llm_latent_dtype dtype, uint32_t rank, uint32_t rope, uint32_t n_mtp)
{
    struct llm_model_config c = {
        .n_layers = 1,
        .n_mtp_layers = n_mtp,
        .kv_lora_rank = rank,
        .qk_rope_dim = rope,
    };
    struct llm_page_layout layout;

    need(llm_page_layout_init(&layout, &c, dtype, NULL) == LLM_OK, "no layout");
    return layout;
}

/* Bytes that are finite numbers in every type. */
__attribute__((unused)) static uint8_t *make_page(const struct llm_page_layout *layout)
{
    uint8_t *page = malloc(layout->page_bytes);

    need(page != NULL, "out of memory");
    for (uint64_t i = 0; i < layout->page_bytes; i++) {
        page[i] = (uint8_t) ((7 * i + 3) % 101);
    }
    return page;
}

__attribute__((unused)) static struct llm_redis_tenant_keys make_keys(uint8_t master_byte,
                                                                      uint8_t owner_byte)
{
    struct llm_redis_tenant_keys keys;
    uint8_t master[32], owner[32];

    memset(master, master_byte, sizeof(master));
    memset(owner, owner_byte, sizeof(owner));
    need(llm_redis_tenant_keys(master, owner, &keys) == LLM_OK, "no keys");
    return keys;
}

__attribute__((unused)) static void make_name(const struct llm_redis_tenant_keys *keys,
                                              uint64_t epoch, uint8_t digest_byte,
                                              char name[LLM_REDIS_NAME_MAX])
{
    struct llm_digest digest;

    memset(digest.bytes, digest_byte, sizeof(digest.bytes));
    need(llm_redis_page_name(keys, epoch, &digest, name) == LLM_OK, "no name");
}

#endif
