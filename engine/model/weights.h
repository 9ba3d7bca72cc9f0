/* The table of weights: what a model of a given configuration consists of, under the names that
 * released checkpoints use, whatever the weights come from. */

#ifndef LLM_MODEL_WEIGHTS_H
#define LLM_MODEL_WEIGHTS_H

#include "engine/model/model.h"

/* What a weight is for, and how it may be stored. */
enum llm_role {
    LLM_ROLE_NORM,        /* [cols], F32, F16 or BF16 */
    LLM_ROLE_BIAS,        /* the same */
    LLM_ROLE_ROUTER_BIAS, /* [cols], F32 or BF16: kept in full precision by those who made it */
    LLM_ROLE_MATRIX,      /* [rows, cols], F32, F16 or BF16 */
    LLM_ROLE_EMBEDDING,   /* the same: a row is looked up, not multiplied */
    LLM_ROLE_ROUTER,      /* the same */
    LLM_ROLE_PROJECTION,  /* [rows, cols], F8_E4M3 with its scales too */
};

struct llm_weight_source {
    void *ctx;
    /* Fills in *w, of which rows and cols are there. */
    int (*take)(void *ctx, struct llm_weight *w, enum llm_role role, const char *name,
                struct llm_error *err);
    /* Whether there is a weight of this name, where a model may also do with a copy of another.
     * NULL: never. */
    bool (*has)(void *ctx, const char *name);
};

/* Takes every weight that m->config asks for, always in the same order, and puts it in its place.
 * Whatever is returned, what was allocated is for llm_weights_free. */
int llm_weights_take(struct llm_model *m, const struct llm_weight_source *source,
                     struct llm_error *err);
void llm_weights_free(struct llm_model *m);

#endif
