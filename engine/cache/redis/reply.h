/* Looks at replies before hiredis does: its reader (0.14) allocates what a header claims.
 *
 * The scanner is fed the bytes of a connection in order and says where each top-level reply ends,
 * without keeping any of them. It refuses what the commands that are sent here cannot answer: RESP3
 * types, null arrays, arrays deeper than two levels or longer than a SCAN's, lines that are too
 * long or hold a lone CR or LF, numbers not written as Redis does, bulk strings without their line
 * end, or longer than the caller allows. All that it lets through is a reply to hiredis too, and
 * ends at the same byte. */

#ifndef LLM_CACHE_REDIS_REPLY_H
#define LLM_CACHE_REDIS_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LLM_REPLY_MAX_LINE 512
#define LLM_REPLY_MAX_DEPTH 2
#define LLM_REPLY_MAX_ELEMENTS 4096 /* of all arrays of one reply together */

enum llm_reply_state {
    LLM_REPLY_MORE, /* the reply goes on */
    LLM_REPLY_END,  /* it ends with the last byte consumed; the next one begins another */
    LLM_REPLY_BAD,  /* it is refused; the connection is of no more use */
};

struct llm_reply_scan {
    uint64_t max_bulk;  /* bytes of all bulk strings of a reply */
    uint64_t bulk_room; /* what is left of these */
    uint64_t bulk_left; /* of the bulk string under way, its line end included */
    uint32_t line_len;  /* of the line under way */
    bool line_ends;     /* it has its CR */
    bool bad, too_long; /* the latter: as a string is longer than the caller allows */
    char line[24]; /* its beginning: a number's, all of it */
    uint32_t n_elements, depth, left[LLM_REPLY_MAX_DEPTH];
};

/* max_bulk: bytes that all bulk strings of one reply may have together. Also between two replies,
 * where the next one may be larger or smaller. */
void llm_reply_scan_start(struct llm_reply_scan *s, uint64_t max_bulk);

/* Looks at data[n], up to the end of the reply at most; *used: bytes consumed. */
enum llm_reply_state llm_reply_scan(struct llm_reply_scan *s, const char *data, size_t n,
                                    size_t *used);

/* At least so many bytes are still to come of the reply under way, or the next one: to be read
 * without reading of the one after it. Of a bulk string under way, all. */
uint64_t llm_reply_scan_needs(const struct llm_reply_scan *s);

#endif
