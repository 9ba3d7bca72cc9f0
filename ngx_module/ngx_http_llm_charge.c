
/*
 * What is held for one request, and what it used in the end.  A charge
 * outlives its request: the engine may tell what was used when the client has
 * long gone.
 */


#include "ngx_module/ngx_http_llm_limit.h"


typedef struct {
    ngx_http_llm_limit_zone_t    *zone;
    ngx_http_llm_limit_hold_t    *hold;
} ngx_http_llm_limit_held_t;


struct ngx_http_llm_charge_s {
    uint32_t                      prompt;
    uint32_t                      completion;  /* that has come */
    uint32_t                      discount;    /* percent */
    uint32_t                      n;
    ngx_http_llm_limit_held_t     held[];
};


ngx_http_llm_charge_t *
ngx_http_llm_charge_new(ngx_http_llm_ctx_t *ctx)
{
    ngx_http_llm_charge_t    *charge;
    ngx_http_llm_loc_conf_t  *llcf;

    charge = ngx_calloc(sizeof(ngx_http_llm_charge_t)
                        + ctx->limited->n * sizeof(ngx_http_llm_limit_held_t),
                        ctx->request->connection->log);
    if (charge) {
        llcf = ngx_http_get_module_loc_conf(ctx->request,
                                            ngx_http_llm_module);

        charge->discount = llcf->limit_cached_discount;
        charge->prompt = ctx->account.prompt_tokens;
    }

    return charge;
}


ngx_int_t
ngx_http_llm_charge_hold(ngx_http_llm_charge_t *charge,
    ngx_http_llm_limit_zone_t *zone, ngx_str_t *key, int64_t amount,
    int64_t burst, int64_t *used)
{
    ngx_int_t                   rc;
    ngx_http_llm_limit_held_t  *held;

    held = &charge->held[charge->n];

    held->zone = zone;

    rc = ngx_http_llm_limit_hold(zone, key, amount, burst, used, &held->hold);

    if (rc == NGX_OK) {
        charge->n++;
    }

    return rc;
}


void
ngx_http_llm_charge_end(ngx_http_llm_charge_t *charge, int64_t amount)
{
    ngx_uint_t  i;

    for (i = 0; i < charge->n; i++) {
        ngx_http_llm_limit_settle(charge->held[i].zone, charge->held[i].hold,
                                  amount);
    }

    ngx_free(charge);
}


void
ngx_http_llm_charge_came(ngx_http_llm_charge_t *charge, uint32_t tokens)
{
    charge->completion += tokens;
}


void
ngx_http_llm_charge_finished(ngx_http_llm_charge_t *charge,
    struct llm_ipc_finished *finished)
{
    int64_t  amount, cached;

    cached = ngx_min(finished->cached_tokens, finished->read_tokens);

    amount = ((int64_t) finished->read_tokens + finished->completion_tokens)
             * NGX_HTTP_LLM_LIMIT_UNIT
             - cached * charge->discount * (NGX_HTTP_LLM_LIMIT_UNIT / 100);

    ngx_http_llm_charge_end(charge, amount);
}


/* the engine was lost, who has seen nothing of it has read no prompt */

void
ngx_http_llm_charge_lost(ngx_http_llm_charge_t *charge)
{
    int64_t  n;

    n = charge->completion ? (int64_t) charge->prompt + charge->completion : 0;

    ngx_http_llm_charge_end(charge, n * NGX_HTTP_LLM_LIMIT_UNIT);
}
