
/* What the model is to read: messages with their tools, or prompts. */


#include "ngx_module/ngx_http_llm_json.h"
#include "ngx_module/ngx_http_llm_params.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>


typedef struct {
    json_t       *role;
    json_t       *content;
    json_t       *reasoning;
    json_t       *name;
    json_t       *prefix;
    json_t       *tool_calls;
    json_t       *tool_call_id;
} ngx_http_llm_message_t;


static int ngx_http_llm_prompt_message(ngx_http_llm_parser_t *ps,
    json_t *object, size_t i, int last);
static int ngx_http_llm_prompt_fields(ngx_http_llm_parser_t *ps,
    json_t *object, ngx_http_llm_message_t *m, size_t i);
static int ngx_http_llm_prompt_role(json_t *role);
static int ngx_http_llm_prompt_content(ngx_http_llm_parser_t *ps,
    json_t *content, size_t i);
static int ngx_http_llm_prompt_text(ngx_http_llm_parser_t *ps, uint16_t type,
    json_t *text, const char *field, size_t i);
static int ngx_http_llm_prompt_tool_calls(ngx_http_llm_parser_t *ps,
    json_t *calls, size_t i);
static int ngx_http_llm_prompt_ids(ngx_http_llm_parser_t *ps, json_t *ids);
static int ngx_http_llm_prompt_tool_choice(ngx_http_llm_parser_t *ps);
static int ngx_http_llm_prompt_tool(json_t *tool);
static int ngx_http_llm_prompt_fault(ngx_http_llm_parser_t *ps, size_t i,
    const char *field, const char *text);


int
ngx_http_llm_prompt_messages(ngx_http_llm_parser_t *ps)
{
    int      rc;
    size_t   i, n;
    json_t  *message;

    n = json_array_size(ps->messages);

    if (!json_is_array(ps->messages) || n == 0) {
        return ngx_http_llm_params_fault(ps, "messages",
                                         "messages must be a list of at least "
                                         "one message");
    }

    json_array_foreach(ps->messages, i, message) {

        rc = ngx_http_llm_prompt_message(ps, message, i, i == n - 1);

        if (rc != NGX_HTTP_LLM_PARAMS_OK) {
            return rc;
        }
    }

    ps->n_prompts = 1;

    return NGX_HTTP_LLM_PARAMS_OK;
}


static int
ngx_http_llm_prompt_message(ngx_http_llm_parser_t *ps, json_t *object,
    size_t i, int last)
{
    int                     role;
    ngx_http_llm_message_t  m;

    if (!json_is_object(object)) {
        return ngx_http_llm_prompt_fault(ps, i, NULL,
                                         "A message must be an object");
    }

    memset(&m, 0, sizeof(m));

    if (ngx_http_llm_prompt_fields(ps, object, &m, i)
        != NGX_HTTP_LLM_PARAMS_OK)
    {
        return NGX_HTTP_LLM_PARAMS_ERROR;
    }

    role = ngx_http_llm_prompt_role(m.role);

    if (role == 0) {
        return ngx_http_llm_prompt_fault(ps, i, "role",
                             "role must be one of system, developer, user, "
                             "assistant and tool");
    }

    if (m.tool_calls && role != LLM_IPC_ASSISTANT) {
        return ngx_http_llm_prompt_fault(ps, i, "tool_calls",
                   "tool_calls are only allowed in messages of the assistant");
    }

    if (m.tool_call_id ? role != LLM_IPC_TOOL : role == LLM_IPC_TOOL) {
        return ngx_http_llm_prompt_fault(ps, i, "tool_call_id",
                   "tool_call_id is required in messages of role tool and "
                   "not allowed in others");
    }

    if (m.prefix && !json_is_boolean(m.prefix)) {
        return ngx_http_llm_prompt_fault(ps, i, "prefix",
                                         "prefix must be true or false");
    }

    if (json_is_true(m.prefix)) {

        if (role != LLM_IPC_ASSISTANT || !last) {
            return ngx_http_llm_prompt_fault(ps, i, "prefix",
                       "prefix is only allowed in a last message of the "
                       "assistant");
        }

        ps->head.flags |= LLM_IPC_CONTINUE_FINAL;
    }

    llm_ipc_submit_item(&ps->writer, LLM_IPC_ITEM_MESSAGE, (uint16_t) role,
                        NULL, 0);

    if (m.content) {
        if (ngx_http_llm_prompt_content(ps, m.content, i)
            != NGX_HTTP_LLM_PARAMS_OK)
        {
            return NGX_HTTP_LLM_PARAMS_ERROR;
        }

    } else if (role != LLM_IPC_ASSISTANT || m.tool_calls == NULL) {
        return ngx_http_llm_prompt_fault(ps, i, "content",
                   "content must be a string or a list of text parts");
    }

    if (ngx_http_llm_prompt_text(ps, LLM_IPC_ITEM_REASONING, m.reasoning,
                                 "reasoning_content", i)
        != NGX_HTTP_LLM_PARAMS_OK
        || ngx_http_llm_prompt_text(ps, LLM_IPC_ITEM_NAME, m.name, "name", i)
           != NGX_HTTP_LLM_PARAMS_OK
        || ngx_http_llm_prompt_text(ps, LLM_IPC_ITEM_TOOL_CALL_ID,
                                    m.tool_call_id, "tool_call_id", i)
           != NGX_HTTP_LLM_PARAMS_OK)
    {
        return NGX_HTTP_LLM_PARAMS_ERROR;
    }

    return ngx_http_llm_prompt_tool_calls(ps, m.tool_calls, i);
}


static int
ngx_http_llm_prompt_fields(ngx_http_llm_parser_t *ps, json_t *object,
    ngx_http_llm_message_t *m, size_t i)
{
    size_t       k;
    json_t      *value, **to;
    const char  *name;

    const struct {
        const char  *name;
        json_t     **to;      /* NULL: what answers have and nothing reads */
    } fields[] = {
        { "role", &m->role },
        { "content", &m->content },
        { "reasoning_content", &m->reasoning },
        { "reasoning", &m->reasoning },
        { "name", &m->name },
        { "prefix", &m->prefix },
        { "tool_calls", &m->tool_calls },
        { "tool_call_id", &m->tool_call_id },
        { "annotations", NULL },
        { "refusal", NULL }
    };

    const size_t  n = sizeof(fields) / sizeof(fields[0]);

    if (json_object_size(object) > NGX_HTTP_LLM_MAX_MEMBERS) {
        return ngx_http_llm_prompt_fault(ps, i, NULL,
                                         "A message has too many fields");
    }

    json_object_foreach(object, name, value) {

        for (k = 0; k < n && strcmp(fields[k].name, name) != 0; k++) {
            /* void */
        }

        if (json_is_null(value)) {
            continue;
        }

        if (k == n) {
            if (ngx_http_llm_fields_unknown(ps, "messages", name)
                != NGX_HTTP_LLM_PARAMS_OK)
            {
                return NGX_HTTP_LLM_PARAMS_ERROR;
            }

            continue;
        }

        to = fields[k].to;

        if (to) {
            *to = value;
        }
    }

    return NGX_HTTP_LLM_PARAMS_OK;
}


static int
ngx_http_llm_prompt_role(json_t *role)
{
    size_t  i;

    static const struct {
        const char  *name;
        int          role;
    } roles[] = {
        { "system", LLM_IPC_SYSTEM },
        { "developer", LLM_IPC_SYSTEM },
        { "user", LLM_IPC_USER },
        { "assistant", LLM_IPC_ASSISTANT },
        { "tool", LLM_IPC_TOOL }
    };

    for (i = 0; json_is_string(role) && i < sizeof(roles) / sizeof(roles[0]);
         i++)
    {
        if (strcmp(json_string_value(role), roles[i].name) == 0) {
            return roles[i].role;
        }
    }

    return 0;
}


static int
ngx_http_llm_prompt_content(ngx_http_llm_parser_t *ps, json_t *content,
    size_t i)
{
    size_t   k;
    json_t  *part, *type, *text;

    if (!json_is_array(content)) {
        return ngx_http_llm_prompt_text(ps, LLM_IPC_ITEM_CONTENT, content,
                                        "content", i);
    }

    if (json_array_size(content) == 0) {
        return ngx_http_llm_prompt_fault(ps, i, "content",
                                         "content must not be an empty list");
    }

    json_array_foreach(content, k, part) {

        type = json_object_get(part, "type");
        text = json_object_get(part, "text");

        if (!json_is_string(type) || strcmp(json_string_value(type), "text")) {
            return ngx_http_llm_prompt_fault(ps, i, "content",
                              "Only parts of type text are supported");
        }

        if (!json_is_string(text)) {
            return ngx_http_llm_prompt_fault(ps, i, "content",
                              "The text of a part must be a string");
        }

        llm_ipc_submit_item(&ps->writer, LLM_IPC_ITEM_CONTENT, 0,
                            json_string_value(text), json_string_length(text));
    }

    return NGX_HTTP_LLM_PARAMS_OK;
}


/* NULL is no item */

static int
ngx_http_llm_prompt_text(ngx_http_llm_parser_t *ps, uint16_t type,
    json_t *text, const char *field, size_t i)
{
    char  message[64];

    if (text == NULL) {
        return NGX_HTTP_LLM_PARAMS_OK;
    }

    if (!json_is_string(text)) {
        snprintf(message, sizeof(message), "%s must be a string", field);
        return ngx_http_llm_prompt_fault(ps, i, field, message);
    }

    llm_ipc_submit_item(&ps->writer, type, 0, json_string_value(text),
                        json_string_length(text));

    return NGX_HTTP_LLM_PARAMS_OK;
}


static int
ngx_http_llm_prompt_tool_calls(ngx_http_llm_parser_t *ps, json_t *calls,
    size_t i)
{
    size_t   k;
    json_t  *call, *id, *function, *name, *arguments;

    if (calls && !json_is_array(calls)) {
        return ngx_http_llm_prompt_fault(ps, i, "tool_calls",
                                         "tool_calls must be a list");
    }

    json_array_foreach(calls, k, call) {

        id = json_object_get(call, "id");
        function = json_object_get(call, "function");
        name = json_object_get(function, "name");
        arguments = json_object_get(function, "arguments");

        if (!json_is_string(id) || !json_is_string(name)
            || !json_is_string(arguments))
        {
            return ngx_http_llm_prompt_fault(ps, i, "tool_calls",
                         "A tool call must have an id and a function with "
                         "name and arguments, all strings");
        }

        llm_ipc_submit_item(&ps->writer, LLM_IPC_ITEM_TOOL_CALL, 0,
                            json_string_value(id), json_string_length(id));
        llm_ipc_submit_item(&ps->writer, LLM_IPC_ITEM_TOOL_CALL_NAME, 0,
                            json_string_value(name),
                            json_string_length(name));
        llm_ipc_submit_item(&ps->writer, LLM_IPC_ITEM_TOOL_CALL_ARGUMENTS, 0,
                            json_string_value(arguments),
                            json_string_length(arguments));
    }

    return NGX_HTTP_LLM_PARAMS_OK;
}


/* a string, a list of strings, a list of ids, or a list of lists of ids */

int
ngx_http_llm_prompt_prompts(ngx_http_llm_parser_t *ps)
{
    size_t   i, n;
    json_t  *prompt, *first;

    prompt = ps->prompt;
    first = json_array_get(prompt, 0);

    if (json_is_string(prompt)) {
        llm_ipc_submit_item(&ps->writer, LLM_IPC_ITEM_PROMPT_TEXT, 0,
                            json_string_value(prompt),
                            json_string_length(prompt));
        ps->n_prompts = 1;
        return NGX_HTTP_LLM_PARAMS_OK;
    }

    if (json_is_integer(first)) {
        ps->n_prompts = 1;
        return ngx_http_llm_prompt_ids(ps, prompt);
    }

    n = json_array_size(prompt);

    if (first == NULL || n > LLM_IPC_MAX_PROMPTS) {
        goto invalid;
    }

    for (i = 0; i < n; i++) {
        prompt = json_array_get(ps->prompt, i);

        if (json_typeof(prompt) != json_typeof(first)) {
            goto invalid;
        }

        if (json_is_string(prompt)) {
            llm_ipc_submit_item(&ps->writer, LLM_IPC_ITEM_PROMPT_TEXT, 0,
                                json_string_value(prompt),
                                json_string_length(prompt));

        } else if (ngx_http_llm_prompt_ids(ps, prompt)
                   != NGX_HTTP_LLM_PARAMS_OK)
        {
            return NGX_HTTP_LLM_PARAMS_ERROR;
        }
    }

    ps->n_prompts = (uint32_t) n;

    return NGX_HTTP_LLM_PARAMS_OK;

invalid:

    return ngx_http_llm_params_fault(ps, "prompt",
                    "prompt must be a string, a list of token ids, or a list "
                    "of at most %d of either", LLM_IPC_MAX_PROMPTS);
}


static int
ngx_http_llm_prompt_ids(ngx_http_llm_parser_t *ps, json_t *ids)
{
    size_t      i, n;
    json_t     *id;
    uint32_t   *to;
    json_int_t  value;

    n = json_array_size(ids);

    if (n == 0) {
        return ngx_http_llm_params_fault(ps, "prompt",
                                         "A prompt of token ids must be a "
                                         "list of at least one id");
    }

    to = malloc(n * sizeof(uint32_t));

    if (to == NULL) {
        return ngx_http_llm_params_out_of_memory(ps);
    }

    json_array_foreach(ids, i, id) {

        value = json_integer_value(id);

        if (!json_is_integer(id) || value < 0 || value > INT32_MAX) {
            free(to);
            return ngx_http_llm_params_fault(ps, "prompt",
                                             "A token id must be an integer "
                                             "from 0 to %d", INT32_MAX);
        }

        to[i] = (uint32_t) value;
    }

    llm_ipc_submit_item(&ps->writer, LLM_IPC_ITEM_PROMPT_IDS, 0, to,
                        n * sizeof(uint32_t));
    free(to);

    return NGX_HTTP_LLM_PARAMS_OK;
}


/* the engine gets the request's own bytes: their form is part of a prompt */

int
ngx_http_llm_prompt_tools(ngx_http_llm_parser_t *ps)
{
    size_t                i, len;
    json_t               *tool, *value;
    const char           *name;
    const unsigned char  *text;

    if (ps->tools && !json_is_array(ps->tools)) {
        return ngx_http_llm_params_fault(ps, "tools", "tools must be a list");
    }

    json_array_foreach(ps->tools, i, tool) {

        if (!ngx_http_llm_prompt_tool(tool)) {
            return ngx_http_llm_params_fault(ps, "tools",
                                             "A tool must be of type function "
                                             "and have a function with a "
                                             "name");
        }
    }

    if (ngx_http_llm_prompt_tool_choice(ps) != NGX_HTTP_LLM_PARAMS_OK) {
        return NGX_HTTP_LLM_PARAMS_ERROR;
    }

    if (json_array_size(ps->tools)) {
        i = 0;

        json_object_foreach(ps->root, name, value) {

            if (value == ps->tools) {
                break;
            }

            i++;
        }

        ngx_http_llm_json_member(ps->params->body, ps->params->len, i, &text,
                                 &len);
        llm_ipc_submit_item(&ps->writer, LLM_IPC_ITEM_TOOLS, 0, text, len);
    }

    return NGX_HTTP_LLM_PARAMS_OK;
}


static int
ngx_http_llm_prompt_tool_choice(ngx_http_llm_parser_t *ps)
{
    size_t       i;
    json_t      *choice, *tool, *name;
    const char  *word;

    choice = ps->tool_choice;

    if (choice == NULL) {
        return NGX_HTTP_LLM_PARAMS_OK;
    }

    word = json_string_value(choice);

    if (word && strcmp(word, "none") == 0) {
        ps->head.tool_choice = LLM_IPC_TOOLS_NONE;
        return NGX_HTTP_LLM_PARAMS_OK;
    }

    if (json_array_size(ps->tools) == 0) {
        return ngx_http_llm_params_fault(ps, "tool_choice",
                        "tool_choice is only allowed with tools");
    }

    if (word && strcmp(word, "auto") == 0) {
        ps->head.tool_choice = LLM_IPC_TOOLS_AUTO;
        return NGX_HTTP_LLM_PARAMS_OK;
    }

    if (word && strcmp(word, "required") == 0) {
        ps->head.tool_choice = LLM_IPC_TOOLS_REQUIRED;
        return NGX_HTTP_LLM_PARAMS_OK;
    }

    if (!ngx_http_llm_prompt_tool(choice)) {
        return ngx_http_llm_params_fault(ps, "tool_choice",
                        "tool_choice must be none, auto, required or a "
                        "function of tools");
    }

    name = json_object_get(json_object_get(choice, "function"), "name");

    json_array_foreach(ps->tools, i, tool) {

        if (json_equal(name, json_object_get(json_object_get(tool, "function"),
                                             "name")))
        {
            ps->head.tool_choice = LLM_IPC_TOOLS_NAMED;
            llm_ipc_submit_item(&ps->writer, LLM_IPC_ITEM_TOOL_NAME, 0,
                                json_string_value(name),
                                json_string_length(name));
            return NGX_HTTP_LLM_PARAMS_OK;
        }
    }

    return ngx_http_llm_params_fault(ps, "tool_choice",
                    "tool_choice names a function that is not in tools");
}


static int
ngx_http_llm_prompt_tool(json_t *tool)
{
    json_t  *type, *name;

    type = json_object_get(tool, "type");
    name = json_object_get(json_object_get(tool, "function"), "name");

    return json_is_string(type)
           && strcmp(json_string_value(type), "function") == 0
           && json_string_length(name) > 0;
}


static int
ngx_http_llm_prompt_fault(ngx_http_llm_parser_t *ps, size_t i,
    const char *field, const char *text)
{
    char  param[64];

    snprintf(param, sizeof(param), "messages[%zu]%s%s", i, field ? "." : "",
             field ? field : "");

    return ngx_http_llm_params_fault(ps, param, "%s", text);
}
