/* What every backend does with sequence slots and steps, whatever it computes with: the model
 * thread's books, and the checks of what it is asked. */

#ifndef LLM_BACKEND_SLOTS_H
#define LLM_BACKEND_SLOTS_H

#include "engine/backend/backend.h"

/* Steps have numbers that count up from 1. */
struct llm_slot {
    bool used;
    bool released;      /* by the caller; free once the steps that name it have run */
    bool has_token;     /* sampled, or about to be by a step that is queued */
    uint64_t last_step; /* the last that names it */
    uint64_t checked;   /* the last check that met it */
};

struct llm_slots {
    struct llm_slot *slots; /* [n] */
    uint32_t n;
    uint64_t n_checked;
};

/* Without memory *s is left empty. */
int llm_slots_init(struct llm_slots *s, uint32_t n, struct llm_error *err);
void llm_slots_free(struct llm_slots *s);

/* A slot that may be given to a new sequence: an empty one, or else the one that was released
 * first, which is used still, and empty once its last step has run. s->n when all are taken. */
uint32_t llm_slots_find(const struct llm_slots *s);

/* Whether the caller may speak of it. */
bool llm_slots_live(const struct llm_slots *s, uint32_t slot);

/* Whether a model of so many ids can sample like that. */
bool llm_sampling_ok(const struct llm_sampling *s, uint32_t vocab_size);

struct llm_step_limits {
    uint32_t max_rows, max_context, n_pages, vocab_size;
    uint64_t last_fence;
};

/* Whether a step is right in itself. */
bool llm_slots_check(struct llm_slots *s, const struct llm_step_limits *limits,
                     const struct llm_step *step);

/* Notes that a step which was found right is queued under this number. */
void llm_slots_note(struct llm_slots *s, const struct llm_step *step, uint64_t number);

#endif
