/* What people asked or were told, and secrets, stay in memory. Large blocks for them are mapped
 * from the system, zeroed, and kept out of core dumps. */

#ifndef LLM_BASE_MEMORY_H
#define LLM_BASE_MEMORY_H

#include <stdint.h>

/* For a process that holds secrets or what people asked: from now on it leaves no core dump. */
void llm_memory_no_core(void);

/* NULL where bytes is 0 or the system has no room. A page of it is there once it is touched. */
void *llm_memory_map(uint64_t bytes);
void llm_memory_unmap(void *p, uint64_t bytes); /* p may be NULL */

#endif
