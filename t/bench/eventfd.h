/* The round trip that nothing between two processes undercuts: a bare eventfd there and another
 * one back, each side asleep in read() meanwhile. */

#ifndef T_BENCH_EVENTFD_H
#define T_BENCH_EVENTFD_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

static int event_there, event_back;

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t) t.tv_sec * 1000000000u + (uint64_t) t.tv_nsec;
}

static void event_die(const char *what)
{
    perror(what);
    exit(1);
}

/* Before the fork. */
static void event_open(void)
{
    event_there = eventfd(0, EFD_CLOEXEC);
    event_back = eventfd(0, EFD_CLOEXEC);
    if (event_there < 0 || event_back < 0) {
        event_die("eventfd");
    }
}

static void event_put(int fd)
{
    uint64_t one = 1;

    if (write(fd, &one, sizeof(one)) != sizeof(one)) {
        event_die("write");
    }
}

static void event_take(int fd)
{
    uint64_t n;

    if (read(fd, &n, sizeof(n)) != sizeof(n)) {
        event_die("read");
    }
}

/* One round trip, in nanoseconds; the other process answers it with event_pong. */
static uint64_t event_ping(void)
{
    uint64_t start = now_ns();

    event_put(event_there);
    event_take(event_back);
    return now_ns() - start;
}

static void event_pong(void)
{
    event_take(event_there);
    event_put(event_back);
}

#endif
