
/*
 * The text that a prompt begins with, out of a body that may be anything.
 * One pass, no parser: it has to cost little where requests only pass by.
 * No nginx types: tested and fuzzed alone.
 */


#ifndef _NGX_HTTP_LLM_LEAD_H_INCLUDED_
#define _NGX_HTTP_LLM_LEAD_H_INCLUDED_


#include "engine/ipc/prefix.h"


/* the longest text, and what a character may add before it is cut */
#define NGX_HTTP_LLM_LEAD_SIZE  (LLM_IPC_PREFIX_CHAT + 4)


/*
 * Writes what engine/ipc/prefix.h calls the text and returns its length, or
 * -1 where the body is no request: no JSON object, one with more members than
 * a request may have, without messages and prompt, or with something else in
 * their places.
 */
int ngx_http_llm_lead(const unsigned char *body, size_t len,
    unsigned char text[NGX_HTTP_LLM_LEAD_SIZE]);


#endif /* _NGX_HTTP_LLM_LEAD_H_INCLUDED_ */
