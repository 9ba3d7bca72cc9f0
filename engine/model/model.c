#include "engine/model/model.h"

#include "engine/base/memory.h"
#include "engine/model/checkpoint.h"
#include "engine/model/fingerprint.h"
#include "engine/model/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NAME_BYTES 256

struct loader {
    const char *dir;
    struct llm_model *model;
    struct llm_checkpoint *ck;
};

static bool find_dtype(enum llm_role role, enum llm_st_dtype stored, enum llm_dtype *out)
{
    switch (stored) {
    case LLM_ST_F32:
        *out = LLM_F32;
        return true;
    case LLM_ST_BF16:
        *out = LLM_BF16;
        return true;
    case LLM_ST_F16:
        *out = LLM_F16;
        return role != LLM_ROLE_ROUTER_BIAS;
    case LLM_ST_F8_E4M3:
        *out = LLM_F8_E4M3;
        return role == LLM_ROLE_PROJECTION;
    default:
        return false;
    }
}

static int check_shape(const struct loader *l, const struct llm_st_tensor *t, bool vector,
                       uint32_t rows, uint32_t cols, struct llm_error *err)
{
    if (vector && !(t->rank == 1 && t->dims[0] == cols)) {
        return llm_checkpoint_fail(l->ck, t, LLM_EINVAL, err,
                                   "shape is not [%u], which config.json asks for", cols);
    }
    if (!vector && !(t->rank == 2 && t->dims[0] == rows && t->dims[1] == cols)) {
        return llm_checkpoint_fail(l->ck, t, LLM_EINVAL, err,
                                   "shape is not [%u, %u], which config.json asks for", rows,
                                   cols);
    }
    return LLM_OK;
}

/* The block scales beside an F8_E4M3 matrix, which have to be there, and beside no other. */
static int take_scale(struct loader *l, struct llm_weight *w, const struct llm_st_tensor *t,
                      struct llm_error *err)
{
    const struct llm_model_config *c = &l->model->config;
    char name[MAX_NAME_BYTES + sizeof("_scale_inv")];
    struct llm_st_tensor *scale;

    snprintf(name, sizeof(name), "%.*s_scale_inv", (int) t->name_len, t->name);
    scale = llm_checkpoint_find(l->ck, name);

    if (w->dtype != LLM_F8_E4M3) {
        return scale == NULL ? LLM_OK
                             : llm_checkpoint_fail(l->ck, scale, LLM_EINVAL, err,
                                                   "its weight is %s, not F8_E4M3",
                                                   llm_st_dtype_name(t->dtype));
    }

    if (c->fp8_block_rows == 0) {
        return llm_checkpoint_fail(l->ck, t, LLM_EINVAL, err,
                                   "is F8_E4M3, but config.json has no quantization_config");
    }
    if (scale == NULL) {
        return llm_checkpoint_fail(l->ck, t, LLM_EINVAL, err, "has no weight_scale_inv");
    }
    if (scale->dtype != LLM_ST_F32) {
        return llm_checkpoint_fail(l->ck, scale, LLM_EUNSUPPORTED, err,
                                   "dtype %s: must be F32", llm_st_dtype_name(scale->dtype));
    }

    w->block_rows = c->fp8_block_rows;
    w->block_cols = c->fp8_block_cols;
    w->scale = (const float *) (const void *) scale->data;
    scale->used = true;
    return check_shape(l, scale, false, (w->rows + w->block_rows - 1) / w->block_rows,
                       (w->cols + w->block_cols - 1) / w->block_cols, err);
}

/* Finds the tensor and checks that it is what the role needs. */
static int take(void *ctx, struct llm_weight *w, enum llm_role role, const char *name,
                struct llm_error *err)
{
    struct loader *l = ctx;
    struct llm_st_tensor *t = llm_checkpoint_find(l->ck, name);
    bool vector = role == LLM_ROLE_NORM || role == LLM_ROLE_BIAS || role == LLM_ROLE_ROUTER_BIAS;
    int rc;

    if (t == NULL) {
        return llm_fail(err, LLM_EINVAL, "%s: tensor %s is missing", l->dir, name);
    }
    rc = check_shape(l, t, vector, w->rows, w->cols, err);
    if (rc != LLM_OK) {
        return rc;
    }
    if (!find_dtype(role, t->dtype, &w->dtype)) {
        return llm_checkpoint_fail(l->ck, t, LLM_EUNSUPPORTED, err,
                                   "dtype %s is not supported here", llm_st_dtype_name(t->dtype));
    }
    w->data = t->data;
    t->used = true;
    return take_scale(l, w, t, err);
}

static bool has(void *ctx, const char *name)
{
    const struct loader *l = ctx;

    return llm_checkpoint_find(l->ck, name) != NULL;
}

/* Releases drop the MTP layer now and then and leave its number in config.json. */
static bool has_layer(const struct llm_checkpoint *ck, uint32_t layer)
{
    char prefix[MAX_NAME_BYTES];
    size_t len = (size_t) snprintf(prefix, sizeof(prefix), "model.layers.%u.", layer);
    uint32_t i = llm_st_lower_bound(ck->tensors, ck->n_tensors, prefix, len);

    return i < ck->n_tensors && ck->tensors[i]->name_len > len
           && memcmp(ck->tensors[i]->name, prefix, len) == 0;
}

static bool ends_with(const struct llm_st_tensor *t, const char *end)
{
    size_t len = strlen(end);

    return t->name_len >= len && memcmp(t->name + t->name_len - len, end, len) == 0;
}

/* Tensors that may lie in a checkpoint without a role: tables and scales that the maths here does
 * not use, MTP layers of which config.json says nothing, a head beside tied embeddings. */
static bool is_ignored(const struct llm_model_config *c, const struct llm_st_tensor *t)
{
    static const char layers[] = "model.layers.";
    uint32_t layer = 0;
    size_t i = sizeof(layers) - 1;

    if (ends_with(t, ".rotary_emb.inv_freq") || ends_with(t, ".k_scale")
        || ends_with(t, ".v_scale")) {
        return true;
    }
    if (c->tie_word_embeddings && llm_st_is_named(t, "lm_head.weight", strlen("lm_head.weight"))) {
        return true;
    }
    if (t->name_len <= i || memcmp(t->name, layers, i) != 0) {
        return false;
    }
    while (i < t->name_len && t->name[i] >= '0' && t->name[i] <= '9' && layer < 100000) {
        layer = layer * 10 + (uint32_t) (t->name[i++] - '0');
    }
    return layer >= c->n_layers + c->n_mtp_layers;
}

/* A tensor that a model of this architecture does not have changes the maths for whoever made it:
 * running without it would be wrong in silence. */
static int refuse_unused(const struct loader *l, struct llm_error *err)
{
    for (uint32_t i = 0; i < l->ck->n_tensors; i++) {
        const struct llm_st_tensor *t = l->ck->tensors[i];

        if (!t->used && !is_ignored(&l->model->config, t)) {
            return llm_checkpoint_fail(l->ck, t, LLM_EUNSUPPORTED, err,
                                       "has no place in the model that config.json describes");
        }
    }
    return LLM_OK;
}

static void advise(const struct llm_checkpoint *ck, enum llm_mapping_access access)
{
    for (uint32_t i = 0; i < ck->n_shards; i++) {
        llm_mapping_advise(&ck->shards[i].map, access);
    }
}

int llm_model_open(const char *dir, struct llm_model **out, struct llm_error *err)
{
    struct llm_model *m = calloc(1, sizeof(*m));
    struct loader l = {.dir = dir, .model = m};
    const struct llm_weight_source source = {.ctx = &l, .take = take, .has = has};
    int rc;

    if (m == NULL || (m->checkpoint = calloc(1, sizeof(*m->checkpoint))) == NULL) {
        rc = llm_fail(err, LLM_ENOMEM, "out of memory");
        goto fail;
    }
    l.ck = m->checkpoint;

    rc = llm_config_open(dir, &m->config, err);
    if (rc == LLM_OK) {
        rc = llm_checkpoint_open(l.ck, dir, err);
    }
    if (rc != LLM_OK) {
        goto fail;
    }

    if (!has_layer(l.ck, m->config.n_layers)) {
        m->config.n_mtp_layers = 0;
    }
    rc = llm_weights_take(m, &source, err);
    if (rc == LLM_OK) {
        rc = refuse_unused(&l, err);
    }
    if (rc != LLM_OK) {
        goto fail;
    }
    for (uint32_t i = 0; i < l.ck->n_tensors; i++) {
        m->bytes += l.ck->tensors[i]->bytes;
    }

    advise(l.ck, LLM_ACCESS_RANDOM);
    rc = llm_fingerprint(&m->config, l.ck, m->fingerprint, err);
    advise(l.ck, LLM_ACCESS_NORMAL);
    if (rc == LLM_OK) {
        rc = llm_checkpoint_check(l.ck, err);
    }
    if (rc != LLM_OK) {
        goto fail;
    }

    *out = m;
    return LLM_OK;

fail:
    llm_model_close(m);
    return rc;
}

int llm_model_check(const struct llm_model *m, struct llm_error *err)
{
    return llm_checkpoint_check(m->checkpoint, err);
}

void llm_model_close(struct llm_model *m)
{
    if (m == NULL) {
        return;
    }

    llm_weights_free(m);
    if (m->checkpoint != NULL) {
        llm_checkpoint_close(m->checkpoint);
        free(m->checkpoint);
    }
    llm_memory_unmap(m->memory, m->memory_bytes);
    free(m);
}
