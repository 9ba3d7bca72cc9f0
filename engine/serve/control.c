#include "engine/serve/control.h"

#include "engine/base/clock.h"
#include "engine/ipc/record.h"
#include "engine/serve/engine.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct control {
    const char *address;
    uint32_t timeout_ms;
    uint64_t until;
    int sock;
    struct llm_ipc_session ipc;
    struct llm_ipc_buffer buffer;
};

static int connect_to(struct control *c, struct llm_error *err)
{
    struct sockaddr_un addr;
    int rc = llm_listener_address(c->address, "engine", &addr, err);

    if (rc != LLM_OK) {
        return rc;
    }
    c->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (c->sock < 0) {
        return llm_fail(err, LLM_EIO, "socket: %s", strerror(errno));
    }
    if (connect(c->sock, (struct sockaddr *) &addr, sizeof(addr)) == 0) {
        return LLM_OK;
    }
    return errno == ENOENT || errno == ECONNREFUSED
               ? llm_fail(err, LLM_EIO, "%s: no engine is there", c->address)
               : llm_fail(err, LLM_EIO, "%s: %s", c->address, strerror(errno));
}

/* Until the engine has said something, in one way or the other. */
static int wait_for_engine(struct control *c, struct llm_error *err)
{
    struct pollfd fds[2] = {{.fd = c->sock, .events = POLLIN},
                            {.fd = c->ipc.own_event, .events = POLLIN}};
    uint64_t now = llm_now_ns();

    if (now >= c->until || poll(fds, 2, (int) ((c->until - now) / LLM_NS_PER_MS) + 1) == 0) {
        return llm_fail(err, LLM_EIO, "%s: the engine does not answer in %u ms", c->address,
                        c->timeout_ms);
    }
    return LLM_OK;
}

static int shake_hands(struct control *c, struct llm_error *err)
{
    const struct llm_ipc_options options = {
        .slots = LLM_IPC_MIN_SLOTS,
        .arena_size = LLM_IPC_MIN_ARENA,
        .build_id = LLM_BUILD_ID,
        .role = LLM_IPC_ROLE_CONTROL,
    };
    int rc = llm_ipc_worker_hello(&c->ipc, c->sock, &options);

    while (rc == LLM_IPC_DONE) {
        int welcome;

        if (wait_for_engine(c, err) != LLM_OK) {
            return LLM_EIO;
        }
        welcome = llm_ipc_worker_welcome(&c->ipc, c->sock);
        if (welcome == LLM_IPC_DONE) {
            return LLM_OK;
        }
        rc = welcome == LLM_IPC_AGAIN ? LLM_IPC_DONE : welcome;
    }
    return llm_fail(err, LLM_EIO, "%s: %s", c->address,
                    c->ipc.error != NULL ? c->ipc.error : "the engine takes no session");
}

static int take_answer(struct control *c, struct llm_ipc_purged *out, struct llm_error *err)
{
    struct llm_ipc_record r;
    bool gone = false;

    for (;;) {
        int rc = llm_ipc_recv(&c->ipc, &r, &c->buffer);
        char byte;

        if (rc == LLM_IPC_DONE) {
            return r.type == LLM_IPC_PURGED && llm_ipc_purged_read(&r, out) == LLM_IPC_DONE
                       ? LLM_OK
                       : llm_fail(err, LLM_EIO, "%s: the engine answers something else",
                                  c->address);
        }
        if (rc != LLM_IPC_AGAIN) {
            return llm_fail(err, LLM_EIO, "%s: %s", c->address,
                            c->ipc.error != NULL ? c->ipc.error : "out of memory");
        }
        if (gone) {
            return llm_fail(err, LLM_EIO, "%s: the engine has ended the session: it is stopping, "
                            "or of another version", c->address);
        }
        if (llm_ipc_sleep(&c->ipc) && wait_for_engine(c, err) != LLM_OK) {
            return LLM_EIO;
        }
        llm_ipc_awake(&c->ipc);
        gone = recv(c->sock, &byte, sizeof(byte), MSG_DONTWAIT) == 0;
    }
}

int llm_control_purge(const char *address, const uint8_t owner[32], uint32_t timeout_ms,
                      struct llm_ipc_purged *out, struct llm_error *err)
{
    struct control c = {
        .address = address,
        .timeout_ms = timeout_ms,
        .until = llm_now_ns() + timeout_ms * LLM_NS_PER_MS,
        .sock = -1,
        .ipc.own_event = -1,
    };
    struct llm_ipc_purge record;
    const struct llm_ipc_iovec part = {&record, sizeof(record)};
    int rc = connect_to(&c, err);

    if (rc == LLM_OK) {
        rc = shake_hands(&c, err);
    }
    if (rc == LLM_OK) {
        memcpy(record.tenant, owner, sizeof(record.tenant));
        if (llm_ipc_send(&c.ipc, LLM_IPC_PURGE, 0, 1, &part, 1) != LLM_IPC_DONE) {
            rc = llm_fail(err, LLM_EIO, "%s: the engine takes no record", address);
        }
    }
    if (rc == LLM_OK) {
        llm_ipc_flush(&c.ipc);
        rc = take_answer(&c, out, err);
    }

    llm_ipc_close(&c.ipc);
    llm_ipc_buffer_free(&c.buffer);
    if (c.sock >= 0) {
        close(c.sock);
    }
    return rc;
}
