
/* Zones of shared memory that a directive names: NAME:SIZE. */


#include "ngx_module/ngx_http_llm_module.h"


ngx_shm_zone_t *
ngx_http_llm_add_zone(ngx_conf_t *cf, ngx_str_t *value, void *tag)
{
    u_char     *p;
    ssize_t     size;
    ngx_str_t   name, s;

    p = (u_char *) ngx_strchr(value->data, ':');

    if (p == NULL || p == value->data) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid zone \"%V\", it "
                           "must be NAME:SIZE", value);
        return NULL;
    }

    name.data = value->data;
    name.len = p - value->data;

    s.data = p + 1;
    s.len = value->data + value->len - s.data;

    size = ngx_parse_size(&s);

    if (size == NGX_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid zone size \"%V\"",
                           value);
        return NULL;
    }

    if (size < (ssize_t) (8 * ngx_pagesize)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "zone \"%V\" is too small",
                           value);
        return NULL;
    }

    return ngx_shared_memory_add(cf, &name, size, tag);
}


void *
ngx_http_llm_init_zone(ngx_shm_zone_t *shm_zone, const char *directive,
    size_t size)
{
    size_t            len;
    ngx_slab_pool_t  *shpool;

    shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;

    shpool->data = ngx_slab_calloc(shpool, size);
    if (shpool->data == NULL) {
        return NULL;
    }

    len = sizeof(" in  \"\"") + ngx_strlen(directive) + shm_zone->shm.name.len;

    shpool->log_ctx = ngx_slab_alloc(shpool, len);
    if (shpool->log_ctx == NULL) {
        return NULL;
    }

    ngx_sprintf(shpool->log_ctx, " in %s \"%V\"%Z", directive,
                &shm_zone->shm.name);

    /* that it is full is no news: somebody gives way */

    shpool->log_nomem = 0;

    return shpool->data;
}
