/* config.json of the DeepSeek-V2 and DeepSeek-V3 architectures.
 *
 * Every field that changes the maths is either here or refused by name at parse time. */

#ifndef LLM_MODEL_CONFIG_H
#define LLM_MODEL_CONFIG_H

#include "engine/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum llm_arch { LLM_ARCH_DEEPSEEK_V2, LLM_ARCH_DEEPSEEK_V3 };

enum llm_router_score { LLM_ROUTER_SOFTMAX, LLM_ROUTER_SIGMOID };

enum llm_router_topk {
    LLM_TOPK_GREEDY,        /* V2-Lite: the k largest scores */
    LLM_TOPK_GROUP_LIMITED, /* V2: groups ranked by their largest score */
    LLM_TOPK_NOAUX_TC,      /* V3: correction bias; groups ranked by the sum of their two largest */
};

#define LLM_MAX_EOS 8

struct llm_model_config {
    enum llm_arch arch;

    uint32_t vocab_size;         /* rows of embed_tokens and lm_head */
    uint32_t hidden_size;
    uint32_t n_layers;           /* without the MTP layers */
    uint32_t n_dense_layers;     /* first_k_dense_replace */
    uint32_t n_mtp_layers;       /* num_nextn_predict_layers, 0 when the weights are absent */
    uint32_t intermediate_size;  /* dense FFN */

    uint32_t n_heads;
    uint32_t q_lora_rank;        /* 0: q_proj without a low-rank step */
    uint32_t kv_lora_rank;
    uint32_t qk_nope_dim;
    uint32_t qk_rope_dim;
    uint32_t v_dim;

    uint32_t n_experts;          /* 0: every layer dense */
    uint32_t n_experts_used;     /* num_experts_per_tok */
    uint32_t n_shared_experts;   /* 0 or more; one MLP of this many widths */
    uint32_t expert_size;        /* moe_intermediate_size */
    uint32_t n_groups, n_groups_used;
    enum llm_router_score router_score;
    enum llm_router_topk router_topk;
    bool norm_topk_prob;
    float routed_scaling_factor;

    float rms_norm_eps;          /* block and final norms */
    float lora_norm_eps;         /* q_a_layernorm and kv_a_layernorm: 1e-6 whatever the above */

    double rope_theta; /* weights turn in adjacent pairs: rope_interleave is refused at false */
    bool yarn;
    double yarn_factor, yarn_beta_fast, yarn_beta_slow, yarn_mscale, yarn_mscale_all_dim;
    bool yarn_has_mscale, yarn_has_mscale_all_dim;
    uint32_t yarn_original_max_positions;
    uint32_t max_positions;      /* max_position_embeddings */

    bool attention_bias;
    bool tie_word_embeddings;
    uint32_t fp8_block_rows, fp8_block_cols; /* weight_block_size, 0: no quantization_config */

    uint32_t bos_id;
    uint32_t eos_ids[LLM_MAX_EOS];
    uint32_t n_eos;
};

/* Parses the text of a config.json. Returns LLM_EINVAL (malformed, out of range, contradictory)
 * or LLM_EUNSUPPORTED (a field at a value that changes the maths in a way this build lacks); the
 * error names the field and the value. */
int llm_config_parse(const char *json, size_t len, struct llm_model_config *out,
                     struct llm_error *err);

/* Adds the eos ids of a generation_config.json to those of config.json; its other fields say how
 * to sample and are not looked at. */
int llm_config_merge_generation(const char *json, size_t len, struct llm_model_config *config,
                                struct llm_error *err);

/* Both files of a checkpoint's directory, of which the second may be missing. Errors begin with the
 * path. */
int llm_config_open(const char *dir, struct llm_model_config *out, struct llm_error *err);

/* inv_freq[qk_rope_dim / 2] with YaRN applied, the cos/sin multiplier and the softmax scale
 * (model.md 2.5). All in double, rounded once to float. */
void llm_config_rope(const struct llm_model_config *c, float *inv_freq, float *cos_sin_scale,
                     float *softmax_scale);

#endif
