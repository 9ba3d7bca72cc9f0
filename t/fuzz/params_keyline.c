/* The key file and the key: an input is both, a file line by line and the text of a key. */

#include "ngx_module/ngx_http_llm_keyline.h"

#include "engine/ipc/abi.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void must(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

/* A line once more, from what was read of it. */
static size_t write_line(const ngx_http_llm_keyline_t *k, unsigned char *out, size_t size)
{
    char *p = (char *) out;
    size_t len = (size_t) snprintf(p, size, "%.*s ", (int) k->id.len, (const char *) k->id.data);

    for (size_t i = 0; i < sizeof(k->digest); i++) {
        len += (size_t) snprintf(p + len, size - len, "%02x", k->digest[i]);
    }
    len += (size_t) snprintf(p + len, size - len, " %.*s", (int) k->tenant.len,
                             (const char *) k->tenant.data);
    if (k->weight != 0) {
        len += (size_t) snprintf(p + len, size - len, " weight=%u", k->weight);
    }
    if (k->max_queued != 0) {
        len += (size_t) snprintf(p + len, size - len, " queued=%u", k->max_queued);
    }
    if (k->max_running != 0) {
        len += (size_t) snprintf(p + len, size - len, " running=%u", k->max_running);
    }
    if (k->max_pages != 0) {
        len += (size_t) snprintf(p + len, size - len, " pages=%u", k->max_pages);
    }
    return len;
}

static int same(const ngx_http_llm_word_t *a, const ngx_http_llm_word_t *b)
{
    return a->len == b->len && memcmp(a->data, b->data, a->len) == 0;
}

static void try_line(const uint8_t *data, size_t len)
{
    ngx_http_llm_keyline_t key, again;
    const char *error = NULL;
    unsigned char line[1024];
    size_t n;
    int rc = ngx_http_llm_keyline(data, len, &key, &error);

    must(rc == 1 || rc == 0 || (rc == -1 && error != NULL), "no verdict");
    if (rc != 1) {
        return;
    }
    must(llm_ipc_key_name_valid(key.id.data, key.id.len), "an id is none");
    must(llm_ipc_key_tenant_valid(key.tenant.data, key.tenant.len), "a tenant is none");
    must(key.weight <= LLM_IPC_MAX_WEIGHT && key.expires >= 0, "a number is out of bounds");
    must(key.models.len == 0 || key.models.data + key.models.len <= data + len, "models end late");
    must(!ngx_http_llm_keyline_names(&key.models, data, 0), "a model has no name");

    n = write_line(&key, line, sizeof(line));
    must(ngx_http_llm_keyline(line, n, &again, &error) == 1, "what was read cannot be read");
    must(same(&again.id, &key.id) && same(&again.tenant, &key.tenant) &&
             memcmp(again.digest, key.digest, sizeof(key.digest)) == 0 &&
             again.weight == key.weight && again.max_queued == key.max_queued &&
             again.max_running == key.max_running && again.max_pages == key.max_pages,
         "what was read reads otherwise");
}

/* A key that is valid is the one way to write its bytes. */
static void try_key(const uint8_t *data, size_t len)
{
    static const char alphabet[] = "abcdefghijklmnopqrstuvwxyz234567";
    uint8_t secret[LLM_IPC_KEY_SECRET + 1] = {0};
    char key[LLM_IPC_KEY_LENGTH + 1];

    if (!llm_ipc_key_valid(data, len)) {
        return;
    }
    must(len == LLM_IPC_KEY_LENGTH, "a key has another length");
    for (size_t bit = 0; bit < 8 * LLM_IPC_KEY_SECRET; bit++) {
        size_t at = sizeof(LLM_IPC_KEY_PREFIX) - 1 + bit / 5;
        const char *found = strchr(alphabet, data[at]);

        must(data[at] != 0 && found != NULL, "a key has another letter");
        secret[bit / 8] |= (uint8_t) (((found - alphabet) >> (4 - bit % 5) & 1) << (7 - bit % 8));
    }
    llm_ipc_key_write(secret, key);
    must(memcmp(key, data, len) == 0, "a key is written otherwise");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const uint8_t *p = data, *end, *last = data + n;

    for (; p < last; p = end + 1) {
        end = memchr(p, '\n', (size_t) (last - p));
        if (end == NULL) {
            end = last;
        }
        try_line(p, (size_t) (end - p));
    }
    try_key(data, n);
    return 0;
}
