#include "engine/cache/secret.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int check_file(int fd, const char *path, struct llm_error *err)
{
    struct stat st;
    mode_t forbidden;

    if (fstat(fd, &st) != 0) {
        return llm_fail(err, LLM_EIO, "%s: %s", path, strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) {
        return llm_fail(err, LLM_EINVAL, "%s: is not a regular file", path);
    }
    /* Of another user's file, as root's, the group may read; its bits stand also for users that an
     * ACL names, as their mask: so systemd hands out credentials. */
    forbidden = st.st_uid == geteuid() ? S_IRWXG | S_IRWXO : S_IWGRP | S_IXGRP | S_IRWXO;
    if ((st.st_mode & forbidden) != 0) {
        return llm_fail(err, LLM_EINVAL,
                        "%s: others than its owner may read or write it (mode %03o): chmod 600",
                        path, (unsigned) st.st_mode & 0777);
    }
    return LLM_OK;
}

/* Up to max bytes; fewer: the file ends there. */
static int read_bytes(int fd, const char *path, uint8_t *out, size_t max, size_t *len,
                      struct llm_error *err)
{
    ssize_t n;

    *len = 0;
    do {
        n = read(fd, out + *len, max - *len);
        if (n < 0 && errno != EINTR) {
            return llm_fail(err, LLM_EIO, "%s: %s", path, strerror(errno));
        }
        *len += n > 0 ? (size_t) n : 0;
    } while (n != 0 && *len < max);
    return LLM_OK;
}

int llm_secret_read(const char *path, uint8_t master[32], struct llm_error *err)
{
    static const char salt[] = "ngx-llm secret file";
    uint8_t secret[LLM_SECRET_MAX + 1];
    size_t len;
    int fd, rc;

    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO is refused, not waited for */
    if (fd < 0) {
        return llm_fail(err, LLM_EIO, "%s: %s", path, strerror(errno));
    }

    rc = check_file(fd, path, err);
    if (rc == LLM_OK) {
        rc = read_bytes(fd, path, secret, sizeof(secret), &len, err);
    }
    if (rc != LLM_OK) {
        goto done;
    }
    if (len < LLM_SECRET_MIN || len > LLM_SECRET_MAX) {
        rc = llm_fail(err, LLM_EINVAL, "%s: must hold %d to %d bytes", path, LLM_SECRET_MIN,
                      LLM_SECRET_MAX);
        goto done;
    }
    if (HMAC(EVP_sha256(), salt, sizeof(salt) - 1, secret, len, master, NULL) == NULL) {
        rc = llm_fail(err, LLM_EINTERNAL, "%s: OpenSSL failed", path);
    }

done:
    OPENSSL_cleanse(secret, sizeof(secret));
    close(fd);
    return rc;
}
