/* 8-bit pooling, channels last: plain loops that the compiler vectorises for the level of the including file. */
#ifndef PUMICE_POOLING_U8_CHANNELS_H
#define PUMICE_POOLING_U8_CHANNELS_H

#include <stdint.h>

/* y = max(y, x); signed bytes compare like unsigned ones with the sign flipped. */
static __attribute__((noipa)) void channels_max(uint8_t *restrict y, const uint8_t *restrict x, int64_t count, int flip) {
    if (flip) {
        int8_t *restrict to = (int8_t *)y;
        const int8_t *restrict from = (const int8_t *)x;
        for (int64_t i = 0; i < count; i++) to[i] = to[i] > from[i] ? to[i] : from[i];
    } else {
        for (int64_t i = 0; i < count; i++) y[i] = y[i] > x[i] ? y[i] : x[i];
    }
}

static __attribute__((noipa)) void channels_add(int32_t *restrict sums, const uint8_t *restrict x, int64_t count, int flip) {
    if (flip) {
        const int8_t *restrict from = (const int8_t *)x;
        for (int64_t i = 0; i < count; i++) sums[i] += from[i];
    } else {
        for (int64_t i = 0; i < count; i++) sums[i] += x[i];
    }
}

#endif
