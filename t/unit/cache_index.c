/* The index against a plain list: 200,000 random changes of a small table with equal homes and
 * tags, while another thread guesses. */

#include "engine/cache/index.h"
#include "t/unit/tap.h"

#include <pthread.h>
#include <unistd.h>

#define CAPACITY 24
#define N_KEYS 64

static struct llm_digest keys[N_KEYS];
static uint32_t ids[N_KEYS][LLM_PAGE_TOKENS];
static uint64_t state = 1;

static uint32_t draw(uint32_t n)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t) (state >> 33) % n;
}

/* Eight homes and four tags for all. */
static void make_keys(void)
{
    for (uint32_t i = 0; i < N_KEYS; i++) {
        keys[i].bytes[3] = (i % 8) * 36;
        keys[i].bytes[4] = 1 + i / 8 % 4;
        keys[i].bytes[20] = 1 + i;
        for (uint32_t j = 0; j < LLM_PAGE_TOKENS; j++) {
            ids[i][j] = i;
        }
    }
}

struct guesser {
    struct llm_index *x;
    _Atomic bool stop;
    uint64_t n, yes;
};

static void *guess(void *arg)
{
    struct guesser *g = arg;

    while (!atomic_load(&g->stop)) {
        for (uint32_t i = 0; i < N_KEYS; i++, g->n++) {
            g->yes += llm_index_guess(g->x, &keys[i]);
        }
        usleep(10); /* and leaves the other some time */
    }
    return NULL;
}

static void test_changes(void)
{
    uint32_t entries[N_KEYS], n = 0;
    struct llm_index x;
    struct llm_error err;
    struct guesser g = {.x = &x};
    pthread_t thread;
    bool right = true, sound = true;

    for (uint32_t i = 0; i < N_KEYS; i++) {
        entries[i] = LLM_NO_ENTRY;
    }
    is_int(llm_index_init(&x, CAPACITY, &err), LLM_OK, "an index of %d entries", CAPACITY);
    ok(pthread_create(&thread, NULL, guess, &g) == 0, "and a thread that guesses");

    for (uint32_t i = 0; i < 200000; i++) {
        uint32_t k = draw(N_KEYS);

        right = right && llm_index_find(&x, &keys[k], ids[k]) == entries[k];
        right = right && (entries[k] == LLM_NO_ENTRY || llm_index_guess(&x, &keys[k]));
        right = right && llm_index_find(&x, &keys[k], ids[(k + 1) % N_KEYS]) == LLM_NO_ENTRY;
        if (entries[k] != LLM_NO_ENTRY) {
            right = right && llm_index_add(&x, &keys[k], ids[k]) == LLM_NO_ENTRY;
            llm_index_remove(&x, entries[k]);
            entries[k] = LLM_NO_ENTRY;
            n--;
        } else if (n < CAPACITY) {
            entries[k] = llm_index_add(&x, &keys[k], ids[k]);
            right = right && entries[k] != LLM_NO_ENTRY;
            n++;
        }
        sound = sound && llm_index_check(&x) == NULL;
    }
    atomic_store(&g.stop, true);
    pthread_join(thread, NULL);
    ok(right, "200,000 times what the list says");
    ok(sound, "and sound all the while");
    ok(g.yes > 0, "%llu of %llu guesses were yes", (unsigned long long) g.yes,
       (unsigned long long) g.n);

    x.words[0] = 99;
    ok(llm_index_check(&x) != NULL, "a wrong word is seen");
    llm_index_free(&x);
}

/* All keys begin alike: hidden or not, they are in each other's way. */
static void test_hidden(void)
{
    uint32_t hidden[CAPACITY / 2], again[CAPACITY / 2];
    struct llm_index x;
    struct llm_error err;
    bool right = true;

    is_int(llm_index_init(&x, CAPACITY, &err), LLM_OK, "an index");
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t k = 0; k < CAPACITY / 2; k++) {
            uint32_t e = llm_index_add(&x, &keys[k], ids[k]);

            right = right && e != LLM_NO_ENTRY;
            (round == 0 ? hidden : again)[k] = e;
            llm_index_hide(&x, e);
            right = right && llm_index_find(&x, &keys[k], ids[k]) == LLM_NO_ENTRY;
        }
        ok(llm_index_check(&x) == NULL, "sound");
    }
    ok(right, "what is hidden is not found, and is there anew, and hidden once more");
    for (uint32_t k = 0; k < CAPACITY / 2; k++) {
        right = right && !llm_index_guess(&x, &keys[k]);
        llm_index_remove(&x, hidden[k]);
        llm_index_remove(&x, again[k]);
    }
    ok(right, "nor is it guessed");
    ok(llm_index_check(&x) == NULL && x.n_free == CAPACITY, "and all of it can be removed");
    llm_index_free(&x);
}

int main(void)
{
    make_keys();
    test_hidden();
    test_changes();
    return done_testing();
}
