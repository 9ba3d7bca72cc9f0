
/*
 * llm_status_zone: what became of the requests, counted once each, when they
 * are logged.
 *
 * One lock, one node a tenant; where there are enough of them, or no room for
 * another, the tenant that asked longest ago loses its node, and what that
 * said is the others' from then on: so sums over all tenants never fall.
 */


#include "ngx_module/ngx_http_llm_status.h"
#include "engine/ipc/utf8.h"


typedef struct {
    ngx_str_node_t               sn;         /* by name */
    ngx_queue_t                  queue;      /* newest first */
    ngx_http_llm_usage_t         usage;
    u_char                       name[1];
} ngx_http_llm_tenant_node_t;


typedef struct {
    ngx_rbtree_t                 rbtree;
    ngx_rbtree_node_t            sentinel;
    ngx_queue_t                  queue;
    ngx_uint_t                   n_tenants;
    ngx_http_llm_totals_t        totals;
} ngx_http_llm_status_shm_t;


static ngx_int_t ngx_http_llm_status_init_zone(ngx_shm_zone_t *zone,
    void *data);
static ngx_int_t ngx_http_llm_status_log_handler(ngx_http_request_t *r);
static ngx_uint_t ngx_http_llm_asks_model(ngx_http_llm_ctx_t *ctx);
static ngx_uint_t ngx_http_llm_status_of(ngx_http_llm_ctx_t *ctx);
static ngx_http_llm_outcome_e ngx_http_llm_outcome(ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_observe(ngx_http_llm_histogram_t *histogram,
    uint64_t ns);
static ngx_http_llm_usage_t *ngx_http_llm_usage_of(ngx_slab_pool_t *shpool,
    ngx_str_t *tenant);
static void ngx_http_llm_status_forget(ngx_slab_pool_t *shpool);
static void ngx_http_llm_add_usage(ngx_http_llm_usage_t *to,
    ngx_http_llm_usage_t *usage);


/* a zone that is tagged otherwise, also before a reload, is something else */
static char  ngx_http_llm_status_tag[] = "llm_status_zone";

const uint32_t  ngx_http_llm_bounds[] = {
    1000, 2500, 5000, 10000, 25000, 50000, 100000, 250000, 500000,
    1000000, 2500000, 5000000, 10000000, 25000000, 50000000,
    100000000, 250000000
};


char *
ngx_http_llm_status_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_main_conf_t *lmcf = conf;

    ngx_str_t  *value;

    if (lmcf->status_zone) {
        return "is duplicate";
    }

    value = cf->args->elts;

    lmcf->status_zone = ngx_http_llm_add_zone(cf, &value[1],
                                              ngx_http_llm_status_tag);
    if (lmcf->status_zone == NULL) {
        return NGX_CONF_ERROR;
    }

    lmcf->status_zone->init = ngx_http_llm_status_init_zone;

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_llm_status_init_zone(ngx_shm_zone_t *zone, void *data)
{
    ngx_http_llm_status_shm_t  *sh;

    /* what the pool knows of itself stays valid over a reload */

    zone->data = zone->shm.addr;

    if (data || zone->shm.exists) {
        return NGX_OK;
    }

    sh = ngx_http_llm_init_zone(zone, "llm_status_zone",
                                sizeof(ngx_http_llm_status_shm_t));
    if (sh == NULL) {
        return NGX_ERROR;
    }

    ngx_rbtree_init(&sh->rbtree, &sh->sentinel, ngx_str_rbtree_insert_value);
    ngx_queue_init(&sh->queue);

    return NGX_OK;
}


ngx_int_t
ngx_http_llm_init_status(ngx_conf_t *cf)
{
    ngx_http_handler_pt        *h;
    ngx_http_llm_main_conf_t   *lmcf;
    ngx_http_core_main_conf_t  *cmcf;

    lmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_module);

    if (lmcf->status_zone == NULL) {
        return NGX_OK;
    }

    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);

    h = ngx_array_push(&cmcf->phases[NGX_HTTP_LOG_PHASE].handlers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    *h = ngx_http_llm_status_log_handler;

    return NGX_OK;
}


/* whatever asked for an answer of a model, and whoever has answered it */

static ngx_int_t
ngx_http_llm_status_log_handler(ngx_http_request_t *r)
{
    ngx_slab_pool_t            *shpool;
    ngx_http_llm_ctx_t         *ctx;
    ngx_http_llm_usage_t        usage;
    ngx_http_llm_totals_t      *totals;
    ngx_http_llm_outcome_e      outcome;
    ngx_http_llm_account_t     *account;
    ngx_http_llm_main_conf_t   *lmcf;
    ngx_http_llm_status_shm_t  *sh;

    ctx = (r == r->main) ? ngx_http_llm_get_ctx(r) : NULL;

    if (ctx == NULL || !ngx_http_llm_asks_model(ctx)) {
        return NGX_OK;
    }

    lmcf = ngx_http_get_module_main_conf(r, ngx_http_llm_module);

    account = &ctx->account;
    outcome = ngx_http_llm_outcome(ctx);

    ngx_memzero(&usage, sizeof(ngx_http_llm_usage_t));

    usage.requests = 1;

    if (account->first_token || outcome == NGX_HTTP_LLM_OUTCOME_OK) {
        /* otherwise its prompt was only counted */
        usage.prompt_tokens = account->prompt_tokens;
        usage.cached_tokens = account->cached_tokens;
        usage.completion_tokens = account->completion_tokens;
    }

    shpool = lmcf->status_zone->data;
    sh = shpool->data;
    totals = &sh->totals;

    ngx_shmtx_lock(&shpool->mutex);

    totals->outcomes[outcome]++;
    totals->limits[ngx_http_llm_limit_status(ctx)]++;

    if (account->finished && account->first_token) {
        ngx_http_llm_observe(&totals->times[NGX_HTTP_LLM_TIME_QUEUE],
                             account->queue_time);
    }

    if (account->first_token) {
        ngx_http_llm_observe(&totals->times[NGX_HTTP_LLM_TIME_FIRST_TOKEN],
                             account->first_token - account->submitted);

        if (account->completion_tokens > 1) {
            ngx_http_llm_observe(&totals->times[NGX_HTTP_LLM_TIME_TOKEN],
                                 ngx_http_llm_token_time(account));
        }
    }

    ngx_http_llm_add_usage(ngx_http_llm_usage_of(shpool, &account->tenant),
                           &usage);

    ngx_shmtx_unlock(&shpool->mutex);

    return NGX_OK;
}


/* a location may answer by itself: that is none, unless it is a refusal */

static ngx_uint_t
ngx_http_llm_asks_model(ngx_http_llm_ctx_t *ctx)
{
    return ctx->route ? ctx->route->kind != 0
                      : ngx_http_llm_status_of(ctx) >= NGX_HTTP_BAD_REQUEST;
}


/* what an error_page made of it is not what it was */

static ngx_uint_t
ngx_http_llm_status_of(ngx_http_llm_ctx_t *ctx)
{
    ngx_http_request_t  *r;

    r = ctx->request;

    return ctx->error.status ? ctx->error.status
           : r->err_status ? r->err_status : r->headers_out.status;
}


static ngx_http_llm_outcome_e
ngx_http_llm_outcome(ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t   status;
    const char  *reason;

    reason = ctx->account.finish_reason;

    if (reason && ngx_strcmp(reason, "aborted") == 0) {
        return NGX_HTTP_LLM_OUTCOME_ABORTED;
    }

    if (reason && ngx_strcmp(reason, "error") != 0) {
        return NGX_HTTP_LLM_OUTCOME_OK;
    }

    if (ngx_http_llm_limit_status(ctx) == NGX_HTTP_LLM_LIMIT_REJECTED) {
        return NGX_HTTP_LLM_OUTCOME_LIMITED;
    }

    status = ngx_http_llm_status_of(ctx);

    switch (status) {

    case NGX_HTTP_UNAUTHORIZED:
    case NGX_HTTP_FORBIDDEN:
        return NGX_HTTP_LLM_OUTCOME_DENIED;

    case NGX_HTTP_TOO_MANY_REQUESTS:
        return NGX_HTTP_LLM_OUTCOME_LIMITED;

    case NGX_HTTP_SERVICE_UNAVAILABLE:
        return NGX_HTTP_LLM_OUTCOME_UNAVAILABLE;
    }

    return (status >= NGX_HTTP_BAD_REQUEST
            && status < NGX_HTTP_INTERNAL_SERVER_ERROR)
           ? NGX_HTTP_LLM_OUTCOME_INVALID : NGX_HTTP_LLM_OUTCOME_FAILED;
}


static void
ngx_http_llm_observe(ngx_http_llm_histogram_t *histogram, uint64_t ns)
{
    ngx_uint_t  i;

    for (i = 0; i < NGX_HTTP_LLM_BUCKETS - 1; i++) {
        if (ns <= ngx_http_llm_bounds[i] * 1000ull) {
            break;
        }
    }

    histogram->buckets[i]++;
    histogram->sum += ns;
}


/* the tenant's, or that of all others */

static ngx_http_llm_usage_t *
ngx_http_llm_usage_of(ngx_slab_pool_t *shpool, ngx_str_t *tenant)
{
    size_t                       size;
    uint32_t                     hash;
    ngx_uint_t                   i;
    ngx_http_llm_status_shm_t   *sh;
    ngx_http_llm_tenant_node_t  *node;

    sh = shpool->data;

    /* no label of a metric could say it */

    if (tenant->len == 0 || !llm_ipc_utf8_valid(tenant->data, tenant->len)
        || (tenant->len == 5 && ngx_memcmp(tenant->data, "other", 5) == 0))
    {
        return &sh->totals.other;
    }

    hash = ngx_crc32_short(tenant->data, tenant->len);

    node = (ngx_http_llm_tenant_node_t *)
               ngx_str_rbtree_lookup(&sh->rbtree, tenant, hash);

    if (node) {
        ngx_queue_remove(&node->queue);
        ngx_queue_insert_head(&sh->queue, &node->queue);

        return &node->usage;
    }

    size = offsetof(ngx_http_llm_tenant_node_t, name) + tenant->len;

    if (sh->n_tenants == NGX_HTTP_LLM_MAX_TENANTS) {
        ngx_http_llm_status_forget(shpool);
    }

    node = ngx_slab_calloc_locked(shpool, size);

    for (i = 0; node == NULL && i < 2 && sh->n_tenants; i++) {
        ngx_http_llm_status_forget(shpool);
        node = ngx_slab_calloc_locked(shpool, size);
    }

    if (node == NULL) {
        return &sh->totals.other;
    }

    ngx_memcpy(node->name, tenant->data, tenant->len);

    node->sn.node.key = hash;
    node->sn.str.len = tenant->len;
    node->sn.str.data = node->name;

    ngx_rbtree_insert(&sh->rbtree, &node->sn.node);
    ngx_queue_insert_head(&sh->queue, &node->queue);

    sh->n_tenants++;

    return &node->usage;
}


static void
ngx_http_llm_status_forget(ngx_slab_pool_t *shpool)
{
    ngx_queue_t                 *q;
    ngx_http_llm_status_shm_t   *sh;
    ngx_http_llm_tenant_node_t  *node;

    sh = shpool->data;

    q = ngx_queue_last(&sh->queue);
    node = ngx_queue_data(q, ngx_http_llm_tenant_node_t, queue);

    ngx_http_llm_add_usage(&sh->totals.other, &node->usage);

    ngx_queue_remove(q);
    ngx_rbtree_delete(&sh->rbtree, &node->sn.node);
    ngx_slab_free_locked(shpool, node);

    sh->n_tenants--;
}


static void
ngx_http_llm_add_usage(ngx_http_llm_usage_t *to, ngx_http_llm_usage_t *usage)
{
    to->requests += usage->requests;
    to->prompt_tokens += usage->prompt_tokens;
    to->cached_tokens += usage->cached_tokens;
    to->completion_tokens += usage->completion_tokens;
}


ngx_int_t
ngx_http_llm_status_read(ngx_shm_zone_t *zone, ngx_pool_t *pool,
    ngx_http_llm_status_t *status)
{
    u_char                       *names;
    ngx_uint_t                    n;
    ngx_queue_t                  *q;
    ngx_slab_pool_t              *shpool;
    ngx_http_llm_status_shm_t    *sh;
    ngx_http_llm_tenant_node_t   *node;
    ngx_http_llm_tenant_usage_t  *tenant;

    shpool = zone->data;
    sh = shpool->data;

    /* memory is asked for outside of the lock; a few may come meanwhile */

    n = *(volatile ngx_uint_t *) &sh->n_tenants + 16;

    names = ngx_pnalloc(pool, n * LLM_IPC_MAX_TENANT);
    status->tenants = ngx_array_create(pool, n,
                                       sizeof(ngx_http_llm_tenant_usage_t));
    status->totals = ngx_palloc(pool, sizeof(ngx_http_llm_totals_t));

    if (names == NULL || status->tenants == NULL || status->totals == NULL) {
        return NGX_ERROR;
    }

    ngx_shmtx_lock(&shpool->mutex);

    *status->totals = sh->totals;

    for (q = ngx_queue_head(&sh->queue);
         q != ngx_queue_sentinel(&sh->queue);
         q = ngx_queue_next(q))
    {
        node = ngx_queue_data(q, ngx_http_llm_tenant_node_t, queue);

        if (status->tenants->nelts == n) {
            ngx_http_llm_add_usage(&status->totals->other, &node->usage);
            continue;
        }

        tenant = ngx_array_push(status->tenants);

        tenant->name.len = node->sn.str.len;
        tenant->name.data = names;
        tenant->usage = node->usage;

        names = ngx_cpymem(names, node->name, node->sn.str.len);
    }

    ngx_shmtx_unlock(&shpool->mutex);

    return NGX_OK;
}
