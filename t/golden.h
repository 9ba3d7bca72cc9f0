/* Recorded results and what a backend makes of the same tokens: for t/golden.c and the unit
 * tests. A folder holds a checkpoint and either expected.safetensors (the tiny models: every
 * layer's outputs and all logits) or golden.json (the demo model: greedy answers and their
 * log-probabilities). Every prompt is fed in chunks, every answer one token at a time, each step
 * given the recorded token, so that one difference does not become many. */

#ifndef T_GOLDEN_H
#define T_GOLDEN_H

#include "engine/backend/device.h"
#include "engine/model/safetensors.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN_TOP 5
#define GOLDEN_MIN_GAP 0.25 /* log-probability of the first candidate over the second */

struct golden_ids {
    uint32_t n;
    uint32_t *ids;
};

/* One prompt with what was recorded for it. */
struct golden_case {
    char name[64];
    struct golden_ids prompt, greedy;
    const char *prompt_logits; /* tiny: f32 [n_prompt][vocab], unaligned */
    const char *step_logits;   /* tiny: f32 [n_greedy + 1][vocab] */
    uint32_t *top_ids;         /* demo: [n_greedy][GOLDEN_TOP] */
    double *top_logprobs;
    bool close; /* demo: the gap is somewhere smaller than GOLDEN_MIN_GAP */
};

struct golden {
    struct llm_model *model;
    struct llm_safetensors expected; /* tiny */
    const char **layers;             /* tiny: [n_layers] f32 [n_prompt][hidden], NULL: missing */
    json_t *json;                    /* demo */
    struct golden_case *cases;
    uint32_t n_cases;
};

struct golden_options {
    struct llm_device device;
    enum llm_numerics numerics;
    enum llm_latent_dtype latent_dtype;
    bool deterministic;
    uint32_t threads;
    uint32_t chunk; /* 0: whole */
};

/* Largest differences, over as many runs as are given the same struct. */
struct golden_result {
    double layer, logit;         /* tiny */
    double logit_l2;             /* tiny: relative, of a run's logits together */
    double row_l2;               /* tiny: the median of that over a run's rows */
    double logprob;              /* demo */
    double nll;                  /* demo: of a run's texts, nats a token */
    uint32_t wrong, wrong_clear; /* greedy ids of a run, and those in cases that are not close */
    char wrong_cases[256];       /* demo: names of the cases that have some */
};

static int golden_parse_ids(const json_t *array, struct golden_ids *out)
{
    size_t n = json_array_size(array);

    out->n = 0;
    out->ids = calloc(n + 1, sizeof(*out->ids));
    if (out->ids == NULL || n == 0) {
        return LLM_EINVAL;
    }
    for (size_t i = 0; i < n; i++) {
        out->ids[out->n++] = (uint32_t) json_integer_value(json_array_get(array, i));
    }
    return LLM_OK;
}

/* The metadata of expected.safetensors: an object of strings that hold JSON themselves. */
static int golden_metadata_ids(const json_t *metadata, const char *key, struct golden_ids *out)
{
    const char *text = json_string_value(json_object_get(metadata, key));
    json_t *array = text != NULL ? json_loads(text, 0, NULL) : NULL;
    int rc = golden_parse_ids(array, out);

    json_decref(array);
    return rc;
}

static const char *golden_tensor(const struct llm_safetensors *st, const char *name, uint32_t rows,
                                 uint32_t cols)
{
    const struct llm_st_tensor *t = llm_safetensors_find(st, name, strlen(name));

    if (t == NULL || t->dtype != LLM_ST_F32 || t->rank != 2 || t->dims[0] != rows
        || t->dims[1] != cols) {
        return NULL;
    }
    return t->data;
}

static int golden_open_tiny(struct golden *g, const char *path, struct llm_error *err)
{
    const struct llm_model_config *c = &g->model->config;
    struct golden_case *one = g->cases = calloc(1, sizeof(*g->cases));
    json_t *metadata = NULL;
    int rc = llm_safetensors_open(&g->expected, path, err);

    g->layers = calloc(c->n_layers, sizeof(*g->layers));
    if (rc != LLM_OK) {
        return rc;
    }
    if (one == NULL || g->layers == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    g->n_cases = 1;
    metadata = json_loadb(g->expected.metadata, g->expected.metadata_len, 0, NULL);
    rc = golden_metadata_ids(metadata, "prompt_ids", &one->prompt);
    if (rc == LLM_OK) {
        rc = golden_metadata_ids(metadata, "greedy_ids", &one->greedy);
    }
    json_decref(metadata);
    if (rc != LLM_OK) {
        return llm_fail(err, LLM_EINVAL, "%s: no prompt_ids and greedy_ids", path);
    }

    one->prompt_logits =
        golden_tensor(&g->expected, "prompt_logits", one->prompt.n, c->vocab_size);
    one->step_logits =
        golden_tensor(&g->expected, "step_logits", one->greedy.n + 1, c->vocab_size);
    if (one->prompt_logits == NULL || one->step_logits == NULL) {
        return llm_fail(err, LLM_EINVAL, "%s: no prompt_logits and step_logits", path);
    }
    for (uint32_t i = 0; i < c->n_layers; i++) {
        char name[32];

        snprintf(name, sizeof(name), "layer%u_out", i);
        g->layers[i] = golden_tensor(&g->expected, name, one->prompt.n, c->hidden_size);
    }
    return LLM_OK;
}

static int golden_open_demo(struct golden *g, const char *path, struct llm_error *err)
{
    const json_t *cases;

    g->json = json_load_file(path, 0, NULL);
    cases = json_object_get(g->json, "cases");
    g->cases = calloc(json_array_size(cases) + 1, sizeof(*g->cases));
    if (g->cases == NULL || json_array_size(cases) == 0) {
        return llm_fail(err, LLM_EINVAL, "%s: neither expected.safetensors nor cases", path);
    }

    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *from = json_array_get(cases, i);
        const json_t *top = json_object_get(from, "top5_logprobs");
        struct golden_case *to = &g->cases[g->n_cases++];
        const char *name = json_string_value(json_object_get(from, "name"));

        snprintf(to->name, sizeof(to->name), "%s", name != NULL ? name : "");
        if (golden_parse_ids(json_object_get(from, "prompt_ids"), &to->prompt) != LLM_OK
            || golden_parse_ids(json_object_get(from, "greedy_ids"), &to->greedy) != LLM_OK
            || json_array_size(top) != to->greedy.n) {
            return llm_fail(err, LLM_EINVAL, "%s: case %zu is incomplete", path, i);
        }
        to->top_ids = calloc((size_t) to->greedy.n * GOLDEN_TOP, sizeof(*to->top_ids));
        to->top_logprobs = calloc((size_t) to->greedy.n * GOLDEN_TOP, sizeof(*to->top_logprobs));
        if (to->top_ids == NULL || to->top_logprobs == NULL) {
            return llm_fail(err, LLM_ENOMEM, "out of memory");
        }
        for (size_t j = 0; j < (size_t) to->greedy.n * GOLDEN_TOP; j++) {
            const json_t *pair =
                json_array_get(json_array_get(top, j / GOLDEN_TOP), j % GOLDEN_TOP);

            to->top_ids[j] = (uint32_t) json_integer_value(json_array_get(pair, 0));
            to->top_logprobs[j] = json_number_value(json_array_get(pair, 1));
        }
        for (uint32_t j = 0; j < to->greedy.n; j++) {
            const double *p = to->top_logprobs + (size_t) j * GOLDEN_TOP;

            to->close |= p[0] - p[1] < GOLDEN_MIN_GAP;
        }
    }
    return LLM_OK;
}

static void golden_close(struct golden *g)
{
    for (uint32_t i = 0; i < g->n_cases; i++) {
        free(g->cases[i].prompt.ids);
        free(g->cases[i].greedy.ids);
        free(g->cases[i].top_ids);
        free(g->cases[i].top_logprobs);
    }
    free(g->cases);
    free(g->layers);
    json_decref(g->json);
    llm_safetensors_close(&g->expected);
    if (g->model != NULL) {
        llm_model_close(g->model);
    }
    *g = (struct golden){0};
}

static int golden_open(struct golden *g, const char *dir, struct llm_error *err)
{
    char path[4096];
    FILE *f;
    int rc;

    *g = (struct golden){0};
    rc = llm_model_open(dir, &g->model, err);
    if (rc != LLM_OK) {
        return rc;
    }
    snprintf(path, sizeof(path), "%s/expected.safetensors", dir);
    f = fopen(path, "re");
    if (f != NULL) {
        fclose(f);
        rc = golden_open_tiny(g, path, err);
    } else {
        snprintf(path, sizeof(path), "%s/golden.json", dir);
        rc = golden_open_demo(g, path, err);
    }
    if (rc != LLM_OK) {
        golden_close(g);
    }
    return rc;
}

static float golden_float(const char *p, size_t i)
{
    float f;

    memcpy(&f, p + i * sizeof(f), sizeof(f));
    return f;
}

struct golden_run {
    const struct golden *g;
    const struct golden_options *options;
    struct golden_result *result;
    struct llm_backend *backend;
    uint32_t *pages;
    uint32_t position; /* of the step that runs */
    bool tapped;       /* the prompt: layers are recorded for it alone */
    double difference2, norm2;
    double *row_l2; /* [n_rows] of those so far */
    uint32_t n_rows;
    double nll;
    uint32_t n_nll;
    uint32_t wrong, wrong_clear;
};

/* A maximum that a NaN does not slip through. */
static void golden_max(double *max, double value)
{
    if (!(value <= *max)) {
        *max = value;
    }
}

static void golden_tap(void *ctx, uint32_t layer, const float *x, uint32_t n_rows, uint32_t hidden)
{
    struct golden_run *run = ctx;
    const char *want = run->g->layers != NULL ? run->g->layers[layer] : NULL;

    if (!run->tapped || want == NULL) {
        return;
    }
    for (size_t i = 0; i < (size_t) n_rows * hidden; i++) {
        size_t at = (size_t) run->position * hidden + i;

        golden_max(&run->result->layer, fabs((double) golden_float(want, at) - x[i]));
    }
}

static void golden_compare_logits(struct golden_run *run, const float *logits, const char *want,
                                  uint32_t row, uint32_t n_rows)
{
    uint32_t vocab = run->g->model->config.vocab_size;

    for (uint32_t r = 0; r < n_rows; r++, logits += vocab) {
        double difference2 = 0, norm2 = 0;

        for (uint32_t i = 0; i < vocab; i++) {
            double w = golden_float(want, (size_t) (row + r) * vocab + i), d = w - logits[i];

            golden_max(&run->result->logit, fabs(d));
            difference2 += d * d;
            norm2 += w * w;
        }
        run->row_l2[run->n_rows++] = sqrt(difference2 / norm2);
        run->difference2 += difference2;
        run->norm2 += norm2;
    }
}

static int golden_ascending(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

static double golden_log_sum_exp(const struct golden_run *run, const float *logits)
{
    double sum = 0;

    for (uint32_t i = 0; i < run->g->model->config.vocab_size; i++) {
        sum += exp(logits[i]);
    }
    return log(sum);
}

static void golden_compare_top(struct golden_run *run, const struct golden_case *c,
                               const float *logits, uint32_t step)
{
    double all = golden_log_sum_exp(run, logits);

    for (uint32_t i = step * GOLDEN_TOP; i < (step + 1) * GOLDEN_TOP; i++) {
        golden_max(&run->result->logprob,
                   fabs(logits[c->top_ids[i]] - all - c->top_logprobs[i]));
    }
}

/* What the rows from run->position on make of the tokens that follow them. */
static void golden_add_nll(struct golden_run *run, const struct golden_case *c,
                           const float *logits, uint32_t n_rows)
{
    for (uint32_t i = 0; i < n_rows; i++, logits += run->g->model->config.vocab_size) {
        uint32_t next = run->position + i + 1, answer = next - c->prompt.n;

        if (next < c->prompt.n + c->greedy.n) {
            uint32_t id = next < c->prompt.n ? c->prompt.ids[next] : c->greedy.ids[answer];

            run->nll += golden_log_sum_exp(run, logits) - logits[id];
            run->n_nll++;
        }
    }
}

/* One step of n tokens at run->position: all logits wanted, the last row sampled. */
static int golden_step(struct golden_run *run, uint32_t slot, const uint32_t *tokens, uint32_t n,
                       struct llm_step_result *result)
{
    struct llm_step_seq seq = {
        .slot = slot, .position = run->position, .n_rows = n, .pages = run->pages};
    struct llm_step step = {.seqs = &seq, .n_seqs = 1, .tokens = tokens, .n_rows = n};
    uint8_t *flags = calloc(n, 1);
    uint64_t ticket;
    int rc;

    if (flags == NULL) {
        return LLM_ENOMEM;
    }
    for (uint32_t i = 0; i < n; i++) {
        flags[i] = LLM_ROW_LOGITS;
    }
    flags[n - 1] |= LLM_ROW_SAMPLE;
    step.flags = flags;
    rc = run->options->device.ops->submit(run->backend, &step, &ticket);
    free(flags);
    return rc == LLM_OK ? run->options->device.ops->wait(run->backend, ticket, result, NULL)
                        : rc;
}

static int golden_run_case(struct golden_run *run, const struct golden_case *c)
{
    const struct llm_backend_ops *ops = run->options->device.ops;
    struct llm_sampling sampling = {
        .top_p = 1, .repetition_penalty = 1, .n_vocab = run->g->model->config.vocab_size};
    uint32_t chunk = run->options->chunk != 0 ? run->options->chunk : c->prompt.n;
    uint32_t slot, wrong = 0;
    struct llm_step_result r = {0};
    int rc = ops->seq_create(run->backend, &sampling, NULL, 0, 0, &slot);

    if (rc != LLM_OK) {
        return rc;
    }

    run->tapped = true;
    for (run->position = 0; run->position < c->prompt.n; run->position += chunk) {
        uint32_t left = c->prompt.n - run->position, n = left < chunk ? left : chunk;

        rc = golden_step(run, slot, c->prompt.ids + run->position, n, &r);
        if (rc != LLM_OK) {
            goto done;
        }
        if (c->prompt_logits != NULL) {
            golden_compare_logits(run, r.logits, c->prompt_logits, run->position, n);
        } else {
            golden_add_nll(run, c, r.logits, n);
        }
    }

    run->tapped = false;
    run->position = c->prompt.n;
    for (uint32_t i = 0; i < c->greedy.n; i++, run->position++) {
        const float *last =
            r.logits + (size_t) (r.n_logits - 1) * run->g->model->config.vocab_size;

        wrong += r.sampled[0].n_tokens != 1 || r.sampled[0].tokens[0] != c->greedy.ids[i];
        if (c->top_ids != NULL) {
            golden_compare_top(run, c, last, i);
        }
        rc = golden_step(run, slot, &c->greedy.ids[i], 1, &r);
        if (rc != LLM_OK) {
            goto done;
        }
        if (c->step_logits != NULL) {
            golden_compare_logits(run, r.logits, c->step_logits, i + 1, 1);
        } else {
            golden_add_nll(run, c, r.logits, 1);
        }
    }

    run->wrong += wrong;
    run->wrong_clear += c->close ? 0 : wrong;
    if (wrong > 0 && strstr(run->result->wrong_cases, c->name) == NULL) {
        size_t used = strlen(run->result->wrong_cases);

        snprintf(run->result->wrong_cases + used, sizeof(run->result->wrong_cases) - used, " %s",
                 c->name);
    }

done:
    ops->seq_free(run->backend, slot);
    return rc;
}

/* True when there is something recorded for every layer. */
static bool golden_has_layers(const struct golden *g)
{
    for (uint32_t i = 0; g->layers != NULL && i < g->model->config.n_layers; i++) {
        if (g->layers[i] == NULL) {
            return false;
        }
    }
    return g->layers != NULL;
}

static int golden_run(const struct golden *g, const struct golden_options *options,
                      struct golden_result *result, struct llm_error *err)
{
    struct golden_run run = {.g = g, .options = options, .result = result};
    struct llm_backend_options o = {
        .numerics = options->numerics,
        .deterministic = options->deterministic,
        .device = options->device.index,
        .latent_dtype = options->latent_dtype,
        .max_seqs = 1,
        .threads = options->threads,
        .tap = golden_tap,
        .tap_ctx = &run,
    };
    struct llm_page_layout layout;
    uint32_t n_pages, n_rows = 0;
    int rc;

    for (uint32_t i = 0; i < g->n_cases; i++) {
        uint32_t prompt = g->cases[i].prompt.n, all = prompt + g->cases[i].greedy.n;

        n_rows += all;
        o.max_context = all > o.max_context ? all : o.max_context;
        o.max_batch_tokens = prompt > o.max_batch_tokens ? prompt : o.max_batch_tokens;
    }
    if (options->chunk != 0 && options->chunk < o.max_batch_tokens) {
        o.max_batch_tokens = options->chunk;
    }
    n_pages = (o.max_context + LLM_PAGE_TOKENS - 1) / LLM_PAGE_TOKENS;

    rc = llm_page_layout_init(&layout, &g->model->config, o.latent_dtype, err);
    if (rc != LLM_OK) {
        return rc;
    }
    o.latent_bytes = n_pages * layout.page_bytes;
    llm_page_layout_free(&layout);
    run.pages = calloc(n_pages, sizeof(*run.pages));
    run.row_l2 = calloc(n_rows, sizeof(*run.row_l2));
    if (run.pages == NULL || run.row_l2 == NULL) {
        free(run.pages);
        free(run.row_l2);
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    for (uint32_t i = 0; i < n_pages; i++) {
        run.pages[i] = n_pages - 1 - i; /* any order will do */
    }

    rc = options->device.ops->load(g->model, &o, &run.backend, err);
    for (uint32_t i = 0; rc == LLM_OK && i < g->n_cases; i++) {
        rc = golden_run_case(&run, &g->cases[i]);
        if (rc != LLM_OK) {
            llm_fail(err, rc, "case %u: the backend refused a step (%d)", i, rc);
        }
    }
    if (run.wrong > result->wrong) {
        result->wrong = run.wrong;
        result->wrong_clear = run.wrong_clear;
    }
    golden_max(&result->logit_l2, sqrt(run.difference2 / (run.norm2 > 0 ? run.norm2 : 1)));
    qsort(run.row_l2, run.n_rows, sizeof(*run.row_l2), golden_ascending);
    golden_max(&result->row_l2, run.row_l2[run.n_rows / 2]);
    result->nll = run.n_nll > 0 ? run.nll / run.n_nll : 0;
    options->device.ops->free(run.backend);
    free(run.pages);
    free(run.row_l2);
    return rc;
}

#endif
