/* A page as a value in Redis: a header, then token ids and planes, sealed (doc/redis.md has every
 * byte). Pure functions: any thread. */

#ifndef LLM_CACHE_REDIS_VALUE_H
#define LLM_CACHE_REDIS_VALUE_H

#include "engine/cache/redis/key.h"
#include "engine/model/plane.h"

#include <stdbool.h>

/* Bytes of a value for pages of this layout. */
size_t llm_redis_value_bytes(const struct llm_page_layout *layout);

/* out[llm_redis_value_bytes]. name: the key it is to be stored under. The nonce is random.
 * LLM_EINTERNAL when OpenSSL fails. */
int llm_redis_value_seal(const struct llm_redis_tenant_keys *t, const char *name,
                         const struct llm_page_layout *layout,
                         const uint32_t ids[LLM_PAGE_TOKENS], const void *page, uint8_t *out);

enum llm_redis_value_fault {
    LLM_VALUE_GOOD,
    LLM_VALUE_SIZE,    /* not of the size that the layout implies */
    LLM_VALUE_HEADER,  /* another magic, version or layout */
    LLM_VALUE_SEAL,    /* not authentic, or of another name; or OpenSSL failed */
    LLM_VALUE_IDS,     /* of other tokens */
    LLM_VALUE_NUMBERS, /* a latent that is not finite */
};

/* Writes page[layout->page_bytes], which holds nothing of use unless the value is good. Decrypts
 * straight from value into page. */
enum llm_redis_value_fault
llm_redis_value_open(const struct llm_redis_tenant_keys *t, const char *name,
                     const struct llm_page_layout *layout, const uint32_t ids[LLM_PAGE_TOKENS],
                     const uint8_t *value, size_t n_value, void *page);

#endif
