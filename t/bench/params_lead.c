/* Prints what looking for $llm_prefix costs a worker at worst, in milliseconds: bodies of as
 * much as it looks through, of the forms that keep it longest. */

#include "ngx_module/ngx_http_llm_lead.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define LONGEST 48 /* repeated */

#define CHAT "{\"messages\":["
#define SYSTEM CHAT "{\"role\":\"system\",\"content\":"
#define PART SYSTEM "[{\"type\":\"text\",\"text\":\"a\","

static const struct {
    const char *name, *begin, *repeated, *end; /* repeated NULL: any of values[] */
} shapes[] = {
    {"a long name", "{\"", "a", ""},
    {"plain text before the role", CHAT "{\"content\":\"", "a", ""},
    {"quotes in system text", SYSTEM "\"", "\\\"", ""},
    {"quotes before the role", CHAT "{\"content\":\"", "\\\"", ""},
    {"code before the role", CHAT "{\"content\":\"", "    return a[i] == \\\"b\\\";\\n", ""},
    {"backslashes before the role", CHAT "{\"content\":\"", "\\\\", ""},
    {"white space", "{", " ", ""},
    {"members of a body", "{", "\"\":0,", ""},
    {"members of a message", CHAT "{", "\"\":0,", ""},
    {"members of a part", PART, "\"\":0,", ""},
    {"strings in a member", PART "\"x\":[", "\"\",", ""},
    {"quoted quotes in a member", PART "\"x\":[", "\"\\\"\",", ""},
    {"numbers in a member", PART "\"x\":[", "1,", ""},
    {"brackets in a member", PART "\"x\":", "[", ""},
    {"brackets and strings in a member", PART "\"x\":[", "[{}],\"\",1", ""},
    {"empty messages", CHAT, "{\"role\":\"system\",\"content\":\"\"},", ""},
    {"empty parts", SYSTEM "[", "{\"type\":\"text\",\"text\":\"\"},", ""},
    {"empty parts before the role", CHAT "{\"content\":[", "{\"text\":\"\",\"type\":\"text\"},",
     "{}],\"role\":\"system\"}"},
    {"members of parts before the role", CHAT "{\"content\":[{", "\"\":0,",
     "\"\":0}],\"role\":\"system\"}"},
    {"no pattern in a member", PART "\"x\":[", NULL, ""},
    {"no pattern in parts before the role", CHAT "{\"content\":[{\"x\":[", NULL,
     "0],\"type\":\"text\",\"text\":\"\"}],\"role\":\"system\"}"},
    {"escaped names", CHAT, "{\"rol\\u0065\":\"syste\\u006d\",\"content\":\"\"},", ""},
};

static const char *const values[] = {"0,", "[],", "[[[]]],", "{},", "\"\",", "\"1\",", "\"\\\"\",",
                                     "{\"\":\"\"},"};

static unsigned char body[NGX_HTTP_LLM_LEAD_MAX_BODY], text[NGX_HTTP_LLM_LEAD_SIZE];

static void show(const char *name, size_t len, double *worst)
{
    double least = 1e9;

    for (int i = 0; i < 10; i++) {
        struct timespec begin, end;
        double ms;

        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
        (void) ngx_http_llm_lead(body, len, text);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
        ms = 1e3 * (double) (end.tv_sec - begin.tv_sec) +
             1e-6 * (double) (end.tv_nsec - begin.tv_nsec);
        least = ms < least ? ms : least;
    }
    *worst = least > *worst ? least : *worst;
    printf("%-36s %8.2f ms\n", name, least);
}

int main(void)
{
    double worst = 0;
    uint32_t random = 1;

    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        size_t n = strlen(shapes[i].begin), end = strlen(shapes[i].end);

        memcpy(body, shapes[i].begin, n);
        while (n + LONGEST + end <= sizeof(body)) {
            const char *unit = shapes[i].repeated;

            if (unit == NULL) {
                random = random * 1664525 + 1013904223;
                unit = values[random >> 29];
            }
            memcpy(body + n, unit, strlen(unit));
            n += strlen(unit);
        }
        memcpy(body + n, shapes[i].end, end);
        show(shapes[i].name, n + end, &worst);
    }
    printf("%-36s %8.2f ms\n", "the worst", worst);
    return 0;
}
