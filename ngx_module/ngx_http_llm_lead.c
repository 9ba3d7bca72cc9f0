
#include "ngx_module/ngx_http_llm_lead.h"


/*
 * What reads a part of the body returns 1 where it goes on behind that part.
 * Else the text is what has been read, be it that it is whole, or that what
 * follows is broken or cut.
 */

typedef struct {
    unsigned char           *data;
    size_t                   len;
    size_t                   limit;
} ngx_http_llm_lead_t;


/* an object that says what it is in one member and its text in another */

typedef struct {
    const char              *names[3];   /* of these members */
    const char              *kinds[3];   /* those that count */
    int                    (*read)(ngx_http_llm_lead_t *lead,
                                   ngx_http_llm_cursor_t *c);
} ngx_http_llm_lead_object_t;


static int ngx_http_llm_lead_list(ngx_http_llm_lead_t *lead,
    ngx_http_llm_cursor_t *c, const ngx_http_llm_lead_object_t *of);
static int ngx_http_llm_lead_object(ngx_http_llm_lead_t *lead,
    ngx_http_llm_cursor_t *c, const ngx_http_llm_lead_object_t *of);
static int ngx_http_llm_lead_content(ngx_http_llm_lead_t *lead,
    ngx_http_llm_cursor_t *c);
static int ngx_http_llm_lead_string(ngx_http_llm_lead_t *lead,
    ngx_http_llm_cursor_t *c);
static int ngx_http_llm_lead_prompt(ngx_http_llm_lead_t *lead,
    ngx_http_llm_cursor_t *c);
static int ngx_http_llm_lead_ids(ngx_http_llm_lead_t *lead,
    ngx_http_llm_cursor_t *c);


static const ngx_http_llm_lead_object_t  ngx_http_llm_lead_message = {
    { "role", "content", NULL }, { "system", "developer", NULL },
    ngx_http_llm_lead_content
};

static const ngx_http_llm_lead_object_t  ngx_http_llm_lead_part = {
    { "type", "text", NULL }, { "text", NULL, NULL },
    ngx_http_llm_lead_string
};


size_t
ngx_http_llm_lead(const unsigned char *body, size_t len,
    unsigned char text[NGX_HTTP_LLM_LEAD_SIZE])
{
    int                    more, name;
    ngx_http_llm_lead_t    lead;
    ngx_http_llm_cursor_t  c;

    static const char *const  names[] = { "messages", "prompt", NULL };

    lead.data = text;
    lead.len = 0;

    c.pos = body;
    c.last = body + len;

    for (more = ngx_http_llm_cursor_enter(&c, '{');
         more == 1;
         more = ngx_http_llm_cursor_next(&c, '}'))
    {
        name = ngx_http_llm_cursor_name(&c, names);

        if (name == -1) {
            return 0;
        }

        /* null is as good as absent */

        if (names[name] == NULL || ngx_http_llm_cursor_peek(&c) == 'n') {
            ngx_http_llm_cursor_skip(&c);
            continue;
        }

        if (name == 0) {
            lead.limit = LLM_IPC_PREFIX_CHAT;
            (void) ngx_http_llm_lead_list(&lead, &c,
                                          &ngx_http_llm_lead_message);

        } else {
            lead.limit = LLM_IPC_PREFIX_PROMPT;
            (void) ngx_http_llm_lead_prompt(&lead, &c);
        }

        return lead.len < lead.limit ? lead.len : lead.limit;
    }

    return 0;
}


static int
ngx_http_llm_lead_list(ngx_http_llm_lead_t *lead, ngx_http_llm_cursor_t *c,
    const ngx_http_llm_lead_object_t *of)
{
    int  more;

    for (more = ngx_http_llm_cursor_enter(c, '[');
         more == 1;
         more = ngx_http_llm_cursor_next(c, ']'))
    {
        if (ngx_http_llm_lead_object(lead, c, of) != 1) {
            return 0;
        }
    }

    return more == 0;
}


/* either member may come first, and neither twice */

static int
ngx_http_llm_lead_object(ngx_http_llm_lead_t *lead, ngx_http_llm_cursor_t *c,
    const ngx_http_llm_lead_object_t *of)
{
    int                    rc, more, name, kind;
    ngx_http_llm_cursor_t  text;

    kind = -1;
    text.pos = NULL;

    for (more = ngx_http_llm_cursor_enter(c, '{');
         more == 1;
         more = ngx_http_llm_cursor_next(c, '}'))
    {
        name = ngx_http_llm_cursor_name(c, of->names);

        if (name == -1
            || (name == 0 && kind != -1)
            || (name == 1 && text.pos))
        {
            return 0;
        }

        rc = 1;

        switch (name) {

        case 0:
            kind = ngx_http_llm_cursor_word(c, of->kinds);

            if (kind == -1 || of->kinds[kind] == NULL) {
                return 0;
            }

            if (text.pos) {
                rc = of->read(lead, &text);
            }

            break;

        case 1:
            text = *c;

            if (kind != -1) {
                rc = of->read(lead, c);
                break;
            }

            /* fall through */

        default:
            ngx_http_llm_cursor_skip(c);
        }

        if (rc != 1) {
            return 0;
        }
    }

    return more == 0 && kind != -1 && text.pos;
}


static int
ngx_http_llm_lead_content(ngx_http_llm_lead_t *lead, ngx_http_llm_cursor_t *c)
{
    if (ngx_http_llm_cursor_peek(c) == '[') {
        return ngx_http_llm_lead_list(lead, c, &ngx_http_llm_lead_part);
    }

    return ngx_http_llm_lead_string(lead, c);
}


static int
ngx_http_llm_lead_string(ngx_http_llm_lead_t *lead, ngx_http_llm_cursor_t *c)
{
    return ngx_http_llm_cursor_string(c, lead->data, &lead->len, lead->limit);
}


/* a string, a list of ids, or a list of either, of which the first counts */

static int
ngx_http_llm_lead_prompt(ngx_http_llm_lead_t *lead, ngx_http_llm_cursor_t *c)
{
    int  depth;

    for (depth = 0; depth < 2 && ngx_http_llm_cursor_peek(c) == '['; depth++) {
        if (ngx_http_llm_cursor_enter(c, '[') != 1) {
            return 0;
        }
    }

    if (depth < 2 && ngx_http_llm_cursor_peek(c) == '"') {
        return ngx_http_llm_lead_string(lead, c);
    }

    return depth ? ngx_http_llm_lead_ids(lead, c) : 0;
}


/* from the first one */

static int
ngx_http_llm_lead_ids(ngx_http_llm_lead_t *lead, ngx_http_llm_cursor_t *c)
{
    int       i, more;
    uint32_t  id;

    do {
        if (ngx_http_llm_cursor_number(c, &id) == -1) {
            return 0;
        }

        more = ngx_http_llm_cursor_next(c, ']');

        if (more == -1) {
            return 0;
        }

        for (i = 0; i < 4; i++) {
            lead->data[lead->len++] = (unsigned char) (id >> (8 * i));
        }

    } while (more == 1 && lead->len < lead->limit);

    return 1;
}
