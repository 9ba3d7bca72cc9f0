#include "engine/backend/device.h"

#include "engine/base/log.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CUDA_FILE "llm_backend_cuda.so"
#define INSTALLED "../lib/llm-engine/"
#define MAX_INDEX 1023

enum kind { AUTO, CPU, CUDA };

struct wanted {
    enum kind kind;
    uint32_t index;
};

static bool parse(const char *name, struct wanted *out)
{
    static const char prefix[] = "cuda:";
    char *end;
    unsigned long index;

    *out = (struct wanted){AUTO, 0};
    if (strcmp(name, "auto") == 0) {
        return true;
    }
    out->kind = CPU;
    if (strcmp(name, "cpu") == 0) {
        return true;
    }
    out->kind = CUDA;
    if (strcmp(name, "cuda") == 0) {
        return true;
    }
    if (strncmp(name, prefix, strlen(prefix)) != 0) {
        return false;
    }
    name += strlen(prefix);
    index = strtoul(name, &end, 10);
    out->index = (uint32_t) index;
    return name[0] >= '0' && name[0] <= '9' && *end == '\0' && index <= MAX_INDEX;
}

int llm_device_check(const char *name, struct llm_error *err)
{
    struct wanted wanted;

    return parse(name, &wanted) ? LLM_OK
                                : llm_fail(err, LLM_EINVAL, "--device wants auto, cpu, cuda or "
                                           "cuda:N, not \"%s\"", name);
}

/* The directory of the program; empty where it cannot be told. */
static void find_program(char *dir, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", dir, size - 1);
    char *slash;

    dir[n > 0 ? n : 0] = '\0';
    slash = strrchr(dir, '/');
    if (slash != NULL) {
        *slash = '\0';
    }
}

/* Opens dir/file. *module is NULL where there is no such file: that is no error yet. */
static int open_file(const char *dir, const char *file, const struct llm_backend_module **module,
                     struct llm_error *err)
{
    char path[PATH_MAX];
    void *handle;

    *module = NULL;
    if (snprintf(path, sizeof(path), "%s/%s", dir, file) >= (int) sizeof(path)
        || access(path, F_OK) != 0) {
        return LLM_OK;
    }
    handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        return llm_fail(err, LLM_EUNSUPPORTED, "%s", dlerror());
    }
    *module = dlsym(handle, LLM_BACKEND_MODULE);
    if (*module == NULL || (*module)->abi != LLM_BACKEND_ABI
        || (*module)->model_bytes != sizeof(struct llm_model)
        || (*module)->options_bytes != sizeof(struct llm_backend_options)) {
        *module = NULL;
        dlclose(handle);
        return llm_fail(err, LLM_EUNSUPPORTED, "%s is of another version than this program",
                        path);
    }
    return LLM_OK;
}

static int open_cuda(uint32_t index, const char *dir, struct llm_device *out,
                     struct llm_error *err)
{
    const struct llm_backend_module *module;
    char beside[PATH_MAX];
    int rc;

    if (dir == NULL) {
        find_program(beside, sizeof(beside));
        dir = beside;
    }
    rc = open_file(dir, CUDA_FILE, &module, err);
    if (rc == LLM_OK && module == NULL) {
        rc = open_file(dir, INSTALLED CUDA_FILE, &module, err);
    }
    if (rc == LLM_OK && module == NULL) {
        rc = llm_fail(err, LLM_EUNSUPPORTED, "there is no " CUDA_FILE " in %s or its " INSTALLED,
                      dir);
    }
    if (rc == LLM_OK) {
        rc = module->probe(index, err);
    }
    if (rc == LLM_OK) {
        *out = (struct llm_device){module->ops, index};
    }
    return rc;
}

int llm_device_open(const char *name, const char *dir, struct llm_device *out,
                    struct llm_error *err)
{
    struct wanted wanted;
    struct llm_error why;
    int rc;

    *out = (struct llm_device){&llm_backend_cpu, 0};
    if (!parse(name, &wanted)) {
        return llm_device_check(name, err);
    }
    switch (wanted.kind) {
    case CPU:
        break;
    case CUDA:
        rc = open_cuda(wanted.index, dir, out, err);
        return rc == LLM_OK ? rc : llm_error_prefix(err, "--device %s", name);
    case AUTO:
        if (open_cuda(0, dir, out, &why) != LLM_OK) {
            llm_log(LLM_LOG_INFO, "computing on the CPU: %s", why.text);
        }
        break;
    }
    return LLM_OK;
}
