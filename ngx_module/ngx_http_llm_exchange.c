
/* What requests and an engine say to each other, slot by slot. */


#include "ngx_module/ngx_http_llm_module.h"

#include <openssl/sha.h>


static ngx_int_t ngx_http_llm_engine_receive(ngx_http_llm_engine_t *engine,
    struct llm_ipc_record *record);
static int ngx_http_llm_engine_send(ngx_http_llm_engine_t *engine,
    uint16_t type, uint32_t slot, uint32_t generation, const void *payload,
    size_t len);


ngx_int_t
ngx_http_llm_engine_take(ngx_http_llm_engine_t *engine, ngx_uint_t n,
    const char **reason)
{
    struct llm_ipc_record  record;

    while (n--) {

        switch (llm_ipc_recv(&engine->session, &record, &engine->buffer)) {

        case LLM_IPC_DONE:
            break;

        case LLM_IPC_AGAIN:
            return NGX_AGAIN;

        case LLM_IPC_BROKEN:
            *reason = engine->session.error;
            return NGX_ERROR;

        default:
            *reason = "no memory for a record";
            return NGX_ERROR;
        }

        if (ngx_http_llm_engine_receive(engine, &record) != NGX_OK) {
            *reason = "a record makes no sense";
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_engine_receive(ngx_http_llm_engine_t *engine,
    struct llm_ipc_record *record)
{
    ngx_int_t                  rc;
    ngx_http_llm_ctx_t        *ctx;
    ngx_http_llm_slot_t       *slot;
    struct llm_ipc_counted     counted;
    struct llm_ipc_finished    finished;
    struct llm_ipc_token_view  token;
    struct llm_ipc_choice_end  end;

    slot = &engine->slots[record->slot];

    if (!slot->busy || slot->generation != record->generation) {
        ngx_log_debug1(NGX_LOG_DEBUG_HTTP, ngx_cycle->log, 0,
                       "llm late record of slot %uD", record->slot);
        return NGX_OK;
    }

    ctx = slot->ctx;
    rc = NGX_OK;

    switch (record->type) {

    case LLM_IPC_COUNTED:
        if (llm_ipc_counted_read(record, &counted) != LLM_IPC_DONE) {
            return NGX_ERROR;
        }

        if (ctx) {
            ngx_http_llm_counted(ctx, &counted);
        }

        break;

    case LLM_IPC_TOKEN:
        if (llm_ipc_token_read(record, &token) != LLM_IPC_DONE) {
            return NGX_ERROR;
        }

        if (slot->charge) {
            ngx_http_llm_charge_came(slot->charge, token.head.n_ids);
        }

        if (ctx) {
            rc = ngx_http_llm_token(ctx, &token);
        }

        break;

    case LLM_IPC_CHOICE_END:
        if (llm_ipc_choice_end_read(record, &end) != LLM_IPC_DONE) {
            return NGX_ERROR;
        }

        if (ctx) {
            rc = ngx_http_llm_choice_end(ctx, &end);
        }

        break;

    case LLM_IPC_FINISHED:
        if (llm_ipc_finished_read(record, &finished) != LLM_IPC_DONE) {
            return NGX_ERROR;
        }

        slot->busy = 0;
        slot->ctx = NULL;
        slot->next = engine->free;
        engine->free = record->slot;
        engine->in_flight--;
        engine->choices -= slot->choices;

        if (slot->charge) {
            ngx_http_llm_charge_finished(slot->charge, &finished);
            slot->charge = NULL;

            if (ctx == NULL && --engine->unsettled == 0) {
                engine->timer.cancelable = 1;
            }
        }

        if (ctx) {
            ctx->engine = NULL;
            ngx_http_llm_finished(ctx, &finished);

        } else {
            engine->cancelled--;
        }

        break;

    default: /* PURGED, which no worker asks for */
        return NGX_ERROR;
    }

    if (ctx) {
        ngx_http_llm_engine_touch(engine, ctx);
    }

    return rc;
}


ngx_int_t
ngx_http_llm_engine_submit(ngx_http_llm_engine_t *engine,
    ngx_http_llm_ctx_t *ctx)
{
    uint32_t                   i;
    ngx_http_llm_slot_t       *slot;
    struct llm_ipc_submit     *head;
    ngx_http_llm_account_t    *account;
    ngx_http_llm_loc_conf_t   *llcf;
    const ngx_http_llm_key_t  *key;

    i = engine->free;

    if (i == engine->session.slots) {
        return NGX_BUSY;
    }

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

    account = &ctx->account;

    if (ctx->tried == 0) {
        account->submitted = ngx_http_llm_clock();
    }

    /* what the parser does not know */

    head = (struct llm_ipc_submit *) ctx->params.payload;

    SHA256(account->tenant.data, account->tenant.len, head->tenant);

    key = ctx->identity.key;

    if (key) {
        ngx_memcpy(head->key_id, key->said.digest, sizeof(head->key_id));
        head->max_queued = key->said.max_queued;
        head->max_running = key->said.max_running;
        head->max_pages = key->said.max_pages;
    }

    ctx->held = ngx_http_llm_limit_holds(ctx);
    ctx->admitted = 0;

    /* it may have waited before, for room or for another engine */

    head->flags &= ~LLM_IPC_AWAIT_RELEASE;

    if (ctx->held) {
        ctx->fits = (head->flags & LLM_IPC_FIT_CONTEXT) != 0;
        head->flags |= LLM_IPC_AWAIT_RELEASE;
    }

    head->scope = llcf->cache_scope;
    head->weight = ctx->weight;
    head->credit = ctx->params.stream ? llcf->buffer_size : 0;

    head->queue_deadline = llcf->queue_timeout
                ? account->submitted + llcf->queue_timeout * 1000000ull : 0;
    head->first_token_deadline = llcf->first_token_timeout
                ? account->submitted + llcf->first_token_timeout * 1000000ull
                : 0;
    head->deadline = llcf->timeout
                ? account->submitted + llcf->timeout * 1000000ull : 0;

    slot = &engine->slots[i];
    slot->generation = ngx_max(slot->generation + 1, 1);

    switch (ngx_http_llm_engine_send(engine, LLM_IPC_SUBMIT, i,
                                     slot->generation, ctx->params.payload,
                                     ctx->params.payload_len))
    {
    case LLM_IPC_DONE:
        break;

    case LLM_IPC_AGAIN:
        engine->crowded = 1;
        return NGX_BUSY;

    case LLM_IPC_TOO_BIG:
        return NGX_DECLINED;

    default:
        return NGX_ERROR;
    }

    engine->free = slot->next;
    engine->in_flight++;
    engine->choices += ctx->params.n_choices;

    slot->busy = 1;
    slot->ctx = ctx;
    slot->choices = ctx->params.n_choices;

    ctx->engine = engine;
    ctx->slot = i;
    ctx->generation = slot->generation;
    ctx->credit = head->credit;

    if (!engine->timer.timer_set) {
        ngx_add_timer(&engine->timer, NGX_HTTP_LLM_WATCH_INTERVAL);
    }

    return NGX_OK;
}


/* never drops the session: a request may be in the middle of something */

static int
ngx_http_llm_engine_send(ngx_http_llm_engine_t *engine, uint16_t type,
    uint32_t slot, uint32_t generation, const void *payload, size_t len)
{
    int                   rc;
    struct llm_ipc_iovec  part;

    part.data = payload;
    part.len = len;

    rc = llm_ipc_send(&engine->session, type, slot, generation, &part, 1);

    if (rc == LLM_IPC_DONE) {
        llm_ipc_flush(&engine->session);

    } else if (rc != LLM_IPC_AGAIN && rc != LLM_IPC_TOO_BIG
               && !engine->failed.posted)
    {
        ngx_post_event(&engine->failed, &ngx_posted_events);
    }

    return rc;
}


void
ngx_http_llm_engine_credit(ngx_http_llm_ctx_t *ctx)
{
    struct llm_ipc_credit   credit;
    ngx_http_llm_engine_t  *engine;

    engine = ctx->engine;

    if (engine == NULL || ctx->owed == 0) {
        return;
    }

    credit.bytes = ctx->owed;

    switch (ngx_http_llm_engine_send(engine, LLM_IPC_CREDIT, ctx->slot,
                                     ctx->generation, &credit, sizeof(credit)))
    {
    case LLM_IPC_DONE:
        ctx->credit += ctx->owed;
        ctx->owed = 0;
        break;

    case LLM_IPC_AGAIN:
        engine->owes = 1;
        break;
    }
}


void
ngx_http_llm_engine_allow(ngx_http_llm_ctx_t *ctx)
{
    struct llm_ipc_release  release;
    ngx_http_llm_engine_t  *engine;

    engine = ctx->engine;

    if (engine == NULL || !ctx->admitted
        || ngx_http_llm_limit_delay_left(ctx) > 0)
    {
        return;
    }

    release.max_tokens = ctx->allowed;

    switch (ngx_http_llm_engine_send(engine, LLM_IPC_RELEASE, ctx->slot,
                                     ctx->generation, &release,
                                     sizeof(release)))
    {
    case LLM_IPC_DONE:
        ctx->admitted = 0;
        ctx->held = 0;
        break;

    case LLM_IPC_AGAIN:
        engine->owes = 1;
        break;
    }
}


void
ngx_http_llm_engine_revoke(ngx_http_llm_engine_t *engine)
{
    ngx_array_t               *keys;
    ngx_http_llm_key_id_t     *ids;
    struct llm_ipc_revoke      revoke;
    ngx_http_llm_main_conf_t  *lmcf;

    lmcf = ngx_http_cycle_get_module_main_conf(ngx_cycle,
                                               ngx_http_llm_module);

    keys = ngx_http_llm_revoked_keys(lmcf);

    if (keys == NULL) {
        return;
    }

    for (ids = keys->elts; engine->told < keys->nelts; engine->told++) {

        ngx_memcpy(revoke.key_id, ids[engine->told].bytes,
                   sizeof(revoke.key_id));

        if (ngx_http_llm_engine_send(engine, LLM_IPC_REVOKE, 0, 0, &revoke,
                                     sizeof(revoke))
            != LLM_IPC_DONE)
        {
            return;
        }
    }
}


void
ngx_http_llm_engine_pay(ngx_http_llm_engine_t *engine)
{
    uint32_t             i;
    ngx_http_llm_ctx_t  *ctx;

    engine->owes = 0;

    for (i = 0; i < engine->session.slots && !engine->owes; i++) {
        ctx = engine->slots[i].ctx;

        if (ctx) {
            ngx_http_llm_engine_allow(ctx);
            ngx_http_llm_engine_credit(ctx);
        }
    }
}


void
ngx_http_llm_engine_release(ngx_http_llm_ctx_t *ctx)
{
    ngx_http_llm_slot_t    *slot;
    ngx_http_llm_engine_t  *engine;

    if (ctx->queued) {
        ctx->queued = 0;
        ngx_queue_remove(&ctx->queue);
    }

    engine = ctx->engine;

    if (engine == NULL) {
        return;
    }

    /* the slot stays taken until the engine says FINISHED */

    slot = &engine->slots[ctx->slot];

    slot->ctx = NULL;
    slot->cancelled = ngx_current_msec;

    engine->cancelled++;
    ctx->engine = NULL;

    if (slot->charge) {
        /* this worker stays until it knows what was used */
        engine->unsettled++;
        engine->timer.cancelable = 0;
    }

    if (ngx_http_llm_engine_send(engine, LLM_IPC_CANCEL, ctx->slot,
                                 ctx->generation, NULL, 0)
        == LLM_IPC_AGAIN)
    {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "llm engine \"%V\" has no room for a cancel",
                      &engine->name);
    }
}
