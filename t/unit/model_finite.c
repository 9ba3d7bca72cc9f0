/* What is finite: every number of 8 and 16 bits, many of 32, at every place among others. */

#include "engine/model/finite.h"
#include "t/unit/tap.h"

#include <math.h>

#define N_BYTES 40 /* two registers and a half */

struct type {
    const char *name;
    enum llm_dtype dtype;
    size_t size;
    uint32_t exponent; /* bits of which one is 0 in what is finite */
    uint32_t step;     /* from one number that is tried to the next */
};

static const struct type types[] = {
    {"f32", LLM_F32, 4, 0x7f800000, 65521},
    {"f16", LLM_F16, 2, 0x7c00, 1},
    {"bf16", LLM_BF16, 2, 0x7f80, 1},
    {"e4m3", LLM_F8_E4M3, 1, 0x7f, 1},
};

/* The number alone among others, which are finite. */
static uint32_t count_wrong(const struct type *t, uint32_t bits, uint32_t others)
{
    bool finite = (bits & t->exponent) != t->exponent;
    uint8_t bytes[1 + N_BYTES], *numbers = bytes + 1; /* at an odd address */
    uint32_t wrong = 0;

    for (size_t at = 0; at < N_BYTES; at += t->size) {
        for (size_t i = 0; i < N_BYTES; i += t->size) {
            memcpy(numbers + i, i == at ? &bits : &others, t->size);
        }
        wrong += llm_all_finite(t->dtype, numbers, N_BYTES) != finite;
        wrong += llm_all_finite(t->dtype, numbers, at + t->size) != finite;
        wrong += !llm_all_finite(t->dtype, numbers, at);
    }
    return wrong;
}

int main(void)
{
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
        const struct type *t = &types[i];
        uint64_t end = UINT64_C(1) << 8 * t->size;
        uint32_t lowest = t->exponent & (~t->exponent + 1);
        uint32_t smallest = (uint32_t) (end - 1) - lowest, wrong = 0, n = 0;

        for (uint64_t bits = 0; bits < end; bits += t->step, n++) {
            wrong += count_wrong(t, (uint32_t) bits, smallest);
            wrong += count_wrong(t, (uint32_t) bits, 0);
        }
        is_int(wrong, 0, "%s: %u numbers", t->name, n);
    }
    return done_testing();
}
