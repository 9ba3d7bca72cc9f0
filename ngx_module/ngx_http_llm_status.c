
/*
 * llm_status: what the endpoint has done and how its engines are, as JSON or
 * in Prometheus's text format.  All of it lies in shared memory: nobody is
 * asked, nothing waits.
 */


#include "ngx_module/ngx_http_llm_status.h"
#include "engine/ipc/utf8.h"


#define NGX_HTTP_LLM_STATUS_JSON        1
#define NGX_HTTP_LLM_STATUS_PROMETHEUS  2


static ngx_int_t ngx_http_llm_status_handler(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_status_engines(ngx_http_request_t *r,
    ngx_array_t *engines);
static ngx_int_t ngx_http_llm_status_name(ngx_pool_t *pool, ngx_str_t *name,
    ngx_str_t *shown);


const char  *ngx_http_llm_outcomes[] = {
    "ok", "aborted", "invalid", "denied", "limited", "unavailable", "failed"
};

const char  *ngx_http_llm_healths[] = {
    "ready", "connecting", "full", "loading", "draining", "stalled", "failed",
    "down"
};

const char  *ngx_http_llm_breakers[] = {
    "none", "closed", "open", "half_open"
};


const ngx_http_llm_time_t  ngx_http_llm_times[] = {
    { "queue_seconds", "Time in an engine's queue, by request." },
    { "first_token_seconds",
      "Time from a request's submission to its first token." },
    { "token_seconds", "Mean time between two tokens, by request." }
};


#define ngx_http_llm_state_field(field)                                      \
    offsetof(struct llm_ipc_state, field)

#define ngx_http_llm_state_counter(i)                                        \
    (offsetof(struct llm_ipc_state, counters) + (i) * sizeof(uint64_t))


const ngx_http_llm_metric_t  ngx_http_llm_metrics[] = {

    { .name = "start_time_seconds",
      .help = "When the engine was started, in unix time.",
      .offset = ngx_http_llm_state_field(start_time) },

    { .name = "sessions",
      .help = "Connections of nginx workers.",
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_SESSIONS) },

    { .name = "queued_requests",
      .help = "Choices of requests that wait for their turn.",
      .offset = ngx_http_llm_state_field(queued_requests), .half = 1 },

    { .name = "queued_tokens",
      .help = "Tokens of prompts that wait.",
      .offset = ngx_http_llm_state_field(queued_tokens) },

    { .name = "running_requests",
      .help = "Requests that have started and not ended.",
      .offset = ngx_http_llm_state_field(running_requests), .half = 1 },

    { .name = "free_pages",
      .help = "Pages of latents that nobody uses, though they may be cached.",
      .offset = ngx_http_llm_state_field(free_pages), .half = 1 },

    { .name = "pages",
      .help = "Pages of latents.",
      .offset = ngx_http_llm_state_field(total_pages), .half = 1 },

    { .name = "prefill_tokens_per_second",
      .help = "How fast prompts are read.",
      .offset = ngx_http_llm_state_field(prefill_rate), .half = 1 },

    { .name = "decode_tokens_per_second",
      .help = "How fast all that runs is answered, together.",
      .offset = ngx_http_llm_state_field(decode_rate), .half = 1 },

    { .name = "steps_total",
      .help = "Steps of the model.",
      .type = NGX_HTTP_LLM_COUNTER,
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_STEPS) },

    { .name = "cache_hit_tokens_total",
      .help = "Tokens of prompts that were found instead of computed.",
      .type = NGX_HTTP_LLM_COUNTER,
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_HIT_TOKENS),
      .label = "tier", .values = { "memory", "host", "redis" } },

    { .name = "cache_miss_tokens_total",
      .help = "Tokens of full pages of prompts that were in no memory.",
      .type = NGX_HTTP_LLM_COUNTER,
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_MISS_TOKENS) },

    { .name = "cache_evicted_pages_total",
      .help = "Pages that had to make room.",
      .type = NGX_HTTP_LLM_COUNTER,
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_EVICTED_PAGES),
      .label = "tier", .values = { "memory", "host" } },

    { .name = "cache_bytes",
      .help = "Bytes of pages that are cached.",
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_CACHED_BYTES),
      .label = "tier", .values = { "memory", "host" } },

    { .name = "redis_lookups_total",
      .help = "Pages that Redis was asked for.",
      .type = NGX_HTTP_LLM_COUNTER, .redis = 1,
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_REDIS_LOADS) },

    { .name = "redis_hits_total",
      .help = "Pages that came from Redis.",
      .type = NGX_HTTP_LLM_COUNTER, .redis = 1,
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_REDIS_HITS) },

    { .name = "redis_misses_total",
      .help = "Pages that did not.",
      .type = NGX_HTTP_LLM_COUNTER, .redis = 1,
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_REDIS_MISSES),
      .label = "reason", .values = { "absent", "late", "down", "refused",
                                     "protocol", "corrupt", "stale",
                                     "unwanted" } },

    { .name = "redis_saves_total",
      .help = "Pages that Redis was to keep.",
      .type = NGX_HTTP_LLM_COUNTER, .redis = 1,
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_REDIS_SAVED),
      .label = "result", .values = { "saved", "there", "over_quota",
                                     "unsaved" } },

    { .name = "redis_received_bytes_total",
      .help = "Bytes that came from Redis.",
      .type = NGX_HTTP_LLM_COUNTER, .redis = 1,
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_REDIS_BYTES_IN) },

    { .name = "redis_sent_bytes_total",
      .help = "Bytes that went to Redis.",
      .type = NGX_HTTP_LLM_COUNTER, .redis = 1,
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_REDIS_BYTES_OUT) },

    { .name = "redis_connects_total",
      .help = "Connections to Redis that were made.",
      .type = NGX_HTTP_LLM_COUNTER, .redis = 1,
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_REDIS_CONNECTS) },

    { .name = "redis_drops_total",
      .help = "Connections to Redis that were lost or given up.",
      .type = NGX_HTTP_LLM_COUNTER, .redis = 1,
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_REDIS_DROPS) },

    { .name = "redis_first_page_seconds",
      .help = "Time to the first page of a look-up, of late.",
      .redis = 1, .ns = 1,
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_REDIS_FIRST_NS) },

    { .name = "redis_bytes_per_second",
      .help = "Speed after it.",
      .redis = 1,
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_REDIS_BYTES_PER_S) },

    { .name = "redis_decisions_total",
      .help = "What was decided about prompts whose pages may be in Redis.",
      .type = NGX_HTTP_LLM_COUNTER, .redis = 1,
      .offset = ngx_http_llm_state_counter(LLM_IPC_COUNT_REDIS_CHOSEN),
      .label = "decision", .values = { "load", "compute", "probe" } },

    { .name = NULL }
};


char *
ngx_http_llm_status(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_loc_conf_t *llcf = conf;

    ngx_str_t                 *value;
    ngx_http_core_loc_conf_t  *clcf;

    if (llcf->status) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "json") == 0) {
        llcf->status = NGX_HTTP_LLM_STATUS_JSON;

    } else if (ngx_strcmp(value[1].data, "prometheus") == 0) {
        llcf->status = NGX_HTTP_LLM_STATUS_PROMETHEUS;

    } else {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid format \"%V\", it must be \"json\" or "
                           "\"prometheus\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_llm_status_handler;

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_llm_status_handler(ngx_http_request_t *r)
{
    ngx_int_t                  rc;
    ngx_str_t                  type;
    ngx_http_llm_status_t      status;
    ngx_http_llm_writer_t      w;
    ngx_http_llm_loc_conf_t   *llcf;
    ngx_http_llm_main_conf_t  *lmcf;

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return NGX_HTTP_NOT_ALLOWED;
    }

    rc = ngx_http_discard_request_body(r);

    if (rc != NGX_OK) {
        return rc;
    }

    lmcf = ngx_http_get_module_main_conf(r, ngx_http_llm_module);
    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    ngx_memzero(&status, sizeof(ngx_http_llm_status_t));

    if (lmcf->status_zone
        && ngx_http_llm_status_read(lmcf->status_zone, r->pool, &status)
           != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    if (ngx_http_llm_status_engines(r, &status.engines) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_memzero(&w, sizeof(ngx_http_llm_writer_t));

    w.pool = r->pool;
    w.last = &w.out;

    if (llcf->status == NGX_HTTP_LLM_STATUS_JSON) {
        ngx_http_llm_status_json(&w, &status);
        ngx_str_set(&type, "application/json");

    } else {
        ngx_http_llm_status_prometheus(&w, &status);
        ngx_str_set(&type, "text/plain; version=0.0.4; charset=utf-8");
    }

    return ngx_http_llm_send_document(r, NGX_HTTP_OK, &type, &w);
}


/* how they are now, each read once */

static ngx_int_t
ngx_http_llm_status_engines(ngx_http_request_t *r, ngx_array_t *engines)
{
    ngx_uint_t                     i;
    ngx_http_llm_engine_t        **engine;
    ngx_http_llm_main_conf_t      *lmcf;
    ngx_http_llm_engine_status_t  *es;

    lmcf = ngx_http_get_module_main_conf(r, ngx_http_llm_module);

    engine = lmcf->engines.elts;

    if (ngx_array_init(engines, r->pool, lmcf->engines.nelts + 1,
                       sizeof(ngx_http_llm_engine_status_t))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    for (i = 0; i < lmcf->engines.nelts; i++) {
        es = ngx_array_push(engines);

        if (ngx_http_llm_status_name(r->pool, &engine[i]->name, &es->name)
            != NGX_OK)
        {
            return NGX_ERROR;
        }

        es->health = ngx_http_llm_engine_health(engine[i]);
        es->known = (engine[i]->state == NGX_HTTP_LLM_ENGINE_UP);

        if (es->known) {
            llm_ipc_state_read(&engine[i]->session, &es->state);
        }
    }

    return NGX_OK;
}


/* paths are bytes: where they are no UTF-8, they are shown as "\xFF" */

static ngx_int_t
ngx_http_llm_status_name(ngx_pool_t *pool, ngx_str_t *name, ngx_str_t *shown)
{
    u_char      *p;
    ngx_uint_t   i;

    if (llm_ipc_utf8_valid(name->data, name->len)) {
        *shown = *name;
        return NGX_OK;
    }

    p = ngx_pnalloc(pool, name->len * (sizeof("\\xFF") - 1));
    if (p == NULL) {
        return NGX_ERROR;
    }

    shown->data = p;

    for (i = 0; i < name->len; i++) {

        if (name->data[i] < 0x80) {
            *p++ = name->data[i];

        } else {
            p = ngx_sprintf(p, "\\x%02Xd", name->data[i]);
        }
    }

    shown->len = p - shown->data;

    return NGX_OK;
}


ngx_uint_t
ngx_http_llm_breaker(ngx_http_llm_engine_status_t *es)
{
    uint64_t  breaker;

    breaker = es->state.counters[LLM_IPC_COUNT_REDIS_BREAKER];

    return (es->known && breaker <= LLM_IPC_BREAKER_HALF_OPEN)
           ? breaker : LLM_IPC_BREAKER_NONE;
}


ngx_uint_t
ngx_http_llm_has_metric(ngx_http_llm_engine_status_t *es,
    const ngx_http_llm_metric_t *metric)
{
    return es->known
           && (!metric->redis
               || ngx_http_llm_breaker(es) != LLM_IPC_BREAKER_NONE);
}


void
ngx_http_llm_put_metric(ngx_http_llm_writer_t *w,
    const ngx_http_llm_metric_t *metric, struct llm_ipc_state *state,
    ngx_uint_t i)
{
    u_char    *p;
    uint64_t   word;

    p = (u_char *) state + metric->offset;

    word = metric->half ? *(uint32_t *) p : ((uint64_t *) p)[i];

    if (metric->ns) {
        ngx_http_llm_put_seconds(w, word);

    } else {
        ngx_http_llm_put_number(w, word);
    }
}


/* as short as it can be said */

void
ngx_http_llm_put_seconds(ngx_http_llm_writer_t *w, uint64_t ns)
{
    u_char  text[NGX_INT64_LEN + sizeof(".123456789")], *last;

    last = ngx_sprintf(text, "%uL.%09uL", ns / 1000000000, ns % 1000000000);

    while (last[-1] == '0') {
        last--;
    }

    if (last[-1] == '.') {
        last--;
    }

    ngx_http_llm_put(w, text, last - text);
}
