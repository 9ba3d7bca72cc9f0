/* The model thread: loads the checkpoint, then turns the scheduler round and round.
 *
 * It alone touches scheduler and backend. Calls come in through its mailbox, what becomes of them
 * goes out through the control thread's. */

#ifndef LLM_SERVE_MODEL_THREAD_H
#define LLM_SERVE_MODEL_THREAD_H

#include "engine/serve/call.h"
#include "engine/serve/events.h"
#include "engine/serve/progress.h"
#include "engine/serve/served.h"
#include "engine/serve/state.h"
#include "engine/serve/tally.h"

#include <pthread.h>

struct llm_model_thread {
    const struct llm_settings *settings;
    struct llm_state *state; /* for the beat */
    struct llm_mailbox inbox, *control;
    pthread_t thread;
    bool running, buried;

    struct llm_message loaded, broken, quit;
    struct llm_error error; /* LLM_MESSAGE_LOADED and _BROKEN: what failed; code LLM_OK: nothing */
    struct llm_served served;

    struct llm_redis *redis; /* NULL: there is no such tier */
    struct llm_sched *sched; /* others may ask its cache for an estimate */

    /* its own */
    struct llm_progress progress;
    struct llm_events *events; /* of this half of a turn */
    struct llm_message *retired, **last_retired; /* in it: calls, by to_control */
    struct llm_sched_load load; /* as told last */
    struct llm_tally tally;
    bool want_top; /* somebody has asked for log-probabilities */
};

/* Opens the checkpoint, which may fail, then starts the thread, which loads it and posts
 * LLM_MESSAGE_LOADED. */
int llm_model_thread_start(struct llm_model_thread *m, const struct llm_settings *settings,
                           struct llm_state *state, struct llm_mailbox *control,
                           struct llm_error *err);

/* From the control thread: asks the model thread to do something about a call, any number of times
 * until the call comes back as LLM_MESSAGE_RETIRED, which is the last the model thread knows of
 * it; what was asked for too late is forgotten. Begins with LLM_ASK_RUN. */
void llm_model_thread_ask(struct llm_model_thread *m, struct llm_call *call,
                          enum llm_call_ask what);

/* From the control thread, once it has loaded: how many of the first tokens of a prompt are cached
 * now, as far as one can tell. */
uint32_t llm_model_thread_guess_cached(const struct llm_model_thread *m,
                                       const struct llm_prompt_ids *prompt);

/* After LLM_MESSAGE_BROKEN: the scheduler forgets all calls, which may be freed then. */
void llm_model_thread_bury(struct llm_model_thread *m);

/* Ends the thread, after the steps in flight. Calls that it still has are forgotten. A load that
 * is under way cannot be stopped: then this must not be called. */
void llm_model_thread_stop(struct llm_model_thread *m);

#endif
