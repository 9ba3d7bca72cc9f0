#include "engine/model/checkpoint.h"
#include "engine/model/config.h"

#include <string.h>
#include <unistd.h>

typedef int parse_fn(const char *json, size_t len, struct llm_model_config *c,
                     struct llm_error *err);

static int read_file(const char *dir, const char *name, parse_fn *parse, bool needed,
                     struct llm_model_config *c, struct llm_error *err)
{
    struct llm_mapping map;
    char path[LLM_CHECKPOINT_PATH_BYTES];
    int rc;

    rc = llm_checkpoint_path(path, dir, name, strlen(name), err);
    if (rc != LLM_OK) {
        return rc;
    }
    if (!needed && access(path, F_OK) != 0) {
        return LLM_OK;
    }

    rc = llm_mapping_open(&map, path, err);
    if (rc != LLM_OK) {
        return rc;
    }
    rc = parse(map.size > 0 ? map.data : "", (size_t) map.size, c, err);
    if (rc != LLM_OK) {
        llm_error_prefix(err, "%s", path);
    }
    llm_mapping_close(&map);
    return rc;
}

int llm_config_open(const char *dir, struct llm_model_config *out, struct llm_error *err)
{
    int rc = read_file(dir, "config.json", llm_config_parse, true, out, err);

    if (rc != LLM_OK) {
        return rc;
    }
    return read_file(dir, "generation_config.json", llm_config_merge_generation, false, out, err);
}
