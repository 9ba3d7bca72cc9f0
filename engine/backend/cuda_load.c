/* The weights on the device: each matrix in its stored type, experts as the kernels want them, one
 * behind the other.
 *
 * The list of weights is gone through twice: to add up how much memory they take, and, once there
 * is some, to give each its place and note what has to be copied there. */

#include "engine/backend/cuda_internal.h"

#include <stdlib.h>

#define MAX_EXPERTS 4096 /* the router's limit */

/* A vector that goes to the device as fp32. */
struct vector {
    const struct llm_weight *w;
    float *to;
};

struct loader {
    struct llm_backend *b;
    struct llm_layout layout; /* without a base: it is only added up */
    uint64_t n_uploads, n_vectors;
    struct llm_cuda_upload *uploads; /* NULL while they are counted */
    struct vector *vectors;
};

static uint64_t element_bytes(enum llm_dtype dtype)
{
    return dtype == LLM_F32 ? 4 : dtype == LLM_F8_E4M3 ? 1 : 2;
}

static uint64_t row_bytes(const struct llm_weight *w)
{
    return w->cols * element_bytes(w->dtype);
}

static uint64_t scale_rows(const struct llm_weight *w)
{
    return w->dtype == LLM_F8_E4M3 ? ((uint64_t) w->rows + w->block_rows - 1) / w->block_rows : 0;
}

static uint64_t scale_cols(const struct llm_weight *w)
{
    return w->dtype == LLM_F8_E4M3 ? ((uint64_t) w->cols + w->block_cols - 1) / w->block_cols : 0;
}

/* --- which path --- */

static bool is_fast_matrix(const struct llm_weight *w)
{
    return w->data == NULL || w->dtype == LLM_BF16
           || (w->dtype == LLM_F8_E4M3 && w->block_rows == LLM_CUDA_SCALE_BLOCK
               && w->block_cols == LLM_CUDA_SCALE_BLOCK);
}

static bool is_fast_ffn(const struct llm_ffn_weights *w)
{
    return is_fast_matrix(&w->gate) && is_fast_matrix(&w->up) && is_fast_matrix(&w->down)
           && w->gate.dtype == w->up.dtype;
}

static bool are_fast_experts(const struct llm_model_config *c, const struct llm_layer_weights *w)
{
    enum llm_dtype dtype = w->experts[0].gate.dtype;

    for (uint32_t e = 0; e <= c->n_experts; e++) {
        const struct llm_ffn_weights *x = e < c->n_experts ? &w->experts[e] : &w->shared;

        if (e == c->n_experts && x->gate.data == NULL) {
            break;
        }
        if (!is_fast_ffn(x) || x->gate.dtype != dtype || x->down.dtype != dtype) {
            return false;
        }
    }
    return w->router.dtype == LLM_BF16
           && (dtype == LLM_BF16 || c->expert_size % LLM_CUDA_SCALE_BLOCK == 0);
}

static bool is_fast_layer(const struct llm_model_config *c, const struct llm_layer_weights *w)
{
    bool heads_are_blocks = c->qk_nope_dim % LLM_CUDA_SCALE_BLOCK == 0
                            && c->v_dim % LLM_CUDA_SCALE_BLOCK == 0;

    return is_fast_matrix(&w->q) && is_fast_matrix(&w->q_a) && is_fast_matrix(&w->q_b)
           && is_fast_matrix(&w->kv_a) && is_fast_matrix(&w->kv_b) && is_fast_matrix(&w->o)
           && (w->kv_b.dtype == LLM_BF16 || heads_are_blocks)
           && (w->experts == NULL ? is_fast_ffn(&w->ffn) : are_fast_experts(c, w));
}

bool llm_cuda_is_fast(const struct llm_model *m, const struct llm_backend_options *o)
{
    const struct llm_model_config *c = &m->config;
    const uint32_t widths[] = {c->hidden_size, c->intermediate_size, c->q_lora_rank,
                               c->qk_nope_dim, c->v_dim,             c->expert_size};
    bool even = c->n_experts % 8 == 0 && c->vocab_size % 8 == 0; /* rows of logits */

    if (o->numerics == LLM_NUMERICS_EXACT || o->latent_dtype == LLM_LATENT_F32
        || c->kv_lora_rank != LLM_CUDA_RANK || c->qk_rope_dim != LLM_CUDA_ROPE || !even
        || m->lm_head.dtype != LLM_BF16) {
        return false;
    }
    for (size_t i = 0; i < sizeof(widths) / sizeof(widths[0]); i++) {
        if (widths[i] % 64 != 0) {
            return false;
        }
    }
    for (uint32_t i = 0; i < c->n_layers; i++) {
        if (!is_fast_layer(c, &m->layers[i])) {
            return false;
        }
    }
    return true;
}

/* --- places --- */

static char *place(struct loader *l, uint64_t n, uint64_t m, uint64_t size)
{
    return llm_layout_take(&l->layout, n, m, size);
}

/* Notes a copy of rows that lie from_step bytes apart, and to_step there. */
static void add(struct loader *l, const void *from, uint64_t from_step, void *to, uint64_t to_step,
                uint64_t rows, uint64_t bytes)
{
    if (bytes == 0) {
        return;
    }
    if (l->uploads != NULL) {
        l->uploads[l->n_uploads] = (struct llm_cuda_upload){
            .from = from,
            .to = to,
            .rows = rows,
            .row_bytes = bytes,
            .from_step = from_step,
            .to_step = to_step,
        };
    }
    l->n_uploads++;
}

/* A matrix like w, but of its own size, without data yet. */
static struct llm_cuda_matrix like(const struct llm_weight *w, uint32_t rows, uint32_t cols)
{
    static const enum llm_cuda_dtype dtypes[] = {
        [LLM_F32] = LLM_CUDA_F32,
        [LLM_F16] = LLM_CUDA_F16,
        [LLM_BF16] = LLM_CUDA_BF16,
        [LLM_F8_E4M3] = LLM_CUDA_E4M3,
    };
    struct llm_cuda_matrix m = {
        .dtype = dtypes[w->dtype],
        .rows = rows,
        .cols = cols,
        .stride = cols * element_bytes(w->dtype),
        .block_rows = w->block_rows,
        .block_cols = w->block_cols,
    };

    if (w->dtype == LLM_F8_E4M3) {
        m.scale_stride = (cols + w->block_cols - 1) / w->block_cols;
    }
    return m;
}

/* A matrix as it is stored. */
static struct llm_cuda_matrix matrix(struct loader *l, const struct llm_weight *w)
{
    struct llm_cuda_matrix m = {0};
    uint64_t bytes = row_bytes(w), scale_bytes = scale_cols(w) * sizeof(float);
    char *data, *scale;

    if (w->data == NULL) {
        return m;
    }
    m = like(w, w->rows, w->cols);
    m.data = data = place(l, w->rows, bytes, 1);
    scale = place(l, scale_rows(w), scale_bytes, 1);
    m.scale = (const float *) (void *) scale;
    add(l, w->data, bytes, data, bytes, w->rows, bytes);
    add(l, w->scale, scale_bytes, scale, scale_bytes, scale_rows(w), scale_bytes);
    return m;
}

static float *vector(struct loader *l, const struct llm_weight *w)
{
    float *to;

    if (w->data == NULL) {
        return NULL;
    }
    to = (float *) (void *) place(l, w->cols, sizeof(*to), 1);
    if (l->vectors != NULL) {
        l->vectors[l->n_vectors] = (struct vector){w, to};
    }
    l->n_vectors++;
    return to;
}

static struct llm_cuda_ffn ffn(struct loader *l, const struct llm_ffn_weights *w)
{
    return (struct llm_cuda_ffn){matrix(l, &w->gate), matrix(l, &w->up), matrix(l, &w->down)};
}

/* --- the fast path's --- */

/* Room for W_UK, which kv_b has nope rows of for each head, then v rows of W_UV: transpose_keys
 * fills it. */
static struct llm_cuda_matrix room_for_keys(struct loader *l, const struct llm_weight *w)
{
    const struct llm_model_config *c = &l->b->model->config;
    struct llm_cuda_matrix m = like(w, c->kv_lora_rank, c->qk_nope_dim);
    uint64_t blocks = w->dtype == LLM_F8_E4M3 ? c->qk_nope_dim / LLM_CUDA_SCALE_BLOCK : 0;

    m.data = place(l, c->n_heads, c->qk_nope_dim, row_bytes(w));
    m.scale = (const float *) (void *) place(l, c->n_heads, blocks,
                                             scale_cols(w) * sizeof(float));
    return m;
}

/* Where the matrices of an expert of a layer are: a shared one has rows of gate and up from `row`
 * on, and columns of down. */
struct expert {
    const struct llm_ffn_weights *w;
    uint64_t row;
};

static struct expert expert_of(const struct llm_model_config *c, const struct llm_layer_weights *w,
                               uint32_t e)
{
    return e < c->n_experts
               ? (struct expert){&w->experts[e], 0}
               : (struct expert){&w->shared, (uint64_t) (e - c->n_experts) * c->expert_size};
}

static void stack_experts(struct loader *l, const struct llm_layer_weights *w,
                          struct llm_cuda_experts *out)
{
    const struct llm_model_config *c = &l->b->model->config;
    const struct llm_weight *gate = &w->experts[0].gate, *down = &w->experts[0].down;
    uint64_t n = (uint64_t) c->n_experts + c->n_shared_experts, size = c->expert_size;
    uint64_t up_bytes = size * row_bytes(gate), down_row = row_bytes(down);
    uint64_t element = element_bytes(gate->dtype);
    uint64_t up_scale = scale_rows(gate) * scale_cols(gate) * sizeof(float);
    uint64_t down_scale_row = scale_cols(down) * sizeof(float);
    char *up_data = place(l, n, 2 * up_bytes, 1), *up_scales = place(l, n, 2 * up_scale, 1);
    char *down_data = place(l, n, c->hidden_size, down_row);
    char *down_scales = place(l, n, scale_rows(down), down_scale_row);

    out->gate_up = like(gate, 2 * c->expert_size, c->hidden_size);
    out->gate_up.data = up_data;
    out->gate_up.scale = (const float *) (void *) up_scales;
    out->gate_up_step = 2 * up_bytes;
    out->gate_up_scale_step = 2 * up_scale / sizeof(float);
    out->down = like(down, c->hidden_size, c->expert_size);
    out->down.data = down_data;
    out->down.scale = (const float *) (void *) down_scales;
    out->down_step = c->hidden_size * down_row;
    out->down_scale_step = scale_rows(down) * scale_cols(down);

    for (uint32_t e = 0; e < n; e++) {
        struct expert x = expert_of(c, w, e);
        uint64_t first = x.row * row_bytes(gate);
        uint64_t blocks = x.row / LLM_CUDA_SCALE_BLOCK; /* a multiple of it, where there are any */
        uint64_t scale_first = blocks * scale_cols(gate) * sizeof(float);
        char *up_to = up_data + e * 2 * up_bytes, *scale_to = up_scales + e * 2 * up_scale;

        add(l, (const char *) x.w->gate.data + first, up_bytes, up_to, up_bytes, 1, up_bytes);
        add(l, (const char *) x.w->up.data + first, up_bytes, up_to + up_bytes, up_bytes, 1,
            up_bytes);
        add(l, (const char *) x.w->down.data + x.row * element, row_bytes(&x.w->down),
            down_data + e * out->down_step, down_row, c->hidden_size, down_row);
        if (gate->scale != NULL) {
            add(l, (const char *) x.w->gate.scale + scale_first, up_scale, scale_to, up_scale, 1,
                up_scale);
            add(l, (const char *) x.w->up.scale + scale_first, up_scale, scale_to + up_scale,
                up_scale, 1, up_scale);
            add(l, (const char *) (x.w->down.scale + blocks),
                scale_cols(&x.w->down) * sizeof(float),
                down_scales + e * out->down_scale_step * sizeof(float), down_scale_row,
                scale_rows(down), down_scale_row);
        }
    }
}

/* --- the general path's --- */

static bool is_same(const struct llm_weight *a, const struct llm_weight *b)
{
    return a->dtype == b->dtype && a->block_rows == b->block_rows
           && a->block_cols == b->block_cols;
}

static int check_experts(const struct llm_model *m, struct llm_error *err)
{
    if (m->config.n_experts > MAX_EXPERTS) {
        return llm_fail(err, LLM_EUNSUPPORTED, "more than %u experts on a GPU", MAX_EXPERTS);
    }
    for (uint32_t i = 0; i < m->config.n_layers; i++) {
        const struct llm_ffn_weights *x = m->layers[i].experts;

        for (uint32_t e = 1; x != NULL && e < m->config.n_experts; e++) {
            if (!is_same(&x[e].gate, &x[0].gate) || !is_same(&x[e].up, &x[0].up)
                || !is_same(&x[e].down, &x[0].down)) {
                return llm_fail(err, LLM_EUNSUPPORTED,
                                "layer %u has experts of different types, which a GPU cannot "
                                "take: use --device cpu", i);
            }
        }
    }
    return LLM_OK;
}

/* One of the three matrices of every expert, `offset` into struct llm_ffn_weights. */
static struct llm_cuda_matrix plain_experts(struct loader *l, const struct llm_ffn_weights *x,
                                            size_t offset, size_t *step, size_t *scale_step)
{
    uint32_t n = l->b->model->config.n_experts;
    const struct llm_weight *w = (const struct llm_weight *) (const void *)
                                 ((const char *) x + offset);
    struct llm_cuda_matrix m = like(w, w->rows, w->cols);
    uint64_t bytes = w->rows * row_bytes(w);
    uint64_t scale_bytes = scale_rows(w) * scale_cols(w) * sizeof(float);
    char *data = place(l, n, bytes, 1), *scale = place(l, n, scale_bytes, 1);

    m.data = data;
    m.scale = (const float *) (void *) scale;
    *step = bytes;
    *scale_step = scale_bytes / sizeof(float);
    for (uint32_t e = 0; e < n; e++) {
        w = (const struct llm_weight *) (const void *) ((const char *) &x[e] + offset);
        add(l, w->data, bytes, data + e * bytes, bytes, 1, bytes);
        add(l, w->scale, scale_bytes, scale + e * scale_bytes, scale_bytes, 1, scale_bytes);
    }
    return m;
}

/* --- all of them --- */

static void take_layer(struct loader *l, const struct llm_layer_weights *w,
                       struct llm_cuda_layer *out)
{
    struct llm_cuda_plain_experts *x = &out->plain_experts;

    out->input_norm = vector(l, &w->input_norm);
    out->post_attention_norm = vector(l, &w->post_attention_norm);
    out->q_a_norm = vector(l, &w->q_a_norm);
    out->kv_a_norm = vector(l, &w->kv_a_norm);
    out->q_a_bias = vector(l, &w->q_a_bias);
    out->kv_a_bias = vector(l, &w->kv_a_bias);
    out->o_bias = vector(l, &w->o_bias);
    out->router_bias = vector(l, &w->router_bias);
    out->q = matrix(l, &w->q);
    out->q_a = matrix(l, &w->q_a);
    out->q_b = matrix(l, &w->q_b);
    out->kv_a = matrix(l, &w->kv_a);
    out->o = matrix(l, &w->o);
    out->router = matrix(l, &w->router);
    out->moe = w->experts != NULL;

    out->kv_b = matrix(l, &w->kv_b);
    if (l->b->fast) {
        out->w_uk = room_for_keys(l, &w->kv_b);
    }
    if (!out->moe) {
        out->ffn = ffn(l, &w->ffn);
    } else if (l->b->fast) {
        stack_experts(l, w, &out->experts);
    } else {
        out->ffn = ffn(l, &w->shared);
        x->gate = plain_experts(l, w->experts, offsetof(struct llm_ffn_weights, gate),
                                &x->gate_step, &x->gate_scale_step);
        x->up = plain_experts(l, w->experts, offsetof(struct llm_ffn_weights, up), &x->up_step,
                              &x->up_scale_step);
        x->down = plain_experts(l, w->experts, offsetof(struct llm_ffn_weights, down),
                                &x->down_step, &x->down_scale_step);
    }
}

static void take_all(struct loader *l)
{
    struct llm_backend *b = l->b;
    const struct llm_model *m = b->model;

    b->embed = matrix(l, &m->embed);
    b->lm_head = m->lm_head.data == m->embed.data ? b->embed : matrix(l, &m->lm_head);
    b->final_norm = vector(l, &m->final_norm);
    b->inv_freq = (float *) (void *) place(l, m->config.qk_rope_dim / 2, sizeof(float), 1);
    for (uint32_t i = 0; i < m->config.n_layers; i++) {
        take_layer(l, &m->layers[i], &b->layers[i]);
    }
}

static uint64_t max(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

int llm_cuda_measure_weights(struct llm_backend *b, struct llm_error *err)
{
    const struct llm_model_config *c = &b->model->config;
    struct loader l = {.b = b};
    int rc = check_experts(b->model, err);

    if (rc != LLM_OK) {
        return rc;
    }
    b->layers = calloc(c->n_layers, sizeof(*b->layers));
    if (b->layers == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    take_all(&l);
    if (l.layout.overflow) {
        return llm_fail(err, LLM_EINVAL, "the model is too large");
    }
    b->weight_bytes = l.layout.used;

    /* what passes through the memory of steps while there are none: W_UK, scales behind it, or a
     * vector */
    b->least_scratch = (uint64_t) c->n_heads * c->qk_nope_dim * c->kv_lora_rank * sizeof(float);
    b->least_scratch = max(b->least_scratch, max(c->hidden_size, c->q_lora_rank) * sizeof(float));
    b->least_scratch = max(b->least_scratch, max(c->n_experts, b->latent_width) * sizeof(float));
    return LLM_OK;
}

static void copy(struct llm_backend *b, void *to, const void *from, size_t step, size_t bytes,
                 size_t rows)
{
    llm_cuda_try(b,
                 cudaMemcpy2DAsync(to, bytes, from, step, bytes, rows, cudaMemcpyHostToDevice,
                                   b->compute),
                 "copying the weights");
}

static void convert_vector(struct llm_backend *b, const struct vector *v)
{
    struct llm_cuda_matrix m = like(v->w, 1, v->w->cols);

    m.data = b->scratch;
    copy(b, b->scratch, v->w->data, row_bytes(v->w), row_bytes(v->w), 1);
    llm_cuda_try(b,
                 llm_cuda_unpack(&m, LLM_CUDA_F32, v->to, m.cols,
                                 (struct llm_cuda_queue){b->compute, false}),
                 "converting the weights");
}

static void transpose(struct llm_backend *b, uint32_t rows, uint32_t cols, uint32_t size,
                      const void *to)
{
    uint32_t n = b->model->config.n_heads;
    struct llm_cuda_transpose t = {
        .n = n,
        .rows = rows,
        .cols = cols,
        .size = size,
        .from = b->scratch,
        .ld_from = cols,
        .from_step = (size_t) rows * cols,
        .to = (void *) to,
        .ld_to = rows,
        .to_step = (size_t) rows * cols,
    };

    llm_cuda_try(b, llm_cuda_transpose(&t, (struct llm_cuda_queue){b->compute, false}),
                 "converting the weights");
}

/* Each head's W_UK, [nope][rank], and the scales of its blocks. */
static void transpose_keys(struct llm_backend *b, const struct llm_weight *w,
                           const struct llm_cuda_layer *out)
{
    const struct llm_model_config *c = &b->model->config;
    size_t bytes = row_bytes(w), nope = c->qk_nope_dim, head = nope + c->v_dim;
    size_t block_bytes = scale_cols(w) * sizeof(float);

    copy(b, b->scratch, w->data, head * bytes, nope * bytes, c->n_heads);
    transpose(b, c->qk_nope_dim, c->kv_lora_rank, (uint32_t) element_bytes(w->dtype),
              out->w_uk.data);
    if (w->scale != NULL) {
        copy(b, b->scratch, w->scale, head / LLM_CUDA_SCALE_BLOCK * block_bytes,
             nope / LLM_CUDA_SCALE_BLOCK * block_bytes, c->n_heads);
        transpose(b, c->qk_nope_dim / LLM_CUDA_SCALE_BLOCK, (uint32_t) scale_cols(w),
                  sizeof(float), out->w_uk.scale);
    }
}

static int convert(struct loader *l, struct llm_error *err)
{
    struct llm_backend *b = l->b;
    const struct llm_model_config *c = &b->model->config;
    float *inv_freq = calloc(c->qk_rope_dim / 2 + 1, sizeof(*inv_freq));

    if (inv_freq == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    llm_config_rope(c, inv_freq, &b->rope.magnitude, &b->softmax_scale);
    b->rope.inv_freq = b->inv_freq;
    copy(b, b->inv_freq, inv_freq, c->qk_rope_dim / 2 * sizeof(*inv_freq),
         c->qk_rope_dim / 2 * sizeof(*inv_freq), 1);
    for (uint64_t i = 0; i < l->n_vectors; i++) {
        convert_vector(b, &l->vectors[i]);
    }
    for (uint32_t i = 0; i < c->n_layers && b->fast; i++) {
        transpose_keys(b, &b->model->layers[i].kv_b, &b->layers[i]);
    }
    llm_cuda_try(b, cudaStreamSynchronize(b->compute), "converting the weights");
    free(inv_freq);
    return b->error == cudaSuccess ? LLM_OK : llm_cuda_fail(err, b->error, b->error_at);
}

int llm_cuda_load_weights(struct llm_backend *b, struct llm_error *err)
{
    struct loader l = {.b = b};
    int rc;

    take_all(&l); /* to count them */
    l.uploads = calloc(l.n_uploads, sizeof(*l.uploads));
    l.vectors = calloc(l.n_vectors, sizeof(*l.vectors));
    if (l.uploads == NULL || l.vectors == NULL) {
        rc = llm_fail(err, LLM_ENOMEM, "out of memory");
        goto done;
    }
    l.layout = (struct llm_layout){.base = b->weights};
    l.n_uploads = l.n_vectors = 0;
    take_all(&l);

    rc = llm_cuda_upload(l.uploads, l.n_uploads, b->options.device, b->options.progress,
                         b->options.progress_ctx, err);
    if (rc == LLM_OK) {
        rc = convert(&l, err);
    }

done:
    free(l.uploads);
    free(l.vectors);
    return rc;
}
