/* vpdpbusd: 14 pixels x 32 filters in 28 registers of sums. */
#include "conv/avx512_lanes.h"

#include "base/table.h"
#include "conv/avx512_requantize.h"

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

/* --- depthwise 3x3, from bytes to levels in registers ------------------------------------------------------------- */

typedef __m512i vector_512;
typedef __mmask64 mask_512;
#define V(operation) _mm512_##operation
#define LINE(name) name##_512
#define WIDE QUAD
#define PART(v) (v)
#include "conv/u8_lines.h"

/* With 256 bits unpacking and packing have two ports instead of one, and arithmetic has three instead of two: half a
 * register takes less time than a whole one half full. */
typedef __m256i vector_256;
typedef __mmask32 mask_256;
#define V(operation) _mm256_##operation
#define LINE(name) name##_256
#define WIDE (QUAD / 2)
#define PART(v) _mm512_castsi512_si256(v)
#include "conv/u8_lines.h"

static void depthwise_lines(uint8_t *out, const struct conv_u8_line *line) {
    (line->channels > QUAD / 2 ? depthwise_512 : depthwise_256)(out, line);
}

static struct conv_u8_depthwise_form depthwise_form(void) {
    return (struct conv_u8_depthwise_form){.channels = QUAD, .order = quad_order, .lines = 2};
}

static struct conv_u8_form form(void) { return (struct conv_u8_form){.pixels = 14, .filters = 32, .unit = 4}; }

OVERRIDES(conv_u8, avx512_vnni) {
    table->conv_u8_form = table->conv_u8_deep_form = form;
    table->conv_u8_tile = table->conv_u8_deep_tile = tile;
    table->conv_u8_depthwise_form = depthwise_form;
    table->conv_u8_depthwise_tile = depthwise_tile;
    table->conv_u8_depthwise_line = depthwise_lines;
}
