#include "engine/serve/purge.h"

#include "engine/base/log.h"
#include "engine/ipc/record.h"
#include "engine/serve/engine.h"

#include <stdlib.h>
#include <string.h>

static struct llm_purge *find(const struct llm_client *c)
{
    struct llm_purge *p = c->engine->purges;

    while (p != NULL && p->client != c) {
        p = p->next;
    }
    return p;
}

const char *llm_purge_begin(struct llm_client *c, const struct llm_ipc_record *r)
{
    struct llm_engine *e = c->engine;
    struct llm_ipc_purge record;
    struct llm_purge *p;

    if (llm_ipc_purge_read(r, &record) != LLM_IPC_DONE) {
        return "malformed PURGE";
    }
    if (find(c) != NULL) {
        return "PURGE before the last one was answered";
    }
    p = malloc(sizeof(*p));
    if (p == NULL) {
        return "no memory for a PURGE";
    }

    *p = (struct llm_purge){
        .message.kind = LLM_MESSAGE_PURGE,
        .next = e->purges,
        .client = c,
        .slot = r->slot,
        .generation = r->generation,
    };
    memcpy(p->owner, record.tenant, sizeof(p->owner));
    e->purges = p;
    llm_log(LLM_LOG_NOTICE, "purging a tenant, as an operator asks");

    if (e->phase == LLM_ENGINE_READY || e->phase == LLM_ENGINE_DRAINING) {
        llm_mailbox_post(&e->model.inbox, &p->message);
    } else { /* there is nothing to be found yet, or any more */
        llm_purge_done(e, p);
    }
    return NULL;
}

void llm_purge_done(struct llm_engine *e, struct llm_purge *p)
{
    const struct llm_ipc_purged record = {.pages = p->n_pages};
    const struct llm_ipc_iovec part = {&record, sizeof(record)};
    struct llm_purge **link = &e->purges;

    while (*link != p) {
        link = &(*link)->next;
    }
    *link = p->next;

    if (p->client != NULL && llm_ipc_send(&p->client->ipc, LLM_IPC_PURGED, p->slot, p->generation,
                                          &part, 1) != LLM_IPC_DONE) {
        llm_client_drop(p->client, "no room for the answer to a PURGE");
    }
    free(p);
}

void llm_purge_orphan(struct llm_client *c)
{
    struct llm_purge *p = find(c);

    if (p != NULL) {
        p->client = NULL;
    }
}

void llm_purges_end(struct llm_engine *e)
{
    while (e->purges != NULL) {
        llm_purge_done(e, e->purges);
    }
}
