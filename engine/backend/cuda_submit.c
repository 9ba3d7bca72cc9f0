/* The steps' way in and out. */

#include "engine/backend/cuda_internal.h"

#include <string.h>

#define NOT_WANTED UINT32_MAX /* of n_top */

/* --- what a step is on the device --- */

static uint32_t pages_of(const struct llm_step_seq *seq)
{
    return (uint32_t) llm_cuda_pages((uint64_t) seq->position + seq->n_rows);
}

/* One row of each sequence, and no logits for the host: what a graph does. */
static bool is_decode(const struct llm_backend *b, const struct llm_step *step)
{
    bool decode = step->n_rows == step->n_seqs && step->n_seqs <= LLM_CUDA_MAX_LINEAR_ROWS
                  && b->options.tap == NULL;

    for (uint32_t i = 0; decode && i < step->n_rows; i++) {
        decode = (step->flags[i] & LLM_ROW_LOGITS) == 0;
    }
    return decode;
}

/* The most queries of one sequence that attention takes in one go: where bits must not depend on
 * how a prompt is cut, no more than its operations for few queries can. */
static uint32_t piece_rows(const struct llm_backend *b)
{
    return b->options.deterministic ? LLM_CUDA_MAX_LINEAR_ROWS : b->max_rows;
}

static struct llm_cuda_shape shape_of(const struct llm_backend *b, const struct llm_step *step,
                                      bool decode)
{
    struct llm_cuda_shape shape = {.rows = step->n_rows, .lines = step->n_seqs};

    for (uint32_t i = 0; i < step->n_seqs; i++) {
        uint32_t n_pages = pages_of(&step->seqs[i]);

        shape.pages_step = n_pages > shape.pages_step ? n_pages : shape.pages_step;
        shape.n_keys += (step->seqs[i].n_rows + piece_rows(b) - 1) / piece_rows(b);
    }
    if (decode) {
        shape.rows = shape.lines = shape.n_keys = shape.n_sampled =
            llm_cuda_graph_rows(step->n_rows);
        shape.pages_step = llm_cuda_graph_pages(shape.pages_step);
        return shape;
    }
    for (uint32_t i = 0; i < step->n_rows; i++) {
        shape.n_logits += (step->flags[i] & LLM_ROW_LOGITS) != 0;
        shape.n_sampled += (step->flags[i] & LLM_ROW_SAMPLE) != 0;
    }
    return shape;
}

/* Rows first … first + n - 1 of the step, which are the sequence's from n_done on. */
static void add_piece(struct llm_cuda_step *s, const struct llm_step_seq *seq, uint32_t line,
                      uint32_t first, uint32_t n_done, uint32_t n, uint32_t key)
{
    struct llm_cuda_piece *last = s->n_pieces > 0 ? &s->pieces[s->n_pieces - 1] : NULL;
    uint32_t n_keys = seq->position + n_done + n;

    s->input.n_keys[key] = n_keys;
    if (last != NULL && last->n_queries == n && last->line + last->n_seqs == line
        && (last->n_seqs + 1) * n <= LLM_CUDA_MAX_LINEAR_ROWS) {
        last->n_seqs++;
        last->n_keys = n_keys > last->n_keys ? n_keys : last->n_keys;
        return;
    }
    s->pieces[s->n_pieces++] = (struct llm_cuda_piece){
        .row = first, .line = line, .key = key, .n_seqs = 1, .n_queries = n, .n_keys = n_keys};
}

static void add_rows(const struct llm_backend *b, struct llm_cuda_step *s,
                     const struct llm_step *step)
{
    struct llm_cuda_input *in = &s->input;
    uint32_t row = 0, key = 0;

    s->n_pieces = 0;
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const struct llm_step_seq *seq = &step->seqs[i];

        memcpy(in->pages + (size_t) i * s->shape.pages_step, seq->pages,
               pages_of(seq) * sizeof(*in->pages));
        for (uint32_t done = 0, n; done < seq->n_rows; done += n) {
            n = seq->n_rows - done < piece_rows(b) ? seq->n_rows - done : piece_rows(b);
            add_piece(s, seq, i, row + done, done, n, key++);
        }
        for (uint32_t j = 0; j < seq->n_rows; j++, row++) {
            in->tokens[row] = step->tokens[row];
            in->slots[row] = seq->slot;
            in->positions[row] = seq->position + j;
            in->seqs[row] = i;
            in->flags[row] = step->flags[row] & LLM_ROW_NO_WRITE;
        }
    }
}

/* Fills a decode step up to its graph's size. All its sequences are one piece. */
static void add_idle_rows(struct llm_cuda_step *s, uint32_t n_rows)
{
    struct llm_cuda_input *in = &s->input;

    for (uint32_t row = n_rows; row < s->shape.rows; row++) {
        in->tokens[row] = in->slots[row] = in->positions[row] = in->n_keys[row] = 0;
        in->seqs[row] = row;
        in->flags[row] = LLM_CUDA_ROW_IDLE;
    }
    s->n_pieces = 1;
    s->pieces[0] = (struct llm_cuda_piece){
        .n_seqs = s->shape.rows,
        .n_queries = 1,
        .n_keys = s->shape.pages_step * LLM_PAGE_TOKENS,
    };
}

/* The last row of a sequence is to be sampled: place `at` of the lists is for it. */
static void add_sampled(const struct llm_backend *b, struct llm_cuda_step *s,
                        const struct llm_step_seq *seq, uint32_t row, uint32_t at)
{
    const struct llm_sampling *sampling = &b->samplings[seq->slot];
    uint32_t n_top = sampling->n_top_logprobs < sampling->n_vocab ? sampling->n_top_logprobs
                                                                  : sampling->n_vocab;

    s->input.sample_slots[at] = seq->slot;
    s->input.sample_positions[at] = seq->position + seq->n_rows;
    s->input.mask_of[at] = LLM_CUDA_NO_MASK;
    if (seq->mask != NULL) {
        memcpy(s->masks + (size_t) s->n_masks * b->mask_words, seq->mask,
               (sampling->n_vocab + 31) / 32 * sizeof(*s->masks));
        s->input.mask_of[at] = s->n_masks++;
    }
    s->sampled[s->n_sampled] = (struct llm_sampled){.row = row};
    s->sampled_at[s->n_sampled] = at;
    s->n_top[s->n_sampled] = sampling->logprobs || n_top > 0 ? n_top : NOT_WANTED;
    s->wants_top |= s->n_top[s->n_sampled] != NOT_WANTED;
    s->n_sampled++;
}

static void add_wanted(const struct llm_backend *b, struct llm_cuda_step *s,
                       const struct llm_step *step)
{
    uint32_t row = 0, n_logits = 0;

    s->n_sampled = s->n_masks = 0;
    s->wants_top = false;
    for (uint32_t at = 0; s->decode && at < s->shape.n_sampled; at++) {
        s->input.sample_rows[at] = at;
        s->input.sample_slots[at] = LLM_CUDA_NO_SLOT;
        s->input.sample_positions[at] = 0;
        s->input.mask_of[at] = LLM_CUDA_NO_MASK;
    }
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        for (uint32_t j = 0; j < step->seqs[i].n_rows; j++, row++) {
            if (step->flags[row] & LLM_ROW_LOGITS) {
                s->input.logit_rows[n_logits++] = row;
            }
            if (step->flags[row] & LLM_ROW_SAMPLE) {
                uint32_t at = s->decode ? row : s->n_sampled;

                s->input.sample_rows[at] = row;
                add_sampled(b, s, &step->seqs[i], row, at);
            }
        }
    }
}

/* --- in --- */

static void enqueue(struct llm_backend *b, struct llm_cuda_step *s)
{
    struct llm_cuda_output *out = &s->output;

    llm_cuda_try(b, cudaEventRecord(s->begun, b->compute), "a step");
    llm_cuda_try(b,
                 cudaMemcpyAsync(b->input, s->pinned, s->input.bytes, cudaMemcpyHostToDevice,
                                 b->compute),
                 "the input of a step");
    if (s->n_masks > 0) {
        llm_cuda_try(b,
                     cudaMemcpyAsync(b->masks, s->masks,
                                     (size_t) s->n_masks * b->mask_words * sizeof(*s->masks),
                                     cudaMemcpyHostToDevice, b->compute),
                     "the masks of a step");
    }
    if (b->error != cudaSuccess) {
        return; /* what was not copied must not be worked on */
    }
    if (!s->decode || !llm_cuda_graph_run(b, s)) {
        llm_cuda_forward(b, s);
    }
    if (s->n_sampled > 0) {
        llm_cuda_try(b,
                     cudaMemcpyAsync(out->tokens, b->output.tokens,
                                     s->wants_top ? out->bytes : out->short_bytes,
                                     cudaMemcpyDeviceToHost, b->compute),
                     "the results of a step");
    }
    llm_cuda_try(b, cudaEventRecord(s->ended, b->compute), "a step");
}

int llm_cuda_submit(struct llm_backend *b, const struct llm_step *step, uint64_t *ticket)
{
    struct llm_cuda_step *s = &b->steps[b->n_submitted % LLM_CUDA_STEPS];
    const struct llm_step_limits limits = {
        .max_rows = b->options.max_batch_tokens,
        .max_context = b->options.max_context,
        .n_pages = b->info.n_pages,
        .vocab_size = b->model->config.vocab_size,
        .last_fence = b->last_copy,
    };

    if (b->n_submitted - b->n_waited == LLM_CUDA_IN_FLIGHT) {
        return LLM_EAGAIN;
    }
    if (!llm_slots_check(&b->slots, &limits, step)) {
        return LLM_EINVAL;
    }

    s->decode = is_decode(b, step);
    s->shape = shape_of(b, step, s->decode);
    s->input = llm_cuda_input_at(s->pinned, &s->shape);
    add_rows(b, s, step);
    if (s->decode) {
        add_idle_rows(s, step->n_rows);
    }
    add_wanted(b, s, step);

    llm_cuda_after_copy(b, step->fence);
    enqueue(b, s); /* what fails shows when the step is waited for */
    *ticket = ++b->n_submitted;
    llm_slots_note(&b->slots, step, *ticket);
    return LLM_OK;
}

/* --- out --- */

static void read_sampled(struct llm_cuda_step *s, uint32_t i)
{
    const struct llm_cuda_output *out = &s->output;
    struct llm_sampled *to = &s->sampled[i];
    uint32_t at = s->sampled_at[i];

    if (out->tokens[at] == LLM_CUDA_NO_TOKEN) {
        return;
    }
    to->n_tokens = 1;
    to->tokens[0] = out->tokens[at];
    if (s->n_top[i] != NOT_WANTED) {
        to->logprobs[0] = out->logprobs[at];
        to->n_top = s->n_top[i];
        to->top_ids = out->top_ids + (size_t) at * LLM_MAX_TOP_LOGPROBS;
        to->top_logprobs = out->top_logprobs + (size_t) at * LLM_MAX_TOP_LOGPROBS;
    }
}

int llm_cuda_wait(struct llm_backend *b, uint64_t ticket, struct llm_step_result *result,
                  struct llm_error *err)
{
    struct llm_cuda_step *s = &b->steps[b->n_waited % LLM_CUDA_STEPS];
    float ms = 0;

    if (b->n_waited == b->n_submitted || ticket != b->n_waited + 1) {
        return llm_fail(err, LLM_EINVAL, "step %llu is not the oldest",
                        (unsigned long long) ticket);
    }
    llm_cuda_try(b, cudaEventSynchronize(s->ended), "a step");
    llm_cuda_try(b, cudaEventElapsedTime(&ms, s->begun, s->ended), "a step");
    llm_cuda_try(b, atomic_load(&b->copy_error), "a copy of a page");
    b->n_waited++;
    if (b->error != cudaSuccess) {
        return llm_cuda_fail(err, b->error, b->error_at);
    }
    for (uint32_t i = 0; i < s->n_sampled; i++) {
        read_sampled(s, i);
    }
    *result = (struct llm_step_result){
        .n_sampled = s->n_sampled,
        .sampled = s->sampled,
        .n_logits = s->shape.n_logits,
        .logits = s->logits,
        .ns = (uint64_t) ((double) ms * 1e6),
    };
    return LLM_OK;
}
