/* How threads hand things to each other: any number of senders, one receiver, no lock.
 *
 * What is sent carries its own link, so that sending cannot fail. A sender pushes onto a stack
 * with one compare-and-swap; the receiver takes the whole stack with one exchange and turns it
 * round, so that messages of one sender arrive in order. Whoever pushes onto an empty stack writes
 * the eventfd. The receiver resets the eventfd before it takes: what is pushed after that finds
 * the stack empty and writes it again, so no wake-up is lost. */

#ifndef LLM_SERVE_MAILBOX_H
#define LLM_SERVE_MAILBOX_H

#include "engine/base/holder.h"

#include <stdatomic.h>

enum llm_message_kind {
    /* to the control thread */
    LLM_MESSAGE_LOADED,   /* struct llm_model_thread: loaded, or failed to */
    LLM_MESSAGE_PREPARED, /* struct llm_call: its prompts are token ids now, or refused */
    LLM_MESSAGE_EVENTS,   /* struct llm_events */
    LLM_MESSAGE_RETIRED,  /* struct llm_call: the model thread has let go of it */
    LLM_MESSAGE_PURGED,   /* struct llm_purge: it is done */
    LLM_MESSAGE_BROKEN,   /* struct llm_model_thread: the backend failed */
    /* to the model thread */
    LLM_MESSAGE_CALL,     /* struct llm_call: see llm_call.asked */
    LLM_MESSAGE_PURGE,    /* struct llm_purge */
    LLM_MESSAGE_QUIT,
};

struct llm_message {
    enum llm_message_kind kind;
    struct llm_message *next;
};

struct llm_mailbox {
    _Atomic(struct llm_message *) top;
    int event; /* readable when there may be something to take */
};

int llm_mailbox_init(struct llm_mailbox *m); /* LLM_OK or LLM_EIO with errno set */
void llm_mailbox_free(struct llm_mailbox *m);

void llm_mailbox_post(struct llm_mailbox *m, struct llm_message *msg);

/* Everything that was sent, oldest first, linked by `next`; NULL: nothing. */
struct llm_message *llm_mailbox_take(struct llm_mailbox *m);

/* Waits until there may be something to take, for at most timeout_ms. */
void llm_mailbox_wait(struct llm_mailbox *m, int timeout_ms);

#endif
