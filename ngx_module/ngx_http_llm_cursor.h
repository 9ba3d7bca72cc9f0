
/*
 * A cursor in text that should be JSON: forward only, over what is wanted of
 * it.  No memory, and no more checks than its way needs.
 * No nginx types: tested and fuzzed alone.
 */


#ifndef _NGX_HTTP_LLM_CURSOR_H_INCLUDED_
#define _NGX_HTTP_LLM_CURSOR_H_INCLUDED_


#include <stddef.h>
#include <stdint.h>


/* a string's last character may have so many bytes more than there is room */
#define NGX_HTTP_LLM_CURSOR_SPARE  3


typedef struct {
    const unsigned char  *pos;
    const unsigned char  *last;
} ngx_http_llm_cursor_t;


/* the first character of what comes next, '\0' at the end */
unsigned char ngx_http_llm_cursor_peek(ngx_http_llm_cursor_t *c);

/*
 * Into an array or object by its opening character, and on from one of its
 * elements by its closing one.  1: at an element, or at a member's name;
 * 0: behind the end; -1: no JSON.
 */
int ngx_http_llm_cursor_enter(ngx_http_llm_cursor_t *c, unsigned char open);
int ngx_http_llm_cursor_next(ngx_http_llm_cursor_t *c, unsigned char close);

/* over a value, to what is behind it */
void ngx_http_llm_cursor_skip(ngx_http_llm_cursor_t *c);

/*
 * Appends what a string says to text, until there are limit bytes; text must
 * have room for NGX_HTTP_LLM_CURSOR_SPARE more.  1: behind the string; 0: in
 * it, there are enough; -1: no string, or not all of it, and *len stays.
 */
int ngx_http_llm_cursor_string(ngx_http_llm_cursor_t *c, unsigned char *text,
    size_t *len, size_t limit);

/*
 * Over a string: which of these it is, their number where it is none of them,
 * -1 where it is no string.  The words are shorter than 16 bytes; NULL is
 * behind the last.
 */
int ngx_http_llm_cursor_word(ngx_http_llm_cursor_t *c,
    const char *const *words);

/* the same of a member's name and the colon */
int ngx_http_llm_cursor_name(ngx_http_llm_cursor_t *c,
    const char *const *words);

/* over digits, 1, or -1 where there is none; modulo 2^32 */
int ngx_http_llm_cursor_number(ngx_http_llm_cursor_t *c, uint32_t *n);


#endif /* _NGX_HTTP_LLM_CURSOR_H_INCLUDED_ */
