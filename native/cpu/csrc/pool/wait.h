/* Sleeping until a word changes: futex on Linux, short naps elsewhere. */
#ifndef PUMICE_POOL_WAIT_H
#define PUMICE_POOL_WAIT_H

#include <stdatomic.h>
#include <stdint.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline void pumice_sleep_on(_Atomic uint32_t *word, uint32_t while_it_is) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, while_it_is, NULL, NULL, 0);
}
static inline void pumice_wake(_Atomic uint32_t *word, int sleepers) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, sleepers, NULL, NULL, 0);
}
#else
#include <time.h>

static inline void pumice_sleep_on(_Atomic uint32_t *word, uint32_t while_it_is) {
    struct timespec nap = {0, 50000};
    if (atomic_load(word) == while_it_is) nanosleep(&nap, NULL);
}
static inline void pumice_wake(_Atomic uint32_t *word, int sleepers) {}
#endif

static inline void pumice_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
