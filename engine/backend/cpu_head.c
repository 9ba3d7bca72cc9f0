#include "engine/backend/cpu_internal.h"
#include "engine/backend/philox.h"
#include "kernels/cpu/sample.h"

#include <string.h>

/* The rows whose logits go to the host, then those that are only sampled from. Results are in the
 * order of rows. */
static void list_wanted(struct llm_backend *b)
{
    struct llm_cpu_step *s = b->step;

    b->n_wanted = 0;
    for (int pass = 0; pass < 2; pass++) {
        s->n_sampled = 0;
        for (uint32_t row = 0; row < s->n_rows; row++) {
            bool logits = (s->flags[row] & LLM_ROW_LOGITS) != 0;
            bool sample = (s->flags[row] & LLM_ROW_SAMPLE) != 0;
            uint32_t sampled = sample ? s->n_sampled++ : LLM_CPU_NOT_SAMPLED;

            if (pass == 0 ? logits : sample && !logits) {
                b->wanted[b->n_wanted++] = (struct llm_cpu_wanted){row, sampled};
            }
        }
        if (pass == 0) {
            s->n_logits = b->n_wanted;
        }
    }
}

static const float *logits_of(const struct llm_backend *b, size_t wanted)
{
    size_t vocab = b->model->config.vocab_size, n_host = b->step->n_logits;

    return wanted < n_host ? b->step->logits + wanted * vocab
                           : b->logits + (wanted - n_host) * vocab;
}

static void remember(struct llm_cpu_sequence *sequence, uint32_t token)
{
    sequence->last = token;
    llm_cpu_count(sequence, token, true);
}

/* top_ids and top_logprobs of *out point to the room for them. */
static void log_probabilities(const struct llm_backend *b, const struct llm_sampling *p,
                              const float *logits, struct llm_sampled *out, uint32_t *top_ids,
                              float *top_logprobs, void *scratch)
{
    float all = llm_cpu_log_sum_exp(b->kernels, logits, b->model->config.vocab_size, scratch);

    out->logprobs[0] = logits[out->tokens[0]] - all;
    out->n_top = p->n_top_logprobs < p->n_vocab ? p->n_top_logprobs : p->n_vocab;
    out->top_ids = top_ids;
    out->top_logprobs = top_logprobs;
    llm_cpu_top(logits, p->n_vocab, out->n_top, top_ids);
    for (uint32_t i = 0; i < out->n_top; i++) {
        top_logprobs[i] = logits[top_ids[i]] - all;
    }
}

static void sample_task(void *ctx, uint32_t task, uint32_t thread)
{
    struct llm_backend *b = ctx;
    struct llm_cpu_step *s = b->step;
    const struct llm_cpu_wanted *w = &b->wanted[task];
    const float *logits = logits_of(b, task);
    void *scratch = llm_cpu_scratch(b, thread);
    const struct llm_step_seq *seq = b->row_seq[w->row];
    struct llm_cpu_sequence *sequence = &b->sequences[seq->slot];
    const struct llm_sampling *p = &sequence->sampling;
    struct llm_cpu_sampling sampling = {
        .n_vocab = p->n_vocab,
        .n_bias = p->n_bias,
        .bias_ids = p->bias_ids,
        .bias = p->bias,
        .repetition_penalty = p->repetition_penalty,
        .seen = sequence->seen,
        .frequency_penalty = p->frequency_penalty,
        .presence_penalty = p->presence_penalty,
        .counts = sequence->counts,
        .mask = seq->mask,
        .temperature = p->temperature,
        .top_p = p->top_p,
        .min_p = p->min_p,
        .top_k = p->top_k,
    };
    uint32_t token;
    float u;

    if (w->sampled == LLM_CPU_NOT_SAMPLED) {
        return;
    }
    s->sampled[w->sampled] = (struct llm_sampled){.row = w->row};
    u = llm_philox_uniform(p->seed, b->row_position[w->row] + 1, p->choice, LLM_PHILOX_SAMPLE);
    token = llm_cpu_sample(b->kernels, &sampling, logits, u, scratch);
    sequence->over = sequence->over || token == LLM_CPU_NO_TOKEN;
    if (sequence->over) {
        return;
    }

    s->sampled[w->sampled].n_tokens = 1;
    s->sampled[w->sampled].tokens[0] = token;
    remember(sequence, token);
    if (p->logprobs || p->n_top_logprobs > 0) {
        size_t at = (size_t) w->sampled * LLM_MAX_TOP_LOGPROBS;

        log_probabilities(b, p, logits, &s->sampled[w->sampled], s->top_ids + at,
                          s->top_logprobs + at, scratch);
    }
}

void llm_cpu_head(struct llm_backend *b)
{
    const struct llm_model_config *c = &b->model->config;
    struct llm_cpu_linear head = {
        .w = &b->model->lm_head,
        .n_outs = c->vocab_size,
        .x = b->normed,
        .ldx = c->hidden_size,
        .out = b->step->logits,
        .ldo = c->vocab_size,
    };

    list_wanted(b);
    llm_cpu_norm(b, b->final_norm, b->wanted, b->n_wanted);
    llm_cpu_linears(b, &head, 1, b->step->n_logits);
    head.x += (size_t) b->step->n_logits * c->hidden_size;
    head.out = b->logits;
    llm_cpu_linears(b, &head, 1, b->n_wanted - b->step->n_logits);
    llm_cpu_threads_run(b->threads, b->n_wanted, sample_task, b);
}
