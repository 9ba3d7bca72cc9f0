#include "engine/cache/redis/value.h"
#include "engine/model/finite.h"

#include <endian.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <string.h>

#define VALUE_VERSION 1
#define N_NONCE 12
#define N_IDS (LLM_PAGE_TOKENS * 4)
#define N_TAG 16

/* Tests break this to see that a value which is not authentic does no harm to memory either. */
#ifndef LLM_REDIS_SEAL_HOLDS
#define LLM_REDIS_SEAL_HOLDS(holds) (holds)
#endif

/* Little-endian; follows from the layout, so that it is checked by comparing. */
struct header {
    uint8_t magic[4];
    uint32_t version, n_tokens;
    uint32_t dtype; /* enum llm_latent_dtype */
    uint32_t n_planes, n_mtp_planes;
    uint64_t page_bytes;
};

_Static_assert(sizeof(struct header) == 32, "the header has no holes");
_Static_assert(LLM_LATENT_F32 == 0 && LLM_LATENT_BF16 == 1 && LLM_LATENT_FP8 == 2,
               "values in Redis have these numbers");

static struct header make_header(const struct llm_page_layout *layout)
{
    struct header h = {
        .magic = {'L', 'L', 'M', 'P'},
        .version = htole32(VALUE_VERSION),
        .n_tokens = htole32(LLM_PAGE_TOKENS),
        .dtype = htole32(layout->dtype),
        .n_planes = htole32(layout->n_planes),
        .page_bytes = htole64(layout->page_bytes),
    };
    uint32_t n_mtp = 0;

    for (uint32_t i = 0; i < layout->n_planes; i++) {
        n_mtp += layout->planes[i].kind == LLM_PLANE_MTP_LATENT;
    }
    h.n_mtp_planes = htole32(n_mtp);
    return h;
}

size_t llm_redis_value_bytes(const struct llm_page_layout *layout)
{
    return sizeof(struct header) + N_NONCE + N_IDS + layout->page_bytes + N_TAG;
}

/* Associated data: the key's name and the header, each preceded by its length. */
static bool put_associated(EVP_CIPHER_CTX *ctx, const char *name, const struct header *h)
{
    uint64_t n_name = htole64(strlen(name)), n_header = htole64(sizeof(*h));
    int n;

    return EVP_CipherUpdate(ctx, NULL, &n, (const uint8_t *) &n_name, sizeof(n_name)) == 1
           && EVP_CipherUpdate(ctx, NULL, &n, (const uint8_t *) name, (int) strlen(name)) == 1
           && EVP_CipherUpdate(ctx, NULL, &n, (const uint8_t *) &n_header, sizeof(n_header)) == 1
           && EVP_CipherUpdate(ctx, NULL, &n, (const uint8_t *) h, sizeof(*h)) == 1;
}

static size_t plane_bytes(const struct llm_plane *plane)
{
    return (size_t) plane->row_bytes * LLM_PAGE_TOKENS;
}

static bool seal_planes(EVP_CIPHER_CTX *ctx, const struct llm_page_layout *layout,
                        const uint8_t *page, uint8_t *to)
{
    int n;

    for (uint32_t i = 0; i < layout->n_planes; i++) {
        const struct llm_plane *plane = &layout->planes[i];

        if (EVP_EncryptUpdate(ctx, to + plane->offset, &n, page + plane->offset,
                              (int) plane_bytes(plane))
            != 1) {
            return false;
        }
    }
    return true;
}

int llm_redis_value_seal(const struct llm_redis_tenant_keys *t, const char *name,
                         const struct llm_page_layout *layout,
                         const uint32_t ids[LLM_PAGE_TOKENS], const void *page, uint8_t *out)
{
    const struct header h = make_header(layout);
    uint8_t *nonce = out + sizeof(h), *sealed = nonce + N_NONCE;
    uint8_t *tag = sealed + N_IDS + layout->page_bytes;
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    uint32_t le[LLM_PAGE_TOKENS];
    bool good;
    int n;

    for (uint32_t i = 0; i < LLM_PAGE_TOKENS; i++) {
        le[i] = htole32(ids[i]);
    }
    memcpy(out, &h, sizeof(h));
    good = ctx != NULL && RAND_bytes(nonce, N_NONCE) == 1
           && EVP_EncryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, t->seal, nonce) == 1
           && put_associated(ctx, name, &h)
           && EVP_EncryptUpdate(ctx, sealed, &n, (const uint8_t *) le, N_IDS) == 1
           && seal_planes(ctx, layout, page, sealed + N_IDS)
           && EVP_EncryptFinal_ex(ctx, tag, &n) == 1
           && EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_GET_TAG, N_TAG, tag) == 1;
    EVP_CIPHER_CTX_free(ctx);
    return good ? LLM_OK : LLM_EINTERNAL;
}

/* Decrypts the planes and looks at each while it is in the processor's caches. */
static bool open_planes(EVP_CIPHER_CTX *ctx, const struct llm_page_layout *layout,
                        const uint8_t *from, uint8_t *page, bool *finite)
{
    int n;

    *finite = true;
    for (uint32_t i = 0; i < layout->n_planes; i++) {
        const struct llm_plane *plane = &layout->planes[i];

        if (EVP_DecryptUpdate(ctx, page + plane->offset, &n, from + plane->offset,
                              (int) plane_bytes(plane))
            != 1) {
            return false;
        }
        *finite = *finite && llm_plane_is_finite(plane, layout->dtype, page + plane->offset);
    }
    return true;
}

/* What a value of the right size holds: token ids (little-endian), a page, and whether that is
 * finite. False: it is not authentic. */
static bool open_value(const struct llm_redis_tenant_keys *t, const char *name,
                       const struct llm_page_layout *layout, const uint8_t *value,
                       uint32_t ids[LLM_PAGE_TOKENS], uint8_t *page, bool *finite)
{
    const struct header h = make_header(layout);
    const uint8_t *nonce = value + sizeof(h), *sealed = nonce + N_NONCE;
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    uint8_t tag[N_TAG];
    bool good;
    int n;

    memcpy(tag, sealed + N_IDS + layout->page_bytes, N_TAG);
    good = ctx != NULL && EVP_DecryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, t->seal, nonce) == 1
           && put_associated(ctx, name, &h)
           && EVP_DecryptUpdate(ctx, (uint8_t *) ids, &n, sealed, N_IDS) == 1
           && open_planes(ctx, layout, sealed + N_IDS, page, finite)
           && EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_SET_TAG, N_TAG, tag) == 1
           && LLM_REDIS_SEAL_HOLDS(EVP_DecryptFinal_ex(ctx, tag, &n) == 1);
    EVP_CIPHER_CTX_free(ctx);
    return good;
}

enum llm_redis_value_fault
llm_redis_value_open(const struct llm_redis_tenant_keys *t, const char *name,
                     const struct llm_page_layout *layout, const uint32_t ids[LLM_PAGE_TOKENS],
                     const uint8_t *value, size_t n_value, void *page)
{
    const struct header h = make_header(layout);
    uint32_t le[LLM_PAGE_TOKENS];
    bool finite;

    if (n_value != llm_redis_value_bytes(layout)) {
        return LLM_VALUE_SIZE;
    }
    if (memcmp(value, &h, sizeof(h)) != 0) {
        return LLM_VALUE_HEADER;
    }
    if (!open_value(t, name, layout, value, le, page, &finite)) {
        return LLM_VALUE_SEAL;
    }
    for (uint32_t i = 0; i < LLM_PAGE_TOKENS; i++) {
        if (le32toh(le[i]) != ids[i]) {
            return LLM_VALUE_IDS;
        }
    }
    return finite ? LLM_VALUE_GOOD : LLM_VALUE_NUMBERS;
}
