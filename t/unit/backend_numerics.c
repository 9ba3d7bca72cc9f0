/* The numbers of a backend, of the CPU's on every instruction set that this processor has: recorded
 * results, and batch invariance bit for bit. */

#include "kernels/cpu/kernels.h"
#include "t/golden.h"
#include "t/unit/backend.h"

/* Recorded results in exact mode, and with fp8 latents within the bound of t/golden.c. */
static void test_golden(const char *isa, enum llm_latent_dtype latents)
{
    static const char *const names[] = {"tiny-v2-grouped", "tiny-v2lite-yarn", "tiny-v3-fp8",
                                        "tiny-v3-noyarn", "tiny-v3-yarn"};
    struct golden_options o = {.device = device,
                               .numerics = latents == LLM_LATENT_F32 ? LLM_NUMERICS_EXACT
                                                                     : LLM_NUMERICS_DEFAULT,
                               .latent_dtype = latents,
                               .threads = 2,
                               .chunk = 50};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct golden_result r = {0};
        struct llm_error err = {0};
        struct golden g;
        int rc;

        if (!ok(golden_open(&g, golden_dir(names[i]), &err) == LLM_OK, "%s %s: opens", isa,
                names[i])) {
            diag("%s", err.text);
            continue;
        }
        rc = golden_run(&g, &o, &r, &err);
        if (latents == LLM_LATENT_FP8) {
            ok(rc == LLM_OK && r.row_l2 <= 0.1, "%s %s: fp8 latents, half of the rows %.2f %%",
               isa, names[i], 100 * r.row_l2);
        } else {
            ok(rc == LLM_OK && golden_has_layers(&g) && r.layer <= 2e-4 && r.logit <= 2e-4
                   && r.wrong == 0,
               "%s %s: layers %.1e, logits %.1e, %u greedy ids wrong", isa, names[i], r.layer,
               r.logit, r.wrong);
        }
        golden_close(&g);
    }
}

#define N_SEQS 4
#define LENGTH 150

static uint32_t argmax(const float *logits)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < vocab; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    return best;
}

/* One step with some of the sequences, each with some of the tokens it has left; logits of all its
 * rows are wanted, or a token from the last. True when these are what `want` says. */
static bool random_step(struct seq seqs[N_SEQS], const float *want)
{
    struct llm_step_seq parts[N_SEQS];
    struct llm_step step = {.seqs = parts};
    struct llm_step_result r;
    uint32_t tokens[MAX_ROWS], who[N_SEQS], first = rnd(N_SEQS), n_sampled = 0;
    uint8_t flags[MAX_ROWS] = {0};
    const float *logits;
    uint64_t ticket;
    bool same = true;

    for (uint32_t k = 0; k < N_SEQS; k++) {
        struct seq *q = &seqs[(first + k) % N_SEQS];
        uint32_t n = rnd(4) == 0 ? 0 : rnd(3) == 0 ? 1 : 1 + rnd(40);

        n = n < LENGTH - q->n ? n : LENGTH - q->n;
        if (n == 0) {
            continue;
        }
        who[step.n_seqs] = (first + k) % N_SEQS;
        parts[step.n_seqs++] = part(q, q->n, n);
        memcpy(tokens + step.n_rows, q->tokens + q->n, n * sizeof(*tokens));
        if (rnd(3) == 0) {
            flags[step.n_rows + n - 1] = LLM_ROW_SAMPLE;
        } else {
            memset(flags + step.n_rows, LLM_ROW_LOGITS, n);
        }
        step.n_rows += n;
        q->n += n;
    }
    if (step.n_seqs == 0) {
        return true;
    }

    step.tokens = tokens;
    step.flags = flags;
    if (ops->submit(b, &step, &ticket) != LLM_OK || ops->wait(b, ticket, &r, NULL) != LLM_OK) {
        return false;
    }
    logits = r.logits;
    for (uint32_t k = 0, row = 0; k < step.n_seqs; k++) {
        const float *w = want + ((size_t) who[k] * LENGTH + parts[k].position) * vocab;
        size_t n = parts[k].n_rows;

        row += parts[k].n_rows;
        if (flags[row - 1] == LLM_ROW_SAMPLE) {
            same &= n_sampled < r.n_sampled && r.sampled[n_sampled].row == row - 1
                    && r.sampled[n_sampled].tokens[0] == argmax(w + (n - 1) * vocab);
            n_sampled++;
        } else {
            same &= memcmp(logits, w, n * vocab * sizeof(*w)) == 0;
            logits += n * vocab;
        }
    }
    return same && n_sampled == r.n_sampled && logits == r.logits + (size_t) r.n_logits * vocab;
}

/* Logits of every position of some sequences: alone and whole, in chunks, and in random company,
 * in steps that stop anywhere. The same bits each time. */
static void test_invariance(const char *isa, const char *name, enum llm_latent_dtype latents)
{
    static const uint32_t chunks[] = {1, 7, 64, 100};
    struct llm_sampling s;
    struct seq seqs[N_SEQS];
    size_t row;
    float *want;
    bool same;

    start(name, latents);
    s = greedy();
    row = (size_t) vocab * sizeof(float);
    want = allocate(N_SEQS * LENGTH * row);
    for (uint32_t i = 0; i < N_SEQS; i++) {
        struct llm_step_result r;

        seqs[i] = make_seq(i, &s);
        r = run_one(&seqs[i], LENGTH, LLM_ROW_LOGITS, 0);
        memcpy(want + i * LENGTH * (size_t) vocab, r.logits, LENGTH * row);
    }

    for (size_t c = 0; c < sizeof(chunks) / sizeof(chunks[0]); c++) {
        same = true;
        for (seqs[0].n = 0; seqs[0].n < LENGTH;) {
            uint32_t at = seqs[0].n, n = LENGTH - at < chunks[c] ? LENGTH - at : chunks[c];
            struct llm_step_result r = run_one(&seqs[0], n, LLM_ROW_LOGITS, 0);

            same &= r.n_logits == n
                    && memcmp(r.logits, want + (size_t) at * vocab, n * row) == 0;
        }
        ok(same, "%s %s: chunks of %u give the same bits", isa, name, chunks[c]);
    }

    same = true;
    for (int round = 0; round < 3; round++) {
        uint32_t done = 0;

        for (uint32_t i = 0; i < N_SEQS; i++) {
            seqs[i].n = 0;
        }
        while (done < N_SEQS * LENGTH) {
            same &= random_step(seqs, want);
            done = 0;
            for (uint32_t i = 0; i < N_SEQS; i++) {
                done += seqs[i].n;
            }
        }
    }
    ok(same, "%s %s: random company gives the same bits", isa, name);
    free(want);
    stop();
}

static void test_numbers(const char *isa)
{
    test_golden(isa, LLM_LATENT_F32);
    test_golden(isa, LLM_LATENT_FP8);
    test_invariance(isa, "tiny-v3-fp8", LLM_LATENT_BF16);
    test_invariance(isa, "tiny-v2lite-yarn", LLM_LATENT_F32);
    test_invariance(isa, "tiny-v3-yarn", LLM_LATENT_FP8);
}

int main(void)
{
    static const char *const isas[] = {"scalar", "avx2", "avx512"};

    open_device();
    if (!on_cpu()) { /* the demo model is of the widths that the fast kernels are for */
        test_numbers("device");
        test_invariance("device", "models/demo", LLM_LATENT_BF16);
        test_invariance("device", "models/demo", LLM_LATENT_FP8);
        return done_testing();
    }
    for (int i = 0; i < 3; i++) {
        if (llm_cpu_kernels_pick(isas[i]) == NULL) {
            ok(i > 0, "%s # SKIP not on this processor", isas[i]);
            continue;
        }
        setenv("LLM_CPU_ISA", isas[i], 1);
        test_numbers(isas[i]);
    }
    return done_testing();
}
