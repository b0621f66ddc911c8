/* The pool: every chunk once, from nested calls and concurrent callers, phases one after the other; made for the thread
 * sanitizer. */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "pool/pool.h"

enum { MOST = 4096, ROUNDS = 200 };

struct count {
    _Atomic int seen[MOST];
    _Atomic int workers; /* bit mask */
    int plain[MOST];     /* written without atomics: only the pool orders these */
    int inner;           /* chunks of a nested call */
    _Atomic long nested;
};

static void count_nested(void *context, int64_t chunk, int worker) { atomic_fetch_add((_Atomic long *)context, 1); }

static void count_chunk(void *context, int64_t chunk, int worker) {
    struct count *count = context;
    atomic_fetch_add(&count->seen[chunk], 1);
    atomic_fetch_or(&count->workers, 1 << worker);
    count->plain[chunk] = (int)chunk + 1;
    if (count->inner) pumice_parallel(3, count->inner, count_nested, &count->nested);
}

static void check_call(struct count *count, int threads, int64_t chunks, int inner) {
    memset(count, 0, sizeof *count);
    count->inner = inner;
    pumice_parallel(threads, chunks, count_chunk, count);
    for (int64_t i = 0; i < chunks; i++)
        if (count->seen[i] != 1 || count->plain[i] != i + 1) {
            CHECK(0, "chunk %ld of %ld on %d threads ran %d times", (long)i, (long)chunks, threads, count->seen[i]);
            return;
        }
    CHECK(count->nested == chunks * inner, "nested: %ld", count->nested);
    CHECK(count->workers < 1 << (threads > 1 ? threads : 1), "workers %x of %d threads", count->workers, threads);
}

enum { PHASES = 40, LANES = 16 };

/* Chunk i of a phase sees what chunks i and i + 1 of the one before have left. */
struct waves {
    int chunks;
    int height[2][LANES];
    _Atomic int bad, starts, finishes;
};

static struct waves *observed;
static void note_start(void) { observed->starts++; }
static void note_finish(void) { observed->finishes++; }

static void raise_height(void *context, int64_t phase, int64_t chunk) {
    struct waves *w = context;
    const int *before = w->height[phase % 2];
    if (before[chunk] != phase || before[(chunk + 1) % w->chunks] != phase) w->bad++;
    w->height[(phase + 1) % 2][chunk] = (int)phase + 1;
}

static void check_phases(int threads, int chunks) {
    struct waves waves = {.chunks = chunks};
    observed = &waves;
    const struct pumice_phases work = {PHASES, chunks, raise_height, &waves, note_start, note_finish};
    pumice_run_phases(threads, &work);
    CHECK(!waves.bad, "%d chunks on %d threads began too early", waves.bad, threads);
    for (int i = 0; i < chunks; i++) CHECK(waves.height[PHASES % 2][i] == PHASES, "chunk %d of %d", i, chunks);
    CHECK(waves.starts >= 1 && waves.starts <= threads && waves.starts == waves.finishes, "%d starts", waves.starts);
}

static void *calls(void *argument) {
    struct count *count = room(sizeof *count);
    for (int i = 0; i < ROUNDS; i++) check_call(count, 1 + i % 4, 1 + draw() % 100, 0);
    free(count);
    return NULL;
}

static void test_concurrent_callers(void) {
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) CHECK(!pthread_create(&threads[i], NULL, calls, NULL), "thread");
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
}

int main(void) {
    struct count *count = room(sizeof *count);
    for (int threads = 1; threads <= 6; threads++)
        for (int chunks = 0; chunks <= 40; chunks++) check_call(count, threads, chunks, 0);
    check_call(count, 4, MOST, 0);
    check_call(count, 4, 64, 5);
    for (int i = 0; i < ROUNDS; i++) {
        check_call(count, 4, 8, 0);
        if (i % 50 == 0) usleep(1000); /* long enough for workers to fall asleep */
    }
    for (int threads = 1; threads <= 4; threads++)
        for (int chunks = 1; chunks <= LANES; chunks++) check_phases(threads, chunks);
    test_concurrent_callers();
    pumice_set_threads(3);
    CHECK(pumice_threads() == 3 && pumice_team(0) == 3 && pumice_team(2) == 2, "threads");
    pumice_set_threads(0);
    CHECK(pumice_threads() >= 1, "cores");
    free(count);
    return summary("the pool");
}
