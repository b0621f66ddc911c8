/* The thread pool: `pumice_parallel` runs a task over numbered chunks and returns when all are done.
 *
 * The caller is worker 0 and works along. Every worker first takes its own contiguous share of the chunks (the same
 * share in every call with as many chunks and threads: caches stay warm), then steals from the others. Idle workers
 * spin for a bounded while, then sleep on a futex. A call from inside a task, and a call while another thread has the
 * pool, run on the calling thread alone: correct, and never deadlocked. After fork() the child makes workers of its
 * own. */
#ifndef PUMICE_POOL_POOL_H
#define PUMICE_POOL_POOL_H

#include <stdint.h>

#include "pool/api.h"

enum { PUMICE_MOST_THREADS = 64 };

/* `worker` is below the number of threads and identifies the thread within the call. */
typedef void (*pumice_task)(void *context, int64_t chunk, int worker);

/* `threads` below 1 means pumice_threads(). */
void pumice_parallel(int threads, int64_t chunks, pumice_task task, void *context);

/* Phases of numbered chunks: those of one begin when all of the phase before are done. Threads stay together from phase to
 * phase, spinning, so that one may be as short as a microsecond. `start` and `finish`, or NULL, run around the work of
 * every thread that takes part. */
struct pumice_phases {
    int64_t phases, chunks; /* of each phase */
    void (*task)(void *context, int64_t phase, int64_t chunk);
    void *context;
    void (*start)(void), (*finish)(void);
};
void pumice_run_phases(int threads, const struct pumice_phases *work);

/* How many threads a call would use at most: for choosing the number of chunks. */
int pumice_team(int threads);

#endif
