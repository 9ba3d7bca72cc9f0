/* What people asked or were told is not in a core dump. */

#include "engine/base/memory.h"
#include "t/unit/tap.h"

#include <inttypes.h>

/* The line of /proc/self/smaps that says how the kernel treats the page at p. */
static bool flags_of(const void *p, char *flags, int size)
{
    FILE *f = fopen("/proc/self/smaps", "r");
    bool found = false, inside = false;
    uint64_t from, to;

    while (f != NULL && !found && fgets(flags, size, f) != NULL) {
        if (sscanf(flags, "%" SCNx64 "-%" SCNx64 " ", &from, &to) == 2) {
            inside = (uint64_t) (uintptr_t) p - from < to - from;
        }
        found = inside && strncmp(flags, "VmFlags:", 8) == 0;
    }
    if (f != NULL) {
        fclose(f);
    }
    return found;
}

int main(void)
{
    uint64_t bytes = 10 << 20;
    uint8_t *p = llm_memory_map(bytes);
    char flags[512];

    ok(p != NULL, "ten megabytes");
    ok(p[0] == 0 && p[bytes - 1] == 0, "of zeros");
    p[0] = p[bytes - 1] = 1;
    ok(flags_of(p, flags, sizeof(flags)), "the kernel knows them");
    ok(strstr(flags, " dd ") != NULL, "and leaves them out of core dumps");
    llm_memory_unmap(p, bytes);

    ok(llm_memory_map(0) == NULL, "nothing cannot be mapped");
    llm_memory_unmap(NULL, 0);
    ok(llm_memory_map(1ull << 62) == NULL, "nor can everything");
    return done_testing();
}
