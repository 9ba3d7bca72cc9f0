
/*
 * The next engine: one that is going to end sends back what has not begun
 * there, one whose queue is full what comes.  Nothing was made of such a
 * request, so another engine of its model may have it.
 */


#include "ngx_module/ngx_http_llm_module.h"


ngx_uint_t
ngx_http_llm_may_pass_on(ngx_http_llm_ctx_t *ctx)
{
    ngx_http_llm_model_t     *model;
    ngx_http_llm_engine_t    *engine;
    ngx_http_llm_loc_conf_t  *llcf;

    if (!ctx->done || ctx->params.payload == NULL) {
        return 0;
    }

    if (!ctx->unread
        && ctx->finished.status != LLM_IPC_DRAINING
        && ctx->finished.status != LLM_IPC_QUEUE_FULL)
    {
        return 0;
    }

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

    model = ngx_http_llm_find_model(llcf->models, &ctx->account.model);

    return ngx_http_llm_others_health(model, ctx->tried, &engine)
           <= NGX_HTTP_LLM_CONNECTING;
}


void
ngx_http_llm_pass_on(ngx_http_llm_ctx_t *ctx)
{
    ctx->done = 0;
    ctx->unread = 0;
    ctx->held = 0;
    ctx->admitted = 0;
    ctx->account.counted = 0;
    ctx->account.finished = 0;

    ngx_memzero(&ctx->error, sizeof(ngx_http_llm_error_t));
    ngx_memzero(&ctx->finished, sizeof(struct llm_ipc_finished));

    ngx_http_llm_submit(ctx);
}
