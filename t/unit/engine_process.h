/* An engine in a child process: the daemon itself, over the fake backend, on the demo model. */

#ifndef T_UNIT_ENGINE_PROCESS_H
#define T_UNIT_ENGINE_PROCESS_H

#include "engine/base/log.h"
#include "engine/serve/engine.h"
#include "engine/text/detokenizer.h"
#include "engine/serve/vocab.h"
#include "t/unit/fake_backend.h"
#include "t/unit/scratch.h"
#include "t/unit/worker.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define DEMO "models/demo"
#define DEMO_EOS 1

static uint64_t engine_load_ns; /* how long the fake backend takes to load */

static int engine_slow_load(const struct llm_model *model,
                            const struct llm_backend_options *options, struct llm_backend **out,
                            struct llm_error *err)
{
    usleep((useconds_t) (engine_load_ns / 1000));
    return fake_load(model, options, out, err);
}

static uint64_t engine_room(const struct llm_model *model, uint32_t device)
{
    (void) model, (void) device;
    return (uint64_t) 1 << 30;
}

/* In the place of the real one: the archive's is not linked. */
const struct llm_backend_ops llm_backend_cpu = {
    .in_host_memory = true,
    .room = engine_room,
    .load = engine_slow_load,
    .free = fake_free,
    .info = fake_info,
    .seq_create = fake_seq_create,
    .seq_free = fake_seq_free,
    .submit = fake_submit,
    .wait = fake_wait,
    .page_out = fake_page_out,
    .page_in = fake_page_in,
    .fence_done = fake_fence_done,
    .fence_wait = fake_fence_wait,
    .page_copy = fake_page_copy,
    .page_clear = fake_page_clear,
};

static char engine_socket[300];

/* Starts the daemon with these options besides model and socket. */
static pid_t engine_start(char *const *options, int n_options)
{
    char listen[320], *argv[40] = {(char *) "--model", (char *) DEMO, (char *) "--listen", listen,
                                   (char *) "--log-level", (char *) "error"};
    struct llm_settings settings;
    struct llm_error err;
    pid_t pid;
    int rc;

    snprintf(engine_socket, sizeof(engine_socket), "%s", scratch_path("engine.sock"));
    snprintf(listen, sizeof(listen), "unix:%s", engine_socket);
    for (int i = 0; i < n_options; i++) {
        argv[6 + i] = options[i];
    }

    fflush(stdout);
    pid = fork();
    worker_must(pid >= 0);
    if (pid > 0) {
        return pid;
    }

    scratch_dir[0] = '\0'; /* the parent's to remove */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    rc = llm_settings_read(&settings, 6 + n_options, argv, &err);
    worker_must(rc == LLM_OK);
    llm_log_set_level((enum llm_log_level) settings.log_level);
    rc = llm_engine_run(&settings);
    llm_settings_free(&settings);
    fflush(stdout);
    exit(-rc);
}

/* Its exit status once it ends: 0, or the negated error code. */
static int engine_status(pid_t pid)
{
    int status;

    worker_must(waitpid(pid, &status, 0) == pid);
    if (WIFSIGNALED(status)) {
        diag("the engine was killed by signal %d", WTERMSIG(status));
        return 1000 + WTERMSIG(status);
    }
    return WEXITSTATUS(status);
}

static int engine_stop(pid_t pid)
{
    kill(pid, SIGTERM);
    return engine_status(pid);
}

/* What the fake model says to a prompt: up to max tokens, the end not included. */
__attribute__((unused)) static uint32_t engine_expect(const uint32_t *prompt, uint32_t n_prompt,
                                                      uint32_t max, uint32_t n_vocab,
                                                      uint32_t *out)
{
    uint64_t hash = 0;
    uint32_t n = 0;

    for (uint32_t i = 0; i < n_prompt; i++) {
        hash = fake_mix(hash, prompt[i]);
    }
    while (n < max && (out[n] = fake_token(hash, n_vocab, NULL)) != DEMO_EOS) {
        hash = fake_mix(hash, out[n++]);
    }
    return n;
}

__attribute__((unused)) static void engine_decode(const struct llm_tokenizer *t,
                                                  const uint32_t *ids, uint32_t n,
                                                  struct llm_buf *text)
{
    struct llm_detokenizer d;

    llm_detokenizer_init(&d, t, true);
    llm_buf_reset(text);
    for (uint32_t i = 0; i < n; i++) {
        llm_detokenizer_push(&d, ids[i], text);
    }
    llm_detokenizer_finish(&d, text);
}

__attribute__((unused)) static bool same_text(const struct llm_buf *a, const struct llm_buf *b)
{
    return a->len == b->len && memcmp(a->data, b->data, a->len) == 0;
}

#endif
