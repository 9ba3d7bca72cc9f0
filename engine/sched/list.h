/* A list of sequences, linked through them: a sequence is in one at most. */

#ifndef LLM_SCHED_LIST_H
#define LLM_SCHED_LIST_H

#include <stdint.h>

struct llm_sequence;

struct llm_list { /* zero-initialised is empty */
    struct llm_sequence *first, *last;
    uint32_t n;
};

void llm_list_append(struct llm_list *l, struct llm_sequence *q);
void llm_list_remove(struct llm_list *l, struct llm_sequence *q);

/* Before all that arrived later, in a list that is in order of arrival. */
void llm_list_insert(struct llm_list *l, struct llm_sequence *q);

#endif
