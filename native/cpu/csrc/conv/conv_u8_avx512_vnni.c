/* vpdpbusd: 14 pixels x 32 filters in 28 registers of sums. */
#include "conv/avx512_lanes.h"

#include "base/table.h"

struct levels { __m512i v; };
struct weights { __m512i v; };
static inline __attribute__((always_inline)) struct levels GROUP(const uint8_t *p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return (struct levels){_mm512_set1_epi32(four)};
}
static inline __attribute__((always_inline)) struct weights WEIGHTS(const int8_t *p) {
    return (struct weights){_mm512_loadu_si512(p)};
}
#define DOT(sum, group, weights) _mm512_dpbusd_epi32(sum, (group).v, (weights).v)
static inline __attribute__((always_inline)) struct levels LEVELS(__m512i all) {
    return (struct levels){all};
}
#include "conv/u8_tile.h"

#include "conv/u8_depthwise.h"

RUNS ROWS(14) ROWS(7) ROWS(4) ROWS(2) ROWS(1)

static void tile(int32_t *tile, const uint8_t *const *pixels, int count, const int64_t *segments, int64_t segment_count,
                 int64_t depth, const int8_t *weights, const int32_t *bias, int filters) {
    if (count == 14 && two_runs(pixels)) CALL_RUNS;
    else if (count > 7) CALL(14);
    else if (count > 4) CALL(7);
    else if (count > 2) CALL(4);
    else if (count > 1) CALL(2);
    else CALL(1);
}

static struct conv_u8_form form(void) { return (struct conv_u8_form){.pixels = 14, .filters = 32, .unit = 4}; }

OVERRIDES(conv_u8, avx512_vnni) {
    table->conv_u8_form = table->conv_u8_deep_form = form;
    table->conv_u8_tile = table->conv_u8_deep_tile = tile;
    table->conv_u8_depthwise_tile = depthwise_tile;
}
