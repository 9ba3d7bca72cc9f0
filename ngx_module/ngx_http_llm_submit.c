
/* A request that was read goes to an engine, or waits until it can. */


#include "ngx_module/ngx_http_llm_module.h"


static ngx_int_t ngx_http_llm_stop_revoked(ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_wait(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_engine_t *engine);
static ngx_int_t ngx_http_llm_choose_model(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_model_t *model, ngx_http_llm_engine_t *engine);


static ngx_http_llm_error_t  ngx_http_llm_unnamed_model = {
    NGX_HTTP_BAD_REQUEST, NULL, "model", "You must name a model", 0
};

ngx_http_llm_error_t  ngx_http_llm_too_large = {
    NGX_HTTP_REQUEST_ENTITY_TOO_LARGE, NULL, NULL,
    "The request is too large", 0
};


void
ngx_http_llm_submit(ngx_http_llm_ctx_t *ctx)
{
    ngx_int_t                 rc;
    ngx_http_llm_model_t     *model;
    ngx_http_llm_engine_t    *engine;
    ngx_http_llm_health_e     health;
    ngx_http_llm_loc_conf_t  *llcf;

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

    if (ngx_http_llm_stop_revoked(ctx) == NGX_DONE) {
        return;
    }

    model = ngx_http_llm_find_model(llcf->models, &ctx->account.model);

    if (model == NULL) {
        ngx_http_llm_fail(ctx, ctx->account.model.len
                               ? &ngx_http_llm_no_such_model
                               : &ngx_http_llm_unnamed_model);
        return;
    }

    if (model->name.len) {
        ctx->account.model = model->name;
    }

    /* nor does the state of its engines tell that there is one */

    if (ctx->account.model.len
        && !ngx_http_llm_key_allows(ctx->identity.key, &ctx->account.model))
    {
        ngx_http_llm_fail(ctx, &ngx_http_llm_no_such_model);
        return;
    }

    do {
        health = ngx_http_llm_choose_engine(ctx, model, &engine);

        if (health == NGX_HTTP_LLM_CONNECTING
            || (health == NGX_HTTP_LLM_READY && engine->crowded))
        {
            ngx_http_llm_wait(ctx, engine);
            return;
        }

        if (health != NGX_HTTP_LLM_READY) {
            ngx_http_llm_fail(ctx, ngx_http_llm_refusal(ctx, health, engine));
            return;
        }

        if (ngx_http_llm_choose_model(ctx, model, engine) != NGX_OK
            || !ngx_http_llm_key_allows(ctx->identity.key,
                                        &ctx->account.model))
        {
            ngx_http_llm_fail(ctx, &ngx_http_llm_no_such_model);
            return;
        }

        rc = ngx_http_llm_engine_submit(engine, ctx);

        /* crowded now: another one, or wait */

    } while (rc == NGX_BUSY);

    if (rc == NGX_DECLINED) {
        ngx_http_llm_fail(ctx, &ngx_http_llm_too_large);
        return;
    }

    if (rc != NGX_OK) {
        ngx_http_llm_fail(ctx, &ngx_http_llm_engine_lost);
        return;
    }

    if (ctx->tried == 0
        && ngx_http_llm_init_answer(ctx, engine->session.state->fingerprint)
           != NGX_OK)
    {
        ngx_http_llm_finalize(ctx, NGX_HTTP_INTERNAL_SERVER_ERROR);
        return;
    }

    ctx->tried |= ngx_http_llm_engine_bit(model, engine);

    /* engines that are equally loaded take turns */

    model->next++;

    if (model->engines.nelts == 1) {
        ngx_http_llm_params_free(&ctx->params);
    }

    ctx->crowded = NULL;

    /* engines may have been told of its key before they had it */

    if (ngx_http_llm_stop_revoked(ctx) == NGX_DONE) {
        return;
    }

    ngx_http_llm_arm(ctx);
}


static ngx_int_t
ngx_http_llm_stop_revoked(ngx_http_llm_ctx_t *ctx)
{
    switch (ngx_http_llm_check_revoked(ctx->request, ctx->identity.key)) {

    case NGX_OK:
        return NGX_OK;

    case NGX_DECLINED:
        ngx_http_llm_fail(ctx, ngx_http_llm_status_error(LLM_IPC_REVOKED));
        return NGX_DONE;

    default: /* NGX_BUSY: the next worker knows */
        ngx_http_llm_fail(ctx, &ngx_http_llm_draining);
        return NGX_DONE;
    }
}


/* for the session, or for room in it */

static void
ngx_http_llm_wait(ngx_http_llm_ctx_t *ctx, ngx_http_llm_engine_t *engine)
{
    if (ctx->crowded == NULL) {
        ctx->waits_since = ngx_current_msec;
    }

    ctx->crowded = engine->crowded ? engine : NULL;

    ctx->resume = ngx_http_llm_submit;

    ngx_http_llm_engine_wait(engine, ctx);
    ngx_http_llm_arm(ctx);
}


/* whether the engine has its name; an empty one becomes the engine's first */

static ngx_int_t
ngx_http_llm_choose_model(ngx_http_llm_ctx_t *ctx, ngx_http_llm_model_t *model,
    ngx_http_llm_engine_t *engine)
{
    ngx_str_t  *name;

    if (model->name.len) {
        return NGX_OK;
    }

    name = &ctx->account.model;

    return ngx_http_llm_engine_model(engine, name,
                                     (u_char *) ctx->params.model, &name->len);
}
