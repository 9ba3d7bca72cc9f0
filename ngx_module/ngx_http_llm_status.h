
/*
 * What the endpoint has done since the zone was made, shared by all workers
 * (status_zone.c), how its engines are (status.c), and how both are shown
 * (status_json.c, status_prometheus.c).
 */


#ifndef _NGX_HTTP_LLM_STATUS_H_INCLUDED_
#define _NGX_HTTP_LLM_STATUS_H_INCLUDED_


#include "ngx_module/ngx_http_llm_limit.h"


/* how requests end */

typedef enum {
    NGX_HTTP_LLM_OUTCOME_OK = 0,
    NGX_HTTP_LLM_OUTCOME_ABORTED,       /* the client left */
    NGX_HTTP_LLM_OUTCOME_INVALID,       /* 4xx but the next two */
    NGX_HTTP_LLM_OUTCOME_DENIED,        /* 401, 403 */
    NGX_HTTP_LLM_OUTCOME_LIMITED,       /* 429, or by llm_limit */
    NGX_HTTP_LLM_OUTCOME_UNAVAILABLE,   /* 503: full, draining, down, late */
    NGX_HTTP_LLM_OUTCOME_FAILED,        /* everything else */
    NGX_HTTP_LLM_OUTCOMES
} ngx_http_llm_outcome_e;


typedef enum {
    NGX_HTTP_LLM_TIME_QUEUE = 0,
    NGX_HTTP_LLM_TIME_FIRST_TOKEN,
    NGX_HTTP_LLM_TIME_TOKEN,
    NGX_HTTP_LLM_TIMES
} ngx_http_llm_time_e;


/* with an entry of their own: an answer that shows more takes too long */
#define NGX_HTTP_LLM_MAX_TENANTS  1000

#define NGX_HTTP_LLM_BUCKETS      18

/* upper bounds of the buckets, in microseconds; the last one has none */
extern const uint32_t  ngx_http_llm_bounds[NGX_HTTP_LLM_BUCKETS - 1];


typedef struct {
    uint64_t                     buckets[NGX_HTTP_LLM_BUCKETS];
    uint64_t                     sum;        /* ns */
} ngx_http_llm_histogram_t;


typedef struct {
    uint64_t                     requests;
    uint64_t                     prompt_tokens;
    uint64_t                     cached_tokens;  /* of these */
    uint64_t                     completion_tokens;
} ngx_http_llm_usage_t;


typedef struct {
    uint64_t                     outcomes[NGX_HTTP_LLM_OUTCOMES];
    uint64_t                     limits[NGX_HTTP_LLM_LIMIT_STATUSES];
    ngx_http_llm_histogram_t     times[NGX_HTTP_LLM_TIMES];
    ngx_http_llm_usage_t         other;      /* of whom has no entry */
} ngx_http_llm_totals_t;


typedef struct {
    ngx_str_t                    name;
    ngx_http_llm_usage_t         usage;
} ngx_http_llm_tenant_usage_t;


typedef struct {
    ngx_str_t                    name;       /* in UTF-8 */
    ngx_http_llm_health_e        health;
    unsigned                     known:1;    /* state */
    struct llm_ipc_state         state;
} ngx_http_llm_engine_status_t;


typedef enum {
    NGX_HTTP_LLM_GAUGE = 0,
    NGX_HTTP_LLM_COUNTER,
    NGX_HTTP_LLM_HISTOGRAM
} ngx_http_llm_metric_type_e;


/* a word of an engine's state, or one for each value of a label */

typedef struct {
    const char                  *name;       /* behind "llm_engine_" */
    const char                  *help;
    ngx_http_llm_metric_type_e   type;
    size_t                       offset;     /* of the first word */
    const char                  *label;      /* or NULL */
    const char                  *values[LLM_IPC_REDIS_MISSES];
    unsigned                     half:1;     /* of 32 bits */
    unsigned                     ns:1;       /* shown as seconds */
    unsigned                     redis:1;    /* where there is a Redis */
} ngx_http_llm_metric_t;


typedef struct {
    const char                  *name;       /* behind "llm_" */
    const char                  *help;
} ngx_http_llm_time_t;


typedef struct {
    ngx_http_llm_totals_t       *totals;     /* NULL: there is no zone */
    ngx_array_t                 *tenants;    /* of .._tenant_usage_t */
    ngx_array_t                  engines;    /* of .._engine_status_t */
} ngx_http_llm_status_t;


/* ngx_http_llm_status_zone.c */

/* a copy of what it says now, made in the pool; tenants are in no order */
ngx_int_t ngx_http_llm_status_read(ngx_shm_zone_t *zone, ngx_pool_t *pool,
    ngx_http_llm_status_t *status);


/* ngx_http_llm_status.c */

extern const char                  *ngx_http_llm_outcomes[];
extern const char                  *ngx_http_llm_healths[];
extern const char                  *ngx_http_llm_breakers[];
extern const ngx_http_llm_time_t    ngx_http_llm_times[];
extern const ngx_http_llm_metric_t  ngx_http_llm_metrics[];  /* to name NULL */

ngx_uint_t ngx_http_llm_breaker(ngx_http_llm_engine_status_t *es);
ngx_uint_t ngx_http_llm_has_metric(ngx_http_llm_engine_status_t *es,
    const ngx_http_llm_metric_t *metric);

/* of the i-th value of the metric's label */
void ngx_http_llm_put_metric(ngx_http_llm_writer_t *w,
    const ngx_http_llm_metric_t *metric, struct llm_ipc_state *state,
    ngx_uint_t i);
void ngx_http_llm_put_seconds(ngx_http_llm_writer_t *w, uint64_t ns);


/* ngx_http_llm_status_json.c, ngx_http_llm_status_prometheus.c */

void ngx_http_llm_status_json(ngx_http_llm_writer_t *w,
    ngx_http_llm_status_t *status);
void ngx_http_llm_status_prometheus(ngx_http_llm_writer_t *w,
    ngx_http_llm_status_t *status);


#endif /* _NGX_HTTP_LLM_STATUS_H_INCLUDED_ */
