/* Multi-head latent attention in the absorbed form (DeepSeek-V2, arXiv 2405.04434, section 2.1):
 * queries are taken into the space of the latents by W_UK, all heads share the one latent row of
 * a position, and W_UV takes the sums out again. Keys and values are always read through pages.
 *
 * A query's sums run over its pages in order, in splits of SPLIT_PAGES that are summed up on their
 * own and then added one after the other: by one thread, or by several where others would wait for
 * it, with the same bits. */

#include "engine/backend/cpu_internal.h"
#include "kernels/cpu/rope.h"

#include <math.h>
#include <string.h>

#define QUERIES 64           /* query vectors (row, head) that share an unpacked page */
#define SPLIT_PAGES 2        /* part of the numerics, see above */
#define MAX_SPLIT_ITEMS 4096 /* of a step */
#define ABSORB_COLS 128      /* latent columns that one task of absorb makes */

/* The running sums of n query vectors. */
struct sums {
    float *context; /* [n][rank] */
    float *max;     /* [n] */
    float *sum;     /* [n] */
};

static struct sums sums_at(float *p, uint32_t n, uint32_t rank)
{
    return (struct sums){p, p + (size_t) n * rank, p + (size_t) n * (rank + 1)};
}

static size_t sums_floats(const struct llm_backend *b, uint32_t n)
{
    return (size_t) n * (b->model->config.kv_lora_rank + (size_t) 2);
}

static uint32_t heads_per_item(const struct llm_backend *b)
{
    return b->model->config.n_heads < QUERIES ? b->model->config.n_heads : QUERIES;
}

static uint32_t rows_per_item(const struct llm_backend *b)
{
    return QUERIES / heads_per_item(b);
}

static uint32_t item_pages(const struct llm_cpu_attention_item *item)
{
    return (item->position + item->n_rows - 1) / LLM_PAGE_TOKENS + 1;
}

/* Whether whole item i of n is worth sharing, in a step of n_splits: what is longer than half of a
 * thread's fair share; and the last ones, where there is not one for each thread. */
static bool is_shared(const struct llm_backend *b, const struct llm_cpu_attention_item *item,
                      uint32_t i, uint32_t n, uint64_t n_splits)
{
    uint32_t n_threads = llm_cpu_threads_count(b->threads);

    return item->n_splits > 1
           && (item->n_splits > n_splits / (2 * (uint64_t) n_threads) || i >= n - n % n_threads);
}

/* Fewer than two items a thread are longer than half a share; the last ones are few. */
static uint32_t max_split_items(const struct llm_backend *b)
{
    uint32_t n_threads = llm_cpu_threads_count(b->threads);
    uint64_t n = (uint64_t) 2 * n_threads * ((b->max_pages + SPLIT_PAGES - 1) / SPLIT_PAGES);

    if (n_threads == 1) {
        return 0;
    }
    return n < MAX_SPLIT_ITEMS ? (uint32_t) n : MAX_SPLIT_ITEMS;
}

uint32_t llm_cpu_attention_max_items(const struct llm_backend *b)
{
    uint32_t per_row = (b->model->config.n_heads + heads_per_item(b) - 1) / heads_per_item(b);

    return (b->max_rows / rows_per_item(b) + b->options.max_seqs) * per_row + max_split_items(b);
}

size_t llm_cpu_attention_max_partials(const struct llm_backend *b)
{
    return sums_floats(b, QUERIES) * max_split_items(b);
}

/* for dot and mix over a page; scores and two sets of sums come after it */
static size_t page_scratch(void)
{
    size_t mix = llm_cpu_mix_scratch(LLM_PAGE_TOKENS);

    return mix > LLM_CPU_DOT_SCRATCH ? mix : LLM_CPU_DOT_SCRATCH;
}

size_t llm_cpu_attention_scratch(const struct llm_backend *b)
{
    size_t absorb = llm_cpu_mix_scratch(b->model->config.qk_nope_dim);
    size_t attend = page_scratch() + QUERIES * LLM_PAGE_TOKENS + 2 * sums_floats(b, QUERIES);

    return attend > absorb ? attend : absorb;
}

/* Puts the step's items into b->merges, for the moment whole: the last rows, which see most, come
 * first. Returns how many splits they have together. */
static uint64_t list_whole(struct llm_backend *b, uint32_t *n)
{
    const struct llm_cpu_step *s = b->step;
    uint32_t n_heads = b->model->config.n_heads, per_item = heads_per_item(b);
    uint32_t rows = rows_per_item(b), end = s->n_rows;
    uint64_t n_splits = 0;

    *n = 0;
    for (uint32_t i = s->n_seqs; i-- > 0; end -= s->seqs[i].n_rows) {
        const struct llm_step_seq *seq = &s->seqs[i];
        uint32_t first = end - seq->n_rows;

        for (uint32_t block = (seq->n_rows + rows - 1) / rows; block-- > 0;) {
            uint32_t at = block * rows;

            for (uint32_t head = 0; head < n_heads; head += per_item) {
                struct llm_cpu_attention_item item = {
                    .seq = seq,
                    .row = first + at,
                    .n_rows = seq->n_rows - at < rows ? seq->n_rows - at : rows,
                    .position = seq->position + at,
                    .head = head,
                    .n_heads = n_heads - head < per_item ? n_heads - head : per_item,
                };

                item.n_splits = (item_pages(&item) + SPLIT_PAGES - 1) / SPLIT_PAGES;
                n_splits += item.n_splits;
                b->merges[(*n)++] = item;
            }
        }
    }
    return n_splits;
}

/* An item for each split of a whole one, whose sums begin at its `partial`. */
static void add_splits(struct llm_backend *b, const struct llm_cpu_attention_item *whole)
{
    size_t floats = sums_floats(b, whole->n_rows * whole->n_heads);

    for (uint32_t i = 0; i < whole->n_splits; i++) {
        struct llm_cpu_attention_item item = *whole;

        item.split = i;
        item.n_splits = 1;
        item.partial = whole->partial + i * floats;
        b->items[b->n_items++] = item;
    }
}

void llm_cpu_attention_plan(struct llm_backend *b)
{
    uint32_t n_whole, left = max_split_items(b);
    uint64_t n_splits = list_whole(b, &n_whole);
    float *partial = b->partials;

    b->n_items = 0;
    b->n_merges = 0;
    for (uint32_t i = 0; i < n_whole; i++) {
        struct llm_cpu_attention_item item = b->merges[i];

        if (!is_shared(b, &item, i, n_whole, n_splits) || item.n_splits > left) {
            b->items[b->n_items++] = item;
            continue;
        }
        item.partial = partial;
        b->merges[b->n_merges++] = item;
        add_splits(b, &item);
        partial += item.n_splits * sums_floats(b, item.n_rows * item.n_heads);
        left -= item.n_splits;
    }
}

/* What lies between the down and up projections: the norm of q_a; norm and rotation of the
 * latents and their way into the pages. */
static void latent_rows(struct llm_backend *b, uint32_t row, uint32_t n, uint32_t thread)
{
    const struct llm_model_config *c = &b->model->config;
    const struct llm_cpu_layer *l = &b->layers[b->layer];
    const struct llm_cpu_kernels *k = b->kernels;

    (void) thread;
    for (size_t r = row; r < row + n; r++) {
        uint32_t position = b->row_position[r];
        float *q_a = b->q_a + r * c->q_lora_rank, *kv = b->kv + r * b->latent_width;
        char *latent;

        if (c->q_lora_rank > 0) {
            k->rms_norm(q_a, l->q_a_norm, c->q_lora_rank, c->lora_norm_eps, q_a);
        }

        if (b->step->flags[r] & LLM_ROW_NO_WRITE) {
            continue;
        }
        k->rms_norm(kv, l->kv_a_norm, c->kv_lora_rank, c->lora_norm_eps, kv);
        llm_cpu_rope(kv + c->kv_lora_rank, b->cos_sin + r * c->qk_rope_dim, c->qk_rope_dim / 2);
        latent = llm_cpu_latent_row(b, b->row_seq[r]->pages[position / LLM_PAGE_TOKENS], b->layer,
                                    position % LLM_PAGE_TOKENS);
        llm_cpu_latent_pack(b, kv, latent);
    }
}

static void project_down(struct llm_backend *b, const struct llm_layer_weights *w)
{
    const struct llm_model_config *c = &b->model->config;
    const struct llm_cpu_layer *l = &b->layers[b->layer];
    uint32_t q_width = c->n_heads * (c->qk_nope_dim + c->qk_rope_dim);
    struct llm_cpu_linear down[2] = {
        {
            .w = &w->kv_a,
            .n_outs = b->latent_width,
            .out = b->kv,
            .ldo = b->latent_width,
            .bias = l->kv_a_bias,
        },
        {
            .w = &w->q_a,
            .n_outs = c->q_lora_rank,
            .out = b->q_a,
            .ldo = c->q_lora_rank,
            .bias = l->q_a_bias,
        },
    };

    if (c->q_lora_rank == 0) {
        down[1] = (struct llm_cpu_linear){
            .w = &w->q, .n_outs = q_width, .out = b->q, .ldo = q_width};
    }
    down[0].x = down[1].x = b->normed;
    down[0].ldx = down[1].ldx = c->hidden_size;
    llm_cpu_linears(b, down, 2, b->step->n_rows);
    llm_cpu_for_rows(b, b->step->n_rows, latent_rows);

    if (c->q_lora_rank > 0) {
        struct llm_cpu_linear up = {
            .w = &w->q_b,
            .n_outs = q_width,
            .x = b->q_a,
            .ldx = c->q_lora_rank,
            .out = b->q,
            .ldo = q_width,
        };

        llm_cpu_linears(b, &up, 1, b->step->n_rows);
    }
}

struct absorb {
    struct llm_backend *b;
    uint32_t n_col_tasks, task_rows, n_row_tasks;
};

/* query = W_UK^T q_nope for a head, some of its latent columns and rows; with the first columns
 * goes the rotated rest of the query. */
static void absorb_task(void *ctx, uint32_t task, uint32_t thread)
{
    const struct absorb *a = ctx;
    struct llm_backend *b = a->b;
    const struct llm_model_config *c = &b->model->config;
    struct llm_cpu_matrix w = llm_cpu_matrix_of(&b->model->layers[b->layer].kv_b);
    uint32_t row = task % a->n_row_tasks * a->task_rows;
    uint32_t col = task / a->n_row_tasks % a->n_col_tasks * ABSORB_COLS;
    uint32_t head = task / a->n_row_tasks / a->n_col_tasks;
    uint32_t left = b->step->n_rows - row, width = c->qk_nope_dim + c->qk_rope_dim;
    uint32_t n_rows = left < a->task_rows ? left : a->task_rows;
    uint32_t n_cols = c->kv_lora_rank - col < ABSORB_COLS ? c->kv_lora_rank - col : ABSORB_COLS;
    size_t ldq = (size_t) c->n_heads * width, ldo = (size_t) c->n_heads * b->latent_width;
    const float *q = b->q + row * ldq + head * width;
    float *query = b->query + row * ldo + head * b->latent_width;

    b->kernels->mix(&w, head * (c->qk_nope_dim + c->v_dim), c->qk_nope_dim, col, n_cols, q, ldq,
                    n_rows, NULL, query + col, ldo, llm_cpu_scratch(b, thread));

    for (uint32_t r = 0; col == 0 && r < n_rows; r++) {
        float *rotated = query + r * ldo + c->kv_lora_rank;

        memcpy(rotated, q + r * ldq + c->qk_nope_dim, c->qk_rope_dim * sizeof(*q));
        llm_cpu_rope(rotated, b->cos_sin + (size_t) (row + r) * c->qk_rope_dim,
                     c->qk_rope_dim / 2);
    }
}

static void absorb(struct llm_backend *b)
{
    const struct llm_model_config *c = &b->model->config;
    struct absorb a = {b, (c->kv_lora_rank + ABSORB_COLS - 1) / ABSORB_COLS, 0, 0};
    uint32_t n_tiles = c->n_heads * a.n_col_tasks;

    a.task_rows = llm_cpu_task_rows(b, b->step->n_rows, n_tiles);
    a.n_row_tasks = (b->step->n_rows + a.task_rows - 1) / a.task_rows;
    llm_cpu_threads_run(b->threads, n_tiles * a.n_row_tasks, absorb_task, &a);
}

/* Query vector q of an item: the row of b->query (a row of the step, a head). */
static uint32_t query_row(const struct llm_backend *b, const struct llm_cpu_attention_item *item,
                          uint32_t q)
{
    return (item->row + q / item->n_heads) * b->model->config.n_heads + item->head
           + q % item->n_heads;
}

/* The sums of one split. */
static void sum_split(const struct llm_backend *b, const struct llm_cpu_attention_item *item,
                      uint32_t split, float *scratch, struct sums s)
{
    const struct llm_cpu_kernels *k = b->kernels;
    uint32_t rank = b->model->config.kv_lora_rank, n = item->n_rows * item->n_heads;
    uint32_t n_keys = item->position + item->n_rows, end = item_pages(item);
    uint32_t rows[QUERIES], valid[QUERIES];
    float *scores = scratch + page_scratch();
    float decay[QUERIES];

    for (uint32_t q = 0; q < n; q++) {
        rows[q] = query_row(b, item, q);
        s.max[q] = -INFINITY;
        s.sum[q] = 0;
    }
    if (end > (split + 1) * SPLIT_PAGES) {
        end = (split + 1) * SPLIT_PAGES;
    }

    for (uint32_t page = split * SPLIT_PAGES; page < end; page++) {
        uint32_t first = page * LLM_PAGE_TOKENS;
        uint32_t keys = n_keys - first < LLM_PAGE_TOKENS ? n_keys - first : LLM_PAGE_TOKENS;
        struct llm_cpu_latents l =
            llm_cpu_latents_of(b, item->seq->pages[page], b->layer, keys);
        struct llm_cpu_input query = {b->query, b->latent_width, rows};
        struct llm_cpu_output out = {.data = scores, .ld = LLM_PAGE_TOKENS};

        for (uint32_t q = 0; q < n; q++) {
            uint32_t seen = item->position + q / item->n_heads + 1;

            valid[q] = seen <= first ? 0 : seen - first < keys ? seen - first : keys;
        }
        for (uint32_t i = 0; i < l.n_parts; i++) {
            k->dot(&l.part[i], 0, keys, query, n, out, scratch);
            query.data += l.part[i].cols;
            out.store = LLM_CPU_ADD;
        }
        k->softmax(scores, LLM_PAGE_TOKENS, n, valid, b->softmax_scale, s.max, s.sum, decay);
        k->mix(&l.part[0], 0, keys, 0, rank, scores, LLM_PAGE_TOKENS, n,
               page == split * SPLIT_PAGES ? NULL : decay, s.context, rank, scratch);
    }
}

/* Adds the sums of query q over a later split. */
static void add_sums(const struct llm_cpu_kernels *k, uint32_t rank, struct sums to,
                     struct sums from, uint32_t q)
{
    float max = fmaxf(to.max[q], from.max[q]);
    float a = expf(to.max[q] - max), f = expf(from.max[q] - max);

    k->combine(to.context + (size_t) q * rank, a, from.context + (size_t) q * rank, f, rank);
    to.sum[q] = to.sum[q] * a + from.sum[q] * f;
    to.max[q] = max;
}

/* Leaves query q's context where its query vector was. */
static void finish(const struct llm_backend *b, const struct llm_cpu_attention_item *item,
                   struct sums s, uint32_t q)
{
    uint32_t rank = b->model->config.kv_lora_rank;
    float *out = b->query + query_row(b, item, q) * (size_t) b->latent_width;

    memcpy(out, s.context + (size_t) q * rank, rank * sizeof(*out));
    b->kernels->scale(out, 1 / s.sum[q], rank);
}

static void attend_task(void *ctx, uint32_t task, uint32_t thread)
{
    struct llm_backend *b = ctx;
    const struct llm_cpu_attention_item *item = &b->items[task];
    uint32_t rank = b->model->config.kv_lora_rank, n = item->n_rows * item->n_heads;
    float *scratch = llm_cpu_scratch(b, thread), *free_scratch;
    struct sums all, split;

    if (item->partial != NULL) {
        sum_split(b, item, item->split, scratch, sums_at(item->partial, n, rank));
        return;
    }

    free_scratch = scratch + page_scratch() + QUERIES * LLM_PAGE_TOKENS;
    all = sums_at(free_scratch, n, rank);
    split = sums_at(free_scratch + sums_floats(b, QUERIES), n, rank);
    sum_split(b, item, 0, scratch, all);
    for (uint32_t i = 1; i < item->n_splits; i++) {
        sum_split(b, item, i, scratch, split);
        for (uint32_t q = 0; q < n; q++) {
            add_sums(b->kernels, rank, all, split, q);
        }
    }
    for (uint32_t q = 0; q < n; q++) {
        finish(b, item, all, q);
    }
}

static void merge_task(void *ctx, uint32_t task, uint32_t thread)
{
    struct llm_backend *b = ctx;
    const struct llm_cpu_attention_item *item = &b->merges[task / QUERIES];
    uint32_t rank = b->model->config.kv_lora_rank, n = item->n_rows * item->n_heads;
    uint32_t q = task % QUERIES;
    struct sums all = sums_at(item->partial, n, rank);

    (void) thread;
    if (q < n) {
        for (uint32_t i = 1; i < item->n_splits; i++) {
            add_sums(b->kernels, rank, all,
                     sums_at(item->partial + i * sums_floats(b, n), n, rank), q);
        }
        finish(b, item, all, q);
    }
}

/* x += W_O (W_UV context), head by head. */
static void project_up(struct llm_backend *b, const struct llm_layer_weights *w)
{
    const struct llm_model_config *c = &b->model->config;
    uint32_t width = c->n_heads * c->v_dim;
    struct llm_cpu_linear o = {
        .w = &w->o,
        .n_outs = c->hidden_size,
        .x = b->attended,
        .ldx = width,
        .out = b->x,
        .ldo = c->hidden_size,
        .bias = b->layers[b->layer].o_bias,
        .add = true,
    };

    for (uint32_t h = 0; h < c->n_heads; h++) {
        b->linears[h] = (struct llm_cpu_linear){
            .w = &w->kv_b,
            .first = h * (c->qk_nope_dim + c->v_dim) + c->qk_nope_dim,
            .n_outs = c->v_dim,
            .x = b->query + (size_t) h * b->latent_width,
            .ldx = (size_t) c->n_heads * b->latent_width,
            .out = b->attended + h * c->v_dim,
            .ldo = width,
        };
    }
    llm_cpu_linears(b, b->linears, c->n_heads, b->step->n_rows);
    llm_cpu_linears(b, &o, 1, b->step->n_rows);
}

void llm_cpu_attention(struct llm_backend *b)
{
    const struct llm_layer_weights *w = &b->model->layers[b->layer];

    llm_cpu_norm(b, b->layers[b->layer].input_norm, NULL, b->step->n_rows);
    project_down(b, w);
    absorb(b);
    llm_cpu_threads_run(b->threads, b->n_items, attend_task, b);
    llm_cpu_threads_run(b->threads, b->n_merges * QUERIES, merge_task, b);
    project_up(b, w);
}
