/* Saving: what is not there yet is sealed and written over a connection of its own, one value on
 * its way at a time. The tier's thread.
 *
 * A page goes through these questions, those of several pages at once: is the epoch still the one
 * that its name was made with (GET), is it there already (EXPIRE: then it stays for another ttl),
 * does the tenant's quota allow it (INCRBY of what was written in this window, GET of the last
 * one's), and SET … NX. */

#ifndef LLM_CACHE_REDIS_SAVE_H
#define LLM_CACHE_REDIS_SAVE_H

#include "engine/cache/redis/common.h"
#include "engine/cache/redis/link.h"

#define LLM_REDIS_DELETES 256 /* names to be deleted; what is beyond is found again */

enum llm_redis_out_state {
    LLM_OUT_IDLE,   /* the model thread's */
    LLM_OUT_QUEUED, /* handed over; nothing has been asked */
    LLM_OUT_EPOCH,
    LLM_OUT_PRESENCE,
    LLM_OUT_QUOTA,
    LLM_OUT_READY, /* waits for the value before it to be gone */
    LLM_OUT_SET,
};

/* A page to be saved; the model thread fills in the first six. */
struct llm_redis_out {
    uint8_t owner[32];
    uint64_t epoch_of_page; /* that it belongs to; 0: to any */
    uint32_t max_pages;     /* of the owner; 0: no limit of its own */
    struct llm_digest digest;
    uint32_t ids[LLM_PAGE_TOKENS];
    uint64_t then; /* of llm_redis_forgets */

    enum llm_redis_out_state state;
    uint64_t order;    /* in which it was handed over */
    uint32_t n_out;    /* answers that are still to come */
    uint64_t limit_ns; /* of them */
    struct llm_redis_tenant_keys keys;
    uint64_t epoch;    /* that it is named by; 0: not known yet */
    bool epoch_made, charged;
    bool unwanted; /* llm_redis_saver_forget */
    uint64_t window;   /* that it is charged to */

    struct {
        bool broken; /* something that cannot be: the page is not saved */
        uint64_t epoch, written, written_before;
        bool there, set;
    } answers;
    char name[LLM_REDIS_NAME_MAX];
};

/* A page that is no good. */
struct llm_redis_spoilt {
    uint8_t owner[32];
    uint64_t epoch; /* 0: not known */
    struct llm_digest digest;
};

struct llm_redis_saver {
    struct llm_redis_common *common;
    struct llm_redis_ring *freed; /* buffers that the model thread may fill again */
    struct llm_redis_link link;

    uint8_t *memory; /* [n_buffers][page_bytes] */
    struct llm_redis_out *out;
    uint32_t n_buffers;
    uint64_t n_added;

    uint8_t *value; /* [value_bytes], sealed and on its way */
    char deletes[LLM_REDIS_DELETES][LLM_REDIS_NAME_MAX];
    uint32_t n_deletes;
};

int llm_redis_saver_init(struct llm_redis_saver *s, struct llm_redis_common *common,
                         struct llm_redis_ring *freed, uint32_t n_buffers, struct llm_error *err);
void llm_redis_saver_free(struct llm_redis_saver *s);

void llm_redis_saver_add(struct llm_redis_saver *s, uint32_t buffer);

/* Nothing of the page is written any more, and what is there of it is deleted. */
void llm_redis_saver_forget(struct llm_redis_saver *s, const struct llm_redis_spoilt *page);

/* For llm_redis_loader.delete; ctx: the saver. */
void llm_redis_saver_delete(void *ctx, const char *name);

void llm_redis_saver_turn(struct llm_redis_saver *s, short revents, uint64_t now);
uint64_t llm_redis_saver_next(const struct llm_redis_saver *s);

#endif
