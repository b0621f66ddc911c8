/* Functions of single elements and of rows, on f32: activations, normalisation, reductions, quantization. */
#ifndef PUMICE_ROWS_API_H
#define PUMICE_ROWS_API_H

#include <stdint.h>

/* out = f(x); p is what `parameters` points to, NULL where a function has none. */
enum pumice_function {
    PUMICE_F_EXP = 0,
    PUMICE_F_LOG = 1,
    PUMICE_F_TANH = 2,
    PUMICE_F_SIGMOID = 3,
    PUMICE_F_ERF = 4,
    PUMICE_F_GELU = 5,         /* x Phi(x) */
    PUMICE_F_GELU_TANH = 6,
    PUMICE_F_SILU = 7,         /* x sigmoid(p[0] x) */
    PUMICE_F_HARD_SIGMOID = 8, /* clamp(p[0] x + p[1], 0, 1) */
    PUMICE_F_HARD_SWISH = 9,   /* x clamp(x / 6 + 1/2, 0, 1) */
    PUMICE_F_RELU = 10,
    PUMICE_F_CLIP = 11,        /* min(max(x, p[0]), p[1]) */
    PUMICE_F_LEAKY_RELU = 12,  /* x < 0: p[0] x */
    PUMICE_F_AFFINE = 13,      /* (x - p[2]) p[0] + p[1] */
    PUMICE_F_SQRT = 14,
    PUMICE_F_RECIPROCAL = 15,
};
int pumice_map(int function, const float *in, float *out, int64_t count, const float *parameters, int threads);

/* Batch normalisation: out[i][c][j] = (in - mean[c]) (scale[c] / sqrt(var[c] + epsilon)) + bias[c]. */
int pumice_batch_norm(const float *in, float *out, int64_t batch, int64_t channels, int64_t inner, const float *scale,
                      const float *bias, const float *mean, const float *var, float epsilon, int threads);

/* out = a op b over four axes; a step of 0 repeats an operand along an axis, other steps are in elements. out is in C order. */
enum pumice_operation { PUMICE_ADD = 0, PUMICE_SUB = 1, PUMICE_MUL = 2, PUMICE_DIV = 3 };
int pumice_binary(int operation, const float *a, const int64_t *a_steps, const float *b, const int64_t *b_steps, float *out,
                  const int64_t *shape, int threads);

/* Softmax, or its logarithm, of each row. */
int pumice_softmax(const float *in, float *out, int64_t rows, int64_t columns, int logarithm, int threads);

/* (x - mean) * inverse * scale + bias with inverse = 1 / sqrt(variance + epsilon); `rms` leaves out the mean. scale and
 * bias have `columns` elements, bias may be NULL; mean and inverse take a number a row where they are not NULL. */
int pumice_layer_norm(const float *in, float *out, int64_t rows, int64_t columns, const float *scale, const float *bias,
                      float epsilon, int rms, float *mean, float *inverse, int threads);

/* out[o][i] from in[o][r][i], over r. */
enum pumice_reduction { PUMICE_SUM = 0, PUMICE_MEAN = 1, PUMICE_MAX = 2, PUMICE_MIN = 3, PUMICE_SUM_SQUARE = 4 };
int pumice_reduce(int reduction, const float *in, float *out, int64_t outer, int64_t reduced, int64_t inner, int threads);

/* out[perm applied] of elements of 1, 2, 4 or 8 bytes; up to 6 axes, in order of the output. `steps` are of the input, in elements. */
int pumice_transpose(const void *in, void *out, int size, int axes, const int64_t *shape, const int64_t *steps, int threads);

/* q[o][a][i] = clamp(round_to_even(x / scale[a]) + zero[a], low, high). zero may be NULL; `stored` is 0 for u8, 1 for s8. */
int pumice_quantize(const float *in, void *out, int stored, int64_t outer, int64_t axis, int64_t inner, const float *scale,
                    const int32_t *zero, int32_t low, int32_t high, int threads);
/* x = (float)(q - zero[a]) * scale[a]. */
int pumice_dequantize(const void *in, int stored, float *out, int64_t outer, int64_t axis, int64_t inner, const float *scale,
                      const int32_t *zero, int threads);

/* range[0] is the least, range[1] the greatest value; NaN if there is one. count is at least 1. */
int pumice_range(const float *in, int64_t count, float *range, int threads);
/* counts[upper 16 bits of x] += 1, 65,536 counters. */
int pumice_histogram(const float *in, int64_t count, int64_t *counts, int threads);
/* nearest[i] = the centroid (rows of `width`) at the least squared distance from point i; the first of equals. */
int pumice_nearest(const float *points, int64_t count, int64_t width, const float *centroids, int64_t clusters,
                   int32_t *nearest, int threads);

#endif
