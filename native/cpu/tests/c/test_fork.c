/* A child of a process with workers makes workers of its own, also while another thread of the parent had the pool. */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "pool/pool.h"

enum { CHUNKS = 60 };
static _Atomic int stop;

static void count_chunk(void *context, int64_t chunk, int worker) { atomic_fetch_add((_Atomic long *)context, 1); }

static int call_works(void) {
    _Atomic long seen = 0;
    pumice_parallel(3, CHUNKS, count_chunk, &seen);
    return seen == CHUNKS;
}

static void *keep_calling(void *argument) {
    while (!stop) call_works();
    return NULL;
}

static void fork_once(void) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        int works = 1;
        for (int i = 0; i < 20; i++) works &= call_works();
        _exit(!works);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0, "the child ended with status %d", status);
    CHECK(call_works(), "the parent after the fork");
}

int main(void) {
    CHECK(call_works(), "before any fork");
    for (int i = 0; i < 5; i++) fork_once();
    pthread_t other;
    CHECK(!pthread_create(&other, NULL, keep_calling, NULL), "thread");
    for (int i = 0; i < 10; i++) fork_once();
    stop = 1;
    pthread_join(other, NULL);
    return summary("forks");
}
