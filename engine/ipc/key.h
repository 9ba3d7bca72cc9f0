/* API keys: what one looks like, and what the key file keeps of it. nginx looks keys up, llm-engine
 * keygen makes them; no nginx types, no engine types.
 *
 * A key is "sk-llm-" and 58 characters: 32 random bytes and their CRC-32 (IEEE 802.3, most
 * significant byte first) in base32 (RFC 4648, section 6, in lower case and without padding), so
 * that no key has a second spelling, a double click takes it whole, and a typo shows without a
 * look-up. The key file has the SHA-256 of the whole text: 256 random bits need no salt and no slow
 * digest. */

#ifndef LLM_IPC_KEY_H
#define LLM_IPC_KEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LLM_IPC_KEY_PREFIX "sk-llm-"
#define LLM_IPC_KEY_SECRET 32
#define LLM_IPC_KEY_LENGTH (sizeof(LLM_IPC_KEY_PREFIX) - 1 + 58)
#define LLM_IPC_KEY_DIGEST 32 /* the first 16 bytes are the key id of SUBMIT and REVOKE */
#define LLM_IPC_KEY_NAME 64   /* bytes of what people call a key: the first word of its line */

/* The key of these bytes, with a zero behind it. */
void llm_ipc_key_write(const uint8_t secret[LLM_IPC_KEY_SECRET], char key[LLM_IPC_KEY_LENGTH + 1]);

/* Whether the text has a key's form and the checksum is right. Takes a time that depends on what
 * is wrong: all of that is public. */
bool llm_ipc_key_valid(const void *text, size_t len);

/* Of any text, key or not. */
void llm_ipc_key_digest(const void *text, size_t len, uint8_t digest[LLM_IPC_KEY_DIGEST]);

/* Whether a word of the key file may name a key, or a tenant: ASCII from '!' to '~', not beginning
 * with '#', at most LLM_IPC_KEY_NAME or LLM_IPC_MAX_TENANT of them; "*public*" is nobody's name. */
bool llm_ipc_key_name_valid(const void *text, size_t len);
bool llm_ipc_key_tenant_valid(const void *text, size_t len);

#endif
