/* One request of a worker, from SUBMIT to FINISHED.
 *
 * A call goes through its phases once, in order; the thread named there is the only one to touch
 * it then, but for the two atomics, which the control thread may set at any time:
 *
 *   PREPARING   a tokenizer thread      its prompts become token ids
 *   HELD        the control thread      COUNTED was sent, RELEASE has not come
 *   SCHEDULED   the model thread has `request`, the control thread everything else
 *   DONE        the control thread      what is left to send is sent, FINISHED last
 *
 * What ends otherwise than by itself is told at once, in any phase: FINISHED is sent, `client` is
 * NULL and the slot free then, and the call lives on only until its thread lets go of it. The
 * control thread frees it in DONE, when FINISHED is sent or its session is gone. */

#ifndef LLM_SERVE_CALL_H
#define LLM_SERVE_CALL_H

#include "engine/ipc/prefix.h"
#include "engine/ipc/record.h"
#include "engine/sched/gate.h"
#include "engine/sched/request.h"
#include "engine/serve/loop.h"
#include "engine/serve/mailbox.h"
#include "engine/serve/output.h"

struct llm_client;
struct llm_engine;

enum llm_call_phase {
    LLM_CALL_PREPARING,
    LLM_CALL_HELD,
    LLM_CALL_SCHEDULED,
    LLM_CALL_DONE,
};

/* What the control thread wants of the model thread: see llm_model_thread_ask. */
enum llm_call_ask {
    LLM_ASK_RUN = 1 << 0,
    LLM_ASK_CANCEL = 1 << 1,
    LLM_ASK_PACE = 1 << 2,   /* `paused` has changed */
    LLM_ASK_END = 1 << 3,    /* of the choices that are `unwanted` */
    LLM_ASK_POSTED = 1 << 8, /* the call is in the model thread's mailbox */
    LLM_ASK_CLOSED = 1 << 9, /* the model thread wants to hear no more */
};

struct llm_prompt_ids {
    uint32_t *ids;
    uint32_t n;
    struct llm_digest *digests; /* of its full pages; NULL: nobody may find them */
};

/* Why a call gets nothing. */
struct llm_refusal {
    enum llm_ipc_status status; /* LLM_IPC_OK: it gets something */
    uint32_t numbers[4];        /* see enum llm_ipc_status */
    char detail[80];            /* printable ASCII */
};

struct llm_call {
    struct llm_engine *engine;
    struct llm_call *prev, *next; /* among all calls */
    enum llm_call_phase phase;

    /* where it came from */
    struct llm_client *client; /* NULL: FINISHED is sent, or its session is gone */
    uint32_t slot, generation;
    uint8_t *payload;                  /* of SUBMIT, until it is prepared */
    struct llm_ipc_submit_view submit; /* of the payload; the head stays valid without it */

    /* what it becomes: made while PREPARING */
    struct llm_refusal refusal;
    struct llm_prompt_ids *prompts; /* [n_prompts] */
    uint32_t n_prompts;
    uint32_t prompt_tokens; /* of all prompts */
    uint32_t cached_guess;  /* of them, when it was counted */
    bool has_prefix;        /* that others may have too */
    uint8_t prefix[LLM_IPC_PREFIX_SIZE];
    uint32_t *stop_ids, *bias_ids;
    float *bias;
    struct llm_stop_set *stop;
    struct llm_request request;
    struct llm_choice *choices; /* [request.n_sequences], like the next */
    atomic_bool *unwanted;      /* the model thread need not go on with it */

    /* how it goes */
    enum llm_ipc_status status; /* the first thing that ended it */
    struct llm_gate_place place;
    struct llm_timer timer; /* the next deadline */
    uint32_t cached_tokens; /* of its prompts, as far as it has started */
    uint64_t submitted_ns, started_ns, first_token_ns; /* 0: not yet */
    uint64_t paused_ns;     /* 0: it is not paused; else since when, or since the last credit */
    uint64_t credit;        /* bytes of text that may be sent */
    bool counted_due;       /* COUNTED is to be sent */
    bool waits_for_room;    /* in the ring: it is in its client's list then */
    size_t unsent;          /* bytes that wait, as counted in its client */
    struct llm_call *next_waiting;
    bool touched; /* by the events that are being taken */
    struct llm_call *next_touched;

    /* between the threads */
    struct llm_message to_control, to_model;
    atomic_uint asked;     /* enum llm_call_ask */
    atomic_bool paused;    /* its credit is used up */
    atomic_bool abandoned; /* PREPARING: nobody wants the result any more */
    bool retired;          /* the model thread's own: the scheduler has forgotten it */
};

#endif
