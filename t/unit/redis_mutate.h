/* Values as somebody may have left them in Redis: never the one that belongs there. */

#ifndef T_UNIT_REDIS_MUTATE_H
#define T_UNIT_REDIS_MUTATE_H

#include "t/unit/redis_page.h"
#include "t/unit/scratch.h"

#define N_FOREIGN 6

/* What is asked for, and what else the same engines have stored. */
struct stored {
    struct llm_page_layout layout;
    struct llm_redis_tenant_keys keys;
    char name[LLM_REDIS_NAME_MAX];
    uint32_t ids[LLM_PAGE_TOKENS];
    uint8_t *page, *value;
    size_t n_value;
    uint8_t *foreign[N_FOREIGN]; /* authentic, all of the same size */
};

static uint8_t *seal(const struct stored *s, const struct llm_redis_tenant_keys *keys,
                     const char *name, const uint32_t ids[LLM_PAGE_TOKENS])
{
    uint8_t *value = malloc(s->n_value);

    need(value != NULL
             && llm_redis_value_seal(keys, name, &s->layout, ids, s->page, value) == LLM_OK,
         "no value");
    return value;
}

__attribute__((unused)) static struct stored store(enum llm_latent_dtype dtype, uint32_t rank)
{
    struct stored s = {.layout = make_layout(dtype, rank, 2, 1), .keys = make_keys(1, 1)};
    struct llm_redis_tenant_keys other_owner = make_keys(1, 2), other_secret = make_keys(2, 1);
    char name[LLM_REDIS_NAME_MAX];
    uint32_t *ids = s.ids, other_ids[LLM_PAGE_TOKENS];

    for (uint32_t i = 0; i < LLM_PAGE_TOKENS; i++) {
        ids[i] = 1000 * i;
    }
    memcpy(other_ids, ids, sizeof(other_ids));
    other_ids[LLM_PAGE_TOKENS - 1]++;
    s.page = make_page(&s.layout);
    s.n_value = llm_redis_value_bytes(&s.layout);
    make_name(&s.keys, 1, 1, s.name);
    s.value = seal(&s, &s.keys, s.name, ids);

    s.foreign[0] = seal(&s, &other_owner, s.name, ids);
    s.foreign[1] = seal(&s, &other_secret, s.name, ids);
    s.foreign[2] = seal(&s, &s.keys, s.name, other_ids);
    make_name(&other_owner, 1, 1, name);
    s.foreign[3] = seal(&s, &other_owner, name, ids);
    make_name(&s.keys, 2, 1, name);
    s.foreign[4] = seal(&s, &s.keys, name, ids); /* before a purge */
    make_name(&s.keys, 1, 2, name);
    s.foreign[5] = seal(&s, &s.keys, name, ids); /* of another page */
    return s;
}

__attribute__((unused)) static void unstore(struct stored *s)
{
    for (int i = 0; i < N_FOREIGN; i++) {
        free(s->foreign[i]);
    }
    free(s->value);
    free(s->page);
    llm_page_layout_free(&s->layout);
}

static void change_bytes(uint8_t *value, size_t n, uint64_t *seed)
{
    for (uint32_t k = 1 + scratch_random(seed) % 16; k > 0; k--) {
        value[scratch_random(seed) % n] ^= (uint8_t) (1 + scratch_random(seed) % 255);
    }
}

static void flip_bits(uint8_t *value, size_t n, uint64_t *seed)
{
    for (uint32_t k = 1 + scratch_random(seed) % 2; k > 0; k--) {
        value[scratch_random(seed) % n] ^= (uint8_t) (1 << scratch_random(seed) % 8);
    }
}

/* The value up to some byte, then another one. */
static void splice(const struct stored *s, uint8_t *value, uint64_t *seed)
{
    const uint8_t *other = s->foreign[scratch_random(seed) % N_FOREIGN];
    size_t at = scratch_random(seed) % s->n_value;

    memcpy(value + at, other + at, s->n_value - at);
}

static void move_part(uint8_t *value, size_t n, uint64_t *seed)
{
    size_t len = 1 + scratch_random(seed) % 64;

    memmove(value + scratch_random(seed) % (n - len), value + scratch_random(seed) % (n - len),
            len);
}

/* A value in memory of exactly its size, to be freed. */
__attribute__((unused)) static uint8_t *mutated(const struct stored *s, uint64_t *seed,
                                                size_t *n_value)
{
    size_t n = s->n_value;
    uint8_t *value = malloc(2 * n);

    need(value != NULL, "out of memory");
    do {
        n = s->n_value;
        memcpy(value, s->value, n);
        memcpy(value + n, s->value, n);
        switch (scratch_random(seed) % 8) {
        case 0:
            flip_bits(value, n, seed);
            break;
        case 1:
            change_bytes(value, n, seed);
            break;
        case 2: /* of the header, the nonce and the first ids */
            flip_bits(value, 64, seed);
            break;
        case 3: /* of the tag */
            flip_bits(value + n - 16, 16, seed);
            break;
        case 4:
            n = scratch_random(seed) % (2 * n);
            break;
        case 5:
            splice(s, value, seed);
            break;
        case 6:
            memcpy(value, s->foreign[scratch_random(seed) % N_FOREIGN], n);
            break;
        default:
            move_part(value, n, seed);
        }
    } while (n == s->n_value && memcmp(value, s->value, n) == 0);

    *n_value = n;
    if (n > 0) {
        uint8_t *fitting = realloc(value, n);

        value = fitting != NULL ? fitting : value;
    }
    return value;
}

#endif
