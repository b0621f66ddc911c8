/* See pool.h. Chunks of a share are handed out by one counter that rises over all phases: with n chunks in a share, phase
 * p's are its numbers n p to n (p + 1). A phase is over when `done` has counted its chunks; who finds none left in its own
 * share waits for that, and helps the others only after a while, so that their counters stay in their caches. */
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>

#include "pool/pool.h"
#include "pool/wait.h"

enum { LINE = 64, PATIENCE = 16, LONG_WAIT = 1024 }; /* pauses, of about 40 ns */

struct share {
    _Alignas(LINE) _Atomic int64_t next;
    int64_t first, count;
};

struct run {
    const struct pumice_phases *work;
    int threads;
    _Alignas(LINE) _Atomic int64_t done;
    struct share shares[PUMICE_MOST_THREADS];
};

/* A chunk of the share that nobody has in this phase, or -1. */
static int64_t claim(struct share *share, int64_t phase) {
    const int64_t end = (phase + 1) * share->count;
    int64_t next = atomic_load_explicit(&share->next, memory_order_relaxed);
    while (next < end)
        if (atomic_compare_exchange_weak_explicit(&share->next, &next, next + 1, memory_order_relaxed, memory_order_relaxed))
            return share->first + next - phase * share->count;
    return -1;
}

static void take(struct run *run, int number, int64_t phase) {
    const struct pumice_phases *work = run->work;
    int64_t taken = 0;
    for (int64_t chunk; (chunk = claim(&run->shares[number], phase)) >= 0; taken++) work->task(work->context, phase, chunk);
    if (taken) atomic_fetch_add_explicit(&run->done, taken, memory_order_release);
}

static void wait_for(struct run *run, int worker, int64_t phase) {
    const int64_t all = (phase + 1) * run->work->chunks;
    for (int pauses = 1; atomic_load_explicit(&run->done, memory_order_acquire) < all; pauses++) {
        pumice_pause();
        if (pauses % PATIENCE == 0)
            for (int i = 1; i < run->threads; i++) take(run, (worker + i) % run->threads, phase);
        if (pauses % LONG_WAIT == 0) sched_yield();
    }
}

static void join(void *context, int64_t number, int worker) {
    struct run *run = context;
    const struct pumice_phases *work = run->work;
    int64_t phase = atomic_load_explicit(&run->done, memory_order_acquire) / work->chunks;
    if (phase < work->phases && work->start) work->start();
    const int started = phase < work->phases;
    for (; phase < work->phases; phase++) {
        take(run, worker, phase);
        wait_for(run, worker, phase);
    }
    if (started && work->finish) work->finish();
}

void pumice_run_phases(int threads, const struct pumice_phases *work) {
    if (work->chunks < 1) return;
    struct run run = {.work = work, .threads = pumice_team(threads)};
    if (run.threads > work->chunks) run.threads = (int)work->chunks;
    for (int i = 0; i < run.threads; i++) {
        struct share *share = &run.shares[i];
        share->first = work->chunks * i / run.threads;
        share->count = work->chunks * (i + 1) / run.threads - share->first;
    }
    pumice_parallel(run.threads, run.threads, join, &run);
}
