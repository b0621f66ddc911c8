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

/* `outputs` neighbours share the weights of a tap, of `vectors` channels; of the last vector some lanes. */
INLINE void depthwise_some(float *y, const float *x, const struct nhwc_windows *w, int64_t c, const int outputs,
                           const int vectors, int64_t last) {
    vf sum[4][2];
    for (int v = 0; v < vectors; v++) {
        const int64_t count = v + 1 < vectors ? LANES : last;
        const vf first = w->bias ? load_some(w->bias + c + v * LANES, count) : all(0);
        for (int o = 0; o < outputs; o++) sum[o][v] = first;
    }
    for (int64_t t = 0; t < w->taps; t++) {
        const float *weights = w->weights + w->tap[t] * w->channels + c, *at = x + w->at[t] + c;
        for (int v = 0; v < vectors; v++) {
            const int64_t count = v + 1 < vectors ? LANES : last;
            const vf weight = load_some(weights + v * LANES, count);
            for (int o = 0; o < outputs; o++)
                sum[o][v] = fma_(load_some(at + o * w->x_step + v * LANES, count), weight, sum[o][v]);
        }
    }
    const vf low = all(w->low), high = all(w->high);
    for (int o = 0; o < outputs; o++)
        for (int v = 0; v < vectors; v++)
            store_some(y + o * w->y_step + c + v * LANES, bounded(sum[o][v], low, high),
                       v + 1 < vectors ? LANES : last);
}

INLINE void depthwise_outputs(float *y, const float *x, const struct nhwc_windows *w, const int outputs) {
    int64_t c = 0;
    for (; c + 2 * LANES <= w->channels; c += 2 * LANES) depthwise_some(y, x, w, c, outputs, 2, LANES);
    for (; c < w->channels; c += LANES) depthwise_some(y, x, w, c, outputs, 1, smaller(LANES, w->channels - c));
}

static void depthwise(float *y, const struct nhwc_windows *w) {
    int64_t o = 0;
    for (; o + 4 <= w->outputs; o += 4) depthwise_outputs(y + o * w->y_step, w->x + o * w->x_step, w, 4);
    for (; o < w->outputs; o++) depthwise_outputs(y + o * w->y_step, w->x + o * w->x_step, w, 1);
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
