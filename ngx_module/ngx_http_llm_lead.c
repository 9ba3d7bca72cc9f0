
#include "ngx_module/ngx_http_llm_json.h"
#include "ngx_module/ngx_http_llm_lead.h"
#include "ngx_module/ngx_http_llm_params.h"

#include <string.h>


#define NGX_HTTP_LLM_LEAD_OK      0
#define NGX_HTTP_LLM_LEAD_ERROR  -1
#define NGX_HTTP_LLM_LEAD_DONE   -2


/* a value's text; white space may follow it */

typedef struct {
    const unsigned char  *data;      /* NULL: there is none */
    const unsigned char  *last;
} ngx_http_llm_span_t;


typedef struct {
    unsigned char        *data;
    size_t                len;
    size_t                limit;
} ngx_http_llm_lead_t;


static const unsigned char *ngx_http_llm_lead_space(const unsigned char *p,
    const unsigned char *last);
static int ngx_http_llm_lead_members(const ngx_http_llm_span_t *object,
    const char *const names[2], ngx_http_llm_span_t values[2]);
static int ngx_http_llm_lead_element(ngx_http_llm_span_t *array,
    ngx_http_llm_span_t *element);
static int ngx_http_llm_lead_is(ngx_http_llm_span_t *value,
    const char *string);
static int ngx_http_llm_lead_messages(ngx_http_llm_lead_t *lead,
    ngx_http_llm_span_t messages);
static int ngx_http_llm_lead_content(ngx_http_llm_lead_t *lead,
    ngx_http_llm_span_t content);
static int ngx_http_llm_lead_prompt(ngx_http_llm_lead_t *lead,
    ngx_http_llm_span_t prompt);
static int ngx_http_llm_lead_ids(ngx_http_llm_lead_t *lead,
    ngx_http_llm_span_t ids);
static int ngx_http_llm_lead_string(ngx_http_llm_lead_t *lead,
    ngx_http_llm_span_t string);
static const unsigned char *ngx_http_llm_lead_escape(
    ngx_http_llm_lead_t *lead, const unsigned char *p,
    const unsigned char *last);
static const unsigned char *ngx_http_llm_lead_code(const unsigned char *p,
    const unsigned char *last, unsigned *code);
static void ngx_http_llm_lead_character(ngx_http_llm_lead_t *lead,
    unsigned code);


int
ngx_http_llm_lead(const unsigned char *body, size_t len,
    unsigned char text[NGX_HTTP_LLM_LEAD_SIZE])
{
    int                  rc;
    ngx_http_llm_lead_t  lead;
    ngx_http_llm_span_t  object, values[2];

    static const char *const  names[2] = { "messages", "prompt" };

    object.data = body;
    object.last = body + len;

    /* nobody's request has both */

    if (ngx_http_llm_lead_members(&object, names, values)
        != NGX_HTTP_LLM_LEAD_OK
        || (values[0].data == NULL) == (values[1].data == NULL))
    {
        return -1;
    }

    lead.data = text;
    lead.len = 0;

    if (values[0].data) {
        lead.limit = LLM_IPC_PREFIX_CHAT;
        rc = ngx_http_llm_lead_messages(&lead, values[0]);

    } else {
        lead.limit = LLM_IPC_PREFIX_PROMPT;
        rc = ngx_http_llm_lead_prompt(&lead, values[1]);
    }

    if (rc != NGX_HTTP_LLM_LEAD_OK) {
        return -1;
    }

    return (int) (lead.len < lead.limit ? lead.len : lead.limit);
}


static const unsigned char *
ngx_http_llm_lead_space(const unsigned char *p, const unsigned char *last)
{
    while (p < last
           && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r'))
    {
        p++;
    }

    return p;
}


/* finds two members by name in what may be an object */

static int
ngx_http_llm_lead_members(const ngx_http_llm_span_t *object,
    const char *const names[2], ngx_http_llm_span_t values[2])
{
    size_t                i, n, len;
    const unsigned char  *p, *last, *name, *value;

    memset(values, 0, 2 * sizeof(values[0]));

    n = 0;

    last = object->last;
    p = ngx_http_llm_lead_space(object->data, last);

    if (p == last || *p != '{') {
        return NGX_HTTP_LLM_LEAD_ERROR;
    }

    do {
        p++;
        p = ngx_http_llm_lead_space(p, last);

        if (p == last || *p != '"') {
            return NGX_HTTP_LLM_LEAD_ERROR;
        }

        name = p + 1;
        p = ngx_http_llm_json_skip_string(name, last);
        len = p - name - 1;

        p = ngx_http_llm_lead_space(p, last);

        if (p == last || *p != ':') {
            return NGX_HTTP_LLM_LEAD_ERROR;
        }

        value = ngx_http_llm_lead_space(p + 1, last);
        p = ngx_http_llm_json_skip_value(value, last);

        if (p == last || p == value) {
            return NGX_HTTP_LLM_LEAD_ERROR;
        }

        for (i = 0; i < 2; i++) {

            if (strlen(names[i]) != len || memcmp(names[i], name, len) != 0) {
                continue;
            }

            if (values[i].data) {
                return NGX_HTTP_LLM_LEAD_ERROR;
            }

            values[i].data = value;
            values[i].last = p;
        }

    } while (*p == ',' && ++n < NGX_HTTP_LLM_MAX_MEMBERS);

    if (*p != '}' || ngx_http_llm_lead_space(p + 1, last) != last) {
        return NGX_HTTP_LLM_LEAD_ERROR;
    }

    return NGX_HTTP_LLM_LEAD_OK;
}


/*
 * The next element of an array, whose span begins with its bracket and then
 * with what is behind each element; NGX_HTTP_LLM_LEAD_DONE behind the last.
 */

static int
ngx_http_llm_lead_element(ngx_http_llm_span_t *array,
    ngx_http_llm_span_t *element)
{
    const unsigned char  *p;

    if (*array->data == ']') {
        return NGX_HTTP_LLM_LEAD_DONE;
    }

    p = ngx_http_llm_lead_space(array->data + 1, array->last);

    if (*array->data == '[' && p < array->last && *p == ']') {
        return NGX_HTTP_LLM_LEAD_DONE;
    }

    element->data = p;
    p = ngx_http_llm_json_skip_value(p, array->last);
    element->last = p;

    if (p == array->last || p == element->data || *p == '}') {
        return NGX_HTTP_LLM_LEAD_ERROR;
    }

    array->data = p;

    return NGX_HTTP_LLM_LEAD_OK;
}


static int
ngx_http_llm_lead_is(ngx_http_llm_span_t *value, const char *string)
{
    size_t  len;

    len = strlen(string);

    return value->data && (size_t) (value->last - value->data) >= len
           && memcmp(value->data, string, len) == 0;
}


static int
ngx_http_llm_lead_messages(ngx_http_llm_lead_t *lead,
    ngx_http_llm_span_t messages)
{
    int                  rc;
    ngx_http_llm_span_t  message, values[2];

    static const char *const  names[2] = { "role", "content" };

    if (*messages.data != '[') {
        return NGX_HTTP_LLM_LEAD_ERROR;
    }

    while (lead->len < lead->limit) {
        rc = ngx_http_llm_lead_element(&messages, &message);

        if (rc != NGX_HTTP_LLM_LEAD_OK) {
            return (rc == NGX_HTTP_LLM_LEAD_DONE) ? NGX_HTTP_LLM_LEAD_OK : rc;
        }

        if (ngx_http_llm_lead_members(&message, names, values)
            != NGX_HTTP_LLM_LEAD_OK
            || values[0].data == NULL)
        {
            return NGX_HTTP_LLM_LEAD_ERROR;
        }

        if (!ngx_http_llm_lead_is(&values[0], "\"system\"")
            && !ngx_http_llm_lead_is(&values[0], "\"developer\""))
        {
            return NGX_HTTP_LLM_LEAD_OK;
        }

        if (values[1].data == NULL
            || ngx_http_llm_lead_content(lead, values[1])
               != NGX_HTTP_LLM_LEAD_OK)
        {
            return NGX_HTTP_LLM_LEAD_ERROR;
        }
    }

    return NGX_HTTP_LLM_LEAD_OK;
}


/* a string, or a list of text parts */

static int
ngx_http_llm_lead_content(ngx_http_llm_lead_t *lead,
    ngx_http_llm_span_t content)
{
    int                  rc;
    ngx_http_llm_span_t  part, values[2];

    static const char *const  names[2] = { "type", "text" };

    if (*content.data != '[') {
        return ngx_http_llm_lead_string(lead, content);
    }

    while (lead->len < lead->limit) {
        rc = ngx_http_llm_lead_element(&content, &part);

        if (rc != NGX_HTTP_LLM_LEAD_OK) {
            return (rc == NGX_HTTP_LLM_LEAD_DONE) ? NGX_HTTP_LLM_LEAD_OK : rc;
        }

        if (ngx_http_llm_lead_members(&part, names, values)
            != NGX_HTTP_LLM_LEAD_OK
            || !ngx_http_llm_lead_is(&values[0], "\"text\"")
            || values[1].data == NULL
            || ngx_http_llm_lead_string(lead, values[1])
               != NGX_HTTP_LLM_LEAD_OK)
        {
            return NGX_HTTP_LLM_LEAD_ERROR;
        }
    }

    return NGX_HTTP_LLM_LEAD_OK;
}


/* a string, a list of ids, or a list of either, of which the first counts */

static int
ngx_http_llm_lead_prompt(ngx_http_llm_lead_t *lead,
    ngx_http_llm_span_t prompt)
{
    ngx_http_llm_span_t  all, first;

    if (*prompt.data != '[') {
        return ngx_http_llm_lead_string(lead, prompt);
    }

    all = prompt;

    if (ngx_http_llm_lead_element(&prompt, &first) != NGX_HTTP_LLM_LEAD_OK) {
        return NGX_HTTP_LLM_LEAD_ERROR;
    }

    switch (*first.data) {

    case '"':
        return ngx_http_llm_lead_string(lead, first);

    case '[':
        return ngx_http_llm_lead_ids(lead, first);

    default:
        return ngx_http_llm_lead_ids(lead, all);
    }
}


static int
ngx_http_llm_lead_ids(ngx_http_llm_lead_t *lead, ngx_http_llm_span_t ids)
{
    int                   rc, i;
    uint32_t              n;
    ngx_http_llm_span_t   id;
    const unsigned char  *p;

    while (lead->len < lead->limit) {
        rc = ngx_http_llm_lead_element(&ids, &id);

        if (rc != NGX_HTTP_LLM_LEAD_OK) {
            return (rc == NGX_HTTP_LLM_LEAD_DONE) ? NGX_HTTP_LLM_LEAD_OK : rc;
        }

        if (*id.data < '0' || *id.data > '9') {
            return NGX_HTTP_LLM_LEAD_ERROR;
        }

        n = 0;

        for (p = id.data; p < id.last && *p >= '0' && *p <= '9'; p++) {
            n = n * 10 + (*p - '0');
        }

        for (i = 0; i < 4; i++) {
            lead->data[lead->len++] = (unsigned char) (n >> (8 * i));
        }
    }

    return NGX_HTTP_LLM_LEAD_OK;
}


/* appends what it says, until there is enough */

static int
ngx_http_llm_lead_string(ngx_http_llm_lead_t *lead,
    ngx_http_llm_span_t string)
{
    const unsigned char  *p, *last;

    p = string.data;
    last = string.last;

    if (*p++ != '"') {
        return NGX_HTTP_LLM_LEAD_ERROR;
    }

    while (p && p < last && lead->len < lead->limit) {

        if (*p == '"') {
            return NGX_HTTP_LLM_LEAD_OK;
        }

        if (*p == '\\') {
            p = ngx_http_llm_lead_escape(lead, p + 1, last);

        } else if (*p < ' ') {
            return NGX_HTTP_LLM_LEAD_ERROR;

        } else {
            lead->data[lead->len++] = *p++;
        }
    }

    return (lead->len < lead->limit) ? NGX_HTTP_LLM_LEAD_ERROR
                                     : NGX_HTTP_LLM_LEAD_OK;
}


/* p is behind the backslash; NULL for what no JSON has */

static const unsigned char *
ngx_http_llm_lead_escape(ngx_http_llm_lead_t *lead, const unsigned char *p,
    const unsigned char *last)
{
    unsigned     code, low;
    const char  *known;

    static const char  from[] = "\"\\/bfnrt";
    static const char  to[] = "\"\\/\b\f\n\r\t";

    if (p == last || *p == '\0') {
        return NULL;
    }

    known = strchr(from, *p);

    if (known) {
        lead->data[lead->len++] = (unsigned char) to[known - from];
        return p + 1;
    }

    if (*p != 'u') {
        return NULL;
    }

    p = ngx_http_llm_lead_code(p + 1, last, &code);

    if (p == NULL || code == 0 || (code >= 0xdc00 && code < 0xe000)) {
        return NULL;
    }

    if (code >= 0xd800 && code < 0xdc00) {

        if (last - p < 2 || p[0] != '\\' || p[1] != 'u') {
            return NULL;
        }

        p = ngx_http_llm_lead_code(p + 2, last, &low);

        if (p == NULL || low < 0xdc00 || low >= 0xe000) {
            return NULL;
        }

        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }

    ngx_http_llm_lead_character(lead, code);

    return p;
}


/* four hexadecimal digits */

static const unsigned char *
ngx_http_llm_lead_code(const unsigned char *p, const unsigned char *last,
    unsigned *code)
{
    int            i;
    unsigned char  ch;

    if (last - p < 4) {
        return NULL;
    }

    *code = 0;

    for (i = 0; i < 4; i++) {
        ch = *p++;

        if (ch >= '0' && ch <= '9') {
            ch -= '0';

        } else {
            ch |= 0x20;

            if (ch < 'a' || ch > 'f') {
                return NULL;
            }

            ch -= 'a' - 10;
        }

        *code = *code << 4 | ch;
    }

    return p;
}


/* as UTF-8 */

static void
ngx_http_llm_lead_character(ngx_http_llm_lead_t *lead, unsigned code)
{
    unsigned char  *p;

    p = lead->data + lead->len;

    if (code < 0x80) {
        *p++ = (unsigned char) code;

    } else {
        if (code < 0x800) {
            *p++ = (unsigned char) (0xc0 | code >> 6);

        } else {
            if (code < 0x10000) {
                *p++ = (unsigned char) (0xe0 | code >> 12);

            } else {
                *p++ = (unsigned char) (0xf0 | code >> 18);
                *p++ = (unsigned char) (0x80 | (code >> 12 & 0x3f));
            }

            *p++ = (unsigned char) (0x80 | (code >> 6 & 0x3f));
        }

        *p++ = (unsigned char) (0x80 | (code & 0x3f));
    }

    lead->len = p - lead->data;
}
