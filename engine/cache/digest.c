#include "engine/cache/digest.h"
#include "engine/model/plane.h"

#include <endian.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/rand.h>
#include <stdbool.h>
#include <string.h>

/* Length first: no two lists of fields give the same bytes. */
static bool put_field(EVP_MD_CTX *ctx, const void *data, size_t len)
{
    uint64_t le = htole64(len);

    return EVP_DigestUpdate(ctx, &le, sizeof(le)) == 1 && EVP_DigestUpdate(ctx, data, len) == 1;
}

/* What the pages of a request have in common is hashed once. */
static bool put_chain(EVP_MD_CTX *ctx, const struct llm_chain *chain)
{
    uint32_t version = htole32(LLM_PAGE_FORMAT);

    return put_field(ctx, chain->secret, sizeof(chain->secret))
           && put_field(ctx, chain->fingerprint, sizeof(chain->fingerprint))
           && put_field(ctx, chain->numerics_id, sizeof(chain->numerics_id))
           && put_field(ctx, &version, sizeof(version));
}

static bool put_page(EVP_MD_CTX *ctx, const struct llm_digest *parent, const uint32_t *ids)
{
    uint32_t le[LLM_PAGE_TOKENS];

    for (uint32_t i = 0; i < LLM_PAGE_TOKENS; i++) {
        le[i] = htole32(ids[i]);
    }
    return put_field(ctx, parent, parent != NULL ? sizeof(*parent) : 0)
           && put_field(ctx, le, sizeof(le));
}

int llm_page_digests(const struct llm_chain *chain, const struct llm_digest *parent,
                     const uint32_t *ids, uint32_t n_pages, struct llm_digest *digests)
{
    EVP_MD_CTX *prefix = EVP_MD_CTX_new(), *ctx = EVP_MD_CTX_new();
    int rc = LLM_EINTERNAL;

    if (prefix == NULL || ctx == NULL) {
        rc = LLM_ENOMEM;
        goto done;
    }
    if (EVP_DigestInit_ex(prefix, EVP_sha256(), NULL) != 1 || !put_chain(prefix, chain)) {
        goto done;
    }

    for (uint32_t i = 0; i < n_pages; i++) {
        if (EVP_MD_CTX_copy_ex(ctx, prefix) != 1
            || !put_page(ctx, parent, ids + (size_t) i * LLM_PAGE_TOKENS)
            || EVP_DigestFinal_ex(ctx, digests[i].bytes, NULL) != 1) {
            goto done;
        }
        parent = &digests[i];
    }
    rc = LLM_OK;

done:
    EVP_MD_CTX_free(prefix);
    EVP_MD_CTX_free(ctx);
    return rc;
}

/* RFC 5869 with SHA-256: salt "ngx-llm scope", info the kind's name and the tenant. */
int llm_scope_secret(const uint8_t master[32], enum llm_scope scope, const uint8_t tenant[32],
                     uint8_t secret[32])
{
    char salt[] = "ngx-llm scope";
    char sha256[] = "SHA256";
    uint8_t info[6 + 32];
    size_t n_info = 6;
    OSSL_PARAM params[5];
    EVP_KDF_CTX *ctx = NULL;
    EVP_KDF *kdf = NULL;
    int rc = LLM_EINTERNAL;

    if (scope == LLM_SCOPE_OFF) {
        return RAND_priv_bytes(secret, 32) == 1 ? LLM_OK : LLM_EINTERNAL;
    }

    memcpy(info, scope == LLM_SCOPE_PUBLIC ? "public" : "tenant", 6);
    if (scope == LLM_SCOPE_TENANT) {
        memcpy(info + 6, tenant, 32);
        n_info += 32;
    }
    params[0] = OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, sha256, 0);
    params[1] = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *) master, 32);
    params[2] = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, salt, strlen(salt));
    params[3] = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, info, n_info);
    params[4] = OSSL_PARAM_construct_end();

    kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    ctx = kdf != NULL ? EVP_KDF_CTX_new(kdf) : NULL;
    if (ctx != NULL && EVP_KDF_derive(ctx, secret, 32, params) == 1) {
        rc = LLM_OK;
    }
    EVP_KDF_CTX_free(ctx);
    EVP_KDF_free(kdf);
    return rc;
}

/* SHA-256 of "*public*" */
static const uint8_t public_owner[32] = {
    0x80, 0xE7, 0x1D, 0xCD, 0x0C, 0x5C, 0x0A, 0xF2, 0x18, 0x96, 0xC1, 0x0F, 0x4A, 0xA8, 0x58, 0x46,
    0xB4, 0x7D, 0x03, 0xF4, 0xD0, 0xC3, 0x01, 0x4E, 0x43, 0x02, 0xA5, 0xD6, 0x38, 0x8B, 0xBC, 0x11,
};

void llm_scope_owner(enum llm_scope scope, const uint8_t tenant[32], uint8_t owner[32])
{
    memcpy(owner, scope == LLM_SCOPE_PUBLIC ? public_owner : tenant, 32);
}

bool llm_owner_is_public(const uint8_t owner[32])
{
    return memcmp(owner, public_owner, 32) == 0;
}
