/* The daemon: everything that its control thread holds. */

#ifndef LLM_SERVE_ENGINE_H
#define LLM_SERVE_ENGINE_H

#include "engine/base/buf.h"
#include "engine/sched/gate.h"
#include "engine/serve/client.h"
#include "engine/serve/listener.h"
#include "engine/serve/loop.h"
#include "engine/serve/mailbox.h"
#include "engine/serve/model_thread.h"
#include "engine/serve/purge.h"
#include "engine/serve/settings.h"
#include "engine/serve/state.h"
#include "engine/serve/tokenizers.h"

#define LLM_BUILD_ID "llm-engine/" LLM_VERSION
#define LLM_VERSION "0.1.0"

enum llm_engine_phase {
    LLM_ENGINE_LOADING,
    LLM_ENGINE_READY,
    LLM_ENGINE_DRAINING, /* takes no new requests; ends with the last one */
    LLM_ENGINE_FAILED,
};

struct llm_engine {
    const struct llm_settings *settings;
    enum llm_engine_phase phase;
    bool stop;      /* leave the loop */
    int start_code; /* enum llm_code: why it could not start */

    struct llm_loop loop;
    struct llm_listener listener;
    struct llm_watch on_connection, on_mail, on_signal;
    struct llm_timer accept_again, watchdog, drain, linger;
    uint64_t watchdog_ns;

    struct llm_mailbox inbox;
    struct llm_state state;
    struct llm_gate gate;
    struct llm_tokenizers tokenizers;
    struct llm_model_thread model;
    struct llm_sched_load load; /* as the model thread said last */

    struct llm_client *clients;
    struct llm_buf revoked; /* key ids of 16 bytes, whose calls end in this turn or the next */
    struct llm_call *calls;
    struct llm_purge *purges;
    uint32_t n_clients, n_calls, n_running; /* the last: requests */
    bool emptied; /* while draining: the last call is gone */
};

/* Runs the daemon until it is told to end: LLM_OK. LLM_EINTERNAL: the backend failed while it
 * served; other codes: it could not start. What went wrong is in the log. */
int llm_engine_run(const struct llm_settings *settings);

#endif
