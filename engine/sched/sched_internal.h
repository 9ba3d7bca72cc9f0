/* What the files of the scheduler share. A sequence's way through them:
 *
 *   sched.c    submitted, ended
 *   admit.c    the next one to start, by its tenant's counter (fair.c)
 *   pages.c    the pages it starts with, and what it leaves for others
 *   loads.c    pages of it that come from Redis, where that is worth it (worth.c)
 *   preempt.c  who gives way when slots or pages run out
 *   batch.c    how running sequences become a step, by what it costs (cost.c)
 *   step.c     turns of the backend; tokens handed out
 *   check.c    the books
 *
 * The rows of a running sequence, one for each token, and its counters:
 *
 *   0           n_done        position           n_read         n_known       n_prompt + max_tokens
 *   |  computed   |  in flight   |  to be read in  |  to be read   |  to be sampled:       |
 *   |  or found   |              |  chunks         |  one a step   |  `asked` so far       |
 *
 * n_there is `position`, or more where rows behind it are in the pages already: others have
 * computed them since, or the last token of a prompt that was found whole is run again. Of the
 * pages n_matched were found or promised, and the first n_chained have a digest. */

#ifndef LLM_SCHED_SCHED_INTERNAL_H
#define LLM_SCHED_SCHED_INTERNAL_H

#include "engine/sched/batch.h"
#include "engine/sched/cost.h"
#include "engine/sched/fair.h"
#include "engine/sched/sched.h"
#include "engine/sched/worth.h"

#define LLM_STEPS_IN_FLIGHT 2

struct llm_sched {
    const struct llm_backend_ops *ops;
    struct llm_backend *backend;
    struct llm_sched_options options;
    struct llm_sched_sink sink;
    bool one_form; /* rows after a prompt may be computed in chunks, as a prompt's are */

    struct llm_cache *cache;
    struct llm_tenant **charged; /* [pages of the pool]: for a page in use; NULL: it is not */

    struct llm_fair fair;
    uint64_t arrivals, rounds;
    uint32_t n_waiting;      /* sequences in the tenants' queues */
    struct llm_sequence *heir; /* waits for what others gave up for it; NULL: none does */
    struct llm_list running; /* in order of arrival */
    struct llm_list leaving; /* preempted or ended: without pages, but with slots */

    struct llm_batch batches[LLM_STEPS_IN_FLIGHT]; /* oldest, then the others in flight */
    unsigned oldest, n_in_flight;
    uint64_t n_steps;
    uint32_t n_started; /* sequences, in this half turn: no more than max_seqs, see the sink */
    uint64_t n_freed;   /* times that a sequence gave its pages back */

    struct llm_cost prefill_cost, decode_cost; /* of steps with prompt rows, of those without */
    double margin;    /* how many times longer than expected steps must be taken to be */
    uint64_t copy_ns; /* of a page to or from the host tier, at a cautious guess */
    uint64_t save_ns, offer_ns; /* of steps, not yet spent on copies */

    uint64_t page_bytes;
    uint64_t last_load; /* the number of the last one asked for */
    uint64_t asked_ns;  /* when something was asked for last; 0: never */
    struct llm_sched_loads loads;
};

static inline uint64_t llm_sched_now(const struct llm_sched *s)
{
    return s->options.now(s->options.now_ctx);
}

/* What steps without prompt rows cost; until there was one, those with prompt rows tell. */
static inline const struct llm_cost *llm_sched_decode_cost(const struct llm_sched *s)
{
    return llm_cost_known(&s->decode_cost) ? &s->decode_cost : &s->prefill_cost;
}

/* It still has rows to be read from tokens that are known, in chunks. */
static inline bool llm_sequence_reads(const struct llm_sequence *q)
{
    return q->position < q->n_read;
}

/* It is ready for the next row that is computed one at a time. */
static inline bool llm_sequence_decodes(const struct llm_sequence *q)
{
    return q->position >= q->n_read && q->asked < q->max_tokens && !q->request->paused;
}

/* --- sched.c --- */

bool llm_request_expired(const struct llm_request *r, uint64_t now);

void llm_sequence_free_arrays(struct llm_sequence *q);

/* Ends all sequences of r. The request may be retired on return. */
void llm_sched_end_request(struct llm_sched *s, struct llm_request *r, enum llm_outcome outcome);

/* A running sequence gives its pages back, and its slot as soon as no step names it. state:
 * LLM_SEQUENCE_ENDED, or LLM_SEQUENCE_PREEMPTED: then it waits in its tenant's queue again. The
 * request may be retired on return. */
void llm_sched_leave(struct llm_sched *s, struct llm_sequence *q, enum llm_sequence_state state);

/* A sequence that is leaving gives its slot back, if no step names it any more. The request may be
 * retired on return. */
void llm_sched_leave_slot(struct llm_sched *s, struct llm_sequence *q);

/* --- admit.c --- */

/* Starts what may start. */
void llm_sched_admit(struct llm_sched *s);

/* --- loads.c --- */

/* A sequence starts, for the first time or again, with n_matched pages. */
void llm_loads_begin(struct llm_sequence *q, bool first);

/* Takes what has arrived, and purges whoever was purged elsewhere. Before anything is started, and
 * the rows of a step are chosen. */
void llm_loads_take(struct llm_sched *s);

/* Asks for what is worth it. After llm_pages_skip, before the rows of the step are chosen. */
void llm_loads_ask(struct llm_sched *s);

/* Nothing of what is under way for a sequence is wanted. */
void llm_loads_cancel(struct llm_sched *s, struct llm_sequence *q);

/* --- preempt.c --- */

/* Preempts whom fairness allows to be preempted for a waiting sequence that lacks a slot, or
 * `missing` pages. True: so much has come free, or something at least; it is to be tried again.
 * False: nobody was, it has to wait. */
bool llm_sched_preempt_for_slot(struct llm_sched *s, struct llm_sequence *q);
bool llm_sched_preempt_for_pages(struct llm_sched *s, struct llm_sequence *q, uint32_t missing);

/* The one to be preempted when a running sequence needs a page and there is none. */
struct llm_sequence *llm_sched_furthest_over(const struct llm_sched *s);

/* --- pages.c --- */

/* The pages for a sequence to start with: those found in the index, and new ones up to the first
 * row after its tokens. LLM_EAGAIN: not to be had now, q->pages_wanted says how many it takes. */
int llm_pages_begin(struct llm_sched *s, struct llm_sequence *q);

/* The same for one whose prompt `leader`, another choice of it, has read. */
int llm_pages_fork(struct llm_sched *s, struct llm_sequence *q,
                   const struct llm_sequence *leader);

/* Drops them all; what others can use stays indexed. */
void llm_pages_end(struct llm_sched *s, struct llm_sequence *q);

/* The logits after what q, which has left, had in its pages were not finite: nothing of that is
 * found again, whoever computed it. Running sequences that were to read it are preempted. */
void llm_pages_forget(struct llm_sched *s, const struct llm_sequence *q);

/* Pages that nobody holds but q. */
uint32_t llm_pages_own(const struct llm_sched *s, const struct llm_sequence *q);

/* Makes room for the next row of a sequence. LLM_EAGAIN: there is no page. */
int llm_pages_grow(struct llm_sched *s, struct llm_sequence *q);

/* The other sequence that is about to compute a page that q needs; NULL: nobody, q may do it. */
struct llm_sequence *llm_pages_writer(const struct llm_sched *s, const struct llm_sequence *q,
                                      uint32_t page);

/* Goes on behind pages that have been computed. The last token is run again, for what is sampled
 * after it is not in a page. */
void llm_pages_skip(const struct llm_sched *s, struct llm_sequence *q);

/* Who must get rows so that q, which reads, gets on: q itself, or the sequence that is computing
 * a page that q waits for. */
struct llm_sequence *llm_pages_turn(const struct llm_sched *s, struct llm_sequence *q);

/* How many rows, 1 … max, q may compute from its position on; it becomes the writer of pages that
 * have none. */
uint32_t llm_pages_run(struct llm_sched *s, struct llm_sequence *q, uint32_t max);

/* How many of w's next `max` rows are in pages that q has, too: w computes what q waits for. */
uint32_t llm_pages_common(const struct llm_sequence *w, const struct llm_sequence *q,
                          uint32_t max);

/* Rows [from, q->position) were submitted: later steps may read the pages they fill. */
void llm_pages_written(struct llm_sched *s, struct llm_sequence *q, uint32_t from);

/* A running sequence has sampled what is finite: its pages may be offered to Redis. */
void llm_pages_prove(struct llm_sched *s, struct llm_sequence *q);

/* Indexes pages of sampled tokens that are full and known to be computed well. */
void llm_pages_index_sampled(struct llm_sched *s, struct llm_sequence *q);

#endif
