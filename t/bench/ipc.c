/* Two processes: the round trip of one record worker → engine → worker beside the round trip of a
 * bare eventfd, in turns in the same run; then TOKEN records a second, engine → worker.
 *
 *   ipc [ROUND_TRIPS [RECORDS]] */

#include "t/bench/eventfd.h"
#include "t/unit/ipc_pair.h"

#define BLOCK 500 /* round trips of one kind in a row */

#define BURST 64 /* tokens of one step, say, then a flush */

/* --- session --- */

static struct pair pair;
static struct llm_ipc_buffer buffer;

static void take(struct llm_ipc_session *s, struct llm_ipc_record *r)
{
    int rc;

    for (;;) {
        rc = llm_ipc_recv(s, r, &buffer);
        if (rc == LLM_IPC_DONE) {
            return;
        }
        if (rc != LLM_IPC_AGAIN) {
            die("recv");
        }
        if (llm_ipc_sleep(s)) {
            if (!wait_readable(s->own_event)) {
                die("no wake-up");
            }
            llm_ipc_awake(s);
        }
    }
}

static void put(struct llm_ipc_session *s, uint16_t type, const void *data, size_t len)
{
    struct llm_ipc_iovec part = {data, len};
    int rc;

    while ((rc = llm_ipc_send(s, type, 0, 0, &part, 1)) == LLM_IPC_AGAIN) {
        llm_ipc_flush(s);
        if (!wait_readable(s->own_event)) {
            die("no wake-up");
        }
        llm_ipc_awake(s);
    }
    if (rc != LLM_IPC_DONE) {
        die("send");
    }
}

static void ipc_ping(void)
{
    struct llm_ipc_record r;

    put(&pair.worker, LLM_IPC_RELEASE, "ping", 4);
    llm_ipc_flush(&pair.worker);
    take(&pair.worker, &r);
}

static void ipc_pong(void)
{
    struct llm_ipc_record r;

    take(&pair.engine, &r);
    put(&pair.engine, LLM_IPC_COUNTED, "pongpong", 8);
    llm_ipc_flush(&pair.engine);
}

/* --- figures --- */

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

    return (x > y) - (x < y);
}

static double percentile_us(const uint64_t *sorted, long n, int percent)
{
    return (double) sorted[(n - 1) * percent / 100] / 1000;
}

static void round_trips(long n)
{
    uint64_t *event = calloc((size_t) n, sizeof(*event));
    uint64_t *ipc = calloc((size_t) n, sizeof(*ipc));

    if (event == NULL || ipc == NULL) {
        die("memory");
    }

    for (long i = 0; i < n; i += BLOCK) {
        for (int j = 0; j < BLOCK; j++) {
            event[i + j] = event_ping();
        }
        for (int j = 0; j < BLOCK; j++) {
            uint64_t start = now_ns();

            ipc_ping();
            ipc[i + j] = now_ns() - start;
        }
    }

    qsort(event, (size_t) n, sizeof(*event), by_value);
    qsort(ipc, (size_t) n, sizeof(*ipc), by_value);

    printf("round trip, %ld each          p50 us   p99 us\n", n);
    printf("  bare eventfd             %9.1f%9.1f\n", percentile_us(event, n, 50),
           percentile_us(event, n, 99));
    printf("  worker, engine, worker   %9.1f%9.1f\n", percentile_us(ipc, n, 50),
           percentile_us(ipc, n, 99));
    printf("  difference               %9.1f%9.1f\n",
           percentile_us(ipc, n, 50) - percentile_us(event, n, 50),
           percentile_us(ipc, n, 99) - percentile_us(event, n, 99));

    free(event);
    free(ipc);
}

static void send_tokens(long n, const uint8_t *token, size_t size)
{
    for (long i = 0; i < n; i++) {
        put(&pair.engine, LLM_IPC_TOKEN, token, size);
        if (i % BURST == BURST - 1) {
            llm_ipc_flush(&pair.engine);
        }
    }
    llm_ipc_flush(&pair.engine);
}

static void take_tokens(long n, size_t size)
{
    struct llm_ipc_record r;
    uint64_t start;
    double seconds;

    take(&pair.worker, &r);
    start = now_ns();
    for (long i = 1; i < n; i++) {
        take(&pair.worker, &r);
    }
    seconds = (double) (now_ns() - start) / 1e9;
    printf("TOKEN of %3zu bytes: %.2f million a second\n", size, (double) n / seconds / 1e6);
}

int main(int argc, char **argv)
{
    static const uint8_t token[200];
    static const size_t sizes[] = {24, 200};
    long trips = argc > 1 ? atol(argv[1]) : 50000;
    long records = argc > 2 ? atol(argv[2]) : 2000000;
    struct llm_ipc_options engine = small_engine;
    struct llm_ipc_record r;
    int status;
    pid_t child;

    trips = (trips + BLOCK - 1) / BLOCK * BLOCK;
    engine.ring_entries = 0;
    pair_open(&pair, &small_worker, &engine);
    event_open();

    child = fork();
    if (child < 0) {
        die("fork");
    }
    if (child == 0) {
        for (long i = 0; i < trips; i += BLOCK) {
            for (int j = 0; j < BLOCK; j++) {
                event_pong();
            }
            for (int j = 0; j < BLOCK; j++) {
                ipc_pong();
            }
        }
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
            take(&pair.engine, &r); /* go */
            send_tokens(records, token, sizes[i]);
        }
        _exit(0);
    }

    round_trips(trips);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        put(&pair.worker, LLM_IPC_CANCEL, NULL, 0);
        llm_ipc_flush(&pair.worker);
        take_tokens(records, sizes[i]);
    }

    if (waitpid(child, &status, 0) != child || status != 0) {
        die("child");
    }
    llm_ipc_buffer_free(&buffer);
    pair_close(&pair);
    return 0;
}
