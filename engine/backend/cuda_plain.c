/* The general path: activations in fp32, weights of every type and width. */

#include "engine/backend/cuda_internal.h"

/* Scratch that attention may use to share a row's pages out among blocks, in floats. */
#define MAX_PARTIAL ((uint64_t) 64 << 20)

static struct llm_cuda_plain linear(struct llm_cuda_matrix w, const float *x, float *out,
                                    size_t ldo, const float *bias)
{
    return (struct llm_cuda_plain){
        .w = w, .n = w.rows, .x = x, .ldx = w.cols, .out = out, .ldo = ldo, .bias = bias,
        .n_batch = 1};
}

static void run(struct llm_backend *b, struct llm_cuda_plain l, uint32_t n_rows)
{
    llm_cuda_try(b, llm_cuda_plain_linear(&l, n_rows, llm_cuda_next(b)), "a product");
}

static void norm(struct llm_backend *b, uint32_t n, float *x, uint32_t width, const float *add,
                 const float *weight, float eps, float *out)
{
    struct llm_cuda_norm norm = {
        .n = n,
        .width = width,
        .x = x,
        .ldx = width,
        .add = add,
        .weight = weight,
        .eps = eps,
        .out_f32 = out,
        .ld_f32 = width,
    };

    llm_cuda_try(b, llm_cuda_rms_norm(&norm, llm_cuda_next(b)), "a norm");
}

/* --- attention --- */

static void project_down(struct llm_backend *b, const struct llm_cuda_layer *l, uint32_t n)
{
    const struct llm_model_config *c = &b->model->config;
    size_t q_width = (size_t) c->n_heads * (c->qk_nope_dim + c->qk_rope_dim);

    run(b, linear(l->kv_a, b->normed, b->kv, b->latent_width, NULL), n);
    if (c->q_lora_rank == 0) {
        run(b, linear(l->q, b->normed, b->q, q_width, NULL), n);
        return;
    }
    run(b, linear(l->q_a, b->normed, b->q_a, c->q_lora_rank, l->q_a_bias), n);
    norm(b, n, b->q_a, c->q_lora_rank, NULL, l->q_a_norm, c->lora_norm_eps, b->q_a);
    run(b, linear(l->q_b, b->q_a, b->q, q_width, NULL), n);
}

/* Queries into the space of the latents: W_UK^T of each head. */
static void absorb(struct llm_backend *b, const struct llm_cuda_layer *l, uint32_t n)
{
    const struct llm_model_config *c = &b->model->config;
    size_t q_head = c->qk_nope_dim + c->qk_rope_dim;

    run(b,
        (struct llm_cuda_plain){
            .w = l->kv_b,
            .n = c->qk_nope_dim,
            .first_step = c->qk_nope_dim + c->v_dim,
            .transposed = true,
            .x = b->q,
            .ldx = c->n_heads * q_head,
            .x_step = q_head,
            .out = b->query,
            .ldo = (size_t) c->n_heads * b->latent_width,
            .out_step = b->latent_width,
            .n_batch = c->n_heads,
        },
        n);
}

/* And the sums out of it: W_UV of each head. */
static void release(struct llm_backend *b, const struct llm_cuda_layer *l, uint32_t n)
{
    const struct llm_model_config *c = &b->model->config;

    run(b,
        (struct llm_cuda_plain){
            .w = l->kv_b,
            .first = c->qk_nope_dim,
            .n = c->v_dim,
            .first_step = c->qk_nope_dim + c->v_dim,
            .x = b->context,
            .ldx = (size_t) c->n_heads * c->kv_lora_rank,
            .x_step = c->kv_lora_rank,
            .out = b->attended,
            .ldo = (size_t) c->n_heads * c->v_dim,
            .out_step = c->v_dim,
            .n_batch = c->n_heads,
        },
        n);
}

/* The splits of n rows of up to n_pages are shared out where there is room for their sums. */
static struct llm_cuda_plain_attention attention_of(const struct llm_backend *b, uint32_t n,
                                                    uint32_t n_pages)
{
    struct llm_cuda_plain_attention a = {
        .rows.n = n,
        .plane = llm_cuda_plane_of(b, 0),
        .n_heads = b->model->config.n_heads,
        .max_splits = (n_pages + LLM_CUDA_PLAIN_SPLIT_PAGES - 1) / LLM_CUDA_PLAIN_SPLIT_PAGES,
        .scale = b->softmax_scale,
    };

    if (llm_cuda_plain_attention_floats(&a) > MAX_PARTIAL) {
        a.max_splits = 1;
    }
    return a;
}

uint64_t llm_cuda_plain_partial(const struct llm_backend *b)
{
    struct llm_cuda_plain_attention a =
        attention_of(b, b->max_rows, llm_cuda_graph_pages(b->max_pages));

    return a.max_splits > 1 ? llm_cuda_plain_attention_floats(&a) : MAX_PARTIAL;
}

static void attend(struct llm_backend *b, const struct llm_cuda_run *r)
{
    struct llm_cuda_plain_attention a = attention_of(b, r->rows.n, r->step->shape.pages_step);

    a.rows = r->rows;
    a.plane = llm_cuda_plane_of(b, r->layer);
    a.queries = b->query;
    a.out = b->context;
    a.partial = b->partial;
    llm_cuda_try(b, llm_cuda_plain_attend(&a, llm_cuda_next(b)), "attention");
}

static void add_attention(struct llm_backend *b, const struct llm_cuda_run *r)
{
    const struct llm_model_config *c = &b->model->config;
    const struct llm_cuda_layer *l = &b->layers[r->layer];
    struct llm_cuda_plain o = linear(l->o, b->attended, b->x, c->hidden_size, l->o_bias);
    uint32_t n = r->rows.n;

    norm(b, n, b->x, c->hidden_size, NULL, l->input_norm, c->rms_norm_eps, b->normed);
    project_down(b, l, n);
    llm_cuda_put_latents(b, r);
    absorb(b, l, n);
    attend(b, r);
    release(b, l, n);
    o.add = true;
    run(b, o, n);
}

/* --- feed-forward --- */

static void add_ffn(struct llm_backend *b, const struct llm_cuda_ffn *w, uint32_t n)
{
    uint32_t hidden = b->model->config.hidden_size, width = w->gate.rows;
    struct llm_cuda_plain down = linear(w->down, b->act, b->x, hidden, NULL);
    size_t ld = 2 * (size_t) width;

    run(b, linear(w->gate, b->normed, b->gate_up, ld, NULL), n);
    run(b, linear(w->up, b->normed, b->gate_up + width, ld, NULL), n);
    llm_cuda_try(b,
                 llm_cuda_silu_mul(b->gate_up, ld, n, width, NULL, 0, b->act, width,
                                   llm_cuda_next(b)),
                 "an activation");
    down.add = true;
    run(b, down, n);
}

static void add_experts(struct llm_backend *b, const struct llm_cuda_run *r)
{
    const struct llm_cuda_layer *l = &b->layers[r->layer];
    uint32_t n = r->rows.n, hidden = b->model->config.hidden_size;
    uint32_t size = b->model->config.expert_size;
    struct llm_cuda_pairs pairs = b->pairs;

    run(b, linear(l->router, b->normed, b->router_logits, b->router.n_experts, NULL), n);
    llm_cuda_route_rows(b, r, 0, n);
    pairs.n_tokens = n;
    llm_cuda_try(b,
                 llm_cuda_plain_experts_up(&l->plain_experts, &pairs, b->normed, hidden,
                                           b->expert_act, size, llm_cuda_next(b)),
                 "experts");
    llm_cuda_try(b,
                 llm_cuda_plain_experts_down(&l->plain_experts, &pairs, b->expert_act, size,
                                             b->expert_out, hidden, llm_cuda_next(b)),
                 "experts");
    llm_cuda_try(b,
                 llm_cuda_add_experts(&pairs, LLM_CUDA_F32, b->expert_out, hidden, hidden, b->x,
                                      hidden, llm_cuda_next(b)),
                 "experts");
}

void llm_cuda_plain_layer(struct llm_backend *b, const struct llm_cuda_run *r)
{
    const struct llm_model_config *c = &b->model->config;
    const struct llm_cuda_layer *l = &b->layers[r->layer];

    add_attention(b, r);
    norm(b, r->rows.n, b->x, c->hidden_size, NULL, l->post_attention_norm, c->rms_norm_eps,
         b->normed);
    if (l->ffn.gate.data != NULL) { /* dense, or shared */
        add_ffn(b, &l->ffn, r->rows.n);
    }
    if (l->moe) {
        add_experts(b, r);
    }
}

void llm_cuda_plain_head(struct llm_backend *b, const uint32_t *rows, uint32_t n)
{
    const struct llm_model_config *c = &b->model->config;
    struct llm_cuda_norm last = {
        .n = n,
        .width = c->hidden_size,
        .x = b->x,
        .ldx = c->hidden_size,
        .rows = rows,
        .weight = b->final_norm,
        .eps = c->rms_norm_eps,
        .out_f32 = b->head_normed,
        .ld_f32 = c->hidden_size,
    };

    llm_cuda_try(b, llm_cuda_rms_norm(&last, llm_cuda_next(b)), "the last norm");
    run(b, linear(b->lm_head, b->head_normed, b->logits, c->vocab_size, NULL), n);
}
