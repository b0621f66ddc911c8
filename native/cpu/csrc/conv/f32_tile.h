/* The float kernels of convolution, written once for all levels over the vocabulary of f32_lanes.h. The including file
 * defines ROWS, filters of a panel, so that ROWS x 3 registers of sums fit, and RUN, so that RUN x 4 do.
 *
 * Pixels are lanes: tile[f][p] = bias[f] + sum over k of weights[k][f] * x[offset[k] + p]; without bias the sums go on
 * from what the tile holds. */
#ifndef PUMICE_CONV_F32_TILE_H
#define PUMICE_CONV_F32_TILE_H

#include "conv/f32_lanes.h"
#include "conv/planes.h"
#include "conv/types.h"

enum { WIDTH = 3 * LANES };
enum { AHEAD = 2048 }; /* floats of weights, two pages: the hardware looks no further than one */

ALWAYS void products(const int registers, float *tile, const float *x, const int64_t *offset, int64_t depth,
                     const float *weights, const float *bias, some last) {
    reals sum[ROWS][3];
    _Pragma("GCC unroll 8") for (int f = 0; f < ROWS; f++)
        _Pragma("GCC unroll 3") for (int v = 0; v < registers; v++)
            sum[f][v] = bias ? SET(bias[f]) : LOAD(tile + f * WIDTH + v * LANES);
    for (int64_t k = 0; k < depth; k++, weights += ROWS) {
        const float *at = x + offset[k];
        reals pixels[3];
        __builtin_prefetch(weights + AHEAD, 0, 2);
        _Pragma("GCC unroll 3") for (int v = 0; v < registers; v++)
            pixels[v] = v + 1 < registers ? LOAD(at + v * LANES) : LOAD_SOME(at + v * LANES, last);
        _Pragma("GCC unroll 8") for (int f = 0; f < ROWS; f++) {
            const reals weight = SET(weights[f]);
            _Pragma("GCC unroll 3") for (int v = 0; v < registers; v++) sum[f][v] = FMA(weight, pixels[v], sum[f][v]);
        }
    }
    _Pragma("GCC unroll 8") for (int f = 0; f < ROWS; f++)
        _Pragma("GCC unroll 3") for (int v = 0; v < registers; v++) STORE(tile + f * WIDTH + v * LANES, sum[f][v]);
}

#define PRODUCTS(registers)                                                                                            \
    static __attribute__((noipa)) void products_##registers(float *tile, const float *x, const int64_t *offset,        \
                                                            int64_t depth, const float *weights, const float *bias,    \
                                                            some last) {                                               \
        products(registers, tile, x, offset, depth, weights, bias, last);                                              \
    }
PRODUCTS(1)
PRODUCTS(2) PRODUCTS(3)

    static void tile(float *tile, const float *x, const int64_t *offset, int64_t depth, const float *weights,
                     const float *bias, int pixels) {
    const int registers = (pixels + LANES - 1) / LANES;
    const some last = SOME(pixels - (registers - 1) * LANES);
    (registers == 3   ? products_3
     : registers == 2 ? products_2
                      : products_1)(tile, x, offset, depth, weights, bias, last);
}

static struct conv_f32_form form(void) {
    return (struct conv_f32_form){.filters = ROWS, .pixels = WIDTH, .panel = 2 * LANES, .run = RUN};
}

/* x[offset[k] + p] as rows of WIDTH for a tile's kernel, zeros behind the last pixel. */
static __attribute__((noipa)) void columns(float *to, const float *x, const int64_t *offset, int64_t depth,
                                           int pixels) {
    const some n[3] = {SOME(pixels), SOME(pixels - LANES), SOME(pixels - 2 * LANES)};
    for (int64_t k = 0; k < depth; k++, to += WIDTH)
        _Pragma("GCC unroll 3") for (int v = 0; v < 3; v++)
            STORE(to + v * LANES, LOAD_SOME(x + offset[k] + v * LANES, n[v]));
}

/* --- filters are lanes: tile[i][f] = bias[f] + sum over k of x[start[i / RUN] + offset[k] + i % RUN] * weights[k][f]
 * --------
 *
 * For small images, whose rows do not fill registers: one or two runs of RUN pixels by two registers of filters. */

enum { PANEL = 2 * LANES };

ALWAYS void products_of_runs(const int runs, float *tile, const float *x, const int64_t *start, const int64_t *offset,
                             int64_t depth, const float *weights, const float *bias) {
    reals sum[2 * RUN][2];
    const float *first = x + start[0], *second = runs == 2 ? x + start[1] : first;
    const int64_t next = depth * PANEL; /* the next panel, of which the caches may know nothing */
    _Pragma("GCC unroll 14") for (int i = 0; i < runs * RUN; i++) sum[i][0] = LOAD(bias),
                                                                  sum[i][1] = LOAD(bias + LANES);
    for (int64_t k = 0; k < depth; k++, weights += PANEL) {
        const reals left = LOAD(weights), right = LOAD(weights + LANES);
        const int64_t at = offset[k];
        __builtin_prefetch(weights + next, 0, 2);
        __builtin_prefetch(weights + next + LANES, 0, 2);
        _Pragma("GCC unroll 14") for (int i = 0; i < runs * RUN; i++) {
            const reals pixel = SET((i < RUN ? first : second)[at + i % RUN]);
            sum[i][0] = FMA(pixel, left, sum[i][0]);
            sum[i][1] = FMA(pixel, right, sum[i][1]);
        }
    }
    _Pragma("GCC unroll 14") for (int i = 0; i < runs * RUN; i++) {
        STORE(tile + i * PANEL, sum[i][0]);
        STORE(tile + i * PANEL + LANES, sum[i][1]);
    }
}

static __attribute__((noipa)) void products_of_1_run(float *tile, const float *x, const int64_t *start,
                                                     const int64_t *offset, int64_t depth, const float *weights,
                                                     const float *bias) {
    products_of_runs(1, tile, x, start, offset, depth, weights, bias);
}

static __attribute__((noipa)) void products_of_2_runs(float *tile, const float *x, const int64_t *start,
                                                      const int64_t *offset, int64_t depth, const float *weights,
                                                      const float *bias) {
    products_of_runs(2, tile, x, start, offset, depth, weights, bias);
}

static void tile_of_runs(float *tile, const float *x, const int64_t *start, int runs, const int64_t *offset,
                         int64_t depth, const float *weights, const float *bias) {
    (runs == 2 ? products_of_2_runs : products_of_1_run)(tile, x, start, offset, depth, weights, bias);
}

/* --- depthwise: y[p] = bias + sum over taps t of weights[t] * x[offset[t] + p] ------------------------------------ */

enum { STRIP = 4 * LANES };

/* `registers` of sums; of the last one some lanes. */
ALWAYS void sum_taps(const int registers, float *y, const float *x, const int64_t *offset, int64_t taps,
                     const float *weights, float bias, some last) {
    reals sum[4];
    _Pragma("GCC unroll 4") for (int v = 0; v < registers; v++) sum[v] = SET(bias);
    for (int64_t t = 0; t < taps; t++) {
        const float *at = x + offset[t];
        const reals weight = SET(weights[t]);
        _Pragma("GCC unroll 4") for (int v = 0; v < registers; v++)
            sum[v] = FMA(weight, v + 1 < registers ? LOAD(at + v * LANES) : LOAD_SOME(at + v * LANES, last), sum[v]);
    }
    _Pragma("GCC unroll 4") for (int v = 0; v + 1 < registers; v++) STORE(y + v * LANES, sum[v]);
    STORE_SOME(y + (registers - 1) * LANES, sum[registers - 1], last);
}

static __attribute__((noipa)) void depthwise(float *y, const float *x, const int64_t *offset, int64_t taps,
                                             const float *weights, float bias, int64_t count) {
    for (; count >= STRIP; count -= STRIP, y += STRIP, x += STRIP)
        sum_taps(4, y, x, offset, taps, weights, bias, SOME(LANES));
    const int64_t registers = (count + LANES - 1) / LANES;
    const some last = SOME(count - (registers - 1) * LANES);
    if (registers == 4) sum_taps(4, y, x, offset, taps, weights, bias, last);
    if (registers == 3) sum_taps(3, y, x, offset, taps, weights, bias, last);
    if (registers == 2) sum_taps(2, y, x, offset, taps, weights, bias, last);
    if (registers == 1) sum_taps(1, y, x, offset, taps, weights, bias, last);
}

/* --- frames: see planes.h ----------------------------------------------------------------------------------------- */

/* Rows of a plane, LANES columns at a time, so that which lanes lie in the image is found once for all rows: positions
 * start, start + step, ... of rows first, first + row_step, ... */
ALWAYS void frame_plane(const struct planes *planes, float *plane, const float *image, int64_t start,
                        const int64_t step, int64_t first, int64_t row_step) {
    const int64_t rows = planes->size[1], n = planes->size[2], extent = planes->extent[2];
    const reals border = SET(planes->fill);
    for (int64_t i = 0; i < extent; i += LANES) {
        const int64_t at = start + i * step;
        const some used = SOME(extent - i), low = BETWEEN(-at, n - at), high = BETWEEN(-at - LANES, n - at - LANES);
        float *to = plane + i;
        for (int64_t j = 0, row = first; j < planes->extent[1]; j++, row += row_step, to += extent) {
            const float *from = image + row * n + at;
            if (row < 0 || row >= rows)
                STORE_SOME(to, border, used);
            else if (step == 1)
                STORE_SOME(to, LOAD_IN(from, low, border), used);
            else
                STORE_SOME(to, EVEN(LOAD_IN(from, low, border), LOAD_IN(from + LANES, high, border)), used);
        }
    }
}

/* The same for any step. */
static void frame_plane_by_elements(const struct planes *planes, float *to, const float *image, int64_t start,
                                    int64_t first) {
    const int64_t rows = planes->size[1], n = planes->size[2];
    for (int64_t j = 0; j < planes->extent[1]; j++)
        for (int64_t i = 0; i < planes->extent[2]; i++) {
            const int64_t row = first + j * planes->stride[1], at = start + i * planes->stride[2];
            *to++ = row >= 0 && row < rows && at >= 0 && at < n ? image[row * n + at] : planes->fill;
        }
}

static __attribute__((noipa)) void frame(const struct planes *planes, float *to, const float *image) {
    const int64_t *extent = planes->extent, *origin = planes->origin, *step = planes->stride,
                  area = extent[1] * extent[2];
    for (int64_t a = 0; a < planes->phases[0]; a++)
        for (int64_t b = 0; b < planes->phases[1]; b++)
            for (int64_t c = 0; c < planes->phases[2]; c++)
                for (int64_t i = 0; i < extent[0]; i++, to += area) {
                    const int64_t d = origin[0] + a + i * step[0], first = origin[1] + b, start = origin[2] + c;
                    const float *slice = image + d * planes->size[1] * planes->size[2];
                    if (d < 0 || d >= planes->size[0])
                        for (int64_t j = 0; j < area; j++) to[j] = planes->fill;
                    else if (step[2] == 1) frame_plane(planes, to, slice, start, 1, first, step[1]);
                    else if (step[2] == 2) frame_plane(planes, to, slice, start, 2, first, step[1]);
                    else frame_plane_by_elements(planes, to, slice, start, first);
                }
}

/* Rows of `length` out of longer ones. */
static __attribute__((noipa)) void take_rows(float *y, int64_t y_step, const float *x, int64_t x_step, int64_t rows,
                                             int64_t length) {
    for (int64_t i = 0; i < length; i += LANES) {
        const some n = SOME(length - i);
        for (int64_t r = 0; r < rows; r++) STORE_SOME(y + r * y_step + i, LOAD_SOME(x + r * x_step + i, n), n);
    }
}

/* --- gradient of weights: total[i][j] += sum over images, p of a[i * a_step + p] * x[offset[j] + p], 4 by 4 ------- */

enum { AT_ONCE = LANES == 8 ? 2 : CONV_CORRELATED }; /* rows of sums that fit the registers */

ALWAYS void correlate_lanes(reals sum[AT_ONCE][CONV_CORRELATED], const float *a, int64_t a_step, const float *const *at,
                            int64_t p, some n) {
    reals value[CONV_CORRELATED];
    _Pragma("GCC unroll 4") for (int j = 0; j < CONV_CORRELATED; j++) value[j] = LOAD_SOME(at[j] + p, n);
    _Pragma("GCC unroll 4") for (int i = 0; i < AT_ONCE; i++) {
        const reals factor = LOAD_SOME(a + i * a_step + p, n);
        _Pragma("GCC unroll 4") for (int j = 0; j < CONV_CORRELATED; j++) sum[i][j] = FMA(factor, value[j], sum[i][j]);
    }
}

ALWAYS void correlate_rows(float *total, int64_t total_step, const float *a, const float *x, const int64_t *offset,
                           const struct conv_f32_images *images) {
    reals sum[AT_ONCE][CONV_CORRELATED];
    _Pragma("GCC unroll 4") for (int i = 0; i < AT_ONCE; i++)
        _Pragma("GCC unroll 4") for (int j = 0; j < CONV_CORRELATED; j++) sum[i][j] = SET(0);
    const int64_t count = images->pixels, whole = count / LANES * LANES;
    for (int64_t n = 0; n < images->count; n++, a += images->a_step, x += images->x_step) {
        const float *at[CONV_CORRELATED] = {x + offset[0], x + offset[1], x + offset[2], x + offset[3]};
        for (int64_t p = 0; p < whole; p += LANES) correlate_lanes(sum, a, images->row_step, at, p, SOME(LANES));
        if (whole < count) correlate_lanes(sum, a, images->row_step, at, whole, SOME(count - whole));
    }
    for (int i = 0; i < AT_ONCE; i++)
        for (int j = 0; j < CONV_CORRELATED; j++) total[i * total_step + j] += TOTAL(sum[i][j]);
}

static __attribute__((noipa)) void correlate(float *total, int64_t total_step, const float *a, const float *x,
                                             const int64_t *offset, const struct conv_f32_images *images) {
    for (int i = 0; i < CONV_CORRELATED; i += AT_ONCE)
        correlate_rows(total + i * total_step, total_step, a + i * images->row_step, x, offset, images);
}

/* --- epilogue: y = min(max(y + residual, low), high); NaN stays --------------------------------------------------- */

static __attribute__((noipa)) void finish(float *y, const float *residual, int64_t count, float low, float high) {
    for (int64_t i = 0; i < count; i += LANES) {
        const some n = SOME(count - i);
        reals value = LOAD_SOME(y + i, n);
        if (residual) value = ADD(value, LOAD_SOME(residual + i, n));
        STORE_SOME(y + i, MIN(MAX(value, SET(low)), SET(high)), n);
    }
}

#if !defined(CONV_OWN_STORE)
/* --- results: the pixels of a tile that are outputs, side by side ------------------------------------------------- */

static __attribute__((noipa)) void store(float *y, int64_t filter_step, const float *tile, int filters,
                                         const struct conv_f32_runs *runs) {
    for (int f = 0; f < filters; f++, tile += WIDTH) {
        float *to = y + f * filter_step;
        for (int r = 0; r < runs->count; r++) {
            const float *from = tile + runs->first[r];
            const int length = runs->length[r];
            for (int i = 0; i < length; i += LANES)
                STORE_SOME(to + i, LOAD_SOME(from + i, SOME(length - i)), SOME(length - i));
            to += length;
        }
    }
}
#endif

/* Every slot but the store, of which a level may have its own. */
static inline void fill(struct kernel_table *table) {
    table->conv_f32_form = form;
    table->conv_f32_tile = tile;
    table->conv_f32_runs_tile = tile_of_runs;
    table->conv_f32_depthwise = depthwise;
    table->conv_f32_correlate = correlate;
    table->conv_f32_columns = columns;
    table->conv_f32_finish = finish;
    table->conv_f32_frame = frame;
    table->conv_f32_take_rows = take_rows;
}

#endif
