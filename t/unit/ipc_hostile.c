/* A peer that writes anything anywhere in its region, at any time, while this side works: header,
 * control words, descriptors, payloads, also after they were published. This side may only say
 * LLM_IPC_BROKEN, or hand out records that the readers then judge. Its mapping of the peer's
 * region stands between pages that nobody may touch. */

#include "t/unit/ipc_samples.h"
#include "t/unit/tap.h"

#include <signal.h>

#define GUARD (64u << 10)

static struct llm_ipc_writer samples[2]; /* SUBMIT of a chat, of a completion */
static uint8_t token[256];
static size_t token_length;

/* --- the attacker, in a process of its own --- */

struct attacker {
    struct llm_ipc_session *s;
    uint64_t seed;
    uint32_t tail;
    uint32_t sessions;
};

/* Where the victim says that it dropped a session, and the pipe over which the attacker answers
 * that its region is as new. (Real sessions would do, but cost a hundred times more.) */
static uint32_t *dropped;
static int ready[2];

static uint64_t roll(struct attacker *a, uint64_t n)
{
    return (next_random(&a->seed) >> 16) % n;
}

/* Mostly near what is allowed, where the checks are; sometimes anything. */
static uint64_t near(struct attacker *a, uint64_t value)
{
    switch (roll(a, 4)) {
    case 0:
        return value;
    case 1:
        return value + roll(a, 5) - 2;
    case 2:
        return value + 64 * (roll(a, 9) - 4);
    default:
        return next_random(&a->seed) >> roll(a, 64);
    }
}

static void corrupt(struct attacker *a, uint8_t *bytes, size_t len, uint64_t times)
{
    while (times-- > 0 && len > 0) {
        bytes[roll(a, len)] = (uint8_t) roll(a, 256);
    }
}

/* A record that is right in everything but what the dice change. */
static void put_record(struct attacker *a)
{
    const struct llm_ipc_control *victim = llm_ipc_region_control(&a->s->peer);
    bool to_engine = a->s->side == LLM_IPC_SIDE_WORKER;
    struct llm_ipc_desc d = {.slot = (uint32_t) roll(a, a->s->slots)};
    uint8_t payload[8192];
    const void *sample;
    size_t length;

    if (to_engine) {
        const struct llm_ipc_writer *w = &samples[roll(a, 2)];

        d.type = LLM_IPC_SUBMIT;
        sample = w->data;
        length = w->len;
    } else {
        d.type = LLM_IPC_TOKEN;
        sample = token;
        length = token_length;
    }
    memcpy(payload, sample, length);
    if (roll(a, 2) == 0) {
        corrupt(a, payload, length, roll(a, 4));
    }
    if (roll(a, 4) == 0) { /* other records, of any length */
        d.type = (uint16_t) (to_engine ? 1 + roll(a, 5) : 32 + roll(a, 4));
        length = roll(a, 200);
    }

    d.length = (uint32_t) length;
    if (length <= LLM_IPC_INLINE) {
        memcpy(d.data, payload, length);
    } else {
        d.pos = __atomic_load_n(&victim->arena_head, __ATOMIC_SEQ_CST);
        if ((d.pos & (a->s->own.arena_size - 1)) + length > a->s->own.arena_size) {
            d.pos += a->s->own.arena_size - (d.pos & (a->s->own.arena_size - 1));
        }
        memcpy(llm_ipc_region_arena(&a->s->own, d.pos), payload, length);
    }

    switch (roll(a, 30)) {
    case 0:
        d.type = (uint16_t) near(a, d.type);
        break;
    case 1:
        d.slot = (uint32_t) near(a, a->s->slots);
        break;
    case 2:
        d.length = (uint32_t) near(a, d.length);
        break;
    case 3:
        d.length = (uint32_t) near(a, a->s->own.arena_size / 2);
        break;
    case 4:
        d.pos = near(a, d.pos);
        break;
    case 5:
        d.pos = near(a, d.pos + a->s->own.arena_size);
        break;
    case 6:
        d.reserved = (uint16_t) near(a, 0);
        break;
    default:
        break;
    }

    memcpy(llm_ipc_region_desc(&a->s->own, a->tail), &d, sizeof(d));
    __atomic_store_n(&llm_ipc_region_control(&a->s->own)->tail, ++a->tail, __ATOMIC_SEQ_CST);
}

/* The victim's records, consumed as a good peer would. */
static void consume(struct attacker *a)
{
    const struct llm_ipc_control *victim = llm_ipc_region_control(&a->s->peer);
    struct llm_ipc_control *own = llm_ipc_region_control(&a->s->own);
    uint32_t tail = __atomic_load_n(&victim->tail, __ATOMIC_SEQ_CST);
    struct llm_ipc_desc last;

    if (tail == own->head) {
        return;
    }
    memcpy(&last, llm_ipc_region_desc(&a->s->peer, tail - 1), sizeof(last));
    if (last.length > LLM_IPC_INLINE) {
        __atomic_store_n(&own->arena_head, last.pos + ((last.length + 63u) & ~63u),
                         __ATOMIC_SEQ_CST);
    }
    __atomic_store_n(&own->head, tail, __ATOMIC_SEQ_CST);
}

/* Words of control, near their values or not. */
static void twist_control(struct attacker *a)
{
    struct llm_ipc_control *own = llm_ipc_region_control(&a->s->own);

    switch (roll(a, 6)) {
    case 0:
        own->tail = (uint32_t) near(a, a->tail);
        break;
    case 1:
        own->head = (uint32_t) near(a, own->head);
        break;
    case 2:
        own->arena_head = near(a, own->arena_head);
        break;
    case 3:
        own->sleeping = (uint32_t) near(a, 1);
        break;
    case 4:
        own->starved = (uint32_t) near(a, 1);
        break;
    default:
        corrupt(a, (uint8_t *) own, sizeof(*own), 4);
    }
}

static void attack(struct attacker *a)
{
    uint8_t *base = a->s->own.base;

    if (__atomic_load_n(dropped, __ATOMIC_SEQ_CST) != a->sessions) {
        a->sessions++;
        a->tail = 0;
        memset(llm_ipc_region_control(&a->s->own), 0, sizeof(struct llm_ipc_control));
        if (write(ready[1], "", 1) != 1) {
            _exit(1);
        }
    }

    switch (roll(a, 40)) {
    case 0:
        corrupt(a, base, LLM_IPC_RING_OFFSET, 8);
        break;
    case 1:
        twist_control(a);
        break;
    case 2: /* descriptors and payloads that the victim may be reading now */
        corrupt(a, llm_ipc_region_desc(&a->s->own, a->tail - 1 - (uint32_t) roll(a, 8)), 24, 2);
        break;
    case 3:
        corrupt(a, base + a->s->own.arena_offset, a->s->own.arena_size, 1000);
        break;
    case 4:
        corrupt(a, base, a->s->own.size, 1000);
        break;
    case 5:
        send(a->s->peer_event, base, roll(a, 100), MSG_DONTWAIT | MSG_NOSIGNAL);
        break;
    case 6:
    case 7:
    case 8:
        consume(a);
        break;
    default:
        put_record(a);
    }
}

/* --- the victim --- */

struct counts {
    long records, broken, accepted, refused, malformed, sent, full;
};

/* The peer's region between pages that crash. */
static void guard_peer(struct llm_ipc_session *s)
{
    uint8_t *room = mmap(NULL, s->peer.size + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
                         -1, 0);

    if (room == MAP_FAILED
        || mremap(s->peer.base, s->peer.size, s->peer.size, MREMAP_MAYMOVE | MREMAP_FIXED,
                  room + GUARD) == MAP_FAILED)
    {
        die("guard");
    }
    s->peer.base = room + GUARD;
}

/* As llm_ipc_close and a new handshake would leave it. */
static void start_over(struct llm_ipc_session *s)
{
    char byte;

    s->head = s->peer_tail = s->tail = s->peer_head = 0;
    s->arena_head = s->arena_tail = s->peer_arena_head = 0;
    s->sent = s->consumed = false;
    s->error = NULL;
    memset(llm_ipc_region_control(&s->own), 0, sizeof(struct llm_ipc_control));

    __atomic_add_fetch(dropped, 1, __ATOMIC_SEQ_CST);
    if (read(ready[0], &byte, 1) != 1) {
        die("the attacker is gone");
    }
}

static bool record_sane(const struct llm_ipc_session *s, const struct llm_ipc_record *r)
{
    bool engine = s->side == LLM_IPC_SIDE_ENGINE;

    return r->slot < s->slots && r->length <= s->peer.arena_size / 2
           && (engine ? r->type >= LLM_IPC_SUBMIT && r->type <= LLM_IPC_PURGE
                      : r->type >= LLM_IPC_COUNTED && r->type <= LLM_IPC_PURGED);
}

static const char *victim_turn(struct llm_ipc_session *s, struct counts *c, uint64_t *sum)
{
    struct llm_ipc_record r;
    struct llm_ipc_buffer b = {0}; /* of the exact size, for AddressSanitizer */
    struct llm_ipc_iovec part = {token, token_length};
    uint16_t type = s->side == LLM_IPC_SIDE_WORKER ? LLM_IPC_SUBMIT : LLM_IPC_TOKEN;
    int rc;

    rc = LLM_IPC_DONE;
    for (int i = 0; i < 20 && rc == LLM_IPC_DONE; i++) {
        rc = llm_ipc_send(s, type, 0, 0, &part, 1);
        c->sent += rc == LLM_IPC_DONE;
        c->full += rc == LLM_IPC_AGAIN;
        if (rc == LLM_IPC_BROKEN) {
            c->broken++;
            start_over(s);
        } else if (rc != LLM_IPC_DONE && rc != LLM_IPC_AGAIN) {
            return "send says something else";
        }
    }

    for (int i = 0; i < 16; i++) {
        rc = llm_ipc_recv(s, &r, &b);
        if (rc == LLM_IPC_DONE) {
            c->records++;
            if (!record_sane(s, &r)) {
                return "a record that must not pass";
            }
            rc = read_record(&r, sum);
            c->accepted += rc == LLM_IPC_DONE;
            c->refused += rc == LLM_IPC_REFUSED;
            c->malformed += rc == LLM_IPC_BROKEN;
            llm_ipc_buffer_free(&b);
        } else if (rc == LLM_IPC_BROKEN) {
            c->broken++;
            if (s->error == NULL) {
                return "broken, and no word why";
            }
            start_over(s);
        } else if (rc != LLM_IPC_AGAIN) {
            return "recv says something else";
        }
    }

    if (llm_ipc_sleep(s)) {
        struct pollfd event = {.fd = s->own_event, .events = POLLIN};

        poll(&event, 1, 1); /* such a peer need not wake anyone */
        llm_ipc_awake(s);
    }
    return NULL;
}

static void run(struct llm_ipc_session *victim, struct llm_ipc_session *evil, uint64_t seed,
                const char *name)
{
    struct attacker a = {.s = evil, .seed = seed};
    struct counts c = {0};
    const char *error = NULL;
    uint64_t sum = 0;
    int status = -1;
    pid_t child;

    guard_peer(victim);
    *dropped = 0;
    fflush(stdout);
    child = fork();
    if (child < 0) {
        die("fork");
    }
    if (child == 0) {
        for (;;) {
            attack(&a);
        }
    }

    while (error == NULL && c.records < scaled(6000)) {
        error = victim_turn(victim, &c, &sum);
    }

    is_int(waitpid(child, &status, WNOHANG), 0, "%s: the attacker was at work to the end", name);
    kill(child, SIGKILL);
    waitpid(child, &status, 0);

    ok(error == NULL, "%s: %s", name, error != NULL ? error : "stands");
    diag("%ld records, %ld breaches; readers: %ld accepted, %ld refused, %ld malformed; "
         "%ld sent, %ld times full (%llx)",
         c.records, c.broken, c.accepted, c.refused, c.malformed, c.sent, c.full,
         (unsigned long long) sum);
    ok(c.records > 1000 && c.broken > 1000 && c.accepted > 1000 && c.malformed > 1000
           && c.sent > 1000,
       "%s: it met all of it", name);
}

int main(void)
{
    uint64_t seed = first_seed();
    struct pair p;

    dropped = mmap(NULL, sizeof(*dropped), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                   -1, 0);
    if (dropped == MAP_FAILED || pipe(ready) != 0) {
        die("set-up");
    }
    samples[0] = sample_submit(LLM_IPC_KIND_CHAT);
    samples[1] = sample_submit(LLM_IPC_KIND_COMPLETION);
    token_length = sample_token(token);

    pair_open(&p, &small_worker, &small_engine);
    run(&p.engine, &p.worker, seed, "the engine under a hostile worker");
    pair_close(&p);

    pair_open(&p, &small_worker, &small_engine);
    run(&p.worker, &p.engine, seed + 1, "the worker under a hostile engine");
    pair_close(&p);

    free(samples[0].data);
    free(samples[1].data);
    return done_testing();
}
