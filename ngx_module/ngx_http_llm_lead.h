
/*
 * The text that a prompt begins with, out of a body that may be anything.
 * No parser, and no further than that text: it has to cost little where
 * requests only pass by.
 * No nginx types: tested and fuzzed alone.
 */


#ifndef _NGX_HTTP_LLM_LEAD_H_INCLUDED_
#define _NGX_HTTP_LLM_LEAD_H_INCLUDED_


#include "engine/ipc/prefix.h"
#include "ngx_module/ngx_http_llm_cursor.h"


/* how much of a body is worth it: more would hold up others of the worker */
#define NGX_HTTP_LLM_LEAD_MAX_BODY  (512 * 1024)

/* the longest text, and what its last character has more */
#define NGX_HTTP_LLM_LEAD_SIZE                                               \
    (LLM_IPC_PREFIX_CHAT + NGX_HTTP_LLM_CURSOR_SPARE)


/*
 * Writes what engine/ipc/prefix.h calls the text and returns its length, or 0
 * where there is none.  Of messages and prompt the first that is not null
 * counts.  What follows the text may be anything; where it is broken or cut
 * the text is what was whole before.
 */
size_t ngx_http_llm_lead(const unsigned char *body, size_t len,
    unsigned char text[NGX_HTTP_LLM_LEAD_SIZE]);


#endif /* _NGX_HTTP_LLM_LEAD_H_INCLUDED_ */
