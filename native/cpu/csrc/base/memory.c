#include "base/memory.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

enum { LINE = 64 };
static const size_t HUGE_PAGE = (size_t)2 << 20, WORTH_HUGE_PAGES = (size_t)1 << 20;

void *pumice_alloc(size_t bytes) {
    size_t alignment = bytes >= WORTH_HUGE_PAGES ? HUGE_PAGE : LINE;
    if (bytes > SIZE_MAX - alignment) return NULL;
    size_t rounded = (bytes + LINE - 1) / LINE * LINE;
    void *memory = NULL;
    if (posix_memalign(&memory, alignment, rounded ? rounded : LINE)) return NULL;
#if defined(MADV_HUGEPAGE)
    if (alignment == HUGE_PAGE) madvise(memory, rounded / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return memory;
}

void pumice_free(void *memory) { free(memory); }

struct scratch {
    void *memory[SCRATCH_SLOTS];
    size_t bytes[SCRATCH_SLOTS];
};

static pthread_key_t key;
static pthread_once_t made = PTHREAD_ONCE_INIT;
static _Thread_local struct scratch *mine;

static void release(void *value) {
    struct scratch *scratch = value;
    for (int slot = 0; slot < SCRATCH_SLOTS; slot++) pumice_free(scratch->memory[slot]);
    free(scratch);
}

static void make_key(void) { pthread_key_create(&key, release); }

void *pumice_scratch(enum scratch_slot slot, size_t bytes) {
    if (!mine) {
        pthread_once(&made, make_key);
        mine = calloc(1, sizeof *mine);
        if (!mine) return NULL;
        pthread_setspecific(key, mine);
    }
    if (mine->bytes[slot] < bytes) {
        pumice_free(mine->memory[slot]);
        mine->memory[slot] = pumice_alloc(bytes + bytes / 4);
        mine->bytes[slot] = mine->memory[slot] ? bytes + bytes / 4 : 0;
    }
    return mine->memory[slot];
}

size_t pumice_cache_bytes(void) {
    static _Atomic size_t known;
    if (!known) {
        long found = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
        found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
        known = found >= (256 << 10) ? (size_t)found : (size_t)512 << 10;
    }
    return known;
}
