/* The k loop of an 8-bit convolution, written once for all vector levels. The including file defines
 *
 *     LANES              32-bit lanes of a register
 *     sums               the register type of int32 sums
 *     LOAD(p), STORE(p, v)
 *     struct levels      one broadcast group of four activations, ready for DOT; GROUP(p) makes it
 *     struct weights     LANES x 4 weights, ready for DOT; WEIGHTS(p) makes it
 *     DOT(sum, group, weights)
 *
 * and then TILES(rows): functions for 1, 2, 4, ... rows. Each keeps rows x 2 registers of sums through
 *
 *     tile[i][n] = bias[n] + sum over segments s, k of pixels[i][segment s][k] * weights[s][k / 4][n][k % 4]
 *
 * and touches memory for sums only before and after: an epilogue in the same function would make gcc 12 spill them
 * inside the loop. */
#ifndef PUMICE_CONV_U8_TILE_H
#define PUMICE_CONV_U8_TILE_H

#include <string.h>

#define ALWAYS static inline __attribute__((always_inline))

ALWAYS void dots(const int rows, const int registers, int32_t *tile, const uint8_t *const *pixels,
                 const int64_t *segments, int64_t segment_count, int64_t depth, const int8_t *weights,
                 const int32_t *bias) {
    sums sum[14][2];
    _Pragma("GCC unroll 14") for (int i = 0; i < rows; i++)
        _Pragma("GCC unroll 2") for (int v = 0; v < registers; v++) sum[i][v] = LOAD(bias + v * LANES);
    for (int64_t s = 0; s < segment_count; s++) {
        const uint8_t *pixel[14];
        _Pragma("GCC unroll 14") for (int i = 0; i < rows; i++) pixel[i] = pixels[i] + segments[s];
        for (int64_t k = 0; k < depth; k += 4) {
            struct weights w[2];
            _Pragma("GCC unroll 2") for (int v = 0; v < registers; v++) w[v] = WEIGHTS(weights + v * LANES * 4);
            _Pragma("GCC unroll 14") for (int i = 0; i < rows; i++) {
                struct levels group = GROUP(pixel[i] + k);
                _Pragma("GCC unroll 2") for (int v = 0; v < registers; v++) sum[i][v] = DOT(sum[i][v], group, w[v]);
            }
            weights += 2 * LANES * 4;
        }
    }
    _Pragma("GCC unroll 14") for (int i = 0; i < rows; i++)
        _Pragma("GCC unroll 2") for (int v = 0; v < registers; v++) STORE(tile + (2 * i + v) * LANES, sum[i][v]);
}

/* The same for two runs of seven pixels at one distance: addresses need no pointer each, which saves a load a
 * broadcast. */
ALWAYS void dots_of_runs(const int registers, int32_t *tile, const uint8_t *const *pixels, const int64_t *segments,
                         int64_t segment_count, int64_t depth, const int8_t *weights, const int32_t *bias) {
    sums sum[14][2];
    _Pragma("GCC unroll 14") for (int i = 0; i < 14; i++)
        _Pragma("GCC unroll 2") for (int v = 0; v < registers; v++) sum[i][v] = LOAD(bias + v * LANES);
    const int64_t step = pixels[1] - pixels[0], step3 = 3 * step, step5 = 5 * step;
    for (int64_t s = 0; s < segment_count; s++) {
        const uint8_t *first = pixels[0] + segments[s], *second = pixels[7] + segments[s], *const end = first + depth;
        for (; first < end; first += 4, second += 4) {
            struct weights w[2];
            _Pragma("GCC unroll 2") for (int v = 0; v < registers; v++) w[v] = WEIGHTS(weights + v * LANES * 4);
            _Pragma("GCC unroll 14") for (int i = 0; i < 14; i++) {
                const uint8_t *run = i < 7 ? first : second;
                const int j = i % 7;
                const struct levels group = GROUP(j == 0   ? run
                                                  : j == 1 ? run + step
                                                  : j == 2 ? run + 2 * step
                                                  : j == 3 ? run + step3
                                                  : j == 4 ? run + 4 * step
                                                  : j == 5 ? run + step5
                                                           : run + 2 * step3);
                _Pragma("GCC unroll 2") for (int v = 0; v < registers; v++) sum[i][v] = DOT(sum[i][v], group, w[v]);
            }
            weights += 2 * LANES * 4;
        }
    }
    _Pragma("GCC unroll 14") for (int i = 0; i < 14; i++)
        _Pragma("GCC unroll 2") for (int v = 0; v < registers; v++) STORE(tile + (2 * i + v) * LANES, sum[i][v]);
}

/* Steps between neighbours of a run only ever grow where a row of the image ends. */
ALWAYS int two_runs(const uint8_t *const *pixels) {
    const int64_t step = pixels[1] - pixels[0];
    return pixels[6] - pixels[0] == 6 * step && pixels[8] - pixels[7] == step && pixels[13] - pixels[7] == 6 * step;
}

/* A function of its own for every shape; what stands behind its name are the loop and the loop's first arguments. */
#define TILE(name, loop, ...)                                                                                          \
    static __attribute__((noipa)) void name(int32_t *tile, const uint8_t *const *pixels, const int64_t *segments,      \
                                            int64_t segment_count, int64_t depth, const int8_t *weights,               \
                                            const int32_t *bias) {                                                     \
        loop(__VA_ARGS__, tile, pixels, segments, segment_count, depth, weights, bias);                                \
    }
#define RUNS TILE(dots_of_runs_x2, dots_of_runs, 2) TILE(dots_of_runs_x1, dots_of_runs, 1)
#define ROWS(rows) TILE(dots_##rows##x2, dots, rows, 2) TILE(dots_##rows##x1, dots, rows, 1)

#define CALL_RUNS \
    (filters > LANES ? dots_of_runs_x2 : dots_of_runs_x1)(tile, pixels, segments, segment_count, depth, weights, bias)
#define CALL(rows)                                                                             \
    (filters > LANES ? dots_##rows##x2 : dots_##rows##x1)(tile, pixels, segments, segment_count, depth, weights, bias)

#endif
