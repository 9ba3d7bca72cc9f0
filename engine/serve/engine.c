#include "engine/serve/engine.h"

#include "engine/base/clock.h"
#include "engine/base/log.h"
#include "engine/base/memory.h"
#include "engine/serve/calls.h"
#include "engine/serve/notify.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* How long a drain may take before what still runs is cut (less than the unit's TimeoutStopSec, so
 * that streams are told), and how long what was cut may take. */
#define DRAIN_NS (100 * LLM_NS_PER_S)
#define CUT_NS (2 * LLM_NS_PER_S)

/* After the last FINISHED, so that workers read it before they see the end of the session. */
#define LINGER_NS (100 * LLM_NS_PER_MS)

#define ACCEPT_AGAIN_NS LLM_NS_PER_S

/* --- the end --- */

static void on_linger(struct llm_timer *t)
{
    LLM_HOLDER(t, struct llm_engine, linger)->stop = true;
}

static void stop_in(struct llm_engine *e, uint64_t ns)
{
    if (llm_loop_set_timer(&e->loop, &e->linger, llm_now_ns() + ns) != LLM_OK) {
        e->stop = true;
    }
}

static void end_all(struct llm_engine *e, enum llm_ipc_status status, bool started_too)
{
    struct llm_call *call, *next;

    for (call = e->calls; call != NULL; call = next) {
        next = call->next;
        if (started_too || call->started_ns == 0) {
            llm_call_end(call, status);
        }
    }
}

static void cut(struct llm_engine *e)
{
    llm_log(LLM_LOG_NOTICE, "cutting %u requests", e->n_calls);
    end_all(e, LLM_IPC_DRAINING, true);
    stop_in(e, CUT_NS);
}

static void on_drain_timeout(struct llm_timer *t)
{
    cut(LLM_HOLDER(t, struct llm_engine, drain));
}

/* SIGTERM, SIGINT: what runs may end, what waits is sent away; the second time all is cut. */
static void on_signal(struct llm_watch *w)
{
    struct llm_engine *e = LLM_HOLDER(w, struct llm_engine, on_signal);
    struct signalfd_siginfo info;

    if (read(w->fd, &info, sizeof(info)) != (ssize_t) sizeof(info)) {
        return;
    }

    switch (e->phase) {
    case LLM_ENGINE_LOADING:
        e->stop = true;
        break;

    case LLM_ENGINE_READY:
        llm_log(LLM_LOG_NOTICE, "draining: %u requests run, %u wait", e->n_running,
                e->gate.requests);
        llm_notify("STOPPING=1\nSTATUS=Draining");
        e->phase = LLM_ENGINE_DRAINING;
        llm_state_raise(&e->state, LLM_IPC_STATE_DRAINING);
        llm_loop_unwatch(&e->loop, &e->on_connection);
        llm_listener_close(&e->listener);
        end_all(e, LLM_IPC_DRAINING, false);
        if (llm_loop_set_timer(&e->loop, &e->drain, llm_now_ns() + DRAIN_NS) != LLM_OK) {
            cut(e);
        }
        break;

    case LLM_ENGINE_DRAINING:
        cut(e);
        break;

    case LLM_ENGINE_FAILED:
        break;
    }
}

/* The model thread is gone: nothing that it had comes back. */
static void fail(struct llm_engine *e)
{
    struct llm_call *call, *next;

    llm_log(LLM_LOG_ERROR, "%s: telling %u requests and ending", e->model.error.text, e->n_calls);
    llm_notify("STATUS=Failed");
    e->phase = LLM_ENGINE_FAILED;
    llm_model_thread_bury(&e->model);
    llm_purges_end(e);
    llm_state_raise(&e->state, LLM_IPC_STATE_FAILED);

    for (call = e->calls; call != NULL; call = next) {
        bool scheduled = call->phase == LLM_CALL_SCHEDULED;

        next = call->next;
        llm_call_end(call, LLM_IPC_FAILED);
        if (scheduled) {
            llm_call_retired(call);
        }
    }
    stop_in(e, CUT_NS);
}

/* --- messages and connections --- */

static void on_loaded(struct llm_engine *e)
{
    const struct llm_served *s = &e->model.served;
    const struct llm_backend_info *info;
    struct llm_error err;

    e->start_code = e->model.error.code;
    if (e->start_code != LLM_OK) {
        llm_log(LLM_LOG_ERROR, "cannot load the model: %s", e->model.error.text);
        e->stop = true;
        return;
    }
    e->start_code = llm_tokenizers_start(&e->tokenizers, s, &e->inbox, &err);
    if (e->start_code != LLM_OK) {
        llm_log(LLM_LOG_ERROR, "%s", err.text);
        e->stop = true;
        return;
    }

    info = s->ops->info(s->backend);
    e->load.free_pages = e->load.total_pages = info->n_pages;
    e->phase = LLM_ENGINE_READY;
    llm_state_ready(&e->state, s);
    llm_log(LLM_LOG_NOTICE, "serving %s on %s (%s): chat format %s, context %u, %u latent pages",
            e->state.shared->names[0], info->name, info->device,
            llm_chat_format_name(s->chat_format), s->max_context, info->n_pages);
    llm_notify("READY=1\nSTATUS=Serving");
}

static void on_mail(struct llm_watch *w)
{
    struct llm_engine *e = LLM_HOLDER(w, struct llm_engine, on_mail);
    struct llm_message *msg = llm_mailbox_take(&e->inbox), *next;

    for (; msg != NULL; msg = next) {
        next = msg->next;
        switch (msg->kind) {
        case LLM_MESSAGE_LOADED:
            on_loaded(e);
            break;
        case LLM_MESSAGE_PREPARED:
            llm_call_prepared(LLM_HOLDER(msg, struct llm_call, to_control));
            break;
        case LLM_MESSAGE_EVENTS:
            llm_calls_take_events(e, LLM_HOLDER(msg, struct llm_events, message));
            free(LLM_HOLDER(msg, struct llm_events, message));
            break;
        case LLM_MESSAGE_RETIRED:
            llm_call_retired(LLM_HOLDER(msg, struct llm_call, to_control));
            break;
        case LLM_MESSAGE_PURGED:
            llm_purge_done(e, LLM_HOLDER(msg, struct llm_purge, message));
            break;
        case LLM_MESSAGE_BROKEN:
            fail(e);
            break;
        case LLM_MESSAGE_CALL:
        case LLM_MESSAGE_PURGE:
        case LLM_MESSAGE_QUIT:
            break; /* never for this thread */
        }
    }
}

static void on_connection(struct llm_watch *w)
{
    struct llm_engine *e = LLM_HOLDER(w, struct llm_engine, on_connection);
    int sock = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (sock >= 0) {
        llm_client_accept(e, sock);
    } else if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) {
        /* no descriptors or no memory: the connection stays, so look away for a while */
        llm_log(LLM_LOG_ERROR, "accept: %s", strerror(errno));
        llm_loop_unwatch(&e->loop, w);
        llm_loop_set_timer(&e->loop, &e->accept_again, llm_now_ns() + ACCEPT_AGAIN_NS);
    }
}

static void on_accept_again(struct llm_timer *t)
{
    struct llm_engine *e = LLM_HOLDER(t, struct llm_engine, accept_again);

    e->on_connection.fd = e->listener.fd;
    if (e->listener.fd >= 0 && llm_loop_watch(&e->loop, &e->on_connection) != LLM_OK) {
        llm_loop_set_timer(&e->loop, t, llm_now_ns() + ACCEPT_AGAIN_NS);
    }
}

/* Feeds the service manager's watchdog while the model thread makes progress. */
static void on_watchdog(struct llm_timer *t)
{
    struct llm_engine *e = LLM_HOLDER(t, struct llm_engine, watchdog);
    uint64_t now = llm_now_ns();

    if (now - llm_state_last_beat(&e->state) < e->watchdog_ns) {
        llm_notify("WATCHDOG=1");
    }
    if (llm_loop_set_timer(&e->loop, t, now + e->watchdog_ns / 3) != LLM_OK) {
        llm_log(LLM_LOG_WARN, "no memory for the watchdog's timer");
    }
}

/* --- the process --- */

static void settle_process(void)
{
    struct rlimit files;

    llm_memory_no_core();
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max; /* a session has three */
        setrlimit(RLIMIT_NOFILE, &files);
    }
    signal(SIGPIPE, SIG_IGN);
}

/* Before any thread is started, so that all have the signals blocked. */
static int open_signals(struct llm_error *err)
{
    sigset_t set;
    int fd;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    return fd >= 0 ? fd : llm_fail(err, LLM_EIO, "signalfd: %s", strerror(errno));
}

static int watch(struct llm_engine *e, struct llm_watch *w, int fd,
                 void (*ready)(struct llm_watch *), struct llm_error *err)
{
    *w = (struct llm_watch){.fd = fd, .ready = ready};
    return llm_loop_watch(&e->loop, w) == LLM_OK
               ? LLM_OK
               : llm_fail(err, LLM_EIO, "epoll_ctl: %s", strerror(errno));
}

static int open_engine(struct llm_engine *e, struct llm_error *err)
{
    int signals, rc;

    signals = open_signals(err);
    if (signals < 0) {
        return signals;
    }
    rc = llm_loop_init(&e->loop, err);
    if (rc == LLM_OK) {
        rc = watch(e, &e->on_signal, signals, on_signal, err);
    }
    if (rc == LLM_OK && llm_mailbox_init(&e->inbox) != LLM_OK) {
        rc = llm_fail(err, LLM_EIO, "eventfd: %s", strerror(errno));
    }
    if (rc == LLM_OK) {
        rc = watch(e, &e->on_mail, e->inbox.event, on_mail, err);
    }
    if (rc == LLM_OK) {
        rc = llm_state_init(&e->state, e->settings, err);
    }
    if (rc == LLM_OK) {
        rc = llm_listener_open(&e->listener, e->settings->listen, e->settings->socket_group, err);
    }
    if (rc == LLM_OK) {
        rc = watch(e, &e->on_connection, e->listener.fd, on_connection, err);
    }
    if (rc == LLM_OK) {
        rc = llm_model_thread_start(&e->model, e->settings, &e->state, &e->inbox, err);
    }
    return rc;
}

static void close_engine(struct llm_engine *e)
{
    struct llm_message *msg, *next;

    llm_listener_close(&e->listener);
    llm_tokenizers_stop(&e->tokenizers);
    llm_model_thread_stop(&e->model);

    for (msg = llm_mailbox_take(&e->inbox); msg != NULL; msg = next) {
        next = msg->next;
        if (msg->kind == LLM_MESSAGE_EVENTS) {
            free(LLM_HOLDER(msg, struct llm_events, message));
        }
    }
    while (e->calls != NULL) {
        llm_call_free(e->calls);
    }
    llm_purges_end(e);
    for (struct llm_client *c = e->clients; c != NULL; c = c->next) {
        c->dropped = true;
    }
    llm_clients_settle(e);

    llm_buf_free(&e->revoked);
    llm_mailbox_free(&e->inbox);
    llm_state_free(&e->state);
    if (e->on_signal.fd >= 0) {
        close(e->on_signal.fd);
    }
    llm_loop_free(&e->loop);
}

static int loop(struct llm_engine *e, struct llm_error *err)
{
    bool busy = false;

    while (!e->stop) {
        int rc = llm_loop_turn(&e->loop, busy, err);

        if (rc != LLM_OK) {
            return rc;
        }
        busy = llm_clients_settle(e);
        llm_state_set_load(&e->state, &(struct llm_state_load){
                                          .queued_requests = e->gate.sequences,
                                          .running_requests = e->n_running,
                                          .queued_tokens = e->gate.tokens,
                                          .free_pages = e->load.free_pages,
                                          .total_pages = e->load.total_pages,
                                          .prefill_rate = e->load.prefill_rate,
                                          .decode_rate = e->load.decode_rate,
                                          .sessions = e->n_clients,
                                      });

        if ((e->phase == LLM_ENGINE_DRAINING || e->phase == LLM_ENGINE_FAILED) &&
            e->n_calls == 0 && !e->emptied) {
            e->emptied = true;
            stop_in(e, LINGER_NS);
        }
    }
    return LLM_OK;
}

int llm_engine_run(const struct llm_settings *settings)
{
    struct llm_engine e = {
        .settings = settings,
        .gate = {
            .all = {settings->max_queue_requests, settings->max_queue_tokens},
            .tenant = {settings->max_tenant_queue_requests, settings->max_tenant_queue_tokens},
        },
        .loop.epoll = -1,
        .listener.fd = -1,
        .inbox.event = -1,
        .state.memfd = -1,
        .on_signal.fd = -1,
        .accept_again.fire = on_accept_again,
        .linger.fire = on_linger,
        .drain.fire = on_drain_timeout,
        .watchdog.fire = on_watchdog,
        .watchdog_ns = llm_notify_watchdog_ns(),
    };
    struct llm_error err;
    int rc;

    settle_process();
    rc = open_engine(&e, &err);
    if (rc == LLM_OK) {
        llm_log(LLM_LOG_NOTICE, "listening on %s, loading %s", settings->listen, settings->model);
        if (e.watchdog_ns != 0) {
            on_watchdog(&e.watchdog);
        }
        rc = loop(&e, &err);
    }
    if (rc != LLM_OK) {
        llm_log(LLM_LOG_ERROR, "%s", err.text);
    } else if (e.start_code != LLM_OK) {
        rc = e.start_code;
    } else if (e.phase == LLM_ENGINE_FAILED) {
        rc = LLM_EINTERNAL;
    } else if (e.phase == LLM_ENGINE_DRAINING) {
        llm_log(LLM_LOG_NOTICE, "drained");
    } else {
        /* told to stop while it loads, which cannot be interrupted and need not be waited for */
        llm_listener_close(&e.listener);
        _exit(0);
    }

    close_engine(&e);
    return rc;
}
