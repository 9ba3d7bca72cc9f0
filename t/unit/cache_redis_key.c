/* Names in Redis, and the file that they and all keys are made from. Their exact bytes are the
 * business of cache_redis_vectors. */

#include "t/unit/redis_page.h"
#include "t/unit/scratch.h"
#include "t/unit/tap.h"

#include <fnmatch.h>
#include <sys/stat.h>

static void test_names(void)
{
    struct llm_redis_tenant_keys keys = make_keys(1, 1), other_owner = make_keys(1, 2),
                                 other_secret = make_keys(2, 1);
    char page[LLM_REDIS_NAME_MAX], epoch[LLM_REDIS_NAME_MAX], quota[LLM_REDIS_NAME_MAX],
        pattern[LLM_REDIS_NAME_MAX], other[LLM_REDIS_NAME_MAX];

    make_name(&keys, 7, 5, page);
    is_int(strlen(page), 5 + 34 + 1 + 64, "the name of a page");
    is_int(strncmp(page, "llm1:{", 6), 0, "begins so");
    is_int(strncmp(page + 6, keys.tag, 32), 0, "goes on with the tenant's tag");
    is_int(strspn(page + 6, "0123456789abcdef"), 32, "in hexadecimal digits");
    is_int(strspn(page + 40, "0123456789abcdef"), 64, "then its own");

    make_name(&keys, 7, 5, other);
    is_str(other, page, "the same page has the same name");
    make_name(&keys, 8, 5, other);
    ok(strcmp(page + 40, other + 40) != 0, "not after a purge");
    make_name(&keys, 7, 6, other);
    ok(strcmp(page + 40, other + 40) != 0, "another page has another");
    make_name(&other_owner, 7, 5, other);
    ok(strncmp(page, other, 40) != 0 && strcmp(page + 40, other + 40) != 0,
       "with another tenant nothing of it is the same");
    make_name(&other_secret, 7, 5, other);
    ok(strncmp(page, other, 40) != 0 && strcmp(page + 40, other + 40) != 0,
       "nor with another secret");
    ok(memcmp(keys.naming, keys.seal, 32) != 0 && memcmp(keys.seal, other_owner.seal, 32) != 0
           && memcmp(keys.seal, other_secret.seal, 32) != 0,
       "every key is another one");

    llm_redis_epoch_name(&keys, epoch);
    llm_redis_quota_name(&keys, UINT64_MAX, quota);
    is_int(strncmp(epoch, page, 40), 0, "the epoch has the tag");
    is_int(strncmp(quota, page, 40), 0, "so has the quota");
    llm_redis_page_pattern(&keys, pattern);
    is_int(fnmatch(pattern, page, FNM_NOESCAPE), 0, "the pattern is of pages");
    is_int(fnmatch(pattern, epoch, FNM_NOESCAPE), FNM_NOMATCH, "not of the epoch");
    is_int(fnmatch(pattern, quota, FNM_NOESCAPE), FNM_NOMATCH, "not of the quota");
    is_int(fnmatch(pattern, other, FNM_NOESCAPE), FNM_NOMATCH, "not of another tenant");
}

static const char *write_secret(const char *name, size_t len, mode_t mode)
{
    const char *path = scratch_path(name);
    char bytes[LLM_SECRET_MAX + 1];

    memset(bytes, 'k', sizeof(bytes));
    scratch_write(path, bytes, len);
    need(chmod(path, mode) == 0, "chmod");
    return path;
}

static void test_secret_file(void)
{
    static const mode_t open_to_others[] = {0640, 0620, 0604, 0602};
    uint8_t master[32], other[32];
    struct llm_error err;
    const char *path;

    is_int(llm_secret_read(write_secret("a", 32, 0600), master, &err), LLM_OK, "32 bytes");
    is_int(llm_secret_read(write_secret("b", 32, 0400), other, &err), LLM_OK, "the same again");
    ok(memcmp(master, other, 32) == 0, "are the same secret");
    is_int(llm_secret_read(write_secret("c", 33, 0600), other, &err), LLM_OK, "one byte more");
    ok(memcmp(master, other, 32) != 0, "is another one");
    is_int(llm_secret_read(write_secret("d", 4096, 0600), other, &err), LLM_OK, "4096 bytes");

    is_int(llm_secret_read(write_secret("e", 4097, 0600), other, &err), LLM_EINVAL, "not more");
    is_int(llm_secret_read(write_secret("f", 31, 0600), other, &err), LLM_EINVAL, "not 31");
    ok(strstr(err.text, "32 to 4096 bytes") != NULL, "how many is said");
    ok(strstr(err.text, "kkk") == NULL, "not what they are");
    is_int(llm_secret_read(write_secret("g", 0, 0600), other, &err), LLM_EINVAL, "not none");
    for (size_t i = 0; i < sizeof(open_to_others) / sizeof(*open_to_others); i++) {
        path = write_secret("h", 32, open_to_others[i]);
        is_int(llm_secret_read(path, other, &err), LLM_EINVAL, "not with mode %03o",
               (unsigned) open_to_others[i]);
        ok(strstr(err.text, "chmod 600") != NULL, "what to do is said");
    }

    if (geteuid() == 0) { /* of somebody else, who may let a group read it */
        path = write_secret("i", 32, 0440);
        need(chown(path, 1, 1) == 0, "chown");
        is_int(llm_secret_read(path, other, &err), LLM_OK, "another's, with mode 440");
        need(chmod(path, 0444) == 0, "chmod");
        is_int(llm_secret_read(path, other, &err), LLM_EINVAL, "not with 444");
        need(chmod(path, 0460) == 0, "chmod");
        is_int(llm_secret_read(path, other, &err), LLM_EINVAL, "nor 460");
    }

    is_int(llm_secret_read(scratch_path("none"), other, &err), LLM_EIO, "no file");
    need(mkdir(scratch_path("dir"), 0700) == 0 && mkfifo(scratch_path("fifo"), 0600) == 0,
         "mkdir, mkfifo");
    is_int(llm_secret_read(scratch_path("dir"), other, &err), LLM_EINVAL, "a directory");
    is_int(llm_secret_read(scratch_path("fifo"), other, &err), LLM_EINVAL,
           "a FIFO, without waiting");
}

int main(void)
{
    scratch_init();
    test_names();
    test_secret_file();
    return done_testing();
}
