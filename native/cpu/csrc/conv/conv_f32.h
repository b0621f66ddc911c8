/* A packed float convolution and one run of it. */
#ifndef PUMICE_CONV_CONV_F32_H
#define PUMICE_CONV_CONV_F32_H

#include <math.h>

#include "base/table.h"
#include "conv/api.h"
#include "conv/planes.h"

/* A grid of outputs that share their taps. */
struct job {
    int64_t depth;      /* channels of a group x taps */
    int64_t *offset;    /* of each, from the group's first channel */
    float *weights;     /* [group][panel][depth][filters]; [filter][depth] where summed tap by tap */
    int64_t output[3];
    int64_t start, step[3]; /* where its outputs lie in a filter's result */
    int compact;            /* side by side */
};

struct pumice_conv_f32 {
    struct pumice_conv_shape shape;
    const struct level *level;
    struct conv_f32_form form;
    struct planes planes;
    int tap_by_tap; /* see channel_task */
    int small;      /* few pixels: filters are lanes, see conv_f32_small.c */
    int64_t panels; /* a group */
    int64_t rows;   /* filters of a panel */
    int64_t job_count;
    struct job *jobs;
};

struct conv_f32_run {
    const struct pumice_conv_f32 *conv;
    const struct job *job;
    const struct pumice_conv_f32_epilogue *epilogue;
    const float *bias; /* [group][panel][filters] */
    const float *x;
    float *frames;
    const float *images;
    float *y;
    int64_t batch;
    int64_t pixels; /* flat, of a plane, those between outputs counted */
    int64_t tiles, tile_step, tile_groups;
    int64_t panel_step, panel_groups;
    float *columns;         /* [depth][pixels] of a group, or NULL: windows are read in the frame */
    const int64_t *offset;  /* of each input, in what windows are read from */
    const int64_t *starts;  /* of the runs of a small image */
    int64_t runs;
    int64_t channel_step;   /* channels of a chunk, where taps are summed one by one */
    int failed;
};

static inline int has_finish(const struct pumice_conv_f32_epilogue *e) {
    return e->residual || e->low > -INFINITY || e->high < INFINITY;
}

/* Residual and bounds, on outputs that were just stored: `count` from place `at` of the result. */
static inline void conv_f32_finish(const struct conv_f32_run *run, int64_t at, int64_t count) {
    const struct pumice_conv_f32_epilogue *e = run->epilogue;
    run->conv->level->table.conv_f32_finish(run->y + at, e->residual ? e->residual + at : NULL, count, e->low, e->high);
}

/* conv_f32_small.c */
int conv_f32_is_small(const struct pumice_conv_f32 *conv);
int conv_f32_run_small(struct conv_f32_run *run, int threads);

#endif
