#include "engine/cache/redis/redis.h"

#include "engine/base/clock.h"
#include "engine/base/log.h"
#include "engine/cache/redis/load.h"
#include "engine/cache/redis/save.h"
#include "engine/cache/redis/value.h"

#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MIN_BUFFERS 4
#define MAX_BUFFERS 64
#define LOAD_BYTES (UINT64_C(128) << 20)
#define SAVE_BYTES (UINT64_C(64) << 20)
#define MAX_VALUE_BYTES (UINT64_C(512) << 20) /* Redis's own limit */
#define MAX_PAGES 8192                        /* asked for and not arrived, of all loads */
#define LOG_EVERY_NS (10 * LLM_NS_PER_S)      /* that a connection is gone, or back */
#define MAX_SLEEP_NS (3600 * LLM_NS_PER_S)
#define MAX_HEARD 256 /* epochs to be told; what is beyond is heard of again */
#define MAX_SPOILT 256 /* pages to be deleted; a power of two */

enum { NOTE_LOAD, NOTE_GIVE_BACK, NOTE_SAVE, NOTE_DELETE, NOTE_QUIT };

/* What the log has been told of a connection. */
struct told {
    enum { TOLD_NOTHING, TOLD_UP, TOLD_GONE } what;
    uint64_t ns; /* when; 0: never */
};

struct llm_redis {
    struct llm_redis_common common;
    struct llm_redis_ring asked;          /* from the model thread */
    struct llm_redis_ring arrived, freed; /* to it */
    int event;                            /* wakes the tier's thread */
    pthread_t thread;

    /* the tier's thread's */
    struct llm_redis_loader loader;
    struct llm_redis_saver saver;
    bool quit;
    struct told told_load, told_save;

    /* the model thread's */
    struct llm_redis_run *runs[LLM_REDIS_RUNS];
    uint32_t n_runs, n_pages;
    uint32_t *idle; /* buffers to be filled */
    uint32_t n_idle;
    uint32_t n_spoilt;
    struct llm_redis_epoch heard[MAX_HEARD];
    uint32_t n_heard, n_told; /* of them, the first n_told are told */

    struct llm_redis_spoilt spoilt[MAX_SPOILT]; /* number i at i % MAX_SPOILT */

    /* what the tier's thread tells */
    _Atomic uint32_t n_spoilt_taken;
    atomic_bool load_up, save_up;
    atomic_int breaker;
    _Atomic uint64_t connects, drops;
};

/* --- the tier's thread --- */

static void take_notes(struct llm_redis *r)
{
    struct llm_redis_note note;

    while (llm_redis_ring_take(&r->asked, &note)) {
        switch (note.kind) {
        case NOTE_LOAD:
            llm_redis_loader_add(&r->loader, note.run);
            break;
        case NOTE_GIVE_BACK:
            llm_redis_loader_give_back(&r->loader, note.buffer);
            break;
        case NOTE_SAVE:
            llm_redis_saver_add(&r->saver, note.buffer);
            break;
        case NOTE_DELETE:
            llm_redis_saver_forget(&r->saver, &r->spoilt[note.page]);
            atomic_fetch_add(&r->n_spoilt_taken, 1);
            break;
        default:
            r->quit = true;
        }
    }
}

static void tell_log(struct told *t, const struct llm_redis_link *link, const char *up,
                     const char *gone, uint64_t now)
{
    bool closed = llm_breaker_state(&link->breaker) == LLM_REDIS_CLOSED;
    struct told told = {.what = t->what, .ns = now};

    if (!closed) {
        told.what = TOLD_GONE;
    } else if (link->state == LLM_LINK_UP) {
        told.what = TOLD_UP;
    }
    if (told.what == t->what || (t->ns != 0 && now - t->ns < LOG_EVERY_NS)) {
        return;
    }

    if (closed) {
        llm_log(LLM_LOG_NOTICE, "redis: %s", up);
    } else {
        llm_log(LLM_LOG_WARN, "redis: %s: %s", gone, link->why);
    }
    *t = told;
}

/* Of saving only what is not the same of loading. */
static void tell_logs(struct llm_redis *r, uint64_t now)
{
    const struct llm_redis_link *load = &r->loader.link, *save = &r->saver.link;

    tell_log(&r->told_load, load, "connected", "left alone for now", now);
    if (llm_breaker_state(&load->breaker) == LLM_REDIS_CLOSED) {
        tell_log(&r->told_save, save, "pages are saved again", "no pages are saved for now", now);
    }
}

static void tell(struct llm_redis *r)
{
    const struct llm_redis_link *load = &r->loader.link, *save = &r->saver.link;

    atomic_store(&r->load_up, llm_redis_link_is_good(load));
    atomic_store(&r->save_up, llm_redis_link_is_good(save));
    atomic_store(&r->breaker, (int) llm_breaker_state(&load->breaker));
    atomic_store(&r->connects, load->connects + save->connects);
    atomic_store(&r->drops, load->drops + save->drops);
}

static int timeout_ms(const struct llm_redis *r, uint64_t now)
{
    uint64_t load = llm_redis_loader_next(&r->loader), save = llm_redis_saver_next(&r->saver);
    uint64_t next = load < save ? load : save;

    if (next <= now) {
        return 0;
    }
    next = next - now < MAX_SLEEP_NS ? next : now + MAX_SLEEP_NS;
    return (int) ((next - now) / LLM_NS_PER_MS) + 1;
}

static void *thread_main(void *arg)
{
    struct llm_redis *r = arg;
    const struct llm_redis_options *o = &r->common.options;
    struct pollfd fds[3] = {{.fd = r->event, .events = POLLIN}};

    for (;;) {
        uint64_t now;

        if (fds[0].revents != 0) {
            eventfd_read(r->event, &(eventfd_t){0}); /* before the notes are taken */
        }
        take_notes(r);
        if (r->quit) {
            break;
        }
        now = o->now(o->now_ctx);
        llm_redis_loader_turn(&r->loader, fds[1].revents, now);
        llm_redis_saver_turn(&r->saver, fds[2].revents, now);
        tell(r);
        tell_logs(r, now);

        fds[1] = llm_redis_link_poll(&r->loader.link);
        fds[2] = llm_redis_link_poll(&r->saver.link);
        poll(fds, 3, timeout_ms(r, o->now(o->now_ctx)));
    }
    return NULL;
}

/* --- opening --- */

static uint64_t monotonic(void *ctx)
{
    (void) ctx;
    return llm_now_ns();
}

static uint32_t buffers_in(uint64_t bytes, size_t page_bytes)
{
    uint64_t n = bytes / page_bytes;

    return n < MIN_BUFFERS ? MIN_BUFFERS : n > MAX_BUFFERS ? MAX_BUFFERS : (uint32_t) n;
}

static int init_common(struct llm_redis_common *c, const struct llm_redis_options *options,
                       struct llm_error *err)
{
    int rc = llm_redis_url_parse(options->url, &c->url, err);

    if (rc != LLM_OK) {
        return rc;
    }
    c->options = *options;
    c->options.url = NULL;
    if (c->options.now == NULL) {
        c->options.now = monotonic;
    }
    c->page_bytes = options->layout->page_bytes;
    c->value_bytes = llm_redis_value_bytes(options->layout);
    if (c->value_bytes > MAX_VALUE_BYTES) {
        return llm_fail(err, LLM_EUNSUPPORTED, "the model's pages are too large for Redis");
    }
    c->tenants.master = c->options.master;
    c->tenants.forgets = &c->forgets;
    return LLM_OK;
}

static int init_rings(struct llm_redis *r, uint32_t n_in, uint32_t n_out, struct llm_error *err)
{
    r->idle = calloc(n_out, sizeof(*r->idle));
    if (r->idle == NULL
        || !llm_redis_ring_init(&r->asked, LLM_REDIS_RUNS + n_in + n_out + MAX_SPOILT + 1)
        || !llm_redis_ring_init(&r->arrived, LLM_REDIS_RUNS + n_in)
        || !llm_redis_ring_init(&r->freed, n_out)) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    while (r->n_idle < n_out) {
        r->idle[r->n_idle] = r->n_idle;
        r->n_idle++;
    }
    return LLM_OK;
}

static void free_all(struct llm_redis *r)
{
    llm_redis_loader_free(&r->loader);
    llm_redis_saver_free(&r->saver);
    llm_redis_place_free(&r->common.place);
    llm_redis_forgets_free(&r->common.forgets);
    for (uint32_t i = 0; i < r->n_runs; i++) {
        llm_redis_run_free(r->runs[i]);
    }
    llm_redis_ring_free(&r->asked);
    llm_redis_ring_free(&r->arrived);
    llm_redis_ring_free(&r->freed);
    free(r->idle);
    if (r->event >= 0) {
        close(r->event);
    }
    explicit_bzero(r, sizeof(*r));
    free(r);
}

int llm_redis_open(const struct llm_redis_options *options, struct llm_redis **out,
                   struct llm_error *err)
{
    struct llm_redis *r = calloc(1, sizeof(*r));
    uint32_t n_in, n_out;
    int rc;

    if (r == NULL) {
        return llm_fail(err, LLM_ENOMEM, "out of memory");
    }
    r->event = -1;
    r->told_save.what = TOLD_UP; /* that goes without saying */
    llm_redis_forgets_init(&r->common.forgets);
    rc = init_common(&r->common, options, err);
    if (rc != LLM_OK) {
        goto failed;
    }

    n_in = buffers_in(LOAD_BYTES, r->common.page_bytes);
    n_out = buffers_in(SAVE_BYTES, r->common.page_bytes);
    rc = llm_redis_loader_init(&r->loader, &r->common, &r->arrived, n_in, err);
    if (rc == LLM_OK) {
        rc = llm_redis_saver_init(&r->saver, &r->common, &r->freed, n_out, err);
    }
    if (rc == LLM_OK) {
        rc = init_rings(r, n_in, n_out, err);
    }
    if (rc != LLM_OK) {
        goto failed;
    }
    r->loader.delete = llm_redis_saver_delete;
    r->loader.delete_ctx = &r->saver;

    r->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (r->event < 0) {
        rc = llm_fail(err, LLM_EIO, "cannot make an eventfd for the Redis thread");
        goto failed;
    }
    llm_redis_place_init(&r->common.place, &r->common.url);
    if (pthread_create(&r->thread, NULL, thread_main, r) != 0) {
        rc = llm_fail(err, LLM_ENOMEM, "cannot start the Redis thread");
        goto failed;
    }
    *out = r;
    return LLM_OK;

failed:
    free_all(r);
    return rc;
}

static void kick(struct llm_redis *r)
{
    eventfd_write(r->event, 1); /* can only fail when it is readable as it is */
}

static void send_note(struct llm_redis *r, const struct llm_redis_note *note)
{
    if (llm_redis_ring_put(&r->asked, note)) {
        kick(r);
    }
}

void llm_redis_close(struct llm_redis *r)
{
    if (r == NULL) {
        return;
    }
    send_note(r, &(struct llm_redis_note){.kind = NOTE_QUIT});
    pthread_join(r->thread, NULL);
    free_all(r);
}

/* --- epochs --- */

static void hear(struct llm_redis *r, const uint8_t owner[32], uint64_t epoch)
{
    struct llm_redis_epoch *e = &r->heard[r->n_heard];

    if (epoch != 0 && r->n_heard < MAX_HEARD) {
        memcpy(e->owner, owner, sizeof(e->owner));
        e->epoch = epoch;
        r->n_heard++;
    }
}

/* Takes the buffers of pages that are saved, or are not. */
static void take_freed(struct llm_redis *r)
{
    struct llm_redis_note note;

    while (llm_redis_ring_take(&r->freed, &note)) {
        const struct llm_redis_out *out = &r->saver.out[note.buffer];

        if (out->answers.epoch != out->epoch_of_page) {
            hear(r, out->owner, out->answers.epoch);
        }
        r->idle[r->n_idle++] = note.buffer;
    }
}

bool llm_redis_heard(struct llm_redis *r, struct llm_redis_epoch *out)
{
    take_freed(r);
    if (r->n_told == r->n_heard) {
        r->n_told = r->n_heard = 0;
        return false;
    }
    *out = r->heard[r->n_told++];
    return true;
}

/* --- loading --- */

bool llm_redis_load(struct llm_redis *r, uint64_t load, const uint8_t owner[32],
                    const struct llm_digest *digests, const uint32_t *ids, uint32_t n)
{
    const struct llm_redis_options *o = &r->common.options;
    bool half_open = atomic_load(&r->breaker) == LLM_REDIS_HALF_OPEN;
    struct llm_redis_run *run = NULL;

    if (atomic_load(&r->load_up) && r->n_runs < (half_open ? 1 : LLM_REDIS_RUNS)
        && n <= MAX_PAGES - r->n_pages) {
        run = llm_redis_run_new(load, owner, digests, ids, n);
    }
    if (run == NULL) {
        llm_redis_add(&r->common.tally.misses[LLM_REDIS_DOWN], n);
        return false;
    }

    run->then = llm_redis_forgets_now(&r->common.forgets);
    run->asked_ns = o->now(o->now_ctx);
    run->deadline_ns = run->asked_ns + o->deadline_ms * LLM_NS_PER_MS;
    r->runs[r->n_runs++] = run;
    r->n_pages += n;
    llm_redis_add(&r->common.tally.loads, 1);
    send_note(r, &(struct llm_redis_note){.kind = NOTE_LOAD, .run = run});
    return true;
}

uint32_t llm_redis_load_most(const struct llm_redis *r)
{
    return r->loader.n_buffers;
}

void llm_redis_cancel(struct llm_redis *r, uint64_t load)
{
    for (uint32_t i = 0; i < r->n_runs; i++) {
        if (r->runs[i]->load == load) {
            atomic_store_explicit(&r->runs[i]->cancelled, true, memory_order_release);
            kick(r);
        }
    }
}

/* The model thread has heard of its end. */
static void let_go(struct llm_redis *r, struct llm_redis_run *run)
{
    uint32_t i = 0;

    while (r->runs[i] != run) {
        i++;
    }
    r->runs[i] = r->runs[--r->n_runs];
    r->n_pages -= run->n;
    hear(r, run->owner, run->epoch_first);
    if (run->epoch_heard != run->epoch_first) {
        hear(r, run->owner, run->epoch_heard);
    }
    llm_redis_run_free(run);
}

static bool is_wanted(struct llm_redis *r, const struct llm_redis_run *run)
{
    return !atomic_load_explicit(&run->cancelled, memory_order_relaxed)
           && !llm_redis_forgotten(&r->common.forgets, run->owner, run->then);
}

bool llm_redis_arrived(struct llm_redis *r, struct llm_redis_arrival *a)
{
    struct llm_redis_note note;

    while (llm_redis_ring_take(&r->arrived, &note)) {
        struct llm_redis_run *run = note.run;

        *a = (struct llm_redis_arrival){.load = run->load, .ended = true};
        if (note.kind == LLM_REDIS_NOTE_END) {
            let_go(r, run);
            return true;
        }
        if (!is_wanted(r, run)) {
            llm_redis_give_back(r, note.buffer);
            continue;
        }
        a->ended = false;
        a->index = note.page;
        a->digest = run->digests[note.page];
        memcpy(a->ids, run->ids + (size_t) note.page * LLM_PAGE_TOKENS, sizeof(a->ids));
        a->bytes = r->loader.memory + (size_t) note.buffer * r->common.page_bytes;
        a->buffer = note.buffer;
        return true;
    }
    return false;
}

void llm_redis_give_back(struct llm_redis *r, uint32_t buffer)
{
    send_note(r, &(struct llm_redis_note){.kind = NOTE_GIVE_BACK, .buffer = buffer});
}

/* --- saving --- */

void *llm_redis_save_buffer(struct llm_redis *r, uint32_t *buffer)
{
    take_freed(r);
    if (r->n_idle == 0 || !atomic_load(&r->save_up)) {
        return NULL;
    }
    *buffer = r->idle[--r->n_idle];
    return r->saver.memory + (size_t) *buffer * r->common.page_bytes;
}

void llm_redis_save(struct llm_redis *r, uint32_t buffer, const uint8_t owner[32], uint64_t epoch,
                    uint32_t max_pages, const struct llm_digest *digest,
                    const uint32_t ids[LLM_PAGE_TOKENS])
{
    struct llm_redis_out *out = &r->saver.out[buffer];

    memcpy(out->owner, owner, sizeof(out->owner));
    out->epoch_of_page = epoch;
    out->max_pages = max_pages;
    memcpy(out->ids, ids, sizeof(out->ids));
    out->digest = *digest;
    out->then = llm_redis_forgets_now(&r->common.forgets);
    send_note(r, &(struct llm_redis_note){.kind = NOTE_SAVE, .buffer = buffer});
}

void llm_redis_drop(struct llm_redis *r, uint32_t buffer)
{
    r->idle[r->n_idle++] = buffer;
}

void llm_redis_delete(struct llm_redis *r, const uint8_t owner[32], uint64_t epoch,
                      const struct llm_digest *digest)
{
    uint32_t at = r->n_spoilt % MAX_SPOILT;

    if (r->n_spoilt - atomic_load(&r->n_spoilt_taken) == MAX_SPOILT) {
        return;
    }
    memcpy(r->spoilt[at].owner, owner, sizeof(r->spoilt[at].owner));
    r->spoilt[at].epoch = epoch;
    r->spoilt[at].digest = *digest;
    r->n_spoilt++;
    send_note(r, &(struct llm_redis_note){.kind = NOTE_DELETE, .page = at});
}

/* --- any thread --- */

struct llm_redis_rates llm_redis_rates(const struct llm_redis *r)
{
    return (struct llm_redis_rates){
        .first_ns = llm_redis_read(&r->loader.first_ns),
        .bytes_per_s = llm_redis_read(&r->loader.bytes_per_s),
        .up = atomic_load(&r->load_up),
    };
}

void llm_redis_forget_tenant(struct llm_redis *r, const uint8_t owner[32])
{
    llm_redis_forgets_add(&r->common.forgets, owner);
    kick(r);
}

struct llm_redis_counts llm_redis_counts(const struct llm_redis *r)
{
    const struct llm_redis_tally *t = &r->common.tally;
    struct llm_redis_counts c = {
        .loads = llm_redis_read(&t->loads),
        .hits = llm_redis_read(&t->hits),
        .saved = llm_redis_read(&t->saved),
        .already_there = llm_redis_read(&t->already_there),
        .over_quota = llm_redis_read(&t->over_quota),
        .unsaved = llm_redis_read(&t->unsaved),
        .bytes_in = llm_redis_read(&t->bytes_in),
        .bytes_out = llm_redis_read(&t->bytes_out),
        .connects = llm_redis_read(&r->connects),
        .drops = llm_redis_read(&r->drops),
        .breaker = (enum llm_redis_breaker) atomic_load(&r->breaker),
    };

    for (int i = 0; i < LLM_REDIS_N_MISSES; i++) {
        c.misses[i] = llm_redis_read(&t->misses[i]);
    }
    return c;
}
