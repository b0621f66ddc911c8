/* 8-bit convolution, channels last: y[p, n] = epilogue(bias[n] + sum over taps t, channels c of x[p + t, c] w[n, t,
 * c]).
 *
 * The windows of a pixel are a few *segments* of contiguous bytes at fixed distances from the pixel's first byte: a
 * tap's channels, or, where taps of a row touch, the whole row of the kernel. A tile kernel multiplies the segments of
 * some pixels by a packed panel of filters; it is the same for 1x1, 3x3, 7x7 on three channels, any stride, dilation,
 * group and number of axes. Borders are made once per image: where windows leave the data, the image is copied into a
 * frame of zero points. An input that fits is read in place.
 *
 * With levels x - zx and weights w: sum (x - zx) w = sum x w - zx sum w, so the zero point costs nothing: it is folded
 * into the packed bias. Weights that exceed 8 bits once their zero point is taken off are packed as a sum of two or
 * three.
 *
 * Work is cut into blocks of positions times groups of panels: conv_u8_windows.c tells what positions are. The pointers
 * of a block are made once and serve all panels of the chunk, and so does a residual that is added to finished levels,
 * while these are in a cache. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/api.h"
#include "base/memory.h"
#include "base/numbers.h"
#include "conv/conv_u8.h"
#include "conv/shape.h"
#include "pool/pool.h"

enum { MOST_BLOCK = 256 };
static const int64_t FRAME_BYTES = 1 << 20; /* of images framed at once, about */
static const int64_t BLOCK_BYTES = 24 << 10; /* of a block's activations: half of a first-level cache */
static const double WORTH_THREADS = 20;       /* microseconds */

typedef void (*tile_kernel)(int32_t *, const uint8_t *const *, int, const int64_t *, int64_t, int64_t, const int8_t *,
                            const int32_t *, int);

/* --- packing ------------------------------------------------------------------------------------------------------ */

static int64_t panel_bytes(const struct pumice_conv_u8 *conv) {
    return conv->packed_segments * conv->packed_depth * conv->form.filters;
}

/* Where windows of one pixel find their segments, in the frame. */
static void place_segments(struct pumice_conv_u8 *conv, int merged) {
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t columns = merged ? 1 : s->kernel[2];
    int64_t i = 0;
    for (int part = 0; part < conv->parts; part++)
        for (int64_t d = 0; d < s->kernel[0]; d++)
            for (int64_t h = 0; h < s->kernel[1]; h++)
                for (int64_t w = 0; w < columns; w++)
                    conv->offset[i++] = (((d * s->dilation[0] * conv->frame[1]) + h * s->dilation[1]) * conv->frame[2] +
                                         w * s->dilation[2]) * s->channels;
}

/* Where the weight for byte k of segment s lies among those of a filter. */
static int64_t weight_place(const struct pumice_conv_u8 *conv, int64_t s, int64_t k) {
    const int64_t channels = conv->shape.channels / conv->shape.groups, at = s * conv->depth + k;
    return at % channels * volume(conv->shape.kernel) + at / channels;
}

/* A weight beyond 8 bits is the sum of its parts. */
int8_t conv_u8_part(int16_t weight, int part) {
    int16_t value = 0;
    for (; part >= 0; part--, weight -= value) value = (int16_t)smaller(larger(weight, -128), 127);
    return (int8_t)value;
}

static void pack_filter(struct pumice_conv_u8 *conv, const int64_t *place, const int16_t *weights, const int32_t *bias,
                        int64_t filter) {
    const int64_t each = conv->shape.filters / conv->shape.groups, columns = conv->form.filters;
    const int64_t panel = filter / each * conv->panels + filter % each / columns, column = filter % each % columns;
    const int16_t *own = weights + filter * conv->segments * conv->depth;
    int8_t *packed = conv->weights + panel * panel_bytes(conv);
    int64_t total = 0;
    for (int part = 0; part < conv->parts; part++)
        for (int64_t s = 0; s < conv->segments; s++)
            for (int64_t k = 0; k < conv->depth; k++) {
                const int16_t weight = own[place[s * conv->depth + k]];
                const int64_t segment = part * conv->segments + s;
                const int64_t at = conv->form.staged ? segment * conv->depth + k : segment * conv->packed_depth + k;
                packed[at / 4 * columns * 4 + column * 4 + at % 4] = conv_u8_part(weight, part);
                if (part == 0) total += weight;
            }
    const int64_t correction = (conv->form.offset - conv->zero_point) * total;
    conv->bias[panel * columns + column] = (int32_t)(uint32_t)((bias ? bias[filter] : 0) + correction);
}

static int parts_needed(const struct pumice_conv_shape *shape, const int16_t *weights) {
    const int64_t count = shape->filters * (shape->channels / shape->groups) * volume(shape->kernel);
    int parts = 1;
    for (int64_t i = 0; i < count; i++)
        while (weights[i] < -128 * parts || weights[i] > 127 * parts) parts++;
    return parts;
}

/* Deep tiles pay from about 32 bytes of depth on, and where there are filters to fill them. */
static void choose_form(struct pumice_conv_u8 *conv) {
    const int64_t depth = conv->shape.channels / conv->shape.groups * volume(conv->shape.kernel);
    conv->deep = depth >= 32 && conv->shape.filters / conv->shape.groups >= 8;
    conv->form = conv->deep ? RUN(conv->level, conv_u8_deep_form)() : RUN(conv->level, conv_u8_form)();
}

static void lay_out(struct pumice_conv_u8 *conv) {
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t channels = s->channels / s->groups;
    const int merged = s->groups == 1 && s->dilation[2] == 1;
    conv->segments = s->kernel[0] * s->kernel[1] * (merged ? 1 : s->kernel[2]);
    conv->depth = channels * (merged ? s->kernel[2] : 1);
    conv->in_place =
        inside(s) && !conv->flip && (conv->segments == 1 || conv->depth % conv->form.unit == 0 || conv->form.staged);
    for (int a = 0; a < 3; a++) conv->frame[a] = conv->in_place ? s->size[a] : larger(reach(s, a), 1);
    const int64_t segments = conv->segments * conv->parts;
    conv->packed_segments = conv->form.staged ? 1 : segments;
    conv->packed_depth = round_up(conv->form.staged ? segments * conv->depth : conv->depth, conv->form.unit);
    conv->panels = (s->filters / s->groups + conv->form.filters - 1) / conv->form.filters;
    conv_u8_place_positions(conv);
}

static int pack(struct pumice_conv_u8 *conv, const int16_t *weights, const int32_t *bias) {
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t panels = conv->depthwise ? conv->panels : s->groups * conv->panels;
    const int64_t filters = conv->depthwise ? conv->depthwise_form.channels : conv->form.filters;
    const int64_t bytes = panels * (conv->depthwise ? conv_u8_depthwise_bytes(conv) : panel_bytes(conv));
    conv->offset = calloc((size_t)(conv->segments * conv->parts), sizeof *conv->offset);
    conv->weights = pumice_alloc((size_t)bytes);
    conv->bias = pumice_alloc((size_t)(panels * filters) * sizeof *conv->bias);
    if (!conv->offset || !conv->weights || !conv->bias) return 0;
    memset(conv->weights, 0, (size_t)bytes);
    memset(conv->bias, 0, (size_t)(panels * filters) * sizeof *conv->bias);
    if (conv->depthwise) {
        conv_u8_pack_depthwise(conv, weights, bias);
    } else {
        int64_t *place = malloc((size_t)(conv->segments * conv->depth) * sizeof *place);
        if (!place) return 0;
        for (int64_t i = 0; i < conv->segments * conv->depth; i++)
            place[i] = weight_place(conv, i / conv->depth, i % conv->depth);
        place_segments(conv, s->groups == 1 && s->dilation[2] == 1);
        for (int64_t filter = 0; filter < s->filters; filter++) pack_filter(conv, place, weights, bias, filter);
        free(place);
    }
    return 1;
}

struct pumice_conv_u8 *pumice_conv_u8_create(const struct pumice_conv_shape *shape, const int16_t *weights,
                                             const int32_t *bias, int input_zero_point, int input_signed) {
    if (!makes_sense(shape)) return NULL;
    struct pumice_conv_u8 *conv = calloc(1, sizeof *conv);
    if (!conv) return NULL;
    conv->shape = *shape;
    conv->level = pumice_level();
    conv->flip = input_signed ? 0x80 : 0;
    conv->zero_point = input_zero_point + conv->flip;
    conv->parts = parts_needed(shape, weights);
    conv->depthwise = conv_u8_is_depthwise(shape);
    if (conv->depthwise) {
        conv_u8_lay_out_depthwise(conv);
    } else {
        choose_form(conv);
        lay_out(conv);
    }
    if (!pack(conv, weights, bias)) {
        pumice_conv_u8_free(conv);
        return NULL;
    }
    return conv;
}

void pumice_conv_u8_free(struct pumice_conv_u8 *conv) {
    if (!conv) return;
    free(conv->offset);
    pumice_free(conv->weights);
    pumice_free(conv->bias);
    free(conv);
}

/* --- the blocks --------------------------------------------------------------------------------------------------- */

void conv_u8_look_up(uint8_t *y, int64_t step, int64_t count, int64_t filters, const uint8_t *table) {
    for (int64_t i = 0; i < count; i++, y += step)
        for (int64_t n = 0; n < filters; n++) y[n] = table[y[n]];
}

struct conv_requantize conv_u8_requantization(const struct conv_u8_run *run, const float *multiplier, int64_t at) {
    const struct pumice_conv_u8_epilogue *e = run->epilogue;
    const int flip = e->residual_signed ? 0x80 : 0;
    return (struct conv_requantize){
        .multiplier = multiplier, .low = e->low, .high = e->high, .zero_point = e->zero_point,
        .is_signed = e->is_signed, .overflows = run->overflows,
        .residual = e->residual && !e->residual_operand ? e->residual + at : NULL,
        .residual_multiplier = e->residual_multiplier, .residual_zero_point = e->residual_zero_point + flip,
        .residual_flip = flip,
    };
}

void conv_u8_finish(const struct conv_u8_run *run, const int32_t *tile, int tile_stride, const float *multiplier,
                    int64_t at, int count, int filters) {
    const struct pumice_conv_u8_epilogue *e = run->epilogue;
    const int64_t width = run->conv->shape.filters;
    if (e->result == PUMICE_CONV_LEVELS) {
        const struct conv_requantize how = conv_u8_requantization(run, multiplier, at);
        run->conv->level->table.conv_u8_requantize(run->y + at, width, tile, tile_stride, count, filters, &how);
        if (e->table) conv_u8_look_up(run->y + at, width, count, filters, e->table);
    } else if (e->result == PUMICE_CONV_SUMS) {
        for (int i = 0; i < count; i++)
            memcpy((int32_t *)(void *)run->y + at + i * width, tile + i * tile_stride,
                   (size_t)filters * sizeof(int32_t));
    } else {
        for (int i = 0; i < count; i++) {
            float *to = (float *)(void *)run->y + at + i * width;
            for (int n = 0; n < filters; n++) to[n] = (float)tile[i * tile_stride + n] * multiplier[n];
        }
    }
}

/* Some positions of an image, and how the kernel reads the windows there. */
struct block {
    const struct conv_u8_run *run;
    int64_t image, first, count;
    const uint8_t *pixel[MOST_BLOCK];
    const int64_t *segment;
    int64_t segments, depth;
};

static int find_windows(struct block *b, int64_t group) {
    const struct conv_u8_run *run = b->run;
    const struct pumice_conv_u8 *conv = run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    static const int64_t staged[] = {0};
    const uint8_t *start = run->images + b->image * volume(conv->frame) * s->channels;
    conv_u8_point_at(conv, start + group * (s->channels / s->groups), b->first, b->count, b->pixel);
    b->segment = conv->offset, b->segments = conv->packed_segments, b->depth = conv->packed_depth;
    if (!conv->form.staged) return conv_u8_copy_last(run, start, b->pixel, b->count);
    if (!conv_u8_reads_in_place(run, b->first, b->count)) {
        b->segment = staged;
        return conv_u8_stage(run, b->pixel, b->count);
    }
    b->segments = conv->segments * conv->parts;
    if (b->segments > 1) b->depth = conv->depth;
    return 1;
}

/* Sums of some neighbouring outputs to their results. */
static void store_run(const struct block *b, const int32_t *sums, int64_t pixel, int64_t count, int64_t panel,
                      int64_t filter, int filters) {
    const struct pumice_conv_u8 *conv = b->run->conv;
    const int64_t at = (b->image * b->run->pixels + pixel) * conv->shape.filters + filter;
    const int columns = conv->form.filters;
    conv_u8_finish(b->run, sums, columns, b->run->multiplier + panel * columns, at, (int)count, filters);
}

/* A tile of sums from a position on: what lies between outputs is passed over. */
static void store_tile(const struct block *b, const int32_t *tile, int64_t position, int rows, int64_t panel,
                       int64_t filter, int filters) {
    const struct pumice_conv_u8 *conv = b->run->conv;
    if (conv->positions == b->run->pixels) {
        store_run(b, tile, position, rows, panel, filter, filters);
        return;
    }
    for (int64_t row = 0, left; row < rows; row += left) {
        left = smaller(rows - row, conv->columns - (position + row) % conv->columns);
        const int64_t pixel = conv_u8_pixels_before(conv, position + row);
        const int64_t count = conv_u8_pixels_before(conv, position + row + left) - pixel;
        if (count) store_run(b, tile + row * conv->form.filters, pixel, count, panel, filter, filters);
    }
}

/* One panel over a block. Meanwhile the weights of the next one are fetched, a share with every tile. */
static void multiply_panel(const struct block *b, int64_t group, int64_t p) {
    const struct conv_u8_run *run = b->run;
    const struct pumice_conv_u8 *conv = run->conv;
    const struct kernel_table *table = &conv->level->table;
    const tile_kernel kernel = conv->deep ? table->conv_u8_deep_tile : table->conv_u8_tile;
    const int64_t each = conv->shape.filters / conv->shape.groups, panel = group * conv->panels + p;
    const int64_t unit = conv->form.pixels;
    const int filters = (int)smaller(conv->form.filters, each - p * conv->form.filters);
    const int8_t *weights = conv->weights + panel * panel_bytes(conv), *next = weights + panel_bytes(conv);
    const int32_t *bias = conv->bias + panel * conv->form.filters;
    const int64_t ahead = p + 1 < conv->panels ? (panel_bytes(conv) * unit + b->count - 1) / b->count : 0;
    _Alignas(64) int32_t tile[CONV_MOST_PIXELS * CONV_MOST_FILTERS];
    for (int64_t i = 0; i < b->count; i += unit, next += ahead) {
        const int rows = (int)smaller(unit, b->count - i);
        const uint8_t *rowed[CONV_MOST_PIXELS];
        const uint8_t *const *pixels = b->pixel + i;
        if (rows < unit) { /* kernels may read pointers of a whole tile */
            for (int r = 0; r < unit; r++) rowed[r] = b->pixel[i + (r < rows ? r : 0)];
            pixels = rowed;
        }
        if (conv->form.fetching)
            conv->form.fetching(tile, pixels, rows, b->segment, b->segments, b->depth, weights, bias, next, ahead);
        else
            kernel(tile, pixels, rows, b->segment, b->segments, b->depth, weights, bias, filters);
        store_tile(b, tile, b->first + i, rows, panel, group * each + p * conv->form.filters, filters);
    }
}

/* The residual onto the finished levels of some filters of a block. */
static void add_residual(const struct block *b, int64_t filter, int64_t filters) {
    const struct conv_u8_run *run = b->run;
    const struct pumice_conv_u8_epilogue *e = run->epilogue;
    const int64_t width = run->conv->shape.filters, pixel = conv_u8_pixels_before(run->conv, b->first);
    const int64_t pixels = conv_u8_pixels_before(run->conv, b->first + b->count) - pixel;
    const int64_t rows = filters == width ? 1 : pixels, each = filters == width ? pixels * width : filters;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t at = (b->image * run->pixels + pixel + row) * width + filter;
        const uint8_t *const levels = run->y + at, *const residual = e->residual + at;
        const int turned = e->residual_operand == PUMICE_RESIDUAL_A;
        const uint8_t *const a = turned ? residual : levels, *const c = turned ? levels : residual;
        run->conv->level->table.runtime_add(&e->sum, a, c, run->y + at, each);
    }
}

/* Some panels of one group over one block. */
static void block_task(void *context, int64_t chunk, int worker) {
    (void)worker;
    struct conv_u8_run *run = context;
    const struct pumice_conv_u8 *conv = run->conv;
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t panel_group = chunk % run->panel_groups, group = chunk / run->panel_groups % s->groups;
    const int64_t number = chunk / run->panel_groups / s->groups, first = number % run->blocks * run->block;
    const int64_t each = s->filters / s->groups, from = panel_group * run->panel_step;
    const int64_t to = smaller(conv->panels, from + run->panel_step);
    const int64_t count = smaller(run->block, conv->positions - first);
    struct block b = {.run = run, .image = number / run->blocks, .first = first, .count = count};
    if (!find_windows(&b, group)) {
        run->failed = 1;
        return;
    }
    if (conv->deep) conv->level->table.conv_u8_deep_begin();
    for (int64_t p = from; p < to; p++) multiply_panel(&b, group, p);
    if (conv->deep) conv->level->table.conv_u8_deep_end();
    if (run->epilogue->residual && run->epilogue->residual_operand) {
        const int64_t filter = from * conv->form.filters;
        add_residual(&b, group * each + filter, smaller(to * conv->form.filters, each) - filter);
    }
}

/* --- running ------------------------------------------------------------------------------------------------------ */

/* One multiplier a filter of the packed panels; 1 where none is given. */
static float *padded_multipliers(const struct pumice_conv_u8 *conv, const float *multiplier) {
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t groups = conv->depthwise ? 1 : s->groups, each = s->filters / groups;
    const int64_t columns = (conv->depthwise ? conv->depthwise_form.channels : conv->form.filters) * conv->panels;
    float *padded = pumice_scratch(SCRATCH_CONV_POINTERS, (size_t)(groups * columns + CONV_SLACK) * sizeof *padded);
    for (int64_t g = 0; padded && g < groups; g++) {
        const int64_t given = multiplier ? each : 0;
        if (given) memcpy(padded + g * columns, multiplier + g * each, (size_t)given * sizeof *padded);
        for (int64_t n = given; n < columns; n++) padded[g * columns + n] = 1;
    }
    return padded;
}

/* Whether sums times multipliers could leave int32. */
static int may_overflow(const struct pumice_conv_shape *s, const struct pumice_conv_u8_epilogue *e) {
    if (e->result != PUMICE_CONV_LEVELS) return 0;
    int large = 0; /* all of them, in vectors, instead of up to the first */
    for (int64_t n = 0; n < s->filters; n++) large |= !(fabsf(e->multiplier[n]) < 0.5f);
    return large || (e->residual && !(fabsf(e->residual_multiplier) < 1e6f));
}

/* About how long one image takes a thread, from the rates of a fast core: products, and results made and stored. */
static double microseconds(const struct pumice_conv_u8 *conv) {
    const struct pumice_conv_shape *s = &conv->shape;
    const double results = (double)volume(s->output) * (double)s->filters;
    const double products = results * (double)(s->channels / s->groups * volume(s->kernel));
    return products / (conv->depthwise ? 4e4 : conv->form.staged ? 1e6 : 3e5) + results / 8e3;
}

/* Blocks of pixels first, smaller ones for several threads; where these are too few, panels are shared out too, which
 * makes more than one thread gather the same windows. */
static void share_out(struct conv_u8_run *run, int threads) {
    const struct pumice_conv_u8 *conv = run->conv;
    const int64_t unit = conv->form.pixels, depth = conv->packed_segments * conv->packed_depth;
    const int64_t fitting = conv->form.staged ? MOST_BLOCK : larger(2, BLOCK_BYTES / (unit * depth));
    const int64_t tiles = (conv->positions + unit - 1) / unit, others = run->batch * conv->shape.groups;
    int64_t most = smaller(MOST_BLOCK / unit, fitting);
    if (threads > 1) most = larger(1, smaller(most, tiles * others / (2 * threads)));
    run->block = smaller(tiles, most) * unit;
    run->blocks = (conv->positions + run->block - 1) / run->block;
    run->panel_step = conv->panels;
    if (threads > 1 && run->blocks * others < 2 * threads)
        run->panel_step = larger(1, conv->panels * run->blocks * others / (2 * threads));
    run->panel_groups = (conv->panels + run->panel_step - 1) / run->panel_step;
}

static int run_images(struct conv_u8_run *run, int threads) {
    const struct pumice_conv_u8 *conv = run->conv;
    const int64_t bytes = volume(conv->frame) * conv->shape.channels;
    run->images = run->x;
    if (!conv->in_place) {
        run->frames = pumice_scratch(SCRATCH_CONV, (size_t)(run->batch * bytes + conv_u8_slack(conv)));
        if (!run->frames) return PUMICE_NO_MEMORY;
        run->images = run->frames;
        const int copiers = run->batch * bytes > 1 << 16 ? threads : 1;
        pumice_parallel(copiers, run->batch * conv->frame[0] * conv->frame[1], conv_u8_frame_row, run);
    }
    if (conv->depthwise) {
        conv_u8_run_depthwise(run, threads);
        return run->failed ? PUMICE_NO_MEMORY : PUMICE_OK;
    }
    share_out(run, pumice_team(threads));
    pumice_parallel(threads, run->batch * run->blocks * conv->shape.groups * run->panel_groups, block_task, run);
    return run->failed ? PUMICE_NO_MEMORY : PUMICE_OK;
}

int pumice_conv_u8_run(const struct pumice_conv_u8 *conv, int64_t batch, const uint8_t *x, void *y,
                       const struct pumice_conv_u8_epilogue *epilogue, int threads) {
    static const int64_t sizes[] = {sizeof(uint8_t), sizeof(int32_t), sizeof(float)};
    const struct pumice_conv_shape *s = &conv->shape;
    if (batch < 0 || epilogue->result < 0 || epilogue->result > 2) return PUMICE_BAD_ARGUMENT;
    if (microseconds(conv) * (double)batch < WORTH_THREADS) threads = 1;
    const float *multiplier = padded_multipliers(conv, epilogue->multiplier);
    if (!multiplier) return PUMICE_NO_MEMORY;
    pumice_note_run(conv->level, conv->depthwise ? SLOT_conv_u8_depthwise_tile
                                 : conv->deep    ? SLOT_conv_u8_deep_tile
                                                 : SLOT_conv_u8_tile);
    pumice_note_run(conv->level, SLOT_conv_u8_requantize);
    const int64_t bytes = volume(conv->frame) * s->channels;
    const int64_t step = conv->in_place ? batch : larger(1, FRAME_BYTES / bytes);
    for (int64_t image = 0; image < batch; image += step) {
        struct pumice_conv_u8_epilogue part = *epilogue;
        if (part.residual) part.residual += image * volume(s->output) * s->filters;
        struct conv_u8_run run = {
            .conv = conv, .epilogue = &part, .x = x + image * volume(s->size) * s->channels,
            .y = (uint8_t *)y + image * volume(s->output) * s->filters * sizes[epilogue->result],
            .multiplier = multiplier, .batch = smaller(step, batch - image), .pixels = volume(s->output),
            .overflows = may_overflow(s, epilogue),
        };
        const int status = run_images(&run, threads);
        if (status) return status;
    }
    return PUMICE_OK;
}
