
/*
 * Buckets in shared memory, one for each value of a zone's key.
 *
 * What was used drains at the zone's rate.  What is held for requests in
 * flight does not: it keeps room until they tell what they used, or until
 * the worker that holds it is gone.
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


/*
 * Holds an amount if no more than burst is in use with it; *used is what was
 * in use before.  NGX_BUSY: it is more; NGX_ERROR: no memory, which is logged.
 * Where hold is NULL it only says whether it would.
 */
ngx_int_t ngx_http_llm_limit_hold(ngx_http_llm_limit_zone_t *zone,
    ngx_str_t *key, int64_t amount, int64_t burst, int64_t *used,
    ngx_http_llm_limit_hold_t **hold);

/* ends a hold: so much was used instead */
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


#endif /* _NGX_HTTP_LLM_LIMIT_H_INCLUDED_ */
