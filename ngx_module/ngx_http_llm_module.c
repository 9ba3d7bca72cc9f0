
#include "ngx_module/ngx_http_llm_module.h"
#include "engine/ipc/utf8.h"


static ngx_int_t ngx_http_llm_init(ngx_conf_t *cf);
static void *ngx_http_llm_create_main_conf(ngx_conf_t *cf);
static void *ngx_http_llm_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_llm_merge_loc_conf(ngx_conf_t *cf, void *parent,
    void *child);
static char *ngx_http_llm_check_location(ngx_conf_t *cf,
    ngx_http_llm_loc_conf_t *conf);
static ngx_int_t ngx_http_llm_init_process(ngx_cycle_t *cycle);
static void ngx_http_llm_exit_process(ngx_cycle_t *cycle);

static char *ngx_http_llm_pass(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char *ngx_http_llm_model(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static void ngx_http_llm_serve(ngx_conf_t *cf, ngx_http_llm_loc_conf_t *llcf);
static ngx_http_llm_model_t *ngx_http_llm_add_model(ngx_conf_t *cf,
    ngx_http_llm_loc_conf_t *llcf, ngx_str_t *name);
static char *ngx_http_llm_add_engine(ngx_conf_t *cf,
    ngx_http_llm_model_t *model, ngx_str_t *name);

static char *ngx_http_llm_tenant(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_llm_weight(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_llm_positive(ngx_conf_t *cf, void *post, void *data);
static char *ngx_http_llm_buffer_bounds(ngx_conf_t *cf, void *post,
    void *data);


static ngx_conf_post_t  ngx_http_llm_positive_post = {
    ngx_http_llm_positive
};

static ngx_conf_post_t  ngx_http_llm_buffer_post = {
    ngx_http_llm_buffer_bounds
};


static ngx_conf_enum_t  ngx_http_llm_unknown_fields[] = {
    { ngx_string("ignore"), NGX_HTTP_LLM_UNKNOWN_IGNORE },
    { ngx_string("reject"), NGX_HTTP_LLM_UNKNOWN_REJECT },
    { ngx_null_string, 0 }
};


static ngx_conf_enum_t  ngx_http_llm_cache_scopes[] = {
    { ngx_string("tenant"), LLM_IPC_SCOPE_TENANT },
    { ngx_string("public"), LLM_IPC_SCOPE_PUBLIC },
    { ngx_string("off"), LLM_IPC_SCOPE_OFF },
    { ngx_null_string, 0 }
};


static ngx_conf_num_bounds_t  ngx_http_llm_limit_status_bounds = {
    ngx_conf_check_num_bounds, 400, 599
};

static ngx_conf_num_bounds_t  ngx_http_llm_percent_bounds = {
    ngx_conf_check_num_bounds, 0, 100
};


static ngx_conf_enum_t  ngx_http_llm_limit_log_levels[] = {
    { ngx_string("info"), NGX_LOG_INFO },
    { ngx_string("notice"), NGX_LOG_NOTICE },
    { ngx_string("warn"), NGX_LOG_WARN },
    { ngx_string("error"), NGX_LOG_ERR },
    { ngx_null_string, 0 }
};


static ngx_command_t  ngx_http_llm_commands[] = {

    { ngx_string("llm_pass"),
      NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_llm_pass,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("llm_model"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_2MORE,
      ngx_http_llm_model,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("llm_keys"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_llm_keys,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("llm_tenant"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_llm_tenant,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, tenant),
      NULL },

    { ngx_string("llm_weight"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_llm_weight,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, weight),
      NULL },

    { ngx_string("llm_cache_scope"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, cache_scope),
      &ngx_http_llm_cache_scopes },

    { ngx_string("llm_max_tokens"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, max_tokens),
      &ngx_http_llm_positive_post },

    { ngx_string("llm_max_prompt_tokens"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, max_prompt_tokens),
      &ngx_http_llm_positive_post },

    { ngx_string("llm_queue_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, queue_timeout),
      NULL },

    { ngx_string("llm_first_token_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, first_token_timeout),
      NULL },

    { ngx_string("llm_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, timeout),
      NULL },

    { ngx_string("llm_drain_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, drain_timeout),
      NULL },

    { ngx_string("llm_buffer_size"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_size_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, buffer_size),
      &ngx_http_llm_buffer_post },

    { ngx_string("llm_keepalive_interval"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, keepalive_interval),
      NULL },

    { ngx_string("llm_ignore_client_abort"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, ignore_client_abort),
      NULL },

    { ngx_string("llm_intercept_errors"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, intercept_errors),
      NULL },

    { ngx_string("llm_unknown_fields"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, unknown_fields),
      &ngx_http_llm_unknown_fields },

    { ngx_string("llm_limit_zone"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE3,
      ngx_http_llm_limit_zone,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("llm_limit"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1234,
      ngx_http_llm_limit,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("llm_limit_status"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, limit_status),
      &ngx_http_llm_limit_status_bounds },

    { ngx_string("llm_limit_log_level"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, limit_log_level),
      &ngx_http_llm_limit_log_levels },

    { ngx_string("llm_limit_cached_discount"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, limit_cached_discount),
      &ngx_http_llm_percent_bounds },

    { ngx_string("llm_budget"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_llm_budget,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, budget),
      NULL },

    { ngx_string("llm_status_zone"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE1,
      ngx_http_llm_status_zone,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("llm_status"),
      NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_llm_status,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_llm_module_ctx = {
    ngx_http_llm_add_variables,            /* preconfiguration */
    ngx_http_llm_init,                     /* postconfiguration */

    ngx_http_llm_create_main_conf,         /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_llm_create_loc_conf,          /* create location configuration */
    ngx_http_llm_merge_loc_conf            /* merge location configuration */
};


ngx_module_t  ngx_http_llm_module = {
    NGX_MODULE_V1,
    &ngx_http_llm_module_ctx,              /* module context */
    ngx_http_llm_commands,                 /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    ngx_http_llm_revoke_keys,              /* init module */
    ngx_http_llm_init_process,             /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_llm_exit_process,             /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_int_t
ngx_http_llm_init(ngx_conf_t *cf)
{
    if (ngx_http_llm_add_revocation(cf) != NGX_OK
        || ngx_http_llm_init_filter(cf) != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_llm_init_status(cf);
}


static void *
ngx_http_llm_create_main_conf(ngx_conf_t *cf)
{
    ngx_http_llm_main_conf_t  *conf;

    conf = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_main_conf_t));
    if (conf == NULL) {
        return NULL;
    }

    if (ngx_array_init(&conf->engines, cf->pool, 2,
                       sizeof(ngx_http_llm_engine_t *))
        != NGX_OK
        || ngx_array_init(&conf->zones, cf->pool, 2, sizeof(void *))
           != NGX_OK)
    {
        return NULL;
    }

    if (ngx_array_init(&conf->keys, cf->pool, 2,
                       sizeof(ngx_http_llm_keys_t *))
        != NGX_OK)
    {
        return NULL;
    }

    return conf;
}


static void *
ngx_http_llm_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_llm_loc_conf_t  *conf;

    conf = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_loc_conf_t));
    if (conf == NULL) {
        return NULL;
    }

    /*
     * set by ngx_pcalloc():
     *
     *     conf->models = NULL;
     *     conf->keys = NULL;
     *     conf->tenant = NULL;
     *     conf->weight = NULL;
     *     conf->limits = NULL;
     *     conf->budget = NULL;
     *     conf->status = 0;
     *     conf->serves = 0;
     */

    conf->cache_scope = NGX_CONF_UNSET_UINT;
    conf->max_tokens = NGX_CONF_UNSET_UINT;
    conf->max_prompt_tokens = NGX_CONF_UNSET_UINT;
    conf->queue_timeout = NGX_CONF_UNSET_MSEC;
    conf->first_token_timeout = NGX_CONF_UNSET_MSEC;
    conf->timeout = NGX_CONF_UNSET_MSEC;
    conf->drain_timeout = NGX_CONF_UNSET_MSEC;
    conf->keepalive_interval = NGX_CONF_UNSET_MSEC;
    conf->buffer_size = NGX_CONF_UNSET_SIZE;
    conf->ignore_client_abort = NGX_CONF_UNSET;
    conf->intercept_errors = NGX_CONF_UNSET;
    conf->unknown_fields = NGX_CONF_UNSET_UINT;
    conf->limit_status = NGX_CONF_UNSET_UINT;
    conf->limit_log_level = NGX_CONF_UNSET_UINT;
    conf->limit_cached_discount = NGX_CONF_UNSET_UINT;

    return conf;
}


static char *
ngx_http_llm_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_llm_loc_conf_t  *prev = parent;
    ngx_http_llm_loc_conf_t  *conf = child;

    ngx_http_core_loc_conf_t  *clcf;

    if (conf->models == NULL) {
        conf->models = prev->models;
    }

    if (conf->keys == NULL && conf->tenant == NULL) {
        conf->keys = prev->keys;
        conf->tenant = prev->tenant;
    }

    if (conf->weight == NULL) {
        conf->weight = prev->weight;
    }

    ngx_conf_merge_uint_value(conf->cache_scope, prev->cache_scope,
                              LLM_IPC_SCOPE_TENANT);
    ngx_conf_merge_uint_value(conf->max_tokens, prev->max_tokens, 4096);
    ngx_conf_merge_uint_value(conf->max_prompt_tokens,
                              prev->max_prompt_tokens, 0);
    ngx_conf_merge_msec_value(conf->queue_timeout, prev->queue_timeout,
                              60000);
    ngx_conf_merge_msec_value(conf->first_token_timeout,
                              prev->first_token_timeout, 300000);
    ngx_conf_merge_msec_value(conf->timeout, prev->timeout, 3600000);

    /* unset: follows worker_shutdown_timeout */

    if (conf->drain_timeout == NGX_CONF_UNSET_MSEC) {
        conf->drain_timeout = prev->drain_timeout;
    }

    ngx_conf_merge_msec_value(conf->keepalive_interval,
                              prev->keepalive_interval, 15000);
    ngx_conf_merge_size_value(conf->buffer_size, prev->buffer_size, 16384);
    ngx_conf_merge_value(conf->ignore_client_abort,
                         prev->ignore_client_abort, 0);
    ngx_conf_merge_value(conf->intercept_errors, prev->intercept_errors, 0);
    ngx_conf_merge_uint_value(conf->unknown_fields, prev->unknown_fields,
                              NGX_HTTP_LLM_UNKNOWN_IGNORE);

    if (conf->limits == NULL) {
        conf->limits = prev->limits;
    }

    if (conf->budget == NULL) {
        conf->budget = prev->budget;
    }

    ngx_conf_merge_uint_value(conf->limit_status, prev->limit_status,
                              NGX_HTTP_TOO_MANY_REQUESTS);
    ngx_conf_merge_uint_value(conf->limit_log_level, prev->limit_log_level,
                              NGX_LOG_ERR);
    ngx_conf_merge_uint_value(conf->limit_cached_discount,
                              prev->limit_cached_discount, 0);

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    if (clcf->noname && clcf->handler == NULL && prev->serves) {

        /* "if" and "limit_except" serve as the location they stand in */

        clcf->handler = ngx_http_llm_handler;

        conf->serves = 1;
#if (NGX_THREADS)
        conf->thread_pool = prev->thread_pool;
#endif
        return NGX_CONF_OK;
    }

    if (conf->serves) {
        return ngx_http_llm_check_location(cf, conf);
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_check_location(ngx_conf_t *cf, ngx_http_llm_loc_conf_t *conf)
{
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    if (conf->status) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "location \"%V\" shows its \"llm_status\" and cannot "
                      "be an endpoint in %s:%ui",
                      &clcf->name, conf->file, conf->line);
        return NGX_CONF_ERROR;
    }

    if (conf->models == NULL) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "\"llm_pass models\" without \"llm_model\" in %s:%ui",
                      conf->file, conf->line);
        return NGX_CONF_ERROR;
    }

    if (conf->keys == NULL && conf->tenant == NULL
        && !ngx_http_llm_names_health(&clcf->name))
    {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "location \"%V\" would serve everybody: no "
                      "\"llm_keys\" or \"llm_tenant\" for the endpoint in "
                      "%s:%ui",
                      &clcf->name, conf->file, conf->line);
        return NGX_CONF_ERROR;
    }

#if (NGX_THREADS)

    conf->thread_pool = ngx_thread_pool_add(cf, NULL);
    if (conf->thread_pool == NULL) {
        return NGX_CONF_ERROR;
    }

#endif

    return NGX_CONF_OK;
}


/*
 * Also called in the processes of the cache, which serve nothing.  Nothing
 * that is missing here keeps a worker from starting.
 */

static ngx_int_t
ngx_http_llm_init_process(ngx_cycle_t *cycle)
{
    ngx_uint_t                  i;
    ngx_http_llm_engine_t     **engines;
    ngx_http_llm_main_conf_t   *lmcf;

    if (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE)
    {
        return NGX_OK;
    }

    lmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_llm_module);

    if (lmcf == NULL) {
        return NGX_OK;
    }

    /* a seed of its own, or keys that collide here collide everywhere */

    json_object_seed(0);

    ngx_http_llm_limit_init_process(lmcf);

    engines = lmcf->engines.elts;

    for (i = 0; i < lmcf->engines.nelts; i++) {
        ngx_http_llm_engine_connect(engines[i]);
    }

    return NGX_OK;
}


static void
ngx_http_llm_exit_process(ngx_cycle_t *cycle)
{
    ngx_uint_t                  i;
    ngx_http_llm_engine_t     **engines;
    ngx_http_llm_main_conf_t   *lmcf;

    lmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_llm_module);

    if (lmcf == NULL) {
        return;
    }

    engines = lmcf->engines.elts;

    for (i = 0; i < lmcf->engines.nelts; i++) {
        ngx_http_llm_engine_close(engines[i]);
    }
}


static char *
ngx_http_llm_pass(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_loc_conf_t *llcf = conf;

    ngx_str_t             *value;
    ngx_str_t              name = ngx_null_string;
    ngx_http_llm_model_t  *model;

    if (llcf->models) {
        return "conflicts with another \"llm_pass\" or \"llm_model\" of this "
               "location";
    }

    if (llcf->serves) {
        return "is duplicate";
    }

    ngx_http_llm_serve(cf, llcf);

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "models") == 0) {
        return NGX_CONF_OK;
    }

    model = ngx_http_llm_add_model(cf, llcf, &name);
    if (model == NULL) {
        return NGX_CONF_ERROR;
    }

    return ngx_http_llm_add_engine(cf, model, &value[1]);
}


static char *
ngx_http_llm_model(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_loc_conf_t *llcf = conf;

    char                  *rv;
    ngx_str_t             *value;
    ngx_uint_t             i, n;
    ngx_http_llm_model_t  *model, *models;

    value = cf->args->elts;
    n = cf->args->nelts;

    if (value[1].len == 0 || value[1].len > LLM_IPC_MAX_NAME
        || !llm_ipc_utf8_valid(value[1].data, value[1].len))
    {
        return "has an invalid name of a model";
    }

    if (llcf->models) {
        models = llcf->models->elts;

        for (i = 0; i < llcf->models->nelts; i++) {

            if (models[i].name.len == 0) {
                return "conflicts with \"llm_pass\" of this location";
            }

            if (models[i].name.len == value[1].len
                && ngx_memcmp(models[i].name.data, value[1].data,
                              value[1].len)
                   == 0)
            {
                return "has the name of another model";
            }
        }
    }

    model = ngx_http_llm_add_model(cf, llcf, &value[1]);
    if (model == NULL) {
        return NGX_CONF_ERROR;
    }

    if (n > 3 && ngx_strcmp(value[n - 1].data, "default") == 0) {
        models = llcf->models->elts;

        for (i = 0; i < llcf->models->nelts; i++) {
            if (models[i].preset) {
                return "is a second default";
            }
        }

        model->preset = 1;
        n--;
    }

    for (i = 2; i < n; i++) {
        rv = ngx_http_llm_add_engine(cf, model, &value[i]);
        if (rv != NGX_CONF_OK) {
            return rv;
        }
    }

    if (cf->cmd_type & NGX_HTTP_LOC_CONF) {
        ngx_http_llm_serve(cf, llcf);
    }

    return NGX_CONF_OK;
}


static void
ngx_http_llm_serve(ngx_conf_t *cf, ngx_http_llm_loc_conf_t *llcf)
{
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_llm_handler;

    llcf->serves = 1;
    llcf->file = cf->conf_file->file.name.data;
    llcf->line = cf->conf_file->line;
}


static ngx_http_llm_model_t *
ngx_http_llm_add_model(ngx_conf_t *cf, ngx_http_llm_loc_conf_t *llcf,
    ngx_str_t *name)
{
    ngx_http_llm_model_t  *model;

    if (llcf->models == NULL) {
        llcf->models = ngx_array_create(cf->pool, 2,
                                        sizeof(ngx_http_llm_model_t));
        if (llcf->models == NULL) {
            return NULL;
        }
    }

    model = ngx_array_push(llcf->models);
    if (model == NULL) {
        return NULL;
    }

    ngx_memzero(model, sizeof(ngx_http_llm_model_t));

    model->name = *name;

    if (ngx_array_init(&model->engines, cf->pool, 2,
                       sizeof(ngx_http_llm_engine_t *))
        != NGX_OK)
    {
        return NULL;
    }

    return model;
}


/* an engine named in several places is one engine */

static char *
ngx_http_llm_add_engine(ngx_conf_t *cf, ngx_http_llm_model_t *model,
    ngx_str_t *name)
{
    ngx_str_t                   path;
    ngx_uint_t                  i;
    ngx_http_llm_engine_t      *engine, **engines, **push;
    ngx_http_llm_main_conf_t   *lmcf;

    if (name->len <= 5 || ngx_strncmp(name->data, "unix:", 5) != 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid engine \"%V\", it must be \"unix:PATH\"",
                           name);
        return NGX_CONF_ERROR;
    }

    if (model->engines.nelts == NGX_HTTP_LLM_MAX_ENGINES) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "too many engines of one model, there may be "
                           "%d at most", NGX_HTTP_LLM_MAX_ENGINES);
        return NGX_CONF_ERROR;
    }

    path.data = name->data + 5;
    path.len = name->len - 5;

    if (ngx_conf_full_name(cf->cycle, &path, 0) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    if (path.len >= sizeof(engine->sockaddr.sun_path)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "too long path in the engine \"%V\"", name);
        return NGX_CONF_ERROR;
    }

    lmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_module);

    engine = NULL;
    engines = lmcf->engines.elts;

    for (i = 0; i < lmcf->engines.nelts; i++) {
        if (ngx_strcmp(engines[i]->sockaddr.sun_path, path.data) == 0) {
            engine = engines[i];
        }
    }

    if (engine == NULL) {
        engine = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_engine_t));
        if (engine == NULL) {
            return NGX_CONF_ERROR;
        }

        engine->name = *name;
        engine->sockaddr.sun_family = AF_UNIX;
        ngx_memcpy(engine->sockaddr.sun_path, path.data, path.len);

        ngx_queue_init(&engine->waiting);
        ngx_queue_init(&engine->touched);

        push = ngx_array_push(&lmcf->engines);
        if (push == NULL) {
            return NGX_CONF_ERROR;
        }

        *push = engine;
    }

    push = ngx_array_push(&model->engines);
    if (push == NULL) {
        return NGX_CONF_ERROR;
    }

    *push = engine;

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_tenant(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_loc_conf_t *llcf = conf;

    if (llcf->keys) {
        return "conflicts with \"llm_keys\" of this level";
    }

    return ngx_http_set_complex_value_slot(cf, cmd, conf);
}


/* what has no variables is known now */

static char *
ngx_http_llm_weight(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_loc_conf_t *llcf = conf;

    char  *rv;

    rv = ngx_http_set_complex_value_slot(cf, cmd, conf);

    if (rv != NGX_CONF_OK) {
        return rv;
    }

    if (llcf->weight->lengths == NULL
        && ngx_http_llm_parse_weight(&llcf->weight->value) == 0)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid weight \"%V\", it must be an integer "
                           "from 1 to %d",
                           &llcf->weight->value, LLM_IPC_MAX_WEIGHT);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_positive(ngx_conf_t *cf, void *post, void *data)
{
    ngx_int_t *np = data;

    if (*np < 1 || *np > NGX_MAX_INT32_VALUE) {
        return "must be between 1 and 2147483647";
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_buffer_bounds(ngx_conf_t *cf, void *post, void *data)
{
    size_t *sp = data;

    if (*sp < 1024 || *sp > 64 * 1024 * 1024) {
        return "must be between 1k and 64m";
    }

    return NGX_CONF_OK;
}
