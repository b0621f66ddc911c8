/* tdpbusd: 32 pixels x 32 filters in four tiles of sums, 64 bytes of depth a step. */
#include <immintrin.h>

#include "base/table.h"
#include "base/tiles_amx.h"

enum { PIXELS = 32, FILTERS = 32, UNIT = 64, AHEAD = 6 };

/* `step` bytes from one pixel to the next. Tiles 0-3 are sums, 4 and 5 pixels, 6 and 7 weights, which are fetched some
 * steps `ahead` where no pixels passed them yet. */
static inline __attribute__((always_inline)) void dots(const int ahead, int32_t *tile, const uint8_t *pixels,
                                                       int64_t step, int64_t depth, const int8_t *weights,
                                                       const int32_t *bias) {
    const int row = FILTERS * 4;
    _tile_loadd(0, bias, 0);
    _tile_loadd(1, bias + 16, 0);
    _tile_loadd(2, bias, 0);
    _tile_loadd(3, bias + 16, 0);
    for (int64_t k = 0; k < depth; k += UNIT, weights += UNIT * FILTERS) {
        for (int i = 0; ahead && i < UNIT * FILTERS; i += 64)
            __builtin_prefetch(weights + ahead * UNIT * FILTERS + i, 0, 2);
        _tile_loadd(6, weights, row);
        _tile_loadd(4, pixels + k, step);
        _tile_loadd(7, weights + 64, row);
        _tile_loadd(5, pixels + 16 * step + k, step);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(0, tile, row);
    _tile_stored(1, tile + 16, row);
    _tile_stored(2, tile + 16 * FILTERS, row);
    _tile_stored(3, tile + 16 * FILTERS + 16, row);
}

static __attribute__((noipa)) void dots_32x32(int32_t *tile, const uint8_t *pixels, int64_t step, int64_t depth,
                                              const int8_t *weights, const int32_t *bias) {
    dots(0, tile, pixels, step, depth, weights, bias);
}

static __attribute__((noipa)) void first_32x32(int32_t *tile, const uint8_t *pixels, int64_t step, int64_t depth,
                                               const int8_t *weights, const int32_t *bias) {
    dots(AHEAD, tile, pixels, step, depth, weights, bias);
}

static __attribute__((noipa)) void dots_16x32(int32_t *tile, const uint8_t *pixels, int64_t step, int64_t depth,
                                              const int8_t *weights, const int32_t *bias) {
    const int row = FILTERS * 4;
    _tile_loadd(0, bias, 0);
    _tile_loadd(1, bias + 16, 0);
    for (int64_t k = 0; k < depth; k += UNIT, weights += UNIT * FILTERS) {
        _tile_loadd(6, weights, row);
        _tile_loadd(4, pixels + k, step);
        _tile_loadd(7, weights + 64, row);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
    }
    _tile_stored(0, tile, row);
    _tile_stored(1, tile + 16, row);
}

static void tile(int32_t *tile, const uint8_t *const *pixels, int count, const int64_t *segments, int64_t segment_count,
                 int64_t depth, const int8_t *weights, const int32_t *bias, int filters) {
    (void)segments, (void)segment_count, (void)filters;
    const int64_t step = count > 1 ? pixels[1] - pixels[0] : 0;
    (count > 16 ? dots_32x32 : dots_16x32)(tile, pixels[0], step, depth, weights, bias);
}

static void first(int32_t *tile, const uint8_t *const *pixels, int count, const int64_t *segments,
                  int64_t segment_count, int64_t depth, const int8_t *weights, const int32_t *bias, int filters) {
    (void)segments, (void)segment_count, (void)filters;
    const int64_t step = count > 1 ? pixels[1] - pixels[0] : 0;
    (count > 16 ? first_32x32 : dots_16x32)(tile, pixels[0], step, depth, weights, bias);
}

static void begin(void) { _tile_loadconfig(&whole_tiles); }
static void end(void) { _tile_release(); }

static struct conv_u8_form form(void) {
    return (struct conv_u8_form){.pixels = PIXELS, .filters = FILTERS, .unit = UNIT, .staged = 1, .first = first};
}

OVERRIDES(conv_u8, amx) {
    table->conv_u8_deep_form = form;
    table->conv_u8_deep_tile = tile;
    table->conv_u8_deep_begin = begin;
    table->conv_u8_deep_end = end;
}
