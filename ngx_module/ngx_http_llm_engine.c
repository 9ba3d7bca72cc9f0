
/* Which engine: health and load as they stand in the engines' own memory. */


#include "ngx_module/ngx_http_llm_module.h"
#include "engine/ipc/filter.h"
#include "engine/ipc/utf8.h"


/* how many choices more than others an engine may have for a prefix's sake */
#define NGX_HTTP_LLM_AFFINITY   8

/* seconds; what may be added makes them a minute */
#define NGX_HTTP_LLM_MAX_RETRY  47


static uint64_t ngx_http_llm_engine_load(ngx_http_llm_engine_t *engine);


ngx_http_llm_error_t  ngx_http_llm_no_such_model = {
    NGX_HTTP_NOT_FOUND, "model_not_found", "model",
    "The model does not exist", 0
};


/* words of the state change under the eyes of the reader: each is read once */

#define ngx_http_llm_state_word(engine, word)                                \
    __atomic_load_n(&(engine)->session.state->word, __ATOMIC_RELAXED)


ngx_http_llm_health_e
ngx_http_llm_engine_health(ngx_http_llm_engine_t *engine)
{
    uint32_t  flags, limit;
    uint64_t  beat, now, tokens;

    if (engine->state == NGX_HTTP_LLM_ENGINE_DOWN
        && !ngx_exiting
        && (engine->failures == 0
            || (ngx_msec_int_t) (ngx_current_msec - engine->retry) >= 0))
    {
        ngx_http_llm_engine_connect(engine);
    }

    if (engine->state != NGX_HTTP_LLM_ENGINE_UP) {
        return (engine->state == NGX_HTTP_LLM_ENGINE_DOWN)
               ? NGX_HTTP_LLM_DOWN : NGX_HTTP_LLM_CONNECTING;
    }

    flags = ngx_http_llm_state_word(engine, flags);

    if (flags & LLM_IPC_STATE_FAILED) {
        return NGX_HTTP_LLM_FAILED;
    }

    if (flags & LLM_IPC_STATE_DRAINING) {
        return NGX_HTTP_LLM_DRAINING;
    }

    if (!(flags & LLM_IPC_STATE_READY)) {
        return NGX_HTTP_LLM_LOADING;
    }

    beat = ngx_http_llm_state_word(engine, beat_ns);
    now = ngx_http_llm_clock();

    if (now > beat && now - beat > NGX_HTTP_LLM_STALE * 1000000ull) {
        return NGX_HTTP_LLM_STALLED;
    }

    limit = ngx_http_llm_state_word(engine, queue_limit_requests);
    tokens = ngx_http_llm_state_word(engine, queue_limit_tokens);

    if ((limit && ngx_http_llm_state_word(engine, queued_requests) >= limit)
        || (tokens && ngx_http_llm_state_word(engine, queued_tokens) >= tokens)
        || engine->free == engine->session.slots)
    {
        return NGX_HTTP_LLM_FULL;
    }

    return NGX_HTTP_LLM_READY;
}


/*
 * In choices, of which every one is work.  What the engine says lags behind a
 * burst of this worker's own, and counts what runs by requests: so these are
 * a lower bound, and the worker's own another.  One that is crowded comes
 * last.
 */

static uint64_t
ngx_http_llm_engine_load(ngx_http_llm_engine_t *engine)
{
    uint64_t  load;

    if (engine->crowded) {
        return UINT64_MAX;
    }

    load = (uint64_t) ngx_http_llm_state_word(engine, queued_requests)
           + ngx_http_llm_state_word(engine, running_requests);

    return ngx_max(load, engine->choices);
}


ngx_http_llm_health_e
ngx_http_llm_model_health(ngx_http_llm_model_t *model,
    ngx_http_llm_engine_t **best)
{
    return ngx_http_llm_others_health(model, 0, best);
}


ngx_http_llm_health_e
ngx_http_llm_others_health(ngx_http_llm_model_t *model, uint64_t but,
    ngx_http_llm_engine_t **best)
{
    uint64_t                  load, least;
    ngx_uint_t                i, n;
    ngx_http_llm_health_e     health, found;
    ngx_http_llm_engine_t   **engines, *engine;

    engines = model->engines.elts;
    n = model->engines.nelts;

    found = NGX_HTTP_LLM_DOWN;
    least = 0;

    *best = engines[0];

    for (i = 0; i < n; i++) {
        engine = engines[(model->next + i) % n];

        if (but & ngx_http_llm_engine_bit(model, engine)) {
            continue;
        }

        health = ngx_http_llm_engine_health(engine);
        load = 0;

        if (health == NGX_HTTP_LLM_READY || health == NGX_HTTP_LLM_FULL) {
            load = ngx_http_llm_engine_load(engine);
        }

        if (health < found || (health == found && load < least)) {
            found = health;
            least = load;
            *best = engine;
        }
    }

    return found;
}


uint64_t
ngx_http_llm_engine_bit(ngx_http_llm_model_t *model,
    ngx_http_llm_engine_t *engine)
{
    ngx_uint_t                i;
    ngx_http_llm_engine_t   **engines;

    engines = model->engines.elts;

    for (i = 0; engines[i] != engine; i++) { /* void */ }

    return 1ull << i;
}


ngx_http_llm_health_e
ngx_http_llm_choose_engine(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_model_t *model, ngx_http_llm_engine_t **best)
{
    uint64_t                  load, least, most;
    uint32_t                  first;
    ngx_uint_t                i, n, known, found;
    ngx_http_llm_health_e     health;
    ngx_http_llm_engine_t   **engines, *engine;

    health = ngx_http_llm_others_health(model, ctx->tried, best);

    engines = model->engines.elts;
    n = model->engines.nelts;

    if (n == 1 || health != NGX_HTTP_LLM_READY || (*best)->crowded) {
        return health;
    }

    if (!ctx->prefixed) {
        ctx->prefixed = 1;
        ctx->has_prefix = ngx_http_llm_request_prefix(ctx, ctx->prefix);
    }

    if (!ctx->has_prefix) {
        return health;
    }

    least = ngx_http_llm_engine_load(*best);
    most = least + least / 2 + NGX_HTTP_LLM_AFFINITY;
    known = 0;
    found = 0;

    /* of those that are equally loaded every worker finds the same one */

    ngx_memcpy(&first, ctx->prefix, sizeof(first));

    for (i = 0; i < n; i++) {
        engine = engines[(first + i) % n];

        if ((ctx->tried & ngx_http_llm_engine_bit(model, engine))
            || ngx_http_llm_engine_health(engine) != NGX_HTTP_LLM_READY)
        {
            continue;
        }

        load = ngx_http_llm_engine_load(engine);

        if (load <= most
            && llm_ipc_filter_has(&engine->session, ctx->prefix))
        {
            if (!known || load < least) {
                known = 1;
                least = load;
                *best = engine;
            }

        } else if (!known && !found && load == least) {
            found = 1;
            *best = engine;
        }
    }

    return NGX_HTTP_LLM_READY;
}


ngx_http_llm_health_e
ngx_http_llm_models_health(ngx_array_t *models, ngx_http_llm_engine_t **best)
{
    ngx_uint_t              i;
    ngx_http_llm_model_t   *model;
    ngx_http_llm_health_e   health, found;
    ngx_http_llm_engine_t  *engine;

    model = models->elts;

    found = ngx_http_llm_model_health(&model[0], best);

    for (i = 1; i < models->nelts; i++) {
        health = ngx_http_llm_model_health(&model[i], &engine);

        if (health < found) {
            found = health;
            *best = engine;
        }
    }

    return found;
}


ngx_uint_t
ngx_http_llm_engine_retry_after(ngx_http_llm_engine_t *engine)
{
    uint32_t  rate;
    uint64_t  n, tokens;

    tokens = ngx_http_llm_state_word(engine, queued_tokens);
    rate = ngx_http_llm_state_word(engine, prefill_rate);

    n = rate ? tokens / rate : 0;
    n = ngx_min(ngx_max(n, 1), NGX_HTTP_LLM_MAX_RETRY);

    return n + ngx_random() % (n / 4 + 2);
}


ngx_http_llm_model_t *
ngx_http_llm_find_model(ngx_array_t *models, ngx_str_t *name)
{
    ngx_uint_t             i;
    ngx_http_llm_model_t  *model;

    model = models->elts;

    for (i = 0; i < models->nelts; i++) {

        /* the only one with the engine's own names, or the default */

        if (model[i].name.len == 0
            || (name->len == 0 && (model[i].preset || models->nelts == 1)))
        {
            return &model[i];
        }

        if (model[i].name.len == name->len
            && ngx_memcmp(model[i].name.data, name->data, name->len) == 0)
        {
            return &model[i];
        }
    }

    return NULL;
}


ngx_int_t
ngx_http_llm_engine_model(ngx_http_llm_engine_t *engine, ngx_str_t *name,
    u_char *first, size_t *len)
{
    uint32_t              i;
    struct llm_ipc_state  state;

    llm_ipc_state_read(&engine->session, &state);

    if (name->len == 0 && state.n_names) {
        *len = ngx_strlen(state.names[0]);
        ngx_memcpy(first, state.names[0], *len);

        return llm_ipc_utf8_valid(first, *len) ? NGX_OK : NGX_DECLINED;
    }

    for (i = 0; i < state.n_names; i++) {

        if (ngx_strlen(state.names[i]) == name->len
            && ngx_memcmp(state.names[i], name->data, name->len) == 0)
        {
            return NGX_OK;
        }
    }

    return NGX_DECLINED;
}
