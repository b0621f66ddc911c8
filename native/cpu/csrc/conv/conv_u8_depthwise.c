/* 8-bit depthwise convolution: a filter of its own for every channel, y[p, c] = bias[c] + sum over t of x[p + t, c]
 * w[c, t].
 *
 * Channels go in blocks. The taps of a window's rows (over all axes but the last) are taken four at a time, so that a
 * dot instruction sums four rows; weights are packed [block][group of four rows][tap of the row][place][4], where the
 * level says which channel has which place. */
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "conv/conv_u8.h"
#include "conv/shape.h"
#include "pool/pool.h"

enum { PIXELS = 64, MOST_ROWS = CONV_MOST_ROWS };
/* Small images are framed as a whole; of larger ones only the columns at the ends of rows are copied. */
static const int64_t FRAMED_BYTES = 300 << 10;
static const double CHUNK_TAPS = 5e5; /* worth handing to another thread */

static int64_t window_rows(const struct pumice_conv_u8 *conv) { return conv->shape.kernel[0] * conv->shape.kernel[1]; }

static int64_t groups_of_rows(const struct pumice_conv_u8 *conv) { return conv->parts * ((window_rows(conv) + 3) / 4); }

static int64_t channel_at(const struct conv_u8_depthwise_form *form, int64_t place) {
    return form->order ? form->order[place] : place;
}

/* Columns under the windows of `count` neighbouring pixels. */
static int64_t columns_of(const struct pumice_conv_shape *s, int64_t count) {
    return (count - 1) * s->stride[2] + (s->kernel[2] - 1) * s->dilation[2] + 1;
}

int conv_u8_is_depthwise(const struct pumice_conv_shape *shape) {
    const int64_t rows = shape->kernel[0] * shape->kernel[1];
    if (CONV_MOST_PARTS * round_up(rows, 4) > MOST_ROWS) return 0;
    return shape->groups == shape->channels && shape->filters == shape->channels && shape->channels > 1;
}

/* Windows that a level takes row by row, from bytes to levels. */
static int has_lines(const struct pumice_conv_u8 *conv) {
    const struct pumice_conv_shape *s = &conv->shape;
    return conv->depthwise_form.lines && conv->parts == 1 && s->kernel[0] == 1 && s->kernel[1] == 3 &&
           s->kernel[2] == 3 && s->dilation[2] == 1 && s->stride[2] <= 2 && s->before[2] <= 1;
}

void conv_u8_lay_out_depthwise(struct pumice_conv_u8 *conv) {
    const struct pumice_conv_shape *s = &conv->shape;
    conv->depthwise_form = RUN(conv->level, conv_u8_depthwise_form)();
    conv->in_place = !conv->flip && (inside(s) || has_lines(conv) || volume(s->size) * s->channels > FRAMED_BYTES);
    for (int a = 0; a < 3; a++) conv->frame[a] = conv->in_place ? s->size[a] : reach(s, a);
    conv->segments = 1;
    conv->panels = (s->channels + conv->depthwise_form.channels - 1) / conv->depthwise_form.channels;
}

/* Of a block's weights. */
int64_t conv_u8_depthwise_bytes(const struct pumice_conv_u8 *conv) {
    return groups_of_rows(conv) * conv->shape.kernel[2] * conv->depthwise_form.channels * 4;
}

static void pack_channel(struct pumice_conv_u8 *conv, const int16_t *weights, int8_t *packed, int64_t place) {
    const int64_t rows = window_rows(conv), taps = conv->shape.kernel[2], places = conv->depthwise_form.channels;
    for (int part = 0; part < conv->parts; part++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t t = 0; t < taps; t++) {
                const int64_t group = part * ((rows + 3) / 4) + r / 4;
                packed[((group * taps + t) * places + place) * 4 + r % 4] = conv_u8_part(weights[r * taps + t], part);
            }
}

void conv_u8_pack_depthwise(struct pumice_conv_u8 *conv, const int16_t *weights, const int32_t *bias) {
    const int64_t taps = volume(conv->shape.kernel), places = conv->depthwise_form.channels;
    for (int64_t block = 0; block < conv->panels; block++)
        for (int64_t place = 0; place < places; place++) {
            const int64_t channel = block * places + channel_at(&conv->depthwise_form, place);
            if (channel >= conv->shape.channels) continue;
            const int16_t *own = weights + channel * taps;
            int64_t total = 0;
            for (int64_t t = 0; t < taps; t++) total += own[t];
            pack_channel(conv, own, conv->weights + block * conv_u8_depthwise_bytes(conv), place);
            conv->bias[block * places + place] =
                (int32_t)(uint32_t)((bias ? bias[channel] : 0) +
                                    (conv->depthwise_form.offset - conv->zero_point) * total);
        }
}

/* Where the window of output o begins along an axis of what is read; negative in the border of an image without a
 * frame. */
static int64_t window_start(const struct pumice_conv_u8 *conv, int axis, int64_t o) {
    return o * conv->shape.stride[axis] - (conv->in_place ? conv->shape.before[axis] : 0);
}

/* A row of an image, or the border. */
static const uint8_t *row_at(const struct conv_u8_run *run, const uint8_t *image, int64_t d, int64_t h) {
    const struct pumice_conv_u8 *conv = run->conv;
    if (d < 0 || d >= conv->frame[0] || h < 0 || h >= conv->frame[1]) return run->border;
    return image + (d * conv->frame[1] + h) * conv->frame[2] * conv->shape.channels;
}

/* Pointers to the window's rows under output row (d, h), the last one repeated for absent ones, all parts. */
static void point_at_rows(const struct conv_u8_run *run, const uint8_t *image, int64_t d, int64_t h,
                          const uint8_t **rows) {
    const struct pumice_conv_u8 *conv = run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t count = round_up(window_rows(conv), 4);
    int64_t r = 0;
    for (int64_t i = 0; i < s->kernel[0]; i++)
        for (int64_t j = 0; j < s->kernel[1]; j++)
            rows[r++] = row_at(run, image, window_start(conv, 0, d) + i * s->dilation[0],
                               window_start(conv, 1, h) + j * s->dilation[1]);
    for (; r < count; r++) rows[r] = rows[r - 1];
    for (; r < conv->parts * count; r++) rows[r] = rows[r - count];
}

/* Sums in the order of the places to a result that is not plain levels. */
static void finish_in_order(const struct conv_u8_run *run, const int32_t *tile, const float *multiplier, int64_t at,
                            int count, int channels) {
    const struct conv_u8_depthwise_form *form = &run->conv->depthwise_form;
    int32_t ordered[PIXELS * CONV_DEPTHWISE_CHANNELS];
    for (int i = 0; i < count; i++)
        for (int64_t place = 0; place < form->channels; place++)
            ordered[i * form->channels + channel_at(form, place)] = tile[i * form->channels + place];
    for (int c = 0; c < channels; c += CONV_LEAST_FILTERS)
        conv_u8_finish(run, ordered + c, form->channels, multiplier + c, at + c, count,
                       (int)smaller(CONV_LEAST_FILTERS, channels - c));
}

/* One block of channels of an output row. */
struct row {
    const struct conv_u8_run *run;
    const uint8_t *const *rows; /* of the image, from its first column on */
    int64_t pointers;
    int lines;                  /* output rows taken together, where their windows lie in one frame */
    int64_t block, at;          /* `at`: of the row's first pixel in the result */
    uint8_t *stage, *patch;
    const float *multiplier, *placed; /* in order, and in the order of the places */
};

/* `count`: of all lines, which are side by side in the result if there are several. */
static void finish_tile(const struct row *row, const int32_t *tile, int64_t x, int count, int channels) {
    const struct conv_u8_run *run = row->run;
    const struct pumice_conv_u8_epilogue *e = run->epilogue;
    const int64_t width = run->conv->shape.channels,
                  at = (row->at + x) * width + row->block * run->conv->depthwise_form.channels;
    if (e->result != PUMICE_CONV_LEVELS || e->residual) {
        finish_in_order(run, tile, row->multiplier, at, count, channels);
        return;
    }
    const struct conv_requantize how = conv_u8_requantization(run, row->placed, at);
    run->conv->level->table.conv_u8_depthwise_requantize(run->y + at, width, tile, count, channels, &how);
    if (e->table) conv_u8_look_up(run->y + at, width, count, channels, e->table);
}

/* `count` pixels from x on, whose windows lie in rows that begin with the first window and have `column` bytes a
 * column. */
static void sum_pixels(const struct row *row, const uint8_t *const *rows, int64_t column, int64_t x, int count) {
    const struct pumice_conv_u8 *conv = row->run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t places = conv->depthwise_form.channels;
    const int channels = (int)smaller(places, s->channels - row->block * places);
    _Alignas(64) int32_t tile[PIXELS * CONV_DEPTHWISE_CHANNELS];
    const struct conv_u8_window window = {
        .rows = rows,
        .groups = (int)groups_of_rows(conv),
        .lines = row->lines,
        .line = s->stride[1] * conv->frame[2] * s->channels,
        .taps = (int)s->kernel[2],
        .stride = s->stride[2],
        .dilation = s->dilation[2],
        .column = column,
        .weights = conv->weights + row->block * conv_u8_depthwise_bytes(conv),
        .bias = conv->bias + row->block * places,
        .stage = row->stage,
    };
    conv->level->table.conv_u8_depthwise_tile(tile, &window, count, channels);
    finish_tile(row, tile, x, row->lines * count, channels);
}

/* The same where windows reach over the ends of the rows: their columns are copied out first, with the border. */
static void sum_at_the_border(const struct row *row, int64_t x, int count) {
    const struct pumice_conv_u8 *conv = row->run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t places = conv->depthwise_form.channels, columns = columns_of(s, count),
                  first = window_start(conv, 2, x);
    const size_t channels = (size_t)smaller(places, s->channels - row->block * places);
    const uint8_t *rows[MOST_ROWS];
    for (int64_t r = 0; r < row->pointers; r++) {
        uint8_t *to = row->patch + r * columns * places;
        rows[r] = r % 4 && row->rows[r] == row->rows[r - 1] ? rows[r - 1]
                                                            : to; /* absent rows stay the same as their neighbour */
        if (rows[r] != to) continue;
        for (int64_t c = first; c < first + columns; c++, to += places) {
            if (c < 0 || c >= conv->frame[2]) memset(to, conv->zero_point, channels);
            else memcpy(to, row->rows[r] + c * s->channels + row->block * places, channels);
        }
    }
    sum_pixels(row, rows, places, x, count);
}

static void block_of_row(const struct row *row) {
    const struct pumice_conv_u8 *conv = row->run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t places = conv->depthwise_form.channels, span = (s->kernel[2] - 1) * s->dilation[2];
    for (int64_t x = 0; x < s->output[2];) {
        const int64_t start = window_start(conv, 2, x), room = conv->frame[2] - 1 - span - start; /* of the window */
        if (start < 0 || room < 0) {
            const int64_t until = start < 0 ? (s->stride[2] - 1 - start) / s->stride[2] + x : s->output[2];
            const int count = (int)smaller(PIXELS, smaller(until, s->output[2]) - x);
            sum_at_the_border(row, x, count);
            x += count;
            continue;
        }
        const int count = (int)smaller(PIXELS / row->lines, smaller(s->output[2] - x, room / s->stride[2] + 1));
        const uint8_t *rows[MOST_ROWS];
        for (int64_t r = 0; r < row->pointers; r++) rows[r] = row->rows[r] + start * s->channels + row->block * places;
        sum_pixels(row, rows, s->channels, x, count);
        x += count;
    }
}

/* What all rows have in common where no sum is wanted. */
static struct conv_u8_line line_of(const struct conv_u8_run *run, struct conv_requantize *how) {
    const struct pumice_conv_u8 *conv = run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    return (struct conv_u8_line){
        .columns = conv->frame[2], .column = s->channels, .before = conv->in_place ? s->before[2] : 0,
        .stride = s->stride[2], .count = s->output[2], .out_stride = s->channels, .below = s->output[2] * s->channels,
        .border = (uint8_t)conv->zero_point, .how = how,
    };
}

/* One output row, or two, all channels. `rows` are those of the windows. */
static void levels_of_rows(const struct conv_u8_run *run, const uint8_t *const *rows, int64_t r,
                           struct conv_u8_line *line, struct conv_requantize *how) {
    const struct pumice_conv_u8 *conv = run->conv;
    const int64_t places = conv->depthwise_form.channels, channels = conv->shape.channels, at = r * line->below;
    line->weights = conv->weights;
    for (int64_t first = 0; first < channels; first += places, line->weights += conv_u8_depthwise_bytes(conv)) {
        for (int i = 0; i < line->lines + 2; i++) line->rows[i] = rows[i] + first;
        line->channels = (int)smaller(places, channels - first);
        line->bias = conv->bias + first;
        how->multiplier = run->placed + first;
        conv->level->table.conv_u8_depthwise_line(run->y + at + first, line);
    }
    if (run->epilogue->table)
        conv_u8_look_up(run->y + at, channels, line->lines * line->count, channels, run->epilogue->table);
}

/* Some output rows, all channels. */
static void rows_task(void *context, int64_t chunk, int worker) {
    (void)worker;
    struct conv_u8_run *run = context;
    const struct pumice_conv_u8 *conv = run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t rows = s->output[0] * s->output[1], places = conv->depthwise_form.channels;
    const int64_t pointers = 4 * groups_of_rows(conv), staged = columns_of(s, PIXELS) * places * 4;
    const int64_t last = smaller((chunk + 1) * run->rows, run->batch * rows);
    uint8_t *stage = pumice_scratch(SCRATCH_CONV_STAGE, (size_t)(staged + pointers * columns_of(s, PIXELS) * places));
    const uint8_t *pointer[MOST_ROWS];
    if (!stage) {
        run->failed = 1;
        return;
    }
    struct row row = {.run = run, .rows = pointer, .pointers = pointers, .stage = stage, .patch = stage + staged};
    const struct pumice_conv_u8_epilogue *e = run->epilogue;
    const int by_lines = has_lines(conv) && e->result == PUMICE_CONV_LEVELS && !e->residual && !run->overflows;
    struct conv_requantize how = conv_u8_requantization(run, run->placed, 0);
    struct conv_u8_line line = line_of(run, &how);
    row.lines = 1;
    for (int64_t r = chunk * run->rows; r < last; r += row.lines) {
        const uint8_t *image = run->images + r / rows * volume(conv->frame) * s->channels;
        const int64_t d = r % rows / s->output[1], h = r % s->output[1];
        point_at_rows(run, image, d, h, pointer);
        if (by_lines) {
            row.lines = conv->depthwise_form.lines == 2 && s->stride[1] == 1 && s->stride[2] == 1 &&
                        s->dilation[1] == 1 && h + 1 < s->output[1] && r + 1 < last ? 2 : 1;
            if (row.lines == 2)
                pointer[3] = row_at(run, image, window_start(conv, 0, d), window_start(conv, 1, h) + 3);
            line.lines = row.lines;
            levels_of_rows(run, pointer, r, &line, &how);
            continue;
        }
        const int64_t below = smaller(s->output[1] - r % s->output[1], last - r);
        row.lines = conv->in_place && !inside(s) ? 1 : (int)larger(1, smaller(below, PIXELS / s->output[2]));
        row.at = r * s->output[2];
        for (row.block = 0; row.block < conv->panels; row.block++) {
            row.multiplier = run->multiplier + row.block * places;
            row.placed = run->placed + row.block * places;
            block_of_row(&row);
        }
    }
}

/* Multipliers in the order of the places, and a row of zero points. */
static int prepare(struct conv_u8_run *run) {
    const struct pumice_conv_u8 *conv = run->conv;
    const int64_t places = conv->depthwise_form.channels, multipliers = conv->panels * places;
    const int64_t bytes = conv->frame[2] * conv->shape.channels;
    float *placed = pumice_scratch(SCRATCH_CONV_BORDER, (size_t)multipliers * sizeof *placed + (size_t)bytes);
    if (!placed) return 0;
    for (int64_t first = 0; first < multipliers; first += places)
        for (int64_t place = 0; place < places; place += 4)
            memcpy(placed + first + place, run->multiplier + first + channel_at(&conv->depthwise_form, place),
                   4 * sizeof *placed);
    memset(placed + multipliers, conv->zero_point, (size_t)bytes);
    run->placed = placed;
    run->border = (const uint8_t *)(placed + multipliers);
    return 1;
}

void conv_u8_run_depthwise(struct conv_u8_run *run, int threads) {
    const struct pumice_conv_shape *s = &run->conv->shape;
    const double row = (double)(s->output[2] * s->channels * volume(s->kernel));
    const int64_t rows = run->batch * s->output[0] * s->output[1];
    const int64_t lines = larger(1, run->conv->depthwise_form.lines);
    run->rows = smaller(rows / (4 * pumice_team(threads)), (int64_t)(CHUNK_TAPS / row) + 1);
    run->rows = round_up(larger(run->rows, 1), lines);
    if (!prepare(run)) {
        run->failed = 1;
        return;
    }
    pumice_parallel(threads, (rows + run->rows - 1) / run->rows, rows_task, run);
}
