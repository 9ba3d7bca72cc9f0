#include "engine/backend/cpu_internal.h"
#include "engine/base/clock.h"
#include "kernels/cpu/rope.h"

/* Puts a real token where LLM_TOKEN_LAST stands, and finds every row's sequence and position. */
static void place_rows(struct llm_backend *b)
{
    struct llm_cpu_step *s = b->step;
    uint32_t row = 0;

    for (uint32_t i = 0; i < s->n_seqs; i++) {
        for (uint32_t j = 0; j < s->seqs[i].n_rows; j++, row++) {
            b->row_seq[row] = &s->seqs[i];
            b->row_position[row] = s->seqs[i].position + j;
            if (s->tokens[row] == LLM_TOKEN_LAST) {
                s->tokens[row] = b->sequences[s->seqs[i].slot].last;
            }
        }
    }
}

static void embed_rows(struct llm_backend *b, uint32_t row, uint32_t n, uint32_t thread)
{
    const struct llm_model_config *c = &b->model->config;
    struct llm_cpu_matrix embed = llm_cpu_matrix_of(&b->model->embed);

    (void) thread;
    for (size_t r = row; r < row + n; r++) {
        b->kernels->unpack_row(&embed, b->step->tokens[r], b->x + r * c->hidden_size);
        llm_cpu_rope_angles(b->inv_freq, c->qk_rope_dim / 2, b->row_position[r],
                            b->rope_magnitude, b->cos_sin + r * c->qk_rope_dim);
    }
}

void llm_cpu_forward(struct llm_backend *b, struct llm_cpu_step *s)
{
    const struct llm_backend_options *o = &b->options;
    uint64_t start = llm_now_ns();

    b->step = s;
    place_rows(b);
    llm_cpu_attention_plan(b);
    llm_cpu_for_rows(b, s->n_rows, embed_rows);

    for (b->layer = 0; b->layer < b->model->config.n_layers; b->layer++) {
        llm_cpu_attention(b);
        llm_cpu_ffn(b);
        if (o->tap != NULL) {
            o->tap(o->tap_ctx, b->layer, b->x, s->n_rows, b->model->config.hidden_size);
        }
        if (o->beat != NULL) {
            o->beat(o->beat_ctx);
        }
    }

    llm_cpu_head(b);
    s->ns = llm_now_ns() - start;
}
