/* Digests and secrets against values computed with Python's hashlib and hmac:
 *
 *   f = lambda b: struct.pack('<Q', len(b)) + b
 *   digest = sha256(f(bytes(range(32))) + f(bytes(range(100, 132))) + f(bytes(range(200, 216)))
 *                   + f(struct.pack('<I', 1)) + f(parent) + f(struct.pack('<64I', *ids)))
 *
 * with parent b'' for the first page and ids 0, 1, 2 …;
 *
 *   prk = hmac(b'ngx-llm scope', bytes(range(32)), sha256)
 *   secret = hmac(prk, info + b'\1', sha256)
 *
 * with info b'tenant' + sha256(b'alice') or b'public'. */

#include "engine/cache/digest.h"
#include "engine/model/plane.h"
#include "t/unit/tap.h"

#define N_PAGES 3

static const char *const page_digests[N_PAGES] = {
    "e4341d6eb4c2855bb1950535e0ec1c4731568e3d7a480598cace95f5ca1e201c",
    "3d5cd162d474d3e4df42da72d104c73168a42a3cf5eaa98d286bf942a6cd8a1b",
    "7074a8af5885d1ad69ae577df26f3c9eb1e5ab11523636f143d8b29d3c5b5670",
};
static const char tenant_secret[] =
    "2d4f289464d1fa99e5676b16f019c5a9e6f995925828fcb4a63a3061cdfa4519";
static const char public_secret[] =
    "2e92ea680f08e8228c2210abf7c506f5e75322fed11dc4fc8b79cd3a16d58095";
static const char public_owner[] = /* sha256(b'*public*') */
    "80e71dcd0c5c0af21896c10f4aa85846b47d03f4d0c3014e4302a5d6388bbc11";

static const uint8_t alice[32] = { /* sha256(b'alice') */
    0x2B, 0xD8, 0x06, 0xC9, 0x7F, 0x0E, 0x00, 0xAF, 0x1A, 0x1F, 0xC3,
    0x32, 0x8F, 0xA7, 0x63, 0xA9, 0x26, 0x97, 0x23, 0xC8, 0xDB, 0x8F,
    0xAC, 0x4F, 0x93, 0xAF, 0x71, 0xDB, 0x18, 0x6D, 0x6E, 0x90,
};

static const char *hex(const uint8_t bytes[32])
{
    static char text[65];

    for (int i = 0; i < 32; i++) {
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    }
    return text;
}

static struct llm_chain make_chain(void)
{
    struct llm_chain c;

    for (uint8_t i = 0; i < 32; i++) {
        c.secret[i] = i;
        c.fingerprint[i] = 100 + i;
    }
    for (uint8_t i = 0; i < 16; i++) {
        c.numerics_id[i] = 200 + i;
    }
    return c;
}

static uint32_t ids[N_PAGES * LLM_PAGE_TOKENS];

static bool differ(const struct llm_chain *chain, const struct llm_digest *parent)
{
    struct llm_digest d;

    return llm_page_digests(chain, parent, ids, 1, &d) == LLM_OK
           && strcmp(hex(d.bytes), page_digests[0]) != 0;
}

static void test_pages(void)
{
    struct llm_chain chain = make_chain(), other;
    struct llm_digest all[N_PAGES], last;

    for (uint32_t i = 0; i < N_PAGES * LLM_PAGE_TOKENS; i++) {
        ids[i] = i;
    }
    is_int(llm_page_digests(&chain, NULL, ids, N_PAGES, all), LLM_OK, "a chain of three pages");
    for (int i = 0; i < N_PAGES; i++) {
        is_str(hex(all[i].bytes), page_digests[i], "page %d", i);
    }
    is_int(llm_page_digests(&chain, &all[1], ids + 2 * LLM_PAGE_TOKENS, 1, &last), LLM_OK,
           "from the second page on");
    is_str(hex(last.bytes), page_digests[2], "the same");
    is_int(llm_page_digests(&chain, NULL, ids, 0, all), LLM_OK, "of no page none");

    other = chain;
    other.secret[31] ^= 1;
    ok(differ(&other, NULL), "another secret is another digest");
    other = chain;
    other.fingerprint[31] ^= 1;
    ok(differ(&other, NULL), "so is another model");
    other = chain;
    other.numerics_id[15] ^= 1;
    ok(differ(&other, NULL), "other numerics");
    ok(differ(&chain, &all[0]), "another page before it");
    ids[LLM_PAGE_TOKENS - 1]++;
    ok(differ(&chain, NULL), "another token");
}

static void test_scopes(void)
{
    uint8_t master[32], secret[32], again[32], owner[32];

    for (uint8_t i = 0; i < 32; i++) {
        master[i] = i;
    }
    is_int(llm_scope_secret(master, LLM_SCOPE_TENANT, alice, secret), LLM_OK, "of a tenant");
    is_str(hex(secret), tenant_secret, "the secret");
    is_int(llm_scope_secret(master, LLM_SCOPE_PUBLIC, alice, secret), LLM_OK, "of everybody");
    is_str(hex(secret), public_secret, "the secret");
    is_int(llm_scope_secret(master, LLM_SCOPE_OFF, alice, secret), LLM_OK, "of nobody");
    is_int(llm_scope_secret(master, LLM_SCOPE_OFF, alice, again), LLM_OK, "twice");
    ok(memcmp(secret, again, 32) != 0, "is another one each time");

    llm_scope_owner(LLM_SCOPE_PUBLIC, alice, owner);
    is_str(hex(owner), public_owner, "pages of everybody belong to *public*");
    llm_scope_owner(LLM_SCOPE_TENANT, alice, owner);
    ok(memcmp(owner, alice, 32) == 0, "a tenant's to it");
    llm_scope_owner(LLM_SCOPE_OFF, alice, owner);
    ok(memcmp(owner, alice, 32) == 0, "also those that nobody finds");
}

int main(void)
{
    test_pages();
    test_scopes();
    return done_testing();
}
