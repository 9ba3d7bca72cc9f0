/* The fake engine's sessions and requests, as its files share them. One thread, one epoll. */

#ifndef T_FAKE_FAKE_H
#define T_FAKE_FAKE_H

#include "engine/ipc/filter.h"
#include "engine/ipc/record.h"
#include "t/fake/script.h"

struct fake;

struct session {
    struct llm_ipc_session ipc;
    struct llm_ipc_buffer buffer;
    struct fake *fake;
    int sock;
    bool open;              /* WELCOME was sent */
    bool dropped;           /* closed at the end of this turn */
    struct request **slots; /* by slot, NULL where free */
    struct request *requests;
    struct session *next;
};

enum stage { STAGE_COUNTED, STAGE_RELEASE, STAGE_TOKENS, STAGE_FINISHED, STAGE_HUNG };

struct choice {
    uint32_t sent; /* tokens */
    size_t at;     /* bytes of the answer's text */
    bool begun, ended;
};

struct request {
    struct session *session;
    struct request *prev, *next; /* of the session */
    uint32_t slot, generation;
    struct llm_ipc_submit submit;
    struct script script;
    char *text; /* the answer where it is a text, or NULL */
    size_t text_length;
    char *prompt; /* what ECHO repeats */
    size_t prompt_length;
    enum stage stage;
    uint64_t start, due; /* ns; nothing happens before due */
    uint64_t credit;     /* bytes that may be sent */
    uint64_t first_token;
    uint32_t sent; /* tokens of all choices */
    uint32_t n_choices, turn, ended;
    bool begun; /* its prompt is read */
    bool misbehaved;
    bool cancelled;
    uint32_t status; /* enum llm_ipc_status of FINISHED */
    struct choice choices[];
};

struct counters {
    uint64_t sessions, requests; /* open now */
    uint64_t accepted, refused, broken, gone;
    uint64_t submitted, finished, cancelled, late, revoked, released, credited, invalid;
    uint64_t read, cached, made; /* tokens, as FINISHED said */
};

struct fake {
    int epoll, listener, signals, control;
    int state_memfd;
    struct llm_ipc_state *state;
    struct llm_ipc_filter prefixes;
    struct session *sessions;
    struct counters counters;
    struct llm_ipc_options options;
    char *default_script; /* words before every request's own */
    uint64_t next_due; /* ns: the earliest request->due */
    bool consume;      /* takes records from the workers' rings */
    bool beat;
    enum { ACCEPT_NORMALLY, ACCEPT_SILENT, ACCEPT_CLOSE, ACCEPT_REJECT, ACCEPT_GARBAGE } accept;
    uint32_t reject_code; /* enum llm_ipc_reject_code */
    bool stop;
};

uint64_t fake_now(void); /* CLOCK_MONOTONIC, ns */

/* t/fake/request.c */

/* Begins the request of a SUBMIT record; a breach of the protocol drops the session. */
void request_submit(struct session *s, const struct llm_ipc_record *r);
void request_cancel(struct request *q);
void request_revoke(struct request *q);
void request_release(struct request *q, uint32_t max_tokens);
void request_credit(struct request *q, uint32_t bytes);
/* Does all that is due now and that the rings have room for. */
void request_run(struct request *q, uint64_t now);
void request_free(struct request *q);

/* Records as its own engine would send them: false when the ring is full (try after the next
 * wake-up). */
bool send_token(struct request *q, uint16_t choice, enum llm_ipc_token_kind kind, const char *text,
                size_t len);
bool send_finished(struct request *q);

/* t/fake/dump.c: the SUBMIT record as JSON text, allocated; NULL without memory. */
char *dump_submit(const struct llm_ipc_submit_view *v, size_t *len);

#endif
