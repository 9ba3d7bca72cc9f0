
/*
 * Whose request it is: by the key that it shows, or as "llm_tenant" says.
 */


#include "ngx_module/ngx_http_llm_module.h"


static ngx_int_t ngx_http_llm_by_key(ngx_http_request_t *r,
    ngx_http_llm_keys_t *keys, ngx_http_llm_identity_t *who);
static ngx_int_t ngx_http_llm_shown_key(ngx_http_request_t *r,
    ngx_str_t *key);
static ngx_uint_t ngx_http_llm_is_key(ngx_table_elt_t *header,
    ngx_str_t *key);
static ngx_int_t ngx_http_llm_by_name(ngx_http_request_t *r,
    ngx_http_complex_value_t *value, ngx_http_llm_identity_t *who);


static ngx_http_llm_error_t  ngx_http_llm_nobody = {
    NGX_HTTP_UNAUTHORIZED, "invalid_api_key", NULL, NULL, 0
};

static ngx_http_llm_error_t  ngx_http_llm_unknown_key = {
    NGX_HTTP_UNAUTHORIZED, "invalid_api_key", NULL,
    "The key is not valid", 0
};

static ngx_http_llm_error_t  ngx_http_llm_two_keys = {
    NGX_HTTP_UNAUTHORIZED, "invalid_api_key", NULL,
    "The request shows two keys", 0
};

static ngx_http_llm_error_t  ngx_http_llm_expired_key = {
    NGX_HTTP_UNAUTHORIZED, "invalid_api_key", NULL,
    "The key has expired", 0
};


/*
 * What a key says is kept: it does not change.  The value of "llm_tenant" may,
 * where another module finds out in a later phase who it is.
 */

ngx_int_t
ngx_http_llm_authenticate(ngx_http_request_t *r, ngx_http_llm_identity_t *who)
{
    ngx_int_t                 rc;
    ngx_http_llm_ctx_t       *ctx;
    ngx_http_llm_loc_conf_t  *llcf;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    ngx_memzero(who, sizeof(ngx_http_llm_identity_t));

    who->error = &ngx_http_llm_nobody;

    if (llcf->keys == NULL) {
        return llcf->tenant ? ngx_http_llm_by_name(r, llcf->tenant, who)
                            : NGX_DECLINED;
    }

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    if (ctx && ctx->identity.keys == llcf->keys) {
        *who = ctx->identity;
        return who->error ? NGX_DECLINED : NGX_OK;
    }

    rc = ngx_http_llm_by_key(r, llcf->keys, who);

    if (!llcf->serves || r != r->main) {
        return rc;
    }

    if (ctx == NULL && ngx_http_llm_create_ctx(r, &ctx) != NGX_OK) {
        return NGX_ERROR;
    }

    ctx->identity = *who;

    return rc;
}


static ngx_int_t
ngx_http_llm_by_key(ngx_http_request_t *r, ngx_http_llm_keys_t *keys,
    ngx_http_llm_identity_t *who)
{
    u_char                     digest[LLM_IPC_KEY_DIGEST];
    ngx_str_t                  shown;
    const ngx_http_llm_key_t  *key;

    who->keys = keys;

    if (ngx_http_llm_shown_key(r, &shown) != NGX_OK) {
        who->error = &ngx_http_llm_two_keys;
        return NGX_DECLINED;
    }

    if (shown.len == 0) {
        return NGX_DECLINED;
    }

    who->error = &ngx_http_llm_unknown_key;

    if (!llm_ipc_key_valid(shown.data, shown.len)) {
        return NGX_DECLINED;
    }

    llm_ipc_key_digest(shown.data, shown.len, digest);

    key = ngx_http_llm_find_key(keys, digest);

    if (key == NULL) {
        return NGX_DECLINED;
    }

    if (ngx_http_llm_check_revoked(r, key) == NGX_DECLINED) {
        who->error = ngx_http_llm_status_error(LLM_IPC_REVOKED);
        return NGX_DECLINED;
    }

    if (key->said.expires && ngx_time() >= key->said.expires) {
        who->error = &ngx_http_llm_expired_key;
        return NGX_DECLINED;
    }

    who->key = key;
    who->tenant.data = (u_char *) key->said.tenant.data;
    who->tenant.len = key->said.tenant.len;
    who->error = NULL;

    return NGX_OK;
}


/* empty: none; NGX_DECLINED: several that are not the same */

static ngx_int_t
ngx_http_llm_shown_key(ngx_http_request_t *r, ngx_str_t *key)
{
    ngx_str_t         shown;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *header;

    ngx_str_null(key);

    for (part = &r->headers_in.headers.part; part; part = part->next) {
        header = part->elts;

        for (i = 0; i < part->nelts; i++) {

            if (!ngx_http_llm_is_key(&header[i], &shown) || shown.len == 0) {
                continue;
            }

            if (key->len
                && (key->len != shown.len
                    || ngx_memcmp(key->data, shown.data, key->len) != 0))
            {
                return NGX_DECLINED;
            }

            *key = shown;
        }
    }

    return NGX_OK;
}


/* another scheme of authorization is another module's */

static ngx_uint_t
ngx_http_llm_is_key(ngx_table_elt_t *header, ngx_str_t *key)
{
    size_t   n;
    u_char  *p;

    *key = header->value;

    if (header->key.len == sizeof("x-api-key") - 1) {
        return ngx_strncasecmp(header->key.data, (u_char *) "x-api-key",
                               sizeof("x-api-key") - 1)
               == 0;
    }

    if (header->key.len != sizeof("Authorization") - 1
        || ngx_strncasecmp(header->key.data, (u_char *) "Authorization",
                           sizeof("Authorization") - 1)
           != 0)
    {
        return 0;
    }

    n = sizeof("Bearer ") - 1;

    if (key->len < n
        || ngx_strncasecmp(key->data, (u_char *) "Bearer ", n) != 0)
    {
        return 0;
    }

    for (p = key->data + n; p < key->data + key->len && *p == ' '; p++) {
        /* void */
    }

    key->len -= p - key->data;
    key->data = p;

    return 1;
}


static ngx_int_t
ngx_http_llm_by_name(ngx_http_request_t *r, ngx_http_complex_value_t *value,
    ngx_http_llm_identity_t *who)
{
    ngx_str_t  tenant;

    if (ngx_http_complex_value(r, value, &tenant) != NGX_OK) {
        return NGX_ERROR;
    }

    if (tenant.len == 0) {
        return NGX_DECLINED;
    }

    /* whose pages everybody may read */

    if (tenant.len == sizeof("*public*") - 1
        && ngx_memcmp(tenant.data, "*public*", tenant.len) == 0)
    {
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                      "the value of \"llm_tenant\" is a reserved name");
        return NGX_DECLINED;
    }

    if (tenant.len > LLM_IPC_MAX_TENANT) {
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                      "the value of \"llm_tenant\" is longer than %d bytes",
                      LLM_IPC_MAX_TENANT);
        return NGX_DECLINED;
    }

    who->tenant = tenant;
    who->error = NULL;

    return NGX_OK;
}
