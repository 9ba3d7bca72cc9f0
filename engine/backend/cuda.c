#include "engine/backend/cuda_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIN_CAPABILITY 8

/* Where a device's number says more than its name: which of several. */
static int describe(uint32_t device, struct cudaDeviceProp *p, struct llm_error *err)
{
    int n = 0;
    cudaError_t error = cudaGetDeviceCount(&n);

    if (error == cudaErrorInsufficientDriver) {
        int driver = 0, runtime = 0;

        cudaDriverGetVersion(&driver);
        cudaRuntimeGetVersion(&runtime);
        if (driver == 0) {
            return llm_fail(err, LLM_EUNSUPPORTED, "there is no NVIDIA driver");
        }
        return llm_fail(err, LLM_EUNSUPPORTED,
                        "the NVIDIA driver knows CUDA up to %d.%d, and %d.%d is needed: update it",
                        driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    }
    if (error == cudaErrorNoDevice || (error == cudaSuccess && n == 0)) {
        return llm_fail(err, LLM_EUNSUPPORTED, "there is no GPU, or none that this process sees");
    }
    if (error != cudaSuccess) {
        return llm_fail(err, LLM_EUNSUPPORTED, "%s", cudaGetErrorString(error));
    }
    if (device >= (uint32_t) n) {
        return llm_fail(err, LLM_EUNSUPPORTED, "there are GPUs 0 to %d", n - 1);
    }
    error = cudaGetDeviceProperties(p, (int) device);
    return error == cudaSuccess ? LLM_OK
                                : llm_fail(err, LLM_EUNSUPPORTED, "%s",
                                           cudaGetErrorString(error));
}

static int probe(uint32_t device, struct llm_error *err)
{
    struct cudaDeviceProp p;
    int rc = describe(device, &p, err);

    if (rc == LLM_OK && p.major < MIN_CAPABILITY) {
        rc = llm_fail(err, LLM_EUNSUPPORTED, "%s has compute capability %d.%d, and %d.0 is needed",
                      p.name, p.major, p.minor, MIN_CAPABILITY);
    }
    return rc;
}

static uint64_t room(const struct llm_model *model, uint32_t device)
{
    uint64_t bytes = llm_cuda_free_memory(device);

    return bytes > model->bytes ? bytes - model->bytes : 0;
}

static struct llm_cuda_router router_of(const struct llm_model_config *c, bool fast)
{
    static const enum llm_cuda_gate gates[] = {
        [LLM_TOPK_GREEDY] = LLM_CUDA_GATE_GREEDY,
        [LLM_TOPK_GROUP_LIMITED] = LLM_CUDA_GATE_GROUPS,
        [LLM_TOPK_NOAUX_TC] = LLM_CUDA_GATE_NOAUX,
    };

    return (struct llm_cuda_router){
        .gate = gates[c->router_topk],
        .sigmoid = c->router_score == LLM_ROUTER_SIGMOID,
        .n_experts = c->n_experts,
        .n_used = c->n_experts_used,
        .n_groups = c->n_groups,
        .n_groups_used = c->n_groups_used,
        .normalise = c->norm_topk_prob,
        .factor = c->routed_scaling_factor,
        .n_shared = fast ? c->n_shared_experts : 0,
    };
}

static uint32_t max(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static void set_shapes(struct llm_backend *b)
{
    const struct llm_model_config *c = &b->model->config;
    uint32_t shared = b->fast ? 0 : c->n_shared_experts * c->expert_size;

    b->max_rows = max(b->options.max_batch_tokens, llm_cuda_graph_rows(b->options.max_seqs));
    b->max_pages = (uint32_t) llm_cuda_pages(b->options.max_context);
    b->max_pieces = b->max_rows / LLM_CUDA_MAX_LINEAR_ROWS + b->options.max_seqs + 1;
    b->mask_words = (c->vocab_size + 31) / 32;
    b->latent_width = c->kv_lora_rank + c->qk_rope_dim;
    b->dense_width = max(c->intermediate_size, shared);
    b->router = router_of(c, b->fast);
}

static void set_info(struct llm_backend *b, const struct cudaDeviceProp *p)
{
    struct llm_backend_info *i = &b->info;

    i->name = "cuda";
    snprintf(i->device, sizeof(i->device), "%.40s%s", p->name, b->fast ? "" : ", general path");
    i->layout = b->layout;
    i->weight_bytes = b->weight_bytes;
    i->scratch_bytes = b->scratch_bytes;
    i->one_form = !b->fast || b->options.deterministic;

    /* as the CPU's, see there */
    i->numerics_id[0] = (uint8_t) b->options.numerics;
    i->numerics_id[1] = (uint8_t) b->options.latent_dtype;
    i->numerics_id[2] = b->options.deterministic;
    if (b->options.deterministic) {
        snprintf((char *) i->numerics_id + 3, sizeof(i->numerics_id) - 3, "gpu%u%c",
                 (unsigned) (p->major * 10 + p->minor) % 10000, b->fast ? 'f' : 'g');
    }
}

static void backend_free(struct llm_backend *b)
{
    if (b == NULL) {
        return;
    }
    cudaSetDevice((int) b->options.device);
    if (b->compute != NULL) {
        cudaStreamSynchronize(b->compute);
    }
    llm_cuda_pages_free(b);
    llm_cuda_graphs_free(b);
    llm_cuda_memory_free(b);
    if (b->copies != NULL) {
        cudaStreamDestroy(b->copies);
    }
    if (b->compute != NULL) {
        cudaStreamDestroy(b->compute);
    }
    llm_page_layout_free(&b->layout);
    free(b->layers);
    free(b);
}

static int open_streams(struct llm_backend *b, struct llm_error *err)
{
    cudaError_t error = cudaSetDevice((int) b->options.device);

    if (error == cudaSuccess) {
        error = cudaStreamCreateWithFlags(&b->compute, cudaStreamNonBlocking);
    }
    if (error == cudaSuccess) {
        error = cudaStreamCreateWithFlags(&b->copies, cudaStreamNonBlocking);
    }
    return error == cudaSuccess ? LLM_OK : llm_cuda_fail(err, error, "starting it");
}

static int load(const struct llm_model *model, const struct llm_backend_options *options,
                struct llm_backend **out, struct llm_error *err)
{
    struct cudaDeviceProp properties;
    struct llm_backend *b;
    int rc;

    if (options->max_context == 0 || options->max_batch_tokens == 0 || options->max_seqs == 0) {
        return llm_fail(err, LLM_EINVAL, "context, batch and number of sequences must be positive");
    }
    b = calloc(1, sizeof(*b));
    if (b == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    b->model = model;
    b->options = *options;
    b->fast = llm_cuda_is_fast(model, options);
    set_shapes(b);

    rc = describe(options->device, &properties, err);
    if (rc == LLM_OK) {
        b->n_processors = (uint32_t) properties.multiProcessorCount;
        b->has_clusters = properties.major >= 9;
        rc = llm_page_layout_init(&b->layout, &model->config, options->latent_dtype, err);
    }
    if (rc != LLM_OK || (rc = open_streams(b, err)) != LLM_OK
        || (rc = llm_cuda_measure_weights(b, err)) != LLM_OK
        || (rc = llm_cuda_memory_init(b, err)) != LLM_OK
        || (rc = llm_cuda_graphs_init(b, err)) != LLM_OK
        || (rc = llm_cuda_pages_init(b, err)) != LLM_OK
        || (rc = llm_cuda_load_weights(b, err)) != LLM_OK) {
        backend_free(b);
        return rc;
    }
    set_info(b, &properties);
    *out = b;
    return LLM_OK;
}

static const struct llm_backend_info *info(const struct llm_backend *b)
{
    return &b->info;
}

static const struct llm_backend_ops cuda_ops = {
    .in_host_memory = false,
    .room = room,
    .load = load,
    .free = backend_free,
    .info = info,
    .seq_create = llm_cuda_seq_create,
    .seq_free = llm_cuda_seq_free,
    .submit = llm_cuda_submit,
    .wait = llm_cuda_wait,
    .page_out = llm_cuda_page_out,
    .page_in = llm_cuda_page_in,
    .fence_done = llm_cuda_fence_done,
    .fence_wait = llm_cuda_fence_wait,
    .page_copy = llm_cuda_page_copy,
    .page_clear = llm_cuda_page_clear,
};

extern const struct llm_backend_module llm_backend_module;

__attribute__((visibility("default"))) const struct llm_backend_module llm_backend_module = {
    .abi = LLM_BACKEND_ABI,
    .model_bytes = sizeof(struct llm_model),
    .options_bytes = sizeof(struct llm_backend_options),
    .ops = &cuda_ops,
    .probe = probe,
};
