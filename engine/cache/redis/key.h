/* Names of things in Redis, and the keys that values are sealed with (doc/redis.md). Any thread. */

#ifndef LLM_CACHE_REDIS_KEY_H
#define LLM_CACHE_REDIS_KEY_H

#include "engine/cache/digest.h"
#include "engine/cache/secret.h"

#include <stdbool.h>
#include <stdint.h>

/* "llm1:{tag}:" and 64 hexadecimal digits; tag: 32 of them. */
#define LLM_REDIS_TAG_CHARS 32
#define LLM_REDIS_NAME_MAX 128
#define LLM_REDIS_EPOCH_MAX 24 /* of a number in decimal, terminated */

/* What all names and the seal of one tenant are made of: HKDF-Expand (RFC 5869, SHA-256) of the
 * secret file's master, with the purpose and the owner. */
struct llm_redis_tenant_keys {
    char tag[LLM_REDIS_TAG_CHARS + 1];
    uint8_t naming[32]; /* for HMAC of page digest and epoch */
    uint8_t seal[32];   /* AES-256-GCM */
};

/* master: of the secret file. LLM_EINTERNAL when OpenSSL fails, as below. */
int llm_redis_tenant_keys(const uint8_t master[32], const uint8_t owner[32],
                          struct llm_redis_tenant_keys *out);

/* Names; each is NUL-terminated and fits. */
int llm_redis_page_name(const struct llm_redis_tenant_keys *t, uint64_t epoch,
                        const struct llm_digest *digest, char name[LLM_REDIS_NAME_MAX]);
void llm_redis_epoch_name(const struct llm_redis_tenant_keys *t, char name[LLM_REDIS_NAME_MAX]);
/* Another epoch, drawn from 1 to 2^62 - 1. False: no random numbers are to be had. */
bool llm_redis_draw_epoch(char text[LLM_REDIS_EPOCH_MAX]);
/* Of the bytes written in a window, which has a number: seconds since 1970 / ttl. */
void llm_redis_quota_name(const struct llm_redis_tenant_keys *t, uint64_t window,
                          char name[LLM_REDIS_NAME_MAX]);
/* For SCAN: everything of the tenant's pages, of whatever epoch. */
void llm_redis_page_pattern(const struct llm_redis_tenant_keys *t, char name[LLM_REDIS_NAME_MAX]);

#endif
