#include "engine/ipc/filter.h"

#include <string.h>

#define BITS_A_PREFIX 4 /* each of 32 bits of it */

_Static_assert(BITS_A_PREFIX * sizeof(uint32_t) == LLM_IPC_PREFIX_SIZE, "bits of a prefix");

/* The i-th bit of a prefix among n_words words: its word, and the word's bit. */
static uint64_t bit_of(const uint8_t prefix[LLM_IPC_PREFIX_SIZE], unsigned i, uint64_t n_words,
                       uint64_t *word)
{
    uint32_t bits;

    memcpy(&bits, prefix + i * sizeof(bits), sizeof(bits)); /* a digest is as good as random */
    *word = bits / 64 % n_words;
    return 1ull << bits % 64;
}

static bool has(const uint64_t *words, uint64_t n_words, const uint8_t prefix[LLM_IPC_PREFIX_SIZE])
{
    for (unsigned i = 0; i < BITS_A_PREFIX; i++) {
        uint64_t word, bit = bit_of(prefix, i, n_words, &word);

        if ((__atomic_load_n(&words[word], __ATOMIC_RELAXED) & bit) == 0) {
            return false;
        }
    }
    return true;
}

void llm_ipc_filter_add(struct llm_ipc_filter *f, const uint8_t prefix[LLM_IPC_PREFIX_SIZE])
{
    const uint64_t n_words = LLM_IPC_FILTER_SIZE / 2 / sizeof(uint64_t);
    uint64_t *words = (uint64_t *) (void *) ((char *) f->state + LLM_IPC_FILTER_OFFSET);

    if (has(words + f->half * n_words, n_words, prefix)) {
        return;
    }
    if (f->n == LLM_IPC_FILTER_PREFIXES) {
        f->half = 1 - f->half;
        f->n = 0;
        for (uint64_t i = 0; i < n_words; i++) {
            __atomic_store_n(&words[f->half * n_words + i], 0, __ATOMIC_RELAXED);
        }
    }
    for (unsigned i = 0; i < BITS_A_PREFIX; i++) {
        uint64_t word, bit = bit_of(prefix, i, n_words, &word);

        __atomic_fetch_or(&words[f->half * n_words + word], bit, __ATOMIC_RELAXED);
    }
    f->n++;
}

bool llm_ipc_filter_has(const struct llm_ipc_session *s, const uint8_t prefix[LLM_IPC_PREFIX_SIZE])
{
    uint64_t offset = __atomic_load_n(&s->state->prefix_filter_offset, __ATOMIC_RELAXED);
    uint64_t size = __atomic_load_n(&s->state->prefix_filter_size, __ATOMIC_RELAXED);
    uint64_t n_words = size / 2 / sizeof(uint64_t);
    const uint64_t *words;

    /* it must lie where the peer may have put it */
    if (n_words == 0 || offset % sizeof(uint64_t) != 0 || offset + size > s->state_size) {
        return false;
    }
    words = (const uint64_t *) (const void *) ((const char *) s->state + offset);
    return has(words, n_words, prefix) || has(words + n_words, n_words, prefix);
}
