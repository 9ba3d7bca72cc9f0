/* Names of latent pages: a chain of digests, one for each full page of a prefix.
 *
 * digest[i] = SHA-256 over the scope secret, the model's fingerprint, the numerics id, the format
 * version, digest[i - 1] and the 64 token ids of page i, each preceded by its length. So equal
 * digests mean equal latents, and nobody who lacks the scope secret can name, or ask for, a page.
 * Pure functions: any thread. */

#ifndef LLM_CACHE_DIGEST_H
#define LLM_CACHE_DIGEST_H

#include "engine/base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define LLM_DIGEST_BYTES 32
#define LLM_PAGE_FORMAT 1 /* of the digest and of what a page holds */

struct llm_digest {
    uint8_t bytes[LLM_DIGEST_BYTES];
};

/* Who may find a page. */
enum llm_scope {
    LLM_SCOPE_TENANT,
    LLM_SCOPE_PUBLIC, /* everybody whose location says so: as one tenant of its own */
    LLM_SCOPE_OFF,    /* nobody but the request itself */
};

/* What the digests of a request have in common. */
struct llm_chain {
    uint8_t secret[32]; /* of the scope */
    uint8_t fingerprint[32];
    uint8_t numerics_id[16];
};

/* The scope secret: HKDF-SHA256 of `master`, with the kind and, for LLM_SCOPE_TENANT, the tenant
 * (SHA-256 of its name). LLM_SCOPE_OFF: random, another one each time. LLM_EINTERNAL when OpenSSL
 * fails. */
int llm_scope_secret(const uint8_t master[32], enum llm_scope scope, const uint8_t tenant[32],
                     uint8_t secret[32]);

/* The tenant that pages are charged to: *public* for LLM_SCOPE_PUBLIC. */
void llm_scope_owner(enum llm_scope scope, const uint8_t tenant[32], uint8_t owner[32]);
bool llm_owner_is_public(const uint8_t owner[32]);

/* Digests of n_pages pages whose tokens are ids[n_pages * 64]; parent: the digest of the page
 * before them, NULL for the first of a sequence. LLM_ENOMEM or LLM_EINTERNAL. */
int llm_page_digests(const struct llm_chain *chain, const struct llm_digest *parent,
                     const uint32_t *ids, uint32_t n_pages, struct llm_digest *digests);

#endif
