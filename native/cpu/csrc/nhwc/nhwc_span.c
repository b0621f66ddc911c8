/* See nhwc.h: windows at the border are cut down to what lies inside the image. */
#include "nhwc/nhwc.h"

#include "base/numbers.h"

size_t nhwc_span_bytes(const struct pumice_conv_shape *shape) {
    return 2 * (size_t)volume(shape->kernel) * sizeof(int64_t);
}

/* Outputs of a row whose tap lies inside: first, and one past the last. */
static int64_t first_inside(const struct pumice_conv_shape *s, int64_t tap) {
    const int64_t missing = s->before[ACROSS] - tap * s->dilation[ACROSS];
    return missing > 0 ? smaller(s->output[ACROSS], (missing + s->stride[ACROSS] - 1) / s->stride[ACROSS]) : 0;
}

static int64_t end_inside(const struct pumice_conv_shape *s, int64_t tap) {
    const int64_t room = s->size[ACROSS] - 1 + s->before[ACROSS] - tap * s->dilation[ACROSS];
    return room < 0 ? 0 : smaller(s->output[ACROSS], room / s->stride[ACROSS] + 1);
}

struct nhwc_span nhwc_first_span(int64_t *memory) { return (struct nhwc_span){.at = memory}; }

int nhwc_next_span(const struct pumice_conv_shape *s, int64_t row, int64_t row_step, int64_t pixel_step,
                   struct nhwc_span *span) {
    const int64_t from = span->from = span->until;
    if (from == s->output[ACROSS]) return 0;
    const int64_t whole = first_inside(s, 0), end = end_inside(s, s->kernel[ACROSS] - 1);
    span->until = from >= whole && from < end ? end : from + 1;
    span->taps = 0;
    span->tap = span->at + volume(s->kernel);
    for (int64_t i = 0; i < s->kernel[DOWN]; i++) {
        const int64_t h = row * s->stride[DOWN] + i * s->dilation[DOWN] - s->before[DOWN];
        if (h < 0 || h >= s->size[DOWN]) continue;
        for (int64_t j = 0; j < s->kernel[ACROSS]; j++) {
            const int64_t w = from * s->stride[ACROSS] + j * s->dilation[ACROSS] - s->before[ACROSS];
            if (w < 0 || w >= s->size[ACROSS]) continue;
            span->tap[span->taps] = i * s->kernel[ACROSS] + j;
            span->at[span->taps++] = h * row_step + w * pixel_step;
        }
    }
    return 1;
}
