
#include "ngx_module/ngx_http_llm_json.h"
#include "ngx_module/ngx_http_llm_params.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>


static int ngx_http_llm_params_load(ngx_http_llm_parser_t *ps);
static int ngx_http_llm_params_lengths(ngx_http_llm_parser_t *ps);
static int ngx_http_llm_params_choices(ngx_http_llm_parser_t *ps);
static int ngx_http_llm_params_model(ngx_http_llm_parser_t *ps);
static int ngx_http_llm_params_items(ngx_http_llm_parser_t *ps);
static void *ngx_http_llm_params_grow(void *ctx, void *old, size_t old_len,
    size_t size);


void
ngx_http_llm_params_scan(ngx_http_llm_params_t *params)
{
    if (params->scanned) {
        return;
    }

    params->bounds = ngx_http_llm_json_scan(params->body, params->len,
                                            &params->structural);
    params->scanned = 1;
}


int
ngx_http_llm_params_parse(ngx_http_llm_params_t *params)
{
    int                    rc;
    ngx_http_llm_parser_t  ps;

    memset(&ps, 0, sizeof(ps));

    ps.params = params;
    ps.writer.grow = ngx_http_llm_params_grow;
    ps.writer.ctx = &ps;
    ps.writer.limit = params->limit;

    ps.head.kind = params->kind;
    ps.head.flags = LLM_IPC_PARALLEL_TOOLS;
    ps.head.weight = 1;
    ps.head.n = 1;
    ps.head.max_prompt_tokens = params->max_prompt_tokens;
    ps.head.temperature = 1;
    ps.head.top_p = 1;
    ps.head.repetition_penalty = 1;

    rc = ngx_http_llm_params_load(&ps);

    if (rc == NGX_HTTP_LLM_PARAMS_OK) {
        rc = ngx_http_llm_fields_read(&ps);
    }

    if (rc == NGX_HTTP_LLM_PARAMS_OK) {
        rc = ngx_http_llm_params_lengths(&ps);
    }

    if (rc == NGX_HTTP_LLM_PARAMS_OK) {
        rc = ngx_http_llm_params_items(&ps);
    }

    json_decref(ps.root);

    params->payload = ps.writer.data;
    params->payload_len = ps.writer.len;
    params->stream = ps.stream;
    params->include_usage = ps.include_usage;
    params->n_choices = ps.head.n * ps.n_prompts;
    params->n_max_tokens = ps.head.max_tokens;

    return rc;
}


void
ngx_http_llm_params_free(ngx_http_llm_params_t *params)
{
    free(params->payload);
    params->payload = NULL;
}


int
ngx_http_llm_params_fault(ngx_http_llm_parser_t *ps, const char *param,
    const char *fmt, ...)
{
    va_list                args;
    ngx_http_llm_fault_t  *fault;

    fault = &ps->params->fault;

    fault->status = 400;
    fault->code = NULL;

    snprintf(fault->param, sizeof(fault->param), "%s", param);

    va_start(args, fmt);
    vsnprintf(fault->message, sizeof(fault->message), fmt, args);
    va_end(args);

    return NGX_HTTP_LLM_PARAMS_ERROR;
}


int
ngx_http_llm_params_out_of_memory(ngx_http_llm_parser_t *ps)
{
    ngx_http_llm_params_fault(ps, "", "Out of memory");
    ps->params->fault.status = 500;

    return NGX_HTTP_LLM_PARAMS_ERROR;
}


/* jansson's own texts quote the input */

static int
ngx_http_llm_params_load(ngx_http_llm_parser_t *ps)
{
    const char             *text;
    json_error_t            error;
    ngx_http_llm_params_t  *params;

    params = ps->params;

    if (params->len == 0) {
        return ngx_http_llm_params_fault(ps, "", "The request body is empty");
    }

    ngx_http_llm_params_scan(params);

    switch (params->bounds) {

    case NGX_HTTP_LLM_JSON_DEEP:
        return ngx_http_llm_params_fault(ps, "",
                        "The request body is nested deeper than %d levels",
                        NGX_HTTP_LLM_JSON_MAX_DEPTH);

    case NGX_HTTP_LLM_JSON_MANY:
        return ngx_http_llm_params_fault(ps, "",
                        "The request body has more than %d of the "
                        "characters {}[],:", NGX_HTTP_LLM_JSON_MAX_STRUCTURAL);
    }

    /* which jansson leaves as it is where memory ran out */

    memset(&error, 0, sizeof(error));

    ps->root = json_loadb((const char *) params->body, params->len,
                          JSON_REJECT_DUPLICATES, &error);

    if (json_is_object(ps->root)) {
        return NGX_HTTP_LLM_PARAMS_OK;
    }

    if (ps->root) {
        return ngx_http_llm_params_fault(ps, "",
                                   "The request body must be a JSON object");
    }

    switch (json_error_code(&error)) {

    case json_error_invalid_utf8:
        text = "The request body is not valid UTF-8";
        break;

    case json_error_null_character:
    case json_error_null_byte_in_key:
        text = "The request body has a string with a NUL character";
        break;

    case json_error_duplicate_key:
        text = "The request body has an object with the same key twice";
        break;

    case json_error_numeric_overflow:
        text = "The request body has a number that is too large";
        break;

    case json_error_unknown:
    case json_error_out_of_memory:
        return ngx_http_llm_params_out_of_memory(ps);

    default:
        text = "The request body is not valid JSON";
    }

    return ngx_http_llm_params_fault(ps, "", "%s", text);
}


static int
ngx_http_llm_params_lengths(ngx_http_llm_parser_t *ps)
{
    if (ps->max_tokens && ps->max_completion_tokens
        && ps->max_tokens != ps->max_completion_tokens)
    {
        return ngx_http_llm_params_fault(ps, "max_tokens",
                "max_tokens and max_completion_tokens cannot both be set");
    }

    ps->head.max_tokens = ps->max_completion_tokens
                          ? ps->max_completion_tokens : ps->max_tokens;

    if (ps->head.max_tokens == 0) {
        ps->head.max_tokens = ps->params->max_tokens;
        ps->head.flags |= LLM_IPC_FIT_CONTEXT;
    }

    if (ps->head.min_tokens > ps->head.max_tokens) {
        return ngx_http_llm_params_fault(ps, "min_tokens",
                         "min_tokens must not be greater than max_tokens");
    }

    return NGX_HTTP_LLM_PARAMS_OK;
}


static int
ngx_http_llm_params_choices(ngx_http_llm_parser_t *ps)
{
    uint32_t  n, part;

    /* all that are made are given: there are no better ones among them */

    if (ps->best_of && ps->best_of != ps->head.n) {
        return ngx_http_llm_params_fault(ps, "best_of",
                                  "best_of is only supported if equal to n");
    }

    n = ps->n_prompts * ps->head.n;

    if (n > LLM_IPC_MAX_CHOICES) {
        return ngx_http_llm_params_fault(ps, "n",
                                         "At most %d choices are allowed, n "
                                         "for each prompt",
                                         LLM_IPC_MAX_CHOICES);
    }

    part = NGX_HTTP_LLM_MAX_TOKENS / n;

    if (n == 1 || ps->head.max_tokens <= part) {
        return NGX_HTTP_LLM_PARAMS_OK;
    }

    /* who has not said how long they may be gets what there is */

    if (!(ps->head.flags & LLM_IPC_FIT_CONTEXT)
        || ps->head.min_tokens > part)
    {
        return ngx_http_llm_params_fault(ps, "n",
                                         "At most %d tokens are allowed of "
                                         "all choices together, max_tokens "
                                         "for each of n for each prompt",
                                         NGX_HTTP_LLM_MAX_TOKENS);
    }

    ps->head.max_tokens = part;

    return NGX_HTTP_LLM_PARAMS_OK;
}


static int
ngx_http_llm_params_items(ngx_http_llm_parser_t *ps)
{
    int                     rc;
    ngx_http_llm_params_t  *params;

    params = ps->params;

    llm_ipc_submit_begin(&ps->writer, &ps->head);
    llm_ipc_submit_item(&ps->writer, LLM_IPC_ITEM_TENANT, 0, params->tenant,
                        params->tenant_len);

    if (ngx_http_llm_params_model(ps) != NGX_HTTP_LLM_PARAMS_OK
        || ngx_http_llm_lists_stop(ps) != NGX_HTTP_LLM_PARAMS_OK
        || ngx_http_llm_lists_stop_ids(ps) != NGX_HTTP_LLM_PARAMS_OK
        || ngx_http_llm_lists_logit_bias(ps) != NGX_HTTP_LLM_PARAMS_OK)
    {
        return NGX_HTTP_LLM_PARAMS_ERROR;
    }

    if (params->kind == LLM_IPC_KIND_CHAT) {
        rc = ngx_http_llm_prompt_tools(ps);

        if (rc == NGX_HTTP_LLM_PARAMS_OK) {
            rc = ngx_http_llm_prompt_messages(ps);
        }

    } else {
        rc = ngx_http_llm_prompt_prompts(ps);
    }

    if (rc == NGX_HTTP_LLM_PARAMS_OK) {
        rc = ngx_http_llm_params_choices(ps);
    }

    if (rc != NGX_HTTP_LLM_PARAMS_OK) {
        return rc;
    }

    if (ps->no_memory) {
        return ngx_http_llm_params_out_of_memory(ps);
    }

    if (!llm_ipc_submit_end(&ps->writer)) {
        ngx_http_llm_params_fault(ps, "", "The request is too large");
        params->fault.status = 413;
        return NGX_HTTP_LLM_PARAMS_ERROR;
    }

    /* what was learnt since it was begun */

    ps->head.size = sizeof(ps->head);
    ps->head.n_items = ps->writer.n_items;
    memcpy(ps->writer.data, &ps->head, sizeof(ps->head));

    return NGX_HTTP_LLM_PARAMS_OK;
}


static int
ngx_http_llm_params_model(ngx_http_llm_parser_t *ps)
{
    ngx_http_llm_params_t  *params;

    params = ps->params;

    if (ps->model == NULL) {
        return NGX_HTTP_LLM_PARAMS_OK;
    }

    if (!json_is_string(ps->model)) {
        return ngx_http_llm_params_fault(ps, "model",
                                         "model must be a string");
    }

    params->model_len = json_string_length(ps->model);

    if (params->model_len == 0 || params->model_len > sizeof(params->model)) {
        params->model_len = 0;
        ngx_http_llm_params_fault(ps, "model", "The model does not exist");
        params->fault.status = 404;
        params->fault.code = "model_not_found";
        return NGX_HTTP_LLM_PARAMS_ERROR;
    }

    memcpy(params->model, json_string_value(ps->model), params->model_len);

    llm_ipc_submit_item(&ps->writer, LLM_IPC_ITEM_MODEL, 0, params->model,
                        params->model_len);

    return NGX_HTTP_LLM_PARAMS_OK;
}


static void *
ngx_http_llm_params_grow(void *ctx, void *old, size_t old_len, size_t size)
{
    void                   *data;
    ngx_http_llm_parser_t  *ps;

    (void) old_len;

    data = realloc(old, size);

    if (data == NULL) {
        ps = ctx;
        ps->no_memory = 1;
    }

    return data;
}
