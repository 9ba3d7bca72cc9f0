/* llm-engine bench: tokens a second of prefill and decode, through the engine's own scheduler. */

#include "engine/cmd/cmd.h"

#include "engine/base/clock.h"
#include "engine/base/log.h"
#include "engine/base/machine.h"
#include "engine/base/option.h"
#include "engine/model/dummy.h"
#include "engine/sched/sched.h"
#include "engine/serve/served.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LIST 16
#define MAX_RUNS 101
#define SHORT_PROMPT 16 /* before decoding, if nobody says */
#define MAX_CONTEXT (1 << 20)

struct options {
    char *model, *device, *threads, *batch, *prompt, *numerics;
    int load_format, latent_dtype;
    uint32_t tokens, context, repeat;
    bool sample, deterministic, json, help;
};

#define AT(field) offsetof(struct options, field)

enum { LOAD_AUTO, LOAD_DUMMY };

static const char *const load_formats[] = {"auto", "dummy", NULL};
static const char *const latent_dtypes[] = {"f32", "bf16", "fp8", NULL};

static const struct llm_option table[] = {
    {.name = "model", .kind = LLM_OPTION_TEXT, .offset = AT(model), .arg = "DIR",
     .help = "the checkpoint"},
    {.name = "load-format", .kind = LLM_OPTION_WORD, .offset = AT(load_format),
     .words = load_formats, .arg = "auto|dummy",
     .help = "dummy: made-up weights for the DIR's config.json, which may be its only file"},
    {.name = "device", .kind = LLM_OPTION_TEXT, .offset = AT(device), .arg = "auto|cpu|cuda[:N]",
     .help = "what computes (default auto)"},
    {.name = "threads", .kind = LLM_OPTION_TEXT, .offset = AT(threads), .arg = "N,…",
     .help = "compute threads (default: one a core)"},
    {.name = "numerics", .kind = LLM_OPTION_TEXT, .offset = AT(numerics), .arg = "MODE,…",
     .help = "default, exact or both (default: default)"},
    {.name = "latent-dtype", .kind = LLM_OPTION_WORD, .offset = AT(latent_dtype),
     .words = latent_dtypes, .arg = "f32|bf16|fp8",
     .help = "how latents are stored (default: bf16, with exact f32)"},
    {.name = "deterministic", .kind = LLM_OPTION_SWITCH, .offset = AT(deterministic),
     .help = "measure --deterministic"},
    {.name = "prompt", .kind = LLM_OPTION_TEXT, .offset = AT(prompt), .arg = "N,…",
     .help = "prompts to prefill, in tokens (default 512,1024)"},
    {.name = "batch", .kind = LLM_OPTION_TEXT, .offset = AT(batch), .arg = "N[@CONTEXT],…",
     .help = "sequences that decode together (default 1,8)"},
    {.name = "tokens", .kind = LLM_OPTION_COUNT, .offset = AT(tokens), .min = 1, .max = 100000,
     .arg = "N", .help = "tokens to decode of each sequence (default 128)"},
    {.name = "context", .kind = LLM_OPTION_COUNT, .offset = AT(context), .min = 1,
     .max = MAX_CONTEXT, .arg = "N",
     .help = "tokens before those, where --batch does not say (default 16)"},
    {.name = "sample", .kind = LLM_OPTION_SWITCH, .offset = AT(sample),
     .help = "draw them at temperature 1 (default: the most likely ones)"},
    {.name = "repeat", .kind = LLM_OPTION_COUNT, .offset = AT(repeat), .min = 1, .max = MAX_RUNS,
     .arg = "N", .help = "runs of each; the median counts (default 5)"},
    {.name = "json", .kind = LLM_OPTION_SWITCH, .offset = AT(json), .help = "print JSON"},
    {.name = "help", .kind = LLM_OPTION_SWITCH, .offset = AT(help), .help = "print this and exit"},
};

#define N_OPTIONS (sizeof(table) / sizeof(table[0]))

struct list {
    uint32_t n, values[MAX_LIST];
    uint32_t contexts[MAX_LIST]; /* of batches: tokens before those that are decoded */
};

/* Reads "1,8" into a list of numbers from min to max; a context other than 0 is that of all that do
 * not name their own, as "1,8@4096" does. */
static int read_list(const char *name, const char *text, uint32_t min, uint32_t max,
                     uint32_t context, struct list *list, struct llm_error *err)
{
    const char *p = text;

    list->n = 0;
    for (;;) {
        char *end;
        unsigned long v = strtoul(p, &end, 10), after = context;

        if (end == p || v < min || v > max || list->n == MAX_LIST) {
            break;
        }
        if (*end == '@' && context > 0) {
            p = end + 1;
            after = strtoul(p, &end, 10);
            if (end == p || after < 1 || after > MAX_CONTEXT) {
                break;
            }
        }
        list->values[list->n] = (uint32_t) v;
        list->contexts[list->n++] = (uint32_t) after;
        if (*end == '\0') {
            return LLM_OK;
        }
        if (*end != ',') {
            break;
        }
        p = end + 1;
    }
    return llm_fail(err, LLM_EINVAL, "--%s wants up to %u numbers from %u to %u, such as 1,8, not "
                    "\"%s\"", name, MAX_LIST, min, max, text);
}

struct figure {
    bool decode; /* else prefill */
    const char *numerics;
    uint32_t threads, prompt, batch;
    double rates[MAX_RUNS]; /* ascending */
};

struct bench {
    struct options options;
    struct list threads, prompts, batches;
    struct llm_settings settings;
    struct llm_served served;
    struct llm_sched *sched;
    uint32_t n_first, n_tokens, n_retired; /* of the run */
    bool first_row;
};

static void on_started(void *ctx, struct llm_request *r)
{
    (void) ctx, (void) r;
}

static void on_token(void *ctx, struct llm_sequence *s, const struct llm_token *t)
{
    struct bench *b = ctx;

    (void) t;
    b->n_first += s->sampled == 1;
    b->n_tokens++;
}

static void on_ended(void *ctx, struct llm_sequence *s, enum llm_end end)
{
    (void) ctx, (void) s, (void) end;
}

static void on_retired(void *ctx, struct llm_request *r)
{
    struct bench *b = ctx;

    (void) r;
    b->n_retired++;
}

/* One run of `batch` sequences, prompt and tokens of each. *rate: tokens a second of the prompts
 * up to the first token, or, when tokens > 1, of those after the first. */
static int run(struct bench *b, uint32_t batch, uint32_t n_prompt, uint32_t tokens, double *rate,
               struct llm_error *err)
{
    struct llm_sequence *sequences = calloc(batch, sizeof(*sequences));
    uint32_t *prompts = calloc((size_t) batch * n_prompt, sizeof(*prompts));
    struct llm_request r = {
        .sampling = {
            .temperature = b->options.sample ? 1 : 0, .top_p = 1, .repetition_penalty = 1},
        .sequences = sequences,
        .n_sequences = batch,
    };
    uint64_t begin = 0, now;
    uint32_t before = 0;
    int rc = LLM_OK;

    if (sequences == NULL || prompts == NULL) {
        rc = llm_fail(err, LLM_ENOMEM, "out of memory");
        goto done;
    }
    for (size_t i = 0; i < (size_t) batch * n_prompt; i++) { /* any ids, but not all the same */
        prompts[i] = (uint32_t) (i * 0x9e3779b97f4a7c15u >> 33) % b->served.n_vocab;
    }
    for (uint32_t i = 0; i < batch; i++) {
        sequences[i] = (struct llm_sequence){.prompt = prompts + (size_t) i * n_prompt,
                                             .n_prompt = n_prompt,
                                             .max_tokens = tokens,
                                             .choice = i,
                                             .nth = i};
    }

    b->n_first = b->n_tokens = b->n_retired = 0;
    now = llm_now_ns();
    if (tokens == 1) {
        begin = now;
    }
    llm_sched_submit(b->sched, &r);
    while (rc == LLM_OK && b->n_retired == 0) {
        rc = llm_sched_turn(b->sched, err);
        if (begin == 0 && b->n_first == batch) {
            begin = llm_now_ns();
            before = b->n_tokens;
        }
    }
    if (rc == LLM_OK && r.outcome == LLM_OUTCOME_TOO_LARGE) {
        rc = llm_fail(err, LLM_ENOMEM, "the latent memory is too small for this");
    }
    if (rc == LLM_OK && r.outcome != LLM_OUTCOME_DONE) {
        rc = llm_fail(err, LLM_EINTERNAL, "the model's output is not finite");
    }
    now = llm_now_ns();
    *rate = (double) (tokens == 1 ? batch * n_prompt : b->n_tokens - before) *
            (double) LLM_NS_PER_S / (double) (now - begin);

done:
    if (rc != LLM_OK) { /* it may still link the sequences */
        llm_sched_free(b->sched);
        b->sched = NULL;
    }
    free(sequences);
    free(prompts);
    return rc;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;

    return (x > y) - (x < y);
}

static void print_figure(struct bench *b, const struct figure *f)
{
    uint32_t n = b->options.repeat;
    const char *what = f->decode ? "decode" : "prefill";

    if (b->options.json) {
        printf("%s\n  {\"what\": \"%s\", \"numerics\": \"%s\", \"deterministic\": %s, "
               "\"threads\": %u, \"batch\": %u, \"prompt\": %u, \"tokens_per_second\": %.1f, "
               "\"min\": %.1f, \"max\": %.1f, \"runs\": %u}",
               b->first_row ? "[" : ",", what, f->numerics,
               b->options.deterministic ? "true" : "false", f->threads, f->batch, f->prompt,
               f->rates[n / 2], f->rates[0], f->rates[n - 1], n);
    } else {
        if (b->first_row) {
            printf("%-8s %-8s %7s %6s %7s %10s   %s\n", "what", "numerics", "threads", "batch",
                   "prompt", "tok/s", "slowest … fastest");
        }
        printf("%-8s %-8s %7u %6u %7u %10.1f   %.1f … %.1f\n", what, f->numerics, f->threads,
               f->batch, f->prompt, f->rates[n / 2], f->rates[0], f->rates[n - 1]);
    }
    fflush(stdout);
    b->first_row = false;
}

static int measure(struct bench *b, struct figure *f, struct llm_error *err)
{
    uint32_t tokens = f->decode ? b->options.tokens + 1 : 1;
    double warm_up;
    int rc = run(b, f->batch, f->prompt, tokens, &warm_up, err);

    for (uint32_t i = 0; rc == LLM_OK && i < b->options.repeat; i++) {
        rc = run(b, f->batch, f->prompt, tokens, &f->rates[i], err);
    }
    if (rc == LLM_OK) {
        qsort(f->rates, b->options.repeat, sizeof(f->rates[0]), ascending);
        print_figure(b, f);
    }
    return rc;
}

/* All figures of one backend, which is loaded for them. */
static int bench_backend(struct bench *b, const char *numerics, uint32_t threads,
                         struct llm_error *err)
{
    const struct llm_served_watch nobody = {0};
    const struct llm_sched_sink sink = {.ctx = b, .started = on_started, .token = on_token,
                                        .ended = on_ended, .retired = on_retired};
    struct figure f = {.numerics = numerics, .threads = threads};
    int rc;

    b->settings.threads = threads;
    b->settings.numerics = strcmp(numerics, "exact") == 0 ? LLM_NUMERICS_EXACT
                                                          : LLM_NUMERICS_DEFAULT;
    rc = llm_served_load(&b->served, &b->settings, &nobody, err);
    if (rc == LLM_OK) {
        rc = llm_sched_new(b->served.ops, b->served.backend,
                           &(struct llm_sched_options){
                               .max_batch_tokens = b->served.max_batch_tokens,
                               .max_seqs = b->served.max_seqs,
                               .n_vocab = b->served.n_vocab,
                           },
                           &sink, &b->sched, err);
    }

    f.batch = 1;
    for (uint32_t i = 0; rc == LLM_OK && i < b->prompts.n; i++) {
        f.prompt = b->prompts.values[i];
        rc = measure(b, &f, err);
    }
    f.decode = true;
    for (uint32_t i = 0; rc == LLM_OK && i < b->batches.n; i++) {
        f.batch = b->batches.values[i];
        f.prompt = b->batches.contexts[i];
        rc = measure(b, &f, err);
    }

    llm_sched_free(b->sched);
    b->sched = NULL;
    if (b->served.backend != NULL) {
        b->served.ops->free(b->served.backend);
        b->served.backend = NULL;
    }
    return rc;
}

static int bench_all(struct bench *b, struct llm_error *err)
{
    const char *modes = b->options.numerics != NULL ? b->options.numerics : "default";
    bool exact = strstr(modes, "exact") != NULL, normal = strstr(modes, "default") != NULL;
    int rc = LLM_OK;

    for (uint32_t i = 0; rc == LLM_OK && i < b->threads.n; i++) {
        if (normal) {
            rc = bench_backend(b, "default", b->threads.values[i], err);
        }
        if (rc == LLM_OK && exact) {
            rc = bench_backend(b, "exact", b->threads.values[i], err);
        }
    }
    if (b->options.json && !b->first_row) {
        puts("\n]");
    }
    return rc;
}

static int read_options(struct bench *b, int argc, char **argv, struct llm_error *err)
{
    struct options *o = &b->options;
    const char *modes;
    char cores[16];
    int rc;

    o->latent_dtype = -1;
    o->tokens = 128;
    o->context = SHORT_PROMPT;
    o->repeat = 5;
    rc = llm_options_parse(table, N_OPTIONS, o, argc, argv, err);
    if (rc != LLM_OK || o->help) {
        return rc;
    }
    if (o->model == NULL) {
        return llm_fail(err, LLM_EINVAL, "--model is missing: see --help");
    }
    modes = o->numerics != NULL ? o->numerics : "default";
    if (strcmp(modes, "default") != 0 && strcmp(modes, "exact") != 0 &&
        strcmp(modes, "default,exact") != 0) {
        return llm_fail(err, LLM_EINVAL, "--numerics wants default, exact or default,exact");
    }

    snprintf(cores, sizeof(cores), "%u", llm_usable_cores(""));
    rc = read_list("threads", o->threads != NULL ? o->threads : cores, 1, 1024, 0, &b->threads,
                   err);
    if (rc == LLM_OK) {
        rc = read_list("prompt", o->prompt != NULL ? o->prompt : "512,1024", SHORT_PROMPT + 1,
                       MAX_CONTEXT, 0, &b->prompts, err);
    }
    if (rc == LLM_OK) {
        rc = read_list("batch", o->batch != NULL ? o->batch : "1,8", 1, LLM_MAX_SEQS, o->context,
                       &b->batches, err);
    }
    b->settings = (struct llm_settings){
        .model = o->model,
        .device = o->device,
        .deterministic = o->deterministic,
        .latent_dtype = o->latent_dtype,
    };
    return rc;
}

/* Opens what is to be measured. Made-up weights have no tokenizer, and measuring needs none. */
static int open_model(struct bench *b, struct llm_error *err)
{
    int rc;

    if (b->options.load_format == LOAD_AUTO) {
        return llm_served_open(&b->served, &b->settings, err);
    }
    b->served = (struct llm_served){0};
    rc = llm_served_open_device(&b->served, &b->settings, err);
    if (rc == LLM_OK) {
        rc = llm_model_dummy(b->options.model, 0, &b->served.model, err);
    }
    if (rc == LLM_OK) {
        b->served.n_vocab = b->served.model->config.vocab_size;
    }
    return rc;
}

static int check_lengths(const struct bench *b, struct llm_error *err)
{
    uint32_t limit = b->served.model->config.max_positions;

    for (uint32_t i = 0; i < b->prompts.n; i++) {
        if (b->prompts.values[i] >= limit) {
            return llm_fail(err, LLM_EINVAL, "--prompt %u: the model has %u positions",
                            b->prompts.values[i], limit);
        }
    }
    for (uint32_t i = 0; i < b->batches.n; i++) {
        if (b->options.tokens + b->batches.contexts[i] >= limit) {
            return llm_fail(err, LLM_EINVAL, "--tokens %u after %u: the model has %u positions",
                            b->options.tokens, b->batches.contexts[i], limit);
        }
    }
    return LLM_OK;
}

int llm_cmd_bench(int argc, char **argv)
{
    struct bench b = {.first_row = true};
    struct llm_error err;
    int rc = read_options(&b, argc, argv, &err);
    int status = rc == LLM_OK ? LLM_EXIT_OK : LLM_EXIT_USAGE;

    if (rc == LLM_OK && b.options.help) {
        puts("usage: llm-engine bench --model DIR [OPTION]…\n");
        llm_options_print_help(table, N_OPTIONS);
    } else if (rc == LLM_OK) {
        llm_log_set_level(b.options.json ? LLM_LOG_NOTICE : LLM_LOG_INFO); /* what is loaded */
        rc = open_model(&b, &err);
        if (rc == LLM_OK) {
            rc = check_lengths(&b, &err);
            if (rc == LLM_OK) {
                rc = bench_all(&b, &err);
            }
            llm_served_close(&b.served);
        }
        status = rc == LLM_OK ? LLM_EXIT_OK : LLM_EXIT_ERROR;
    }
    if (rc != LLM_OK) {
        fprintf(stderr, "llm-engine bench: %s\n", err.text);
    }

    llm_options_free(table, N_OPTIONS, &b.options);
    return status;
}
