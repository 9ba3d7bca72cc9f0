
/*
 * A zone: buckets of tokens or of requests in shared memory.
 *
 * An entry that nothing is held of stands in a queue, the one that was used
 * last first; the others come and go from its end.  A hold stands in the list
 * of its worker, so that those of a worker that was killed can be found.
 */


#include "ngx_module/ngx_http_llm_limit.h"


/*
 * A hold takes a piece of the same size as an entry with a short key, so that
 * an old entry makes room for either.
 */
#define NGX_HTTP_LLM_LIMIT_PIECE          128

/* old entries that make room for a new one at most */
#define NGX_HTTP_LLM_LIMIT_MAX_EXPIRED    32

#define NGX_HTTP_LLM_LIMIT_REAP_INTERVAL  1000


struct ngx_http_llm_limit_shctx_s {
    ngx_rbtree_t                  rbtree;
    ngx_rbtree_node_t             sentinel;
    ngx_queue_t                   queue;     /* of nodes without holds */
    ngx_queue_t                   workers;
};


/* behind the key of its ngx_rbtree_node_t, as in limit_req */

typedef struct {
    u_char                        color;
    u_char                        dummy;
    u_short                       len;
    uint32_t                      holds;
    ngx_queue_t                   queue;
    ngx_msec_t                    last;
    int64_t                       excess;    /* used, at that time */
    int64_t                       held;
    u_char                        data[1];
} ngx_http_llm_limit_node_t;


struct ngx_http_llm_limit_worker_s {
    ngx_queue_t                   queue;
    ngx_queue_t                   holds;
    ngx_pid_t                     pid;
};


struct ngx_http_llm_limit_hold_s {
    ngx_queue_t                   queue;
    ngx_http_llm_limit_node_t    *node;
    int64_t                       amount;
};


static ngx_http_llm_limit_hold_t *ngx_http_llm_limit_begin(
    ngx_http_llm_limit_zone_t *zone, ngx_http_llm_limit_node_t *node,
    uint32_t hash, ngx_str_t *key, int64_t amount);
static void ngx_http_llm_limit_end(ngx_http_llm_limit_zone_t *zone,
    ngx_http_llm_limit_hold_t *hold, int64_t amount);
static int64_t ngx_http_llm_limit_excess(ngx_http_llm_limit_zone_t *zone,
    ngx_http_llm_limit_node_t *node);
static ngx_http_llm_limit_node_t *ngx_http_llm_limit_find(
    ngx_http_llm_limit_zone_t *zone, uint32_t hash, ngx_str_t *key);
static ngx_http_llm_limit_node_t *ngx_http_llm_limit_add(
    ngx_http_llm_limit_zone_t *zone, uint32_t hash, ngx_str_t *key);
static ngx_int_t ngx_http_llm_limit_join(ngx_http_llm_limit_zone_t *zone);
static void *ngx_http_llm_limit_alloc(ngx_http_llm_limit_zone_t *zone,
    size_t size);
static ngx_int_t ngx_http_llm_limit_expire(ngx_http_llm_limit_zone_t *zone,
    ngx_uint_t force);
static ngx_http_llm_limit_worker_t *ngx_http_llm_limit_gone_worker(
    ngx_http_llm_limit_zone_t *zone);
static void ngx_http_llm_limit_insert_value(ngx_rbtree_node_t *temp,
    ngx_rbtree_node_t *node, ngx_rbtree_node_t *sentinel);


ngx_int_t
ngx_http_llm_limit_hold(ngx_http_llm_limit_zone_t *zone, ngx_str_t *key,
    int64_t amount, int64_t burst, int64_t *used,
    ngx_http_llm_limit_hold_t **holdp)
{
    uint32_t                    hash;
    ngx_int_t                   rc;
    ngx_http_llm_limit_node_t  *node;

    hash = ngx_crc32_short(key->data, key->len);

    do {
        ngx_shmtx_lock(&zone->shpool->mutex);

        node = ngx_http_llm_limit_find(zone, hash, key);

        *used = node ? node->held + ngx_http_llm_limit_excess(zone, node) : 0;

        if (*used + amount > burst) {
            rc = NGX_BUSY;

        } else if (holdp == NULL) {
            rc = NGX_OK;

        } else {
            *holdp = ngx_http_llm_limit_begin(zone, node, hash, key, amount);
            rc = *holdp ? NGX_OK : NGX_ERROR;
        }

        ngx_shmtx_unlock(&zone->shpool->mutex);

    } while (rc == NGX_BUSY && ngx_http_llm_limit_reap(zone));

    if (rc == NGX_ERROR) {
        ngx_log_error(NGX_LOG_ALERT, ngx_cycle->log, 0,
                      "could not allocate node%s", zone->shpool->log_ctx);
    }

    return rc;
}


/* of a node that is there, or of a new one */

static ngx_http_llm_limit_hold_t *
ngx_http_llm_limit_begin(ngx_http_llm_limit_zone_t *zone,
    ngx_http_llm_limit_node_t *node, uint32_t hash, ngx_str_t *key,
    int64_t amount)
{
    ngx_http_llm_limit_hold_t  *hold;

    /* out of the queue, so that it is not what makes room */

    if (node && node->holds == 0) {
        ngx_queue_remove(&node->queue);
    }

    hold = NULL;

    if (ngx_http_llm_limit_join(zone) == NGX_OK) {

        if (node == NULL) {
            node = ngx_http_llm_limit_add(zone, hash, key);
        }

        if (node) {
            hold = ngx_http_llm_limit_alloc(zone,
                                            sizeof(ngx_http_llm_limit_hold_t));
        }
    }

    if (hold == NULL) {
        if (node && node->holds == 0) {
            ngx_queue_insert_head(&zone->sh->queue, &node->queue);
        }

        return NULL;
    }

    hold->node = node;
    hold->amount = amount;

    node->holds++;
    node->held += amount;

    ngx_queue_insert_head(&zone->worker->holds, &hold->queue);

    return hold;
}


void
ngx_http_llm_limit_settle(ngx_http_llm_limit_zone_t *zone,
    ngx_http_llm_limit_hold_t *hold, int64_t amount)
{
    ngx_shmtx_lock(&zone->shpool->mutex);

    ngx_http_llm_limit_end(zone, hold, ngx_min(amount, hold->amount));

    ngx_shmtx_unlock(&zone->shpool->mutex);
}


static void
ngx_http_llm_limit_end(ngx_http_llm_limit_zone_t *zone,
    ngx_http_llm_limit_hold_t *hold, int64_t amount)
{
    ngx_http_llm_limit_node_t  *node;

    node = hold->node;

    ngx_queue_remove(&hold->queue);

    node->held -= hold->amount;

    if (amount) {
        node->excess = ngx_http_llm_limit_excess(zone, node) + amount;

        /* the time of workers differs by a little */

        if ((ngx_msec_int_t) (ngx_current_msec - node->last) > 0) {
            node->last = ngx_current_msec;
        }
    }

    if (--node->holds == 0) {
        ngx_queue_insert_head(&zone->sh->queue, &node->queue);
    }

    ngx_slab_free_locked(zone->shpool, hold);
}


int64_t
ngx_http_llm_limit_used(ngx_http_llm_limit_zone_t *zone, ngx_str_t *key)
{
    int64_t                     used;
    ngx_http_llm_limit_node_t  *node;

    ngx_shmtx_lock(&zone->shpool->mutex);

    node = ngx_http_llm_limit_find(zone, ngx_crc32_short(key->data, key->len),
                                   key);

    used = node ? node->held + ngx_http_llm_limit_excess(zone, node) : 0;

    ngx_shmtx_unlock(&zone->shpool->mutex);

    return used;
}


/* what has not drained until now */

static int64_t
ngx_http_llm_limit_excess(ngx_http_llm_limit_zone_t *zone,
    ngx_http_llm_limit_node_t *node)
{
    ngx_msec_int_t  ms;

    ms = (ngx_msec_int_t) (ngx_current_msec - node->last);

    if (ms <= 0) {
        return node->excess;
    }

    if (ms > node->excess / zone->rate) {
        return 0;
    }

    return node->excess - zone->rate * ms;
}


static ngx_http_llm_limit_node_t *
ngx_http_llm_limit_find(ngx_http_llm_limit_zone_t *zone, uint32_t hash,
    ngx_str_t *key)
{
    ngx_int_t                   rc;
    ngx_rbtree_node_t          *node, *sentinel;
    ngx_http_llm_limit_node_t  *ln;

    node = zone->sh->rbtree.root;
    sentinel = zone->sh->rbtree.sentinel;

    while (node != sentinel) {

        if (hash != node->key) {
            node = (hash < node->key) ? node->left : node->right;
            continue;
        }

        ln = (ngx_http_llm_limit_node_t *) &node->color;

        rc = ngx_memn2cmp(key->data, ln->data, key->len, (size_t) ln->len);

        if (rc == 0) {
            return ln;
        }

        node = (rc < 0) ? node->left : node->right;
    }

    return NULL;
}


/* it stands in no queue yet */

static ngx_http_llm_limit_node_t *
ngx_http_llm_limit_add(ngx_http_llm_limit_zone_t *zone, uint32_t hash,
    ngx_str_t *key)
{
    ngx_uint_t                  i;
    ngx_rbtree_node_t          *node;
    ngx_http_llm_limit_node_t  *ln;

    /* two that nobody uses any more go for each that comes */

    for (i = 0; i < 2; i++) {
        if (ngx_http_llm_limit_expire(zone, 0) != NGX_OK) {
            break;
        }
    }

    node = ngx_http_llm_limit_alloc(zone,
                                    offsetof(ngx_rbtree_node_t, color)
                                    + offsetof(ngx_http_llm_limit_node_t, data)
                                    + key->len);
    if (node == NULL) {
        return NULL;
    }

    node->key = hash;

    ln = (ngx_http_llm_limit_node_t *) &node->color;

    ln->len = (u_short) key->len;
    ln->holds = 0;
    ln->last = ngx_current_msec;
    ln->excess = 0;
    ln->held = 0;

    ngx_memcpy(ln->data, key->data, key->len);

    ngx_rbtree_insert(&zone->sh->rbtree, node);

    return ln;
}


static ngx_int_t
ngx_http_llm_limit_join(ngx_http_llm_limit_zone_t *zone)
{
    ngx_http_llm_limit_worker_t  *worker;

    if (zone->worker) {
        return NGX_OK;
    }

    worker = ngx_http_llm_limit_alloc(zone,
                                      sizeof(ngx_http_llm_limit_worker_t));
    if (worker == NULL) {
        return NGX_ERROR;
    }

    worker->pid = ngx_pid;
    ngx_queue_init(&worker->holds);
    ngx_queue_insert_head(&zone->sh->workers, &worker->queue);

    zone->worker = worker;

    return NGX_OK;
}


static void *
ngx_http_llm_limit_alloc(ngx_http_llm_limit_zone_t *zone, size_t size)
{
    void        *p;
    ngx_uint_t   i;

    size = ngx_max(size, NGX_HTTP_LLM_LIMIT_PIECE);

    for (i = 0; i < NGX_HTTP_LLM_LIMIT_MAX_EXPIRED; i++) {
        p = ngx_slab_alloc_locked(zone->shpool, size);

        if (p || ngx_http_llm_limit_expire(zone, 1) != NGX_OK) {
            return p;
        }
    }

    return NULL;
}


/* removes the entry that was used least lately, if it is empty, or anyway */

static ngx_int_t
ngx_http_llm_limit_expire(ngx_http_llm_limit_zone_t *zone, ngx_uint_t force)
{
    ngx_queue_t                *q;
    ngx_rbtree_node_t          *node;
    ngx_http_llm_limit_node_t  *ln;

    if (ngx_queue_empty(&zone->sh->queue)) {
        return NGX_DECLINED;
    }

    q = ngx_queue_last(&zone->sh->queue);

    ln = ngx_queue_data(q, ngx_http_llm_limit_node_t, queue);

    if (!force && ngx_http_llm_limit_excess(zone, ln)) {
        return NGX_DECLINED;
    }

    ngx_queue_remove(q);

    node = (ngx_rbtree_node_t *)
               ((u_char *) ln - offsetof(ngx_rbtree_node_t, color));

    ngx_rbtree_delete(&zone->sh->rbtree, node);

    ngx_slab_free_locked(zone->shpool, node);

    return NGX_OK;
}


ngx_uint_t
ngx_http_llm_limit_reap(ngx_http_llm_limit_zone_t *zone)
{
    int64_t                       amount;
    ngx_pid_t                     pid;
    ngx_uint_t                    n, all;
    ngx_queue_t                  *q;
    ngx_http_llm_limit_hold_t    *hold;
    ngx_http_llm_limit_worker_t  *worker;

    if (zone->reaped
        && ngx_current_msec - zone->reaped < NGX_HTTP_LLM_LIMIT_REAP_INTERVAL)
    {
        return 0;
    }

    zone->reaped = ngx_current_msec;

    for (all = 0; /* void */ ; all += n) {
        n = 0;
        amount = 0;

        ngx_shmtx_lock(&zone->shpool->mutex);

        worker = ngx_http_llm_limit_gone_worker(zone);

        if (worker == NULL) {
            ngx_shmtx_unlock(&zone->shpool->mutex);
            return all;
        }

        pid = worker->pid;

        while (!ngx_queue_empty(&worker->holds)) {
            q = ngx_queue_head(&worker->holds);

            hold = ngx_queue_data(q, ngx_http_llm_limit_hold_t, queue);

            n++;
            amount += hold->amount;

            ngx_http_llm_limit_end(zone, hold, 0);
        }

        ngx_queue_remove(&worker->queue);
        ngx_slab_free_locked(zone->shpool, worker);

        ngx_shmtx_unlock(&zone->shpool->mutex);

        if (n) {
            ngx_log_error(NGX_LOG_WARN, ngx_cycle->log, 0,
                          "process %P is gone and did not say what %ui "
                          "requests used, given back: %L %s in zone \"%V\"",
                          pid, n, amount / NGX_HTTP_LLM_LIMIT_UNIT,
                          zone->tokens ? "tokens" : "requests", zone->name);
        }
    }
}


void
ngx_http_llm_limit_init_process(ngx_http_llm_main_conf_t *lmcf)
{
    ngx_uint_t                   i;
    ngx_http_llm_limit_zone_t  **zones;

    zones = lmcf->zones.elts;

    for (i = 0; i < lmcf->zones.nelts; i++) {
        (void) ngx_http_llm_limit_reap(zones[i]);
    }
}


static ngx_http_llm_limit_worker_t *
ngx_http_llm_limit_gone_worker(ngx_http_llm_limit_zone_t *zone)
{
    ngx_queue_t                  *q;
    ngx_http_llm_limit_worker_t  *worker;

    for (q = ngx_queue_head(&zone->sh->workers);
         q != ngx_queue_sentinel(&zone->sh->workers);
         q = ngx_queue_next(q))
    {
        worker = ngx_queue_data(q, ngx_http_llm_limit_worker_t, queue);

        if (worker == zone->worker) {
            continue;
        }

        /* this process may have the number of one that was there before it */

        if (worker->pid == ngx_pid
            || (kill(worker->pid, 0) == -1 && ngx_errno == NGX_ESRCH))
        {
            return worker;
        }
    }

    return NULL;
}


static void
ngx_http_llm_limit_insert_value(ngx_rbtree_node_t *temp,
    ngx_rbtree_node_t *node, ngx_rbtree_node_t *sentinel)
{
    ngx_rbtree_node_t          **p;
    ngx_http_llm_limit_node_t   *ln, *lnt;

    for ( ;; ) {

        if (node->key != temp->key) {
            p = (node->key < temp->key) ? &temp->left : &temp->right;

        } else {
            ln = (ngx_http_llm_limit_node_t *) &node->color;
            lnt = (ngx_http_llm_limit_node_t *) &temp->color;

            p = (ngx_memn2cmp(ln->data, lnt->data, ln->len, lnt->len) < 0)
                ? &temp->left : &temp->right;
        }

        if (*p == sentinel) {
            break;
        }

        temp = *p;
    }

    *p = node;
    node->parent = temp;
    node->left = sentinel;
    node->right = sentinel;
    ngx_rbt_red(node);
}


ngx_int_t
ngx_http_llm_limit_init_zone(ngx_shm_zone_t *shm_zone, void *data)
{
    ngx_http_llm_limit_zone_t  *old = data;

    ngx_http_llm_limit_zone_t  *zone;

    zone = shm_zone->data;
    zone->name = &shm_zone->shm.name;

    if (old) {
        if (zone->key.value.len != old->key.value.len
            || ngx_strncmp(zone->key.value.data, old->key.value.data,
                           zone->key.value.len)
               != 0)
        {
            ngx_log_error(NGX_LOG_EMERG, shm_zone->shm.log, 0,
                          "llm_limit_zone \"%V\" uses the \"%V\" key "
                          "while previously it used the \"%V\" key",
                          zone->name, &zone->key.value, &old->key.value);
            return NGX_ERROR;
        }

        if (zone->tokens != old->tokens) {
            ngx_log_error(NGX_LOG_EMERG, shm_zone->shm.log, 0,
                          "llm_limit_zone \"%V\" counts %s while previously "
                          "it counted %s",
                          zone->name, zone->tokens ? "tokens" : "requests",
                          old->tokens ? "tokens" : "requests");
            return NGX_ERROR;
        }

        zone->sh = old->sh;
        zone->shpool = old->shpool;

        /* without a master, this process goes on */
        zone->worker = old->worker;

        return NGX_OK;
    }

    zone->shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;

    if (shm_zone->shm.exists) {
        zone->sh = zone->shpool->data;
        return NGX_OK;
    }

    zone->sh = ngx_http_llm_init_zone(shm_zone, "llm_limit_zone",
                                      sizeof(ngx_http_llm_limit_shctx_t));
    if (zone->sh == NULL) {
        return NGX_ERROR;
    }

    ngx_rbtree_init(&zone->sh->rbtree, &zone->sh->sentinel,
                    ngx_http_llm_limit_insert_value);

    ngx_queue_init(&zone->sh->queue);
    ngx_queue_init(&zone->sh->workers);

    return NGX_OK;
}
