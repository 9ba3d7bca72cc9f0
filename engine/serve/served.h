/* The checkpoint that an engine serves: everything that requests share and nobody changes. */

#ifndef LLM_SERVE_SERVED_H
#define LLM_SERVE_SERVED_H

#include "engine/backend/backend.h"
#include "engine/serve/settings.h"
#include "engine/text/chat.h"
#include "engine/text/tokenizer.h"

#define LLM_MAX_SEQS 64 /* sequences that run at once */

struct llm_served {
    struct llm_model *model;
    struct llm_tokenizer *tokenizer;
    const struct llm_chat_format *chat_format;
    bool add_bos; /* before the text prompts of completions */
    bool trust_special;
    uint32_t n_vocab; /* ids below this may stand in a prompt and be sampled */
    uint8_t secret[32]; /* what the names of latent pages are made from */

    const struct llm_backend_ops *ops;
    uint32_t device; /* number of the GPU */
    struct llm_backend *backend;
    uint32_t max_context, max_batch_tokens, max_seqs;
};

/* The chat format that --chat-format names; NULL for auto, which is the checkpoint's. LLM_EINVAL
 * lists those there are. */
int llm_served_chat_format(const char *name, const struct llm_chat_format **out,
                           struct llm_error *err);

/* Opens the device that the settings name, for llm_served_open. */
int llm_served_open_device(struct llm_served *s, const struct llm_settings *settings,
                           struct llm_error *err);

/* Opens device and checkpoint and checks all that can be checked without reading the weights. On
 * failure *s is closed. */
int llm_served_open(struct llm_served *s, const struct llm_settings *settings,
                    struct llm_error *err);

/* What watches the backend: see struct llm_backend_options. Either may be NULL. */
struct llm_served_watch {
    void (*beat)(void *ctx);
    void *beat_ctx;
    llm_progress_fn *progress;
    void *progress_ctx;
};

/* Reads the weights and makes the backend ready for steps. The caller closes *s either way. */
int llm_served_load(struct llm_served *s, const struct llm_settings *settings,
                    const struct llm_served_watch *watch, struct llm_error *err);

/* Whether what the settings say of sizes suits the model and the machine. */
int llm_served_check_sizes(const struct llm_served *s, const struct llm_settings *settings,
                           struct llm_error *err);

void llm_served_close(struct llm_served *s);

#endif
