/* Made-up weights at work: activations stay sane from layer to layer, and the routers neither pick
 * the same experts always nor all of them alike. The shapes are those of V2-Lite and V3, but
 * smaller. */

#include "engine/backend/cpu_internal.h"
#include "engine/model/dummy.h"
#include "t/unit/scratch.h"
#include "t/unit/tap.h"

#include <jansson.h>
#include <math.h>

#define N_ROWS 512
#define MAX_LAYERS 8
#define MAX_EXPERTS 64
#define VOCAB 1024

struct seen {
    struct llm_backend *b;
    double size[MAX_LAYERS];  /* root mean square of the layer's output */
    uint32_t counts[MAX_LAYERS][MAX_EXPERTS]; /* rows of each expert */
};

/* Called by the thread that runs the step: the backend's state is that of the layer. */
static void tap(void *ctx, uint32_t layer, const float *x, uint32_t n_rows, uint32_t hidden)
{
    struct seen *s = ctx;
    double sum = 0;

    for (size_t i = 0; i < (size_t) n_rows * hidden; i++) {
        sum += (double) x[i] * x[i];
    }
    s->size[layer] = sqrt(sum / n_rows / hidden);
    if (s->b->model->layers[layer].experts != NULL) {
        for (uint32_t i = 0; i < n_rows * s->b->router.n_used; i++) {
            s->counts[layer][s->b->row_experts[i]]++;
        }
    }
}

static void write_config(const char *path, const char *const (*fields)[2], size_t n)
{
    json_t *config = json_load_file(path, 0, NULL);
    char *text;

    for (size_t i = 0; i < n; i++) {
        json_object_set_new(config, fields[i][0], json_loads(fields[i][1], JSON_DECODE_ANY, NULL));
    }
    text = json_dumps(config, 0);
    if (config == NULL || text == NULL) {
        printf("Bail out! %s\n", path);
        exit(1);
    }
    scratch_write(scratch_path("config.json"), text, strlen(text));
    free(text);
    json_decref(config);
}

/* One step of N_ROWS different tokens; the last one's logits are left in `logits`. */
static bool run(const struct llm_model *model, struct seen *s, float *logits)
{
    const struct llm_backend_ops *ops = &llm_backend_cpu;
    struct llm_backend_options o = {
        .latent_dtype = LLM_LATENT_BF16,
        .latent_bytes = 64 << 20,
        .max_context = N_ROWS,
        .max_batch_tokens = N_ROWS,
        .max_seqs = 1,
        .threads = 2,
        .tap = tap,
        .tap_ctx = s,
    };
    struct llm_sampling sampling = {
        .top_p = 1, .repetition_penalty = 1, .n_vocab = VOCAB};
    static uint32_t pages[N_ROWS / LLM_PAGE_TOKENS], tokens[N_ROWS];
    static uint8_t flags[N_ROWS];
    struct llm_step_seq seq = {.n_rows = N_ROWS, .pages = pages};
    struct llm_step step = {
        .seqs = &seq, .n_seqs = 1, .tokens = tokens, .flags = flags, .n_rows = N_ROWS};
    struct llm_step_result r;
    struct llm_error err;
    uint64_t ticket;
    bool good;

    if (ops->load(model, &o, &s->b, &err) != LLM_OK) {
        diag("%s", err.text);
        return false;
    }
    for (uint32_t i = 0; i < N_ROWS; i++) {
        pages[i / LLM_PAGE_TOKENS] = i / LLM_PAGE_TOKENS;
        tokens[i] = i * 7 % VOCAB;
    }
    flags[N_ROWS - 1] = LLM_ROW_LOGITS | LLM_ROW_SAMPLE;
    good = ops->seq_create(s->b, &sampling, NULL, 0, 0, &seq.slot) == LLM_OK
           && ops->submit(s->b, &step, &ticket) == LLM_OK
           && ops->wait(s->b, ticket, &r, &err) == LLM_OK && r.sampled[0].n_tokens == 1;
    if (good) {
        memcpy(logits, r.logits, VOCAB * sizeof(*logits));
    }
    ops->free(s->b);
    return good;
}

/* Some rows for every expert, not all of them for any, and for some a few times those of others. */
static bool spreads(const struct seen *s, const struct llm_model *model, uint32_t layer)
{
    uint32_t least = N_ROWS, most = 0;

    for (uint32_t e = 0; e < model->config.n_experts; e++) {
        uint32_t n = s->counts[layer][e];

        least = n < least ? n : least;
        most = n > most ? n : most;
    }
    diag("layer %u: %u to %u of %u rows, size %.2f", layer, least, most, N_ROWS, s->size[layer]);
    return least > 0 && most < N_ROWS * 3 / 4 && most > 2 * least;
}

static void test_shape(const char *name, const char *path, const char *const (*fields)[2],
                       size_t n_fields)
{
    struct seen s = {0}, again = {0};
    struct llm_model *model;
    struct llm_error err;
    float logits[2][VOCAB], largest = 0;
    bool sizes = true, spread = true, finite = true;

    write_config(path, fields, n_fields);
    if (!ok(llm_model_dummy(scratch_dir, 7, &model, &err) == LLM_OK, "%s: made", name)) {
        diag("%s", err.text);
        return;
    }
    ok(run(model, &s, logits[0]), "%s: a step", name);
    for (uint32_t i = 0; i < VOCAB; i++) {
        finite &= isfinite(logits[0][i]);
        largest = fmaxf(largest, fabsf(logits[0][i]));
    }
    ok(finite && largest > 1 && largest < 20, "%s: logits of up to %.1f", name, (double) largest);
    for (uint32_t i = 0; i < model->config.n_layers; i++) {
        sizes &= s.size[i] > 0.01 && s.size[i] < 10;
        spread &= model->layers[i].experts == NULL || spreads(&s, model, i);
    }
    ok(sizes, "%s: every layer's output is of sane size", name);
    ok(spread, "%s: every router has its favourites, and uses all experts", name);
    llm_model_close(model);

    ok(llm_model_dummy(scratch_dir, 7, &model, &err) == LLM_OK && run(model, &again, logits[1])
           && memcmp(logits[0], logits[1], sizeof(logits[0])) == 0,
       "%s: the same seed, the same bits", name);
    llm_model_close(model);
    ok(llm_model_dummy(scratch_dir, 8, &model, &err) == LLM_OK && run(model, &again, logits[1])
           && memcmp(logits[0], logits[1], sizeof(logits[0])) != 0,
       "%s: another seed, others", name);
    llm_model_close(model);
}

int main(void)
{
    static const char *const v2[][2] = {
        {"hidden_size", "256"},          {"intermediate_size", "512"},
        {"moe_intermediate_size", "64"}, {"num_attention_heads", "4"},
        {"num_key_value_heads", "4"},    {"vocab_size", "1024"},
        {"bos_token_id", "0"},           {"eos_token_id", "1"},
    };
    static const char *const v3[][2] = {
        {"hidden_size", "256"},          {"intermediate_size", "512"},
        {"moe_intermediate_size", "64"}, {"num_attention_heads", "4"},
        {"num_key_value_heads", "4"},    {"vocab_size", "1024"},
        {"q_lora_rank", "192"},          {"num_hidden_layers", "6"},
        {"n_routed_experts", "64"},
    };

    scratch_init();
    test_shape("V2-Lite", "t/data/v2-lite-4/config.json", v2, sizeof(v2) / sizeof(v2[0]));
    test_shape("V3", "t/data/configs/DeepSeek-V3.config.json", v3, sizeof(v3) / sizeof(v3[0]));
    return done_testing();
}
