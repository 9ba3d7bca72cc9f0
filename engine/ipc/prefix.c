#include "engine/ipc/prefix.h"

#include <openssl/evp.h>
#include <openssl/sha.h>
#include <string.h>

static void of_digests(const uint8_t tenant[32], const uint8_t text[SHA256_DIGEST_LENGTH],
                       uint8_t out[LLM_IPC_PREFIX_SIZE])
{
    uint8_t both[2 * SHA256_DIGEST_LENGTH], digest[SHA256_DIGEST_LENGTH];

    memcpy(both, tenant, SHA256_DIGEST_LENGTH);
    memcpy(both + SHA256_DIGEST_LENGTH, text, SHA256_DIGEST_LENGTH);
    SHA256(both, sizeof(both), digest);
    memcpy(out, digest, LLM_IPC_PREFIX_SIZE);
}

void llm_ipc_prefix(const uint8_t tenant[32], const void *text, size_t len,
                    uint8_t out[LLM_IPC_PREFIX_SIZE])
{
    uint8_t digest[SHA256_DIGEST_LENGTH];

    SHA256(text, len, digest);
    of_digests(tenant, digest, out);
}

/* Of the text what is in this item; *on: there may be more. */
static bool is_part(const struct llm_ipc_item_view *item, bool *on)
{
    switch (item->type) {
    case LLM_IPC_ITEM_MESSAGE:
        *on = item->arg == LLM_IPC_SYSTEM;
        return false;
    case LLM_IPC_ITEM_CONTENT:
        return true;
    case LLM_IPC_ITEM_PROMPT_TEXT:
    case LLM_IPC_ITEM_PROMPT_IDS:
        *on = false;
        return true;
    default:
        return false;
    }
}

/* Its digest and length; 0: no text, or no memory. */
static size_t digest_text(const struct llm_ipc_submit_view *v, uint8_t digest[SHA256_DIGEST_LENGTH])
{
    size_t limit = v->head.kind == LLM_IPC_KIND_CHAT ? LLM_IPC_PREFIX_CHAT : LLM_IPC_PREFIX_PROMPT;
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    bool on = md != NULL && EVP_DigestInit_ex(md, EVP_sha256(), NULL) == 1;
    struct llm_ipc_item_view item;
    size_t at = 0, len = 0;

    while (on && len < limit && llm_ipc_submit_next(v, &at, &item)) {
        if (is_part(&item, &on)) {
            size_t n = item.length < limit - len ? item.length : limit - len;

            EVP_DigestUpdate(md, item.data, n);
            len += n;
        }
    }
    if (len > 0 && EVP_DigestFinal_ex(md, digest, NULL) != 1) {
        len = 0;
    }
    EVP_MD_CTX_free(md);
    return len;
}

bool llm_ipc_submit_prefix(const struct llm_ipc_submit_view *v, uint8_t out[LLM_IPC_PREFIX_SIZE])
{
    static const char everybody[] = "*public*";
    uint8_t text[SHA256_DIGEST_LENGTH], tenant[SHA256_DIGEST_LENGTH];

    if (v->head.scope == LLM_IPC_SCOPE_OFF || digest_text(v, text) == 0) {
        return false;
    }
    if (v->head.scope == LLM_IPC_SCOPE_PUBLIC) {
        SHA256((const uint8_t *) everybody, sizeof(everybody) - 1, tenant);
    } else {
        memcpy(tenant, v->head.tenant, sizeof(tenant));
    }
    of_digests(tenant, text, out);
    return true;
}
