/* The Unix socket that workers connect to. */

#ifndef LLM_SERVE_LISTENER_H
#define LLM_SERVE_LISTENER_H

#include "engine/base/error.h"

#include <stdint.h>
#include <sys/types.h>
#include <sys/un.h>

struct llm_listener {
    int fd; /* -1: closed */
    char *path;
    dev_t dev; /* of the socket's file, so that only our own is removed */
    ino_t ino;
};

/* The socket of "unix:PATH", which `option` has named. */
int llm_listener_address(const char *address, const char *option, struct sockaddr_un *addr,
                         struct llm_error *err);

/* Whether the address has the right form and there is such a group (NULL: none is asked for). */
int llm_listener_check(const char *address, const char *group, struct llm_error *err);

/* Binds and listens on "unix:PATH" (non-blocking, mode 0660, owned by `group` unless NULL). A
 * socket file that nobody answers on is replaced; one that somebody answers on, and anything that
 * is no socket, is an error that says what to do. The socket is made under another name beside
 * PATH, which it takes when it listens: nobody ever finds one there that does not answer yet. Of
 * processes that do this at once one wins, the others fail; PATH.lock is there meanwhile. */
int llm_listener_open(struct llm_listener *l, const char *address, const char *group,
                      struct llm_error *err);

/* Stops listening and removes the file, if it is still ours. */
void llm_listener_close(struct llm_listener *l);

#endif
