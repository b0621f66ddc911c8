/* Vector code of nhwc/, over the vector operations of the level that includes it. */
#ifndef PUMICE_NHWC_KERNELS_H
#define PUMICE_NHWC_KERNELS_H

#include "base/numbers.h"
#include "base/table.h"

INLINE vf bounded(vf v, vf low, vf high) { return choose(equal(v, v), least(most(v, low), high), v); }

/* One vector of every row, `count` lanes wide; rows that are NaN are collected. */
INLINE int finish_columns(float *y, int64_t y_step, const float *tile, int64_t tile_step, int64_t rows, int64_t count,
                          const float *bias, const float *residual, int64_t residual_step, float low, float high) {
    const vf added = bias ? load_some(bias, count) : all(0), lowest = all(low), highest = all(high);
    vf doubt = all(0);
    for (int64_t r = 0; r < rows; r++, tile += tile_step, y += y_step) {
        vf v = add(load_some(tile, count), added);
        if (residual) v = add(v, load_some(residual + r * residual_step, count));
        doubt = choose(equal(v, v), doubt, all(1));
        store_some(y, bounded(v, lowest, highest), count);
    }
    return most_of(doubt) > 0;
}

static int finish(float *y, int64_t y_step, const float *tile, int64_t tile_step, int64_t rows, int64_t columns,
                  const float *bias, const float *residual, int64_t residual_step, float low, float high) {
    int undefined = 0;
    for (int64_t from = 0; from < columns; from += LANES)
        undefined |=
            finish_columns(y + from, y_step, tile + from, tile_step, rows, smaller(LANES, columns - from),
                           bias ? bias + from : NULL, residual ? residual + from : NULL, residual_step, low, high);
    return undefined;
}

/* `outputs` neighbours share the weights of a tap. */
INLINE void depthwise_some(float *y, int64_t y_step, const float *x, int64_t x_step, const int64_t *at, int64_t taps,
                           const float *weights, int64_t step, const int outputs, int64_t count) {
    vf sum[4];
    for (int o = 0; o < outputs; o++) sum[o] = all(0);
    for (int64_t t = 0; t < taps; t++) {
        const vf w = load_some(weights + t * step, count);
        for (int o = 0; o < outputs; o++) sum[o] = fma_(load_some(x + at[t] + o * x_step, count), w, sum[o]);
    }
    for (int o = 0; o < outputs; o++) store_some(y + o * y_step, sum[o], count);
}

static void depthwise(float *y, int64_t y_step, const float *x, int64_t x_step, const int64_t *at, int64_t taps,
                      const float *weights, int64_t step, int64_t outputs, int64_t channels) {
    for (int64_t c = 0; c < channels; c += LANES) {
        const int64_t count = smaller(LANES, channels - c);
        int64_t o = 0;
        for (; o + 4 <= outputs; o += 4)
            depthwise_some(y + o * y_step + c, y_step, x + o * x_step + c, x_step, at, taps, weights + c, step, 4,
                           count);
        for (; o < outputs; o++)
            depthwise_some(y + o * y_step + c, y_step, x + o * x_step + c, x_step, at, taps, weights + c, step, 1,
                           count);
    }
}

static void maximum(float *y, int64_t y_step, const float *x, int64_t x_step, const int64_t *at, int64_t taps,
                    int64_t outputs, int64_t channels) {
    for (int64_t o = 0; o < outputs; o++, x += x_step, y += y_step)
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t count = smaller(LANES, channels - c);
            vf found = all(-INFINITY);
            for (int64_t t = 0; t < taps; t++) {
                const vf v = load_some(x + at[t] + c, count);
                found = choose(equal(v, v), most(v, found), v); /* `most` keeps a NaN that was found */
            }
            store_some(y + c, found, count);
        }
}

#define NHWC_KERNELS(table)          \
    (table)->nhwc_finish = finish;   \
    (table)->nhwc_maximum = maximum; \
    (table)->nhwc_depthwise = depthwise;

#endif
