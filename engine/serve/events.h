/* What half a turn of the scheduler brought, on its way from the model thread to the control
 * thread. */

#ifndef LLM_SERVE_EVENTS_H
#define LLM_SERVE_EVENTS_H

#include "engine/sched/sched.h"
#include "engine/serve/call.h"
#include "engine/serve/mailbox.h"

enum llm_event_kind { LLM_EVENT_STARTED, LLM_EVENT_TOKEN, LLM_EVENT_ENDED };

struct llm_event {
    struct llm_call *call;
    enum llm_event_kind kind;
    uint32_t cached_tokens; /* of the request, so far */
    uint32_t choice; /* TOKEN, ENDED */
    uint32_t id;     /* TOKEN, and so are the next */
    float logprob;
    uint32_t n_top, first_top; /* in top_ids and top_logprobs */
    enum llm_end end;          /* ENDED */
};

struct llm_events {
    struct llm_message message;
    struct llm_sched_load load; /* after it */
    uint32_t n, cap;
    uint32_t n_top, top_cap;
    struct llm_event *events; /* these lie behind the struct */
    uint32_t *top_ids;
    float *top_logprobs;
};

/* Room for what half a turn over n sequences can bring, with top_logprobs or without; NULL: no
 * memory. Free with free(). */
struct llm_events *llm_events_new(uint32_t n_sequences, bool with_top);

/* The next one to fill in. There is room: see struct llm_sched_sink. */
struct llm_event *llm_events_add(struct llm_events *e, enum llm_event_kind kind,
                                 struct llm_request *r);

void llm_events_add_token(struct llm_events *e, struct llm_sequence *s, const struct llm_token *t);

#endif
