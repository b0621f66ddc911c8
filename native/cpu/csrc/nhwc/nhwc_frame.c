/* See nhwc.h: pixels on their way to the tiles. */
#include <string.h>

#include "base/numbers.h"
#include "nhwc/nhwc.h"

enum { LINE = 64, SET_BYTES = 1024 }; /* pixels a multiple of this apart would fight for a few sets of the first-level cache */

/* Bytes that the last window may take behind its own numbers, and must not find anything in. */
static int64_t window_slack(const struct pumice_nhwc *conv) { return conv->depth * (int64_t)sizeof(float) / 2; }

struct frame nhwc_frame(const struct pumice_nhwc *conv, int64_t output_rows) {
    const struct pumice_conv_shape *s = &conv->shape;
    struct frame frame;
    for (int a = DOWN; a <= ACROSS; a++)
        frame.phases[a] = smaller(s->stride[a], (conv->columns[a] - 1) * s->dilation[a] + 1);
    frame.rows = output_rows + (conv->columns[DOWN] - 1) * s->dilation[DOWN] / s->stride[DOWN];
    frame.columns = s->output[ACROSS] + (conv->columns[ACROSS] - 1) * s->dilation[ACROSS] / s->stride[ACROSS];
    if (conv->overlapping) frame.columns = s->output[ACROSS] + s->kernel[ACROSS] - 1;
    const int64_t pixels = frame.phases[DOWN] * frame.phases[ACROSS] * frame.rows * frame.columns;
    const int64_t bytes = (pixels + conv->pixels) * conv->pixel_bytes; /* the last tile may reach beyond */
    frame.part = conv->product ? conv->product->part : 0;
    if (conv->overlapping) frame.part = round_up(bytes + window_slack(conv), LINE);
    frame.bytes = (size_t)(conv->overlapping ? 2 * frame.part : bytes);
    return frame;
}

/* Rows of the image that a pixel's rows of a window span. */
static int64_t spanned(const struct pumice_nhwc *conv) {
    return (conv->folded_rows - 1) * conv->shape.dilation[DOWN] + 1;
}

/* The channels of a pixel; if it is a window, a row of them and the padded rows that they are of. */
int64_t nhwc_staged(const struct pumice_nhwc *conv) {
    const struct pumice_conv_shape *s = &conv->shape;
    if (!conv->folded) return conv->channels;
    if (conv->overlapping) return reach(s, ACROSS) * s->channels;
    const int64_t rows = spanned(conv) * reach(s, ACROSS) * s->channels;
    return s->output[ACROSS] * conv->channels + rows + 2 * FOLDED_SLACK;
}

void nhwc_step_offsets(const struct pumice_nhwc *conv, const struct frame *frame, int64_t *offset) {
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t channel_bytes = (int64_t)sizeof(float) / (conv->overlapping ? 2 : 1);
    for (int64_t i = 0; i < conv->columns[DOWN]; i++)
        for (int64_t j = 0; j < conv->columns[ACROSS]; j++) {
            const int64_t down = i * s->dilation[DOWN], across = j * s->dilation[ACROSS];
            const int64_t plane = down % s->stride[DOWN] * frame->phases[ACROSS] + across % s->stride[ACROSS];
            const int64_t row = plane * frame->rows + down / s->stride[DOWN];
            const int64_t pixel = row * frame->columns + across / s->stride[ACROSS];
            for (int64_t k = 0; k < conv->depth; k += conv->step)
                *offset++ = pixel * conv->pixel_bytes + k * channel_bytes;
        }
}

/* Channels of `count` pixels at a constant distance, which lie side by side. */
static void take(const struct pumice_nhwc *conv, char *to, const float *from, int64_t from_step, int64_t count) {
    if (conv->product) {
        conv->product->convert(to, conv->pixel_bytes, from, from_step, count, conv->channels);
        return;
    }
    for (int64_t i = 0; i < count; i++, to += conv->pixel_bytes, from += from_step)
        memcpy(to, from, (size_t)conv->channels * sizeof *from);
}

/* The same, wherever the channels lie; `staged` has room for those of a pixel. */
static void gather(const struct nhwc_run *run, char *to, const float *from, int64_t from_step, int64_t count,
                   float *staged) {
    const int64_t step = run->x_steps[1], channels = run->conv->shape.channels;
    if (step == 1) {
        take(run->conv, to, from, from_step, count);
        return;
    }
    for (int64_t i = 0; i < count; i++, to += run->conv->pixel_bytes, from += from_step) {
        for (int64_t c = 0; c < channels; c++) staged[c] = from[c * step];
        take(run->conv, to, staged, 0, 1);
    }
}

/* --- windows as pixels -------------------------------------------------------------------------------------------- */

/* A padded row of the image, channels side by side; NULL: of padding. */
static void pad_row(const struct nhwc_run *run, float *to, const float *row) {
    const struct pumice_conv_shape *s = &run->conv->shape;
    const int64_t width = reach(s, ACROSS), first = smaller(width, s->before[ACROSS]),
                  last = smaller(width, s->before[ACROSS] + s->size[ACROSS]);
    memset(to, 0, (size_t)(width * s->channels) * sizeof *to);
    if (row && run->x_steps[3] == s->channels && (run->x_steps[1] == 1 || s->channels == 1)) {
        memcpy(to + first * s->channels, row, (size_t)((last - first) * s->channels) * sizeof *to);
        return;
    }
    for (int64_t c = 0; row && c < s->channels; c++) {
        const float *from = row + c * run->x_steps[1];
        for (int64_t i = first; i < last; i++, from += run->x_steps[3]) to[i * s->channels + c] = *from;
    }
}

/* At least `count` numbers, in whole lines. */
static inline void copy_lines(float *to, const float *from, int64_t count) {
    for (int64_t i = 0; i < count; i += FOLDED_SLACK) memcpy(to + i, from + i, FOLDED_SLACK * sizeof *to);
}

/* `count` rows of windows, the first one from row `top` of the padded image on, the next `step` rows below.
 *
 * Padded rows take turns in `rows`, as many as a pixel spans. All windows of a row are gathered before the first is
 * converted, which would wait for its own stores. */
static void fill_folded(const struct nhwc_run *run, char *to, const float *x, int64_t top, int64_t step, int64_t count,
                        float *staged) {
    const struct pumice_nhwc *conv = run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t part = s->kernel[ACROSS] * s->channels, padded = reach(s, ACROSS) * s->channels;
    const int64_t across = s->stride[ACROSS] * s->channels, span = spanned(conv), width = s->output[ACROSS];
    float *rows = staged + width * conv->channels + FOLDED_SLACK;
    int64_t made = top;
    for (int64_t r = 0; r < count; r++, top += step, to += width * conv->pixel_bytes) {
        for (made = larger(made, top); made < top + span; made++) {
            const int64_t at = made - s->before[DOWN];
            pad_row(run, rows + made % span * padded, at < 0 || at >= s->size[DOWN] ? NULL : x + at * run->x_steps[2]);
        }
        float *window = staged;
        for (int64_t o = 0; o < width; o++)
            for (int64_t i = 0; i < conv->folded_rows; i++, window += part) {
                const int64_t at = top % span + i * s->dilation[DOWN];
                copy_lines(window, rows + (at < span ? at : at - span) * padded + o * across, part);
            }
        take(conv, to, staged, conv->channels, width);
    }
}

/* Padded rows of the image, from `row` on, as numbers in two parts; `padded` has room for one. */
static void fill_overlapping(const struct nhwc_run *run, const struct frame *frame, char *to, const float *x,
                             int64_t row, float *padded) {
    const struct pumice_conv_shape *s = &run->conv->shape;
    for (int64_t r = 0; r < frame->rows; r++, to += frame->columns * run->conv->pixel_bytes) {
        const int64_t at = row + r - s->before[DOWN];
        pad_row(run, padded, at < 0 || at >= s->size[DOWN] ? NULL : x + at * run->x_steps[2]);
        run->conv->product->split(to, to + frame->part, padded, frame->columns * s->channels);
    }
    memset(to, 0, (size_t)window_slack(run->conv));
    memset(to + frame->part, 0, (size_t)window_slack(run->conv));
}

/* --- pixels ------------------------------------------------------------------------------------------------------- */

/* One row of a plane: pixels of one phase. */
static void fill_row(const struct nhwc_run *run, const struct frame *frame, char *to, const float *row, int64_t phase,
                     float *staged) {
    const struct pumice_nhwc *conv = run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t stride = s->stride[ACROSS], begin = phase - s->before[ACROSS];
    const int64_t first = begin < 0 ? smaller(frame->columns, (stride - 1 - begin) / stride) : 0;
    const int64_t end = begin >= s->size[ACROSS] ? 0 : (s->size[ACROSS] - 1 - begin) / stride + 1;
    const int64_t last = larger(first, smaller(frame->columns, end)), step = run->x_steps[3];
    memset(to, 0, (size_t)(first * conv->pixel_bytes));
    gather(run, to + first * conv->pixel_bytes, row + (begin + first * stride) * step, stride * step, last - first,
           staged);
    memset(to + last * conv->pixel_bytes, 0, (size_t)((frame->columns - last) * conv->pixel_bytes));
}

void nhwc_fill_frame(const struct nhwc_run *run, const struct frame *frame, char *to, int64_t image, int64_t row,
                     float *staged) {
    const struct pumice_nhwc *conv = run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    const float *x = run->x + image * run->x_steps[0];
    const int64_t row_bytes = frame->columns * conv->pixel_bytes;
    if (conv->overlapping) {
        fill_overlapping(run, frame, to, x, row, staged);
        return;
    }
    for (int64_t p = 0; conv->folded && p < frame->phases[DOWN]; p++, to += frame->rows * row_bytes)
        fill_folded(run, to, x, row * s->stride[DOWN] + p, s->stride[DOWN], frame->rows, staged);
    for (int64_t p = 0; !conv->folded && p < frame->phases[DOWN]; p++)
        for (int64_t q = 0; q < frame->phases[ACROSS]; q++)
            for (int64_t r = 0; r < frame->rows; r++, to += row_bytes) {
                const int64_t at = (row + r) * s->stride[DOWN] + p - s->before[DOWN];
                if (at < 0 || at >= s->size[DOWN]) memset(to, 0, (size_t)row_bytes);
                else fill_row(run, frame, to, x + at * run->x_steps[2], q, staged);
            }
}

int nhwc_in_place(const struct nhwc_run *run) {
    const struct pumice_nhwc *conv = run->conv;
    const int64_t *size = conv->shape.size, *steps = run->x_steps;
    const int even = steps[1] == 1 && steps[2] == size[ACROSS] * steps[3] &&
                     (run->batch == 1 || steps[0] == size[DOWN] * steps[2]);
    return conv->pointwise && !conv->product && even && steps[3] * (int64_t)sizeof(float) % SET_BYTES;
}

void nhwc_fill_pixels(const struct nhwc_run *run, char *to, int64_t from, int64_t count, float *staged) {
    const struct pumice_nhwc *conv = run->conv;
    const int64_t *size = conv->shape.size, *steps = run->x_steps;
    while (count > 0) {
        const int64_t column = from % size[ACROSS], row = from / size[ACROSS] % size[DOWN],
                      image = from / size[ACROSS] / size[DOWN], some = smaller(count, size[ACROSS] - column);
        const float *x = run->x + image * steps[0] + row * steps[2] + column * steps[3];
        gather(run, to, x, steps[3], some, staged);
        from += some, count -= some, to += some * conv->pixel_bytes;
    }
}
