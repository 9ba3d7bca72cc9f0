/* Lines of the key file: what they give, beside t/http_keys.t, which has what nginx says of those
 * that are wrong. */

#include "ngx_module/ngx_http_llm_keyline.h"
#include "t/unit/tap.h"

#include <time.h>

static const char digest[] = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";

/* From memory of its exact size, so that a sanitizer sees a byte too many; the words of the key,
 * which point into it, are copied. */
static int parse(const char *line, ngx_http_llm_keyline_t *key, const char **error)
{
    static unsigned char kept[1024];
    size_t len = strlen(line);
    unsigned char *exact = malloc(len + (len == 0));
    ngx_http_llm_word_t *words[] = {&key->id, &key->tenant, &key->models};
    int rc;

    if (exact == NULL || len > sizeof(kept)) {
        printf("Bail out! out of memory\n");
        exit(1);
    }
    memcpy(exact, line, len);
    memcpy(kept, line, len);
    rc = ngx_http_llm_keyline(exact, len, key, error);
    for (size_t i = 0; rc == 1 && i < 3; i++) {
        words[i]->data = words[i]->len > 0 ? kept + (words[i]->data - exact) : kept;
    }
    free(exact);
    return rc;
}

static bool is(const ngx_http_llm_word_t *word, const char *want)
{
    return word->len == strlen(want) && memcmp(word->data, want, word->len) == 0;
}

static void test_all(void)
{
    ngx_http_llm_keyline_t key;
    const char *error = NULL;
    bool in_order = true;
    char line[512];

    snprintf(line, sizeof(line),
             " \tid  %s tenant models=a,b weight=1000 queued=1 running=2 pages=4294967295"
             " expires=1970-01-02 # models=c\r",
             digest);
    is_int(parse(line, &key, &error), 1, "a line with everything");
    ok(is(&key.id, "id") && is(&key.tenant, "tenant") && is(&key.models, "a,b"), "words");
    for (unsigned i = 0; i < sizeof(key.digest); i++) {
        in_order = in_order && key.digest[i] == i;
    }
    ok(in_order, "digest");
    is_int(key.weight, 1000, "weight");
    is_int(key.max_queued, 1, "queued");
    is_int(key.max_running, 2, "running");
    is_int(key.max_pages, 4294967295u, "pages");
    is_int(key.expires, 86400, "expires");

    snprintf(line, sizeof(line), "id %s tenant", digest);
    is_int(parse(line, &key, &error), 1, "a line with nothing");
    ok(key.weight == 0 && key.max_queued == 0 && key.max_running == 0 && key.max_pages == 0 &&
           key.expires == 0 && key.models.len == 0,
       "has nothing");
    is_int(parse("", &key, &error), 0, "no line");
    is_int(parse(" \t\r", &key, &error), 0, "blanks");
    is_int(parse(" #id", &key, &error), 0, "a comment");
}

/* Against the C library's calendar. */
static void test_dates(void)
{
    unsigned wrong = 0, let_in = 0;
    ngx_http_llm_keyline_t key;
    const char *error;
    char line[512];

    for (time_t t = 0; t < (time_t) 86400 * 366 * 450; t += 86400) {
        time_t at = t + t / 86400 * 37 % 86400;
        struct tm tm;

        gmtime_r(&at, &tm);
        snprintf(line, sizeof(line), "id %s t expires=%04d-%02d-%02dT%02d:%02d:%02dZ", digest,
                 tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec);
        wrong += parse(line, &key, &error) != 1 || key.expires != (at > 0 ? at : 1);

        snprintf(line, sizeof(line), "id %s t expires=%04d-%02d-%02d", digest, tm.tm_year + 1900,
                 tm.tm_mon + 1, tm.tm_mday);
        wrong += parse(line, &key, &error) != 1 || key.expires != (t > 0 ? t : 1);
    }
    is_int(wrong, 0, "every day of 450 years");

    for (int year = 1970; year < 2420; year++) {
        for (int month = 1; month <= 12; month++) {
            struct tm tm = {.tm_year = year - 1900, .tm_mon = month, .tm_mday = 0};
            time_t last = timegm(&tm);

            gmtime_r(&last, &tm);
            snprintf(line, sizeof(line), "id %s t expires=%04d-%02d-%02d", digest, year, month,
                     tm.tm_mday + 1);
            let_in += parse(line, &key, &error) != -1;
        }
    }
    is_int(let_in, 0, "and none that is not there");
}

static void test_names(void)
{
    const ngx_http_llm_word_t models = {(const unsigned char *) "a,bb,a/c", 8};
    const struct {
        const char *name;
        int in;
    } names[] = {{"a", 1}, {"bb", 1}, {"a/c", 1}, {"b", 0}, {"bbb", 0}, {"", 0}, {"a,bb", 0}};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        is_int(ngx_http_llm_keyline_names(&models, (const unsigned char *) names[i].name,
                                          strlen(names[i].name)),
               names[i].in, "\"%s\" %s one of the models", names[i].name,
               names[i].in ? "is" : "is not");
    }
}

int main(void)
{
    test_all();
    test_dates();
    test_names();
    return done_testing();
}
