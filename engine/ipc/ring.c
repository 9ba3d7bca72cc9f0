/* Rings, arenas and wake-ups of a session.
 *
 * No wake-up is lost. A side that goes to sleep stores `sleeping` and then loads the peer's tail;
 * a side that publishes stores its tail and then loads the peer's `sleeping`. All four accesses
 * are sequentially consistent, so they have one order that both sides agree on, and whichever
 * store comes second in it is followed by a load that sees the other's store: either the sleeper
 * sees the record and stays awake, or the publisher sees the sleeper and writes its event. The
 * event stays readable until the sleeper reads it. `starved` and the heads are the same pair with
 * the roles exchanged. `starved` speaks for every record that found no room, so nothing but
 * llm_ipc_awake takes it back, after which the caller tries all of them again. llm_ipc_awake takes
 * both words back before the caller looks at the rings, so a word that is seen late costs a
 * needless wake-up, never a missing one. */

#include "engine/ipc/region.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define ARENA_UNIT 64u

/* An honest peer leaves one or two: more are left for the next turn. */
#define MAX_EVENTS_A_TURN 16

static uint32_t load32(const uint32_t *p)
{
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

static uint64_t load64(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

static void store32(uint32_t *p, uint32_t v)
{
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);
}

static void store64(uint64_t *p, uint64_t v)
{
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);
}

/* Copies out of the peer's memory. The fence keeps the compiler from looking there again where
 * the copy is meant: the peer may have changed it. */
static void fetch(void *dst, const void *src, size_t len)
{
    memcpy(dst, src, len);
    atomic_signal_fence(memory_order_seq_cst);
}

static int fail(struct llm_ipc_session *s, const char *error)
{
    s->error = error;
    return LLM_IPC_BROKEN;
}

static uint64_t round_up(uint64_t bytes)
{
    return (bytes + ARENA_UNIT - 1) & ~(uint64_t) (ARENA_UNIT - 1);
}

static bool has_room(const struct llm_ipc_session *s, uint32_t reserve, uint64_t bytes)
{
    return s->own.entries - (s->tail - s->peer_head) > reserve
           && s->own.arena_size - (s->arena_tail - s->peer_arena_head) >= bytes;
}

/* Learns how far the peer has consumed. */
static int read_heads(struct llm_ipc_session *s)
{
    const struct llm_ipc_control *c = llm_ipc_region_control(&s->peer);
    uint32_t head = load32(&c->head);
    uint64_t arena_head = load64(&c->arena_head);

    /* between the last good value and what was sent: neither back nor ahead */
    if (head - s->peer_head > s->tail - s->peer_head) {
        return fail(s, "ring head out of range");
    }
    if (arena_head - s->peer_arena_head > s->arena_tail - s->peer_arena_head) {
        return fail(s, "arena head out of range");
    }

    s->peer_head = head;
    s->peer_arena_head = arena_head;
    return LLM_IPC_DONE;
}

/* Learns what the peer has published. Its heads are read along: a peer that lies about them should
 * not get away with it until this side's ring is full. */
static int read_tail(struct llm_ipc_session *s)
{
    uint32_t tail = load32(&llm_ipc_region_control(&s->peer)->tail);

    /* not back either: everything up to the last good value has been taken */
    if (tail - s->head > s->peer.entries) {
        return fail(s, "ring tail out of range");
    }
    s->peer_tail = tail;
    return read_heads(s);
}

/* LLM_IPC_DONE when `bytes` of the arena and one descriptor beside `reserve` are free. Else
 * LLM_IPC_AGAIN, and the peer knows that this side waits. */
static int wait_room(struct llm_ipc_session *s, uint32_t reserve, uint64_t bytes)
{
    struct llm_ipc_control *own = llm_ipc_region_control(&s->own);
    int rc;

    if (has_room(s, reserve, bytes)) {
        return LLM_IPC_DONE;
    }

    rc = read_heads(s);
    if (rc != LLM_IPC_DONE || has_room(s, reserve, bytes)) {
        return rc;
    }

    store32(&own->starved, 1);

    rc = read_heads(s);
    if (rc != LLM_IPC_DONE) {
        return rc;
    }
    /* `starved` stays even where there is room now: an earlier record may have been refused */
    return has_room(s, reserve, bytes) ? LLM_IPC_DONE : LLM_IPC_AGAIN;
}

int llm_ipc_send(struct llm_ipc_session *s, uint16_t type, uint32_t slot, uint32_t generation,
                 const struct llm_ipc_iovec *parts, unsigned n_parts)
{
    struct llm_ipc_desc desc = {.type = type, .slot = slot, .generation = generation};
    uint64_t length = 0, bytes = 0, pos = s->arena_tail;
    uint32_t reserve = 0;
    uint8_t *to;
    int rc;

    for (unsigned i = 0; i < n_parts; i++) {
        if (parts[i].len > s->own.arena_size / 2 - length) {
            return LLM_IPC_TOO_BIG;
        }
        length += parts[i].len;
    }

    if (length > LLM_IPC_INLINE) {
        uint64_t left = s->own.arena_size - (pos & (s->own.arena_size - 1));

        if (left < length) { /* a payload lies in one piece: leave the end of the arena out */
            pos += left;
        }
        bytes = pos - s->arena_tail + round_up(length);
    }

    if (s->side == LLM_IPC_SIDE_WORKER && type != LLM_IPC_CANCEL && type != LLM_IPC_REVOKE) {
        reserve = s->slots;
    }

    rc = wait_room(s, reserve, bytes);
    if (rc != LLM_IPC_DONE) {
        return rc;
    }

    to = desc.data;
    if (length > LLM_IPC_INLINE) {
        desc.pos = pos;
        to = llm_ipc_region_arena(&s->own, pos);
    }
    for (unsigned i = 0; i < n_parts; i++) {
        if (parts[i].len > 0) {
            memcpy(to, parts[i].data, parts[i].len);
            to += parts[i].len;
        }
    }

    desc.length = (uint32_t) length;
    memcpy(llm_ipc_region_desc(&s->own, s->tail), &desc, sizeof(desc));

    s->tail++;
    s->arena_tail += bytes;
    s->sent = true;
    return LLM_IPC_DONE;
}

static bool type_ok(enum llm_ipc_side side, uint16_t type)
{
    return side == LLM_IPC_SIDE_ENGINE ? type >= LLM_IPC_SUBMIT && type <= LLM_IPC_PURGE
                                       : type >= LLM_IPC_COUNTED && type <= LLM_IPC_PURGED;
}

/* Where a payload may lie: in one piece, aligned, in what the peer can have filled since the last
 * one. The distances are computed modulo 2^64, so that no sum can overflow. */
static bool payload_ok(const struct llm_ipc_session *s, uint64_t pos, uint32_t length)
{
    uint64_t size = s->peer.arena_size;
    uint64_t ahead = pos - s->arena_head;

    return length <= size / 2 && ahead <= size - length && pos % ARENA_UNIT == 0
           && (pos & (size - 1)) <= size - length;
}

static bool reserve_buffer(struct llm_ipc_buffer *b, size_t size)
{
    uint8_t *p;

    if (b->size >= size) {
        return true;
    }

    p = malloc(size);
    if (p == NULL) {
        return false;
    }

    free(b->data);
    b->data = p;
    b->size = size;
    return true;
}

void llm_ipc_buffer_free(struct llm_ipc_buffer *b)
{
    free(b->data);
    *b = (struct llm_ipc_buffer){0};
}

int llm_ipc_recv(struct llm_ipc_session *s, struct llm_ipc_record *r, struct llm_ipc_buffer *b)
{
    struct llm_ipc_desc desc;
    int rc;

    if (s->head == s->peer_tail) {
        rc = read_tail(s);
        if (rc != LLM_IPC_DONE) {
            return rc;
        }
        if (s->head == s->peer_tail) {
            return LLM_IPC_AGAIN;
        }
    }

    fetch(&desc, llm_ipc_region_desc(&s->peer, s->head), sizeof(desc));

    if (!type_ok(s->side, desc.type) || desc.reserved != 0) {
        return fail(s, "record of unknown type");
    }
    if (desc.slot >= s->slots) {
        return fail(s, "record with a slot out of range");
    }

    if (desc.length <= LLM_IPC_INLINE) {
        if (desc.pos != 0) {
            return fail(s, "short record with a position");
        }
        memcpy(r->inline_data, desc.data, sizeof(desc.data));
        r->data = r->inline_data;

    } else {
        if (!payload_ok(s, desc.pos, desc.length)) {
            return fail(s, "payload out of range");
        }
        if (!reserve_buffer(b, desc.length)) {
            return LLM_IPC_ERROR;
        }
        fetch(b->data, llm_ipc_region_arena(&s->peer, desc.pos), desc.length);
        r->data = b->data;
        s->arena_head = desc.pos + round_up(desc.length);
    }

    r->type = desc.type;
    r->slot = desc.slot;
    r->generation = desc.generation;
    r->length = desc.length;

    s->head++;
    s->consumed = true;
    return LLM_IPC_DONE;
}

void llm_ipc_flush(struct llm_ipc_session *s)
{
    struct llm_ipc_control *own = llm_ipc_region_control(&s->own);
    const struct llm_ipc_control *peer = llm_ipc_region_control(&s->peer);
    bool wake = false;

    if (s->sent) {
        store32(&own->tail, s->tail);
        wake = load32(&peer->sleeping) != 0;
    }
    if (s->consumed) {
        store64(&own->arena_head, s->arena_head);
        store32(&own->head, s->head);
        wake = wake || load32(&peer->starved) != 0;
    }
    s->sent = false;
    s->consumed = false;

    if (wake) {
        /* when the socket is full the peer has something to read; when it is gone, its loss */
        (void) send(s->peer_event, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
}

bool llm_ipc_sleep(struct llm_ipc_session *s)
{
    struct llm_ipc_control *own = llm_ipc_region_control(&s->own);

    llm_ipc_flush(s);

    store32(&own->sleeping, 1);
    if (load32(&llm_ipc_region_control(&s->peer)->tail) == s->head) {
        return true;
    }

    store32(&own->sleeping, 0);
    return false;
}

void llm_ipc_awake(struct llm_ipc_session *s)
{
    struct llm_ipc_control *own = llm_ipc_region_control(&s->own);
    uint8_t event[8];

    for (int i = 0; i < MAX_EVENTS_A_TURN; i++) {
        if (recv(s->own_event, event, sizeof(event), MSG_DONTWAIT) < 0) {
            break;
        }
    }

    store32(&own->sleeping, 0);
    store32(&own->starved, 0);
}
