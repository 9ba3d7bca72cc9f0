/* Values that are not authentic, opened as if they were: the seal is not what keeps memory safe.
 * Worth most under the sanitizers. */

#define LLM_REDIS_SEAL_HOLDS(holds) ((void) (holds), true)
#include "engine/cache/redis/value.c"

#include "t/unit/redis_mutate.h"
#include "t/unit/tap.h"

#define FENCE 64 /* bytes behind the page */

int main(void)
{
    uint32_t n = getenv("LLM_LONG") != NULL ? 100000 : 10000, over = 0;
    uint32_t seen[LLM_VALUE_NUMBERS + 1] = {0};
    uint64_t seed = 20051225;

    for (int dtype = LLM_LATENT_F32; dtype <= LLM_LATENT_FP8; dtype++) {
        struct stored s = store(dtype, 4);
        uint8_t *page = malloc(s.layout.page_bytes + FENCE), fence[FENCE];

        need(page != NULL, "out of memory");
        memset(fence, 0xa5, sizeof(fence));
        memcpy(page + s.layout.page_bytes, fence, sizeof(fence));
        for (uint32_t i = 0; i < n / 3 + 1; i++) {
            size_t n_value;
            uint8_t *value = mutated(&s, &seed, &n_value);

            seen[llm_redis_value_open(&s.keys, s.name, &s.layout, s.ids, value, n_value, page)]++;
            over += memcmp(page + s.layout.page_bytes, fence, sizeof(fence)) != 0;
            free(value);
        }
        free(page);
        unstore(&s);
    }

    is_int(over, 0, "of %u values none writes behind its page", n);
    is_int(seen[LLM_VALUE_SEAL], 0, "no seal is looked at");
    ok(seen[LLM_VALUE_GOOD] > 0 && seen[LLM_VALUE_SIZE] > 0 && seen[LLM_VALUE_HEADER] > 0
           && seen[LLM_VALUE_IDS] > 0 && seen[LLM_VALUE_NUMBERS] > 0,
       "what else can be wrong is");
    return done_testing();
}
