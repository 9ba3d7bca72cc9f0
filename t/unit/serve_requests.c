/* Requests over a session, as a worker sends them, answered by the daemon over the fake backend. */

#include "t/unit/engine_process.h"

static struct worker *w;
static struct llm_tokenizer *tokenizer;
static uint32_t n_vocab;

static uint32_t rng = 7;

/* A prompt that no other test has. */
static void make_prompt(uint32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        rng = rng * 1664525 + 1013904223;
        ids[i] = 100 + (rng >> 8) % 3000;
    }
}

/* A request whose answer is known: ids in, ids and text out. */
struct known {
    uint32_t prompt[600], n_prompt, out[4096], n_out;
    struct llm_buf text;
};

static void know(struct known *k, uint32_t n_prompt, uint32_t max)
{
    make_prompt(k->prompt, n_prompt);
    k->n_prompt = n_prompt;
    k->n_out = engine_expect(k->prompt, n_prompt, max, n_vocab, k->out);
    engine_decode(tokenizer, k->out, k->n_out, &k->text);
}

static bool answered(const struct answer *a, unsigned choice, const struct known *k, uint32_t max)
{
    const struct answer_choice *c = &a->choices[choice];

    return same_text(&c->text, &k->text) &&
           c->reason == (k->n_out < max ? LLM_IPC_FINISH_STOP : LLM_IPC_FINISH_LENGTH);
}

static void test_completion(void)
{
    static struct known k;
    struct submit s;
    struct answer *a;

    know(&k, 300, 200);
    submit_ids(&s, k.prompt, k.n_prompt, 200);
    a = worker_submit(w, 0, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "a completion of 300 ids");
    ok(a->counted && a->prompt_tokens == 300, "the prompt was counted");
    ok(answered(a, 0, &k, 200), "the text is the tokens' text");
    is_int(a->finished.prompt_tokens, 300, "usage: prompt");
    is_int(a->finished.completion_tokens, k.n_out + (k.n_out < 200),
           "usage: completion, the end included");
    ok(a->finished.queue_ns > 0 && a->finished.first_token_ns >= a->finished.queue_ns &&
           a->finished.total_ns >= a->finished.first_token_ns, "times in order");

    submit_text(&s, "Hello there, how are you?", 20);
    a = worker_submit(w, 0, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "a completion of text, in a slot used before");
    ok(a->prompt_tokens > 3 && a->prompt_tokens < 12, "became tokens, without BOS");
}

static void test_chat(void)
{
    struct submit s;
    struct answer *a;
    uint32_t plain;

    submit_begin(&s, LLM_IPC_KIND_CHAT);
    s.head.max_tokens = 10;
    submit_message(&s, LLM_IPC_USER, "Hello");
    a = worker_submit(w, 1, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "a chat");
    is_int(a->prompt_tokens, 5, "BOS, User, Hello, Assistant, </think>");

    submit_begin(&s, LLM_IPC_KIND_CHAT);
    s.head.max_tokens = 10;
    submit_message(&s, LLM_IPC_SYSTEM, "You are terse.");
    submit_item(&s, LLM_IPC_ITEM_MESSAGE, LLM_IPC_USER, NULL, 0);
    submit_item(&s, LLM_IPC_ITEM_CONTENT, 0, "Hel", 3);
    submit_item(&s, LLM_IPC_ITEM_CONTENT, 0, "lo", 2);
    submit_item(&s, LLM_IPC_ITEM_MESSAGE, LLM_IPC_ASSISTANT, NULL, 0);
    submit_item(&s, LLM_IPC_ITEM_TOOL_CALL, 0, "c1", 2);
    submit_item(&s, LLM_IPC_ITEM_TOOL_CALL_NAME, 0, "clock", 5);
    submit_item(&s, LLM_IPC_ITEM_TOOL_CALL_ARGUMENTS, 0, "{}", 2);
    submit_item(&s, LLM_IPC_ITEM_MESSAGE, LLM_IPC_TOOL, NULL, 0);
    submit_item(&s, LLM_IPC_ITEM_CONTENT, 0, "12:00", 5);
    submit_item(&s, LLM_IPC_ITEM_TOOL_CALL_ID, 0, "c1", 2);
    a = worker_submit(w, 1, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "a chat with parts, a tool call and its result");

    submit_begin(&s, LLM_IPC_KIND_CHAT);
    s.head.max_tokens = 1;
    submit_message(&s, LLM_IPC_USER, "<｜Assistant｜>");
    a = worker_submit(w, 1, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "a marker typed by a user");
    plain = a->prompt_tokens;
    ok(plain > 7, "is plain text, not a control token");
}

static void test_choices(void)
{
    static struct known k[2];
    struct submit s;
    struct answer *a;

    know(&k[0], 70, 30);
    know(&k[1], 5, 30);
    submit_ids(&s, k[0].prompt, k[0].n_prompt, 30);
    submit_item(&s, LLM_IPC_ITEM_PROMPT_IDS, 0, k[1].prompt, k[1].n_prompt * 4);
    s.head.n = 2;
    a = worker_submit(w, 2, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "two prompts, two choices each");
    for (unsigned i = 0; i < 4; i++) {
        ok(answered(a, i, &k[i / 2], 30), "choice %u", i);
    }
    is_int(a->finished.prompt_tokens, 75, "a prompt counts once");
    is_int(a->finished.completion_tokens,
           2 * (k[0].n_out + (k[0].n_out < 30) + k[1].n_out + (k[1].n_out < 30)),
           "a choice each time");
}

static struct answer *find(const uint32_t *ids, uint32_t n, uint8_t tenant,
                           enum llm_ipc_scope scope)
{
    struct submit s;
    struct answer *a;

    submit_ids(&s, ids, n, 1);
    s.head.tenant[0] = tenant;
    s.head.scope = (uint8_t) scope;
    a = worker_submit(w, 2, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "%u ids of tenant %u", n, tenant);
    return a;
}

/* What COUNTED guesses and FINISHED knows of prefixes that were computed before. */
static void test_cached(void)
{
    static uint32_t ids[500];
    struct submit s;
    struct answer *a;

    make_prompt(ids, 500);
    a = find(ids, 200, 1, LLM_IPC_SCOPE_TENANT);
    ok(a->cached_guess == 0 && a->finished.cached_tokens == 0, "nothing is known of them");
    a = find(ids, 200, 1, LLM_IPC_SCOPE_TENANT);
    ok(a->cached_guess == 192 && a->finished.cached_tokens == 192, "their full pages are");
    a = find(ids, 192, 1, LLM_IPC_SCOPE_TENANT);
    ok(a->cached_guess == 191 && a->finished.cached_tokens == 191, "never the last token");
    a = find(ids, 500, 1, LLM_IPC_SCOPE_TENANT);
    ok(a->cached_guess == 192 && a->finished.cached_tokens == 192, "of a longer one no more");
    a = find(ids, 200, 2, LLM_IPC_SCOPE_TENANT);
    ok(a->cached_guess == 0 && a->finished.cached_tokens == 0, "nor of another tenant");
    a = find(ids, 200, 1, LLM_IPC_SCOPE_OFF);
    ok(a->cached_guess == 0 && a->finished.cached_tokens == 0, "nor under scope off");
    a = find(ids, 200, 1, LLM_IPC_SCOPE_PUBLIC);
    ok(a->cached_guess == 0 && a->finished.cached_tokens == 0, "nor of the public");
    a = find(ids, 200, 3, LLM_IPC_SCOPE_PUBLIC);
    ok(a->cached_guess == 192 && a->finished.cached_tokens == 192, "which is all tenants");

    submit_ids(&s, ids, 300, 1);
    submit_item(&s, LLM_IPC_ITEM_PROMPT_IDS, 0, ids, 128 * 4);
    submit_item(&s, LLM_IPC_ITEM_PROMPT_IDS, 0, ids + 300, 100 * 4);
    s.head.n = 2;
    a = worker_submit(w, 2, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "three prompts, two choices each");
    ok(a->cached_guess == 256 + 127 && a->finished.cached_tokens == 256 + 127,
       "of each what is known of it, once");
    ok(a->finished.prompt_tokens == 300 + 128 + 100, "as its tokens count once");
    ok(worker_await_idle(w), "the engine is idle");
}

/* A prompt whose answer is plain letters for a while, so that stop strings can be found. */
static void test_stops(void)
{
    static struct known k;
    struct submit s;
    struct answer *a;
    struct llm_buf want = {0};
    char stop[64];
    uint32_t id;

    do {
        know(&k, 20, 300);
    } while (k.n_out < 200);

    /* six bytes from the middle of the text, at a character */
    for (size_t at = k.text.len / 2;; at++) {
        const char *found;

        if (((unsigned char) k.text.data[at] & 0xc0) == 0x80 || k.text.data[at] == '\0' ||
            ((unsigned char) k.text.data[at + 6] & 0xc0) == 0x80) {
            continue;
        }
        snprintf(stop, sizeof(stop), "%.6s", k.text.data + at);
        found = memmem(k.text.data, k.text.len, stop, strlen(stop));
        if (strlen(stop) == 6 && found != NULL) {
            llm_buf_append(&want, k.text.data, (size_t) (found - k.text.data));
            break;
        }
    }

    submit_ids(&s, k.prompt, k.n_prompt, 300);
    submit_stop(&s, "never to be found");
    submit_stop(&s, stop);
    a = worker_submit(w, 3, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "a stop string");
    ok(same_text(&a->choices[0].text, &want), "the text ends before it");
    is_int(a->choices[0].reason, LLM_IPC_FINISH_STOP, "the reason is stop");
    ok(a->finished.completion_tokens < k.n_out, "the model did not go on to the end");

    submit_ids(&s, k.prompt, k.n_prompt, 300);
    submit_stop(&s, stop);
    s.head.flags |= LLM_IPC_LOGPROBS;
    s.head.top_logprobs = 3;
    a = worker_submit(w, 3, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "a stop string with log-probabilities");
    ok(same_text(&a->choices[0].text, &want), "the same text");
    is_int(a->choices[0].n_logprobs, 4 * a->choices[0].n_ids, "four entries a token");
    ok(memcmp(a->choices[0].ids, k.out, a->choices[0].n_ids * 4) == 0 &&
           a->choices[0].n_ids <= a->finished.completion_tokens,
       "of the tokens before the stop string");

    id = k.out[50];
    submit_ids(&s, k.prompt, k.n_prompt, 300);
    submit_item(&s, LLM_IPC_ITEM_STOP_IDS, 0, &id, 4);
    a = worker_submit(w, 3, &s);
    ok(worker_ends(w, a, LLM_IPC_OK) && a->choices[0].reason == LLM_IPC_FINISH_STOP,
       "a stop id");
    ok(a->finished.completion_tokens <= 51, "ends there");

    llm_buf_free(&want);
}

static void test_parameters(void)
{
    static struct known k;
    struct submit s;
    struct answer *a;
    struct llm_buf text = {0};

    do {
        know(&k, 20, 4000);
    } while (k.n_out == 4000 || k.n_out < 10);

    submit_ids(&s, k.prompt, k.n_prompt, 4000);
    s.head.min_tokens = k.n_out + 20;
    a = worker_submit(w, 4, &s);
    ok(worker_ends(w, a, LLM_IPC_OK) && a->finished.completion_tokens > k.n_out + 20,
       "no end before min_tokens");

    submit_ids(&s, k.prompt, k.n_prompt, k.n_out + 20);
    s.head.flags = LLM_IPC_IGNORE_EOS | LLM_IPC_LOGPROBS;
    a = worker_submit(w, 4, &s);
    ok(worker_ends(w, a, LLM_IPC_OK) && a->choices[0].reason == LLM_IPC_FINISH_LENGTH,
       "the end is ignored on demand");
    is_int(a->choices[0].n_ids, k.n_out + 20, "and all ids come with log-probabilities");
    engine_decode(tokenizer, a->choices[0].ids, a->choices[0].n_ids, &text);
    ok(same_text(&a->choices[0].text, &text), "special tokens are hidden");

    submit_ids(&s, k.prompt, k.n_prompt, 4000);
    s.head.flags = LLM_IPC_KEEP_SPECIAL;
    a = worker_submit(w, 4, &s);
    ok(worker_ends(w, a, LLM_IPC_OK) && a->choices[0].text.len >= k.text.len &&
           memmem(a->choices[0].text.data, a->choices[0].text.len, "end▁of▁sentence", 19) == NULL,
       "special tokens are shown on demand, but never the end");

    submit_ids(&s, k.prompt, k.n_prompt, 5);
    s.head.flags = LLM_IPC_ECHO;
    a = worker_submit(w, 4, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "echo");
    engine_decode(tokenizer, k.prompt, k.n_prompt, &text);
    ok(a->choices[0].text.len > text.len &&
           memcmp(a->choices[0].text.data, text.data, text.len) == 0,
       "the prompt's text comes first");

    llm_buf_free(&text);
}

static void test_limits(void)
{
    static uint32_t ids[8200];
    struct submit s;
    struct answer *a;

    make_prompt(ids, 8200);

    submit_ids(&s, ids, 8000, 193);
    a = worker_submit(w, 5, &s);
    ok(worker_ends(w, a, LLM_IPC_CONTEXT_LENGTH), "prompt and completion over the context");
    ok(a->finished.numbers[0] == 8000 && a->finished.numbers[1] == 193 &&
           a->finished.numbers[2] == 8192 && !a->counted, "with the numbers");

    submit_ids(&s, ids, 8000, 193);
    s.head.flags = LLM_IPC_FIT_CONTEXT | LLM_IPC_IGNORE_EOS;
    a = worker_submit(w, 5, &s);
    ok(worker_ends(w, a, LLM_IPC_OK) && a->finished.completion_tokens == 192,
       "a default is cut to what is left");

    submit_ids(&s, ids, 8150, 0);
    s.head.flags = LLM_IPC_IGNORE_EOS;
    a = worker_submit(w, 5, &s);
    ok(worker_ends(w, a, LLM_IPC_OK) && a->finished.completion_tokens == 42,
       "so is a completion without a limit");

    submit_ids(&s, ids, 8192, 0);
    a = worker_submit(w, 5, &s);
    ok(worker_ends(w, a, LLM_IPC_CONTEXT_LENGTH) && a->finished.numbers[0] == 8192 &&
           a->finished.numbers[1] == 0, "a prompt that leaves no room");

    submit_ids(&s, ids, 101, 5);
    s.head.max_prompt_tokens = 100;
    a = worker_submit(w, 5, &s);
    ok(worker_ends(w, a, LLM_IPC_PROMPT_LENGTH) && a->finished.numbers[0] == 101 &&
           a->finished.numbers[2] == 100, "a prompt over max_prompt_tokens");

    submit_ids(&s, ids, 101, 5);
    s.head.max_pages = 1;
    a = worker_submit(w, 5, &s);
    ok(worker_ends(w, a, LLM_IPC_INVALID), "more pages than the tenant may ever have");
}

static void refused(struct submit *s, const char *detail)
{
    struct answer *a = worker_submit(w, 6, s);

    ok(worker_ends(w, a, LLM_IPC_INVALID), "refused");
    is_str(a->finished.detail, detail, "with the reason");
    ok(!a->counted && a->n_records == 0, "and nothing else");
}

static void test_refusals(void)
{
    uint32_t ids[] = {300, 4096, UINT32_MAX}, one = 300;
    struct {
        uint32_t id;
        float bias;
    } bias = {5000, 1};
    struct submit s;

    submit_ids(&s, ids, 2, 5);
    refused(&s, "prompt: a token id outside the vocabulary of 4096");
    submit_ids(&s, ids, 3, 5);
    refused(&s, "prompt: a token id outside the vocabulary of 4096");
    submit_ids(&s, ids, 0, 5);
    refused(&s, "the prompt is empty");
    submit_text(&s, "", 5);
    refused(&s, "the prompt is empty");
    submit_ids(&s, &one, 1, 5);
    submit_item(&s, LLM_IPC_ITEM_STOP_IDS, 0, &ids[1], 4);
    refused(&s, "stop_token_ids: a token id outside the vocabulary of 4096");
    submit_ids(&s, &one, 1, 5);
    submit_item(&s, LLM_IPC_ITEM_LOGIT_BIAS, 0, &bias, 8);
    refused(&s, "logit_bias: a token id outside the vocabulary of 4096");
    submit_ids(&s, &one, 1, 5);
    submit_item(&s, LLM_IPC_ITEM_SUFFIX, 0, "x", 1);
    refused(&s, "suffix is not supported");
    submit_ids(&s, &one, 1, 5);
    submit_item(&s, LLM_IPC_ITEM_RESPONSE_FORMAT, 0, "{}", 2);
    refused(&s, "response_format is not supported");
    submit_ids(&s, &one, 1, 5);
    s.head.flags = LLM_IPC_ECHO | LLM_IPC_LOGPROBS;
    refused(&s, "echo with logprobs is not supported");
    submit_ids(&s, &one, 1, 5);
    s.head.tool_choice = LLM_IPC_TOOLS_REQUIRED;
    refused(&s, "a tool_choice that demands a call is not supported");
    submit_ids(&s, &one, 1, 5);
    s.head.temperature = -1;
    refused(&s, "temperature is out of range");
}

static void test_release(void)
{
    static struct known k;
    struct llm_ipc_release release = {.max_tokens = 7};
    struct submit s;
    struct answer *a;

    do {
        know(&k, 100, 7);
    } while (k.n_out < 7);

    submit_ids(&s, k.prompt, k.n_prompt, 50);
    s.head.flags = LLM_IPC_AWAIT_RELEASE;
    a = worker_submit(w, 7, &s);
    worker_watch(w, 200);
    ok(a->counted && a->n_records == 0 && a->n_finished == 0, "counted, then held");
    worker_record(w, LLM_IPC_RELEASE, 7, a->generation + 1, &release, sizeof(release));
    worker_watch(w, 100);
    ok(a->n_records == 0, "another generation's RELEASE is not ours");
    worker_record(w, LLM_IPC_RELEASE, 7, a->generation, &release, sizeof(release));
    ok(worker_ends(w, a, LLM_IPC_OK) && answered(a, 0, &k, 7), "released, with seven tokens");
    is_int(a->finished.read_tokens, k.n_prompt, "the prompt was read");

    submit_ids(&s, k.prompt, k.n_prompt, 50);
    s.head.flags = LLM_IPC_AWAIT_RELEASE;
    a = worker_submit(w, 7, &s);
    while (!a->counted) {
        worker_pump(w, 10);
    }
    worker_cancel(w, 7);
    ok(worker_ends(w, a, LLM_IPC_CANCELLED), "cancelled instead");
    is_int(a->finished.prompt_tokens, k.n_prompt, "its prompt is known");
    is_int(a->finished.read_tokens, 0, "but nothing of it was read");

    submit_ids(&s, k.prompt, k.n_prompt, 7);
    s.head.flags = LLM_IPC_AWAIT_RELEASE | LLM_IPC_ECHO;
    a = worker_submit(w, 7, &s);
    worker_watch(w, 200);
    ok(a->counted && a->n_records == 0, "an echo waits for RELEASE too");
    worker_record(w, LLM_IPC_RELEASE, 7, a->generation, &release, sizeof(release));
    ok(worker_ends(w, a, LLM_IPC_OK) && a->choices[0].text.len > k.text.len, "and comes then");
    ok(worker_await_idle(w), "the engine is idle");
}

static void test_credit(void)
{
    static struct known k;
    struct llm_ipc_credit more = {.bytes = 33};
    struct submit s;
    struct answer *a;
    size_t allowed = 40;

    do {
        know(&k, 50, 300);
    } while (k.n_out < 300);

    submit_ids(&s, k.prompt, k.n_prompt, 300);
    s.head.credit = 40;
    a = worker_submit(w, 8, &s);
    worker_watch(w, 200);
    ok(a->choices[0].text.len > 36 && a->choices[0].text.len <= 40, "no more than the credit");
    ok(a->n_finished == 0, "the request waits");
    while (a->n_finished == 0 && allowed < 100000) {
        if (a->choices[0].text.len > allowed) {
            break;
        }
        worker_record(w, LLM_IPC_CREDIT, 8, a->generation, &more, sizeof(more));
        allowed += more.bytes;
        worker_pump(w, 2);
    }
    ok(a->choices[0].text.len <= allowed, "never more than the credit");
    more.bytes = 1 << 20;
    if (a->n_finished == 0) {
        worker_record(w, LLM_IPC_CREDIT, 8, a->generation, &more, sizeof(more));
    }
    ok(worker_ends(w, a, LLM_IPC_OK) && answered(a, 0, &k, 300), "and nothing is lost");

    submit_ids(&s, k.prompt, k.n_prompt, 300);
    s.head.credit = 40;
    s.head.deadline = llm_now_ns() + 300 * LLM_NS_PER_MS;
    a = worker_submit(w, 8, &s);
    ok(worker_ends(w, a, LLM_IPC_TIMEOUT), "a deadline ends a request that waits for credit");
    ok(a->finished.completion_tokens < 100, "for which the model did not go on");
    ok(worker_await_idle(w), "the engine is idle");
}

static void test_non_finite(void)
{
    static struct known k;
    static uint32_t poison[40];
    struct answer *bad, *good;
    struct submit s;

    know(&k, 50, 300);
    make_prompt(poison, 40);
    poison[20] = FAKE_POISON;
    submit_ids(&s, k.prompt, k.n_prompt, 300);
    good = worker_submit(w, 9, &s);
    submit_ids(&s, poison, 40, 300);
    bad = worker_submit(w, 10, &s);
    ok(worker_ends(w, bad, LLM_IPC_NON_FINITE), "logits that are no numbers end the request");
    ok(worker_ends(w, good, LLM_IPC_OK) && answered(good, 0, &k, 300), "and no other");
    ok(worker_await_idle(w), "the engine is idle");
}

/* What the command line changes. */
static void test_settings(void)
{
    static char *options[] = {
        (char *) "--served-model-name",    (char *) "one,two",      (char *) "--max-context",
        (char *) "100",                    (char *) "--chat-format", (char *) "deepseek-v3",
        (char *) "--trust-special-tokens", (char *) "--max-batch-tokens", (char *) "1",
        (char *) "--send-timeout",         (char *) "1",
    };
    pid_t pid = engine_start(options, 11);
    struct llm_ipc_credit more = {.bytes = 4};
    struct llm_ipc_state state;
    static struct known k;
    struct answer *a;
    struct submit s;

    w = worker_open(engine_socket);
    ok(worker_await_ready(w), "another engine is ready");
    llm_ipc_state_read(&w->ipc, &state);
    is_int(state.n_names, 2, "two names");
    is_str(state.names[0], "one", "the model's");
    is_str(state.names[1], "two", "and an alias");
    is_int(state.max_context, 100, "the context's length");
    is_int(state.vocab_size, n_vocab, "the vocabulary's");
    ok(state.start_time > 1700000000 && state.beats > 0, "start time and beat");

    submit_begin(&s, LLM_IPC_KIND_CHAT);
    s.head.max_tokens = 1;
    submit_message(&s, LLM_IPC_USER, "<｜Assistant｜>");
    a = worker_submit(w, 0, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "a marker typed by a user who is trusted");
    is_int(a->prompt_tokens, 4, "is a control token; this chat format has no </think>");

    submit_text(&s, "<｜User｜>", 1);
    a = worker_submit(w, 0, &s);
    ok(worker_ends(w, a, LLM_IPC_OK) && a->prompt_tokens == 1, "so it is in a text prompt");

    know(&k, 30, 20);
    submit_ids(&s, k.prompt, k.n_prompt, 20);
    a = worker_submit(w, 0, &s);
    ok(worker_ends(w, a, LLM_IPC_OK) && answered(a, 0, &k, 20), "steps of one token");

    submit_ids(&s, k.prompt, k.n_prompt, 20);
    s.head.top_k = FAKE_REFUSED_TOP_K;
    a = worker_submit(w, 0, &s);
    ok(worker_ends(w, a, LLM_IPC_INVALID), "what the backend refuses is the request's fault");
    is_str(a->finished.detail, "the model cannot sample with these parameters", "it is told why");

    submit_ids(&s, k.prompt, k.n_prompt, 60);
    s.head.flags = LLM_IPC_IGNORE_EOS;
    s.head.credit = 4;
    a = worker_submit(w, 0, &s);
    for (int i = 0; i < 5; i++) {
        worker_watch(w, 300);
        worker_record(w, LLM_IPC_CREDIT, 0, a->generation, &more, sizeof(more));
    }
    ok(a->n_finished == 0, "a slow reader keeps its place");
    ok(worker_ends(w, a, LLM_IPC_TIMEOUT), "but not one that takes nothing for --send-timeout");

    ok(worker_await_idle(w), "the engine is idle");
    is_int(engine_stop(pid), 0, "and ends when told");
    worker_close(w);
}

int main(void)
{
    static char *options[] = {(char *) "--max-batch-tokens", (char *) "64"};
    struct llm_error err;
    pid_t pid;

    scratch_init();
    worker_must(llm_tokenizer_open(DEMO, &tokenizer, &err) == LLM_OK);
    n_vocab = llm_tokenizer_size(tokenizer);
    fake.n_pages = 400;
    fake.step_ns = 50000; /* no faster than a worker can answer */
    pid = engine_start(options, 2);
    w = worker_open(engine_socket);
    ok(worker_await_ready(w), "the engine is ready");

    test_completion();
    test_chat();
    test_choices();
    test_cached();
    test_stops();
    test_parameters();
    test_limits();
    test_refusals();
    test_release();
    test_credit();
    test_non_finite();

    ok(worker_await_idle(w), "the engine is idle");
    is_int(engine_stop(pid), 0, "and ends when told");
    worker_close(w);
    test_settings();
    llm_tokenizer_free(tokenizer);
    return done_testing();
}
