/* Convolution and pooling. */
#ifndef PUMICE_CONV_API_H
#define PUMICE_CONV_API_H

#include <stdint.h>

/* A convolution over three spatial axes, the last one fastest; unused leading axes have size, kernel, stride, dilation
 * and output 1. Output o reads the positions o * stride + tap * dilation - before; what lies outside is zero. */
struct pumice_conv_shape {
    int64_t channels, filters, groups;
    int64_t size[3], kernel[3], stride[3], dilation[3], before[3], output[3];
};

/* --- 8 bit: activations (batch, *size, channels), results (batch, *output, filters) ------------------------------- */

/* What becomes of the int32 sums. */
enum pumice_conv_result {
    PUMICE_CONV_LEVELS = 0, /* 8 bits: requantized, see below */
    PUMICE_CONV_SUMS = 1,   /* int32 */
    PUMICE_CONV_REALS = 2,  /* float32: sum * multiplier */
};

/* y = saturate(round(a by_a + (b by_b + offset))) of two tensors of levels, all of one type. */
struct pumice_add_u8 {
    int is_signed;
    float by_a, by_b, offset;
};

/* When a residual is added: before the sums are rounded to levels, or to these, as an operand of a sum of its own. */
enum pumice_residual { PUMICE_RESIDUAL_INSIDE = 0, PUMICE_RESIDUAL_A = 1, PUMICE_RESIDUAL_B = 2 };

struct pumice_conv_u8_epilogue {
    int result;
    const float *multiplier; /* one a filter; unused for sums */
    float low, high;         /* bounds of levels before the zero point is added */
    int32_t zero_point;
    int is_signed; /* levels are int8, else uint8 */
    const uint8_t *residual; /* NULL, or what is added: (batch, *output, filters) */
    float residual_multiplier;
    int32_t residual_zero_point;
    int residual_signed;
    int residual_operand;     /* enum pumice_residual; if not inside, `sum` has the factors, */
    struct pumice_add_u8 sum; /* and there are neither depthwise filters nor a table */
    const uint8_t *table; /* NULL, or 256 levels that replace the levels */
};

struct pumice_conv_u8;

/* Packs the weights for the level in force: `weights` is (filters, channels / groups, *kernel), zero point already
 * taken off, within -255..255; `bias` int32 or NULL. NULL where there is no memory or the shape makes no sense. */
struct pumice_conv_u8 *pumice_conv_u8_create(const struct pumice_conv_shape *shape, const int16_t *weights,
                                             const int32_t *bias, int input_zero_point, int input_signed);
void pumice_conv_u8_free(struct pumice_conv_u8 *conv);
int pumice_conv_u8_run(const struct pumice_conv_u8 *conv, int64_t batch, const uint8_t *x, void *y,
                       const struct pumice_conv_u8_epilogue *epilogue, int threads);

/* --- float32: (batch, channels, *size) to (batch, filters, *output), as ONNX has them ----------------------------- */

struct pumice_conv_f32_epilogue {
    const float *bias;     /* one a filter, or NULL */
    const float *residual; /* NULL, or what is added: (batch, filters, *output) */
    float low, high;       /* bounds of the result: -infinity, infinity for none */
};

struct pumice_conv_f32;

/* Packs the weights (filters, channels / groups, *kernel) for the level in force.
 *
 * `transposed`: the adjoint, weights (channels, filters / groups, *kernel). Input o is spread over the outputs
 * o * stride + tap * dilation - before. With a convolution's own weights, channels and filters exchanged, it is the
 * gradient with respect to the convolution's input. NULL where there is no memory or the shape makes no sense. */
struct pumice_conv_f32 *pumice_conv_f32_create(const struct pumice_conv_shape *shape, int transposed,
                                               const float *weights);
void pumice_conv_f32_free(struct pumice_conv_f32 *conv);
int pumice_conv_f32_run(const struct pumice_conv_f32 *conv, int64_t batch, const float *x, float *y,
                        const struct pumice_conv_f32_epilogue *epilogue, int threads);

/* The gradient with respect to the weights: dw (filters, channels / groups, *kernel), overwritten, from the input x and
 * the gradient dy (batch, filters, *output). */
int pumice_conv_f32_weight_gradient(const struct pumice_conv_shape *shape, int64_t batch, const float *x,
                                    const float *dy, float *dw, int threads);

/* The windows of x (batch, channels, *size) as the matrix (channels, *kernel) by (batch, *output); and the adjoint, which
 * adds up in x, overwritten, what the columns hold of each of its elements. */
int pumice_conv_columns(const struct pumice_conv_shape *shape, int64_t batch, const float *x, float *columns, int threads);
int pumice_conv_from_columns(const struct pumice_conv_shape *shape, int64_t batch, const float *columns, float *x, int threads);

#endif
