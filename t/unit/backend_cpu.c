/* A backend through its interface: chaining, sampling, pages, slots and what it refuses. */

#include "engine/backend/philox.h"
#include "kernels/cpu/sample.h"
#include "t/unit/backend.h"

#include <math.h>

static char *page_bytes(uint32_t page)
{
    const struct llm_page_layout *l = &ops->info(b)->layout;
    char *p = allocate(l->page_bytes);
    uint64_t fence;

    ops->page_out(b, page, 0, l->n_planes, p, &fence);
    ops->fence_wait(b, fence);
    return p;
}

static void test_no_write(void)
{
    struct llm_sampling s = greedy();
    struct seq q = make_seq(0, &s);
    struct llm_step_result r = run_one(&q, 70, 0, LLM_ROW_LOGITS);
    float *want = allocate(vocab * sizeof(*want));
    char *before = page_bytes(q.pages[1]), *after;
    size_t size = ops->info(b)->layout.page_bytes;

    memcpy(want, r.logits, vocab * sizeof(*want));
    q.n--;
    r = run_one(&q, 1, LLM_ROW_NO_WRITE, LLM_ROW_LOGITS);
    ok(memcmp(want, r.logits, vocab * sizeof(*want)) == 0, "the last token once more: same bits");

    q.n -= 3;
    q.tokens[q.n] ^= 1;
    run_one(&q, 3, LLM_ROW_NO_WRITE, 0);
    after = page_bytes(q.pages[1]);
    ok(memcmp(before, after, size) == 0, "rows not to be written leave the page alone");
    free(after);

    q.n -= 3;
    run_one(&q, 3, 0, 0);
    after = page_bytes(q.pages[1]);
    ok(memcmp(before, after, size) != 0, "and other rows do not");

    ops->seq_free(b, q.slot);
    free(before);
    free(after);
    free(want);
}

/* The token just sampled as the next input, with two steps in flight, and step by step. */
static void test_chaining(void)
{
    enum { N = 40 };
    struct llm_sampling s = greedy();
    struct seq q;
    uint32_t want[N], got[N];
    struct llm_step_result r;
    uint64_t tickets[2];
    bool fine = true;

    s.temperature = 0.8f;
    s.seed = 11;
    q = make_seq(0, &s);
    r = run_one(&q, 20, 0, LLM_ROW_SAMPLE);
    for (uint32_t i = 0; i < N; i++) {
        want[i] = r.sampled[0].tokens[0];
        q.tokens[q.n] = want[i];
        r = run_one(&q, 1, 0, LLM_ROW_SAMPLE);
    }
    ops->seq_free(b, q.slot);

    q.slot = create(&s, NULL, 0);
    q.n = 0;
    fine &= submit_one(&q, 20, 0, LLM_ROW_SAMPLE, &tickets[0]) == LLM_OK;
    for (uint32_t i = 0; i < N; i++) {
        q.tokens[q.n] = LLM_TOKEN_LAST;
        fine &= submit_one(&q, 1, 0, LLM_ROW_SAMPLE, &tickets[(i + 1) % 2]) == LLM_OK;
        fine &= ops->wait(b, tickets[i % 2], &r, NULL) == LLM_OK && r.n_sampled == 1
                && r.sampled[0].n_tokens == 1;
        got[i] = r.sampled[0].tokens[0];
    }
    ops->wait(b, tickets[N % 2], &r, NULL);
    ok(fine && memcmp(want, got, sizeof(want)) == 0, "two steps in flight, chained on the device");
    ops->seq_free(b, q.slot);
}

static void test_sampling(void)
{
    struct llm_sampling s = greedy();
    const struct llm_cpu_kernels *k = llm_cpu_kernels_pick(getenv("LLM_CPU_ISA"));
    void *scratch = allocate(llm_cpu_sample_scratch(vocab));
    uint32_t tokens[3][30], mask[32] = {0}, bias_id = 17, n_same = 0;
    float bias = 1000;
    struct llm_step_result r;
    bool as_kernel = true, logprobs = true, distinct = true;
    struct seq q;

    if (vocab > 1024) {
        puts("Bail out! the test's mask is too small");
        exit(1);
    }

    s.temperature = 1.2f;
    s.top_p = 0.95f;
    s.top_k = 50;
    s.min_p = 0.001f;
    s.n_top_logprobs = 5;
    for (uint32_t run = 0; run < 3; run++) { /* twice one seed, then another choice of it */
        s.seed = 0x123456789abcdefu;
        s.choice = run / 2;
        q = make_seq(0, &s);
        memset(q.tokens, 0, sizeof(q.tokens));
        r = run_one(&q, 5, 0, LLM_ROW_SAMPLE | LLM_ROW_LOGITS);
        for (uint32_t i = 0; i < 30; i++) {
            const struct llm_sampled *t = &r.sampled[0];
            struct llm_cpu_sampling ks = {.n_vocab = vocab,
                                          .repetition_penalty = 1,
                                          .temperature = s.temperature,
                                          .top_p = s.top_p,
                                          .min_p = s.min_p,
                                          .top_k = s.top_k};
            float u = llm_philox_uniform(s.seed, q.n, s.choice, LLM_PHILOX_SAMPLE);
            double sum = 0;

            as_kernel &= t->tokens[0] == llm_cpu_sample(k, &ks, r.logits, u, scratch);
            for (uint32_t j = 0; j < vocab; j++) {
                sum += exp(r.logits[j]);
            }
            logprobs &= t->n_top == 5
                        && fabs(t->logprobs[0] - (r.logits[t->tokens[0]] - log(sum))) < 1e-4;
            for (uint32_t j = 0; j < t->n_top; j++) {
                logprobs &= fabs(t->top_logprobs[j] - (r.logits[t->top_ids[j]] - log(sum))) < 1e-4
                            && (j == 0 || t->top_logprobs[j] <= t->top_logprobs[j - 1]);
            }
            tokens[run][i] = q.tokens[q.n] = t->tokens[0];
            r = run_one(&q, 1, 0, LLM_ROW_SAMPLE | LLM_ROW_LOGITS);
        }
        ops->seq_free(b, q.slot);
    }
    ok(as_kernel, "tokens by Philox of seed, position and choice");
    ok(logprobs, "log-probabilities of the model's own logits");
    ok(memcmp(tokens[0], tokens[1], sizeof(tokens[0])) == 0, "one seed, one answer");
    for (uint32_t i = 0; i < 30; i++) {
        n_same += tokens[0][i] == tokens[2][i];
    }
    ok(n_same < 25, "another choice of the same seed is another answer");

    s = greedy();
    s.presence_penalty = 1000;
    q = make_seq(0, &s);
    r = run_one(&q, 5, 0, LLM_ROW_SAMPLE);
    for (uint32_t i = 0; i < 30; i++) {
        tokens[0][i] = r.sampled[0].tokens[0];
        for (uint32_t j = 0; j < i; j++) {
            distinct &= tokens[0][j] != tokens[0][i];
        }
        q.tokens[q.n] = tokens[0][i];
        r = run_one(&q, 1, 0, LLM_ROW_SAMPLE);
    }
    ok(distinct, "a presence penalty without end: no token twice");
    ops->seq_free(b, q.slot);

    s = greedy();
    q = make_seq(0, &s);
    r = run_one(&q, 5, 0, LLM_ROW_SAMPLE);
    tokens[0][0] = r.sampled[0].tokens[0];
    ops->seq_free(b, q.slot);
    s.repetition_penalty = 1e6f;
    q.slot = create(&s, tokens[0], 1);
    q.n = 0;
    r = run_one(&q, 5, 0, LLM_ROW_SAMPLE);
    ok(r.sampled[0].tokens[0] != tokens[0][0], "the repetition penalty knows the prompt");
    ops->seq_free(b, q.slot);

    s = greedy();
    s.n_bias = 1;
    s.bias_ids = &bias_id;
    s.bias = &bias;
    q.slot = create(&s, NULL, 0);
    bias_id = 3; /* copied at create */
    q.n = 0;
    r = run_one(&q, 5, 0, LLM_ROW_SAMPLE);
    is_int(r.sampled[0].tokens[0], 17, "a bias");
    ops->seq_free(b, q.slot);

    s = greedy();
    q.slot = create(&s, NULL, 0);
    mask[2] = 1u << 5;
    {
        struct llm_step_seq p = part(&q, 0, 1);
        uint8_t flags = LLM_ROW_SAMPLE;
        uint64_t ticket;

        p.mask = mask;
        ops->submit(b,
                    &(struct llm_step){.seqs = &p,
                                       .n_seqs = 1,
                                       .tokens = q.tokens,
                                       .flags = &flags,
                                       .n_rows = 1},
                    &ticket);
        mask[2] = 0; /* copied at submit */
        ops->wait(b, ticket, &r, NULL);
    }
    is_int(r.sampled[0].tokens[0], 69, "a mask");
    ops->seq_free(b, q.slot);
    free(scratch);
}

/* A sequence that loses its slot and is given another goes on as if nothing had been. */
static void test_anew(void)
{
    struct llm_sampling s = greedy();
    struct llm_step_result r;
    struct seq q, again;
    uint32_t want[4];

    s.frequency_penalty = 0.5f;
    s.repetition_penalty = 1.2f;
    q = make_seq(0, &s);
    ops->seq_free(b, q.slot);
    q.slot = create(&s, q.tokens, 5);
    again = q;
    r = run_one(&q, 5, 0, LLM_ROW_SAMPLE);
    for (uint32_t i = 0; i < 4; i++) {
        want[i] = r.sampled[0].tokens[0];
        again.tokens[5 + i] = want[i];
        q.tokens[q.n] = LLM_TOKEN_LAST;
        r = run_one(&q, 1, 0, LLM_ROW_SAMPLE);
    }
    ops->seq_free(b, q.slot);

    again.n = 8; /* the rows of three sampled tokens are in the pages */
    is_int(ops->seq_create(b, &s, again.tokens, 5, 4, &again.slot), LLM_OK, "a slot anew");
    again.tokens[8] = LLM_TOKEN_LAST;
    is_int(run_one(&again, 1, 0, LLM_ROW_SAMPLE).sampled[0].tokens[0], r.sampled[0].tokens[0],
           "with the last token and the counts it had");
    ops->seq_free(b, again.slot);
}

/* One sequence's latents are NaN; its batch mate must not notice. */
static void test_nan(void)
{
    struct llm_sampling s = greedy();
    struct seq sick = make_seq(0, &s), well = make_seq(1, &s);
    const struct llm_page_layout *l = &ops->info(b)->layout;
    char *poison = allocate(l->page_bytes);
    float *want = allocate(vocab * sizeof(*want));
    struct llm_step_seq parts[2];
    uint32_t tokens[2];
    uint8_t flags[2] = {LLM_ROW_SAMPLE | LLM_ROW_LOGITS, LLM_ROW_SAMPLE | LLM_ROW_LOGITS};
    struct llm_step step = {
        .seqs = parts, .n_seqs = 2, .tokens = tokens, .flags = flags, .n_rows = 2};
    struct llm_step_result r;
    uint64_t ticket;

    memset(poison, 0xff, l->page_bytes);
    run_one(&sick, 70, 0, LLM_ROW_SAMPLE);
    run_one(&well, 70, 0, LLM_ROW_SAMPLE);
    r = run_one(&well, 1, 0, LLM_ROW_LOGITS);
    memcpy(want, r.logits, vocab * sizeof(*want));
    ops->page_in(b, sick.pages[0], 0, l->n_planes, poison, &step.fence);

    parts[0] = part(&sick, 70, 1);
    parts[1] = part(&well, 70, 1);
    tokens[0] = sick.tokens[70];
    tokens[1] = well.tokens[70];
    ops->submit(b, &step, &ticket);
    ops->wait(b, ticket, &r, NULL);
    is_int(r.sampled[0].n_tokens, 0, "no token from logits that are not finite");
    ok(r.sampled[1].n_tokens == 1
           && memcmp(want, r.logits + vocab, vocab * sizeof(*want)) == 0,
       "its batch mate has the same bits as without it");

    for (uint32_t i = 0; i < 2; i++) {
        ops->page_clear(b, sick.pages[i]);
    }
    sick.tokens[71] = LLM_TOKEN_LAST;
    sick.n = 71;
    r = run_one(&sick, 1, 0, LLM_ROW_SAMPLE);
    is_int(r.sampled[0].n_tokens, 0, "the sequence is over, whatever comes after");

    ops->seq_free(b, sick.slot);
    ops->seq_free(b, well.slot);
    free(poison);
    free(want);
}

static bool all_zero(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (p[i] != 0) {
            return false;
        }
    }
    return true;
}

static void test_pages(void)
{
    enum { LENGTH = 100 };
    struct llm_sampling s = greedy();
    struct seq q = make_seq(0, &s), moved = make_seq(3, &s);
    const struct llm_page_layout *l = &ops->info(b)->layout;
    float *want = allocate(vocab * sizeof(*want));
    struct llm_step_result r;
    char *host[2], *bytes, *whole;
    uint64_t fence;
    bool same = true;

    run_one(&q, LENGTH, 0, 0);
    for (int i = 0; i < 2; i++) {
        host[i] = page_bytes(q.pages[i]);
    }
    r = run_one(&q, 1, 0, LLM_ROW_LOGITS);
    memcpy(want, r.logits, vocab * sizeof(*want));

    for (int i = 0; i < 2; i++) {
        ops->page_clear(b, q.pages[i]);
        bytes = page_bytes(q.pages[i]);
        same &= all_zero(bytes, l->page_bytes);
        free(bytes);
    }
    ok(same, "a cleared page is zero");

    /* to other pages, plane by plane */
    for (int i = 0; i < 2; i++) {
        for (uint32_t p = 0; p < l->n_planes; p++) {
            same &= ops->page_in(b, moved.pages[i], p, 1, host[i] + l->planes[p].offset, &fence)
                    == LLM_OK;
        }
    }
    ops->fence_wait(b, fence);
    moved.tokens[LENGTH] = q.tokens[LENGTH];
    moved.n = LENGTH;
    r = run_one(&moved, 1, 0, LLM_ROW_LOGITS);
    ok(same && memcmp(want, r.logits, vocab * sizeof(*want)) == 0,
       "out of the pool and in elsewhere: the next token has the same bits");
    ok(ops->fence_done(b, fence), "and the fence is done");

    ops->page_copy(b, moved.pages[1], q.pages[1], 10);
    bytes = page_bytes(q.pages[1]);
    same = true;
    for (uint32_t p = 0; p < l->n_planes; p++) {
        const char *to = bytes + l->planes[p].offset, *from = host[1] + l->planes[p].offset;
        size_t n = 10 * (size_t) l->planes[p].row_bytes;

        same &= memcmp(to, from, n) == 0
                && all_zero(to + n, LLM_PAGE_TOKENS * (size_t) l->planes[p].row_bytes - n);
    }
    ok(same, "ten rows of every plane are copied, no more");

    for (uint64_t i = 0; i < l->page_bytes; i++) {
        bytes[i] = (char) (i % 251);
    }
    ops->page_in(b, moved.pages[0], 0, l->n_planes, bytes, &fence);
    whole = page_bytes(moved.pages[0]);
    ok(memcmp(whole, bytes, l->page_bytes) == 0, "a whole page, in and out: all of its bytes");
    free(whole);

    is_int(ops->page_copy(b, 0, N_PAGES * 1000000u, 1), LLM_EINVAL, "copy to no page");
    is_int(ops->page_copy(b, 0, 1, LLM_PAGE_TOKENS + 1), LLM_EINVAL, "copy of too many rows");
    is_int(ops->page_clear(b, UINT32_MAX), LLM_EINVAL, "clearing no page");
    is_int(ops->page_in(b, 0, 1, l->n_planes, bytes, &fence), LLM_EINVAL, "planes in beyond");
    is_int(ops->page_out(b, 0, UINT32_MAX, 2, bytes, &fence), LLM_EINVAL, "planes out beyond");

    ops->seq_free(b, q.slot);
    ops->seq_free(b, moved.slot);
    for (int i = 0; i < 2; i++) {
        free(host[i]);
    }
    free(bytes);
    free(want);
}

static float bf16_at(const char *p)
{
    uint16_t h;
    uint32_t u;
    float f;

    memcpy(&h, p, sizeof(h));
    u = (uint32_t) h << 16;
    memcpy(&f, &u, sizeof(f));
    return f;
}

static float e4m3_at(const char *p)
{
    uint8_t c = (uint8_t) *p;
    int exponent = c >> 3 & 15, mantissa = c & 7;
    double v = exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, exponent - 10);

    return (float) (c & 0x80 ? -v : v);
}

/* Element i of a row as plane.h lays it out. */
static float element(const struct llm_page_layout *l, const char *row, uint32_t i)
{
    uint32_t rank = l->planes[0].rank, n_scales = (rank + 127) / 128;
    float f;

    switch (l->dtype) {
    case LLM_LATENT_F32:
        memcpy(&f, row + 4 * i, sizeof(f));
        return f;
    case LLM_LATENT_BF16:
        return bf16_at(row + 2 * i);
    default:
        memcpy(&f, row + rank + i / 128 * 4, sizeof(f));
        return i < rank ? f * e4m3_at(row + i)
                        : bf16_at(row + rank + n_scales * 4 + 2 * (i - rank));
    }
}

/* The rows that a prompt leaves in the first plane, which no latent was read for yet, in all forms:
 * each as near to f32's as the form can be, and nothing of what was in the page before. */
static void test_rows(void)
{
    enum { LENGTH = 60 };
    static const enum llm_latent_dtype dtypes[] = {LLM_LATENT_F32, LLM_LATENT_BF16,
                                                   LLM_LATENT_FP8};
    char *pages[3];
    uint8_t ids[3][16];
    uint32_t tokens[LENGTH];

    for (int d = 0; d < 3; d++) {
        struct llm_sampling s;
        struct seq q;
        uint64_t bytes, fence;

        start("tiny-v3-fp8", dtypes[d]);
        memcpy(ids[d], ops->info(b)->numerics_id, sizeof(ids[d]));
        bytes = ops->info(b)->layout.page_bytes;
        s = greedy();
        q = make_seq(0, &s);
        if (d == 0) {
            memcpy(tokens, q.tokens, sizeof(tokens));
        }
        memcpy(q.tokens, tokens, sizeof(tokens));
        pages[d] = allocate(bytes);
        memset(pages[d], 0xff, bytes);
        ops->page_in(b, q.pages[0], 0, ops->info(b)->layout.n_planes, pages[d], &fence);
        ops->fence_wait(b, fence);
        free(pages[d]);
        run_one(&q, LENGTH, 0, 0);
        pages[d] = page_bytes(q.pages[0]);
        stop();
    }
    ok(memcmp(ids[0], ids[1], 16) != 0 && memcmp(ids[0], ids[2], 16) != 0
           && memcmp(ids[1], ids[2], 16) != 0,
       "their pages cannot be mixed up");

    for (int d = 1; d < 3; d++) {
        struct llm_page_layout want, got;
        bool near = true, padded = true;
        uint32_t rank, rope, used;
        struct llm_error err;

        llm_model_open(golden_dir("tiny-v3-fp8"), &model, &err);
        llm_page_layout_init(&want, &model->config, dtypes[0], &err);
        llm_page_layout_init(&got, &model->config, dtypes[d], &err);
        rank = got.planes[0].rank, rope = got.planes[0].rope;
        used = got.planes[0].rope_offset + 2 * rope;
        for (uint32_t r = 0; r < LENGTH; r++) {
            const char *a = pages[0] + r * want.planes[0].row_bytes;
            const char *z = pages[d] + r * got.planes[0].row_bytes;
            float largest[2] = {0};

            for (uint32_t i = 0; i < rank; i++) {
                largest[i / 128] = fmaxf(largest[i / 128], fabsf(element(&want, a, i)));
            }
            for (uint32_t i = 0; i < rank + rope; i++) {
                float w = element(&want, a, i), off = fabsf(element(&got, z, i) - w);

                near &= d == 2 && i < rank ? off <= fabsf(w) / 16 + largest[i / 128] / 448 / 1024
                                           : off <= fabsf(w) / 256;
            }
            padded &= all_zero(z + used, got.planes[0].row_bytes - used);
        }
        ok(near, "%s rows: every element to the nearest", d == 1 ? "bf16" : "fp8");
        ok(padded, "zeros after them");
        llm_page_layout_free(&want);
        llm_page_layout_free(&got);
        llm_model_close(model);
    }
    for (int d = 0; d < 3; d++) {
        free(pages[d]);
    }
}

/* Every step that is wrong in itself, each by one change to a right one. */
static void test_refusals(void)
{
    enum { N_WRONG = 17 };
    struct llm_sampling s = greedy();
    struct seq q = make_seq(0, &s), other = make_seq(1, &s);
    uint32_t bad_pages[SEQ_PAGES] = {0, ops->info(b)->n_pages}, gone = create(&s, NULL, 0);
    struct llm_step_result r;
    uint64_t ticket, tickets[3];

    ops->seq_free(b, gone);
    for (int i = -1; i < N_WRONG; i++) {
        struct llm_step_seq p[2] = {part(&q, 62, 3), part(&other, 0, 1)};
        uint32_t tokens[4] = {1, 2, 3, 4};
        uint8_t flags[4] = {0, 0, LLM_ROW_SAMPLE, LLM_ROW_LOGITS};
        struct llm_step step = {
            .seqs = p, .n_seqs = 2, .tokens = tokens, .flags = flags, .n_rows = 4};
        const char *what = "nothing";

        switch (i) {
        case 0: what = "a slot that was freed"; p[0].slot = gone; break;
        case 1: what = "no such slot"; p[0].slot = MAX_SEQS; break;
        case 2: what = "a slot twice"; p[1].slot = p[0].slot; break;
        case 3: what = "no rows of a sequence"; p[0].n_rows = 0; step.n_rows = 1; break;
        case 4: what = "fewer rows than the sequences have"; step.n_rows = 3; break;
        case 5: what = "more rows than the sequences have"; p[0].n_rows = 2; flags[1] = 0; break;
        case 6: what = "a position beyond the context"; p[0].position = MAX_CONTEXT - 2; break;
        case 7: what = "a position that wraps"; p[0].position = UINT32_MAX - 1; break;
        case 8: what = "a page beyond the pool"; p[0].pages = bad_pages; break;
        case 9: what = "a token beyond the vocabulary"; tokens[0] = vocab; break;
        case 10: what = "the last token of a new sequence"; tokens[0] = LLM_TOKEN_LAST; break;
        case 11: what = "sampling before the last row"; flags[1] = LLM_ROW_SAMPLE; break;
        case 12: what = "an unknown flag"; flags[0] = 8; break;
        case 13: what = "drafts"; p[0].n_draft = 1; break;
        case 14: what = "a fence to come"; step.fence = 1u << 30; break;
        case 15: what = "no rows"; step.n_seqs = 0; step.n_rows = 0; break;
        case 16: what = "more rows than a step may have"; step.n_rows = MAX_ROWS + 1; break;
        }
        is_int(ops->submit(b, &step, &ticket), i < 0 ? LLM_OK : LLM_EINVAL, "%s wrong: %s",
               i < 0 ? "nothing" : "a step", what);
        if (i < 0) {
            ops->wait(b, ticket, &r, NULL);
            ok(r.n_sampled == 1 && r.sampled[0].row == 2 && r.n_logits == 1 && r.ns > 0,
               "and its results");
            ops->seq_free(b, q.slot); /* forget the sampled token */
            q.slot = create(&s, NULL, 0);
        }
    }

    q.n = other.n = 0;
    submit_one(&q, 1, 0, 0, &tickets[0]);
    submit_one(&other, 1, 0, 0, &tickets[1]);
    q.n = 0;
    is_int(submit_one(&q, 1, 0, 0, &tickets[2]), LLM_EAGAIN, "a third step in flight");
    is_int(ops->wait(b, tickets[1], &r, NULL), LLM_EINVAL, "waiting out of order");
    ok(ops->wait(b, tickets[0], &r, NULL) == LLM_OK && ops->wait(b, tickets[1], &r, NULL) == LLM_OK,
       "waiting in order");
    is_int(ops->wait(b, tickets[1], &r, NULL), LLM_EINVAL, "waiting twice");
    ops->seq_free(b, q.slot);
    ops->seq_free(b, other.slot);
}

static void test_slots(void)
{
    struct llm_sampling s = greedy(), bad;
    uint32_t slots[MAX_SEQS], slot, wrong_id = vocab;
    float nan = NAN, plus = INFINITY, zero = 0;
    uint64_t ticket;
    struct llm_step_result r;
    struct seq q;
    bool fine = true;

    for (uint32_t i = 0; i < MAX_SEQS; i++) {
        fine &= ops->seq_create(b, &s, NULL, 0, 0, &slots[i]) == LLM_OK;
    }
    ok(fine, "as many slots as asked for");
    is_int(ops->seq_create(b, &s, NULL, 0, 0, &slot), LLM_ENOMEM, "and no more");

    /* freed while a step names it: the slot comes back once the step has run */
    q = make_seq(0, &s);
    q.slot = slots[0];
    submit_one(&q, 100, 0, 0, &ticket);
    ops->seq_free(b, slots[0]);
    is_int(ops->seq_create(b, &s, NULL, 0, 0, &slot), LLM_OK, "a slot freed in flight comes back");
    is_int(ops->wait(b, ticket, &r, NULL), LLM_OK, "and its step's results too");
    ops->seq_free(b, slot);
    for (uint32_t i = 1; i < MAX_SEQS; i++) {
        ops->seq_free(b, slots[i]);
    }
    ops->seq_free(b, slots[1]);
    ops->seq_free(b, UINT32_MAX);

    for (int i = 0; i < 12; i++) {
        bad = s;
        bad.temperature = i == 0 ? -1 : i == 1 ? NAN : 1;
        bad.top_p = i == 2 ? 1.5f : i == 3 ? NAN : 1;
        bad.min_p = i == 4 ? -0.1f : 0;
        bad.repetition_penalty = i == 5 ? 0 : 1;
        bad.presence_penalty = i == 6 ? NAN : 0;
        bad.n_vocab = i == 7 ? vocab + 1 : i == 8 ? 0 : vocab;
        bad.n_top_logprobs = i == 9 ? LLM_MAX_TOP_LOGPROBS + 1 : 0;
        bad.n_bias = i >= 10;
        bad.bias_ids = i == 10 ? &wrong_id : slots;
        bad.bias = i == 11 ? &nan : &zero;
        is_int(ops->seq_create(b, &bad, NULL, 0, 0, &slot), LLM_EINVAL, "sampling refused, %d", i);
    }
    bad = s;
    bad.n_bias = 1;
    bad.bias_ids = slots;
    bad.bias = &plus;
    is_int(ops->seq_create(b, &bad, NULL, 0, 0, &slot), LLM_EINVAL, "a bias without end");
}

struct counts {
    uint32_t beats, taps, rows;
};

static void count_beat(void *ctx)
{
    ((struct counts *) ctx)->beats++;
}

static void count_tap(void *ctx, uint32_t layer, const float *x, uint32_t n_rows, uint32_t hidden)
{
    struct counts *c = ctx;

    c->rows += layer == c->taps && x != NULL && hidden == model->config.hidden_size ? n_rows : 0;
    c->taps++;
}

static void test_load(void)
{
    struct llm_backend_options o = options(LLM_LATENT_F32);
    struct counts c = {0};
    struct llm_sampling s;
    struct llm_error err;
    struct seq q;

    if (llm_model_open(golden_dir("tiny-v3-yarn"), &model, &err) != LLM_OK) {
        printf("Bail out! %s\n", err.text);
        exit(1);
    }
    vocab = model->config.vocab_size;

    o.latent_bytes = 1000;
    is_int(ops->load(model, &o, &b, &err), LLM_ENOMEM, "a pool smaller than a page");
    o.latent_bytes = 1ull << 50;
    is_int(ops->load(model, &o, &b, &err), LLM_ENOMEM, "a pool larger than memory");
    ok(strstr(err.text, "missing") != NULL, "which says how much is missing");
    o = options(LLM_LATENT_F32);
    o.max_batch_tokens = 1 << 28;
    is_int(ops->load(model, &o, &b, &err), LLM_ENOMEM, "steps larger than memory");
    o = options(LLM_LATENT_F32);
    o.max_seqs = 0;
    is_int(ops->load(model, &o, &b, &err), LLM_EINVAL, "no sequences");
    o = options(LLM_LATENT_F32);
    if (on_cpu()) {
        setenv("LLM_CPU_ISA", "abacus", 1);
        is_int(ops->load(model, &o, &b, &err), LLM_EUNSUPPORTED, "an unknown instruction set");
        unsetenv("LLM_CPU_ISA");
    }

    o.beat = count_beat;
    o.beat_ctx = &c;
    o.tap = count_tap;
    o.tap_ctx = &c;
    is_int(ops->load(model, &o, &b, &err), LLM_OK, "load");
    is_int(ops->info(b)->layout.n_planes, model->config.n_layers + model->config.n_mtp_layers,
           "a plane for every layer, MTP too");
    s = greedy();
    q = make_seq(0, &s);
    run_one(&q, 9, 0, 0);
    is_int(c.beats, model->config.n_layers, "a beat a layer");
    is_int(c.rows, 9 * model->config.n_layers, "every layer's rows through the tap");
    stop();
}

int main(void)
{
    static const enum llm_latent_dtype dtypes[] = {LLM_LATENT_F32, LLM_LATENT_BF16,
                                                   LLM_LATENT_FP8};

    open_device();
    for (int i = 0; i < 3; i++) {
        start("tiny-v3-yarn", dtypes[i]);
        test_no_write();
        test_chaining();
        test_sampling();
        test_anew();
        test_nan();
        test_pages();
        test_refusals();
        test_slots();
        stop();
    }
    test_rows();
    test_load();
    return done_testing();
}
