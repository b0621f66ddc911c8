/* A C test is a program: CHECK counts, `summary` prints and gives the exit code. Levels are walked by EVERY_LEVEL. */
#ifndef PUMICE_TESTS_CHECK_H
#define PUMICE_TESTS_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/api.h"

static _Atomic long passed, failed;

#define CHECK(condition, ...)                                       \
    do {                                                            \
        if (condition) {                                            \
            passed++;                                               \
        } else if (failed++ < 20) {                                 \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__);                           \
            fprintf(stderr, "\n");                                  \
        }                                                           \
    } while (0)

/* The body runs at each level that the machine has, `level` being its name. */
#define EVERY_LEVEL(level)                                                   \
    for (int number_ = 0; number_ < pumice_level_count(); number_++)         \
        for (const char *level = pumice_level_name(number_);                 \
             level && pumice_level_usable(number_) && pumice_use_level(level) == PUMICE_OK; level = NULL)

static inline int summary(const char *what) {
    printf("%s at", what);
    EVERY_LEVEL(level) printf(" %s", level);
    printf("\n%ld passed, %ld failed\n", (long)passed, (long)failed);
    return failed != 0;
}

static inline uint32_t draw(void) {
    static _Thread_local uint64_t state = 88172645463325252u;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static inline float draw_float(void) { return (float)(int32_t)draw() / 2147483648.0f; }

/* Exactly `count` bytes of their own, so that a sanitizer sees a read or a write beyond them. */
static inline void *room(size_t count) {
    void *memory = malloc(count ? count : 1);
    if (!memory) exit(2);
    return memory;
}

#endif
