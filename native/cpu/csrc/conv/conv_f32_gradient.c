/* The gradient of a convolution with respect to its weights: dw[m, c, t] = sum over images, outputs o of dy[m, o] x[c,
 * o + t].
 *
 * In the frame of planes.h it is the correlation of flat vectors: dy is laid out with zeros between its rows, as long
 * as the plane's, and every (channel, tap) is the frame at an offset. Four filters are correlated with four taps at
 * once, over as many images as make the loop long; lanes are added up after them. */
#include <stdlib.h>
#include <string.h>

#include "base/api.h"
#include "base/memory.h"
#include "base/numbers.h"
#include "base/table.h"
#include "conv/api.h"
#include "conv/planes.h"
#include "conv/shape.h"
#include "pool/pool.h"

enum { PIXELS = 2048, ALIGNED = 16 }; /* worth a sum over lanes; floats of a cache line */

struct gradient {
    const struct pumice_conv_shape *shape;
    const struct level *level;
    struct planes planes;
    int64_t depth;
    const int64_t *offset; /* of the inputs of a filter, the last ones repeated to a multiple of four */
    int64_t row, frame;    /* elements from one filter's gradient to the next, and of one image's frames */
    struct conv_f32_images images;
    const float *x, *dy;
    float *frames, *spread; /* of some images */
    float *total;           /* [filter rounded up][depth rounded up] */
};

static void frame_task(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct gradient *g = context;
    g->level->table.conv_f32_frame(&g->planes, g->frames + chunk * channel_elements(&g->planes),
                                   g->x + chunk * volume(g->planes.size));
}

/* One filter's gradient with zeros where the plane's rows are longer. */
static void spread_task(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct gradient *g = context;
    const int64_t *extent = g->planes.extent, *output = g->shape->output;
    float *to = g->spread + chunk * g->row;
    memset(to, 0, (size_t)g->row * sizeof *to);
    for (int64_t d = 0; d < output[0]; d++)
        for (int64_t h = 0; h < output[1]; h++)
            memcpy(to + (d * extent[1] + h) * extent[2], g->dy + ((chunk * output[0] + d) * output[1] + h) * output[2],
                   (size_t)output[2] * sizeof *to);
}

static void correlate_task(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct gradient *g = context;
    const struct pumice_conv_shape *s = g->shape;
    const int64_t filters = s->filters / s->groups, per_group = (filters + CONV_CORRELATED - 1) / CONV_CORRELATED;
    const int64_t group = chunk / per_group, first = chunk % per_group * CONV_CORRELATED;
    const int64_t used = smaller(CONV_CORRELATED, filters - first), columns = round_up(g->depth, CONV_CORRELATED);
    const float *x =
        (g->planes.in_place ? g->x : g->frames) + group * (s->channels / s->groups) * channel_elements(&g->planes);
    const float *dy = (g->spread ? g->spread : g->dy) + (group * filters + first) * g->row;
    float *total = g->total + chunk * CONV_CORRELATED * columns;
    struct conv_f32_images alone = g->images; /* one filter four times: only the first row counts */
    alone.row_step = 0;
    for (int64_t k = 0; k < g->depth; k += CONV_CORRELATED)
        if (used == CONV_CORRELATED)
            g->level->table.conv_f32_correlate(total + k, columns, dy, x, g->offset + k, &g->images);
        else
            for (int64_t i = 0; i < used; i++) {
                float one[CONV_CORRELATED * CONV_CORRELATED] = {0};
                g->level->table.conv_f32_correlate(one, CONV_CORRELATED, dy + i * g->row, x, g->offset + k, &alone);
                for (int j = 0; j < CONV_CORRELATED; j++) total[i * columns + k + j] += one[j];
            }
}

static int64_t *offsets_of(const struct pumice_conv_shape *s, const struct planes *planes) {
    const int64_t taps = volume(s->kernel), channels = s->channels / s->groups;
    int64_t *offset = malloc((size_t)(channels * taps + CONV_CORRELATED) * sizeof *offset);
    if (!offset) return NULL;
    conv_tap_offsets(s, planes, offset);
    for (int64_t c = 1; c < channels; c++)
        for (int64_t t = 0; t < taps; t++) offset[c * taps + t] = offset[t] + c * channel_elements(planes);
    for (int i = 0; i < CONV_CORRELATED; i++) offset[channels * taps + i] = offset[channels * taps - 1];
    return offset;
}

int pumice_conv_f32_weight_gradient(const struct pumice_conv_shape *s, int64_t batch, const float *x, const float *dy,
                                    float *dw, int threads) {
    if (!makes_sense(s) || batch < 0) return PUMICE_BAD_ARGUMENT;
    struct gradient g = {.shape = s, .level = pumice_level(), .planes = conv_planes(s)};
    const int64_t filters = s->filters / s->groups, per_group = (filters + CONV_CORRELATED - 1) / CONV_CORRELATED;
    const int64_t *extent = g.planes.extent,
                  columns = round_up(s->channels / s->groups * volume(s->kernel), CONV_CORRELATED);
    const int64_t pixels = ((s->output[0] - 1) * extent[1] + s->output[1] - 1) * extent[2] + s->output[2];
    const int64_t block = smaller(larger(1, PIXELS / pixels), larger(batch, 1));
    const int spreading = pixels != volume(s->output);
    g.depth = s->channels / s->groups * volume(s->kernel);
    g.row = spreading ? round_up(pixels, ALIGNED) : pixels;
    g.frame = s->channels * channel_elements(&g.planes);
    int64_t *offset = offsets_of(s, &g.planes);
    g.offset = offset;
    g.total = calloc((size_t)(s->groups * per_group * CONV_CORRELATED * columns), sizeof *g.total);
    g.frames = g.planes.in_place ? NULL : pumice_alloc((size_t)(block * g.frame) * sizeof(float));
    g.spread = spreading ? pumice_alloc((size_t)(block * s->filters * g.row) * sizeof(float)) : NULL;
    const int made = offset && g.total && (g.planes.in_place || g.frames) && (!spreading || g.spread);
    if (made) {
        pumice_note_run(g.level, SLOT_conv_f32_correlate);
        if ((double)block * (double)pixels * (double)s->filters * (double)g.depth < 1e6) threads = 1;
        for (int64_t image = 0; image < batch; image += block) {
            const int64_t count = smaller(block, batch - image);
            g.images = (struct conv_f32_images){count, pixels, g.row, s->filters * g.row, g.frame};
            g.x = x + image * s->channels * volume(s->size);
            g.dy = dy + image * s->filters * volume(s->output);
            if (g.frames) pumice_parallel(threads, count * s->channels, frame_task, &g);
            if (g.spread) pumice_parallel(threads, count * s->filters, spread_task, &g);
            pumice_parallel(threads, s->groups * per_group, correlate_task, &g);
        }
        for (int64_t f = 0; f < s->filters; f++) {
            const int64_t row = f / filters * per_group * CONV_CORRELATED + f % filters;
            memcpy(dw + f * g.depth, g.total + row * columns, (size_t)g.depth * sizeof *dw);
        }
    }
    free(offset);
    free(g.total);
    pumice_free(g.frames);
    pumice_free(g.spread);
    return made ? PUMICE_OK : PUMICE_NO_MEMORY;
}
