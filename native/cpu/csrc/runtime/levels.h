/* Loops over levels of 8 bits, for the compiler to vectorise with the flags of the including file. Results may lie where an
 * operand does (hence `ivdep` and no `restrict`), but overlap none in part. */
#ifndef PUMICE_RUNTIME_LEVELS_H
#define PUMICE_RUNTIME_LEVELS_H

#include <math.h>
#include <stdint.h>

#include "runtime/api.h"

#define ADD_LEVELS(type, least, most)                                                           \
    _Pragma("GCC ivdep")                                                                        \
    for (int64_t i = 0; i < count; i++) {                                                       \
        float v = fmaf((float)((const type *)a)[i], by_a, fmaf((float)((const type *)b)[i], by_b, offset)); \
        v = v < least ? least : v;                                                              \
        v = v > most ? most : v;                                                                \
        ((type *)y)[i] = (type)(int32_t)rintf(v);                                               \
    }

static __attribute__((noipa)) void add_levels(const struct pumice_add_u8 *how, const uint8_t *a,
                                              const uint8_t *b, uint8_t *y, int64_t count) {
    const float by_a = how->by_a, by_b = how->by_b, offset = how->offset;
    if (how->is_signed) {
        ADD_LEVELS(int8_t, -128.0f, 127.0f)
    } else {
        ADD_LEVELS(uint8_t, 0.0f, 255.0f)
    }
}

/* The numbers of channels that images have are spelt out, so that each becomes a shuffle. */
#define INTERLEAVE(channels) \
    _Pragma("GCC ivdep") \
    for (int64_t i = 0; i < count; i++) \
        for (int64_t c = 0; c < (channels); c++) y[i * (channels) + c] = x[c * step + i];

static __attribute__((noipa)) void interleave(const uint8_t *x, int64_t step, uint8_t *y, int64_t channels,
                                              int64_t count) {
    if (channels == 3) {
        INTERLEAVE(3)
    } else {
        INTERLEAVE(channels)
    }
}

static __attribute__((noipa)) void look_up(const uint8_t *table, const uint8_t *x, uint8_t *y,
                                           int64_t count) {
    _Pragma("GCC ivdep")
    for (int64_t i = 0; i < count; i++) y[i] = table[x[i]];
}

#define LEVELS_KERNELS(table) \
    table->runtime_add = add_levels, table->runtime_interleave = interleave, table->runtime_look_up = look_up;

#endif
