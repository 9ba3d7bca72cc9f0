/* Bare eventfd round trips for t/bench/edge.pl: a line N on standard input is answered by a line
 * with the nanoseconds of N of them. */

#include "t/bench/eventfd.h"

#include <inttypes.h>
#include <signal.h>
#include <sys/prctl.h>

int main(void)
{
    char line[32];
    pid_t child;

    event_open();
    child = fork();
    if (child < 0) {
        event_die("fork");
    }
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) {
            event_pong();
        }
    }

    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(line, sizeof(line), stdin) != NULL) {
        for (long n = strtol(line, NULL, 10); n > 0; n--) {
            printf("%" PRIu64 "%c", event_ping(), n > 1 ? ' ' : '\n');
        }
    }
    return 0;
}
