
/* What llm_status shows, as JSON. */


#include "ngx_module/ngx_http_llm_status.h"


static void ngx_http_llm_json_totals(ngx_http_llm_writer_t *w,
    ngx_http_llm_totals_t *totals, ngx_array_t *tenants);
static void ngx_http_llm_json_counts(ngx_http_llm_writer_t *w,
    const char *name, const char *const *labels, const uint64_t *counts,
    ngx_uint_t n);
static void ngx_http_llm_json_usage(ngx_http_llm_writer_t *w,
    ngx_http_llm_usage_t *usage);
static void ngx_http_llm_json_histogram(ngx_http_llm_writer_t *w,
    const char *name, ngx_http_llm_histogram_t *histogram);
static void ngx_http_llm_json_engines(ngx_http_llm_writer_t *w,
    ngx_array_t *engines);


void
ngx_http_llm_status_json(ngx_http_llm_writer_t *w,
    ngx_http_llm_status_t *status)
{
    ngx_http_llm_put_text(w, "{\"version\":\"" NGX_HTTP_LLM_VERSION
                             "\",\"nginx\":\"" NGINX_VERSION "\"");

    if (status->totals) {
        ngx_http_llm_json_totals(w, status->totals, status->tenants);
    }

    ngx_http_llm_json_engines(w, &status->engines);
    ngx_http_llm_put_text(w, "}\n");
}


static void
ngx_http_llm_json_totals(ngx_http_llm_writer_t *w,
    ngx_http_llm_totals_t *totals, ngx_array_t *tenants)
{
    ngx_uint_t                    i;
    ngx_http_llm_tenant_usage_t  *tenant;

    ngx_http_llm_json_counts(w, "requests", ngx_http_llm_outcomes,
                             totals->outcomes, NGX_HTTP_LLM_OUTCOMES);
    ngx_http_llm_json_counts(w, "limit_requests",
                      ngx_http_llm_limit_statuses + NGX_HTTP_LLM_LIMIT_PASSED,
                      totals->limits + NGX_HTTP_LLM_LIMIT_PASSED,
                      NGX_HTTP_LLM_LIMIT_STATUSES - NGX_HTTP_LLM_LIMIT_PASSED);

    ngx_http_llm_put_text(w, ",\"tenants\":{");

    tenant = tenants->elts;

    for (i = 0; i < tenants->nelts; i++) {
        ngx_http_llm_put_string(w, tenant[i].name.data, tenant[i].name.len);
        ngx_http_llm_put_text(w, ":");
        ngx_http_llm_json_usage(w, &tenant[i].usage);
        ngx_http_llm_put_text(w, ",");
    }

    ngx_http_llm_put_text(w, "\"other\":");
    ngx_http_llm_json_usage(w, &totals->other);
    ngx_http_llm_put_text(w, "}");

    for (i = 0; i < NGX_HTTP_LLM_TIMES; i++) {
        ngx_http_llm_json_histogram(w, ngx_http_llm_times[i].name,
                                    &totals->times[i]);
    }
}


static void
ngx_http_llm_json_counts(ngx_http_llm_writer_t *w, const char *name,
    const char *const *labels, const uint64_t *counts, ngx_uint_t n)
{
    ngx_uint_t  i;

    ngx_http_llm_put_text(w, ",");
    ngx_http_llm_put_c_string(w, name);

    for (i = 0; i < n; i++) {
        ngx_http_llm_put(w, i ? "," : ":{", i ? 1 : 2);
        ngx_http_llm_put_c_string(w, labels[i]);
        ngx_http_llm_put_text(w, ":");
        ngx_http_llm_put_number(w, counts[i]);
    }

    ngx_http_llm_put_text(w, "}");
}


static void
ngx_http_llm_json_usage(ngx_http_llm_writer_t *w, ngx_http_llm_usage_t *usage)
{
    ngx_http_llm_put_text(w, "{\"requests\":");
    ngx_http_llm_put_number(w, usage->requests);
    ngx_http_llm_put_text(w, ",\"prompt_tokens\":");
    ngx_http_llm_put_number(w, usage->prompt_tokens);
    ngx_http_llm_put_text(w, ",\"cached_tokens\":");
    ngx_http_llm_put_number(w, usage->cached_tokens);
    ngx_http_llm_put_text(w, ",\"completion_tokens\":");
    ngx_http_llm_put_number(w, usage->completion_tokens);
    ngx_http_llm_put_text(w, "}");
}


static void
ngx_http_llm_json_histogram(ngx_http_llm_writer_t *w, const char *name,
    ngx_http_llm_histogram_t *histogram)
{
    uint64_t    n;
    ngx_uint_t  i;

    ngx_http_llm_put_text(w, ",");
    ngx_http_llm_put_c_string(w, name);
    ngx_http_llm_put_text(w, ":{\"buckets\":{");

    n = 0;

    for (i = 0; i < NGX_HTTP_LLM_BUCKETS - 1; i++) {
        n += histogram->buckets[i];

        ngx_http_llm_put_text(w, "\"");
        ngx_http_llm_put_seconds(w, ngx_http_llm_bounds[i] * 1000ull);
        ngx_http_llm_put_text(w, "\":");
        ngx_http_llm_put_number(w, n);
        ngx_http_llm_put_text(w, ",");
    }

    n += histogram->buckets[i];

    ngx_http_llm_put_text(w, "\"+Inf\":");
    ngx_http_llm_put_number(w, n);
    ngx_http_llm_put_text(w, "},\"sum\":");
    ngx_http_llm_put_seconds(w, histogram->sum);
    ngx_http_llm_put_text(w, ",\"count\":");
    ngx_http_llm_put_number(w, n);
    ngx_http_llm_put_text(w, "}");
}


static void
ngx_http_llm_json_engines(ngx_http_llm_writer_t *w, ngx_array_t *engines)
{
    ngx_uint_t                     i, k;
    const ngx_http_llm_metric_t   *metric;
    ngx_http_llm_engine_status_t  *es;

    ngx_http_llm_put_text(w, ",\"engines\":[");

    es = engines->elts;

    for (i = 0; i < engines->nelts; i++) {

        if (i) {
            ngx_http_llm_put_text(w, ",");
        }

        ngx_http_llm_put_text(w, "{\"engine\":");
        ngx_http_llm_put_string(w, es[i].name.data, es[i].name.len);
        ngx_http_llm_put_text(w, ",\"state\":");
        ngx_http_llm_put_c_string(w, ngx_http_llm_healths[es[i].health]);
        ngx_http_llm_put_text(w, ",\"redis_breaker\":");
        ngx_http_llm_put_c_string(w,
                     ngx_http_llm_breakers[ngx_http_llm_breaker(&es[i])]);

        for (metric = ngx_http_llm_metrics; metric->name; metric++) {

            if (!ngx_http_llm_has_metric(&es[i], metric)) {
                continue;
            }

            ngx_http_llm_put_text(w, ",");
            ngx_http_llm_put_c_string(w, metric->name);

            for (k = 0; k == 0 || metric->values[k]; k++) {

                if (metric->label) {
                    ngx_http_llm_put(w, k ? "," : ":{", k ? 1 : 2);
                    ngx_http_llm_put_c_string(w, metric->values[k]);
                }

                ngx_http_llm_put_text(w, ":");
                ngx_http_llm_put_metric(w, metric, &es[i].state, k);
            }

            if (metric->label) {
                ngx_http_llm_put_text(w, "}");
            }
        }

        ngx_http_llm_put_text(w, "}");
    }

    ngx_http_llm_put_text(w, "]");
}
