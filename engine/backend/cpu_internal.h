/* The CPU backend's parts and how they fit together.
 *
 * The model thread (cpu.c) checks a step, copies it into one of a few struct llm_cpu_step and
 * queues it; the driver thread (queue.c) takes steps (cpu_forward.c) and page copies in order
 * and shares each phase of a step out among the compute threads, of which it is number 0. Every
 * array that a step needs is laid out at load (cpu_memory.c).
 *
 * Both numerics modes compute alike: activations in fp32 throughout, as bf16 ones would be no
 * faster (kernels/cpu/kernels.h). What differs is the latents' type, which the caller chooses. */

#ifndef LLM_BACKEND_CPU_INTERNAL_H
#define LLM_BACKEND_CPU_INTERNAL_H

#include "engine/backend/backend.h"
#include "engine/backend/queue.h"
#include "engine/backend/cpu_threads.h"
#include "engine/backend/slots.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/router.h"

#define LLM_CPU_IN_FLIGHT 2
#define LLM_CPU_STEPS (LLM_CPU_IN_FLIGHT + 1) /* and one whose results are being read */

/* A step as the driver sees it, and its results. */
struct llm_cpu_step {
    uint64_t ticket;
    uint32_t n_seqs, n_rows;
    struct llm_step_seq *seqs; /* [max_seqs]; their pages and masks are in the next two */
    uint32_t *pages;           /* [max_seqs][max_pages] */
    uint32_t *masks;           /* [max_seqs][mask_words] */
    uint32_t *tokens;          /* [max_rows] */
    uint8_t *flags;            /* [max_rows] */

    uint32_t n_sampled, n_logits;
    struct llm_sampled *sampled; /* [max_seqs] */
    uint32_t *top_ids;           /* [max_seqs][LLM_MAX_TOP_LOGPROBS] */
    float *top_logprobs;         /* the same */
    float *logits;               /* [max_rows][vocab_size] for the host */
    uint64_t ns;
};

/* A row whose logits are wanted; sampled: its place in the results, or LLM_CPU_NOT_SAMPLED. */
#define LLM_CPU_NOT_SAMPLED UINT32_MAX
struct llm_cpu_wanted {
    uint32_t row, sampled;
};

/* The sequence of a slot. */
struct llm_cpu_sequence {
    struct llm_sampling sampling; /* with copies of the arrays */

    /* The driver's while a step that names the slot is queued. */
    uint32_t last;    /* token */
    bool over;        /* its logits were not finite */
    uint32_t *counts; /* [n_vocab] in the answer; NULL: no penalty needs them */
    uint32_t *seen;   /* bits of tokens in prompt or answer; NULL: the same */
};

/* A layer's vectors as fp32, NULL where it has none. */
struct llm_cpu_layer {
    float *input_norm, *post_attention_norm, *q_a_norm, *kv_a_norm;
    float *q_a_bias, *kv_a_bias, *o_bias, *router_bias;
};

/* out[r][n] = sum over i of x[r][i] * w[first + n][i], n < n_outs, + bias[n]. */
struct llm_cpu_linear {
    const struct llm_weight *w;
    uint32_t first, n_outs;
    const float *x;
    size_t ldx;
    float *out;
    size_t ldo;
    const float *bias; /* NULL: none */
    bool add;          /* onto what out holds */
};

/* A piece of a step's attention: n_rows * n_heads query vectors against a run of splits. */
struct llm_cpu_attention_item {
    const struct llm_step_seq *seq;
    uint32_t row, n_rows; /* of the step */
    uint32_t position;    /* of the first row */
    uint32_t head, n_heads;
    uint32_t split, n_splits;
    float *partial; /* where the sums of its one split go; NULL: the item is done in one go */
};

/* Rows that go through one FFN: all of them (dense, shared) or those of an expert. */
struct llm_cpu_ffn_group {
    const struct llm_ffn_weights *w;
    uint32_t n_rows;
    const uint32_t *rows; /* NULL: 0, 1, 2 … */
    const float *weights; /* [n_rows] of an expert */
    float *act;           /* [n_rows][size]: silu(gate x) * up x */
};

struct llm_backend {
    const struct llm_model *model;
    struct llm_backend_options options;
    struct llm_backend_info info;
    struct llm_page_layout layout;
    const struct llm_cpu_kernels *kernels;
    struct llm_cpu_threads *threads;
    struct llm_queue *queue;

    uint32_t max_rows, max_pages, mask_words;
    uint32_t latent_width; /* rank + rope */
    uint32_t act_width;    /* of the widest dense or shared FFN */
    struct llm_cpu_router router;

    char *pool; /* [n_pages][page_bytes] */
    size_t pool_bytes;
    void *memory; /* everything below that a step uses, and the steps but for their logits */
    size_t memory_bytes;
    void *host_logits; /* those: as good as never wanted, and not there before they are */
    size_t host_logits_bytes;

    struct llm_cpu_layer *layers; /* [n_layers] */
    float *final_norm;
    float *inv_freq; /* [rope / 2] */
    float softmax_scale, rope_magnitude;

    /* the model thread's */
    struct llm_slots slots;
    struct llm_cpu_sequence *sequences; /* [max_seqs]; partly the driver's, see there */
    struct llm_cpu_step steps[LLM_CPU_STEPS]; /* the one numbered i at i % LLM_CPU_STEPS */
    uint64_t n_submitted, n_waited, last_job;

    /* the driver's: the step that runs */
    struct llm_cpu_step *step;
    uint32_t layer;
    const struct llm_step_seq **row_seq; /* [max_rows] */
    uint32_t *row_position;              /* [max_rows] */
    float *cos_sin;                      /* [max_rows][rope] */
    float *x;                            /* [max_rows][hidden] the residual stream */
    float *normed;   /* [max_rows][hidden] */
    float *q_a;      /* [max_rows][q_lora_rank] */
    float *q;        /* [max_rows][heads][nope + rope] */
    float *kv;       /* [max_rows][rank + rope] */
    float *query;    /* [max_rows][heads][rank + rope] absorbed; then contexts, [rank] of each */
    float *attended; /* [max_rows][heads][v] */
    struct llm_cpu_attention_item *items, *merges;
    uint32_t max_items, n_items, n_merges;
    float *partials;
    size_t max_partials; /* floats */

    float *router_logits;    /* [max_rows][n_experts] */
    uint32_t *row_experts;   /* [max_rows][n_experts_used] */
    float *row_weights;      /* the same */
    uint32_t *expert_next;   /* [n_experts] */
    uint32_t *expert_rows;   /* [max_rows * n_experts_used] rows by expert */
    float *expert_weights;   /* the same */
    float *expert_act;       /* [max_rows * n_experts_used][expert_size] */
    float *act;              /* [max_rows][act_width] of the dense or shared FFN */
    struct llm_cpu_ffn_group *groups; /* [n_experts + 1] */
    uint32_t n_groups;

    struct llm_cpu_linear *linears; /* [heads] */
    struct llm_cpu_wanted *wanted;  /* [max_rows], those for the host first */
    uint32_t n_wanted;
    float *logits; /* [max_seqs][vocab_size] of the others */

    char *scratch; /* [threads][scratch_bytes] */
    size_t scratch_bytes;
};

static inline struct llm_cpu_matrix llm_cpu_matrix_of(const struct llm_weight *w)
{
    static const enum llm_cpu_dtype dtypes[] = {
        [LLM_F32] = LLM_CPU_F32,
        [LLM_F16] = LLM_CPU_F16,
        [LLM_BF16] = LLM_CPU_BF16,
        [LLM_F8_E4M3] = LLM_CPU_E4M3,
    };
    static const uint8_t element_bytes[] = {
        [LLM_F32] = 4, [LLM_F16] = 2, [LLM_BF16] = 2, [LLM_F8_E4M3] = 1};
    struct llm_cpu_matrix m = {
        .dtype = dtypes[w->dtype],
        .rows = w->rows,
        .cols = w->cols,
        .data = w->data,
        .stride = (size_t) w->cols * element_bytes[w->dtype],
        .scale = w->scale,
        .block_rows = w->block_rows,
        .block_cols = w->block_cols,
    };

    if (w->dtype == LLM_F8_E4M3) {
        m.scale_stride = (w->cols + w->block_cols - 1) / w->block_cols * sizeof(float);
    }
    return m;
}

/* Row `row` of plane `plane` of a page. */
static inline char *llm_cpu_latent_row(const struct llm_backend *b, uint32_t page, uint32_t plane,
                                       uint32_t row)
{
    const struct llm_plane *p = &b->layout.planes[plane];

    return b->pool + page * b->layout.page_bytes + p->offset + (size_t) row * p->row_bytes;
}

static inline float *llm_cpu_scratch(const struct llm_backend *b, uint32_t thread)
{
    return (float *) (void *) (b->scratch + thread * b->scratch_bytes);
}

/* cpu_memory.c: sizes everything that steps need, the page pool too, and maps it. Needs what
 * stands before the pool in struct llm_backend. */
int llm_cpu_memory_init(struct llm_backend *b, struct llm_error *err);
void llm_cpu_memory_free(struct llm_backend *b);

/* cpu_slots.c: the two of struct llm_backend_ops, and what free needs. */
int llm_cpu_seq_create(struct llm_backend *b, const struct llm_sampling *sampling,
                       const uint32_t *tokens, uint32_t n_prompt, uint32_t n_sampled,
                       uint32_t *slot);
void llm_cpu_seq_free(struct llm_backend *b, uint32_t slot);
/* Counts a token for the penalties. */
void llm_cpu_count(struct llm_cpu_sequence *s, uint32_t token, bool sampled);
void llm_cpu_sequences_free(struct llm_backend *b);

/* cpu_submit.c: the steps' way in and out. */
int llm_cpu_submit(struct llm_backend *b, const struct llm_step *step, uint64_t *ticket);
int llm_cpu_wait(struct llm_backend *b, uint64_t ticket, struct llm_step_result *result,
                 struct llm_error *err);

/* cpu_forward.c: runs a step from tokens to results. */
void llm_cpu_forward(struct llm_backend *b, struct llm_cpu_step *s);

/* cpu_linear.c */

/* How many of n_outs outputs one task makes: a multiple of LLM_CPU_MAX_LANES. */
#define LLM_CPU_MAX_TASK_OUTS 64
uint32_t llm_cpu_task_outs(const struct llm_backend *b, uint32_t n_outs);

/* How many of n_rows one task takes so that n_tasks of all rows each become enough to keep all
 * threads busy, while no weight is unpacked for less than 64 rows. */
uint32_t llm_cpu_task_rows(const struct llm_backend *b, uint32_t n_rows, uint32_t n_tasks);

/* The linears of one phase, all for n_rows rows. */
void llm_cpu_linears(struct llm_backend *b, const struct llm_cpu_linear *linears, uint32_t n,
                     uint32_t n_rows);

/* normed[i] = RMS norm of x[i], or of row wanted[i] of x where wanted is not NULL, i < n_rows. */
void llm_cpu_norm(struct llm_backend *b, const float *weight, const struct llm_cpu_wanted *wanted,
                  uint32_t n_rows);

/* Calls fn(b, row, n, thread) for pieces of the rows. */
typedef void llm_cpu_rows_fn(struct llm_backend *b, uint32_t row, uint32_t n, uint32_t thread);
void llm_cpu_for_rows(struct llm_backend *b, uint32_t n_rows, llm_cpu_rows_fn *fn);

/* cpu_attention.c: x += attention(norm(x)), writing the step's latents. plan: once a step. */
void llm_cpu_attention_plan(struct llm_backend *b);
void llm_cpu_attention(struct llm_backend *b);
size_t llm_cpu_attention_scratch(const struct llm_backend *b);      /* floats */
size_t llm_cpu_attention_max_partials(const struct llm_backend *b); /* floats */
uint32_t llm_cpu_attention_max_items(const struct llm_backend *b);

/* cpu_latent.c: rows of latents as they are stored. */

/* Writes a row: rank latents, then the rotated part. */
void llm_cpu_latent_pack(const struct llm_backend *b, const float *latent, char *row);

/* The first n rows of a layer's plane of a page, for the kernels. part[0] has the latents in its
 * first columns; after them, or in part[1] where it is of another type, the rotated part. */
struct llm_cpu_latents {
    struct llm_cpu_matrix part[2];
    uint32_t n_parts;
};
struct llm_cpu_latents llm_cpu_latents_of(const struct llm_backend *b, uint32_t page,
                                          uint32_t layer, uint32_t n);

/* cpu_ffn.c: x += ffn(norm(x)) */
void llm_cpu_ffn(struct llm_backend *b);
size_t llm_cpu_ffn_scratch(const struct llm_backend *b); /* floats */

/* cpu_head.c: logits of the wanted rows, sampling, results. */
void llm_cpu_head(struct llm_backend *b);

#endif
