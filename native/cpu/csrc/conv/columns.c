/* The windows of images as the columns of a matrix, and the adjoint: (channel, tap) by (image, output), zero outside the
 * image. A convolution is then the product of its weights, as they lie, with the columns; nothing of the weights is packed,
 * which pays where they change with every step. */
#include <string.h>

#include "base/api.h"
#include "base/numbers.h"
#include "conv/api.h"
#include "conv/shape.h"
#include "pool/pool.h"

static const int64_t LEAST_ELEMENTS = 1 << 14; /* of columns, worth handing to another thread */

struct columns_job {
    const struct pumice_conv_shape *shape;
    int64_t batch, step; /* channels of a chunk */
    float *images, *columns;
    int adjoint;
};

/* Along one axis the outputs whose tap lies in the image, and where that of output 0 would lie. */
struct span {
    int64_t from, until, origin;
};

static struct span span_of(const struct pumice_conv_shape *s, int axis, int64_t tap) {
    const int64_t origin = tap * s->dilation[axis] - s->before[axis], stride = s->stride[axis], size = s->size[axis];
    const int64_t from = origin < 0 ? (stride - 1 - origin) / stride : 0;
    const int64_t until = origin < size ? smaller(s->output[axis], (size - 1 - origin) / stride + 1) : 0;
    return (struct span){smaller(from, until), until, origin};
}

static void copy_run(float *column, const float *x, int64_t stride, int64_t count) {
    if (stride == 1)
        for (int64_t i = 0; i < count; i++) column[i] = x[i];
    else
        for (int64_t i = 0; i < count; i++) column[i] = x[i * stride];
}

static void add_run(float *x, const float *column, int64_t stride, int64_t count) {
    if (stride == 1)
        for (int64_t i = 0; i < count; i++) x[i] += column[i];
    else
        for (int64_t i = 0; i < count; i++) x[i * stride] += column[i];
}

/* One tap of one channel of one image. */
static void move_plane(const struct columns_job *j, float *image, float *column, const struct span span[3]) {
    const int64_t *size = j->shape->size, *stride = j->shape->stride, *output = j->shape->output;
    const int64_t count = span[2].until - span[2].from;
    if (!j->adjoint) memset(column, 0, (size_t)volume(output) * sizeof *column);
    for (int64_t d = span[0].from; d < span[0].until; d++)
        for (int64_t h = span[1].from; h < span[1].until; h++) {
            const int64_t row = (span[0].origin + d * stride[0]) * size[1] + span[1].origin + h * stride[1];
            float *x = image + row * size[2] + span[2].origin + span[2].from * stride[2];
            float *run = column + (d * output[1] + h) * output[2] + span[2].from;
            if (j->adjoint)
                add_run(x, run, stride[2], count);
            else
                copy_run(run, x, stride[2], count);
        }
}

static void move_channel(const struct columns_job *j, int64_t c) {
    const struct pumice_conv_shape *s = j->shape;
    const int64_t pixels = volume(s->size), outputs = volume(s->output), taps = volume(s->kernel);
    for (int64_t n = 0; j->adjoint && n < j->batch; n++)
        memset(j->images + (n * s->channels + c) * pixels, 0, (size_t)pixels * sizeof *j->images);
    for (int64_t t = 0; t < taps; t++) {
        const struct span span[] = {span_of(s, 0, t / (s->kernel[1] * s->kernel[2])),
                                    span_of(s, 1, t / s->kernel[2] % s->kernel[1]), span_of(s, 2, t % s->kernel[2])};
        for (int64_t n = 0; n < j->batch; n++)
            move_plane(j, j->images + (n * s->channels + c) * pixels,
                       j->columns + ((c * taps + t) * j->batch + n) * outputs, span);
    }
}

static void move_chunk(void *context, int64_t chunk, int worker) {
    (void)worker;
    const struct columns_job *j = context;
    for (int64_t c = chunk * j->step; c < smaller(j->shape->channels, (chunk + 1) * j->step); c++) move_channel(j, c);
}

static int move(struct columns_job *job, int threads) {
    const struct pumice_conv_shape *s = job->shape;
    if (!makes_sense(s) || job->batch < 0) return PUMICE_BAD_ARGUMENT;
    job->step = larger(1, LEAST_ELEMENTS / larger(1, volume(s->kernel) * job->batch * volume(s->output)));
    pumice_parallel(threads, (s->channels + job->step - 1) / job->step, move_chunk, job);
    return PUMICE_OK;
}

int pumice_conv_columns(const struct pumice_conv_shape *shape, int64_t batch, const float *x, float *columns, int threads) {
    struct columns_job job = {.shape = shape, .batch = batch, .images = (float *)x, .columns = columns};
    return move(&job, threads);
}

int pumice_conv_from_columns(const struct pumice_conv_shape *shape, int64_t batch, const float *columns, float *x, int threads) {
    struct columns_job job = {.shape = shape, .batch = batch, .images = x, .columns = (float *)columns, .adjoint = 1};
    return move(&job, threads);
}
