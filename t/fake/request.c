/* The life of a request: COUNTED, tokens, FINISHED, each when its script says. */

#include "engine/base/buf.h"
#include "t/fake/fake.h"
#include "t/fake/misbehave.h"

#include <stdlib.h>
#include <string.h>

#define MS 1000000ull
#define REQUEST_PIECE 512 /* bytes a token of answer=request */

enum step { STEP_ON, STEP_WAIT, STEP_OVER };

static bool publish(struct request *q, uint16_t type, const struct llm_ipc_iovec *parts, unsigned n)
{
    int rc = llm_ipc_send(&q->session->ipc, type, q->slot, q->generation, parts, n);

    if (rc == LLM_IPC_BROKEN) {
        q->session->fake->counters.broken++;
        q->session->dropped = true;
    }
    return rc == LLM_IPC_DONE;
}

/* One id a token; its log-probability and those of n_top others are made up. */
static void add_logprobs(struct llm_buf *b, uint32_t id, unsigned n_top, const char *text,
                         size_t len)
{
    for (unsigned i = 0; i <= n_top; i++) {
        struct llm_ipc_logprob l = {id + i, -0.5f * (float) (i + 1), (uint32_t) len};

        llm_buf_append(b, &l, sizeof(l));
        llm_buf_append(b, text, len);
    }
}

bool send_token(struct request *q, uint16_t choice, enum llm_ipc_token_kind kind, const char *text,
                size_t len)
{
    struct llm_ipc_token t = {.choice = choice, .kind = (uint8_t) kind, .n_ids = 1,
                              .text_length = (uint32_t) len};
    uint32_t id = 1000 + q->choices[choice].sent;
    struct llm_buf logprobs = {0};
    bool sent;

    if (q->submit.flags & LLM_IPC_LOGPROBS) {
        t.n_top = (uint8_t) q->submit.top_logprobs;
        add_logprobs(&logprobs, id, t.n_top, text, len);
        t.logprobs_length = (uint32_t) logprobs.len;
    }

    sent = publish(q, LLM_IPC_TOKEN,
                   (struct llm_ipc_iovec[]){{&t, sizeof(t)},
                                            {&id, sizeof(id)},
                                            {text, len},
                                            {logprobs.data, logprobs.len}},
                   4);
    llm_buf_free(&logprobs);
    return sent;
}

static bool send_choice_end(struct request *q, uint16_t choice, uint32_t reason)
{
    struct llm_ipc_choice_end e = {choice, (uint16_t) reason};

    return publish(q, LLM_IPC_CHOICE_END, &(struct llm_ipc_iovec){&e, sizeof(e)}, 1);
}

bool send_finished(struct request *q)
{
    struct llm_ipc_finished f = {.status = q->status,
                                 .retry_after_ms = q->script.retry_ms,
                                 .prompt_tokens = q->script.prompt,
                                 .cached_tokens = q->script.cached,
                                 .completion_tokens = q->script.completion,
                                 .drafted_tokens = q->script.drafted,
                                 .accepted_tokens = q->script.accepted,
                                 .read_tokens = q->begun ? q->script.prompt : 0};
    uint64_t now = fake_now();

    if (f.completion_tokens == SCRIPT_NEVER) {
        f.completion_tokens = q->sent;
    }
    for (uint32_t i = 0; i < q->n_choices; i++) {
        uint32_t n = q->choices[i].sent;

        f.reasoning_tokens += n < q->script.reasoning ? n : q->script.reasoning;
    }
    if (q->status == LLM_IPC_CONTEXT_LENGTH || q->status == LLM_IPC_PROMPT_LENGTH) {
        f.numbers[0] = q->script.prompt;
        f.numbers[1] = q->status == LLM_IPC_CONTEXT_LENGTH ? q->submit.max_tokens : 0;
        f.numbers[2] = q->session->fake->state->max_context;
    }
    if (q->status == LLM_IPC_INVALID) {
        memcpy(f.detail, "the fake engine refuses", sizeof("the fake engine refuses"));
    }
    f.total_ns = now - q->start;
    f.first_token_ns = q->first_token != 0 ? q->first_token - q->start : 0;
    f.queue_ns = f.first_token_ns < f.total_ns ? f.first_token_ns : f.total_ns;

    if (!publish(q, LLM_IPC_FINISHED, &(struct llm_ipc_iovec){&f, sizeof(f)}, 1)) {
        return false;
    }
    q->session->fake->counters.read += f.read_tokens;
    q->session->fake->counters.cached += q->begun ? f.cached_tokens : 0;
    q->session->fake->counters.made += f.completion_tokens;
    return true;
}

static bool send_counted(struct request *q)
{
    struct llm_ipc_counted c = {q->script.prompt, q->script.cached};

    return publish(q, LLM_IPC_COUNTED, &(struct llm_ipc_iovec){&c, sizeof(c)}, 1);
}

static size_t word_end(const char *text, size_t at, size_t len)
{
    while (at < len && text[at] <= ' ' && text[at] >= 0) {
        at++;
    }
    while (at < len && !(text[at] <= ' ' && text[at] >= 0)) {
        at++;
    }
    return at;
}

/* The end of a piece of about REQUEST_PIECE bytes of whole characters. */
static size_t piece_end(const char *text, size_t at, size_t len)
{
    if (len - at <= REQUEST_PIECE) {
        return len;
    }
    at += REQUEST_PIECE;
    while ((text[at] & 0xc0) == 0x80) {
        at--;
    }
    return at;
}

static uint32_t index_of(const struct request *q, const struct choice *c)
{
    return (uint32_t) (c - q->choices);
}

/* Appends the next token's text to b and returns where the choice stands after it. */
static size_t next_text(const struct request *q, const struct choice *c, struct llm_buf *b)
{
    size_t end = 0;

    switch (q->script.answer) {
    case ANSWER_COUNT:
        llm_buf_printf(b, c->sent == 0 ? "t%u" : " t%u", c->sent);
        break;
    case ANSWER_CHOICE:
        llm_buf_printf(b, "%s%u.%u", c->sent == 0 ? "" : " ", index_of(q, c), c->sent);
        break;
    case ANSWER_TEXT:
        llm_buf_puts(b, q->script.text);
        break;
    case ANSWER_ECHO:
        end = word_end(q->text, c->at, q->text_length);
        llm_buf_append(b, q->text + c->at, end - c->at);
        break;
    case ANSWER_REQUEST:
        end = piece_end(q->text, c->at, q->text_length);
        llm_buf_append(b, q->text + c->at, end - c->at);
        break;
    }
    while (b->len < q->script.size && !b->failed) {
        llm_buf_putc(b, '.');
    }
    return end;
}

/* Whether the choice has said all, and why. */
static bool at_end(const struct request *q, const struct choice *c, uint32_t *reason)
{
    uint32_t more = q->script.answer == ANSWER_CHOICE ? index_of(q, c) : 0;

    if (c->sent >= q->script.tokens + more || (q->text != NULL && c->at >= q->text_length)) {
        *reason = q->script.finish;
        return true;
    }
    if (q->submit.max_tokens != 0 && c->sent >= q->submit.max_tokens
        && q->script.answer != ANSWER_REQUEST)
    {
        *reason = LLM_IPC_FINISH_LENGTH;
        return true;
    }
    return false;
}

static enum llm_ipc_token_kind kind_of(const struct request *q, const struct choice *c)
{
    if (q->script.tool[0] != '\0') {
        return LLM_IPC_TEXT_TOOL_ARGUMENTS;
    }
    return c->sent < q->script.reasoning ? LLM_IPC_TEXT_REASONING : LLM_IPC_TEXT_CONTENT;
}

/* What precedes a choice's first token: the prompt for `echo`, the name of the tool. */
static bool send_preamble(struct request *q, uint16_t choice)
{
    struct choice *c = &q->choices[choice];

    if (c->begun) {
        return true;
    }
    if (q->script.tool[0] != '\0' &&
        !send_token(q, choice, LLM_IPC_TEXT_TOOL_NAME, q->script.tool, strlen(q->script.tool))) {
        return false;
    }
    if ((q->submit.flags & LLM_IPC_ECHO) &&
        !send_token(q, choice, LLM_IPC_TEXT_CONTENT, q->prompt, q->prompt_length)) {
        return false;
    }
    c->begun = true;
    return true;
}

static enum step speak(struct request *q, uint64_t now)
{
    uint16_t index = (uint16_t) q->turn;
    struct choice *c = &q->choices[index];
    struct llm_buf text = {0};
    enum step step = STEP_WAIT;
    uint32_t reason;
    size_t at;

    if (!send_preamble(q, index)) {
        return STEP_WAIT;
    }
    if (at_end(q, c, &reason)) {
        if (q->status == LLM_IPC_OK && !send_choice_end(q, index, reason)) {
            return STEP_WAIT;
        }
        c->ended = true;
        q->ended++;
        if (q->ended < q->n_choices) {
            q->due += q->script.every_ms * MS;
        }
        return STEP_ON;
    }

    at = next_text(q, c, &text);
    if (q->submit.credit != 0 && !q->script.no_credit && text.len > q->credit &&
        q->credit < q->submit.credit) {
        q->due = UINT64_MAX; /* until CREDIT; a token larger than all of it goes out alone */
    } else if (send_token(q, index, kind_of(q, c), text.data, text.len)) {
        q->credit -= text.len < q->credit ? text.len : q->credit;
        q->first_token = q->first_token == 0 ? now : q->first_token;
        c->at = at;
        c->sent++;
        q->sent++;
        q->turn = (q->turn + 1) % q->n_choices;
        q->due = q->due + q->script.every_ms * MS;
        step = STEP_ON;
    }
    llm_buf_free(&text);
    return step;
}

static enum step hang(struct request *q)
{
    q->stage = STAGE_HUNG;
    q->due = UINT64_MAX;
    return STEP_WAIT;
}

static void enter(struct request *q, enum stage stage, uint64_t due)
{
    q->stage = stage;
    q->due = due;
}

/* Its turn has come, unless it is refused. */
static void begin(struct request *q, uint64_t now)
{
    q->begun = q->script.tokens != 0 || q->status == LLM_IPC_OK;
    enter(q, STAGE_TOKENS, now + q->script.first_ms * MS);
}

static enum step step_counted(struct request *q, uint64_t now)
{
    if (q->script.hang == HANG_COUNTED) {
        return hang(q);
    }
    if (q->script.counted_ms != SCRIPT_NEVER && !send_counted(q)) {
        return STEP_WAIT;
    }
    if ((q->submit.flags & LLM_IPC_AWAIT_RELEASE) && !q->script.no_release) {
        enter(q, STAGE_RELEASE, UINT64_MAX);
    } else {
        begin(q, now);
    }
    return STEP_ON;
}

static enum step step_tokens(struct request *q, uint64_t now)
{
    if (q->script.bad != 0 && !q->misbehaved && q->sent >= q->script.at) {
        q->misbehaved = true;
        return misbehave(q, q->script.bad) ? STEP_ON : STEP_OVER;
    }
    if (q->script.hang == HANG_FIRST) {
        return hang(q);
    }
    if (q->script.tokens == 0 && q->status != LLM_IPC_OK) {
        enter(q, STAGE_FINISHED, now + q->script.end_ms * MS); /* refused: no choice began */
        return STEP_ON;
    }
    if (q->ended == q->n_choices) {
        enter(q, STAGE_FINISHED, now + q->script.end_ms * MS);
        return STEP_ON;
    }
    while (q->choices[q->turn].ended) {
        q->turn = (q->turn + 1) % q->n_choices;
    }
    return speak(q, now);
}

static enum step step_finished(struct request *q)
{
    if (q->script.hang == HANG_END && !q->cancelled) {
        return hang(q);
    }
    return send_finished(q) ? STEP_OVER : STEP_WAIT;
}

static enum step step(struct request *q, uint64_t now)
{
    switch (q->stage) {
    case STAGE_COUNTED:
        return step_counted(q, now);
    case STAGE_TOKENS:
        return step_tokens(q, now);
    case STAGE_FINISHED:
        return step_finished(q);
    case STAGE_RELEASE:
    case STAGE_HUNG:
        break;
    }
    return STEP_WAIT;
}

/* The deadline that counts now, UINT64_MAX for none, and what FINISHED says when it passes. */
static uint64_t deadline(const struct request *q, uint32_t *status)
{
    const struct {
        uint64_t at;
        uint32_t status;
        bool counts;
    } all[] = {{q->submit.queue_deadline, LLM_IPC_TIMEOUT_QUEUE, q->stage < STAGE_TOKENS},
               {q->submit.first_token_deadline, LLM_IPC_TIMEOUT_FIRST_TOKEN, q->sent == 0},
               {q->submit.deadline, LLM_IPC_TIMEOUT, true}};
    uint64_t at = UINT64_MAX;

    *status = LLM_IPC_OK;
    for (unsigned i = 0; i < 3; i++) {
        if (all[i].counts && all[i].at != 0 && all[i].at < at) {
            at = all[i].at;
            *status = all[i].status;
        }
    }
    return at;
}

/* FINISHED with this status, `ms` from now. */
static void end(struct request *q, uint32_t status, uint32_t ms)
{
    q->cancelled = true;
    q->status = status;
    enter(q, STAGE_FINISHED, fake_now() + ms * MS);
}

void request_run(struct request *q, uint64_t now)
{
    struct session *s = q->session;
    struct fake *f = s->fake;

    if (q->script.deadlines && !q->cancelled) {
        uint32_t status;
        uint64_t at = deadline(q, &status);

        if (at <= now) {
            end(q, status, 0);
            now = q->due;
        } else if (at < f->next_due) {
            f->next_due = at;
        }
    }

    while (q->due <= now && !s->dropped) {
        enum step done = step(q, now);

        if (done == STEP_OVER) {
            f->counters.finished++;
            request_free(q);
            return;
        }
        if (done == STEP_WAIT) {
            break;
        }
    }
    if (q->due > now && q->due < f->next_due) {
        f->next_due = q->due;
    }
}

void request_cancel(struct request *q)
{
    q->session->fake->counters.cancelled++;
    if (q->script.cancel_ms != SCRIPT_NEVER && !q->cancelled) {
        end(q, LLM_IPC_CANCELLED, q->script.cancel_ms);
    }
}

void request_revoke(struct request *q)
{
    q->session->fake->counters.revoked++;
    end(q, LLM_IPC_REVOKED, 0);
}

void request_release(struct request *q, uint32_t max_tokens)
{
    if (q->stage == STAGE_RELEASE) {
        q->submit.max_tokens = max_tokens;
        begin(q, fake_now());
    }
}

void request_credit(struct request *q, uint32_t bytes)
{
    q->credit += bytes;
    if (q->stage == STAGE_TOKENS && q->due == UINT64_MAX) {
        q->due = fake_now();
    }
}

/* The text of the last user message or of the first prompt, and what else the items tell. */
static void read_items(const struct llm_ipc_submit_view *v, struct llm_buf *text,
                       uint32_t *n_prompts, uint32_t *n_ids)
{
    struct llm_ipc_item_view i;
    bool user = false;
    size_t at = 0;

    *n_prompts = 0;
    *n_ids = 0;
    while (llm_ipc_submit_next(v, &at, &i)) {
        switch (i.type) {
        case LLM_IPC_ITEM_MESSAGE:
            user = i.arg == LLM_IPC_USER;
            if (user) {
                llm_buf_reset(text);
            }
            break;
        case LLM_IPC_ITEM_CONTENT:
            if (user) {
                llm_buf_append(text, i.data, i.length);
            }
            break;
        case LLM_IPC_ITEM_PROMPT_TEXT:
            if (++*n_prompts == 1) {
                llm_buf_append(text, i.data, i.length);
            }
            break;
        case LLM_IPC_ITEM_PROMPT_IDS:
            ++*n_prompts;
            *n_ids += i.length / 4;
            break;
        }
    }
    if (*n_prompts == 0) {
        *n_prompts = 1; /* chat */
    }
}

static uint32_t count_words(const char *text, size_t len)
{
    uint32_t n = 0;

    for (size_t at = 0; at < len; n++) {
        at = word_end(text, at, len);
    }
    return n;
}

static void settle_script(struct request *q, const struct llm_buf *text, uint32_t n_ids)
{
    struct script *s = &q->script;
    const char *own = q->session->fake->default_script;

    script_init(s);
    script_parse(s, own, strlen(own));
    script_parse(s, text->data, text->len);

    if (s->prompt == SCRIPT_NEVER) {
        s->prompt = n_ids + count_words(text->data, text->len);
    }
    if (s->tokens == SCRIPT_NEVER) {
        if (s->status != LLM_IPC_OK) {
            s->tokens = 0;
        } else if (s->answer == ANSWER_COUNT || s->answer == ANSWER_CHOICE) {
            s->tokens = 3;
        } else if (s->answer == ANSWER_TEXT) {
            s->tokens = 1;
        }
    }
    q->status = s->status;
}

void request_submit(struct session *s, const struct llm_ipc_record *r)
{
    struct llm_ipc_submit_view v;
    struct llm_buf text = {0};
    uint32_t n_prompts, n_ids;
    struct request *q;
    int rc = llm_ipc_submit_read(r, &v);

    if (rc == LLM_IPC_BROKEN || s->slots[r->slot] != NULL) {
        s->fake->counters.broken++;
        s->dropped = true;
        return;
    }
    s->fake->counters.submitted++;

    if (rc == LLM_IPC_REFUSED) {
        n_prompts = v.head.n = 1;
        n_ids = 0;
    } else {
        uint8_t prefix[LLM_IPC_PREFIX_SIZE];

        read_items(&v, &text, &n_prompts, &n_ids);
        if (llm_ipc_submit_prefix(&v, prefix)) {
            llm_ipc_filter_add(&s->fake->prefixes, prefix);
        }
    }

    q = calloc(1, sizeof(*q) + (size_t) n_prompts * v.head.n * sizeof(q->choices[0]));
    if (q == NULL || llm_buf_reserve(&text, 1) == NULL) {
        abort(); /* no test goes on without memory */
    }
    q->session = s;
    q->slot = r->slot;
    q->generation = r->generation;
    q->submit = v.head;
    q->n_choices = n_prompts * v.head.n;
    q->credit = v.head.credit;
    q->start = fake_now();
    settle_script(q, &text, n_ids);
    if (rc == LLM_IPC_REFUSED) {
        s->fake->counters.invalid++;
        q->status = v.status;
        q->script.tokens = 0;
    } else if (q->script.answer == ANSWER_REQUEST) {
        q->text = dump_submit(&v, &q->text_length);
    }
    q->prompt = text.data;
    q->prompt_length = text.len;
    if (q->script.answer == ANSWER_ECHO) {
        q->text = q->prompt;
        q->text_length = q->prompt_length;
    }

    enter(q, STAGE_COUNTED, q->start);
    if (q->script.counted_ms != SCRIPT_NEVER) {
        q->due += q->script.counted_ms * MS;
    }

    s->slots[q->slot] = q;
    q->next = s->requests;
    if (q->next != NULL) {
        q->next->prev = q;
    }
    s->requests = q;
    s->fake->counters.requests++;
}

void request_free(struct request *q)
{
    struct session *s = q->session;

    s->fake->counters.requests--;
    s->slots[q->slot] = NULL;
    if (q->next != NULL) {
        q->next->prev = q->prev;
    }
    if (q->prev != NULL) {
        q->prev->next = q->next;
    } else {
        s->requests = q->next;
    }
    if (q->text != q->prompt) {
        free(q->text);
    }
    free(q->prompt);
    free(q);
}
