#include <immintrin.h>

#include "base/table.h"

static const struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64))) whole_tiles = {
    .palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

/* Four products of 16 x 16 x 64 bytes. */
#define TILES(name, product, operations)                    \
    static int64_t name(int64_t repeats) {                  \
        _tile_loadconfig(&whole_tiles);                     \
        _tile_zero(4);                                      \
        _tile_zero(5);                                      \
        for (int64_t i = 0; i < repeats; i++) {             \
            product(0, 4, 5);                               \
            product(1, 4, 5);                               \
            product(2, 4, 5);                               \
            product(3, 4, 5);                               \
        }                                                   \
        _tile_release();                                    \
        return 4 * (operations);                            \
    }

TILES(bytes, _tile_dpbusd, 2 * 16 * 16 * 64)
TILES(pairs, _tile_dpbf16ps, 2 * 16 * 16 * 32)

OVERRIDES(peak, amx) {
    table->peak_integer = bytes;
    table->peak_bfloat = pairs;
}
