/* Convolutions and matrix products of float images with channels last, and everything that follows them, at once. */
#ifndef PUMICE_NHWC_API_H
#define PUMICE_NHWC_API_H

#include <stdint.h>

#include "conv/api.h"

/* Packed weights. Filter f, channel c of its group and tap t lie at weights[f * steps[0] + c * steps[1] + t * steps[2]];
 * `scale`, one a filter or NULL, multiplies them. Groups are one, or one a channel with one filter each (depthwise). The
 * first spatial axis has size and kernel 1. NULL where there is no memory or the shape makes no sense.
 *
 * A matrix product A B is a convolution of images of one pixel: channels are k, filters n, the batch is m. */
struct pumice_nhwc;
struct pumice_nhwc *pumice_nhwc_create(const struct pumice_conv_shape *shape, const float *weights,
                                       const int64_t *steps, const float *scale, int threads);
/* The same, whose operands are never split. */
struct pumice_nhwc *pumice_nhwc_create_whole(const struct pumice_conv_shape *shape, const float *weights,
                                             const int64_t *steps, const float *scale, int threads);
void pumice_nhwc_free(struct pumice_nhwc *conv);

/* Whether the level in force multiplies split operands, faster than float32. */
int pumice_nhwc_splits(void);

/* v = sum + bias[f]; v = v + residual unless `late`; v = function(v), or v bounded; v = v + residual if `late`. */
struct pumice_nhwc_epilogue {
    const float *bias; /* NULL: 0 */
    int32_t late;
    int32_t function; /* enum pumice_function, or -1 */
    const float *parameters;
    float low, high; /* -infinity, infinity for none */
    int64_t y_step;  /* elements from one pixel of y to the next; 0: as many as filters */
};

/* y (batch, *output, filters), contiguous but for the step, from x; x_steps are the elements from one image, channel, row and column to
 * the next. The residual is NULL or like y without gaps, and another memory. Where an operand is infinite or NaN, and cannot be split,
 * all is computed again in float32. */
int pumice_nhwc_run(const struct pumice_nhwc *conv, int64_t batch, const float *x, const int64_t *x_steps,
                    const float *residual, float *y, const struct pumice_nhwc_epilogue *epilogue, int threads);

/* The maximum of each window's data, NaN if there is one: x (batch, *size, channels) to y (batch, *output, channels). */
int pumice_nhwc_max_pool(const struct pumice_conv_shape *shape, int64_t batch, const float *x, float *y, int threads);

#endif
