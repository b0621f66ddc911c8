/* Packed weights: what tiles read, made once. A product of split operands also gives its weights back as numbers, for
 * operands that cannot be split. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "nhwc/nhwc.h"
#include "pool/pool.h"

enum { LINE = 64, FEW_CHANNELS = 16, MOST_FOLDED = 32 };

struct packing {
    const struct pumice_nhwc *conv;
    const float *weights, *scale;
    const int64_t *steps;
    int failed;
};

/* Weight of a filter, or 0 beyond the edges; `tap` and `channel` are those of the frame. */
static float weight(const struct packing *p, int64_t filter, int64_t channel, int64_t tap) {
    const struct pumice_conv_shape *s = &p->conv->shape;
    if (filter >= s->filters || channel >= p->conv->channels) return 0;
    if (p->conv->folded) tap = tap * s->kernel[ACROSS] + channel / s->channels, channel %= s->channels;
    const float w = p->weights[filter * p->steps[0] + channel * p->steps[1] + tap * p->steps[2]];
    return p->scale ? w * p->scale[filter] : w;
}

static void pack_panel(void *context, int64_t panel, int worker) {
    struct packing *p = context;
    const struct pumice_nhwc *conv = p->conv;
    const int64_t tap_bytes = conv->depth * conv->filters * (int64_t)sizeof(float);
    float *rows = pumice_scratch(SCRATCH_GEMM_B, (size_t)tap_bytes);
    if (!rows) {
        p->failed = 1;
        return;
    }
    char *to = conv->weights + panel * conv->panel_bytes;
    for (int64_t t = 0; t < conv->taps; t++, to += tap_bytes) {
        for (int64_t k = 0; k < conv->depth; k++)
            for (int64_t f = 0; f < conv->filters; f++)
                rows[k * conv->filters + f] = weight(p, panel * conv->filters + f, k, t);
        if (conv->product) conv->product->pack(to, rows, conv->depth);
        else memcpy(to, rows, (size_t)tap_bytes);
    }
}

static void pack_depthwise(const struct packing *p) {
    const struct pumice_conv_shape *s = &p->conv->shape;
    float *to = (float *)(void *)p->conv->weights;
    for (int64_t t = 0; t < volume(s->kernel); t++)
        for (int64_t f = 0; f < s->filters; f++)
            *to++ = p->weights[f * p->steps[0] + t * p->steps[2]] * (p->scale ? p->scale[f] : 1);
}

/* Whether the windows of a row take fewer steps than their pixels one by one, by a sixth at least: their rows of a tile
 * cross the lines of the cache. */
static int overlaps(const struct pumice_conv_shape *s, const struct nhwc_product *product) {
    if (!product || s->groups > 1 || volume(s->stride) > 1 || s->dilation[ACROSS] > 1) return 0;
    const int64_t step = product->channel_step, taps = s->kernel[ACROSS];
    return 6 * round_up(taps * s->channels, step) <= 5 * taps * round_up(s->channels, step);
}

static void lay_out(struct pumice_nhwc *conv) {
    const struct pumice_conv_shape *s = &conv->shape;
    conv->pointwise = volume(s->kernel) == 1 && volume(s->stride) == 1 && inside(s);
    conv->overlapping = overlaps(s, conv->product);
    conv->folded = conv->overlapping ||
                   (s->channels < FEW_CHANNELS && s->kernel[ACROSS] > 1 && s->dilation[ACROSS] == 1);
    const int whole = !conv->overlapping && s->channels * volume(s->kernel) <= MOST_FOLDED;
    conv->folded_rows = !conv->folded ? 0 : whole ? s->kernel[DOWN] : 1;
    conv->columns[DOWN] = conv->folded_rows > 1 ? 1 : s->kernel[DOWN];
    conv->columns[ACROSS] = conv->folded ? 1 : s->kernel[ACROSS];
    conv->taps = conv->columns[DOWN] * conv->columns[ACROSS];
    conv->channels = conv->folded ? s->channels * s->kernel[ACROSS] * conv->folded_rows : s->channels;
    conv->filters = conv->product ? conv->product->filters : conv->plain->columns;
    conv->pixels = conv->product ? conv->product->pixels : conv->plain->rows;
    if (conv->product && 2 * s->filters <= conv->filters) conv->pixels = conv->product->half_pixels;
    conv->depth = round_up(conv->channels, conv->product ? conv->product->channel_step : 1);
    conv->step = conv->product ? conv->product->channel_step : conv->depth;
    conv->steps = conv->taps * (conv->depth / conv->step);
    conv->slice = conv->product ? conv->product->slice : conv->steps;
    conv->panels = (s->filters + conv->filters - 1) / conv->filters;
    conv->panel_bytes = conv->taps * conv->depth * conv->filters * (int64_t)sizeof(float);
    const int64_t lines = (conv->depth * (int64_t)sizeof(float) + LINE - 1) / LINE;
    conv->pixel_bytes = (lines | 1) * LINE; /* pixels an odd number of lines apart share no cache sets */
    if (conv->overlapping) conv->pixel_bytes = s->channels * (int64_t)sizeof(float) / 2;
}

int64_t nhwc_weight_bytes(const struct pumice_nhwc *conv) {
    const struct pumice_conv_shape *s = &conv->shape;
    if (conv->depthwise) return volume(s->kernel) * s->filters * (int64_t)sizeof(float);
    return conv->panels * conv->panel_bytes;
}

static struct pumice_nhwc *create(const struct pumice_conv_shape *shape, const struct level *level,
                                  const struct nhwc_product *product, const float *weights, const int64_t *steps,
                                  const float *scale, int threads) {
    struct pumice_nhwc *conv = calloc(1, sizeof *conv);
    if (!conv) return NULL;
    const int depthwise = shape->groups > 1;
    conv->shape = *shape;
    conv->level = level;
    conv->depthwise = depthwise;
    conv->product = product, conv->splits = product != NULL;
    conv->plain = gemm_kernel_of(level, PUMICE_FLOAT);
    lay_out(conv);
    conv->weights = pumice_alloc((size_t)nhwc_weight_bytes(conv));
    struct packing packing = {conv, weights, scale, steps, 0};
    if (conv->weights && depthwise) pack_depthwise(&packing);
    else if (conv->weights)
        pumice_parallel(conv->panels * conv->panel_bytes < 1 << 18 ? 1 : threads, conv->panels, pack_panel, &packing);
    if (conv->weights && !packing.failed) return conv;
    pumice_nhwc_free(conv);
    return NULL;
}

static int can_be_packed(const struct pumice_conv_shape *s) {
    const int one_each = s->groups == s->channels && s->filters == s->channels;
    return makes_sense(s) && s->size[0] == 1 && s->kernel[0] == 1 && (s->groups == 1 || one_each);
}

struct pumice_nhwc *pumice_nhwc_create(const struct pumice_conv_shape *shape, const float *weights,
                                       const int64_t *steps, const float *scale, int threads) {
    const struct level *level = pumice_level();
    if (!can_be_packed(shape)) return NULL;
    return create(shape, level, level->table.nhwc_product(), weights, steps, scale, threads);
}

struct pumice_nhwc *pumice_nhwc_create_whole(const struct pumice_conv_shape *shape, const float *weights,
                                             const int64_t *steps, const float *scale, int threads) {
    return can_be_packed(shape) ? create(shape, pumice_level(), NULL, weights, steps, scale, threads) : NULL;
}

/* What `weight` took the panels from. */
static int gather_weights(const struct pumice_nhwc *conv, float *weights, const int64_t *steps) {
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t tap_bytes = conv->depth * conv->filters * (int64_t)sizeof(float);
    float *rows = pumice_alloc((size_t)tap_bytes);
    if (!rows) return 0;
    for (int64_t i = 0; i < conv->panels * conv->taps; i++) {
        const int64_t first = i / conv->taps * conv->filters;
        conv->product->unpack(rows, conv->weights + i * tap_bytes, conv->depth);
        for (int64_t k = 0; k < conv->channels; k++) {
            const int64_t tap = conv->folded ? i % conv->taps * s->kernel[ACROSS] + k / s->channels : i % conv->taps;
            float *to = weights + k % s->channels * steps[1] + tap * steps[2];
            for (int64_t f = first; f < smaller(first + conv->filters, s->filters); f++)
                to[f * steps[0]] = rows[k * conv->filters + f - first];
        }
    }
    pumice_free(rows);
    return 1;
}

struct pumice_nhwc *nhwc_unsplit(const struct pumice_nhwc *conv, int threads) {
    const struct pumice_conv_shape *s = &conv->shape;
    const int64_t taps = volume(s->kernel), steps[] = {s->channels * taps, taps, 1};
    float *weights = pumice_alloc((size_t)(s->filters * steps[0]) * sizeof *weights);
    struct pumice_nhwc *plain = NULL;
    if (weights && gather_weights(conv, weights, steps))
        plain = create(s, conv->level, NULL, weights, steps, NULL, threads);
    pumice_free(weights);
    return plain;
}

int pumice_nhwc_splits(void) { return pumice_level()->table.nhwc_product() != NULL; }

void pumice_nhwc_free(struct pumice_nhwc *conv) {
    if (!conv) return;
    pumice_free(conv->weights);
    free(conv);
}
