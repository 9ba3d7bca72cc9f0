/* The engine as it is shipped, on the demo model: the reference's answers, all at once, through a
 * session; the same bits in any company; aborts at random moments; the command line. */

#include "t/unit/scratch.h"
#include "t/unit/worker.h"

#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define DEMO "models/demo"
#define EOS 1
#define LOGPROB_TOLERANCE 2e-3

static char engine_path[512], socket_path[300], listen_arg[320];

static pid_t spawn(char *const argv[], const char *in, const char *out)
{
    pid_t pid;

    fflush(stdout);
    pid = fork();
    worker_must(pid >= 0);
    if (pid == 0) {
        int fd_in = open(in, O_RDONLY), fd_out = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0600);

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(fd_in, 0);
        dup2(fd_out, 1);
        dup2(fd_out, 2);
        execv(engine_path, argv);
        _exit(127);
    }
    return pid;
}

static int wait_for(pid_t pid)
{
    int status;

    worker_must(waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/* Runs a command to its end; its output, the caller's to free. */
static int run(char **output, const char *in, const char *const *args)
{
    const char *out = scratch_path("output");
    char *argv[16] = {(char *) "llm-engine"};
    FILE *f;
    size_t n;
    int status;

    for (int i = 0; args[i] != NULL; i++) {
        argv[i + 1] = (char *) args[i];
    }
    status = wait_for(spawn(argv, in, out));
    f = fopen(out, "r");
    *output = calloc(1, 65536);
    worker_must(f != NULL && *output != NULL);
    n = fread(*output, 1, 65535, f);
    (*output)[n] = '\0';
    fclose(f);
    return status;
}

#define RUN(output, in, ...) run(output, in, (const char *const[]){__VA_ARGS__, NULL})

/* The daemon with these options besides model and socket. */
static pid_t start_with(const char *const *options)
{
    char *argv[24] = {(char *) "llm-engine", (char *) "--model", (char *) DEMO,
                      (char *) "--listen", listen_arg};

    for (int i = 0; options[i] != NULL; i++) {
        argv[5 + i] = (char *) options[i];
    }
    return spawn(argv, "/dev/null", scratch_path("engine.log"));
}

#define START(...) start_with((const char *const[]){__VA_ARGS__, NULL})

static pid_t start(const char *mode, const char *batch_tokens)
{
    return START("--numerics", mode, "--max-batch-tokens", batch_tokens);
}

/* --- golden --- */

struct golden {
    const char *name, *text;
    const json_t *prompt, *ids, *top;
    uint32_t n; /* tokens, the end not included */
    double gap; /* between the first and the second, at its smallest */
};

static double smallest_gap(const json_t *top)
{
    double gap = INFINITY;

    for (size_t i = 0; i < json_array_size(top); i++) {
        const json_t *step = json_array_get(top, i);
        double d = json_number_value(json_array_get(json_array_get(step, 0), 1)) -
                   json_number_value(json_array_get(json_array_get(step, 1), 1));

        gap = d < gap ? d : gap;
    }
    return gap;
}

/* All cases; under a sanitizer, which computes ten times slower, those with short prompts. */
static uint32_t load_golden(json_t *root, struct golden *g, uint32_t max)
{
    const json_t *cases = json_object_get(root, "cases");
    const char *sanitize = getenv("LLM_SANITIZE");
    size_t longest = sanitize != NULL && sanitize[0] != '\0' ? 100 : SIZE_MAX;
    uint32_t n = 0;

    for (size_t i = 0; i < json_array_size(cases) && n < max; i++) {
        const json_t *c = json_array_get(cases, i);

        if (json_array_size(json_object_get(c, "prompt_ids")) > longest) {
            continue;
        }

        g[n] = (struct golden){
            .name = json_string_value(json_object_get(c, "name")),
            .text = json_string_value(json_object_get(c, "greedy_text")),
            .prompt = json_object_get(c, "prompt_ids"),
            .ids = json_object_get(c, "greedy_ids"),
            .top = json_object_get(c, "top5_logprobs"),
        };
        g[n].n = (uint32_t) json_array_size(g[n].ids);
        if (json_integer_value(json_array_get(g[n].ids, g[n].n - 1)) == EOS) {
            g[n].n--;
        }
        g[n].gap = smallest_gap(g[n].top);
        n++;
    }
    return n;
}

static struct answer *send_golden(struct worker *w, uint32_t slot, const struct golden *g)
{
    static uint32_t ids[8192];
    size_t n = json_array_size(g->prompt);
    struct submit s;

    for (size_t i = 0; i < n; i++) {
        ids[i] = (uint32_t) json_integer_value(json_array_get(g->prompt, i));
    }
    submit_ids(&s, ids, (uint32_t) n, (uint32_t) json_array_size(g->ids));
    s.head.flags = LLM_IPC_LOGPROBS;
    s.head.top_logprobs = 5;
    return worker_submit(w, slot, &s);
}

static bool same_ids(const struct answer *a, const struct golden *g)
{
    const struct answer_choice *c = &a->choices[0];

    for (uint32_t i = 0; i < g->n; i++) {
        if (i >= c->n_ids ||
            c->ids[i] != (uint32_t) json_integer_value(json_array_get(g->ids, i))) {
            diag("%s: token %u differs", g->name, i);
            return false;
        }
    }
    return c->n_ids == g->n;
}

/* The largest difference of a log-probability that both sides have. */
static double worst_logprob(const struct answer *a, const struct golden *g)
{
    const struct answer_choice *c = &a->choices[0];
    double worst = 0;

    for (uint32_t i = 0; i < g->n; i++) {
        for (size_t k = 0; k < 5; k++) {
            const json_t *want = json_array_get(json_array_get(g->top, i), k);
            uint32_t id = (uint32_t) json_integer_value(json_array_get(want, 0));

            for (uint32_t j = 1; j <= 5; j++) {
                const struct worker_logprob *got = &c->entries[i * 6 + j];
                double d = fabs((double) got->logprob -
                                json_number_value(json_array_get(want, 1)));

                if (got->id == id && !(d <= worst)) {
                    worst = d;
                }
            }
        }
    }
    return worst;
}

static void test_golden(json_t *root, const char *mode, const char *batch_tokens)
{
    bool exact = strcmp(mode, "exact") == 0;
    struct golden g[16];
    struct answer *a[16];
    uint32_t n = load_golden(root, g, 16);
    pid_t pid = start(mode, batch_tokens);
    struct worker *w = worker_open(socket_path);

    w->patience_ns = 600 * LLM_NS_PER_S;
    ok(worker_await_ready(w), "%s: the engine is ready", mode);
    for (uint32_t i = 0; i < n; i++) {
        a[i] = send_golden(w, i, &g[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        size_t len = strlen(g[i].text);
        const char *end = strstr(g[i].text, "<｜end▁of▁sentence｜>");

        len = end != NULL ? (size_t) (end - g[i].text) : len;
        ok(worker_ends(w, a[i], LLM_IPC_OK), "%s: %s comes to its end", mode, g[i].name);
        if (!exact && g[i].gap <= 0.25) {
            continue; /* too close to call in bf16 */
        }
        ok(same_ids(a[i], &g[i]), "%s: %s is the reference's, token by token", mode, g[i].name);
        ok(a[i]->choices[0].text.len == len &&
               memcmp(a[i]->choices[0].text.data, g[i].text, len) == 0, "and byte by byte");
        if (exact) {
            double worst = worst_logprob(a[i], &g[i]);

            ok(worst < LOGPROB_TOLERANCE, "log-probabilities differ by %.2g at most", worst);
        }
    }
    ok(worker_await_idle(w), "%s: the engine is idle", mode);
    kill(pid, SIGTERM);
    is_int(wait_for(pid), 0, "%s: and ends when told", mode);
    worker_close(w);
}

/* --- requests as people make them --- */

static void is_text(const struct answer *a, const char *want, const char *what)
{
    char *text = calloc(1, a->choices[0].text.len + 1);

    worker_must(text != NULL);
    memcpy(text, a->choices[0].text.data, a->choices[0].text.len);
    is_str(text, want, "%s", what);
    free(text);
}

static void test_chat(void)
{
    struct answer *a, *b;
    struct worker *w;
    struct submit s;
    pid_t pid = start("default", "512");
    uint64_t rng = 3;
    int wrong = 0;

    w = worker_open(socket_path);
    w->patience_ns = 120 * LLM_NS_PER_S;
    worker_await_ready(w);

    submit_begin(&s, LLM_IPC_KIND_CHAT);
    submit_message(&s, LLM_IPC_USER, "Hello");
    a = worker_submit(w, 0, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "a chat without any limit");
    is_text(a, "Hello! How can I help you today?", "is answered");
    is_int(a->choices[0].reason, LLM_IPC_FINISH_STOP, "and stops by itself");

    for (uint32_t i = 0; i < 2; i++) {
        submit_begin(&s, LLM_IPC_KIND_CHAT);
        s.head.max_tokens = 40;
        s.head.temperature = 1;
        s.head.top_p = 0.95f;
        s.head.top_k = 50;
        s.head.seed = 42;
        s.head.flags = LLM_IPC_HAS_SEED;
        submit_message(&s, LLM_IPC_USER, "Tell me a story.");
        worker_submit(w, i, &s);
    }
    a = &w->answers[0];
    b = &w->answers[1];
    ok(worker_ends(w, a, LLM_IPC_OK) && worker_ends(w, b, LLM_IPC_OK) &&
           a->choices[0].text.len > 0 && a->choices[0].text.len == b->choices[0].text.len &&
           memcmp(a->choices[0].text.data, b->choices[0].text.data, a->choices[0].text.len) == 0,
       "the same seed says the same");

    submit_begin(&s, LLM_IPC_KIND_CHAT);
    submit_message(&s, LLM_IPC_USER, "Hello");
    submit_stop(&s, " help");
    a = worker_submit(w, 0, &s);
    ok(worker_ends(w, a, LLM_IPC_OK), "a stop string");
    is_text(a, "Hello! How can I", "ends the text before it");

    for (int round = 0; round < 6; round++) {
        for (uint32_t i = 0; i < 8; i++) {
            submit_text(&s, "Once upon a time there was a little girl who lived in a village.",
                        1 + scratch_random(&rng) % 60);
            s.head.flags = LLM_IPC_IGNORE_EOS;
            worker_submit(w, i, &s);
            worker_pump(w, (int) (scratch_random(&rng) % 4));
        }
        for (uint32_t i = 0; i < 8; i++) {
            worker_pump(w, (int) (scratch_random(&rng) % 10));
            if (w->answers[i].open) {
                worker_cancel(w, i);
            }
        }
        for (uint32_t i = 0; i < 8; i++) {
            wrong += !worker_await(w, &w->answers[i]);
        }
    }
    is_int(wrong, 0, "48 requests cut at random moments: each finished once");
    ok(worker_await_idle(w), "the engine is idle");
    kill(pid, SIGTERM);
    is_int(wait_for(pid), 0, "and ends when told");
    worker_close(w);
}

/* --- the same bits --- */

#define N_BITS 12 /* tokens of an answer */
#define N_LONG 400

/* The first choice of an answer. */
struct bits {
    uint32_t ids[N_BITS];
    struct worker_logprob entries[4 * N_BITS]; /* each token, and the three likeliest */
};

static struct answer *ask_for_bits(struct worker *w, uint32_t slot, const uint32_t *ids,
                                   uint32_t n_ids, uint16_t n)
{
    struct submit s;

    submit_ids(&s, ids, n_ids, N_BITS);
    s.head.flags = LLM_IPC_LOGPROBS | LLM_IPC_HAS_SEED | LLM_IPC_IGNORE_EOS;
    s.head.top_logprobs = 3;
    s.head.temperature = 1;
    s.head.repetition_penalty = 1.1f;
    s.head.seed = 42;
    s.head.n = n;
    return worker_submit(w, slot, &s);
}

static struct bits take_bits(struct worker *w, struct answer *a, const char *what)
{
    const struct answer_choice *c = &a->choices[0];
    struct bits b = {0};

    ok(worker_ends(w, a, LLM_IPC_OK) && c->n_ids == N_BITS && c->n_logprobs == 4 * N_BITS,
       "%s: an answer with log-probabilities", what);
    if (c->n_ids == N_BITS && c->n_logprobs == 4 * N_BITS) {
        memcpy(b.ids, c->ids, sizeof(b.ids));
        memcpy(b.entries, c->entries, sizeof(b.entries));
    }
    return b;
}

static uint64_t host_hits(const struct worker *w)
{
    return __atomic_load_n(&w->ipc.state->counters[LLM_IPC_COUNT_HIT_TOKENS + LLM_IPC_TIER_HOST],
                           __ATOMIC_RELAXED);
}

/* A prompt of seven pages in a pool of nine: the next one pushes it out. */
static void test_bits(void)
{
    static uint32_t prompts[3][N_LONG];
    pid_t pid = START("--deterministic", "--max-context", "512", "--latent-memory", "6m",
                      "--host-latent-memory", "64m", "--max-batch-tokens", "100");
    struct worker *w = worker_open(socket_path);
    struct bits cold, again, mate;
    struct answer *a, *b;
    uint64_t rng = 5, before;

    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < N_LONG; k++) {
            prompts[i][k] = 300 + (uint32_t) (scratch_random(&rng) % 3000);
        }
    }
    w->patience_ns = 120 * LLM_NS_PER_S;
    ok(worker_await_ready(w), "a deterministic engine");

    a = ask_for_bits(w, 0, prompts[0], N_LONG, 1);
    cold = take_bits(w, a, "cold");
    is_int(a->finished.cached_tokens, 0, "computed as a whole");

    a = ask_for_bits(w, 0, prompts[0], N_LONG, 1);
    again = take_bits(w, a, "from memory");
    is_int(a->finished.cached_tokens, 384, "found");
    ok(memcmp(&again, &cold, sizeof(cold)) == 0, "the same bits");

    take_bits(w, ask_for_bits(w, 0, prompts[1], N_LONG, 1), "another that pushes it out");
    before = host_hits(w);
    a = ask_for_bits(w, 0, prompts[0], N_LONG, 1);
    again = take_bits(w, a, "from the host tier");
    is_int(a->finished.cached_tokens, 384, "found");
    for (int i = 0; i < 500 && host_hits(w) == before; i++) {
        usleep(10000); /* it is told when there is nothing else to do */
    }
    ok(host_hits(w) > before, "there");
    ok(memcmp(&again, &cold, sizeof(cold)) == 0, "the same bits");

    mate = take_bits(w, ask_for_bits(w, 0, prompts[2], 30, 1), "one that will be a mate");
    a = ask_for_bits(w, 0, prompts[0], N_LONG, 2);
    b = ask_for_bits(w, 1, prompts[2], 30, 1);
    again = take_bits(w, a, "beside another and a second choice");
    ok(memcmp(&again, &cold, sizeof(cold)) == 0, "the same bits");
    again = take_bits(w, b, "and the other");
    ok(memcmp(&again, &mate, sizeof(mate)) == 0, "has its own");

    ok(worker_await_idle(w), "the engine is idle");
    kill(pid, SIGTERM);
    is_int(wait_for(pid), 0, "and ends when told");
    worker_close(w);
}

/* --- the command line --- */

static void write_text(const char *path, const char *text)
{
    scratch_write(path, text, strlen(text));
}

static void test_commands(void)
{
    char in[300], conf[300], command[1200];
    static const char lines[] = "{\"text\": \"Hello\", \"special\": false}\n"
                                "{\"text\": \"\"}\n"
                                "{\"text\": \"<｜User｜>\", \"special\": true}\n";
    char *out;

    snprintf(in, sizeof(in), "%s", scratch_path("lines"));
    snprintf(conf, sizeof(conf), "%s", scratch_path("conf"));

    is_int(RUN(&out, "/dev/null", "--version"), 0, "--version");
    ok(strncmp(out, "llm-engine ", 11) == 0, "names itself");
    free(out);
    is_int(RUN(&out, "/dev/null", "--help"), 0, "--help");
    ok(strstr(out, "--latent-memory SIZE") != NULL, "lists the options");
    free(out);
    is_int(RUN(&out, "/dev/null", "--model", DEMO), 2, "no socket to listen on");
    is_str(out, "llm-engine: --listen is missing: see --help\n", "is told");
    free(out);
    is_int(RUN(&out, "/dev/null", "--model", DEMO, "--test-config"), 0, "--test-config");
    is_str(out, "options and checkpoint are good; chat format deepseek-v3.1\n", "says so");
    free(out);
    is_int(RUN(&out, "/dev/null", "--model", DEMO, "--test-config", "--chat-format", "chatml"), 2,
           "an unknown chat format");
    ok(strstr(out, "--chat-format chatml") != NULL && strstr(out, "deepseek-v3.1") != NULL,
       "is refused with the list");
    free(out);
    is_int(RUN(&out, "/dev/null", "--model", DEMO, "--test-config", "--max-context", "9000"), 1,
           "a context longer than the model's");
    free(out);
    is_int(RUN(&out, "/dev/null", "--model", "/nonexistent", "--test-config"), 1, "no model");
    free(out);

    write_text(conf, "# demo\nmodel " DEMO "\nthreads 1\nthraeds 2\n");
    is_int(RUN(&out, "/dev/null", "--config", conf, "--test-config"), 2, "a bad line");
    ok(strstr(out, ":4: unknown option \"thraeds\"") != NULL, "is named");
    free(out);
    write_text(conf, "config /nonexistent\nmodel " DEMO "\n");
    is_int(RUN(&out, "/dev/null", "--config", conf, "--test-config"), 2, "a file in a file");
    ok(strstr(out, ":1: unknown option \"config\"") != NULL, "is refused");
    free(out);
    write_text(conf, "model /nonexistent\nmax-context 100\n");
    is_int(RUN(&out, "/dev/null", "--config", conf, "--model", DEMO, "--test-config"), 0,
           "the command line has the last word");
    free(out);

    is_int(RUN(&out, "/dev/null", "--model", DEMO, "--listen", "tcp:80"), 2, "no Unix socket");
    free(out);
    is_int(RUN(&out, "/dev/null", "--model", DEMO, "--listen", "unix:/nonexistent/x"), 1,
           "no directory for the socket");
    ok(strstr(out, "create its directory first") != NULL, "says what to do");
    free(out);
    is_int(RUN(&out, "/dev/null", "--model", DEMO, "--listen",
               "unix:/tmp/a-path-that-is-longer-than-the-hundred-and-eight-bytes-that-sun_path-"
               "holds-on-every-linux-there-is-so-far"), 2, "a path too long for a socket");
    ok(strstr(out, "it may have 99") != NULL, "says how long it may be");
    free(out);
    is_int(RUN(&out, "/dev/null", "--model", DEMO, "--listen", "unix:/dev/null"), 1,
           "a path that is no socket");
    free(out);
    is_int(RUN(&out, "/dev/null", "--model", DEMO, "--listen", listen_arg, "--socket-group",
               "no-such-group", "--test-config"), 2, "an unknown group");
    free(out);
    is_int(RUN(&out, "/dev/null", "--model", DEMO, "--listen", listen_arg, "--served-model-name",
               "a,,b", "--test-config"), 2, "an empty name");
    free(out);

    is_int(RUN(&out, "/dev/null", "--model", DEMO, "--numerics", "exact", "--latent-dtype", "bf16",
               "--test-config"), 2, "exact numerics with latents in bf16");
    ok(strstr(out, "leave out --latent-dtype bf16") != NULL, "says what to do");
    free(out);
    is_int(RUN(&out, "/dev/null", "--model", DEMO, "--latent-memory", "1k", "--test-config"), 1,
           "latent memory that holds nothing");
    ok(strstr(out, "raise --latent-memory") != NULL, "says what to do");
    free(out);

    snprintf(command, sizeof(command), "cp " DEMO "/config.json %s && cp " DEMO
             "/tokenizer_config.json %s", scratch_dir, scratch_dir);
    worker_must(system(command) == 0);
    is_int(RUN(&out, "/dev/null", "--model", scratch_dir, "--load-format", "dummy",
               "--test-config"), 1, "made-up weights without a tokenizer");
    ok(strstr(out, "tokenizer.json") != NULL, "are refused by the name of what is missing");
    free(out);
    snprintf(command, sizeof(command), "cp " DEMO "/tokenizer.json %s", scratch_dir);
    worker_must(system(command) == 0);
    is_int(RUN(&out, "/dev/null", "--model", scratch_dir, "--load-format", "dummy",
               "--test-config"), 0, "and taken with one");
    free(out);
    is_int(RUN(&out, "/dev/null", "--model", DEMO, "--host-latent-memory", "900t",
               "--test-config"), 1, "a host tier larger than the machine");
    ok(strstr(out, "--host-latent-memory of ") != NULL && strstr(out, "lower them by ") != NULL,
       "says how much is missing");
    free(out);

    write_text(in, lines);
    is_int(RUN(&out, in, "tokenize", "--tokenizer", DEMO "/tokenizer.json"), 0, "tokenize");
    is_str(out, "{\"ids\":[1970]}\n{\"ids\":[]}\n{\"ids\":[4084]}\n", "three lines");
    free(out);
    write_text(in, "{\"text\": 5}\n{\"text\": \"Hello\"}\n");
    is_int(RUN(&out, in, "tokenize", "--tokenizer", DEMO), 1, "a line that is wrong");
    ok(strstr(out, "{\"error\":") == out && strstr(out, "{\"ids\":[1970]}") != NULL,
       "is told, and the next one is answered");
    free(out);

    is_int(RUN(&out, "/dev/null", "bench", "--model", DEMO, "--prompt", "20", "--batch", "2",
               "--tokens", "4", "--repeat", "1", "--json", "--threads", "1"), 0, "bench");
    ok(strstr(out, "\"what\": \"prefill\"") != NULL && strstr(out, "\"what\": \"decode\"") != NULL,
       "gives its figures");
    free(out);
}

/* Sockets left behind, and taken. */
static void test_sockets(void)
{
    struct worker *w;
    struct stat st;
    char *out, made[320];
    pid_t pid = start("default", "64");

    w = worker_open(socket_path);
    worker_await_ready(w);
    worker_must(stat(socket_path, &st) == 0);
    is_int(st.st_mode & 0777, 0660, "the socket is its group's");
    snprintf(made, sizeof(made), "%s.%d", socket_path, (int) pid);
    ok(access(made, F_OK) != 0, "and the name it was made under is gone");
    is_int(RUN(&out, "/dev/null", "--model", DEMO, "--listen", listen_arg), 1, "a second engine");
    ok(strstr(out, "another process is listening there") != NULL, "does not take the place");
    free(out);
    kill(pid, SIGKILL);
    wait_for(pid);
    worker_close(w);

    ok(stat(socket_path, &st) == 0, "a killed engine leaves its socket behind");
    pid = start("default", "64");
    for (int i = 0; i < 500 && kill(pid, 0) == 0; i++) {
        struct stat now;

        if (stat(socket_path, &now) == 0 && now.st_ino != st.st_ino) {
            break;
        }
        usleep(10000);
    }
    w = worker_open(socket_path);
    ok(worker_await_ready(w), "the next one replaces it");
    kill(pid, SIGTERM);
    is_int(wait_for(pid), 0, "and ends when told");
    ok(stat(socket_path, &st) != 0, "taking it away");
    worker_close(w);
}

int main(void)
{
    const char *build = getenv("LLM_BUILD");
    json_t *root = json_load_file(DEMO "/golden.json", 0, NULL);

    scratch_init();
    worker_must(root != NULL);
    snprintf(engine_path, sizeof(engine_path), "%s/llm-engine", build != NULL ? build : "build");
    snprintf(socket_path, sizeof(socket_path), "%s", scratch_path("engine.sock"));
    snprintf(listen_arg, sizeof(listen_arg), "unix:%s", socket_path);

    test_commands();
    test_sockets();
    test_chat();
    test_bits();
    test_golden(root, "exact", "100");
    test_golden(root, "default", "512");
    json_decref(root);
    return done_testing();
}
