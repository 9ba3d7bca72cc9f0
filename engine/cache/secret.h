/* The secret file, which engines that share pages have in common. Any thread. */

#ifndef LLM_CACHE_SECRET_H
#define LLM_CACHE_SECRET_H

#include "engine/base/error.h"

#include <stdint.h>

#define LLM_SECRET_MIN 32   /* bytes */
#define LLM_SECRET_MAX 4096

/* What all keys are made of: HKDF-Extract (RFC 5869, SHA-256) of every byte of the file, a line end
 * at its end included. LLM_EIO; LLM_EINVAL: no regular file, too short or too long, or others may
 * read or write it than its owner and, where that is not this process's user, its group, which may
 * read; LLM_EINTERNAL when OpenSSL fails. */
int llm_secret_read(const char *path, uint8_t master[32], struct llm_error *err);

#endif
