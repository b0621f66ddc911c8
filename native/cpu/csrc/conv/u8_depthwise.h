/* 8-bit depthwise convolution at the vector levels. Four rows are interleaved, so that a 32-bit lane holds a channel's
 * four vertical neighbours and one DOT sums four taps; the interleaved columns are kept in a stage, since every one
 * serves all horizontal taps. Besides what u8_tile.h wants, the including file defines
 *
 *     struct quad { sums v[4]; }      4 * LANES channels
 *     INTERLEAVE(rows, n)             the quad of n channels at the four pointers
 *     BESIDE                          1 or 2 where registers are few or weights take two
 *     LEVELS(v)                       a register of LANES x 4 activations, ready for DOT
 */
#ifndef PUMICE_CONV_U8_DEPTHWISE_H
#define PUMICE_CONV_U8_DEPTHWISE_H

#include "conv/types.h"

enum { QUAD = 4 * LANES };

static __attribute__((noipa)) void interleave(uint8_t *stage, const uint8_t *const *rows, int64_t column,
                                              int64_t columns, int channels) {
    const uint8_t *at[4] = {rows[0], rows[1], rows[2], rows[3]};
    for (int64_t c = 0; c < columns; c++, stage += 4 * QUAD) {
        const struct quad quad = INTERLEAVE(at, channels);
        for (int v = 0; v < 4; v++) {
            STORE((void *)(stage + v * LANES * 4), quad.v[v]);
            at[v] += column;
        }
    }
}

/* Registers of a quad that are summed side by side: as many as weights leave room for. */
#if !defined(BESIDE)
#define BESIDE 4
#endif

/* `start` are the sums so far: rows of `start_step` (0 for the bias). */
ALWAYS void depthwise_dots(const int taps, int32_t *tile, const int32_t *start, int start_step, const uint8_t *stage,
                           const int8_t *weights, int count, int64_t stride, int64_t dilation) {
    for (int first = 0; first < 4; first += BESIDE, tile += BESIDE * LANES, start += BESIDE * LANES) {
        struct weights w[5][BESIDE];
        _Pragma("GCC unroll 5") for (int t = 0; t < taps; t++) _Pragma("GCC unroll 4") for (int v = 0; v < BESIDE; v++)
            w[t][v] = WEIGHTS(weights + (t * 4 + first + v) * LANES * 4);
        for (int i = 0; i < count; i++) {
            sums sum[BESIDE];
            _Pragma("GCC unroll 4") for (int v = 0; v < BESIDE; v++) sum[v] = LOAD(start + i * start_step + v * LANES);
            const uint8_t *at = stage + i * stride * (4 * QUAD) + first * LANES * 4;
            _Pragma("GCC unroll 5") for (int t = 0; t < taps; t++, at += dilation * (4 * QUAD))
                _Pragma("GCC unroll 4") for (int v = 0; v < BESIDE; v++)
                    sum[v] = DOT(sum[v], LEVELS(LOAD((const void *)(at + v * LANES * 4))), w[t][v]);
            _Pragma("GCC unroll 4") for (int v = 0; v < BESIDE; v++) STORE(tile + i * QUAD + v * LANES, sum[v]);
        }
    }
}

#define DEPTHWISE(taps)                                                                                                \
    static __attribute__((noipa)) void depthwise_dots_##taps(int32_t *tile, const int32_t *start, int start_step,      \
                                                             const uint8_t *stage, const int8_t *weights, int count,   \
                                                             int64_t stride, int64_t dilation) {                       \
        depthwise_dots(taps, tile, start, start_step, stage, weights, count, stride, dilation);                        \
    }
DEPTHWISE(1) DEPTHWISE(3) DEPTHWISE(5)

static void depthwise_group(int32_t *tile, const int32_t *start, int start_step, const struct conv_u8_window *window,
                            const int8_t *weights, int count) {
    int done = 0;
    while (done < window->taps) { /* 5 by 5, then 3, then one by one */
        const int left = window->taps - done, taps = left >= 5 ? 5 : left >= 3 ? 3 : 1;
        const uint8_t *stage = window->stage + done * window->dilation * (4 * QUAD);
        (taps == 5 ? depthwise_dots_5 : taps == 3 ? depthwise_dots_3 : depthwise_dots_1)(
            tile, start, start_step, stage, weights + done * 4 * QUAD, count, window->stride, window->dilation);
        start = tile, start_step = QUAD;
        done += taps;
    }
}

static void depthwise_line(int32_t *tile, const struct conv_u8_window *window, int count, int channels) {
    const int64_t columns = (count - 1) * window->stride + (window->taps - 1) * window->dilation + 1;
    for (int g = 0; g < window->groups; g++) {
        interleave(window->stage, window->rows + 4 * g, window->column, columns, channels);
        depthwise_group(tile, g ? tile : window->bias, g ? QUAD : 0, window,
                        window->weights + (int64_t)g * window->taps * 4 * QUAD, count);
    }
}

static void depthwise_tile(int32_t *tile, const struct conv_u8_window *window, int count, int channels) {
    struct conv_u8_window line = *window;
    const uint8_t *rows[CONV_MOST_ROWS];
    line.rows = rows;
    for (int l = 0; l < window->lines; l++) {
        for (int r = 0; r < 4 * window->groups; r++) rows[r] = window->rows[r] + l * window->line;
        depthwise_line(tile + l * count * QUAD, &line, count, channels);
    }
}

#endif
