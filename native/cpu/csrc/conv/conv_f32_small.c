/* Float convolution of small images: with few pixels a row, registers hold filters instead, and pixels are broadcast.
 *
 * A kernel takes runs of neighbouring pixels at constant places. Where the output's rows are a multiple of a run, runs
 * are found in the frame; otherwise the windows of a group are copied out as columns (depth x pixels, without the
 * pixels between rows), which costs little against the many filters that read them. */
#include <string.h>

#include "base/api.h"
#include "base/memory.h"
#include "base/numbers.h"
#include "conv/conv_f32.h"
#include "conv/shape.h"
#include "pool/pool.h"

enum {
    FEW_PIXELS = 64, SOME_PIXELS = 256, MOST_PIXELS = 4096, LEAST_FILTERS = 16, DEEP = 160, VERY_DEEP = 400,
    MANY_TAPS = 9
};

/* Whether every run lies in one row of the frame, or the frame has nothing between its rows; and runs fill the image,
 * so that the last one does not read past it. */
static int runs_fit(const struct pumice_conv_f32 *conv) {
    const int64_t *output = conv->shape.output, *extent = conv->planes.extent;
    if (volume(output) % conv->form.run) return 0;
    return output[2] % conv->form.run == 0 || (output[2] == extent[2] && output[1] == extent[1]);
}

/* Turning the result costs as much as a depth of some dozens, which must pay. On larger images it does where
 * neighbouring taps share cache lines: one pixel after another is read from every channel. */
int conv_f32_is_small(const struct pumice_conv_f32 *conv) {
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t pixels = volume(s->output), depth = s->channels / s->groups * volume(s->kernel);
    if (s->filters / s->groups < LEAST_FILTERS || pixels > MOST_PIXELS) return 0;
    if (pixels <= FEW_PIXELS) return 1;
    if (pixels <= SOME_PIXELS) return depth >= DEEP;
    return depth >= VERY_DEEP && volume(s->kernel) >= MANY_TAPS && volume(s->stride) == 1 &&
           s->output[2] % conv->form.run == 0;
}

/* The inputs of a group as they meet the weights: one row of all pixels, for some of the depth. */
static void columns_task(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct conv_f32_run *run = context;
    const struct pumice_conv_f32 *conv = run->conv;
    const int64_t *extent = conv->planes.extent, *output = conv->shape.output, pixels = volume(output);
    const int64_t taps = volume(conv->shape.kernel);
    for (int64_t k = chunk * taps; k < (chunk + 1) * taps; k++) {
        const float *from = run->images + run->job->offset[k];
        float *to = run->columns + k * pixels;
        for (int64_t d = 0; d < output[0]; d++)
            for (int64_t h = 0; h < output[1]; h++, to += output[2])
                memcpy(to, from + (d * extent[1] + h) * extent[2], (size_t)output[2] * sizeof *to);
    }
}

/* Pixels x filters to filters x pixels. */
static void turn(float *y, int64_t step, const float *tile, int64_t panel, int64_t pixels, int64_t filters) {
    for (int64_t f = 0; f < filters; f++)
        for (int64_t p = 0; p < pixels; p++) y[f * step + p] = tile[p * panel + f];
}

/* All pixels of one panel of filters. */
static void panel_task(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct conv_f32_run *run = context;
    const struct pumice_conv_f32 *conv = run->conv;
    const int64_t pixels = volume(conv->shape.output), panel = conv->rows, length = conv->form.run;
    const int64_t group = run->panel_step,
                  filters = conv->shape.filters / conv->shape.groups; /* panel_step: the group */
    const int64_t packed = group * conv->panels + chunk, used = smaller(panel, filters - chunk * panel);
    const float *weights = run->job->weights + packed * panel * run->job->depth;
    float *y = run->y + (group * filters + chunk * panel) * pixels;
    _Alignas(64) float tile[2 * CONV_MOST_RUN * CONV_MOST_PANEL];
    for (int64_t r = 0; r < run->runs; r += 2) {
        const int runs = r + 1 < run->runs ? 2 : 1;
        const int64_t first = r * length, count = smaller(pixels - first, runs * length);
        conv->level->table.conv_f32_runs_tile(tile, run->columns ? run->columns : run->images, run->starts + r, runs,
                                              run->offset, run->job->depth, weights, run->bias + packed * panel);
        turn(y + first, pixels, tile, panel, count, used);
    }
    if (has_finish(run->epilogue)) conv_f32_finish(run, y - run->y, used * pixels);
}

static void place_runs(const struct conv_f32_run *run, int64_t *starts) {
    const struct pumice_conv_f32 *conv = run->conv;
    const int64_t *extent = conv->planes.extent, *output = conv->shape.output;
    for (int64_t r = 0; r < run->runs; r++) {
        const int64_t p = r * conv->form.run, w = p % output[2], h = p / output[2] % output[1],
                      d = p / (output[1] * output[2]);
        starts[r] = run->columns ? p : (d * extent[1] + h) * extent[2] + w;
    }
}

/* One group of one image; `run` is the image's own. */
static void run_group(struct conv_f32_run *run, int64_t group, int threads) {
    const struct pumice_conv_f32 *conv = run->conv;
    run->panel_step = group;
    if (run->columns) pumice_parallel(threads, conv->shape.channels / conv->shape.groups, columns_task, run);
    pumice_parallel(threads, conv->panels, panel_task, run);
}

int conv_f32_run_small(struct conv_f32_run *run, int threads) {
    const struct pumice_conv_f32 *conv = run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t pixels = volume(s->output), depth = conv->jobs[0].depth, channels = s->channels / s->groups;
    const int64_t elements = round_up(depth * pixels + 2 * CONV_MOST_RUN, 2);
    int64_t starts[MOST_PIXELS + 1], *offset = NULL;
    float *columns = NULL;
    if (!runs_fit(conv)) {
        columns =
            pumice_scratch(SCRATCH_CONV_STAGE, (size_t)elements * sizeof *columns + (size_t)depth * sizeof *offset);
        if (!columns) return PUMICE_NO_MEMORY;
        offset = (int64_t *)(void *)(columns + elements);
        for (int64_t k = 0; k < depth; k++) offset[k] = k * pixels;
    }
    for (int64_t image = 0; image < run->batch; image++) {
        struct pumice_conv_f32_epilogue epilogue = *run->epilogue;
        struct conv_f32_run own = *run;
        if (epilogue.residual) epilogue.residual += image * s->filters * pixels;
        own.epilogue = &epilogue;
        own.job = &conv->jobs[0];
        own.columns = columns;
        own.offset = columns ? offset : own.job->offset;
        own.runs = (pixels + conv->form.run - 1) / conv->form.run;
        own.starts = starts;
        own.y = run->y + image * s->filters * pixels;
        place_runs(&own, starts);
        for (int64_t group = 0; group < s->groups; group++) {
            own.images = run->images + (image * s->channels + group * channels) * channel_elements(&conv->planes);
            run_group(&own, group, threads);
        }
    }
    return PUMICE_OK;
}
