
/*
 * Errors in OpenAI's form: our own, the engine's, and those that nginx makes
 * in a serving location (413, 401 of an auth module, 429 of limit_req …),
 * which a header filter puts in the place of the HTML page.
 */


#include "ngx_module/ngx_http_llm_module.h"


static ngx_http_output_header_filter_pt  ngx_http_next_header_filter;


static ngx_int_t ngx_http_llm_header_filter(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_add_headers(ngx_http_llm_ctx_t *ctx,
    ngx_uint_t status);
static ngx_int_t ngx_http_llm_add_missing(ngx_http_request_t *r,
    const char *key, const void *value, size_t len);
static ngx_int_t ngx_http_llm_replace_page(ngx_http_request_t *r);
static ngx_uint_t ngx_http_llm_has_error_page(ngx_http_request_t *r,
    ngx_uint_t status);
static const char *ngx_http_llm_error_type(ngx_uint_t status);
static const char *ngx_http_llm_status_text(ngx_uint_t status);
static const char *ngx_http_llm_length_text(ngx_http_llm_ctx_t *ctx);


/* what becomes of a request that an engine has, by enum llm_ipc_status */

static ngx_http_llm_error_t  ngx_http_llm_status_errors[] = {

    { 0, NULL, NULL, NULL, 0 },               /* LLM_IPC_OK */

    { NGX_HTTP_INTERNAL_SERVER_ERROR, "cancelled", NULL,
      "The engine cancelled the request", 0 },

    { NGX_HTTP_UNAUTHORIZED, "invalid_api_key", NULL,
      "The key was revoked", 0 },

    { NGX_HTTP_BAD_REQUEST, NULL, NULL,
      "The engine refused the request", 0 },

    { NGX_HTTP_BAD_REQUEST, "context_length_exceeded", NULL,
      "The context is too long", 0 },

    { NGX_HTTP_BAD_REQUEST, "prompt_length_exceeded", NULL,
      "The prompt is too long", 0 },

    { NGX_HTTP_SERVICE_UNAVAILABLE, "engine_full", NULL,
      "The engine is full", 1 },

    { NGX_HTTP_TOO_MANY_REQUESTS, "tenant_full", NULL,
      "Too many requests or tokens of this tenant are waiting", 1 },

    { NGX_HTTP_SERVICE_UNAVAILABLE, "engine_draining", NULL,
      "The engine is going to restart", 2 },

    { NGX_HTTP_SERVICE_UNAVAILABLE, "queue_timeout", NULL,
      "The request does not get its turn in time", 1 },

    { NGX_HTTP_SERVICE_UNAVAILABLE, "first_token_timeout", NULL,
      "The first token took too long", 1 },

    { NGX_HTTP_SERVICE_UNAVAILABLE, "timeout", NULL,
      "The answer took too long", 1 },

    { NGX_HTTP_INTERNAL_SERVER_ERROR, "non_finite", NULL,
      "The model's output was not a number", 0 },

    { NGX_HTTP_INTERNAL_SERVER_ERROR, "engine_failed", NULL,
      "The engine failed at this request", 0 }
};


/* why an engine gets no request, where no status says the same */

static ngx_http_llm_error_t  ngx_http_llm_engine_connecting = {
    NGX_HTTP_SERVICE_UNAVAILABLE, "engine_connecting", NULL,
    "The engine is being connected", 1
};

static ngx_http_llm_error_t  ngx_http_llm_engine_loading = {
    NGX_HTTP_SERVICE_UNAVAILABLE, "engine_loading", NULL,
    "The engine is loading its model", 5
};

static ngx_http_llm_error_t  ngx_http_llm_engine_stalled = {
    NGX_HTTP_SERVICE_UNAVAILABLE, "engine_stalled", NULL,
    "The engine does not answer", 5
};

static ngx_http_llm_error_t  ngx_http_llm_engine_failed = {
    NGX_HTTP_SERVICE_UNAVAILABLE, "engine_failed", NULL,
    "The engine has failed", 5
};

static ngx_http_llm_error_t  ngx_http_llm_engine_down = {
    NGX_HTTP_SERVICE_UNAVAILABLE, "engine_down", NULL,
    "The engine is not there", 2
};


ngx_int_t
ngx_http_llm_send_error(ngx_http_llm_ctx_t *ctx, ngx_http_llm_error_t *error)
{
    ngx_int_t                 rc;
    ngx_http_request_t       *r;
    ngx_http_llm_writer_t     w;
    ngx_http_llm_loc_conf_t  *llcf;

    r = ctx->request;

    /* the header filter adds what belongs to it */

    ctx->error = *error;
    ctx->account.finish_reason = "error";

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    if (llcf->intercept_errors
        && ngx_http_llm_has_error_page(r, error->status))
    {
        /* as the result, some would close the connection without a page */
        return ngx_http_special_response_handler(r, error->status);
    }

    /* who asks before sending a body is not to send what nobody will read */

    if (r->headers_in.expect && r->request_body == NULL) {
        r->expect_tested = 1;
        r->keepalive = 0;
    }

    rc = ngx_http_discard_request_body(r);

    if (rc != NGX_OK) {
        return rc;
    }

    ngx_memzero(&w, sizeof(ngx_http_llm_writer_t));

    w.pool = r->pool;
    w.last = &w.out;

    ngx_http_llm_put_error(&w, error);

    return ngx_http_llm_send_json(ctx, error->status, &w);
}


static ngx_uint_t
ngx_http_llm_has_error_page(ngx_http_request_t *r, ngx_uint_t status)
{
    ngx_uint_t                 i;
    ngx_http_err_page_t       *page;
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (r->error_page || clcf->error_pages == NULL) {
        return 0;
    }

    page = clcf->error_pages->elts;

    for (i = 0; i < clcf->error_pages->nelts; i++) {
        if (page[i].status == (ngx_int_t) status) {
            return 1;
        }
    }

    return 0;
}


void
ngx_http_llm_put_error(ngx_http_llm_writer_t *w, ngx_http_llm_error_t *error)
{
    ngx_http_llm_put_text(w, "{\"error\":{\"message\":");
    ngx_http_llm_put_c_string(w, error->message
                                 ? error->message
                                 : ngx_http_llm_status_text(error->status));
    ngx_http_llm_put_text(w, ",\"type\":");
    ngx_http_llm_put_c_string(w, ngx_http_llm_error_type(error->status));
    ngx_http_llm_put_text(w, ",\"param\":");
    ngx_http_llm_put_c_string(w, error->param);
    ngx_http_llm_put_text(w, ",\"code\":");
    ngx_http_llm_put_c_string(w, error->code);
    ngx_http_llm_put_text(w, "}}");
}


static const char *
ngx_http_llm_error_type(ngx_uint_t status)
{
    switch (status) {

    case NGX_HTTP_UNAUTHORIZED:
        return "authentication_error";

    case NGX_HTTP_FORBIDDEN:
        return "permission_error";

    case NGX_HTTP_TOO_MANY_REQUESTS:
        return "rate_limit_error";
    }

    return (status < NGX_HTTP_INTERNAL_SERVER_ERROR) ? "invalid_request_error"
                                                     : "server_error";
}


ngx_http_llm_error_t *
ngx_http_llm_status_error(ngx_uint_t status)
{
    return &ngx_http_llm_status_errors[status];
}


ngx_http_llm_error_t *
ngx_http_llm_health_error(ngx_http_llm_health_e health)
{
    switch (health) {

    case NGX_HTTP_LLM_CONNECTING:
        return &ngx_http_llm_engine_connecting;

    case NGX_HTTP_LLM_FULL:
        return ngx_http_llm_status_error(LLM_IPC_QUEUE_FULL);

    case NGX_HTTP_LLM_LOADING:
        return &ngx_http_llm_engine_loading;

    case NGX_HTTP_LLM_DRAINING:
        return ngx_http_llm_status_error(LLM_IPC_DRAINING);

    case NGX_HTTP_LLM_STALLED:
        return &ngx_http_llm_engine_stalled;

    case NGX_HTTP_LLM_FAILED:
        return &ngx_http_llm_engine_failed;

    default:
        return &ngx_http_llm_engine_down;
    }
}


ngx_http_llm_error_t *
ngx_http_llm_refusal(ngx_http_llm_ctx_t *ctx, ngx_http_llm_health_e health,
    ngx_http_llm_engine_t *engine)
{
    ctx->error = *ngx_http_llm_health_error(health);

    if (health == NGX_HTTP_LLM_FULL) {
        ctx->error.retry_after = ngx_http_llm_engine_retry_after(engine);
    }

    return &ctx->error;
}


void
ngx_http_llm_finished_error(ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t                n;
    ngx_http_llm_error_t     *error;
    struct llm_ipc_finished  *f;

    f = &ctx->finished;
    error = &ctx->error;

    /* the status was checked against the enumeration */

    *error = *ngx_http_llm_status_error(f->status);

    if (f->retry_after_ms && error->retry_after) {
        n = f->retry_after_ms / 1000 + (f->retry_after_ms % 1000 != 0);
        error->retry_after = ngx_min(n, 3600);
    }

    switch (f->status) {

    case LLM_IPC_INVALID:
        if (f->detail[0]) {
            error->message = f->detail;
        }

        break;

    case LLM_IPC_CONTEXT_LENGTH:
    case LLM_IPC_PROMPT_LENGTH:
        error->param = (ctx->route->kind == LLM_IPC_KIND_CHAT) ? "messages"
                                                               : "prompt";
        error->message = ngx_http_llm_length_text(ctx);
        break;
    }
}


/* the words of OpenAI's service, which some clients look for */

static const char *
ngx_http_llm_length_text(ngx_http_llm_ctx_t *ctx)
{
    u_char      *text, *last;
    uint32_t     prompt, completion, limit;
    const char  *where;

    prompt = ctx->finished.numbers[0];
    completion = ctx->finished.numbers[1];
    limit = ctx->finished.numbers[2];

    where = (ctx->route->kind == LLM_IPC_KIND_CHAT) ? "messages" : "prompt";

    text = ngx_pnalloc(ctx->request->pool, 256);
    if (text == NULL) {
        return ctx->error.message;
    }

    last = text + 255;

    if (ctx->finished.status == LLM_IPC_PROMPT_LENGTH) {
        last = ngx_slprintf(text, last,
                            "At most %uD tokens are allowed in the %s. "
                            "However, your %s resulted in %uD tokens. Please "
                            "reduce the length of the %s.",
                            limit, where, where, prompt, where);

    } else if (prompt >= limit) {
        last = ngx_slprintf(text, last,
                            "This model's maximum context length is %uD "
                            "tokens. However, your %s resulted in %uD tokens. "
                            "Please reduce the length of the %s.",
                            limit, where, prompt, where);

    } else {
        last = ngx_slprintf(text, last,
                            "This model's maximum context length is %uD "
                            "tokens. However, you requested %uL tokens (%uD "
                            "in the %s, %uD in the completion). Please reduce "
                            "the length of the %s or completion.",
                            limit, (uint64_t) prompt + completion, prompt,
                            where, completion, where);
    }

    *last = '\0';

    return (const char *) text;
}


ngx_int_t
ngx_http_llm_init_filter(ngx_conf_t *cf)
{
    ngx_http_next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = ngx_http_llm_header_filter;

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_header_filter(ngx_http_request_t *r)
{
    ngx_http_llm_ctx_t       *ctx;
    ngx_http_llm_loc_conf_t  *llcf;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    /* also an error page in another location names the request */

    if (r != r->main || !(llcf->serves || r->error_page)) {
        return ngx_http_next_header_filter(r);
    }

    ctx = ngx_http_llm_get_ctx(r);

    if (ctx == NULL && llcf->serves
        && ngx_http_llm_create_ctx(r, &ctx) != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (ctx == NULL) {
        return ngx_http_next_header_filter(r);
    }

    if (!ctx->answered && (r->err_status || r->error_page)) {
        ctx->account.finish_reason = "error";
    }

    if (ngx_http_llm_add_headers(ctx, r->headers_out.status) != NGX_OK) {
        return NGX_ERROR;
    }

    if (llcf->serves && !ctx->answered
        && r->err_status >= NGX_HTTP_BAD_REQUEST)
    {
        return ngx_http_llm_replace_page(r);
    }

    return ngx_http_next_header_filter(r);
}


static ngx_int_t
ngx_http_llm_add_headers(ngx_http_llm_ctx_t *ctx, ngx_uint_t status)
{
    u_char                *p;
    ngx_http_request_t    *r;
    ngx_http_llm_error_t  *error;

    r = ctx->request;
    error = &ctx->error;

    if (ngx_http_llm_add_missing(r, "x-request-id", ctx->id, sizeof(ctx->id))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (ctx->params.ignored_len
        && ngx_http_llm_add_missing(r, "x-llm-ignored", ctx->params.ignored,
                                    ctx->params.ignored_len)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (r->upstream == NULL && ngx_http_llm_limit_headers(ctx) != NGX_OK) {
        return NGX_ERROR;
    }

    /* no error, made something else by an error_page, or told by another */

    if (status != error->status || r->upstream) {
        return NGX_OK;
    }

    if (status == NGX_HTTP_UNAUTHORIZED
        && ngx_http_llm_add_missing(r, "WWW-Authenticate", "Bearer",
                                    sizeof("Bearer") - 1)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (status == NGX_HTTP_NOT_ALLOWED
        && ngx_http_llm_add_missing(r, "Allow", ctx->route->allow.data,
                                    ctx->route->allow.len)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (error->retry_after == 0) {
        return NGX_OK;
    }

    p = ngx_pnalloc(r->pool, NGX_INT_T_LEN);
    if (p == NULL) {
        return NGX_ERROR;
    }

    return ngx_http_llm_add_missing(r, "Retry-After", p,
                                    ngx_sprintf(p, "%ui", error->retry_after)
                                    - p);
}


/* where an error_page leads elsewhere, what is said there holds */

static ngx_int_t
ngx_http_llm_add_missing(ngx_http_request_t *r, const char *key,
    const void *value, size_t len)
{
    size_t            n;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    n = ngx_strlen(key);

    for (part = &r->headers_out.headers.part; part; part = part->next) {
        h = part->elts;

        for (i = 0; i < part->nelts; i++) {

            if (h[i].hash && h[i].key.len == n
                && ngx_strncasecmp(h[i].key.data, (u_char *) key, n) == 0)
            {
                return NGX_OK;
            }
        }
    }

    return ngx_http_llm_add_header(r, key, value, len);
}


/*
 * Called where nginx sends the header of its own page: sends another body at
 * once, and keeps the page from being sent.
 */

static ngx_int_t
ngx_http_llm_replace_page(ngx_http_request_t *r)
{
    ngx_int_t              rc;
    ngx_str_t              type = ngx_string("application/json");
    ngx_http_llm_error_t   error;
    ngx_http_llm_writer_t  w;

    ngx_memzero(&error, sizeof(ngx_http_llm_error_t));
    ngx_memzero(&w, sizeof(ngx_http_llm_writer_t));

    error.status = r->err_status;

    w.pool = r->pool;
    w.last = &w.out;

    ngx_http_llm_put_error(&w, &error);

    if (w.failed) {
        return NGX_ERROR;
    }

    ngx_http_llm_set_header(r, &type, w.length);

    rc = ngx_http_next_header_filter(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    w.buf->last_buf = 1;
    w.buf->last_in_chain = 1;

    rc = ngx_http_output_filter(r, w.out);

    r->header_only = 1;

    return rc;
}


static const char *
ngx_http_llm_status_text(ngx_uint_t status)
{
    switch (status) {

    case NGX_HTTP_UNAUTHORIZED:
        return "Authentication is required";

    case NGX_HTTP_FORBIDDEN:
        return "Access is denied";

    case NGX_HTTP_NOT_FOUND:
        return "Not found";

    case NGX_HTTP_NOT_ALLOWED:
        return "This method is not allowed here";

    case NGX_HTTP_REQUEST_ENTITY_TOO_LARGE:
        return "The request body is too large";

    case NGX_HTTP_TOO_MANY_REQUESTS:
        return "Too many requests";

    case NGX_HTTP_SERVICE_UNAVAILABLE:
        return "The service is not available";
    }

    return (status < NGX_HTTP_INTERNAL_SERVER_ERROR) ? "Bad request"
                                                     : "Internal error";
}
