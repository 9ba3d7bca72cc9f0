/* The CUDA backend's parts and how they fit together.
 *
 * The model thread does everything that goes to the compute stream: it checks a step, lays its
 * arrays out in pinned memory (cuda_submit.c) and enqueues one copy to the device, the launches
 * (cuda_forward.c, or a captured graph of them: cuda_graph.c) and one copy back; a wait waits for
 * the event behind that. Pages are copied by a thread and a stream of their own (cuda_pages.c).
 * Memory is planned and allocated at load (cuda_memory.c), the weights are copied into it
 * (cuda_load.c, cuda_upload.c).
 *
 * There are two ways through a layer, chosen at load. The fast one (cuda_fast.c) has activations in
 * bf16, latents of 512 + 64 in bf16 or fp8, weights in bf16 or e4m3 and widths that are multiples
 * of 64. The general one (cuda_plain.c) takes whatever the CPU backend takes and keeps activations
 * in fp32: it is also that of the exact mode. */

#ifndef LLM_BACKEND_CUDA_INTERNAL_H
#define LLM_BACKEND_CUDA_INTERNAL_H

#include "engine/backend/backend.h"
#include "engine/backend/layout.h"
#include "engine/backend/queue.h"
#include "engine/backend/slots.h"
#include "kernels/cuda/kernels.h"

#include <cuda_runtime_api.h>
#include <stdatomic.h>

#define LLM_CUDA_IN_FLIGHT 2
#define LLM_CUDA_STEPS (LLM_CUDA_IN_FLIGHT + 1) /* and one whose results are being read */

#define LLM_CUDA_HEAD_ROWS 64 /* rows whose logits are made in one go */

/* Arrays of a step on their way to the device, one behind the other in pinned memory and then in
 * that of the device. */
struct llm_cuda_input {
    uint32_t *tokens, *slots, *positions, *seqs; /* [rows] */
    uint8_t *flags;                              /* [rows] */
    uint32_t *pages;                             /* [lines][pages_step] */
    uint32_t *n_keys;                            /* of the pieces of attention */
    uint32_t *logit_rows;                        /* those that the host wants */
    uint32_t *sample_rows, *sample_slots, *sample_positions, *mask_of; /* [n_sampled] */
    uint64_t bytes;
};

/* How many there are of each: with the number of rows, all that a captured graph depends on. */
struct llm_cuda_shape {
    uint32_t rows, lines, pages_step, n_keys, n_logits, n_sampled;
};

/* Queries of sequences one behind the other, n_queries of each. */
struct llm_cuda_piece {
    uint32_t row, line, key; /* the first of each */
    uint32_t n_seqs, n_queries;
    uint32_t n_keys; /* of the longest of them, or more */
};

struct llm_cuda_output {
    uint32_t *tokens;     /* [max_seqs] or LLM_CUDA_NO_TOKEN */
    float *logprobs;      /* the same */
    uint32_t *top_ids;    /* [max_seqs][LLM_MAX_TOP_LOGPROBS] */
    float *top_logprobs;  /* the same */
    uint64_t short_bytes, bytes; /* of the first two, of all */
};

struct llm_cuda_step {
    struct llm_cuda_shape shape;
    struct llm_cuda_input input;   /* pinned */
    struct llm_cuda_output output; /* pinned */
    uint32_t *masks;               /* [max_seqs][mask_words] pinned */
    uint32_t n_masks;
    char *pinned; /* all these */

    struct llm_cuda_piece *pieces; /* [max_pieces] */
    uint32_t n_pieces;
    bool decode; /* one row of each sequence and no logits for the host: may be a graph */
    bool wants_top;

    uint32_t n_sampled;
    struct llm_sampled *sampled; /* [max_seqs] */
    uint32_t *sampled_at;        /* [max_seqs] their places in the output */
    uint32_t *n_top;             /* [max_seqs]; UINT32_MAX: no log-probability either */
    float *logits;               /* [max_rows][vocab_size] for the host */
    cudaEvent_t begun, ended;
};

struct llm_cuda_ffn {
    struct llm_cuda_matrix gate, up, down; /* data NULL: there is none */
};

/* A layer's weights on the device. Vectors are fp32, NULL where it has none. */
struct llm_cuda_layer {
    float *input_norm, *post_attention_norm, *q_a_norm, *kv_a_norm;
    float *q_a_bias, *kv_a_bias, *o_bias, *router_bias;
    struct llm_cuda_matrix q, q_a, q_b, kv_a, o, router;
    struct llm_cuda_ffn ffn;          /* dense; on the general path the shared one, too */
    bool moe;

    struct llm_cuda_matrix kv_b;

    /* the fast path */
    struct llm_cuda_matrix w_uk;     /* a head's, transposed: [rank][nope], heads one by one */
    struct llm_cuda_experts experts; /* shared ones last */

    /* the general path */
    struct llm_cuda_plain_experts plain_experts;
};

struct llm_cuda_graphs;

struct llm_backend {
    const struct llm_model *model;
    struct llm_backend_options options;
    struct llm_backend_info info;
    struct llm_page_layout layout;
    bool fast;
    bool has_clusters; /* of blocks */
    uint32_t n_processors;
    uint32_t max_rows, max_pages, max_pieces, mask_words;
    uint32_t latent_width; /* rank + rope */
    uint32_t dense_width;  /* of the widest dense or shared FFN that goes through gate_up */

    cudaStream_t compute, copies;
    struct llm_queue *queue; /* of the thread that copies pages */
    cudaEvent_t copy_after[LLM_QUEUE_CAPACITY]; /* what copy i waits for: i % LLM_QUEUE_CAPACITY */
    uint64_t last_copy;
    _Atomic int copy_error; /* cudaError_t */
    uint64_t *page_copies; /* [n_pages] the last copy from or to each */
    char *bounce;          /* pinned: a page */

    /* one block of the device's memory each */
    char *pool, *weights, *scratch;
    uint64_t pool_bytes, weight_bytes, scratch_bytes;
    uint64_t least_scratch; /* while the weights are loaded */

    struct llm_cuda_layer *layers; /* [n_layers] */
    struct llm_cuda_matrix embed, lm_head;
    float *final_norm;
    struct llm_cuda_rope rope;
    float *inv_freq; /* that of rope */
    float softmax_scale;
    struct llm_cuda_router router;

    /* sequences, in scratch: what is fixed for their lives, and what is sampled */
    struct llm_slots slots;
    struct llm_sampling *samplings;        /* [max_seqs] on the host, without the arrays */
    struct llm_cuda_sampling *d_samplings; /* [max_seqs] */
    uint32_t *last, *over;                 /* [max_seqs] */
    uint32_t *counts, *seen;               /* [max_seqs][vocab_size], [max_seqs][mask_words] */
    uint32_t *bias_ids;                    /* [max_seqs][vocab_size] */
    float *bias;

    struct llm_cuda_step steps[LLM_CUDA_STEPS]; /* the one numbered i at i % LLM_CUDA_STEPS */
    uint64_t n_submitted, n_waited;
    struct llm_cuda_graphs *graphs;

    /* in scratch */
    char *input; /* a struct llm_cuda_input's arrays */
    uint64_t input_bytes;
    struct llm_cuda_output output;
    uint32_t *masks;
    float *x;         /* [max_rows][hidden] the residual stream */
    void *normed;     /* [max_rows][hidden] bf16; fp32 on the general path */
    float *q_a;       /* [max_rows][q_lora_rank] */
    void *q_a_normed; /* the same, bf16 */
    void *q;          /* [max_rows][heads][nope + rope] bf16 or fp32, like the next ones */
    float *kv;        /* [max_rows][rank + rope] */
    void *query;      /* [max_rows][heads][rank + rope] absorbed */
    void *context;    /* [max_rows][heads][rank] */
    void *attended;   /* [max_rows][heads][v] */
    float *partial;   /* sums of attention by splits, or by heads of a row that is alone */
    uint64_t max_partial;   /* floats */
    uint32_t prompt_keys;   /* how many keys of a sequence find room decompressed; 0: not done */
    void *prompt_rows;      /* [prompt_keys][rank + rope] bf16 */
    void *prompt_kv;        /* [prompt_keys][heads][nope + v] bf16 */
    float *gate_up;         /* [max_rows][2 * dense_width] */
    void *act;              /* [max_rows][dense_width] */
    float *router_logits;   /* [max_rows][n_experts] */
    struct llm_cuda_route route;
    struct llm_cuda_pairs pairs; /* what route makes */
    void *expert_act;       /* [max_rows * per_token][expert_size] */
    void *expert_out;       /* [max_rows * per_token][hidden] */
    void *head_normed;      /* [LLM_CUDA_HEAD_ROWS][hidden] */
    float *logits;          /* [LLM_CUDA_HEAD_ROWS][vocab_size] */
    float *sample_scratch;  /* the same */

    /* the first thing that went wrong, after which nothing works any more */
    cudaError_t error;
    const char *error_at;
};

static inline uint64_t llm_cuda_pages(uint64_t n_tokens)
{
    return (n_tokens + LLM_PAGE_TOKENS - 1) / LLM_PAGE_TOKENS;
}

/* Remembers an error of a call that enqueues something. `what` is for people, and stays. */
static inline void llm_cuda_try(struct llm_backend *b, int error, const char *what)
{
    if (error != cudaSuccess && b->error == cudaSuccess) {
        b->error = (cudaError_t) error;
        b->error_at = what;
    }
}

/* err: what a call of the runtime says. Returns LLM_ENOMEM where memory was lacking, else
 * LLM_EINTERNAL. */
int llm_cuda_fail(struct llm_error *err, cudaError_t error, const char *what);

/* cuda_memory.c: plans all that is needed on the device and allocates it. The weights' size is
 * known then. */
int llm_cuda_memory_init(struct llm_backend *b, struct llm_error *err);
void llm_cuda_memory_free(struct llm_backend *b);
uint64_t llm_cuda_free_memory(uint32_t device);

/* The arrays of a step of a shape, at base (which may be NULL: bytes alone are of use). */
struct llm_cuda_input llm_cuda_input_at(char *base, const struct llm_cuda_shape *shape);
struct llm_cuda_output llm_cuda_output_at(char *base, uint32_t n);

/* cuda_load.c: which path the model takes; the weights' size; the weights. */
bool llm_cuda_is_fast(const struct llm_model *m, const struct llm_backend_options *o);
int llm_cuda_measure_weights(struct llm_backend *b, struct llm_error *err);
int llm_cuda_load_weights(struct llm_backend *b, struct llm_error *err);

/* cuda_upload.c: pieces of memory to the device, through pinned buffers and several threads. */
struct llm_cuda_upload {
    const char *from;
    char *to;
    uint64_t rows;
    uint64_t row_bytes, from_step, to_step;
};

int llm_cuda_upload(const struct llm_cuda_upload *uploads, uint64_t n, uint32_t device,
                    llm_progress_fn *progress, void *progress_ctx, struct llm_error *err);

/* cuda_slots.c: the two of struct llm_backend_ops. */
int llm_cuda_seq_create(struct llm_backend *b, const struct llm_sampling *sampling,
                        const uint32_t *tokens, uint32_t n_prompt, uint32_t n_sampled,
                        uint32_t *slot);
void llm_cuda_seq_free(struct llm_backend *b, uint32_t slot);

/* cuda_submit.c: the steps' way in and out. */
int llm_cuda_submit(struct llm_backend *b, const struct llm_step *step, uint64_t *ticket);
int llm_cuda_wait(struct llm_backend *b, uint64_t ticket, struct llm_step_result *result,
                  struct llm_error *err);

/* cuda_forward.c: enqueues the launches of a step, from its input on the device to its output. */
void llm_cuda_forward(struct llm_backend *b, struct llm_cuda_step *s);

/* The queue of a launch that follows one of these kernels in the compute stream. */
static inline struct llm_cuda_queue llm_cuda_next(const struct llm_backend *b)
{
    return (struct llm_cuda_queue){b->compute, true};
}

/* What a layer works on. */
struct llm_cuda_run {
    const struct llm_cuda_step *step;
    struct llm_cuda_rows rows;
    const uint32_t *n_keys;
    uint32_t layer;
};

struct llm_cuda_plane llm_cuda_plane_of(const struct llm_backend *b, uint32_t layer);

/* What lies between the projections of a layer; the way of the latents into their pages and the
 * rotation of the queries, enqueued. */
struct llm_cuda_latents llm_cuda_latents_of(const struct llm_backend *b,
                                            const struct llm_cuda_run *r);
void llm_cuda_put_latents(struct llm_backend *b, const struct llm_cuda_run *r);

/* The routing of some of the rows by b->router_logits, into b->pairs; the same, enqueued. */
struct llm_cuda_route llm_cuda_route_of(const struct llm_backend *b, const struct llm_cuda_run *r,
                                        uint32_t first, uint32_t n);
void llm_cuda_route_rows(struct llm_backend *b, const struct llm_cuda_run *r, uint32_t first,
                         uint32_t n);

/* Enqueues x += layer(x); b->logits of n <= LLM_CUDA_HEAD_ROWS rows. */
void llm_cuda_fast_layer(struct llm_backend *b, const struct llm_cuda_run *r);
void llm_cuda_fast_head(struct llm_backend *b, const uint32_t *rows, uint32_t n);
void llm_cuda_plain_layer(struct llm_backend *b, const struct llm_cuda_run *r);
void llm_cuda_plain_head(struct llm_backend *b, const uint32_t *rows, uint32_t n);

/* Floats of scratch that attention can need; keys of a sequence that are worth decompressing. */
uint64_t llm_cuda_fast_partial(const struct llm_backend *b);
uint32_t llm_cuda_fast_prompt_keys(const struct llm_backend *b);
uint64_t llm_cuda_plain_partial(const struct llm_backend *b);

/* cuda_graph.c: enqueues a decode step; true where it was done by a graph. */
int llm_cuda_graphs_init(struct llm_backend *b, struct llm_error *err);
void llm_cuda_graphs_free(struct llm_backend *b);
bool llm_cuda_graph_run(struct llm_backend *b, struct llm_cuda_step *s);
uint32_t llm_cuda_graph_rows(uint32_t n_rows); /* the size of a graph for so many rows, or more */
uint32_t llm_cuda_graph_pages(uint32_t n_pages);

/* cuda_pages.c */
int llm_cuda_pages_init(struct llm_backend *b, struct llm_error *err);
void llm_cuda_pages_free(struct llm_backend *b);
int llm_cuda_page_out(struct llm_backend *b, uint32_t page, uint32_t first, uint32_t n, void *host,
                      uint64_t *fence);
int llm_cuda_page_in(struct llm_backend *b, uint32_t page, uint32_t first, uint32_t n,
                     const void *host, uint64_t *fence);
bool llm_cuda_fence_done(struct llm_backend *b, uint64_t fence);
int llm_cuda_fence_wait(struct llm_backend *b, uint64_t fence);
int llm_cuda_page_copy(struct llm_backend *b, uint32_t from, uint32_t to, uint32_t n_rows);
int llm_cuda_page_clear(struct llm_backend *b, uint32_t page);

/* What is enqueued in the compute stream from now on runs after a copy. */
void llm_cuda_after_copy(struct llm_backend *b, uint64_t fence);

#endif
