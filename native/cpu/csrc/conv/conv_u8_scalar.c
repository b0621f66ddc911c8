/* 8-bit convolution, the truth: what every other level must give bit for bit. */
#include <math.h>

#include "base/table.h"

enum { LANES = 1, PIXELS = 4, FILTERS = 8 };
typedef int32_t sums;
typedef float reals;
#define LOAD(p) (*(p))
#define REALS(p) (*(p))
#define SET_REALS(x) (x)
#define SET_SUMS(x) (x)
#define TO_REALS(x) ((float)(x))
#define TO_SUMS(x) ((int32_t)nearbyintf(x))
#define MUL(a, b) ((a) * (b))
#define FMA(a, b, c) fmaf(a, b, c)
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define ADD(a, b) ((a) + (b))
#define SUB(a, b) ((a) - (b))
#define XOR(a, b) ((a) ^ (b))
#define BYTES(p, n) ((int32_t)*(p))
#define PUT_BYTES(p, v, n) (*(p) = (uint8_t)(v))
#include "conv/u8_requantize.h"

static void tile(int32_t *tile, const uint8_t *const *pixels, int count, const int64_t *segments, int64_t segment_count,
                 int64_t depth, const int8_t *weights, const int32_t *bias, int filters) {
    for (int i = 0; i < count; i++)
        for (int n = 0; n < filters; n++) {
            uint32_t sum = (uint32_t)bias[n]; /* wraps like the vector levels */
            const int8_t *weight = weights + n * 4;
            for (int64_t s = 0; s < segment_count; s++)
                for (int64_t k = 0; k < depth; k += 4, weight += FILTERS * 4)
                    for (int j = 0; j < 4; j++) sum += (uint32_t)(pixels[i][segments[s] + k + j] * weight[j]);
            tile[i * FILTERS + n] = (int32_t)sum;
        }
}

static struct conv_u8_form form(void) { return (struct conv_u8_form){.pixels = PIXELS, .filters = FILTERS, .unit = 4}; }

enum { CHANNELS = 8 };

static void depthwise_tile(int32_t *tile, const struct conv_u8_window *window, int count, int channels) {
    for (int i = 0; i < window->lines * count; i++)
        for (int c = 0; c < channels; c++) {
            const int64_t first = i / count * window->line + i % count * window->stride * window->column + c;
            uint32_t sum = (uint32_t)window->bias[c];
            for (int g = 0; g < window->groups; g++)
                for (int t = 0; t < window->taps; t++)
                    for (int j = 0; j < 4; j++)
                        sum += (uint32_t)(window->rows[4 * g + j][first + t * window->dilation * window->column] *
                                          window->weights[((g * window->taps + t) * CHANNELS + c) * 4 + j]);
            tile[i * CHANNELS + c] = (int32_t)sum;
        }
}

static void depthwise_requantize(uint8_t *out, int64_t out_stride, const int32_t *tile, int count, int channels,
                                 const struct conv_requantize *how) {
    requantize(out, out_stride, tile, CHANNELS, count, channels, how);
}

static void depthwise_line(uint8_t *out, const struct conv_u8_line *line) {
    for (int64_t i = 0; i < line->count; i++, out += line->out_stride) {
        int32_t sum[CHANNELS];
        for (int c = 0; c < line->channels; c++) {
            uint32_t total = (uint32_t)line->bias[c];
            for (int t = 0; t < 3; t++)
                for (int r = 0; r < 3; r++) {
                    const int64_t at = i * line->stride + t - line->before;
                    const int outside = at < 0 || at >= line->columns;
                    const int level = outside ? line->border : line->rows[r][at * line->column + c];
                    total += (uint32_t)(level * line->weights[(t * CHANNELS + c) * 4 + r]);
                }
            sum[c] = (int32_t)total;
        }
        requantize(out, line->out_stride, sum, CHANNELS, 1, line->channels, line->how);
    }
}

static struct conv_u8_depthwise_form depthwise_form(void) {
    return (struct conv_u8_depthwise_form){.channels = CHANNELS, .lines = 1};
}

static void nothing(void) {}

OVERRIDES(conv_u8, scalar) {
    table->conv_u8_deep_begin = table->conv_u8_deep_end = nothing;
    table->conv_u8_form = table->conv_u8_deep_form = form;
    table->conv_u8_tile = table->conv_u8_deep_tile = tile;
    table->conv_u8_requantize = requantize;
    table->conv_u8_depthwise_form = depthwise_form;
    table->conv_u8_depthwise_tile = depthwise_tile;
    table->conv_u8_depthwise_requantize = depthwise_requantize;
    table->conv_u8_depthwise_line = depthwise_line;
}
