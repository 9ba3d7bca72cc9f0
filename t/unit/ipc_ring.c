/* Rings and arenas, both sides in one process. */

#include "t/unit/ipc_pair.h"
#include "t/unit/tap.h"

#include <malloc.h>
#include <sys/resource.h>

static struct llm_ipc_buffer buffer;
static uint8_t bytes[LLM_IPC_MIN_ARENA];

static struct llm_ipc_control *control(struct llm_ipc_session *s)
{
    return llm_ipc_region_control(&s->own);
}

static int send_bytes(struct llm_ipc_session *s, uint16_t type, size_t len)
{
    struct llm_ipc_iovec part = {bytes, len};

    return llm_ipc_send(s, type, 1, 2, &part, 1);
}

static int take(struct llm_ipc_session *s, struct llm_ipc_record *r)
{
    return llm_ipc_recv(s, r, &buffer);
}

static bool woken(struct llm_ipc_session *s)
{
    struct pollfd p = {.fd = s->own_event, .events = POLLIN};

    return poll(&p, 1, 0) == 1;
}

/* The state after much use: indices at `index`, arenas at `pos`. */
static void shift(struct llm_ipc_session *from, struct llm_ipc_session *to, uint32_t index,
                  uint64_t pos)
{
    from->tail = from->peer_head = to->head = to->peer_tail = index;
    from->arena_tail = from->peer_arena_head = to->arena_head = pos;
    control(from)->tail = control(to)->head = index;
    control(to)->arena_head = pos;
}

/* Sends a record of each length and takes it; the number that arrived as sent. */
static int exchange(struct llm_ipc_session *from, struct llm_ipc_session *to, uint16_t type,
                    const uint32_t *lengths, int n)
{
    struct llm_ipc_record r;
    int good = 0;

    for (int i = 0; i < n; i++) {
        uint32_t half = lengths[i] / 2;
        struct llm_ipc_iovec parts[] = {
            {bytes, half}, {NULL, 0}, {bytes + half, lengths[i] - half}};

        if (llm_ipc_send(from, type, (uint32_t) i, ~(uint32_t) i, parts, 3) != LLM_IPC_DONE) {
            break;
        }
        llm_ipc_flush(from);
        good += take(to, &r) == LLM_IPC_DONE && r.type == type && r.slot == (uint32_t) i
                && r.generation == ~(uint32_t) i && r.length == lengths[i]
                && (uintptr_t) r.data % 8 == 0 && memcmp(r.data, bytes, r.length) == 0
                && take(to, &r) == LLM_IPC_AGAIN;
        llm_ipc_flush(to);
    }
    return good;
}

static void test_lengths(void)
{
    enum { SMALL = 300, N = SMALL + 5 };
    uint32_t lengths[N];
    struct pair p;

    for (uint32_t i = 0; i < SMALL; i++) {
        lengths[i] = i;
    }
    lengths[SMALL] = 4095;
    lengths[SMALL + 1] = 4097;
    lengths[SMALL + 2] = LLM_IPC_MIN_ARENA / 2 - 1;
    lengths[SMALL + 3] = LLM_IPC_MIN_ARENA / 2;
    lengths[SMALL + 4] = LLM_IPC_MIN_ARENA / 2;

    pair_open(&p, &small_worker, &small_engine);
    is_int(exchange(&p.worker, &p.engine, LLM_IPC_SUBMIT, lengths, N), N, "every length, W to E");
    is_int(exchange(&p.engine, &p.worker, LLM_IPC_TOKEN, lengths, N), N, "every length, E to W");

    /* indices and positions pass the end of their numbers on the way */
    shift(&p.worker, &p.engine, UINT32_MAX - 100, (uint64_t) -64 * 100);
    shift(&p.engine, &p.worker, UINT32_MAX - 100, (uint64_t) -64 * 100);
    is_int(exchange(&p.worker, &p.engine, LLM_IPC_SUBMIT, lengths, N), N, "over the wrap, W to E");
    is_int(exchange(&p.engine, &p.worker, LLM_IPC_TOKEN, lengths, N), N, "over the wrap, E to W");
    ok(p.worker.tail < 1000 && p.worker.arena_tail < 1u << 30, "the indices have wrapped");
    pair_close(&p);
}

static void test_too_big(void)
{
    struct llm_ipc_iovec huge[] = {{bytes, 8}, {bytes, SIZE_MAX}, {bytes, 8}};
    struct pair p;

    pair_open(&p, &small_worker, &small_engine);
    is_int(send_bytes(&p.worker, LLM_IPC_SUBMIT, LLM_IPC_MIN_ARENA / 2 + 1), LLM_IPC_TOO_BIG,
           "more than half the arena");
    is_int(llm_ipc_send(&p.worker, LLM_IPC_SUBMIT, 0, 0, huge, 3), LLM_IPC_TOO_BIG,
           "a sum of lengths that overflows");
    is_int(p.worker.tail, 0, "nothing was sent");
    pair_close(&p);
}

static void test_order(void)
{
    struct llm_ipc_record r;
    struct pair p;
    int good = 0;

    pair_open(&p, &small_worker, &small_engine);
    for (uint32_t i = 0; i < 1000; i++) {
        struct llm_ipc_iovec part = {bytes + i, 100 + i};

        llm_ipc_send(&p.worker, LLM_IPC_SUBMIT, i, 0, &part, 1);
    }
    is_int(take(&p.engine, &r), LLM_IPC_AGAIN, "nothing arrives before the flush");
    llm_ipc_flush(&p.worker);
    for (uint32_t i = 0; i < 1000; i++) {
        good += take(&p.engine, &r) == LLM_IPC_DONE && r.slot == i && r.length == 100 + i
                && memcmp(r.data, bytes + i, r.length) == 0;
    }
    is_int(good, 1000, "records arrive in order");
    pair_close(&p);
}

static int fill(struct llm_ipc_session *s, uint16_t type, size_t len)
{
    int n = 0;

    while (send_bytes(s, type, len) == LLM_IPC_DONE) {
        n++;
    }
    llm_ipc_flush(s);
    return n;
}

static int drain(struct llm_ipc_session *s)
{
    struct llm_ipc_record r;
    int n = 0;

    while (take(s, &r) == LLM_IPC_DONE) {
        n++;
    }
    return n;
}

static void test_full_ring(void)
{
    struct llm_ipc_record r;
    struct pair p;

    pair_open(&p, &small_worker, &small_engine);
    is_int(fill(&p.engine, LLM_IPC_TOKEN, 10), LLM_IPC_MIN_RING, "the engine fills its ring");
    is_int(send_bytes(&p.engine, LLM_IPC_TOKEN, 10), LLM_IPC_AGAIN, "and has to wait");
    ok(!woken(&p.engine), "nobody wakes it yet");

    is_int(take(&p.worker, &r), LLM_IPC_DONE, "the worker takes one");
    ok(!woken(&p.engine), "and says so only in its flush");
    llm_ipc_flush(&p.worker);
    ok(woken(&p.engine), "then the engine is woken");
    llm_ipc_awake(&p.engine);
    ok(!woken(&p.engine), "once");
    is_int(fill(&p.engine, LLM_IPC_TOKEN, 10), 1, "and has room for one");

    is_int(drain(&p.worker), LLM_IPC_MIN_RING, "all of them arrive");
    llm_ipc_flush(&p.worker);
    llm_ipc_awake(&p.engine);
    is_int(control(&p.engine)->starved, 0, "starved is taken back");
    is_int(fill(&p.engine, LLM_IPC_TOKEN, 10), LLM_IPC_MIN_RING, "the ring is free again");

    drain(&p.worker);
    llm_ipc_flush(&p.worker);
    llm_ipc_awake(&p.engine);
    send_bytes(&p.engine, LLM_IPC_TOKEN, 10);
    llm_ipc_flush(&p.engine);
    drain(&p.worker);
    llm_ipc_flush(&p.worker);
    ok(!woken(&p.engine), "who has room is not woken");
    pair_close(&p);
}

static void test_reserve(void)
{
    const int slots = LLM_IPC_MIN_SLOTS;
    struct pair p;

    pair_open(&p, &small_worker, &small_engine);
    is_int(p.worker.own.entries, 2 * slots, "two descriptors a slot");
    is_int(fill(&p.worker, LLM_IPC_SUBMIT, 10), slots, "SUBMIT leaves one a slot");
    is_int(fill(&p.worker, LLM_IPC_RELEASE, 4), 0, "so do RELEASE …");
    is_int(fill(&p.worker, LLM_IPC_CREDIT, 4), 0, "… and CREDIT");
    is_int(send_bytes(&p.worker, LLM_IPC_REVOKE, 16), LLM_IPC_DONE, "REVOKE still goes");
    is_int(fill(&p.worker, LLM_IPC_CANCEL, 0), slots - 1, "and CANCEL, one a slot in all");
    is_int(drain(&p.engine), 2 * slots, "all of them arrive");
    pair_close(&p);
}

static void test_full_arena(void)
{
    struct llm_ipc_record r;
    struct pair p;

    pair_open(&p, &small_worker, &small_engine);
    send_bytes(&p.worker, LLM_IPC_SUBMIT, 64);
    llm_ipc_flush(&p.worker);
    take(&p.engine, &r);
    llm_ipc_flush(&p.engine);

    is_int(send_bytes(&p.worker, LLM_IPC_SUBMIT, LLM_IPC_MIN_ARENA / 2), LLM_IPC_DONE,
           "half the arena");
    is_int(send_bytes(&p.worker, LLM_IPC_SUBMIT, LLM_IPC_MIN_ARENA / 2), LLM_IPC_AGAIN,
           "the other half is not in one piece");
    is_int(send_bytes(&p.worker, LLM_IPC_SUBMIT, 40), LLM_IPC_DONE,
           "a short payload needs no arena");
    llm_ipc_flush(&p.worker);
    ok(!woken(&p.worker), "nothing consumed yet");
    is_int(take(&p.engine, &r), LLM_IPC_DONE, "the engine takes the large one");
    llm_ipc_flush(&p.engine);
    ok(woken(&p.worker), "and wakes the worker, which waits for room");
    llm_ipc_awake(&p.worker);
    is_int(send_bytes(&p.worker, LLM_IPC_SUBMIT, LLM_IPC_MIN_ARENA / 2), LLM_IPC_DONE,
           "which goes on at the arena's start");
    llm_ipc_flush(&p.worker);
    is_int(take(&p.engine, &r), LLM_IPC_DONE, "the short one");
    is_int(take(&p.engine, &r), LLM_IPC_DONE, "the large one");
    ok(r.length == LLM_IPC_MIN_ARENA / 2 && memcmp(r.data, bytes, r.length) == 0, "as sent");
    pair_close(&p);
}

static void test_wake(void)
{
    struct llm_ipc_record r;
    struct pair p;

    pair_open(&p, &small_worker, &small_engine);
    send_bytes(&p.worker, LLM_IPC_SUBMIT, 1);
    llm_ipc_flush(&p.worker);
    ok(!woken(&p.engine), "who is awake is not woken");
    ok(!llm_ipc_sleep(&p.engine), "no sleep while there is a record");
    is_int(control(&p.engine)->sleeping, 0, "and no word of it");
    is_int(take(&p.engine, &r), LLM_IPC_DONE, "the record");
    ok(llm_ipc_sleep(&p.engine), "then sleep");
    ok(!woken(&p.engine), "in peace");

    send_bytes(&p.worker, LLM_IPC_SUBMIT, 1);
    ok(!woken(&p.engine), "until a flush");
    ok(llm_ipc_sleep(&p.worker), "which going to sleep includes");
    ok(woken(&p.engine), "the engine is woken");
    llm_ipc_awake(&p.engine);
    ok(!woken(&p.engine), "its event is drained");
    is_int(control(&p.engine)->sleeping, 0, "its word taken back");
    is_int(take(&p.engine, &r), LLM_IPC_DONE, "the record");

    ok(llm_ipc_sleep(&p.engine), "asleep again");
    for (int i = 0; i < 1000; i++) {
        llm_ipc_flush(&p.worker);
    }
    ok(!woken(&p.engine), "a flush of nothing wakes nobody");
    for (int i = 0; i < 1000; i++) {
        send_bytes(&p.worker, LLM_IPC_SUBMIT, 1);
        llm_ipc_flush(&p.worker);
    }
    ok(woken(&p.engine), "a thousand wake-ups do not block");
    is_int(drain(&p.engine), 1000, "nor lose a record");
    pair_close(&p);
}

/* What a peer may not publish. Each takes the cheat's own control and changes it. */
static void tail_ahead(struct llm_ipc_session *s)
{
    control(s)->tail = s->tail + s->own.entries + 1;
}

static void tail_back(struct llm_ipc_session *s)
{
    control(s)->tail = s->tail - 1;
}

static void head_ahead(struct llm_ipc_session *s)
{
    control(s)->head = s->head + 4;
}

static void head_back(struct llm_ipc_session *s)
{
    control(s)->head = s->head - 1;
}

static void arena_head_ahead(struct llm_ipc_session *s)
{
    control(s)->arena_head = s->arena_head + 4 * 128;
}

static void arena_head_back(struct llm_ipc_session *s)
{
    control(s)->arena_head = s->arena_head - 64;
}

static void test_words(void)
{
    static const struct {
        const char *name;
        void (*cheat)(struct llm_ipc_session *s);
        const char *error;
    } cases[] = {
        {"tail ahead of the ring", tail_ahead, "ring tail out of range"},
        {"tail back", tail_back, "ring tail out of range"},
        {"head ahead of what was sent", head_ahead, "ring head out of range"},
        {"head back", head_back, "ring head out of range"},
        {"arena_head ahead", arena_head_ahead, "arena head out of range"},
        {"arena_head back", arena_head_back, "arena head out of range"},
    };
    struct llm_ipc_record r;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct pair p;

        pair_open(&p, &small_worker, &small_engine);
        /* some traffic, so that every index has a good value below the last */
        for (int j = 0; j < 3; j++) {
            send_bytes(&p.engine, LLM_IPC_TOKEN, 100);
            send_bytes(&p.worker, LLM_IPC_SUBMIT, 100);
        }
        llm_ipc_flush(&p.engine);
        llm_ipc_flush(&p.worker);
        drain(&p.engine);
        drain(&p.worker);
        llm_ipc_flush(&p.engine);
        llm_ipc_flush(&p.worker);
        is_int(take(&p.worker, &r), LLM_IPC_AGAIN, "an honest engine");
        send_bytes(&p.worker, LLM_IPC_SUBMIT, 100); /* three more not consumed yet */
        send_bytes(&p.worker, LLM_IPC_SUBMIT, 100);
        send_bytes(&p.worker, LLM_IPC_SUBMIT, 100);
        llm_ipc_flush(&p.worker);

        cases[i].cheat(&p.engine);
        is_int(take(&p.worker, &r), LLM_IPC_BROKEN, "%s", cases[i].name);
        is_str(p.worker.error, cases[i].error, "and why");
        pair_close(&p);
    }
}

static void test_send_to_liar(void)
{
    struct pair p;

    pair_open(&p, &small_worker, &small_engine);
    fill(&p.worker, LLM_IPC_SUBMIT, 1);
    control(&p.engine)->head = p.worker.tail + 1;
    is_int(send_bytes(&p.worker, LLM_IPC_SUBMIT, 1), LLM_IPC_BROKEN, "a sender in need looks too");
    pair_close(&p);
}

static void test_descriptors(void)
{
    static const uint32_t half = LLM_IPC_MIN_ARENA / 2;
    static const struct {
        const char *name;
        struct llm_ipc_desc desc;
        int rc;
    } cases[] = {
        {"the shortest of the arena", {.type = LLM_IPC_TOKEN, .length = 41}, LLM_IPC_DONE},
        {"half the arena", {.type = LLM_IPC_TOKEN, .length = half, .pos = half}, LLM_IPC_DONE},
        {"the last slot", {.type = LLM_IPC_TOKEN, .slot = LLM_IPC_MIN_SLOTS - 1}, LLM_IPC_DONE},
        {"a slot too many", {.type = LLM_IPC_TOKEN, .slot = LLM_IPC_MIN_SLOTS}, LLM_IPC_BROKEN},
        {"type 0", {.type = 0}, LLM_IPC_BROKEN},
        {"a type between", {.type = LLM_IPC_COUNTED - 1}, LLM_IPC_BROKEN},
        {"a type above", {.type = LLM_IPC_PURGED + 1}, LLM_IPC_BROKEN},
        {"a worker's type", {.type = LLM_IPC_CREDIT}, LLM_IPC_BROKEN},
        {"reserved bits", {.type = LLM_IPC_TOKEN, .reserved = 1}, LLM_IPC_BROKEN},
        {"a position without need", {.type = LLM_IPC_TOKEN, .length = 40, .pos = 64},
         LLM_IPC_BROKEN},
        {"more than half the arena", {.type = LLM_IPC_TOKEN, .length = half + 1}, LLM_IPC_BROKEN},
        {"the largest length", {.type = LLM_IPC_TOKEN, .length = UINT32_MAX}, LLM_IPC_BROKEN},
        {"no alignment", {.type = LLM_IPC_TOKEN, .length = 41, .pos = 32}, LLM_IPC_BROKEN},
        {"over the arena's end",
         {.type = LLM_IPC_TOKEN, .length = 100, .pos = LLM_IPC_MIN_ARENA - 64},
         LLM_IPC_BROKEN},
        {"beyond what is free", {.type = LLM_IPC_TOKEN, .length = 100, .pos = LLM_IPC_MIN_ARENA},
         LLM_IPC_BROKEN},
        {"before the start", {.type = LLM_IPC_TOKEN, .length = 41, .pos = (uint64_t) -64},
         LLM_IPC_BROKEN},
        {"a sum that overflows",
         {.type = LLM_IPC_TOKEN, .length = 4096, .pos = UINT64_MAX - 63},
         LLM_IPC_BROKEN},
    };
    struct llm_ipc_record r;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct pair p;

        pair_open(&p, &small_worker, &small_engine);
        memcpy(llm_ipc_region_desc(&p.engine.own, 0), &cases[i].desc, sizeof(cases[i].desc));
        control(&p.engine)->tail = 1;
        is_int(take(&p.worker, &r), cases[i].rc, "%s", cases[i].name);
        if (cases[i].rc == LLM_IPC_BROKEN) {
            is_int(take(&p.worker, &r), LLM_IPC_BROKEN, "and nothing comes after it");
        }
        pair_close(&p);
    }
}

/* Where the payload after one of 100 bytes may lie. */
static void test_second_payload(void)
{
    static const struct {
        const char *name;
        uint64_t pos;
        uint32_t length;
        int rc;
    } cases[] = {
        {"the next one", 128, 100, LLM_IPC_DONE},
        {"a gap before it", 4096, 100, LLM_IPC_DONE},
        {"at the arena's start again", LLM_IPC_MIN_ARENA, 128, LLM_IPC_DONE},
        {"the same again", 0, 100, LLM_IPC_BROKEN},
        {"into the first", 64, 100, LLM_IPC_BROKEN},
        {"into the first at the arena's start", LLM_IPC_MIN_ARENA, 129, LLM_IPC_BROKEN},
        {"over the arena's end", LLM_IPC_MIN_ARENA - 64, 100, LLM_IPC_BROKEN},
    };
    struct llm_ipc_desc desc = {.type = LLM_IPC_TOKEN, .length = 100};
    struct llm_ipc_record r;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct llm_ipc_desc second = desc;
        struct pair p;

        second.pos = cases[i].pos;
        second.length = cases[i].length;
        pair_open(&p, &small_worker, &small_engine);
        memcpy(llm_ipc_region_desc(&p.engine.own, 0), &desc, sizeof(desc));
        memcpy(llm_ipc_region_desc(&p.engine.own, 1), &second, sizeof(second));
        control(&p.engine)->tail = 2;
        take(&p.worker, &r);
        is_int(take(&p.worker, &r), cases[i].rc, "the second payload: %s", cases[i].name);
        pair_close(&p);
    }
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CAN_LIMIT_MEMORY 0 /* their own memory comes from the same purse */
#else
#define CAN_LIMIT_MEMORY 1
#endif

/* A record that there is no memory for stays where it is. */
static void test_no_memory(void)
{
    struct llm_ipc_buffer b = {0};
    struct rlimit old, none;
    struct llm_ipc_record r;
    struct pair p;

    pair_open(&p, &small_worker, &small_engine);
    send_bytes(&p.engine, LLM_IPC_TOKEN, LLM_IPC_MIN_ARENA / 2);
    llm_ipc_flush(&p.engine);

    mallopt(M_MMAP_THRESHOLD, 4096); /* past what the heap has left */
    getrlimit(RLIMIT_DATA, &old);
    none = old;
    none.rlim_cur = 4096; /* 0 is taken for "no limit" */
    setrlimit(RLIMIT_DATA, &none);
    is_int(llm_ipc_recv(&p.worker, &r, &b), LLM_IPC_ERROR, "a large record without memory");
    setrlimit(RLIMIT_DATA, &old);
    is_int(llm_ipc_recv(&p.worker, &r, &b), LLM_IPC_DONE, "is still there with memory");
    ok(r.length == LLM_IPC_MIN_ARENA / 2 && memcmp(r.data, bytes, r.length) == 0, "as sent");
    llm_ipc_buffer_free(&b);
    pair_close(&p);
}

static void test_private_copy(void)
{
    struct llm_ipc_record small, large;
    struct pair p;

    pair_open(&p, &small_worker, &small_engine);
    send_bytes(&p.engine, LLM_IPC_TOKEN, 40);
    send_bytes(&p.engine, LLM_IPC_TOKEN, 4000);
    llm_ipc_flush(&p.engine);
    take(&p.worker, &small);
    take(&p.worker, &large);
    memset(p.engine.own.base, 0xee, p.engine.own.size);
    ok(small.length == 40 && memcmp(small.data, bytes, 40) == 0, "a short record is a copy");
    ok(large.length == 4000 && memcmp(large.data, bytes, 4000) == 0, "so is a long one");
    pair_close(&p);
}

int main(void)
{
    uint64_t seed = first_seed();

    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (uint8_t) (next_random(&seed) >> 56);
    }

    test_lengths();
    test_too_big();
    test_order();
    test_full_ring();
    test_reserve();
    test_full_arena();
    test_wake();
    test_words();
    test_send_to_liar();
    test_descriptors();
    test_second_payload();
    test_private_copy();
    if (CAN_LIMIT_MEMORY) {
        test_no_memory();
    }

    llm_ipc_buffer_free(&buffer);
    return done_testing();
}
