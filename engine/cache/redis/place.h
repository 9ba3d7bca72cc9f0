/* The addresses of Redis. A name is resolved by a thread that nobody waits for, at the start and
 * again whenever an address cannot be reached; the thread may outlive the place. */

#ifndef LLM_CACHE_REDIS_PLACE_H
#define LLM_CACHE_REDIS_PLACE_H

#include "engine/cache/redis/url.h"

#include <stdbool.h>
#include <sys/socket.h>

#define LLM_REDIS_ADDRESSES 8

struct llm_redis_address {
    struct sockaddr_storage addr;
    socklen_t len;
};

struct llm_redis_lookup; /* under way */

struct llm_redis_place {
    const struct llm_redis_url *url;
    bool named; /* by a name, which may come to mean other addresses */
    struct llm_redis_address addresses[LLM_REDIS_ADDRESSES];
    uint32_t n;
    struct llm_redis_lookup *lookup; /* NULL: none is under way */
};

void llm_redis_place_init(struct llm_redis_place *p, const struct llm_redis_url *url);
void llm_redis_place_free(struct llm_redis_place *p);

/* One of its addresses, whatever the number; NULL: none is known yet. */
const struct llm_redis_address *llm_redis_place_address(struct llm_redis_place *p,
                                                        uint32_t which);

/* An address, or the lack of one, was of no use: the name is asked for anew. */
void llm_redis_place_failed(struct llm_redis_place *p);

#endif
