/* A loaded checkpoint: configuration, weights by role, and the planes of its latent pages.
 *
 * Weights point into mmap'ed files (read-only, private) and keep their stored type; nothing is
 * expanded here. The struct owns the mappings: weights are valid until llm_model_close. (There is
 * also a model without files: dummy.h.) */

#ifndef LLM_MODEL_MODEL_H
#define LLM_MODEL_MODEL_H

#include "engine/model/config.h"
#include "engine/model/dtype.h"
#include "engine/model/plane.h"

/* A matrix [rows, cols] row-major, or a vector with rows == 1. scale: F8_E4M3 only, row-major
 * [ceil(rows / block_rows), ceil(cols / block_cols)]; data and scale may be unaligned. */
struct llm_weight {
    enum llm_dtype dtype;
    uint32_t rows, cols;
    const void *data; /* NULL: this model has no such weight */
    const float *scale;
    uint32_t block_rows, block_cols;
};

struct llm_ffn_weights {
    struct llm_weight gate, up, down; /* [I, H], [I, H], [H, I] */
};

struct llm_layer_weights {
    struct llm_weight input_norm, post_attention_norm; /* [H] */
    struct llm_weight q; /* [heads*(nope+rope), H], or the next three when q_lora_rank != 0 */
    struct llm_weight q_a, q_a_norm, q_b;
    struct llm_weight kv_a; /* [kv_lora + rope, H] */
    struct llm_weight kv_a_norm;
    struct llm_weight kv_b; /* [heads*(nope+v), kv_lora] */
    struct llm_weight o;    /* [H, heads*v] */
    struct llm_weight q_a_bias, kv_a_bias, o_bias; /* attention_bias only */

    struct llm_ffn_weights ffn;      /* dense layers */
    struct llm_weight router;        /* [experts, H] */
    struct llm_weight router_bias;   /* [experts] F32 or BF16, NULL without noaux_tc */
    struct llm_ffn_weights *experts; /* [n_experts], NULL in a dense layer */
    struct llm_ffn_weights shared;   /* data NULL without shared experts */
};

struct llm_mtp_weights {
    struct llm_weight enorm, hnorm, eh_proj, head_norm;
    struct llm_weight embed, head; /* copies, or the main ones when absent */
    struct llm_layer_weights layer;
};

struct llm_model {
    struct llm_model_config config;
    struct llm_weight embed, final_norm, lm_head;
    struct llm_layer_weights *layers; /* [n_layers] */
    struct llm_mtp_weights *mtp;      /* [n_mtp_layers] */
    uint8_t fingerprint[32];          /* of headers, sampled bytes and the maths' config fields */
    uint64_t bytes;                   /* of tensor data mapped */
    struct llm_checkpoint *checkpoint; /* private: the files; none of a dummy */
    void *memory;                      /* private: a dummy's weights */
    uint64_t memory_bytes;
};

/* Called now and then during a load; done and total in bytes. */
typedef void llm_progress_fn(void *ctx, uint64_t done, uint64_t total);

/* Opens the checkpoint in a directory (config.json, model.safetensors or a sharded index),
 * checks that every weight the config needs is there with the right type and shape, and that no
 * offset leaves its file. *out is allocated; free it with llm_model_close. */
int llm_model_open(const char *dir, struct llm_model **out, struct llm_error *err);

/* LLM_EIO when a file of the checkpoint was cut, or its disk failed, after it was mapped: the
 * process lives on (see mapping.h), but what it read from there is zeros. Cheap; ask after each
 * step, before its results are believed. */
int llm_model_check(const struct llm_model *m, struct llm_error *err);

/* Reads every mapped page once, so that a later step does not wait for the disk, and refuses
 * tensors that hold NaN or Inf (F32, F16, BF16, e4m3 and scales). */
int llm_model_verify(struct llm_model *m, llm_progress_fn *progress, void *ctx,
                     struct llm_error *err);

void llm_model_close(struct llm_model *m);

#endif
