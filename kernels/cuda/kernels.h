/* CUDA kernels: pure functions on pointers, shapes and a stream.
 *
 * All pointers below are to memory of the device, all sizes are in elements unless said. What
 * every launch has in common:
 *  - There is something to do: no number of rows, tokens or sequences is 0.
 *  - It returns 0, or the cudaError_t of the launch; what goes wrong on the device later shows
 *    where the stream is waited for. It allocates nothing and waits for nothing, so that it may
 *    be captured into a graph.
 *  - Sums are fp32.
 *  - Every output is summed up in one order that depends on nothing but the shapes of what is
 *    launched: not on the number of rows or sequences, nor on which block computes it.
 *
 * There are two paths. The fast one (linear.cu, experts.cu, attention.cu, many.cu, groups.cu,
 * prompt.cu, alone.cu, join.cu) has activations in bf16, whose products are exact, weights in bf16
 * or in e4m3 with a scale for each 128 x 128, latents of 512 + 64; its pointers to rows are aligned
 * to 16 bytes and so are the steps from row to row. The general one (plain.cu, plain_attention.cu)
 * has activations in fp32 and takes every width and every type that a checkpoint has, aligned to
 * its elements. What lies between these operations (rows.cu, latent.cu, router.cu, sample.cu)
 * serves both. */

#ifndef KERNELS_CUDA_KERNELS_H
#define KERNELS_CUDA_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st; /* cudaStream_t points to one */

/* Where a launch goes. overlap: its blocks may begin, and fetch weights, while the launch before
 * it in the stream still runs; that must be one of these kernels, too. What any launch reads
 * except weights and their scales, and where it says so, it reads after the one before it has
 * ended. */
struct llm_cuda_queue {
    struct CUstream_st *stream;
    bool overlap;
};

/* Of weights; the fast path knows the first two. */
enum llm_cuda_dtype { LLM_CUDA_BF16, LLM_CUDA_E4M3, LLM_CUDA_F16, LLM_CUDA_F32 };

#define LLM_CUDA_SCALE_BLOCK 128

/* A matrix as a checkpoint stores it, row-major. E4M3 has an fp32 scale for each block: element
 * (i, j) is value * scale[i / block_rows * scale_stride + j / block_cols]. On the fast path a block
 * is 128 x 128, whatever these fields say. No value may be a code for NaN: they are read as
 * +-480. */
struct llm_cuda_matrix {
    enum llm_cuda_dtype dtype;
    uint32_t rows, cols;
    const void *data;
    size_t stride; /* bytes from row to row */
    const float *scale;
    size_t scale_stride; /* floats from row to row of blocks */
    uint32_t block_rows, block_cols;
};

/* The rows of a step: arrays of n, and the page table, a line for each sequence. */
struct llm_cuda_rows {
    uint32_t n;
    const uint32_t *tokens;    /* ids, or LLM_CUDA_TOKEN_LAST: what was sampled last for the slot */
    const uint32_t *slots;     /* of the row's sequence */
    const uint32_t *positions; /* in the sequence */
    const uint32_t *seqs;      /* the sequence's line of the page table */
    const uint8_t *flags;      /* enum llm_cuda_row_flag */
    const uint32_t *pages;     /* row t of a sequence is in page pages[seq * pages_step + t / 64] */
    size_t pages_step;
};

#define LLM_CUDA_TOKEN_LAST UINT32_MAX

/* The first has the number that engine/backend/backend.h gives it. An idle row fills a batch up to
 * the size of a captured graph: it is computed where that is simplest (position 0, token 0), but
 * writes no latents, goes to no expert, and need not have pages. */
enum llm_cuda_row_flag { LLM_CUDA_ROW_NO_WRITE = 4, LLM_CUDA_ROW_IDLE = 8 };

/* --- rows.cu: what is done row by row --- */

/* x[r] = the row of w that row r's token names, as fp32; last[slot] is a slot's last token. */
int llm_cuda_embed(const struct llm_cuda_matrix *w, const struct llm_cuda_rows *rows,
                   const uint32_t *last, float *x, size_t ldx, struct llm_cuda_queue q);

/* For i < n: v = x[r], r = rows[i] or i where rows is NULL; with add, v += add[i] and v goes to
 * x[r], too (ld_add 0: one vector for all rows); then weight * v / sqrt(mean(v^2) + eps) goes to
 * out_bf16[i] and out_f32[i], either of which may be NULL. out_f32 may be x. */
struct llm_cuda_norm {
    uint32_t n, width;
    float *x;
    size_t ldx;
    const uint32_t *rows; /* no row twice */
    const float *add;
    size_t ld_add;
    const float *weight;
    float eps;
    void *out_bf16;
    float *out_f32;
    size_t ld_bf16, ld_f32;
};

int llm_cuda_rms_norm(const struct llm_cuda_norm *norm, struct llm_cuda_queue q);

/* out[r][i] = silu(gate) * up of gate_up[r][i] and gate_up[r][width + i], i < width; to out_bf16
 * and out_f32, either of which may be NULL. silu(z) = z / (1 + exp(-z)). */
int llm_cuda_silu_mul(const float *gate_up, size_t ld, uint32_t n, uint32_t width, void *out_bf16,
                      size_t ld_bf16, float *out_f32, size_t ld_f32, struct llm_cuda_queue q);

/* x[r][i] += y[r][i], i < width; ldy 0: one vector for all rows. */
int llm_cuda_add(float *x, size_t ldx, const float *y, size_t ldy, uint32_t n, uint32_t width,
                 struct llm_cuda_queue q);

/* While loading. out[i][j] = w[i][j], as bf16 (rounded to nearest even) or fp32. */
int llm_cuda_unpack(const struct llm_cuda_matrix *w, enum llm_cuda_dtype to, void *out, size_t ldo,
                    struct llm_cuda_queue q);

/* While loading: to[j][i] = from[i][j] of n matrices, elements of `size` bytes (1, 2 or 4); the
 * steps are in elements. The W_UK of all heads, from one behind the other, for llm_cuda_linears. */
struct llm_cuda_transpose {
    uint32_t n, rows, cols, size;
    const void *from;
    size_t ld_from, from_step;
    void *to;
    size_t ld_to, to_step;
};

int llm_cuda_transpose(const struct llm_cuda_transpose *t, struct llm_cuda_queue q);

/* --- linear.cu --- */

enum llm_cuda_store {
    LLM_CUDA_SET_BF16, /* rounded to nearest even */
    LLM_CUDA_SET_F32,
    LLM_CUDA_ADD_F32, /* onto what is there */
};

/* out[r][n] = sum over k of x[r][k] * w[n][k], for rows r of x: bf16, ldx apart. Of a batch,
 * member b has its own w, x and out, so far apart: bytes of w, floats of scale, elements. */
struct llm_cuda_linear {
    struct llm_cuda_matrix w;
    const void *x;
    size_t ldx;
    void *out;
    size_t ldo;
    enum llm_cuda_store store;
    uint32_t n_batch; /* 1 or more */
    size_t w_step, scale_step, x_step, out_step;
};

#define LLM_CUDA_MAX_LINEARS 4
#define LLM_CUDA_MAX_LINEAR_ROWS 64

/* n <= LLM_CUDA_MAX_LINEARS operations on n_rows <= LLM_CUDA_MAX_LINEAR_ROWS rows each, in one
 * launch; all matrices of one dtype. */
int llm_cuda_linears(const struct llm_cuda_linear *l, uint32_t n, uint32_t n_rows,
                     struct llm_cuda_queue q);

#define LLM_CUDA_MAX_ALONE 2048

/* The same for one row, the norm's, which every block makes for itself: of width w.cols, no more
 * than LLM_CUDA_MAX_ALONE, with add and rows NULL. Neither what l says of x matters nor where the
 * norm would go. Its bits are not those of llm_cuda_rms_norm and llm_cuda_linears. */
int llm_cuda_linears_normed(const struct llm_cuda_linear *l, uint32_t n,
                            const struct llm_cuda_norm *norm, struct llm_cuda_queue q);

/* --- experts.cu --- */

/* The pairs of a token and an expert of a step, by expert: the i-th expert that has any is
 * expert[i], ascending; its pairs are first[i] … first[i + 1] - 1, of different tokens, pair p of
 * token[p] with weight[p]. A shared expert is one more, of all tokens, with weight 1. The other way
 * round, the pairs of token t are pair_of[t * per_token + k], by ascending expert; UINT32_MAX where
 * a token has fewer. */
struct llm_cuda_pairs {
    const uint32_t *n_active; /* experts that have pairs, at most max_active */
    const uint32_t *expert, *first, *token;
    const float *weight;
    uint32_t max_active, n_tokens; /* here n_tokens is at most LLM_CUDA_MAX_LINEAR_ROWS */
    const uint32_t *pair_of;       /* this and the next: not needed here */
    uint32_t per_token;
};

/* Expert e has its matrices e steps (bytes, and floats of scale) behind these. gate_up is the
 * gate's rows and then up's, each as many as down has columns; for e4m3 a multiple of 128. */
struct llm_cuda_experts {
    struct llm_cuda_matrix gate_up, down;
    size_t gate_up_step, gate_up_scale_step, down_step, down_scale_step;
};

/* h[pair] = silu(gate x) * up x for x of the pair's token; x and h in bf16, ldx and ldh apart. */
int llm_cuda_experts_up(const struct llm_cuda_experts *e, const struct llm_cuda_pairs *p,
                        const void *x, size_t ldx, void *h, size_t ldh, struct llm_cuda_queue q);

/* out[token] += sum over the token's pairs, in their order, of weight * down h[pair]; in fp32. The
 * lists of p are read before the launch before this one has ended: they come from one before it. */
int llm_cuda_experts_down(const struct llm_cuda_experts *e, const struct llm_cuda_pairs *p,
                          const void *h, size_t ldh, float *out, size_t ldo,
                          struct llm_cuda_queue q);

/* --- attention.cu --- */

#define LLM_CUDA_PAGE_TOKENS 64
#define LLM_CUDA_RANK 512 /* latents of a row */
#define LLM_CUDA_ROPE 64  /* rotated elements of a row */
#define LLM_CUDA_LATENT_WIDTH (LLM_CUDA_RANK + LLM_CUDA_ROPE)

/* How a row of a page is stored (engine/model/plane.h): 576 bf16, or 512 e4m3, an fp32 scale for
 * each 128 of them and 64 bf16; as fp32 on the general path alone. */
enum llm_cuda_latent_dtype { LLM_CUDA_LATENT_BF16, LLM_CUDA_LATENT_FP8, LLM_CUDA_LATENT_F32 };

#define LLM_CUDA_LATENT_BF16_BYTES 1152
#define LLM_CUDA_LATENT_FP8_BYTES 656

/* Attention in the absorbed form (DeepSeek-V2, arXiv 2405.04434, section 2.1): for each sequence
 * s < n_seqs, query i < n_queries of it and head,
 *
 *   out = sum over t of softmax_t(scale * query . row_t) * (latents of row_t)
 *
 * over the first n_keys[s] - (n_queries - 1 - i) rows t of the sequence, at least one (but for idle
 * sequences, of n_keys 0, whose outputs are of no use). Row t is
 * row t % 64 of page pages[s * pages_step + t / 64], which begins at latents + page * page_step
 * bytes. Queries are bf16 [n_seqs][n_queries][n_heads][576], out is bf16 the same with 512.
 *
 * The rows are read before the launch before this one has ended: they come from one before it.
 *
 * The sums over each split_pages pages are made on their own and added in order: split_pages is
 * part of the numerics. No sequence may have more than max_splits of them. partial: scratch of
 * llm_cuda_attention_floats floats, of none for max_splits 1. */
struct llm_cuda_attention {
    enum llm_cuda_latent_dtype dtype;
    const void *latents;
    size_t page_step;
    const uint32_t *pages;
    size_t pages_step;
    const uint32_t *n_keys;
    uint32_t n_seqs, n_queries, n_heads;
    uint32_t split_pages, max_splits;
    float scale;
    const void *queries;
    void *out;
    float *partial;
};

size_t llm_cuda_attention_floats(const struct llm_cuda_attention *a);
int llm_cuda_attend(const struct llm_cuda_attention *a, struct llm_cuda_queue q);

/* --- many.cu: the same operations on more rows than the weights' bytes pay for, bound by the
 * tensor cores. Their bits are not those of the operations above, and do not depend on the number
 * of rows either. With LLM_CUDA_MMA in the environment Hopper does as processors before it. --- */

/* Any n_rows. */
int llm_cuda_linears_many(const struct llm_cuda_linear *l, uint32_t n, uint32_t n_rows,
                          struct llm_cuda_queue q);

/* out[pair] = x of the pair's token: rows of `width` bf16. max_pairs here and below: no fewer than
 * there are pairs. Any n_tokens. */
int llm_cuda_spread_rows(const struct llm_cuda_pairs *p, uint32_t max_pairs, const void *x,
                         size_t ldx, uint32_t width, void *out, size_t ldo,
                         struct llm_cuda_queue q);

/* x is of pairs, as llm_cuda_spread_rows makes it; y[pair] = down h[pair] in bf16, for
 * llm_cuda_add_experts. All max_pairs rows of x and h may be read. The gate has a multiple of 8
 * rows; p->max_active is how many experts there are. */
int llm_cuda_experts_up_many(const struct llm_cuda_experts *e, const struct llm_cuda_pairs *p,
                             uint32_t max_pairs, const void *x, size_t ldx, void *h, size_t ldh,
                             struct llm_cuda_queue q);
int llm_cuda_experts_down_many(const struct llm_cuda_experts *e, const struct llm_cuda_pairs *p,
                               uint32_t max_pairs, const void *h, size_t ldh, void *y, size_t ldy,
                               struct llm_cuda_queue q);

/* Many queries of each sequence, as of prompts: needs no partial, split_pages and max_splits are of
 * no concern. */
int llm_cuda_attend_many(const struct llm_cuda_attention *a, struct llm_cuda_queue q);

/* --- plain.cu: linear operations of the general path --- */

/* Rows [first, first + n) of w, of member b of a batch from first + b * first_step on: with rows r
 * of x,
 *
 *   out[r][i] = sum over k < w.cols of x[r][k] * w[first + i][k] + bias[i], i < n, or transposed
 *   out[r][j] = sum over k < n of x[r][k] * w[first + k][j] + bias[j], j < w.cols
 *
 * where bias may be NULL; add: onto what out holds. Member b has its x and out so far apart. */
struct llm_cuda_plain {
    struct llm_cuda_matrix w;
    uint32_t first, n, first_step;
    bool transposed, add;
    const float *x;
    size_t ldx, x_step;
    float *out;
    size_t ldo, out_step;
    const float *bias;
    uint32_t n_batch; /* 1 or more */
};

int llm_cuda_plain_linear(const struct llm_cuda_plain *l, uint32_t n_rows,
                          struct llm_cuda_queue q);

/* As struct llm_cuda_experts, with matrices of any type. The steps of data are in bytes, those of
 * scales in floats. */
struct llm_cuda_plain_experts {
    struct llm_cuda_matrix gate, up, down;
    size_t gate_step, gate_scale_step, up_step, up_scale_step, down_step, down_scale_step;
};

/* h[pair] = silu(gate x) * up x; y[pair] = down h[pair]. Any n_tokens. */
int llm_cuda_plain_experts_up(const struct llm_cuda_plain_experts *e,
                              const struct llm_cuda_pairs *p, const float *x, size_t ldx, float *h,
                              size_t ldh, struct llm_cuda_queue q);
int llm_cuda_plain_experts_down(const struct llm_cuda_plain_experts *e,
                                const struct llm_cuda_pairs *p, const float *h, size_t ldh,
                                float *y, size_t ldy, struct llm_cuda_queue q);

/* out[token] += sum over the token's pairs, by ascending expert, of weight * y[pair]; y of type
 * BF16 or F32. */
int llm_cuda_add_experts(const struct llm_cuda_pairs *p, enum llm_cuda_dtype dtype, const void *y,
                         size_t ldy, uint32_t width, float *out, size_t ldo,
                         struct llm_cuda_queue q);

/* --- latent.cu --- */

/* A plane of all pages as engine/model/plane.h lays it out: row t of a page at
 * data + page * page_step + t * row_bytes, all in bytes. */
struct llm_cuda_plane {
    enum llm_cuda_latent_dtype dtype;
    void *data;
    size_t page_step;
    uint32_t rank, rope; /* elements of a row; rope even */
    uint32_t row_bytes, scale_offset, rope_offset;
};

/* Rotation over adjacent pairs: pair i of a row at position p turns by p * inv_freq[i], the product
 * in fp32; cosine and sine are multiplied by magnitude. */
struct llm_cuda_rope {
    const float *inv_freq; /* [rope / 2] */
    float magnitude;
};

/* What lies between the down and up projections, in one launch; of each row
 *  - the latent: kv[0 … rank) + kv_bias is normed, the rope elements behind are rotated, and both
 *    go into the row's place in its page, rounded to nearest even as the CPU does it (NaN, too, and
 *    zeros as padding); not those of flags NO_WRITE and IDLE;
 *  - the query: rope elements at q[row][head][nope …) are rotated and go to
 *    query[row][head][rank …), for all heads. q and query are bf16 or fp32.
 * Either is left out where kv or q is NULL. */
struct llm_cuda_latents {
    struct llm_cuda_rows rows;
    struct llm_cuda_plane plane; /* without q: of query only rank and rope matter */
    struct llm_cuda_rope rope;
    const float *kv; /* [n][rank + rope] */
    size_t ld_kv;
    const float *kv_bias; /* [rank + rope]; NULL: none */
    const float *kv_norm; /* [rank] */
    float eps;
    const void *q; /* [n][n_heads][nope + rope], rows ld_q apart */
    size_t ld_q;
    uint32_t nope, n_heads;
    void *query; /* [n][n_heads][rank + rope] */
    enum llm_cuda_dtype dtype; /* of q and query: BF16 or F32 */
};

int llm_cuda_latents(const struct llm_cuda_latents *l, struct llm_cuda_queue q);

/* --- prompt.cu: attention of prompts in the decompressed form, whose products are fewer --- */

#define LLM_CUDA_NOPE 128 /* elements of a head's queries and keys that are not rotated */
#define LLM_CUDA_V 128    /* elements of a head's values */

/* rows[t] = row t of a sequence, t < n_keys, as bf16: latents times their scales, then the rope
 * elements; row t is in page pages[t / 64]. What llm_cuda_linears_many multiplies with kv_b as it
 * is stored to make the keys and values of all heads. */
int llm_cuda_gather(const struct llm_cuda_plane *plane, const uint32_t *pages, uint32_t n_keys,
                    void *rows, size_t ld, struct llm_cuda_queue q);

/* For queries i < n_queries of a sequence, the last of its n_keys rows, and each head:
 *
 *   out = sum over t of softmax_t(scale * (q_nope . k_t + q_rope . rope_t)) * v_t
 *
 * over rows t <= n_keys - n_queries + i. All in bf16. Of row i and head h, q_nope is at
 * q + i * ld_q + h * q_step, q_rope likewise (as llm_cuda_latents leaves it in a query); k_t is at
 * kv + t * ld_kv + h * 256 and v_t behind it; rope_t is at rope + t * ld_rope; out is
 * [n_queries][n_heads][128], rows ld_out apart. */
struct llm_cuda_prompt {
    uint32_t n_queries, n_keys, n_heads;
    float scale;
    const void *q;
    size_t ld_q, q_step;
    const void *q_rope;
    size_t ld_q_rope, q_rope_step;
    const void *kv;
    size_t ld_kv;
    const void *rope;
    size_t ld_rope;
    void *out;
    size_t ld_out;
};

int llm_cuda_attend_prompt(const struct llm_cuda_prompt *p, struct llm_cuda_queue q);

/* Whether the device that is chosen can; before Hopper none does. */
bool llm_cuda_attends_prompts(void);

/* --- plain_attention.cu --- */

#define LLM_CUDA_PLAIN_SPLIT_PAGES 4 /* part of the numerics */

/* Attention in the absorbed form of every row of a step, prompt or not, over rows 0 … position of
 * its sequence: queries fp32 [n][n_heads][rank + rope], out fp32 [n][n_heads][rank]. An idle row's
 * out is zero.
 *
 * Each LLM_CUDA_PLAIN_SPLIT_PAGES pages are summed up on their own and then added in order: by one
 * block of threads with max_splits 1, else by as many as there are splits, which may be no more
 * than max_splits for any row; the bits are the same. partial: scratch of
 * llm_cuda_plain_attention_floats floats, of none for max_splits 1. */
struct llm_cuda_plain_attention {
    struct llm_cuda_rows rows;
    struct llm_cuda_plane plane;
    uint32_t n_heads, max_splits;
    float scale;
    const float *queries;
    float *out;
    float *partial;
};

size_t llm_cuda_plain_attention_floats(const struct llm_cuda_plain_attention *a);
int llm_cuda_plain_attend(const struct llm_cuda_plain_attention *a, struct llm_cuda_queue q);

/* --- router.cu --- */

#define LLM_CUDA_MAX_EXPERTS 4096

enum llm_cuda_gate {
    LLM_CUDA_GATE_GREEDY, /* the n_used largest scores */
    LLM_CUDA_GATE_GROUPS, /* of the groups with the largest single score */
    LLM_CUDA_GATE_NOAUX,  /* by score + bias, of the groups with the largest sum of two */
};

/* Which experts a token goes to, as kernels/cpu/router.h has it: ties go to the lower index, NaN
 * comes last. Experts n_experts … n_experts + n_shared - 1 take every token with weight 1. */
struct llm_cuda_router {
    enum llm_cuda_gate gate;
    bool sigmoid;                 /* scores: sigmoid of the logits, else softmax over all */
    uint32_t n_experts, n_used;   /* n_experts at most LLM_CUDA_MAX_EXPERTS */
    uint32_t n_groups, n_groups_used;
    bool normalise;
    float factor;
    uint32_t n_shared;
};

/* logits fp32 [n][n_experts], bias [n_experts] or NULL, flags [n] or NULL: idle rows have no pairs.
 * The lists are as in struct llm_cuda_pairs, for E = n_experts + n_shared and per_token = n_used +
 * n_shared: n_active[1], expert[E], first[E + 1], token[n * per_token], weight[n * per_token],
 * pair_of[n * per_token]. scratch: llm_cuda_route_words words of 4 bytes. */
struct llm_cuda_route {
    struct llm_cuda_router router;
    const float *logits;
    size_t ld_logits;
    const float *bias;
    uint32_t n;
    const uint8_t *flags;
    uint32_t *n_active, *expert, *first, *token, *pair_of;
    float *weight;
    uint32_t *scratch;
};

size_t llm_cuda_route_words(const struct llm_cuda_router *r, uint32_t n);
int llm_cuda_route(const struct llm_cuda_route *r, struct llm_cuda_queue q);

/* --- alone.cu, join.cu: a layer of a step that has but one row, on processors that have clusters.
 * The bits are not those of the operations above. --- */

/* From the row's q and kv to what each head adds to the residual stream, as llm_cuda_latents, the
 * products with W_UK, llm_cuda_attend and the products with W_UV and W_O do it: out[head][i] is the
 * head's part of output i < o.rows, in fp32. The matrices are of one dtype. w_uk is that of all
 * heads, one behind the other, as for llm_cuda_linears; w_uv is the first head's, the next one's is
 * value_step rows on. latents is of one row, with q and kv; its query does not matter. o.rows is a
 * multiple of 256, no more than LLM_CUDA_MAX_ALONE. */
struct llm_cuda_alone {
    struct llm_cuda_latents latents;
    struct llm_cuda_matrix w_uk, w_uv, o;
    uint32_t value_step;
    float scale;
    float *out;
};

int llm_cuda_alone(const struct llm_cuda_alone *a, struct llm_cuda_queue q);

/* x[i] += bias[i] + sum over j < n_add of add[j][i], i < width (bias may be NULL); normed, in bf16,
 * is weight * x / sqrt(mean(x^2) + eps). Then, unless router.data is NULL, the choice of experts by
 * the logits router . normed, as llm_cuda_route makes it: of route its router, bias, flags and what
 * it gives matter. width is a multiple of 64, no more than LLM_CUDA_MAX_ALONE; router is bf16, of
 * no more than LLM_CUDA_MAX_JOIN rows, and no more than that are n_used + n_shared. */
#define LLM_CUDA_MAX_JOIN 64

struct llm_cuda_join {
    float *x;
    const float *add;
    uint32_t n_add, width;
    const float *bias, *weight;
    float eps;
    void *normed;
    struct llm_cuda_matrix router;
    struct llm_cuda_route route;
};

int llm_cuda_join(const struct llm_cuda_join *j, struct llm_cuda_queue q);

/* --- sample.cu --- */

#define LLM_CUDA_MAX_TOP_LOGPROBS 20
#define LLM_CUDA_NO_TOKEN UINT32_MAX
#define LLM_CUDA_NO_MASK UINT32_MAX

/* How a slot's tokens are chosen; the meaning and order of what is applied are struct
 * llm_sampling's of engine/backend/backend.h, the arithmetic kernels/cpu/sample.c's. */
struct llm_cuda_sampling {
    float temperature, top_p, min_p;
    uint32_t top_k;
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint32_t choice;
    uint64_t seed;
    uint32_t n_vocab; /* ids from here on are never chosen */
    uint32_t n_top_logprobs; /* 0 … LLM_CUDA_MAX_TOP_LOGPROBS */
    uint32_t logprobs; /* not 0: log-probabilities are wanted */
    uint32_t n_bias;
    const uint32_t *bias_ids; /* < n_vocab */
    const float *bias;
    uint32_t *counts; /* [n_vocab] in the answer; NULL: frequency and presence are off */
    uint32_t *seen;   /* bits of tokens in prompt or answer; NULL: repetition is off */
};

/* For rows i < n of logits, each of another slot: a token for slots[i] at positions[i] (its own
 * position: one more than that of the row it comes from). It goes to tokens[i] and last[slot], and
 * is counted in counts and seen. LLM_CUDA_NO_TOKEN goes to tokens[i] where a logit below n_vocab is
 * not finite or nothing is left to choose from, and from then on for that slot: over[slot] is set;
 * nothing else of it changes. slots[i] == LLM_CUDA_NO_SLOT: an idle row, of which nothing is
 * written.
 *
 * Where wanted, logprobs[i] is the token's log-probability under the logits as they are, over all
 * `vocab` of them, and top_ids and top_logprobs[i][LLM_CUDA_MAX_TOP_LOGPROBS] are the most probable
 * ids below n_vocab, descending, lowest id first on ties.
 *
 * masks[mask_of[i] * mask_step]: bit id % 32 of word id / 32 is set where id may be chosen; all may
 * with mask_of NULL or mask_of[i] == LLM_CUDA_NO_MASK. scratch: n * vocab floats.
 *
 * vocab is at most 2^21, or 2^18 on processors before Hopper, which have no clusters of blocks;
 * one_block: does without them here, too, for tests. The tokens are the same. */
struct llm_cuda_sample {
    uint32_t n, vocab;
    const float *logits;
    size_t ld_logits;
    const uint32_t *slots, *positions;
    const struct llm_cuda_sampling *sampling; /* [slots] */
    const uint32_t *mask_of, *masks;
    size_t mask_step;
    uint32_t *last, *over; /* [slots] */
    uint32_t *tokens;
    float *logprobs;
    uint32_t *top_ids;
    float *top_logprobs;
    float *scratch;
    bool one_block;
};

#define LLM_CUDA_NO_SLOT UINT32_MAX

int llm_cuda_sample(const struct llm_cuda_sample *s, struct llm_cuda_queue q);

#ifdef __cplusplus
}
#endif

#endif
