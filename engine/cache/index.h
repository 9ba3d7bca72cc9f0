/* From a page's digest to its entry: an open-addressing table with linear probing, at most half
 * full, and what each entry stands for: its digest and its token ids, both compared on a hit.
 *
 * A word of the table is 32 bits of the digest (the tag) above the entry's number + 1. One thread
 * changes the index; any thread may ask llm_index_guess, which reads nothing but words. */

#ifndef LLM_CACHE_INDEX_H
#define LLM_CACHE_INDEX_H

#include "engine/cache/digest.h"
#include "engine/model/plane.h"

#include <stdatomic.h>
#include <stdbool.h>

#define LLM_NO_ENTRY UINT32_MAX
#define LLM_MAX_ENTRIES INT32_MAX /* so that a word's place times 2^32 fits 64 bits */

struct llm_index {
    uint32_t capacity; /* entries */
    uint32_t n_free;
    uint32_t *free;             /* [capacity]; the first n_free; the others are in the table */
    uint64_t n_words;           /* 2 * capacity */
    _Atomic uint64_t *words;    /* [n_words]; 0: empty */
    struct llm_digest *digests; /* [capacity] */
    uint32_t *ids;              /* [capacity][LLM_PAGE_TOKENS] */
};

int llm_index_init(struct llm_index *x, uint32_t capacity, struct llm_error *err);
void llm_index_free(struct llm_index *x);

/* LLM_NO_ENTRY also where the digest is there and stands for other ids. */
uint32_t llm_index_find(const struct llm_index *x, const struct llm_digest *digest,
                        const uint32_t ids[LLM_PAGE_TOKENS]);

/* What an entry stands for: uint32_t[LLM_PAGE_TOKENS]. */
const uint32_t *llm_index_ids(const struct llm_index *x, uint32_t entry);

/* LLM_NO_ENTRY: the digest is there already. There must be a free entry. */
uint32_t llm_index_add(struct llm_index *x, const struct llm_digest *digest,
                       const uint32_t ids[LLM_PAGE_TOKENS]);
void llm_index_remove(struct llm_index *x, uint32_t entry);

/* The entry stays, but nothing finds it any more. Another may have its digest from now on. */
void llm_index_hide(struct llm_index *x, uint32_t entry);

/* Whether the digest seems to be there: while the index changes, and for one digest in billions, it
 * may be wrong. */
bool llm_index_guess(const struct llm_index *x, const struct llm_digest *digest);

/* NULL, or what is wrong. For tests. */
const char *llm_index_check(const struct llm_index *x);

#endif
