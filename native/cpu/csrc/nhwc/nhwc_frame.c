/* See nhwc.h: pixels on their way to the tiles. */
#include <string.h>

#include "base/numbers.h"
#include "nhwc/nhwc.h"

struct frame nhwc_frame(const struct pumice_nhwc *conv, int64_t output_rows) {
    const struct pumice_conv_shape *s = &conv->shape;
    struct frame frame;
    for (int a = DOWN; a <= ACROSS; a++)
        frame.phases[a] = smaller(s->stride[a], (conv->columns[a] - 1) * s->dilation[a] + 1);
    frame.rows = output_rows + (conv->columns[DOWN] - 1) * s->dilation[DOWN] / s->stride[DOWN];
    frame.columns = s->output[ACROSS] + (conv->columns[ACROSS] - 1) * s->dilation[ACROSS] / s->stride[ACROSS];
    const int64_t pixels = frame.phases[DOWN] * frame.phases[ACROSS] * frame.rows * frame.columns;
    frame.bytes = (size_t)((pixels + conv->pixels) * conv->pixel_bytes); /* the last tile may reach beyond */
    return frame;
}

void nhwc_step_offsets(const struct pumice_nhwc *conv, const struct frame *frame, int64_t *offset) {
    const struct pumice_conv_shape *s = &conv->shape;
    for (int64_t i = 0; i < conv->columns[DOWN]; i++)
        for (int64_t j = 0; j < conv->columns[ACROSS]; j++) {
            const int64_t down = i * s->dilation[DOWN], across = j * s->dilation[ACROSS];
            const int64_t plane = down % s->stride[DOWN] * frame->phases[ACROSS] + across % s->stride[ACROSS];
            const int64_t row = plane * frame->rows + down / s->stride[DOWN];
            const int64_t pixel = row * frame->columns + across / s->stride[ACROSS];
            for (int64_t k = 0; k < conv->depth; k += conv->step)
                *offset++ = pixel * conv->pixel_bytes + k * (int64_t)sizeof(float);
        }
}

static void take(const struct pumice_nhwc *conv, char *to, const float *from) {
    if (conv->product) conv->product->convert(to, from, conv->channels);
    else memcpy(to, from, (size_t)conv->channels * sizeof *from);
}

/* The channels of one pixel, side by side. */
static const float *channels_of(const struct nhwc_run *run, const float *pixel, float *staged) {
    const int64_t step = run->x_steps[1];
    if (step == 1) return pixel;
    for (int64_t c = 0; c < run->conv->shape.channels; c++) staged[c] = pixel[c * step];
    return staged;
}

/* One row of a plane of whole windows, which lie side by side once the padded row does. */
static void fill_folded_row(const struct nhwc_run *run, const struct frame *frame, char *to, const float *row,
                            float *staged) {
    const struct pumice_nhwc *conv = run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    float *padded = staged;
    for (int64_t i = 0; i < reach(s, ACROSS); i++, padded += s->channels) {
        const int64_t at = i - s->before[ACROSS];
        const int inside_row = at >= 0 && at < s->size[ACROSS];
        for (int64_t c = 0; c < s->channels; c++)
            padded[c] = inside_row ? row[at * run->x_steps[3] + c * run->x_steps[1]] : 0;
    }
    for (int64_t i = 0; i < frame->columns; i++, to += conv->pixel_bytes)
        take(conv, to, staged + i * s->stride[ACROSS] * s->channels);
}

/* One row of a plane: pixels of one phase. */
static void fill_row(const struct nhwc_run *run, const struct frame *frame, char *to, const float *row, int64_t phase,
                     float *staged) {
    const struct pumice_nhwc *conv = run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    for (int64_t i = 0; i < frame->columns; i++, to += conv->pixel_bytes) {
        const int64_t at = i * s->stride[ACROSS] + phase - s->before[ACROSS];
        if (at < 0 || at >= s->size[ACROSS]) memset(to, 0, (size_t)conv->depth * sizeof(float));
        else take(conv, to, channels_of(run, row + at * run->x_steps[3], staged));
    }
}

void nhwc_fill_frame(const struct nhwc_run *run, const struct frame *frame, char *to, int64_t image, int64_t row,
                     float *staged) {
    const struct pumice_nhwc *conv = run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    const float *x = run->x + image * run->x_steps[0];
    const int64_t row_bytes = frame->columns * conv->pixel_bytes;
    for (int64_t p = 0; p < frame->phases[DOWN]; p++)
        for (int64_t q = 0; q < frame->phases[ACROSS]; q++)
            for (int64_t r = 0; r < frame->rows; r++, to += row_bytes) {
                const int64_t at = (row + r) * s->stride[DOWN] + p - s->before[DOWN];
                if (at < 0 || at >= s->size[DOWN]) memset(to, 0, (size_t)row_bytes);
                else if (conv->folded) fill_folded_row(run, frame, to, x + at * run->x_steps[2], staged);
                else fill_row(run, frame, to, x + at * run->x_steps[2], q, staged);
            }
}

void nhwc_fill_pixels(const struct nhwc_run *run, char *to, int64_t from, int64_t count, float *staged) {
    const struct pumice_nhwc *conv = run->conv;
    const int64_t *size = conv->shape.size, *steps = run->x_steps;
    for (int64_t i = from; i < from + count; i++, to += conv->pixel_bytes) {
        const int64_t column = i % size[ACROSS], row = i / size[ACROSS] % size[DOWN],
                      image = i / size[ACROSS] / size[DOWN];
        take(conv, to, channels_of(run, run->x + image * steps[0] + row * steps[2] + column * steps[3], staged));
    }
}
