/* The daemon's options: defaults, ranges, what does not go together. */

#include "engine/backend/backend.h"
#include "engine/serve/settings.h"
#include "t/unit/tap.h"

#include <string.h>

#define READ(s, err, ...)                                                                         \
    llm_settings_read(s, (int) (sizeof((char *[]){__VA_ARGS__}) / sizeof(char *)),                \
                      (char *[]){__VA_ARGS__}, err)

static void refused(const char *name, const char *value, const char *why)
{
    struct llm_settings s;
    struct llm_error err;

    is_int(READ(&s, &err, (char *) name, (char *) value), LLM_EINVAL, "%s %s", name, value);
    ok(strstr(err.text, name) != NULL && strstr(err.text, why) != NULL, "says \"%s\"", why);
}

static void test_defaults(void)
{
    struct llm_settings s;
    struct llm_error err;

    is_int(READ(&s, &err, (char *) "--threads", (char *) "1"), LLM_OK, "hardly any option");
    is_int(s.max_step_ms, 100, "a step takes 100 ms");
    is_int(s.host_latent_memory, 0, "there is no host tier");
    is_int(s.latent_dtype, -1, "latents as the numerics want them");
    is_int(s.tenant_latent_percent, 100, "a tenant may fill all of the memory");
    is_int(s.max_tenant_queue_requests, 512, "and half of the queue: requests");
    ok(s.redis == NULL && s.secret_file == NULL, "there is no Redis");
    is_int(s.redis_ttl, 14400, "where prefixes would stay for four hours");
    is_int(s.redis_quota, 0, "without a quota");
    is_int(s.redis_deadline_ms, 1000, "and a look-up may take a second");
    is_int(s.max_tenant_queue_tokens, 2 << 20, "tokens");
    llm_settings_free(&s);
}

static void test_values(void)
{
    struct llm_settings s;
    struct llm_error err;

    is_int(READ(&s, &err, (char *) "--max-step-ms=20", (char *) "--host-latent-memory=2g",
                (char *) "--latent-dtype=fp8", (char *) "--tenant-latent-percent=25",
                (char *) "--max-queue-requests=7", (char *) "--max-queue-tokens=1",
                (char *) "--max-tenant-queue-tokens=900"), LLM_OK, "all of them");
    is_int(s.max_step_ms, 20, "--max-step-ms");
    ok(s.host_latent_memory == (uint64_t) 2 << 30, "--host-latent-memory");
    is_int(s.latent_dtype, LLM_LATENT_FP8, "--latent-dtype");
    is_int(s.tenant_latent_percent, 25, "--tenant-latent-percent");
    is_int(s.max_tenant_queue_requests, 4, "half of seven, rounded up");
    is_int(s.max_tenant_queue_tokens, 900, "what was said stands, though it is more than all");
    llm_settings_free(&s);
    is_int(READ(&s, &err, (char *) "--max-queue-tokens=1", (char *) "--numerics=exact",
                (char *) "--latent-dtype=f32"), LLM_OK, "exact numerics with latents in f32");
    is_int(s.max_tenant_queue_tokens, 1, "a tenant always may have something");
    llm_settings_free(&s);
}

static void test_redis(void)
{
    struct llm_settings s;
    struct llm_error err;

    is_int(READ(&s, &err, (char *) "--redis=redis+unix:///run/redis.sock",
                (char *) "--secret-file=/etc/secret", (char *) "--redis-ttl=60",
                (char *) "--redis-quota=2g", (char *) "--redis-deadline-ms=20"), LLM_OK, "a Redis");
    is_str(s.redis, "redis+unix:///run/redis.sock", "--redis");
    is_str(s.secret_file, "/etc/secret", "--secret-file");
    is_int(s.redis_ttl, 60, "--redis-ttl");
    ok(s.redis_quota == (uint64_t) 2 << 30, "--redis-quota");
    is_int(s.redis_deadline_ms, 20, "--redis-deadline-ms");
    llm_settings_free(&s);

    is_int(READ(&s, &err, (char *) "--secret-file=/etc/secret"), LLM_OK, "a secret without Redis");
    llm_settings_free(&s);
    refused("--redis", "redis://localhost", "wants a --secret-file");
    is_int(READ(&s, &err, (char *) "--redis=rediss://host", (char *) "--secret-file=/etc/secret"),
           LLM_EUNSUPPORTED, "Redis over TLS");
    ok(strstr(err.text, "--redis: ") != NULL && strstr(err.text, "stunnel") != NULL,
       "says what to do");
    is_int(READ(&s, &err, (char *) "--redis=host:password", (char *) "--secret-file=/etc/secret"),
           LLM_EINVAL, "no URL");
    ok(strstr(err.text, "password") == NULL, "is not repeated");
    refused("--redis-ttl", "0", "from 1 to");
    refused("--redis-deadline-ms", "0", "from 1 to 60000");
    refused("--redis-quota", "many", "a size such as");
}

static void test_refusals(void)
{
    struct llm_settings s;
    struct llm_error err;

    refused("--max-step-ms", "0", "from 1 to 60000");
    refused("--max-step-ms", "60001", "from 1 to 60000");
    refused("--tenant-latent-percent", "0", "from 1 to 100");
    refused("--tenant-latent-percent", "101", "from 1 to 100");
    refused("--host-latent-memory", "-1", "a size such as");
    refused("--latent-dtype", "fp16", "f32, bf16, fp8");
    refused("--max-tenant-queue-requests", "0", "from 1 to");
    refused("--max-tenant-queue-tokens", "0", "from 1 to");
    is_int(READ(&s, &err, (char *) "--numerics=exact", (char *) "--latent-dtype=fp8"), LLM_EINVAL,
           "exact numerics with latents in fp8");
    ok(strstr(err.text, "leave out --latent-dtype fp8") != NULL, "says what to do");
    is_int(READ(&s, &err, (char *) "--latent-dtype=bf16", (char *) "--numerics=exact"), LLM_EINVAL,
           "or in bf16");
}

int main(void)
{
    test_defaults();
    test_values();
    test_redis();
    test_refusals();
    return done_testing();
}
