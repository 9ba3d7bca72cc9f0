
/* From text to the client, as fast as the client takes it. */


#include "ngx_module/ngx_http_llm_module.h"


/* written ahead of the client; the rest stays a record */
#define NGX_HTTP_LLM_WRITE_AHEAD   16384

#define NGX_HTTP_LLM_MIN_PENDING   1024


typedef struct {
    uint32_t    len;
    uint16_t    choice;
    uint8_t     kind;      /* 0: the end of the choice */
    uint8_t     reason;
} ngx_http_llm_record_t;


static void ngx_http_llm_write_pending(ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_drop_output(ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_write_end(ngx_http_llm_ctx_t *ctx);
static ngx_uint_t ngx_http_llm_is_blocked(ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_flush(ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_send_stream_header(ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_watch_client(ngx_http_llm_ctx_t *ctx,
    ngx_uint_t flushed);


ngx_int_t
ngx_http_llm_pend(ngx_http_llm_ctx_t *ctx, ngx_uint_t choice, ngx_uint_t kind,
    ngx_uint_t reason, const char *text, size_t len)
{
    u_char                  *data;
    size_t                   need, left, size;
    ngx_http_llm_record_t    record;
    ngx_http_llm_pending_t  *p;

    p = &ctx->pending;
    need = sizeof(record) + len;

    if (p->size - p->last < need) {

        left = p->last - p->pos;
        size = ngx_max(p->size, NGX_HTTP_LLM_MIN_PENDING);

        /* at least half is free: otherwise every record might move the rest */

        while (size / 2 < left + need) {
            size *= 2;
        }

        if (size == p->size) {
            ngx_memmove(p->data, p->data + p->pos, left);

        } else {
            data = ngx_alloc(size, ctx->request->connection->log);
            if (data == NULL) {
                return NGX_DECLINED;
            }

            if (p->data) {
                ngx_memcpy(data, p->data + p->pos, left);
                ngx_free(p->data);
            }

            p->data = data;
            p->size = size;
        }

        p->pos = 0;
        p->last = left;
    }

    record.len = len;
    record.choice = choice;
    record.kind = kind;
    record.reason = reason;

    ngx_memcpy(p->data + p->last, &record, sizeof(record));
    if (len) {
        ngx_memcpy(p->data + p->last + sizeof(record), text, len);
    }

    p->last += sizeof(record) + len;

    return NGX_OK;
}


void
ngx_http_llm_pending_free(ngx_http_llm_ctx_t *ctx)
{
    if (ctx->pending.data) {
        ngx_free(ctx->pending.data);
    }

    ngx_memzero(&ctx->pending, sizeof(ngx_http_llm_pending_t));
}


static void
ngx_http_llm_write_pending(ngx_http_llm_ctx_t *ctx)
{
    u_char                  *text;
    uint32_t                 n;
    ngx_http_llm_record_t    record;
    ngx_http_llm_pending_t  *p;

    p = &ctx->pending;

    while (p->pos < p->last && ctx->writer.length < NGX_HTTP_LLM_WRITE_AHEAD) {

        ngx_memcpy(&record, p->data + p->pos, sizeof(record));
        text = p->data + p->pos + sizeof(record);

        if (record.kind) {
            ngx_http_llm_put_text_event(ctx, record.choice, record.kind, text,
                                        record.len);
        } else {
            ngx_http_llm_put_end_event(ctx, record.choice, record.reason);
        }

        p->pos += sizeof(record) + record.len;

        n = ngx_min(record.len, ctx->charged);
        ctx->charged -= n;
        ctx->owed += n;
    }

    if (p->pos == p->last) {
        p->pos = 0;
        p->last = 0;
    }
}


/* what was written before has not left yet */

static ngx_uint_t
ngx_http_llm_is_blocked(ngx_http_llm_ctx_t *ctx)
{
    return ctx->writer.busy != NULL || ctx->request->connection->buffered;
}


void
ngx_http_llm_stream(ngx_http_llm_ctx_t *ctx)
{
    ngx_int_t                 rc;
    ngx_uint_t                flushed;
    ngx_event_t              *wev;
    ngx_http_llm_loc_conf_t  *llcf;

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

    if (ctx->unheard) {
        ngx_http_llm_drop_output(ctx);
        return;
    }

    wev = ctx->request->connection->write;
    rc = NGX_OK;
    flushed = 0;

    if (ngx_http_llm_is_blocked(ctx) && wev->ready && !wev->delayed) {
        rc = ngx_http_llm_flush(ctx);
        flushed = 1;
    }

    while (rc == NGX_OK && !ctx->ended && !ngx_http_llm_is_blocked(ctx)) {

        if (ctx->owed >= llcf->buffer_size / 4) {
            ngx_http_llm_engine_credit(ctx);
        }

        ngx_http_llm_write_pending(ctx);

        if (ctx->done && ctx->pending.pos == ctx->pending.last) {
            ngx_http_llm_write_end(ctx);
        }

        if (ctx->writer.out == NULL) {
            break;
        }

        rc = ngx_http_llm_flush(ctx);
        flushed = 1;
    }

    if (rc == NGX_ERROR && ctx->request->connection->error
        && llcf->ignore_client_abort)
    {
        ctx->unheard = 1;
        ngx_http_llm_drop_output(ctx);
        return;
    }

    if (rc != NGX_OK) {
        ngx_http_llm_finalize(ctx, rc);
        return;
    }

    if (ctx->ended && ctx->error.status == 0) {
        /* the core sends the rest */
        ngx_http_llm_finalize(ctx, NGX_OK);
        return;
    }

    if (ctx->ended && !ngx_http_llm_is_blocked(ctx)) {
        /* the missing end of the body tells the client */
        ngx_http_llm_finalize(ctx, NGX_ERROR);
        return;
    }

    if (ngx_http_llm_watch_client(ctx, flushed) != NGX_OK) {
        ngx_http_llm_finalize(ctx, NGX_ERROR);
    }
}


/* the client is gone, and the engine is to end what it has begun */

static void
ngx_http_llm_drop_output(ngx_http_llm_ctx_t *ctx)
{
    ngx_event_t  *wev;

    if (ctx->done) {
        ngx_http_llm_finalize(ctx, NGX_ERROR);
        return;
    }

    wev = ctx->request->connection->write;

    wev->delayed = 0;

    if (wev->timer_set) {
        ngx_del_timer(wev);
    }

    ctx->pending.pos = 0;
    ctx->pending.last = 0;

    ctx->owed += ctx->charged;
    ctx->charged = 0;

    ngx_http_llm_engine_credit(ctx);
}


static void
ngx_http_llm_write_end(ngx_http_llm_ctx_t *ctx)
{
    ngx_http_llm_writer_t  *w;

    w = &ctx->writer;

    ctx->ended = 1;

    if (ctx->error.status == 0) {
        ngx_http_llm_put_last_events(ctx);
        return;
    }

    ngx_http_llm_put_text(w, "data: ");
    ngx_http_llm_put_error(w, &ctx->error);
    ngx_http_llm_put_text(w, "\n\n");
}


/* sends what was written, and first the header; NGX_OK, or why to finalize */

static ngx_int_t
ngx_http_llm_flush(ngx_http_llm_ctx_t *ctx)
{
    ngx_int_t               rc;
    ngx_buf_t              *last;
    ngx_http_request_t     *r;
    ngx_http_llm_writer_t  *w;

    r = ctx->request;
    w = &ctx->writer;

    if (w->failed) {
        return NGX_ERROR;
    }

    if (!r->header_sent) {
        rc = ngx_http_llm_send_stream_header(ctx);

        if (rc == NGX_ERROR || rc > NGX_OK) {
            return rc;
        }
    }

    if (w->out) {
        last = ngx_http_llm_last_buf(w);

        last->flush = 1;
        last->last_in_chain = 1;
        last->last_buf = (ctx->ended && ctx->error.status == 0);
    }

    rc = ngx_http_output_filter(r, w->out);

    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    ngx_chain_update_chains(r->pool, &w->free, &w->busy, &w->out,
                            (ngx_buf_tag_t) &ngx_http_llm_module);
    w->last = &w->out;
    w->buf = NULL;
    w->length = 0;

    ctx->active = ngx_current_msec;

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_send_stream_header(ngx_http_llm_ctx_t *ctx)
{
    ngx_http_request_t  *r;

    r = ctx->request;

    ctx->answered = 1;

    r->headers_out.status = NGX_HTTP_OK;
    ngx_str_set(&r->headers_out.content_type, "text/event-stream");
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;

    ngx_http_clear_content_length(r);
    ngx_http_clear_accept_ranges(r);

    /* no cache, and no proxy in front of this one that collects events */

    if (ngx_http_llm_add_header(r, "Cache-Control", "no-cache",
                                sizeof("no-cache") - 1)
        != NGX_OK
        || ngx_http_llm_add_header(r, "X-Accel-Buffering", "no",
                                   sizeof("no") - 1)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

#if (NGX_HTTP_GZIP)
    r->gzip_tested = 1;
    r->gzip_ok = 0;
#endif

    return ngx_http_send_header(r);
}


static ngx_int_t
ngx_http_llm_watch_client(ngx_http_llm_ctx_t *ctx, ngx_uint_t flushed)
{
    ngx_event_t               *wev;
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_core_module);

    wev = ctx->request->connection->write;

    /* when delayed, the timer is that of limit_rate */

    if (!ngx_http_llm_is_blocked(ctx)) {

        if (wev->timer_set && !wev->delayed) {
            ngx_del_timer(wev);
        }

    } else if (!wev->delayed && (flushed || !wev->timer_set)) {
        ngx_add_timer(wev, clcf->send_timeout);
    }

    return ngx_handle_write_event(wev, clcf->send_lowat);
}


void
ngx_http_llm_write_handler(ngx_http_request_t *r)
{
    ngx_event_t               *wev;
    ngx_http_llm_ctx_t        *ctx;
    ngx_http_core_loc_conf_t  *clcf;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);
    wev = r->connection->write;

    if (wev->timedout) {
        ngx_log_error(NGX_LOG_INFO, r->connection->log, NGX_ETIMEDOUT,
                      "client timed out");
        r->connection->timedout = 1;

        ngx_http_llm_finalize(ctx, NGX_HTTP_REQUEST_TIME_OUT);
        return;
    }

    if (r->header_sent && !wev->delayed) {
        ngx_http_llm_stream(ctx);
        return;
    }

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (ngx_handle_write_event(wev, clcf->send_lowat) != NGX_OK) {
        ngx_http_llm_finalize(ctx, NGX_ERROR);
    }
}


void
ngx_http_llm_keep_alive(ngx_http_llm_ctx_t *ctx)
{
    if (!ngx_http_llm_is_blocked(ctx) && !ctx->ended) {
        ngx_http_llm_put_text(&ctx->writer, ": keep-alive\n\n");
        ngx_http_llm_stream(ctx);
    }
}


ngx_int_t
ngx_http_llm_send_json(ngx_http_llm_ctx_t *ctx, ngx_uint_t status,
    ngx_http_llm_writer_t *w)
{
    ngx_str_t  type = ngx_string("application/json");

    ctx->answered = !w->failed;

    return ngx_http_llm_send_document(ctx->request, status, &type, w);
}


ngx_int_t
ngx_http_llm_send_document(ngx_http_request_t *r, ngx_uint_t status,
    ngx_str_t *type, ngx_http_llm_writer_t *w)
{
    ngx_int_t   rc;
    ngx_buf_t  *last;

    if (w->failed) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    r->headers_out.status = status;

    ngx_http_llm_set_header(r, type, w->length);

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    last = ngx_http_llm_last_buf(w);

    last->last_buf = (r == r->main);
    last->last_in_chain = 1;

    return ngx_http_output_filter(r, w->out);
}


void
ngx_http_llm_set_header(ngx_http_request_t *r, ngx_str_t *type, off_t length)
{
    r->headers_out.content_type = *type;
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;

    ngx_http_clear_content_length(r);
    ngx_http_clear_accept_ranges(r);

    r->headers_out.content_length_n = length;
}


ngx_int_t
ngx_http_llm_add_header(ngx_http_request_t *r, const char *key,
    const void *value, size_t len)
{
    ngx_table_elt_t  *h;

    h = ngx_list_push(&r->headers_out.headers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    ngx_memzero(h, sizeof(ngx_table_elt_t));

    h->hash = 1;
    h->key.data = (u_char *) key;
    h->key.len = ngx_strlen(key);
    h->value.data = (u_char *) value;
    h->value.len = len;

    return NGX_OK;
}
