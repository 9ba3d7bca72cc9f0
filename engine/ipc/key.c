#include "engine/ipc/key.h"

#include "engine/ipc/abi.h"

#include <openssl/sha.h>
#include <string.h>

#define PREFIX_LENGTH (sizeof(LLM_IPC_KEY_PREFIX) - 1)
#define CODED (LLM_IPC_KEY_SECRET + 4) /* bytes in base32; the last character has 3 bits of them */

/* By nibbles, lowest first: small, and fast enough for 32 bytes. */
static uint32_t crc32_of(const uint8_t *data, size_t len)
{
    static const uint32_t table[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
        0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
        0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    uint32_t crc = 0xffffffff;

    for (size_t i = 0; i < len; i++) {
        crc ^= data[i];
        crc = table[crc & 15] ^ crc >> 4;
        crc = table[crc & 15] ^ crc >> 4;
    }
    return ~crc;
}

static void put_crc(const uint8_t *secret, uint8_t out[4])
{
    uint32_t crc = crc32_of(secret, LLM_IPC_KEY_SECRET);

    for (int i = 0; i < 4; i++) {
        out[i] = (uint8_t) (crc >> (24 - 8 * i));
    }
}

void llm_ipc_key_write(const uint8_t secret[LLM_IPC_KEY_SECRET], char key[LLM_IPC_KEY_LENGTH + 1])
{
    static const char alphabet[] = "abcdefghijklmnopqrstuvwxyz234567";
    uint8_t bytes[CODED + 1] = {0}; /* a zero behind them, for the last character */
    char *out = key + PREFIX_LENGTH;

    memcpy(bytes, secret, LLM_IPC_KEY_SECRET);
    put_crc(secret, bytes + LLM_IPC_KEY_SECRET);

    memcpy(key, LLM_IPC_KEY_PREFIX, PREFIX_LENGTH);
    for (size_t bit = 0; bit < 8 * CODED; bit += 5) {
        unsigned two = (unsigned) bytes[bit / 8] << 8 | bytes[bit / 8 + 1];

        *out++ = alphabet[two >> (11 - bit % 8) & 31];
    }
    *out = '\0';
}

/* The five bits of a character; -1: it is none of the alphabet. */
static int value_of(uint8_t c)
{
    if (c >= 'a' && c <= 'z') {
        return c - 'a';
    }
    return c >= '2' && c <= '7' ? c - '2' + 26 : -1;
}

bool llm_ipc_key_valid(const void *text, size_t len)
{
    const uint8_t *p = text;
    uint8_t bytes[CODED], crc[4];
    unsigned bits = 0, n_bits = 0;
    size_t n = 0;

    if (len != LLM_IPC_KEY_LENGTH || memcmp(p, LLM_IPC_KEY_PREFIX, PREFIX_LENGTH) != 0) {
        return false;
    }
    for (size_t i = PREFIX_LENGTH; i < len; i++) {
        int five = value_of(p[i]);

        if (five < 0) {
            return false;
        }
        bits = bits << 5 | (unsigned) five;
        n_bits += 5;
        if (n_bits >= 8) {
            n_bits -= 8;
            bytes[n++] = (uint8_t) (bits >> n_bits);
            bits &= (1u << n_bits) - 1;
        }
    }

    put_crc(bytes, crc);
    return bits == 0 && memcmp(bytes + LLM_IPC_KEY_SECRET, crc, sizeof(crc)) == 0;
}

void llm_ipc_key_digest(const void *text, size_t len, uint8_t digest[LLM_IPC_KEY_DIGEST])
{
    SHA256(text, len, digest);
}

static bool is_word(const uint8_t *p, size_t len, size_t max)
{
    if (len == 0 || len > max || p[0] == '#') {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        if (p[i] < '!' || p[i] > '~') {
            return false;
        }
    }
    return true;
}

bool llm_ipc_key_name_valid(const void *text, size_t len)
{
    return is_word(text, len, LLM_IPC_KEY_NAME);
}

bool llm_ipc_key_tenant_valid(const void *text, size_t len)
{
    static const char reserved[] = "*public*";

    return is_word(text, len, LLM_IPC_MAX_TENANT) &&
           !(len == sizeof(reserved) - 1 && memcmp(text, reserved, len) == 0);
}
