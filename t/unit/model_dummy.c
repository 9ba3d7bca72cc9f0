/* Weights made up from a seed: all there, the same whoever makes them, and of sane sizes. */

#include "engine/model/dummy.h"
#include "t/unit/small_checkpoint.h"

#include <math.h>
#include <sched.h>

static bool makes(struct llm_model **out, uint64_t seed)
{
    if (llm_model_dummy(scratch_dir, seed, out, &err) != LLM_OK) {
        diag("%s", err.text);
        return false;
    }
    return true;
}

static float number(const struct llm_weight *w, uint32_t row, uint32_t col)
{
    size_t i = (size_t) row * w->cols + col, scale_cols;
    const uint8_t *p = w->data;
    uint32_t bits, code, exponent;
    uint16_t half;
    float f;

    switch (w->dtype) {
    case LLM_F8_E4M3:
        code = p[i] & 0x7f;
        exponent = code >> 3;
        f = ldexpf((float) (8 + code % 8), (int) exponent - 10);
        f = code == 0x7f ? NAN : exponent == 0 ? ldexpf((float) code, -9) : f;
        scale_cols = (w->cols - 1) / w->block_cols + 1;
        f *= w->scale[row / w->block_rows * scale_cols + col / w->block_cols];
        return p[i] & 0x80 ? -f : f;
    case LLM_BF16:
        memcpy(&half, p + 2 * i, sizeof(half));
        bits = (uint32_t) half << 16;
        memcpy(&f, &bits, sizeof(f));
        return f;
    default:
        memcpy(&f, p + 4 * i, sizeof(f));
        return f;
    }
}

/* Whether a weight is there and all its numbers lie between the two in size, none of them 0. */
static bool is_made(const struct llm_weight *w, enum llm_dtype dtype, uint32_t rows, uint32_t cols,
                    float least, float most)
{
    const char *memory = model->memory, *data = w->data;
    bool good = data != NULL && w->dtype == dtype && w->rows == rows && w->cols == cols
                && data >= memory && data < memory + model->memory_bytes;

    for (uint32_t i = 0; good && i < rows * cols; i++) {
        float a = fabsf(number(w, i / cols, i % cols));

        good = a >= least && a <= most && a > 0;
    }
    return good;
}

/* A matrix of numbers that keep the size of what they are multiplied by. */
static bool is_matrix(const struct llm_weight *w, enum llm_dtype dtype, uint32_t rows,
                      uint32_t cols)
{
    return is_made(w, dtype, rows, cols, 0, 1.26f * sqrtf(3.0f / (float) cols));
}

static bool is_ffn(const struct llm_ffn_weights *w, enum llm_dtype dtype, uint32_t width)
{
    return is_matrix(&w->gate, dtype, width, HIDDEN) && is_matrix(&w->up, dtype, width, HIDDEN)
           && is_matrix(&w->down, dtype, HIDDEN, width);
}

static bool is_norm(const struct llm_weight *w, uint32_t n)
{
    return is_made(w, LLM_BF16, 1, n, 0.89f, 1.11f);
}

static bool is_layer(const struct llm_layer_weights *w, enum llm_dtype dtype, bool dense)
{
    bool good = is_norm(&w->input_norm, HIDDEN) && is_norm(&w->post_attention_norm, HIDDEN)
                && is_matrix(&w->q_a, dtype, Q_LORA, HIDDEN) && is_norm(&w->q_a_norm, Q_LORA)
                && is_matrix(&w->q_b, dtype, HEADS * (NOPE + ROPE), Q_LORA)
                && is_matrix(&w->kv_a, dtype, KV_LORA + ROPE, HIDDEN)
                && is_norm(&w->kv_a_norm, KV_LORA)
                && is_matrix(&w->kv_b, dtype, HEADS * (NOPE + V), KV_LORA)
                && is_matrix(&w->o, dtype, HIDDEN, HEADS * V);

    if (dense) {
        return good && is_ffn(&w->ffn, dtype, DENSE) && w->experts == NULL;
    }
    for (uint32_t e = 0; good && e < EXPERTS; e++) {
        good = is_ffn(&w->experts[e], dtype, EXPERT);
    }
    return good && is_matrix(&w->router, LLM_BF16, EXPERTS, HIDDEN)
           && is_made(&w->router_bias, LLM_F32, 1, EXPERTS, 0, 0.05f)
           && is_ffn(&w->shared, dtype, 2 * EXPERT);
}

static void test_model(enum llm_dtype dtype, const char *name)
{
    write_config();
    close_model();
    if (!ok(makes(&model, 1), "%s: made from a config.json alone", name)) {
        return;
    }
    ok(is_made(&model->embed, LLM_BF16, VOCAB, HIDDEN, 0, 1.74f)
           && is_norm(&model->final_norm, HIDDEN)
           && is_matrix(&model->lm_head, LLM_BF16, VOCAB, HIDDEN),
       "%s: embedding, norm and head", name);
    ok(is_layer(&model->layers[0], dtype, true), "%s: a dense layer", name);
    ok(is_layer(&model->layers[1], dtype, false), "%s: one with experts", name);
    ok(is_norm(&model->mtp[0].enorm, HIDDEN) && is_norm(&model->mtp[0].hnorm, HIDDEN)
           && is_norm(&model->mtp[0].head_norm, HIDDEN)
           && is_matrix(&model->mtp[0].eh_proj, LLM_BF16, HIDDEN, 2 * HIDDEN)
           && is_layer(&model->mtp[0].layer, dtype, false)
           && model->mtp[0].embed.data == model->embed.data
           && model->mtp[0].head.data == model->lm_head.data,
       "%s: an MTP layer that shares embedding and head", name);
    ok(model->bytes == model->memory_bytes && llm_model_check(model, &err) == LLM_OK
           && llm_model_verify(model, NULL, NULL, &err) == LLM_OK,
       "%s: it can be checked like any other", name);
}

static bool same_bytes(const struct llm_model *a, const struct llm_model *b)
{
    return a->memory_bytes == b->memory_bytes && memcmp(a->memory, b->memory, a->memory_bytes) == 0;
}

static void test_seeds(void)
{
    struct llm_model *others[3] = {NULL};
    size_t n_same = 0;
    cpu_set_t all, one;

    ok(makes(&others[0], 1) && same_bytes(model, others[0])
           && memcmp(model->fingerprint, others[0]->fingerprint, 32) == 0,
       "the same seed, the same bytes and fingerprint");

    sched_getaffinity(0, sizeof(all), &all);
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++) {
        if (CPU_ISSET(i, &all)) {
            CPU_SET(i, &one);
        }
    }
    sched_setaffinity(0, sizeof(one), &one);
    ok(makes(&others[1], 1) && same_bytes(model, others[1]), "so does one thread alone");
    sched_setaffinity(0, sizeof(all), &all);

    if (ok(makes(&others[2], 2), "another seed")) {
        for (size_t i = 0; i < VOCAB * HIDDEN; i++) {
            n_same += number(&model->embed, 0, (uint32_t) i)
                      == number(&others[2]->embed, 0, (uint32_t) i);
        }
        ok(n_same < VOCAB * HIDDEN / 32, "gives other numbers (%zu are the same)", n_same);
        ok(memcmp(model->fingerprint, others[2]->fingerprint, 32) != 0, "and fingerprint");
    }
    for (int i = 0; i < 3; i++) {
        llm_model_close(others[i]);
    }
}

/* Of many numbers: mean, variance, and how far a number knows the next one. */
static void test_statistics(void)
{
    enum { N = 512 * 512 };
    double sum = 0, squares = 0, products = 0, before = 0, shortest = INFINITY, longest = 0;
    const struct llm_weight *w;

    set("hidden_size", "512");
    set("vocab_size", "512");
    set("n_routed_experts", "64");
    write_config();
    close_model();
    if (!ok(makes(&model, 3), "a larger one")) {
        return;
    }
    w = &model->lm_head;
    for (uint32_t i = 0; i < N; i++) {
        double x = number(w, i / 512, i % 512) * sqrt(512);

        sum += x;
        squares += x * x;
        products += x * before;
        before = x;
    }
    ok(fabs(sum / N) < 0.01 && fabs(squares / N - 1) < 0.01 && fabs(products / N) < 0.01,
       "mean %.4f, variance %.4f / n, correlation %.4f", sum / N, squares / N, products / N);

    w = &model->layers[1].router;
    for (uint32_t e = 0; e < 64; e++) {
        double length = 0;

        for (uint32_t i = 0; i < 512; i++) {
            length += pow(number(w, e, i), 2);
        }
        shortest = fmin(shortest, sqrt(length));
        longest = fmax(longest, sqrt(length));
    }
    ok(shortest > 0.7 && shortest < 0.85 && longest > 1.15 && longest < 1.3,
       "experts' rows of the router are %.2f to %.2f long", shortest, longest);
}

static void test_variants(void)
{
    json_t *old = json_deep_copy(config_tree);

    set("tie_word_embeddings", "true");
    set("attention_bias", "true");
    set("num_nextn_predict_layers", "0");
    write_config();
    close_model();
    ok(makes(&model, 1) && model->lm_head.data == model->embed.data, "tied embeddings");
    ok(model != NULL && is_made(&model->layers[0].o_bias, LLM_BF16, 1, HIDDEN, 0, 0.0201f),
       "biases");
    json_decref(config_tree);
    config_tree = old;

    write_text("generation_config.json", "{\"eos_token_id\": [1, 5]}");
    write_config();
    close_model();
    ok(makes(&model, 1) && model->config.n_eos == 2, "generation_config.json counts");
    remove_files();
    close_model();
}

static void test_refusals(void)
{
    is_int(llm_model_dummy(scratch_dir, 1, &model, &err), LLM_EIO, "no config.json");
    ok(strstr(err.text, "config.json") != NULL, "which it names");
    write_text("config.json", "{");
    is_int(llm_model_dummy(scratch_dir, 1, &model, &err), LLM_EINVAL, "half a config.json");

    set("num_hidden_layers", "1000");
    set("n_routed_experts", "1024");
    set("n_group", "1");
    set("hidden_size", "65536");
    set("moe_intermediate_size", "65536");
    write_config();
    is_int(llm_model_dummy(scratch_dir, 1, &model, &err), LLM_ENOMEM,
           "a model of many times any memory");
    ok(strstr(err.text, "MB that are available") != NULL, "which says how much there is");
}

int main(void)
{
    scratch_init();
    config_tree = json_loads(small_config, 0, NULL);
    test_model(LLM_F8_E4M3, "FP8");
    json_object_del(config_tree, "quantization_config");
    test_model(LLM_BF16, "BF16");
    test_seeds();
    test_variants();
    test_refusals();
    json_decref(config_tree);
    config_tree = json_loads(small_config, 0, NULL);
    test_statistics();
    free_all();
    return done_testing();
}
