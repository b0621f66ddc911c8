/* tdpbusd: 32 pixels x 32 filters in four tiles of sums, 64 bytes of depth a step. */
#include <immintrin.h>

#include "base/table.h"
#include "base/tiles_amx.h"

enum { PIXELS = 32, FILTERS = 32, UNIT = 64, ROW = FILTERS * 4, LINE = 64 };

/* The windows of two runs of 16 pixels: their first bytes, and the distance between neighbours. */
struct runs {
    const uint8_t *first, *second;
    int64_t step;
};

/* Tiles 0-3 are sums, 4 and 5 pixels, 6 and 7 weights. With every step some `lines` are fetched into the second-level
 * cache from `next` on. */
#define SUMS(statement)                                                                                        \
    for (int64_t s = 0; s < segment_count; s++)                                                                \
        for (int64_t k = segments[s]; k < segments[s] + depth; k += UNIT, weights += UNIT * FILTERS) {         \
            for (int64_t i = 0; i < lines; i++, next += LINE) __builtin_prefetch(next, 0, 2);                  \
            statement                                                                                          \
        }

static __attribute__((noipa)) void dots_32x32(int32_t *tile, struct runs runs, const int64_t *segments,
                                              int64_t segment_count, int64_t depth, const int8_t *weights,
                                              const int32_t *bias, const int8_t *next, int64_t lines) {
    _tile_loadd(0, bias, 0);
    _tile_loadd(1, bias + 16, 0);
    _tile_loadd(2, bias, 0);
    _tile_loadd(3, bias + 16, 0);
    SUMS({
        _tile_loadd(6, weights, ROW);
        _tile_loadd(4, runs.first + k, runs.step);
        _tile_loadd(7, weights + 64, ROW);
        _tile_loadd(5, runs.second + k, runs.step);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    })
    _tile_stored(0, tile, ROW);
    _tile_stored(1, tile + 16, ROW);
    _tile_stored(2, tile + 16 * FILTERS, ROW);
    _tile_stored(3, tile + 16 * FILTERS + 16, ROW);
}

static __attribute__((noipa)) void dots_16x32(int32_t *tile, struct runs runs, const int64_t *segments,
                                              int64_t segment_count, int64_t depth, const int8_t *weights,
                                              const int32_t *bias, const int8_t *next, int64_t lines) {
    _tile_loadd(0, bias, 0);
    _tile_loadd(1, bias + 16, 0);
    SUMS({
        _tile_loadd(6, weights, ROW);
        _tile_loadd(4, runs.first + k, runs.step);
        _tile_loadd(7, weights + 64, ROW);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
    })
    _tile_stored(0, tile, ROW);
    _tile_stored(1, tile + 16, ROW);
}

static void fetching(int32_t *tile, const uint8_t *const *pixels, int count, const int64_t *segments,
                     int64_t segment_count, int64_t depth, const int8_t *weights, const int32_t *bias,
                     const int8_t *next, int64_t bytes) {
    const struct runs runs = {pixels[0], pixels[16], count > 1 ? pixels[1] - pixels[0] : 0};
    const int64_t steps = segment_count * (depth / UNIT), lines = (bytes + LINE * steps - 1) / (LINE * steps);
    (count > 16 ? dots_32x32 : dots_16x32)(tile, runs, segments, segment_count, depth, weights, bias, next, lines);
}

static void tile(int32_t *tile, const uint8_t *const *pixels, int count, const int64_t *segments, int64_t segment_count,
                 int64_t depth, const int8_t *weights, const int32_t *bias, int filters) {
    (void)filters;
    fetching(tile, pixels, count, segments, segment_count, depth, weights, bias, weights, 0);
}

static void begin(void) { _tile_loadconfig(&whole_tiles); }
static void end(void) { _tile_release(); }

static struct conv_u8_form form(void) {
    return (struct conv_u8_form){.pixels = PIXELS, .filters = FILTERS, .unit = UNIT, .staged = 1, .fetching = fetching};
}

OVERRIDES(conv_u8, amx) {
    table->conv_u8_deep_form = form;
    table->conv_u8_deep_tile = tile;
    table->conv_u8_deep_begin = begin;
    table->conv_u8_deep_end = end;
}
