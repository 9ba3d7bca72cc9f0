#include "engine/cache/redis/load.h"

#include "engine/base/clock.h"
#include "engine/base/memory.h"
#include "engine/cache/redis/value.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Answers under way: enough for any link, not much in vain when one is dropped, and little enough
 * for Redis's copies of them to stay in its processor's caches. The next page is always asked for
 * while one arrives. */
#define OUT_BYTES (4u << 20)
#define MIN_OUT 2

#define TURN_PAGES 4 /* asked for a run before it is another's turn */

/* The newest load has this share in the rates. */
#define NEW_SHARE 4

enum { KIND_EPOCH, KIND_PAGE, KIND_UNHEEDED };

struct llm_redis_run *llm_redis_run_new(uint64_t load, const uint8_t owner[32],
                                        const struct llm_digest *digests, const uint32_t *ids,
                                        uint32_t n)
{
    size_t n_digests = n * sizeof(*digests);
    size_t n_ids = (size_t) n * LLM_PAGE_TOKENS * sizeof(*ids);
    struct llm_redis_run *run = calloc(1, sizeof(*run) + n_digests + n_ids);

    if (run == NULL) {
        return NULL;
    }
    run->load = load;
    run->n = n;
    run->fate = LLM_LINK_FINE;
    run->ids = (uint32_t *) (run->digests + n);
    memcpy(run->owner, owner, sizeof(run->owner));
    memcpy(run->digests, digests, n_digests);
    memcpy(run->ids, ids, n_ids);
    atomic_init(&run->cancelled, false);
    return run;
}

void llm_redis_run_free(struct llm_redis_run *r)
{
    if (r != NULL) {
        explicit_bzero(&r->keys, sizeof(r->keys));
        free(r);
    }
}

/* --- buffers --- */

static uint8_t *page_of(const struct llm_redis_loader *l, uint32_t buffer)
{
    return l->memory + (size_t) buffer * l->common->page_bytes;
}

static void set_buffer(struct llm_redis_loader *l, uint32_t buffer,
                       enum llm_redis_buffer_state state)
{
    l->n_out -= l->in[buffer].state == LLM_BUFFER_ASKED;
    l->n_out += state == LLM_BUFFER_ASKED;
    l->in[buffer].state = state;
}

/* n_buffers: none. */
static uint32_t free_buffer(const struct llm_redis_loader *l)
{
    uint32_t i = 0;

    while (i < l->n_buffers && l->in[i].state != LLM_BUFFER_FREE) {
        i++;
    }
    return i;
}

void llm_redis_loader_give_back(struct llm_redis_loader *l, uint32_t buffer)
{
    set_buffer(l, buffer, LLM_BUFFER_FREE);
}

/* --- the end of a load --- */

static void blend(_Atomic uint64_t *rate, uint64_t sample)
{
    uint64_t old = llm_redis_read(rate);
    uint64_t new = old == 0 ? sample : old - old / NEW_SHARE + sample / NEW_SHARE;

    atomic_store_explicit(rate, new > 0 ? new : 1, memory_order_relaxed);
}

/* A load of a single page tells no more of the rate than that it is not lower than this. */
static void measure(struct llm_redis_loader *l, const struct llm_redis_run *run,
                    enum llm_redis_miss reason, uint64_t now)
{
    bool late = reason == LLM_REDIS_LATE;
    uint64_t n = run->n_timed, first, lasted, bound;

    if (n == 0 && (run->starved || !late)) {
        return;
    }
    first = n > 0 ? run->first_ns - run->asked_ns : now - run->asked_ns;
    if (n > 0 || first > llm_redis_read(&l->first_ns)) {
        blend(&l->first_ns, first);
    }
    if (n == 0) {
        return;
    }

    lasted = (late && !run->starved ? now : run->last_ns) - run->first_ns;
    if (n > 1 && lasted > 0) {
        blend(&l->bytes_per_s, (uint64_t) ((double) (n - 1) * (double) l->common->value_bytes
                                           * LLM_NS_PER_S / (double) lasted));
        return;
    }
    bound = (uint64_t) ((double) l->common->value_bytes * LLM_NS_PER_S / (double) (first + 1));
    if (bound > llm_redis_read(&l->bytes_per_s)) {
        atomic_store_explicit(&l->bytes_per_s, bound, memory_order_relaxed);
    }
}

/* The run's pages that have not been answered are missed for this reason. Nothing of it may be
 * outstanding. */
static void end_run(struct llm_redis_loader *l, struct llm_redis_run *run,
                    enum llm_redis_miss reason, uint64_t now)
{
    struct llm_redis_run **p = &l->runs;

    while (*p != run) {
        p = &(*p)->next;
    }
    *p = run->next;

    if (run->n_answered < run->n) {
        llm_redis_add(&l->common->tally.misses[reason], run->n - run->n_answered);
    }
    measure(l, run, reason, now);
    llm_redis_ring_put(l->arrivals,
                       &(struct llm_redis_note){.kind = LLM_REDIS_NOTE_END, .run = run});
}

/* The connection is gone, with everything outstanding: what was asked for and not answered is to be
 * asked for again. */
static void rewind_runs(struct llm_redis_loader *l)
{
    for (uint32_t i = 0; i < l->n_buffers; i++) {
        if (l->in[i].state == LLM_BUFFER_ASKED) {
            set_buffer(l, i, LLM_BUFFER_FREE);
        }
    }
    for (struct llm_redis_run *run = l->runs; run != NULL; run = run->next) {
        run->n_asked = run->n_answered;
        run->n_out = 0;
        run->epoch_asked = false;
    }
}

static void delete_epoch(struct llm_redis_loader *l, const struct llm_redis_run *run)
{
    char name[LLM_REDIS_NAME_MAX];

    llm_redis_epoch_name(&run->keys, name);
    l->delete(l->delete_ctx, name);
}

/* A string was longer than what was asked for can be. */
static void delete_too_long(struct llm_redis_loader *l, const struct llm_redis_asked *asked)
{
    if (asked->kind == KIND_PAGE) {
        l->delete(l->delete_ctx, l->in[asked->index].name);
    } else if (asked->kind == KIND_EPOCH) {
        delete_epoch(l, asked->who);
    }
}

/* A value in the wrong place leaves the others their chance; after anything else nobody waits for
 * Redis to come back. */
static void lose(struct llm_redis_loader *l, enum llm_redis_miss reason, uint64_t now)
{
    if (reason == LLM_REDIS_PROTOCOL && l->link.scan.too_long) {
        delete_too_long(l, &l->link.faulty);
    }
    rewind_runs(l);
    while (reason != LLM_REDIS_CORRUPT && l->runs != NULL) {
        struct llm_redis_run *run = l->runs;

        end_run(l, run, run->fate != LLM_LINK_FINE ? run->fate : reason, now);
    }
}

/* --- answers --- */

static void miss(struct llm_redis_loader *l, struct llm_redis_run *run, enum llm_redis_miss reason)
{
    run->n_answered++;
    llm_redis_add(&l->common->tally.misses[reason], 1);
}

static enum llm_redis_miss epoch_answered(struct llm_redis_loader *l, struct llm_redis_run *run,
                                          const struct llm_redis_answer *a)
{
    struct llm_redis_tenant *tenant = llm_redis_tenant(&l->common->tenants, run->owner);
    uint64_t epoch = 0;

    if (a->kind == LLM_ANSWER_STRING) {
        epoch = llm_redis_number_read(a->text, a->len);
    } else if (a->kind != LLM_ANSWER_NIL && !llm_redis_answer_is_error(a, "WRONGTYPE")) {
        return a->kind == LLM_ANSWER_ERROR ? LLM_REDIS_REFUSED : LLM_REDIS_PROTOCOL;
    }

    if (a->kind == LLM_ANSWER_NIL) {
        run->fate = LLM_REDIS_ABSENT; /* who writes first makes one, and all names are new */
    } else if (epoch == 0) {
        run->fate = LLM_REDIS_CORRUPT;
        delete_epoch(l, run);
    } else if (run->epoch != 0 && run->epoch != epoch) {
        run->fate = LLM_REDIS_STALE;
    }

    run->epoch = run->epoch_heard = epoch;
    run->epoch_first = run->epoch_first != 0 ? run->epoch_first : epoch;
    if (tenant != NULL) {
        tenant->epoch = epoch;
        tenant->then = run->then;
    }
    return LLM_LINK_FINE;
}

static void hit(struct llm_redis_loader *l, struct llm_redis_run *run, uint32_t buffer)
{
    uint64_t now = l->common->options.now(l->common->options.now_ctx);

    if (!run->starved) {
        run->first_ns = run->n_timed == 0 ? now : run->first_ns;
        run->last_ns = now;
        run->n_timed++;
    }
    run->n_answered++;
    llm_redis_add(&l->common->tally.hits, 1);
    llm_redis_add(&l->common->tally.bytes_in, l->common->value_bytes);

    l->in[buffer].state = LLM_BUFFER_GIVEN;
    l->in[buffer].used = true;
    llm_redis_ring_put(l->arrivals,
                       &(struct llm_redis_note){.kind = LLM_REDIS_NOTE_PAGE,
                                                .buffer = buffer,
                                                .page = l->in[buffer].page,
                                                .run = run});
}

static enum llm_redis_miss page_answered(struct llm_redis_loader *l, struct llm_redis_run *run,
                                         uint32_t buffer, const struct llm_redis_answer *a)
{
    const struct llm_redis_in *in = &l->in[buffer];

    set_buffer(l, buffer, LLM_BUFFER_FREE);
    if (a->kind == LLM_ANSWER_NIL || run->fate != LLM_LINK_FINE) {
        miss(l, run, run->fate != LLM_LINK_FINE ? run->fate : LLM_REDIS_ABSENT);
        return LLM_LINK_FINE;
    }
    if (llm_redis_answer_is_error(a, "WRONGTYPE")) {
        miss(l, run, LLM_REDIS_CORRUPT);
        l->delete(l->delete_ctx, in->name);
        return LLM_LINK_FINE;
    }
    if (a->kind != LLM_ANSWER_STRING) {
        return a->kind == LLM_ANSWER_ERROR ? LLM_REDIS_REFUSED : LLM_REDIS_PROTOCOL;
    }

    if (llm_redis_value_open(&run->keys, in->name, l->common->options.layout,
                             run->ids + (size_t) in->page * LLM_PAGE_TOKENS,
                             (const uint8_t *) a->text, a->len, page_of(l, buffer))
        != LLM_VALUE_GOOD) {
        miss(l, run, LLM_REDIS_CORRUPT);
        l->delete(l->delete_ctx, in->name);
        snprintf(l->link.why, sizeof(l->link.why), "a value is not authentic");
        return LLM_REDIS_CORRUPT; /* nobody knows whether the order of answers is right */
    }
    hit(l, run, buffer);
    return LLM_LINK_FINE;
}

static enum llm_redis_miss answered(void *ctx, const struct llm_redis_asked *asked,
                                    const struct llm_redis_answer *a)
{
    struct llm_redis_loader *l = ctx;
    struct llm_redis_run *run = asked->who;

    if (asked->kind == KIND_UNHEEDED) {
        return LLM_LINK_FINE;
    }
    run->n_out--;
    return asked->kind == KIND_EPOCH ? epoch_answered(l, run, a)
                                     : page_answered(l, run, asked->index, a);
}

/* --- asking --- */

static void ask(struct llm_redis_loader *l, struct llm_redis_run *run, uint32_t kind,
                uint32_t index, uint64_t max_bulk, const char *name)
{
    const struct llm_redis_asked asked = {
        .kind = kind, .index = index, .who = run, .max_bulk = max_bulk};

    llm_redis_link_ask(&l->link, &asked, (const char *[]){"GET", name}, 2, NULL, 0);
    run->n_out++;
}

/* The epoch comes first, on the same connection; as long as it is what it was, pages can be named
 * before it is there. What has come on an earlier connection was named by the run's own. */
static void ask_epoch(struct llm_redis_loader *l, struct llm_redis_run *run)
{
    struct llm_redis_tenant *tenant = llm_redis_tenant(&l->common->tenants, run->owner);
    char name[LLM_REDIS_NAME_MAX];

    if (tenant == NULL) {
        run->fate = LLM_REDIS_DOWN;
        return;
    }
    run->keys = tenant->keys;
    run->epoch = run->epoch_first != 0 ? run->epoch_first : tenant->epoch;
    llm_redis_epoch_name(&run->keys, name);
    ask(l, run, KIND_EPOCH, 0, 32, name);
    run->epoch_asked = true;
}

static bool ask_page(struct llm_redis_loader *l, struct llm_redis_run *run)
{
    uint32_t buffer = free_buffer(l);

    if (l->n_out >= l->max_out) {
        return false;
    }
    if (buffer == l->n_buffers) {
        run->starved = true;
        return false;
    }
    if (llm_redis_page_name(&run->keys, run->epoch, &run->digests[run->n_asked],
                            l->in[buffer].name)
        != LLM_OK) {
        run->fate = LLM_REDIS_DOWN;
        return false;
    }
    l->in[buffer].page = run->n_asked++;
    set_buffer(l, buffer, LLM_BUFFER_ASKED);
    ask(l, run, KIND_PAGE, buffer, l->common->value_bytes, l->in[buffer].name);
    return true;
}

static bool ask_some(struct llm_redis_loader *l, struct llm_redis_run *run)
{
    bool asked = false;

    for (int i = 0; i < TURN_PAGES && llm_redis_link_free_asks(&l->link) > 0; i++) {
        if (run->fate != LLM_LINK_FINE) {
            break;
        }
        if (!run->epoch_asked) {
            ask_epoch(l, run);
            asked = true;
        } else if (run->epoch == 0 || run->n_asked == run->n || !ask_page(l, run)) {
            break;
        } else {
            asked = true;
        }
    }
    return asked;
}

/* Pages that are used stay. */
static void renew(struct llm_redis_loader *l)
{
    static const struct llm_redis_asked asked = {.kind = KIND_UNHEEDED};
    char ttl[16];

    snprintf(ttl, sizeof(ttl), "%" PRIu32, l->common->options.ttl);
    for (uint32_t i = 0; i < l->n_buffers; i++) {
        if (l->in[i].used && llm_redis_link_free_asks(&l->link) > 0) {
            llm_redis_link_ask(&l->link, &asked, (const char *[]){"EXPIRE", l->in[i].name, ttl}, 3,
                               NULL, 0);
        }
        l->in[i].used = false;
    }
}

static void ask_all(struct llm_redis_loader *l)
{
    bool asked;

    renew(l);
    do {
        asked = false;
        for (struct llm_redis_run *run = l->runs; run != NULL; run = run->next) {
            asked = ask_some(l, run) || asked;
        }
    } while (asked);
}

/* --- in turn --- */

/* Ends what is over. What is still to be answered is not waited for: the connection goes with it,
 * so that no answer can be taken for that to another question. */
static void end_runs(struct llm_redis_loader *l, uint64_t now)
{
    struct llm_redis_run *next;

    for (struct llm_redis_run *run = l->runs; run != NULL; run = next) {
        enum llm_redis_miss reason = LLM_LINK_FINE;

        next = run->next;
        if (atomic_load_explicit(&run->cancelled, memory_order_acquire)) {
            reason = LLM_REDIS_UNWANTED;
        } else if (llm_redis_forgotten(&l->common->forgets, run->owner, run->then)) {
            reason = LLM_REDIS_STALE;
        } else if (now >= run->deadline_ns) {
            reason = LLM_REDIS_LATE;
        } else if (run->n_out == 0 && (run->fate != LLM_LINK_FINE || run->n_answered == run->n)) {
            reason = run->fate != LLM_LINK_FINE ? run->fate : LLM_REDIS_ABSENT; /* of nothing */
            llm_redis_link_success(&l->link);
        }
        if (reason == LLM_LINK_FINE) {
            continue;
        }

        if (run->n_out > 0) {
            if (reason == LLM_REDIS_LATE && run->n_answered == 0) {
                llm_redis_link_fail(&l->link, now, "it does not answer in time");
            } else {
                llm_redis_link_drop(&l->link);
            }
            rewind_runs(l);
        }
        end_run(l, run, reason, now);
    }
}

void llm_redis_loader_turn(struct llm_redis_loader *l, short revents, uint64_t now)
{
    enum llm_redis_miss lost = llm_redis_link_turn(&l->link, revents, now);

    if (lost != LLM_LINK_FINE) {
        lose(l, lost, now);
    }
    end_runs(l, now);
    if (l->link.state == LLM_LINK_UP) {
        ask_all(l);
        lost = llm_redis_link_flush(&l->link, now);
        if (lost != LLM_LINK_FINE) {
            lose(l, lost, now);
        }
    }
}

uint64_t llm_redis_loader_next(const struct llm_redis_loader *l)
{
    uint64_t next = llm_redis_link_next(&l->link);

    for (const struct llm_redis_run *run = l->runs; run != NULL; run = run->next) {
        next = run->deadline_ns < next ? run->deadline_ns : next;
    }
    return next;
}

void llm_redis_loader_add(struct llm_redis_loader *l, struct llm_redis_run *run)
{
    struct llm_redis_run **p = &l->runs;

    while (*p != NULL) {
        p = &(*p)->next;
    }
    run->next = NULL;
    *p = run;
}

int llm_redis_loader_init(struct llm_redis_loader *l, struct llm_redis_common *common,
                          struct llm_redis_ring *arrivals, uint32_t n_buffers,
                          struct llm_error *err)
{
    uint64_t fit = OUT_BYTES / common->value_bytes, half = n_buffers / 2;

    *l = (struct llm_redis_loader){.common = common, .arrivals = arrivals, .n_buffers = n_buffers};
    l->max_out = (uint32_t) (fit < MIN_OUT ? MIN_OUT : fit < half ? fit : half);
    llm_redis_link_init(&l->link, &common->place, common->value_bytes, answered, l);
    l->in = calloc(n_buffers, sizeof(*l->in));
    l->memory = llm_memory_map(n_buffers * common->page_bytes);
    return l->in != NULL && l->memory != NULL ? LLM_OK : llm_fail(err, LLM_ENOMEM, "out of memory");
}

void llm_redis_loader_free(struct llm_redis_loader *l)
{
    if (l->common == NULL) {
        return; /* never begun */
    }
    llm_redis_link_free(&l->link);
    llm_memory_unmap(l->memory, l->n_buffers * l->common->page_bytes);
    free(l->in);
}
