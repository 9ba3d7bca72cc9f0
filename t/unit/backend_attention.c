/* How the attention of a step is shared out: everything once, and no thread left with a long
 * sequence while the others have nothing to do. */

#include "engine/backend/cpu_internal.h"
#include "t/unit/tap.h"

#define MAX_SEQS 32
#define MAX_ROWS 256
#define MAX_PAGES 200
#define SPLIT_TOKENS 128

static struct llm_model model;
static struct llm_backend b;
static struct llm_cpu_step step;
static struct llm_step_seq seqs[MAX_SEQS];

static void *allocate(size_t n, size_t size)
{
    void *p = calloc(n, size);

    if (p == NULL) {
        puts("Bail out! out of memory");
        exit(1);
    }
    return p;
}

static void begin_with(uint32_t n_threads, uint32_t n_heads, uint32_t max_pages)
{
    struct llm_error err;

    model.config = (struct llm_model_config){.n_heads = n_heads, .kv_lora_rank = 6};
    b = (struct llm_backend){
        .model = &model,
        .options = {.max_seqs = MAX_SEQS},
        .max_rows = MAX_ROWS,
        .max_pages = max_pages,
        .step = &step,
    };
    if (llm_cpu_threads_start(n_threads, &b.threads, &err) != LLM_OK) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    b.max_items = llm_cpu_attention_max_items(&b);
    b.max_partials = llm_cpu_attention_max_partials(&b);
    b.items = allocate(b.max_items, sizeof(*b.items));
    b.merges = allocate(b.max_items, sizeof(*b.merges));
    b.partials = allocate(b.max_partials + 1, sizeof(*b.partials));
    step = (struct llm_cpu_step){.seqs = seqs};
}

static void begin(uint32_t n_threads, uint32_t n_heads)
{
    begin_with(n_threads, n_heads, MAX_PAGES);
}

static void end(void)
{
    llm_cpu_threads_stop(b.threads);
    free(b.items);
    free(b.merges);
    free(b.partials);
}

static void add(uint32_t position, uint32_t n_rows)
{
    seqs[step.n_seqs++] = (struct llm_step_seq){.position = position, .n_rows = n_rows};
    step.n_rows += n_rows;
}

static uint32_t n_split(const struct llm_step_seq *seq)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < b.n_items; i++) {
        n += b.items[i].seq == seq && b.items[i].partial != NULL;
    }
    return n;
}

/* Every split of every query (row, head) once, every piece of b.partials for one item. */
static bool covers(void)
{
    uint32_t n_heads = model.config.n_heads, n_splits = MAX_PAGES * LLM_PAGE_TOKENS / SPLIT_TOKENS;
    uint8_t *seen = allocate((size_t) step.n_rows * n_heads, n_splits);
    uint8_t *taken = allocate(b.max_partials + 1, 1);
    uint32_t row = 0;
    bool good = b.n_items <= b.max_items;

    for (uint32_t i = 0; good && i < b.n_items; i++) {
        const struct llm_cpu_attention_item *item = &b.items[i];
        size_t floats = item->n_rows * item->n_heads * (model.config.kv_lora_rank + (size_t) 2);

        for (uint32_t q = 0; q < item->n_rows * item->n_heads; q++) {
            size_t at = (item->row + q / item->n_heads) * (size_t) n_heads + item->head
                        + q % item->n_heads;

            for (uint32_t s = item->split; s < item->split + item->n_splits; s++) {
                seen[at * n_splits + s]++;
            }
        }
        for (size_t f = 0; good && item->partial != NULL && f < floats; f++) {
            size_t at = (size_t) (item->partial - b.partials) + f;

            good = at < b.max_partials && taken[at]++ == 0;
        }
    }

    for (uint32_t i = 0; i < step.n_seqs; i++) {
        for (uint32_t j = 0; j < seqs[i].n_rows; j++, row++) {
            for (uint32_t k = 0; k < n_heads * n_splits; k++) {
                /* an item's rows share its splits: a row may look at one that it sees nothing of */
                uint32_t first = k % n_splits * SPLIT_TOKENS;
                uint8_t n = seen[(size_t) row * n_heads * n_splits + k];

                good &= n <= 1 && (n == 1 || first > seqs[i].position + j);
            }
        }
    }
    free(seen);
    free(taken);
    return good;
}

static void test_long_alone(void)
{
    begin(4, 128);
    add(MAX_PAGES * LLM_PAGE_TOKENS - 1, 1);
    llm_cpu_attention_plan(&b);
    is_int(n_split(&seqs[0]), 2 * MAX_PAGES / 2, "a long sequence is split, all its heads");
    is_int(b.n_merges, 2, "and merged");
    ok(covers(), "it is all there");
    end();
}

static void test_long_among_short(void)
{
    begin(4, 16);
    for (uint32_t i = 0; i < 20; i++) {
        add(i == 7 ? MAX_PAGES * LLM_PAGE_TOKENS - 1 : 200, 1);
    }
    llm_cpu_attention_plan(&b);
    is_int(n_split(&seqs[7]), MAX_PAGES / 2, "a long sequence among short ones is split");
    is_int(b.n_merges, 1, "they are not");
    ok(covers(), "it is all there");
    end();
}

static void test_equal(void)
{
    begin(4, 16);
    for (uint32_t i = 0; i < 8; i++) {
        add(5000, 1);
    }
    llm_cpu_attention_plan(&b);
    is_int(b.n_merges, 0, "two sequences a thread, all alike, are not split");
    is_int(b.n_items, 8, "an item each");
    end();
}

static void test_odd_one(void)
{
    begin(4, 16);
    for (uint32_t i = 0; i < 9; i++) {
        add(5000, 1);
    }
    llm_cpu_attention_plan(&b);
    is_int(b.n_merges, 1, "one more than the threads can share out is split");
    is_int(b.n_items, 8 + n_split(&seqs[b.merges[0].seq - seqs]), "the others are not");
    ok(covers(), "it is all there");
    end();
}

/* Three thousand splits each for two halves of the heads: there is room for one of them. */
static void test_no_room(void)
{
    uint32_t max_pages = 6000;
    const struct llm_cpu_attention_item *last;

    begin_with(8, 128, max_pages);
    add(max_pages * LLM_PAGE_TOKENS - 1, 1);
    llm_cpu_attention_plan(&b);
    is_int(b.n_merges, 1, "what finds no room is not split");
    is_int(b.n_items, max_pages / 2 + 1, "but done");
    last = &b.items[max_pages / 2 - 1];
    ok(b.n_items <= b.max_items && last->partial + 64 * 8 <= b.partials + b.max_partials,
       "and the room is not passed");
    end();
}

static void test_one_thread(void)
{
    begin(1, 16);
    add(MAX_PAGES * LLM_PAGE_TOKENS - 1, 1);
    llm_cpu_attention_plan(&b);
    is_int(b.n_items, 1, "one thread splits nothing");
    is_int(b.max_partials, 0, "nor has room for it");
    end();
}

static void test_any(void)
{
    static const uint32_t heads[] = {1, 16, 80, 128};
    uint32_t state = 1;
    bool good = true;

    for (uint32_t round = 0; good && round < 40; round++) {
        begin(1 + round % 7, heads[round / 7 % 4]);
        for (uint32_t i = 0; i < 1 + round % 12; i++) {
            uint32_t n_rows, limit;

            state = state * 1664525 + 1013904223;
            n_rows = state >> 28 == 0 ? 50 : 1 + (state >> 16) % 3;
            limit = MAX_PAGES * LLM_PAGE_TOKENS - n_rows;
            add(state >> 30 == 3 ? limit : (state >> 8) % (limit / 20), n_rows);
        }
        llm_cpu_attention_plan(&b);
        good = covers();
        end();
    }
    ok(good, "any batch: everything once");
}

int main(void)
{
    test_long_alone();
    test_long_among_short();
    test_equal();
    test_odd_one();
    test_no_room();
    test_one_thread();
    test_any();
    return done_testing();
}
