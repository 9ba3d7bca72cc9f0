#include "engine/serve/client.h"

#include "engine/base/clock.h"
#include "engine/base/log.h"
#include "engine/serve/calls.h"
#include "engine/serve/engine.h"
#include "engine/serve/purge.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_CLIENTS 512
#define HANDSHAKE_NS (10 * LLM_NS_PER_S)
#define RECORDS_A_TURN 256
#define MAX_UNSENT (64u << 20)
#define KEEP_BUFFER (64u << 10) /* a larger one was for one long record */
#define KEY_ID sizeof((struct llm_ipc_revoke){0}.key_id)

static void work(struct llm_client *c);

void llm_client_drop(struct llm_client *c, const char *why)
{
    if (c->dropped) {
        return;
    }
    llm_log(LLM_LOG_WARN, "session dropped: %s", why);
    c->dropped = true;
}

/* Frees a dropped client; its calls go on without it until they are done. */
static void free_client(struct llm_client *c)
{
    struct llm_engine *e = c->engine;

    for (uint32_t i = 0; c->n_calls > 0 && i < c->ipc.slots; i++) {
        if (c->slots[i] != NULL) {
            llm_call_orphan(c->slots[i]);
        }
    }

    llm_purge_orphan(c);

    llm_loop_unwatch(&e->loop, &c->on_sock);
    llm_loop_unwatch(&e->loop, &c->on_event);
    llm_loop_stop_timer(&e->loop, &c->handshake);
    llm_ipc_close(&c->ipc);
    llm_ipc_buffer_free(&c->buffer);
    close(c->sock);
    free(c->slots);

    *(c->prev != NULL ? &c->prev->next : &e->clients) = c->next;
    if (c->next != NULL) {
        c->next->prev = c->prev;
    }
    e->n_clients--;
    free(c);
}

/* --- handshake --- */

static void on_event(struct llm_watch *w)
{
    work(LLM_HOLDER(w, struct llm_client, on_event));
}

static void shake_hands(struct llm_client *c)
{
    const struct llm_ipc_options options = {
        .arena_size = LLM_IPC_DEFAULT_E_ARENA,
        .build_id = LLM_BUILD_ID,
    };
    struct llm_engine *e = c->engine;
    int rc = llm_ipc_engine_accept(&c->ipc, c->sock, &options, e->state.memfd);

    if (rc == LLM_IPC_AGAIN) {
        return;
    }
    llm_loop_stop_timer(&e->loop, &c->handshake);
    if (rc == LLM_IPC_GONE) {
        c->dropped = true; /* somebody only looked whether we are there */
        return;
    }
    if (rc != LLM_IPC_DONE) {
        llm_client_drop(c, c->ipc.error != NULL ? c->ipc.error : "no memory for another session");
        return;
    }

    c->slots = calloc(c->ipc.slots, sizeof(*c->slots));
    c->on_event = (struct llm_watch){.fd = c->ipc.own_event, .ready = on_event};
    if (c->slots == NULL || llm_loop_watch(&e->loop, &c->on_event) != LLM_OK) {
        llm_client_drop(c, "no memory for another session");
        return;
    }
    llm_log(LLM_LOG_INFO, "session opened by %s", c->ipc.peer_build_id);
    work(c);
}

static void on_handshake_timeout(struct llm_timer *t)
{
    llm_client_drop(LLM_HOLDER(t, struct llm_client, handshake), "no hello in time");
}

/* Before the handshake: HELLO. After it nothing comes but the end. */
static void on_sock(struct llm_watch *w)
{
    struct llm_client *c = LLM_HOLDER(w, struct llm_client, on_sock);
    ssize_t n;
    char byte;

    if (c->dropped) {
        return;
    }
    if (c->slots == NULL) {
        shake_hands(c);
        return;
    }
    n = recv(c->sock, &byte, sizeof(byte), MSG_DONTWAIT);
    if (n > 0) {
        llm_client_drop(c, "data after the handshake");
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        llm_log(LLM_LOG_INFO, "session closed by %s", c->ipc.peer_build_id);
        c->dropped = true;
    }
}

static void log_peer(int sock)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);

    if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0) {
        llm_log(LLM_LOG_INFO, "connection from process %d of user %u", (int) peer.pid, peer.uid);
    }
}

void llm_client_accept(struct llm_engine *e, int sock)
{
    struct llm_client *c;

    log_peer(sock);
    if (e->n_clients == MAX_CLIENTS) {
        llm_log(LLM_LOG_WARN, "connection refused: there are %u sessions", e->n_clients);
        llm_ipc_reject(sock, LLM_IPC_REJECT_FULL, "too many sessions");
        close(sock);
        return;
    }

    c = calloc(1, sizeof(*c));
    if (c == NULL) {
        llm_log(LLM_LOG_WARN, "connection refused: out of memory");
        close(sock);
        return;
    }
    c->engine = e;
    c->sock = sock;
    c->last_waiting = &c->first_waiting;
    c->on_sock = (struct llm_watch){.fd = sock, .ready = on_sock};
    c->on_event.fd = -1;
    c->handshake.fire = on_handshake_timeout;
    c->next = e->clients;
    if (c->next != NULL) {
        c->next->prev = c;
    }
    e->clients = c;
    e->n_clients++;

    if (llm_loop_watch(&e->loop, &c->on_sock) != LLM_OK ||
        llm_loop_set_timer(&e->loop, &c->handshake, llm_now_ns() + HANDSHAKE_NS) != LLM_OK) {
        llm_client_drop(c, "no memory for another session");
    }
}

/* --- calls that wait for room in the ring --- */

void llm_client_wait_for_room(struct llm_client *c, struct llm_call *call, size_t unsent)
{
    if (!call->waits_for_room) {
        call->waits_for_room = true;
        call->next_waiting = NULL;
        *c->last_waiting = call;
        c->last_waiting = &call->next_waiting;
    }
    c->unsent += unsent - call->unsent;
    call->unsent = unsent;
    if (c->unsent > MAX_UNSENT) {
        llm_client_drop(c, "the worker does not take what it is sent");
    }
}

static void flush_waiting(struct llm_client *c)
{
    struct llm_call *call = c->first_waiting, *next;

    c->first_waiting = NULL;
    c->last_waiting = &c->first_waiting;
    c->unsent = 0;

    for (; call != NULL; call = next) {
        next = call->next_waiting;
        call->waits_for_room = false;
        call->unsent = 0;
        llm_call_flush(call);
    }
}

/* --- records --- */

static int compare_key_ids(const void *a, const void *b)
{
    return memcmp(a, b, KEY_ID);
}

/* Ends the calls of n keys, which are in order. */
static void revoke_keys(struct llm_engine *e, const uint8_t (*key_ids)[KEY_ID], size_t n)
{
    struct llm_call *call, *next;

    for (call = e->calls; call != NULL; call = next) {
        next = call->next;
        if (bsearch(call->submit.head.key_id, key_ids, n, KEY_ID, compare_key_ids) != NULL) {
            llm_call_end(call, LLM_IPC_REVOKED);
        }
    }
}

/* Keeps it until what other sessions have submitted before is read, too. */
static void note_revoked(struct llm_engine *e, const uint8_t key_id[KEY_ID])
{
    static const uint8_t none[KEY_ID];

    if (memcmp(key_id, none, KEY_ID) == 0) {
        return; /* that is every request without a key */
    }
    e->revoked.failed = false;
    llm_buf_append(&e->revoked, key_id, KEY_ID);
    if (e->revoked.failed) { /* no memory: those that are known, then */
        revoke_keys(e, (const uint8_t(*)[KEY_ID]) key_id, 1);
    }
}

/* The call that a record means; NULL when it is over: the record came too late. */
static struct llm_call *find_call(struct llm_client *c, const struct llm_ipc_record *r)
{
    struct llm_call *call = c->slots[r->slot];

    return call != NULL && call->generation == r->generation ? call : NULL;
}

/* NULL, or what is wrong with the record. */
static const char *take_record(struct llm_client *c, const struct llm_ipc_record *r)
{
    struct llm_call *call = find_call(c, r);
    struct llm_ipc_release release;
    struct llm_ipc_credit credit;
    struct llm_ipc_revoke revoked;
    const char *why = NULL;

    if ((r->type == LLM_IPC_PURGE) != (c->ipc.role == LLM_IPC_ROLE_CONTROL)) {
        return "record that is not for this session's role";
    }

    switch (r->type) {
    case LLM_IPC_SUBMIT:
        llm_call_new(c, r, &why);
        return why;

    case LLM_IPC_RELEASE:
        if (llm_ipc_release_read(r, &release) != LLM_IPC_DONE) {
            return "malformed RELEASE";
        }
        if (call != NULL) {
            llm_call_release(call, release.max_tokens);
        }
        return NULL;

    case LLM_IPC_CANCEL:
        if (call != NULL) {
            llm_call_end(call, LLM_IPC_CANCELLED);
        }
        return NULL;

    case LLM_IPC_REVOKE:
        if (llm_ipc_revoke_read(r, &revoked) != LLM_IPC_DONE) {
            return "malformed REVOKE";
        }
        note_revoked(c->engine, revoked.key_id);
        return NULL;

    case LLM_IPC_CREDIT:
        if (llm_ipc_credit_read(r, &credit) != LLM_IPC_DONE) {
            return "malformed CREDIT";
        }
        if (call != NULL) {
            llm_call_add_credit(call, credit.bytes);
        }
        return NULL;

    case LLM_IPC_PURGE:
        return llm_purge_begin(c, r);

    default:
        return "record of unknown type";
    }
}

/* Takes so many records at most. */
static void take(struct llm_client *c, uint32_t limit)
{
    struct llm_ipc_record r;

    llm_ipc_awake(&c->ipc);
    c->awake = true;
    c->more = true; /* unless the ring is found empty */
    flush_waiting(c);

    for (uint32_t n = 0; n < limit && !c->dropped; n++) {
        const char *why;
        int rc = llm_ipc_recv(&c->ipc, &r, &c->buffer);

        if (rc == LLM_IPC_AGAIN) {
            c->more = false;
            return;
        }
        why = rc == LLM_IPC_DONE     ? take_record(c, &r)
              : rc == LLM_IPC_BROKEN ? c->ipc.error
                                     : "no memory for its records";
        if (why != NULL) {
            llm_client_drop(c, why);
        }
        if (c->buffer.size > KEEP_BUFFER) {
            llm_ipc_buffer_free(&c->buffer);
        }
    }
}

static void work(struct llm_client *c)
{
    take(c, RECORDS_A_TURN);
}

/* A worker tells of a revoked key after all others have ceased to submit for it; but what they had
 * submitted by then may still lie in their rings, and must not run. What is revoked while these are
 * read has its turn later. */
static void apply_revoked(struct llm_engine *e)
{
    size_t len = e->revoked.len;

    if (len == 0) {
        return;
    }
    for (struct llm_client *c = e->clients; c != NULL; c = c->next) {
        if (c->slots != NULL && !c->dropped) {
            take(c, c->ipc.peer.entries);
        }
    }
    qsort(e->revoked.data, len / KEY_ID, KEY_ID, compare_key_ids);
    revoke_keys(e, (const uint8_t(*)[KEY_ID]) e->revoked.data, len / KEY_ID);
    llm_buf_consume(&e->revoked, len);
}

bool llm_clients_settle(struct llm_engine *e)
{
    struct llm_client *c, *next;
    bool busy;

    /* all of it before anything is published: a record of one session (REVOKE) can make answers in
     * any other */
    for (c = e->clients; c != NULL; c = c->next) {
        if (c->more && !c->awake && !c->dropped) {
            work(c);
        }
    }
    apply_revoked(e);
    busy = e->revoked.len > 0;

    for (c = e->clients; c != NULL; c = next) {
        next = c->next;
        if (c->dropped) {
            free_client(c);
            continue;
        }
        if (c->slots == NULL) {
            continue;
        }
        if (!c->awake) {
            llm_ipc_flush(&c->ipc);
            continue;
        }
        if (c->more) {
            llm_ipc_flush(&c->ipc);
        } else {
            c->more = !llm_ipc_sleep(&c->ipc);
        }
        c->awake = false;
        busy = busy || c->more;
    }
    return busy;
}
