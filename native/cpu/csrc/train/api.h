/* Training: gradients of pointwise functions, of normalisations and of pooling, and the update of weights. Sums do not
 * depend on the threads. */
#ifndef PUMICE_TRAIN_API_H
#define PUMICE_TRAIN_API_H

#include <stdint.h>

#include "conv/api.h"
#include "gemm/api.h"

/* dx = dy f'(x), with f' as a function of v: the input x or the result y, whichever is simpler. */
enum pumice_slope {
    PUMICE_SLOPE_RELU = 0,    /* v = y: 1 where y > 0 */
    PUMICE_SLOPE_CLIP = 1,    /* v = x: 1 where parameters[0] <= x <= parameters[1] */
    PUMICE_SLOPE_SIGMOID = 2, /* v = y: y (1 - y) */
    PUMICE_SLOPE_TANH = 3,    /* v = y: 1 - y^2 */
    PUMICE_SLOPE_ERF = 4,     /* v = x: 2 / sqrt(pi) exp(-x^2) */
    PUMICE_SLOPE_GELU = 5,    /* v = x: Phi(x) + x phi(x), the normal distribution and its density */
};

int pumice_slope(int function, const float *dy, const float *v, float *dx, int64_t count, const float *parameters,
                 int threads);

/* Batch normalisation by the statistics of the batch; x and y are (batch, channels, inner). Of every channel the mean,
 * the variance and 1 / sqrt(variance + epsilon) are given back. */
int pumice_batch_norm_train(const float *x, float *y, int64_t batch, int64_t channels, int64_t inner, const float *scale,
                            const float *bias, float epsilon, float *mean, float *variance, float *inverse, int threads);

/* dx = scale inverse (dy - (dbias + x^ dscale) / n), x^ = (x - mean) inverse, n = batch inner. */
int pumice_batch_norm_gradient(const float *x, const float *dy, float *dx, int64_t batch, int64_t channels, int64_t inner,
                               const float *scale, const float *mean, const float *inverse, float *dscale, float *dbias,
                               int threads);

/* Of layer normalisation over rows: dx = inverse (t - mean t - x^ mean(t x^)), t = dy scale. The sums over rows of dy x^
 * and of dy are given back. */
int pumice_layer_norm_gradient(const float *x, const float *dy, float *dx, int64_t rows, int64_t columns,
                               const float *scale, float epsilon, float *dscale, float *dbias, int threads);

/* dx = y (dy - sum of dy y), row by row. */
int pumice_softmax_gradient(const float *y, const float *dy, float *dx, int64_t rows, int64_t columns, int threads);

/* Quantization counts as the identity where q = round(x / scale) + zero lies within low..high, and as a constant elsewhere:
 * dx = dq / scale inside, and dscale = -sum of dx x / scale. Rows of `inner` elements, (outer, channels, inner), have one
 * scale a channel. */
int pumice_quantize_gradient(const float *x, const float *dq, float *dx, int64_t outer, int64_t channels, int64_t inner,
                             const float *scale, const int32_t *zero, float low, float high, float *dscale, int threads);

/* dq = dy scale, dscale = sum of dy (q - zero), for 8-bit q. */
int pumice_dequantize_gradient(const uint8_t *q, int is_signed, const float *dy, float *dq, int64_t outer,
                               int64_t channels, int64_t inner, const float *scale, const int32_t *zero, float *dscale,
                               int threads);

/* To the first maximum of each window, taps in row-major order. */
int pumice_max_pool_gradient(const struct pumice_conv_shape *shape, int64_t batch, const float *x, const float *y,
                             const float *dy, float *dx, int threads);

/* An update by Adam or AdamW, all in place: d = g + inner_decay w, p and q the means of d and d^2 so far,
 * w -= rate ((p / first_share) / (sqrt(q / second_share) + epsilon) + outer_decay w). */
struct pumice_adaptive {
    float momentum, second, first_share, second_share, epsilon, rate, inner_decay, outer_decay;
};
int pumice_adaptive_update(const struct pumice_adaptive *numbers, float *w, const float *g, float *p, float *q, int64_t count,
                           int threads);

/* y = A B, y contiguous, for matrices of float32 that are not worth packing. At a level that multiplies split operands
 * (nhwc/api.h) their products are as exact as there. */
int pumice_new_product(const struct pumice_matrix *a, const struct pumice_matrix *b, float *y, int threads);

/* 1 if the sums of x, piece by piece, are all finite, and so is every element; 0 if a sum is not. */
int pumice_sums_finite(const float *x, int64_t count, int threads);

#endif
