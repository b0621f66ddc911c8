/* Depthwise convolution with channels last: every channel by itself, many channels at a time.
 *
 * A chunk is some rows of outputs of an image. The padded rows that it reads are copied together, so that windows at the
 * border are like others. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "nhwc/nhwc.h"
#include "pool/pool.h"

static const double CHUNK_MACS = 5e5;
static const int64_t COPY_BYTES = 256 << 10;

static void copy_row(const struct nhwc_run *run, float *to, const float *row, int64_t width) {
    const struct pumice_conv_shape *s = &run->conv->shape;
    const int64_t pixel = run->x_steps[3], channel = run->x_steps[1];
    for (int64_t i = 0; i < width; i++, to += s->channels) {
        const int64_t at = i - s->before[ACROSS];
        if (!row || at < 0 || at >= s->size[ACROSS]) memset(to, 0, (size_t)s->channels * sizeof *to);
        else if (channel == 1) memcpy(to, row + at * pixel, (size_t)s->channels * sizeof *to);
        else
            for (int64_t c = 0; c < s->channels; c++) to[c] = row[at * pixel + c * channel];
    }
}

static void finish_row(const struct nhwc_run *run, float *y, int64_t at) {
    const struct pumice_conv_shape *s = &run->conv->shape;
    const struct pumice_nhwc_epilogue *e = run->epilogue;
    const struct kernel_table *table = &run->conv->level->table;
    const int64_t width = s->output[ACROSS], channels = s->filters;
    const float *residual = run->residual ? run->residual + at * channels : NULL;
    table->nhwc_finish(y, channels, y, channels, width, channels, e->bias, e->late ? NULL : residual, channels, e->low,
                       e->high);
    if (e->function >= 0) table->rows_map(e->function, y, y, width * channels, e->parameters);
    if (e->late && residual)
        table->nhwc_finish(y, channels, y, channels, width, channels, NULL, residual, channels, -INFINITY, INFINITY);
}

static void rows_chunk(void *context, int64_t number, int worker) {
    struct nhwc_run *run = context;
    const struct pumice_conv_shape *s = &run->conv->shape;
    const int64_t width = reach(s, ACROSS), channels = s->channels, taps = volume(s->kernel);
    const int64_t image = number / run->blocks, first = number % run->blocks * run->block;
    const int64_t last = smaller(s->output[DOWN], first + run->block);
    const int64_t height = (last - first - 1) * s->stride[DOWN] + (s->kernel[DOWN] - 1) * s->dilation[DOWN] + 1;
    char *memory = pumice_scratch(SCRATCH_CONV,
                                  (size_t)(height * width * channels) * sizeof(float) + (size_t)taps * sizeof(int64_t));
    if (!memory) {
        run->failed = 1;
        return;
    }
    int64_t *at = (int64_t *)(void *)memory;
    float *rows = (float *)(void *)(at + taps);
    for (int64_t t = 0; t < taps; t++)
        at[t] = (t / s->kernel[ACROSS] * s->dilation[DOWN] * width + t % s->kernel[ACROSS] * s->dilation[ACROSS]) *
                channels;
    for (int64_t r = 0; r < height; r++) {
        const int64_t row = first * s->stride[DOWN] - s->before[DOWN] + r;
        const int inside_image = row >= 0 && row < s->size[DOWN];
        copy_row(run, rows + r * width * channels,
                 inside_image ? run->x + image * run->x_steps[0] + row * run->x_steps[2] : NULL, width);
    }
    for (int64_t o = first; o < last; o++) {
        const int64_t pixel = (image * s->output[DOWN] + o) * s->output[ACROSS];
        float *y = run->y + pixel * channels;
        run->conv->level->table.nhwc_depthwise(
            y, channels, rows + (o - first) * s->stride[DOWN] * width * channels, s->stride[ACROSS] * channels, at,
            taps, (const float *)(const void *)run->conv->weights, channels, s->output[ACROSS], channels);
        finish_row(run, y, pixel);
    }
}

int nhwc_run_depthwise(struct nhwc_run *run, int threads) {
    const struct pumice_conv_shape *s = &run->conv->shape;
    const double row = (double)(s->output[ACROSS] * s->channels) * (double)volume(s->kernel);
    if ((double)(run->batch * s->output[DOWN]) * row < 2 * CHUNK_MACS) threads = 1;
    const int64_t least = (int64_t)(CHUNK_MACS / row) + 1, team = pumice_team(threads);
    const int64_t most =
        larger(1, COPY_BYTES / (reach(s, ACROSS) * s->channels * (int64_t)sizeof(float) * s->stride[DOWN]));
    run->block = smaller(s->output[DOWN],
                         larger(smaller(most, run->batch * s->output[DOWN] / (2 * team)), smaller(least, most)));
    run->blocks = (s->output[DOWN] + run->block - 1) / run->block;
    pumice_note_run(run->conv->level, SLOT_nhwc_depthwise);
    pumice_parallel(threads, run->batch * run->blocks, rows_chunk, run);
    return run->failed ? PUMICE_NO_MEMORY : PUMICE_OK;
}
