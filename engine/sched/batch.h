/* One step of the backend, made of running sequences. */

#ifndef LLM_SCHED_BATCH_H
#define LLM_SCHED_BATCH_H

#include "engine/sched/cost.h"
#include "engine/sched/request.h"
#include "engine/sched/worth.h"

struct llm_sched;

struct llm_batch {
    uint32_t max_rows, max_seqs;
    struct llm_step_seq *seqs;     /* [max_seqs] */
    struct llm_sequence **members; /* [max_seqs]: whose part seqs[i] is */
    struct llm_tenant **payers;    /* [max_seqs]: on whose turn seqs[i] was taken in */
    struct llm_sequence **readers; /* [max_seqs]: while it is filled, those that read prompts */
    uint32_t *tokens;              /* [max_rows] */
    uint8_t *flags;                /* [max_rows] */
    uint32_t n_seqs, n_rows;
    uint32_t n_prompt_rows; /* rows that read tokens in chunks */
    struct llm_work work;
    uint64_t ticket;        /* once submitted */
};

int llm_batch_init(struct llm_batch *b, uint32_t max_rows, uint32_t max_seqs);
void llm_batch_free(struct llm_batch *b);

/* Fills the batch: first one row for each sequence that decodes, then prompt chunks in the order
 * of the tenants' counters, while rows and time are left. Advances the sequences as if the batch
 * were submitted, and charges their tenants. A paused request gets no rows. The sequences that
 * decode must have room for their row. */
void llm_batch_fill(struct llm_sched *s, struct llm_batch *b);

/* The batch as a step; it points into the batch. */
struct llm_step llm_batch_step(const struct llm_batch *b);

/* How a prompt is read that fills its steps, from `position` on, by what steps have cost. */
struct llm_front llm_batch_front(const struct llm_sched *s, uint32_t position);

/* Tokens a second, by what steps have cost; 0: none was run yet. See llm_sched_load. */
uint32_t llm_batch_prefill_rate(const struct llm_sched *s);
uint32_t llm_batch_decode_rate(const struct llm_sched *s);

/* True when part i of the batch ends with a sampled token. */
bool llm_batch_samples(const struct llm_batch *b, uint32_t i);

#endif
