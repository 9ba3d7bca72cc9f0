/* llm-engine without a command: the daemon. */

#include "engine/cmd/cmd.h"

#include "engine/base/log.h"
#include "engine/serve/engine.h"

#include <stdio.h>

static void print_help(void)
{
    puts("usage: llm-engine --model DIR --listen unix:PATH [OPTION]…\n"
         "       llm-engine tokenize --tokenizer FILE\n"
         "       llm-engine bench --model DIR [OPTION]…\n"
         "       llm-engine cache-purge --tenant NAME [OPTION]…\n"
         "\n"
         "Serves a model to nginx workers. Options:\n");
    llm_settings_print_help();
}

/* Opens the checkpoint as the daemon would, but reads no weights. */
static int test_config(const struct llm_settings *settings)
{
    struct llm_served served;
    struct llm_error err;
    int rc = llm_served_open(&served, settings, &err);

    if (rc == LLM_OK) {
        rc = llm_served_check_sizes(&served, settings, &err);
        if (rc == LLM_OK) {
            printf("options and checkpoint are good; chat format %s\n",
                   llm_chat_format_name(served.chat_format));
        }
        llm_served_close(&served);
    }
    if (rc != LLM_OK) {
        fprintf(stderr, "llm-engine: %s\n", err.text);
        return LLM_EXIT_ERROR;
    }
    return LLM_EXIT_OK;
}

static int serve(const struct llm_settings *settings)
{
    switch (llm_engine_run(settings)) {
    case LLM_OK:
        return LLM_EXIT_OK;
    case LLM_EINTERNAL:
        return LLM_EXIT_FAILED;
    default:
        return LLM_EXIT_ERROR;
    }
}

int llm_cmd_serve(int argc, char **argv)
{
    struct llm_settings settings;
    struct llm_error err;
    int status;

    if (llm_settings_read(&settings, argc, argv, &err) != LLM_OK) {
        fprintf(stderr, "llm-engine: %s\n", err.text);
        return LLM_EXIT_USAGE;
    }
    llm_log_set_level((enum llm_log_level) settings.log_level);

    if (settings.help) {
        print_help();
        status = LLM_EXIT_OK;
    } else if (settings.version) {
        puts("llm-engine " LLM_VERSION);
        status = LLM_EXIT_OK;
    } else if (settings.model == NULL || (settings.listen == NULL && !settings.test_config)) {
        fprintf(stderr, "llm-engine: --%s is missing: see --help\n",
                settings.model == NULL ? "model" : "listen");
        status = LLM_EXIT_USAGE;
    } else {
        status = settings.test_config ? test_config(&settings) : serve(&settings);
    }

    llm_settings_free(&settings);
    return status;
}
