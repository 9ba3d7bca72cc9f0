/* Keys: against vectors made by other programs (Python's base64, zlib and hashlib), and whether
 * every slip of a finger is seen. */

#include "engine/ipc/abi.h"
#include "engine/ipc/key.h"
#include "t/unit/tap.h"

static const char alphabet[] = "abcdefghijklmnopqrstuvwxyz234567";

static void hex(const uint8_t *bytes, size_t n, char *out)
{
    for (size_t i = 0; i < n; i++) {
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
    }
}

static void test_vectors(void)
{
    static const struct {
        uint8_t first, step;
        const char *key, *digest;
    } vectors[] = {
        {0, 0, "sk-llm-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabscsvvu",
         "b116f2267193ae388483da0d02bc56485aa1346090491eefb0ea2e9347149b20"},
        {0, 1, "sk-llm-aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypzcjt6ri",
         "403cdbb99b7549b54742037c9fa877ae5c8ea1f61437b7ef4cddcef1b6c09eeb"},
        {255, 0, "sk-llm-777777777777777777777777777777777777777777777777777763flbm",
         "867ed8522f0e92145ce1c765a04e6b8e89ad3e71381f3423d91a51fcd2df668d"},
    };

    for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
        uint8_t secret[LLM_IPC_KEY_SECRET], digest[LLM_IPC_KEY_DIGEST];
        char key[LLM_IPC_KEY_LENGTH + 1], text[2 * LLM_IPC_KEY_DIGEST + 1];

        for (size_t k = 0; k < sizeof(secret); k++) {
            secret[k] = (uint8_t) (vectors[i].first + vectors[i].step * k);
        }
        llm_ipc_key_write(secret, key);
        is_str(key, vectors[i].key, "key %zu", i);
        llm_ipc_key_digest(key, LLM_IPC_KEY_LENGTH, digest);
        hex(digest, sizeof(digest), text);
        is_str(text, vectors[i].digest, "its digest");
        ok(llm_ipc_key_valid(key, strlen(key)), "it is valid");
    }
}

/* Of a key in memory of its exact size, so that a sanitizer sees a byte too many. */
static bool valid(const char *text, size_t len)
{
    char *copy = malloc(len + (len == 0));
    bool good;

    if (copy == NULL) {
        printf("Bail out! out of memory\n");
        exit(1);
    }
    memcpy(copy, text, len);
    good = llm_ipc_key_valid(copy, len);
    free(copy);
    return good;
}

static void test_typos(void)
{
    const char *key = "sk-llm-aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypzcjt6ri";
    char wrong[LLM_IPC_KEY_LENGTH + 2];
    unsigned other = 0, swapped = 0, shorter = 0, foreign = 0, prefix = 0;

    for (size_t i = 7; i < LLM_IPC_KEY_LENGTH; i++) {
        for (const char *c = alphabet; *c != '\0'; c++) {
            memcpy(wrong, key, LLM_IPC_KEY_LENGTH);
            wrong[i] = *c;
            other += *c != key[i] && valid(wrong, LLM_IPC_KEY_LENGTH);
        }
        for (int c = 0; c < 256; c++) {
            memcpy(wrong, key, LLM_IPC_KEY_LENGTH);
            wrong[i] = (char) c;
            foreign += (c == 0 || strchr(alphabet, c) == NULL) && valid(wrong, LLM_IPC_KEY_LENGTH);
        }
    }
    is_int(other, 0, "another character anywhere");
    is_int(foreign, 0, "a character that is in no key, capitals too");

    for (size_t i = 7; i + 1 < LLM_IPC_KEY_LENGTH; i++) {
        memcpy(wrong, key, LLM_IPC_KEY_LENGTH);
        wrong[i] = key[i + 1];
        wrong[i + 1] = key[i];
        swapped += key[i] != key[i + 1] && valid(wrong, LLM_IPC_KEY_LENGTH);
    }
    is_int(swapped, 0, "two characters swapped");

    for (size_t n = 0; n < LLM_IPC_KEY_LENGTH; n++) {
        shorter += valid(key, n);
    }
    memcpy(wrong, key, LLM_IPC_KEY_LENGTH);
    wrong[LLM_IPC_KEY_LENGTH] = 'a';
    is_int(shorter + valid(wrong, LLM_IPC_KEY_LENGTH + 1), 0, "shorter, or longer");

    for (size_t i = 0; i < 7; i++) {
        memcpy(wrong, key, LLM_IPC_KEY_LENGTH);
        wrong[i] ^= 32;
        prefix += valid(wrong, LLM_IPC_KEY_LENGTH);
    }
    is_int(prefix, 0, "another prefix");

    /* the last character has two bits that mean nothing */
    memcpy(wrong, key, LLM_IPC_KEY_LENGTH);
    wrong[LLM_IPC_KEY_LENGTH - 1]++;
    ok(!valid(wrong, LLM_IPC_KEY_LENGTH), "no second spelling");
}

static void test_names(void)
{
    char longest[LLM_IPC_MAX_TENANT + 1];

    memset(longest, 'x', sizeof(longest));
    ok(llm_ipc_key_name_valid("!~=\"\\#", 6), "a name of what can be seen");
    ok(llm_ipc_key_name_valid(longest, LLM_IPC_KEY_NAME), "a name of 64 bytes");
    ok(!llm_ipc_key_name_valid(longest, LLM_IPC_KEY_NAME + 1), "no longer one");
    ok(!llm_ipc_key_name_valid("", 0), "no empty one");
    ok(!llm_ipc_key_name_valid("#a", 2), "none that begins a comment");
    ok(!llm_ipc_key_name_valid("a b", 3) && !llm_ipc_key_name_valid("a\x7f", 2) &&
           !llm_ipc_key_name_valid("a\n", 2) && !llm_ipc_key_name_valid("\xc3\xa4", 2) &&
           !llm_ipc_key_name_valid("a\0", 2),
       "none with what cannot be seen, or is no ASCII");

    ok(llm_ipc_key_tenant_valid(longest, LLM_IPC_MAX_TENANT), "a tenant of 255 bytes");
    ok(!llm_ipc_key_tenant_valid(longest, LLM_IPC_MAX_TENANT + 1), "no longer one");
    ok(!llm_ipc_key_tenant_valid("", 0), "no tenant without a name");
    ok(!llm_ipc_key_tenant_valid("*public*", 8), "nobody is everybody");
    ok(llm_ipc_key_tenant_valid("*public", 7) && llm_ipc_key_tenant_valid("*public**", 9),
       "others may be called like that");
}

int main(void)
{
    test_vectors();
    test_typos();
    test_names();
    return done_testing();
}
