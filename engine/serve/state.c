#include "engine/serve/state.h"

#include "engine/base/clock.h"
#include "engine/serve/served.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Single words that others read at any time. */
#define SET(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELAXED)

static int add_name(struct llm_names *n, const char *name, size_t len, struct llm_error *err)
{
    if (n->n == LLM_IPC_MAX_NAMES) {
        return llm_fail(err, LLM_EINVAL, "--served-model-name: at most %u names",
                        LLM_IPC_MAX_NAMES);
    }
    if (len == 0 || len >= LLM_IPC_MAX_NAME) {
        return llm_fail(err, LLM_EINVAL, "--served-model-name: a name has 1 to %u bytes",
                        LLM_IPC_MAX_NAME - 1);
    }
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char) name[i] <= ' ' || name[i] == 0x7f) {
            return llm_fail(err, LLM_EINVAL,
                            "--served-model-name: a name has no blanks or control characters");
        }
    }
    memcpy(n->names[n->n++], name, len);
    return LLM_OK;
}

int llm_names_read(struct llm_names *n, const char *list, const char *model, struct llm_error *err)
{
    const char *p = list;
    int rc = LLM_OK;

    *n = (struct llm_names){0};
    if (p == NULL) {
        const char *begin, *end;

        for (end = model + strlen(model); end > model && end[-1] == '/'; end--) {
            /* "models/demo/" is demo too */
        }
        for (begin = end; begin > model && begin[-1] != '/'; begin--) {
            /* back to the slash before */
        }
        return add_name(n, begin, (size_t) (end - begin), err);
    }

    while (rc == LLM_OK) {
        size_t len = strcspn(p, ",");

        rc = add_name(n, p, len, err);
        p += len;
        if (*p++ != ',') {
            break;
        }
    }
    return rc;
}

int llm_state_init(struct llm_state *s, const struct llm_settings *settings, struct llm_error *err)
{
    struct llm_names names;
    int rc;

    *s = (struct llm_state){.memfd = -1};

    if (llm_ipc_state_create(&s->shared, &s->memfd) != LLM_IPC_DONE) {
        return llm_fail(err, LLM_EIO, "cannot create the state region: %s", strerror(errno));
    }
    s->prefixes.state = s->shared;
    s->shared->start_time = (uint64_t) time(NULL);
    s->shared->queue_limit_requests = settings->max_queue_requests;
    s->shared->queue_limit_tokens = settings->max_queue_tokens;
    llm_state_beat(s);

    rc = llm_names_read(&names, settings->served_names, settings->model, err);
    if (rc != LLM_OK) {
        llm_state_free(s);
        return rc;
    }
    memcpy(s->shared->names, names.names, sizeof(s->shared->names));
    s->shared->n_names = names.n;
    return LLM_OK;
}

void llm_state_free(struct llm_state *s)
{
    if (s->shared != NULL) {
        munmap(s->shared, LLM_IPC_STATE_SIZE);
    }
    if (s->memfd >= 0) {
        close(s->memfd);
    }
    *s = (struct llm_state){.memfd = -1};
}

void llm_state_ready(struct llm_state *s, const struct llm_served *served)
{
    memcpy(s->shared->fingerprint, served->model->fingerprint, sizeof(s->shared->fingerprint));
    SET(s->shared->max_context, served->max_context);
    SET(s->shared->vocab_size, served->n_vocab);
    llm_state_raise(s, LLM_IPC_STATE_READY);
}

void llm_state_raise(struct llm_state *s, uint32_t flag)
{
    __atomic_fetch_or(&s->shared->flags, flag, __ATOMIC_RELEASE);
}

void llm_state_set_load(struct llm_state *s, const struct llm_state_load *load)
{
    SET(s->shared->queued_requests, load->queued_requests);
    SET(s->shared->running_requests, load->running_requests);
    SET(s->shared->queued_tokens, load->queued_tokens);
    SET(s->shared->free_pages, load->free_pages);
    SET(s->shared->total_pages, load->total_pages);
    SET(s->shared->prefill_rate, load->prefill_rate);
    SET(s->shared->decode_rate, load->decode_rate);
    SET(s->shared->counters[LLM_IPC_COUNT_SESSIONS], load->sessions);
}

void llm_state_set_steps(struct llm_state *s, uint64_t steps)
{
    SET(s->shared->counters[LLM_IPC_COUNT_STEPS], steps);
}

void llm_state_beat(void *ctx)
{
    struct llm_state *s = ctx;

    SET(s->shared->beat_ns, llm_now_ns());
    __atomic_fetch_add(&s->shared->beats, 1, __ATOMIC_RELAXED);
}

uint64_t llm_state_last_beat(const struct llm_state *s)
{
    return __atomic_load_n(&s->shared->beat_ns, __ATOMIC_RELAXED);
}
