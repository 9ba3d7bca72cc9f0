/* The reply scanner and hiredis's reader. An input is how many bytes come at a time, how long bulk
 * strings may be, then what the server sends. */

#include "t/unit/redis_reply_check.h"

#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const char *wrong;
    uint32_t ends;

    if (n < 2) {
        return 0;
    }
    wrong = check_scan((const char *) data + 2, n - 2, 1 + data[0], data[1], &ends);
    if (wrong != NULL) {
        fprintf(stderr, "%s\n", wrong);
        abort();
    }
    return 0;
}
