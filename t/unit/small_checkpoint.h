/* A small checkpoint in memory for tests to change and write to the scratch directory, and the
 * model that is open from there. */

#ifndef T_UNIT_SMALL_CHECKPOINT_H
#define T_UNIT_SMALL_CHECKPOINT_H

#include "engine/model/model.h"
#include "engine/model/safetensors.h"
#include "t/unit/files.h"
#include "t/unit/scratch.h"
#include "t/unit/tap.h"

#include <jansson.h>
#include <stdarg.h>
#include <sys/stat.h>

static struct llm_model *model;
static struct llm_error err;

enum { VOCAB = 32, HIDDEN = 24, DENSE = 20, EXPERT = 10, EXPERTS = 4, HEADS = 3 };
enum { Q_LORA = 12, KV_LORA = 16, NOPE = 8, ROPE = 4, V = 6, BLOCK = 8 };

static const char small_config[] =
    "{\"model_type\":\"deepseek_v3\",\"vocab_size\":32,\"hidden_size\":24,"
    "\"intermediate_size\":20,\"moe_intermediate_size\":10,\"num_hidden_layers\":2,"
    "\"num_nextn_predict_layers\":1,\"first_k_dense_replace\":1,\"num_attention_heads\":3,"
    "\"n_routed_experts\":4,\"n_shared_experts\":2,\"num_experts_per_tok\":2,\"n_group\":2,"
    "\"topk_group\":1,\"norm_topk_prob\":true,\"routed_scaling_factor\":2.5,\"q_lora_rank\":12,"
    "\"kv_lora_rank\":16,\"qk_nope_head_dim\":8,\"qk_rope_head_dim\":4,\"v_head_dim\":6,"
    "\"rms_norm_eps\":1e-6,\"rope_theta\":10000,\"max_position_embeddings\":256,"
    "\"bos_token_id\":0,\"eos_token_id\":1,\"attention_bias\":false,"
    "\"tie_word_embeddings\":false,\"quantization_config\":{\"quant_method\":\"fp8\","
    "\"weight_block_size\":[8,8]}}";

struct tensor {
    char name[96];
    enum llm_st_dtype dtype;
    uint32_t rank, dims[3];
    unsigned char *data;
    unsigned shard; /* which file of a sharded checkpoint, from 0 */
};

static struct tensor tensors[128];
static unsigned n_tensors;
static json_t *config_tree;

static size_t tensor_bytes(const struct tensor *t)
{
    size_t n = llm_st_dtype_size(t->dtype);

    for (uint32_t i = 0; i < t->rank; i++) {
        n *= t->dims[i];
    }
    return n;
}

__attribute__((format(printf, 4, 5))) static struct tensor *
add(enum llm_st_dtype dtype, uint32_t rows, uint32_t cols, const char *fmt, ...)
{
    struct tensor *t = &tensors[n_tensors];
    uint64_t seed = 1000 + n_tensors++;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(t->name, sizeof(t->name), fmt, ap);
    va_end(ap);

    t->dtype = dtype;
    t->rank = rows == 0 ? 1 : 2;
    t->dims[0] = rows == 0 ? cols : rows;
    t->dims[1] = cols;
    t->shard = 0;
    t->data = malloc(tensor_bytes(t) + 1);
    for (size_t i = 0; i < tensor_bytes(t); i++) {
        t->data[i] = scratch_random(&seed) & 0x3f; /* small numbers in every dtype */
    }
    return t;
}

static void add_fp8(uint32_t rows, uint32_t cols, const char *prefix, const char *name)
{
    add(LLM_ST_F8_E4M3, rows, cols, "%s%s.weight", prefix, name);
    add(LLM_ST_F32, (rows + BLOCK - 1) / BLOCK, (cols + BLOCK - 1) / BLOCK,
        "%s%s.weight_scale_inv", prefix, name);
}

static void add_ffn(uint32_t width, const char *prefix)
{
    add_fp8(width, HIDDEN, prefix, "gate_proj");
    add_fp8(width, HIDDEN, prefix, "up_proj");
    add_fp8(HIDDEN, width, prefix, "down_proj");
}

static void add_layer(unsigned i, bool dense)
{
    char p[64];

    snprintf(p, sizeof(p), "model.layers.%u.self_attn.", i);
    add(LLM_ST_BF16, 0, HIDDEN, "model.layers.%u.input_layernorm.weight", i);
    add(LLM_ST_BF16, 0, HIDDEN, "model.layers.%u.post_attention_layernorm.weight", i);
    add_fp8(Q_LORA, HIDDEN, p, "q_a_proj");
    add(LLM_ST_BF16, 0, Q_LORA, "%sq_a_layernorm.weight", p);
    add_fp8(HEADS * (NOPE + ROPE), Q_LORA, p, "q_b_proj");
    add_fp8(KV_LORA + ROPE, HIDDEN, p, "kv_a_proj_with_mqa");
    add(LLM_ST_BF16, 0, KV_LORA, "%skv_a_layernorm.weight", p);
    add_fp8(HEADS * (NOPE + V), KV_LORA, p, "kv_b_proj");
    add_fp8(HIDDEN, HEADS * V, p, "o_proj");

    if (dense) {
        snprintf(p, sizeof(p), "model.layers.%u.mlp.", i);
        add_ffn(DENSE, p);
        return;
    }
    add(LLM_ST_BF16, EXPERTS, HIDDEN, "model.layers.%u.mlp.gate.weight", i);
    add(LLM_ST_F32, 0, EXPERTS, "model.layers.%u.mlp.gate.e_score_correction_bias", i);
    snprintf(p, sizeof(p), "model.layers.%u.mlp.shared_experts.", i);
    add_ffn(2 * EXPERT, p);
    for (unsigned e = 0; e < EXPERTS; e++) {
        snprintf(p, sizeof(p), "model.layers.%u.mlp.experts.%u.", i, e);
        add_ffn(EXPERT, p);
    }
}

/* The good checkpoint, from which each test starts. */
__attribute__((unused)) static void reset(void)
{
    while (n_tensors > 0) {
        free(tensors[--n_tensors].data);
    }
    json_decref(config_tree);
    config_tree = json_loads(small_config, 0, NULL);

    add(LLM_ST_BF16, VOCAB, HIDDEN, "model.embed_tokens.weight");
    add_layer(0, true);
    add_layer(1, false);
    add(LLM_ST_BF16, 0, HIDDEN, "model.norm.weight");
    add(LLM_ST_F16, VOCAB, HIDDEN, "lm_head.weight");
    add(LLM_ST_BF16, 0, HIDDEN, "model.layers.2.enorm.weight");
    add(LLM_ST_BF16, 0, HIDDEN, "model.layers.2.hnorm.weight");
    add(LLM_ST_F32, HIDDEN, 2 * HIDDEN, "model.layers.2.eh_proj.weight");
    add(LLM_ST_BF16, 0, HIDDEN, "model.layers.2.shared_head.norm.weight");
    add_layer(2, false);
}

__attribute__((unused)) static struct tensor *find(const char *name)
{
    for (unsigned i = 0; i < n_tensors; i++) {
        if (strcmp(tensors[i].name, name) == 0) {
            return &tensors[i];
        }
    }
    printf("Bail out! no tensor %s\n", name);
    exit(1);
}

__attribute__((unused)) static void drop(const char *name)
{
    struct tensor *t = find(name);

    free(t->data);
    *t = tensors[--n_tensors];
}

__attribute__((unused)) static void set(const char *field, const char *value)
{
    json_object_set_new(config_tree, field, json_loads(value, JSON_DECODE_ANY, NULL));
}

__attribute__((unused)) static void remove_files(void)
{
    scratch_remove();
    if (mkdir(scratch_dir, 0700) != 0) {
        perror(scratch_dir);
        exit(2);
    }
}

__attribute__((unused)) static void write_text(const char *name, const char *text)
{
    scratch_write(scratch_path(name), text, strlen(text));
}

static void write_config(void)
{
    char *text = json_dumps(config_tree, 0);

    write_text("config.json", text);
    free(text);
}

/* One file with the tensors of a shard, or with all when it is -1. */
static void write_shard(const char *name, int shard)
{
    struct llm_buf file = {0}, data = {0};

    llm_buf_append(&file, "\0\0\0\0\0\0\0", 8); /* the header's length, when it is known */
    llm_buf_puts(&file, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (unsigned i = 0; i < n_tensors; i++) {
        const struct tensor *t = &tensors[i];

        if (shard >= 0 && t->shard != (unsigned) shard) {
            continue;
        }
        llm_buf_printf(&file, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%u", t->name,
                       llm_st_dtype_name(t->dtype), t->dims[0]);
        for (uint32_t k = 1; k < t->rank; k++) {
            llm_buf_printf(&file, ",%u", t->dims[k]);
        }
        llm_buf_printf(&file, "],\"data_offsets\":[%zu,%zu]}", data.len,
                       data.len + tensor_bytes(t));
        llm_buf_append(&data, t->data, tensor_bytes(t));
    }
    llm_buf_putc(&file, '}');
    for (unsigned i = 0; i < 8; i++) {
        file.data[i] = (char) ((file.len - 8) >> (8 * i));
    }
    llm_buf_append(&file, data.data, data.len);

    scratch_write(scratch_path(name), file.data, file.len);
    llm_buf_free(&file);
    llm_buf_free(&data);
}

__attribute__((unused)) static void write_single(void)
{
    remove_files();
    write_config();
    write_shard("model.safetensors", -1);
}

__attribute__((unused)) static void write_sharded(unsigned n)
{
    struct llm_buf index = {0};

    remove_files();
    write_config();
    llm_buf_puts(&index, "{\"metadata\":{\"total_size\":1},\"weight_map\":{");
    for (unsigned i = 0; i < n_tensors; i++) {
        llm_buf_printf(&index, "%s\"%s\":\"part-%u.safetensors\"", i > 0 ? "," : "",
                       tensors[i].name, tensors[i].shard);
    }
    llm_buf_puts(&index, "}}\n");
    llm_buf_putc(&index, '\0');
    write_text("model.safetensors.index.json", index.data);
    llm_buf_free(&index);

    for (unsigned i = 0; i < n; i++) {
        char name[32];

        snprintf(name, sizeof(name), "part-%u.safetensors", i);
        write_shard(name, (int) i);
    }
}

static void close_model(void)
{
    llm_model_close(model);
    model = NULL;
}

__attribute__((unused)) static bool opens(void)
{
    close_model();
    if (llm_model_open(scratch_dir, &model, &err) != LLM_OK) {
        diag("%s", err.text);
        return false;
    }
    return true;
}

__attribute__((unused)) static bool has_tensor(const struct llm_weight *w, const char *name)
{
    const struct tensor *t = find(name);

    return memcmp(w->data, t->data, tensor_bytes(t)) == 0;
}

/* At the end of a test program. */
static void free_all(void)
{
    close_model();
    while (n_tensors > 0) {
        free(tensors[--n_tensors].data);
    }
    json_decref(config_tree);
}

#endif
