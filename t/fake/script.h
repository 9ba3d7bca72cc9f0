/* The fake engine's little language: what a request wants to happen to it.
 *
 * A script is text; its words NAME=VALUE, between white space, are obeyed, everything else in it
 * is ignored. The script of a request is the fake engine's own (--script, command `script`), then
 * the text of the request's last user message or first prompt, where later words win:
 *
 *   {"prompt": "tokens=5 every=20", …}      five tokens, 20 ms apart
 *
 * The answer
 *   answer=count      "t0 t1 t2 …", `tokens` of them (the default)
 *   answer=choice     the choice's index before each: "0.0 0.1 …", "1.0 1.1 …"; each choice has one
 *                     token more than the one before it
 *   answer=echo       the script's text itself, a word a token
 *   answer=request    the SUBMIT record as JSON (t/fake/dump.c says how), 512 bytes a token; whole,
 *                     whatever max_tokens says
 *   answer=TEXT       anything else: that text as one token, repeated; %XX is a byte
 *   tokens=N          how many (count, choice: 3; text: 1; echo, request: all there are); the
 *                     request's max_tokens cuts them: finish_reason length
 *   size=N            pads each token with dots to N bytes
 *   reasoning=N       the first N tokens are reasoning
 *   tool=NAME         the answer is the arguments of a call of this tool
 *   finish=stop|length|tool_calls|error
 *   status=STATUS     FINISHED says this instead of ok; the names of enum llm_ipc_status in
 *                     lower case: status=context_length
 *   retry=MS          its retry_after_ms
 *   prompt=N cached=N the usage (the words of the script's text, 0)
 *   completion=N      the same (the tokens that were sent)
 *   drafted=N accepted=N   its part of speculation (0)
 *
 * When
 *   counted=MS        before COUNTED (0); counted=never leaves it out
 *   first=MS          from there to the first token (0)
 *   every=MS          between two tokens of the request, or the ends of two choices (0)
 *   end=MS            before FINISHED (0)
 *   cancel=MS         from CANCEL to FINISHED (0); cancel=never ignores CANCEL
 *   hang=counted|first|end   stops for ever before that; CANCEL still ends it
 *   deadlines=on      obeys the request's deadlines (off: the worker's own timers are tested)
 *   credit=off        sends without asking for credit
 *   release=off       begins without waiting for RELEASE
 *
 * Misbehaviour: bad=KIND, done once after `at` tokens (0), then the script goes on if it can. The
 * kinds stand in t/fake/misbehave.c. */

#ifndef T_FAKE_SCRIPT_H
#define T_FAKE_SCRIPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SCRIPT_NEVER UINT32_MAX /* of a time: never; of a number: not said */

enum script_answer { ANSWER_COUNT, ANSWER_CHOICE, ANSWER_ECHO, ANSWER_REQUEST, ANSWER_TEXT };
enum script_hang { HANG_NOT, HANG_COUNTED, HANG_FIRST, HANG_END };

struct script {
    uint32_t answer; /* enum script_answer */
    char text[256];  /* ANSWER_TEXT; zero terminated */
    uint32_t tokens, size, reasoning;
    char tool[64];
    uint32_t finish; /* enum llm_ipc_finish */
    uint32_t status; /* enum llm_ipc_status */
    uint32_t retry_ms, prompt, cached, completion, drafted, accepted;
    uint32_t counted_ms, first_ms, every_ms, end_ms, cancel_ms;
    uint32_t hang; /* enum script_hang */
    bool deadlines, no_credit, no_release;
    uint32_t bad; /* index of t/fake/misbehave.c's kinds + 1, 0: none */
    uint32_t at;
};

void script_init(struct script *s);

/* Obeys the words of text; returns the number of words whose NAME is known and VALUE is not (a
 * command line can complain, a prompt cannot). */
unsigned script_parse(struct script *s, const char *text, size_t len);

#endif
