
/*
 * A generation in flight, from the parsed request to its end.
 *
 * Whatever waits here holds one timer that is not cancelable: a worker that
 * is told to exit stays for as long as one is left, and no longer.
 */


#include "ngx_module/ngx_http_llm_module.h"

#include <time.h>


/* the engine says first that time is up, and where it was spent */
#define NGX_HTTP_LLM_GRACE     500

/* for room in the session of an engine that is not full */
#define NGX_HTTP_LLM_ROOM      1000

/* between two looks of a timer that has nothing to wait for */
#define NGX_HTTP_LLM_MAX_TICK  60000

/* the same in an old worker, whom nobody tells that a key is revoked */
#define NGX_HTTP_LLM_OLD_TICK  500


static ngx_int_t ngx_http_llm_watch_connection(ngx_http_request_t *r,
    ngx_uint_t ignore_abort);
static void ngx_http_llm_read_handler(ngx_http_request_t *r);
static ngx_uint_t ngx_http_llm_client_left(ngx_http_request_t *r);
static void ngx_http_llm_detach(ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_timer_handler(ngx_event_t *ev);
static ngx_uint_t ngx_http_llm_has_no_deadline(ngx_http_llm_ctx_t *ctx);
static ngx_msec_int_t ngx_http_llm_left(ngx_msec_t from, ngx_msec_t period);
static ngx_msec_int_t ngx_http_llm_drain_left(ngx_http_llm_ctx_t *ctx);
static ngx_msec_int_t ngx_http_llm_room_left(ngx_http_llm_ctx_t *ctx);
static ngx_msec_int_t ngx_http_llm_keep_alive_left(ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_note(ngx_http_llm_ctx_t *ctx, ngx_int_t rc);
static void ngx_http_llm_admit(ngx_http_llm_ctx_t *ctx);


ngx_http_llm_error_t  ngx_http_llm_engine_lost = {
    NGX_HTTP_SERVICE_UNAVAILABLE, "engine_lost", NULL,
    "The engine was lost", 2
};

ngx_http_llm_error_t  ngx_http_llm_draining = {
    NGX_HTTP_SERVICE_UNAVAILABLE, "server_draining", NULL,
    "The server is going to restart", 1
};


uint64_t
ngx_http_llm_clock(void)
{
    struct timespec  ts;

    (void) clock_gettime(CLOCK_MONOTONIC, &ts);

    return (uint64_t) ts.tv_sec * 1000000000ull + ts.tv_nsec;
}


ngx_int_t
ngx_http_llm_begin(ngx_http_llm_ctx_t *ctx)
{
    ngx_http_request_t       *r;
    ngx_http_llm_loc_conf_t  *llcf;

    r = ctx->request;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    ctx->in_flight = 1;
    ctx->begun = ngx_current_msec;
    ctx->active = ctx->begun;

    ctx->timer.handler = ngx_http_llm_timer_handler;
    ctx->timer.data = ctx;
    ctx->timer.log = r->connection->log;

    ngx_http_llm_arm(ctx);

    r->write_event_handler = ngx_http_llm_write_handler;

    return ngx_http_llm_watch_connection(r, llcf->ignore_client_abort);
}


static ngx_int_t
ngx_http_llm_watch_connection(ngx_http_request_t *r, ngx_uint_t ignore_abort)
{
    ngx_connection_t          *c;
    ngx_http_core_loc_conf_t  *clcf;

    c = r->connection;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    /* a token is worth a packet */

    if (clcf->tcp_nodelay && ngx_tcp_nodelay(c) != NGX_OK) {
        return NGX_ERROR;
    }

    if (r->discard_body) {
        /* its handler reads on, and notices the end as well */
        return NGX_OK;
    }

    if (ignore_abort) {
        r->read_event_handler = ngx_http_block_reading;
        return NGX_OK;
    }

    r->read_event_handler = ngx_http_llm_read_handler;

    /* the client may have gone already: with edges, nothing else would tell */

    if (c->read->ready) {
        ngx_post_event(c->read, &ngx_posted_events);
        return NGX_OK;
    }

    return ngx_handle_read_event(c->read, 0);
}


/*
 * As ngx_http_test_reading(), but the engine is told before a post_action
 * begins, which makes the core forget ctx.
 */

static void
ngx_http_llm_read_handler(ngx_http_request_t *r)
{
    ngx_connection_t    *c;
    ngx_http_llm_ctx_t  *ctx;

    c = r->connection;
    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    if (ctx == NULL || !ctx->in_flight) {
        /* it has ended, and an error_page left this handler alone */
        ngx_http_block_reading(r);
        return;
    }

    if (!c->error && !ngx_http_llm_client_left(r)) {
        return;
    }

    c->error = 1;

    if (r->aio) {
        /* ngx_http_llm_parsed() will see it */
        return;
    }

    ngx_log_error(NGX_LOG_INFO, c->log, 0,
                  "client prematurely closed connection");

    ngx_http_llm_finalize(ctx, NGX_HTTP_CLIENT_CLOSED_REQUEST);
}


static ngx_uint_t
ngx_http_llm_client_left(ngx_http_request_t *r)
{
    int                n;
    char               buf[1];
    ngx_event_t       *rev;
    ngx_connection_t  *c;

    c = r->connection;
    rev = c->read;

#if (NGX_HTTP_V2)
    if (r->stream) {
        return 0;
    }
#endif

#if (NGX_HAVE_EPOLLRDHUP)
    if ((ngx_event_flags & NGX_USE_EPOLL_EVENT) && ngx_use_epoll_rdhup) {
        rev->eof = rev->pending_eof;
        return rev->pending_eof;
    }
#endif

    n = recv(c->fd, buf, 1, MSG_PEEK);

    if (n == 0 || (n == -1 && ngx_socket_errno != NGX_EAGAIN)) {
        rev->eof = 1;
        return 1;
    }

    /* another request waits in the socket */

    return (ngx_event_flags & NGX_USE_LEVEL_EVENT) && rev->active
           && ngx_del_event(rev, NGX_READ_EVENT, 0) != NGX_OK;
}


/* the request is being freed, or its client is gone; the log comes after it */

void
ngx_http_llm_cleanup(void *data)
{
    ngx_http_llm_ctx_t *ctx = data;

    if (ctx->in_flight) {
        ngx_http_llm_detach(ctx);
    }

    if (ctx->route && ctx->route->kind && ctx->account.finish_reason == NULL) {
        /* nobody has answered it */
        ctx->account.finish_reason = "aborted";
    }
}


static void
ngx_http_llm_detach(ngx_http_llm_ctx_t *ctx)
{
    ctx->in_flight = 0;

    if (ctx->timer.timer_set) {
        ngx_del_timer(&ctx->timer);
    }

    if (ctx->engine && ctx->n_ended != ctx->params.n_choices) {
        ctx->account.finish_reason = "aborted";
    }

    ngx_http_llm_engine_release(ctx);
}


/* after this the request may be gone */

void
ngx_http_llm_finalize(ngx_http_llm_ctx_t *ctx, ngx_int_t rc)
{
    ngx_http_llm_detach(ctx);

    if (rc >= NGX_HTTP_INTERNAL_SERVER_ERROR) {
        ctx->account.finish_reason = "error";
    }

    ngx_http_finalize_request(ctx->request, rc);
}


void
ngx_http_llm_fail(ngx_http_llm_ctx_t *ctx, ngx_http_llm_error_t *error)
{
    ctx->account.finish_reason = "error";

    ngx_http_llm_engine_release(ctx);

    if (!ctx->request->header_sent) {
        ngx_http_llm_finalize(ctx, ngx_http_llm_send_error(ctx, error));
        return;
    }

    if (ctx->ended) {
        /* it had its chance */
        ngx_http_llm_finalize(ctx, NGX_ERROR);
        return;
    }

    /* what came before it is sent first */

    ctx->done = 1;
    ctx->error = *error;

    ngx_http_llm_stream(ctx);
}


static void
ngx_http_llm_timer_handler(ngx_event_t *ev)
{
    ngx_uint_t                keep_alive;
    ngx_connection_t         *c;
    ngx_http_request_t       *r;
    ngx_http_llm_ctx_t       *ctx;
    ngx_http_llm_error_t     *error;
    ngx_http_llm_loc_conf_t  *llcf;

    ctx = ev->data;
    r = ctx->request;
    c = r->connection;

    ngx_http_set_log_request(c->log, r);

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    error = NULL;
    keep_alive = 0;

    if (ngx_http_llm_has_no_deadline(ctx)) {
        /* void */

    } else if (ngx_http_llm_check_revoked(r, ctx->identity.key)
               == NGX_DECLINED)
    {
        error = ngx_http_llm_status_error(LLM_IPC_REVOKED);

    } else if (ngx_http_llm_left(ctx->begun, llcf->timeout) <= 0) {
        error = ngx_http_llm_status_error(LLM_IPC_TIMEOUT);

    } else if (ctx->account.first_token == 0
               && ngx_http_llm_left(ctx->begun, llcf->first_token_timeout)
                  <= 0)
    {
        error = ngx_http_llm_status_error(LLM_IPC_TIMEOUT_FIRST_TOKEN);

    } else if (ngx_http_llm_drain_left(ctx) <= 0) {
        error = &ngx_http_llm_draining;

    } else if (ngx_http_llm_room_left(ctx) <= 0) {
        error = ngx_http_llm_refusal(ctx, NGX_HTTP_LLM_FULL, ctx->crowded);

    } else if (ngx_http_llm_keep_alive_left(ctx) <= 0) {
        /* also where the client is not ready for it */
        ctx->active = ngx_current_msec;
        keep_alive = 1;
    }

    ngx_http_llm_engine_allow(ctx);

    ngx_http_llm_arm(ctx);

    if (error) {
        ngx_http_llm_fail(ctx, error);

    } else if (keep_alive) {
        ngx_http_llm_keep_alive(ctx);
    }

    ngx_http_run_posted_requests(c);
}


/* a thread parses its body, or only its client is waited for */

static ngx_uint_t
ngx_http_llm_has_no_deadline(ngx_http_llm_ctx_t *ctx)
{
    return ctx->request->aio || ctx->done;
}


/* of a period that the engine knows, too; 0: it does not end */

static ngx_msec_int_t
ngx_http_llm_left(ngx_msec_t from, ngx_msec_t period)
{
    if (period == 0) {
        return NGX_HTTP_LLM_MAX_TICK;
    }

    return (ngx_msec_int_t) (from + period + NGX_HTTP_LLM_GRACE
                             - ngx_current_msec);
}


static ngx_msec_int_t
ngx_http_llm_drain_left(ngx_http_llm_ctx_t *ctx)
{
    ngx_msec_t                 timeout;
    ngx_core_conf_t           *ccf;
    ngx_http_llm_loc_conf_t   *llcf;
    ngx_http_llm_main_conf_t  *lmcf;

    if (!ngx_exiting) {
        return NGX_HTTP_LLM_MAX_TICK;
    }

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);
    lmcf = ngx_http_get_module_main_conf(ctx->request, ngx_http_llm_module);

    timeout = llcf->drain_timeout;

    if (timeout == NGX_CONF_UNSET_MSEC) {

        /* a little before the core closes every connection */

        ccf = (ngx_core_conf_t *) ngx_get_conf(ngx_cycle->conf_ctx,
                                               ngx_core_module);
        timeout = ccf->shutdown_timeout / 10 * 9;
    }

    if (timeout == 0) {
        return NGX_HTTP_LLM_MAX_TICK;
    }

    if (lmcf->exiting == 0) {
        lmcf->exiting = ngx_current_msec;
    }

    return (ngx_msec_int_t) (lmcf->exiting + timeout - ngx_current_msec);
}


static ngx_msec_int_t
ngx_http_llm_room_left(ngx_http_llm_ctx_t *ctx)
{
    ngx_msec_t                period;
    ngx_http_llm_loc_conf_t  *llcf;

    if (ctx->crowded == NULL) {
        return NGX_HTTP_LLM_MAX_TICK;
    }

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

    period = NGX_HTTP_LLM_ROOM;

    if (llcf->queue_timeout) {
        period = ngx_min(period, llcf->queue_timeout);
    }

    return (ngx_msec_int_t) (ctx->waits_since + period - ngx_current_msec);
}


static ngx_msec_int_t
ngx_http_llm_keep_alive_left(ngx_http_llm_ctx_t *ctx)
{
    ngx_http_llm_loc_conf_t  *llcf;

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

    if (ctx->engine == NULL || !ctx->params.stream || ctx->unheard
        || llcf->keepalive_interval == 0)
    {
        return NGX_HTTP_LLM_MAX_TICK;
    }

    return (ngx_msec_int_t) (ctx->active + llcf->keepalive_interval
                             - ngx_current_msec);
}


/* tokens come and go without a timer being moved: it looks what is due */

void
ngx_http_llm_arm(ngx_http_llm_ctx_t *ctx)
{
    ngx_msec_int_t            left, next;
    ngx_http_llm_loc_conf_t  *llcf;

    next = NGX_HTTP_LLM_MAX_TICK;

    if (!ngx_http_llm_has_no_deadline(ctx)) {
        llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

        left = ngx_http_llm_left(ctx->begun, llcf->timeout);
        next = ngx_min(next, left);

        /* whoever is told to exit arms it anew: a reload may be the reason */

        if (ngx_http_llm_check_revoked(ctx->request, ctx->identity.key)
            == NGX_DECLINED)
        {
            next = 0;

        } else if (ngx_exiting && ctx->identity.key) {
            next = ngx_min(next, NGX_HTTP_LLM_OLD_TICK);
        }

        if (ctx->account.first_token == 0) {
            left = ngx_http_llm_left(ctx->begun, llcf->first_token_timeout);
            next = ngx_min(next, left);
        }

        left = ngx_http_llm_drain_left(ctx);
        next = ngx_min(next, left);

        left = ngx_http_llm_room_left(ctx);
        next = ngx_min(next, left);

        left = ngx_http_llm_keep_alive_left(ctx);
        next = ngx_min(next, left);

        if (ctx->admitted) {
            left = ngx_http_llm_limit_delay_left(ctx);
            next = ngx_min(next, left);
        }
    }

    ngx_add_timer(&ctx->timer, ngx_max(next, 1));
}


void
ngx_http_llm_counted(ngx_http_llm_ctx_t *ctx, struct llm_ipc_counted *counted)
{
    ctx->account.counted = 1;
    ctx->account.prompt_tokens = counted->prompt_tokens;
    ctx->account.cached_tokens = counted->cached_tokens_estimate;
}


ngx_int_t
ngx_http_llm_token(ngx_http_llm_ctx_t *ctx, struct llm_ipc_token_view *token)
{
    uint32_t                 len, charge;
    ngx_http_llm_account_t  *account;

    if (ctx->held) {
        return NGX_ERROR;
    }

    account = &ctx->account;
    len = token->head.text_length;

    account->last_token = ngx_http_llm_clock();

    if (account->first_token == 0) {
        account->first_token = account->last_token;

        /* no other engine will need it */
        ngx_http_llm_params_free(&ctx->params);
    }

    account->completion_tokens += token->head.n_ids;

    if (token->head.kind == LLM_IPC_TEXT_REASONING) {
        account->reasoning_tokens += token->head.n_ids;
    }

    if (ctx->params.stream && len) {

        /* the last record may be longer than what was left */

        if (ctx->credit == 0) {
            return ngx_http_llm_note(ctx, NGX_DECLINED);
        }

        charge = ngx_min(len, ctx->credit);
        ctx->credit -= charge;
        ctx->charged += charge;
    }

    return ngx_http_llm_note(ctx, ngx_http_llm_add_text(ctx,
                                         token->head.choice, token->head.kind,
                                         token->text, len));
}


ngx_int_t
ngx_http_llm_choice_end(ngx_http_llm_ctx_t *ctx,
    struct llm_ipc_choice_end *end)
{
    if (ctx->held) {
        return NGX_ERROR;
    }

    ctx->account.finish_reason = ngx_http_llm_finish_reason(end->reason);

    if (ctx->cut && end->reason == LLM_IPC_FINISH_LENGTH) {
        /* its client is to see that it had its budget's worth */
        ctx->params.include_usage = 1;
    }

    return ngx_http_llm_note(ctx, ngx_http_llm_add_end(ctx, end->choice,
                                                       end->reason));
}


/* this request cannot go on, its session can */

static ngx_int_t
ngx_http_llm_note(ngx_http_llm_ctx_t *ctx, ngx_int_t rc)
{
    if (rc == NGX_DECLINED) {
        ngx_log_error(NGX_LOG_ERR, ctx->request->connection->log, 0,
                      "llm engine sends more than it may, or out of memory");

        ctx->error = *ngx_http_llm_status_error(LLM_IPC_FAILED);
        return NGX_OK;
    }

    return rc;
}


void
ngx_http_llm_finished(ngx_http_llm_ctx_t *ctx,
    struct llm_ipc_finished *finished)
{
    ngx_http_llm_account_t  *account;

    ctx->done = 1;
    ctx->finished = *finished;

    account = &ctx->account;

    account->finished = 1;
    account->counted = 1;
    account->prompt_tokens = finished->prompt_tokens;
    account->cached_tokens = finished->cached_tokens;
    account->completion_tokens = finished->completion_tokens;
    account->reasoning_tokens = finished->reasoning_tokens;
    account->drafted_tokens = finished->drafted_tokens;
    account->accepted_tokens = finished->accepted_tokens;
    account->queue_time = finished->queue_ns;
}


void
ngx_http_llm_lost(ngx_http_llm_ctx_t *ctx, ngx_uint_t drained)
{
    ctx->done = 1;
    ctx->unread = (drained && !ctx->account.counted);
    ctx->error = ngx_http_llm_engine_lost;
}


void
ngx_http_llm_process(ngx_http_llm_ctx_t *ctx)
{
    ngx_http_llm_error_t  error;

    if (ngx_http_llm_may_pass_on(ctx)) {
        ngx_http_llm_pass_on(ctx);
        return;
    }

    if (ctx->error.status == 0 && ctx->done) {

        if (ctx->finished.status != LLM_IPC_OK) {
            ngx_http_llm_finished_error(ctx);

        } else if (ctx->n_ended != ctx->params.n_choices) {
            ctx->error = *ngx_http_llm_status_error(LLM_IPC_FAILED);
        }
    }

    if (ctx->error.status) {
        error = ctx->error;
        ngx_http_llm_fail(ctx, &error);
        return;
    }

    if (ctx->held) {
        ngx_http_llm_admit(ctx);
        return;
    }

    if (ctx->params.stream) {
        ngx_http_llm_stream(ctx);
        return;
    }

    if (ctx->done) {
        ngx_http_llm_put_answer(ctx);
        ngx_http_llm_finalize(ctx, ngx_http_llm_send_json(ctx, NGX_HTTP_OK,
                                                          &ctx->writer));
    }
}


/* the engine has counted the prompt, and waits for the limits */

static void
ngx_http_llm_admit(ngx_http_llm_ctx_t *ctx)
{
    ngx_int_t             rc;
    ngx_http_llm_error_t  error;

    if (ctx->admitted || !ctx->account.counted) {
        return;
    }

    rc = ngx_http_llm_limit_reserve(ctx);

    if (rc == NGX_DECLINED) {
        error = ctx->error;
        ngx_http_llm_fail(ctx, &error);
        return;
    }

    if (rc != NGX_OK) {
        ngx_http_llm_finalize(ctx, NGX_HTTP_INTERNAL_SERVER_ERROR);
        return;
    }

    ctx->admitted = 1;

    ngx_http_llm_engine_allow(ctx);
    ngx_http_llm_arm(ctx);
}
