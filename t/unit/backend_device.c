/* Which backend --device opens, where there is none but the CPU's. */

#include "engine/backend/device.h"
#include "t/unit/scratch.h"
#include "t/unit/tap.h"

static void test_names(void)
{
    static const char *const good[] = {"auto", "cpu", "cuda", "cuda:0", "cuda:7"};
    static const char *const bad[] = {"", "gpu", "CPU", "cuda:", "cuda:x", "cuda:1x", "cuda:-1",
                                      "cuda: 1", "cuda:99999999999999999999", "cuda0"};
    struct llm_error err;

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        is_int(llm_device_check(good[i], &err), LLM_OK, "\"%s\" is a device", good[i]);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        is_int(llm_device_check(bad[i], &err), LLM_EINVAL, "\"%s\" is none", bad[i]);
    }
}

static void test_open(void)
{
    const char *build = getenv("LLM_BUILD");
    struct llm_device device;
    struct llm_error err;
    char old[512];

    is_int(llm_device_open("cpu", scratch_dir, &device, &err), LLM_OK, "the CPU is there");
    ok(device.ops == &llm_backend_cpu, "and computes");
    is_int(llm_device_open("cuda:1", scratch_dir, &device, &err), LLM_EUNSUPPORTED,
           "no GPU without its backend");
    ok(strstr(err.text, "--device cuda:1") != NULL && strstr(err.text, scratch_dir) != NULL,
       "which says where it was looked for: %s", err.text);

    scratch_write(scratch_path("llm_backend_cuda.so"), "not one", 7);
    is_int(llm_device_open("cuda", scratch_dir, &device, &err), LLM_EUNSUPPORTED,
           "a file that is no shared object");
    is_int(llm_device_open("auto", scratch_dir, &device, &err), LLM_OK, "auto does without");
    ok(device.ops == &llm_backend_cpu, "and takes the CPU");

    snprintf(old, sizeof(old), "%s/t/old", build != NULL ? build : "build");
    is_int(llm_device_open("cuda", old, &device, &err), LLM_EUNSUPPORTED,
           "a backend of another version");
    ok(strstr(err.text, "another version") != NULL, "which is told: %s", err.text);
}

int main(void)
{
    scratch_init();
    test_names();
    test_open();
    return done_testing();
}
