/* The Redis tier before a server, or a network, that does everything wrong: it costs hits and
 * nothing else, and when it is over all is well again. */

#include "t/unit/redis_hostile.h"
#include "t/unit/redis_tier.h"

#define N_PAGES 12
#define DEADLINE_MS 60

struct attack {
    const char *name, *text;
    enum hostile_mode mode;
    uint32_t ms;
    uint32_t repeat; /* of the text; 0: once */
};

static const struct attack attacks[] = {
    {"hangs up at once", NULL, HOSTILE_REFUSE, 0, 0},
    {"does not say a word", NULL, HOSTILE_SILENT, 0, 0},
    {"says a byte every 20 ms", NULL, HOSTILE_DRIBBLE, 20, 0},
    {"is 100 ms late", NULL, HOSTILE_DELAY, 100, 0},
    {"hangs up in the middle of a page", NULL, HOSTILE_CUT, 0, 0},
    {"flips a bit of each page", NULL, HOSTILE_FLIP, 0, 0},
    {"answers in the wrong order", NULL, HOSTILE_SWAP, 0, 0},
    {"answers everything twice", NULL, HOSTILE_TWICE, 0, 0},
    {"claims a string of 1 TiB", "$1099511627776\r\n", HOSTILE_PAGES, 0, 0},
    {"claims one of 2^63 - 1 bytes", "$9223372036854775807\r\n", HOSTILE_PAGES, 0, 0},
    {"claims one of 2^64 bytes", "$18446744073709551616\r\n", HOSTILE_PAGES, 0, 0},
    {"claims one of -2 bytes", "$-2\r\n", HOSTILE_PAGES, 0, 0},
    {"claims one that is a byte too long", "$147773\r\n", HOSTILE_PAGES, 0, 0},
    {"gives an empty page", "$0\r\n\r\n", HOSTILE_ALL, 0, 0},
    {"claims 10^9 elements", "*1000000000\r\n", HOSTILE_PAGES, 0, 0},
    {"nests a million arrays", "*1\r\n", HOSTILE_PAGES, 0, 1000000},
    {"gives an array for a page", "*2\r\n$1\r\na\r\n$1\r\nb\r\n", HOSTILE_ALL, 0, 0},
    {"gives an empty array", "*0\r\n", HOSTILE_ALL, 0, 0},
    {"gives a missing array", "*-1\r\n", HOSTILE_ALL, 0, 0},
    {"gives a map", "%1\r\n+a\r\n+b\r\n", HOSTILE_ALL, 0, 0},
    {"pushes messages", ">2\r\n+message\r\n+x\r\n", HOSTILE_BEFORE, 0, 0},
    {"says what nobody asked for", "+OK\r\n", HOSTILE_BEFORE, 0, 0},
    {"says OK to all", "+OK\r\n", HOSTILE_ALL, 0, 0},
    {"says 1 to all", ":1\r\n", HOSTILE_ALL, 0, 0},
    {"has an error without an end", "-ERR ", HOSTILE_PAGES, 0, 0},
    {"is loading", "-LOADING Redis is loading the dataset in memory\r\n", HOSTILE_ALL, 0, 0},
    {"may only be read", "-READONLY You can't write against a read only replica.\r\n",
     HOSTILE_ALL, 0, 0},
    {"is a cluster", "-MOVED 3999 127.0.0.1:6381\r\n", HOSTILE_ALL, 0, 0},
    {"does not know us", "-NOAUTH Authentication required.\r\n", HOSTILE_ALL, 0, 0},
    {"has no memory", "-OOM command not allowed when used memory > 'maxmemory'.\r\n", HOSTILE_ALL,
     0, 0},
};

#define N_ATTACKS (sizeof(attacks) / sizeof(attacks[0]))

static long resident_kib(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    long total, resident = 0;

    if (f == NULL || fscanf(f, "%ld %ld", &total, &resident) != 2) {
        resident = 0;
    }
    if (f != NULL) {
        fclose(f);
    }
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static uint64_t sum_of_misses(const struct llm_redis_counts *c)
{
    uint64_t sum = 0;

    for (int i = 0; i < LLM_REDIS_N_MISSES; i++) {
        sum += c->misses[i];
    }
    return sum;
}

/* All that is asked for is a hit or a miss, of one reason. */
static bool sums_are_right(struct tier *t, uint64_t asked)
{
    struct llm_redis_counts c = llm_redis_counts(t->redis);

    return c.hits + sum_of_misses(&c) == asked;
}

/* Asks for the pages three times, or for 200 ms; every load ends. Returns pages asked for. */
static uint64_t use(struct tier *t, uint64_t *longest)
{
    uint64_t end = llm_now_ns() + 200 * LLM_NS_PER_MS, asked = 0;

    for (uint32_t n = 0; n < 3 && llm_now_ns() < end;) {
        uint64_t begin = llm_now_ns(), load = tier_ask(t, 1, 0, N_PAGES);

        asked += N_PAGES;
        tier_save(t, 2, n);
        if (load == 0) {
            usleep(1000);
            continue;
        }
        if (!tier_take(t, load, 1, 0, 10000)) {
            t->wrong = true;
        }
        *longest = llm_now_ns() - begin > *longest ? llm_now_ns() - begin : *longest;
        n++;
    }
    return asked;
}

/* True once all pages are found again. */
static bool recovers(struct tier *t, uint64_t *asked)
{
    for (int i = 0; i < 20; i++) {
        if (!tier_up(t)) {
            return false;
        }
        tier_save_all(t, 1, N_PAGES);
        *asked += N_PAGES;
        if (tier_load(t, 1, N_PAGES) == N_PAGES) {
            return true;
        }
    }
    return false;
}

static char *texts[N_ATTACKS]; /* for as long as the hostile lives */

static char *repeated(const struct attack *a)
{
    size_t len = a->text != NULL ? strlen(a->text) : 0, times = a->repeat > 0 ? a->repeat : 1;
    char *text = malloc(len * times + 1);

    need(text != NULL, "out of memory");
    for (size_t i = 0; i < times; i++) {
        memcpy(text + i * len, a->text != NULL ? a->text : "", len);
    }
    text[len * times] = '\0';
    return text;
}

static void stand(struct hostile *h, struct tier *t, const struct attack *a)
{
    struct llm_redis_counts before = llm_redis_counts(t->redis);
    uint64_t sum = before.hits + sum_of_misses(&before), asked, longest = 0;
    struct hostile_act act = {.mode = a->mode, .ms = a->ms};
    long resident = resident_kib(), more;

    if (texts[a - attacks] == NULL) {
        texts[a - attacks] = repeated(a);
    }
    act.text = texts[a - attacks];
    act.n_text = strlen(act.text);
    hostile_set(h, act);
    asked = use(t, &longest);
    more = resident_kib() - resident;
    hostile_set(h, (struct hostile_act){.mode = HOSTILE_RELAY});
    ok(!t->wrong && recovers(t, &asked) && !t->wrong && sums_are_right(t, sum + asked),
       "a server that %s: nothing wrong comes, every page is counted, all is well after it",
       a->name);
    ok(longest < (DEADLINE_MS + 3000) * LLM_NS_PER_MS, "loads end: the longest after %llu ms",
       (unsigned long long) (longest / LLM_NS_PER_MS));
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    ok(more < 32 * 1024, "and %ld KiB of memory", more);
#else
    (void) more;
#endif
}

/* An answer too many makes all behind it come out of place: that costs one page, not all, where
 * there is time to connect again. */
static void stutters(struct hostile *h, const struct tier *t)
{
    struct tier patient = {.layout = t->layout};
    struct llm_redis_options options = tier_options(&patient, h->url);
    uint32_t n;

    tier_open(&patient, &options);
    need(tier_up(&patient), "the tier does not connect");
    hostile_set(h, (struct hostile_act){.mode = HOSTILE_STUTTER});
    n = tier_load(&patient, 1, N_PAGES);
    usleep(100000);
    need(tier_up(&patient), "the tier does not come back");
    is_int(n, N_PAGES - 1, "a page that comes twice: all others are found");
    is_int(tier_load(&patient, 1, N_PAGES), N_PAGES - 1, "and are still there");
    tier_save_all(&patient, 1, N_PAGES);
    llm_redis_close(patient.redis);
}

/* A server that is always late is left alone after a few loads. */
static void opens_the_breaker(struct hostile *h, struct tier *t)
{
    uint64_t end = llm_now_ns() + 10 * LLM_NS_PER_S, asked = 0;
    enum llm_redis_breaker breaker = LLM_REDIS_CLOSED;

    hostile_set(h, (struct hostile_act){.mode = HOSTILE_DELAY, .ms = 100});
    while (breaker == LLM_REDIS_CLOSED && llm_now_ns() < end) {
        tier_load(t, 1, N_PAGES);
        usleep(1000);
        breaker = llm_redis_counts(t->redis).breaker;
    }
    ok(breaker != LLM_REDIS_CLOSED, "a server that is always late opens the breaker");
    is_int(tier_ask(t, 1, 0, 1), 0, "which refuses loads");
    hostile_set(h, (struct hostile_act){.mode = HOSTILE_RELAY});
    ok(recovers(t, &asked), "all is well after it");
}

int main(void)
{
    struct tier t = {.layout = make_layout(LLM_LATENT_BF16, 512, 64, 1)};
    size_t rounds = getenv("LLM_LONG") != NULL ? 10 : 1;
    struct llm_redis_options options;
    struct hostile h;
    struct server s;

    scratch_init();
    server_start(&s, "0");
    hostile_start(&h, &s);
    options = tier_options(&t, h.url);
    options.deadline_ms = DEADLINE_MS;
    tier_open(&t, &options);
    need(tier_up(&t), "the tier does not connect");
    is_int(llm_redis_value_bytes(&t.layout), 147772, "a value is as long as the attacks think");
    tier_save_all(&t, 1, N_PAGES);
    is_int(tier_load(&t, 1, N_PAGES), N_PAGES, "through the relay all is well");
    for (size_t i = 0; i < rounds * N_ATTACKS; i++) {
        stand(&h, &t, &attacks[i % N_ATTACKS]);
    }
    stutters(&h, &t);
    opens_the_breaker(&h, &t);
    llm_redis_close(t.redis);
    hostile_stop(&h);
    for (size_t i = 0; i < N_ATTACKS; i++) {
        free(texts[i]);
    }
    server_stop(&s);
    llm_page_layout_free(&t.layout);
    return done_testing();
}
