#include "engine/base/memory.h"

#include <stddef.h>
#include <sys/mman.h>
#include <sys/resource.h>

void llm_memory_no_core(void)
{
    /* 1 is less than any core file needs, and the one value that also keeps the kernel from piping
     * a core to a handler */
    const struct rlimit none = {.rlim_cur = 1, .rlim_max = 1};

    setrlimit(RLIMIT_CORE, &none);
}

void *llm_memory_map(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED) {
        return NULL;
    }
    madvise(p, bytes, MADV_HUGEPAGE);
    madvise(p, bytes, MADV_DONTDUMP);
    return p;
}

void llm_memory_unmap(void *p, uint64_t bytes)
{
    if (p != NULL) {
        munmap(p, bytes);
    }
}
