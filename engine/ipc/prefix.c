#include "engine/ipc/prefix.h"

#include <openssl/sha.h>
#include <string.h>

void llm_ipc_prefix(const uint8_t tenant[32], const void *text, size_t len,
                    uint8_t out[LLM_IPC_PREFIX_SIZE])
{
    uint8_t both[2 * SHA256_DIGEST_LENGTH], digest[SHA256_DIGEST_LENGTH];

    memcpy(both, tenant, SHA256_DIGEST_LENGTH);
    SHA256(text, len, both + SHA256_DIGEST_LENGTH);
    SHA256(both, sizeof(both), digest);
    memcpy(out, digest, LLM_IPC_PREFIX_SIZE);
}
