
/*
 * The fields of a request and of its objects by name: which are known, for
 * what, and which values they take.
 */


#include "ngx_module/ngx_http_llm_params.h"

#include <stdio.h>
#include <string.h>


typedef enum {
    FIELD_INT = 0,     /* into a uint32_t; min .. max */
    FIELD_CAP,         /* the same; 1 .. the location's llm_max_tokens */
    FIELD_SEED,        /* any 64 bits, and a flag that says so */
    FIELD_FLOAT,       /* into a float; min .. max */
    FIELD_FLAG,        /* a bit in the head's flags for true, for false */
    FIELD_BOOL,        /* into an int */
    FIELD_JSON,        /* kept for later, when its own code checks it */
    FIELD_NEUTRAL,     /* known, not done here: only values without effect */
    FIELD_ANY          /* without meaning here */
} ngx_http_llm_field_type_e;


#define CHAT        (1u << LLM_IPC_KIND_CHAT)
#define COMPLETION  (1u << LLM_IPC_KIND_COMPLETION)
#define BOTH        (CHAT|COMPLETION)


typedef struct {
    const char                 *name;
    unsigned                    kinds;
    ngx_http_llm_field_type_e   type;
    size_t                      offset;     /* in the parser */
    double                      min, max;
    uint32_t                    on, off;    /* FIELD_FLAG */
    const char                 *neutral;    /* a JSON array of values */
} ngx_http_llm_field_t;


static int ngx_http_llm_fields_object(ngx_http_llm_parser_t *ps,
    json_t *object, const ngx_http_llm_field_t *table, const char *prefix);
static const ngx_http_llm_field_t *ngx_http_llm_fields_find(
    const ngx_http_llm_field_t *table, unsigned kind, const char *name);
static int ngx_http_llm_fields_listed(const char *list, const char *name,
    size_t len);
static int ngx_http_llm_fields_set(ngx_http_llm_parser_t *ps,
    const ngx_http_llm_field_t *field, const char *name, json_t *value);
static int ngx_http_llm_fields_set_int(ngx_http_llm_parser_t *ps,
    const ngx_http_llm_field_t *field, const char *name, json_t *value);
static int ngx_http_llm_fields_set_float(ngx_http_llm_parser_t *ps,
    const ngx_http_llm_field_t *field, const char *name, json_t *value);
static int ngx_http_llm_fields_neutral(ngx_http_llm_parser_t *ps,
    const char *neutral, const char *name, json_t *value);
static int ngx_http_llm_fields_nested(ngx_http_llm_parser_t *ps);


#define AT(member)    offsetof(ngx_http_llm_parser_t, member)

#define NEUTRAL(name, kinds, values)                                         \
    { name, kinds, FIELD_NEUTRAL, 0, 0, 0, 0, 0, values }
#define IGNORED(name)                                                        \
    { name, BOTH, FIELD_ANY, 0, 0, 0, 0, 0, NULL }
#define JSON(name, kinds, member)                                            \
    { name, kinds, FIELD_JSON, AT(member), 0, 0, 0, 0, NULL }
#define INT(name, member, min, max)                                          \
    { name, BOTH, FIELD_INT, AT(member), min, max, 0, 0, NULL }
#define CAP(name, member)                                                    \
    { name, BOTH, FIELD_CAP, AT(member), 0, 0, 0, 0, NULL }
#define FLOAT(name, member, min, max)                                        \
    { name, BOTH, FIELD_FLOAT, AT(head.member), min, max, 0, 0, NULL }
#define FLAG(name, kinds, on, off)                                           \
    { name, kinds, FIELD_FLAG, 0, 0, 0, on, off, NULL }
#define BOOL(name, member)                                                   \
    { name, BOTH, FIELD_BOOL, AT(member), 0, 0, 0, 0, NULL }
#define END                                                                  \
    { NULL, 0, FIELD_ANY, 0, 0, 0, 0, 0, NULL }


/*
 * Every parameter that some client knows.  null is the same as absent; what
 * is in none of the rows is unknown (llm_unknown_fields).
 */

static const ngx_http_llm_field_t  ngx_http_llm_fields_table[] = {

    /* done by this module or the engine */

    JSON("model", BOTH, model),
    JSON("messages", CHAT, messages),
    JSON("prompt", COMPLETION, prompt),
    BOOL("stream", stream),
    JSON("stream_options", BOTH, stream_options),
    CAP("max_tokens", max_tokens),
    CAP("max_completion_tokens", max_completion_tokens),
    INT("n", head.n, 1, LLM_IPC_MAX_N),
    { "best_of", COMPLETION, FIELD_INT, AT(best_of), 1, LLM_IPC_MAX_N, 0, 0,
      NULL },
    INT("min_tokens", head.min_tokens, 0, INT32_MAX),
    FLOAT("temperature", temperature, 0, 2),
    FLOAT("top_p", top_p, 0, 1),
    INT("top_k", head.top_k, -1, INT32_MAX),
    FLOAT("min_p", min_p, 0, 1),
    FLOAT("presence_penalty", presence_penalty, -2, 2),
    FLOAT("frequency_penalty", frequency_penalty, -2, 2),
    FLOAT("repetition_penalty", repetition_penalty, 0.01, 2),
    { "seed", BOTH, FIELD_SEED, AT(head.seed), 0, 0, 0, 0, NULL },
    JSON("stop", BOTH, stop),
    JSON("stop_token_ids", BOTH, stop_token_ids),
    JSON("logit_bias", BOTH, logit_bias),
    FLAG("ignore_eos", BOTH, LLM_IPC_IGNORE_EOS, 0),
    FLAG("skip_special_tokens", BOTH, 0, LLM_IPC_KEEP_SPECIAL),
    JSON("tools", CHAT, tools),
    JSON("tool_choice", CHAT, tool_choice),
    FLAG("parallel_tool_calls", CHAT, LLM_IPC_PARALLEL_TOOLS, 0),
    JSON("chat_template_kwargs", CHAT, template_kwargs),

    /* known, with an effect that is not there */

    NEUTRAL("echo", COMPLETION, "[false]"),
    NEUTRAL("suffix", COMPLETION, "[\"\"]"),
    NEUTRAL("logprobs", CHAT, "[false]"),
    NEUTRAL("logprobs", COMPLETION, "[]"),
    NEUTRAL("top_logprobs", CHAT, "[0]"),
    NEUTRAL("response_format", BOTH, "[{\"type\": \"text\"}]"),
    NEUTRAL("modalities", CHAT, "[[\"text\"]]"),
    NEUTRAL("audio", CHAT, "[]"),
    NEUTRAL("prediction", CHAT, "[]"),
    NEUTRAL("functions", CHAT, "[[]]"),
    NEUTRAL("function_call", CHAT, "[\"none\"]"),
    NEUTRAL("reasoning_effort", CHAT, "[]"),
    NEUTRAL("thinking", CHAT, "[]"),
    NEUTRAL("verbosity", CHAT, "[\"medium\"]"),
    NEUTRAL("web_search_options", CHAT, "[]"),
    NEUTRAL("moderation", CHAT, "[]"),

    /* the same, of other local servers */

    NEUTRAL("add_generation_prompt", CHAT, "[true]"),
    NEUTRAL("add_special_tokens", CHAT, "[false]"),
    NEUTRAL("add_special_tokens", COMPLETION, "[true]"),
    NEUTRAL("allowed_token_ids", BOTH, "[]"),
    NEUTRAL("bad_words", BOTH, "[[]]"),
    NEUTRAL("cache_salt", BOTH, "[]"),
    NEUTRAL("chat_template", CHAT, "[]"),
    NEUTRAL("continue_final_message", CHAT, "[false]"),
    NEUTRAL("documents", CHAT, "[[]]"),
    NEUTRAL("grammar", BOTH, "[\"\"]"),
    NEUTRAL("guided_choice", BOTH, "[]"),
    NEUTRAL("guided_grammar", BOTH, "[]"),
    NEUTRAL("guided_json", BOTH, "[]"),
    NEUTRAL("guided_regex", BOTH, "[]"),
    NEUTRAL("include_stop_str_in_output", BOTH, "[false]"),
    NEUTRAL("json_schema", BOTH, "[]"),
    NEUTRAL("length_penalty", BOTH, "[1]"),
    NEUTRAL("logits_processors", BOTH, "[[]]"),
    NEUTRAL("mirostat", BOTH, "[0]"),
    NEUTRAL("n_predict", BOTH, "[-1]"),
    NEUTRAL("n_probs", BOTH, "[0]"),
    NEUTRAL("priority", BOTH, "[0]"),
    NEUTRAL("prompt_logprobs", BOTH, "[]"),
    NEUTRAL("repeat_penalty", BOTH, "[1]"),
    NEUTRAL("return_token_ids", BOTH, "[false]"),
    NEUTRAL("return_tokens_as_token_ids", BOTH, "[false]"),
    NEUTRAL("spaces_between_special_tokens", BOTH, "[true]"),
    NEUTRAL("structured_outputs", BOTH, "[]"),
    NEUTRAL("truncate_prompt_tokens", BOTH, "[]"),
    NEUTRAL("typical_p", BOTH, "[1]"),
    NEUTRAL("use_beam_search", BOTH, "[false]"),

    /* of a service's accounts, not of an answer */

    IGNORED("cache_prompt"),
    IGNORED("metadata"),
    IGNORED("prompt_cache_key"),
    IGNORED("prompt_cache_retention"),
    IGNORED("request_id"),
    IGNORED("safety_identifier"),
    IGNORED("service_tier"),
    IGNORED("store"),
    IGNORED("user"),

    END
};


static const ngx_http_llm_field_t  ngx_http_llm_fields_stream_options[] = {

    BOOL("include_usage", include_usage),
    NEUTRAL("continuous_usage_stats", BOTH, "[false]"),
    IGNORED("include_obfuscation"),

    END
};


static const ngx_http_llm_field_t  ngx_http_llm_fields_template_kwargs[] = {

    FLAG("thinking", CHAT, LLM_IPC_THINKING_ON, LLM_IPC_THINKING_OFF),

    END
};


int
ngx_http_llm_fields_read(ngx_http_llm_parser_t *ps)
{
    int  rc;

    rc = ngx_http_llm_fields_object(ps, ps->root, ngx_http_llm_fields_table,
                                    NULL);

    return (rc == NGX_HTTP_LLM_PARAMS_OK) ? ngx_http_llm_fields_nested(ps)
                                          : rc;
}


static int
ngx_http_llm_fields_object(ngx_http_llm_parser_t *ps, json_t *object,
    const ngx_http_llm_field_t *table, const char *prefix)
{
    int                          rc;
    char                         full[128];
    json_t                      *value;
    const char                  *name;
    const ngx_http_llm_field_t  *field;

    if (json_object_size(object) > NGX_HTTP_LLM_MAX_MEMBERS) {
        return ngx_http_llm_params_fault(ps, prefix ? prefix : "",
                                         "An object has more than %d members",
                                         NGX_HTTP_LLM_MAX_MEMBERS);
    }

    json_object_foreach(object, name, value) {

        field = ngx_http_llm_fields_find(table, ps->head.kind, name);

        if (field == NULL) {
            rc = ngx_http_llm_fields_unknown(ps, prefix, name);

        } else if (json_is_null(value)) {
            rc = NGX_HTTP_LLM_PARAMS_OK;

        } else {
            /* name steers the loop */

            snprintf(full, sizeof(full), "%s%s%s", prefix ? prefix : "",
                     prefix ? "." : "", field->name);

            rc = ngx_http_llm_fields_set(ps, field, full, value);
        }

        if (rc != NGX_HTTP_LLM_PARAMS_OK) {
            return rc;
        }
    }

    return NGX_HTTP_LLM_PARAMS_OK;
}


static const ngx_http_llm_field_t *
ngx_http_llm_fields_find(const ngx_http_llm_field_t *table, unsigned kind,
    const char *name)
{
    for ( /* void */ ; table->name; table++) {

        if ((table->kinds & (1u << kind)) && strcmp(table->name, name) == 0) {
            return table;
        }
    }

    return NULL;
}


int
ngx_http_llm_fields_unknown(ngx_http_llm_parser_t *ps, const char *prefix,
    const char *name)
{
    char                    clean[64], *p;
    size_t                  len, room;
    ngx_http_llm_params_t  *params;

    /* it goes into a header: short, and of harmless characters only */

    len = snprintf(clean, sizeof(clean), "%s%s%.32s", prefix ? prefix : "",
                   prefix ? "." : "", *name ? name : "?");

    for (p = clean; *p; p++) {
        if ((*p < 'a' || *p > 'z') && (*p < 'A' || *p > 'Z')
            && (*p < '0' || *p > '9') && *p != '_' && *p != '-' && *p != '.')
        {
            *p = '?';
        }
    }

    params = ps->params;

    if (params->reject_unknown) {
        return ngx_http_llm_params_fault(ps, clean, "Unknown parameter");
    }

    if (ps->ignored_full
        || ngx_http_llm_fields_listed(params->ignored, clean, len))
    {
        return NGX_HTTP_LLM_PARAMS_OK;
    }

    p = params->ignored + params->ignored_len;
    room = sizeof(params->ignored) - params->ignored_len;

    if (len + sizeof(", , ...") > room) {
        ps->ignored_full = 1;
        len = snprintf(p, room, ", ...");

    } else {
        len = snprintf(p, room, "%s%s", params->ignored_len ? ", " : "",
                       clean);
    }

    params->ignored_len += len;

    return NGX_HTTP_LLM_PARAMS_OK;
}


static int
ngx_http_llm_fields_listed(const char *list, const char *name, size_t len)
{
    const char  *p;

    for (p = strstr(list, name); p; p = strstr(p + 1, name)) {

        if ((p == list || p[-1] == ' ') && (p[len] == ',' || p[len] == '\0')) {
            return 1;
        }
    }

    return 0;
}


static int
ngx_http_llm_fields_set(ngx_http_llm_parser_t *ps,
    const ngx_http_llm_field_t *field, const char *name, json_t *value)
{
    char  *target;

    target = (char *) ps + field->offset;

    switch (field->type) {

    case FIELD_INT:
    case FIELD_CAP:
        return ngx_http_llm_fields_set_int(ps, field, name, value);

    case FIELD_FLOAT:
        return ngx_http_llm_fields_set_float(ps, field, name, value);

    case FIELD_SEED:
        if (!json_is_integer(value)) {
            return ngx_http_llm_params_fault(ps, name,
                                             "%s must be an integer", name);
        }

        *(uint64_t *) target = (uint64_t) json_integer_value(value);
        ps->head.flags |= LLM_IPC_HAS_SEED;
        break;

    case FIELD_FLAG:
    case FIELD_BOOL:
        if (!json_is_boolean(value)) {
            return ngx_http_llm_params_fault(ps, name,
                                             "%s must be true or false", name);
        }

        if (field->type == FIELD_BOOL) {
            *(int *) target = json_is_true(value);
            break;
        }

        ps->head.flags &= ~(field->on | field->off);
        ps->head.flags |= json_is_true(value) ? field->on : field->off;
        break;

    case FIELD_JSON:
        *(json_t **) target = value;
        break;

    case FIELD_NEUTRAL:
        return ngx_http_llm_fields_neutral(ps, field->neutral, name, value);

    case FIELD_ANY:
        break;
    }

    return NGX_HTTP_LLM_PARAMS_OK;
}


static int
ngx_http_llm_fields_set_int(ngx_http_llm_parser_t *ps,
    const ngx_http_llm_field_t *field, const char *name, json_t *value)
{
    json_int_t  min, max, n;

    min = field->min;
    max = field->max;

    if (field->type == FIELD_CAP) {
        min = 1;
        max = ps->params->max_tokens;
    }

    n = json_integer_value(value);

    if (!json_is_integer(value) || n < min || n > max) {
        return ngx_http_llm_params_fault(ps, name,
                                  "%s must be an integer from %lld to %lld",
                                  name, (long long) min, (long long) max);
    }

    /* -1 is another word for 0 where it is allowed */

    *(uint32_t *) ((char *) ps + field->offset) = (n < 0) ? 0 : (uint32_t) n;

    return NGX_HTTP_LLM_PARAMS_OK;
}


static int
ngx_http_llm_fields_set_float(ngx_http_llm_parser_t *ps,
    const ngx_http_llm_field_t *field, const char *name, json_t *value)
{
    double  x;

    x = json_number_value(value);

    /* written so that what is not a number is out of every range */

    if (!json_is_number(value) || !(x >= field->min && x <= field->max)) {
        return ngx_http_llm_params_fault(ps, name,
                                         "%s must be a number from %g to %g",
                                         name, field->min, field->max);
    }

    *(float *) ((char *) ps + field->offset) = (float) x;

    return NGX_HTTP_LLM_PARAMS_OK;
}


/* NGX_HTTP_LLM_PARAMS_OK where the value has no effect */

static int
ngx_http_llm_fields_neutral(ngx_http_llm_parser_t *ps, const char *neutral,
    const char *name, json_t *value)
{
    int      found;
    size_t   i;
    json_t  *list, *other;

    list = json_loads(neutral, 0, NULL);

    if (list == NULL) {
        return ngx_http_llm_params_out_of_memory(ps);
    }

    found = 0;

    json_array_foreach(list, i, other) {

        if (json_is_number(other) && json_is_number(value)) {
            found |= (json_number_value(other) == json_number_value(value));

        } else {
            found |= json_equal(other, value);
        }
    }

    json_decref(list);

    if (found) {
        return NGX_HTTP_LLM_PARAMS_OK;
    }

    return ngx_http_llm_params_fault(ps, name,
                                     "This value of %s is not supported",
                                     name);
}


static int
ngx_http_llm_fields_nested(ngx_http_llm_parser_t *ps)
{
    int  rc;

    if (ps->stream_options) {

        if (!json_is_object(ps->stream_options)) {
            return ngx_http_llm_params_fault(ps, "stream_options",
                                         "stream_options must be an object");
        }

        if (!ps->stream) {
            return ngx_http_llm_params_fault(ps, "stream_options",
                            "stream_options is only allowed with stream");
        }

        rc = ngx_http_llm_fields_object(ps, ps->stream_options,
                                        ngx_http_llm_fields_stream_options,
                                        "stream_options");
        if (rc != NGX_HTTP_LLM_PARAMS_OK) {
            return rc;
        }
    }

    if (ps->template_kwargs) {

        if (!json_is_object(ps->template_kwargs)) {
            return ngx_http_llm_params_fault(ps, "chat_template_kwargs",
                                   "chat_template_kwargs must be an object");
        }

        return ngx_http_llm_fields_object(ps, ps->template_kwargs,
                                          ngx_http_llm_fields_template_kwargs,
                                          "chat_template_kwargs");
    }

    return NGX_HTTP_LLM_PARAMS_OK;
}
