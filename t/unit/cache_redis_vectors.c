/* The format in Redis against values that another program made (t/reference/redis_vectors.py). */

#include "t/unit/files.h"
#include "t/unit/redis_page.h"
#include "t/unit/scratch.h"
#include "t/unit/tap.h"

#define MAX_CASES 16
#define MAX_POSITION 1

struct vector {
    char label[32], secret[128], scope[8], tenant[32], fingerprint[65], numerics[33], dtype[8];
    unsigned position;
    unsigned long long epoch;
    char master[65], owner[65], digest[65];
    char epoch_name[LLM_REDIS_NAME_MAX], quota_name[LLM_REDIS_NAME_MAX], name[LLM_REDIS_NAME_MAX];
    char value[16384];
};

static bool read_vector(FILE *f, struct vector *v)
{
    return fscanf(f,
                  " case %31s secret %127s scope %7s tenant %31s fingerprint %64s numerics %32s"
                  " dtype %7s position %u epoch %llu master %64s owner %64s digest %64s"
                  " epoch_name %127s quota_name %127s name %127s value %16383s",
                  v->label, v->secret, v->scope, v->tenant, v->fingerprint, v->numerics, v->dtype,
                  &v->position, &v->epoch, v->master, v->owner, v->digest, v->epoch_name,
                  v->quota_name, v->name, v->value)
           == 16;
}

static size_t from_hex(const char *hex, uint8_t *out)
{
    size_t n = strlen(hex) / 2;
    unsigned byte;

    for (size_t i = 0; i < n; i++) {
        need(sscanf(hex + 2 * i, "%2x", &byte) == 1, "no hexadecimal digit");
        out[i] = (uint8_t) byte;
    }
    return n;
}

static bool is_hex_of(const char *hex, const uint8_t *bytes, size_t n)
{
    uint8_t want[64];

    return from_hex(hex, want) == n && memcmp(bytes, want, n) == 0;
}

static void read_master(const struct vector *v, uint8_t master[32])
{
    const char *path = scratch_path("secret");
    uint8_t secret[64];

    scratch_write(path, secret, from_hex(v->secret, secret));
    need(chmod(path, 0600) == 0, "chmod");
    is_int(llm_secret_read(path, master, NULL), LLM_OK, "%s: the secret file", v->label);
    ok(is_hex_of(v->master, master, 32), "%s: its master", v->label);
}

/* The digest of the prompt's page at the vector's position, and that page's ids. */
static void find_page(const struct vector *v, const uint8_t master[32], enum llm_scope scope,
                      const uint8_t tenant[32], struct llm_digest *digest,
                      uint32_t ids[LLM_PAGE_TOKENS])
{
    uint32_t prompt[(MAX_POSITION + 1) * LLM_PAGE_TOKENS];
    struct llm_digest digests[MAX_POSITION + 1];
    struct llm_chain chain;

    need(v->position <= MAX_POSITION, "a page that is too far on");
    for (uint32_t k = 0; k < (MAX_POSITION + 1) * LLM_PAGE_TOKENS; k++) {
        prompt[k] = (uint32_t) ((uint64_t) k * 40503 % 129280);
    }
    from_hex(v->fingerprint, chain.fingerprint);
    from_hex(v->numerics, chain.numerics_id);
    need(llm_scope_secret(master, scope, tenant, chain.secret) == LLM_OK
             && llm_page_digests(&chain, NULL, prompt, v->position + 1, digests) == LLM_OK,
         "no digests");
    *digest = digests[v->position];
    memcpy(ids, prompt + v->position * LLM_PAGE_TOKENS, LLM_PAGE_TOKENS * sizeof(*ids));
    ok(is_hex_of(v->digest, digest->bytes, sizeof(digest->bytes)), "%s: the digest", v->label);
}

static void check_names(const struct vector *v, const struct llm_redis_tenant_keys *keys,
                        const struct llm_digest *digest)
{
    char name[LLM_REDIS_NAME_MAX];

    is_int(llm_redis_page_name(keys, v->epoch, digest, name), LLM_OK, "%s: a name", v->label);
    is_str(name, v->name, "%s: the page's", v->label);
    llm_redis_epoch_name(keys, name);
    is_str(name, v->epoch_name, "%s: the epoch's", v->label);
    llm_redis_quota_name(keys, 490000 + v->epoch, name);
    is_str(name, v->quota_name, "%s: the quota's", v->label);
}

static void check_value(const struct vector *v, const struct llm_redis_tenant_keys *keys,
                        const uint32_t ids[LLM_PAGE_TOKENS])
{
    enum llm_latent_dtype dtype = strcmp(v->dtype, "f32") == 0    ? LLM_LATENT_F32
                                  : strcmp(v->dtype, "bf16") == 0 ? LLM_LATENT_BF16
                                                                  : LLM_LATENT_FP8;
    struct llm_page_layout layout = make_layout(dtype, 2, 2, 1);
    uint8_t *want = make_page(&layout), *page = calloc(1, layout.page_bytes);
    uint8_t value[sizeof(v->value) / 2];
    size_t n_value = from_hex(v->value, value);

    need(page != NULL, "out of memory");
    is_int(n_value, llm_redis_value_bytes(&layout), "%s: the value's size", v->label);
    is_int(llm_redis_value_open(keys, v->name, &layout, ids, value, n_value, page), LLM_VALUE_GOOD,
           "%s: the value", v->label);
    ok(memcmp(page, want, layout.page_bytes) == 0, "%s: its page", v->label);
    free(want);
    free(page);
    llm_page_layout_free(&layout);
}

static void check_vector(const struct vector *v)
{
    enum llm_scope scope = strcmp(v->scope, "public") == 0 ? LLM_SCOPE_PUBLIC : LLM_SCOPE_TENANT;
    uint8_t master[32], tenant[32], owner[32];
    struct llm_redis_tenant_keys keys;
    uint32_t ids[LLM_PAGE_TOKENS];
    struct llm_digest digest;

    read_master(v, master);
    from_hex(v->owner, tenant); /* *public*'s own is not asked for */
    llm_scope_owner(scope, tenant, owner);
    ok(is_hex_of(v->owner, owner, 32), "%s: the owner", v->label);
    find_page(v, master, scope, tenant, &digest, ids);
    is_int(llm_redis_tenant_keys(master, owner, &keys), LLM_OK, "%s: the tenant's keys", v->label);
    check_names(v, &keys, &digest);
    check_value(v, &keys, ids);
}

int main(void)
{
    static struct vector v;
    static char names[MAX_CASES][LLM_REDIS_NAME_MAX];
    FILE *f = fopen("t/data/redis/vectors.txt", "r");
    uint32_t n = 0, equal = 0;

    need(f != NULL, "cannot open t/data/redis/vectors.txt");
    scratch_init();
    need(fscanf(f, "# %*[^\n]") == 0, "no head");
    while (n < MAX_CASES && read_vector(f, &v)) {
        check_vector(&v);
        for (uint32_t i = 0; i < n; i++) {
            equal += strcmp(names[i], v.name) == 0;
        }
        memcpy(names[n++], v.name, sizeof(v.name));
    }
    fclose(f);

    is_int(n, 10, "cases");
    is_int(equal, 0, "no two of them have the same name");
    return done_testing();
}
