/* The fast path: activations in bf16, the residual stream and all sums in fp32.
 *
 * Up to 64 rows the weights' bytes count, and operations for few rows are used; beyond them those
 * for many, whose sums have another order. A row that is alone in its step goes through fewer
 * launches, which do more each: what it waits for is them. Where bits must not depend on the number
 * of rows, there are only the operations for few, on 64 rows at a time. */

#include "engine/backend/cuda_internal.h"

/* Decompressed, a key and a query of a head are multiplied by 640 operations instead of 2,176;
 * decompressing takes 262,144 for each key and head: 171 queries. A prompt's own rows have but half
 * of the others before them. */
#define MIN_PROMPT_QUERIES 256
#define MAX_PROMPT_BYTES ((uint64_t) 512 << 20) /* of keys and values */

/* Queries of a sequence up to which its latents' bytes count. */
#define FEW_QUERIES 4

/* Part of the numerics where bits must not depend on the batch. */
#define DETERMINISTIC_SPLIT_PAGES 4

#define QUERY_VECTORS 16 /* that a block of attention takes */

/* Up to which a row that is alone has its attention in one launch, where every head reads all of
 * them. */
#define MAX_ALONE_KEYS 2048

/* What is shorter is summed up in one go: adding up splits takes as long as two pages. */
#define MIN_SPLIT_PAGES 2

static bool use_many(const struct llm_backend *b, uint32_t n_rows)
{
    return n_rows > LLM_CUDA_MAX_LINEAR_ROWS && !b->options.deterministic;
}

/* All linears are of one type. */
static void run_linears(struct llm_backend *b, struct llm_cuda_linear *l, uint32_t n,
                        uint32_t n_rows)
{
    if (use_many(b, n_rows)) {
        llm_cuda_try(b, llm_cuda_linears_many(l, n, n_rows, llm_cuda_next(b)), "a product");
        return;
    }
    for (uint32_t row = 0; row < n_rows; row += LLM_CUDA_MAX_LINEAR_ROWS) {
        uint32_t left = n_rows - row;

        llm_cuda_try(b,
                     llm_cuda_linears(l, n,
                                      left < LLM_CUDA_MAX_LINEAR_ROWS ? left
                                                                      : LLM_CUDA_MAX_LINEAR_ROWS,
                                      llm_cuda_next(b)),
                     "a product");
        for (uint32_t i = 0; i < n; i++) {
            size_t element = l[i].store == LLM_CUDA_SET_BF16 ? 2 : 4;

            l[i].x = (const char *) l[i].x + LLM_CUDA_MAX_LINEAR_ROWS * l[i].ldx * 2;
            l[i].out = (char *) l[i].out + LLM_CUDA_MAX_LINEAR_ROWS * l[i].ldo * element;
        }
    }
}

static void run_linear(struct llm_backend *b, struct llm_cuda_linear l, uint32_t n_rows)
{
    run_linears(b, &l, 1, n_rows);
}

/* Two that have nothing to do with one another. */
static void run_both(struct llm_backend *b, struct llm_cuda_linear first,
                     struct llm_cuda_linear second, uint32_t n_rows)
{
    struct llm_cuda_linear both[2] = {first, second};

    if (first.w.dtype == second.w.dtype) {
        run_linears(b, both, 2, n_rows);
    } else {
        run_linear(b, first, n_rows);
        run_linear(b, second, n_rows);
    }
}

/* x in rows of bf16, as wide as the matrix, or n_batch such pieces of wider rows. */
static struct llm_cuda_linear linear(struct llm_cuda_matrix w, const void *x, size_t ldx, void *out,
                                     size_t ldo, enum llm_cuda_store store)
{
    return (struct llm_cuda_linear){
        .w = w, .x = x, .ldx = ldx, .out = out, .ldo = ldo, .store = store, .n_batch = 1};
}

/* A matrix for each head, their first rows so many rows apart. */
static struct llm_cuda_linear by_head(const struct llm_backend *b, struct llm_cuda_linear l,
                                      size_t head_rows, size_t x_step, size_t out_step)
{
    l.n_batch = b->model->config.n_heads;
    l.w_step = head_rows * l.w.stride;
    l.scale_step = l.w.dtype == LLM_CUDA_E4M3
                       ? head_rows / LLM_CUDA_SCALE_BLOCK * l.w.scale_stride : 0;
    l.x_step = x_step;
    l.out_step = out_step;
    return l;
}

/* The first head's W_UV. */
static struct llm_cuda_matrix values_of(const struct llm_backend *b, struct llm_cuda_matrix kv_b)
{
    uint32_t nope = b->model->config.qk_nope_dim;

    kv_b.rows = b->model->config.v_dim;
    kv_b.data = (const char *) kv_b.data + nope * kv_b.stride;
    if (kv_b.dtype == LLM_CUDA_E4M3) {
        kv_b.scale += nope / LLM_CUDA_SCALE_BLOCK * kv_b.scale_stride;
    }
    return kv_b;
}

static void norm(struct llm_backend *b, uint32_t n, const float *add, const float *weight)
{
    const struct llm_model_config *c = &b->model->config;
    struct llm_cuda_norm norm = {
        .n = n,
        .width = c->hidden_size,
        .x = b->x,
        .ldx = c->hidden_size,
        .add = add,
        .weight = weight,
        .eps = c->rms_norm_eps,
        .out_bf16 = b->normed,
        .ld_bf16 = c->hidden_size,
    };

    llm_cuda_try(b, llm_cuda_rms_norm(&norm, llm_cuda_next(b)), "a norm");
}

/* --- attention --- */

static void project_down(struct llm_backend *b, const struct llm_cuda_layer *l, uint32_t n)
{
    const struct llm_model_config *c = &b->model->config;
    size_t hidden = c->hidden_size;
    size_t q_width = (size_t) c->n_heads * (c->qk_nope_dim + c->qk_rope_dim);
    struct llm_cuda_linear kv = linear(l->kv_a, b->normed, hidden, b->kv, b->latent_width,
                                       LLM_CUDA_SET_F32);
    struct llm_cuda_norm norm_q = {
        .n = n,
        .width = c->q_lora_rank,
        .x = b->q_a,
        .ldx = c->q_lora_rank,
        .add = l->q_a_bias,
        .weight = l->q_a_norm,
        .eps = c->lora_norm_eps,
        .out_bf16 = b->q_a_normed,
        .ld_bf16 = c->q_lora_rank,
    };

    if (c->q_lora_rank == 0) {
        run_both(b, linear(l->q, b->normed, hidden, b->q, q_width, LLM_CUDA_SET_BF16), kv, n);
        return;
    }
    run_both(b, linear(l->q_a, b->normed, hidden, b->q_a, c->q_lora_rank, LLM_CUDA_SET_F32), kv,
             n);
    llm_cuda_try(b, llm_cuda_rms_norm(&norm_q, llm_cuda_next(b)), "a norm");
    run_linear(b, linear(l->q_b, b->q_a_normed, c->q_lora_rank, b->q, q_width, LLM_CUDA_SET_BF16),
               n);
}

/* Blocks that all processors are busy with. */
static uint64_t wanted_blocks(const struct llm_backend *b)
{
    return 2 * (uint64_t) b->n_processors;
}

/* Blocks that read each page. */
static uint64_t blocks_of(const struct llm_backend *b, uint32_t n_seqs, uint32_t n_queries)
{
    uint64_t vectors = (uint64_t) n_queries * b->model->config.n_heads;

    return n_seqs * ((vectors + QUERY_VECTORS - 1) / QUERY_VECTORS);
}

/* How many pages are summed up on their own. */
static uint32_t split_pages(const struct llm_backend *b, uint32_t n_seqs, uint32_t n_queries,
                            uint32_t n_pages)
{
    uint64_t wanted = wanted_blocks(b);
    uint64_t n = (blocks_of(b, n_seqs, n_queries) * n_pages + wanted - 1) / wanted;

    if (b->options.deterministic) {
        return DETERMINISTIC_SPLIT_PAGES;
    }
    return n > MIN_SPLIT_PAGES ? (uint32_t) n : MIN_SPLIT_PAGES;
}

static struct llm_cuda_attention attention_of(const struct llm_backend *b, uint32_t n_seqs,
                                              uint32_t n_queries, uint32_t n_pages)
{
    struct llm_cuda_attention a = {
        .dtype = b->layout.dtype == LLM_LATENT_FP8 ? LLM_CUDA_LATENT_FP8 : LLM_CUDA_LATENT_BF16,
        .page_step = b->layout.page_bytes,
        .n_seqs = n_seqs,
        .n_queries = n_queries,
        .n_heads = b->model->config.n_heads,
        .split_pages = split_pages(b, n_seqs, n_queries, n_pages),
        .scale = b->softmax_scale,
    };

    a.max_splits = (n_pages + a.split_pages - 1) / a.split_pages;
    return a;
}

static bool is_few(const struct llm_backend *b, uint32_t n_queries)
{
    return n_queries <= FEW_QUERIES || b->options.deterministic;
}

uint64_t llm_cuda_fast_partial(const struct llm_backend *b)
{
    uint32_t n_pages = llm_cuda_graph_pages(b->max_pages);
    uint64_t most = (uint64_t) b->model->config.n_heads * LLM_CUDA_MAX_ALONE; /* of a row alone */

    /* what is largest is not said: splits are the longer the more sequences there are */
    for (uint32_t queries = 1; queries <= LLM_CUDA_MAX_LINEAR_ROWS; queries++) {
        for (uint32_t seqs = 1; seqs * queries <= LLM_CUDA_MAX_LINEAR_ROWS; seqs++) {
            struct llm_cuda_attention a = attention_of(b, seqs, queries, n_pages);
            uint64_t floats;

            if (!b->options.deterministic) { /* of whatever number of pages */
                a.max_splits = (uint32_t) (wanted_blocks(b) / blocks_of(b, seqs, queries) + 1);
            }
            floats = is_few(b, queries) ? llm_cuda_attention_floats(&a) : 0;
            most = floats > most ? floats : most;
        }
    }
    return most;
}

/* From b->q to b->attended through the space of the latents, where all heads share a row. */
static void attend(struct llm_backend *b, const struct llm_cuda_run *r,
                   const struct llm_cuda_piece *p)
{
    const struct llm_model_config *c = &b->model->config;
    const struct llm_cuda_layer *l = &b->layers[r->layer];
    size_t heads = c->n_heads, nope = c->qk_nope_dim, rank = c->kv_lora_rank, v = c->v_dim;
    size_t q_head = nope + c->qk_rope_dim, width = b->latent_width, row = p->row * heads;
    const char *q = (const char *) b->q + row * q_head * 2;
    char *query = (char *) b->query + row * width * 2;
    char *context = (char *) b->context + row * rank * 2;
    char *attended = (char *) b->attended + row * v * 2;
    uint32_t n = p->n_seqs * p->n_queries;
    struct llm_cuda_attention a =
        attention_of(b, p->n_seqs, p->n_queries, (uint32_t) llm_cuda_pages(p->n_keys));

    a.latents = llm_cuda_plane_of(b, r->layer).data;
    a.pages = r->rows.pages + p->line * r->rows.pages_step;
    a.pages_step = r->rows.pages_step;
    a.n_keys = r->n_keys + p->key;
    a.queries = query;
    a.out = context;
    a.partial = b->partial;

    run_linear(b,
               by_head(b, linear(l->w_uk, q, heads * q_head, query, heads * width,
                                 LLM_CUDA_SET_BF16), rank, q_head, width), n);
    llm_cuda_try(b,
                 is_few(b, p->n_queries) ? llm_cuda_attend(&a, llm_cuda_next(b))
                                         : llm_cuda_attend_many(&a, llm_cuda_next(b)),
                 "attention");
    run_linear(b,
               by_head(b, linear(values_of(b, l->kv_b), context, heads * rank, attended, heads * v,
                                 LLM_CUDA_SET_BF16), nope + v, rank, v), n);
}

uint32_t llm_cuda_fast_prompt_keys(const struct llm_backend *b)
{
    const struct llm_model_config *c = &b->model->config;
    uint64_t bytes = (uint64_t) c->n_heads * (c->qk_nope_dim + c->v_dim) * 2;
    uint64_t n = MAX_PROMPT_BYTES / bytes;

    if (b->options.deterministic || c->qk_nope_dim != LLM_CUDA_NOPE || c->v_dim != LLM_CUDA_V
        || !llm_cuda_attends_prompts()) {
        return 0;
    }
    return n < b->options.max_context ? (uint32_t) n : b->options.max_context;
}

/* The same in the heads' own space: keys and values of all the sequence's rows are made first,
 * which pays for many queries. */
static void attend_prompt(struct llm_backend *b, const struct llm_cuda_run *r,
                          const struct llm_cuda_piece *p)
{
    const struct llm_model_config *c = &b->model->config;
    struct llm_cuda_plane plane = llm_cuda_plane_of(b, r->layer);
    size_t heads = c->n_heads, nope = c->qk_nope_dim, rank = c->kv_lora_rank, v = c->v_dim;
    size_t q_head = nope + c->qk_rope_dim, width = b->latent_width, row = p->row * heads;
    struct llm_cuda_prompt a = {
        .n_queries = p->n_queries,
        .n_keys = p->n_keys,
        .n_heads = c->n_heads,
        .scale = b->softmax_scale,
        .q = (const char *) b->q + row * q_head * 2,
        .ld_q = heads * q_head,
        .q_step = q_head,
        .q_rope = (const char *) b->query + (row * width + rank) * 2,
        .ld_q_rope = heads * width,
        .q_rope_step = width,
        .kv = b->prompt_kv,
        .ld_kv = heads * (nope + v),
        .rope = (const char *) b->prompt_rows + rank * 2,
        .ld_rope = width,
        .out = (char *) b->attended + row * v * 2,
        .ld_out = heads * v,
    };

    llm_cuda_try(b,
                 llm_cuda_gather(&plane, r->rows.pages + p->line * r->rows.pages_step, p->n_keys,
                                 b->prompt_rows, width, llm_cuda_next(b)),
                 "attention");
    run_linear(b,
               linear(b->layers[r->layer].kv_b, b->prompt_rows, width, b->prompt_kv,
                      heads * (nope + v), LLM_CUDA_SET_BF16), p->n_keys);
    llm_cuda_try(b, llm_cuda_attend_prompt(&a, llm_cuda_next(b)), "attention");
}

static void project_out(struct llm_backend *b, const struct llm_cuda_layer *l, uint32_t n)
{
    const struct llm_model_config *c = &b->model->config;
    size_t width = (size_t) c->n_heads * c->v_dim;

    run_linear(b, linear(l->o, b->attended, width, b->x, c->hidden_size, LLM_CUDA_ADD_F32), n);
}

static void attention(struct llm_backend *b, const struct llm_cuda_run *r)
{
    const struct llm_cuda_layer *l = &b->layers[r->layer];
    uint32_t n = r->rows.n;

    norm(b, n, NULL, l->input_norm);
    project_down(b, l, n);
    llm_cuda_put_latents(b, r);
    for (uint32_t i = 0; i < r->step->n_pieces; i++) {
        const struct llm_cuda_piece *p = &r->step->pieces[i];

        if (p->n_seqs == 1 && p->n_queries >= MIN_PROMPT_QUERIES && p->n_keys <= b->prompt_keys) {
            attend_prompt(b, r, p);
        } else {
            attend(b, r, p);
        }
    }
    project_out(b, l, n);
}

/* --- feed-forward --- */

static void dense(struct llm_backend *b, const struct llm_cuda_ffn *w, uint32_t n)
{
    size_t hidden = b->model->config.hidden_size, width = w->gate.rows;
    size_t ld = 2 * width;

    run_both(b, linear(w->gate, b->normed, hidden, b->gate_up, ld, LLM_CUDA_SET_F32),
             linear(w->up, b->normed, hidden, b->gate_up + width, ld, LLM_CUDA_SET_F32), n);
    llm_cuda_try(b,
                 llm_cuda_silu_mul(b->gate_up, ld, n, w->gate.rows, b->act, width, NULL, 0,
                                   llm_cuda_next(b)),
                 "an activation");
    run_linear(b, linear(w->down, b->act, width, b->x, hidden, LLM_CUDA_ADD_F32), n);
}

static void many_experts(struct llm_backend *b, const struct llm_cuda_experts *e,
                         const struct llm_cuda_pairs *p)
{
    size_t hidden = b->model->config.hidden_size, size = b->model->config.expert_size;
    uint32_t max_pairs = p->n_tokens * p->per_token;

    llm_cuda_try(b,
                 llm_cuda_spread_rows(p, max_pairs, b->normed, hidden, (uint32_t) hidden,
                                      b->expert_out, hidden, llm_cuda_next(b)),
                 "experts");
    llm_cuda_try(b,
                 llm_cuda_experts_up_many(e, p, max_pairs, b->expert_out, hidden, b->expert_act,
                                          size, llm_cuda_next(b)),
                 "experts");
    llm_cuda_try(b,
                 llm_cuda_experts_down_many(e, p, max_pairs, b->expert_act, size, b->expert_out,
                                            hidden, llm_cuda_next(b)),
                 "experts");
    llm_cuda_try(b,
                 llm_cuda_add_experts(p, LLM_CUDA_BF16, b->expert_out, hidden,
                                      (uint32_t) hidden, b->x, hidden, llm_cuda_next(b)),
                 "experts");
}

/* For no more than 64 rows from `row` on. */
static void few_experts(struct llm_backend *b, const struct llm_cuda_experts *e,
                        const struct llm_cuda_pairs *pairs, uint32_t row)
{
    size_t hidden = b->model->config.hidden_size, size = b->model->config.expert_size;
    struct llm_cuda_pairs few = *pairs, *p = &few;

    if (p->max_active > p->n_tokens * p->per_token) {
        p->max_active = p->n_tokens * p->per_token;
    }
    llm_cuda_try(b,
                 llm_cuda_experts_up(e, p, (const char *) b->normed + row * hidden * 2, hidden,
                                     b->expert_act, size, llm_cuda_next(b)),
                 "experts");
    llm_cuda_try(b,
                 llm_cuda_experts_down(e, p, b->expert_act, size, b->x + row * hidden, hidden,
                                       llm_cuda_next(b)),
                 "experts");
}

static void experts(struct llm_backend *b, const struct llm_cuda_run *r)
{
    const struct llm_cuda_layer *l = &b->layers[r->layer];
    uint32_t n = r->rows.n, n_experts = b->router.n_experts;
    struct llm_cuda_pairs pairs = b->pairs;

    run_linear(b,
               linear(l->router, b->normed, b->model->config.hidden_size, b->router_logits,
                      n_experts, LLM_CUDA_SET_F32), n);
    if (use_many(b, n)) {
        llm_cuda_route_rows(b, r, 0, n);
        pairs.n_tokens = n;
        many_experts(b, &l->experts, &pairs);
        return;
    }
    for (uint32_t row = 0; row < n; row += pairs.n_tokens) {
        pairs.n_tokens = n - row < LLM_CUDA_MAX_LINEAR_ROWS ? n - row : LLM_CUDA_MAX_LINEAR_ROWS;
        llm_cuda_route_rows(b, r, row, pairs.n_tokens);
        few_experts(b, &l->experts, &pairs, row);
    }
}

/* --- a row that is alone --- */

/* Of shapes that the launches for it can do. */
static bool is_alone(const struct llm_backend *b, const struct llm_cuda_run *r)
{
    const struct llm_model_config *c = &b->model->config;
    const struct llm_cuda_layer *l = &b->layers[r->layer];

    return r->step->decode && r->rows.n == 1 && b->has_clusters && !b->options.deterministic
           && c->hidden_size % 256 == 0 && c->hidden_size <= LLM_CUDA_MAX_ALONE
           && c->q_lora_rank == 0 && l->q.dtype == l->kv_a.dtype
           && (!l->moe || (c->n_experts <= LLM_CUDA_MAX_JOIN
                           && b->router.n_used + b->router.n_shared <= LLM_CUDA_MAX_JOIN));
}

/* Of contexts and heads that llm_cuda_alone is for. */
static bool attends_alone(const struct llm_backend *b, const struct llm_cuda_run *r)
{
    const struct llm_model_config *c = &b->model->config;
    const struct llm_cuda_layer *l = &b->layers[r->layer];

    return r->step->pieces[0].n_keys <= MAX_ALONE_KEYS && c->qk_nope_dim == LLM_CUDA_NOPE
           && c->v_dim == LLM_CUDA_V && l->kv_b.dtype == l->o.dtype;
}

/* x += n_parts rows of b->partial, the heads' parts; then its norm and the choice of experts. */
static void join(struct llm_backend *b, const struct llm_cuda_run *r, uint32_t n_parts)
{
    const struct llm_model_config *c = &b->model->config;
    const struct llm_cuda_layer *l = &b->layers[r->layer];
    struct llm_cuda_join j = {
        .x = b->x,
        .add = b->partial,
        .n_add = n_parts,
        .width = c->hidden_size,
        .bias = l->o_bias,
        .weight = l->post_attention_norm,
        .eps = c->rms_norm_eps,
        .normed = b->normed,
    };

    if (l->moe) {
        j.router = l->router;
        j.route = llm_cuda_route_of(b, r, 0, 1);
    }
    llm_cuda_try(b, llm_cuda_join(&j, llm_cuda_next(b)), "the router");
}

static void attend_alone(struct llm_backend *b, const struct llm_cuda_run *r)
{
    const struct llm_model_config *c = &b->model->config;
    const struct llm_cuda_layer *l = &b->layers[r->layer];
    struct llm_cuda_alone a = {
        .latents = llm_cuda_latents_of(b, r),
        .w_uk = l->w_uk,
        .w_uv = values_of(b, l->kv_b),
        .o = l->o,
        .value_step = c->qk_nope_dim + c->v_dim,
        .scale = b->softmax_scale,
        .out = b->partial,
    };

    llm_cuda_try(b, llm_cuda_alone(&a, llm_cuda_next(b)), "attention");
    join(b, r, c->n_heads);
}

static void layer_alone(struct llm_backend *b, const struct llm_cuda_run *r)
{
    const struct llm_model_config *c = &b->model->config;
    const struct llm_cuda_layer *l = &b->layers[r->layer];
    size_t q_width = (size_t) c->n_heads * (c->qk_nope_dim + c->qk_rope_dim);
    struct llm_cuda_linear down[2] = {
        linear(l->q, NULL, 0, b->q, q_width, LLM_CUDA_SET_BF16),
        linear(l->kv_a, NULL, 0, b->kv, b->latent_width, LLM_CUDA_SET_F32),
    };
    struct llm_cuda_norm input_norm = {
        .n = 1,
        .width = c->hidden_size,
        .x = b->x,
        .weight = l->input_norm,
        .eps = c->rms_norm_eps,
    };
    struct llm_cuda_pairs pairs = b->pairs;

    llm_cuda_try(b, llm_cuda_linears_normed(down, 2, &input_norm, llm_cuda_next(b)), "a product");
    if (attends_alone(b, r)) {
        attend_alone(b, r);
    } else {
        llm_cuda_put_latents(b, r);
        attend(b, r, &r->step->pieces[0]);
        project_out(b, l, 1);
        join(b, r, 0);
    }
    if (l->moe) {
        pairs.n_tokens = 1;
        few_experts(b, &l->experts, &pairs, 0);
    } else {
        dense(b, &l->ffn, 1);
    }
}

void llm_cuda_fast_layer(struct llm_backend *b, const struct llm_cuda_run *r)
{
    const struct llm_cuda_layer *l = &b->layers[r->layer];

    if (is_alone(b, r)) {
        layer_alone(b, r);
        return;
    }

    attention(b, r);
    norm(b, r->rows.n, l->o_bias, l->post_attention_norm);
    if (l->moe) {
        experts(b, r);
    } else {
        dense(b, &l->ffn, r->rows.n);
    }
}

void llm_cuda_fast_head(struct llm_backend *b, const uint32_t *rows, uint32_t n)
{
    const struct llm_model_config *c = &b->model->config;
    struct llm_cuda_norm norm = {
        .n = n,
        .width = c->hidden_size,
        .x = b->x,
        .ldx = c->hidden_size,
        .rows = rows,
        .weight = b->final_norm,
        .eps = c->rms_norm_eps,
        .out_bf16 = b->head_normed,
        .ld_bf16 = c->hidden_size,
    };

    llm_cuda_try(b, llm_cuda_rms_norm(&norm, llm_cuda_next(b)), "the last norm");
    run_linear(b,
               linear(b->lm_head, b->head_normed, c->hidden_size, b->logits, c->vocab_size,
                      LLM_CUDA_SET_F32), n);
}
