/* Maxima of windows, channels last. A window at the border is cut down to what lies inside the image. */
#include "base/memory.h"
#include "base/numbers.h"
#include "nhwc/nhwc.h"
#include "pool/pool.h"

static const int64_t CHUNK_READS = 1 << 17;

struct pooling {
    const struct pumice_conv_shape *shape;
    const struct level *level;
    const float *x;
    float *y;
    int64_t rows, step; /* of outputs, of all images; of a chunk */
    int failed;
};

/* Outputs o of an axis whose tap t lies inside: first, and one past the last. */
static int64_t first_inside(const struct pumice_conv_shape *s, int axis, int64_t tap) {
    const int64_t missing = s->before[axis] - tap * s->dilation[axis];
    return missing > 0 ? smaller(s->output[axis], (missing + s->stride[axis] - 1) / s->stride[axis]) : 0;
}

static int64_t end_inside(const struct pumice_conv_shape *s, int axis, int64_t tap) {
    const int64_t room = s->size[axis] - 1 + s->before[axis] - tap * s->dilation[axis];
    return room < 0 ? 0 : smaller(s->output[axis], room / s->stride[axis] + 1);
}

/* Outputs [from, until) of a row, which all have the same taps. */
static void pool_some(const struct pooling *p, const float *image, float *y, int64_t row, int64_t from, int64_t until,
                      int64_t *at) {
    const struct pumice_conv_shape *s = p->shape;
    int64_t taps = 0;
    for (int64_t i = 0; i < s->kernel[DOWN]; i++)
        for (int64_t j = 0; j < s->kernel[ACROSS]; j++) {
            const int64_t h = row * s->stride[DOWN] + i * s->dilation[DOWN] - s->before[DOWN];
            const int64_t w = from * s->stride[ACROSS] + j * s->dilation[ACROSS] - s->before[ACROSS];
            if (h >= 0 && h < s->size[DOWN] && w >= 0 && w < s->size[ACROSS])
                at[taps++] = (h * s->size[ACROSS] + w) * s->channels;
        }
    p->level->table.nhwc_maximum(y + from * s->channels, s->channels, image, s->stride[ACROSS] * s->channels, at, taps,
                                 until - from, s->channels);
}

static void pool_chunk(void *context, int64_t chunk, int worker) {
    struct pooling *p = context;
    const struct pumice_conv_shape *s = p->shape;
    int64_t *at = pumice_scratch(SCRATCH_CONV, (size_t)volume(s->kernel) * sizeof *at);
    if (!at) {
        p->failed = 1;
        return;
    }
    const int64_t last = s->kernel[ACROSS] - 1;
    const int64_t whole = first_inside(s, ACROSS, 0), end = larger(whole, end_inside(s, ACROSS, last));
    for (int64_t number = chunk * p->step; number < smaller(p->rows, (chunk + 1) * p->step); number++) {
        const int64_t image = number / s->output[DOWN], row = number % s->output[DOWN];
        const float *x = p->x + image * volume(s->size) * s->channels;
        float *y = p->y + number * s->output[ACROSS] * s->channels;
        for (int64_t o = 0; o < whole; o++) pool_some(p, x, y, row, o, o + 1, at);
        if (end > whole) pool_some(p, x, y, row, whole, end, at);
        for (int64_t o = end; o < s->output[ACROSS]; o++) pool_some(p, x, y, row, o, o + 1, at);
    }
}

int pumice_nhwc_max_pool(const struct pumice_conv_shape *shape, int64_t batch, const float *x, float *y, int threads) {
    if (!makes_sense(shape) || shape->size[0] != 1 || shape->kernel[0] != 1) return PUMICE_BAD_ARGUMENT;
    struct pooling pooling = {
        .shape = shape, .level = pumice_level(), .x = x, .y = y, .rows = batch * shape->output[DOWN]};
    pooling.step = CHUNK_READS / (shape->output[ACROSS] * shape->channels * volume(shape->kernel)) + 1;
    pumice_note_run(pooling.level, SLOT_nhwc_maximum);
    pumice_parallel(threads, (pooling.rows + pooling.step - 1) / pooling.step, pool_chunk, &pooling);
    return pooling.failed ? PUMICE_NO_MEMORY : PUMICE_OK;
}
