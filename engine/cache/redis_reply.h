/* Looks at replies before hiredis does: its reader (0.14) allocates what a header claims.
 *
 * The scanner is fed the bytes of a connection in order and says where each top-level reply ends,
 * without keeping any of them. It refuses what the commands that are sent here cannot answer: RESP3
 * types, arrays deeper than two levels or longer than a SCAN's, lines longer than 512 bytes, bulk
 * strings longer than the caller allows. */

#ifndef LLM_CACHE_REDIS_REPLY_H
#define LLM_CACHE_REDIS_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LLM_REPLY_MAX_LINE 512
#define LLM_REPLY_MAX_ELEMENTS 4096 /* of all arrays of one reply together */

enum llm_reply_state {
    LLM_REPLY_MORE, /* the reply goes on */
    LLM_REPLY_END,  /* it ends with the last byte consumed */
    LLM_REPLY_BAD,  /* it is refused; the connection is of no more use */
};

struct llm_reply_scan {
    uint64_t max_bulk;  /* longest bulk string that is allowed */
    uint64_t bulk_left; /* of the bulk string under way, its line end included */
    uint32_t line_len, n_elements;
    uint32_t depth, left[2];
    bool bad;
    char line[32];
};

void llm_reply_scan_start(struct llm_reply_scan *s, uint64_t max_bulk);

/* Looks at data[n], up to the end of the reply at most; *used: bytes consumed. */
enum llm_reply_state llm_reply_scan(struct llm_reply_scan *s, const char *data, size_t n,
                                    size_t *used);

/* At least so many bytes of the reply are still to come: to be read without reading of the next. */
uint64_t llm_reply_scan_needs(const struct llm_reply_scan *s);

#endif
