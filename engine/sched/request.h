/* A request as the scheduler sees it: sequences of token ids and what bounds them.
 *
 * The owner fills in the first part and keeps every array it points to until the request is
 * retired; the second part is the scheduler's. */

#ifndef LLM_SCHED_REQUEST_H
#define LLM_SCHED_REQUEST_H

#include "engine/backend/backend.h"
#include "engine/cache/digest.h"
#include "engine/sched/tenant.h"

struct llm_cache_tenant;

/* How a request ended, as far as the scheduler knows. */
enum llm_outcome {
    LLM_OUTCOME_DONE,
    LLM_OUTCOME_CANCELLED,  /* llm_sched_cancel */
    LLM_OUTCOME_EXPIRED,    /* a deadline had passed when its turn came */
    LLM_OUTCOME_NON_FINITE, /* the logits of one of its sequences were not numbers */
    LLM_OUTCOME_INVALID,    /* the backend cannot sample that way */
    LLM_OUTCOME_TOO_LARGE,  /* one of its sequences can grow beyond all pages there are */
    LLM_OUTCOME_NO_MEMORY,
    LLM_OUTCOME_FAILED,     /* the backend could not do what it must */
};

/* Why a sequence ended by itself. */
enum llm_end {
    LLM_END_STOP,   /* one of stop_ids was sampled */
    LLM_END_LENGTH, /* max_tokens */
};

enum llm_sequence_state {
    LLM_SEQUENCE_QUEUED,    /* in its tenant's queue, for the first time or again */
    LLM_SEQUENCE_RUNNING,   /* has a slot and pages */
    LLM_SEQUENCE_PREEMPTED, /* lost its pages; queued again when no step in flight names it */
    LLM_SEQUENCE_ENDED,     /* nothing more is wanted of it, but a step in flight names it */
    LLM_SEQUENCE_GONE,
};

struct llm_sequence {
    const uint32_t *prompt; /* [n_prompt], n_prompt >= 1; those with the same one share its pages */
    uint32_t n_prompt;
    uint32_t max_tokens; /* to be sampled, >= 1 */
    uint32_t choice; /* index in the request */
    uint32_t nth;    /* index among the choices of the same prompt: for the random numbers */
    const struct llm_digest *digests; /* [n_prompt / 64] of the chain, never NULL even if that is
                                       * none; NULL: not shared, as under LLM_SCOPE_OFF */

    enum llm_sequence_state state;
    struct llm_request *request;
    struct llm_sequence *prev, *next;
    uint64_t arrival; /* who came later has a larger number */

    /* from its first start to its end */
    uint32_t *tokens;           /* [n_prompt + sampled], of at most n_prompt + max_tokens */
    uint32_t *pages;            /* [n_pages] */
    struct llm_digest *chained; /* [n_chained]: digests of its first full pages */
    uint32_t *mask;             /* without the stop ids, until min_tokens are there */
    uint32_t n_pages, n_chained;
    bool begun;
    uint32_t asked;   /* tokens to be sampled by the steps submitted so far */
    uint32_t sampled; /* of them, those that have come */

    /* while it runs */
    uint32_t slot;      /* the backend's */
    uint32_t n_known;   /* tokens that were there when it started, or started again */
    uint32_t n_read;    /* rows of them that may go in chunks; the others go one a step */
    uint32_t n_matched; /* pages that were found in the index, computed or promised */
    uint32_t n_there;   /* leading rows that are in its pages: all before `position`, or one more */
    uint32_t position;  /* of the next row: all before were handed to the backend in order */
    uint32_t n_done;    /* rows whose step has been waited for */
    uint32_t n_proven;  /* leading pages that were followed by finite logits */
    uint32_t in_flight; /* steps that name it */
    uint64_t step;      /* the last one it got rows of */
    bool chosen;        /* to be preempted, while some are looked for */
    uint64_t load;      /* that is under way for it; 0: none */
    uint32_t load_left; /* pages of it that have not come */
    uint32_t load_end;  /* the page behind them */
    uint32_t n_loaded;  /* pages that have come instead of being computed */
    bool load_done;     /* nothing more is to be had */
    bool load_decided;  /* loading it, or computing it, was chosen */
    bool counts;        /* what is found and loaded for it is counted: the first time it runs */

    uint32_t pages_wanted; /* while it waits: how many must be to be had before it is tried again */
};

struct llm_request {
    uint8_t tenant_digest[32];
    uint32_t weight;                   /* of the tenant; 0 is 1 */
    enum llm_scope scope;              /* LLM_SCOPE_OFF: no page of it is indexed */
    uint8_t owner_digest[32];          /* whom its cached pages are charged to (llm_scope_owner) */
    struct llm_chain chain;            /* of its pages' digests; used where there are any */
    uint32_t max_running, max_pages;   /* of the tenant; 0: no limit */
    uint64_t queue_deadline, deadline; /* CLOCK_MONOTONIC ns; 0: none */
    struct llm_sampling sampling;      /* for all sequences, but for its `choice` */
    uint32_t min_tokens;               /* of each sequence, before a stop id may be sampled */
    const uint32_t *stop_ids;          /* sampling one of them ends the sequence */
    uint32_t n_stop_ids;
    struct llm_sequence *sequences;
    uint32_t n_sequences;

    enum llm_outcome outcome;
    bool paused;
    bool started;
    bool purged; /* it had begun when its owner's pages were purged: it indexes no more of them */
    uint32_t cached_tokens; /* of its prompts, each counted once; each before its `started`, or its
                             * first token: final when all of its sequences have had one */
    uint32_t n_alive;       /* sequences that are not gone */
    struct llm_tenant *tenant;
    struct llm_cache_tenant *owner; /* in the cache's books; NULL: its pages are not indexed */
};

/* Latent pages of a sequence at its longest. */
static inline uint32_t llm_sequence_pages(uint32_t n_prompt, uint32_t max_tokens)
{
    uint64_t positions = (uint64_t) n_prompt + max_tokens;

    return (uint32_t) ((positions + LLM_PAGE_TOKENS - 1) / LLM_PAGE_TOKENS);
}

#endif
