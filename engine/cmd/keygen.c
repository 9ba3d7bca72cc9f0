/* llm-engine keygen: a new key, for its owner alone, and its line of nginx's key file, which does
 * not tell the key. */

#include "engine/cmd/cmd.h"

#include "engine/ipc/key.h"

#include <inttypes.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define NAME_BYTES 8 /* of the digest: the key's name says nothing that its line does not */

static void print_hex(const uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        printf("%02" PRIx8, bytes[i]);
    }
}

static void print_key(const uint8_t secret[LLM_IPC_KEY_SECRET], const char *tenant)
{
    char key[LLM_IPC_KEY_LENGTH + 1];
    uint8_t digest[LLM_IPC_KEY_DIGEST];

    llm_ipc_key_write(secret, key);
    llm_ipc_key_digest(key, LLM_IPC_KEY_LENGTH, digest);

    printf("%s\nkey-", key);
    print_hex(digest, NAME_BYTES);
    putchar(' ');
    print_hex(digest, sizeof(digest));
    printf(" %s\n", tenant);

    OPENSSL_cleanse(key, sizeof(key));
}

int llm_cmd_keygen(int argc, char **argv)
{
    uint8_t secret[LLM_IPC_KEY_SECRET];

    if (argc != 1 || argv[0][0] == '-') {
        fputs("usage: llm-engine keygen TENANT\n"
              "Prints a new key, which nobody can find out again, and its line for the file of\n"
              "llm_keys.\n",
              stderr);
        return LLM_EXIT_USAGE;
    }
    if (!llm_ipc_key_tenant_valid(argv[0], strlen(argv[0]))) {
        fputs("llm-engine keygen: a tenant's name is one word of at most 255 printable ASCII\n"
              "characters that does not begin with # and is not *public*\n",
              stderr);
        return LLM_EXIT_USAGE;
    }
    if (getrandom(secret, sizeof(secret), 0) != sizeof(secret)) {
        perror("llm-engine keygen: getrandom");
        return LLM_EXIT_ERROR;
    }

    print_key(secret, argv[0]);
    OPENSSL_cleanse(secret, sizeof(secret));
    return fflush(stdout) == 0 ? LLM_EXIT_OK : LLM_EXIT_ERROR;
}
