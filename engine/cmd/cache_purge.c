/* llm-engine cache-purge: nothing that is cached of a tenant is found any more, in Redis and in the
 * engines of this machine, and what Redis had is deleted. */

#include "engine/cmd/cmd.h"

#include "engine/base/memory.h"
#include "engine/base/option.h"
#include "engine/cache/redis/purge.h"
#include "engine/cache/secret.h"
#include "engine/ipc/abi.h"
#include "engine/serve/control.h"
#include "engine/serve/settings.h"

#include <inttypes.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
    char *tenant, *config, *redis, *secret_file, *engine;
    uint32_t timeout;
    bool help;
};

#define AT(field) offsetof(struct options, field)

static const struct llm_option table[] = {
    {.name = "tenant", .kind = LLM_OPTION_TEXT, .offset = AT(tenant), .arg = "NAME",
     .help = "whose; *public* is the public scope"},
    {.name = "config", .kind = LLM_OPTION_TEXT, .offset = AT(config), .arg = "FILE",
     .help = "of an engine: its listen, redis and secret-file, where the next do not say"},
    {.name = "engine", .kind = LLM_OPTION_TEXT, .offset = AT(engine),
     .arg = "unix:PATH[,unix:PATH…]", .help = "the sockets of engines of this machine"},
    {.name = "redis", .kind = LLM_OPTION_TEXT, .offset = AT(redis), .arg = "URL",
     .help = "the Redis that engines share"},
    {.name = "secret-file", .kind = LLM_OPTION_TEXT, .offset = AT(secret_file), .arg = "FILE",
     .help = "the engines' secret, for --redis"},
    {.name = "timeout", .kind = LLM_OPTION_COUNT, .offset = AT(timeout), .min = 1, .max = 3600,
     .arg = "SECONDS", .help = "how long to wait for an answer (default 10)"},
    {.name = "help", .kind = LLM_OPTION_SWITCH, .offset = AT(help), .help = "print this and exit"},
};

#define N_OPTIONS (sizeof(table) / sizeof(table[0]))

struct purge {
    const struct options *options;
    uint32_t timeout_ms;
    uint8_t owner[32];
    struct llm_redis_purge *redis; /* NULL: none, or it failed */
    bool failed;
};

static void fail(struct purge *p, const struct llm_error *err)
{
    fprintf(stderr, "llm-engine: %s\n", err->text);
    p->failed = true;
}

/* --- Redis --- */

static void begin_in_redis(struct purge *p)
{
    const struct options *o = p->options;
    uint8_t master[32];
    struct llm_error err;
    int rc = llm_secret_read(o->secret_file, master, &err);

    if (rc == LLM_OK) {
        rc = llm_redis_purge_open(o->redis, master, p->owner, p->timeout_ms, &p->redis, &err);
        OPENSSL_cleanse(master, sizeof(master));
    }
    if (rc == LLM_OK) {
        rc = llm_redis_purge_epoch(p->redis, &err);
    }
    if (rc == LLM_OK) {
        puts("Redis: nothing of the tenant is found any more");
        return;
    }
    llm_redis_purge_close(p->redis);
    p->redis = NULL;
    fail(p, &err);
}

/* What an engine wrote under the new epoch before it was told has yet to arrive, it may be. */
static void leave_late_pages(struct purge *p)
{
    struct llm_error err;

    if (llm_redis_purge_epoch(p->redis, &err) != LLM_OK) {
        fail(p, &err);
    }
}

static void delete_pages(struct purge *p)
{
    struct llm_redis_purged done;
    struct llm_error err;
    int rc = llm_redis_purge_delete(p->redis, &done, &err);

    printf("Redis: %" PRIu64 " pages deleted", done.deleted);
    if (rc != LLM_OK) {
        puts(", not all");
        fail(p, &err);
    } else if (done.left == 0) {
        puts(", 0 are left");
    } else {
        puts("");
        llm_fail(&err, LLM_EAGAIN, "Redis: some engine goes on writing pages of the tenant, which "
                 "nobody finds: tell it by --engine on its machine, then do this again");
        fail(p, &err);
    }
    llm_redis_purge_close(p->redis);
}

/* --- engines --- */

static void purge_engine(struct purge *p, const char *address)
{
    struct llm_ipc_purged done;
    struct llm_error err;

    if (llm_control_purge(address, p->owner, p->timeout_ms, &done, &err) != LLM_OK) {
        fail(p, &err);
        return;
    }
    printf("%s: %" PRIu64 " pages in memory are not found any more\n", address, done.pages);
}

static void purge_engines(struct purge *p)
{
    char *list = p->options->engine, *comma;

    for (; list != NULL; list = comma) {
        comma = strchr(list, ',');
        if (comma != NULL) {
            *comma++ = '\0';
        }
        purge_engine(p, list);
    }
}

/* --- the command --- */

/* First the epoch, then engines, then another epoch and the pages: when these are deleted, writers
 * have heard of it. */
static int purge(const struct options *o)
{
    struct purge p = {.options = o, .timeout_ms = o->timeout * 1000};

    if (EVP_Digest(o->tenant, strlen(o->tenant), p.owner, NULL, EVP_sha256(), NULL) != 1) {
        fputs("llm-engine: OpenSSL failed\n", stderr);
        return LLM_EXIT_ERROR;
    }
    if (o->redis != NULL) {
        begin_in_redis(&p);
    }
    purge_engines(&p);
    if (p.redis != NULL) {
        leave_late_pages(&p);
        delete_pages(&p);
    }
    return p.failed ? LLM_EXIT_ERROR : LLM_EXIT_OK;
}

static void take(char **to, char **from)
{
    if (*to == NULL) {
        *to = *from;
        *from = NULL;
    }
}

/* What the command line does not say, an engine's configuration may. */
static int read_config(struct options *o, struct llm_error *err)
{
    char *argv[] = {(char *) "--config", o->config};
    struct llm_settings settings;
    int rc = llm_settings_read(&settings, 2, argv, err);

    if (rc != LLM_OK) {
        return rc;
    }
    take(&o->redis, &settings.redis);
    take(&o->secret_file, &settings.secret_file);
    take(&o->engine, &settings.listen);
    llm_settings_free(&settings);
    return LLM_OK;
}

static int check(const struct options *o, struct llm_error *err)
{
    if (o->tenant == NULL || strlen(o->tenant) > LLM_IPC_MAX_TENANT) {
        return llm_fail(err, LLM_EINVAL, "--tenant wants a name of 1 to %d bytes",
                        LLM_IPC_MAX_TENANT);
    }
    if (o->redis != NULL && o->secret_file == NULL) {
        return llm_fail(err, LLM_EINVAL, "--redis wants the engines' --secret-file");
    }
    if (o->redis == NULL && o->engine == NULL) {
        return llm_fail(err, LLM_EINVAL, "there is nothing to purge: name an engine's --config, or "
                        "--engine and --redis");
    }
    return LLM_OK;
}

static void print_help(void)
{
    puts("usage: llm-engine cache-purge --tenant NAME --config FILE\n"
         "       llm-engine cache-purge --tenant NAME [OPTION]…\n"
         "\n"
         "Makes all that is cached of a tenant unfindable, deletes what Redis has of it, and says\n"
         "what that was. Engines of other machines forget what they have in memory when this is\n"
         "done there. Exits with 1 if any of it failed. Options:\n");
    llm_options_print_help(table, N_OPTIONS);
}

int llm_cmd_cache_purge(int argc, char **argv)
{
    struct options options = {.timeout = 10};
    struct llm_error err;
    int status = LLM_EXIT_USAGE, rc;

    llm_memory_no_core(); /* it is to read the secret file, and may have a password */
    rc = llm_options_parse(table, N_OPTIONS, &options, argc, argv, &err);
    if (rc == LLM_OK && options.help) {
        print_help();
        status = LLM_EXIT_OK;
        goto done;
    }
    if (rc == LLM_OK && options.config != NULL) {
        rc = read_config(&options, &err);
    }
    if (rc == LLM_OK) {
        rc = check(&options, &err);
    }
    if (rc == LLM_OK) {
        status = purge(&options);
    } else {
        fprintf(stderr, "llm-engine: %s\n", err.text);
    }

done:
    llm_options_free(table, N_OPTIONS, &options);
    return status;
}
