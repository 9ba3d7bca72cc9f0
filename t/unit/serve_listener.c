/* The engine's socket: processes that start at the same moment over the socket of a dead one. */

#include "engine/serve/listener.h"
#include "t/unit/scratch.h"
#include "t/unit/tap.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define RACERS 4

static char path[300], address[320], lock_path[320];

static void must(bool good)
{
    if (!good) {
        perror("serve_listener");
        exit(2);
    }
}

/* --- the race --- */

/* Shared with the racers, who meet at the barrier before a round, when all have tried, and when
 * all has been looked at. */
struct race {
    pthread_barrier_t barrier;
    uint32_t rounds;
    struct outcome {
        int code;
        ino_t ino; /* of the winner's socket */
        char error[512];
    } outcomes[RACERS];
};

static struct race *race_new(uint32_t rounds)
{
    struct race *race = mmap(NULL, sizeof(*race), PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_barrierattr_t attr;

    must(race != MAP_FAILED);
    race->rounds = rounds;
    must(pthread_barrierattr_init(&attr) == 0);
    must(pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED) == 0);
    must(pthread_barrier_init(&race->barrier, &attr, RACERS + 1) == 0);
    pthread_barrierattr_destroy(&attr);
    return race;
}

/* Listens in every round if it can and leaves the socket behind, as an engine that is killed. */
static void run_racer(struct race *race, struct outcome *own)
{
    for (uint32_t i = 0; i < race->rounds; i++) {
        struct llm_listener l;
        struct llm_error err = {.text = ""};

        pthread_barrier_wait(&race->barrier);
        own->code = llm_listener_open(&l, address, NULL, &err);
        memcpy(own->error, err.text, sizeof(own->error));
        own->ino = l.ino;
        pthread_barrier_wait(&race->barrier);
        pthread_barrier_wait(&race->barrier);
        if (own->code == LLM_OK) {
            close(l.fd);
            free(l.path);
        }
    }
}

static pid_t start_racer(struct race *race, int i)
{
    pid_t pid;

    fflush(stdout);
    pid = fork();
    must(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_racer(race, &race->outcomes[i]);
        _exit(0);
    }
    return pid;
}

static bool says_taken(const char *error)
{
    return strstr(error, "another engine is starting there") != NULL ||
           strstr(error, "another process is listening there") != NULL;
}

static void test_race(uint32_t rounds)
{
    struct race *race = race_new(rounds);
    uint32_t not_one = 0, lost = 0, unexplained = 0, left_over = 0;
    pid_t racers[RACERS];

    for (int i = 0; i < RACERS; i++) {
        racers[i] = start_racer(race, i);
    }
    for (uint32_t round = 0; round < rounds; round++) {
        struct stat st = {0};
        int winners = 0;

        pthread_barrier_wait(&race->barrier);
        pthread_barrier_wait(&race->barrier);
        stat(path, &st);
        for (int i = 0; i < RACERS; i++) {
            const struct outcome *o = &race->outcomes[i];

            winners += o->code == LLM_OK;
            lost += o->code == LLM_OK && o->ino != st.st_ino;
            if (o->code != LLM_OK && !says_taken(o->error)) {
                unexplained++;
                diag("%s", o->error);
            }
        }
        not_one += winners != 1;
        left_over += access(lock_path, F_OK) == 0;
        pthread_barrier_wait(&race->barrier);
    }
    for (int i = 0; i < RACERS; i++) {
        int status;

        must(waitpid(racers[i], &status, 0) == racers[i]);
        ok(status == 0, "racer %d ends", i);
    }

    is_int(not_one, 0, "%u rounds of %d: one takes the path", rounds, RACERS);
    is_int(lost, 0, "which leads to its socket");
    is_int(unexplained, 0, "the others say that it is taken");
    is_int(left_over, 0, "no lock is left behind");
    munmap(race, sizeof(*race));
}

/* --- one by one --- */

static bool holder_ends;

/* In the place of libc's, which engine/serve calls when it has opened the lock's file: there the
 * one that holds the lock may come to its end. */
int flock(int fd, int operation)
{
    if (holder_ends) {
        unlink(lock_path);
    }
    return (int) syscall(SYS_flock, fd, operation);
}

static void test_lock(void)
{
    struct llm_listener l;
    struct llm_error err;
    int fd = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    must(fd >= 0 && flock(fd, LOCK_EX) == 0);
    is_int(llm_listener_open(&l, address, NULL, &err), LLM_EINVAL, "while another one starts");
    ok(strstr(err.text, "another engine is starting there") != NULL, "it says so");
    ok(access(lock_path, F_OK) == 0, "and leaves the lock alone");
    close(fd);

    holder_ends = true;
    is_int(llm_listener_open(&l, address, NULL, &err), LLM_EINVAL, "as another one has started");
    ok(strstr(err.text, "another engine is starting there") != NULL,
       "what it removed locks nothing");
    holder_ends = false;

    scratch_write(lock_path, "", 0);
    is_int(llm_listener_open(&l, address, NULL, &err), LLM_OK, "one that was killed as it started");
    ok(access(lock_path, F_OK) != 0, "leaves a file that is replaced");
    llm_listener_close(&l);
    ok(access(path, F_OK) != 0, "the socket goes when it is closed");
}

int main(void)
{
    scratch_init();
    snprintf(path, sizeof(path), "%s", scratch_path("x.sock"));
    snprintf(address, sizeof(address), "unix:%s", path);
    snprintf(lock_path, sizeof(lock_path), "%s.lock", path);

    test_lock();
    test_race(getenv("LLM_LONG") != NULL ? 20000 : 1000);
    return done_testing();
}
