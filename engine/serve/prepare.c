#include "engine/serve/prepare.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* What is needed only while a call is prepared. */
struct work {
    const struct llm_served *served;
    struct llm_call *call;
    struct llm_chat_message *messages;
    struct llm_chat_tool_call *tool_calls;
    char *content; /* of all messages, each message's parts joined */
    const char *stops[LLM_IPC_MAX_STOPS];
    size_t stop_lens[LLM_IPC_MAX_STOPS];
};

/* How many items of each type there are, and of how many bytes. */
struct census {
    uint32_t n[LLM_IPC_ITEM_TOOL_NAME + 1];
    size_t bytes[LLM_IPC_ITEM_TOOL_NAME + 1];
};

bool llm_call_refuse(struct llm_call *call, enum llm_ipc_status status, const char *fmt, ...)
{
    struct llm_refusal *r = &call->refusal;
    va_list ap;

    if (r->status != LLM_IPC_OK) {
        return false;
    }
    r->status = status;

    va_start(ap, fmt);
    vsnprintf(r->detail, sizeof(r->detail), fmt, ap);
    va_end(ap);

    for (char *p = r->detail; *p != '\0'; p++) {
        if (*p < 0x20 || *p > 0x7e) {
            *p = '?';
        }
    }
    return false;
}

static bool refuse_memory(struct llm_call *call)
{
    return llm_call_refuse(call, LLM_IPC_FAILED, "the engine is out of memory");
}

static bool refuse_error(struct llm_call *call, const struct llm_error *err)
{
    return err->code == LLM_ENOMEM ? refuse_memory(call)
                                   : llm_call_refuse(call, LLM_IPC_INVALID, "%s", err->text);
}

/* An array of at least one element. */
static void *new_array(uint32_t n, size_t size)
{
    return calloc(n > 0 ? n : 1, size);
}

static void take_census(const struct llm_ipc_submit_view *v, struct census *c)
{
    struct llm_ipc_item_view item;

    *c = (struct census){0};
    for (size_t at = 0; llm_ipc_submit_next(v, &at, &item);) {
        c->n[item.type]++;
        c->bytes[item.type] += item.length;
    }
}

/* What the request asks for and this engine cannot do. */
static bool check_features(struct work *w, const struct census *c)
{
    const struct llm_ipc_submit *h = &w->call->submit.head;

    if (c->n[LLM_IPC_ITEM_SUFFIX] > 0) {
        return llm_call_refuse(w->call, LLM_IPC_INVALID, "suffix is not supported");
    }
    if (c->n[LLM_IPC_ITEM_RESPONSE_FORMAT] > 0) {
        return llm_call_refuse(w->call, LLM_IPC_INVALID, "response_format is not supported");
    }
    if (h->tool_choice == LLM_IPC_TOOLS_REQUIRED || h->tool_choice == LLM_IPC_TOOLS_NAMED) {
        return llm_call_refuse(w->call, LLM_IPC_INVALID,
                               "a tool_choice that demands a call is not supported");
    }
    if ((h->flags & LLM_IPC_ECHO) != 0 && (h->flags & LLM_IPC_LOGPROBS) != 0) {
        return llm_call_refuse(w->call, LLM_IPC_INVALID, "echo with logprobs is not supported");
    }
    return true;
}

/* --- lists of parameters --- */

static bool check_ids(struct work *w, const uint32_t *ids, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++) {
        if (ids[i] >= w->served->n_vocab) {
            return llm_call_refuse(w->call, LLM_IPC_INVALID,
                                   "%s: a token id outside the vocabulary of %u", what,
                                   w->served->n_vocab);
        }
    }
    return true;
}

/* What ends a sequence: the model's own ends and the request's. */
static bool read_stop_ids(struct work *w, const struct census *c)
{
    const struct llm_model_config *config = &w->served->model->config;
    struct llm_call *call = w->call;
    struct llm_ipc_item_view item;
    uint32_t n = 0;

    call->stop_ids = new_array((uint32_t) (c->bytes[LLM_IPC_ITEM_STOP_IDS] / 4) + config->n_eos,
                               sizeof(*call->stop_ids));
    if (call->stop_ids == NULL) {
        return refuse_memory(call);
    }

    for (size_t at = 0; llm_ipc_submit_next(&call->submit, &at, &item);) {
        if (item.type == LLM_IPC_ITEM_STOP_IDS) {
            memcpy(call->stop_ids + n, item.data, item.length);
            n += item.length / 4;
        }
    }
    if (!check_ids(w, call->stop_ids, n, "stop_token_ids")) {
        return false;
    }

    if ((call->submit.head.flags & LLM_IPC_IGNORE_EOS) == 0) {
        for (uint32_t i = 0; i < config->n_eos; i++) {
            if (config->eos_ids[i] < w->served->n_vocab) {
                call->stop_ids[n++] = config->eos_ids[i];
            }
        }
    }
    call->request.stop_ids = call->stop_ids;
    call->request.n_stop_ids = n;
    return true;
}

static bool read_bias(struct work *w, const struct census *c)
{
    uint32_t max = (uint32_t) (c->bytes[LLM_IPC_ITEM_LOGIT_BIAS] / 8), n = 0;
    struct llm_call *call = w->call;
    struct llm_ipc_item_view item;

    if (max == 0) {
        return true;
    }
    call->bias_ids = new_array(max, sizeof(*call->bias_ids));
    call->bias = new_array(max, sizeof(*call->bias));
    if (call->bias_ids == NULL || call->bias == NULL) {
        return refuse_memory(call);
    }

    for (size_t at = 0; llm_ipc_submit_next(&call->submit, &at, &item);) {
        for (uint32_t i = 0; item.type == LLM_IPC_ITEM_LOGIT_BIAS && i < item.length; i += 8) {
            memcpy(&call->bias_ids[n], item.data + i, 4);
            memcpy(&call->bias[n++], item.data + i + 4, 4);
        }
    }
    call->request.sampling.n_bias = n;
    call->request.sampling.bias_ids = call->bias_ids;
    call->request.sampling.bias = call->bias;
    return check_ids(w, call->bias_ids, n, "logit_bias");
}

static bool read_stop_strings(struct work *w, const struct census *c)
{
    struct llm_ipc_item_view item;
    struct llm_error err;
    size_t n = 0;

    if (c->n[LLM_IPC_ITEM_STOP] == 0) {
        return true;
    }
    for (size_t at = 0; llm_ipc_submit_next(&w->call->submit, &at, &item);) {
        if (item.type == LLM_IPC_ITEM_STOP) {
            w->stops[n] = (const char *) item.data;
            w->stop_lens[n++] = item.length;
        }
    }
    return llm_stop_set_new(w->stops, w->stop_lens, n, &w->call->stop, &err) == LLM_OK ||
           refuse_error(w->call, &err);
}

static bool read_sampling(struct work *w)
{
    const struct llm_ipc_submit *h = &w->call->submit.head;
    struct llm_sampling *s = &w->call->request.sampling;

    s->temperature = h->temperature;
    s->top_p = h->top_p;
    s->min_p = h->min_p;
    s->top_k = h->top_k;
    s->repetition_penalty = h->repetition_penalty;
    s->presence_penalty = h->presence_penalty;
    s->frequency_penalty = h->frequency_penalty;
    s->logprobs = (h->flags & LLM_IPC_LOGPROBS) != 0;
    s->n_top_logprobs = s->logprobs ? h->top_logprobs : 0;
    s->seed = h->seed;
    if ((h->flags & LLM_IPC_HAS_SEED) == 0 &&
        getrandom(&s->seed, sizeof(s->seed), 0) != (ssize_t) sizeof(s->seed)) {
        return llm_call_refuse(w->call, LLM_IPC_FAILED, "no random numbers to be had");
    }
    return true;
}

/* --- prompts --- */

static enum llm_role role_of(uint16_t role)
{
    switch (role) {
    case LLM_IPC_SYSTEM:
        return LLM_ROLE_SYSTEM;
    case LLM_IPC_ASSISTANT:
        return LLM_ROLE_ASSISTANT;
    case LLM_IPC_TOOL:
        return LLM_ROLE_TOOL;
    default:
        return LLM_ROLE_USER;
    }
}

static struct llm_text text_of(const struct llm_ipc_item_view *item)
{
    return (struct llm_text){.data = (const char *) item->data, .len = item->length};
}

/* The items of a chat as the chat formats want it. */
static bool read_chat(struct work *w, const struct census *c, struct llm_chat *chat)
{
    const struct llm_ipc_submit *h = &w->call->submit.head;
    struct llm_chat_tool_call *tool_call = NULL;
    struct llm_chat_message *m = NULL;
    struct llm_ipc_item_view item;
    char *content;

    w->messages = new_array(c->n[LLM_IPC_ITEM_MESSAGE], sizeof(*w->messages));
    w->tool_calls = new_array(c->n[LLM_IPC_ITEM_TOOL_CALL], sizeof(*w->tool_calls));
    w->content = malloc(c->bytes[LLM_IPC_ITEM_CONTENT] + 1);
    if (w->messages == NULL || w->tool_calls == NULL || w->content == NULL) {
        return refuse_memory(w->call);
    }
    content = w->content;

    *chat = (struct llm_chat){
        .messages = w->messages,
        .n_messages = c->n[LLM_IPC_ITEM_MESSAGE],
        .thinking = (h->flags & LLM_IPC_THINKING_ON) != 0    ? LLM_THINKING_ON
                    : (h->flags & LLM_IPC_THINKING_OFF) != 0 ? LLM_THINKING_OFF
                                                             : LLM_THINKING_DEFAULT,
        .add_generation_prompt = true,
    };

    /* llm_ipc_submit_read has seen to it that a message comes before what belongs to it */
    for (size_t at = 0; llm_ipc_submit_next(&w->call->submit, &at, &item);) {
        switch (item.type) {
        case LLM_IPC_ITEM_MESSAGE:
            m = m == NULL ? w->messages : m + 1;
            m->role = role_of(item.arg);
            m->tool_calls = tool_call = tool_call == NULL ? w->tool_calls : tool_call;
            break;
        case LLM_IPC_ITEM_CONTENT:
            if (m->content.data == NULL) {
                m->content.data = content;
            }
            memcpy(content, item.data, item.length);
            content += item.length;
            m->content.len += item.length;
            break;
        case LLM_IPC_ITEM_REASONING:
            m->reasoning = text_of(&item);
            break;
        case LLM_IPC_ITEM_NAME:
            m->name = text_of(&item);
            break;
        case LLM_IPC_ITEM_TOOL_CALL_ID:
            m->tool_call_id = text_of(&item);
            break;
        case LLM_IPC_ITEM_TOOL_CALL:
            tool_call->id = text_of(&item);
            m->n_tool_calls++;
            break;
        case LLM_IPC_ITEM_TOOL_CALL_NAME:
            tool_call->name = text_of(&item);
            break;
        case LLM_IPC_ITEM_TOOL_CALL_ARGUMENTS:
            (tool_call++)->arguments = text_of(&item);
            break;
        case LLM_IPC_ITEM_TOOLS:
            if (h->tool_choice != LLM_IPC_TOOLS_NONE) {
                chat->tools = text_of(&item);
            }
            break;
        default:
            break;
        }
    }

    if ((h->flags & LLM_IPC_CONTINUE_FINAL) != 0) {
        m->prefix = true;
    }
    return true;
}

static bool add_prompt(struct work *w, const struct llm_ids *ids)
{
    struct llm_call *call = w->call;

    call->prompts[call->n_prompts++] = (struct llm_prompt_ids){
        .ids = ids->ids,
        .n = (uint32_t) ids->len,
    };
    call->prompt_tokens += (uint32_t) ids->len;
    return ids->len > 0 || llm_call_refuse(call, LLM_IPC_INVALID, "the prompt is empty");
}

static bool encode_chat(struct work *w, const struct census *c)
{
    struct llm_ids ids = {0};
    struct llm_chat chat;
    struct llm_error err;

    if (!read_chat(w, c, &chat)) {
        return false;
    }
    if (llm_chat_encode(w->served->chat_format, w->served->tokenizer, &chat,
                        w->served->trust_special, &ids, NULL, &err) != LLM_OK) {
        llm_ids_free(&ids);
        return refuse_error(w->call, &err);
    }
    return add_prompt(w, &ids);
}

static bool encode_text(struct work *w, const struct llm_ipc_item_view *item)
{
    const struct llm_served *served = w->served;
    struct llm_ids ids = {0};
    int rc = LLM_OK;

    if (served->add_bos) {
        rc = llm_ids_append(&ids, &served->model->config.bos_id, 1);
    }
    if (rc == LLM_OK) {
        rc = llm_tokenizer_encode(served->tokenizer, (const char *) item->data, item->length,
                                  served->trust_special, &ids);
    }
    if (rc != LLM_OK) {
        llm_ids_free(&ids);
        return refuse_memory(w->call);
    }
    return add_prompt(w, &ids);
}

static bool copy_ids(struct work *w, const struct llm_ipc_item_view *item)
{
    struct llm_ids ids = {0};

    if (llm_ids_append(&ids, (const uint32_t *) (const void *) item->data, item->length / 4) !=
        LLM_OK) {
        return refuse_memory(w->call);
    }
    return add_prompt(w, &ids) && check_ids(w, ids.ids, ids.len, "prompt");
}

static bool encode_prompts(struct work *w, const struct census *c)
{
    struct llm_call *call = w->call;
    struct llm_ipc_item_view item;
    bool chat = call->submit.head.kind == LLM_IPC_KIND_CHAT, good = true;
    uint32_t n = c->n[LLM_IPC_ITEM_PROMPT_TEXT] + c->n[LLM_IPC_ITEM_PROMPT_IDS];

    call->prompts = new_array(chat ? 1 : n, sizeof(*call->prompts));
    if (call->prompts == NULL) {
        return refuse_memory(call);
    }
    if (chat) {
        return encode_chat(w, c);
    }

    for (size_t at = 0; good && llm_ipc_submit_next(&call->submit, &at, &item);) {
        if (atomic_load_explicit(&call->abandoned, memory_order_relaxed)) {
            return llm_call_refuse(call, LLM_IPC_CANCELLED, "abandoned");
        }
        if (item.type == LLM_IPC_ITEM_PROMPT_TEXT) {
            good = encode_text(w, &item);
        } else if (item.type == LLM_IPC_ITEM_PROMPT_IDS) {
            good = copy_ids(w, &item);
        }
    }
    return good;
}

/* --- limits and sequences --- */

/* How many tokens may be sampled after this prompt; 0: refused. */
static uint32_t allowed_tokens(struct work *w, const struct llm_prompt_ids *p)
{
    const struct llm_ipc_submit *h = &w->call->submit.head;
    struct llm_refusal *r = &w->call->refusal;
    uint32_t limit = w->served->max_context;
    uint32_t left = p->n < limit ? limit - p->n : 0;
    bool fit = h->max_tokens == 0 || (h->flags & LLM_IPC_FIT_CONTEXT) != 0;
    uint32_t allowed = h->max_tokens == 0 || (fit && h->max_tokens > left) ? left : h->max_tokens;

    if (h->max_prompt_tokens != 0 && p->n > h->max_prompt_tokens) {
        llm_call_refuse(w->call, LLM_IPC_PROMPT_LENGTH, "the prompt is too long");
        r->numbers[0] = p->n;
        r->numbers[2] = h->max_prompt_tokens;
        return 0;
    }
    if (allowed > left || left == 0) {
        llm_call_refuse(w->call, LLM_IPC_CONTEXT_LENGTH, "prompt and completion are too long");
        r->numbers[0] = p->n;
        r->numbers[1] = fit ? 0 : h->max_tokens;
        r->numbers[2] = limit;
        return 0;
    }
    if (h->max_pages != 0 && llm_sequence_pages(p->n, allowed) > h->max_pages) {
        llm_call_refuse(w->call, LLM_IPC_INVALID, "longer than this tenant's share of the memory");
        return 0;
    }
    return allowed;
}

static enum llm_scope scope_of(uint8_t scope)
{
    switch (scope) {
    case LLM_IPC_SCOPE_PUBLIC:
        return LLM_SCOPE_PUBLIC;
    case LLM_IPC_SCOPE_OFF:
        return LLM_SCOPE_OFF;
    default:
        return LLM_SCOPE_TENANT;
    }
}

/* Who may find the latents of its prompts, and under which names. */
static bool name_pages(struct work *w)
{
    struct llm_call *call = w->call;
    struct llm_request *r = &call->request;
    const struct llm_ipc_submit *h = &call->submit.head;
    const struct llm_backend_info *info = w->served->ops->info(w->served->backend);

    r->scope = scope_of(h->scope);
    llm_scope_owner(r->scope, h->tenant, r->owner_digest);
    if (r->scope == LLM_SCOPE_OFF) {
        return true;
    }
    call->has_prefix = llm_ipc_submit_prefix(&call->submit, call->prefix);

    if (llm_scope_secret(w->served->secret, r->scope, h->tenant, r->chain.secret) != LLM_OK) {
        return llm_call_refuse(call, LLM_IPC_FAILED, "cannot derive a secret");
    }
    memcpy(r->chain.fingerprint, w->served->model->fingerprint, sizeof(r->chain.fingerprint));
    memcpy(r->chain.numerics_id, info->numerics_id, sizeof(r->chain.numerics_id));

    for (uint32_t i = 0; i < call->n_prompts; i++) {
        struct llm_prompt_ids *p = &call->prompts[i];
        uint32_t n_pages = p->n / LLM_PAGE_TOKENS;

        p->digests = new_array(n_pages, sizeof(*p->digests));
        if (p->digests == NULL ||
            llm_page_digests(&r->chain, NULL, p->ids, n_pages, p->digests) != LLM_OK) {
            return refuse_memory(call);
        }
    }
    return true;
}

static bool make_sequences(struct work *w)
{
    struct llm_call *call = w->call;
    const struct llm_ipc_submit *h = &call->submit.head;
    struct llm_request *r = &call->request;
    bool skip_special = (h->flags & LLM_IPC_KEEP_SPECIAL) == 0;
    uint32_t n = call->n_prompts * h->n;

    r->sequences = new_array(n, sizeof(*r->sequences));
    call->choices = new_array(n, sizeof(*call->choices));
    call->unwanted = new_array(n, sizeof(*call->unwanted));
    if (r->sequences == NULL || call->choices == NULL || call->unwanted == NULL) {
        return refuse_memory(call);
    }

    for (uint32_t i = 0; i < n; i++) {
        const struct llm_prompt_ids *p = &call->prompts[i / h->n];
        struct llm_choice *choice = &call->choices[i];

        r->sequences[i] = (struct llm_sequence){
            .prompt = p->ids,
            .n_prompt = p->n,
            .max_tokens = allowed_tokens(w, p),
            .choice = i,
            .nth = i % h->n,
            .digests = p->digests,
        };
        r->n_sequences = i + 1;
        llm_choice_init(choice, w->served->tokenizer, call->stop, skip_special,
                        r->sampling.logprobs);
        if (r->sequences[i].max_tokens == 0) {
            return false;
        }
        if ((h->flags & LLM_IPC_ECHO) != 0) {
            llm_choice_echo(choice, p->ids, p->n);
        }
        if (choice->failed) {
            return refuse_memory(call);
        }
    }

    memcpy(r->tenant_digest, h->tenant, sizeof(r->tenant_digest));
    r->weight = h->weight;
    r->max_running = h->max_running;
    r->max_pages = h->max_pages;
    r->queue_deadline = h->queue_deadline;
    r->deadline = h->deadline;
    r->min_tokens = h->min_tokens;
    return true;
}

void llm_call_prepare(const struct llm_served *served, struct llm_call *call)
{
    struct work w = {.served = served, .call = call};
    struct census census;

    take_census(&call->submit, &census);
    if (check_features(&w, &census) && read_sampling(&w) && read_stop_ids(&w, &census) &&
        read_bias(&w, &census) && read_stop_strings(&w, &census) && encode_prompts(&w, &census) &&
        name_pages(&w)) {
        make_sequences(&w);
    }

    free(w.messages);
    free(w.tool_calls);
    free(w.content);
    free(call->payload);
    call->payload = NULL;
}

void llm_call_unprepare(struct llm_call *call)
{
    for (uint32_t i = 0; i < call->n_prompts; i++) {
        free(call->prompts[i].ids);
        free(call->prompts[i].digests);
    }
    for (uint32_t i = 0; i < call->request.n_sequences; i++) {
        llm_choice_free(&call->choices[i]);
    }
    free(call->payload);
    free(call->prompts);
    free(call->stop_ids);
    free(call->bias_ids);
    free(call->bias);
    free(call->request.sequences);
    free(call->choices);
    free(call->unwanted);
    if (call->stop != NULL) {
        llm_stop_set_free(call->stop);
    }
}
