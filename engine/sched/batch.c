#include "engine/sched/batch.h"

#include "engine/base/clock.h"
#include "engine/sched/sched_internal.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A step that reads prompts has at least so many rows of them, however long it takes. */
#define MIN_CHUNK 16

int llm_batch_init(struct llm_batch *b, uint32_t max_rows, uint32_t max_seqs)
{
    *b = (struct llm_batch){.max_rows = max_rows, .max_seqs = max_seqs};

    b->seqs = calloc(max_seqs, sizeof(*b->seqs));
    b->members = calloc(max_seqs, sizeof(*b->members));
    b->payers = calloc(max_seqs, sizeof(*b->payers));
    b->readers = calloc(max_seqs, sizeof(*b->readers));
    b->tokens = calloc(max_rows, sizeof(*b->tokens));
    b->flags = calloc(max_rows, sizeof(*b->flags));
    if (b->seqs == NULL || b->members == NULL || b->payers == NULL || b->readers == NULL ||
        b->tokens == NULL || b->flags == NULL) {
        llm_batch_free(b);
        return LLM_ENOMEM;
    }

    return LLM_OK;
}

void llm_batch_free(struct llm_batch *b)
{
    free(b->seqs);
    free(b->members);
    free(b->payers);
    free(b->readers);
    free(b->tokens);
    free(b->flags);
    *b = (struct llm_batch){0};
}

/* Writes the next n_rows rows of q: tokens that are known, or the one sampled last. */
static void write_rows(struct llm_batch *b, const struct llm_sequence *q, uint32_t n_rows)
{
    uint32_t *tokens = b->tokens + b->n_rows;
    uint8_t *flags = b->flags + b->n_rows;

    if (q->position < q->n_known) {
        memcpy(tokens, q->tokens + q->position, n_rows * sizeof(*tokens));
    } else {
        tokens[0] = LLM_TOKEN_LAST;
    }
    memset(flags, q->position < q->n_there ? LLM_ROW_NO_WRITE : 0, n_rows);
    if (q->position + n_rows >= q->n_known) {
        flags[n_rows - 1] |= LLM_ROW_SAMPLE;
    }
}

/* Takes in the next n_rows rows of q on the turn of `payer`, at what they cost in steps of their
 * kind. */
static void add(struct llm_sched *s, struct llm_batch *b, struct llm_sequence *q, uint32_t n_rows,
                struct llm_tenant *payer, const struct llm_cost *cost)
{
    struct llm_work part = llm_work_of(q->position, n_rows);

    assert((uint64_t) q->position + n_rows <= (uint64_t) q->n_pages * LLM_PAGE_TOKENS);
    assert(b->n_seqs < b->max_seqs && n_rows <= b->max_rows - b->n_rows);
    assert(q->step != s->n_steps);

    write_rows(b, q, n_rows);
    b->seqs[b->n_seqs] = (struct llm_step_seq){
        .slot = q->slot,
        .position = q->position,
        .n_rows = n_rows,
        .pages = q->pages,
        .mask = q->asked < q->request->min_tokens ? q->mask : NULL,
    };
    b->members[b->n_seqs] = q;
    b->payers[b->n_seqs++] = payer;
    b->n_rows += n_rows;
    b->work = llm_work_sum(b->work, part);
    llm_fair_charge(payer, llm_cost_of_part(cost, part));

    q->position += n_rows;
    q->asked += q->position >= q->n_known;
    q->in_flight++;
    q->step = s->n_steps;
}

/* --- rows that decode --- */

static void add_decode_rows(struct llm_sched *s, struct llm_batch *b)
{
    for (struct llm_sequence *q = s->running.first; q != NULL && b->n_rows < b->max_rows;
         q = q->next) {
        if (llm_sequence_decodes(q)) {
            add(s, b, q, 1, q->request->tenant, llm_sched_decode_cost(s));
        }
    }
}

/* --- rows that read prompts --- */

static uint32_t list_readers(const struct llm_sched *s, struct llm_batch *b)
{
    uint32_t n = 0;

    for (struct llm_sequence *q = s->running.first; q != NULL; q = q->next) {
        if (llm_sequence_reads(q) && !q->request->paused) {
            b->readers[n++] = q;
        }
    }
    return n;
}

/* Takes the next one out of the n readers: of the tenant with the smallest counter the first. */
static struct llm_sequence *take_reader(struct llm_batch *b, uint32_t n)
{
    struct llm_sequence *q;
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++) {
        double a = b->readers[i]->request->tenant->counter;
        double least = b->readers[best]->request->tenant->counter;

        if (a < least || (a == least && b->readers[i]->arrival < b->readers[best]->arrival)) {
            best = i;
        }
    }
    q = b->readers[best];
    b->readers[best] = b->readers[n - 1];
    return q;
}

/* How long a step is planned to take, lest it take longer than it may: no two take the same. */
static uint64_t planned_ns(const struct llm_sched *s)
{
    return (uint64_t) ((double) s->options.max_step_ns / s->margin);
}

/* How many of `max` rows of q the step has time for. */
static uint32_t rows_in_time(const struct llm_sched *s, const struct llm_batch *b,
                             const struct llm_sequence *q, uint32_t max)
{
    uint32_t least = b->n_prompt_rows == 0 ? MIN_CHUNK : 0, n = 0;

    if (s->options.max_step_ns == 0) {
        return max;
    }
    if (llm_cost_known(&s->prefill_cost)) {
        n = llm_cost_fit(&s->prefill_cost, b->work, q->position, max,
                         planned_ns(s));
    }
    n = n > least ? n : least;
    return n < max ? n : max;
}

static void add_prompt_rows(struct llm_sched *s, struct llm_batch *b)
{
    for (uint32_t n = list_readers(s, b); n > 0 && b->n_rows < b->max_rows; n--) {
        struct llm_sequence *q = take_reader(b, n);
        struct llm_sequence *w = llm_pages_turn(s, q);
        uint32_t n_rows;

        if (w->step == s->n_steps) {
            continue; /* what it has computed can be read by the next step */
        }
        /* q pays for no more than it has a use for */
        n_rows = llm_pages_common(w, q, b->max_rows - b->n_rows);
        n_rows = rows_in_time(s, b, w, llm_pages_run(s, w, n_rows));
        if (n_rows == 0) {
            break;
        }
        add(s, b, w, n_rows, q->request->tenant, &s->prefill_cost);
        b->n_prompt_rows += n_rows;
    }
}

/* --- the step --- */

/* What a step costs besides its rows is borne by its members alike. */
static void charge_fixed(const struct llm_sched *s, const struct llm_batch *b)
{
    const struct llm_cost *cost =
        b->n_prompt_rows > 0 ? &s->prefill_cost : llm_sched_decode_cost(s);
    double ns = cost->ns[LLM_COST_FIXED];

    for (uint32_t i = 0; i < b->n_seqs; i++) {
        llm_fair_charge(b->payers[i], ns / b->n_seqs);
    }
}

void llm_batch_fill(struct llm_sched *s, struct llm_batch *b)
{
    b->n_seqs = 0;
    b->n_rows = 0;
    b->n_prompt_rows = 0;
    b->work = (struct llm_work){0};
    s->n_steps++;

    add_decode_rows(s, b);
    add_prompt_rows(s, b);
    charge_fixed(s, b);
}

/* --- what steps yield --- */

static uint32_t per_second(uint32_t rows, double ns)
{
    return (uint32_t) fmin(rows * (double) LLM_NS_PER_S / fmax(1, ns), UINT32_MAX);
}

struct llm_front llm_batch_front(const struct llm_sched *s, uint32_t position)
{
    const struct llm_sched_options *o = &s->options;
    struct llm_cost cost = s->prefill_cost;
    uint32_t rows = o->max_batch_tokens;

    cost.most_rows = rows; /* as if a full step had been tried */
    if (o->max_step_ns > 0) {
        rows = llm_cost_fit(&cost, (struct llm_work){0}, position, rows, planned_ns(s));
        rows = rows > MIN_CHUNK ? rows : MIN_CHUNK;
    }
    return (struct llm_front){
        .rows = rows, .step_ns = llm_cost_of_step(&cost, llm_work_of(position, rows))};
}

uint32_t llm_batch_prefill_rate(const struct llm_sched *s)
{
    struct llm_front front = llm_batch_front(s, 0);

    return llm_cost_known(&s->prefill_cost) ? per_second(front.rows, front.step_ns) : 0;
}

uint32_t llm_batch_decode_rate(const struct llm_sched *s)
{
    const struct llm_cost *cost = llm_sched_decode_cost(s);
    struct llm_work work = {0};

    for (const struct llm_sequence *q = s->running.first; q != NULL; q = q->next) {
        work = llm_work_sum(work, llm_work_of(q->position, 1));
    }
    if (work.rows == 0) {
        work = llm_work_of(0, 1);
    }
    return llm_cost_known(cost) ? per_second((uint32_t) work.rows, llm_cost_of_step(cost, work))
                                : 0;
}

struct llm_step llm_batch_step(const struct llm_batch *b)
{
    return (struct llm_step){
        .seqs = b->seqs,
        .n_seqs = b->n_seqs,
        .tokens = b->tokens,
        .flags = b->flags,
        .n_rows = b->n_rows,
    };
}

bool llm_batch_samples(const struct llm_batch *b, uint32_t i)
{
    const struct llm_step_seq *part = &b->seqs[i];

    return part->position + part->n_rows >= b->members[i]->n_known;
}
