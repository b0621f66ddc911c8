/* Pooling: a reduction over the windows of every channel.
 *
 * Float images are laid out in the frame of conv/planes.h, where the window of flat pixel p is x[offset[t] + p]; borders
 * hold what does not count (the lowest number for a maximum, zero for a sum). 8-bit images have their channels last, and
 * windows are clipped to the data instead. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/api.h"
#include "base/memory.h"
#include "base/numbers.h"
#include "base/table.h"
#include "conv/planes.h"
#include "conv/shape.h"
#include "pool/pool.h"
#include "pooling/api.h"

static const int64_t CHUNK = 1 << 15; /* elements read that are worth handing to another thread */

/* --- float windows ------------------------------------------------------------------------------------------------ */

struct windows {
    const struct pumice_conv_shape *shape;
    const struct level *level;
    struct planes planes;
    const int64_t *offset;
    const float *ones; /* one a tap, for sums */
    int what;
    int64_t channels, step; /* of all images; in a chunk */
    const float *x, *counts;
    float *y;
    int failed;
};

static void place_rows(const struct windows *w, const float *flat, float *y) {
    const int64_t *output = w->shape->output, *extent = w->planes.extent;
    for (int64_t d = 0; d < output[0]; d++)
        w->level->table.conv_f32_take_rows(y + d * output[1] * output[2], output[2], flat + d * extent[1] * extent[2],
                                           extent[2], output[1], output[2]);
    for (int64_t i = 0; w->what == PUMICE_POOL_AVERAGE && i < volume(output); i++) y[i] /= w->counts[i];
}

static void windows_task(void *context, int64_t chunk, int worker) {
    (void)worker;
    struct windows *w = context;
    const struct pumice_conv_shape *s = w->shape;
    const struct planes *planes = &w->planes;
    const int64_t *extent = planes->extent, taps = volume(s->kernel), framed = planes->in_place ? 0 : channel_elements(planes);
    const int64_t pixels = ((s->output[0] - 1) * extent[1] + s->output[1] - 1) * extent[2] + s->output[2];
    float *flat = pumice_scratch(SCRATCH_CONV_STAGE, (size_t)(pixels + framed) * sizeof *flat);
    if (!flat) {
        w->failed = 1;
        return;
    }
    for (int64_t c = chunk * w->step; c < smaller(w->channels, (chunk + 1) * w->step); c++) {
        const float *image = w->x + c * volume(s->size);
        if (!planes->in_place) w->level->table.conv_f32_frame(planes, flat + pixels, image);
        const float *from = planes->in_place ? image : flat + pixels;
        if (w->what == PUMICE_POOL_MAX)
            w->level->table.pooling_f32_max(flat, from, w->offset, taps, pixels);
        else
            w->level->table.conv_f32_depthwise(flat, from, w->offset, taps, w->ones, 0, pixels);
        place_rows(w, flat, w->y + c * volume(s->output));
    }
}

int pumice_pool_f32(const struct pumice_conv_shape *shape, int what, int64_t batch, const float *x, float *y,
                    const float *counts, int threads) {
    if (!makes_sense(shape) || batch < 0 || what < 0 || what > 1 || (what == PUMICE_POOL_AVERAGE && !counts)) return PUMICE_BAD_ARGUMENT;
    const int64_t taps = volume(shape->kernel);
    struct windows w = {
        .shape = shape, .level = pumice_level(), .planes = conv_planes(shape), .what = what,
        .channels = batch * shape->channels, .x = x, .y = y, .counts = counts,
    };
    w.planes.fill = what == PUMICE_POOL_MAX ? -INFINITY : 0;
    int64_t *offset = malloc((size_t)taps * sizeof *offset);
    float *ones = malloc((size_t)taps * sizeof *ones);
    if (offset && ones) {
        conv_tap_offsets(shape, &w.planes, offset);
        for (int64_t t = 0; t < taps; t++) ones[t] = 1;
        w.offset = offset, w.ones = ones;
        w.step = larger(1, CHUNK / (volume(shape->size) + taps * volume(shape->output)));
        pumice_note_run(w.level, what == PUMICE_POOL_MAX ? SLOT_pooling_f32_max : SLOT_conv_f32_depthwise);
        pumice_parallel(threads, (w.channels + w.step - 1) / w.step, windows_task, &w);
    }
    const int status = offset && ones && !w.failed ? PUMICE_OK : PUMICE_NO_MEMORY;
    free(offset);
    free(ones);
    return status;
}

/* --- float rows --------------------------------------------------------------------------------------------------- */

struct rows {
    const struct level *level;
    int what;
    int64_t rows, count, step;
    const float *x;
    float *y;
};

static void rows_task(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct rows *w = context;
    for (int64_t r = chunk * w->step; r < smaller(w->rows, (chunk + 1) * w->step); r++)
        w->y[r] = w->what == PUMICE_POOL_MAX ? w->level->table.pooling_f32_top(w->x + r * w->count, w->count)
                                             : w->level->table.pooling_f32_total(w->x + r * w->count, w->count) / (float)w->count;
}

int pumice_pool_f32_rows(int what, int64_t rows, int64_t count, const float *x, float *y, int threads) {
    if (rows < 0 || count < 1 || what < 0 || what > 1) return PUMICE_BAD_ARGUMENT;
    struct rows w = {.level = pumice_level(), .what = what, .rows = rows, .count = count, .step = larger(1, CHUNK / count), .x = x, .y = y};
    pumice_note_run(w.level, what == PUMICE_POOL_MAX ? SLOT_pooling_f32_top : SLOT_pooling_f32_total);
    pumice_parallel(threads, (rows + w.step - 1) / w.step, rows_task, &w);
    return PUMICE_OK;
}

/* --- 8 bits, channels last ------------------------------------------------------------------------------------------ */

struct bytes {
    const struct pumice_conv_shape *shape;
    const struct level *level;
    int64_t rows, step;
    const uint8_t *x;
    uint8_t *y;
    int is_signed, failed;
};

/* Taps t with 0 <= at + t * dilation < size. */
static void clip(int64_t at, int64_t size, int64_t kernel, int64_t dilation, int64_t *first, int64_t *last) {
    *first = at < 0 ? (-at + dilation - 1) / dilation : 0;
    *last = at < size ? smaller(kernel, (size - 1 - at) / dilation + 1) : 0;
}

/* The largest levels, position by position, of the rows that a row of outputs sees. */
static void max_of_rows(const struct bytes *b, const uint8_t *image, int64_t row, uint8_t *y) {
    const struct pumice_conv_shape *s = b->shape;
    const int64_t bytes = s->size[2] * s->channels, output[2] = {row / s->output[1], row % s->output[1]};
    int64_t at[2], first[2], last[2];
    memset(y, b->is_signed ? 0x80 : 0, (size_t)bytes);
    for (int a = 0; a < 2; a++) {
        at[a] = output[a] * s->stride[a] - s->before[a];
        clip(at[a], s->size[a], s->kernel[a], s->dilation[a], &first[a], &last[a]);
    }
    for (int64_t d = first[0]; d < last[0]; d++)
        for (int64_t h = first[1]; h < last[1]; h++) {
            const int64_t from = (at[0] + d * s->dilation[0]) * s->size[1] + at[1] + h * s->dilation[1];
            b->level->table.pooling_u8_max(y, image + from * bytes, bytes, b->is_signed);
        }
}

static void bytes_task(void *context, int64_t chunk, int worker) {
    (void)worker;
    struct bytes *b = context;
    const struct pumice_conv_shape *s = b->shape;
    const int64_t rows = s->output[0] * s->output[1], channels = s->channels;
    uint8_t *seen = pumice_scratch(SCRATCH_CONV_STAGE, (size_t)(s->size[2] * channels));
    if (!seen) {
        b->failed = 1;
        return;
    }
    for (int64_t r = chunk * b->step; r < smaller(b->rows, (chunk + 1) * b->step); r++) {
        uint8_t *y = b->y + r * s->output[2] * channels;
        max_of_rows(b, b->x + r / rows * volume(s->size) * channels, r % rows, seen);
        memset(y, b->is_signed ? 0x80 : 0, (size_t)(s->output[2] * channels));
        for (int64_t w = 0; w < s->output[2]; w++, y += channels) {
            const int64_t at = w * s->stride[2] - s->before[2];
            int64_t first, last;
            clip(at, s->size[2], s->kernel[2], s->dilation[2], &first, &last);
            for (int64_t t = first; t < last; t++)
                b->level->table.pooling_u8_max(y, seen + (at + t * s->dilation[2]) * channels, channels, b->is_signed);
        }
    }
}

int pumice_pool_u8_max(const struct pumice_conv_shape *shape, int64_t batch, const uint8_t *x, uint8_t *y, int is_signed,
                       int threads) {
    if (!makes_sense(shape) || batch < 0) return PUMICE_BAD_ARGUMENT;
    const int64_t row = shape->output[2] * shape->channels * volume(shape->kernel);
    struct bytes b = {
        .shape = shape, .level = pumice_level(), .rows = batch * shape->output[0] * shape->output[1],
        .step = larger(1, 8 * CHUNK / row), .x = x, .y = y, .is_signed = is_signed,
    };
    pumice_note_run(b.level, SLOT_pooling_u8_max);
    pumice_parallel(threads, (b.rows + b.step - 1) / b.step, bytes_task, &b);
    return b.failed ? PUMICE_NO_MEMORY : PUMICE_OK;
}

struct sums {
    const struct level *level;
    int64_t count, channels;
    const uint8_t *x;
    int32_t *sums;
    int is_signed;
};

static void sums_task(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct sums *w = context;
    int32_t *total = w->sums + chunk * w->channels;
    memset(total, 0, (size_t)w->channels * sizeof *total);
    for (int64_t p = 0; p < w->count; p++)
        w->level->table.pooling_u8_add(total, w->x + (chunk * w->count + p) * w->channels, w->channels, w->is_signed);
}

int pumice_pool_u8_sums(int64_t batch, int64_t count, int64_t channels, const uint8_t *x, int32_t *sums, int is_signed,
                        int threads) {
    if (batch < 0 || count < 0 || channels < 1) return PUMICE_BAD_ARGUMENT;
    struct sums w = {.level = pumice_level(), .count = count, .channels = channels, .x = x, .sums = sums, .is_signed = is_signed};
    pumice_note_run(w.level, SLOT_pooling_u8_add);
    pumice_parallel(batch * count * channels < 8 * CHUNK ? 1 : threads, batch, sums_task, &w);
    return PUMICE_OK;
}
