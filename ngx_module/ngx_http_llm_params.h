
/*
 * A request's JSON body to the payload of a SUBMIT record.  No nginx types and
 * no shared state: runs in a thread, tested and fuzzed alone.
 */


#ifndef _NGX_HTTP_LLM_PARAMS_H_INCLUDED_
#define _NGX_HTTP_LLM_PARAMS_H_INCLUDED_


#include "engine/ipc/record.h"

#include <jansson.h>


#define NGX_HTTP_LLM_PARAMS_OK       0
#define NGX_HTTP_LLM_PARAMS_ERROR   -1

#define NGX_HTTP_LLM_MAX_MEMBERS    256
#define NGX_HTTP_LLM_MAX_MESSAGE    256

/* tokens of several choices together: a worker may have to hold them all */
#define NGX_HTTP_LLM_MAX_TOKENS     1048576


/* what OpenAI's error object says; the texts never quote the request */

typedef struct {
    int                      status;      /* of HTTP */
    const char              *code;        /* or NULL */
    char                     param[64];   /* or "" */
    char                     message[NGX_HTTP_LLM_MAX_MESSAGE];
} ngx_http_llm_fault_t;


typedef struct {
    /* set by the caller */
    const unsigned char     *body;
    size_t                   len;
    int                      kind;        /* enum llm_ipc_kind */
    const unsigned char     *tenant;      /* 1 .. LLM_IPC_MAX_TENANT bytes */
    size_t                   tenant_len;
    uint32_t                 max_tokens;  /* cap and default of a completion */
    uint32_t                 max_prompt_tokens;
    size_t                   limit;       /* bytes of the payload */
    int                      reject_unknown;

    /* of ngx_http_llm_params_scan() */
    int                      scanned;
    int                      bounds;      /* what ngx_http_llm_json_scan() */
    size_t                   structural;  /* said; 0 where out of bounds */

    /* results */
    unsigned char           *payload;     /* head and items of SUBMIT */
    size_t                   payload_len;
    char                     model[LLM_IPC_MAX_NAME];
    size_t                   model_len;   /* 0: none was named */
    int                      stream;
    int                      include_usage;
    uint32_t                 n_choices;
    uint32_t                 n_max_tokens;  /* allowed of each choice */
    char                     ignored[512];  /* names of unknown fields */
    size_t                   ignored_len;
    ngx_http_llm_fault_t     fault;
} ngx_http_llm_params_t;


/*
 * One pass over the body, before anything is parsed, and once for all:
 * ngx_http_llm_params_parse() makes it where its caller has not.
 */
void ngx_http_llm_params_scan(ngx_http_llm_params_t *params);

/* memory is freed by ngx_http_llm_params_free() in either case */
int ngx_http_llm_params_parse(ngx_http_llm_params_t *params);
void ngx_http_llm_params_free(ngx_http_llm_params_t *params);


/* for the files that share the work */

typedef struct {
    ngx_http_llm_params_t   *params;
    struct llm_ipc_writer    writer;
    struct llm_ipc_submit    head;

    json_t                  *root;
    json_t                  *model;
    json_t                  *messages;
    json_t                  *prompt;
    json_t                  *tools;
    json_t                  *tool_choice;
    json_t                  *stop;
    json_t                  *stop_token_ids;
    json_t                  *logit_bias;
    json_t                  *stream_options;
    json_t                  *template_kwargs;

    uint32_t                 max_tokens;
    uint32_t                 max_completion_tokens;
    uint32_t                 best_of;
    uint32_t                 n_prompts;
    int                      stream;
    int                      include_usage;
    int                      ignored_full;
    int                      no_memory;
} ngx_http_llm_parser_t;


/* fills the fault and returns NGX_HTTP_LLM_PARAMS_ERROR */
int ngx_http_llm_params_fault(ngx_http_llm_parser_t *ps, const char *param,
    const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

int ngx_http_llm_params_out_of_memory(ngx_http_llm_parser_t *ps);

/* all that the tables name: into the head, or kept as JSON */
int ngx_http_llm_fields_read(ngx_http_llm_parser_t *ps);

/* notes a field that nobody's API defines, or refuses it */
int ngx_http_llm_fields_unknown(ngx_http_llm_parser_t *ps, const char *prefix,
    const char *name);

/* these write items */
int ngx_http_llm_lists_stop(ngx_http_llm_parser_t *ps);
int ngx_http_llm_lists_stop_ids(ngx_http_llm_parser_t *ps);
int ngx_http_llm_lists_logit_bias(ngx_http_llm_parser_t *ps);
int ngx_http_llm_prompt_messages(ngx_http_llm_parser_t *ps);
int ngx_http_llm_prompt_prompts(ngx_http_llm_parser_t *ps);
int ngx_http_llm_prompt_tools(ngx_http_llm_parser_t *ps);


#endif /* _NGX_HTTP_LLM_PARAMS_H_INCLUDED_ */
