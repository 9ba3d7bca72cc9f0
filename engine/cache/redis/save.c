#include "engine/cache/redis/save.h"

#include "engine/base/clock.h"
#include "engine/base/memory.h"
#include "engine/cache/redis/value.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define WINDOW 8                    /* pages under way at most: some 10 commands each */
#define LIMIT_NS (5 * LLM_NS_PER_S) /* of an answer */

enum {
    KIND_EPOCH,
    KIND_NEW_EPOCH,
    KIND_PRESENCE,
    KIND_WRITTEN,
    KIND_WRITTEN_BEFORE,
    KIND_SET,
    KIND_UNHEEDED,
};

/* --- the end of a page --- */

static void finish(struct llm_redis_saver *s, struct llm_redis_out *out, _Atomic uint64_t *sum)
{
    uint32_t buffer = (uint32_t) (out - s->out);

    llm_redis_add(sum, 1);
    explicit_bzero(&out->keys, sizeof(out->keys));
    out->state = LLM_OUT_IDLE;
    llm_redis_ring_put(s->freed, &(struct llm_redis_note){.buffer = buffer});
}

/* Redis has done what it was asked. */
static void finish_well(struct llm_redis_saver *s, struct llm_redis_out *out,
                        _Atomic uint64_t *sum)
{
    llm_redis_link_success(&s->link);
    finish(s, out, sum);
}

static void give_up(struct llm_redis_saver *s, struct llm_redis_out *out)
{
    finish(s, out, &s->common->tally.unsaved);
}

/* What stands where the number that was asked for should. */
static void delete_number(struct llm_redis_saver *s, const struct llm_redis_asked *asked)
{
    const struct llm_redis_out *out = asked->who;
    char name[LLM_REDIS_NAME_MAX];

    switch (asked->kind) {
    case KIND_EPOCH:
        llm_redis_epoch_name(&out->keys, name);
        break;
    case KIND_WRITTEN:
        llm_redis_quota_name(&out->keys, out->window, name);
        break;
    case KIND_WRITTEN_BEFORE:
        llm_redis_quota_name(&out->keys, out->window - 1, name);
        break;
    default:
        return;
    }
    llm_redis_saver_delete(s, name);
}

/* The connection is gone, with everything outstanding. While the breaker is open nothing waits. */
static void lose(struct llm_redis_saver *s, enum llm_redis_miss reason)
{
    bool open = llm_breaker_state(&s->link.breaker) == LLM_REDIS_OPEN;

    if (reason == LLM_REDIS_PROTOCOL && s->link.scan.too_long) {
        delete_number(s, &s->link.faulty);
    }
    for (uint32_t i = 0; i < s->n_buffers; i++) {
        struct llm_redis_out *out = &s->out[i];

        if (out->state > LLM_OUT_QUEUED || (out->state == LLM_OUT_QUEUED && open)) {
            give_up(s, out);
        }
    }
}

/* --- answers --- */

static enum llm_redis_miss presence(struct llm_redis_out *out, const struct llm_redis_answer *a)
{
    out->answers.there = a->integer == 1;
    return a->kind == LLM_ANSWER_INTEGER ? LLM_LINK_FINE : LLM_REDIS_PROTOCOL;
}

static enum llm_redis_miss number(const struct llm_redis_answer *a, uint64_t *out)
{
    *out = 0;
    if (a->kind == LLM_ANSWER_STRING) {
        *out = llm_redis_number_read(a->text, a->len);
    }
    return a->kind == LLM_ANSWER_STRING || a->kind == LLM_ANSWER_NIL ? LLM_LINK_FINE
                                                                     : LLM_REDIS_PROTOCOL;
}

static enum llm_redis_miss written(struct llm_redis_out *out, const struct llm_redis_answer *a)
{
    out->charged = true;
    out->answers.written = a->integer > 0 ? (uint64_t) a->integer : 0;
    return a->kind == LLM_ANSWER_INTEGER ? LLM_LINK_FINE : LLM_REDIS_PROTOCOL;
}

static enum llm_redis_miss set(struct llm_redis_out *out, const struct llm_redis_answer *a)
{
    out->answers.set = a->kind == LLM_ANSWER_STATUS;
    return a->kind == LLM_ANSWER_STATUS || a->kind == LLM_ANSWER_NIL ? LLM_LINK_FINE
                                                                     : LLM_REDIS_PROTOCOL;
}

static enum llm_redis_miss answered(void *ctx, const struct llm_redis_asked *asked,
                                    const struct llm_redis_answer *a)
{
    struct llm_redis_saver *s = ctx;
    struct llm_redis_out *out = asked->who;

    if (asked->kind == KIND_UNHEEDED) {
        return LLM_LINK_FINE;
    }
    out->n_out--;
    if (llm_redis_answer_is_error(a, "WRONGTYPE") || llm_redis_answer_is_error(a, "ERR")
        || (asked->kind == KIND_EPOCH && a->kind == LLM_ANSWER_STRING
            && llm_redis_number_read(a->text, a->len) == 0)) {
        out->answers.broken = true;
        delete_number(s, asked);
        return LLM_LINK_FINE;
    }
    if (a->kind == LLM_ANSWER_ERROR) {
        return LLM_REDIS_REFUSED;
    }

    switch (asked->kind) {
    case KIND_EPOCH:
        return number(a, &out->answers.epoch);
    case KIND_NEW_EPOCH:
        return LLM_LINK_FINE; /* what it is now is asked for behind it */
    case KIND_PRESENCE:
        return presence(out, a);
    case KIND_WRITTEN:
        return written(out, a);
    case KIND_WRITTEN_BEFORE:
        return number(a, &out->answers.written_before);
    default:
        return set(out, a);
    }
}

/* --- asking --- */

static void ask(struct llm_redis_saver *s, struct llm_redis_out *out, uint32_t kind,
                const char *const *words, uint32_t n_words)
{
    const struct llm_redis_asked asked = {.kind = kind, .who = out, .max_bulk = 32};

    llm_redis_link_ask(&s->link, &asked, words, n_words, s->value, s->common->value_bytes);
    out->n_out += kind != KIND_UNHEEDED;
}

static void ask_epoch(struct llm_redis_saver *s, struct llm_redis_out *out)
{
    char name[LLM_REDIS_NAME_MAX];

    llm_redis_epoch_name(&out->keys, name);
    ask(s, out, KIND_EPOCH, (const char *[]){"GET", name}, 2);
}

/* Another engine may do so at the same time: one of the two numbers stays. */
static bool make_epoch(struct llm_redis_saver *s, struct llm_redis_out *out)
{
    char name[LLM_REDIS_NAME_MAX], epoch[LLM_REDIS_EPOCH_MAX];

    if (!llm_redis_draw_epoch(epoch)) {
        return false;
    }
    llm_redis_epoch_name(&out->keys, name);
    ask(s, out, KIND_NEW_EPOCH, (const char *[]){"SET", name, epoch, "NX"}, 4);
    ask_epoch(s, out);
    out->epoch_made = true;
    return true;
}

static bool set_epoch(struct llm_redis_out *out, uint64_t epoch)
{
    out->epoch = epoch;
    return epoch == 0
           || llm_redis_page_name(&out->keys, epoch, &out->digest, out->name) == LLM_OK;
}

static void ask_presence(struct llm_redis_saver *s, struct llm_redis_out *out)
{
    char ttl[16];

    snprintf(ttl, sizeof(ttl), "%" PRIu32, s->common->options.ttl);
    ask(s, out, KIND_PRESENCE, (const char *[]){"EXPIRE", out->name, ttl}, 3);
    out->state = LLM_OUT_PRESENCE;
}

/* That a tenant may write in two windows; 0: any number. */
static uint64_t most_bytes(const struct llm_redis_saver *s, const struct llm_redis_out *out)
{
    uint64_t most = s->common->options.tenant_bytes;
    uint64_t own = (uint64_t) out->max_pages * s->common->value_bytes;

    return own != 0 && (most == 0 || own < most) ? own : most;
}

/* Adds a value's bytes to what the tenant has written in the page's window, or with "-" takes them
 * away. Redis may have lost the number in between: it is to expire in any case. */
static void charge(struct llm_redis_saver *s, struct llm_redis_out *out, uint32_t kind,
                   const char *sign)
{
    char name[LLM_REDIS_NAME_MAX], bytes[24], keep[24];

    llm_redis_quota_name(&out->keys, out->window, name);
    snprintf(bytes, sizeof(bytes), "%s%zu", sign, s->common->value_bytes);
    snprintf(keep, sizeof(keep), "%" PRIu64, (uint64_t) 2 * s->common->options.ttl);
    ask(s, out, kind, (const char *[]){"INCRBY", name, bytes}, 3);
    ask(s, out, KIND_UNHEEDED, (const char *[]){"EXPIRE", name, keep}, 3);
}

/* Charges for the page; asks what the tenant has written in the window before. */
static void ask_quota(struct llm_redis_saver *s, struct llm_redis_out *out)
{
    char before[LLM_REDIS_NAME_MAX];

    out->window = (uint64_t) time(NULL) / s->common->options.ttl;
    charge(s, out, KIND_WRITTEN, "");
    llm_redis_quota_name(&out->keys, out->window - 1, before);
    ask(s, out, KIND_WRITTEN_BEFORE, (const char *[]){"GET", before}, 2);
    out->state = LLM_OUT_QUOTA;
}

static void take_back_charge(struct llm_redis_saver *s, struct llm_redis_out *out)
{
    if (out->charged) {
        charge(s, out, KIND_UNHEEDED, "-");
    }
}

static bool ask_set(struct llm_redis_saver *s, struct llm_redis_out *out)
{
    const uint8_t *page = s->memory + (size_t) (out - s->out) * s->common->page_bytes;
    char ttl[16];

    if (llm_redis_value_seal(&out->keys, out->name, s->common->options.layout, out->ids, page,
                             s->value)
        != LLM_OK) {
        return false;
    }
    snprintf(ttl, sizeof(ttl), "%" PRIu32, s->common->options.ttl);
    ask(s, out, KIND_SET, (const char *[]){"SET", out->name, NULL, "EX", ttl, "NX"}, 6);
    out->state = LLM_OUT_SET;
    return true;
}

/* --- a page's way --- */

static bool begin(struct llm_redis_saver *s, struct llm_redis_out *out)
{
    struct llm_redis_tenant *tenant = llm_redis_tenant(&s->common->tenants, out->owner);

    if (tenant == NULL) {
        return false;
    }
    out->keys = tenant->keys;
    if (!set_epoch(out, out->epoch_of_page != 0 ? out->epoch_of_page : tenant->epoch)) {
        return false;
    }
    out->state = LLM_OUT_EPOCH;
    ask_epoch(s, out);
    if (out->epoch != 0) {
        ask_presence(s, out);
    }
    return true;
}

static void note_epoch(struct llm_redis_saver *s, const struct llm_redis_out *out)
{
    struct llm_redis_tenant *tenant = llm_redis_tenant(&s->common->tenants, out->owner);

    if (tenant != NULL) {
        tenant->epoch = out->answers.epoch;
        tenant->then = out->then;
    }
}

/* The epoch was not known, or has gone; now it is known, or there is none. */
static bool after_epoch(struct llm_redis_saver *s, struct llm_redis_out *out)
{
    if (out->answers.epoch == 0) {
        return !out->epoch_made && make_epoch(s, out);
    }
    note_epoch(s, out);
    if (out->epoch != 0 || !set_epoch(out, out->answers.epoch)) {
        return false;
    }
    ask_presence(s, out);
    return true;
}

/* A page that is older than a purge is not to be saved. An epoch that has gone may hide a purge:
 * another is made, for pages that are computed from now on. */
static bool after_presence(struct llm_redis_saver *s, struct llm_redis_out *out)
{
    note_epoch(s, out);
    if (out->answers.epoch == 0) {
        out->state = LLM_OUT_EPOCH;
        return make_epoch(s, out);
    }
    if (out->answers.epoch != out->epoch) {
        return false;
    }
    if (out->answers.there) {
        finish_well(s, out, &s->common->tally.already_there);
    } else if (most_bytes(s, out) > 0) {
        ask_quota(s, out);
    } else {
        out->state = LLM_OUT_READY;
    }
    return true;
}

static void after_quota(struct llm_redis_saver *s, struct llm_redis_out *out)
{
    uint64_t most = most_bytes(s, out);

    if (out->answers.written > most || out->answers.written_before > most - out->answers.written) {
        take_back_charge(s, out);
        finish_well(s, out, &s->common->tally.over_quota);
    } else {
        out->state = LLM_OUT_READY;
    }
}

static void after_set(struct llm_redis_saver *s, struct llm_redis_out *out)
{
    if (out->answers.set) {
        llm_redis_add(&s->common->tally.bytes_out, s->common->value_bytes);
        finish_well(s, out, &s->common->tally.saved);
    } else {
        take_back_charge(s, out);
        finish_well(s, out, &s->common->tally.already_there);
    }
}

/* All that was asked is answered: the next question. False: the page is given up. */
static bool advance(struct llm_redis_saver *s, struct llm_redis_out *out)
{
    if (out->answers.broken || out->unwanted
        || llm_redis_forgotten(&s->common->forgets, out->owner, out->then)) {
        return false;
    }
    switch (out->state) {
    case LLM_OUT_QUEUED:
        return begin(s, out);
    case LLM_OUT_EPOCH:
        return after_epoch(s, out);
    case LLM_OUT_PRESENCE:
        return after_presence(s, out);
    case LLM_OUT_QUOTA:
        after_quota(s, out);
        return true;
    case LLM_OUT_READY:
        return !llm_redis_link_body_gone(&s->link) || ask_set(s, out);
    default:
        after_set(s, out);
        return true;
    }
}

/* --- in turn --- */

static struct llm_redis_out *oldest_queued(struct llm_redis_saver *s)
{
    struct llm_redis_out *oldest = NULL;

    for (uint32_t i = 0; i < s->n_buffers; i++) {
        struct llm_redis_out *out = &s->out[i];

        if (out->state == LLM_OUT_QUEUED && (oldest == NULL || out->order < oldest->order)) {
            oldest = out;
        }
    }
    return oldest;
}

/* As far as it goes without an answer. */
static void go_on(struct llm_redis_saver *s, struct llm_redis_out *out, uint64_t now)
{
    enum llm_redis_out_state before;

    do {
        before = out->state;
        if (!advance(s, out)) {
            take_back_charge(s, out);
            give_up(s, out);
        }
        out->limit_ns = now + LIMIT_NS;
    } while (out->state != before && out->state != LLM_OUT_IDLE && out->n_out == 0);
}

static void go_on_all(struct llm_redis_saver *s, uint64_t now)
{
    struct llm_redis_out *queued;
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->n_buffers; i++) {
        struct llm_redis_out *out = &s->out[i];

        if (out->state > LLM_OUT_QUEUED && out->n_out == 0) {
            go_on(s, out, now);
        }
        n += out->state > LLM_OUT_QUEUED;
    }
    while (n < WINDOW && (queued = oldest_queued(s)) != NULL) {
        go_on(s, queued, now);
        n += queued->state > LLM_OUT_QUEUED;
    }
}

static bool any_ready(const struct llm_redis_saver *s)
{
    for (uint32_t i = 0; i < s->n_buffers; i++) {
        if (s->out[i].state == LLM_OUT_READY) {
            return true;
        }
    }
    return false;
}

static bool any_late(const struct llm_redis_saver *s, uint64_t now)
{
    for (uint32_t i = 0; i < s->n_buffers; i++) {
        const struct llm_redis_out *out = &s->out[i];

        if (out->state > LLM_OUT_QUEUED && out->n_out > 0 && now >= out->limit_ns) {
            return true;
        }
    }
    return false;
}

static void delete_all(struct llm_redis_saver *s)
{
    static const struct llm_redis_asked asked = {.kind = KIND_UNHEEDED, .max_bulk = 32};

    while (s->n_deletes > 0 && llm_redis_link_free_asks(&s->link) > LLM_LINK_ASKED / 2) {
        s->n_deletes--;
        llm_redis_link_ask(&s->link, &asked, (const char *[]){"DEL", s->deletes[s->n_deletes]}, 2,
                           NULL, 0);
    }
}

void llm_redis_saver_turn(struct llm_redis_saver *s, short revents, uint64_t now)
{
    enum llm_redis_miss lost = llm_redis_link_turn(&s->link, revents, now);

    if (lost == LLM_LINK_FINE && s->link.state == LLM_LINK_UP) {
        if (any_late(s, now)) {
            llm_redis_link_fail(&s->link, now, "it does not answer in time");
            lost = LLM_REDIS_LATE;
        } else {
            delete_all(s);
            do {
                go_on_all(s, now);
                lost = llm_redis_link_flush(&s->link, now);
            } while (lost == LLM_LINK_FINE && llm_redis_link_body_gone(&s->link) && any_ready(s));
        }
    }
    if (lost != LLM_LINK_FINE) {
        lose(s, lost);
    }
}

uint64_t llm_redis_saver_next(const struct llm_redis_saver *s)
{
    uint64_t next = llm_redis_link_next(&s->link);

    for (uint32_t i = 0; i < s->n_buffers; i++) {
        const struct llm_redis_out *out = &s->out[i];

        if (out->state > LLM_OUT_QUEUED && out->n_out > 0 && out->limit_ns < next) {
            next = out->limit_ns;
        }
    }
    return next;
}

void llm_redis_saver_add(struct llm_redis_saver *s, uint32_t buffer)
{
    struct llm_redis_out *out = &s->out[buffer];

    out->state = LLM_OUT_QUEUED;
    out->order = s->n_added++;
    out->n_out = 0;
    out->epoch = 0;
    out->epoch_made = out->charged = out->unwanted = false;
    memset(&out->answers, 0, sizeof(out->answers));
}

void llm_redis_saver_delete(void *ctx, const char *name)
{
    struct llm_redis_saver *s = ctx;

    if (s->n_deletes < LLM_REDIS_DELETES) {
        snprintf(s->deletes[s->n_deletes++], LLM_REDIS_NAME_MAX, "%s", name);
    }
}

/* A value that is on its way goes first: it is deleted behind that. */
void llm_redis_saver_forget(struct llm_redis_saver *s, const struct llm_redis_spoilt *page)
{
    const struct llm_redis_tenant *tenant = llm_redis_tenant(&s->common->tenants, page->owner);
    char name[LLM_REDIS_NAME_MAX];
    uint64_t epoch;

    for (uint32_t i = 0; i < s->n_buffers; i++) {
        struct llm_redis_out *out = &s->out[i];

        if (out->state != LLM_OUT_IDLE
            && memcmp(&out->digest, &page->digest, sizeof(page->digest)) == 0) {
            out->unwanted = true;
        }
    }
    if (tenant == NULL) {
        return;
    }
    epoch = page->epoch != 0 ? page->epoch : tenant->epoch;
    if (epoch != 0 && llm_redis_page_name(&tenant->keys, epoch, &page->digest, name) == LLM_OK) {
        llm_redis_saver_delete(s, name);
    }
}

int llm_redis_saver_init(struct llm_redis_saver *s, struct llm_redis_common *common,
                         struct llm_redis_ring *freed, uint32_t n_buffers, struct llm_error *err)
{
    *s = (struct llm_redis_saver){.common = common, .freed = freed, .n_buffers = n_buffers};
    llm_redis_link_init(&s->link, &common->place, 0, answered, s);
    s->out = calloc(n_buffers, sizeof(*s->out));
    s->memory = llm_memory_map(n_buffers * common->page_bytes);
    s->value = malloc(common->value_bytes);
    return s->out != NULL && s->memory != NULL && s->value != NULL
               ? LLM_OK
               : llm_fail(err, LLM_ENOMEM, "out of memory");
}

void llm_redis_saver_free(struct llm_redis_saver *s)
{
    if (s->common == NULL) {
        return; /* never begun */
    }
    llm_redis_link_free(&s->link);
    llm_memory_unmap(s->memory, s->n_buffers * s->common->page_bytes);
    if (s->out != NULL) {
        explicit_bzero(s->out, s->n_buffers * sizeof(*s->out)); /* keys */
    }
    free(s->out);
    free(s->value);
}
