/* See pool.h. How a call is handed out:
 *
 * `gate` holds, in one word, the number of the call, whether it is open, and how many workers are inside it. A worker
 * enters by raising the count while the gate is open, so that one that wakes late finds it shut and never touches the
 * call's memory; the caller shuts the gate when no chunk is left and waits for those inside. A worker that the system
 * does not run therefore never holds a call up. */
#include "pool/pool.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "pool/wait.h"

enum { MOST_THREADS = PUMICE_MOST_THREADS, LINE = 64 };
/* A futex wake-up costs 5 to 50 us, and the layers of a model follow each other as fast: spin a little longer than that
 * before going to sleep. */
static const int64_t SPIN_NANOSECONDS = 100000;

struct share {
    _Alignas(LINE) _Atomic int64_t next;
    int64_t end;
};

static struct {
    pthread_mutex_t callers; /* who holds it has the pool */
    int workers;             /* threads made so far, the caller not counted */
    /* the call: written before the gate opens */
    pumice_task task;
    void *context;
    int threads;
    struct share shares[MOST_THREADS];
    _Alignas(LINE) _Atomic uint64_t gate; /* call number << 32 | open << 31 | workers inside */
    _Alignas(LINE) _Atomic uint32_t bell; /* rung by raising it: workers sleep on it */
    _Atomic uint32_t asleep;
    _Alignas(LINE) _Atomic uint32_t empty; /* raised when the last worker leaves a shut gate: the caller sleeps on it */
} pool = {.callers = PTHREAD_MUTEX_INITIALIZER};

static const uint64_t OPEN = (uint64_t)1 << 31, INSIDE = ((uint64_t)1 << 31) - 1;

static _Thread_local int inside_a_task;
static _Atomic int wanted_threads;
static _Thread_local int limit; /* of calls from this thread; 0: none */

/* --- chunks ------------------------------------------------------------------------------------------------------- */

static void take(struct share *share, int worker) {
    if (atomic_load_explicit(&share->next, memory_order_relaxed) >= share->end) return;
    for (;;) {
        int64_t chunk = atomic_fetch_add_explicit(&share->next, 1, memory_order_relaxed);
        if (chunk >= share->end) return;
        pool.task(pool.context, chunk, worker);
    }
}

static void work(int worker) {
    inside_a_task = 1;
    for (int i = 0; i < pool.threads; i++) take(&pool.shares[(worker + i) % pool.threads], worker);
    inside_a_task = 0;
}

static void alone(int64_t chunks, pumice_task task, void *context) {
    for (int64_t chunk = 0; chunk < chunks; chunk++) task(context, chunk, 0);
}

/* --- workers ------------------------------------------------------------------------------------------------------ */

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Wait until `word` is no longer `old`: spinning first, then asleep. */
static void wait_for_change(_Atomic uint32_t *word, uint32_t old, _Atomic uint32_t *asleep) {
    int64_t until = nanoseconds() + SPIN_NANOSECONDS;
    do {
        for (int i = 0; i < 64; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != old) return;
            pumice_pause();
        }
    } while (nanoseconds() < until);
    if (asleep) atomic_fetch_add(asleep, 1);
    while (atomic_load(word) == old) pumice_sleep_on(word, old);
    if (asleep) atomic_fetch_sub(asleep, 1);
}

/* Raises the count of workers inside unless the gate is shut. */
static int enter(void) {
    uint64_t gate = atomic_load(&pool.gate);
    while (gate & OPEN)
        if (atomic_compare_exchange_weak(&pool.gate, &gate, gate + 1)) return 1;
    return 0;
}

static void leave(void) {
    uint64_t gate = atomic_fetch_sub(&pool.gate, 1) - 1;
    if (!(gate & OPEN) && !(gate & INSIDE)) {
        atomic_fetch_add(&pool.empty, 1);
        pumice_wake(&pool.empty, 1);
    }
}

static void *worker_main(void *argument) {
    int worker = (int)(intptr_t)argument;
    uint32_t heard = 0;
    for (;;) {
        wait_for_change(&pool.bell, heard, &pool.asleep);
        heard = atomic_load(&pool.bell);
        if (!enter()) continue;
        if (worker < pool.threads) work(worker);
        leave();
    }
    return NULL;
}

/* --- forks -------------------------------------------------------------------------------------------------------- */

/* The child has the parent's memory and none of its workers. */
static void forget_workers(void) {
    pthread_mutex_init(&pool.callers, NULL);
    pool.workers = 0;
    atomic_store(&pool.gate, 0);
    atomic_store(&pool.bell, 0);
    atomic_store(&pool.asleep, 0);
    atomic_store(&pool.empty, 0);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_workers); }

static void make_workers(int count) {
    static pthread_once_t watching = PTHREAD_ONCE_INIT;
    pthread_once(&watching, watch_forks);
    for (; pool.workers < count; pool.workers++) {
        pthread_attr_t detached;
        pthread_t thread;
        pthread_attr_init(&detached);
        pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
        int failed = pthread_create(&thread, &detached, worker_main, (void *)(intptr_t)(pool.workers + 1));
        pthread_attr_destroy(&detached);
        if (failed) return; /* the shares of absent workers are stolen by those there are */
    }
}

/* --- calls -------------------------------------------------------------------------------------------------------- */

static int cores(void) {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
    long found = sysconf(_SC_NPROCESSORS_ONLN);
    return found > 0 ? (int)found : 1;
}

int pumice_threads(void) {
    int threads = limit ? limit : atomic_load(&wanted_threads);
    if (threads < 1) threads = cores();
    return threads < MOST_THREADS ? threads : MOST_THREADS;
}

void pumice_set_threads(int threads) { atomic_store(&wanted_threads, threads); }

int pumice_limit_threads(int threads) {
    const int before = limit;
    limit = threads < 1 ? 0 : threads;
    return before;
}

int pumice_team(int threads) {
    if (inside_a_task) return 1;
    if (threads < 1) return pumice_threads();
    return threads < MOST_THREADS ? threads : MOST_THREADS;
}

static void open_gate(int64_t chunks, pumice_task task, void *context, int threads) {
    pool.task = task, pool.context = context, pool.threads = threads;
    for (int i = 0; i < threads; i++) {
        atomic_store_explicit(&pool.shares[i].next, chunks * i / threads, memory_order_relaxed);
        pool.shares[i].end = chunks * (i + 1) / threads;
    }
    uint64_t number = (atomic_load_explicit(&pool.gate, memory_order_relaxed) >> 32) + 1;
    atomic_store(&pool.gate, number << 32 | OPEN);
    atomic_fetch_add(&pool.bell, 1);
    if (atomic_load(&pool.asleep)) pumice_wake(&pool.bell, INT_MAX);
}

static void shut_gate(void) {
    uint32_t seen = atomic_load(&pool.empty);
    uint64_t gate = atomic_fetch_and(&pool.gate, ~OPEN) & ~OPEN;
    if (gate & INSIDE) wait_for_change(&pool.empty, seen, NULL);
}

void pumice_parallel(int threads, int64_t chunks, pumice_task task, void *context) {
    threads = pumice_team(threads);
    if (threads > chunks) threads = (int)chunks;
    if (threads < 2 || pthread_mutex_trylock(&pool.callers)) {
        alone(chunks, task, context);
        return;
    }
    make_workers(threads - 1);
    open_gate(chunks, task, context, threads);
    work(0);
    shut_gate();
    pthread_mutex_unlock(&pool.callers);
}
