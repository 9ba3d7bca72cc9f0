/* What must hold of the reply scanner whatever it is fed: for its test and its fuzz target. */

#ifndef T_UNIT_REDIS_REPLY_CHECK_H
#define T_UNIT_REDIS_REPLY_CHECK_H

#include "engine/cache/redis/reply.h"

#include <hiredis/hiredis.h>

/* Feeds a reply in pieces of at most `piece` bytes. *used: all that was consumed. */
__attribute__((unused)) static enum llm_reply_state scan_in_pieces(struct llm_reply_scan *s,
                                                                   const char *data, size_t n,
                                                                   size_t piece, size_t *used)
{
    enum llm_reply_state state = LLM_REPLY_MORE;
    size_t taken;

    *used = 0;
    while (state == LLM_REPLY_MORE && *used < n) {
        size_t m = n - *used < piece ? n - *used : piece;

        state = llm_reply_scan(s, data + *used, m, &taken);
        *used += taken;
    }
    return state;
}

/* To hiredis the bytes are one reply, all of them. */
__attribute__((unused)) static bool is_a_reply(const char *data, size_t n)
{
    redisReader *reader = redisReaderCreate();
    void *reply = NULL;
    bool good;

    good = reader != NULL && redisReaderFeed(reader, data, n) == REDIS_OK
           && redisReaderGetReply(reader, &reply) == REDIS_OK && reply != NULL
           && reader->pos == reader->len;
    if (reply != NULL) {
        freeReplyObject(reply);
    }
    if (reader != NULL) {
        redisReaderFree(reader);
    }
    return good;
}

/* NULL, or what does not hold of these bytes: that the pieces they come in make no difference, that
 * every reply that is let through is one to hiredis, of the same length, and that no more bytes are
 * asked for than it has. *ends: how many replies there are. */
__attribute__((unused)) static const char *check_scan(const char *data, size_t n, size_t piece,
                                                      uint64_t max_bulk, uint32_t *ends)
{
    enum llm_reply_state state = LLM_REPLY_END, again;
    size_t at = 0, used, used_again, some;
    struct llm_reply_scan s, pieces;

    *ends = 0;
    llm_reply_scan_start(&s, max_bulk);
    pieces = s;
    while (state == LLM_REPLY_END && at < n) {
        state = llm_reply_scan(&s, data + at, n - at, &used);
        again = scan_in_pieces(&pieces, data + at, n - at, piece, &used_again);
        if (state != again || used != used_again) {
            return "pieces make a difference";
        }
        if (state == LLM_REPLY_END) {
            if (!is_a_reply(data + at, used)) {
                return "hiredis sees no reply, or another one";
            }
            for (size_t k = 0; k < used; k += some) {
                if (llm_reply_scan_needs(&s) > used - k) {
                    return "more bytes are asked for than the reply has";
                }
                llm_reply_scan(&s, data + at + k, 1, &some);
            }
            ++*ends;
        }
        at += used;
    }
    if (state == LLM_REPLY_BAD && llm_reply_scan(&s, "+OK\r\n", 5, &used) != LLM_REPLY_BAD) {
        return "it recovers from what is refused";
    }
    return NULL;
}

#endif
