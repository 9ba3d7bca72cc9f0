/* The backend's memory: the page pool, one block for every array that steps need, and one for the
 * logits that the host may want of every row, though it hardly ever does. All are mapped at
 * load. */

#include "engine/backend/cpu_internal.h"
#include "engine/backend/layout.h"
#include "engine/base/machine.h"
#include "engine/base/memory.h"
#include "kernels/cpu/sample.h"

#include <inttypes.h>
#include <stdlib.h>

#define SCRATCH_ALIGNMENT 64

/* The vectors of a layer: where they are stored, where they go as fp32. */
#define N_VECTORS 8

struct vector {
    const struct llm_weight *w;
    float **out;
};

static void list_vectors(const struct llm_layer_weights *w, struct llm_cpu_layer *l,
                         struct vector v[N_VECTORS])
{
    v[0] = (struct vector){&w->input_norm, &l->input_norm};
    v[1] = (struct vector){&w->post_attention_norm, &l->post_attention_norm};
    v[2] = (struct vector){&w->q_a_norm, &l->q_a_norm};
    v[3] = (struct vector){&w->kv_a_norm, &l->kv_a_norm};
    v[4] = (struct vector){&w->q_a_bias, &l->q_a_bias};
    v[5] = (struct vector){&w->kv_a_bias, &l->kv_a_bias};
    v[6] = (struct vector){&w->o_bias, &l->o_bias};
    v[7] = (struct vector){&w->router_bias, &l->router_bias};
}

static void lay_out_vectors(struct llm_backend *b, struct llm_layout *l)
{
    const struct llm_model_config *c = &b->model->config;
    struct vector v[N_VECTORS];

    for (uint32_t i = 0; i < c->n_layers; i++) {
        list_vectors(&b->model->layers[i], &b->layers[i], v);
        for (uint32_t j = 0; j < N_VECTORS; j++) {
            if (v[j].w->data != NULL) {
                *v[j].out = llm_layout_take(l, v[j].w->cols, 1, sizeof(float));
            }
        }
    }
    LLM_TAKE(l, b->final_norm, c->hidden_size, 1);
    LLM_TAKE(l, b->inv_freq, c->qk_rope_dim / 2, 1);
}

static void fill_vectors(struct llm_backend *b)
{
    struct llm_cpu_matrix m = llm_cpu_matrix_of(&b->model->final_norm);
    struct vector v[N_VECTORS];

    b->kernels->unpack_row(&m, 0, b->final_norm);
    for (uint32_t i = 0; i < b->model->config.n_layers; i++) {
        list_vectors(&b->model->layers[i], &b->layers[i], v);
        for (uint32_t j = 0; j < N_VECTORS; j++) {
            if (v[j].w->data != NULL) {
                m = llm_cpu_matrix_of(v[j].w);
                b->kernels->unpack_row(&m, 0, *v[j].out);
            }
        }
    }
    llm_config_rope(&b->model->config, b->inv_freq, &b->rope_magnitude, &b->softmax_scale);
}

static void lay_out_steps(struct llm_backend *b, struct llm_layout *l)
{
    uint32_t n_seqs = b->options.max_seqs;

    for (int i = 0; i < LLM_CPU_STEPS; i++) {
        struct llm_cpu_step *s = &b->steps[i];

        LLM_TAKE(l, s->seqs, n_seqs, 1);
        LLM_TAKE(l, s->pages, n_seqs, b->max_pages);
        LLM_TAKE(l, s->masks, n_seqs, b->mask_words);
        LLM_TAKE(l, s->tokens, b->max_rows, 1);
        LLM_TAKE(l, s->flags, b->max_rows, 1);
        LLM_TAKE(l, s->sampled, n_seqs, 1);
        LLM_TAKE(l, s->top_ids, n_seqs, LLM_MAX_TOP_LOGPROBS);
        LLM_TAKE(l, s->top_logprobs, n_seqs, LLM_MAX_TOP_LOGPROBS);
    }
}

static void lay_out_activations(struct llm_backend *b, struct llm_layout *l)
{
    const struct llm_model_config *c = &b->model->config;
    uint32_t rows = b->max_rows;
    uint64_t assigned = (uint64_t) rows * c->n_experts_used;

    LLM_TAKE(l, b->row_seq, rows, 1);
    LLM_TAKE(l, b->row_position, rows, 1);
    LLM_TAKE(l, b->cos_sin, rows, c->qk_rope_dim);
    LLM_TAKE(l, b->x, rows, c->hidden_size);
    LLM_TAKE(l, b->normed, rows, c->hidden_size);

    LLM_TAKE(l, b->q_a, rows, c->q_lora_rank);
    LLM_TAKE(l, b->q, rows, (uint64_t) c->n_heads * (c->qk_nope_dim + c->qk_rope_dim));
    LLM_TAKE(l, b->kv, rows, b->latent_width);
    LLM_TAKE(l, b->query, rows, (uint64_t) c->n_heads * b->latent_width);
    LLM_TAKE(l, b->attended, rows, (uint64_t) c->n_heads * c->v_dim);
    LLM_TAKE(l, b->items, b->max_items, 1);
    LLM_TAKE(l, b->merges, b->max_items, 1);
    LLM_TAKE(l, b->partials, b->max_partials, 1);
    LLM_TAKE(l, b->linears, c->n_heads, 1);

    LLM_TAKE(l, b->router_logits, rows, c->n_experts);
    LLM_TAKE(l, b->row_experts, assigned, 1);
    LLM_TAKE(l, b->row_weights, assigned, 1);
    LLM_TAKE(l, b->expert_next, c->n_experts, 1);
    LLM_TAKE(l, b->expert_rows, assigned, 1);
    LLM_TAKE(l, b->expert_weights, assigned, 1);
    LLM_TAKE(l, b->expert_act, assigned, c->expert_size);
    LLM_TAKE(l, b->groups, c->n_experts + 1, 1);
    LLM_TAKE(l, b->act, rows, b->act_width);

    LLM_TAKE(l, b->wanted, rows, 1);
    LLM_TAKE(l, b->logits, b->options.max_seqs, c->vocab_size);
    LLM_TAKE(l, b->scratch, llm_cpu_threads_count(b->threads), b->scratch_bytes);
}

static struct llm_layout lay_out(struct llm_backend *b, char *base)
{
    struct llm_layout l = {.base = base};

    lay_out_vectors(b, &l);
    lay_out_steps(b, &l);
    lay_out_activations(b, &l);
    return l;
}

static struct llm_layout lay_out_host_logits(struct llm_backend *b, char *base)
{
    struct llm_layout l = {.base = base};

    for (int i = 0; i < LLM_CPU_STEPS; i++) {
        LLM_TAKE(&l, b->steps[i].logits, b->max_rows, b->model->config.vocab_size);
    }
    return l;
}

static size_t scratch_bytes(const struct llm_backend *b)
{
    size_t attention = llm_cpu_attention_scratch(b) * sizeof(float);
    size_t ffn = llm_cpu_ffn_scratch(b) * sizeof(float);
    size_t bytes = llm_cpu_sample_scratch(b->model->config.vocab_size);

    bytes = attention > bytes ? attention : bytes;
    bytes = ffn > bytes ? ffn : bytes;
    return (bytes + SCRATCH_ALIGNMENT - 1) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT;
}

static int size_pool(struct llm_backend *b, struct llm_error *err)
{
    uint64_t n = b->options.latent_bytes / b->layout.page_bytes;

    if (n == 0) {
        return llm_fail(err, LLM_ENOMEM,
                        "a pool of %" PRIu64 " bytes holds no page: one takes %" PRIu64,
                        b->options.latent_bytes, b->layout.page_bytes);
    }
    if (n >= UINT32_MAX) {
        n = UINT32_MAX - 1;
    }
    b->info.n_pages = (uint32_t) n;
    b->pool_bytes = n * b->layout.page_bytes;
    return LLM_OK;
}

static int map_all(struct llm_backend *b, struct llm_error *err)
{
    uint64_t usable = llm_usable_memory(""), wanted;

    if (!llm_add_u64(b->pool_bytes, b->memory_bytes, &wanted)) {
        wanted = UINT64_MAX;
    }
    if (wanted > usable) {
        return llm_fail(err, LLM_ENOMEM,
                        "the latent pool takes %zu MB and the steps up to %zu MB, where %" PRIu64
                        " MB are available: %" PRIu64 " MB are missing",
                        b->pool_bytes >> 20, b->memory_bytes >> 20, usable >> 20,
                        ((wanted - usable) >> 20) + 1);
    }

    b->pool = llm_memory_map(b->pool_bytes);
    b->memory = llm_memory_map(b->memory_bytes);
    b->host_logits = llm_memory_map(b->host_logits_bytes);
    if (b->pool == NULL || b->memory == NULL || b->host_logits == NULL) {
        return llm_fail(err, LLM_ENOMEM, "cannot map %" PRIu64 " MB", wanted >> 20);
    }
    return LLM_OK;
}

int llm_cpu_memory_init(struct llm_backend *b, struct llm_error *err)
{
    struct llm_layout l, logits;
    int rc = size_pool(b, err);

    if (rc != LLM_OK) {
        return rc;
    }

    b->layers = calloc(b->model->config.n_layers, sizeof(*b->layers));
    b->sequences = calloc(b->options.max_seqs, sizeof(*b->sequences));
    if (b->layers == NULL || b->sequences == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    rc = llm_slots_init(&b->slots, b->options.max_seqs, err);
    if (rc != LLM_OK) {
        return rc;
    }

    b->max_items = llm_cpu_attention_max_items(b);
    b->max_partials = llm_cpu_attention_max_partials(b);
    b->scratch_bytes = scratch_bytes(b);
    l = lay_out(b, NULL);
    logits = lay_out_host_logits(b, NULL);
    if (l.overflow || logits.overflow) {
        return llm_fail(err, LLM_EINVAL, "batch, context and model together are too large");
    }
    b->memory_bytes = l.used;
    b->host_logits_bytes = logits.used;
    rc = map_all(b, err);
    if (rc != LLM_OK) {
        return rc;
    }
    lay_out(b, b->memory);
    lay_out_host_logits(b, b->host_logits);
    fill_vectors(b);
    return LLM_OK;
}

void llm_cpu_memory_free(struct llm_backend *b)
{
    llm_memory_unmap(b->pool, b->pool_bytes);
    llm_memory_unmap(b->memory, b->memory_bytes);
    llm_memory_unmap(b->host_logits, b->host_logits_bytes);
    free(b->layers);
    free(b->sequences);
}
