/* Depthwise convolution with channels last: every channel by itself, many channels at a time.
 *
 * A chunk is some rows of outputs of an image, which is read where it lies; if its channels are not side by side, the
 * rows that the chunk reads are copied first. */
#include <math.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "nhwc/nhwc.h"
#include "pool/pool.h"

static const double CHUNK_MACS = 5e5;

/* An image with its channels side by side; of a copy only some rows are there. */
struct image {
    const float *x;
    int64_t row, pixel; /* elements from one to the next */
};

/* Rows [first, last) of an image in another order; its row 0 would lie at x. */
static struct image gathered(const struct nhwc_run *run, const float *x, int64_t first, int64_t last, float *to) {
    const struct pumice_conv_shape *s = &run->conv->shape;
    const struct image image = {to - first * s->size[ACROSS] * s->channels, s->size[ACROSS] * s->channels, s->channels};
    for (int64_t h = first; h < last; h++)
        for (int64_t w = 0; w < s->size[ACROSS]; w++)
            for (int64_t c = 0; c < s->channels; c++)
                *to++ = x[h * run->x_steps[2] + w * run->x_steps[3] + c * run->x_steps[1]];
    return image;
}

/* What depthwise_some leaves to do for a row whose first pixel is `at`. */
static void finish_row(const struct nhwc_run *run, float *y, int64_t at) {
    const struct pumice_conv_shape *s = &run->conv->shape;
    const struct pumice_nhwc_epilogue *e = run->epilogue;
    const struct kernel_table *table = &run->conv->level->table;
    const int64_t width = s->output[ACROSS], channels = s->filters, step = nhwc_y_step(run);
    const float *residual = run->residual ? run->residual + at * channels : NULL;
    if (residual && !e->late)
        table->nhwc_finish(y, step, y, step, width, channels, NULL, residual, channels, e->low, e->high);
    for (int64_t i = 0; e->function >= 0 && i < (step == channels ? 1 : width); i++)
        table->rows_map(e->function, y + i * step, y + i * step, step == channels ? width * channels : channels,
                        e->parameters);
    if (residual && e->late)
        table->nhwc_finish(y, step, y, step, width, channels, NULL, residual, channels, -INFINITY, INFINITY);
}

static void run_row(const struct nhwc_run *run, const struct image *image, int64_t row, float *y, int64_t *memory) {
    const struct pumice_conv_shape *s = &run->conv->shape;
    const struct pumice_nhwc_epilogue *e = run->epilogue;
    const int summed = run->residual && !e->late; /* bounds come after that */
    struct nhwc_windows windows = {
        .x = image->x, .weights = (const float *)(const void *)run->conv->weights, .bias = e->bias,
        .x_step = s->stride[ACROSS] * image->pixel, .y_step = nhwc_y_step(run), .channels = s->channels,
        .low = summed ? -INFINITY : e->low, .high = summed ? INFINITY : e->high};
    struct nhwc_span span = nhwc_first_span(memory);
    while (nhwc_next_span(s, row, image->row, image->pixel, &span)) {
        windows.at = span.at, windows.tap = span.tap, windows.taps = span.taps;
        windows.outputs = span.until - span.from;
        run->conv->level->table.nhwc_depthwise(y + span.from * windows.y_step, &windows);
    }
}

static void rows_chunk(void *context, int64_t number, int worker) {
    struct nhwc_run *run = context;
    const struct pumice_conv_shape *s = &run->conv->shape;
    const int64_t index = number / run->blocks, first = number % run->blocks * run->block;
    const int64_t last = smaller(s->output[DOWN], first + run->block);
    const int64_t top = larger(0, first * s->stride[DOWN] - s->before[DOWN]);
    const int64_t bottom = smaller(s->size[DOWN], (last - 1) * s->stride[DOWN] - s->before[DOWN] +
                                                      (s->kernel[DOWN] - 1) * s->dilation[DOWN] + 1);
    const int lies = run->x_steps[1] == 1;
    const int64_t copied = lies ? 0 : larger(0, bottom - top) * s->size[ACROSS] * s->channels;
    int64_t *memory = pumice_scratch(SCRATCH_CONV, nhwc_span_bytes(s) + (size_t)copied * sizeof(float));
    if (!memory) {
        run->failed = 1;
        return;
    }
    float *rows = (float *)(void *)((char *)memory + nhwc_span_bytes(s));
    const float *x = run->x + index * run->x_steps[0];
    const struct image image =
        lies ? (struct image){x, run->x_steps[2], run->x_steps[3]} : gathered(run, x, top, bottom, rows);
    for (int64_t row = first; row < last; row++) {
        const int64_t pixel = (index * s->output[DOWN] + row) * s->output[ACROSS];
        float *y = run->y + pixel * nhwc_y_step(run);
        run_row(run, &image, row, y, memory);
        finish_row(run, y, pixel);
    }
}

int nhwc_run_depthwise(struct nhwc_run *run, int threads) {
    const struct pumice_conv_shape *s = &run->conv->shape;
    const double row = (double)(s->output[ACROSS] * s->channels) * (double)volume(s->kernel);
    if ((double)(run->batch * s->output[DOWN]) * row < 2 * CHUNK_MACS) threads = 1;
    const int64_t least = (int64_t)(CHUNK_MACS / row) + 1, team = pumice_team(threads);
    run->block = smaller(s->output[DOWN], larger(run->batch * s->output[DOWN] / (2 * team), least));
    run->blocks = (s->output[DOWN] + run->block - 1) / run->block;
    pumice_note_run(run->conv->level, SLOT_nhwc_depthwise);
    pumice_parallel(threads, run->batch * run->blocks, rows_chunk, run);
    return run->failed ? PUMICE_NO_MEMORY : PUMICE_OK;
}
