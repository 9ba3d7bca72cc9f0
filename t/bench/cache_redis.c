/* Prints what the way of a page from Redis costs, a MiB: GET, decryption, the copy into the pool,
 * and all of it through the tier, against a bare C client that does GET and decryption in one loop.
 *
 *   cache_redis [PAGES]
 *
 * Starts a redis-server of its own, on a Unix socket and a port. After recv a page is moved twice:
 * it is decrypted from hiredis's buffer into the tier's, and copied from there into the pool. */

#include "engine/base/memory.h"
#include "t/unit/redis_server.h"
#include "t/unit/redis_tier.h"

#include <netinet/in.h>
#include <openssl/evp.h>
#include <sys/un.h>
#include <time.h>

#define WINDOW 8  /* GETs under way, of the bare client */
#define TURN_US 300 /* how often the model thread looks for what has arrived */
#define ROUNDS 10
#define MIB 1048576.0

struct shape {
    const char *name;
    uint32_t n_layers, n_mtp;
};

static const struct shape shapes[] = {
    {"DeepSeek-V2-Lite's shape cut to 4 layers, bf16", 4, 0},
    {"DeepSeek-V2-Lite's shape, bf16", 27, 0},
    {"DeepSeek-V3's shape, bf16", 61, 1},
};

/* A client as one would write it first. */
struct bare {
    int fd;
    size_t n_value;
    uint8_t *value; /* [n_value + 2] as received */
    uint8_t *pool; /* [n][n_value]: where pages are decrypted to */
    char (*names)[LLM_REDIS_NAME_MAX];
    uint32_t n;
};

/* What something took: of the clock, and of this process's processors. */
struct cost {
    double wall, cpu; /* seconds */
};

static struct cost now(void)
{
    struct timespec cpu;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    return (struct cost){(double) llm_now_ns() / LLM_NS_PER_S,
                         (double) cpu.tv_sec + (double) cpu.tv_nsec / LLM_NS_PER_S};
}

static struct cost since(struct cost begin)
{
    struct cost end = now();

    return (struct cost){end.wall - begin.wall, end.cpu - begin.cpu};
}

static void send_all(int fd, const char *data, size_t n)
{
    while (n > 0) {
        ssize_t sent = send(fd, data, n, MSG_NOSIGNAL);

        need(sent > 0, "the server is gone");
        data += sent;
        n -= (size_t) sent;
    }
}

static void receive_all(int fd, void *to, size_t n)
{
    need(recv(fd, to, n, MSG_WAITALL) == (ssize_t) n, "the server is gone");
}

static void get(const struct bare *b, uint32_t i)
{
    char command[LLM_REDIS_NAME_MAX + 64];
    int n = snprintf(command, sizeof(command), "*2\r\n$3\r\nGET\r\n$%zu\r\n%s\r\n",
                     strlen(b->names[i]), b->names[i]);

    send_all(b->fd, command, (size_t) n);
}

static void receive(const struct bare *b)
{
    char header[32];
    size_t n = 0;

    do {
        receive_all(b->fd, header + n++, 1);
    } while (header[n - 1] != '\n' && n < sizeof(header));
    need(header[0] == '$' && strtoull(header + 1, NULL, 10) == b->n_value, "not a page");
    receive_all(b->fd, b->value, b->n_value + 2);
}

/* AES-256-GCM over as many bytes, the associated data and the rest left out. */
static void decrypt(const struct bare *b, uint32_t i)
{
    static const uint8_t key[32], nonce[12];
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    uint8_t tag[16];
    int n;

    need(ctx != NULL && EVP_DecryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, key, nonce) == 1
             && EVP_DecryptUpdate(ctx, b->pool + i * b->n_value, &n, b->value, (int) b->n_value)
                 == 1
             && EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_SET_TAG, 16, tag) == 1,
         "no decryption");
    EVP_DecryptFinal_ex(ctx, tag, &n); /* it is not authentic */
    EVP_CIPHER_CTX_free(ctx);
}

static struct cost bare_cost(const struct bare *b, bool decrypting)
{
    struct cost begin = now();

    for (uint32_t i = 0; i < b->n + WINDOW; i++) {
        if (i < b->n) {
            get(b, i);
        }
        if (i >= WINDOW) {
            receive(b);
            if (decrypting) {
                decrypt(b, i - WINDOW);
            }
        }
    }
    return since(begin);
}

static struct cost decrypt_cost(const struct bare *b)
{
    struct cost begin = now();

    for (uint32_t i = 0; i < b->n; i++) {
        decrypt(b, i);
    }
    return since(begin);
}

static struct cost copy_cost(const struct bare *b, const struct tier *t)
{
    struct cost begin = now();

    for (uint32_t i = 0; i < b->n; i++) {
        memcpy(b->pool + i * b->n_value, b->value, t->layout.page_bytes);
    }
    return since(begin);
}

/* All pages through the tier; into the pool, where there is one. */
static struct cost tier_cost(struct tier *t, uint32_t n, uint8_t *pool)
{
    struct cost begin = now();
    uint64_t load = tier_ask(t, 1, 0, n);
    struct llm_redis_arrival a = {0};
    uint32_t came = 0;

    need(load != 0, "the tier is not up");
    while (!a.ended) {
        if (!llm_redis_arrived(t->redis, &a)) {
            usleep(TURN_US);
            continue;
        }
        if (!a.ended) {
            if (pool != NULL) {
                memcpy(pool + a.index * t->layout.page_bytes, a.bytes, t->layout.page_bytes);
            }
            llm_redis_give_back(t->redis, a.buffer);
            came++;
        }
    }
    need(came == n, "not all pages came");
    return since(begin);
}

static void keep_least(struct cost *least, struct cost c)
{
    least->wall = least->wall == 0 || c.wall < least->wall ? c.wall : least->wall;
    least->cpu = least->cpu == 0 || c.cpu < least->cpu ? c.cpu : least->cpu;
}

static void print(const char *what, struct cost c, double mib)
{
    printf("  %-36s %7.1f us a MiB, %7.1f of them ours  %6.0f MiB/s\n", what, c.wall / mib * 1e6,
           c.cpu / mib * 1e6, mib / c.wall);
}

static void measure(struct bare *b, struct tier *t, const char *how)
{
    double mib = (double) b->n * (double) b->n_value / MIB;
    struct cost got = {0}, decrypted = {0}, copied = {0}, bare = {0}, arrived = {0}, all = {0};

    b->pool = llm_memory_map(b->n * b->n_value);
    need(b->pool != NULL, "out of memory");
    for (int round = 0; round < ROUNDS; round++) {
        keep_least(&got, bare_cost(b, false));
        keep_least(&decrypted, decrypt_cost(b));
        keep_least(&copied, copy_cost(b, t));
        keep_least(&bare, bare_cost(b, true));
        keep_least(&arrived, tier_cost(t, b->n, NULL));
        keep_least(&all, tier_cost(t, b->n, b->pool));
    }
    printf("%s, %u pages of %.2f MiB, the best of %d:\n", how, b->n, (double) b->n_value / MIB,
           ROUNDS);
    print("GET", got, mib);
    print("AES-256-GCM", decrypted, mib);
    print("copy into the pool", copied, mib);
    print("GET and decryption, a bare client", bare, mib);
    print("GET, decryption, checks: the tier", arrived, mib);
    print("and the copy into the pool", all, mib);
    printf("  of the bare client's rate: %.0f %%, with the copy %.0f %%; of what a processor of "
           "ours could do: %.0f %%, %.0f %%\n", 100 * bare.wall / arrived.wall,
           100 * bare.wall / all.wall, 100 * bare.cpu / arrived.cpu, 100 * bare.cpu / all.cpu);
    llm_memory_unmap(b->pool, b->n * b->n_value);
}

static void find_names(struct server *s, struct bare *b)
{
    redisReply *all = server_do(s, "KEYS llm1:{*}:*");

    b->n = 0;
    b->names = calloc(all->elements, sizeof(*b->names));
    need(b->names != NULL, "out of memory");
    for (size_t i = 0; i < all->elements; i++) {
        if (server_count(s, "STRLEN %s", all->element[i]->str) == (long long) b->n_value) {
            snprintf(b->names[b->n++], LLM_REDIS_NAME_MAX, "%s", all->element[i]->str);
        }
    }
    freeReplyObject(all);
}

static int connect_unix(const struct server *s)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    memcpy(addr.sun_path, s->socket, strnlen(s->socket, sizeof(addr.sun_path) - 1));
    need(connect(fd, (struct sockaddr *) &addr, sizeof(addr)) == 0, "no connection");
    return fd;
}

static int connect_tcp(uint16_t port)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    need(connect(fd, (struct sockaddr *) &addr, sizeof(addr)) == 0, "no connection");
    return fd;
}

static void greet(int fd)
{
    static const char auth[] = "*3\r\n$4\r\nAUTH\r\n$10\r\nllm-engine\r\n$9\r\nchange-me\r\n";
    char answer[5];

    send_all(fd, auth, sizeof(auth) - 1);
    receive_all(fd, answer, sizeof(answer));
}

static void run(struct server *s, const struct shape *shape, uint32_t n_pages, uint16_t port)
{
    struct llm_model_config c = {
        .n_layers = shape->n_layers,
        .n_mtp_layers = shape->n_mtp,
        .kv_lora_rank = 512,
        .qk_rope_dim = 64,
    };
    struct tier t = {0};
    struct llm_redis_options options;
    struct bare b = {0};
    char tcp[300];

    need(llm_page_layout_init(&t.layout, &c, LLM_LATENT_BF16, NULL) == LLM_OK, "no layout");
    printf("--- %s ---\n", shape->name);
    b.n_value = llm_redis_value_bytes(&t.layout);
    b.value = malloc(b.n_value + 2);
    need(b.value != NULL, "out of memory");

    snprintf(tcp, sizeof(tcp), "redis://llm-engine:change-me@127.0.0.1:%u", port);
    for (int i = 0; i < 2; i++) {
        options = tier_options(&t, i == 0 ? s->url : tcp);
        options.deadline_ms = 60000;
        tier_open(&t, &options);
        need(tier_up(&t), "the tier does not connect");
        tier_save_all(&t, 1, n_pages);
        find_names(s, &b);
        need(b.n == n_pages, "not all pages are there");
        b.fd = i == 0 ? connect_unix(s) : connect_tcp(port);
        greet(b.fd);
        measure(&b, &t, i == 0 ? "Unix socket" : "TCP");
        close(b.fd);
        free(b.names);
        llm_redis_close(t.redis);
    }
    free(b.value);
    freeReplyObject(server_do(s, "FLUSHALL"));
    llm_page_layout_free(&t.layout);
}

int main(int argc, char **argv)
{
    uint32_t n_pages = argc > 1 ? (uint32_t) strtoul(argv[1], NULL, 10) : 64;
    uint16_t port = free_port();
    struct server s;

    need(n_pages > 0 && n_pages <= TIER_PAGES, "so many pages are not measured");
    scratch_init();
    server_start(&s, "0");
    freeReplyObject(server_do(&s, "CONFIG SET port %d", port));
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        run(&s, &shapes[i], n_pages, port);
    }
    server_stop(&s);
    return 0;
}
