#include "engine/serve/model_thread.h"

#include "engine/base/clock.h"
#include "engine/serve/purge.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#define IDLE_BEAT_MS 250
#define NO_MEMORY_PAUSE_MS 10

/* --- what the scheduler tells --- */

static void on_started(void *ctx, struct llm_request *r)
{
    struct llm_model_thread *m = ctx;

    llm_events_add(m->events, LLM_EVENT_STARTED, r);
}

static void on_token(void *ctx, struct llm_sequence *s, const struct llm_token *t)
{
    struct llm_model_thread *m = ctx;

    llm_events_add_token(m->events, s, t);
}

static void on_ended(void *ctx, struct llm_sequence *s, enum llm_end end)
{
    struct llm_model_thread *m = ctx;
    struct llm_event *event = llm_events_add(m->events, LLM_EVENT_ENDED, s->request);

    event->choice = s->choice;
    event->end = end;
}

static void on_retired(void *ctx, struct llm_request *r)
{
    struct llm_model_thread *m = ctx;
    struct llm_call *call = LLM_HOLDER(r, struct llm_call, request);

    call->retired = true;
    call->to_control.kind = LLM_MESSAGE_RETIRED;
    call->to_control.next = NULL;
    *m->last_retired = &call->to_control;
    m->last_retired = &call->to_control.next;
}

/* --- letting go of a call ---
 *
 * The control thread may free a call that it gets back, so the call must not be in our mailbox any
 * more, and must not come into it again. One word decides: whoever asks sets POSTED, and posts only
 * if neither POSTED nor CLOSED was set. Here CLOSED is set: if POSTED was not, the mailbox does not
 * have the call and never will; if it was, the call goes back when it is taken out. */

static void give_back(struct llm_model_thread *m, struct llm_call *call)
{
    if ((atomic_fetch_or(&call->asked, LLM_ASK_CLOSED) & LLM_ASK_POSTED) == 0) {
        llm_mailbox_post(m->control, &call->to_control);
    }
}

void llm_model_thread_ask(struct llm_model_thread *m, struct llm_call *call,
                          enum llm_call_ask what)
{
    unsigned before = atomic_fetch_or(&call->asked, (unsigned) what | LLM_ASK_POSTED);

    if ((before & (LLM_ASK_POSTED | LLM_ASK_CLOSED)) == 0) {
        call->to_model.kind = LLM_MESSAGE_CALL;
        llm_mailbox_post(&m->inbox, &call->to_model);
    }
}

/* --- what the control thread asks for --- */

static void end_unwanted(struct llm_model_thread *m, struct llm_call *call)
{
    for (uint32_t i = 0; i < call->request.n_sequences && !call->retired; i++) {
        if (atomic_load(&call->unwanted[i])) {
            llm_sched_end(m->sched, &call->request.sequences[i]);
        }
    }
}

static void attend(struct llm_model_thread *m, struct llm_call *call)
{
    unsigned asked = atomic_fetch_and(&call->asked, LLM_ASK_CLOSED);

    if ((asked & LLM_ASK_CLOSED) != 0) {
        llm_mailbox_post(m->control, &call->to_control);
        return;
    }

    if ((asked & LLM_ASK_RUN) != 0) {
        m->want_top = m->want_top || call->request.sampling.logprobs;
        llm_sched_submit(m->sched, &call->request);
    }
    if ((asked & LLM_ASK_CANCEL) != 0 && !call->retired) {
        llm_sched_cancel(m->sched, &call->request);
    }
    if ((asked & LLM_ASK_END) != 0 && !call->retired) {
        end_unwanted(m, call);
    }
    if ((asked & LLM_ASK_PACE) != 0 && !call->retired) {
        llm_sched_pause(m->sched, &call->request, atomic_load(&call->paused));
    }
}

static void attend_purge(struct llm_model_thread *m, struct llm_purge *p)
{
    p->n_pages = llm_sched_purge(m->sched, p->owner);
    p->message.kind = LLM_MESSAGE_PURGED;
    llm_mailbox_post(m->control, &p->message);
}

/* False: it is time to quit. */
static bool attend_all(struct llm_model_thread *m)
{
    struct llm_message *msg = llm_mailbox_take(&m->inbox), *next;

    for (; msg != NULL; msg = next) {
        next = msg->next; /* the call may be posted again while we attend to it */
        switch (msg->kind) {
        case LLM_MESSAGE_QUIT:
            return false;
        case LLM_MESSAGE_PURGE:
            attend_purge(m, LLM_HOLDER(msg, struct llm_purge, message));
            break;
        default: /* LLM_MESSAGE_CALL */
            attend(m, LLM_HOLDER(msg, struct llm_call, to_model));
            break;
        }
    }
    return true;
}

/* --- turns --- */

/* Makes room for everything that half a turn can bring, before it, so that nothing can be lost. */
static bool make_room(struct llm_model_thread *m)
{
    struct llm_sched_load load = llm_sched_load(m->sched);
    uint64_t n = (uint64_t) load.running + load.queued;

    m->events = llm_events_new(n < m->served.max_seqs ? (uint32_t) n : m->served.max_seqs,
                               m->want_top);
    return m->events != NULL;
}

static void tell(struct llm_model_thread *m)
{
    struct llm_message *msg, *next;

    if (m->events != NULL) {
        m->events->load = llm_sched_load(m->sched);
        if (m->events->n > 0 || memcmp(&m->events->load, &m->load, sizeof(m->load)) != 0) {
            m->load = m->events->load;
            llm_mailbox_post(m->control, &m->events->message);
        } else {
            free(m->events);
        }
        m->events = NULL;
    }
    for (msg = m->retired; msg != NULL; msg = next) {
        next = msg->next;
        give_back(m, LLM_HOLDER(msg, struct llm_call, to_control));
    }
    m->retired = NULL;
    m->last_retired = &m->retired;
}

/* Half a turn of the scheduler and the news of it. LLM_ENOMEM: nothing was done. */
static int turn_half(struct llm_model_thread *m,
                     int (*half)(struct llm_sched *s, struct llm_error *err))
{
    int rc = make_room(m) ? half(m->sched, &m->error) : LLM_ENOMEM;

    tell(m);
    return rc;
}

static int turns(struct llm_model_thread *m)
{
    while (attend_all(m)) {
        int rc = turn_half(m, llm_sched_begin);

        if (rc == LLM_OK) { /* what has started is known before the step, which may be long */
            rc = turn_half(m, llm_sched_finish);
        }

        llm_state_set_steps(m->state, llm_sched_steps(m->sched));
        llm_tally_tell(&m->tally, llm_sched_cache(m->sched), llm_now_ns(), rc == LLM_EAGAIN);
        if (m->redis != NULL) {
            llm_tally_tell_redis(m->state->shared, m->redis, llm_sched_loads(m->sched));
        }
        if (rc == LLM_EAGAIN) {
            llm_mailbox_wait(&m->inbox, IDLE_BEAT_MS);
        } else if (rc == LLM_ENOMEM) {
            llm_mailbox_wait(&m->inbox, NO_MEMORY_PAUSE_MS);
        } else if (rc != LLM_OK) {
            return rc;
        }
        llm_state_beat(m->state);
    }
    return llm_sched_quiesce(m->sched, &m->error);
}

static void on_progress(void *ctx, uint64_t done, uint64_t total)
{
    struct llm_model_thread *m = ctx;

    llm_state_beat(m->state);
    llm_progress_show(&m->progress, done, total);
}

static int open_redis(struct llm_model_thread *m)
{
    const struct llm_settings *settings = m->settings;
    struct llm_redis_options options = {
        .url = settings->redis,
        .ttl = settings->redis_ttl,
        .tenant_bytes = settings->redis_quota,
        .deadline_ms = settings->redis_deadline_ms,
        .layout = &m->served.ops->info(m->served.backend)->layout,
    };
    int rc;

    memcpy(options.master, m->served.secret, sizeof(options.master));
    rc = llm_redis_open(&options, &m->redis, &m->error);
    OPENSSL_cleanse(options.master, sizeof(options.master));
    return rc;
}

static int load(struct llm_model_thread *m)
{
    const struct llm_served_watch watch = {
        .beat = llm_state_beat,
        .beat_ctx = m->state,
        .progress = on_progress,
        .progress_ctx = m,
    };
    const struct llm_sched_sink sink = {
        .ctx = m,
        .started = on_started,
        .token = on_token,
        .ended = on_ended,
        .retired = on_retired,
    };
    int rc;

    llm_progress_begin(&m->progress, "loading the model");
    rc = llm_served_load(&m->served, m->settings, &watch, &m->error);
    llm_progress_end(&m->progress);
    if (rc == LLM_OK && m->settings->redis != NULL) {
        rc = open_redis(m);
    }
    if (rc == LLM_OK) {
        rc = llm_sched_new(m->served.ops, m->served.backend,
                           &(struct llm_sched_options){
                               .max_batch_tokens = m->served.max_batch_tokens,
                               .max_seqs = m->served.max_seqs,
                               .n_vocab = m->served.n_vocab,
                               .deterministic = m->settings->deterministic,
                               .max_step_ns = m->settings->max_step_ms * LLM_NS_PER_MS,
                               .host_bytes = m->settings->host_latent_memory,
                               .redis = m->redis,
                               .redis_ttl = m->settings->redis_ttl,
                               .load_ns = m->settings->redis_deadline_ms * LLM_NS_PER_MS,
                               .tenant_percent = m->settings->tenant_latent_percent,
                           },
                           &sink, &m->sched, &m->error);
    }
    return rc;
}

static void *run(void *arg)
{
    struct llm_model_thread *m = arg;
    int rc = load(m);

    m->loaded.kind = LLM_MESSAGE_LOADED;
    llm_mailbox_post(m->control, &m->loaded);
    if (rc == LLM_OK) {
        m->tally.state = m->state->shared;
        rc = turns(m);
        llm_tally_free(&m->tally);
        if (rc != LLM_OK) {
            m->broken.kind = LLM_MESSAGE_BROKEN;
            llm_mailbox_post(m->control, &m->broken);
        }
    }
    return NULL;
}

int llm_model_thread_start(struct llm_model_thread *m, const struct llm_settings *settings,
                           struct llm_state *state, struct llm_mailbox *control,
                           struct llm_error *err)
{
    int rc;

    *m = (struct llm_model_thread){.settings = settings, .state = state, .control = control};
    m->last_retired = &m->retired;

    rc = llm_served_open(&m->served, settings, err);
    if (rc != LLM_OK) {
        return rc;
    }
    if (llm_mailbox_init(&m->inbox) != LLM_OK) {
        llm_served_close(&m->served);
        return llm_fail(err, LLM_EIO, "eventfd: %s", strerror(errno));
    }

    rc = pthread_create(&m->thread, NULL, run, m);
    if (rc != 0) {
        llm_mailbox_free(&m->inbox);
        llm_served_close(&m->served);
        return llm_fail(err, LLM_ENOMEM, "cannot start the model thread: %s", strerror(rc));
    }
    m->running = true;
    return LLM_OK;
}

uint32_t llm_model_thread_guess_cached(const struct llm_model_thread *m,
                                       const struct llm_prompt_ids *prompt)
{
    uint32_t n = 0;

    if (prompt->digests != NULL) {
        n = llm_cache_estimate(llm_sched_cache(m->sched), prompt->digests,
                               prompt->n / LLM_PAGE_TOKENS) * LLM_PAGE_TOKENS;
    }
    return n < prompt->n ? n : prompt->n - 1; /* the last token is always run */
}

/* The scheduler outlives its thread, as others look into its cache; and Redis the scheduler, whose
 * copies use its buffers. */
void llm_model_thread_bury(struct llm_model_thread *m)
{
    if (!m->buried) {
        pthread_join(m->thread, NULL);
        llm_sched_free(m->sched);
        llm_redis_close(m->redis);
        m->sched = NULL;
        m->redis = NULL;
        m->buried = true;
    }
}

void llm_model_thread_stop(struct llm_model_thread *m)
{
    if (!m->running) {
        return;
    }
    m->quit.kind = LLM_MESSAGE_QUIT;
    llm_mailbox_post(&m->inbox, &m->quit);
    llm_model_thread_bury(m);
    llm_mailbox_free(&m->inbox);
    llm_served_close(&m->served);
    m->running = false;
}
