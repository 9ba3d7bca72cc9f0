/* Values: what is sealed comes back, and nothing else does. */

#include "t/unit/redis_mutate.h"
#include "t/unit/tap.h"

static enum llm_redis_value_fault open_value(const struct stored *s, const uint8_t *value,
                                             size_t n_value)
{
    uint8_t *page = malloc(s->layout.page_bytes);
    enum llm_redis_value_fault fault;

    need(page != NULL, "out of memory");
    fault = llm_redis_value_open(&s->keys, s->name, &s->layout, s->ids, value, n_value, page);
    if (fault == LLM_VALUE_GOOD && memcmp(page, s->page, s->layout.page_bytes) != 0) {
        fault = -1;
    }
    free(page);
    return fault;
}

static bool contains(const uint8_t *value, size_t n_value, const void *data, size_t len)
{
    for (size_t at = 0; at + 8 <= len; at++) {
        if (memmem(value, n_value, (const uint8_t *) data + at, 8) != NULL) {
            return true;
        }
    }
    return false;
}

static void test_sealing(void)
{
    static const char *const names[] = {"f32", "bf16", "fp8"};

    for (int dtype = LLM_LATENT_F32; dtype <= LLM_LATENT_FP8; dtype++) {
        struct stored s = store(dtype, 130);
        uint8_t *again = seal(&s, &s.keys, s.name, s.ids);

        is_int(s.n_value, 32 + 12 + 256 + s.layout.page_bytes + 16, "%s: bytes of a value",
               names[dtype]);
        is_int(open_value(&s, s.value, s.n_value), LLM_VALUE_GOOD, "what is sealed comes back");
        is_int(open_value(&s, again, s.n_value), LLM_VALUE_GOOD, "when it is sealed again, too");
        ok(memcmp(s.value + 32, again + 32, 12) != 0, "with another nonce");
        ok(memcmp(s.value + 44, again + 44, 16) != 0, "as other bytes");
        ok(!contains(s.value, s.n_value, s.ids, sizeof(s.ids)), "in which no token id is found");
        ok(!contains(s.value, s.n_value, s.page, s.layout.page_bytes), "and no latent");
        free(again);
        unstore(&s);
    }
}

static enum llm_redis_value_fault open_changed(struct stored *s, size_t at)
{
    enum llm_redis_value_fault fault;

    s->value[at] ^= 1;
    fault = open_value(s, s->value, s->n_value);
    s->value[at] ^= 1;
    return fault;
}

static void test_faults(void)
{
    static const char *const foreign[] = {
        "of another tenant", "of another secret", "of other tokens",
        "moved from another tenant", "moved from before a purge", "moved from another page",
    };
    struct stored s = store(LLM_LATENT_BF16, 10), other = store(LLM_LATENT_F32, 4),
                  wider = store(LLM_LATENT_BF16, 12);

    is_int(open_value(&s, s.value, 0), LLM_VALUE_SIZE, "an empty value");
    is_int(open_value(&s, s.value, s.n_value - 1), LLM_VALUE_SIZE, "a byte short");
    is_int(open_value(&s, wider.value, wider.n_value), LLM_VALUE_SIZE, "of a wider model");
    for (size_t at = 0; at < 32; at++) {
        is_int(open_changed(&s, at), LLM_VALUE_HEADER, "another header, from byte %zu on", at);
    }
    is_int(open_changed(&s, 32), LLM_VALUE_SEAL, "another nonce");
    is_int(open_changed(&s, 44), LLM_VALUE_SEAL, "another token");
    is_int(open_changed(&s, 44 + 256), LLM_VALUE_SEAL, "another latent");
    is_int(open_changed(&s, s.n_value - 17), LLM_VALUE_SEAL, "another last one");
    is_int(open_changed(&s, s.n_value - 16), LLM_VALUE_SEAL, "another tag");
    is_int(open_changed(&s, s.n_value - 1), LLM_VALUE_SEAL, "in its last byte");
    is_int(open_value(&s, s.value, s.n_value), LLM_VALUE_GOOD, "unchanged it is good");

    for (int i = 0; i < N_FOREIGN; i++) {
        is_int(open_value(&s, s.foreign[i], s.n_value), i == 2 ? LLM_VALUE_IDS : LLM_VALUE_SEAL,
               "a value %s", foreign[i]);
    }

    is_int(other.n_value, s.n_value, "with another type of latents a value may be as long");
    is_int(open_value(&s, other.value, other.n_value), LLM_VALUE_HEADER, "but is refused");
    s.layout.planes[1].kind = LLM_PLANE_LATENT;
    is_int(open_value(&s, s.value, s.n_value), LLM_VALUE_HEADER, "so is one with an MTP plane");

    unstore(&s);
    unstore(&other);
    unstore(&wider);
}

/* Seals the page with other bytes at one place, and opens that. */
static enum llm_redis_value_fault open_with(const struct stored *s, size_t at, const void *bytes,
                                            size_t len)
{
    enum llm_redis_value_fault fault;
    uint8_t *value, kept[8];

    memcpy(kept, s->page + at, len);
    memcpy(s->page + at, bytes, len);
    value = seal(s, &s->keys, s->name, s->ids);
    fault = open_value(s, value, s->n_value);
    memcpy(s->page + at, kept, len);
    free(value);
    return fault;
}

struct number {
    const char *what;
    uint32_t bits;
    bool finite;
};

/* At the first and the last place of `count` numbers of `size` bytes, in the first row and the last
 * one of all. */
static void check_numbers(const struct stored *s, const char *where, size_t row_offset,
                          size_t count, size_t size, const struct number *numbers, size_t n)
{
    const struct llm_plane *last = &s->layout.planes[s->layout.n_planes - 1];
    size_t last_row = last->offset + (size_t) last->row_bytes * (LLM_PAGE_TOKENS - 1);

    for (size_t i = 0; i < n; i++) {
        size_t places[] = {
            row_offset, row_offset + (count - 1) * size, last_row + row_offset,
            last_row + row_offset + (count - 1) * size,
        };
        enum llm_redis_value_fault want =
            numbers[i].finite ? LLM_VALUE_GOOD : LLM_VALUE_NUMBERS;

        for (size_t k = 0; k < 4; k++) {
            is_int(open_with(s, places[k], &numbers[i].bits, size), want, "%s: %s at %zu", where,
                   numbers[i].what, places[k]);
        }
    }
}

static void test_numbers(void)
{
    static const struct number f32[] = {
        {"infinity", 0x7f800000, false}, {"-infinity", 0xff800000, false},
        {"a NaN", 0x7fc00000, false},    {"a small NaN", 0x7f800001, false},
        {"a full NaN", 0xffffffff, false}, {"the largest number", 0x7f7fffff, true},
        {"the smallest", 0xff7fffff, true}, {"-0", 0x80000000, true},
    };
    static const struct number bf16[] = {
        {"infinity", 0x7f80, false}, {"-infinity", 0xff80, false}, {"a NaN", 0x7fc0, false},
        {"a small NaN", 0x7f81, false}, {"a full NaN", 0xffff, false},
        {"the largest number", 0x7f7f, true}, {"the smallest", 0xff7f, true}, {"-0", 0x8000, true},
    };
    static const struct number e4m3[] = {
        {"NaN", 0x7f, false}, {"-NaN", 0xff, false}, {"the largest number", 0x7e, true},
        {"the smallest", 0xfe, true}, {"-0", 0x80, true},
    };
    /* of a latent that is 448 at most */
    static const struct number scales[] = {
        {"infinity", 0x7f800000, false}, {"a NaN", 0x7fc00000, false},
        {"-infinity", 0xff800000, false}, {"the largest number", 0x7f7fffff, false},
        {"the largest scale", 0x7b124924, true}, {"one more", 0x7b124925, false},
        {"one more below 0", 0xfb124925, false},
    };
    struct stored s = store(LLM_LATENT_F32, 130);
    const struct llm_plane *p = s.layout.planes;

#define N(list) list, sizeof(list) / sizeof(*list)
    check_numbers(&s, "f32 latents", 0, p->rank, 4, N(f32));
    check_numbers(&s, "f32 rope", p->rope_offset, p->rope, 4, N(f32));
    unstore(&s);

    s = store(LLM_LATENT_BF16, 130);
    p = s.layout.planes;
    check_numbers(&s, "bf16 latents", 0, p->rank, 2, N(bf16));
    check_numbers(&s, "bf16 rope", p->rope_offset, p->rope, 2, N(bf16));
    unstore(&s);

    s = store(LLM_LATENT_FP8, 130); /* two scales, at no multiple of four */
    p = s.layout.planes;
    check_numbers(&s, "fp8 latents", 0, p->rank, 1, N(e4m3));
    check_numbers(&s, "fp8 scales", p->scale_offset, 2, 4, N(scales));
    check_numbers(&s, "fp8 rope", p->rope_offset, p->rope, 2, N(bf16));
#undef N
    unstore(&s);
}

static void test_mutated(void)
{
    uint32_t n = getenv("LLM_LONG") != NULL ? 100000 : 10000, accepted = 0;
    uint64_t seed = 19770526;

    for (int dtype = LLM_LATENT_F32; dtype <= LLM_LATENT_FP8; dtype++) {
        struct stored s = store(dtype, 4);

        for (uint32_t i = 0; i < n / 3 + 1; i++) {
            size_t n_value;
            uint8_t *value = mutated(&s, &seed, &n_value);

            accepted += open_value(&s, value, n_value) == LLM_VALUE_GOOD;
            free(value);
        }
        unstore(&s);
    }
    is_int(accepted, 0, "of %u values that do not belong there none is accepted", n);
}

int main(void)
{
    test_sealing();
    test_faults();
    test_numbers();
    test_mutated();
    return done_testing();
}
