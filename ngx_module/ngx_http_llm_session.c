
/*
 * The life of the worker's session with an engine.
 *
 * A session is made when it is first wanted and lost as a whole.  All its
 * records are taken in one handler, which notes them in their requests and
 * then lets each touched request act once.  A call from inside a request
 * never drops the session: that posts an event, so that no request is
 * finalized while another one is being worked on.
 */


#include "ngx_module/ngx_http_llm_module.h"


#define NGX_HTTP_LLM_HANDSHAKE_TIMEOUT  1000
#define NGX_HTTP_LLM_MIN_BACKOFF        50
#define NGX_HTTP_LLM_MAX_BACKOFF        1000
#define NGX_HTTP_LLM_RECORDS_A_TURN     1024

/* an engine may be that slow to notice */
#define NGX_HTTP_LLM_CANCEL_TIMEOUT     30000


static ngx_connection_t *ngx_http_llm_engine_watch(
    ngx_http_llm_engine_t *engine, ngx_socket_t fd,
    ngx_event_handler_pt handler);
static void ngx_http_llm_engine_settle(ngx_http_llm_engine_t *engine);
static void ngx_http_llm_engine_drop(ngx_http_llm_engine_t *engine,
    ngx_err_t err, const char *reason);
static void ngx_http_llm_engine_failed_handler(ngx_event_t *ev);
static void ngx_http_llm_engine_timer_handler(ngx_event_t *ev);
static ngx_uint_t ngx_http_llm_engine_forgot(ngx_http_llm_engine_t *engine);
static void ngx_http_llm_engine_socket_handler(ngx_event_t *rev);
static void ngx_http_llm_engine_welcome(ngx_http_llm_engine_t *engine);
static ngx_int_t ngx_http_llm_engine_up(ngx_http_llm_engine_t *engine);
static void ngx_http_llm_engine_wakeup_handler(ngx_event_t *rev);
static void ngx_http_llm_engine_run(ngx_queue_t *queue,
    ngx_uint_t waiting);
static void ngx_http_llm_engine_resume(ngx_http_llm_engine_t *engine);
static void ngx_http_llm_engine_exiting(ngx_http_llm_engine_t *engine);


void
ngx_http_llm_engine_connect(ngx_http_llm_engine_t *engine)
{
    int                     rc;
    ngx_socket_t            fd;
    struct llm_ipc_options  options;

    /* every failure below leads to a new attempt when one is wanted */

    engine->state = NGX_HTTP_LLM_ENGINE_CONNECTING;

    fd = socket(AF_UNIX, SOCK_SEQPACKET|SOCK_NONBLOCK|SOCK_CLOEXEC, 0);

    if (fd == (ngx_socket_t) -1) {
        ngx_http_llm_engine_drop(engine, ngx_socket_errno, "socket() failed");
        return;
    }

    engine->socket = ngx_http_llm_engine_watch(engine, fd,
                                          ngx_http_llm_engine_socket_handler);
    if (engine->socket == NULL) {
        ngx_http_llm_engine_drop(engine, 0, "no connection for its socket");
        return;
    }

    if (connect(fd, (struct sockaddr *) &engine->sockaddr,
                sizeof(struct sockaddr_un))
        == -1)
    {
        ngx_http_llm_engine_drop(engine, ngx_socket_errno,
                                 "connect() failed");
        return;
    }

    engine->timer.handler = ngx_http_llm_engine_timer_handler;
    engine->timer.data = engine;
    engine->timer.log = ngx_cycle->log;
    engine->timer.cancelable = 1;

    ngx_add_timer(&engine->timer, NGX_HTTP_LLM_HANDSHAKE_TIMEOUT);

    ngx_memzero(&options, sizeof(struct llm_ipc_options));

    options.role = LLM_IPC_ROLE_WORKER;
    options.slots = LLM_IPC_MIN_SLOTS;
    options.arena_size = LLM_IPC_DEFAULT_W_ARENA;
    options.build_id = "ngx-llm/" NGX_HTTP_LLM_VERSION;

    rc = llm_ipc_worker_hello(&engine->session, fd, &options);

    if (rc == LLM_IPC_GONE) {
        /* it may have said why */
        ngx_http_llm_engine_welcome(engine);
        return;
    }

    if (rc != LLM_IPC_DONE) {
        ngx_http_llm_engine_drop(engine, ngx_errno, "no hello");
        return;
    }
}


static ngx_connection_t *
ngx_http_llm_engine_watch(ngx_http_llm_engine_t *engine, ngx_socket_t fd,
    ngx_event_handler_pt handler)
{
    ngx_connection_t  *c;

    c = ngx_get_connection(fd, ngx_cycle->log);

    if (c == NULL) {
        ngx_close_socket(fd);
        return NULL;
    }

    c->number = ngx_atomic_fetch_add(ngx_connection_counter, 1);
    c->data = engine;
    c->read->handler = handler;
    c->read->log = ngx_cycle->log;
    c->write->log = ngx_cycle->log;

    if (ngx_add_event(c->read, NGX_READ_EVENT, NGX_LEVEL_EVENT) != NGX_OK) {
        ngx_close_connection(c);
        return NULL;
    }

    return c;
}


/* what its requests used, as far as it was told */

static void
ngx_http_llm_engine_settle(ngx_http_llm_engine_t *engine)
{
    uint32_t  i;

    if (engine->slots == NULL) {
        return;
    }

    for (i = 0; i < engine->session.slots; i++) {

        if (engine->slots[i].charge) {
            ngx_http_llm_charge_lost(engine->slots[i].charge);
        }
    }
}


/* no more than its own resources: requests are the caller's */

void
ngx_http_llm_engine_close(ngx_http_llm_engine_t *engine)
{
    ngx_http_llm_engine_settle(engine);

    if (engine->timer.timer_set) {
        ngx_del_timer(&engine->timer);
    }

    if (engine->failed.posted) {
        ngx_delete_posted_event(&engine->failed);
    }

    if (engine->socket) {
        ngx_close_connection(engine->socket);
        engine->socket = NULL;
    }

    if (engine->wakeup) {
        /* its descriptor was the session's */
        ngx_close_connection(engine->wakeup);
        engine->wakeup = NULL;
        engine->session.own_event = -1;
    }

    llm_ipc_close(&engine->session);
    llm_ipc_buffer_free(&engine->buffer);

    if (engine->slots) {
        ngx_free(engine->slots);
        engine->slots = NULL;
    }

    engine->state = NGX_HTTP_LLM_ENGINE_DOWN;
    engine->in_flight = 0;
    engine->choices = 0;
    engine->cancelled = 0;
    engine->unsettled = 0;
    engine->owes = 0;
    engine->crowded = 0;
}


/* whatever went wrong: nothing of the session is left */

static void
ngx_http_llm_engine_drop(ngx_http_llm_engine_t *engine, ngx_err_t err,
    const char *reason)
{
    uint32_t                     i;
    ngx_uint_t                   level, drained;
    ngx_msec_t                   backoff;
    ngx_http_llm_ctx_t          *ctx;
    ngx_http_llm_engine_state_e  state;

    state = engine->state;
    level = NGX_LOG_INFO;

    if (state == NGX_HTTP_LLM_ENGINE_UP) {
        level = NGX_LOG_ERR;

        drained = (ngx_http_llm_engine_health(engine)
                   == NGX_HTTP_LLM_DRAINING);

        for (i = 0; i < engine->session.slots; i++) {
            ctx = engine->slots[i].ctx;

            if (ctx) {
                ctx->engine = NULL;
                ngx_http_llm_lost(ctx, drained);
                ngx_http_llm_engine_touch(engine, ctx);
            }
        }

    } else if (engine->failures == 0) {
        level = NGX_LOG_WARN;
    }

    ngx_log_error(level, ngx_cycle->log, err,
                  "llm engine \"%V\" is not there: %s, requests lost: %ui",
                  &engine->name, reason, engine->in_flight);

    ngx_http_llm_engine_close(engine);

    backoff = ngx_min(NGX_HTTP_LLM_MIN_BACKOFF << ngx_min(engine->failures, 8),
                      NGX_HTTP_LLM_MAX_BACKOFF);

    if (err == NGX_ENOENT || err == NGX_ECONNREFUSED) {
        /* it is restarted: to look for its socket costs next to nothing */
        backoff = NGX_HTTP_LLM_MIN_BACKOFF;
    }

    backoff = backoff / 2 + ngx_random() % backoff;

    engine->failures++;
    engine->retry = ngx_current_msec + backoff;

    ngx_http_llm_engine_run(&engine->touched, 0);
    ngx_http_llm_engine_resume(engine);
}


static void
ngx_http_llm_engine_failed_handler(ngx_event_t *ev)
{
    ngx_http_llm_engine_t  *engine;

    engine = ev->data;

    ngx_http_llm_engine_drop(engine, 0, engine->session.error);
}


static void
ngx_http_llm_engine_timer_handler(ngx_event_t *ev)
{
    ngx_http_llm_engine_t  *engine;

    engine = ev->data;

    if (engine->state == NGX_HTTP_LLM_ENGINE_CONNECTING) {
        ngx_http_llm_engine_drop(engine, 0, "no welcome in time");
        return;
    }

    if (engine->in_flight == 0) {
        return;
    }

    if (ngx_http_llm_engine_health(engine) == NGX_HTTP_LLM_STALLED) {
        ngx_http_llm_engine_drop(engine, 0, "its model thread stands still");
        return;
    }

    if (engine->cancelled && ngx_http_llm_engine_forgot(engine)) {
        ngx_http_llm_engine_drop(engine, 0, "it keeps what is cancelled");
        return;
    }

    ngx_add_timer(&engine->timer, NGX_HTTP_LLM_WATCH_INTERVAL);
}


/* whether a slot has waited too long for its FINISHED */

static ngx_uint_t
ngx_http_llm_engine_forgot(ngx_http_llm_engine_t *engine)
{
    uint32_t              i;
    ngx_http_llm_slot_t  *slot;

    for (i = 0; i < engine->session.slots; i++) {
        slot = &engine->slots[i];

        if (slot->busy && slot->ctx == NULL
            && ngx_current_msec - slot->cancelled
               > NGX_HTTP_LLM_CANCEL_TIMEOUT)
        {
            return 1;
        }
    }

    return 0;
}


/*
 * From the welcome on the socket only tells, by its end, that it is over.
 * worker_shutdown_timeout calls this, too, when there is nothing to read.
 */

static void
ngx_http_llm_engine_socket_handler(ngx_event_t *rev)
{
    u_char                  byte;
    ssize_t                 n;
    const char             *reason;
    ngx_connection_t       *c;
    ngx_http_llm_engine_t  *engine;

    c = rev->data;
    engine = c->data;

    if (engine->state == NGX_HTTP_LLM_ENGINE_CONNECTING) {
        ngx_http_llm_engine_welcome(engine);
        return;
    }

    n = recv(c->fd, &byte, 1, MSG_PEEK|MSG_DONTWAIT);

    if (n == -1 && (ngx_socket_errno == NGX_EAGAIN
                    || ngx_socket_errno == NGX_EINTR))
    {
        return;
    }

    reason = n > 0 ? "data on its socket" : "it closed the session";

    /* what it said before holds */

    (void) ngx_http_llm_engine_take(engine, engine->session.peer.entries,
                                    &reason);

    ngx_http_llm_engine_drop(engine, 0, reason);
}


static void
ngx_http_llm_engine_welcome(ngx_http_llm_engine_t *engine)
{
    int          rc;
    ngx_err_t    err;
    const char  *reason;

    rc = llm_ipc_worker_welcome(&engine->session, engine->socket->fd);
    err = 0;

    switch (rc) {

    case LLM_IPC_DONE:
        if (ngx_http_llm_engine_up(engine) == NGX_OK) {
            ngx_http_llm_engine_resume(engine);
            return;
        }

        reason = "no memory or connection for its session";
        break;

    case LLM_IPC_AGAIN:
        return;

    case LLM_IPC_GONE:
        reason = "it closed the connection";
        break;

    case LLM_IPC_ERROR:
        err = ngx_errno;
        reason = "no session";
        break;

    default:
        reason = engine->session.error;
    }

    ngx_http_llm_engine_drop(engine, err, reason);
}


static ngx_int_t
ngx_http_llm_engine_up(ngx_http_llm_engine_t *engine)
{
    uint32_t                 i, n;
    struct llm_ipc_session  *s;

    s = &engine->session;
    n = s->slots;

    engine->slots = ngx_calloc(n * sizeof(ngx_http_llm_slot_t),
                               ngx_cycle->log);
    if (engine->slots == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < n; i++) {
        engine->slots[i].next = i + 1;
    }

    engine->free = 0;

    engine->wakeup = ngx_http_llm_engine_watch(engine, s->own_event,
                                          ngx_http_llm_engine_wakeup_handler);
    if (engine->wakeup == NULL) {
        s->own_event = -1;
        return NGX_ERROR;
    }

    /* the handler is called when the worker is told to exit */

    engine->wakeup->idle = 1;

    engine->failed.handler = ngx_http_llm_engine_failed_handler;
    engine->failed.data = engine;
    engine->failed.log = ngx_cycle->log;

    ngx_del_timer(&engine->timer);

    engine->failures = 0;
    engine->state = NGX_HTTP_LLM_ENGINE_UP;

    ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0,
                  "llm engine \"%V\" is there: %s, version %d",
                  &engine->name, s->peer_build_id, (int) s->version);

    engine->told = 0;

    ngx_http_llm_engine_revoke(engine);

    if (!llm_ipc_sleep(s)) {
        ngx_post_event(engine->wakeup->read, &ngx_posted_next_events);
    }

    return NGX_OK;
}


static void
ngx_http_llm_engine_wakeup_handler(ngx_event_t *rev)
{
    ngx_int_t               rc;
    const char             *reason;
    ngx_connection_t       *c;
    ngx_http_llm_engine_t  *engine;

    c = rev->data;
    engine = c->data;

    if (c->close) {
        c->close = 0;
        c->idle = 0;
        ngx_http_llm_engine_exiting(engine);
        return;
    }

    llm_ipc_awake(&engine->session);

    rc = ngx_http_llm_engine_take(engine, NGX_HTTP_LLM_RECORDS_A_TURN,
                                  &reason);

    if (rc == NGX_ERROR) {
        ngx_http_llm_engine_drop(engine, 0, reason);
        return;
    }

    ngx_http_llm_engine_revoke(engine);

    if (engine->owes) {
        ngx_http_llm_engine_pay(engine);
    }

    llm_ipc_flush(&engine->session);

    ngx_http_llm_engine_run(&engine->touched, 0);

    if (engine->crowded) {
        engine->crowded = 0;
        ngx_http_llm_engine_resume(engine);
    }

    /* the session is still there: only other handlers drop it */

    if (rc == NGX_OK || !llm_ipc_sleep(&engine->session)) {
        ngx_post_event(rev, &ngx_posted_next_events);
    }
}


void
ngx_http_llm_engine_touch(ngx_http_llm_engine_t *engine,
    ngx_http_llm_ctx_t *ctx)
{
    if (!ctx->queued) {
        ctx->queued = 1;
        ngx_queue_insert_tail(&engine->touched, &ctx->queue);
    }
}


/*
 * A request that ends may take others with it (streams of one connection):
 * they leave the queue by themselves, so only its head is ever looked at.
 */

static void
ngx_http_llm_engine_run(ngx_queue_t *queue, ngx_uint_t waiting)
{
    ngx_queue_t         *q;
    ngx_connection_t    *c;
    ngx_http_llm_ctx_t  *ctx;

    while (!ngx_queue_empty(queue)) {
        q = ngx_queue_head(queue);
        ngx_queue_remove(q);

        ctx = ngx_queue_data(q, ngx_http_llm_ctx_t, queue);
        ctx->queued = 0;

        c = ctx->request->connection;

        ngx_http_set_log_request(c->log, ctx->request);

        if (waiting) {
            ctx->resume(ctx);

        } else {
            ngx_http_llm_process(ctx);
        }

        ngx_http_run_posted_requests(c);
    }
}


/* those that come to wait again do so in their order */

static void
ngx_http_llm_engine_resume(ngx_http_llm_engine_t *engine)
{
    ngx_queue_t  waiting;

    if (ngx_queue_empty(&engine->waiting)) {
        return;
    }

    ngx_queue_init(&waiting);
    ngx_queue_add(&waiting, &engine->waiting);
    ngx_queue_init(&engine->waiting);

    ngx_http_llm_engine_run(&waiting, 1);
}


void
ngx_http_llm_engine_wait(ngx_http_llm_engine_t *engine,
    ngx_http_llm_ctx_t *ctx)
{
    ctx->queued = 1;
    ngx_queue_insert_tail(&engine->waiting, &ctx->queue);
}


static void
ngx_http_llm_engine_exiting(ngx_http_llm_engine_t *engine)
{
    uint32_t      i;
    ngx_queue_t  *q;

    for (i = 0; i < engine->session.slots; i++) {

        if (engine->slots[i].ctx) {
            ngx_http_llm_arm(engine->slots[i].ctx);
        }
    }

    for (q = ngx_queue_head(&engine->waiting);
         q != ngx_queue_sentinel(&engine->waiting);
         q = ngx_queue_next(q))
    {
        ngx_http_llm_arm(ngx_queue_data(q, ngx_http_llm_ctx_t, queue));
    }
}
