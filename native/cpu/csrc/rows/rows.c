/* The public functions on rows and elements: the split into chunks, and nothing else. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "base/table.h"
#include "pool/pool.h"
#include "rows/api.h"

enum { HISTOGRAM_BINS = 1 << 16 };
static const int64_t LEAST_ELEMENTS = 32768; /* of a chunk: handing over less costs more, with what the other core must fetch */

/* Elements of a chunk so that every thread gets one or two, none below the least, and all threads as many. */
static int64_t share(int64_t elements, int threads, int64_t least) {
    const int64_t team = pumice_team(threads), most = team == 1 ? 1 : smaller(2 * team, elements / larger(least, 1));
    const int64_t chunks = most < team ? larger(most, 1) : most / team * team;
    return larger((elements + chunks - 1) / chunks, 1);
}

static int64_t chunks_of(int64_t count, int64_t step) { return (count + step - 1) / step; }

/* --- maps --------------------------------------------------------------------------------------------------------- */

struct map_job {
    const struct level *level;
    int function;
    const float *in, *parameters;
    float *out;
    int64_t count, step;
};

static void map_chunk(void *context, int64_t chunk, int worker) {
    const struct map_job *j = context;
    const int64_t from = chunk * j->step;
    j->level->table.rows_map(j->function, j->in + from, j->out + from, smaller(j->step, j->count - from), j->parameters);
}

int pumice_map(int function, const float *in, float *out, int64_t count, const float *parameters, int threads) {
    if (function < PUMICE_F_EXP || function > PUMICE_F_RECIPROCAL || count < 0) return PUMICE_BAD_ARGUMENT;
    struct map_job job = {pumice_level(), function, in, parameters, out, count, 0};
    job.step = round_up(share(count, threads, LEAST_ELEMENTS), 16);
    pumice_note_run(job.level, SLOT_rows_map);
    pumice_parallel(threads, chunks_of(count, job.step), map_chunk, &job);
    return PUMICE_OK;
}

struct batch_norm_job {
    const struct level *level;
    const float *in, *scale, *bias, *mean, *var;
    float *out, epsilon;
    int64_t planes, channels, inner, step;
};

static void batch_norm_chunk(void *context, int64_t chunk, int worker) {
    const struct batch_norm_job *j = context;
    for (int64_t p = chunk * j->step; p < smaller(j->planes, (chunk + 1) * j->step); p++) {
        const int64_t c = p % j->channels;
        const float parameters[] = {j->scale[c] / sqrtf(j->var[c] + j->epsilon), j->bias[c], j->mean[c]};
        j->level->table.rows_map(PUMICE_F_AFFINE, j->in + p * j->inner, j->out + p * j->inner, j->inner, parameters);
    }
}

int pumice_batch_norm(const float *in, float *out, int64_t batch, int64_t channels, int64_t inner, const float *scale,
                      const float *bias, const float *mean, const float *var, float epsilon, int threads) {
    if (batch < 0 || channels < 0 || inner < 0) return PUMICE_BAD_ARGUMENT;
    struct batch_norm_job job = {pumice_level(), in, scale, bias, mean, var, out, epsilon, batch * channels, channels, inner, 0};
    job.step = share(job.planes, threads, LEAST_ELEMENTS / larger(inner, 1));
    pumice_note_run(job.level, SLOT_rows_map);
    pumice_parallel(threads, chunks_of(job.planes, job.step), batch_norm_chunk, &job);
    return PUMICE_OK;
}

/* --- two operands ------------------------------------------------------------------------------------------------- */

enum { BINARY_AXES = 4 };

struct binary_job {
    const struct level *level;
    int operation;
    const float *a, *b;
    float *out;
    int64_t a_steps[BINARY_AXES], b_steps[BINARY_AXES], shape[BINARY_AXES], step;
};

static void binary_chunk(void *context, int64_t chunk, int worker) {
    const struct binary_job *j = context;
    const int64_t rows = j->shape[0] * j->shape[1] * j->shape[2], columns = j->shape[3];
    for (int64_t row = chunk * j->step; row < smaller(rows, (chunk + 1) * j->step); row++) {
        const int64_t i2 = row % j->shape[2], i1 = row / j->shape[2] % j->shape[1], i0 = row / j->shape[2] / j->shape[1];
        const float *a = j->a + i0 * j->a_steps[0] + i1 * j->a_steps[1] + i2 * j->a_steps[2];
        const float *b = j->b + i0 * j->b_steps[0] + i1 * j->b_steps[1] + i2 * j->b_steps[2];
        j->level->table.rows_binary(j->operation, a, j->a_steps[3], b, j->b_steps[3], j->out + row * columns, columns);
    }
}

/* Operands that are contiguous over all axes become one long row, so that it can be shared out. */
static void cut_rows(struct binary_job *j, int threads) {
    const int64_t columns = j->shape[3], least = LEAST_ELEMENTS;
    if (j->shape[0] * j->shape[1] * j->shape[2] != 1 || columns < 2 * least) return;
    int64_t pieces = smaller(pumice_team(threads) * 2, columns / least);
    while (columns % pieces) pieces--;
    j->shape[2] = pieces;
    j->shape[3] = columns / pieces;
    j->a_steps[2] = j->a_steps[3] * j->shape[3];
    j->b_steps[2] = j->b_steps[3] * j->shape[3];
}

int pumice_binary(int operation, const float *a, const int64_t *a_steps, const float *b, const int64_t *b_steps, float *out,
                  const int64_t *shape, int threads) {
    if (operation < PUMICE_ADD || operation > PUMICE_DIV || a_steps[3] < 0 || a_steps[3] > 1 || b_steps[3] < 0 || b_steps[3] > 1)
        return PUMICE_BAD_ARGUMENT;
    struct binary_job job = {.level = pumice_level(), .operation = operation, .a = a, .b = b, .out = out};
    memcpy(job.a_steps, a_steps, sizeof job.a_steps);
    memcpy(job.b_steps, b_steps, sizeof job.b_steps);
    memcpy(job.shape, shape, sizeof job.shape);
    cut_rows(&job, threads);
    const int64_t rows = job.shape[0] * job.shape[1] * job.shape[2];
    job.step = share(rows, threads, LEAST_ELEMENTS / larger(job.shape[3], 1));
    pumice_note_run(job.level, SLOT_rows_binary);
    pumice_parallel(threads, chunks_of(rows, job.step), binary_chunk, &job);
    return PUMICE_OK;
}

/* --- rows --------------------------------------------------------------------------------------------------------- */

struct rows_job {
    const struct level *level;
    const float *in, *scale, *bias;
    float *out, *mean, *inverse, epsilon;
    int64_t rows, columns, step;
    int flag; /* logarithm, or rms */
};

static void softmax_chunk(void *context, int64_t chunk, int worker) {
    const struct rows_job *j = context;
    for (int64_t r = chunk * j->step; r < smaller(j->rows, (chunk + 1) * j->step); r++)
        j->level->table.rows_softmax(j->in + r * j->columns, j->out + r * j->columns, j->columns, j->flag);
}

int pumice_softmax(const float *in, float *out, int64_t rows, int64_t columns, int logarithm, int threads) {
    if (rows < 0 || columns < 1) return PUMICE_BAD_ARGUMENT;
    struct rows_job job = {.level = pumice_level(), .in = in, .out = out, .rows = rows, .columns = columns, .flag = logarithm};
    job.step = share(rows, threads, LEAST_ELEMENTS / columns);
    pumice_note_run(job.level, SLOT_rows_softmax);
    pumice_parallel(threads, chunks_of(rows, job.step), softmax_chunk, &job);
    return PUMICE_OK;
}

static void layer_norm_chunk(void *context, int64_t chunk, int worker) {
    const struct rows_job *j = context;
    for (int64_t r = chunk * j->step; r < smaller(j->rows, (chunk + 1) * j->step); r++)
        j->level->table.rows_layer_norm(j->in + r * j->columns, j->out + r * j->columns, j->columns, j->scale, j->bias, j->epsilon,
                                        j->flag, j->mean ? j->mean + r : NULL, j->inverse ? j->inverse + r : NULL);
}

int pumice_layer_norm(const float *in, float *out, int64_t rows, int64_t columns, const float *scale, const float *bias,
                      float epsilon, int rms, float *mean, float *inverse, int threads) {
    if (rows < 0 || columns < 1) return PUMICE_BAD_ARGUMENT;
    struct rows_job job = {pumice_level(), in, scale, bias, out, mean, inverse, epsilon, rows, columns, 0, rms};
    job.step = share(rows, threads, LEAST_ELEMENTS / columns);
    pumice_note_run(job.level, SLOT_rows_layer_norm);
    pumice_parallel(threads, chunks_of(rows, job.step), layer_norm_chunk, &job);
    return PUMICE_OK;
}

/* --- reductions --------------------------------------------------------------------------------------------------- */

struct reduce_job {
    const struct level *level;
    const float *in;
    float *out;
    int64_t outer, reduced, inner, step;
    int reduction;
};

static void reduce_columns(const struct reduce_job *j, const float *in, float *out) {
    memcpy(out, in, (size_t)j->inner * sizeof *out);
    if (j->reduction == PUMICE_SUM_SQUARE) {
        memset(out, 0, (size_t)j->inner * sizeof *out);
        j->level->table.rows_fold(j->reduction, out, in, j->inner);
    }
    for (int64_t r = 1; r < j->reduced; r++) j->level->table.rows_fold(j->reduction, out, in + r * j->inner, j->inner);
    const float parameters[] = {1 / (float)j->reduced, 0, 0};
    if (j->reduction == PUMICE_MEAN) j->level->table.rows_map(PUMICE_F_AFFINE, out, out, j->inner, parameters);
}

static void reduce_chunk(void *context, int64_t chunk, int worker) {
    const struct reduce_job *j = context;
    for (int64_t o = chunk * j->step; o < smaller(j->outer, (chunk + 1) * j->step); o++) {
        const float *in = j->in + o * j->reduced * j->inner;
        if (j->inner == 1)
            j->out[o] = j->level->table.rows_reduce(j->reduction, in, j->reduced);
        else
            reduce_columns(j, in, j->out + o * j->inner);
    }
}

int pumice_reduce(int reduction, const float *in, float *out, int64_t outer, int64_t reduced, int64_t inner, int threads) {
    if (reduction < PUMICE_SUM || reduction > PUMICE_SUM_SQUARE || outer < 0 || reduced < 1 || inner < 1) return PUMICE_BAD_ARGUMENT;
    struct reduce_job job = {pumice_level(), in, out, outer, reduced, inner, 0, reduction};
    job.step = share(outer, threads, LEAST_ELEMENTS / (reduced * inner));
    pumice_note_run(job.level, inner == 1 ? SLOT_rows_reduce : SLOT_rows_fold);
    pumice_parallel(threads, chunks_of(outer, job.step), reduce_chunk, &job);
    return PUMICE_OK;
}

/* --- quantization ------------------------------------------------------------------------------------------------- */

struct quantize_job {
    const struct level *level;
    const void *in;
    void *out;
    const float *scale;
    const int32_t *zero;
    int32_t low, high;
    int stored, back;
    int64_t rows, axis, inner, pieces, step;
};

/* A chunk is some rows, or where there are few of them, a piece of one. */
static void quantize_chunk(void *context, int64_t chunk, int worker) {
    const struct quantize_job *j = context;
    for (int64_t i = chunk * j->step; i < smaller(j->rows * j->pieces, (chunk + 1) * j->step); i++) {
        const int64_t row = i / j->pieces, width = (j->inner + j->pieces - 1) / j->pieces, from = i % j->pieces * width;
        const int64_t at = row * j->inner + from, count = smaller(width, j->inner - from), a = row % j->axis;
        const int32_t zero = j->zero ? j->zero[a] : 0;
        if (count <= 0) continue;
        if (j->back) {
            j->level->table.rows_dequantize((const char *)j->in + at, j->stored, (float *)j->out + at, count, j->scale[a], zero);
        } else {
            const struct rows_quantization q = {j->scale[a], zero, j->low, j->high};
            j->level->table.rows_quantize((const float *)j->in + at, (char *)j->out + at, count, &q);
        }
    }
}

static int run_quantization(struct quantize_job *job, int slot, int64_t outer, int threads) {
    job->level = pumice_level();
    job->rows = outer * job->axis;
    job->pieces = job->rows < 2 * pumice_team(threads) ? larger(1, smaller(pumice_team(threads) * 2, job->inner / LEAST_ELEMENTS)) : 1;
    job->step = share(job->rows * job->pieces, threads, LEAST_ELEMENTS / larger(1, job->inner / job->pieces));
    pumice_note_run(job->level, slot);
    pumice_parallel(threads, chunks_of(job->rows * job->pieces, job->step), quantize_chunk, job);
    return PUMICE_OK;
}

int pumice_quantize(const float *in, void *out, int stored, int64_t outer, int64_t axis, int64_t inner, const float *scale,
                    const int32_t *zero, int32_t low, int32_t high, int threads) {
    if (outer < 0 || axis < 1 || inner < 0 || low > high || low < (stored ? -128 : 0) || high > (stored ? 127 : 255))
        return PUMICE_BAD_ARGUMENT;
    struct quantize_job job = {.in = in, .out = out, .scale = scale, .zero = zero, .low = low, .high = high, .axis = axis, .inner = inner};
    return run_quantization(&job, SLOT_rows_quantize, outer, threads);
}

int pumice_dequantize(const void *in, int stored, float *out, int64_t outer, int64_t axis, int64_t inner, const float *scale,
                      const int32_t *zero, int threads) {
    if (outer < 0 || axis < 1 || inner < 0) return PUMICE_BAD_ARGUMENT;
    struct quantize_job job = {.in = in, .out = out, .scale = scale, .zero = zero, .stored = stored, .back = 1, .axis = axis, .inner = inner};
    return run_quantization(&job, SLOT_rows_dequantize, outer, threads);
}

/* --- calibration -------------------------------------------------------------------------------------------------- */

enum { MOST_PARTS = 64 };

struct range_job {
    const struct level *level;
    const float *in;
    int64_t count, step;
    float ranges[MOST_PARTS][2];
};

static void range_chunk(void *context, int64_t chunk, int worker) {
    struct range_job *j = context;
    const int64_t from = chunk * j->step;
    j->level->table.rows_range(j->in + from, smaller(j->step, j->count - from), j->ranges[chunk]);
}

int pumice_range(const float *in, int64_t count, float *range, int threads) {
    if (count < 1) return PUMICE_BAD_ARGUMENT;
    struct range_job job = {.level = pumice_level(), .in = in, .count = count};
    job.step = larger(share(count, threads, LEAST_ELEMENTS), (count + MOST_PARTS - 1) / MOST_PARTS);
    pumice_note_run(job.level, SLOT_rows_range);
    pumice_parallel(threads, chunks_of(count, job.step), range_chunk, &job);
    range[0] = job.ranges[0][0];
    range[1] = job.ranges[0][1];
    for (int64_t i = 1; i < chunks_of(count, job.step) && range[0] == range[0]; i++) { /* NaN stays */
        if (!(job.ranges[i][0] >= range[0])) range[0] = job.ranges[i][0];
        if (!(job.ranges[i][1] <= range[1])) range[1] = job.ranges[i][1];
    }
    return PUMICE_OK;
}

struct histogram_job {
    const uint32_t *in;
    int64_t count, step;
    uint32_t *counts; /* of every chunk */
};

/* Two tables in turn, so that equal neighbours do not wait for each other's count. */
static void histogram_chunk(void *context, int64_t chunk, int worker) {
    const struct histogram_job *j = context;
    uint32_t *even = j->counts + chunk * 2 * HISTOGRAM_BINS, *odd = even + HISTOGRAM_BINS;
    const int64_t from = chunk * j->step, to = smaller(from + j->step, j->count);
    int64_t i = from;
    for (; i + 2 <= to; i += 2) {
        even[j->in[i] >> 16]++;
        odd[j->in[i + 1] >> 16]++;
    }
    if (i < to) even[j->in[i] >> 16]++;
}

int pumice_histogram(const float *in, int64_t count, int64_t *counts, int threads) {
    if (count < 0) return PUMICE_BAD_ARGUMENT;
    const int64_t most = INT64_C(1) << 31; /* counters of 32 bits */
    for (int64_t from = 0; from < count; from += most) {
        struct histogram_job job = {.in = (const uint32_t *)(const void *)(in + from), .count = smaller(most, count - from)};
        job.step = larger(1, (job.count + pumice_team(threads) - 1) / pumice_team(threads));
        job.step = larger(job.step, 8 * HISTOGRAM_BINS);
        const int64_t chunks = chunks_of(job.count, job.step);
        job.counts = calloc((size_t)chunks * 2 * HISTOGRAM_BINS, sizeof *job.counts);
        if (!job.counts) return PUMICE_NO_MEMORY;
        pumice_parallel(threads, chunks, histogram_chunk, &job);
        for (int64_t i = 0; i < chunks * 2 * HISTOGRAM_BINS; i++) counts[i % HISTOGRAM_BINS] += job.counts[i];
        free(job.counts);
    }
    return PUMICE_OK;
}

struct nearest_job {
    const struct level *level;
    const float *points, *centroids;
    int64_t count, width, clusters, step;
    int32_t *nearest;
};

static void nearest_chunk(void *context, int64_t chunk, int worker) {
    const struct nearest_job *j = context;
    const int64_t from = chunk * j->step;
    j->level->table.rows_nearest(j->points + from * j->width, smaller(j->step, j->count - from), j->width, j->centroids,
                                 j->clusters, j->nearest + from);
}

int pumice_nearest(const float *points, int64_t count, int64_t width, const float *centroids, int64_t clusters,
                   int32_t *nearest, int threads) {
    if (count < 0 || width < 1 || clusters < 1) return PUMICE_BAD_ARGUMENT;
    struct nearest_job job = {pumice_level(), points, centroids, count, width, clusters, 0, nearest};
    job.step = round_up(share(count, threads, LEAST_ELEMENTS / smaller(clusters * width, 64)), 16);
    pumice_note_run(job.level, SLOT_rows_nearest);
    pumice_parallel(threads, chunks_of(count, job.step), nearest_chunk, &job);
    return PUMICE_OK;
}
