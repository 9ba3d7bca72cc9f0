#include "engine/serve/served.h"

#include "engine/backend/device.h"
#include "engine/base/checked.h"
#include "engine/base/clock.h"
#include "engine/base/log.h"
#include "engine/base/machine.h"
#include "engine/cache/secret.h"
#include "engine/model/dummy.h"
#include "engine/model/mapping.h"
#include "engine/serve/vocab.h"

#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* Latent memory when nobody says: a quarter of what is free, of a GPU all but a quarter, and no
 * more than what as many sequences of full length can use. */
#define DEFAULT_SHARE 4
#define DEFAULT_SEQUENCES 32

#define BATCH_TOKENS 512
#define GPU_BATCH_TOKENS 4096

#define DUMMY_SEED 1

static int join(char *path, size_t size, const char *dir, const char *name, struct llm_error *err)
{
    int n = snprintf(path, size, "%s/%s", dir, name);

    if (n < 0 || (size_t) n >= size) {
        return llm_fail(err, LLM_EINVAL, "--model: the path is too long");
    }
    return LLM_OK;
}

/* "add_bos_token" of tokenizer_config.json; the file was parsed before, for the chat format. */
static bool wants_bos(const char *json, size_t len)
{
    json_t *root = json_loadb(json, len, JSON_REJECT_DUPLICATES, NULL);
    bool wants = json_is_true(json_object_get(root, "add_bos_token"));

    json_decref(root);
    return wants;
}

int llm_served_chat_format(const char *name, const struct llm_chat_format **out,
                           struct llm_error *err)
{
    static const char unknown[] = "{\"chat_format\": \"\"}";

    *out = NULL;
    if (strcmp(name, "auto") == 0) {
        return LLM_OK;
    }
    *out = llm_chat_format_by_name(name);
    if (*out != NULL) {
        return LLM_OK;
    }
    llm_chat_format_detect(unknown, strlen(unknown), out, err); /* for the list */
    return llm_error_prefix(err, "--chat-format %s", name);
}

static int choose_chat_format(struct llm_served *s, const struct llm_settings *settings,
                              const char *json, size_t len, struct llm_error *err)
{
    int rc = settings->chat_format != NULL
                 ? llm_served_chat_format(settings->chat_format, &s->chat_format, err)
                 : LLM_OK;

    if (rc != LLM_OK || s->chat_format != NULL) {
        return rc;
    }
    rc = llm_chat_format_detect(json, len, &s->chat_format, err);
    return rc == LLM_OK ? rc : llm_error_prefix(err, "%s/tokenizer_config.json", settings->model);
}

static int open_text(struct llm_served *s, const struct llm_settings *settings,
                     struct llm_error *err)
{
    struct llm_mapping file = {0};
    char path[PATH_MAX];
    int rc;

    rc = join(path, sizeof(path), settings->model, "tokenizer.json", err);
    if (rc == LLM_OK) {
        rc = llm_tokenizer_open(path, &s->tokenizer, err);
    }
    if (rc == LLM_OK) {
        rc = join(path, sizeof(path), settings->model, "tokenizer_config.json", err);
    }
    if (rc == LLM_OK) {
        rc = llm_mapping_open(&file, path, err);
    }
    if (rc == LLM_OK) {
        rc = choose_chat_format(s, settings, file.data, file.size, err);
    }
    if (rc == LLM_OK) {
        s->add_bos = wants_bos(file.data, file.size);
    }
    llm_mapping_close(&file);
    return rc;
}

static int open_model(struct llm_served *s, const struct llm_settings *settings,
                      struct llm_error *err)
{
    int rc;

    if (settings->load_format == LLM_LOAD_DUMMY) { /* the text first: made-up weights take time */
        rc = open_text(s, settings, err);
        return rc == LLM_OK ? llm_model_dummy(settings->model, DUMMY_SEED, &s->model, err) : rc;
    }
    rc = llm_model_open(settings->model, &s->model, err);
    return rc == LLM_OK ? open_text(s, settings, err) : rc;
}

/* With a file, the same for all engines that have it; else nobody else's, and not for long. */
static int take_secret(struct llm_served *s, const struct llm_settings *settings,
                       struct llm_error *err)
{
    if (settings->secret_file == NULL) {
        return getrandom(s->secret, sizeof(s->secret), 0) == sizeof(s->secret)
                   ? LLM_OK
                   : llm_fail(err, LLM_EIO, "no random numbers to be had");
    }
    return llm_secret_read(settings->secret_file, s->secret, err) == LLM_OK
               ? LLM_OK
               : llm_error_prefix(err, "--secret-file");
}

int llm_served_open_device(struct llm_served *s, const struct llm_settings *settings,
                           struct llm_error *err)
{
    const char *name = settings->device != NULL ? settings->device : "auto";
    struct llm_device device;
    int rc = llm_device_open(name, NULL, &device, err);

    s->ops = device.ops;
    s->device = device.index;
    return rc;
}

int llm_served_open(struct llm_served *s, const struct llm_settings *settings,
                    struct llm_error *err)
{
    uint32_t known;
    int rc;

    *s = (struct llm_served){.trust_special = settings->trust_special_tokens};

    rc = llm_served_open_device(s, settings, err);
    if (rc == LLM_OK) {
        rc = open_model(s, settings, err);
    }
    if (rc == LLM_OK) {
        rc = take_secret(s, settings, err);
    }
    if (rc != LLM_OK) {
        goto fail;
    }

    known = llm_tokenizer_size(s->tokenizer);
    s->n_vocab = s->model->config.vocab_size;
    if (known > s->n_vocab) {
        rc = llm_fail(err, LLM_EINVAL, "%s: tokenizer.json has ids up to %u, but config.json says "
                      "vocab_size %u", settings->model, known - 1, s->n_vocab);
        goto fail;
    }
    s->n_vocab = known;

    if (settings->max_context > s->model->config.max_positions) {
        rc = llm_fail(err, LLM_EINVAL, "--max-context %u: the model was made for %u positions",
                      settings->max_context, s->model->config.max_positions);
        goto fail;
    }
    return LLM_OK;

fail:
    llm_served_close(s);
    return rc;
}

/* Bytes of the pool when nobody says; `one` is what a sequence of full length takes. */
static uint64_t default_latent_bytes(const struct llm_served *s, uint64_t host, uint64_t one)
{
    uint64_t room = s->ops->room(s->model, s->device), bytes;

    if (s->ops->in_host_memory) {
        bytes = (room - (host < room ? host : room)) / DEFAULT_SHARE;
    } else if (room == 0) {
        bytes = one; /* the weights alone are too large: load says by how much */
    } else {
        bytes = room - room / DEFAULT_SHARE;
    }
    return bytes < one * DEFAULT_SEQUENCES ? bytes : one * DEFAULT_SEQUENCES;
}

/* Bytes of the pool: what was asked for, or what suits the machine. With the host tier it must fit
 * into what this process can still use; for the pool alone the backend sees to that, which knows
 * what else it needs. */
static int choose_latent_bytes(const struct llm_served *s, const struct llm_settings *settings,
                               uint64_t one, uint64_t *bytes, struct llm_error *err)
{
    uint64_t usable = llm_usable_memory(""), host = settings->host_latent_memory, wanted;

    *bytes = settings->latent_memory;
    if (*bytes == 0) {
        *bytes = default_latent_bytes(s, host, one);
    }

    if (!llm_add_u64(s->ops->in_host_memory ? *bytes : 0, host, &wanted)) {
        wanted = UINT64_MAX;
    }
    if (host > 0 && wanted > usable) {
        return llm_fail(err, LLM_ENOMEM, "--host-latent-memory of %llu MiB and the latent memory "
                        "of %llu MiB do not fit into the %llu MiB that are available: lower them "
                        "by %llu MiB", (unsigned long long) host >> 20,
                        (unsigned long long) *bytes >> 20, (unsigned long long) usable >> 20,
                        (unsigned long long) ((wanted - usable) >> 20) + 1);
    }
    return LLM_OK;
}

/* Sizes of pool and context: what was asked for, or what suits model and machine. */
static int choose_sizes(struct llm_served *s, const struct llm_settings *settings,
                        struct llm_backend_options *options, struct llm_error *err)
{
    uint32_t context = settings->max_context != 0 ? settings->max_context
                                                  : s->model->config.max_positions;
    uint64_t pages = ((uint64_t) context + LLM_PAGE_TOKENS - 1) / LLM_PAGE_TOKENS;
    struct llm_page_layout layout;
    uint64_t one, page_bytes;
    int rc = llm_page_layout_init(&layout, &s->model->config, options->latent_dtype, err);

    if (rc != LLM_OK) {
        return rc;
    }
    page_bytes = layout.page_bytes;
    llm_page_layout_free(&layout);

    if (!llm_mul_u64(pages, page_bytes, &one) || one > INT64_MAX / DEFAULT_SEQUENCES) {
        return llm_fail(err, LLM_EINVAL, "the context length is absurd: set --max-context");
    }

    rc = choose_latent_bytes(s, settings, one, &options->latent_bytes, err);
    if (rc != LLM_OK) {
        return rc;
    }

    if (options->latent_bytes < one) {
        uint64_t fits = options->latent_bytes / page_bytes * LLM_PAGE_TOKENS;

        if (settings->max_context != 0 || fits == 0) {
            return llm_fail(err, LLM_ENOMEM, "a sequence of %u tokens needs %llu MiB of latents, "
                            "but there are %llu: raise --latent-memory or lower --max-context",
                            context, (unsigned long long) (one >> 20) + 1,
                            (unsigned long long) options->latent_bytes >> 20);
        }
        llm_log(LLM_LOG_NOTICE, "max-context is %llu instead of the model's %u: that is what the "
                "latent memory holds", (unsigned long long) fits, context);
        context = (uint32_t) fits;
    }

    s->max_context = context;
    s->max_batch_tokens = settings->max_batch_tokens;
    if (s->max_batch_tokens == 0) {
        s->max_batch_tokens = s->ops->in_host_memory ? BATCH_TOKENS : GPU_BATCH_TOKENS;
    }
    s->max_seqs = s->max_batch_tokens < LLM_MAX_SEQS ? s->max_batch_tokens : LLM_MAX_SEQS;
    options->max_context = s->max_context;
    options->max_batch_tokens = s->max_batch_tokens;
    options->max_seqs = s->max_seqs;
    return LLM_OK;
}

static enum llm_latent_dtype latent_dtype(const struct llm_settings *settings)
{
    if (settings->latent_dtype >= 0) {
        return (enum llm_latent_dtype) settings->latent_dtype;
    }
    return settings->numerics == LLM_NUMERICS_EXACT ? LLM_LATENT_F32 : LLM_LATENT_BF16;
}

int llm_served_check_sizes(const struct llm_served *s, const struct llm_settings *settings,
                           struct llm_error *err)
{
    struct llm_backend_options options = {.latent_dtype = latent_dtype(settings)};
    struct llm_served sized = *s;

    return choose_sizes(&sized, settings, &options, err);
}

static void log_load(const struct llm_backend_info *info, uint64_t latent_bytes, uint64_t ns)
{
    llm_log(LLM_LOG_INFO, "%s (%s) is ready after %.2f s: %llu MB of weights, %llu MB for steps, "
            "%llu MB of latents", info->name, info->device, (double) ns / (double) LLM_NS_PER_S,
            (unsigned long long) info->weight_bytes >> 20,
            (unsigned long long) info->scratch_bytes >> 20,
            (unsigned long long) latent_bytes >> 20);
}

int llm_served_load(struct llm_served *s, const struct llm_settings *settings,
                    const struct llm_served_watch *watch, struct llm_error *err)
{
    struct llm_backend_options options = {
        .numerics = (enum llm_numerics) settings->numerics,
        .deterministic = settings->deterministic,
        .latent_dtype = latent_dtype(settings),
        .threads = settings->threads,
        .device = s->device,
        .beat = watch->beat,
        .beat_ctx = watch->beat_ctx,
        .progress = watch->progress,
        .progress_ctx = watch->progress_ctx,
    };
    uint64_t begin = 0;
    int rc;

    rc = choose_sizes(s, settings, &options, err);
    if (rc == LLM_OK) {
        rc = llm_model_verify(s->model, watch->progress, watch->progress_ctx, err);
    }
    if (rc == LLM_OK) {
        begin = llm_now_ns();
        rc = s->ops->load(s->model, &options, &s->backend, err);
    }
    if (rc == LLM_OK) { /* what was read for a device may have been cut meanwhile */
        rc = llm_model_check(s->model, err);
    }
    if (rc == LLM_OK) {
        log_load(s->ops->info(s->backend), options.latent_bytes, llm_now_ns() - begin);
    }
    return rc;
}

void llm_served_close(struct llm_served *s)
{
    if (s->backend != NULL) {
        s->ops->free(s->backend);
    }
    if (s->tokenizer != NULL) {
        llm_tokenizer_free(s->tokenizer);
    }
    if (s->model != NULL) {
        llm_model_close(s->model);
    }
    *s = (struct llm_served){0};
}
