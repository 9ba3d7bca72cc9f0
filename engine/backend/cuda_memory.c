/* The device's memory: a block each for the weights, the page pool and everything that steps need.
 * All are planned before the first is allocated, and no step allocates any (but for the graphs of
 * decode steps, without which steps do run). */

#include "engine/backend/cuda_internal.h"
#include "engine/base/memory.h"

#include <inttypes.h>
#include <stdlib.h>

/* What the runtime needs for itself, the code of kernels and graphs. */
#define RESERVE ((uint64_t) 512 << 20)

int llm_cuda_fail(struct llm_error *err, cudaError_t error, const char *what)
{
    return llm_fail(err, error == cudaErrorMemoryAllocation ? LLM_ENOMEM : LLM_EINTERNAL,
                    "the GPU failed (%s): %s", what, cudaGetErrorString(error));
}

uint64_t llm_cuda_free_memory(uint32_t device)
{
    size_t free_bytes = 0, total;

    if (cudaSetDevice((int) device) != cudaSuccess
        || cudaMemGetInfo(&free_bytes, &total) != cudaSuccess || free_bytes < RESERVE) {
        return 0;
    }
    return free_bytes - RESERVE;
}

struct llm_cuda_input llm_cuda_input_at(char *base, const struct llm_cuda_shape *shape)
{
    struct llm_layout l = {.base = base};
    struct llm_cuda_input in;

    LLM_TAKE(&l, in.tokens, shape->rows, 1);
    LLM_TAKE(&l, in.slots, shape->rows, 1);
    LLM_TAKE(&l, in.positions, shape->rows, 1);
    LLM_TAKE(&l, in.seqs, shape->rows, 1);
    LLM_TAKE(&l, in.flags, shape->rows, 1);
    LLM_TAKE(&l, in.pages, shape->lines, shape->pages_step);
    LLM_TAKE(&l, in.n_keys, shape->n_keys, 1);
    LLM_TAKE(&l, in.logit_rows, shape->n_logits, 1);
    LLM_TAKE(&l, in.sample_rows, shape->n_sampled, 1);
    LLM_TAKE(&l, in.sample_slots, shape->n_sampled, 1);
    LLM_TAKE(&l, in.sample_positions, shape->n_sampled, 1);
    LLM_TAKE(&l, in.mask_of, shape->n_sampled, 1);
    in.bytes = l.used;
    return in;
}

struct llm_cuda_output llm_cuda_output_at(char *base, uint32_t n)
{
    struct llm_layout l = {.base = base};
    struct llm_cuda_output out;

    LLM_TAKE(&l, out.tokens, n, 1);
    LLM_TAKE(&l, out.logprobs, n, 1);
    out.short_bytes = l.used;
    LLM_TAKE(&l, out.top_ids, n, LLM_MAX_TOP_LOGPROBS);
    LLM_TAKE(&l, out.top_logprobs, n, LLM_MAX_TOP_LOGPROBS);
    out.bytes = l.used;
    return out;
}

/* The most that a step can have of everything; a graph's idle rows count. */
static struct llm_cuda_shape largest_shape(const struct llm_backend *b)
{
    uint32_t graph = llm_cuda_graph_rows(b->options.max_seqs);
    uint32_t lines = graph > b->options.max_seqs ? graph : b->options.max_seqs;

    return (struct llm_cuda_shape){
        .rows = b->max_rows,
        .lines = lines,
        .pages_step = llm_cuda_graph_pages(b->max_pages),
        .n_keys = lines + b->max_pieces,
        .n_logits = b->max_rows,
        .n_sampled = lines,
    };
}

static void lay_out_sequences(struct llm_backend *b, struct llm_layout *l)
{
    uint32_t n = b->options.max_seqs, vocab = b->model->config.vocab_size;

    LLM_TAKE(l, b->d_samplings, n, 1);
    LLM_TAKE(l, b->last, n, 1);
    LLM_TAKE(l, b->over, n, 1);
    LLM_TAKE(l, b->counts, n, vocab);
    LLM_TAKE(l, b->seen, n, b->mask_words);
    LLM_TAKE(l, b->bias_ids, n, vocab);
    LLM_TAKE(l, b->bias, n, vocab);
}

static void lay_out_step(struct llm_backend *b, struct llm_layout *l)
{
    struct llm_cuda_shape shape = largest_shape(b);

    b->input_bytes = llm_cuda_input_at(NULL, &shape).bytes;
    LLM_TAKE(l, b->input, b->input_bytes, 1);
    b->output = llm_cuda_output_at(
        llm_layout_take(l, llm_cuda_output_at(NULL, shape.n_sampled).bytes, 1, 1),
        shape.n_sampled);
    LLM_TAKE(l, b->masks, b->options.max_seqs, b->mask_words);
}

static void lay_out_attention(struct llm_backend *b, struct llm_layout *l)
{
    const struct llm_model_config *c = &b->model->config;
    uint64_t rows = b->max_rows, size = b->fast ? 2 : 4, heads = c->n_heads;

    LLM_TAKE(l, b->x, rows, c->hidden_size);
    b->normed = llm_layout_take(l, rows, c->hidden_size, size);
    LLM_TAKE(l, b->q_a, rows, c->q_lora_rank);
    b->q_a_normed = llm_layout_take(l, rows, c->q_lora_rank, size);
    b->q = llm_layout_take(l, rows, heads * (c->qk_nope_dim + c->qk_rope_dim), size);
    LLM_TAKE(l, b->kv, rows, b->latent_width);
    b->query = llm_layout_take(l, rows, heads * b->latent_width, size);
    b->context = llm_layout_take(l, rows, heads * c->kv_lora_rank, size);
    b->attended = llm_layout_take(l, rows, heads * c->v_dim, size);
    b->max_partial = b->fast ? llm_cuda_fast_partial(b) : llm_cuda_plain_partial(b);
    LLM_TAKE(l, b->partial, b->max_partial, 1);
    b->prompt_keys = b->fast ? llm_cuda_fast_prompt_keys(b) : 0;
    b->prompt_rows = llm_layout_take(l, b->prompt_keys, b->latent_width, size);
    b->prompt_kv = llm_layout_take(l, b->prompt_keys, heads * (c->qk_nope_dim + c->v_dim), size);
}

static void lay_out_ffn(struct llm_backend *b, struct llm_layout *l)
{
    const struct llm_model_config *c = &b->model->config;
    uint32_t n_all = b->router.n_experts + b->router.n_shared;
    uint64_t rows = b->max_rows, size = b->fast ? 2 : 4;
    uint64_t pairs = rows * (b->router.n_used + b->router.n_shared);
    struct llm_cuda_route *r = &b->route;

    LLM_TAKE(l, b->gate_up, rows, 2 * (uint64_t) b->dense_width);
    b->act = llm_layout_take(l, rows, b->dense_width, size);
    if (b->router.n_experts == 0) {
        return;
    }

    LLM_TAKE(l, b->router_logits, rows, b->router.n_experts);
    LLM_TAKE(l, r->n_active, 1, 1);
    LLM_TAKE(l, r->expert, n_all, 1);
    LLM_TAKE(l, r->first, (uint64_t) n_all + 1, 1);
    LLM_TAKE(l, r->token, pairs, 1);
    LLM_TAKE(l, r->weight, pairs, 1);
    LLM_TAKE(l, r->pair_of, pairs, 1);
    LLM_TAKE(l, r->scratch, llm_cuda_route_words(&b->router, b->max_rows), 1);
    b->expert_act = llm_layout_take(l, pairs, c->expert_size, size);
    b->expert_out = llm_layout_take(l, pairs, c->hidden_size, size);

    b->pairs = (struct llm_cuda_pairs){
        .n_active = r->n_active,
        .expert = r->expert,
        .first = r->first,
        .token = r->token,
        .weight = r->weight,
        .max_active = n_all,
        .pair_of = r->pair_of,
        .per_token = b->router.n_used + b->router.n_shared,
    };
}

static void lay_out_head(struct llm_backend *b, struct llm_layout *l)
{
    const struct llm_model_config *c = &b->model->config;

    b->head_normed = llm_layout_take(l, LLM_CUDA_HEAD_ROWS, c->hidden_size, b->fast ? 2 : 4);
    LLM_TAKE(l, b->logits, LLM_CUDA_HEAD_ROWS, c->vocab_size);
    LLM_TAKE(l, b->sample_scratch, LLM_CUDA_HEAD_ROWS, c->vocab_size);
}

static struct llm_layout lay_out(struct llm_backend *b, char *base)
{
    struct llm_layout l = {.base = base};

    lay_out_sequences(b, &l);
    lay_out_step(b, &l);
    lay_out_attention(b, &l);
    lay_out_ffn(b, &l);
    lay_out_head(b, &l);
    return l;
}

static int size_pool(struct llm_backend *b, struct llm_error *err)
{
    uint64_t n = b->options.latent_bytes / b->layout.page_bytes;

    if (n == 0) {
        return llm_fail(err, LLM_ENOMEM,
                        "a pool of %" PRIu64 " bytes holds no page: one takes %" PRIu64,
                        b->options.latent_bytes, b->layout.page_bytes);
    }
    b->info.n_pages = n < UINT32_MAX ? (uint32_t) n : UINT32_MAX - 1;
    b->pool_bytes = b->info.n_pages * b->layout.page_bytes;
    return LLM_OK;
}

static int check_room(const struct llm_backend *b, struct llm_error *err)
{
    uint64_t room = llm_cuda_free_memory(b->options.device), wanted;

    if (!llm_add_u64(b->pool_bytes, b->scratch_bytes, &wanted)
        || !llm_add_u64(wanted, b->weight_bytes, &wanted)) {
        wanted = UINT64_MAX;
    }
    if (wanted <= room) {
        return LLM_OK;
    }
    return llm_fail(err, LLM_ENOMEM,
                    "the weights take %" PRIu64 " MB, steps %" PRIu64 " MB and the latent pool %"
                    PRIu64 " MB of the GPU's memory, of which %" PRIu64 " MB are free: %" PRIu64
                    " MB are missing; lower %s",
                    b->weight_bytes >> 20, b->scratch_bytes >> 20, b->pool_bytes >> 20, room >> 20,
                    ((wanted - room) >> 20) + 1,
                    b->weight_bytes > room                ? "the weights' precision"
                    : b->pool_bytes > b->scratch_bytes ? "--latent-memory"
                                                       : "--max-batch-tokens or --max-context");
}

static int allocate(char **p, uint64_t bytes, const char *what, struct llm_error *err)
{
    void *memory = NULL;
    cudaError_t error = cudaMalloc(&memory, bytes);

    *p = memory;
    return error == cudaSuccess ? LLM_OK : llm_cuda_fail(err, error, what);
}

static int init_step(struct llm_backend *b, struct llm_cuda_step *s, struct llm_error *err)
{
    struct llm_cuda_shape shape = largest_shape(b);
    uint64_t output = llm_cuda_output_at(NULL, shape.n_sampled).bytes;
    uint64_t masks = (uint64_t) b->options.max_seqs * b->mask_words * sizeof(*s->masks);
    void *pinned = NULL;
    cudaError_t error = cudaMallocHost(&pinned, b->input_bytes + output + masks);

    s->pinned = pinned;
    if (error == cudaSuccess) {
        error = cudaEventCreate(&s->begun);
    }
    if (error == cudaSuccess) {
        error = cudaEventCreateWithFlags(&s->ended, cudaEventBlockingSync);
    }
    if (error != cudaSuccess) {
        return llm_cuda_fail(err, error, "setting up steps");
    }
    s->output = llm_cuda_output_at(s->pinned + b->input_bytes, shape.n_sampled);
    s->masks = (uint32_t *) (void *) (s->pinned + b->input_bytes + output);

    s->pieces = calloc(b->max_pieces, sizeof(*s->pieces));
    s->sampled = calloc(shape.n_sampled, sizeof(*s->sampled));
    s->sampled_at = calloc(shape.n_sampled, sizeof(*s->sampled_at));
    s->n_top = calloc(shape.n_sampled, sizeof(*s->n_top));
    s->logits = llm_memory_map((uint64_t) b->max_rows * b->model->config.vocab_size
                               * sizeof(*s->logits));
    if (s->pieces == NULL || s->sampled == NULL || s->sampled_at == NULL || s->n_top == NULL
        || s->logits == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    return LLM_OK;
}

int llm_cuda_memory_init(struct llm_backend *b, struct llm_error *err)
{
    struct llm_layout l;
    cudaError_t error;
    int rc = size_pool(b, err);

    if (rc != LLM_OK) {
        return rc;
    }
    l = lay_out(b, NULL);
    if (l.overflow) {
        return llm_fail(err, LLM_EINVAL, "batch, context and model together are too large");
    }
    b->scratch_bytes = l.used > b->least_scratch ? l.used : b->least_scratch;
    rc = check_room(b, err);
    if (rc != LLM_OK) {
        return rc;
    }

    if ((rc = allocate(&b->weights, b->weight_bytes, "memory for weights", err)) != LLM_OK
        || (rc = allocate(&b->scratch, b->scratch_bytes, "memory for steps", err)) != LLM_OK
        || (rc = allocate(&b->pool, b->pool_bytes, "memory for latents", err)) != LLM_OK) {
        return rc;
    }
    lay_out(b, b->scratch);

    b->samplings = calloc(b->options.max_seqs, sizeof(*b->samplings));
    if (b->samplings == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    rc = llm_slots_init(&b->slots, b->options.max_seqs, err);
    for (int i = 0; i < LLM_CUDA_STEPS && rc == LLM_OK; i++) {
        rc = init_step(b, &b->steps[i], err);
    }
    if (rc != LLM_OK) {
        return rc;
    }
    /* rows that nobody has written are multiplied by zero where a page is read as a whole */
    error = cudaMemsetAsync(b->pool, 0, b->pool_bytes, b->compute);
    return error == cudaSuccess ? LLM_OK : llm_cuda_fail(err, error, "clearing the pool");
}

void llm_cuda_memory_free(struct llm_backend *b)
{
    for (int i = 0; i < LLM_CUDA_STEPS; i++) {
        struct llm_cuda_step *s = &b->steps[i];

        cudaFreeHost(s->pinned);
        if (s->begun != NULL) {
            cudaEventDestroy(s->begun);
        }
        if (s->ended != NULL) {
            cudaEventDestroy(s->ended);
        }
        free(s->pieces);
        free(s->sampled);
        free(s->sampled_at);
        free(s->n_top);
        llm_memory_unmap(s->logits, (uint64_t) b->max_rows * b->model->config.vocab_size
                                        * sizeof(*s->logits));
    }
    cudaFree(b->pool);
    cudaFree(b->weights);
    cudaFree(b->scratch);
    free(b->samplings);
    llm_slots_free(&b->slots);
}
