/* A backend on a tiny model, with a handful of sequences: for the unit tests of backends.
 * device.h says which. */

#ifndef T_UNIT_BACKEND_H
#define T_UNIT_BACKEND_H

#include "t/unit/device.h"
#include "t/unit/tap.h"

#define MAX_SEQS 6
#define MAX_CONTEXT 310
#define MAX_ROWS 160
#define N_PAGES 40
#define SEQ_PAGES ((MAX_CONTEXT + LLM_PAGE_TOKENS - 1) / LLM_PAGE_TOKENS)

static struct llm_device device = {&llm_backend_cpu, 0};
static const struct llm_backend_ops *ops = &llm_backend_cpu;
static struct llm_model *model;
static struct llm_backend *b;
static uint32_t vocab;

static uint64_t random_state = 3;

static uint32_t rnd(uint32_t below)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t) (random_state >> 33) % below;
}

static void *allocate(size_t n)
{
    void *p = calloc(1, n);

    if (p == NULL) {
        puts("Bail out! out of memory");
        exit(1);
    }
    return p;
}

/* Of a name with a slash: the directory itself. */
static const char *golden_dir(const char *name)
{
    static char path[512];

    if (strchr(name, '/') != NULL) {
        return name;
    }
    snprintf(path, sizeof(path), "%s/golden/%s", build_dir(), name);
    return path;
}

/* True when the backend under test is the CPU's. */
static bool on_cpu(void)
{
    return ops == &llm_backend_cpu;
}

static void open_device(void)
{
    device = test_device();
    ops = device.ops;
}

static struct llm_backend_options options(enum llm_latent_dtype latents)
{
    return (struct llm_backend_options){
        .numerics = latents == LLM_LATENT_F32 ? LLM_NUMERICS_EXACT : LLM_NUMERICS_DEFAULT,
        .latent_dtype = latents,
        .latent_bytes = 64 << 20,
        .max_context = MAX_CONTEXT,
        .max_batch_tokens = MAX_ROWS,
        .max_seqs = MAX_SEQS,
        .deterministic = !on_cpu(), /* the CPU's always is */
        .threads = 3,
        .device = device.index,
    };
}

static void start(const char *name, enum llm_latent_dtype latents)
{
    struct llm_backend_options o = options(latents);
    struct llm_error err;

    if (llm_model_open(golden_dir(name), &model, &err) != LLM_OK
        || ops->load(model, &o, &b, &err) != LLM_OK) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    vocab = model->config.vocab_size;
}

static void stop(void)
{
    ops->free(b);
    llm_model_close(model);
}

static struct llm_sampling greedy(void)
{
    return (struct llm_sampling){.top_p = 1, .repetition_penalty = 1, .n_vocab = vocab};
}

/* A sequence with its own slot and pages. */
struct seq {
    uint32_t slot, n;
    uint32_t pages[SEQ_PAGES];
    uint32_t tokens[MAX_CONTEXT];
};

static uint32_t create(const struct llm_sampling *s, const uint32_t *prompt, uint32_t n)
{
    uint32_t slot = UINT32_MAX;

    ops->seq_create(b, s, prompt, n, 0, &slot);
    return slot;
}

/* Number i of the pages' owners: its pages lie scattered over the pool. */
static struct seq make_seq(uint32_t i, const struct llm_sampling *s)
{
    struct seq q = {.slot = create(s, NULL, 0)};

    for (uint32_t j = 0; j < SEQ_PAGES; j++) {
        q.pages[j] = (j * 7 + i * SEQ_PAGES + 3) % N_PAGES;
    }
    for (uint32_t j = 0; j < MAX_CONTEXT; j++) {
        q.tokens[j] = rnd(vocab);
    }
    return q;
}

static struct llm_step_seq part(const struct seq *q, uint32_t position, uint32_t n)
{
    return (struct llm_step_seq){
        .slot = q->slot, .position = position, .n_rows = n, .pages = q->pages};
}

/* One sequence's tokens from q->n on, all rows with these flags, the last with `last` beside. */
static int submit_one(struct seq *q, uint32_t n, uint8_t flags, uint8_t last, uint64_t *ticket)
{
    struct llm_step_seq s = part(q, q->n, n);
    uint8_t all[MAX_ROWS];

    memset(all, flags, n);
    all[n - 1] |= last;
    q->n += n;
    return ops->submit(b,
                       &(struct llm_step){.seqs = &s,
                                          .n_seqs = 1,
                                          .tokens = q->tokens + q->n - n,
                                          .flags = all,
                                          .n_rows = n},
                       ticket);
}

static struct llm_step_result run_one(struct seq *q, uint32_t n, uint8_t flags, uint8_t last)
{
    struct llm_step_result r = {0};
    uint64_t ticket;

    if (submit_one(q, n, flags, last, &ticket) == LLM_OK) {
        ops->wait(b, ticket, &r, NULL);
    }
    return r;
}

#endif
