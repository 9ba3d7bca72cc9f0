#include "engine/serve/events.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define KINDS 3

struct llm_events *llm_events_new(uint32_t n_sequences, bool with_top)
{
    uint32_t cap = KINDS * n_sequences;
    uint32_t top_cap = with_top ? n_sequences * LLM_MAX_TOP_LOGPROBS : 0;
    struct llm_events *e = malloc(sizeof(*e) + cap * sizeof(*e->events) +
                                  top_cap * (sizeof(*e->top_ids) + sizeof(*e->top_logprobs)));

    if (e != NULL) {
        *e = (struct llm_events){
            .message.kind = LLM_MESSAGE_EVENTS,
            .cap = cap,
            .top_cap = top_cap,
            .events = (struct llm_event *) (e + 1),
        };
        e->top_ids = (uint32_t *) (e->events + cap);
        e->top_logprobs = (float *) (e->top_ids + top_cap);
    }
    return e;
}

struct llm_event *llm_events_add(struct llm_events *e, enum llm_event_kind kind,
                                 struct llm_request *r)
{
    struct llm_event *event = &e->events[e->n++];

    assert(e->n <= e->cap);
    *event = (struct llm_event){
        .kind = kind,
        .call = LLM_HOLDER(r, struct llm_call, request),
        .cached_tokens = r->cached_tokens,
    };
    return event;
}

void llm_events_add_token(struct llm_events *e, struct llm_sequence *s, const struct llm_token *t)
{
    struct llm_event *event = llm_events_add(e, LLM_EVENT_TOKEN, s->request);

    assert(t->n_top <= e->top_cap - e->n_top);
    event->choice = s->choice;
    event->id = t->id;
    event->logprob = t->logprob;
    event->n_top = t->n_top;
    event->first_top = e->n_top;
    if (t->n_top > 0) {
        memcpy(e->top_ids + e->n_top, t->top_ids, t->n_top * sizeof(*t->top_ids));
        memcpy(e->top_logprobs + e->n_top, t->top_logprobs, t->n_top * sizeof(*t->top_logprobs));
        e->n_top += t->n_top;
    }
}
