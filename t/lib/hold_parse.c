/* For LD_PRELOAD into nginx: while the file that LLM_HOLD_PARSE names is there, a thread of the
 * pool that parses JSON does not get on. So a test has all the time it wants for what must hold
 * meanwhile. */

#include <dlfcn.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef json_t *json_loadb_fn(const char *buffer, size_t len, size_t flags, json_error_t *error);

static char *hold;

/* nginx takes the environment away from its workers. */
__attribute__((constructor)) static void keep_name(void)
{
    const char *name = getenv("LLM_HOLD_PARSE");

    hold = name != NULL ? strdup(name) : NULL;
}

__attribute__((visibility("default"))) json_t *json_loadb(const char *buffer, size_t len,
                                                          size_t flags, json_error_t *error)
{
    json_loadb_fn *next;

    *(void **) &next = dlsym(RTLD_NEXT, "json_loadb");
    while (gettid() != getpid() && hold != NULL && access(hold, F_OK) == 0) {
        usleep(1000);
    }
    return next(buffer, len, flags, error);
}
