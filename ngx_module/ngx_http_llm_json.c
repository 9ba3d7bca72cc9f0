
#include "ngx_module/ngx_http_llm_json.h"

#include <string.h>


#define NGX_HTTP_LLM_JSON_NEAR  32


int
ngx_http_llm_json_scan(const unsigned char *data, size_t len,
    size_t *structural)
{
    size_t                n, depth;
    const unsigned char  *p, *last;

    n = 0;
    depth = 0;
    p = data;
    last = data + len;

    while (p < last) {

        switch (*p++) {

        case '"':
            p = ngx_http_llm_json_skip_string(p, last);
            continue;

        case '{':
        case '[':
            if (++depth > NGX_HTTP_LLM_JSON_MAX_DEPTH) {
                return NGX_HTTP_LLM_JSON_DEEP;
            }

            n++;
            break;

        case '}':
        case ']':
            if (depth) {
                depth--;
            }

            n++;
            break;

        case ',':
        case ':':
            n++;
            break;

        default:
            continue;
        }

        if (n > NGX_HTTP_LLM_JSON_MAX_STRUCTURAL) {
            return NGX_HTTP_LLM_JSON_MANY;
        }
    }

    *structural = n;

    return NGX_HTTP_LLM_JSON_OK;
}


void
ngx_http_llm_json_member(const unsigned char *data, size_t len, size_t n,
    const unsigned char **value, size_t *value_len)
{
    const unsigned char  *p, *last, *end;

    last = data + len;
    p = (const unsigned char *) memchr(data, '{', len) + 1;

    for ( ;; ) {
        p = (const unsigned char *) memchr(p, '"', last - p) + 1;
        p = ngx_http_llm_json_skip_string(p, last);
        p = (const unsigned char *) memchr(p, ':', last - p) + 1;

        end = ngx_http_llm_json_skip_value(p, last);

        if (n-- == 0) {
            break;
        }

        p = end;
    }

    while (p < end && *p <= ' ') {
        p++;
    }

    while (p < end && end[-1] <= ' ') {
        end--;
    }

    *value = p;
    *value_len = end - p;
}


const unsigned char *
ngx_http_llm_json_skip_string(const unsigned char *p,
    const unsigned char *last)
{
    size_t                n;
    const unsigned char  *near, *quote;

    while (p < last) {

        /* a call is worth more than a few characters */

        near = (last - p > NGX_HTTP_LLM_JSON_NEAR)
               ? p + NGX_HTTP_LLM_JSON_NEAR : last;

        while (p < near && *p != '"' && *p != '\\') {
            p++;
        }

        if (p == last) {
            break;
        }

        if (*p == '"') {
            return p + 1;
        }

        if (*p == '\\') {
            p += (last - p > 1) ? 2 : 1;
            continue;
        }

        quote = (const unsigned char *) memchr(p, '"', last - p);

        if (quote == NULL) {
            break;
        }

        /* behind an odd number of backslashes it is the string's own */

        for (n = 0; quote - n > p && quote[-1 - (ptrdiff_t) n] == '\\'; n++) {
            /* void */
        }

        p = quote + 1;

        if (n % 2 == 0) {
            return p;
        }
    }

    return last;
}


const unsigned char *
ngx_http_llm_json_skip_value(const unsigned char *p, const unsigned char *last)
{
    size_t  depth;

    /* no branches, which nobody can foretell in a hostile text */

    static const signed char  deeper[256] = {
        ['{'] = 1, ['['] = 1, ['}'] = -1, [']'] = -1
    };

    depth = 0;

    while (p < last) {

        if (*p == '"') {
            p = ngx_http_llm_json_skip_string(p + 1, last);
            continue;
        }

        if (depth == 0 && (*p == ',' || *p == '}' || *p == ']')) {
            break;
        }

        depth += deeper[*p++];
    }

    return p;
}


/* length of the character at p if it breaks lines in some eyes, else 0 */

static size_t
ngx_http_llm_json_line_break(const unsigned char *p, const unsigned char *last)
{
    if (p[0] == 0xc2 && last - p >= 2 && p[1] == 0x85) {
        return 2;
    }

    if (p[0] == 0xe2 && last - p >= 3 && p[1] == 0x80
        && (p[2] == 0xa8 || p[2] == 0xa9))
    {
        return 3;
    }

    return 0;
}


unsigned char *
ngx_http_llm_json_escape(unsigned char *dst, unsigned char *end,
    const unsigned char **src, const unsigned char *src_end)
{
    size_t                 n;
    unsigned               code;
    unsigned char          ch;
    const unsigned char   *p;

    static const char      hex[] = "0123456789abcdef";

    /* what follows the backslash, 'u' for a code, 0 for no escape */
    static const char      escapes[256] = {
        'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u',
        'b', 't', 'n', 'u', 'f', 'r', 'u', 'u',
        'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u',
        'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u',
        ['"'] = '"', ['\\'] = '\\', [0xc2] = 'l', [0xe2] = 'l'
    };

    for (p = *src; p < src_end; p++) {

        if (end - dst < NGX_HTTP_LLM_JSON_MAX_ESCAPE) {
            break;
        }

        ch = *p;
        code = ch;

        switch (escapes[ch]) {

        case 0:
            *dst++ = ch;
            continue;

        case 'l':
            n = ngx_http_llm_json_line_break(p, src_end);

            if (n == 0) {
                *dst++ = ch;
                continue;
            }

            code = (n == 2) ? 0x85 : 0x2000 + (p[2] & 0x3f);
            p += n - 1;

            /* fall through */

        case 'u':
            *dst++ = '\\';
            *dst++ = 'u';
            *dst++ = hex[code >> 12];
            *dst++ = hex[(code >> 8) & 0xf];
            *dst++ = hex[(code >> 4) & 0xf];
            *dst++ = hex[code & 0xf];
            continue;

        default:
            *dst++ = '\\';
            *dst++ = escapes[ch];
            continue;
        }
    }

    *src = p;

    return dst;
}
