
#include "ngx_module/ngx_http_llm_cursor.h"
#include "ngx_module/ngx_http_llm_json.h"

#include <string.h>


#define NGX_HTTP_LLM_CURSOR_WORD  16


static int ngx_http_llm_cursor_escape(ngx_http_llm_cursor_t *c,
    uint32_t *code);
static int ngx_http_llm_cursor_code(ngx_http_llm_cursor_t *c,
    uint32_t *code);
static size_t ngx_http_llm_cursor_utf8(unsigned char *p, uint32_t code);


unsigned char
ngx_http_llm_cursor_peek(ngx_http_llm_cursor_t *c)
{
    const unsigned char  *p;

    for (p = c->pos; p < c->last; p++) {
        if (*p != ' ' && *p != '\t' && *p != '\n' && *p != '\r') {
            break;
        }
    }

    c->pos = p;

    return p < c->last ? *p : '\0';
}


int
ngx_http_llm_cursor_enter(ngx_http_llm_cursor_t *c, unsigned char open)
{
    if (ngx_http_llm_cursor_peek(c) != open) {
        return -1;
    }

    c->pos++;

    /* in ASCII two behind their opening characters */

    if (ngx_http_llm_cursor_peek(c) != open + 2) {
        return 1;
    }

    c->pos++;

    return 0;
}


int
ngx_http_llm_cursor_next(ngx_http_llm_cursor_t *c, unsigned char close)
{
    unsigned char  ch;

    ch = ngx_http_llm_cursor_peek(c);

    if (ch != ',' && ch != close) {
        return -1;
    }

    c->pos++;

    return ch == ',';
}


void
ngx_http_llm_cursor_skip(ngx_http_llm_cursor_t *c)
{
    c->pos = ngx_http_llm_json_skip_value(c->pos, c->last);
}


int
ngx_http_llm_cursor_string(ngx_http_llm_cursor_t *c, unsigned char *text,
    size_t *len, size_t limit)
{
    size_t                n;
    uint32_t              code;
    const unsigned char  *p;

    if (ngx_http_llm_cursor_peek(c) != '"') {
        return -1;
    }

    n = *len;
    p = c->pos + 1;

    while (p < c->last && n < limit) {

        if (*p == '"') {
            c->pos = p + 1;
            *len = n;
            return 1;
        }

        if (*p < ' ') {
            return -1;
        }

        if (*p != '\\') {
            text[n++] = *p++;
            continue;
        }

        c->pos = p + 1;

        if (ngx_http_llm_cursor_escape(c, &code) != 0) {
            return -1;
        }

        n += ngx_http_llm_cursor_utf8(text + n, code);
        p = c->pos;
    }

    if (n < limit) {
        return -1;
    }

    c->pos = p;
    *len = n;

    return 0;
}


int
ngx_http_llm_cursor_word(ngx_http_llm_cursor_t *c, const char *const *words)
{
    int            i, rc;
    size_t         len;
    unsigned char  text[NGX_HTTP_LLM_CURSOR_WORD + NGX_HTTP_LLM_CURSOR_SPARE];

    len = 0;

    rc = ngx_http_llm_cursor_string(c, text, &len, NGX_HTTP_LLM_CURSOR_WORD);

    if (rc == -1) {
        return -1;
    }

    if (rc == 0) {
        c->pos = ngx_http_llm_json_skip_string(c->pos, c->last);
    }

    for (i = 0; words[i]; i++) {
        if (strlen(words[i]) == len && memcmp(words[i], text, len) == 0) {
            break;
        }
    }

    return i;
}


int
ngx_http_llm_cursor_name(ngx_http_llm_cursor_t *c, const char *const *words)
{
    int  i;

    i = ngx_http_llm_cursor_word(c, words);

    if (i == -1 || ngx_http_llm_cursor_peek(c) != ':') {
        return -1;
    }

    c->pos++;

    return i;
}


int
ngx_http_llm_cursor_number(ngx_http_llm_cursor_t *c, uint32_t *n)
{
    unsigned char  ch;

    ch = ngx_http_llm_cursor_peek(c);

    if (ch < '0' || ch > '9') {
        return -1;
    }

    *n = 0;

    while (c->pos < c->last && *c->pos >= '0' && *c->pos <= '9') {
        *n = *n * 10 + (*c->pos++ - '0');
    }

    return 1;
}


/* from behind the backslash; -1 for what no string of ours has */

static int
ngx_http_llm_cursor_escape(ngx_http_llm_cursor_t *c, uint32_t *code)
{
    uint32_t      low;
    const char   *known;

    static const char  from[] = "\"\\/bfnrt";
    static const char  to[] = "\"\\/\b\f\n\r\t";

    if (c->pos == c->last || *c->pos == '\0') {
        return -1;
    }

    known = strchr(from, *c->pos);

    if (known) {
        *code = (unsigned char) to[known - from];
        c->pos++;
        return 0;
    }

    if (ngx_http_llm_cursor_code(c, code) == -1
        || *code == 0
        || (*code >= 0xdc00 && *code < 0xe000))
    {
        return -1;
    }

    if (*code < 0xd800 || *code >= 0xe000) {
        return 0;
    }

    if (c->pos == c->last || *c->pos++ != '\\'
        || ngx_http_llm_cursor_code(c, &low) == -1
        || low < 0xdc00
        || low >= 0xe000)
    {
        return -1;
    }

    *code = 0x10000 + ((*code - 0xd800) << 10) + (low - 0xdc00);

    return 0;
}


/* "u" and four hexadecimal digits */

static int
ngx_http_llm_cursor_code(ngx_http_llm_cursor_t *c, uint32_t *code)
{
    int            i;
    unsigned char  ch;

    if (c->last - c->pos < 5 || *c->pos++ != 'u') {
        return -1;
    }

    *code = 0;

    for (i = 0; i < 4; i++) {
        ch = *c->pos++;

        if (ch >= '0' && ch <= '9') {
            ch -= '0';

        } else {
            ch |= 0x20;

            if (ch < 'a' || ch > 'f') {
                return -1;
            }

            ch -= 'a' - 10;
        }

        *code = *code << 4 | ch;
    }

    return 0;
}


static size_t
ngx_http_llm_cursor_utf8(unsigned char *p, uint32_t code)
{
    if (code < 0x80) {
        p[0] = (unsigned char) code;
        return 1;
    }

    if (code < 0x800) {
        p[0] = (unsigned char) (0xc0 | code >> 6);
        p[1] = (unsigned char) (0x80 | (code & 0x3f));
        return 2;
    }

    if (code < 0x10000) {
        p[0] = (unsigned char) (0xe0 | code >> 12);
        p[1] = (unsigned char) (0x80 | (code >> 6 & 0x3f));
        p[2] = (unsigned char) (0x80 | (code & 0x3f));
        return 3;
    }

    p[0] = (unsigned char) (0xf0 | code >> 18);
    p[1] = (unsigned char) (0x80 | (code >> 12 & 0x3f));
    p[2] = (unsigned char) (0x80 | (code >> 6 & 0x3f));
    p[3] = (unsigned char) (0x80 | (code & 0x3f));

    return 4;
}
