#include "engine/cmd/cmd.h"

#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"tokenize", llm_cmd_tokenize},
    {"bench", llm_cmd_bench},
    {"cache-purge", llm_cmd_cache_purge},
    {"keygen", llm_cmd_keygen},
};

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            return commands[i].run(argc - 2, argv + 2);
        }
    }
    return llm_cmd_serve(argc - 1, argv + 1);
}
