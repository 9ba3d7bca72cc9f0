/* The daemon's options: command line, --config file, --help. */

#ifndef LLM_SERVE_SETTINGS_H
#define LLM_SERVE_SETTINGS_H

#include "engine/base/error.h"

#include <stdbool.h>
#include <stdint.h>


enum llm_load_format { LLM_LOAD_AUTO, LLM_LOAD_DUMMY };

struct llm_settings {
    char *config, *model, *listen, *socket_group, *served_names, *chat_format;
    char *device;     /* NULL: auto */
    int load_format;  /* enum llm_load_format */
    int numerics;     /* enum llm_numerics */
    int latent_dtype; /* enum llm_latent_dtype; -1: as the numerics want */
    int log_level;    /* enum llm_log_level */
    bool deterministic, trust_special_tokens, test_config, version, help;
    uint64_t latent_memory;      /* bytes; 0: chosen at start */
    uint64_t host_latent_memory; /* bytes; 0: no host tier */
    uint32_t tenant_latent_percent;
    char *secret_file; /* NULL: a random secret */
    char *redis;       /* NULL: no Redis tier */
    uint32_t redis_ttl; /* seconds */
    uint64_t redis_quota; /* bytes; 0: any */
    uint32_t redis_deadline_ms;
    uint32_t max_context; /* tokens; 0: the model's, or what fits */
    uint32_t max_batch_tokens; /* 0: what suits the device */
    uint32_t max_step_ms;
    uint32_t max_queue_requests, max_queue_tokens;
    uint32_t max_tenant_queue_requests, max_tenant_queue_tokens;
    uint32_t send_timeout; /* seconds */
    uint32_t threads; /* 0: one per core this process may use */
};

/* Reads argv (without the command's name) and the file that --config names, whose values the
 * command line overrides, and checks all that can be checked without the checkpoint. On failure *s
 * is freed. */
int llm_settings_read(struct llm_settings *s, int argc, char *const *argv, struct llm_error *err);
void llm_settings_free(struct llm_settings *s);

void llm_settings_print_help(void);

#endif
