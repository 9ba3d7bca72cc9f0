
/*
 * $llm_prefix: of a request that is served here, or that only passes by on
 * its way to another node (hash $llm_prefix consistent); and the same of one
 * that may go to several engines.
 */


#include "ngx_module/ngx_http_llm_module.h"
#include "engine/ipc/prefix.h"
#include "ngx_module/ngx_http_llm_lead.h"

#include <openssl/sha.h>


static ngx_uint_t ngx_http_llm_body_is_read(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_lead_of_body(ngx_http_request_t *r,
    ngx_str_t *text);


/* empty where the body is not there, or no text that others may begin with */

ngx_int_t
ngx_http_llm_prefix_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    u_char                   *p;
    u_char                    digest[SHA256_DIGEST_LENGTH];
    u_char                    prefix[LLM_IPC_PREFIX_SIZE];
    ngx_int_t                 rc;
    ngx_str_t                 text;
    ngx_http_llm_identity_t   who;
    ngx_http_llm_loc_conf_t  *llcf;

    v->len = 0;
    v->data = (u_char *) "";
    v->valid = 1;
    v->not_found = 0;
    v->no_cacheable = 0;

    if (!ngx_http_llm_body_is_read(r)) {
        return NGX_OK;
    }

    rc = ngx_http_llm_lead_of_body(r, &text);

    if (rc != NGX_OK) {
        return (rc == NGX_DECLINED) ? NGX_OK : NGX_ERROR;
    }

    if (ngx_http_llm_authenticate(r, &who) == NGX_ERROR) {
        return NGX_ERROR;
    }

    /* where everybody shares everybody's prefixes */

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    if (llcf->cache_scope == LLM_IPC_SCOPE_PUBLIC) {
        ngx_str_set(&who.tenant, "*public*");
    }

    p = ngx_pnalloc(r->pool, 2 * sizeof(prefix));
    if (p == NULL) {
        return NGX_ERROR;
    }

    SHA256(who.tenant.data, who.tenant.len, digest);
    llm_ipc_prefix(digest, text.data, text.len, prefix);

    v->data = p;
    v->len = ngx_hex_dump(p, prefix, sizeof(prefix)) - p;

    ngx_pfree(r->pool, text.data);

    return NGX_OK;
}


static ngx_uint_t
ngx_http_llm_body_is_read(ngx_http_request_t *r)
{
    ngx_http_request_body_t  *rb;

    rb = r->request_body;

    return rb && rb->bufs && rb->rest == 0 && !r->request_body_no_buffering;
}


ngx_uint_t
ngx_http_llm_request_prefix(ngx_http_llm_ctx_t *ctx, u_char *prefix)
{
    ngx_str_t                   *tenant;
    ngx_http_llm_params_t       *params;
    ngx_http_llm_loc_conf_t     *llcf;
    struct llm_ipc_submit_view   view;

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

    params = &ctx->params;
    tenant = &ctx->account.tenant;

    ngx_memzero(&view, sizeof(struct llm_ipc_submit_view));
    ngx_memcpy(&view.head, params->payload, sizeof(struct llm_ipc_submit));

    SHA256(tenant->data, tenant->len, view.head.tenant);
    view.head.scope = llcf->cache_scope;

    view.items = params->payload + view.head.size;
    view.items_length = params->payload_len - view.head.size;

    return llm_ipc_submit_prefix(&view, prefix);
}


/* NGX_DECLINED: there is none */

static ngx_int_t
ngx_http_llm_lead_of_body(ngx_http_request_t *r, ngx_str_t *text)
{
    u_char     *copy;
    ngx_int_t   rc;
    ngx_str_t   body;

    text->data = ngx_palloc(r->pool, NGX_HTTP_LLM_LEAD_SIZE);
    if (text->data == NULL) {
        return NGX_ERROR;
    }

    rc = ngx_http_llm_join_body(r, NGX_HTTP_LLM_LEAD_MAX_BODY, &body, &copy);

    if (rc == NGX_OK) {
        text->len = ngx_http_llm_lead(body.data, body.len, text->data);
        rc = text->len ? NGX_OK : NGX_DECLINED;
    }

    if (copy) {
        ngx_pfree(r->pool, copy);
    }

    if (rc != NGX_OK) {
        ngx_pfree(r->pool, text->data);
    }

    return rc;
}
