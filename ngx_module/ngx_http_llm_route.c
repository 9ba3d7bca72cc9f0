
/* The content handler: what is asked for, how, and by whom. */


#include "ngx_module/ngx_http_llm_module.h"

#include <sys/random.h>


static void ngx_http_llm_free_ctx(void *data);
static const ngx_http_llm_route_t *ngx_http_llm_find_route(
    ngx_http_request_t *r, ngx_str_t *rest);
static ngx_int_t ngx_http_llm_set_weight(ngx_http_llm_ctx_t *ctx);


static const ngx_http_llm_route_t  ngx_http_llm_routes[] = {

    { ngx_string("chat/completions"), NGX_HTTP_POST, ngx_string("POST"),
      ngx_http_llm_generate, LLM_IPC_KIND_CHAT, 0, 0 },

    { ngx_string("completions"), NGX_HTTP_POST, ngx_string("POST"),
      ngx_http_llm_generate, LLM_IPC_KIND_COMPLETION, 0, 0 },

    { ngx_string("models"), NGX_HTTP_GET|NGX_HTTP_HEAD,
      ngx_string("GET, HEAD"), ngx_http_llm_list_models, 0, 0, 0 },

    { ngx_string("models/"), NGX_HTTP_GET|NGX_HTTP_HEAD,
      ngx_string("GET, HEAD"), ngx_http_llm_list_models, 0, 0, 1 },

    { ngx_null_string, 0, ngx_null_string, NULL, 0, 0, 0 }
};


static const ngx_http_llm_route_t  ngx_http_llm_health_route = {
    ngx_string("/health"), NGX_HTTP_GET|NGX_HTTP_HEAD, ngx_string("GET, HEAD"),
    ngx_http_llm_show_health, 0, 1, 0
};


static ngx_http_llm_error_t  ngx_http_llm_unknown_route = {
    NGX_HTTP_NOT_FOUND, "unknown_url", NULL, "Unknown request URL", 0
};

static ngx_http_llm_error_t  ngx_http_llm_wrong_method = {
    NGX_HTTP_NOT_ALLOWED, "method_not_supported", NULL, NULL, 0
};


ngx_int_t
ngx_http_llm_handler(ngx_http_request_t *r)
{
    ngx_int_t                    rc;
    ngx_http_llm_ctx_t          *ctx;
    ngx_http_llm_identity_t      who;
    const ngx_http_llm_route_t  *route;

    if (r != r->main) {
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                      "llm endpoint \"%V\" called by a subrequest", &r->uri);
        return NGX_HTTP_FORBIDDEN;
    }

    /* an earlier phase may have asked whose it is */

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    if (ctx == NULL) {
        rc = ngx_http_llm_create_ctx(r, &ctx);

        if (rc != NGX_OK) {
            return rc;
        }
    }

    /* what a client asked to be unmodified is no file */

    r->disable_not_modified = 1;

    route = ngx_http_llm_find_route(r, &ctx->rest);

    if (route == NULL) {
        return ngx_http_llm_send_error(ctx, &ngx_http_llm_unknown_route);
    }

    ctx->route = route;

    if (!(r->method & route->methods)) {
        return ngx_http_llm_send_error(ctx, &ngx_http_llm_wrong_method);
    }

    if (!route->open) {
        rc = ngx_http_llm_authenticate(r, &who);

        if (rc == NGX_DECLINED) {
            return ngx_http_llm_send_error(ctx, who.error);
        }

        if (rc != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        ctx->identity = who;
        ctx->account.tenant = who.tenant;
    }

    if (route->kind && ngx_http_llm_set_weight(ctx) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return route->handler(ctx);
}


ngx_int_t
ngx_http_llm_create_ctx(ngx_http_request_t *r, ngx_http_llm_ctx_t **ctxp)
{
    u_char               random[16];
    ngx_pool_cleanup_t  *cln;
    ngx_http_cleanup_t  *end;
    ngx_http_llm_ctx_t  *ctx;

    cln = ngx_pool_cleanup_add(r->pool, sizeof(ngx_http_llm_ctx_t));
    if (cln == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx = cln->data;

    ngx_memzero(ctx, sizeof(ngx_http_llm_ctx_t));

    cln->handler = ngx_http_llm_free_ctx;

    end = ngx_http_cleanup_add(r, 0);
    if (end == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    end->handler = ngx_http_llm_cleanup;
    end->data = ctx;

    ctx->request = r;
    ctx->writer.pool = r->pool;
    ctx->writer.last = &ctx->writer.out;

    if (getrandom(random, sizeof(random), 0) != sizeof(random)) {
        ngx_log_error(NGX_LOG_ERR, r->connection->log, ngx_errno,
                      "getrandom() failed");
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_hex_dump(ngx_cpymem(ctx->id, "req_", 4), random, sizeof(random));

    ngx_http_set_ctx(r, ctx, ngx_http_llm_module);

    *ctxp = ctx;

    return NGX_OK;
}


static void
ngx_http_llm_free_ctx(void *data)
{
    ngx_http_llm_ctx_t  *ctx = data;

    ngx_http_llm_params_free(&ctx->params);
    ngx_http_llm_pending_free(ctx);
}


/*
 * An internal redirect (error_page) forgets the contexts of all modules, but
 * not what is to be cleaned up; the newest comes first there.
 */

ngx_http_llm_ctx_t *
ngx_http_llm_get_ctx(ngx_http_request_t *r)
{
    ngx_http_llm_ctx_t  *ctx;
    ngx_pool_cleanup_t  *cln;

    ctx = ngx_http_get_module_ctx(r->main, ngx_http_llm_module);

    if (ctx || !(r->main->internal || r->main->filter_finalize)) {
        return ctx;
    }

    for (cln = r->pool->cleanup; cln; cln = cln->next) {
        if (cln->handler == ngx_http_llm_free_ctx) {
            return cln->data;
        }
    }

    return NULL;
}


/* whether a location's name makes it the place of the health check */

ngx_uint_t
ngx_http_llm_names_health(ngx_str_t *location)
{
    size_t            n;
    const ngx_str_t  *name;

    name = &ngx_http_llm_health_route.name;
    n = name->len;

    return location->len >= n
           && ngx_memcmp(location->data + location->len - n, name->data, n)
              == 0;
}


/* what follows the last "/v1/" */

static ngx_int_t
ngx_http_llm_rest_of_uri(ngx_str_t *uri, ngx_str_t *rest)
{
    u_char  *p;

    for (p = uri->data + uri->len; p - uri->data >= 4; p--) {

        if (ngx_memcmp(p - 4, "/v1/", 4) == 0) {
            rest->data = p;
            rest->len = uri->data + uri->len - p;
            return NGX_OK;
        }
    }

    return NGX_DECLINED;
}


static const ngx_http_llm_route_t *
ngx_http_llm_find_route(ngx_http_request_t *r, ngx_str_t *rest)
{
    ngx_http_core_loc_conf_t    *clcf;
    const ngx_http_llm_route_t  *route;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    /* such a location needs no tenant and so has no other route */

    if (ngx_http_llm_names_health(&clcf->name)) {

        if (r->uri.len == clcf->name.len) {
            return &ngx_http_llm_health_route;
        }

        return NULL;
    }

    if (ngx_http_llm_rest_of_uri(&r->uri, rest) != NGX_OK) {
        return NULL;
    }

    for (route = ngx_http_llm_routes; route->name.len; route++) {

        if ((route->prefix ? rest->len > route->name.len
                           : rest->len == route->name.len)
            && ngx_memcmp(rest->data, route->name.data, route->name.len) == 0)
        {
            rest->data += route->name.len;
            rest->len -= route->name.len;

            return route;
        }
    }

    return NULL;
}


/* a request is worth its answer also where a map names no good weight */

static ngx_int_t
ngx_http_llm_set_weight(ngx_http_llm_ctx_t *ctx)
{
    ngx_str_t                 value;
    ngx_http_request_t       *r;
    ngx_http_llm_loc_conf_t  *llcf;

    r = ctx->request;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    if (ctx->identity.key && ctx->identity.key->said.weight) {
        ctx->weight = ctx->identity.key->said.weight;
        return NGX_OK;
    }

    ctx->weight = 1;

    if (llcf->weight == NULL) {
        return NGX_OK;
    }

    if (ngx_http_complex_value(r, llcf->weight, &value) != NGX_OK) {
        return NGX_ERROR;
    }

    if (value.len == 0) {
        return NGX_OK;
    }

    ctx->weight = ngx_http_llm_parse_weight(&value);

    if (ctx->weight == 0) {
        ngx_log_error(NGX_LOG_WARN, r->connection->log, 0,
                      "the value \"%V\" of \"llm_weight\" is no integer from "
                      "1 to %d, 1 is used instead",
                      &value, LLM_IPC_MAX_WEIGHT);

        ctx->weight = 1;
    }

    return NGX_OK;
}


uint32_t
ngx_http_llm_parse_weight(ngx_str_t *value)
{
    ngx_int_t  n;

    n = ngx_atoi(value->data, value->len);

    return (n < 1 || n > LLM_IPC_MAX_WEIGHT) ? 0 : n;
}
