
/*
 * A line of the file of llm_keys:
 *
 *     ID DIGEST TENANT [SETTING ...]        # comment
 *
 * No nginx types: tested and fuzzed alone.
 */


#ifndef _NGX_HTTP_LLM_KEYLINE_H_INCLUDED_
#define _NGX_HTTP_LLM_KEYLINE_H_INCLUDED_


#include "engine/ipc/key.h"


/* a part of the line */

typedef struct {
    const unsigned char  *data;
    size_t                len;
} ngx_http_llm_word_t;


typedef struct {
    ngx_http_llm_word_t   id;
    unsigned char         digest[LLM_IPC_KEY_DIGEST];
    ngx_http_llm_word_t   tenant;

    /* 0: not said */
    uint32_t              weight;
    uint32_t              max_queued;
    uint32_t              max_running;
    uint32_t              max_pages;
    int64_t               expires;    /* Unix seconds: from then on it is */

    ngx_http_llm_word_t   models;     /* names with commas between them */
} ngx_http_llm_keyline_t;


/*
 * Of a line without its end.  Returns 1, 0 where it says nothing, or -1 where
 * it is wrong: *error, which quotes nothing of it, says how.
 */
int ngx_http_llm_keyline(const unsigned char *line, size_t len,
    ngx_http_llm_keyline_t *key, const char **error);

/* whether models has the name */
int ngx_http_llm_keyline_names(const ngx_http_llm_word_t *models,
    const unsigned char *name, size_t len);


#endif /* _NGX_HTTP_LLM_KEYLINE_H_INCLUDED_ */
