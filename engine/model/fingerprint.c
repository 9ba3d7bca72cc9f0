#include "engine/model/fingerprint.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#define WINDOW 1024 /* bytes sampled at the beginning, the middle and the end of a tensor */

/* The digest, and whether everything so far went in. */
struct hash {
    EVP_MD_CTX *ctx;
    bool ok;
};

static void put_bytes(struct hash *h, const void *data, size_t len)
{
    h->ok = h->ok && EVP_DigestUpdate(h->ctx, data, len) == 1;
}

static void put_u64(struct hash *h, uint64_t v)
{
    unsigned char le[8];

    for (int i = 0; i < 8; i++) {
        le[i] = (unsigned char) (v >> (8 * i));
    }
    put_bytes(h, le, sizeof(le));
}

/* Length first: no two lists of fields give the same bytes. */
static void put_field(struct hash *h, const void *data, size_t len)
{
    put_u64(h, len);
    put_bytes(h, data, len);
}

static void put_int(struct hash *h, const char *name, uint64_t v)
{
    put_field(h, name, strlen(name));
    put_u64(h, v);
}

static void put_real(struct hash *h, const char *name, double v)
{
    uint64_t bits;

    memcpy(&bits, &v, sizeof(bits));
    put_int(h, name, bits);
}

/* Every field that decides what a latent or a logit is. Not here: max_positions, bos and eos. */
static void put_config(struct hash *h, const struct llm_model_config *c)
{
    put_int(h, "arch", c->arch);
    put_int(h, "vocab_size", c->vocab_size);
    put_int(h, "hidden_size", c->hidden_size);
    put_int(h, "n_layers", c->n_layers);
    put_int(h, "n_dense_layers", c->n_dense_layers);
    put_int(h, "n_mtp_layers", c->n_mtp_layers);
    put_int(h, "intermediate_size", c->intermediate_size);
    put_int(h, "n_heads", c->n_heads);
    put_int(h, "q_lora_rank", c->q_lora_rank);
    put_int(h, "kv_lora_rank", c->kv_lora_rank);
    put_int(h, "qk_nope_dim", c->qk_nope_dim);
    put_int(h, "qk_rope_dim", c->qk_rope_dim);
    put_int(h, "v_dim", c->v_dim);
    put_int(h, "n_experts", c->n_experts);
    put_int(h, "n_experts_used", c->n_experts_used);
    put_int(h, "n_shared_experts", c->n_shared_experts);
    put_int(h, "expert_size", c->expert_size);
    put_int(h, "n_groups", c->n_groups);
    put_int(h, "n_groups_used", c->n_groups_used);
    put_int(h, "router_score", c->router_score);
    put_int(h, "router_topk", c->router_topk);
    put_int(h, "norm_topk_prob", c->norm_topk_prob);
    put_real(h, "routed_scaling_factor", c->routed_scaling_factor);
    put_real(h, "rms_norm_eps", c->rms_norm_eps);
    put_real(h, "lora_norm_eps", c->lora_norm_eps);
    put_real(h, "rope_theta", c->rope_theta);
    put_int(h, "yarn", c->yarn);
    put_real(h, "yarn_factor", c->yarn_factor);
    put_real(h, "yarn_beta_fast", c->yarn_beta_fast);
    put_real(h, "yarn_beta_slow", c->yarn_beta_slow);
    put_real(h, "yarn_mscale", c->yarn_mscale);
    put_real(h, "yarn_mscale_all_dim", c->yarn_mscale_all_dim);
    put_int(h, "yarn_original_max_positions", c->yarn_original_max_positions);
    put_int(h, "attention_bias", c->attention_bias);
    put_int(h, "tie_word_embeddings", c->tie_word_embeddings);
    put_int(h, "fp8_block_rows", c->fp8_block_rows);
    put_int(h, "fp8_block_cols", c->fp8_block_cols);
}

static void put_tensor(struct hash *h, const struct llm_st_tensor *t)
{
    const char *dtype = llm_st_dtype_name(t->dtype);

    put_field(h, t->name, t->name_len);
    put_field(h, dtype, strlen(dtype));
    put_u64(h, t->rank);
    for (unsigned i = 0; i < t->rank; i++) {
        put_u64(h, t->dims[i]);
    }

    if (t->bytes <= 3 * WINDOW) {
        put_bytes(h, t->data, (size_t) t->bytes);
    } else {
        put_bytes(h, t->data, WINDOW);
        put_bytes(h, t->data + (t->bytes - WINDOW) / 2, WINDOW);
        put_bytes(h, t->data + t->bytes - WINDOW, WINDOW);
    }
}

static struct hash begin(const char *tag, const struct llm_model_config *c)
{
    struct hash h = {.ctx = EVP_MD_CTX_new()};

    h.ok = h.ctx != NULL && EVP_DigestInit_ex(h.ctx, EVP_sha256(), NULL) == 1;
    put_field(&h, tag, strlen(tag));
    put_config(&h, c);
    return h;
}

static int finish(struct hash *h, uint8_t out[32], struct llm_error *err)
{
    h->ok = h->ok && EVP_DigestFinal_ex(h->ctx, out, NULL) == 1;
    EVP_MD_CTX_free(h->ctx);
    return h->ok ? LLM_OK : llm_fail(err, LLM_EINTERNAL, "SHA-256 is not to be had");
}

int llm_fingerprint(const struct llm_model_config *c, const struct llm_checkpoint *ck,
                    uint8_t out[32], struct llm_error *err)
{
    struct hash h = begin("llm-model-1", c);

    put_u64(&h, ck->n_tensors);
    for (uint32_t i = 0; i < ck->n_tensors; i++) {
        put_tensor(&h, ck->tensors[i]);
    }
    return finish(&h, out, err);
}

int llm_fingerprint_dummy(const struct llm_model_config *c, uint64_t seed, uint8_t out[32],
                          struct llm_error *err)
{
    struct hash h = begin("llm-dummy-1", c);

    put_u64(&h, seed);
    return finish(&h, out, err);
}
