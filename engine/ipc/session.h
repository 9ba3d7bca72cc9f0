/* One session as either side sees it: handshake, rings, wake-ups. No nginx types, no engine types.
 *
 * Neither side ever blocks here. Nothing is repaired: a call that returns LLM_IPC_BROKEN means
 * that the peer broke the protocol; the session must be dropped. One thread uses a session. */

#ifndef LLM_IPC_SESSION_H
#define LLM_IPC_SESSION_H

#include "engine/ipc/abi.h"

#include <stdbool.h>

enum llm_ipc_rc {
    LLM_IPC_DONE = 0,
    LLM_IPC_AGAIN = -1,  /* nothing there; no room: try after the next wake-up */
    LLM_IPC_BROKEN = -2, /* protocol error */
    LLM_IPC_ERROR = -3,  /* this side's own failure (memory, descriptors): errno */
    LLM_IPC_TOO_BIG = -4, /* the payload can never fit: more than half the arena */
    LLM_IPC_REFUSED = -5, /* the peer sent REJECT */
    LLM_IPC_GONE = -6,    /* the peer closed the socket */
};

enum llm_ipc_side { LLM_IPC_SIDE_WORKER, LLM_IPC_SIDE_ENGINE };

struct llm_ipc_region { /* a mapping and the checked sizes, in private memory */
    uint8_t *base;
    uint64_t size;
    uint32_t entries;
    uint64_t arena_offset, arena_size;
};

struct llm_ipc_session {
    enum llm_ipc_side side;
    uint16_t version;
    uint64_t features;
    uint32_t role; /* enum llm_ipc_role, of the worker's side */
    uint32_t slots;
    uint8_t id[16];
    char peer_build_id[33]; /* printable ASCII, as is reject_text */
    char reject_text[117];
    const char *error; /* text after LLM_IPC_BROKEN or LLM_IPC_REFUSED, for the log */

    bool open; /* the descriptors below are open or -1 */
    int memfd; /* own region, until sent */
    int own_event; /* readable when the peer wakes this side */
    int own_event_peer_end; /* until sent */
    int peer_event; /* written to wake the peer */

    struct llm_ipc_region own, peer;
    const struct llm_ipc_state *state; /* worker side: the engine's, read-only */
    uint64_t state_size;

    /* own indices; only published in shared memory */
    uint32_t tail, head;
    uint64_t arena_tail, arena_head;
    /* last good values read from the peer */
    uint32_t peer_tail, peer_head;
    uint64_t peer_arena_head;
    bool sent, consumed; /* since the last llm_ipc_flush */
};

struct llm_ipc_options {
    uint32_t slots;        /* worker: LLM_IPC_MIN_SLOTS … LLM_IPC_MAX_SLOTS */
    uint32_t ring_entries; /* power of two; 0: chosen from slots */
    uint64_t arena_size;   /* power of two */
    const char *build_id;
    uint32_t role;         /* worker: enum llm_ipc_role */
};

#define LLM_IPC_DEFAULT_W_ARENA (8u << 20)
#define LLM_IPC_DEFAULT_E_ARENA (4u << 20)

/* A session is zeroed before its first call. When one of the three fails with anything but
 * LLM_IPC_AGAIN, the caller logs s->error (NULL after LLM_IPC_ERROR and LLM_IPC_GONE) and calls
 * llm_ipc_close, which zeroes it again.
 *
 * Worker. Creates region and wake-up and sends HELLO over a connected socket (LLM_IPC_AGAIN: not
 * yet writable, call again). Then, when the socket is readable, llm_ipc_worker_welcome reads
 * WELCOME and maps the engine's region (LLM_IPC_AGAIN: nothing there yet). */
int llm_ipc_worker_hello(struct llm_ipc_session *s, int sock, const struct llm_ipc_options *o);
int llm_ipc_worker_welcome(struct llm_ipc_session *s, int sock);

/* Engine. Reads HELLO from an accepted socket (LLM_IPC_AGAIN: nothing there yet), maps the worker's
 * region, creates its own and sends WELCOME with state_memfd, or REJECT (then LLM_IPC_BROKEN). */
int llm_ipc_engine_accept(struct llm_ipc_session *s, int sock, const struct llm_ipc_options *o,
                          int state_memfd);

/* Engine. Tells a worker why it gets no session (code: enum llm_ipc_reject_code), before closing a
 * socket that was not given to llm_ipc_engine_accept. */
void llm_ipc_reject(int sock, uint32_t code, const char *text);

/* Unmaps and closes everything but the socket. Zeroed or half-made sessions are fine. */
void llm_ipc_close(struct llm_ipc_session *s);

/* The engine's state region: created once, mapped writable here, sealed for everybody else. */
int llm_ipc_state_create(struct llm_ipc_state **state, int *memfd);

/* Worker. A private copy of the engine's state, in which n_names is in range and every name ends.
 * Single words may also be read from s->state, each once. */
void llm_ipc_state_read(const struct llm_ipc_session *s, struct llm_ipc_state *out);

/* Worker. A private copy of entry i of the table of tenants; false: there is no such entry, it is
 * nobody's, or it keeps changing hands. */
bool llm_ipc_state_tenant(const struct llm_ipc_session *s, uint32_t i, struct llm_ipc_tenant *out);

/* --- an established session: accept or welcome said LLM_IPC_DONE --- */

struct llm_ipc_iovec {
    const void *data;
    size_t len;
};

/* Writes one record whose payload is the parts in order; llm_ipc_flush publishes it. LLM_IPC_DONE;
 * LLM_IPC_AGAIN: no room in ring or arena (the peer will wake this side when it made some: after
 * every llm_ipc_awake send again what was refused); LLM_IPC_TOO_BIG; LLM_IPC_BROKEN. CANCEL and
 * REVOKE may use the room that every other type of the worker leaves free (one descriptor a slot),
 * so that a full ring cannot hold them up. */
int llm_ipc_send(struct llm_ipc_session *s, uint16_t type, uint32_t slot, uint32_t generation,
                 const struct llm_ipc_iovec *parts, unsigned n_parts);

/* A record as received: the descriptor is a private copy, the payload was copied out of shared
 * memory into the caller's buffer (grown as needed, reused from call to call). */
struct llm_ipc_record {
    uint16_t type;
    uint32_t slot, generation;
    uint32_t length;
    const uint8_t *data; /* in the descriptor copy or in the buffer; 8-byte aligned */
    _Alignas(8) uint8_t inline_data[LLM_IPC_INLINE];
};

struct llm_ipc_buffer { /* zero-initialised is empty; free with llm_ipc_buffer_free */
    uint8_t *data;
    size_t size;
};

void llm_ipc_buffer_free(struct llm_ipc_buffer *b);

/* Takes the next record: LLM_IPC_DONE, LLM_IPC_AGAIN (ring empty), LLM_IPC_BROKEN, LLM_IPC_ERROR
 * (no memory; the record stays). Checks type against side and slot < slots; what the payload means
 * is for record.h. */
int llm_ipc_recv(struct llm_ipc_session *s, struct llm_ipc_record *r, struct llm_ipc_buffer *b);

/* Publishes what was sent and consumed, and wakes the peer if it sleeps or starves. Call once
 * after a run of sends and receives. */
void llm_ipc_flush(struct llm_ipc_session *s);

/* Before waiting on own_event: flushes, tells the peer, then looks once more. Returns true when it
 * is safe to wait, false when there is work already (a record, or a broken ring). */
bool llm_ipc_sleep(struct llm_ipc_session *s);

/* After own_event became readable (or a spurious wake-up): drains it, takes back the word. */
void llm_ipc_awake(struct llm_ipc_session *s);

#endif
