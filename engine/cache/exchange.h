/* What is on its way between the pool and Redis: two queues of buffers of the tier's
 * (redis/redis.h) that copies are using. Copies are made in the order they are asked for, so each
 * queue is left in the order it was entered.
 *
 * Time goes in rounds of half a ttl. A page that was offered, and used since, is offered again in
 * another round: Redis keeps it for another ttl, or is given it again if it has lost it. */

#ifndef LLM_CACHE_EXCHANGE_H
#define LLM_CACHE_EXCHANGE_H

#include "engine/cache/redis/redis.h"

#define LLM_EXCHANGE_IN 256 /* places in a queue: powers of two */
#define LLM_EXCHANGE_OUT 32

struct llm_page_in {
    uint64_t fence;
    uint32_t buffer;
};

struct llm_page_out {
    uint64_t fence;
    uint32_t buffer;
    bool unwanted; /* what was copied is not to be saved */
    uint8_t owner[32];
    uint64_t epoch; /* the owner's */
    uint32_t max_pages;
    struct llm_digest digest;
    uint32_t ids[LLM_PAGE_TOKENS];
};

struct llm_exchange {
    struct llm_redis *redis; /* NULL: none */
    uint64_t round_ns;
    struct llm_page_in in[LLM_EXCHANGE_IN];    /* number i at i % LLM_EXCHANGE_IN */
    struct llm_page_out out[LLM_EXCHANGE_OUT]; /* likewise */
    uint32_t in_begun, in_done, out_begun, out_done;
    uint32_t cursor; /* of llm_cache_offer: a page */
};

struct llm_cache;
struct llm_cache_tenant;

/* What is under way of this page of a tenant's is not saved, and what is there is deleted. */
void llm_exchange_forget(struct llm_cache *c, const struct llm_cache_tenant *t,
                         const struct llm_digest *digest);

/* What is under way of this owner is not saved; nor is anything asked for or saved for him
 * before. */
void llm_exchange_purge(struct llm_cache *c, const uint8_t owner[32]);

/* Gives all buffers back. All copies must have been made. */
void llm_exchange_close(struct llm_cache *c);

#endif
