
/* The routes that an engine's state answers: models and health. */


#include "ngx_module/ngx_http_llm_module.h"
#include "engine/ipc/utf8.h"


static ngx_int_t ngx_http_llm_wait_for_any(ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_answer_from_state(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_state_answer_pt answer);
static void ngx_http_llm_resume_answer(ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_send_models(ngx_http_llm_ctx_t *ctx);
static ngx_http_llm_error_t *ngx_http_llm_unlisted(ngx_array_t *models,
    ngx_str_t *name);
static void ngx_http_llm_put_model(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_model_t *model, ngx_str_t *only, ngx_uint_t *n);
static ngx_uint_t ngx_http_llm_was_named(struct llm_ipc_state *state,
    uint32_t i);
static void ngx_http_llm_put_name(ngx_http_llm_ctx_t *ctx, ngx_str_t *name,
    uint64_t created, ngx_str_t *only, ngx_uint_t *n);
static ngx_int_t ngx_http_llm_send_health(ngx_http_llm_ctx_t *ctx);


/* NGX_AGAIN: the request waits for a session that is being made */

static ngx_int_t
ngx_http_llm_wait_for_any(ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t                 i, k;
    ngx_http_llm_model_t      *model;
    ngx_http_llm_engine_t    **engines;
    ngx_http_llm_loc_conf_t   *llcf;

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

    model = llcf->models->elts;

    for (i = 0; i < llcf->models->nelts; i++) {
        engines = model[i].engines.elts;

        for (k = 0; k < model[i].engines.nelts; k++) {

            if (ngx_http_llm_engine_health(engines[k])
                != NGX_HTTP_LLM_CONNECTING)
            {
                continue;
            }

            if (!ctx->in_flight) {

                if (ngx_http_llm_begin(ctx) != NGX_OK) {
                    return NGX_ERROR;
                }

                ctx->request->main->count++;
            }

            ctx->resume = ngx_http_llm_resume_answer;
            ngx_http_llm_engine_wait(engines[k], ctx);

            return NGX_AGAIN;
        }
    }

    return NGX_OK;
}


/* content handler of what an engine's state answers */

static ngx_int_t
ngx_http_llm_answer_from_state(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_state_answer_pt answer)
{
    ngx_int_t  rc;

    rc = ngx_http_discard_request_body(ctx->request);

    if (rc != NGX_OK) {
        return rc;
    }

    ctx->state_answer = answer;

    switch (ngx_http_llm_wait_for_any(ctx)) {

    case NGX_OK:
        return answer(ctx);

    case NGX_AGAIN:
        return NGX_DONE;

    default:
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }
}


static void
ngx_http_llm_resume_answer(ngx_http_llm_ctx_t *ctx)
{
    if (ngx_http_llm_wait_for_any(ctx) != NGX_AGAIN) {
        ngx_http_llm_finalize(ctx, ctx->state_answer(ctx));
    }
}


ngx_int_t
ngx_http_llm_list_models(ngx_http_llm_ctx_t *ctx)
{
    return ngx_http_llm_answer_from_state(ctx, ngx_http_llm_send_models);
}


ngx_int_t
ngx_http_llm_show_health(ngx_http_llm_ctx_t *ctx)
{
    return ngx_http_llm_answer_from_state(ctx, ngx_http_llm_send_health);
}


static ngx_int_t
ngx_http_llm_send_models(ngx_http_llm_ctx_t *ctx)
{
    ngx_str_t                *only;
    ngx_uint_t                i, n;
    ngx_http_llm_model_t     *model;
    ngx_http_llm_writer_t    *w;
    ngx_http_llm_health_e     health;
    ngx_http_llm_engine_t    *engine;
    ngx_http_llm_loc_conf_t  *llcf;

    w = &ctx->writer;

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

    health = ngx_http_llm_models_health(llcf->models, &engine);

    if (health > NGX_HTTP_LLM_FULL) {
        return ngx_http_llm_send_error(ctx, ngx_http_llm_health_error(health));
    }

    only = ctx->rest.len ? &ctx->rest : NULL;
    n = 0;

    if (only && !ngx_http_llm_key_allows(ctx->identity.key, only)) {
        return ngx_http_llm_send_error(ctx, &ngx_http_llm_no_such_model);
    }

    if (only == NULL) {
        ngx_http_llm_put_text(w, "{\"object\":\"list\",\"data\":[");
    }

    model = llcf->models->elts;

    for (i = 0; i < llcf->models->nelts; i++) {
        ngx_http_llm_put_model(ctx, &model[i], only, &n);
    }

    if (only == NULL) {
        ngx_http_llm_put_text(w, "]}");

    } else if (n == 0) {
        return ngx_http_llm_send_error(ctx,
                               ngx_http_llm_unlisted(llcf->models, only));
    }

    return ngx_http_llm_send_json(ctx, NGX_HTTP_OK, w);
}


/* why a name is not there: nobody has it, or whoever has it does not serve */

static ngx_http_llm_error_t *
ngx_http_llm_unlisted(ngx_array_t *models, ngx_str_t *name)
{
    ngx_http_llm_model_t   *model;
    ngx_http_llm_health_e   health;
    ngx_http_llm_engine_t  *engine;

    model = ngx_http_llm_find_model(models, name);

    if (model) {
        health = ngx_http_llm_model_health(model, &engine);

        if (health > NGX_HTTP_LLM_FULL) {
            return ngx_http_llm_health_error(health);
        }
    }

    return &ngx_http_llm_no_such_model;
}


/* all names of the model, or only that one; n counts what was written */

static void
ngx_http_llm_put_model(ngx_http_llm_ctx_t *ctx, ngx_http_llm_model_t *model,
    ngx_str_t *only, ngx_uint_t *n)
{
    uint32_t                i;
    ngx_str_t               name;
    struct llm_ipc_state    state;
    ngx_http_llm_health_e   health;
    ngx_http_llm_engine_t  *engine;

    health = ngx_http_llm_model_health(model, &engine);

    if (health != NGX_HTTP_LLM_READY && health != NGX_HTTP_LLM_FULL) {
        return;
    }

    llm_ipc_state_read(&engine->session, &state);

    if (model->name.len) {
        ngx_http_llm_put_name(ctx, &model->name, state.start_time, only, n);
        return;
    }

    for (i = 0; i < state.n_names; i++) {
        name.data = (u_char *) state.names[i];
        name.len = ngx_strlen(name.data);

        if (llm_ipc_utf8_valid(name.data, name.len)
            && !ngx_http_llm_was_named(&state, i))
        {
            ngx_http_llm_put_name(ctx, &name, state.start_time, only, n);
        }
    }
}


/* an engine may say a name twice */

static ngx_uint_t
ngx_http_llm_was_named(struct llm_ipc_state *state, uint32_t i)
{
    uint32_t  k;

    for (k = 0; k < i; k++) {
        if (ngx_strcmp(state->names[k], state->names[i]) == 0) {
            return 1;
        }
    }

    return 0;
}


static void
ngx_http_llm_put_name(ngx_http_llm_ctx_t *ctx, ngx_str_t *name,
    uint64_t created, ngx_str_t *only, ngx_uint_t *n)
{
    ngx_http_llm_writer_t  *w;

    if (only && (only->len != name->len
                 || ngx_memcmp(only->data, name->data, name->len) != 0))
    {
        return;
    }

    if (!ngx_http_llm_key_allows(ctx->identity.key, name)) {
        return;
    }

    w = &ctx->writer;

    if ((*n)++) {
        ngx_http_llm_put_text(w, ",");
    }

    ngx_http_llm_put_text(w, "{\"id\":");
    ngx_http_llm_put_string(w, name->data, name->len);
    ngx_http_llm_put_text(w, ",\"object\":\"model\",\"created\":");
    ngx_http_llm_put_number(w, created);
    ngx_http_llm_put_text(w, ",\"owned_by\":\"ngx-llm\"}");
}


/* well is who can answer for every model */

static ngx_int_t
ngx_http_llm_send_health(ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t                i;
    ngx_http_llm_model_t     *model;
    ngx_http_llm_health_e     health;
    ngx_http_llm_engine_t    *engine;
    ngx_http_llm_loc_conf_t  *llcf;

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

    model = llcf->models->elts;

    for (i = 0; i < llcf->models->nelts; i++) {
        health = ngx_http_llm_model_health(&model[i], &engine);

        if (health != NGX_HTTP_LLM_READY && health != NGX_HTTP_LLM_FULL) {
            return ngx_http_llm_send_error(ctx,
                                           ngx_http_llm_health_error(health));
        }
    }

    ngx_http_llm_put_text(&ctx->writer, "{\"status\":\"ok\"}");

    return ngx_http_llm_send_json(ctx, NGX_HTTP_OK, &ctx->writer);
}
