#include "engine/backend/cpu_internal.h"
#include "engine/base/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COPY_PIECE 65536 /* bytes; a hundred times what handing one to a thread costs */

struct copy {
    char *to;
    const char *from;
    size_t n;
};

static void copy_task(void *ctx, uint32_t task, uint32_t thread)
{
    const struct copy *c = ctx;
    size_t at = (size_t) task * COPY_PIECE;

    (void) thread;
    memcpy(c->to + at, c->from + at, c->n - at < COPY_PIECE ? c->n - at : COPY_PIECE);
}

/* With all threads: one alone does not use up the memory's bandwidth. */
static void copy(const struct llm_backend *b, void *to, const void *from, size_t n)
{
    struct copy c = {to, from, n};

    llm_cpu_threads_run(b->threads, (uint32_t) ((n + COPY_PIECE - 1) / COPY_PIECE), copy_task, &c);
}

/* The driver thread's work. */
static void run_job(void *ctx, const struct llm_job *job)
{
    struct llm_backend *b = ctx;
    const struct llm_plane *planes = b->layout.planes;
    char *page = b->pool + job->page * b->layout.page_bytes;
    uint64_t first, end;

    switch (job->kind) {
    case LLM_JOB_STEP:
        llm_cpu_forward(b, job->step);
        break;
    case LLM_JOB_PAGE_OUT:
    case LLM_JOB_PAGE_IN:
        first = planes[job->first].offset;
        end = job->first + job->n < b->layout.n_planes ? planes[job->first + job->n].offset
                                                       : b->layout.page_bytes;
        if (job->kind == LLM_JOB_PAGE_OUT) {
            copy(b, job->out, page + first, end - first);
        } else {
            copy(b, page + first, job->in, end - first);
        }
        break;
    case LLM_JOB_PAGE_COPY:
        for (uint32_t i = 0; i < b->layout.n_planes; i++) {
            memcpy(llm_cpu_latent_row(b, job->to, i, 0), llm_cpu_latent_row(b, job->page, i, 0),
                   (size_t) job->n * planes[i].row_bytes);
        }
        break;
    case LLM_JOB_PAGE_CLEAR:
        memset(page, 0, b->layout.page_bytes);
        break;
    }
}

static int push(struct llm_backend *b, struct llm_job job, uint64_t *fence)
{
    b->last_job = llm_queue_push(b->queue, &job);
    if (fence != NULL) {
        *fence = b->last_job;
    }
    return LLM_OK;
}

static bool planes_ok(const struct llm_backend *b, uint32_t page, uint32_t first, uint32_t n)
{
    return page < b->info.n_pages && n > 0 && n <= b->layout.n_planes
           && first <= b->layout.n_planes - n;
}

static int page_out(struct llm_backend *b, uint32_t page, uint32_t first, uint32_t n, void *host,
                    uint64_t *fence)
{
    if (!planes_ok(b, page, first, n)) {
        return LLM_EINVAL;
    }
    return push(b,
                (struct llm_job){.kind = LLM_JOB_PAGE_OUT,
                                     .page = page,
                                     .first = first,
                                     .n = n,
                                     .out = host},
                fence);
}

static int page_in(struct llm_backend *b, uint32_t page, uint32_t first, uint32_t n,
                   const void *host, uint64_t *fence)
{
    if (!planes_ok(b, page, first, n)) {
        return LLM_EINVAL;
    }
    return push(b,
                (struct llm_job){.kind = LLM_JOB_PAGE_IN,
                                     .page = page,
                                     .first = first,
                                     .n = n,
                                     .in = host},
                fence);
}

static int page_copy(struct llm_backend *b, uint32_t from, uint32_t to, uint32_t n_rows)
{
    if (from >= b->info.n_pages || to >= b->info.n_pages || from == to
        || n_rows > LLM_PAGE_TOKENS) {
        return LLM_EINVAL;
    }
    return push(b,
                (struct llm_job){
                    .kind = LLM_JOB_PAGE_COPY, .page = from, .to = to, .n = n_rows},
                NULL);
}

static int page_clear(struct llm_backend *b, uint32_t page)
{
    if (page >= b->info.n_pages) {
        return LLM_EINVAL;
    }
    return push(b, (struct llm_job){.kind = LLM_JOB_PAGE_CLEAR, .page = page}, NULL);
}

static bool fence_done(struct llm_backend *b, uint64_t fence)
{
    return llm_queue_done(b->queue, fence);
}

static int fence_wait(struct llm_backend *b, uint64_t fence)
{
    llm_queue_wait(b->queue, fence);
    return LLM_OK;
}

static const struct llm_backend_info *info(const struct llm_backend *b)
{
    return &b->info;
}

static void backend_free(struct llm_backend *b)
{
    if (b == NULL) {
        return;
    }
    llm_queue_stop(b->queue);
    llm_cpu_threads_stop(b->threads);
    llm_cpu_sequences_free(b);
    llm_slots_free(&b->slots);
    llm_cpu_memory_free(b);
    llm_page_layout_free(&b->layout);
    free(b);
}

static int check_options(const struct llm_backend_options *o, struct llm_error *err)
{
    if (o->max_context == 0 || o->max_batch_tokens == 0 || o->max_seqs == 0) {
        return llm_fail(err, LLM_EINVAL, "context, batch and number of sequences must be positive");
    }
    return LLM_OK;
}

static int pick_kernels(struct llm_backend *b, struct llm_error *err)
{
    const char *isa = getenv("LLM_CPU_ISA"); /* for tests and comparisons */

    b->kernels = llm_cpu_kernels_pick(isa);
    if (b->kernels == NULL) {
        return llm_fail(err, LLM_EUNSUPPORTED,
                        "LLM_CPU_ISA=%s: this processor runs none of that name", isa);
    }
    return LLM_OK;
}

static struct llm_cpu_router router_of(const struct llm_model_config *c)
{
    static const enum llm_cpu_gate gates[] = {
        [LLM_TOPK_GREEDY] = LLM_CPU_GATE_GREEDY,
        [LLM_TOPK_GROUP_LIMITED] = LLM_CPU_GATE_GROUPS,
        [LLM_TOPK_NOAUX_TC] = LLM_CPU_GATE_NOAUX,
    };

    return (struct llm_cpu_router){
        .gate = gates[c->router_topk],
        .sigmoid = c->router_score == LLM_ROUTER_SIGMOID,
        .n_experts = c->n_experts,
        .n_used = c->n_experts_used,
        .n_groups = c->n_groups,
        .n_groups_used = c->n_groups_used,
        .normalise = c->norm_topk_prob,
        .factor = c->routed_scaling_factor,
    };
}

static void set_shapes(struct llm_backend *b)
{
    const struct llm_model_config *c = &b->model->config;
    uint32_t shared = c->n_shared_experts * c->expert_size;

    b->max_rows = b->options.max_batch_tokens;
    b->max_pages = (b->options.max_context - 1) / LLM_PAGE_TOKENS + 1;
    b->mask_words = (c->vocab_size + 31) / 32;
    b->latent_width = c->kv_lora_rank + c->qk_rope_dim;
    b->act_width = c->intermediate_size > shared ? c->intermediate_size : shared;
    b->router = router_of(c);
}

static void set_info(struct llm_backend *b)
{
    struct llm_backend_info *i = &b->info;
    bool exactly = b->options.deterministic;

    i->name = "cpu";
    snprintf(i->device, sizeof(i->device), "%s, %u threads", b->kernels->title,
             llm_cpu_threads_count(b->threads));
    i->layout = b->layout;
    i->weight_bytes = b->model->bytes;
    i->scratch_bytes = b->memory_bytes;
    i->one_form = true; /* sums are taken in one order, whatever the number of rows */

    /* what the bits of a page depend on; without --deterministic, what they depend on noticeably */
    i->numerics_id[0] = (uint8_t) b->options.numerics;
    i->numerics_id[1] = (uint8_t) b->options.latent_dtype;
    i->numerics_id[2] = exactly;
    if (exactly) {
        snprintf((char *) i->numerics_id + 3, sizeof(i->numerics_id) - 3, "cpu %s",
                 b->kernels->isa);
    }
}

static int load(const struct llm_model *model, const struct llm_backend_options *options,
                struct llm_backend **out, struct llm_error *err)
{
    struct llm_backend *b;
    int rc = check_options(options, err);

    if (rc != LLM_OK) {
        return rc;
    }
    b = calloc(1, sizeof(*b));
    if (b == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    b->model = model;
    b->options = *options;
    set_shapes(b);

    if ((rc = pick_kernels(b, err)) != LLM_OK
        || (rc = llm_page_layout_init(&b->layout, &model->config, options->latent_dtype, err))
               != LLM_OK
        || (rc = llm_cpu_threads_start(options->threads, &b->threads, err)) != LLM_OK
        || (rc = llm_cpu_memory_init(b, err)) != LLM_OK
        || (rc = llm_queue_start(run_job, b, &b->queue, err)) != LLM_OK) {
        backend_free(b);
        return rc;
    }
    set_info(b);
    if (options->progress != NULL) {
        options->progress(options->progress_ctx, model->bytes, model->bytes);
    }
    *out = b;
    return LLM_OK;
}

static uint64_t room(const struct llm_model *model, uint32_t device)
{
    (void) model, (void) device; /* mapped weights give way */
    return llm_usable_memory("");
}

const struct llm_backend_ops llm_backend_cpu = {
    .in_host_memory = true,
    .room = room,
    .load = load,
    .free = backend_free,
    .info = info,
    .seq_create = llm_cpu_seq_create,
    .seq_free = llm_cpu_seq_free,
    .submit = llm_cpu_submit,
    .wait = llm_cpu_wait,
    .page_out = page_out,
    .page_in = page_in,
    .fence_done = fence_done,
    .fence_wait = fence_wait,
    .page_copy = page_copy,
    .page_clear = page_clear,
};
