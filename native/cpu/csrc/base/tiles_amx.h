/* AMX's tile registers as every kernel here uses them: eight of 16 rows of 64 bytes.
 *
 * Loading a configuration takes hundreds of cycles: once for all tiles of a chunk. Other libraries may use tiles between
 * two chunks, so a chunk ends by releasing them. Included by files that are compiled for AMX. */
#ifndef PUMICE_BASE_TILES_AMX_H
#define PUMICE_BASE_TILES_AMX_H

#include <immintrin.h>
#include <stdint.h>

struct tile_configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

static const struct tile_configuration whole_tiles = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

#endif
