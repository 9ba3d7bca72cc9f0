/* What an operator's command asks for (PURGE): nothing that is cached of a tenant is to be found
 * any more. The control thread takes it from the session and answers it, the model thread does
 * it. */

#ifndef LLM_SERVE_PURGE_H
#define LLM_SERVE_PURGE_H

#include "engine/ipc/session.h"
#include "engine/serve/mailbox.h"

struct llm_client;
struct llm_engine;

struct llm_purge {
    struct llm_message message; /* to the model thread, and back */
    struct llm_purge *next;     /* of the engine's */
    struct llm_client *client;  /* NULL: its session is gone */
    uint32_t slot, generation;  /* of the record */
    uint8_t owner[32];          /* the tenant */
    uint32_t n_pages;           /* the model thread's, while it has the message */
};

/* Takes the record. NULL, or what is wrong with it. */
const char *llm_purge_begin(struct llm_client *c, const struct llm_ipc_record *r);

/* The message has come back: the session is told, if it is there, and the purge is freed. */
void llm_purge_done(struct llm_engine *e, struct llm_purge *p);

/* Its session goes; what it has asked for is done all the same. */
void llm_purge_orphan(struct llm_client *c);

/* The model thread has ended: those that it still had are as good as done, as nobody finds
 * anything any more. */
void llm_purges_end(struct llm_engine *e);

#endif
