/* A row that is alone in its step may go a way of its own: its log-probabilities are those of the
 * same row where its logits are wanted, too, which go the way of many. Layers of V2-Lite's shape,
 * but smaller, with weights of both types, and contexts of a few tokens and of many pages. */

#include "engine/model/dummy.h"
#include "t/unit/device.h"
#include "t/unit/scratch.h"
#include "t/unit/tap.h"

#include <jansson.h>
#include <math.h>

#define VOCAB 1024
#define N_TOP LLM_MAX_TOP_LOGPROBS
#define CHUNK 128 /* of prompts */
#define MAX_CONTEXT 2304
#define N_DECODED 12

static const struct llm_backend_ops *ops;
static struct llm_model *model;
static struct llm_backend *b;
static uint32_t slot, pages[MAX_CONTEXT / LLM_PAGE_TOKENS], tokens[MAX_CONTEXT];

static void make_model(bool fp8)
{
    static const char *const fields[][2] = {
        {"hidden_size", "256"},           {"intermediate_size", "512"},
        {"moe_intermediate_size", "128"}, {"num_attention_heads", "4"},
        {"num_key_value_heads", "4"},     {"vocab_size", "1024"},
        {"bos_token_id", "0"},            {"eos_token_id", "1"},
        {"num_hidden_layers", "3"},
        {"quantization_config",
         "{\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", \"activation_scheme\": \"dynamic\", "
         "\"weight_block_size\": [128, 128]}"},
    };
    json_t *config = json_load_file("t/data/v2-lite-4/config.json", 0, NULL);
    struct llm_error err;
    char *text;

    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]) - !fp8; i++) {
        json_object_set_new(config, fields[i][0], json_loads(fields[i][1], JSON_DECODE_ANY, NULL));
    }
    text = json_dumps(config, 0);
    scratch_write(scratch_path("config.json"), text, strlen(text));
    free(text);
    json_decref(config);
    if (llm_model_dummy(scratch_dir, 5, &model, &err) != LLM_OK) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
}

static void start(enum llm_latent_dtype latents, uint32_t device)
{
    const struct llm_backend_options options = {
        .latent_dtype = latents,
        .latent_bytes = 64 << 20,
        .max_context = MAX_CONTEXT,
        .max_batch_tokens = CHUNK,
        .max_seqs = 2,
        .threads = 2,
        .device = device,
    };
    const struct llm_sampling sampling = {.top_p = 1,
                                          .repetition_penalty = 1,
                                          .n_vocab = VOCAB,
                                          .logprobs = true,
                                          .n_top_logprobs = N_TOP};
    struct llm_error err;

    if (ops->load(model, &options, &b, &err) != LLM_OK
        || ops->seq_create(b, &sampling, NULL, 0, 0, &slot) != LLM_OK) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    for (uint32_t i = 0; i < MAX_CONTEXT / LLM_PAGE_TOKENS; i++) {
        pages[i] = (i * 7 + 3) % (MAX_CONTEXT / LLM_PAGE_TOKENS); /* of which 7 is no divisor */
    }
    for (uint32_t i = 0; i < MAX_CONTEXT; i++) {
        tokens[i] = i * i * 31 % VOCAB;
    }
}

static struct llm_step_result run(uint32_t position, uint32_t n, uint8_t flag)
{
    uint8_t flags[CHUNK] = {0};
    struct llm_step_seq seq = {.slot = slot, .position = position, .n_rows = n, .pages = pages};
    struct llm_step step = {
        .seqs = &seq, .n_seqs = 1, .tokens = tokens + position, .flags = flags, .n_rows = n};
    struct llm_step_result result = {0};
    struct llm_error err;
    uint64_t ticket;

    flags[n - 1] = flag;
    if (ops->submit(b, &step, &ticket) != LLM_OK
        || ops->wait(b, ticket, &result, &err) != LLM_OK) {
        puts("Bail out! a step");
        exit(1);
    }
    return result;
}

/* The sum of differences of the row's most probable tokens; *worst: the largest so far. */
static double compare(uint32_t position, double *worst)
{
    struct llm_step_result r = run(position, 1, LLM_ROW_SAMPLE);
    uint32_t ids[N_TOP];
    float logprobs[N_TOP];
    double all = 0, sum = 0;

    if (r.n_sampled != 1 || r.sampled[0].n_tokens != 1 || r.sampled[0].n_top != N_TOP) {
        return INFINITY;
    }
    memcpy(ids, r.sampled[0].top_ids, sizeof(ids));
    memcpy(logprobs, r.sampled[0].top_logprobs, sizeof(logprobs));

    r = run(position, 1, LLM_ROW_LOGITS | LLM_ROW_NO_WRITE);
    for (uint32_t i = 0; i < VOCAB; i++) {
        all += exp(r.logits[i]);
    }
    for (int i = 0; i < N_TOP; i++) {
        double d = fabs(logprobs[i] - (r.logits[ids[i]] - log(all)));

        sum += d;
        *worst = d > *worst || isnan(d) ? d : *worst;
    }
    return sum;
}

static void test(bool fp8, enum llm_latent_dtype latents, uint32_t device)
{
    static const uint32_t contexts[] = {0, 50, 250, 2100};
    uint32_t n = 0;

    make_model(fp8);
    start(latents, device);
    for (size_t i = 0; i < sizeof(contexts) / sizeof(contexts[0]); i++) {
        double sum = 0, worst = 0;

        for (uint32_t rows; n < contexts[i]; n += rows) {
            rows = contexts[i] - n < CHUNK ? contexts[i] - n : CHUNK;
            run(n, rows, 0);
        }
        for (uint32_t k = 0; k < N_DECODED; k++) {
            sum += compare(n++, &worst);
        }
        /* a token at the limit between two experts may fall to either side */
        ok(sum < 0.03 * N_DECODED * N_TOP && worst < 0.5, "weights %s, latents %s, %u tokens",
           fp8 ? "fp8" : "bf16", latents == LLM_LATENT_FP8 ? "fp8" : "bf16", contexts[i]);
        diag("differences of %.4f, up to %.4f", sum / N_DECODED / N_TOP, worst);
    }
    ops->free(b);
    llm_model_close(model);
}

int main(void)
{
    struct llm_device device = test_device();

    ops = device.ops;
    scratch_init();
    test(false, LLM_LATENT_BF16, device.index);
    test(true, LLM_LATENT_BF16, device.index);
    test(false, LLM_LATENT_FP8, device.index);
    return done_testing();
}
