/* Where the tile kernels of 8-bit convolutions find the windows of their pixels.
 *
 * A kernel that takes runs of positions at one distance from each other (`staged`) reads the image or its frame itself
 * where segments are whole units. Its *positions* are then those of a grid wider than the output: with strides of 1 the
 * rows of the frame, one after the other, so that runs go on across them; with larger strides rows of whole runs. What
 * is computed between the outputs is dropped. Where this would drop too much, or where a run would leave an image that
 * has no frame, windows are copied side by side. For all other kernels positions are the outputs. */
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "conv/conv_u8.h"
#include "conv/shape.h"

enum { RUN_PIXELS = 16, COPIED = 32 };

/* --- positions ---------------------------------------------------------------------------------------------------- */

static int64_t positions_of(const struct pumice_conv_shape *s, int64_t rows, int64_t columns) {
    return ((s->output[0] - 1) * rows + s->output[1] - 1) * columns + s->output[2];
}

void conv_u8_place_positions(struct pumice_conv_u8 *conv) {
    const struct pumice_conv_shape *s = &conv->shape;
    const int steady = volume(s->stride) == 1, whole = conv->depth % conv->form.unit == 0;
    const int64_t rows = steady ? conv->frame[1] : s->output[1];
    const int64_t columns = steady ? conv->frame[2] : round_up(s->output[2], RUN_PIXELS);
    const int64_t tiled = round_up(positions_of(s, rows, columns), RUN_PIXELS);
    conv->direct = conv->form.staged && (whole || conv->segments * conv->parts == 1) && (steady || !conv->in_place) &&
                   4 * tiled <= 5 * round_up(volume(s->output), RUN_PIXELS);
    conv->rows = conv->direct ? rows : s->output[1];
    conv->columns = conv->direct ? columns : s->output[2];
    conv->positions = positions_of(s, conv->rows, conv->columns);
}

int64_t conv_u8_pixels_before(const struct pumice_conv_u8 *conv, int64_t position) {
    const int64_t *output = conv->shape.output, row = position / conv->columns, h = row % conv->rows;
    const int64_t inside = h < output[1] ? smaller(position % conv->columns, output[2]) : 0;
    return (row / conv->rows * output[1] + smaller(h, output[1])) * output[2] + inside;
}

void conv_u8_point_at(const struct pumice_conv_u8 *conv, const uint8_t *image, int64_t first, int64_t count,
                      const uint8_t **pixel) {
    const struct pumice_conv_shape *s = &conv->shape;
    int64_t w = first % conv->columns, h = first / conv->columns % conv->rows, d = first / (conv->rows * conv->columns);
    const int64_t step = s->stride[2] * s->channels;
    for (int64_t i = 0; i < count;) {
        const int64_t row = d * s->stride[0] * conv->frame[1] + h * s->stride[1];
        const uint8_t *at = image + row * conv->frame[2] * s->channels + w * step;
        for (; w < conv->columns && i < count; w++, i++, at += step) pixel[i] = at;
        w = 0;
        if (++h == conv->rows) h = 0, d++;
    }
}

/* --- frames ------------------------------------------------------------------------------------------------------- */

int64_t conv_u8_slack(const struct pumice_conv_u8 *conv) {
    return CONV_SLACK + (conv->direct ? CONV_MOST_PIXELS * conv->shape.stride[2] * conv->shape.channels : 0);
}

static void copy_flipped(uint8_t *to, const uint8_t *from, int64_t bytes, int flip) {
    if (!flip) {
        memcpy(to, from, (size_t)bytes);
        return;
    }
    for (int64_t i = 0; i < bytes; i++) to[i] = from[i] ^ 0x80;
}

void conv_u8_frame_row(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct conv_u8_run *run = context;
    const struct pumice_conv_u8 *conv = run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t bytes = conv->frame[2] * s->channels, rows = conv->frame[0] * conv->frame[1];
    const int64_t image = chunk / rows, d = chunk % rows / conv->frame[1] - s->before[0],
                  h = chunk % conv->frame[1] - s->before[1];
    uint8_t *to = run->frames + chunk * bytes;
    if (d < 0 || d >= s->size[0] || h < 0 || h >= s->size[1]) {
        memset(to, conv->zero_point, (size_t)bytes);
        return;
    }
    const uint8_t *from = run->x + ((image * s->size[0] + d) * s->size[1] + h) * s->size[2] * s->channels;
    const int64_t left = s->before[2] * s->channels;
    const int64_t first = left < 0 ? -left : 0; /* bytes of the row before the frame begins */
    const int64_t count = larger(0, smaller(s->size[2] * s->channels - first, bytes - larger(left, 0)));
    memset(to, conv->zero_point, (size_t)smaller(bytes, larger(left, 0)));
    if (count) copy_flipped(to + larger(left, 0), from + first, count, conv->flip);
    const int64_t filled = larger(left, 0) + count;
    if (filled < bytes) memset(to + filled, conv->zero_point, (size_t)(bytes - filled));
}

/* --- side by side ------------------------------------------------------------------------------------------------- */

int conv_u8_reads_in_place(const struct conv_u8_run *run, int64_t first, int64_t count) {
    const struct pumice_conv_u8 *conv = run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    if (!conv->direct || run->frames) return conv->direct;
    const int64_t last = first + round_up(count, RUN_PIXELS) - 1, segments = conv->segments * conv->parts;
    const int64_t read = segments == 1 ? conv->packed_depth : conv->offset[segments - 1] + conv->depth;
    const int64_t group = s->channels - s->channels / s->groups;
    return last * s->channels + group + read <= volume(s->size) * s->channels;
}

/* In pieces of one size, the last of which may reach beyond: what follows there is written later, or never read. */
static void copy_segment(uint8_t *to, const uint8_t *from, int64_t depth) {
    for (int64_t k = 0; k < depth; k += COPIED) memcpy(to + k, from + k, COPIED);
}

int conv_u8_stage(const struct conv_u8_run *run, const uint8_t **pixel, int64_t count) {
    const struct pumice_conv_u8 *conv = run->conv;
    const int64_t bytes = conv->packed_depth, segments = conv->segments * conv->parts, depth = conv->depth;
    uint8_t *staged = pumice_scratch(SCRATCH_CONV_STAGE, (size_t)((count + CONV_MOST_PIXELS) * bytes + CONV_SLACK));
    if (!staged) return 0;
    for (int64_t i = 0; i < count; i++) {
        uint8_t *to = staged + i * bytes;
        for (int64_t s = 0; s < segments; s++) {
            const uint8_t *from = pixel[i] + conv->offset[s];
            if (run->frames) copy_segment(to + s * depth, from, depth);
            else memcpy(to + s * depth, from, (size_t)depth);
        }
        pixel[i] = to;
    }
    return 1;
}

int conv_u8_copy_last(const struct conv_u8_run *run, const uint8_t *image, const uint8_t **pixel, int64_t count) {
    const struct pumice_conv_u8 *conv = run->conv;
    const uint8_t *end = image + volume(conv->shape.size) * conv->shape.channels;
    if (run->frames || count == 0 || conv->packed_depth == conv->depth) return 1;
    uint8_t *copies = NULL;
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *from = pixel[i];
        if (from + conv->packed_depth <= end) continue;
        if (!copies) copies = pumice_scratch(SCRATCH_CONV_STAGE, (size_t)(count * conv->packed_depth));
        if (!copies) return 0;
        memcpy(copies + i * conv->packed_depth, from, (size_t)conv->depth);
        pixel[i] = copies + i * conv->packed_depth;
    }
    return 1;
}
