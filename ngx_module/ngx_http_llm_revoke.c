
/*
 * Keys that a reload took away.
 *
 * Workers of older configurations still look keys up in what they were
 * started with.  So the master leaves the ids of those that are gone in
 * shared memory, where these workers find them before they submit a request,
 * and after: what they submitted before is ended by the engines, which every
 * new worker tells of the same ids.
 */


#include "ngx_module/ngx_http_llm_module.h"


/* the newest that are kept for workers of older configurations */
#define NGX_HTTP_LLM_REVOKED  4096


typedef struct {
    ngx_atomic_t                 generation;  /* of the configuration */
    ngx_atomic_t                 n;           /* ever revoked */
    ngx_http_llm_key_id_t        ids[NGX_HTTP_LLM_REVOKED];
} ngx_http_llm_revoked_t;


/* of a configuration */

struct ngx_http_llm_revocation_s {
    ngx_array_t                 *keys;        /* of ngx_http_llm_keys_t * */
    time_t                       since;       /* when it came into force */
    ngx_uint_t                   generation;  /* then */
    ngx_uint_t                   n;           /* revoked until then */
    ngx_array_t                  ids;         /* revoked by it, */
    unsigned                     lost:1;      /* but for some */
    ngx_http_llm_revocation_t   *old;         /* while it comes into force */
    ngx_http_llm_revoked_t      *shared;
};


static ngx_int_t ngx_http_llm_init_revoked_zone(ngx_shm_zone_t *shm_zone,
    void *data);
static void ngx_http_llm_find_revoked(ngx_http_llm_revocation_t *rev);
static ngx_uint_t ngx_http_llm_still_holds(ngx_http_llm_revocation_t *rev,
    const ngx_http_llm_key_t *key);
static void ngx_http_llm_publish_revoked(ngx_http_llm_revocation_t *rev);
static ngx_uint_t ngx_http_llm_is_newest(ngx_http_llm_revocation_t *rev);


/* in every configuration, because the one before may have had keys */

ngx_int_t
ngx_http_llm_add_revocation(ngx_conf_t *cf)
{
    ngx_str_t                   name = ngx_string("revoked keys of llm");
    ngx_shm_zone_t             *shm_zone;
    ngx_http_llm_main_conf_t   *lmcf;
    ngx_http_llm_revocation_t  *rev;

    rev = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_revocation_t));
    if (rev == NULL) {
        return NGX_ERROR;
    }

    if (ngx_array_init(&rev->ids, cf->pool, 4, sizeof(ngx_http_llm_key_id_t))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    shm_zone = ngx_shared_memory_add(cf, &name,
                                     sizeof(ngx_http_llm_revoked_t)
                                     + 16 * ngx_pagesize,
                                     &ngx_http_llm_module);
    if (shm_zone == NULL) {
        return NGX_ERROR;
    }

    shm_zone->init = ngx_http_llm_init_revoked_zone;
    shm_zone->data = rev;

    lmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_module);

    rev->keys = &lmcf->keys;
    lmcf->revocation = rev;

    return NGX_OK;
}


/*
 * The configuration may still be given up: nothing is done here but to note
 * the one before it, which is there until the new one is in force.
 */

static ngx_int_t
ngx_http_llm_init_revoked_zone(ngx_shm_zone_t *shm_zone, void *data)
{
    ngx_slab_pool_t            *shpool;
    ngx_http_llm_revocation_t  *rev;

    rev = shm_zone->data;
    shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;

    if (data || shm_zone->shm.exists) {
        rev->old = data;
        rev->shared = shpool->data;
        return NGX_OK;
    }

    rev->shared = ngx_slab_calloc(shpool, sizeof(ngx_http_llm_revoked_t));
    if (rev->shared == NULL) {
        return NGX_ERROR;
    }

    shpool->data = rev->shared;

    return NGX_OK;
}


/*
 * The new configuration is in force, and no worker of it is there yet.  A
 * failure here would end the master.
 */

ngx_int_t
ngx_http_llm_revoke_keys(ngx_cycle_t *cycle)
{
    ngx_http_llm_main_conf_t   *lmcf;
    ngx_http_llm_revocation_t  *rev;

    lmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_llm_module);

    if (lmcf == NULL) {
        return NGX_OK;
    }

    rev = lmcf->revocation;
    rev->since = ngx_time();

    if (rev->old) {
        ngx_http_llm_find_revoked(rev);
        rev->old = NULL;
    }

    ngx_http_llm_publish_revoked(rev);

    if (rev->lost) {
        ngx_log_error(NGX_LOG_ALERT, cycle->log, 0,
                      "no memory for the ids of revoked llm keys: what some "
                      "of them have running goes on");
    }

    if (rev->ids.nelts) {
        ngx_log_error(NGX_LOG_NOTICE, cycle->log, 0,
                      "llm keys revoked: %ui", rev->ids.nelts);
    }

    return NGX_OK;
}


static void
ngx_http_llm_find_revoked(ngx_http_llm_revocation_t *rev)
{
    ngx_uint_t              i, k;
    ngx_http_llm_key_t     *key;
    ngx_http_llm_keys_t   **keys;
    ngx_http_llm_key_id_t  *id;

    keys = rev->old->keys->elts;

    for (i = 0; i < rev->old->keys->nelts; i++) {
        key = keys[i]->elts;

        for (k = 0; k < keys[i]->nelts; k++) {

            /* nobody was let in with one that had expired before */

            if ((key[k].said.expires
                 && key[k].said.expires <= rev->old->since)
                || ngx_http_llm_still_holds(rev, &key[k]))
            {
                continue;
            }

            id = ngx_array_push(&rev->ids);
            if (id == NULL) {
                rev->lost = 1;
                return;
            }

            ngx_memcpy(id->bytes, key[k].said.digest, sizeof(id->bytes));
        }
    }
}


/* whether its owner is let in as the same tenant, wherever that is */

static ngx_uint_t
ngx_http_llm_still_holds(ngx_http_llm_revocation_t *rev,
    const ngx_http_llm_key_t *key)
{
    ngx_uint_t                  i;
    ngx_http_llm_keys_t       **keys;
    const ngx_http_llm_key_t   *now;

    keys = rev->keys->elts;

    for (i = 0; i < rev->keys->nelts; i++) {
        now = ngx_http_llm_find_key(keys[i], key->said.digest);

        if (now
            && (now->said.expires == 0 || now->said.expires > rev->since)
            && now->said.tenant.len == key->said.tenant.len
            && ngx_memcmp(now->said.tenant.data, key->said.tenant.data,
                          key->said.tenant.len)
               == 0)
        {
            return 1;
        }
    }

    return 0;
}


/*
 * The master alone writes.  Who reads meanwhile and does not see it yet has
 * submitted before, and the engines will be told after.
 */

static void
ngx_http_llm_publish_revoked(ngx_http_llm_revocation_t *rev)
{
    ngx_uint_t               i, n;
    ngx_http_llm_key_id_t   *ids;
    ngx_http_llm_revoked_t  *shared;

    shared = rev->shared;
    ids = rev->ids.elts;
    n = shared->n;

    /* readers see by the number that what is overwritten, or lost, is gone */

    shared->n = n + rev->ids.nelts
                + (rev->lost ? NGX_HTTP_LLM_REVOKED + 1 : 0);

    ngx_memory_barrier();

    for (i = 0; i < rev->ids.nelts; i++) {
        shared->ids[(n + i) % NGX_HTTP_LLM_REVOKED] = ids[i];
    }

    rev->n = shared->n;
    rev->generation = shared->generation + 1;

    ngx_memory_barrier();

    shared->generation = rev->generation;
}


static ngx_uint_t
ngx_http_llm_is_newest(ngx_http_llm_revocation_t *rev)
{
    ngx_memory_barrier();

    return rev->shared->generation == rev->generation;
}


ngx_array_t *
ngx_http_llm_revoked_keys(ngx_http_llm_main_conf_t *lmcf)
{
    if (!ngx_http_llm_is_newest(lmcf->revocation)) {
        return NULL;
    }

    return &lmcf->revocation->ids;
}


ngx_int_t
ngx_http_llm_check_revoked(ngx_http_request_t *r,
    const ngx_http_llm_key_t *key)
{
    ngx_uint_t                  i, n;
    ngx_http_llm_revoked_t     *shared;
    ngx_http_llm_main_conf_t   *lmcf;
    ngx_http_llm_revocation_t  *rev;

    if (key == NULL) {
        return NGX_OK;
    }

    lmcf = ngx_http_get_module_main_conf(r, ngx_http_llm_module);

    rev = lmcf->revocation;

    if (ngx_http_llm_is_newest(rev)) {
        return NGX_OK;
    }

    shared = rev->shared;
    n = shared->n;

    for (i = rev->n; i != n && n - rev->n <= NGX_HTTP_LLM_REVOKED; i++) {

        if (ngx_memcmp(shared->ids[i % NGX_HTTP_LLM_REVOKED].bytes,
                       key->said.digest, sizeof(ngx_http_llm_key_id_t))
            == 0)
        {
            return NGX_DECLINED;
        }
    }

    ngx_memory_barrier();

    /* too many since then, maybe while they were looked through */

    return (shared->n - rev->n > NGX_HTTP_LLM_REVOKED) ? NGX_BUSY : NGX_OK;
}
