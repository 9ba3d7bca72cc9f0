#include "engine/serve/calls.h"

#include "engine/base/clock.h"
#include "engine/serve/engine.h"
#include "engine/serve/prepare.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BYTES_PER_TOKEN 4 /* of a prompt, until it is known */

static void done(struct llm_call *call);

/* --- deadlines --- */

/* The next deadline of a call, and what it means when it passes; 0: none. */
static uint64_t next_deadline(const struct llm_call *call, enum llm_ipc_status *status)
{
    const struct llm_ipc_submit *h = &call->submit.head;
    const struct {
        uint64_t at;
        bool applies;
        enum llm_ipc_status status;
    } deadlines[] = {
        {h->queue_deadline, call->started_ns == 0, LLM_IPC_TIMEOUT_QUEUE},
        {h->first_token_deadline, call->first_token_ns == 0, LLM_IPC_TIMEOUT_FIRST_TOKEN},
        {h->deadline, true, LLM_IPC_TIMEOUT},
        {call->paused_ns + call->engine->settings->send_timeout * LLM_NS_PER_S,
         call->paused_ns != 0 && call->phase == LLM_CALL_SCHEDULED, LLM_IPC_TIMEOUT},
    };
    uint64_t next = 0;

    for (unsigned i = 0; i < sizeof(deadlines) / sizeof(deadlines[0]); i++) {
        if (deadlines[i].applies && deadlines[i].at != 0 &&
            (next == 0 || deadlines[i].at < next)) {
            next = deadlines[i].at;
            *status = deadlines[i].status;
        }
    }
    return next;
}

/* False: no memory for the timer. */
static bool set_deadline(struct llm_call *call)
{
    enum llm_ipc_status status;
    uint64_t at = next_deadline(call, &status);

    if (at == 0) {
        llm_loop_stop_timer(&call->engine->loop, &call->timer);
        return true;
    }
    return llm_loop_set_timer(&call->engine->loop, &call->timer, at) == LLM_OK;
}

static void watch_deadlines(struct llm_call *call)
{
    if (!set_deadline(call)) {
        llm_call_end(call, LLM_IPC_FAILED);
    }
}

static void on_deadline(struct llm_timer *t)
{
    struct llm_call *call = LLM_HOLDER(t, struct llm_call, timer);
    enum llm_ipc_status status;
    uint64_t at = next_deadline(call, &status);

    if (at != 0 && at <= llm_now_ns()) {
        llm_call_end(call, status);
    } else {
        watch_deadlines(call); /* it came by its text since */
    }
}

/* --- the beginning --- */

/* One for each choice of each prompt. */
static uint32_t count_sequences(const struct llm_ipc_submit_view *v)
{
    struct llm_ipc_item_view item;
    uint32_t n_prompts = 0;

    if (v->head.kind == LLM_IPC_KIND_CHAT) {
        return v->head.n;
    }
    for (size_t at = 0; llm_ipc_submit_next(v, &at, &item);) {
        n_prompts += item.type == LLM_IPC_ITEM_PROMPT_TEXT || item.type == LLM_IPC_ITEM_PROMPT_IDS;
    }
    return n_prompts * v->head.n;
}

static struct llm_gate_pace pace_of(const struct llm_engine *e)
{
    return (struct llm_gate_pace){
        .prefill_rate = e->load.prefill_rate,
        .pool_tokens = (uint64_t) e->load.total_pages * LLM_PAGE_TOKENS,
    };
}

/* Whether it is certain now that one of its deadlines will pass before its turn comes. */
static bool comes_too_late(const struct llm_call *call)
{
    const struct llm_ipc_submit *h = &call->submit.head;
    const struct llm_gate_pace pace = pace_of(call->engine);
    const struct {
        uint64_t at;
        bool for_start;
    } deadlines[] = {{h->queue_deadline, true}, {h->first_token_deadline, false},
                     {h->deadline, false}};

    for (unsigned i = 0; i < sizeof(deadlines) / sizeof(deadlines[0]); i++) {
        uint64_t at = deadlines[i].at, ns;
        struct llm_gate_wait wait;

        if (at == 0) {
            continue;
        }
        wait = llm_gate_least_wait(&call->engine->gate, h->tenant, at, &pace);
        ns = deadlines[i].for_start ? wait.start_ns : wait.first_token_ns;
        if (ns != 0 && call->submitted_ns + ns > at) {
            return true;
        }
    }
    return false;
}

static bool may_enter(struct llm_call *call)
{
    const struct llm_ipc_submit *h = &call->submit.head;
    struct llm_engine *e = call->engine;

    switch (e->phase) {
    case LLM_ENGINE_LOADING:
        return llm_call_refuse(call, LLM_IPC_QUEUE_FULL, "the model is still loading");
    case LLM_ENGINE_DRAINING:
        return llm_call_refuse(call, LLM_IPC_DRAINING, "the engine is shutting down");
    case LLM_ENGINE_FAILED:
        return llm_call_refuse(call, LLM_IPC_FAILED, "the engine has failed");
    case LLM_ENGINE_READY:
        break;
    }

    if (comes_too_late(call)) {
        return llm_call_refuse(call, LLM_IPC_TIMEOUT_QUEUE, "the queue is longer than its time");
    }
    switch (llm_gate_enter(&e->gate, h->tenant, h->max_queued, count_sequences(&call->submit),
                           call->submit.items_length / BYTES_PER_TOKEN, &call->place)) {
    case LLM_GATE_FULL:
        return llm_call_refuse(call, LLM_IPC_QUEUE_FULL, "the queue is full");
    case LLM_GATE_TENANT_FULL:
        return llm_call_refuse(call, LLM_IPC_TENANT_FULL,
                               "this tenant's part of the queue is full");
    case LLM_GATE_NO_MEMORY:
        return llm_call_refuse(call, LLM_IPC_FAILED, "the engine is out of memory");
    case LLM_GATE_PASSED:
        break;
    }
    return true;
}

/* Keeps its own copy of the payload and reads it: LLM_IPC_DONE, _REFUSED or _BROKEN. */
static int read_submit(struct llm_call *call, const struct llm_ipc_record *r)
{
    struct llm_ipc_record own = {.type = r->type, .length = r->length};

    call->payload = malloc(r->length > 0 ? r->length : 1);
    if (call->payload == NULL) {
        return LLM_IPC_ERROR;
    }
    memcpy(call->payload, r->data, r->length);
    own.data = call->payload;
    return llm_ipc_submit_read(&own, &call->submit);
}

static void link_call(struct llm_call *call)
{
    struct llm_engine *e = call->engine;

    call->next = e->calls;
    if (call->next != NULL) {
        call->next->prev = call;
    }
    e->calls = call;
    e->n_calls++;
    call->client->slots[call->slot] = call;
    call->client->n_calls++;
}

int llm_call_new(struct llm_client *client, const struct llm_ipc_record *r, const char **why)
{
    struct llm_call *call;
    int rc;

    if (client->slots[r->slot] != NULL) {
        *why = "SUBMIT for a slot in use";
        return LLM_IPC_BROKEN;
    }

    call = calloc(1, sizeof(*call));
    rc = call != NULL ? read_submit(call, r) : LLM_IPC_ERROR;
    if (rc != LLM_IPC_DONE && rc != LLM_IPC_REFUSED) {
        *why = rc == LLM_IPC_BROKEN ? "malformed SUBMIT" : "no memory for its requests";
        if (call != NULL) {
            free(call->payload);
            free(call);
        }
        return LLM_IPC_BROKEN;
    }

    call->engine = client->engine;
    call->client = client;
    call->slot = r->slot;
    call->generation = r->generation;
    call->submitted_ns = llm_now_ns();
    call->credit = call->submit.head.credit != 0 ? call->submit.head.credit : UINT64_MAX;
    call->timer.fire = on_deadline;
    link_call(call);

    if (rc == LLM_IPC_REFUSED) {
        llm_call_refuse(call, call->submit.status, "%s", call->submit.error);
    }
    if (rc == LLM_IPC_REFUSED || !may_enter(call)) {
        free(call->payload); /* FINISHED may have to wait for room */
        call->payload = NULL;
        call->status = call->refusal.status;
        done(call);
    } else {
        call->phase = LLM_CALL_PREPARING;
        llm_tokenizers_submit(&call->engine->tokenizers, call);
        watch_deadlines(call);
    }
    return LLM_IPC_DONE;
}

static void schedule(struct llm_call *call)
{
    call->phase = LLM_CALL_SCHEDULED;
    if (call->has_prefix) { /* who comes next waits for its pages */
        llm_ipc_filter_add(&call->engine->state.prefixes, call->prefix);
    }
    llm_model_thread_ask(&call->engine->model, call, LLM_ASK_RUN);
}

/* How much of its prompts need not be computed, as far as one can tell: for the worker, and for
 * the time that the queue will take. */
static void guess_cached(struct llm_call *call)
{
    const struct llm_prompt_ids *first = &call->prompts[0];
    enum llm_ipc_status status;
    uint64_t fresh = 0;

    for (uint32_t i = 0; i < call->n_prompts; i++) {
        uint32_t n = llm_model_thread_guess_cached(&call->engine->model, &call->prompts[i]);

        call->cached_guess += n;
        fresh = i == 0 ? call->prompts[i].n - n : fresh;
    }

    /* a public page may come from other tenants, whom nobody here waits for */
    llm_gate_recount(&call->engine->gate, &call->place, call->prompt_tokens,
                     call->request.scope == LLM_SCOPE_PUBLIC ? 0 : fresh,
                     first->digests != NULL && first->n >= LLM_PAGE_TOKENS
                         ? first->digests[0].bytes
                         : NULL,
                     next_deadline(call, &status));
}

void llm_call_prepared(struct llm_call *call)
{
    if (call->status == LLM_IPC_OK) {
        call->status = call->refusal.status;
    }
    if (call->status != LLM_IPC_OK || call->client == NULL) {
        done(call);
        return;
    }

    guess_cached(call);
    call->counted_due = true;
    if ((call->submit.head.flags & LLM_IPC_AWAIT_RELEASE) != 0) {
        call->phase = LLM_CALL_HELD;
    } else {
        schedule(call);
    }
    llm_call_flush(call);
}

void llm_call_release(struct llm_call *call, uint32_t max_tokens)
{
    struct llm_request *r = &call->request;

    if (call->phase != LLM_CALL_HELD) {
        return;
    }
    for (uint32_t i = 0; max_tokens != 0 && i < r->n_sequences; i++) {
        if (r->sequences[i].max_tokens > max_tokens) {
            r->sequences[i].max_tokens = max_tokens;
        }
    }
    schedule(call);
}

/* --- what the scheduler makes of it --- */

static void on_started(struct llm_call *call)
{
    call->started_ns = llm_now_ns();
    call->engine->n_running++;
    llm_gate_leave(&call->engine->gate, &call->place);
    if (call->status == LLM_IPC_OK) {
        watch_deadlines(call);
    }
}

static void on_token(struct llm_call *call, const struct llm_event *event,
                     const struct llm_events *events)
{
    struct llm_choice *choice = &call->choices[event->choice];
    const struct llm_choice_token token = {
        .id = event->id,
        .logprob = event->logprob,
        .n_top = event->n_top,
        .top_ids = events->top_ids + event->first_top,
        .top_logprobs = events->top_logprobs + event->first_top,
    };

    if (choice->ended) {
        return; /* sampled before the model thread heard of the stop string */
    }
    if (call->first_token_ns == 0) {
        call->first_token_ns = llm_now_ns();
        watch_deadlines(call);
    }
    if (llm_choice_push(choice, &token)) {
        atomic_store(&call->unwanted[event->choice], true);
        llm_model_thread_ask(&call->engine->model, call, LLM_ASK_END);
    }
}

static void on_ended(struct llm_call *call, const struct llm_event *event)
{
    struct llm_choice *choice = &call->choices[event->choice];

    if (choice->ended) {
        return;
    }
    if (event->end == LLM_END_STOP) {
        choice->n_tokens++; /* the stop id was sampled too, though nobody sees it */
    }
    llm_choice_end(choice, event->end == LLM_END_STOP ? LLM_IPC_FINISH_STOP
                                                      : LLM_IPC_FINISH_LENGTH);
}

/* Puts a call into a list, once, by next_touched. */
static void touch(struct llm_call *call, struct llm_call **touched)
{
    if (!call->touched) {
        call->touched = true;
        call->next_touched = *touched;
        *touched = call;
    }
}

void llm_calls_take_events(struct llm_engine *e, const struct llm_events *events)
{
    struct llm_call *touched = NULL;

    e->load = events->load;

    for (uint32_t i = 0; i < events->n; i++) {
        const struct llm_event *event = &events->events[i];
        struct llm_call *call = event->call;

        call->cached_tokens = event->cached_tokens;
        if (event->kind == LLM_EVENT_STARTED) {
            on_started(call);
        } else if (call->status != LLM_IPC_OK) {
            continue; /* it has ended otherwise meanwhile */
        } else if (event->kind == LLM_EVENT_TOKEN) {
            on_token(call, event, events);
        } else {
            on_ended(call, event);
        }
        if (call->choices[event->choice].failed) {
            llm_call_end(call, LLM_IPC_FAILED);
        }
        touch(call, &touched);
    }

    /* the model thread has not let go of them yet, so none is freed here */
    for (; touched != NULL; touched = touched->next_touched) {
        touched->touched = false;
        llm_call_flush(touched);
    }
}

static enum llm_ipc_status status_of(const struct llm_call *call)
{
    switch (call->request.outcome) {
    case LLM_OUTCOME_DONE:
        return LLM_IPC_OK;
    case LLM_OUTCOME_CANCELLED:
        return LLM_IPC_CANCELLED;
    case LLM_OUTCOME_EXPIRED:
        return call->started_ns == 0 ? LLM_IPC_TIMEOUT_QUEUE : LLM_IPC_TIMEOUT;
    case LLM_OUTCOME_NON_FINITE:
        return LLM_IPC_NON_FINITE;
    case LLM_OUTCOME_INVALID:
    case LLM_OUTCOME_TOO_LARGE:
        return LLM_IPC_INVALID;
    case LLM_OUTCOME_NO_MEMORY:
    case LLM_OUTCOME_FAILED:
        break;
    }
    return LLM_IPC_FAILED;
}

void llm_call_retired(struct llm_call *call)
{
    if (call->status == LLM_IPC_OK) {
        call->status = status_of(call);
        if (call->status == LLM_IPC_INVALID) {
            llm_call_refuse(call, LLM_IPC_INVALID,
                            call->request.outcome == LLM_OUTCOME_TOO_LARGE
                                ? "it could become longer than the latent memory holds"
                                : "the model cannot sample with these parameters");
        }
    }
    done(call);
}

/* --- the end --- */

/* No other thread has the call any more. */
static void done(struct llm_call *call)
{
    call->phase = LLM_CALL_DONE;
    llm_gate_leave(&call->engine->gate, &call->place);
    call->engine->n_running -= call->started_ns != 0;

    if (call->client == NULL) {
        llm_call_free(call);
    } else {
        llm_call_flush(call);
    }
}

void llm_call_end(struct llm_call *call, enum llm_ipc_status status)
{
    if (call->status == LLM_IPC_OK) {
        call->status = status;
    }

    switch (call->phase) {
    case LLM_CALL_PREPARING:
        atomic_store(&call->abandoned, true);
        llm_call_flush(call);
        break;
    case LLM_CALL_HELD:
        done(call);
        break;
    case LLM_CALL_SCHEDULED:
        llm_model_thread_ask(&call->engine->model, call, LLM_ASK_CANCEL);
        llm_call_flush(call);
        break;
    case LLM_CALL_DONE:
        llm_call_flush(call);
        break;
    }
}

/* Its slot is free: the worker hears no more of it. */
static void leave_client(struct llm_call *call)
{
    call->client->slots[call->slot] = NULL;
    call->client->n_calls--;
    call->client = NULL;
}

void llm_call_orphan(struct llm_call *call)
{
    leave_client(call);

    if (call->phase == LLM_CALL_DONE) {
        llm_call_free(call);
    } else {
        llm_call_end(call, LLM_IPC_CANCELLED);
    }
}

void llm_call_free(struct llm_call *call)
{
    struct llm_engine *e = call->engine;

    llm_loop_stop_timer(&e->loop, &call->timer);
    llm_gate_leave(&e->gate, &call->place);
    if (call->client != NULL) {
        leave_client(call);
    }
    *(call->prev != NULL ? &call->prev->next : &e->calls) = call->next;
    if (call->next != NULL) {
        call->next->prev = call->prev;
    }
    e->n_calls--;
    llm_call_unprepare(call);
    free(call);
}

/* --- sending --- */

static int send_counted(struct llm_call *call)
{
    const struct llm_ipc_counted counted = {
        .prompt_tokens = call->prompt_tokens,
        .cached_tokens_estimate = call->cached_guess,
    };
    int rc = llm_ipc_send(&call->client->ipc, LLM_IPC_COUNTED, call->slot, call->generation,
                          &(struct llm_ipc_iovec){&counted, sizeof(counted)}, 1);

    call->counted_due = rc != LLM_IPC_DONE;
    return rc;
}

static bool worth_retrying(enum llm_ipc_status status)
{
    return status == LLM_IPC_QUEUE_FULL || status == LLM_IPC_DRAINING ||
           status == LLM_IPC_TIMEOUT_QUEUE;
}

static uint32_t retry_after_ms(const struct llm_call *call, uint64_t now)
{
    const struct llm_gate *gate = &call->engine->gate;
    const struct llm_gate_pace pace = pace_of(call->engine);
    uint32_t noise = (uint32_t) now;

    if (call->status == LLM_IPC_TENANT_FULL) {
        return llm_gate_tenant_retry_ms(gate, call->submit.head.tenant, &pace, noise);
    }
    return worth_retrying(call->status) ? llm_gate_retry_ms(gate, &pace, noise) : 0;
}

/* What came of it so far. */
static void report_usage(const struct llm_call *call, struct llm_ipc_finished *f)
{
    f->prompt_tokens = call->prompt_tokens;
    f->cached_tokens = call->cached_tokens;
    f->read_tokens = call->started_ns != 0 ? call->prompt_tokens : 0;
    for (uint32_t i = 0; i < call->request.n_sequences; i++) {
        f->completion_tokens += call->choices[i].n_tokens;
    }
    if (call->status == call->refusal.status) {
        memcpy(f->numbers, call->refusal.numbers, sizeof(f->numbers));
        memcpy(f->detail, call->refusal.detail, sizeof(f->detail));
    }
}

static int send_finished(struct llm_call *call)
{
    uint64_t now = llm_now_ns();
    struct llm_ipc_finished f = {
        .status = (uint32_t) call->status,
        .retry_after_ms = retry_after_ms(call, now),
        .queue_ns = (call->started_ns != 0 ? call->started_ns : now) - call->submitted_ns,
        .first_token_ns = call->first_token_ns != 0 ? call->first_token_ns - call->submitted_ns
                                                    : 0,
        .total_ns = now - call->submitted_ns,
    };

    if (call->phase != LLM_CALL_PREPARING) { /* or a tokenizer thread has all that */
        report_usage(call, &f);
    }
    return llm_ipc_send(&call->client->ipc, LLM_IPC_FINISHED, call->slot, call->generation,
                        &(struct llm_ipc_iovec){&f, sizeof(f)}, 1);
}

/* Whether some choice still has text, which after a flush can only be for want of credit. */
static bool has_text(const struct llm_call *call)
{
    for (uint32_t i = 0; i < call->request.n_sequences; i++) {
        if (call->choices[i].text.len > 0) {
            return true;
        }
    }
    return false;
}

static size_t unsent_bytes(const struct llm_call *call)
{
    size_t n = sizeof(*call);

    if (call->phase == LLM_CALL_PREPARING) {
        return n; /* a tokenizer thread makes the choices */
    }
    for (uint32_t i = 0; i < call->request.n_sequences; i++) {
        n += llm_choice_unsent(&call->choices[i]);
    }
    return n;
}

static int send_choices(struct llm_call *call)
{
    int rc = LLM_IPC_DONE;

    for (uint32_t i = 0; rc == LLM_IPC_DONE && i < call->request.n_sequences; i++) {
        rc = llm_choice_send(&call->choices[i], &call->client->ipc, call->slot, call->generation,
                             (uint16_t) i, &call->credit);
    }
    return rc;
}

/* The model goes on only while the worker takes the text; what stands still for too long gives its
 * place to others. */
static void pace(struct llm_call *call)
{
    bool paused = has_text(call);

    if (call->phase != LLM_CALL_SCHEDULED || paused == atomic_load(&call->paused)) {
        return;
    }
    atomic_store(&call->paused, paused);
    llm_model_thread_ask(&call->engine->model, call, LLM_ASK_PACE);

    call->paused_ns = paused ? llm_now_ns() : 0;
    if (!set_deadline(call)) {
        call->status = LLM_IPC_FAILED; /* which is told next */
        llm_model_thread_ask(&call->engine->model, call, LLM_ASK_CANCEL);
    }
}

/* All that a call has to say while nothing has ended it otherwise. */
static int send_progress(struct llm_call *call)
{
    int rc = call->counted_due ? send_counted(call) : LLM_IPC_DONE;

    /* an echo is there before RELEASE and before its turn, but leaves only when it starts */
    if (rc == LLM_IPC_DONE && call->started_ns != 0) {
        rc = send_choices(call);
        if (rc == LLM_IPC_DONE) {
            pace(call);
        }
    }
    return rc;
}

static bool may_finish(const struct llm_call *call)
{
    return call->status != LLM_IPC_OK || (call->phase == LLM_CALL_DONE && !has_text(call));
}

/* FINISHED is sent: the worker may use the slot again, whoever else still has the call. */
static void forget(struct llm_call *call)
{
    if (call->phase == LLM_CALL_DONE) {
        llm_call_free(call);
    } else {
        llm_loop_stop_timer(&call->engine->loop, &call->timer);
        leave_client(call);
    }
}

void llm_call_flush(struct llm_call *call)
{
    struct llm_client *client = call->client;
    int rc = LLM_IPC_DONE;

    if (client == NULL || client->dropped) {
        return;
    }
    if (call->waits_for_room) {
        llm_client_wait_for_room(client, call, unsent_bytes(call));
        return;
    }

    if (call->status == LLM_IPC_OK && call->phase != LLM_CALL_PREPARING) {
        rc = send_progress(call);
    }
    if (rc == LLM_IPC_DONE && may_finish(call)) {
        rc = send_finished(call);
        if (rc == LLM_IPC_DONE) {
            forget(call);
            return;
        }
    }

    if (rc == LLM_IPC_AGAIN) {
        llm_client_wait_for_room(client, call, unsent_bytes(call));
    } else if (rc != LLM_IPC_DONE) {
        llm_client_drop(client, client->ipc.error != NULL ? client->ipc.error : "cannot send");
    }
}

void llm_call_add_credit(struct llm_call *call, uint32_t bytes)
{
    if (call->submit.head.credit != 0) {
        call->credit += bytes;
        call->paused_ns = call->paused_ns != 0 ? llm_now_ns() : 0; /* it takes something */
        llm_call_flush(call);
    }
}
