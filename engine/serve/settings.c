#include "engine/serve/settings.h"

#include "engine/backend/device.h"
#include "engine/base/log.h"
#include "engine/base/option.h"
#include "engine/cache/redis/url.h"
#include "engine/serve/listener.h"
#include "engine/serve/served.h"
#include "engine/serve/state.h"

#include <openssl/crypto.h>
#include <stddef.h>
#include <stdint.h>

#define AT(field) offsetof(struct llm_settings, field)
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static const char *const load_formats[] = {"auto", "dummy", NULL};
static const char *const numerics[] = {"default", "exact", NULL};
static const char *const latent_dtypes[] = {"f32", "bf16", "fp8", NULL};
static const char *const log_levels[] = {"error", "warn", "notice", "info", "debug", NULL};

/* Of a command alone, not of a file: the last ones of the table. */
#define N_COMMAND_ONLY 4

static const struct llm_option table[] = {
    {.name = "model", .kind = LLM_OPTION_TEXT, .offset = AT(model), .arg = "DIR",
     .help = "the checkpoint: config.json, tokenizer.json, *.safetensors"},
    {.name = "listen", .kind = LLM_OPTION_TEXT, .offset = AT(listen), .arg = "unix:PATH",
     .help = "socket that nginx connects to"},
    {.name = "socket-group", .kind = LLM_OPTION_TEXT, .offset = AT(socket_group), .arg = "GROUP",
     .help = "group of the socket (mode 0660): nginx's workers must be in it"},
    {.name = "served-model-name", .kind = LLM_OPTION_TEXT, .offset = AT(served_names),
     .arg = "NAME[,ALIAS…]", .help = "names clients may ask for (default: DIR's last part)"},
    {.name = "load-format", .kind = LLM_OPTION_WORD, .offset = AT(load_format),
     .words = load_formats, .arg = "auto|dummy",
     .help = "dummy: made-up weights, of the shape that DIR's config.json says"},
    {.name = "device", .kind = LLM_OPTION_TEXT, .offset = AT(device), .arg = "auto|cpu|cuda[:N]",
     .help = "what computes (default auto: a GPU where there is one)"},
    {.name = "numerics", .kind = LLM_OPTION_WORD, .offset = AT(numerics), .words = numerics,
     .arg = "default|exact",
     .help = "both compute in fp32 on a CPU; exact keeps latents in f32 too"},
    {.name = "deterministic", .kind = LLM_OPTION_SWITCH, .offset = AT(deterministic),
     .help = "the same bits whatever else runs at the same time"},
    {.name = "latent-dtype", .kind = LLM_OPTION_WORD, .offset = AT(latent_dtype),
     .words = latent_dtypes, .arg = "f32|bf16|fp8",
     .help = "how latents are stored (default bf16; f32 with --numerics exact)"},
    {.name = "latent-memory", .kind = LLM_OPTION_SIZE, .offset = AT(latent_memory),
     .arg = "SIZE", .help = "memory for latents, such as 8g (default: a part of what is free)"},
    {.name = "host-latent-memory", .kind = LLM_OPTION_SIZE, .offset = AT(host_latent_memory),
     .arg = "SIZE", .help = "memory below it, for prefixes that are kept (default 0)"},
    {.name = "tenant-latent-percent", .kind = LLM_OPTION_COUNT,
     .offset = AT(tenant_latent_percent), .min = 1, .max = 100, .arg = "N",
     .help = "part of either that one tenant's prefixes may fill (default 100)"},
    {.name = "secret-file", .kind = LLM_OPTION_TEXT, .offset = AT(secret_file), .arg = "FILE",
     .help = "what names and seals of cached prefixes are made from (default: random)"},
    {.name = "redis", .kind = LLM_OPTION_TEXT, .offset = AT(redis), .arg = "URL",
     .help = "share prefixes with other engines: redis://… or redis+unix://…"},
    {.name = "redis-ttl", .kind = LLM_OPTION_COUNT, .offset = AT(redis_ttl), .min = 1,
     .max = 365 * 86400, .arg = "SECONDS",
     .help = "how long a prefix that nobody uses stays there (default 14400)"},
    {.name = "redis-quota", .kind = LLM_OPTION_SIZE, .offset = AT(redis_quota), .arg = "SIZE",
     .help = "most that a tenant may write there in that time and the one before (default 0: any)"},
    {.name = "redis-deadline-ms", .kind = LLM_OPTION_COUNT, .offset = AT(redis_deadline_ms),
     .min = 1, .max = 60000, .arg = "N",
     .help = "how long a look-up there may take; nothing waits for it (default 1000)"},
    {.name = "max-context", .kind = LLM_OPTION_COUNT, .offset = AT(max_context), .min = 1,
     .max = INT32_MAX, .arg = "N",
     .help = "longest prompt and completion together (default: the model's)"},
    {.name = "max-batch-tokens", .kind = LLM_OPTION_COUNT, .offset = AT(max_batch_tokens),
     .min = 1, .max = 65536, .arg = "N",
     .help = "most tokens of one step (default 512, on a GPU 4096)"},
    {.name = "max-step-ms", .kind = LLM_OPTION_COUNT, .offset = AT(max_step_ms), .min = 1,
     .max = 60000, .arg = "N",
     .help = "longest step, as far as it can be told (default 100)"},
    {.name = "max-queue-requests", .kind = LLM_OPTION_COUNT, .offset = AT(max_queue_requests),
     .min = 1, .max = 1000000, .arg = "N", .help = "most requests that wait (default 1024)"},
    {.name = "max-queue-tokens", .kind = LLM_OPTION_COUNT, .offset = AT(max_queue_tokens),
     .min = 1, .max = UINT32_MAX, .arg = "N",
     .help = "most prompt tokens that wait (default 4194304)"},
    {.name = "max-tenant-queue-requests", .kind = LLM_OPTION_COUNT,
     .offset = AT(max_tenant_queue_requests), .min = 1, .max = 1000000, .arg = "N",
     .help = "most requests of one tenant that wait (default: half of all)"},
    {.name = "max-tenant-queue-tokens", .kind = LLM_OPTION_COUNT,
     .offset = AT(max_tenant_queue_tokens), .min = 1, .max = UINT32_MAX, .arg = "N",
     .help = "most prompt tokens of one tenant that wait (default: half of all)"},
    {.name = "send-timeout", .kind = LLM_OPTION_COUNT, .offset = AT(send_timeout), .min = 1,
     .max = 86400, .arg = "SECONDS",
     .help = "how long a request may stand still for a slow reader (default 60)"},
    {.name = "threads", .kind = LLM_OPTION_COUNT, .offset = AT(threads), .min = 1, .max = 1024,
     .arg = "N", .help = "compute threads (default: one a core)"},
    {.name = "chat-format", .kind = LLM_OPTION_TEXT, .offset = AT(chat_format),
     .arg = "auto|NAME", .help = "form of chat prompts (default auto: by the checkpoint)"},
    {.name = "trust-special-tokens", .kind = LLM_OPTION_SWITCH, .offset = AT(trust_special_tokens),
     .help = "markers typed in a prompt count as control tokens"},
    {.name = "log-level", .kind = LLM_OPTION_WORD, .offset = AT(log_level), .words = log_levels,
     .arg = "LEVEL", .help = "error, warn, notice, info or debug (default notice)"},
    {.name = "config", .kind = LLM_OPTION_TEXT, .offset = AT(config), .arg = "FILE",
     .help = "read options from a file, one a line: name value"},
    {.name = "test-config", .kind = LLM_OPTION_SWITCH, .offset = AT(test_config),
     .help = "check options and checkpoint, then exit"},
    {.name = "version", .kind = LLM_OPTION_SWITCH, .offset = AT(version),
     .help = "print the version and exit"},
    {.name = "help", .kind = LLM_OPTION_SWITCH, .offset = AT(help), .help = "print this and exit"},
};

void llm_settings_free(struct llm_settings *s)
{
    llm_options_free(table, COUNT_OF(table), s);
}

static int check_url(const char *text, struct llm_error *err)
{
    struct llm_redis_url url;
    int rc = llm_redis_url_parse(text, &url, err);

    OPENSSL_cleanse(&url, sizeof(url));
    return rc == LLM_OK ? LLM_OK : llm_error_prefix(err, "--redis");
}

/* What can be said of the values without the checkpoint. */
static int check(const struct llm_settings *s, struct llm_error *err)
{
    const struct llm_chat_format *format;
    struct llm_names names;
    int rc = LLM_OK;

    if (s->numerics == LLM_NUMERICS_EXACT && s->latent_dtype > LLM_LATENT_F32) {
        return llm_fail(err, LLM_EINVAL, "--numerics exact keeps latents in f32: leave out "
                        "--latent-dtype %s", latent_dtypes[s->latent_dtype]);
    }
    if (s->redis != NULL && s->secret_file == NULL) {
        return llm_fail(err, LLM_EINVAL, "--redis wants a --secret-file, the same for all engines "
                        "that share it: head -c 32 /dev/urandom >FILE, mode 0400");
    }
    if (s->redis != NULL) {
        rc = check_url(s->redis, err);
    }
    if (rc == LLM_OK && s->device != NULL) {
        rc = llm_device_check(s->device, err);
    }
    if (rc == LLM_OK && s->listen != NULL) {
        rc = llm_listener_check(s->listen, s->socket_group, err);
    }
    if (rc == LLM_OK && (s->served_names != NULL || s->model != NULL)) {
        rc = llm_names_read(&names, s->served_names, s->model, err);
    }
    if (rc == LLM_OK && s->chat_format != NULL) {
        rc = llm_served_chat_format(s->chat_format, &format, err);
    }
    return rc;
}

static uint32_t half(uint32_t n)
{
    return n / 2 + n % 2;
}

/* What a tenant may have of the queue when nobody says. */
static void share_queue(struct llm_settings *s)
{
    if (s->max_tenant_queue_requests == 0) {
        s->max_tenant_queue_requests = half(s->max_queue_requests);
    }
    if (s->max_tenant_queue_tokens == 0) {
        s->max_tenant_queue_tokens = half(s->max_queue_tokens);
    }
}

int llm_settings_read(struct llm_settings *s, int argc, char *const *argv, struct llm_error *err)
{
    int rc;

    *s = (struct llm_settings){
        .latent_dtype = -1,
        .log_level = LLM_LOG_NOTICE,
        .tenant_latent_percent = 100,
        .redis_ttl = 4 * 3600,
        .redis_deadline_ms = 1000,
        .max_step_ms = 100,
        .max_queue_requests = 1024,
        .max_queue_tokens = 4 << 20,
        .send_timeout = 60,
    };

    rc = llm_options_parse(table, COUNT_OF(table), s, argc, argv, err);
    if (rc == LLM_OK && s->config != NULL) {
        rc = llm_options_read_file(table, COUNT_OF(table) - N_COMMAND_ONLY, s, s->config, err);
        if (rc == LLM_OK) { /* again: the command line has the last word */
            rc = llm_options_parse(table, COUNT_OF(table), s, argc, argv, err);
        }
    }
    if (rc == LLM_OK) {
        rc = check(s, err);
    }
    if (rc != LLM_OK) {
        llm_settings_free(s);
        return rc;
    }
    share_queue(s);
    return LLM_OK;
}

void llm_settings_print_help(void)
{
    llm_options_print_help(table, COUNT_OF(table));
}
