
/* What an answer tells of the limits of its request: x-ratelimit-… */


#include "ngx_module/ngx_http_llm_limit.h"


static ngx_int_t ngx_http_llm_limit_add_headers(ngx_http_llm_ctx_t *ctx,
    ngx_uint_t tokens);
static ngx_int_t ngx_http_llm_limit_add_header(ngx_http_request_t *r,
    const char *key, const char *fmt, ...);


/* of the limit that leaves least, of tokens and of requests */

ngx_int_t
ngx_http_llm_limit_headers(ngx_http_llm_ctx_t *ctx)
{
    if (ngx_http_llm_limit_evaluate(ctx) != NGX_OK) {
        return NGX_ERROR;
    }

    if (ctx->limited == NULL) {
        return NGX_OK;
    }

    if (ngx_http_llm_limit_add_headers(ctx, 0) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_llm_limit_add_headers(ctx, 1);
}


static ngx_int_t
ngx_http_llm_limit_add_headers(ngx_http_llm_ctx_t *ctx, ngx_uint_t tokens)
{
    int64_t                     left, least, used, ms, most;
    ngx_uint_t                  i;
    ngx_http_llm_limit_t       *limit;
    ngx_http_llm_limited_t     *limited;
    ngx_http_llm_limit_zone_t  *zone;

    static const char  *names[2][3] = {
        { "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests",
          "x-ratelimit-reset-requests" },
        { "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens",
          "x-ratelimit-reset-tokens" }
    };

    limited = ctx->limited;

    least = -1;
    most = 0;
    ms = 0;

    for (i = 0; i < limited->n; i++) {
        limit = &limited->limits[i];
        zone = limit->shm_zone->data;

        if (zone->tokens != tokens || limited->keys[i].len == 0
            || limit->dry_run)
        {
            continue;
        }

        used = ngx_http_llm_limit_used(zone, &limited->keys[i]);
        left = ngx_max(ngx_http_llm_limit_burst(limit) - used, 0);

        if (least == -1 || left < least) {
            least = left;
            most = ngx_http_llm_limit_burst(limit);
            ms = (used + zone->rate - 1) / zone->rate;
        }
    }

    if (least == -1) {
        return NGX_OK;
    }

    if (ngx_http_llm_limit_add_header(ctx->request, names[tokens][0], "%L",
                                      most / NGX_HTTP_LLM_LIMIT_UNIT)
        != NGX_OK
        || ngx_http_llm_limit_add_header(ctx->request, names[tokens][1], "%L",
                                         least / NGX_HTTP_LLM_LIMIT_UNIT)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_llm_limit_add_header(ctx->request, names[tokens][2],
                                         "%L.%03Ls", ms / 1000, ms % 1000);
}


static ngx_int_t
ngx_http_llm_limit_add_header(ngx_http_request_t *r, const char *key,
    const char *fmt, ...)
{
    size_t    size;
    u_char   *value, *last;
    va_list   args;

    size = NGX_INT64_LEN + sizeof(".000s");

    value = ngx_pnalloc(r->pool, size);
    if (value == NULL) {
        return NGX_ERROR;
    }

    va_start(args, fmt);
    last = ngx_vslprintf(value, value + size, fmt, args);
    va_end(args);

    return ngx_http_llm_add_header(r, key, value, last - value);
}
