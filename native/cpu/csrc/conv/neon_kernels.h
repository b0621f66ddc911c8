/* The 8-bit kernels of the NEON levels, once DOT and its operands are defined. OFFSET is what GROUP and LEVELS take off
 * every activation. */
#ifndef PUMICE_CONV_NEON_KERNELS_H
#define PUMICE_CONV_NEON_KERNELS_H

#include "conv/u8_tile.h"

#include "conv/u8_depthwise.h"

ROWS(8) ROWS(4) ROWS(2) ROWS(1)

static void tile(int32_t *tile, const uint8_t *const *pixels, int count, const int64_t *segments, int64_t segment_count,
                 int64_t depth, const int8_t *weights, const int32_t *bias, int filters) {
    if (count > 4) CALL(8);
    else if (count > 2) CALL(4);
    else if (count > 1) CALL(2);
    else CALL(1);
}

static struct conv_u8_form form(void) {
    return (struct conv_u8_form){.pixels = 8, .filters = 8, .unit = 4, .offset = OFFSET};
}

static struct conv_u8_depthwise_form depthwise_form(void) {
    return (struct conv_u8_depthwise_form){.channels = QUAD, .offset = OFFSET};
}

#define FILL_NEON_SLOTS                                              \
    table->conv_u8_form = table->conv_u8_deep_form = form;           \
    table->conv_u8_tile = table->conv_u8_deep_tile = tile;           \
    table->conv_u8_depthwise_form = depthwise_form;                  \
    table->conv_u8_depthwise_tile = depthwise_tile

#endif
