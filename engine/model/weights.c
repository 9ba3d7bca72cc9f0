#include "engine/model/weights.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_NAME_BYTES 256

/* The first error sticks and later calls do nothing, so that a layer is a plain list of weights. */
struct taker {
    struct llm_model *model;
    const struct llm_weight_source *source;
    struct llm_error *err;
    int rc;
};

__attribute__((format(printf, 6, 7))) static void
take(struct taker *t, struct llm_weight *w, enum llm_role role, uint32_t rows, uint32_t cols,
     const char *fmt, ...)
{
    char name[MAX_NAME_BYTES];
    va_list ap;

    if (t->rc != LLM_OK) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(name, sizeof(name), fmt, ap);
    va_end(ap);

    *w = (struct llm_weight){.rows = rows, .cols = cols};
    t->rc = t->source->take(t->source->ctx, w, role, name, t->err);
}

static void take_attention(struct taker *t, struct llm_layer_weights *w, const char *layer)
{
    const struct llm_model_config *c = &t->model->config;
    uint32_t q_rows = c->n_heads * (c->qk_nope_dim + c->qk_rope_dim);

    if (c->q_lora_rank == 0) {
        take(t, &w->q, LLM_ROLE_PROJECTION, q_rows, c->hidden_size, "%s.self_attn.q_proj.weight",
             layer);
    } else {
        take(t, &w->q_a, LLM_ROLE_PROJECTION, c->q_lora_rank, c->hidden_size,
             "%s.self_attn.q_a_proj.weight", layer);
        take(t, &w->q_a_norm, LLM_ROLE_NORM, 1, c->q_lora_rank, "%s.self_attn.q_a_layernorm.weight",
             layer);
        take(t, &w->q_b, LLM_ROLE_PROJECTION, q_rows, c->q_lora_rank,
             "%s.self_attn.q_b_proj.weight", layer);
    }

    take(t, &w->kv_a, LLM_ROLE_PROJECTION, c->kv_lora_rank + c->qk_rope_dim, c->hidden_size,
         "%s.self_attn.kv_a_proj_with_mqa.weight", layer);
    take(t, &w->kv_a_norm, LLM_ROLE_NORM, 1, c->kv_lora_rank, "%s.self_attn.kv_a_layernorm.weight",
         layer);
    take(t, &w->kv_b, LLM_ROLE_PROJECTION, c->n_heads * (c->qk_nope_dim + c->v_dim),
         c->kv_lora_rank, "%s.self_attn.kv_b_proj.weight", layer);
    take(t, &w->o, LLM_ROLE_PROJECTION, c->hidden_size, c->n_heads * c->v_dim,
         "%s.self_attn.o_proj.weight", layer);

    if (c->attention_bias) {
        if (c->q_lora_rank != 0) {
            take(t, &w->q_a_bias, LLM_ROLE_BIAS, 1, c->q_lora_rank, "%s.self_attn.q_a_proj.bias",
                 layer);
        }
        take(t, &w->kv_a_bias, LLM_ROLE_BIAS, 1, c->kv_lora_rank + c->qk_rope_dim,
             "%s.self_attn.kv_a_proj_with_mqa.bias", layer);
        take(t, &w->o_bias, LLM_ROLE_BIAS, 1, c->hidden_size, "%s.self_attn.o_proj.bias", layer);
    }
}

static void take_ffn(struct taker *t, struct llm_ffn_weights *w, uint32_t width,
                     const char *prefix)
{
    uint32_t hidden = t->model->config.hidden_size;

    take(t, &w->gate, LLM_ROLE_PROJECTION, width, hidden, "%s.gate_proj.weight", prefix);
    take(t, &w->up, LLM_ROLE_PROJECTION, width, hidden, "%s.up_proj.weight", prefix);
    take(t, &w->down, LLM_ROLE_PROJECTION, hidden, width, "%s.down_proj.weight", prefix);
}

static void take_experts(struct taker *t, struct llm_layer_weights *w, const char *layer)
{
    const struct llm_model_config *c = &t->model->config;
    char prefix[MAX_NAME_BYTES / 2];

    take(t, &w->router, LLM_ROLE_ROUTER, c->n_experts, c->hidden_size, "%s.mlp.gate.weight", layer);
    if (c->router_topk == LLM_TOPK_NOAUX_TC) {
        take(t, &w->router_bias, LLM_ROLE_ROUTER_BIAS, 1, c->n_experts,
             "%s.mlp.gate.e_score_correction_bias", layer);
    }
    if (c->n_shared_experts > 0) {
        snprintf(prefix, sizeof(prefix), "%s.mlp.shared_experts", layer);
        take_ffn(t, &w->shared, c->expert_size * c->n_shared_experts, prefix);
    }
    if (t->rc != LLM_OK) {
        return;
    }

    /* one layer at a time: a config that claims too much fails before it costs memory */
    w->experts = calloc(c->n_experts, sizeof(*w->experts));
    if (w->experts == NULL) {
        t->rc = llm_fail(t->err, LLM_ENOMEM, "out of memory");
        return;
    }
    for (uint32_t e = 0; e < c->n_experts && t->rc == LLM_OK; e++) {
        snprintf(prefix, sizeof(prefix), "%s.mlp.experts.%u", layer, e);
        take_ffn(t, &w->experts[e], c->expert_size, prefix);
    }
}

static void take_layer(struct taker *t, struct llm_layer_weights *w, const char *layer,
                       bool dense)
{
    const struct llm_model_config *c = &t->model->config;
    char prefix[MAX_NAME_BYTES / 2];

    take(t, &w->input_norm, LLM_ROLE_NORM, 1, c->hidden_size, "%s.input_layernorm.weight", layer);
    take_attention(t, w, layer);
    take(t, &w->post_attention_norm, LLM_ROLE_NORM, 1, c->hidden_size,
         "%s.post_attention_layernorm.weight", layer);

    if (dense) {
        snprintf(prefix, sizeof(prefix), "%s.mlp", layer);
        take_ffn(t, &w->ffn, c->intermediate_size, prefix);
    } else {
        take_experts(t, w, layer);
    }
}

/* A weight of the MTP layer that may be a copy of the main model's, or left out. */
static void take_copy(struct taker *t, struct llm_weight *w, const struct llm_weight *main,
                      const char *layer, const char *name)
{
    char full[MAX_NAME_BYTES];

    snprintf(full, sizeof(full), "%s.%s", layer, name);
    *w = *main;
    if (t->source->has != NULL && t->source->has(t->source->ctx, full)) {
        take(t, w, LLM_ROLE_MATRIX, main->rows, main->cols, "%s", full);
    }
}

static void take_mtp(struct taker *t, struct llm_mtp_weights *w, const char *layer)
{
    struct llm_model *m = t->model;
    uint32_t hidden = m->config.hidden_size;

    take(t, &w->enorm, LLM_ROLE_NORM, 1, hidden, "%s.enorm.weight", layer);
    take(t, &w->hnorm, LLM_ROLE_NORM, 1, hidden, "%s.hnorm.weight", layer);
    take(t, &w->eh_proj, LLM_ROLE_MATRIX, hidden, 2 * hidden, "%s.eh_proj.weight", layer);
    take(t, &w->head_norm, LLM_ROLE_NORM, 1, hidden, "%s.shared_head.norm.weight", layer);
    take_copy(t, &w->embed, &m->embed, layer, "embed_tokens.weight");
    take_copy(t, &w->head, &m->lm_head, layer, "shared_head.head.weight");
    take_layer(t, &w->layer, layer, m->config.n_experts == 0);
}

static void take_all(struct taker *t)
{
    struct llm_model *m = t->model;
    struct llm_model_config *c = &m->config;
    char layer[MAX_NAME_BYTES / 4];

    take(t, &m->embed, LLM_ROLE_EMBEDDING, c->vocab_size, c->hidden_size,
         "model.embed_tokens.weight");
    take(t, &m->final_norm, LLM_ROLE_NORM, 1, c->hidden_size, "model.norm.weight");
    if (c->tie_word_embeddings) {
        m->lm_head = m->embed;
    } else {
        take(t, &m->lm_head, LLM_ROLE_MATRIX, c->vocab_size, c->hidden_size, "lm_head.weight");
    }

    for (uint32_t i = 0; i < c->n_layers && t->rc == LLM_OK; i++) {
        snprintf(layer, sizeof(layer), "model.layers.%u", i);
        take_layer(t, &m->layers[i], layer, i < c->n_dense_layers);
    }

    for (uint32_t i = 0; i < c->n_mtp_layers && t->rc == LLM_OK; i++) {
        snprintf(layer, sizeof(layer), "model.layers.%u", c->n_layers + i);
        take_mtp(t, &m->mtp[i], layer);
    }
}

int llm_weights_take(struct llm_model *m, const struct llm_weight_source *source,
                     struct llm_error *err)
{
    struct taker t = {.model = m, .source = source, .err = err};

    m->layers = calloc(m->config.n_layers, sizeof(*m->layers));
    m->mtp = calloc(m->config.n_mtp_layers + 1, sizeof(*m->mtp));
    if (m->layers == NULL || m->mtp == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    take_all(&t);
    return t.rc;
}

void llm_weights_free(struct llm_model *m)
{
    for (uint32_t i = 0; m->layers != NULL && i < m->config.n_layers; i++) {
        free(m->layers[i].experts);
    }
    for (uint32_t i = 0; m->mtp != NULL && i < m->config.n_mtp_layers; i++) {
        free(m->mtp[i].layer.experts);
    }
    free(m->layers);
    free(m->mtp);
}
