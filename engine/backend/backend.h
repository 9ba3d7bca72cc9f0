/* What a backend must do: run steps of batched sequences over a pool of latent pages.
 *
 * One thread, the model thread, calls everything here but where said. A backend owns the pool and
 * the sequence slots; which page belongs to whom is the caller's affair.
 *
 * Numbers. A row's results depend on the row's own tokens and pages only up to rounding; with
 * options.deterministic not even on that: the same bits whatever the other rows, the chunking and
 * how the pages came to be. Queries read keys and values through the pages, their own chunk's
 * too, so that what is cached is what was used. */

#ifndef LLM_BACKEND_BACKEND_H
#define LLM_BACKEND_BACKEND_H

#include "engine/base/error.h"
#include "engine/model/model.h"
#include "engine/model/plane.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LLM_MAX_TOP_LOGPROBS 20
#define LLM_MAX_DRAFT 8

/* In a step's tokens: the token last sampled for this sequence, which may still be on the device
 * or not even be computed when the step is submitted. */
#define LLM_TOKEN_LAST UINT32_MAX

enum llm_numerics { LLM_NUMERICS_DEFAULT, LLM_NUMERICS_EXACT };

/* Test builds look at the residual stream after each layer: x[n_rows][hidden], in the order of
 * the step's rows; layer == n_layers + i for MTP layer i. Called from a backend thread. */
typedef void llm_tap_fn(void *ctx, uint32_t layer, const float *x, uint32_t n_rows,
                        uint32_t hidden);

struct llm_backend_options {
    enum llm_numerics numerics;
    bool deterministic;
    enum llm_latent_dtype latent_dtype;
    uint64_t latent_bytes;     /* size of the page pool */
    uint32_t max_context;      /* longest sequence, in tokens */
    uint32_t max_batch_tokens; /* most rows of a step */
    uint32_t max_seqs;         /* sequence slots */
    uint32_t threads;          /* CPU: compute threads, 0: one per core this process may use */
    uint32_t device;           /* GPU: which one */

    void (*beat)(void *ctx); /* called after every layer or launch, from a backend thread */
    void *beat_ctx;
    llm_tap_fn *tap;
    void *tap_ctx;
    llm_progress_fn *progress; /* of load */
    void *progress_ctx;
};

struct llm_backend_info {
    const char *name; /* "cpu", "cuda" */
    char device[64];  /* what it runs on: "AVX-512, 2 threads" */
    struct llm_page_layout layout; /* owned by the backend */
    uint32_t n_pages;
    uint64_t weight_bytes, scratch_bytes;
    uint8_t numerics_id[16]; /* differs when cached pages must not be shared (doc/design.md, 5) */
    bool one_form; /* a row's bits do not depend on whether it decodes or reads a prompt */
};

/* How tokens are chosen for a sequence: fixed for its life. Applied in this order to the fp32
 * logits: bias, repetition penalty (prompt and generated), frequency and presence penalties
 * (generated), the step's mask; then temperature, top_k, top_p, min_p, each on what the one before
 * left, renormalised. temperature == 0: the largest, lowest id first. Otherwise the token is
 * found by inverse transform over descending probabilities (ties: lowest id first) with
 * llm_philox_uniform(seed, position of the new token, choice, LLM_PHILOX_SAMPLE). Ids at or above
 * n_vocab (padding rows of lm_head) are never chosen. Log-probabilities are of the model's own
 * logits, before any of this. */
struct llm_sampling {
    float temperature, top_p, min_p; /* top_p 1, min_p 0: off */
    uint32_t top_k;                  /* 0: off */
    float repetition_penalty;        /* 1: off */
    float presence_penalty, frequency_penalty;
    uint64_t seed;
    uint32_t choice;
    uint32_t n_vocab;
    uint32_t n_top_logprobs; /* 0 … LLM_MAX_TOP_LOGPROBS */
    bool logprobs;
    uint32_t n_bias;
    const uint32_t *bias_ids; /* < n_vocab; copied by seq_create, like the next */
    const float *bias;
};

/* What is wanted of a row. */
enum llm_row_flag {
    LLM_ROW_SAMPLE = 1,   /* sample a token; the sequence's last row of the step only */
    LLM_ROW_LOGITS = 2,   /* hand the row's logits to the host */
    LLM_ROW_NO_WRITE = 4, /* its latents are in the page already (shared): leave them alone */
};

/* One sequence's part of a step: n_rows consecutive positions. */
struct llm_step_seq {
    uint32_t slot;
    uint32_t position;     /* of the first row */
    uint32_t n_rows;       /* >= 1 */
    const uint32_t *pages; /* [ceil((position + n_rows) / 64)]: pool pages of the whole prefix */
    const uint32_t *mask;  /* bit i set: token i may be sampled; NULL: all */
    uint32_t n_draft;      /* tokens to draft after the sampled one; 0 where info says no MTP */
};

/* The arrays belong to the caller and may be reused as soon as submit returns. */
struct llm_step {
    const struct llm_step_seq *seqs;
    uint32_t n_seqs;
    const uint32_t *tokens; /* [n_rows]: rows of seqs[0], then of seqs[1] … */
    const uint8_t *flags;   /* [n_rows]: enum llm_row_flag */
    uint32_t n_rows;
    uint64_t fence; /* wait until this copy (see page_in) is done; 0: none */
};

struct llm_sampled {
    uint32_t row;
    uint32_t n_tokens; /* 1 + accepted drafts; 0: the logits were not finite, it is over */
    uint32_t tokens[1 + LLM_MAX_DRAFT];
    float logprobs[1 + LLM_MAX_DRAFT]; /* when asked for */
    uint32_t n_top;
    const uint32_t *top_ids;    /* [n_tokens][n_top], descending */
    const float *top_logprobs;
};

/* Valid until the next wait. */
struct llm_step_result {
    uint32_t n_sampled;
    const struct llm_sampled *sampled; /* in the order of rows */
    uint32_t n_logits;
    const float *logits; /* [n_logits][vocab_size], rows flagged LLM_ROW_LOGITS in order */
    uint64_t ns;         /* time the step itself took */
};

struct llm_backend; /* each backend's own */

struct llm_backend_ops {
    bool in_host_memory; /* the pool */

    /* Bytes that a pool, and what steps need, could take now: of the device's memory, the weights
     * that load puts there taken off. */
    uint64_t (*room)(const struct llm_model *model, uint32_t device);

    /* Loads the weights and sets aside the pool and all that steps will need: no step allocates.
     * LLM_ENOMEM where that is more than this process can still use (without the logits that go to
     * the host, which hardly ever do); says how much is missing. Host memory is taken from the
     * system as it is first touched: should others have taken it by then, no step fails, but the
     * kernel may kill. The model must outlive the backend. */
    int (*load)(const struct llm_model *model, const struct llm_backend_options *options,
                struct llm_backend **out, struct llm_error *err);
    void (*free)(struct llm_backend *b);
    const struct llm_backend_info *(*info)(const struct llm_backend *b);

    /* A sequence slot: the last sampled token and the counts that penalties need. tokens: the
     * prompt's, then those sampled before, for a sequence that had lost its slot; not kept.
     * LLM_ENOMEM when all slots are taken. */
    int (*seq_create)(struct llm_backend *b, const struct llm_sampling *sampling,
                      const uint32_t *tokens, uint32_t n_prompt, uint32_t n_sampled,
                      uint32_t *slot);
    /* Steps in flight that name the slot finish first; their results are dropped by the caller. */
    void (*seq_free)(struct llm_backend *b, uint32_t slot);

    /* Starts a step and returns at once; up to two may be in flight, and they run in order.
     * LLM_EAGAIN when two are. LLM_EINVAL for a step that is wrong in itself. */
    int (*submit)(struct llm_backend *b, const struct llm_step *step, uint64_t *ticket);
    /* Waits for a step, oldest first. LLM_EINVAL for any other ticket; everything else means that
     * the device or the weights under it failed, err says how, and nothing works any more. */
    int (*wait)(struct llm_backend *b, uint64_t ticket, struct llm_step_result *result,
                struct llm_error *err);

    /* Planes [first, first + n) of a page to or from host memory, which must stay valid until the
     * fence is done. Fences count up; any thread may ask or wait.
     *
     * Copies of both directions run one after the other, in the order they were asked for: what
     * was copied out may be copied in again, and memory that is copied in may be the target of the
     * next copy out, without waiting. A copy runs after all steps and page_copies submitted before
     * it. A later step runs after it only if its fence says so; it must where it reads a page that
     * is copied in, or writes one that is copied in or out.
     *
     * Once a copy has failed, which the next wait tells, no fence is done any more: what lies in
     * host memory is not to be believed. fence_wait fails then, but not before that memory is left
     * alone. */
    int (*page_out)(struct llm_backend *b, uint32_t page, uint32_t first, uint32_t n, void *host,
                    uint64_t *fence);
    int (*page_in)(struct llm_backend *b, uint32_t page, uint32_t first, uint32_t n,
                   const void *host, uint64_t *fence);
    bool (*fence_done)(struct llm_backend *b, uint64_t fence);
    int (*fence_wait)(struct llm_backend *b, uint64_t fence);

    /* Inside the pool, ordered with the steps: rows [0, n_rows) of every plane; all zero. They run
     * after all copies asked for before from or to the pages they name, whatever fences say. */
    int (*page_copy)(struct llm_backend *b, uint32_t from, uint32_t to, uint32_t n_rows);
    int (*page_clear)(struct llm_backend *b, uint32_t page);
};

extern const struct llm_backend_ops llm_backend_cpu;

/* What a backend that is a shared object exports, under the name LLM_BACKEND_MODULE. It is used
 * only by a program that was built with the same structs. */
#define LLM_BACKEND_MODULE "llm_backend_module"
#define LLM_BACKEND_ABI 1

struct llm_backend_module {
    uint32_t abi; /* LLM_BACKEND_ABI, raised with every change of this file */
    uint32_t model_bytes, options_bytes; /* sizes of the structs */
    const struct llm_backend_ops *ops;
    /* Whether a device is there and can be used: LLM_EUNSUPPORTED says why not. */
    int (*probe)(uint32_t device, struct llm_error *err);
};

#endif
