
/*
 * What the files of limits share.
 *
 * A zone is buckets in shared memory, one for each value of its key.  What
 * was used drains at the zone's rate.  What is held for requests in flight
 * does not: it keeps room until they tell what they used, or until the worker
 * that holds it is gone.
 */


#ifndef _NGX_HTTP_LLM_LIMIT_H_INCLUDED_
#define _NGX_HTTP_LLM_LIMIT_H_INCLUDED_


#include "ngx_module/ngx_http_llm_module.h"


/*
 * Amounts are in parts of a token, or of a request: what a rate of one a
 * minute makes in a millisecond.  So nothing is ever rounded.
 */
#define NGX_HTTP_LLM_LIMIT_UNIT  60000

/* tokens or requests, of a rate or a burst: amounts are far below 2^63 */
#define NGX_HTTP_LLM_LIMIT_MAX   1000000000000


typedef struct ngx_http_llm_limit_shctx_s   ngx_http_llm_limit_shctx_t;
typedef struct ngx_http_llm_limit_worker_s  ngx_http_llm_limit_worker_t;
typedef struct ngx_http_llm_limit_hold_s    ngx_http_llm_limit_hold_t;


typedef struct {
    ngx_http_llm_limit_shctx_t   *sh;
    ngx_slab_pool_t              *shpool;
    ngx_str_t                    *name;
    ngx_http_complex_value_t      key;
    int64_t                       rate;      /* a minute */
    ngx_uint_t                    tokens;    /* else requests */

    /* of this process, once it has held something */
    ngx_http_llm_limit_worker_t  *worker;
    ngx_msec_t                    reaped;    /* when */
} ngx_http_llm_limit_zone_t;


/* what became of a request; of several limits the greatest counts */

typedef enum {
    NGX_HTTP_LLM_LIMIT_NONE = 0,
    NGX_HTTP_LLM_LIMIT_PASSED,
    NGX_HTTP_LLM_LIMIT_DELAYED_DRY_RUN,
    NGX_HTTP_LLM_LIMIT_REJECTED_DRY_RUN,
    NGX_HTTP_LLM_LIMIT_DELAYED,
    NGX_HTTP_LLM_LIMIT_REJECTED,
    NGX_HTTP_LLM_LIMIT_STATUSES
} ngx_http_llm_limit_status_e;


extern const char  *ngx_http_llm_limit_statuses[];


typedef struct {
    ngx_shm_zone_t               *shm_zone;
    int64_t                       burst;     /* 0: a minute of the rate */
    unsigned                      nodelay:1;
    unsigned                      dry_run:1;
} ngx_http_llm_limit_t;


/* of a request */

struct ngx_http_llm_limited_s {
    ngx_http_llm_limit_t         *limits;
    ngx_uint_t                    n;
    ngx_http_llm_limit_status_e   status;
    ngx_msec_t                    begin;     /* not before */
    ngx_int_t                     budget;    /* tokens; -1: there is none */
    ngx_str_t                     keys[];    /* empty: it is not limited */
};


/* ngx_http_llm_limit_zone.c */

/* its handler: makes it, or takes it over from the configuration before */
ngx_int_t ngx_http_llm_limit_init_zone(ngx_shm_zone_t *shm_zone, void *data);

/*
 * Holds an amount if no more than burst is in use with it; *used is what was
 * in use before.  NGX_BUSY: it is more; NGX_ERROR: no memory, which is logged.
 * Where hold is NULL it only says whether it would.
 */
ngx_int_t ngx_http_llm_limit_hold(ngx_http_llm_limit_zone_t *zone,
    ngx_str_t *key, int64_t amount, int64_t burst, int64_t *used,
    ngx_http_llm_limit_hold_t **hold);

/* ends a hold: so much of it was used, or all of it if that is more */
void ngx_http_llm_limit_settle(ngx_http_llm_limit_zone_t *zone,
    ngx_http_llm_limit_hold_t *hold, int64_t amount);

/* what is in use now, held or not */
int64_t ngx_http_llm_limit_used(ngx_http_llm_limit_zone_t *zone,
    ngx_str_t *key);

/*
 * Gives back, and logs, what workers held that are gone; looks for them once
 * a second at most.  The number of holds.
 */
ngx_uint_t ngx_http_llm_limit_reap(ngx_http_llm_limit_zone_t *zone);


/* ngx_http_llm_charge.c */

/* its prompt has been counted, or it is no charge of tokens */
ngx_http_llm_charge_t *ngx_http_llm_charge_new(ngx_http_llm_ctx_t *ctx);

/* as ngx_http_llm_limit_hold(); once for each limit of the request at most */
ngx_int_t ngx_http_llm_charge_hold(ngx_http_llm_charge_t *charge,
    ngx_http_llm_limit_zone_t *zone, ngx_str_t *key, int64_t amount,
    int64_t burst, int64_t *used);

/* the same amount of all that is held; the charge is freed */
void ngx_http_llm_charge_end(ngx_http_llm_charge_t *charge, int64_t amount);


/* ngx_http_llm_limit.c */

ngx_http_llm_limit_status_e ngx_http_llm_limit_status(
    ngx_http_llm_ctx_t *ctx);

/* sets ctx->limited: the location's limits, and the values of their keys */
ngx_int_t ngx_http_llm_limit_evaluate(ngx_http_llm_ctx_t *ctx);

int64_t ngx_http_llm_limit_burst(ngx_http_llm_limit_t *limit);


#endif /* _NGX_HTTP_LLM_LIMIT_H_INCLUDED_ */
