#include "t/fake/script.h"

#include "engine/ipc/abi.h"
#include "t/fake/misbehave.h"

#include <stdlib.h>
#include <string.h>

struct name {
    const char *name;
    uint32_t value;
};

static const struct name answers[] = {
    {"count", ANSWER_COUNT}, {"choice", ANSWER_CHOICE}, {"echo", ANSWER_ECHO},
    {"request", ANSWER_REQUEST}, {NULL, 0}};

static const struct name finishes[] = {{"stop", LLM_IPC_FINISH_STOP},
                                       {"length", LLM_IPC_FINISH_LENGTH},
                                       {"tool_calls", LLM_IPC_FINISH_TOOL_CALLS},
                                       {"error", LLM_IPC_FINISH_ERROR},
                                       {NULL, 0}};

static const struct name statuses[] = {{"ok", LLM_IPC_OK},
                                       {"cancelled", LLM_IPC_CANCELLED},
                                       {"revoked", LLM_IPC_REVOKED},
                                       {"invalid", LLM_IPC_INVALID},
                                       {"context_length", LLM_IPC_CONTEXT_LENGTH},
                                       {"prompt_length", LLM_IPC_PROMPT_LENGTH},
                                       {"queue_full", LLM_IPC_QUEUE_FULL},
                                       {"tenant_full", LLM_IPC_TENANT_FULL},
                                       {"draining", LLM_IPC_DRAINING},
                                       {"timeout_queue", LLM_IPC_TIMEOUT_QUEUE},
                                       {"timeout_first_token", LLM_IPC_TIMEOUT_FIRST_TOKEN},
                                       {"timeout", LLM_IPC_TIMEOUT},
                                       {"non_finite", LLM_IPC_NON_FINITE},
                                       {"failed", LLM_IPC_FAILED},
                                       {NULL, 0}};

static const struct name hangs[] = {
    {"counted", HANG_COUNTED}, {"first", HANG_FIRST}, {"end", HANG_END}, {NULL, 0}};

static const struct name switches[] = {{"off", false}, {"on", true}, {NULL, 0}};

static bool lookup(const struct name *names, const char *value, uint32_t *out)
{
    for (; names->name != NULL; names++) {
        if (strcmp(names->name, value) == 0) {
            *out = names->value;
            return true;
        }
    }
    return false;
}

static bool number(const char *value, uint32_t *out)
{
    unsigned long n;
    char *end;

    if (strcmp(value, "never") == 0) {
        *out = SCRIPT_NEVER;
        return true;
    }
    n = strtoul(value, &end, 10);
    if (*value < '0' || *value > '9' || *end != '\0' || n >= SCRIPT_NEVER) {
        return false;
    }
    *out = (uint32_t) n;
    return true;
}

/* %XX is a byte; one that is no hexadecimal stands for itself. */
static void unescape(char *out, size_t size, const char *value)
{
    size_t len = 0;

    while (*value != '\0' && len + 1 < size) {
        if (value[0] == '%' && value[1] != '\0' && value[2] != '\0') {
            char hex[3] = {value[1], value[2], '\0'}, *end;
            long byte = strtol(hex, &end, 16);

            if (*end == '\0') {
                out[len++] = (char) byte;
                value += 3;
                continue;
            }
        }
        out[len++] = *value++;
    }
    out[len] = '\0';
}

static bool word(struct script *s, const char *name, const char *value, bool *known)
{
    const struct {
        const char *name;
        uint32_t *number;
    } numbers[] = {{"tokens", &s->tokens},
                   {"size", &s->size},
                   {"reasoning", &s->reasoning},
                   {"retry", &s->retry_ms},
                   {"prompt", &s->prompt},
                   {"cached", &s->cached},
                   {"completion", &s->completion},
                   {"drafted", &s->drafted},
                   {"accepted", &s->accepted},
                   {"counted", &s->counted_ms},
                   {"first", &s->first_ms},
                   {"every", &s->every_ms},
                   {"end", &s->end_ms},
                   {"cancel", &s->cancel_ms},
                   {"at", &s->at}};
    uint32_t on;

    *known = true;
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        if (strcmp(name, numbers[i].name) == 0) {
            return number(value, numbers[i].number);
        }
    }

    if (strcmp(name, "answer") == 0) {
        if (!lookup(answers, value, &s->answer)) {
            s->answer = ANSWER_TEXT;
            unescape(s->text, sizeof(s->text), value);
        }
        return true;
    }
    if (strcmp(name, "tool") == 0) {
        unescape(s->tool, sizeof(s->tool), value);
        return true;
    }
    if (strcmp(name, "finish") == 0) {
        return lookup(finishes, value, &s->finish);
    }
    if (strcmp(name, "status") == 0) {
        return lookup(statuses, value, &s->status);
    }
    if (strcmp(name, "hang") == 0) {
        return lookup(hangs, value, &s->hang);
    }
    if (strcmp(name, "bad") == 0) {
        s->bad = misbehaviour(value);
        return s->bad != 0;
    }
    if (strcmp(name, "deadlines") == 0 && lookup(switches, value, &on)) {
        s->deadlines = on;
        return true;
    }
    if (strcmp(name, "credit") == 0 && lookup(switches, value, &on)) {
        s->no_credit = !on;
        return true;
    }
    if (strcmp(name, "release") == 0 && lookup(switches, value, &on)) {
        s->no_release = !on;
        return true;
    }

    *known = false;
    return false;
}

void script_init(struct script *s)
{
    *s = (struct script){
        .tokens = SCRIPT_NEVER, .prompt = SCRIPT_NEVER, .completion = SCRIPT_NEVER,
        .finish = LLM_IPC_FINISH_STOP};
}

unsigned script_parse(struct script *s, const char *text, size_t len)
{
    static const char space[] = " \t\r\n";
    const char *end = text + len;
    unsigned wrong = 0;

    while (text < end) {
        char copy[512], *value;
        size_t n = 0;
        bool known;

        while (text < end && strchr(space, *text) != NULL) {
            text++;
        }
        for (; text < end && strchr(space, *text) == NULL; text++) {
            if (n + 1 < sizeof(copy)) {
                copy[n++] = *text;
            }
        }
        copy[n] = '\0';

        value = strchr(copy, '=');
        if (value == NULL) {
            continue;
        }
        *value++ = '\0';
        if (!word(s, copy, value, &known) && known) {
            wrong++;
        }
    }
    return wrong;
}
