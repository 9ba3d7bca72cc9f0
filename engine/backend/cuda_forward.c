#include "engine/backend/cuda_internal.h"

#include <stdlib.h>

struct llm_cuda_plane llm_cuda_plane_of(const struct llm_backend *b, uint32_t layer)
{
    static const enum llm_cuda_latent_dtype dtypes[] = {
        [LLM_LATENT_F32] = LLM_CUDA_LATENT_F32,
        [LLM_LATENT_BF16] = LLM_CUDA_LATENT_BF16,
        [LLM_LATENT_FP8] = LLM_CUDA_LATENT_FP8,
    };
    const struct llm_plane *p = &b->layout.planes[layer];

    return (struct llm_cuda_plane){
        .dtype = dtypes[b->layout.dtype],
        .data = b->pool + p->offset,
        .page_step = b->layout.page_bytes,
        .rank = p->rank,
        .rope = p->rope,
        .row_bytes = p->row_bytes,
        .scale_offset = p->scale_offset,
        .rope_offset = p->rope_offset,
    };
}

struct llm_cuda_latents llm_cuda_latents_of(const struct llm_backend *b,
                                            const struct llm_cuda_run *r)
{
    const struct llm_model_config *c = &b->model->config;
    const struct llm_cuda_layer *l = &b->layers[r->layer];

    return (struct llm_cuda_latents){
        .rows = r->rows,
        .plane = llm_cuda_plane_of(b, r->layer),
        .rope = b->rope,
        .kv = b->kv,
        .ld_kv = b->latent_width,
        .kv_bias = l->kv_a_bias,
        .kv_norm = l->kv_a_norm,
        .eps = c->lora_norm_eps,
        .q = b->q,
        .ld_q = (size_t) c->n_heads * (c->qk_nope_dim + c->qk_rope_dim),
        .nope = c->qk_nope_dim,
        .n_heads = c->n_heads,
        .query = b->query,
        .dtype = b->fast ? LLM_CUDA_BF16 : LLM_CUDA_F32,
    };
}

void llm_cuda_put_latents(struct llm_backend *b, const struct llm_cuda_run *r)
{
    struct llm_cuda_latents latents = llm_cuda_latents_of(b, r);

    llm_cuda_try(b, llm_cuda_latents(&latents, llm_cuda_next(b)), "latents");
}

struct llm_cuda_route llm_cuda_route_of(const struct llm_backend *b, const struct llm_cuda_run *r,
                                        uint32_t first, uint32_t n)
{
    struct llm_cuda_route route = b->route;

    route.router = b->router;
    route.logits = b->router_logits + (size_t) first * b->router.n_experts;
    route.ld_logits = b->router.n_experts;
    route.bias = b->layers[r->layer].router_bias;
    route.n = n;
    route.flags = r->rows.flags + first;
    return route;
}

void llm_cuda_route_rows(struct llm_backend *b, const struct llm_cuda_run *r, uint32_t first,
                         uint32_t n)
{
    struct llm_cuda_route route = llm_cuda_route_of(b, r, first, n);

    llm_cuda_try(b, llm_cuda_route(&route, llm_cuda_next(b)), "the router");
}

/* Shows the residual stream to a test. */
static void tap(struct llm_backend *b, const struct llm_cuda_run *r)
{
    const struct llm_backend_options *o = &b->options;
    size_t n = (size_t) r->rows.n * b->model->config.hidden_size;
    float *x = malloc(n * sizeof(*x));

    if (x == NULL) {
        llm_cuda_try(b, cudaErrorMemoryAllocation, "the tap");
        return;
    }
    llm_cuda_try(b, cudaMemcpyAsync(x, b->x, n * sizeof(*x), cudaMemcpyDeviceToHost, b->compute),
                 "the tap");
    llm_cuda_try(b, cudaStreamSynchronize(b->compute), "the tap");
    o->tap(o->tap_ctx, r->layer, x, r->rows.n, b->model->config.hidden_size);
    free(x);
}

static void head(struct llm_backend *b, const uint32_t *rows, uint32_t n)
{
    if (b->fast) {
        llm_cuda_fast_head(b, rows, n);
    } else {
        llm_cuda_plain_head(b, rows, n);
    }
}

/* Logits for the host, which does not want any but in tests: its memory is not pinned, so this
 * waits for the copy. */
static void give_logits(struct llm_backend *b, const struct llm_cuda_step *s,
                        const struct llm_cuda_input *in)
{
    size_t vocab = b->model->config.vocab_size;

    for (uint32_t i = 0, n; i < s->shape.n_logits; i += n) {
        n = s->shape.n_logits - i < LLM_CUDA_HEAD_ROWS ? s->shape.n_logits - i
                                                       : LLM_CUDA_HEAD_ROWS;
        head(b, in->logit_rows + i, n);
        llm_cuda_try(b,
                     cudaMemcpyAsync(s->logits + i * vocab, b->logits, n * vocab * sizeof(float),
                                     cudaMemcpyDeviceToHost, b->compute),
                     "logits");
    }
}

static void sample(struct llm_backend *b, const struct llm_cuda_step *s,
                   const struct llm_cuda_input *in)
{
    for (uint32_t i = 0, n; i < s->shape.n_sampled; i += n) {
        struct llm_cuda_sample to;

        n = s->shape.n_sampled - i < LLM_CUDA_HEAD_ROWS ? s->shape.n_sampled - i
                                                        : LLM_CUDA_HEAD_ROWS;
        head(b, in->sample_rows + i, n);
        to = (struct llm_cuda_sample){
            .n = n,
            .vocab = b->model->config.vocab_size,
            .logits = b->logits,
            .ld_logits = b->model->config.vocab_size,
            .slots = in->sample_slots + i,
            .positions = in->sample_positions + i,
            .sampling = b->d_samplings,
            .mask_of = in->mask_of + i,
            .masks = b->masks,
            .mask_step = b->mask_words,
            .last = b->last,
            .over = b->over,
            .tokens = b->output.tokens + i,
            .logprobs = b->output.logprobs + i,
            .top_ids = b->output.top_ids + (size_t) i * LLM_MAX_TOP_LOGPROBS,
            .top_logprobs = b->output.top_logprobs + (size_t) i * LLM_MAX_TOP_LOGPROBS,
            .scratch = b->sample_scratch,
        };
        llm_cuda_try(b, llm_cuda_sample(&to, llm_cuda_next(b)), "sampling");
    }
}

void llm_cuda_forward(struct llm_backend *b, struct llm_cuda_step *s)
{
    const struct llm_backend_options *o = &b->options;
    struct llm_cuda_input in = llm_cuda_input_at(b->input, &s->shape);
    struct llm_cuda_run r = {
        .step = s,
        .rows = {
            .n = s->shape.rows,
            .tokens = in.tokens,
            .slots = in.slots,
            .positions = in.positions,
            .seqs = in.seqs,
            .flags = in.flags,
            .pages = in.pages,
            .pages_step = s->shape.pages_step,
        },
        .n_keys = in.n_keys,
    };

    llm_cuda_try(b,
                 llm_cuda_embed(&b->embed, &r.rows, b->last, b->x, b->model->config.hidden_size,
                                (struct llm_cuda_queue){b->compute, false}),
                 "the embedding");
    for (; r.layer < b->model->config.n_layers; r.layer++) {
        if (b->fast) {
            llm_cuda_fast_layer(b, &r);
        } else {
            llm_cuda_plain_layer(b, &r);
        }
        if (o->tap != NULL) {
            tap(b, &r);
        }
        if (o->beat != NULL) {
            o->beat(o->beat_ctx);
        }
    }
    give_logits(b, s, &in);
    sample(b, s, &in);
}
