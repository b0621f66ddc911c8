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

static void pool_some(const struct pooling *p, const struct nhwc_span *span, const float *image, float *y) {
    const int64_t channels = p->shape->channels;
    p->level->table.nhwc_maximum(y + span->from * channels, channels, image, p->shape->stride[ACROSS] * channels,
                                 span->at, span->taps, span->until - span->from, channels);
}

static void pool_chunk(void *context, int64_t chunk, int worker) {
    struct pooling *p = context;
    const struct pumice_conv_shape *s = p->shape;
    int64_t *memory = pumice_scratch(SCRATCH_CONV, nhwc_span_bytes(s));
    if (!memory) {
        p->failed = 1;
        return;
    }
    for (int64_t number = chunk * p->step; number < smaller(p->rows, (chunk + 1) * p->step); number++) {
        const int64_t row = number % s->output[DOWN];
        const float *x = p->x + number / s->output[DOWN] * volume(s->size) * s->channels;
        struct nhwc_span span = nhwc_first_span(memory);
        while (nhwc_next_span(s, row, s->size[ACROSS] * s->channels, s->channels, &span))
            pool_some(p, &span, x, p->y + number * s->output[ACROSS] * s->channels);
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
