/* The public functions of training: the split into chunks, and what a chunk is of channels, rows and planes. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/api.h"
#include "base/memory.h"
#include "base/numbers.h"
#include "base/table.h"
#include "conv/shape.h"
#include "pool/pool.h"
#include "train/api.h"

static const int64_t CHUNK = 1 << 14; /* elements worth handing to another thread */

static int64_t chunks_of(int64_t count, int64_t step) { return (count + step - 1) / step; }

/* --- pointwise ---------------------------------------------------------------------------------------------------- */

struct slope_job {
    const struct level *level;
    int function;
    const float *dy, *v, *parameters;
    float *dx;
    int64_t count;
};

static void slope_chunk(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct slope_job *j = context;
    const int64_t from = chunk * CHUNK;
    j->level->table.train_slope(j->function, j->dy + from, j->v + from, j->dx + from, smaller(CHUNK, j->count - from), j->parameters);
}

int pumice_slope(int function, const float *dy, const float *v, float *dx, int64_t count, const float *parameters,
                 int threads) {
    if (function < PUMICE_SLOPE_RELU || function > PUMICE_SLOPE_GELU || count < 0) return PUMICE_BAD_ARGUMENT;
    struct slope_job job = {pumice_level(), function, dy, v, parameters, dx, count};
    pumice_note_run(job.level, SLOT_train_slope);
    pumice_parallel(threads, chunks_of(count, CHUNK), slope_chunk, &job);
    return PUMICE_OK;
}

/* --- batch normalisation, channel by channel ---------------------------------------------------------------------- */

struct batch_norm_job {
    const struct level *level;
    const float *x, *dy, *scale, *bias, *known_mean, *known_inverse;
    float *out, *mean, *variance, *inverse, *dscale, *dbias, epsilon;
    int64_t batch, channels, inner;
};

/* Over all planes of a channel: see train_moments. */
static void channel_moments(const struct batch_norm_job *j, int64_t c, const float *dy, float centre, double sums[2]) {
    sums[0] = sums[1] = 0;
    for (int64_t n = 0; n < j->batch; n++) {
        const int64_t at = (n * j->channels + c) * j->inner;
        j->level->table.train_moments(j->x + at, dy ? dy + at : NULL, j->inner, centre, sums);
    }
}

static void channel_blend(const struct batch_norm_job *j, int64_t c, const float *dy, float centre, float a, float b, float shift) {
    for (int64_t n = 0; n < j->batch; n++) {
        const int64_t at = (n * j->channels + c) * j->inner;
        j->level->table.train_blend(j->x + at, dy ? dy + at : NULL, j->out + at, j->inner, centre, a, b, shift);
    }
}

static void normalise_channel(void *context, int64_t c, int worker) {
    (void)worker;
    const struct batch_norm_job *j = context;
    const double count = (double)(j->batch * j->inner);
    double sums[2];
    channel_moments(j, c, NULL, 0, sums);
    j->mean[c] = (float)(sums[0] / count);
    channel_moments(j, c, NULL, j->mean[c], sums);
    j->variance[c] = (float)(sums[1] / count);
    j->inverse[c] = 1 / sqrtf(j->variance[c] + j->epsilon);
    channel_blend(j, c, NULL, j->mean[c], 0, j->scale[c] * j->inverse[c], j->bias[c]);
}

int pumice_batch_norm_train(const float *x, float *y, int64_t batch, int64_t channels, int64_t inner, const float *scale,
                            const float *bias, float epsilon, float *mean, float *variance, float *inverse, int threads) {
    if (batch < 1 || channels < 0 || inner < 1) return PUMICE_BAD_ARGUMENT;
    struct batch_norm_job job = {
        .level = pumice_level(), .x = x, .scale = scale, .bias = bias, .out = y, .mean = mean, .variance = variance,
        .inverse = inverse, .epsilon = epsilon, .batch = batch, .channels = channels, .inner = inner,
    };
    pumice_note_run(job.level, SLOT_train_moments);
    pumice_parallel(batch * channels * inner < CHUNK ? 1 : threads, channels, normalise_channel, &job);
    return PUMICE_OK;
}

static void channel_gradient(void *context, int64_t c, int worker) {
    (void)worker;
    const struct batch_norm_job *j = context;
    const float count = (float)(j->batch * j->inner), centre = j->known_mean[c], inverse = j->known_inverse[c];
    const float factor = j->scale[c] * inverse;
    double sums[2];
    channel_moments(j, c, j->dy, centre, sums);
    j->dbias[c] = (float)sums[0];
    j->dscale[c] = (float)sums[1] * inverse;
    channel_blend(j, c, j->dy, centre, factor, -factor * inverse * j->dscale[c] / count, -factor * j->dbias[c] / count);
}

int pumice_batch_norm_gradient(const float *x, const float *dy, float *dx, int64_t batch, int64_t channels, int64_t inner,
                               const float *scale, const float *mean, const float *inverse, float *dscale, float *dbias,
                               int threads) {
    if (batch < 1 || channels < 0 || inner < 1) return PUMICE_BAD_ARGUMENT;
    struct batch_norm_job job = {
        .level = pumice_level(), .x = x, .dy = dy, .scale = scale, .known_mean = mean, .known_inverse = inverse, .out = dx,
        .dscale = dscale, .dbias = dbias, .batch = batch, .channels = channels, .inner = inner,
    };
    pumice_note_run(job.level, SLOT_train_blend);
    pumice_parallel(batch * channels * inner < CHUNK ? 1 : threads, channels, channel_gradient, &job);
    return PUMICE_OK;
}

/* --- rows --------------------------------------------------------------------------------------------------------- */

enum { MOST_PARTIALS = 64 }; /* sums over rows are taken in as many parts, whatever the threads */

struct rows_job {
    const struct level *level;
    const float *x, *dy, *scale;
    float *dx, *partial, epsilon; /* partial: (parts, 2, columns) */
    int64_t rows, columns, step;
};

static void layer_norm_chunk(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct rows_job *j = context;
    float *dscale = j->partial + chunk * 2 * j->columns;
    memset(dscale, 0, (size_t)(2 * j->columns) * sizeof *dscale);
    for (int64_t r = chunk * j->step; r < smaller(j->rows, (chunk + 1) * j->step); r++)
        j->level->table.train_layer_norm(j->x + r * j->columns, j->dy + r * j->columns, j->dx + r * j->columns, j->columns,
                                         j->scale, j->epsilon, dscale, dscale + j->columns);
}

int pumice_layer_norm_gradient(const float *x, const float *dy, float *dx, int64_t rows, int64_t columns,
                               const float *scale, float epsilon, float *dscale, float *dbias, int threads) {
    if (rows < 0 || columns < 1) return PUMICE_BAD_ARGUMENT;
    const int64_t step = larger(chunks_of(rows, MOST_PARTIALS), larger(1, CHUNK / columns)), parts = chunks_of(rows, step);
    float *partial = malloc((size_t)(larger(parts, 1) * 2 * columns) * sizeof *partial);
    if (!partial) return PUMICE_NO_MEMORY;
    struct rows_job job = {pumice_level(), x, dy, scale, dx, partial, epsilon, rows, columns, step};
    pumice_note_run(job.level, SLOT_train_layer_norm);
    pumice_parallel(threads, parts, layer_norm_chunk, &job);
    for (int64_t i = 0; i < columns; i++) dscale[i] = dbias[i] = 0;
    for (int64_t p = 0; p < parts; p++)
        for (int64_t i = 0; i < columns; i++) {
            dscale[i] += partial[2 * p * columns + i];
            dbias[i] += partial[(2 * p + 1) * columns + i];
        }
    free(partial);
    return PUMICE_OK;
}

static void softmax_chunk(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct rows_job *j = context;
    for (int64_t r = chunk * j->step; r < smaller(j->rows, (chunk + 1) * j->step); r++)
        j->level->table.train_softmax(j->x + r * j->columns, j->dy + r * j->columns, j->dx + r * j->columns, j->columns);
}

int pumice_softmax_gradient(const float *y, const float *dy, float *dx, int64_t rows, int64_t columns, int threads) {
    if (rows < 0 || columns < 1) return PUMICE_BAD_ARGUMENT;
    struct rows_job job = {.level = pumice_level(), .x = y, .dy = dy, .dx = dx, .rows = rows, .columns = columns, .step = larger(1, CHUNK / columns)};
    pumice_note_run(job.level, SLOT_train_softmax);
    pumice_parallel(threads, chunks_of(rows, job.step), softmax_chunk, &job);
    return PUMICE_OK;
}

/* --- the update of weights ---------------------------------------------------------------------------------------- */

struct update_job {
    const struct level *level;
    const struct pumice_adaptive *numbers;
    float *w, *p, *q;
    const float *g;
    int64_t count;
    _Atomic int broken; /* a sum is not finite */
};

static void update_chunk(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct update_job *j = context;
    const int64_t at = chunk * CHUNK;
    j->level->table.train_adaptive(j->numbers, j->w + at, j->g + at, j->p + at, j->q + at, smaller(CHUNK, j->count - at));
}

int pumice_adaptive_update(const struct pumice_adaptive *numbers, float *w, const float *g, float *p, float *q, int64_t count,
                           int threads) {
    if (count < 0) return PUMICE_BAD_ARGUMENT;
    struct update_job job = {.level = pumice_level(), .numbers = numbers, .w = w, .g = g, .p = p, .q = q, .count = count};
    pumice_note_run(job.level, SLOT_train_adaptive);
    pumice_parallel(threads, chunks_of(count, CHUNK), update_chunk, &job);
    return PUMICE_OK;
}

static void finite_chunk(void *context, int64_t chunk, int worker) {
    (void)worker;
    struct update_job *j = context;
    double sums[2] = {0, 0};
    j->level->table.train_moments(j->g + chunk * CHUNK, NULL, smaller(CHUNK, j->count - chunk * CHUNK), 0, sums);
    if (!isfinite(sums[0])) j->broken = 1;
}

int pumice_sums_finite(const float *x, int64_t count, int threads) {
    struct update_job job = {.level = pumice_level(), .g = x, .count = larger(count, 0)};
    pumice_note_run(job.level, SLOT_train_moments);
    pumice_parallel(threads, chunks_of(job.count, CHUNK), finite_chunk, &job);
    return !job.broken;
}

/* --- quantization ------------------------------------------------------------------------------------------------- */

struct levels_job {
    const struct level *level;
    const float *x, *given, *scale; /* x: NULL for dequantization */
    const uint8_t *q;
    const int32_t *zero;
    float *found, *partial, low, high; /* partial: the scale's gradient, (row, piece) */
    int64_t channels, inner, pieces;
    int is_signed;
};

static void levels_chunk(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct levels_job *j = context;
    const int64_t row = chunk / j->pieces, from = chunk % j->pieces * CHUNK, at = row * j->inner + from, c = row % j->channels;
    const int64_t count = smaller(CHUNK, j->inner - from);
    const float offset = (float)j->zero[c];
    const struct kernel_table *table = &j->level->table;
    j->partial[chunk] = j->x ? table->train_quantize(j->x + at, j->given + at, j->found + at, count, j->scale[c], j->low - offset,
                                                     j->high - offset)
                             : table->train_dequantize(j->q + at, j->is_signed, j->given + at, j->found + at, count, j->scale[c],
                                                       j->zero[c]);
}

static int levels_gradient(struct levels_job *job, int64_t outer, int64_t channels, int64_t inner, float *dscale, int threads) {
    if (outer < 0 || channels < 1 || inner < 1) return PUMICE_BAD_ARGUMENT;
    job->level = pumice_level(), job->channels = channels, job->inner = inner, job->pieces = chunks_of(inner, CHUNK);
    const int64_t chunks = outer * channels * job->pieces;
    double *total = calloc((size_t)channels, sizeof *total);
    job->partial = malloc((size_t)larger(chunks, 1) * sizeof *job->partial);
    const int made = total && job->partial;
    if (made) {
        pumice_note_run(job->level, job->x ? SLOT_train_quantize : SLOT_train_dequantize);
        pumice_parallel(outer * channels * inner < CHUNK ? 1 : threads, chunks, levels_chunk, job);
        for (int64_t i = 0; i < chunks; i++) total[i / job->pieces % channels] += (double)job->partial[i];
        for (int64_t c = 0; c < channels; c++) dscale[c] = (float)total[c];
    }
    free(total);
    free(job->partial);
    return made ? PUMICE_OK : PUMICE_NO_MEMORY;
}

int pumice_quantize_gradient(const float *x, const float *dq, float *dx, int64_t outer, int64_t channels, int64_t inner,
                             const float *scale, const int32_t *zero, float low, float high, float *dscale, int threads) {
    struct levels_job job = {.x = x, .given = dq, .found = dx, .scale = scale, .zero = zero, .low = low, .high = high};
    return levels_gradient(&job, outer, channels, inner, dscale, threads);
}

int pumice_dequantize_gradient(const uint8_t *q, int is_signed, const float *dy, float *dq, int64_t outer,
                               int64_t channels, int64_t inner, const float *scale, const int32_t *zero, float *dscale,
                               int threads) {
    struct levels_job job = {.q = q, .is_signed = is_signed, .given = dy, .found = dq, .scale = scale, .zero = zero};
    return levels_gradient(&job, outer, channels, inner, dscale, threads);
}

/* --- the maximum of windows --------------------------------------------------------------------------------------- */

struct pool_job {
    const struct pumice_conv_shape *shape;
    const float *x, *y, *dy;
    float *dx;
    int64_t planes, step;
    int64_t *taps; /* elements from the first tap of a window to each, where windows read data and nothing else */
};

/* Index in the plane of the first element of a window that equals its maximum, or -1 (NaN equals nothing). */
static int64_t first_maximum(const struct pumice_conv_shape *s, const float *plane, float top, const int64_t start[3]) {
    for (int64_t i = 0, d = start[0]; i < s->kernel[0]; i++, d += s->dilation[0]) {
        if (d < 0 || d >= s->size[0]) continue;
        for (int64_t j = 0, h = start[1]; j < s->kernel[1]; j++, h += s->dilation[1]) {
            if (h < 0 || h >= s->size[1]) continue;
            for (int64_t k = 0, w = start[2]; k < s->kernel[2]; k++, w += s->dilation[2]) {
                const int64_t at = (d * s->size[1] + h) * s->size[2] + w;
                if (w >= 0 && w < s->size[2] && plane[at] == top) return at;
            }
        }
    }
    return -1;
}

/* The same for a row of outputs without borders, and without branches on the data: from the last tap to the first, each
 * that is equal wins. */
static inline __attribute__((always_inline)) void row_of_taps(const int64_t *taps, const int64_t count, const float *window,
                                                              int64_t stride, const float *y, const float *dy, float *dx,
                                                              int64_t outputs) {
    for (int64_t o = 0; o < outputs; o++, window += stride, dx += stride) {
        int64_t found = -1;
        for (int64_t t = count - 1; t >= 0; t--) found = window[taps[t]] == y[o] ? taps[t] : found;
        if (found >= 0) dx[found] += dy[o];
    }
}

static void pool_row(const struct pool_job *j, const float *plane, const float *y, const float *dy, float *dx, const int64_t start[3]) {
    const struct pumice_conv_shape *s = j->shape;
    const int64_t from = (start[0] * s->size[1] + start[1]) * s->size[2] + start[2], count = volume(s->kernel);
    if (j->taps && count == 4) { /* known to the compiler: unrolled */
        row_of_taps(j->taps, 4, plane + from, s->stride[2], y, dy, dx + from, s->output[2]);
        return;
    }
    if (j->taps) {
        row_of_taps(j->taps, count, plane + from, s->stride[2], y, dy, dx + from, s->output[2]);
        return;
    }
    for (int64_t o = 0; o < s->output[2]; o++) {
        const int64_t at = first_maximum(s, plane, y[o], (int64_t[3]){start[0], start[1], start[2] + o * s->stride[2]});
        if (at >= 0) dx[at] += dy[o];
    }
}

static void pool_plane(const struct pool_job *j, int64_t p) {
    const struct pumice_conv_shape *s = j->shape;
    const int64_t pixels = volume(s->size), results = volume(s->output), row = s->output[2];
    const float *y = j->y + p * results, *dy = j->dy + p * results;
    memset(j->dx + p * pixels, 0, (size_t)pixels * sizeof(float));
    for (int64_t d = 0; d < s->output[0]; d++)
        for (int64_t h = 0; h < s->output[1]; h++, y += row, dy += row) {
            const int64_t start[3] = {d * s->stride[0] - s->before[0], h * s->stride[1] - s->before[1], -s->before[2]};
            pool_row(j, j->x + p * pixels, y, dy, j->dx + p * pixels, start);
        }
}

static int64_t *taps_of(const struct pumice_conv_shape *s) {
    int64_t *taps = malloc((size_t)volume(s->kernel) * sizeof *taps), *next = taps;
    for (int64_t i = 0; taps && i < s->kernel[0]; i++)
        for (int64_t j = 0; j < s->kernel[1]; j++)
            for (int64_t k = 0; k < s->kernel[2]; k++)
                *next++ = (i * s->dilation[0] * s->size[1] + j * s->dilation[1]) * s->size[2] + k * s->dilation[2];
    return taps;
}

static void pool_chunk(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct pool_job *j = context;
    for (int64_t p = chunk * j->step; p < smaller(j->planes, (chunk + 1) * j->step); p++) pool_plane(j, p);
}

int pumice_max_pool_gradient(const struct pumice_conv_shape *shape, int64_t batch, const float *x, const float *y,
                             const float *dy, float *dx, int threads) {
    if (!makes_sense(shape) || batch < 0) return PUMICE_BAD_ARGUMENT;
    const int64_t planes = batch * shape->channels, step = larger(1, CHUNK / volume(shape->size));
    struct pool_job job = {shape, x, y, dy, dx, planes, step, inside(shape) ? taps_of(shape) : NULL};
    pumice_parallel(threads, chunks_of(planes, step), pool_chunk, &job);
    free(job.taps);
    return PUMICE_OK;
}
