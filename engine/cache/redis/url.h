/* Where Redis is and who we are there, as one writes it:
 *
 *   redis://[user[:password]@]host[:port][/db]         host: a name, an address, [an IPv6 address]
 *   redis+unix://[user[:password]@]/path[?db=N]
 *
 * User, password and path may hold %XX. */

#ifndef LLM_CACHE_REDIS_URL_H
#define LLM_CACHE_REDIS_URL_H

#include "engine/base/error.h"

#include <stdint.h>

struct llm_redis_url {
    char path[108]; /* of a Unix socket; empty: TCP */
    char host[256], port[6];
    char user[128], password[512]; /* empty: none */
    uint32_t db;
};

/* LLM_EINVAL, or LLM_EUNSUPPORTED for rediss://; the text holds nothing of the url but its scheme.
 * The caller wipes *u when it is done with the password. */
int llm_redis_url_parse(const char *url, struct llm_redis_url *u, struct llm_error *err);

#endif
