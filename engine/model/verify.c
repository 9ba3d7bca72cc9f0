/* The slow half of a load: every byte read once, every number looked at. */

#include "engine/model/checkpoint.h"
#include "engine/model/finite.h"
#include "engine/model/model.h"

#define CHUNK 65536 /* bytes looked at in one go */
#define PROGRESS_STEP ((uint64_t) 64 << 20)

static bool chunk_is_finite(const void *chunk, size_t bytes, enum llm_st_dtype dtype)
{
    switch (dtype) {
    case LLM_ST_F8_E4M3:
        return llm_all_finite(LLM_F8_E4M3, chunk, bytes);
    case LLM_ST_F16:
        return llm_all_finite(LLM_F16, chunk, bytes);
    case LLM_ST_BF16:
        return llm_all_finite(LLM_BF16, chunk, bytes);
    case LLM_ST_F32:
        return llm_all_finite(LLM_F32, chunk, bytes);
    default:
        return true; /* of no weight: read for nothing but the disk's sake */
    }
}

struct progress {
    llm_progress_fn *fn;
    void *ctx;
    uint64_t done, told, total;
};

static void advance(struct progress *p, uint64_t bytes)
{
    p->done += bytes;
    if (p->fn != NULL && (p->done - p->told >= PROGRESS_STEP || p->done == p->total)) {
        p->told = p->done;
        p->fn(p->ctx, p->done, p->total);
    }
}

static bool tensor_is_finite(const struct llm_st_tensor *t, struct progress *p)
{
    for (uint64_t at = 0, n; at < t->bytes; at += n) {
        n = t->bytes - at < CHUNK ? t->bytes - at : CHUNK;
        if (!chunk_is_finite(t->data + at, (size_t) n, t->dtype)) {
            return false;
        }
        advance(p, n);
    }
    return true;
}

int llm_model_verify(struct llm_model *m, llm_progress_fn *progress, void *ctx,
                     struct llm_error *err)
{
    const struct llm_checkpoint *ck = m->checkpoint;
    struct progress p = {.fn = progress, .ctx = ctx};

    for (uint32_t i = 0; i < ck->n_shards; i++) {
        for (uint32_t k = 0; k < ck->shards[i].n; k++) {
            p.total += ck->shards[i].tensors[k].bytes;
        }
    }

    for (uint32_t i = 0; i < ck->n_shards; i++) {
        const struct llm_safetensors *st = &ck->shards[i];
        const struct llm_st_tensor *bad = NULL;

        llm_mapping_advise(&st->map, LLM_ACCESS_SEQUENTIAL);
        for (uint32_t k = 0; k < st->n && bad == NULL; k++) {
            if (!tensor_is_finite(&st->tensors[k], &p)) {
                bad = &st->tensors[k];
            }
        }
        llm_mapping_advise(&st->map, LLM_ACCESS_NORMAL);

        if (bad != NULL) {
            return llm_checkpoint_fail(ck, bad, LLM_EINVAL, err, "holds a NaN or an infinity");
        }
    }
    return llm_checkpoint_check(ck, err);
}
