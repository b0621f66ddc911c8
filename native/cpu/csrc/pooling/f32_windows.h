/* The float pooling kernels, written once over the vocabulary of conv/f32_lanes.h. */
#ifndef PUMICE_POOLING_F32_WINDOWS_H
#define PUMICE_POOLING_F32_WINDOWS_H

#include "conv/f32_lanes.h"

enum { STRIP = 4 * LANES };

/* y[p] = max over taps t of x[offset[t] + p]; NaN wins. */
static __attribute__((noipa)) void window_max(float *y, const float *x, const int64_t *offset, int64_t taps, int64_t count) {
    int64_t p = 0;
    for (; p + STRIP <= count; p += STRIP) {
        reals top[4];
        const float *first = x + offset[0] + p;
        _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++) top[v] = LOAD(first + v * LANES);
        for (int64_t t = 1; t < taps; t++) {
            const float *at = x + offset[t] + p;
            _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++) top[v] = MAX(top[v], LOAD(at + v * LANES));
        }
        _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++) STORE(y + p + v * LANES, top[v]);
    }
    for (; p < count; p += LANES) {
        const some n = SOME(count - p);
        reals top = LOAD_SOME(x + offset[0] + p, n);
        for (int64_t t = 1; t < taps; t++) top = MAX(top, LOAD_SOME(x + offset[t] + p, n));
        STORE_SOME(y + p, top, n);
    }
}

static __attribute__((noipa)) float row_total(const float *x, int64_t count) {
    reals sum[4] = {SET(0), SET(0), SET(0), SET(0)};
    int64_t p = 0;
    for (; p + STRIP <= count; p += STRIP)
        _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++) sum[v] = ADD(sum[v], LOAD(x + p + v * LANES));
    for (; p < count; p += LANES) sum[0] = ADD(sum[0], LOAD_SOME(x + p, SOME(count - p)));
    return TOTAL(ADD(ADD(sum[0], sum[1]), ADD(sum[2], sum[3])));
}

static __attribute__((noipa)) float row_top(const float *x, int64_t count) {
    float lane[LANES];
    reals top = SET(x[0]);
    int64_t p = 0;
    for (; p + LANES <= count; p += LANES) top = MAX(top, LOAD(x + p));
    STORE(lane, top);
    float result = x[0];
    for (int i = 0; i < LANES; i++) result = result != result || result > lane[i] ? result : lane[i];
    for (; p < count; p++) result = result != result || result > x[p] ? result : x[p];
    return result;
}

#endif
