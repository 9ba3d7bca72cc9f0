
/*
 * From the client's bytes to ctx->params: the body is read, brought into one
 * piece and parsed, in a thread when it is large.
 */


#include "ngx_module/ngx_http_llm_module.h"


/* parsing more than this holds up other requests of the worker */
#define NGX_HTTP_LLM_INLINE_BYTES       65536
#define NGX_HTTP_LLM_INLINE_STRUCTURAL  20000

/* six bytes may stand for one, "\u0041", and a few more for nothing */
#define NGX_HTTP_LLM_MAX_BODY           (8 * (off_t) NGX_HTTP_LLM_MAX_PAYLOAD)

#define NGX_HTTP_LLM_PARSE_TIMEOUT      60000


static ngx_uint_t ngx_http_llm_is_encoded(ngx_http_request_t *r);
static void ngx_http_llm_read_body_handler(ngx_http_request_t *r);
static void ngx_http_llm_body_handler(ngx_http_request_t *r);
static ngx_uint_t ngx_http_llm_is_large(ngx_http_llm_params_t *params);
static ngx_int_t ngx_http_llm_copy_buf(ngx_http_request_t *r, ngx_buf_t *b,
    size_t size, u_char *to);
static ngx_int_t ngx_http_llm_parse_in_thread(ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_parsed(ngx_http_request_t *r);

#if (NGX_THREADS)
static void ngx_http_llm_parse_thread(void *data, ngx_log_t *log);
static void ngx_http_llm_parse_event_handler(ngx_event_t *ev);
#endif


static ngx_http_llm_error_t  ngx_http_llm_body_timeout = {
    NGX_HTTP_REQUEST_TIME_OUT, NULL, NULL,
    "The request body did not arrive in time", 0
};

static ngx_http_llm_error_t  ngx_http_llm_body_encoded = {
    NGX_HTTP_UNSUPPORTED_MEDIA_TYPE, NULL, NULL,
    "A request body with a Content-Encoding is not supported", 0
};


ngx_int_t
ngx_http_llm_generate(ngx_http_llm_ctx_t *ctx)
{
    ngx_int_t                 rc;
    ngx_http_request_t       *r;
    ngx_http_llm_health_e     health;
    ngx_http_llm_engine_t    *engine;
    ngx_http_llm_loc_conf_t  *llcf;

    r = ctx->request;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    /* where every engine refuses there is no need to read */

    health = ngx_http_llm_models_health(llcf->models, &engine);

    if (health > NGX_HTTP_LLM_CONNECTING) {
        return ngx_http_llm_send_error(ctx,
                                   ngx_http_llm_refusal(ctx, health, engine));
    }

    if (ngx_http_llm_is_encoded(r)) {
        return ngx_http_llm_send_error(ctx, &ngx_http_llm_body_encoded);
    }

    if (r->headers_in.content_length_n > NGX_HTTP_LLM_MAX_BODY) {
        return ngx_http_llm_send_error(ctx, &ngx_http_llm_too_large);
    }

    rc = ngx_http_llm_limit_check(ctx);

    if (rc == NGX_DECLINED) {
        return ngx_http_llm_send_error(ctx, &ctx->error);
    }

    if (rc != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    rc = ngx_http_read_client_request_body(r, ngx_http_llm_body_handler);

    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
        return rc;
    }

    if (rc == NGX_AGAIN) {

        /* the core's handler would close the connection without an answer */

        ctx->read_body = r->read_event_handler;
        r->read_event_handler = ngx_http_llm_read_body_handler;
    }

    return NGX_DONE;
}


static ngx_uint_t
ngx_http_llm_is_encoded(ngx_http_request_t *r)
{
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    for (part = &r->headers_in.headers.part; part; part = part->next) {
        h = part->elts;

        for (i = 0; i < part->nelts; i++) {

            if (h[i].key.len == sizeof("Content-Encoding") - 1
                && ngx_strcasecmp(h[i].key.data,
                                  (u_char *) "Content-Encoding")
                   == 0
                && ngx_strcasecmp(h[i].value.data, (u_char *) "identity") != 0)
            {
                return 1;
            }
        }
    }

    return 0;
}


static void
ngx_http_llm_read_body_handler(ngx_http_request_t *r)
{
    ngx_event_t         *rev;
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);
    rev = r->connection->read;

    if (ctx == NULL || ctx->read_body == NULL) {
        /* refused by the core, and an error_page left this handler alone */
        ngx_http_block_reading(r);
        return;
    }

    if (!rev->timedout) {
        ctx->read_body(r);
        return;
    }

    ngx_log_error(NGX_LOG_INFO, r->connection->log, NGX_ETIMEDOUT,
                  "client timed out");

    /* what may still come is read and dropped, so that the answer arrives */

    rev->timedout = 0;
    r->keepalive = 0;
    r->lingering_close = 1;

#if (NGX_HTTP_V2)
    if (r->stream) {
        r->stream->skip_data = 1;
    }
#endif

    ngx_http_finalize_request(r,
                      ngx_http_llm_send_error(ctx, &ngx_http_llm_body_timeout));
}


static void
ngx_http_llm_body_handler(ngx_http_request_t *r)
{
    ngx_int_t                 rc;
    ngx_str_t                 body;
    ngx_http_llm_ctx_t       *ctx;
    ngx_http_llm_params_t    *params;
    ngx_http_llm_loc_conf_t  *llcf;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);
    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    rc = ngx_http_llm_begin(ctx);

    if (rc == NGX_OK) {
        rc = ngx_http_llm_join_body(r, NGX_MAX_SIZE_T_VALUE, &body,
                                    &ctx->flattened);
    }

    if (rc != NGX_OK) {
        ngx_http_llm_finalize(ctx, NGX_HTTP_INTERNAL_SERVER_ERROR);
        return;
    }

    params = &ctx->params;

    params->body = body.data;
    params->len = body.len;
    params->kind = ctx->route->kind;
    params->tenant = ctx->account.tenant.data;
    params->tenant_len = ctx->account.tenant.len;
    params->max_tokens = llcf->max_tokens;
    params->max_prompt_tokens = llcf->max_prompt_tokens;
    params->limit = NGX_HTTP_LLM_MAX_PAYLOAD;
    params->reject_unknown = (llcf->unknown_fields
                              == NGX_HTTP_LLM_UNKNOWN_REJECT);

    if (ngx_http_llm_is_large(params)
        && ngx_http_llm_parse_in_thread(ctx) == NGX_OK)
    {
        return;
    }

    (void) ngx_http_llm_params_parse(params);

    ngx_http_llm_parsed(r);
}


/* whether parsing it would hold up others; the scan of such bytes does not */

static ngx_uint_t
ngx_http_llm_is_large(ngx_http_llm_params_t *params)
{
    if (params->len > NGX_HTTP_LLM_INLINE_BYTES) {
        return 1;
    }

    ngx_http_llm_params_scan(params);

    return params->structural > NGX_HTTP_LLM_INLINE_STRUCTURAL;
}


ngx_int_t
ngx_http_llm_join_body(ngx_http_request_t *r, size_t max, ngx_str_t *body,
    u_char **copy)
{
    off_t         all;
    size_t        left, n;
    u_char       *p;
    ngx_buf_t    *b;
    ngx_chain_t  *cl, *bufs;

    bufs = r->request_body ? r->request_body->bufs : NULL;

    *copy = NULL;

    if (bufs == NULL) {
        ngx_str_set(body, "");
        return NGX_OK;
    }

    b = bufs->buf;

    if (bufs->next == NULL && !b->in_file) {
        body->data = b->pos;
        body->len = ngx_min((size_t) (b->last - b->pos), max);
        return NGX_OK;
    }

    all = 0;

    for (cl = bufs; cl; cl = cl->next) {
        all += ngx_buf_size(cl->buf);
    }

    left = ngx_min((size_t) all, max);

    p = ngx_palloc(r->pool, left ? left : 1);
    if (p == NULL) {
        return NGX_ERROR;
    }

    *copy = p;

    body->data = p;
    body->len = left;

    for (cl = bufs; left; cl = cl->next) {
        n = ngx_min((size_t) ngx_buf_size(cl->buf), left);

        if (ngx_http_llm_copy_buf(r, cl->buf, n, p) != NGX_OK) {
            return NGX_ERROR;
        }

        p += n;
        left -= n;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_copy_buf(ngx_http_request_t *r, ngx_buf_t *b, size_t size,
    u_char *to)
{
    off_t    at;
    ssize_t  n;

    if (ngx_buf_in_memory(b)) {
        ngx_memcpy(to, b->pos, size);
        return NGX_OK;
    }

    for (at = b->file_pos; size; at += n, size -= n) {
        n = ngx_read_file(b->file, to, size, at);

        if (n <= 0) {
            ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                          "could not read the request body from \"%V\"",
                          &b->file->name);
            return NGX_ERROR;
        }

        to += n;
    }

    return NGX_OK;
}


#if (NGX_THREADS)

static ngx_int_t
ngx_http_llm_parse_in_thread(ngx_http_llm_ctx_t *ctx)
{
    ngx_thread_task_t        *task;
    ngx_http_request_t       *r;
    ngx_http_llm_loc_conf_t  *llcf;

    r = ctx->request;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    task = ngx_thread_task_alloc(r->pool, 0);
    if (task == NULL) {
        return NGX_ERROR;
    }

    task->ctx = &ctx->params;
    task->handler = ngx_http_llm_parse_thread;
    task->event.data = r;
    task->event.log = r->connection->log;
    task->event.handler = ngx_http_llm_parse_event_handler;

    if (ngx_thread_task_post(llcf->thread_pool, task) != NGX_OK) {
        return NGX_ERROR;
    }

    /*
     * Until the thread is done the request is not freed, though it may be
     * terminated, and an exiting worker waits for it by the timer.
     */

    r->main->blocked++;
    r->aio = 1;

    ngx_add_timer(&task->event, NGX_HTTP_LLM_PARSE_TIMEOUT);

    r->write_event_handler = ngx_http_llm_parsed;

    return NGX_OK;
}


static void
ngx_http_llm_parse_thread(void *data, ngx_log_t *log)
{
    ngx_http_llm_params_t *params = data;

    (void) ngx_http_llm_params_parse(params);
}


static void
ngx_http_llm_parse_event_handler(ngx_event_t *ev)
{
    ngx_connection_t    *c;
    ngx_http_request_t  *r;

    r = ev->data;
    c = r->connection;

    ngx_http_set_log_request(c->log, r);

    if (ev->timedout) {
        ngx_log_error(NGX_LOG_ALERT, c->log, 0,
                      "parsing of a request body takes too long");
        ev->timedout = 0;
        return;
    }

    if (ev->timer_set) {
        ngx_del_timer(ev);
    }

    r->main->blocked--;
    r->aio = 0;

    /* the core has put its own handler here if the client is gone */

    r->write_event_handler(r);

    ngx_http_run_posted_requests(c);
}

#else

static ngx_int_t
ngx_http_llm_parse_in_thread(ngx_http_llm_ctx_t *ctx)
{
    return NGX_DECLINED;
}

#endif


static void
ngx_http_llm_parsed(ngx_http_request_t *r)
{
    ngx_http_llm_ctx_t     *ctx;
    ngx_http_llm_error_t    error;
    ngx_http_llm_params_t  *params;

    if (r->aio) {
        /* the connection may be written to, the thread is still at work */
        return;
    }

    r->write_event_handler = ngx_http_llm_write_handler;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);
    params = &ctx->params;

    if (r->connection->error) {
        /* the client has left meanwhile */
        ngx_http_llm_finalize(ctx, NGX_HTTP_CLIENT_CLOSED_REQUEST);
        return;
    }

    if (ctx->flattened) {
        ngx_pfree(r->pool, ctx->flattened);
        ctx->flattened = NULL;
    }

    ctx->account.model.data = (u_char *) params->model;
    ctx->account.model.len = params->model_len;

    if (params->fault.status) {
        ngx_memzero(&error, sizeof(ngx_http_llm_error_t));

        error.status = params->fault.status;
        error.code = params->fault.code;
        error.param = params->fault.param[0] ? params->fault.param : NULL;
        error.message = params->fault.message;

        ngx_http_llm_fail(ctx, &error);
        return;
    }

    ngx_http_llm_submit(ctx);
}
