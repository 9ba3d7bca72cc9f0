
#include "ngx_module/ngx_http_llm_limit.h"


static ngx_int_t ngx_http_llm_tenant_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_string_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_tokens_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_queue_time_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_first_token_time_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_token_time_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_mtp_acceptance_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_finish_reason_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_limit_status_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_request_id_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);


#define NGX_HTTP_LLM_VARIABLE(name, handler, field)                          \
    { ngx_string(name), NULL, handler,                                       \
      offsetof(ngx_http_llm_account_t, field), NGX_HTTP_VAR_NOCACHEABLE, 0 }


static ngx_http_variable_t  ngx_http_llm_vars[] = {

    NGX_HTTP_LLM_VARIABLE("llm_tenant", ngx_http_llm_tenant_variable, tenant),
    NGX_HTTP_LLM_VARIABLE("llm_model", ngx_http_llm_string_variable, model),

    NGX_HTTP_LLM_VARIABLE("llm_prompt_tokens", ngx_http_llm_tokens_variable,
                          prompt_tokens),
    NGX_HTTP_LLM_VARIABLE("llm_cached_tokens", ngx_http_llm_tokens_variable,
                          cached_tokens),
    NGX_HTTP_LLM_VARIABLE("llm_completion_tokens",
                          ngx_http_llm_tokens_variable, completion_tokens),
    NGX_HTTP_LLM_VARIABLE("llm_reasoning_tokens",
                          ngx_http_llm_tokens_variable, reasoning_tokens),

    { ngx_string("llm_queue_time"), NULL, ngx_http_llm_queue_time_variable, 0,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("llm_first_token_time"), NULL,
      ngx_http_llm_first_token_time_variable, 0,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("llm_token_time"), NULL, ngx_http_llm_token_time_variable, 0,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("llm_mtp_acceptance"), NULL,
      ngx_http_llm_mtp_acceptance_variable, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("llm_finish_reason"), NULL,
      ngx_http_llm_finish_reason_variable, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("llm_limit_status"), NULL,
      ngx_http_llm_limit_status_variable, 0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("llm_request_id"), NULL, ngx_http_llm_request_id_variable, 0,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    /* it depends on the location, which an error_page may change */

    { ngx_string("llm_prefix"), NULL, ngx_http_llm_prefix_variable, 0,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

      ngx_http_null_variable
};


ngx_int_t
ngx_http_llm_add_variables(ngx_conf_t *cf)
{
    ngx_http_variable_t  *var, *v;

    for (v = ngx_http_llm_vars; v->name.len; v++) {
        var = ngx_http_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_set_variable(ngx_http_variable_value_t *v, u_char *data,
    size_t len)
{
    v->len = len;
    v->data = data;
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;

    return NGX_OK;
}


/*
 * Before the request is served, whoever its location says it is: what limits
 * it may go by that.  Where an error_page has led to a location that says
 * nothing, the one whom the first location served.
 */

static ngx_int_t
ngx_http_llm_tenant_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_llm_ctx_t       *ctx;
    ngx_http_llm_identity_t   who;

    ctx = ngx_http_get_module_ctx(r->main, ngx_http_llm_module);

    if (ctx == NULL || ctx->account.tenant.len == 0) {

        switch (ngx_http_llm_authenticate(r, &who)) {

        case NGX_OK:
            return ngx_http_llm_set_variable(v, who.tenant.data,
                                             who.tenant.len);

        case NGX_ERROR:
            return NGX_ERROR;
        }
    }

    return ngx_http_llm_string_variable(r, v, data);
}


static ngx_int_t
ngx_http_llm_string_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_str_t           *s;
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_llm_get_ctx(r);

    if (ctx) {
        s = (ngx_str_t *) ((u_char *) &ctx->account + data);

        if (s->len) {
            return ngx_http_llm_set_variable(v, s->data, s->len);
        }
    }

    v->not_found = 1;

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_tokens_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    u_char              *p;
    uint32_t             n;
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_llm_get_ctx(r);

    if (ctx == NULL || !ctx->account.counted) {
        v->not_found = 1;
        return NGX_OK;
    }

    p = ngx_pnalloc(r->pool, NGX_INT32_LEN);
    if (p == NULL) {
        return NGX_ERROR;
    }

    n = *(uint32_t *) ((u_char *) &ctx->account + data);

    return ngx_http_llm_set_variable(v, p, ngx_sprintf(p, "%uD", n) - p);
}


/* seconds with a resolution of microseconds */

static ngx_int_t
ngx_http_llm_time_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uint64_t ns)
{
    u_char    *p;
    uint64_t   us;

    p = ngx_pnalloc(r->pool, NGX_INT64_LEN + 7);
    if (p == NULL) {
        return NGX_ERROR;
    }

    us = ns / 1000;

    return ngx_http_llm_set_variable(v, p,
                                     ngx_sprintf(p, "%uL.%06uL", us / 1000000,
                                                 us % 1000000)
                                     - p);
}


static ngx_int_t
ngx_http_llm_queue_time_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_llm_get_ctx(r);

    if (ctx == NULL || !ctx->account.finished) {
        v->not_found = 1;
        return NGX_OK;
    }

    return ngx_http_llm_time_variable(r, v, ctx->account.queue_time);
}


static ngx_int_t
ngx_http_llm_first_token_time_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_llm_get_ctx(r);

    if (ctx == NULL || ctx->account.first_token == 0) {
        v->not_found = 1;
        return NGX_OK;
    }

    return ngx_http_llm_time_variable(r, v, ctx->account.first_token
                                            - ctx->account.submitted);
}


uint64_t
ngx_http_llm_token_time(ngx_http_llm_account_t *account)
{
    return (account->last_token - account->first_token)
           / (account->completion_tokens - 1);
}


static ngx_int_t
ngx_http_llm_token_time_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_llm_ctx_t      *ctx;
    ngx_http_llm_account_t  *account;

    ctx = ngx_http_llm_get_ctx(r);

    if (ctx == NULL || ctx->account.first_token == 0
        || ctx->account.completion_tokens < 2)
    {
        v->not_found = 1;
        return NGX_OK;
    }

    account = &ctx->account;

    return ngx_http_llm_time_variable(r, v, ngx_http_llm_token_time(account));
}


/* how much of what the draft model proposed the model itself would say */

static ngx_int_t
ngx_http_llm_mtp_acceptance_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    u_char                  *p;
    uint64_t                 permille;
    ngx_http_llm_ctx_t      *ctx;
    ngx_http_llm_account_t  *account;

    ctx = ngx_http_llm_get_ctx(r);

    if (ctx == NULL || ctx->account.drafted_tokens == 0) {
        v->not_found = 1;
        return NGX_OK;
    }

    account = &ctx->account;

    p = ngx_pnalloc(r->pool, NGX_INT64_LEN + 4);
    if (p == NULL) {
        return NGX_ERROR;
    }

    permille = 1000 * (uint64_t) account->accepted_tokens
               / account->drafted_tokens;

    return ngx_http_llm_set_variable(v, p,
                                     ngx_sprintf(p, "%uL.%03uL",
                                                 permille / 1000,
                                                 permille % 1000)
                                     - p);
}


static ngx_int_t
ngx_http_llm_finish_reason_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    u_char              *reason;
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_llm_get_ctx(r);

    if (ctx == NULL || ctx->account.finish_reason == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }

    reason = (u_char *) ctx->account.finish_reason;

    return ngx_http_llm_set_variable(v, reason, ngx_strlen(reason));
}


/* in upper case, as $limit_req_status is */

static ngx_int_t
ngx_http_llm_limit_status_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    size_t                        len;
    u_char                       *p;
    const char                   *name;
    ngx_uint_t                    i;
    ngx_http_llm_ctx_t           *ctx;
    ngx_http_llm_limit_status_e   status;

    ctx = ngx_http_llm_get_ctx(r);
    status = ctx ? ngx_http_llm_limit_status(ctx) : NGX_HTTP_LLM_LIMIT_NONE;

    if (status == NGX_HTTP_LLM_LIMIT_NONE) {
        v->not_found = 1;
        return NGX_OK;
    }

    name = ngx_http_llm_limit_statuses[status];
    len = ngx_strlen(name);

    p = ngx_pnalloc(r->pool, len);
    if (p == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < len; i++) {
        p[i] = ngx_toupper(name[i]);
    }

    return ngx_http_llm_set_variable(v, p, len);
}


static ngx_int_t
ngx_http_llm_request_id_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_llm_get_ctx(r);

    if (ctx == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }

    return ngx_http_llm_set_variable(v, ctx->id, sizeof(ctx->id));
}
