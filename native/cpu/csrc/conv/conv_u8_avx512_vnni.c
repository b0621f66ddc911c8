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

/* Columns are interleaved once and kept in registers for the three windows that see them; weights are read where they
 * are used. Of two rows of results one below the other, four rows of the image are interleaved, and the lower result
 * has its weights a byte higher. */
ALWAYS void levels_of_lines(const int stride, const int lines, const int plain, const int channels,
                            uint8_t *restrict out, const struct conv_u8_line *line) {
    const struct bounds bounds = bounds_of(line->how);
    const float *multiplier = line->how->multiplier;
    const int32_t *bias = line->bias;
    const int64_t columns = line->columns, column = line->column, count = line->count, out_stride = line->out_stride;
    const __m512i absent = _mm512_set1_epi8((char)line->border);
    const struct quad border = {{absent, absent, absent, absent}};
    const __mmask64 mask = channels >= QUAD ? ~0ull : (1ull << channels) - 1;
    const uint8_t *row[4] = {line->rows[0], line->rows[1], line->rows[2], line->rows[lines + 1]};
    _Alignas(64) int8_t lower[12 * QUAD];
    const int8_t *weights[2] = {line->weights, lower};
    for (int i = 0; lines == 2 && i < 12; i++)
        STORE(lower + i * QUAD, _mm512_slli_epi32(LOAD(line->weights + i * QUAD), 8));
    int64_t at = -line->before;
#define COLUMN(quad)                                                                                                   \
    if (at < 0 || at >= columns) {                                                                                     \
        quad = border;                                                                                                 \
    } else {                                                                                                           \
        quad = INTERLEAVE(((const uint8_t *const[]){row[0], row[1], row[2], row[3]}), channels);                       \
        row[0] += column, row[1] += column, row[2] += column, row[3] += column;                                        \
    }                                                                                                                  \
    at++;
    struct quad first, second = border, third;
    COLUMN(first)
    if (stride == 1) { COLUMN(second) }
    for (int64_t i = 0; i < count; i++, out += out_stride) {
        if (stride == 2) { COLUMN(second) }
        COLUMN(third)
        _Pragma("GCC unroll 2") for (int l = 0; l < lines; l++) {
            __m512i level[4];
            _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++) {
                const int8_t *w = weights[l] + v * LANES * 4;
                sums sum = LOAD(bias + v * LANES);
                sum = _mm512_dpbusd_epi32(sum, first.v[v], LOAD(w));
                sum = _mm512_dpbusd_epi32(sum, second.v[v], LOAD(w + 4 * QUAD));
                sum = _mm512_dpbusd_epi32(sum, third.v[v], LOAD(w + 8 * QUAD));
                level[v] = TO_SUMS(MUL(TO_REALS(sum), REALS(multiplier + v * LANES)));
            }
            const __m512i bytes = packed(plain, level[0], level[1], level[2], level[3], &bounds);
            if (channels >= QUAD) STORE(out + l * line->below, bytes);
            else _mm512_mask_storeu_epi8(out + l * line->below, mask, bytes);
        }
        first = stride == 1 ? second : third;
        second = third;
    }
#undef COLUMN
}

#define LINES(stride, lines)                                                                                           \
    static __attribute__((noipa)) void lines_##stride##_##lines(uint8_t *out, const struct conv_u8_line *line) {       \
        const int plain = bounds_of(line->how).plain, n = line->channels;                                              \
        if (n >= QUAD && plain) levels_of_lines(stride, lines, 1, QUAD, out, line);                                    \
        else if (n >= QUAD) levels_of_lines(stride, lines, 0, QUAD, out, line);                                        \
        else levels_of_lines(stride, lines, 0, n, out, line);                                                          \
    }
LINES(1, 1) LINES(1, 2) LINES(2, 1)

static void depthwise_lines(uint8_t *out, const struct conv_u8_line *line) {
    (line->stride == 2 ? lines_2_1 : line->lines == 2 ? lines_1_2 : lines_1_1)(out, line);
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
