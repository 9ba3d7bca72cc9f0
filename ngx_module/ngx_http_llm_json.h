
/*
 * Bounds on JSON text before a parser sees it, and JSON text of our own.
 * No nginx types: tested and fuzzed alone.
 */


#ifndef _NGX_HTTP_LLM_JSON_H_INCLUDED_
#define _NGX_HTTP_LLM_JSON_H_INCLUDED_


#include <stddef.h>


/*
 * A parsed value costs up to 80 times its text, so what a body may hold is
 * bounded first.  A prompt of 128K token ids has 128K commas.
 */
#define NGX_HTTP_LLM_JSON_MAX_DEPTH       64
#define NGX_HTTP_LLM_JSON_MAX_STRUCTURAL  300000


enum {
    NGX_HTTP_LLM_JSON_OK = 0,
    NGX_HTTP_LLM_JSON_DEEP = -1,
    NGX_HTTP_LLM_JSON_MANY = -2
};


/*
 * One pass over text that need not be JSON: counts the characters {}[],:
 * outside strings and how deep they nest.
 */
int ngx_http_llm_json_scan(const unsigned char *data, size_t len,
    size_t *structural);

/*
 * The text of the n-th member's value of an object; data must be a valid
 * JSON object that has more than n members.
 */
void ngx_http_llm_json_member(const unsigned char *data, size_t len, size_t n,
    const unsigned char **value, size_t *value_len);

/*
 * These take any text and return last where it ends too early.  Behind a
 * string's opening quote: what is behind its closing one.  At a value: the
 * comma, the brace or the bracket that ends it.
 */
const unsigned char *ngx_http_llm_json_skip_string(const unsigned char *p,
    const unsigned char *last);
const unsigned char *ngx_http_llm_json_skip_value(const unsigned char *p,
    const unsigned char *last);

/*
 * Writes the inside of a JSON string for valid UTF-8 text until *src reaches
 * src_end or dst has no room for one more character, whichever comes first;
 * returns the end of what was written.  U+0085, U+2028 and U+2029 are escaped
 * too: some clients take them for the ends of an event's line.
 */
#define NGX_HTTP_LLM_JSON_MAX_ESCAPE  6

unsigned char *ngx_http_llm_json_escape(unsigned char *dst, unsigned char *end,
    const unsigned char **src, const unsigned char *src_end);


#endif /* _NGX_HTTP_LLM_JSON_H_INCLUDED_ */
