#include "engine/sched/list.h"

#include "engine/sched/request.h"

#include <stddef.h>

/* Before `next`; NULL: at the end. */
static void insert(struct llm_list *l, struct llm_sequence *q, struct llm_sequence *next)
{
    q->next = next;
    q->prev = next != NULL ? next->prev : l->last;
    *(q->prev != NULL ? &q->prev->next : &l->first) = q;
    *(next != NULL ? &next->prev : &l->last) = q;
    l->n++;
}

void llm_list_append(struct llm_list *l, struct llm_sequence *q)
{
    insert(l, q, NULL);
}

void llm_list_insert(struct llm_list *l, struct llm_sequence *q)
{
    struct llm_sequence *next = l->first;

    while (next != NULL && next->arrival < q->arrival) {
        next = next->next;
    }
    insert(l, q, next);
}

void llm_list_remove(struct llm_list *l, struct llm_sequence *q)
{
    *(q->prev != NULL ? &q->prev->next : &l->first) = q->next;
    *(q->next != NULL ? &q->next->prev : &l->last) = q->prev;
    q->prev = q->next = NULL;
    l->n--;
}
