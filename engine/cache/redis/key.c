#include "engine/cache/redis/key.h"

#include <endian.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define N_HASH 32 /* bytes of a SHA-256 */

/* What a hash is taken of: fields, each preceded by its length. */
struct fields {
    uint8_t bytes[2 * (8 + N_HASH) + 1];
    size_t len;
};

static void put_field(struct fields *f, const void *data, size_t len)
{
    uint64_t le = htole64(len);

    memcpy(f->bytes + f->len, &le, sizeof(le));
    memcpy(f->bytes + f->len + sizeof(le), data, len);
    f->len += sizeof(le) + len;
}

static int hmac(const uint8_t key[32], const struct fields *f, uint8_t out[N_HASH])
{
    return HMAC(EVP_sha256(), key, 32, f->bytes, f->len, out, NULL) != NULL ? LLM_OK
                                                                           : LLM_EINTERNAL;
}

/* out[2 * n + 1] */
static void put_hex(const uint8_t *bytes, size_t n, char *out)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < n; i++) {
        *out++ = digits[bytes[i] >> 4];
        *out++ = digits[bytes[i] & 15];
    }
    *out = '\0';
}

/* HKDF-Expand (RFC 5869) of the master to one block; info: what it is for, and whom. */
static int derive(const uint8_t master[32], const char *purpose, const uint8_t owner[32],
                  uint8_t out[N_HASH])
{
    struct fields info = {0};

    put_field(&info, purpose, strlen(purpose));
    put_field(&info, owner, 32);
    info.bytes[info.len++] = 1; /* the block's number */
    return hmac(master, &info, out);
}

int llm_redis_tenant_keys(const uint8_t master[32], const uint8_t owner[32],
                          struct llm_redis_tenant_keys *out)
{
    uint8_t tag[N_HASH];

    if (derive(master, "tag", owner, tag) != LLM_OK
        || derive(master, "naming", owner, out->naming) != LLM_OK
        || derive(master, "seal", owner, out->seal) != LLM_OK) {
        return LLM_EINTERNAL;
    }
    put_hex(tag, LLM_REDIS_TAG_CHARS / 2, out->tag);
    return LLM_OK;
}

int llm_redis_page_name(const struct llm_redis_tenant_keys *t, uint64_t epoch,
                        const struct llm_digest *digest, char name[LLM_REDIS_NAME_MAX])
{
    uint64_t le = htole64(epoch);
    struct fields f = {0};
    uint8_t hash[N_HASH];
    int len;

    put_field(&f, digest->bytes, sizeof(digest->bytes));
    put_field(&f, &le, sizeof(le));
    if (hmac(t->naming, &f, hash) != LLM_OK) {
        return LLM_EINTERNAL;
    }
    len = snprintf(name, LLM_REDIS_NAME_MAX, "llm1:{%s}:", t->tag);
    put_hex(hash, sizeof(hash), name + len);
    return LLM_OK;
}

void llm_redis_epoch_name(const struct llm_redis_tenant_keys *t, char name[LLM_REDIS_NAME_MAX])
{
    snprintf(name, LLM_REDIS_NAME_MAX, "llm1:{%s}:epoch", t->tag);
}

bool llm_redis_draw_epoch(char text[LLM_REDIS_EPOCH_MAX])
{
    const uint64_t most = (UINT64_C(1) << 62) - 1;
    uint64_t random;

    if (getrandom(&random, sizeof(random), 0) != sizeof(random)) {
        return false;
    }
    snprintf(text, LLM_REDIS_EPOCH_MAX, "%" PRIu64, random % most + 1);
    return true;
}

void llm_redis_quota_name(const struct llm_redis_tenant_keys *t, uint64_t window,
                          char name[LLM_REDIS_NAME_MAX])
{
    snprintf(name, LLM_REDIS_NAME_MAX, "llm1:{%s}:bytes:%" PRIu64, t->tag, window);
}

/* No other name of the tenant has 64 characters after its tag. */
void llm_redis_page_pattern(const struct llm_redis_tenant_keys *t, char name[LLM_REDIS_NAME_MAX])
{
    int len = snprintf(name, LLM_REDIS_NAME_MAX, "llm1:{%s}:", t->tag);

    memset(name + len, '?', 2 * N_HASH);
    name[len + 2 * N_HASH] = '\0';
}
