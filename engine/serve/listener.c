#include "engine/serve/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 128

/* Stands behind PATH until the socket listens; the process id makes it nobody else's. */
#define NEW_SUFFIX ".4194304"
#define LOCK_SUFFIX ".lock"

int llm_listener_address(const char *address, const char *option, struct sockaddr_un *addr,
                         struct llm_error *err)
{
    const size_t max = sizeof(addr->sun_path) - sizeof(NEW_SUFFIX);
    size_t len;

    *addr = (struct sockaddr_un){.sun_family = AF_UNIX};

    if (strncmp(address, "unix:", 5) != 0 || address[5] == '\0') {
        return llm_fail(err, LLM_EINVAL, "--%s wants unix:PATH, not \"%s\"", option, address);
    }
    len = strlen(address + 5);
    if (len > max) {
        return llm_fail(err, LLM_EINVAL,
                        "--%s: the path has %zu bytes, but it may have %zu: choose a shorter "
                        "one, such as unix:/run/llm-engine/llm.sock", option, len, max);
    }
    memcpy(addr->sun_path, address + 5, len);
    return LLM_OK;
}

static const struct group *find_group(const char *name, struct llm_error *err)
{
    const struct group *g = getgrnam(name);

    if (g == NULL) {
        llm_fail(err, LLM_EINVAL, "--socket-group: no group \"%s\"", name);
    }
    return g;
}

int llm_listener_check(const char *address, const char *group, struct llm_error *err)
{
    struct sockaddr_un addr;
    int rc = llm_listener_address(address, "listen", &addr, err);

    if (rc == LLM_OK && group != NULL && find_group(group, err) == NULL) {
        rc = LLM_EINVAL;
    }
    return rc;
}

/* --- the lock ---
 *
 * Two engines that start together over a dead one's socket would both find the path free, and the
 * later would take it from the earlier. So one at a time looks and takes. Its file goes when that
 * is done; one that a killed engine left is locked by nobody. */

struct lock {
    int fd;
    char path[sizeof(((struct sockaddr_un *) 0)->sun_path) + sizeof(LOCK_SUFFIX)];
};

static bool is_at(int fd, const char *path)
{
    struct stat here, there;

    return fstat(fd, &here) == 0 && lstat(path, &there) == 0 && here.st_dev == there.st_dev &&
           here.st_ino == there.st_ino;
}

static int take_lock(struct lock *lock, const char *path, struct llm_error *err)
{
    int rc;

    snprintf(lock->path, sizeof(lock->path), "%s" LOCK_SUFFIX, path);
    lock->fd = open(lock->path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (lock->fd < 0) {
        rc = errno;
        return llm_fail(err, LLM_EIO, "%s: cannot open: %s%s", lock->path, strerror(rc),
                        rc == ENOENT   ? ": create its directory first"
                        : rc == EACCES ? ": let this user write to its directory"
                                       : "");
    }

    rc = flock(lock->fd, LOCK_EX | LOCK_NB) < 0 ? errno : 0;
    if (rc == 0 && is_at(lock->fd, lock->path)) {
        return LLM_OK;
    }
    close(lock->fd);
    if (rc == 0 || rc == EWOULDBLOCK) { /* 0: locked, but removed before by the one that had it */
        return llm_fail(err, LLM_EINVAL, "%s: another engine is starting there: stop it, or choose "
                        "another path", path);
    }
    return llm_fail(err, LLM_EIO, "%s: cannot lock: %s", lock->path, strerror(rc));
}

static void drop_lock(struct lock *lock)
{
    unlink(lock->path);
    close(lock->fd);
}

/* --- the socket --- */

/* LLM_OK: nothing is there, or the socket of an engine that is dead. */
static int check_free(const struct sockaddr_un *addr, struct llm_error *err)
{
    const char *path = addr->sun_path;
    struct stat st;
    int fd, rc;

    if (lstat(path, &st) < 0) {
        return errno == ENOENT ? LLM_OK : llm_fail(err, LLM_EIO, "%s: %s", path, strerror(errno));
    }
    if (!S_ISSOCK(st.st_mode)) {
        return llm_fail(err, LLM_EINVAL, "%s exists and is not a socket: remove it, or choose "
                        "another path", path);
    }

    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return llm_fail(err, LLM_EIO, "socket: %s", strerror(errno));
    }
    rc = connect(fd, (const struct sockaddr *) addr, sizeof(*addr)) < 0 ? errno : 0;
    close(fd);

    if (rc == EACCES) {
        return llm_fail(err, LLM_EIO, "%s: another user's socket is there: remove it, or choose "
                        "another path", path);
    }
    if (rc != ECONNREFUSED) {
        /* connected, or its backlog is full, or it is another kind of socket */
        return llm_fail(err, LLM_EINVAL, "%s: another process is listening there: stop it, or "
                        "choose another path", path);
    }
    return LLM_OK;
}

static int give_to_group(const char *path, const char *group, struct llm_error *err)
{
    const struct group *g;

    if (group == NULL) {
        return LLM_OK;
    }
    g = find_group(group, err);
    if (g == NULL) {
        return LLM_EINVAL;
    }
    if (chown(path, (uid_t) -1, g->gr_gid) < 0) {
        return llm_fail(err, LLM_EIO, "%s: cannot give it to group %s: %s", path, group,
                        strerror(errno));
    }
    return LLM_OK;
}

static int bind_to(int fd, const struct sockaddr_un *addr, struct llm_error *err)
{
    mode_t mask = umask(0117); /* 0660 from the first moment */
    int rc;

    unlink(addr->sun_path); /* of a dead process that had our id */
    rc = bind(fd, (const struct sockaddr *) addr, sizeof(*addr)) < 0 ? errno : 0;
    umask(mask);
    return rc == 0 ? LLM_OK : llm_fail(err, LLM_EIO, "%s: cannot listen: %s", addr->sun_path,
                                       strerror(rc));
}

/* Puts a socket that listens in the place of what is at the address. */
static int take_place(struct llm_listener *l, const struct sockaddr_un *addr, const char *group,
                      struct llm_error *err)
{
    struct sockaddr_un new_addr = *addr;
    struct stat st;
    int rc;

    l->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->fd < 0) {
        return llm_fail(err, LLM_EIO, "socket: %s", strerror(errno));
    }
    snprintf(new_addr.sun_path + strlen(addr->sun_path), sizeof(NEW_SUFFIX), ".%d", (int) getpid());
    rc = bind_to(l->fd, &new_addr, err);
    if (rc != LLM_OK) {
        close(l->fd);
        l->fd = -1;
        return rc;
    }

    l->path = strdup(new_addr.sun_path);
    if (l->path == NULL || stat(l->path, &st) < 0) {
        rc = llm_fail(err, LLM_EIO, "%s: %s", new_addr.sun_path, strerror(errno));
        goto fail;
    }
    l->dev = st.st_dev;
    l->ino = st.st_ino;

    rc = give_to_group(l->path, group, err);
    if (rc != LLM_OK) {
        goto fail;
    }
    if (listen(l->fd, BACKLOG) < 0 || rename(l->path, addr->sun_path) < 0) {
        rc = llm_fail(err, LLM_EIO, "%s: cannot listen: %s", addr->sun_path, strerror(errno));
        goto fail;
    }
    l->path[strlen(addr->sun_path)] = '\0';
    return LLM_OK;

fail:
    llm_listener_close(l);
    return rc;
}

int llm_listener_open(struct llm_listener *l, const char *address, const char *group,
                      struct llm_error *err)
{
    struct sockaddr_un addr;
    struct lock lock;
    int rc;

    *l = (struct llm_listener){.fd = -1};

    rc = llm_listener_address(address, "listen", &addr, err);
    if (rc == LLM_OK) {
        rc = take_lock(&lock, addr.sun_path, err);
    }
    if (rc != LLM_OK) {
        return rc;
    }
    rc = check_free(&addr, err);
    if (rc == LLM_OK) {
        rc = take_place(l, &addr, group, err);
    }
    drop_lock(&lock);
    return rc;
}

void llm_listener_close(struct llm_listener *l)
{
    struct stat st;

    if (l->fd < 0) {
        return;
    }
    if (l->path != NULL && lstat(l->path, &st) == 0 && st.st_dev == l->dev &&
        st.st_ino == l->ino) {
        unlink(l->path);
    }
    close(l->fd);
    free(l->path);
    *l = (struct llm_listener){.fd = -1};
}
