#include "engine/cache/redis/reply.h"

void llm_reply_scan_start(struct llm_reply_scan *s, uint64_t max_bulk)
{
    *s = (struct llm_reply_scan){.max_bulk = max_bulk, .bulk_room = max_bulk};
}

/* As Redis writes them, and hiredis wants them: no sign but '-', no zero in front. */
static bool parse_number(const char *text, size_t len, int64_t *out)
{
    bool negative = len > 0 && text[0] == '-';
    int64_t v = 0;
    size_t i = negative;

    if (i == len || (text[i] == '0' && len > 1)) {
        return false;
    }
    for (; i < len; i++) {
        int digit = text[i] - '0';

        if (digit < 0 || digit > 9 || __builtin_mul_overflow(v, 10, &v)
            || __builtin_sub_overflow(v, digit, &v)) { /* there are more numbers below 0 */
            return false;
        }
    }
    if (negative) {
        *out = v;
        return true;
    }
    return !__builtin_sub_overflow(0, v, out);
}

/* An element that is no array is complete, and with it, it may be, the arrays that it is in. */
static enum llm_reply_state end_element(struct llm_reply_scan *s)
{
    while (s->depth > 0 && --s->left[s->depth - 1] == 0) {
        s->depth--;
    }
    if (s->depth > 0) {
        return LLM_REPLY_MORE;
    }
    s->n_elements = 0;
    s->bulk_room = s->max_bulk;
    return LLM_REPLY_END;
}

static enum llm_reply_state begin_array(struct llm_reply_scan *s, int64_t n)
{
    if (n < 0 || n > LLM_REPLY_MAX_ELEMENTS - (int64_t) s->n_elements
        || s->depth == LLM_REPLY_MAX_DEPTH) {
        return LLM_REPLY_BAD;
    }
    if (n == 0) {
        return end_element(s);
    }
    s->n_elements += (uint32_t) n;
    s->left[s->depth++] = (uint32_t) n;
    return LLM_REPLY_MORE;
}

static enum llm_reply_state begin_bulk(struct llm_reply_scan *s, int64_t len)
{
    if (len == -1) {
        return end_element(s);
    }
    s->too_long = len > 0 && (uint64_t) len > s->bulk_room;
    if (len < 0 || s->too_long) {
        return LLM_REPLY_BAD;
    }
    s->bulk_room -= (uint64_t) len;
    s->bulk_left = (uint64_t) len + 2;
    return LLM_REPLY_MORE;
}

/* The line without its end: a type and a number or text. */
static enum llm_reply_state end_line(struct llm_reply_scan *s)
{
    uint32_t len = s->line_len;
    int64_t number;

    s->line_len = 0;
    if (s->line[0] == '+' || s->line[0] == '-') {
        return end_element(s);
    }
    if (len > sizeof(s->line) || !parse_number(s->line + 1, len - 1, &number)) {
        return LLM_REPLY_BAD;
    }
    switch (s->line[0]) {
    case ':':
        return end_element(s);
    case '$':
        return begin_bulk(s, number);
    default:
        return begin_array(s, number);
    }
}

static bool known_type(char c)
{
    return c == '+' || c == '-' || c == ':' || c == '$' || c == '*';
}

static enum llm_reply_state take_line_byte(struct llm_reply_scan *s, char c)
{
    if (s->line_ends) {
        s->line_ends = false;
        return c == '\n' ? end_line(s) : LLM_REPLY_BAD;
    }
    if (s->line_len == 0 && !known_type(c)) {
        return LLM_REPLY_BAD;
    }
    if (c == '\r') {
        s->line_ends = true;
        return LLM_REPLY_MORE;
    }
    if (c == '\n' || s->line_len == LLM_REPLY_MAX_LINE) {
        return LLM_REPLY_BAD;
    }
    if (s->line_len < sizeof(s->line)) {
        s->line[s->line_len] = c;
    }
    s->line_len++;
    return LLM_REPLY_MORE;
}

/* *used is raised by what was taken of data[n], n > 0. */
static enum llm_reply_state take_bulk(struct llm_reply_scan *s, const char *data, size_t n,
                                      size_t *used)
{
    if (s->bulk_left > 2) {
        uint64_t skip = s->bulk_left - 2;

        skip = skip < n ? skip : n;
        s->bulk_left -= skip;
        *used += skip;
        return LLM_REPLY_MORE;
    }
    ++*used;
    if (*data != (s->bulk_left == 2 ? '\r' : '\n')) {
        return LLM_REPLY_BAD;
    }
    return --s->bulk_left > 0 ? LLM_REPLY_MORE : end_element(s);
}

enum llm_reply_state llm_reply_scan(struct llm_reply_scan *s, const char *data, size_t n,
                                    size_t *used)
{
    enum llm_reply_state state = s->bad ? LLM_REPLY_BAD : LLM_REPLY_MORE;

    *used = 0;
    while (state == LLM_REPLY_MORE && *used < n) {
        if (s->bulk_left > 0) {
            state = take_bulk(s, data + *used, n - *used, used);
        } else {
            state = take_line_byte(s, data[(*used)++]);
        }
    }
    s->bad = state == LLM_REPLY_BAD;
    return state;
}

uint64_t llm_reply_scan_needs(const struct llm_reply_scan *s)
{
    return s->bulk_left > 0 ? s->bulk_left : 1;
}
