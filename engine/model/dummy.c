#include "engine/model/dummy.h"

#include "engine/base/checked.h"
#include "engine/base/machine.h"
#include "engine/base/memory.h"
#include "engine/model/checkpoint.h"
#include "engine/model/fingerprint.h"
#include "engine/model/weights.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64
#define N_VALUES 256
#define MAX_THREADS 64

#define NORM_SPREAD 0.1f
#define BIAS_SPREAD 0.02f
#define ROUTER_BIAS_SPREAD 0.05f /* onto sigmoids, which lie about 0.5 */
#define ROUTER_ROW_SPREAD 0.25f  /* how far the rows of a router differ in length */
#define SCALE_SPREAD 0.25f       /* the same of the scales of blocks */
#define LARGEST_E4M3 448.0f

/* All numbers of a model have a place in one sequence, in the order of the table of weights, and a
 * random byte that depends on that and the seed alone: which of 256 values it is, evenly spaced.
 * So threads can make them in any order, about as fast as memory takes them.
 *
 * A piece is numbers from centre - spread to centre + spread, row by row; a row's spread is more or
 * less than that by up to row_spread of it. */
struct piece {
    enum llm_dtype dtype;
    uint64_t rows, cols;
    float centre, spread, row_spread;
    char *data;
    uint64_t place; /* of the first number, a multiple of 8, as is that of each row */
};

struct dummy {
    const struct llm_model_config *config;
    uint64_t key, usable; /* usable: bytes there are */
    char *base;     /* NULL: it is only added up what is needed */
    uint64_t bytes; /* used so far */
    uint64_t place; /* the same of the sequence */
    struct piece *pieces;
    uint64_t n_pieces;
    uint8_t e4m3[N_VALUES]; /* the values up to 448 */
    _Atomic uint64_t next;  /* piece that nobody has begun */
};

/* Eight random bytes from a number: the last step of SplitMix64 (Steele, Lea and Flood, 2014). */
static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Those of the places 8 * i to 8 * i + 7. */
static uint64_t random_bytes(const struct dummy *d, uint64_t i)
{
    return mix(d->key + i * 0x9e3779b97f4a7c15u);
}

/* From -1 to 1, none of them 0. */
static float value(uint32_t i)
{
    return ((float) i - (N_VALUES - 1) / 2.0f) / ((N_VALUES - 1) / 2.0f);
}

/* The largest code that is not above x, which is at least the smallest normal number, 2^-6. */
static uint8_t e4m3_below(float x)
{
    uint32_t code = 0x08;

    for (uint32_t c = code; c < 0x7f && ldexpf((float) (8 + c % 8), (int) (c / 8) - 10) <= x; c++) {
        code = c;
    }
    return (uint8_t) code;
}

static uint16_t bf16_of(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return (uint16_t) ((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Little-endian codes of the values in a piece's type. */
static void fill_table(const struct dummy *d, const struct piece *p, float spread,
                       uint32_t table[N_VALUES])
{
    for (uint32_t i = 0; i < N_VALUES; i++) {
        float x = p->centre + spread * value(i);

        switch (p->dtype) {
        case LLM_F8_E4M3:
            table[i] = d->e4m3[i];
            break;
        case LLM_BF16:
            table[i] = bf16_of(x);
            break;
        default:
            memcpy(&table[i], &x, sizeof(x));
            break;
        }
    }
}

/* n numbers of `size` bytes. */
static inline __attribute__((always_inline)) void
fill_row(const struct dummy *d, const uint32_t table[N_VALUES], uint64_t place, uint64_t n,
         char *out, const size_t size)
{
    for (uint64_t i = 0; i < n; i += 8, out += 8 * size) {
        uint64_t bytes = random_bytes(d, (place + i) / 8);

        if (n - i >= 8) {
#pragma GCC unroll 8
            for (uint32_t j = 0; j < 8; j++) {
                memcpy(out + j * size, &table[bytes >> 8 * j & 0xff], size);
            }
        } else {
            for (uint32_t j = 0; j < n - i; j++) {
                memcpy(out + j * size, &table[bytes >> 8 * j & 0xff], size);
            }
        }
    }
}

static uint64_t element_bytes(enum llm_dtype dtype)
{
    return dtype == LLM_F32 ? 4 : dtype == LLM_F8_E4M3 ? 1 : 2;
}

static void fill_piece(const struct dummy *d, const struct piece *p)
{
    uint64_t place = p->place;
    uint32_t table[N_VALUES];
    char *out = p->data;

    for (uint64_t r = 0; r < p->rows; r++) {
        if (r == 0 || p->row_spread != 0) {
            float more = p->row_spread * value(mix(random_bytes(d, place / 8)) % N_VALUES);

            fill_table(d, p, p->spread * (1 + more), table);
        }
        switch (element_bytes(p->dtype)) {
        case 1:
            fill_row(d, table, place, p->cols, out, 1);
            break;
        case 2:
            fill_row(d, table, place, p->cols, out, 2);
            break;
        default:
            fill_row(d, table, place, p->cols, out, 4);
            break;
        }
        place += (p->cols + 7) / 8 * 8;
        out += p->cols * element_bytes(p->dtype);
    }
}

static void *fill_pieces(void *arg)
{
    struct dummy *d = arg;
    uint64_t i;

    while ((i = atomic_fetch_add(&d->next, 1)) < d->n_pieces) {
        fill_piece(d, &d->pieces[i]);
    }
    return NULL;
}

/* With a thread on each core, or as many as can be had. */
static void fill(struct dummy *d)
{
    uint32_t n = llm_usable_cores(""), n_started = 0;
    pthread_t threads[MAX_THREADS];

    n = n < MAX_THREADS ? n : MAX_THREADS;
    while (n_started + 1 < n
           && pthread_create(&threads[n_started], NULL, fill_pieces, d) == 0) {
        n_started++;
    }
    fill_pieces(d);
    for (uint32_t i = 0; i < n_started; i++) {
        pthread_join(threads[i], NULL);
    }
}

/* Finds room for a piece, and tells it; NULL while it is only added up. */
static int add(struct dummy *d, struct piece p, const void **data, struct llm_error *err)
{
    uint64_t bytes, end;

    if (!llm_mul_u64(p.rows, p.cols, &bytes)
        || !llm_mul_u64(bytes, element_bytes(p.dtype), &bytes)
        || !llm_add_u64(bytes, ALIGNMENT - 1, &bytes)
        || !llm_add_u64(d->bytes, bytes / ALIGNMENT * ALIGNMENT, &end)) {
        return llm_fail(err, LLM_EINVAL, "the model that config.json describes is too large");
    }
    if (end > d->usable) { /* not later: the table itself can be large too */
        return llm_fail(err, LLM_ENOMEM, "the weights take more than the %" PRIu64
                        " MB that are available", d->usable >> 20);
    }
    if (d->base != NULL) {
        p.data = d->base + d->bytes;
        p.place = d->place;
        d->pieces[d->n_pieces] = p;
    }
    *data = p.data;
    d->bytes = end;
    d->place += p.rows * ((p.cols + 7) / 8 * 8);
    d->n_pieces++;
    return LLM_OK;
}

/* Codes of up to 448, which the scales of their blocks bring to the spread that is wanted. */
static int add_blocks(struct dummy *d, struct llm_weight *w, float spread, struct llm_error *err)
{
    struct piece codes = {.dtype = LLM_F8_E4M3, .rows = w->rows, .cols = w->cols};
    struct piece scales = {
        .dtype = LLM_F32,
        .rows = (w->rows - 1) / d->config->fp8_block_rows + 1,
        .cols = (w->cols - 1) / d->config->fp8_block_cols + 1,
        .centre = spread / LARGEST_E4M3,
        .spread = spread / LARGEST_E4M3 * SCALE_SPREAD,
    };
    const void *scale = NULL;
    int rc = add(d, codes, &w->data, err);

    if (rc == LLM_OK) {
        rc = add(d, scales, &scale, err);
    }
    w->dtype = LLM_F8_E4M3;
    w->scale = scale;
    w->block_rows = d->config->fp8_block_rows;
    w->block_cols = d->config->fp8_block_cols;
    return rc;
}

/* Uniform numbers of up to sqrt(3 / n) have variance 1 / n: n of them, times numbers of variance 1,
 * sum up to variance 1 again. An expert whose row of the router is longer has more of the large
 * logits, and is chosen more often. */
static int take(void *ctx, struct llm_weight *w, enum llm_role role, const char *name,
                struct llm_error *err)
{
    struct dummy *d = ctx;
    struct piece p = {
        .dtype = LLM_BF16,
        .rows = w->rows,
        .cols = w->cols,
        .spread = sqrtf(3.0f / (float) w->cols),
    };

    (void) name;
    switch (role) {
    case LLM_ROLE_NORM:
        p.centre = 1;
        p.spread = NORM_SPREAD;
        break;
    case LLM_ROLE_BIAS:
        p.spread = BIAS_SPREAD;
        break;
    case LLM_ROLE_ROUTER_BIAS:
        p.dtype = LLM_F32;
        p.spread = ROUTER_BIAS_SPREAD;
        break;
    case LLM_ROLE_MATRIX:
        break;
    case LLM_ROLE_EMBEDDING:
        p.spread = sqrtf(3); /* what tells tokens apart stays larger than what attention adds */
        break;
    case LLM_ROLE_ROUTER:
        p.row_spread = ROUTER_ROW_SPREAD;
        break;
    case LLM_ROLE_PROJECTION:
        if (d->config->fp8_block_rows > 0) {
            return add_blocks(d, w, p.spread, err);
        }
        break;
    }
    w->dtype = p.dtype;
    return add(d, p, &w->data, err);
}

/* Adds up what a model of d->config needs. */
static int measure(struct dummy *d, struct llm_error *err)
{
    const struct llm_weight_source source = {.ctx = d, .take = take};
    struct llm_model m = {.config = *d->config};
    int rc = llm_weights_take(&m, &source, err);

    llm_weights_free(&m);
    return rc;
}

/* Maps the memory that was added up and makes the weights in it. */
static int make(struct dummy *d, struct llm_model *m, struct llm_error *err)
{
    const struct llm_weight_source source = {.ctx = d, .take = take};
    int rc;

    d->pieces = calloc(d->n_pieces, sizeof(*d->pieces));
    d->base = m->memory = llm_memory_map(d->bytes);
    if (d->pieces == NULL || d->base == NULL) {
        return llm_fail(err, LLM_ENOMEM, "cannot map %" PRIu64 " MB", d->bytes >> 20);
    }
    m->bytes = m->memory_bytes = d->bytes;

    d->bytes = d->place = d->n_pieces = 0;
    rc = llm_weights_take(m, &source, err);
    if (rc == LLM_OK) {
        fill(d);
    }
    return rc;
}

int llm_model_dummy(const char *dir, uint64_t seed, struct llm_model **out, struct llm_error *err)
{
    struct llm_model *m = calloc(1, sizeof(*m));
    struct dummy d = {.key = mix(seed), .usable = llm_usable_memory("")};
    int rc;

    if (m == NULL || (m->checkpoint = calloc(1, sizeof(*m->checkpoint))) == NULL) {
        rc = llm_fail(err, LLM_ENOMEM, "out of memory");
        goto done;
    }
    d.config = &m->config;
    for (uint32_t i = 0; i < N_VALUES; i++) {
        d.e4m3[i] = e4m3_below(fabsf(value(i)) * LARGEST_E4M3) | (value(i) < 0 ? 0x80 : 0);
    }

    rc = llm_config_open(dir, &m->config, err);
    if (rc == LLM_OK) {
        rc = measure(&d, err);
    }
    if (rc == LLM_OK) {
        rc = make(&d, m, err);
    }
    if (rc == LLM_OK) {
        rc = llm_fingerprint_dummy(&m->config, seed, m->fingerprint, err);
    }

done:
    free(d.pieces);
    if (rc != LLM_OK) {
        llm_model_close(m);
        return rc;
    }
    *out = m;
    return LLM_OK;
}
