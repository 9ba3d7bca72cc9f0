
/* Directives of limits: llm_limit_zone, llm_limit, llm_budget. */


#include "ngx_module/ngx_http_llm_limit.h"


static ngx_int_t ngx_http_llm_limit_parse_rate(ngx_str_t *value,
    ngx_http_llm_limit_zone_t *zone);


/* a zone that is tagged otherwise, also before a reload, is something else */
static char  ngx_http_llm_limit_tag[] = "llm_limit_zone";


char *
ngx_http_llm_limit_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_main_conf_t *lmcf = conf;

    ngx_str_t                         *value, s;
    ngx_uint_t                         i;
    ngx_shm_zone_t                    *shm_zone;
    ngx_http_llm_limit_zone_t         *zone, **push;
    ngx_http_compile_complex_value_t   ccv;

    value = cf->args->elts;

    zone = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_limit_zone_t));
    if (zone == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

    ccv.cf = cf;
    ccv.value = &value[1];
    ccv.complex_value = &zone->key;

    if (ngx_http_compile_complex_value(&ccv) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    shm_zone = NULL;

    for (i = 2; i < cf->args->nelts; i++) {

        if (ngx_strncmp(value[i].data, "zone=", 5) == 0) {

            s.data = value[i].data + 5;
            s.len = value[i].len - 5;

            shm_zone = ngx_http_llm_add_zone(cf, &s, ngx_http_llm_limit_tag);
            if (shm_zone == NULL) {
                return NGX_CONF_ERROR;
            }

            continue;
        }

        if (ngx_strncmp(value[i].data, "rate=", 5) == 0) {

            if (ngx_http_llm_limit_parse_rate(&value[i], zone) != NGX_OK) {
                ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                                   "invalid rate \"%V\"", &value[i]);
                return NGX_CONF_ERROR;
            }

            continue;
        }

        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid parameter \"%V\"", &value[i]);
        return NGX_CONF_ERROR;
    }

    if (shm_zone == NULL || zone->rate == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" must have \"%s\" parameter", &cmd->name,
                           shm_zone ? "rate" : "zone");
        return NGX_CONF_ERROR;
    }

    if (shm_zone->data) {
        zone = shm_zone->data;

        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "%V \"%V\" is already bound to key \"%V\"",
                           &cmd->name, &shm_zone->shm.name, &zone->key.value);
        return NGX_CONF_ERROR;
    }

    shm_zone->init = ngx_http_llm_limit_init_zone;
    shm_zone->data = zone;

    push = ngx_array_push(&lmcf->zones);
    if (push == NULL) {
        return NGX_CONF_ERROR;
    }

    *push = zone;

    return NGX_CONF_OK;
}


/* rate=Nt/m, Nr/m, Nt/s or Nr/s */

static ngx_int_t
ngx_http_llm_limit_parse_rate(ngx_str_t *value,
    ngx_http_llm_limit_zone_t *zone)
{
    size_t      len;
    u_char     *unit;
    ngx_int_t   n, scale;

    if (value->len < sizeof("rate=1t/m") - 1) {
        return NGX_ERROR;
    }

    unit = value->data + value->len - 3;
    len = unit - value->data - 5;

    if (ngx_strcmp(unit, "t/m") == 0 || ngx_strcmp(unit, "r/m") == 0) {
        scale = 1;

    } else if (ngx_strcmp(unit, "t/s") == 0 || ngx_strcmp(unit, "r/s") == 0) {
        scale = 60;

    } else {
        return NGX_ERROR;
    }

    n = ngx_atoi(value->data + 5, len);

    if (n <= 0 || n > NGX_HTTP_LLM_LIMIT_MAX / scale) {
        return NGX_ERROR;
    }

    zone->rate = n * scale;
    zone->tokens = (unit[0] == 't');

    return NGX_OK;
}


char *
ngx_http_llm_limit(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_loc_conf_t *llcf = conf;

    ngx_str_t             *value, s;
    ngx_int_t              burst;
    ngx_uint_t             i;
    ngx_http_llm_limit_t   limit, *limits;

    value = cf->args->elts;

    ngx_memzero(&limit, sizeof(ngx_http_llm_limit_t));

    for (i = 1; i < cf->args->nelts; i++) {

        if (ngx_strncmp(value[i].data, "zone=", 5) == 0) {

            s.len = value[i].len - 5;
            s.data = value[i].data + 5;

            limit.shm_zone = ngx_shared_memory_add(cf, &s, 0,
                                                   ngx_http_llm_limit_tag);
            if (limit.shm_zone == NULL) {
                return NGX_CONF_ERROR;
            }

            continue;
        }

        if (ngx_strncmp(value[i].data, "burst=", 6) == 0) {

            burst = ngx_atoi(value[i].data + 6, value[i].len - 6);

            if (burst <= 0 || burst > NGX_HTTP_LLM_LIMIT_MAX) {
                ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                                   "invalid burst value \"%V\"", &value[i]);
                return NGX_CONF_ERROR;
            }

            limit.burst = burst;

            continue;
        }

        if (ngx_strcmp(value[i].data, "nodelay") == 0) {
            limit.nodelay = 1;
            continue;
        }

        if (ngx_strcmp(value[i].data, "dry_run") == 0) {
            limit.dry_run = 1;
            continue;
        }

        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid parameter \"%V\"", &value[i]);
        return NGX_CONF_ERROR;
    }

    if (limit.shm_zone == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" must have \"zone\" parameter",
                           &cmd->name);
        return NGX_CONF_ERROR;
    }

    if (llcf->limits == NULL) {
        llcf->limits = ngx_array_create(cf->pool, 2,
                                        sizeof(ngx_http_llm_limit_t));
        if (llcf->limits == NULL) {
            return NGX_CONF_ERROR;
        }
    }

    limits = llcf->limits->elts;

    for (i = 0; i < llcf->limits->nelts; i++) {
        if (limits[i].shm_zone == limit.shm_zone) {
            return "is duplicate";
        }
    }

    limits = ngx_array_push(llcf->limits);
    if (limits == NULL) {
        return NGX_CONF_ERROR;
    }

    *limits = limit;

    return NGX_CONF_OK;
}


/* what has no variables is known now */

char *
ngx_http_llm_budget(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_loc_conf_t *llcf = conf;

    char       *rv;
    ngx_str_t  *value;

    rv = ngx_http_set_complex_value_slot(cf, cmd, conf);

    if (rv != NGX_CONF_OK || llcf->budget->lengths) {
        return rv;
    }

    value = &llcf->budget->value;

    if (ngx_atoi(value->data, value->len) <= 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid budget \"%V\", it must be a positive "
                           "integer", value);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}
