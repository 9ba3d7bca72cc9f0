/* llm-golden [--device cpu|cuda[:N]] [--isa NAME] [--threads N] [--chunk N]
 *            [--numerics exact|default] [--latent-dtype f32|bf16|fp8] [--deterministic] DIR…
 *
 * Checks folders of recorded results (t/golden.h) through a backend's own batch path: five runs,
 * with prompts fed whole and in chunks of 1, 7, 64 and 100 tokens, or one with --chunk (0: whole).
 * Prints the largest differences, a line for each folder, and exits 1 when one is out of bounds:
 *
 *   exact    layers and logits within 2e-4, log-probabilities within 2e-3, greedy ids equal
 *   default  logits within 6 % (relative L2); of the demo model, the mean negative log-likelihood
 *            of its texts within 0.5 % of exact mode's, and greedy ids equal in the cases where the
 *            first candidate is always 0.25 (log-probability) ahead of the second
 *   fp8      (latents) the same likelihood; logits of half of the rows within 10 %: three bits of
 *            fraction put 2.5 % of noise on every latent, which some layers of random weights
 *            make several times as much, and where that turns a router's choice a row is
 *            another one altogether */

#include "t/golden.h"

#include <getopt.h>

#define MAX_DIFFERENCE 2e-4
#define MAX_LOGPROB 2e-3
#define MAX_L2 0.06
#define MAX_NLL 0.005
#define MAX_FP8_ROW_L2 0.1

static const uint32_t all_chunks[] = {0, 1, 7, 64, 100};

struct settings {
    struct golden_options golden;
    const uint32_t *chunks;
    uint32_t n_chunks, chunk;
};

static void usage(void)
{
    fputs("usage: llm-golden [--device cpu|cuda[:N]] [--isa scalar|avx2|avx512] [--threads N]\n"
          "                  [--chunk N] [--numerics exact|default]\n"
          "                  [--latent-dtype f32|bf16|fp8] [--deterministic] DIR...\n",
          stderr);
    exit(2);
}

static const char *const latent_dtypes[] = {
    [LLM_LATENT_F32] = "f32", [LLM_LATENT_BF16] = "bf16", [LLM_LATENT_FP8] = "fp8"};

static int parse_latent_dtype(const char *s)
{
    for (int i = 0; i < 3; i++) {
        if (strcmp(s, latent_dtypes[i]) == 0) {
            return i;
        }
    }
    usage();
    return -1;
}

static uint32_t parse_count(const char *s)
{
    char *end;
    unsigned long n = strtoul(s, &end, 10);

    if (*s == '\0' || *end != '\0' || n > 1u << 20) {
        usage();
    }
    return (uint32_t) n;
}

static void open_device(struct settings *s, const char *name)
{
    struct llm_error err;

    if (llm_device_open(name, NULL, &s->golden.device, &err) != LLM_OK) {
        fprintf(stderr, "llm-golden: %s\n", err.text);
        exit(1);
    }
}

static void parse_options(int argc, char **argv, struct settings *s)
{
    static const struct option options[] = {
        {"device", required_argument, NULL, 'd'},   {"isa", required_argument, NULL, 'i'},
        {"threads", required_argument, NULL, 't'},  {"chunk", required_argument, NULL, 'c'},
        {"numerics", required_argument, NULL, 'n'}, {"latent-dtype", required_argument, NULL, 'l'},
        {"deterministic", no_argument, NULL, 'D'},
        {NULL, 0, NULL, 0},
    };
    int latents = -1, c;

    *s = (struct settings){
        .golden = {.device.ops = &llm_backend_cpu, .numerics = LLM_NUMERICS_EXACT},
        .chunks = all_chunks,
        .n_chunks = sizeof(all_chunks) / sizeof(all_chunks[0]),
    };
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'd') {
            open_device(s, optarg);
        } else if (c == 'D') {
            s->golden.deterministic = true;
        } else if (c == 'i') {
            setenv("LLM_CPU_ISA", optarg, 1);
        } else if (c == 't') {
            s->golden.threads = parse_count(optarg);
        } else if (c == 'c') {
            s->chunk = parse_count(optarg);
            s->chunks = &s->chunk;
            s->n_chunks = 1;
        } else if (c == 'n' && strcmp(optarg, "default") == 0) {
            s->golden.numerics = LLM_NUMERICS_DEFAULT;
        } else if (c == 'l') {
            latents = parse_latent_dtype(optarg);
        } else if (c != 'n' || strcmp(optarg, "exact") != 0) {
            usage();
        }
    }
    if (optind == argc) {
        usage();
    }
    s->golden.latent_dtype = latents >= 0 ? (enum llm_latent_dtype) latents
                             : s->golden.numerics == LLM_NUMERICS_EXACT ? LLM_LATENT_F32
                                                                        : LLM_LATENT_BF16;
}

/* How far the texts' likelihood is from exact mode's, relative. */
static int compare_nll(const struct settings *s, const struct golden *g, double nll, double *off,
                       struct llm_error *err)
{
    struct golden_options exact = s->golden;
    struct golden_result r = {0};
    int rc;

    exact.numerics = LLM_NUMERICS_EXACT;
    exact.latent_dtype = LLM_LATENT_F32;
    rc = golden_run(g, &exact, &r, err);
    *off = fabs(nll / r.nll - 1);
    return rc;
}

static bool in_bounds(const struct settings *s, const struct golden *g,
                      const struct golden_result *r, double nll_off)
{
    bool fp8 = s->golden.latent_dtype == LLM_LATENT_FP8;

    if (s->golden.numerics == LLM_NUMERICS_EXACT) {
        return r->layer <= MAX_DIFFERENCE && r->logit <= MAX_DIFFERENCE
               && r->logprob <= MAX_LOGPROB && r->wrong == 0;
    }
    if (g->json != NULL) {
        return nll_off <= MAX_NLL && (fp8 || r->wrong_clear == 0);
    }
    return fp8 ? r->row_l2 <= MAX_FP8_ROW_L2 : r->logit_l2 <= MAX_L2;
}

static void print_result(const struct settings *s, const struct golden *g,
                         const struct golden_result *r, double nll_off)
{
    if (g->json != NULL) {
        printf("log-probabilities %.1e, ", r->logprob);
        if (s->golden.numerics == LLM_NUMERICS_DEFAULT) {
            printf("NLL %.4f, %.3f %% off, ", r->nll, 100 * nll_off);
        }
    } else if (s->golden.numerics == LLM_NUMERICS_EXACT) {
        if (golden_has_layers(g)) {
            printf("layers %.1e, ", r->layer);
        } else {
            printf("layers not recorded, ");
        }
        printf("logits %.1e, ", r->logit);
    } else {
        printf("logits %.2f %%, half of the rows %.2f %%, ", 100 * r->logit_l2, 100 * r->row_l2);
    }
    if (r->wrong == 0) {
        printf("greedy ids equal");
    } else {
        printf("%u greedy ids differ%s%s", r->wrong, g->json != NULL ? " in" : "",
               r->wrong_cases);
    }
}

static bool check(const struct settings *s, const char *dir)
{
    struct golden_options options = s->golden;
    struct golden_result r = {0};
    struct llm_error err;
    struct golden g;
    double nll_off = 0;
    bool good = false;
    int rc;

    printf("%s: ", dir);
    fflush(stdout);
    if (golden_open(&g, dir, &err) != LLM_OK) {
        puts(err.text);
        return false;
    }
    for (uint32_t i = 0; i < s->n_chunks; i++) {
        options.chunk = s->chunks[i];
        rc = golden_run(&g, &options, &r, &err);
        if (rc != LLM_OK) {
            puts(err.text);
            goto done;
        }
    }

    if (g.json != NULL && options.numerics == LLM_NUMERICS_DEFAULT) {
        rc = compare_nll(s, &g, r.nll, &nll_off, &err);
        if (rc != LLM_OK) {
            puts(err.text);
            goto done;
        }
    }
    good = in_bounds(s, &g, &r, nll_off);
    print_result(s, &g, &r, nll_off);
    puts(good ? "" : " -- OUT OF BOUNDS");

done:
    golden_close(&g);
    return good;
}

int main(int argc, char **argv)
{
    struct settings s;
    bool good = true;

    parse_options(argc, argv, &s);
    for (int i = optind; i < argc; i++) {
        good &= check(&s, argv[i]);
    }
    return good ? 0 : 1;
}
