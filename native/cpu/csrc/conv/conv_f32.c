/* Float convolution, channels first: y[m, o] = b[m] + sum over channels c, taps t of w[m, c, t] x[c, o + t].
 *
 * In the frame of planes.h every (channel, tap) is an offset from the output's flat index, so that a tile of filters x
 * pixels is a matrix product whose second factor is read where it lies: no columns are made. A pointwise convolution
 * reads the image itself.
 *
 * The adjoint (ConvTranspose, or the gradient with respect to the input) is a convolution for each phase r of the
 * output: output a s + r - p receives, from the taps t with t d = b s + r, inputs a - b. These are `jobs` over one
 * frame, each with its own taps, whose results interleave.
 *
 * Where a group has one channel and few filters (depthwise), pixels are summed tap by tap instead. */
#include <stdlib.h>
#include <string.h>

#include "base/api.h"
#include "base/memory.h"
#include "base/numbers.h"
#include "conv/conv_f32.h"
#include "conv/shape.h"
#include "pool/pool.h"

static const double CHUNK_MACS = 1.5e6; /* worth handing to another thread */
static const int64_t STRIP = 2048;      /* pixels of a depthwise result kept in first-level cache */
static const int64_t CHUNK_TAPS = 1 << 18;
enum { FEW_FILTERS = 4, MANY_PANELS = 4, MANY_CHANNELS = 128, DEPTH = 160 };

/* --- packing ------------------------------------------------------------------------------------------------------ */

static int64_t group_channels(const struct pumice_conv_f32 *conv) { return conv->shape.channels / conv->shape.groups; }
static int64_t group_filters(const struct pumice_conv_f32 *conv) { return conv->shape.filters / conv->shape.groups; }

struct taps {
    int64_t count;
    int64_t *tap, *offset; /* number of each, and its place in the frame of a channel */
};

static int pack_job(struct pumice_conv_f32 *conv, struct job *job, int transposed, const float *weights,
                    const struct taps *taps) {
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t channels = group_channels(conv), filters = group_filters(conv), rows = conv->rows;
    const int64_t all = volume(s->kernel), packed = conv->tap_by_tap ? s->filters : s->groups * conv->panels * rows;
    job->depth = channels * taps->count;
    job->offset = malloc((size_t)(job->depth + CONV_CORRELATED) * sizeof *job->offset);
    job->weights = pumice_alloc((size_t)(packed * job->depth) * sizeof *job->weights);
    if (!job->offset || !job->weights) return 0;
    memset(job->weights, 0, (size_t)(packed * job->depth) * sizeof *job->weights);
    for (int64_t c = 0; c < channels; c++)
        for (int64_t t = 0; t < taps->count; t++)
            job->offset[c * taps->count + t] = c * channel_elements(&conv->planes) + taps->offset[t];
    for (int64_t f = 0; f < s->filters; f++) {
        const int64_t panel = f / filters * conv->panels + f % filters / rows;
        /* Of the filter's weight for channel 0, tap 0, and from one channel to the next. */
        const float *from =
            weights + (transposed ? (f / filters * channels * filters + f % filters) : f * channels) * all;
        const int64_t next = transposed ? filters * all : all;
        float *to = job->weights + (conv->tap_by_tap ? f * job->depth : panel * rows * job->depth + f % filters % rows);
        const int64_t step = conv->tap_by_tap ? 1 : rows;
        for (int64_t c = 0; c < channels; c++)
            for (int64_t t = 0; t < taps->count; t++, to += step) *to = from[c * next + taps->tap[t]];
    }
    return 1;
}

static int lay_out_forward(struct pumice_conv_f32 *conv, const float *weights, struct taps *taps) {
    const struct pumice_conv_shape *s = &conv->shape;
    struct job *job = conv->jobs = calloc(1, sizeof *conv->jobs);
    if (!job) return 0;
    conv->job_count = 1;
    conv->planes = conv_planes(s);
    conv_tap_offsets(s, &conv->planes, taps->offset);
    taps->count = volume(s->kernel);
    for (int64_t t = 0; t < taps->count; t++) taps->tap[t] = t;
    memcpy(job->output, s->output, sizeof job->output);
    job->step[0] = s->output[1] * s->output[2], job->step[1] = s->output[2], job->step[2] = 1;
    job->compact = 1;
    return pack_job(conv, job, 0, weights, taps);
}

/* One axis of the adjoint, outputs of phase r: their first and number, and the first input that any tap of any phase
 * reads. */
static int64_t first_of_phase(const struct pumice_conv_shape *s, int axis, int64_t r) {
    const int64_t behind = s->before[axis] - r; /* may be negative */
    return behind > 0 ? (behind + s->stride[axis] - 1) / s->stride[axis] : -(-behind / s->stride[axis]);
}

static int64_t count_of_phase(const struct pumice_conv_shape *s, int axis, int64_t r) {
    const int64_t first = first_of_phase(s, axis, r) * s->stride[axis] + r - s->before[axis]; /* first output */
    return first >= s->output[axis] ? 0 : (s->output[axis] - 1 - first) / s->stride[axis] + 1;
}

static void lay_out_adjoint_axis(struct pumice_conv_f32 *conv, int axis) {
    const struct pumice_conv_shape *s = &conv->shape;
    int64_t first = 0, last = 0;
    for (int64_t r = 0; r < s->stride[axis]; r++) {
        const int64_t from = first_of_phase(s, axis, r), until = from + count_of_phase(s, axis, r);
        first = smaller(first, from - (s->kernel[axis] - 1) * s->dilation[axis] / s->stride[axis]);
        last = larger(last, until);
    }
    conv->planes.size[axis] = s->size[axis];
    conv->planes.phases[axis] = conv->planes.stride[axis] = 1;
    conv->planes.origin[axis] = first;
    conv->planes.extent[axis] = larger(1, last - first);
}

/* The taps that reach phase r: those with tap * dilation of the same remainder on every axis. */
static void taps_of_phase(const struct pumice_conv_f32 *conv, const int64_t r[3], struct taps *taps) {
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t *extent = conv->planes.extent;
    taps->count = 0;
    for (int64_t t = 0; t < volume(s->kernel); t++) {
        const int64_t tap[3] = {t / (s->kernel[1] * s->kernel[2]), t / s->kernel[2] % s->kernel[1], t % s->kernel[2]};
        int64_t shift[3], reached = 1;
        for (int a = 0; a < 3; a++) {
            const int64_t at = tap[a] * s->dilation[a];
            reached = reached && at % s->stride[a] == r[a];
            shift[a] = first_of_phase(s, a, r[a]) - at / s->stride[a] - conv->planes.origin[a];
        }
        if (!reached) continue;
        taps->tap[taps->count] = t;
        taps->offset[taps->count++] = (shift[0] * extent[1] + shift[1]) * extent[2] + shift[2];
    }
}

static int lay_out_adjoint(struct pumice_conv_f32 *conv, const float *weights, struct taps *taps) {
    const struct pumice_conv_shape *s = &conv->shape;
    int64_t unit[3] = {s->output[1] * s->output[2], s->output[2], 1};
    for (int a = 0; a < 3; a++) lay_out_adjoint_axis(conv, a);
    conv->planes.in_place = 1;
    for (int a = 0; a < 3; a++)
        conv->planes.in_place =
            conv->planes.in_place && conv->planes.origin[a] == 0 && conv->planes.extent[a] == s->size[a];
    conv->jobs = calloc((size_t)volume(s->stride), sizeof *conv->jobs);
    if (!conv->jobs) return 0;
    for (int64_t number = 0; number < volume(s->stride); number++) {
        const int64_t r[3] = {number / (s->stride[1] * s->stride[2]), number / s->stride[2] % s->stride[1],
                              number % s->stride[2]};
        struct job *job = &conv->jobs[conv->job_count];
        job->compact = 1;
        for (int a = 0; a < 3; a++) {
            job->output[a] = count_of_phase(s, a, r[a]);
            job->step[a] = unit[a] * s->stride[a];
            job->start += unit[a] * (first_of_phase(s, a, r[a]) * s->stride[a] + r[a] - s->before[a]);
            job->compact = job->compact && s->stride[a] == 1;
        }
        if (!volume(job->output)) {
            memset(job, 0, sizeof *job);
            continue;
        }
        taps_of_phase(conv, r, taps);
        conv->job_count++;
        if (!pack_job(conv, job, 1, weights, taps)) return 0;
    }
    return 1;
}

struct pumice_conv_f32 *pumice_conv_f32_create(const struct pumice_conv_shape *shape, int transposed,
                                               const float *weights) {
    if (!makes_sense(shape)) return NULL;
    struct pumice_conv_f32 *conv = calloc(1, sizeof *conv);
    const size_t all = (size_t)volume(shape->kernel);
    struct taps taps = {.tap = malloc(all * sizeof *taps.tap), .offset = malloc(all * sizeof *taps.offset)};
    int made = 0;
    if (conv && taps.tap && taps.offset) {
        conv->shape = *shape;
        conv->level = pumice_level();
        conv->form = RUN(conv->level, conv_f32_form)();
        conv->tap_by_tap = group_channels(conv) == 1 && group_filters(conv) < FEW_FILTERS;
        conv->small = !conv->tap_by_tap && conv_f32_is_small(conv) && (!transposed || volume(shape->stride) == 1);
        conv->rows = conv->small ? conv->form.panel : conv->form.filters;
        conv->panels = (group_filters(conv) + conv->rows - 1) / conv->rows;
        made = transposed ? lay_out_adjoint(conv, weights, &taps) : lay_out_forward(conv, weights, &taps);
    }
    free(taps.tap);
    free(taps.offset);
    if (made) return conv;
    pumice_conv_f32_free(conv);
    return NULL;
}

void pumice_conv_f32_free(struct pumice_conv_f32 *conv) {
    if (!conv) return;
    for (int64_t j = 0; j < conv->job_count; j++) {
        free(conv->jobs[j].offset);
        pumice_free(conv->jobs[j].weights);
    }
    free(conv->jobs);
    free(conv);
}

/* --- running ------------------------------------------------------------------------------------------------------ */

static int64_t result_elements(const struct pumice_conv_f32 *conv) { return volume(conv->shape.output); }

static int64_t flat_pixels(const struct pumice_conv_f32 *conv, const struct job *job) {
    const int64_t *extent = conv->planes.extent, *output = job->output;
    return ((output[0] - 1) * extent[1] + output[1] - 1) * extent[2] + output[2];
}

static void frame_task(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct conv_f32_run *run = context;
    const struct planes *planes = &run->conv->planes;
    run->conv->level->table.conv_f32_frame(planes, run->frames + chunk * channel_elements(planes),
                                           run->x + chunk * volume(planes->size));
}

/* Number of outputs before flat pixel p, which is the compact place of the first one from there on. */
static int64_t outputs_before(const struct conv_f32_run *run, int64_t p) {
    const int64_t *extent = run->conv->planes.extent, *output = run->job->output;
    const int64_t w = p % extent[2], h = p / extent[2] % extent[1], d = p / (extent[1] * extent[2]);
    if (h >= output[1]) return (d + 1) * output[1] * output[2];
    return (d * output[1] + h) * output[2] + smaller(w, output[2]);
}

/* The outputs among `count` flat pixels from p on. */
static void find_runs(const struct conv_f32_run *run, int64_t p, int count, struct conv_f32_runs *runs) {
    const int64_t *extent = run->conv->planes.extent, *output = run->job->output;
    int64_t w = p % extent[2], h = p / extent[2] % extent[1];
    runs->count = 0, runs->mask = 0;
    for (int i = 0; i < count;) {
        const int length = (int)smaller(count - i, output[2] - w);
        if (h < output[1] && length > 0) {
            runs->first[runs->count] = (uint8_t)i, runs->length[runs->count++] = (uint8_t)length;
            runs->mask |= ((UINT64_C(1) << length) - 1) << i;
        }
        i += (int)(extent[2] - w);
        w = 0;
        if (++h == extent[1]) h = 0;
    }
}

/* Outputs of one filter to places that are not side by side; `first` counts the outputs before. */
static void scatter(const struct job *job, float *y, const float *values, const struct conv_f32_runs *runs,
                    int64_t first) {
    for (int r = 0; r < runs->count; r++) {
        const int64_t w = first % job->output[2], h = first / job->output[2] % job->output[1];
        const int64_t d = first / (job->output[1] * job->output[2]);
        float *to = y + job->start + d * job->step[0] + h * job->step[1] + w * job->step[2];
        for (int i = 0; i < runs->length[r]; i++) to[i * job->step[2]] = values[runs->first[r] + i];
        first += runs->length[r];
    }
}

/* A chunk: some panels of one group by some tiles of one image. */
struct part {
    const struct conv_f32_run *run;
    int64_t image, group, first_panel, last_panel;
    const float *x; /* of the group, in the frame */
};

static void store_tile(const struct part *part, int64_t panel, const float *tile, int64_t first,
                       const struct conv_f32_runs *runs) {
    const struct conv_f32_run *run = part->run;
    const struct pumice_conv_f32 *conv = run->conv;
    const int64_t filters = group_filters(conv), filter = part->group * filters + panel * conv->rows;
    const int64_t at = (part->image * conv->shape.filters + filter) * result_elements(conv);
    const int used = (int)smaller(conv->rows, filters - panel * conv->rows);
    if (!run->job->compact) {
        for (int f = 0; f < used; f++)
            scatter(run->job, run->y + at + f * result_elements(conv), tile + f * conv->form.pixels, runs, first);
        return;
    }
    conv->level->table.conv_f32_store(run->y + at + first, result_elements(conv), tile, used, runs);
    for (int f = 0; has_finish(run->epilogue) && f < used; f++)
        conv_f32_finish(run, at + f * result_elements(conv) + first, __builtin_popcountll(runs->mask));
}

/* One tile of pixels by all panels, windows read in the frame. */
static void multiply_in_place(const struct part *part, int64_t p, int count, int64_t first,
                              const struct conv_f32_runs *runs) {
    const struct conv_f32_run *run = part->run;
    const struct job *job = run->job;
    const int64_t rows = run->conv->rows;
    _Alignas(64) float tile[8 * CONV_MOST_WIDTH];
    for (int64_t panel = part->first_panel; panel < part->last_panel; panel++) {
        const int64_t packed = (part->group * run->conv->panels + panel) * rows;
        run->conv->level->table.conv_f32_tile(tile, part->x + p, job->offset, job->depth,
                                              job->weights + packed * job->depth, run->bias + packed, count);
        store_tile(part, panel, tile, first, runs);
    }
}

/* The same where many panels read the windows: these are copied out as columns, DEPTH inputs at a time, which stay in
 * first-level cache for all panels; sums wait in tiles of their own. */
static void multiply_columns(const struct part *part, float *memory, int64_t p, int count, int64_t first,
                             const struct conv_f32_runs *runs) {
    const struct conv_f32_run *run = part->run;
    const struct pumice_conv_f32 *conv = run->conv;
    const struct job *job = run->job;
    const int64_t rows = conv->rows, width = conv->form.pixels;
    float *columns = memory, *tiles = memory + DEPTH * width;
    int64_t offset[DEPTH];
    for (int k = 0; k < DEPTH; k++) offset[k] = k * width;
    for (int64_t k = 0; k < job->depth; k += DEPTH) {
        const int64_t depth = smaller(DEPTH, job->depth - k);
        conv->level->table.conv_f32_columns(columns, part->x + p, job->offset + k, depth, count);
        for (int64_t panel = part->first_panel; panel < part->last_panel; panel++) {
            const int64_t packed = (part->group * conv->panels + panel) * rows;
            conv->level->table.conv_f32_tile(tiles + (panel - part->first_panel) * rows * width, columns, offset, depth,
                                             job->weights + packed * job->depth + k * rows,
                                             k ? NULL : run->bias + packed, count);
        }
    }
    for (int64_t panel = part->first_panel; panel < part->last_panel; panel++)
        store_tile(part, panel, tiles + (panel - part->first_panel) * rows * width, first, runs);
}

static void tile_task(void *context, int64_t chunk, int worker) {
    (void)worker;
    struct conv_f32_run *run = context;
    const struct pumice_conv_f32 *conv = run->conv;
    const int64_t panel_group = chunk % run->panel_groups, tile_group = chunk / run->panel_groups % run->tile_groups;
    struct part part = {
        .run = run,
        .group = chunk / run->panel_groups / run->tile_groups % conv->shape.groups,
        .image = chunk / run->panel_groups / run->tile_groups / conv->shape.groups,
        .first_panel = panel_group * run->panel_step,
        .last_panel = smaller(conv->panels, (panel_group + 1) * run->panel_step),
    };
    part.x = run->images +
             (part.image * conv->shape.channels + part.group * group_channels(conv)) * channel_elements(&conv->planes);
    const int64_t width = conv->form.pixels, panels = part.last_panel - part.first_panel;
    const int64_t last_tile = smaller(run->tiles, (tile_group + 1) * run->tile_step);
    float *memory = NULL;
    if (panels >= MANY_PANELS && group_channels(conv) >= MANY_CHANNELS && run->job->depth > DEPTH) {
        memory = pumice_scratch(SCRATCH_CONV_STAGE, (size_t)((DEPTH + panels * conv->rows) * width) * sizeof *memory);
        if (!memory) {
            run->failed = 1;
            return;
        }
    }
    for (int64_t t = tile_group * run->tile_step; t < last_tile; t++) {
        const int64_t p = t * width, first = outputs_before(run, p);
        const int count = (int)smaller(width, run->pixels - p);
        struct conv_f32_runs runs;
        find_runs(run, p, count, &runs);
        if (memory) multiply_columns(&part, memory, p, count, first, &runs);
        else multiply_in_place(&part, p, count, first, &runs);
    }
}

/* Flat results of some rows of a plane to their places. */
static void place_rows(const struct conv_f32_run *run, const struct job *job, const float *flat, float *y, int64_t row,
                       int64_t rows) {
    const int64_t *extent = run->conv->planes.extent;
    for (int64_t r = row; r < row + rows;) { /* up to the end of a plane at once */
        const int64_t h = r % extent[1], d = r / extent[1], until = smaller(row + rows, (d + 1) * extent[1]);
        const int64_t used = smaller(until - r, job->output[1] - h);
        float *to = y + job->start + d * job->step[0] + h * job->step[1];
        const float *from = flat + (r - row) * extent[2];
        if (job->step[2] == 1 && used > 0)
            run->conv->level->table.conv_f32_take_rows(to, job->step[1], from, extent[2], used, job->output[2]);
        for (int64_t i = 0; job->step[2] != 1 && i < used; i++)
            for (int64_t w = 0; w < job->output[2]; w++)
                to[i * job->step[1] + w * job->step[2]] = from[i * extent[2] + w];
        r = until;
    }
}

/* All filters of one channel of one image, whose frame is at x. */
static void sum_taps(const struct conv_f32_run *run, int64_t channel, const float *x, float *flat, int64_t step) {
    const struct pumice_conv_f32 *conv = run->conv;
    const int64_t filters = group_filters(conv), extent = conv->planes.extent[2];
    for (int64_t j = 0; j < conv->job_count; j++) {
        const struct job *job = &conv->jobs[j];
        const int64_t all = (job->output[0] - 1) * conv->planes.extent[1] + job->output[1]; /* rows */
        for (int64_t f = channel * filters; f < (channel + 1) * filters; f++)
            for (int64_t row = 0; row < all; row += step) {
                const int64_t rows = smaller(step, all - row), filter = f % conv->shape.filters;
                const int64_t count = (rows - 1) * extent + job->output[2];
                conv->level->table.conv_f32_depthwise(flat, x + row * extent, job->offset, job->depth,
                                                      job->weights + filter * job->depth, run->bias[filter], count);
                place_rows(run, job, flat, run->y + f * result_elements(conv), row, rows);
            }
    }
}

/* Some channels of some images, one after another; the frame of one is made in memory of the thread. */
static void channel_task(void *context, int64_t chunk, int worker) {
    (void)worker;
    struct conv_f32_run *run = context;
    const struct pumice_conv_f32 *conv = run->conv;
    const struct planes *planes = &conv->planes;
    const int64_t step = larger(1, STRIP / planes->extent[2]), strip = step * planes->extent[2];
    const int64_t framed = planes->in_place ? 0 : channel_elements(planes), filters = group_filters(conv);
    const int64_t last = smaller(run->batch * conv->shape.channels, (chunk + 1) * run->channel_step);
    float *flat = pumice_scratch(SCRATCH_CONV_STAGE, (size_t)(strip + framed) * sizeof *flat);
    if (!flat) {
        run->failed = 1;
        return;
    }
    for (int64_t channel = chunk * run->channel_step; channel < last; channel++) {
        const float *image = run->x + channel * volume(planes->size);
        if (framed) conv->level->table.conv_f32_frame(planes, flat + strip, image);
        sum_taps(run, channel, framed ? flat + strip : image, flat, step);
        if (has_finish(run->epilogue))
            conv_f32_finish(run, channel * filters * result_elements(conv), filters * result_elements(conv));
    }
}

/* Taps are cheap: enough of them to be worth a chunk. */
static void run_channels(struct conv_f32_run *run, int threads) {
    const struct pumice_conv_f32 *conv = run->conv;
    const int64_t all = run->batch * conv->shape.channels,
                  work = volume(conv->shape.kernel) * (result_elements(conv) + volume(conv->shape.size));
    run->channel_step = larger(1, smaller(all / (4 * pumice_team(threads)), CHUNK_TAPS / work));
    pumice_parallel(threads, (all + run->channel_step - 1) / run->channel_step, channel_task, run);
}

static double macs(const struct pumice_conv_f32 *conv, const struct job *job) {
    return (double)volume(job->output) * (double)conv->shape.filters * (double)job->depth;
}

/* Tiles of pixels first; where these are too few for the threads, panels are shared out too. */
static void share_out(struct conv_f32_run *run, int threads) {
    const struct pumice_conv_f32 *conv = run->conv;
    const double tile = (double)(conv->form.pixels * group_filters(conv)) * (double)larger(run->job->depth, 1);
    run->pixels = flat_pixels(conv, run->job);
    run->tiles = (run->pixels + conv->form.pixels - 1) / conv->form.pixels;
    run->tile_step = larger(1, smaller(run->tiles / (4 * threads), (int64_t)(CHUNK_MACS / tile) + 1));
    run->tile_groups = (run->tiles + run->tile_step - 1) / run->tile_step;
    run->panel_step = conv->panels;
    const int64_t chunks = run->batch * conv->shape.groups * run->tile_groups;
    if (threads > 1 && chunks < 4 * threads) run->panel_step = larger(1, conv->panels * chunks / (4 * threads));
    run->panel_groups = (conv->panels + run->panel_step - 1) / run->panel_step;
}

static float *padded_bias(const struct pumice_conv_f32 *conv, const float *bias) {
    const int64_t groups = conv->tap_by_tap ? 1 : conv->shape.groups, filters = conv->shape.filters / groups;
    const int64_t columns = conv->tap_by_tap ? filters : conv->panels * conv->rows;
    float *padded = pumice_scratch(SCRATCH_CONV_POINTERS, (size_t)(groups * columns + CONV_SLACK) * sizeof *padded);
    for (int64_t g = 0; padded && g < groups; g++)
        for (int64_t n = 0; n < columns; n++) padded[g * columns + n] = bias && n < filters ? bias[g * filters + n] : 0;
    return padded;
}

static int run_tiles(struct conv_f32_run *run, int threads) {
    const struct pumice_conv_f32 *conv = run->conv;
    const int64_t channels = run->batch * conv->shape.channels;
    run->images = run->x;
    if (!conv->planes.in_place) {
        run->frames =
            pumice_scratch(SCRATCH_CONV, (size_t)(channels * channel_elements(&conv->planes)) * sizeof(float));
        if (!run->frames) return PUMICE_NO_MEMORY;
        run->images = run->frames;
        pumice_parallel(channels * channel_elements(&conv->planes) > 1 << 15 ? threads : 1, channels, frame_task, run);
    }
    if (conv->small) return conv_f32_run_small(run, threads);
    for (int64_t j = 0; j < conv->job_count; j++) {
        run->job = &conv->jobs[j];
        share_out(run, pumice_team(threads));
        pumice_parallel(threads, run->batch * conv->shape.groups * run->tile_groups * run->panel_groups, tile_task,
                        run);
    }
    if (run->failed) return PUMICE_NO_MEMORY;
    if (has_finish(run->epilogue) && !conv->jobs[0].compact)
        conv_f32_finish(run, 0, run->batch * conv->shape.filters * result_elements(conv));
    return PUMICE_OK;
}

/* Images framed at once: about 4 MiB. */
static int64_t images_at_once(const struct pumice_conv_f32 *conv, int64_t batch) {
    const int64_t elements = channel_elements(&conv->planes) * conv->shape.channels;
    return conv->planes.in_place || conv->tap_by_tap ? batch : larger(1, (INT64_C(1) << 20) / elements);
}

int pumice_conv_f32_run(const struct pumice_conv_f32 *conv, int64_t batch, const float *x, float *y,
                        const struct pumice_conv_f32_epilogue *epilogue, int threads) {
    const struct pumice_conv_shape *s = &conv->shape;
    double all = 0;
    for (int64_t j = 0; j < conv->job_count; j++) all += macs(conv, &conv->jobs[j]);
    if (all * (double)batch < CHUNK_MACS) threads = 1;
    const float *bias = padded_bias(conv, epilogue->bias);
    if (!bias) return PUMICE_NO_MEMORY;
    pumice_note_run(conv->level, conv->tap_by_tap ? SLOT_conv_f32_depthwise
                                 : conv->small    ? SLOT_conv_f32_runs_tile
                                                  : SLOT_conv_f32_tile);
    const int64_t step = images_at_once(conv, batch);
    for (int64_t image = 0; image < batch; image += step) {
        struct pumice_conv_f32_epilogue part = *epilogue;
        if (part.residual) part.residual += image * s->filters * result_elements(conv);
        struct conv_f32_run run = {
            .conv = conv, .epilogue = &part, .bias = bias, .x = x + image * s->channels * volume(s->size),
            .y = y + image * s->filters * result_elements(conv), .batch = smaller(step, batch - image),
        };
        if (conv->tap_by_tap) {
            run_channels(&run, threads);
            if (run.failed) return PUMICE_NO_MEMORY;
        } else {
            const int status = run_tiles(&run, threads);
            if (status) return status;
        }
    }
    return PUMICE_OK;
}
