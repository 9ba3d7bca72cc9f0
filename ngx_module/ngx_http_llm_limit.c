
/*
 * What a request may use.
 *
 * Requests are counted before the body is read.  Of tokens there must be some
 * left then; once the engine has counted the prompt, room is held for it and
 * for the longest completion, or the request is refused.
 */


#include "ngx_module/ngx_http_llm_limit.h"


static ngx_int_t ngx_http_llm_limit_set_budget(ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_limit_exhausted(ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_limit_look(ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_limit_take(ngx_http_llm_ctx_t *ctx,
    ngx_uint_t tokens, int64_t n, ngx_http_llm_charge_t *charge);
static void ngx_http_llm_limit_delay(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_limit_t *limit, int64_t used);
static ngx_int_t ngx_http_llm_limit_refuse(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_limit_t *limit, int64_t used, int64_t n);
static void ngx_http_llm_limit_set_status(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_limit_status_e status);
static ngx_int_t ngx_http_llm_limit_fit_budget(ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_limit_fit(ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_limit_check_delay(ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_limit_error(ngx_http_llm_ctx_t *ctx,
    ngx_uint_t status, ngx_uint_t retry_after, const char *code,
    const char *param, const char *fmt, ...);


/* as long as a text of an error can get */
#define NGX_HTTP_LLM_LIMIT_TEXT  256


const char  *ngx_http_llm_limit_statuses[] = {
    "none", "passed", "delayed_dry_run", "rejected_dry_run", "delayed",
    "rejected"
};


ngx_int_t
ngx_http_llm_limit_check(ngx_http_llm_ctx_t *ctx)
{
    ngx_int_t               rc;
    ngx_http_llm_charge_t  *charge;

    if (ngx_http_llm_limit_evaluate(ctx) != NGX_OK) {
        return NGX_ERROR;
    }

    if (ctx->limited == NULL) {
        return NGX_OK;
    }

    rc = ngx_http_llm_limit_set_budget(ctx);

    if (rc == NGX_OK) {
        rc = ngx_http_llm_limit_look(ctx);
    }

    if (rc != NGX_OK) {
        return rc;
    }

    charge = ngx_http_llm_charge_new(ctx);
    if (charge == NULL) {
        return NGX_ERROR;
    }

    rc = ngx_http_llm_limit_take(ctx, 0, 1, charge);

    /* it is made, whatever becomes of it */

    ngx_http_llm_charge_end(charge,
                            rc == NGX_OK ? NGX_HTTP_LLM_LIMIT_UNIT : 0);

    return rc;
}


ngx_int_t
ngx_http_llm_limit_evaluate(ngx_http_llm_ctx_t *ctx)
{
    ngx_str_t                  *key;
    ngx_uint_t                  i, n;
    ngx_http_llm_limit_t       *limits;
    ngx_http_llm_limited_t     *limited;
    ngx_http_llm_loc_conf_t    *llcf;
    ngx_http_llm_limit_zone_t  *zone;

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

    if (ctx->limited || (llcf->limits == NULL && llcf->budget == NULL)) {
        return NGX_OK;
    }

    limits = llcf->limits ? llcf->limits->elts : NULL;
    n = llcf->limits ? llcf->limits->nelts : 0;

    limited = ngx_pcalloc(ctx->request->pool,
                          sizeof(ngx_http_llm_limited_t)
                          + n * sizeof(ngx_str_t));
    if (limited == NULL) {
        return NGX_ERROR;
    }

    limited->limits = limits;
    limited->n = n;
    limited->begin = ngx_current_msec;
    limited->budget = -1;

    for (i = 0; i < n; i++) {
        key = &limited->keys[i];
        zone = limits[i].shm_zone->data;

        if (ngx_http_complex_value(ctx->request, &zone->key, key) != NGX_OK) {
            return NGX_ERROR;
        }

        if (key->len > 65535) {
            ngx_log_error(NGX_LOG_ERR, ctx->request->connection->log, 0,
                          "the value of the \"%V\" key is more than 65535 "
                          "bytes", &zone->key.value);
            key->len = 0;
        }
    }

    ctx->limited = limited;

    return NGX_OK;
}


/* what a variable says is of whoever keeps the accounts: it may be overdrawn */

static ngx_int_t
ngx_http_llm_limit_set_budget(ngx_http_llm_ctx_t *ctx)
{
    ngx_str_t                 value;
    ngx_int_t                 n;
    ngx_http_request_t       *r;
    ngx_http_llm_loc_conf_t  *llcf;

    r = ctx->request;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    if (llcf->budget == NULL) {
        return NGX_OK;
    }

    if (ngx_http_complex_value(r, llcf->budget, &value) != NGX_OK) {
        return NGX_ERROR;
    }

    if (value.len == 0) {
        return NGX_OK;
    }

    n = (value.data[0] == '-') ? 0 : ngx_atoi(value.data, value.len);

    if (n == NGX_ERROR) {
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                      "the value \"%V\" of \"llm_budget\" is no integer",
                      &value);
        return NGX_ERROR;
    }

    ctx->limited->budget = n;

    return n ? NGX_OK : ngx_http_llm_limit_exhausted(ctx);
}


static ngx_int_t
ngx_http_llm_limit_exhausted(ngx_http_llm_ctx_t *ctx)
{
    ngx_http_llm_limit_set_status(ctx, NGX_HTTP_LLM_LIMIT_REJECTED);

    return ngx_http_llm_limit_error(ctx, NGX_HTTP_TOO_MANY_REQUESTS, 0,
                                    "insufficient_quota", NULL,
                                    "The budget of %i tokens does not suffice "
                                    "for this request.",
                                    ctx->limited->budget);
}


/* where no token is left there is no need to count the prompt */

static ngx_int_t
ngx_http_llm_limit_look(ngx_http_llm_ctx_t *ctx)
{
    int64_t                     used;
    ngx_uint_t                  i;
    ngx_http_llm_limit_t       *limit;
    ngx_http_llm_limited_t     *limited;
    ngx_http_llm_limit_zone_t  *zone;

    limited = ctx->limited;

    for (i = 0; i < limited->n; i++) {
        limit = &limited->limits[i];
        zone = limit->shm_zone->data;

        if (!zone->tokens || limited->keys[i].len == 0 || limit->dry_run) {
            continue;
        }

        if (ngx_http_llm_limit_hold(zone, &limited->keys[i],
                                    NGX_HTTP_LLM_LIMIT_UNIT,
                                    ngx_http_llm_limit_burst(limit), &used,
                                    NULL)
            != NGX_OK)
        {
            return ngx_http_llm_limit_refuse(ctx, limit, used, 1);
        }
    }

    return NGX_OK;
}


/* n tokens, or requests, of all limits of them; on failure of some */

static ngx_int_t
ngx_http_llm_limit_take(ngx_http_llm_ctx_t *ctx, ngx_uint_t tokens, int64_t n,
    ngx_http_llm_charge_t *charge)
{
    int64_t                     used;
    ngx_int_t                   rc;
    ngx_uint_t                  i;
    ngx_http_llm_limit_t       *limit;
    ngx_http_llm_limited_t     *limited;
    ngx_http_llm_limit_zone_t  *zone;

    limited = ctx->limited;

    for (i = 0; i < limited->n; i++) {
        limit = &limited->limits[i];
        zone = limit->shm_zone->data;

        if (zone->tokens != tokens || limited->keys[i].len == 0) {
            continue;
        }

        rc = ngx_http_llm_charge_hold(charge, zone, &limited->keys[i],
                                      n * NGX_HTTP_LLM_LIMIT_UNIT,
                                      ngx_http_llm_limit_burst(limit), &used);
        if (rc == NGX_OK) {
            ngx_http_llm_limit_delay(ctx, limit, used);
            continue;
        }

        rc = ngx_http_llm_limit_refuse(ctx, limit, used, n);

        if (rc != NGX_OK) {
            return rc;
        }
    }

    if (limited->n) {
        ngx_http_llm_limit_set_status(ctx, NGX_HTTP_LLM_LIMIT_PASSED);
    }

    return NGX_OK;
}


/* what was used before it has to drain first */

static void
ngx_http_llm_limit_delay(ngx_http_llm_ctx_t *ctx, ngx_http_llm_limit_t *limit,
    int64_t used)
{
    ngx_uint_t                  level;
    ngx_msec_t                  delay;
    ngx_http_llm_limited_t     *limited;
    ngx_http_llm_loc_conf_t    *llcf;
    ngx_http_llm_limit_zone_t  *zone;

    if (limit->nodelay || used == 0) {
        return;
    }

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

    zone = limit->shm_zone->data;
    delay = (used + zone->rate - 1) / zone->rate;

    level = ngx_min(llcf->limit_log_level + 1, NGX_LOG_INFO);

    ngx_log_error(level, ctx->request->connection->log, 0,
                  "delaying request%s by %M ms by zone \"%V\"",
                  limit->dry_run ? ", dry run," : "", delay, zone->name);

    if (limit->dry_run) {
        ngx_http_llm_limit_set_status(ctx,
                                      NGX_HTTP_LLM_LIMIT_DELAYED_DRY_RUN);
        return;
    }

    ngx_http_llm_limit_set_status(ctx, NGX_HTTP_LLM_LIMIT_DELAYED);

    limited = ctx->limited;

    if ((ngx_msec_int_t) (ngx_current_msec + delay - limited->begin) > 0) {
        limited->begin = ngx_current_msec + delay;
    }
}


/* NGX_OK: it is a dry run; NGX_DECLINED: ctx->error tells the client */

static ngx_int_t
ngx_http_llm_limit_refuse(ngx_http_llm_ctx_t *ctx, ngx_http_llm_limit_t *limit,
    int64_t used, int64_t n)
{
    int64_t                     ms, limits, uses;
    const char                 *what;
    ngx_uint_t                  after;
    ngx_http_llm_loc_conf_t    *llcf;
    ngx_http_llm_limit_zone_t  *zone;

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

    zone = limit->shm_zone->data;
    what = zone->tokens ? "tokens" : "requests";

    uses = (used + NGX_HTTP_LLM_LIMIT_UNIT - 1) / NGX_HTTP_LLM_LIMIT_UNIT;
    limits = ngx_http_llm_limit_burst(limit) / NGX_HTTP_LLM_LIMIT_UNIT;

    ngx_log_error(llcf->limit_log_level, ctx->request->connection->log, 0,
                  "limiting %s%s, %L asked for, %L of %L in use by zone "
                  "\"%V\"",
                  what, limit->dry_run ? ", dry run" : "", n, uses, limits,
                  zone->name);

    if (limit->dry_run) {
        ngx_http_llm_limit_set_status(ctx,
                                      NGX_HTTP_LLM_LIMIT_REJECTED_DRY_RUN);
        return NGX_OK;
    }

    ngx_http_llm_limit_set_status(ctx, NGX_HTTP_LLM_LIMIT_REJECTED);

    ms = (used + n * NGX_HTTP_LLM_LIMIT_UNIT - ngx_http_llm_limit_burst(limit))
         / zone->rate;

    after = ngx_max(ms, 0) / 1000 + 1;

    return ngx_http_llm_limit_error(ctx, llcf->limit_status, after,
                                    "rate_limit_exceeded", NULL,
                                    "Rate limit reached for %s: %L of %L are "
                                    "in use, %L asked for. Please try again "
                                    "in %ui s.",
                                    what, uses, limits, n, after);
}


static void
ngx_http_llm_limit_set_status(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_limit_status_e status)
{
    ctx->limited->status = ngx_max(ctx->limited->status, status);
}


ngx_uint_t
ngx_http_llm_limit_holds(ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t                  i;
    ngx_http_llm_limited_t     *limited;
    ngx_http_llm_limit_zone_t  *zone;

    limited = ctx->limited;

    if (limited == NULL) {
        return 0;
    }

    if (limited->budget != -1) {
        return 1;
    }

    for (i = 0; i < limited->n; i++) {
        zone = limited->limits[i].shm_zone->data;

        if (zone->tokens && limited->keys[i].len) {
            return 1;
        }
    }

    return ngx_http_llm_limit_delay_left(ctx) > 0;
}


ngx_int_t
ngx_http_llm_limit_reserve(ngx_http_llm_ctx_t *ctx)
{
    int64_t                 n;
    ngx_int_t               rc;
    ngx_http_llm_charge_t  *charge;

    ctx->allowed = ctx->params.n_max_tokens;

    rc = ngx_http_llm_limit_fit_budget(ctx);

    if (rc == NGX_OK) {
        rc = ngx_http_llm_limit_fit(ctx);
    }

    if (rc != NGX_OK) {
        return rc;
    }

    charge = ngx_http_llm_charge_new(ctx);
    if (charge == NULL) {
        return NGX_ERROR;
    }

    n = ctx->account.prompt_tokens
        + (int64_t) ctx->params.n_choices * ctx->allowed;

    rc = ngx_http_llm_limit_take(ctx, 1, n, charge);

    if (rc == NGX_OK) {
        rc = ngx_http_llm_limit_check_delay(ctx);
    }

    if (rc != NGX_OK) {
        ngx_http_llm_charge_end(charge, 0);
        return rc;
    }

    ctx->engine->slots[ctx->slot].charge = charge;

    return NGX_OK;
}


/* it is cut where its budget ends, each choice of several with its part */

static ngx_int_t
ngx_http_llm_limit_fit_budget(ngx_http_llm_ctx_t *ctx)
{
    int64_t  each;

    if (ctx->limited->budget == -1) {
        return NGX_OK;
    }

    each = ((int64_t) ctx->limited->budget - ctx->account.prompt_tokens)
           / ctx->params.n_choices;

    if (each < 1) {
        return ngx_http_llm_limit_exhausted(ctx);
    }

    if (each < ctx->allowed) {
        ctx->allowed = each;
        ctx->cut = 1;
    }

    return NGX_OK;
}


/*
 * A request that can never fit is refused for good.  One that did not say how
 * long its completion may get is as long as fits.
 */

static ngx_int_t
ngx_http_llm_limit_fit(ngx_http_llm_ctx_t *ctx)
{
    int64_t                     prompt, most, n;
    ngx_uint_t                  i;
    ngx_http_llm_limit_t       *limit;
    ngx_http_llm_limited_t     *limited;
    ngx_http_llm_limit_zone_t  *zone;

    limited = ctx->limited;
    prompt = ctx->account.prompt_tokens;
    n = ctx->params.n_choices;

    for (i = 0; i < limited->n; i++) {
        limit = &limited->limits[i];
        zone = limit->shm_zone->data;

        if (!zone->tokens || limited->keys[i].len == 0 || limit->dry_run) {
            continue;
        }

        most = ngx_http_llm_limit_burst(limit) / NGX_HTTP_LLM_LIMIT_UNIT;

        if (prompt + n * ctx->allowed <= most) {
            continue;
        }

        if (ctx->fits && prompt + n <= most) {
            ctx->allowed = (most - prompt) / n;
            continue;
        }

        ngx_http_llm_limit_set_status(ctx, NGX_HTTP_LLM_LIMIT_REJECTED);

        return ngx_http_llm_limit_error(ctx, NGX_HTTP_BAD_REQUEST, 0,
                         "token_limit_exceeded", "max_tokens",
                         "At most %L tokens are allowed at once. However, you "
                         "requested %L tokens (%L in the prompt, %L in the "
                         "completion). Please reduce the length of the prompt "
                         "or completion.",
                         most, prompt + n * ctx->allowed, prompt,
                         n * ctx->allowed);
    }

    return NGX_OK;
}


/* a request whose time in the queue would be over first need not wait */

static ngx_int_t
ngx_http_llm_limit_check_delay(ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t                after;
    ngx_msec_int_t            delay;
    ngx_http_llm_loc_conf_t  *llcf;

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

    delay = ngx_http_llm_limit_delay_left(ctx);

    if (llcf->queue_timeout == 0
        || delay < (ngx_msec_int_t) llcf->queue_timeout)
    {
        return NGX_OK;
    }

    ngx_http_llm_limit_set_status(ctx, NGX_HTTP_LLM_LIMIT_REJECTED);

    after = delay / 1000 + 1;

    return ngx_http_llm_limit_error(ctx, llcf->limit_status, after,
                                    "rate_limit_exceeded", NULL,
                                    "Rate limit reached. Please try again in "
                                    "%ui s.",
                                    after);
}


static ngx_int_t
ngx_http_llm_limit_error(ngx_http_llm_ctx_t *ctx, ngx_uint_t status,
    ngx_uint_t retry_after, const char *code, const char *param,
    const char *fmt, ...)
{
    u_char   *text, *last;
    va_list   args;

    text = ngx_pnalloc(ctx->request->pool, NGX_HTTP_LLM_LIMIT_TEXT);
    if (text == NULL) {
        return NGX_ERROR;
    }

    va_start(args, fmt);
    last = ngx_vslprintf(text, text + NGX_HTTP_LLM_LIMIT_TEXT - 1, fmt, args);
    va_end(args);

    *last = '\0';

    ctx->error.status = status;
    ctx->error.code = code;
    ctx->error.param = param;
    ctx->error.message = (const char *) text;
    ctx->error.retry_after = retry_after;

    return NGX_DECLINED;
}


int64_t
ngx_http_llm_limit_burst(ngx_http_llm_limit_t *limit)
{
    ngx_http_llm_limit_zone_t  *zone;

    zone = limit->shm_zone->data;

    return (limit->burst ? limit->burst : zone->rate)
           * NGX_HTTP_LLM_LIMIT_UNIT;
}


ngx_msec_int_t
ngx_http_llm_limit_delay_left(ngx_http_llm_ctx_t *ctx)
{
    return (ngx_msec_int_t) (ctx->limited->begin - ngx_current_msec);
}


ngx_http_llm_limit_status_e
ngx_http_llm_limit_status(ngx_http_llm_ctx_t *ctx)
{
    return ctx->limited ? ctx->limited->status : NGX_HTTP_LLM_LIMIT_NONE;
}
