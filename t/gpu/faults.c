/* The CUDA backend when a call of the runtime fails: the first in one run, the second in the next,
 * and so on, with longer and longer steps, until a run needs no more calls; so of the load, then of
 * the steps. A load that fails says why and leaves nothing behind; a step that fails says why, and
 * so does every later one; what neither fails in gives the same tokens as a run without faults.
 *
 * Linked with --wrap for every function of FAULTS, so that calls come here first. */

#include "engine/backend/backend.h"
#include "t/unit/tap.h"

#include <cuda_runtime_api.h>
#include <stdatomic.h>
#include <stdlib.h>

#define DEMO "models/demo"
#define N_PROMPT 20
#define N_DECODED 4
#define FINE 12 /* calls in steps of one; as many in steps of two … */

static _Atomic uint32_t n_calls;
static uint32_t n_load_calls; /* of the run */
static uint32_t fail_at;      /* counted from 1; 0: never */

static bool fails(void)
{
    return atomic_fetch_add(&n_calls, 1) + 1 == fail_at;
}

/* Memory is lacking at every second call, the device fails at the others. */
static cudaError_t fault(void)
{
    return fail_at % 2 == 0 ? cudaErrorMemoryAllocation : cudaErrorLaunchFailure;
}

#define WRAP(name, parameters, ...)                                                               \
    cudaError_t __real_##name parameters;                                                         \
    cudaError_t __wrap_##name parameters;                                                         \
    cudaError_t __wrap_##name parameters                                                          \
    {                                                                                             \
        return fails() ? fault() : __real_##name(__VA_ARGS__);                                    \
    }

WRAP(cudaSetDevice, (int device), device)
WRAP(cudaMalloc, (void **p, size_t n), p, n)
WRAP(cudaMallocHost, (void **p, size_t n), p, n)
WRAP(cudaStreamCreateWithFlags, (cudaStream_t * stream, unsigned flags), stream, flags)
WRAP(cudaStreamSynchronize, (cudaStream_t stream), stream)
WRAP(cudaStreamWaitEvent, (cudaStream_t stream, cudaEvent_t event, unsigned flags), stream, event,
     flags)
WRAP(cudaEventCreate, (cudaEvent_t * event), event)
WRAP(cudaEventCreateWithFlags, (cudaEvent_t * event, unsigned flags), event, flags)
WRAP(cudaEventRecord, (cudaEvent_t event, cudaStream_t stream), event, stream)
WRAP(cudaEventSynchronize, (cudaEvent_t event), event)
WRAP(cudaMemsetAsync, (void *p, int value, size_t n, cudaStream_t stream), p, value, n, stream)
WRAP(cudaMemcpyAsync,
     (void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t stream), to,
     from, n, kind, stream)
WRAP(cudaMemcpy2DAsync,
     (void *to, size_t to_step, const void *from, size_t from_step, size_t width, size_t height,
      enum cudaMemcpyKind kind, cudaStream_t stream),
     to, to_step, from, from_step, width, height, kind, stream)
WRAP(cudaLaunchKernelExC,
     (const cudaLaunchConfig_t *config, const void *kernel, void **arguments), config, kernel,
     arguments)
WRAP(cudaStreamBeginCapture, (cudaStream_t stream, enum cudaStreamCaptureMode mode), stream, mode)
WRAP(cudaGraphInstantiate,
     (cudaGraphExec_t * exec, cudaGraph_t graph, unsigned long long flags), exec, graph, flags)
WRAP(cudaGraphLaunch, (cudaGraphExec_t exec, cudaStream_t stream), exec, stream)

extern const struct llm_backend_module llm_backend_module;

static struct llm_model *model;
static const struct llm_backend_ops *ops;

struct outcome {
    int load, wait, later; /* codes; later: of the step after one that failed */
    bool told;             /* the error of the first that failed has a text */
    uint32_t tokens[1 + N_DECODED];
    bool page; /* its bytes came back */
};

/* Step i: the prompt, then the token that was sampled last. */
static int run_step(struct llm_backend *b, uint32_t slot, uint32_t i, uint64_t fence,
                    uint32_t *token, struct llm_error *err)
{
    static const uint32_t pages[] = {1};
    struct llm_step_seq seq = {
        .slot = slot,
        .position = i == 0 ? 0 : N_PROMPT + i - 1,
        .n_rows = i == 0 ? N_PROMPT : 1,
        .pages = pages,
    };
    uint32_t tokens[N_PROMPT] = {LLM_TOKEN_LAST};
    uint8_t flags[N_PROMPT] = {0};
    struct llm_step step = {.seqs = &seq,
                            .n_seqs = 1,
                            .tokens = tokens,
                            .flags = flags,
                            .n_rows = seq.n_rows,
                            .fence = fence};
    struct llm_step_result result;
    uint64_t ticket;
    int rc;

    for (uint32_t k = 0; i == 0 && k < N_PROMPT; k++) {
        tokens[k] = 100 + k;
    }
    flags[seq.n_rows - 1] = LLM_ROW_SAMPLE;
    rc = ops->submit(b, &step, &ticket);
    if (rc == LLM_OK) {
        rc = ops->wait(b, ticket, &result, err);
    }
    if (rc == LLM_OK) {
        *token = result.sampled[0].n_tokens == 1 ? result.sampled[0].tokens[0] : 0;
    }
    return rc;
}

/* All steps, or up to the first that fails and one more; after each the page goes out, in and out
 * again. */
static void run_steps(struct llm_backend *b, struct outcome *o)
{
    const struct llm_page_layout *layout = &ops->info(b)->layout;
    struct llm_sampling sampling = {
        .top_p = 1, .repetition_penalty = 1, .n_vocab = model->config.vocab_size};
    char *bytes[2] = {calloc(1, layout->page_bytes), calloc(1, layout->page_bytes)};
    struct llm_error err = {0};
    uint64_t fence = 0;
    uint32_t slot, token;

    if (bytes[0] == NULL || bytes[1] == NULL
        || ops->seq_create(b, &sampling, NULL, 0, 0, &slot) != LLM_OK) {
        puts("Bail out! no sequence");
        exit(1);
    }
    o->told = true;
    for (uint32_t i = 0; i <= N_DECODED && o->wait == LLM_OK; i++) {
        o->wait = run_step(b, slot, i, fence, &o->tokens[i], &err);
        if (o->wait != LLM_OK) {
            o->told = err.text[0] != '\0';
            o->later = run_step(b, slot, i + 1, fence, &token, &err);
        }
        ops->page_out(b, 1, 0, layout->n_planes, bytes[0], &fence);
        ops->page_in(b, 1, 0, layout->n_planes, bytes[0], &fence);
        ops->page_out(b, 1, 0, layout->n_planes, bytes[1], &fence);
    }
    o->page = ops->fence_wait(b, fence) == LLM_OK && ops->fence_done(b, fence)
              && memcmp(bytes[0], bytes[1], layout->page_bytes) == 0;
    free(bytes[0]);
    free(bytes[1]);
}

static struct outcome run(uint32_t at)
{
    const struct llm_backend_options options = {
        .latent_dtype = LLM_LATENT_BF16,
        .latent_bytes = 16 << 20,
        .max_context = 256,
        .max_batch_tokens = 32,
        .max_seqs = 2,
    };
    struct llm_backend *b = NULL;
    struct outcome o = {0};
    struct llm_error err = {0};

    atomic_store(&n_calls, 0);
    fail_at = at;
    o.load = ops->load(model, &options, &b, &err);
    n_load_calls = atomic_load(&n_calls);
    if (o.load != LLM_OK) {
        o.told = err.text[0] != '\0';
    } else {
        run_steps(b, &o);
        ops->free(b);
    }
    fail_at = 0;
    return o;
}

static size_t free_memory(void)
{
    size_t bytes = 0, total;

    cudaMemGetInfo(&bytes, &total);
    return bytes;
}

static struct {
    uint32_t loads, steps, none, bad; /* runs that failed there; none: nowhere */
} seen;

/* Runs with call number `first` failing, and later ones, up to `end` or the last that there is. */
static void try_calls(const struct outcome *want, uint32_t first, uint32_t end)
{
    for (uint32_t i = 0; first + i < end; i += 1 + i / FINE) {
        struct outcome got = run(first + i);
        bool fine = got.told;

        if (atomic_load(&n_calls) < first + i) {
            break;
        }
        if (got.load != LLM_OK) {
            seen.loads++;
        } else if (got.wait != LLM_OK) {
            seen.steps++;
            fine = fine && got.later != LLM_OK;
        } else { /* it could be done without, or came after the last step */
            seen.none++;
            fine = fine && memcmp(got.tokens, want->tokens, sizeof(want->tokens)) == 0;
        }
        if (!fine) {
            seen.bad++;
            diag("call %u: load %d, wait %d, later %d", first + i, got.load, got.wait, got.later);
        }
    }
}

int main(void)
{
    struct outcome want;
    struct llm_error err;
    uint32_t n;
    size_t before;

    setvbuf(stdout, NULL, _IOLBF, 0);
    ops = llm_backend_module.ops;
    if (llm_model_open(DEMO, &model, &err) != LLM_OK) {
        printf("Bail out! %s\n", err.text);
        return 1;
    }
    want = run(0);
    n = n_load_calls;
    ok(want.load == LLM_OK && want.wait == LLM_OK && want.page, "without a fault all is well");
    before = free_memory();

    try_calls(&want, 1, n);
    try_calls(&want, n + 1, UINT32_MAX);
    diag("%u loads failed, %u steps, %u runs got by", seen.loads, seen.steps, seen.none);
    ok(seen.loads > 10 && seen.steps > 10, "loads and steps have failed");
    is_int(seen.bad, 0, "each said so, or gave the same tokens");
    ok(before - free_memory() < 8 << 20 || free_memory() > before, "and nothing was left behind");
    llm_model_close(model);
    return done_testing();
}
