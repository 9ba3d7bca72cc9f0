
/*
 * What llm_status shows, in Prometheus's text format, where all lines of a
 * metric stand together.
 */


#include "ngx_module/ngx_http_llm_status.h"


static void ngx_http_llm_text_head(ngx_http_llm_writer_t *w,
    const char *prefix, const char *name, const char *help,
    ngx_http_llm_metric_type_e type);
static void ngx_http_llm_text_totals(ngx_http_llm_writer_t *w,
    ngx_http_llm_totals_t *totals, ngx_array_t *tenants);
static void ngx_http_llm_text_usage(ngx_http_llm_writer_t *w,
    const char *name, const char *help, size_t offset,
    ngx_http_llm_totals_t *totals, ngx_array_t *tenants);
static void ngx_http_llm_text_histogram(ngx_http_llm_writer_t *w,
    const char *name, const char *help, ngx_http_llm_histogram_t *histogram);
static void ngx_http_llm_text_engines(ngx_http_llm_writer_t *w,
    ngx_array_t *engines);
static void ngx_http_llm_text_metric(ngx_http_llm_writer_t *w,
    const ngx_http_llm_metric_t *metric, ngx_array_t *engines);
static void ngx_http_llm_text_engine(ngx_http_llm_writer_t *w,
    const char *name, ngx_str_t *engine);
static void ngx_http_llm_text_label(ngx_http_llm_writer_t *w,
    const u_char *value, size_t len);
static void ngx_http_llm_text_put(ngx_http_llm_writer_t *w, const char *text);


static const char  *ngx_http_llm_types[] = { "gauge", "counter", "histogram" };


void
ngx_http_llm_status_prometheus(ngx_http_llm_writer_t *w,
    ngx_http_llm_status_t *status)
{
    ngx_http_llm_text_head(w, "llm_", "build_info",
                           "Versions of the module and of nginx.",
                           NGX_HTTP_LLM_GAUGE);
    ngx_http_llm_put_text(w, "llm_build_info{version=\""
                             NGX_HTTP_LLM_VERSION "\",nginx=\""
                             NGINX_VERSION "\"} 1\n");

    if (status->totals) {
        ngx_http_llm_text_totals(w, status->totals, status->tenants);
    }

    ngx_http_llm_text_engines(w, &status->engines);
}


static void
ngx_http_llm_text_head(ngx_http_llm_writer_t *w, const char *prefix,
    const char *name, const char *help, ngx_http_llm_metric_type_e type)
{
    ngx_http_llm_put_text(w, "# HELP ");
    ngx_http_llm_text_put(w, prefix);
    ngx_http_llm_text_put(w, name);
    ngx_http_llm_put_text(w, " ");
    ngx_http_llm_text_put(w, help);
    ngx_http_llm_put_text(w, "\n# TYPE ");
    ngx_http_llm_text_put(w, prefix);
    ngx_http_llm_text_put(w, name);
    ngx_http_llm_put_text(w, " ");
    ngx_http_llm_text_put(w, ngx_http_llm_types[type]);
    ngx_http_llm_put_text(w, "\n");
}


static void
ngx_http_llm_text_totals(ngx_http_llm_writer_t *w,
    ngx_http_llm_totals_t *totals, ngx_array_t *tenants)
{
    ngx_uint_t  i;

    ngx_http_llm_text_head(w, "llm_", "requests_total",
                           "Requests by what became of them.",
                           NGX_HTTP_LLM_COUNTER);

    for (i = 0; i < NGX_HTTP_LLM_OUTCOMES; i++) {
        ngx_http_llm_put_text(w, "llm_requests_total{outcome=\"");
        ngx_http_llm_text_put(w, ngx_http_llm_outcomes[i]);
        ngx_http_llm_put_text(w, "\"} ");
        ngx_http_llm_put_number(w, totals->outcomes[i]);
        ngx_http_llm_put_text(w, "\n");
    }

    ngx_http_llm_text_head(w, "llm_", "limit_requests_total",
                           "Requests by what llm_limit said of them.",
                           NGX_HTTP_LLM_COUNTER);

    for (i = NGX_HTTP_LLM_LIMIT_PASSED; i < NGX_HTTP_LLM_LIMIT_STATUSES; i++) {
        ngx_http_llm_put_text(w, "llm_limit_requests_total{status=\"");
        ngx_http_llm_text_put(w, ngx_http_llm_limit_statuses[i]);
        ngx_http_llm_put_text(w, "\"} ");
        ngx_http_llm_put_number(w, totals->limits[i]);
        ngx_http_llm_put_text(w, "\n");
    }

    ngx_http_llm_text_usage(w, "tenant_requests_total",
                            "The same requests by tenant.",
                            offsetof(ngx_http_llm_usage_t, requests),
                            totals, tenants);
    ngx_http_llm_text_usage(w, "prompt_tokens_total",
                            "Tokens of the prompts that were read.",
                            offsetof(ngx_http_llm_usage_t, prompt_tokens),
                            totals, tenants);
    ngx_http_llm_text_usage(w, "cached_tokens_total",
                            "Those of them that were in the cache.",
                            offsetof(ngx_http_llm_usage_t, cached_tokens),
                            totals, tenants);
    ngx_http_llm_text_usage(w, "completion_tokens_total",
                            "Tokens of the answers.",
                            offsetof(ngx_http_llm_usage_t, completion_tokens),
                            totals, tenants);

    for (i = 0; i < NGX_HTTP_LLM_TIMES; i++) {
        ngx_http_llm_text_histogram(w, ngx_http_llm_times[i].name,
                                    ngx_http_llm_times[i].help,
                                    &totals->times[i]);
    }
}


static void
ngx_http_llm_text_usage(ngx_http_llm_writer_t *w, const char *name,
    const char *help, size_t offset, ngx_http_llm_totals_t *totals,
    ngx_array_t *tenants)
{
    ngx_str_t                     other = ngx_string("other"), *label;
    ngx_uint_t                    i;
    ngx_http_llm_usage_t         *usage;
    ngx_http_llm_tenant_usage_t  *tenant;

    ngx_http_llm_text_head(w, "llm_", name, help, NGX_HTTP_LLM_COUNTER);

    tenant = tenants->elts;

    for (i = 0; i <= tenants->nelts; i++) {
        label = (i < tenants->nelts) ? &tenant[i].name : &other;
        usage = (i < tenants->nelts) ? &tenant[i].usage : &totals->other;

        ngx_http_llm_put_text(w, "llm_");
        ngx_http_llm_text_put(w, name);
        ngx_http_llm_put_text(w, "{tenant=");
        ngx_http_llm_text_label(w, label->data, label->len);
        ngx_http_llm_put_text(w, "} ");
        ngx_http_llm_put_number(w, *(uint64_t *) ((u_char *) usage + offset));
        ngx_http_llm_put_text(w, "\n");
    }
}


static void
ngx_http_llm_text_histogram(ngx_http_llm_writer_t *w, const char *name,
    const char *help, ngx_http_llm_histogram_t *histogram)
{
    uint64_t    n;
    ngx_uint_t  i;

    ngx_http_llm_text_head(w, "llm_", name, help, NGX_HTTP_LLM_HISTOGRAM);

    n = 0;

    for (i = 0; i < NGX_HTTP_LLM_BUCKETS; i++) {
        n += histogram->buckets[i];

        ngx_http_llm_put_text(w, "llm_");
        ngx_http_llm_text_put(w, name);
        ngx_http_llm_put_text(w, "_bucket{le=\"");

        if (i < NGX_HTTP_LLM_BUCKETS - 1) {
            ngx_http_llm_put_seconds(w, ngx_http_llm_bounds[i] * 1000ull);

        } else {
            ngx_http_llm_put_text(w, "+Inf");
        }

        ngx_http_llm_put_text(w, "\"} ");
        ngx_http_llm_put_number(w, n);
        ngx_http_llm_put_text(w, "\n");
    }

    ngx_http_llm_put_text(w, "llm_");
    ngx_http_llm_text_put(w, name);
    ngx_http_llm_put_text(w, "_sum ");
    ngx_http_llm_put_seconds(w, histogram->sum);
    ngx_http_llm_put_text(w, "\nllm_");
    ngx_http_llm_text_put(w, name);
    ngx_http_llm_put_text(w, "_count ");
    ngx_http_llm_put_number(w, n);
    ngx_http_llm_put_text(w, "\n");
}


static void
ngx_http_llm_text_engines(ngx_http_llm_writer_t *w, ngx_array_t *engines)
{
    ngx_uint_t                     i;
    const ngx_http_llm_metric_t   *metric;
    ngx_http_llm_engine_status_t  *es;

    if (engines->nelts == 0) {
        return;
    }

    es = engines->elts;

    ngx_http_llm_text_head(w, "llm_engine_", "up",
                           "Whether it answers, though its queue may be full.",
                           NGX_HTTP_LLM_GAUGE);

    for (i = 0; i < engines->nelts; i++) {
        ngx_http_llm_text_engine(w, "up", &es[i].name);
        ngx_http_llm_put_text(w, "} ");
        ngx_http_llm_put_number(w, es[i].health == NGX_HTTP_LLM_READY
                                   || es[i].health == NGX_HTTP_LLM_FULL);
        ngx_http_llm_put_text(w, "\n");
    }

    ngx_http_llm_text_head(w, "llm_engine_", "state", "What it does now.",
                           NGX_HTTP_LLM_GAUGE);

    for (i = 0; i < engines->nelts; i++) {
        ngx_http_llm_text_engine(w, "state", &es[i].name);
        ngx_http_llm_put_text(w, ",state=\"");
        ngx_http_llm_text_put(w, ngx_http_llm_healths[es[i].health]);
        ngx_http_llm_put_text(w, "\"} 1\n");
    }

    ngx_http_llm_text_head(w, "llm_engine_", "redis_breaker",
                           "Its circuit breaker before Redis.",
                           NGX_HTTP_LLM_GAUGE);

    for (i = 0; i < engines->nelts; i++) {
        ngx_http_llm_text_engine(w, "redis_breaker", &es[i].name);
        ngx_http_llm_put_text(w, ",state=\"");
        ngx_http_llm_text_put(w,
                     ngx_http_llm_breakers[ngx_http_llm_breaker(&es[i])]);
        ngx_http_llm_put_text(w, "\"} 1\n");
    }

    for (metric = ngx_http_llm_metrics; metric->name; metric++) {
        ngx_http_llm_text_metric(w, metric, engines);
    }
}


/* nothing, where no engine has it */

static void
ngx_http_llm_text_metric(ngx_http_llm_writer_t *w,
    const ngx_http_llm_metric_t *metric, ngx_array_t *engines)
{
    ngx_uint_t                     i, k, begun;
    ngx_http_llm_engine_status_t  *es;

    es = engines->elts;
    begun = 0;

    for (i = 0; i < engines->nelts; i++) {

        if (!ngx_http_llm_has_metric(&es[i], metric)) {
            continue;
        }

        if (!begun) {
            ngx_http_llm_text_head(w, "llm_engine_", metric->name,
                                   metric->help, metric->type);
            begun = 1;
        }

        for (k = 0; k == 0 || metric->values[k]; k++) {
            ngx_http_llm_text_engine(w, metric->name, &es[i].name);

            if (metric->label) {
                ngx_http_llm_put_text(w, ",");
                ngx_http_llm_text_put(w, metric->label);
                ngx_http_llm_put_text(w, "=\"");
                ngx_http_llm_text_put(w, metric->values[k]);
                ngx_http_llm_put_text(w, "\"");
            }

            ngx_http_llm_put_text(w, "} ");
            ngx_http_llm_put_metric(w, metric, &es[i].state, k);
            ngx_http_llm_put_text(w, "\n");
        }
    }
}


static void
ngx_http_llm_text_engine(ngx_http_llm_writer_t *w, const char *name,
    ngx_str_t *engine)
{
    ngx_http_llm_put_text(w, "llm_engine_");
    ngx_http_llm_text_put(w, name);
    ngx_http_llm_put_text(w, "{engine=");
    ngx_http_llm_text_label(w, engine->data, engine->len);
}


static void
ngx_http_llm_text_label(ngx_http_llm_writer_t *w, const u_char *value,
    size_t len)
{
    size_t  i, said;

    ngx_http_llm_put_text(w, "\"");

    said = 0;

    for (i = 0; i < len; i++) {

        switch (value[i]) {

        case '\n':
            ngx_http_llm_put(w, value + said, i - said);
            ngx_http_llm_put_text(w, "\\n");
            said = i + 1;
            break;

        case '"':
        case '\\':
            ngx_http_llm_put(w, value + said, i - said);
            ngx_http_llm_put_text(w, "\\");
            said = i;
            break;
        }
    }

    ngx_http_llm_put(w, value + said, len - said);
    ngx_http_llm_put_text(w, "\"");
}


static void
ngx_http_llm_text_put(ngx_http_llm_writer_t *w, const char *text)
{
    ngx_http_llm_put(w, text, ngx_strlen(text));
}
