/* vpdpbusd on 256-bit registers: 6 pixels x 16 filters. */
#include "conv/avx2_lanes.h"

#include "base/table.h"

struct levels { __m256i v; };
struct weights { __m256i v; };
static inline __attribute__((always_inline)) struct levels LEVELS(__m256i all) { return (struct levels){all}; }
static inline __attribute__((always_inline)) struct levels GROUP(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, 4);
    return (struct levels){_mm256_set1_epi32(four)};
} static inline __attribute__((always_inline)) struct weights WEIGHTS(const int8_t *p) {
    return (struct weights){LOAD(p)};
}
#define DOT(sum, group, weights) _mm256_dpbusd_avx_epi32(sum, (group).v, (weights).v)
#include "conv/u8_tile.h"

#define BESIDE 1
#include "conv/u8_depthwise.h"

ROWS(6) ROWS(3) ROWS(2) ROWS(1)

    static void tile(int32_t *tile, const uint8_t *const *pixels, int count, const int64_t *segments,
                     int64_t segment_count, int64_t depth, const int8_t *weights, const int32_t *bias, int filters) {
    if (count > 3) CALL(6);
    else if (count > 2) CALL(3);
    else if (count > 1) CALL(2);
    else CALL(1);
}

static struct conv_u8_form form(void) { return (struct conv_u8_form){.pixels = 6, .filters = 16, .unit = 4}; }

OVERRIDES(conv_u8, avx_vnni) {
    table->conv_u8_form = table->conv_u8_deep_form = form;
    table->conv_u8_tile = table->conv_u8_deep_tile = tile;
    table->conv_u8_depthwise_tile = depthwise_tile;
}
