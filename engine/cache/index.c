#include "engine/cache/index.h"
#include "engine/base/memory.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define IDS_BYTES (LLM_PAGE_TOKENS * sizeof(uint32_t))

int llm_index_init(struct llm_index *x, uint32_t capacity, struct llm_error *err)
{
    assert(capacity <= LLM_MAX_ENTRIES);
    *x = (struct llm_index){
        .capacity = capacity,
        .n_free = capacity,
        .n_words = 2 * (uint64_t) capacity,
    };
    x->free = calloc(capacity, sizeof(*x->free));
    x->words = calloc(x->n_words, sizeof(*x->words));
    x->digests = calloc(capacity, sizeof(*x->digests));
    x->ids = llm_memory_map(capacity * IDS_BYTES);
    if (x->free == NULL || x->words == NULL || x->digests == NULL || x->ids == NULL) {
        llm_index_free(x);
        return llm_fail(err, LLM_ENOMEM, "no memory for an index of %u latent pages", capacity);
    }

    /* the lowest entry on top */
    for (uint32_t i = 0; i < capacity; i++) {
        x->free[i] = capacity - 1 - i;
    }
    return LLM_OK;
}

void llm_index_free(struct llm_index *x)
{
    free(x->free);
    free((void *) x->words);
    free(x->digests);
    llm_memory_unmap(x->ids, x->capacity * IDS_BYTES);
    *x = (struct llm_index){0};
}

/* Two parts of a digest: where in the table it belongs, and its tag there. */
#define HOME_PART sizeof(uint32_t)

static uint64_t home_of(const struct llm_index *x, const struct llm_digest *digest)
{
    uint32_t h;

    memcpy(&h, digest->bytes, sizeof(h));
    return h * x->n_words >> 32;
}

static uint64_t tag_of(const struct llm_digest *digest)
{
    uint32_t h;

    memcpy(&h, digest->bytes + HOME_PART, sizeof(h));
    return (uint64_t) h << 32;
}

static uint64_t word_at(const struct llm_index *x, uint64_t i)
{
    return atomic_load_explicit(&x->words[i], memory_order_relaxed);
}

static void set_word(struct llm_index *x, uint64_t i, uint64_t word)
{
    atomic_store_explicit(&x->words[i], word, memory_order_relaxed);
}

static uint64_t after(const struct llm_index *x, uint64_t i)
{
    return i + 1 < x->n_words ? i + 1 : 0;
}

static uint64_t distance(const struct llm_index *x, uint64_t from, uint64_t to)
{
    return to >= from ? to - from : to + x->n_words - from;
}

static bool tag_equals(uint64_t word, uint64_t tag)
{
    return (word ^ tag) >> 32 == 0;
}

static uint32_t entry_of(uint64_t word)
{
    return (uint32_t) word - 1;
}

/* Where the digest's word is, or the empty one where it would go. */
static uint64_t place_of(const struct llm_index *x, const struct llm_digest *digest)
{
    uint64_t tag = tag_of(digest), i = home_of(x, digest), word;

    while ((word = word_at(x, i)) != 0) {
        if (tag_equals(word, tag)
            && memcmp(&x->digests[entry_of(word)], digest, sizeof(*digest)) == 0) {
            break;
        }
        i = after(x, i);
    }
    return i;
}

static uint32_t *ids_of(const struct llm_index *x, uint32_t entry)
{
    return x->ids + (size_t) entry * LLM_PAGE_TOKENS;
}

const uint32_t *llm_index_ids(const struct llm_index *x, uint32_t entry)
{
    return ids_of(x, entry);
}

uint32_t llm_index_find(const struct llm_index *x, const struct llm_digest *digest,
                        const uint32_t ids[LLM_PAGE_TOKENS])
{
    uint64_t word = word_at(x, place_of(x, digest));

    if (word == 0 || memcmp(ids_of(x, entry_of(word)), ids, IDS_BYTES) != 0) {
        return LLM_NO_ENTRY;
    }
    return entry_of(word);
}

uint32_t llm_index_add(struct llm_index *x, const struct llm_digest *digest,
                       const uint32_t ids[LLM_PAGE_TOKENS])
{
    uint64_t place = place_of(x, digest);
    uint32_t entry;

    if (word_at(x, place) != 0) {
        return LLM_NO_ENTRY;
    }
    assert(x->n_free > 0);
    entry = x->free[--x->n_free];
    x->digests[entry] = *digest;
    memcpy(ids_of(x, entry), ids, IDS_BYTES);
    set_word(x, place, tag_of(digest) | (entry + 1));
    return entry;
}

/* No marks of what was: each word behind the gap that may go there does, and leaves another. */
void llm_index_remove(struct llm_index *x, uint32_t entry)
{
    uint64_t gap = place_of(x, &x->digests[entry]), word;

    assert(entry_of(word_at(x, gap)) == entry);
    for (uint64_t i = after(x, gap); (word = word_at(x, i)) != 0; i = after(x, i)) {
        uint64_t home = home_of(x, &x->digests[entry_of(word)]);

        if (distance(x, home, i) >= distance(x, gap, i)) {
            set_word(x, gap, word);
            gap = i;
        }
    }
    set_word(x, gap, 0);
    x->free[x->n_free++] = entry;
}

/* Its word stays where it is; the rest of the digest is one that no chain has: zeros, and the
 * number of the entry, as no two may be equal. */
void llm_index_hide(struct llm_index *x, uint32_t entry)
{
    struct llm_digest *digest = &x->digests[entry];
    uint64_t place = place_of(x, digest);

    assert(entry_of(word_at(x, place)) == entry);
    memset(digest->bytes + HOME_PART, 0, sizeof(*digest) - HOME_PART);
    memcpy(digest->bytes + sizeof(*digest) - sizeof(entry), &entry, sizeof(entry));
    set_word(x, place, tag_of(digest) | (entry + 1));
}

bool llm_index_guess(const struct llm_index *x, const struct llm_digest *digest)
{
    uint64_t tag = tag_of(digest), i = home_of(x, digest), word;

    /* a bound, as words move while this reads them */
    for (uint32_t n = 0; n < x->capacity && (word = word_at(x, i)) != 0; n++) {
        if (tag_equals(word, tag)) {
            return true;
        }
        i = after(x, i);
    }
    return false;
}

const char *llm_index_check(const struct llm_index *x)
{
    const char *wrong = NULL;
    uint32_t n_used = 0;
    bool *seen;

    if (x->n_free > x->capacity) {
        return "more free entries than entries";
    }
    seen = calloc(x->capacity, sizeof(*seen));
    if (seen == NULL) {
        return "no memory to check the index";
    }

    for (uint32_t i = 0; i < x->n_free && wrong == NULL; i++) {
        if (x->free[i] >= x->capacity || seen[x->free[i]]) {
            wrong = "an entry twice in the free list, or one that does not exist";
        } else {
            seen[x->free[i]] = true;
        }
    }
    for (uint64_t i = 0; i < x->n_words && wrong == NULL; i++) {
        uint64_t word = word_at(x, i);
        uint32_t entry = entry_of(word);

        if (word == 0) {
            continue;
        }
        n_used++;
        if (entry >= x->capacity || seen[entry]) {
            wrong = "an entry twice in the table, or a free one, or one that does not exist";
        } else if (!tag_equals(word, tag_of(&x->digests[entry]))) {
            wrong = "a word with another's tag";
        } else if (place_of(x, &x->digests[entry]) != i) {
            wrong = "a word that is not found";
        } else {
            seen[entry] = true;
        }
    }
    if (wrong == NULL && n_used + x->n_free != x->capacity) {
        wrong = "an entry that is neither free nor in the table";
    }

    free(seen);
    return wrong;
}
