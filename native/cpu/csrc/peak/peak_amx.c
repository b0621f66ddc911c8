#include <immintrin.h>

#include "base/table.h"
#include "base/tiles_amx.h"

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
