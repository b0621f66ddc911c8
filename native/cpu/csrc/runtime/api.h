/* A compiled network: a flat program of kernel calls over numbered places, run by one call.
 *
 * A step is the number of a function, the places that it reads and writes, and one struct of arguments, in which shapes,
 * strides and packed weights were settled when the program was made. Place 0 of a step is its result, the others are what
 * it reads; where places lie in memory is said at every run, so that any number of callers may run one program at once,
 * each on memory of its own. What arguments point to belongs to the caller and must outlive the program. */
#ifndef PUMICE_RUNTIME_API_H
#define PUMICE_RUNTIME_API_H

#include <stdint.h>

#include "conv/api.h"
#include "gemm/api.h"
#include "lowbit/api.h"
#include "nhwc/api.h"
#include "recurrent/api.h"
#include "rows/api.h"

struct pumice_program;

/* Room for `steps` steps; NULL where there is no memory. */
struct pumice_program *pumice_program_create(int64_t steps);
void pumice_program_free(struct pumice_program *program);

/* The number of the function `name`, as in runtime/steps.def; -1 for an unknown one. */
int pumice_step_kind(const char *name);

/* Appends a step over `count` places (-1: an absent operand), copying the arguments. */
int pumice_program_add(struct pumice_program *program, int kind, const int32_t *places, int count, const void *arguments);

/* Holds a step to so many threads, 0: to as many as a run has. Not while it runs. */
void pumice_program_limit(struct pumice_program *program, int64_t step, int threads);

/* Runs steps first to last - 1; places[i] is where place i lies. Where `nanoseconds` is not NULL, nanoseconds[i] takes the
 * time of step i. Stops at the first step that fails and returns its status. */
int pumice_program_run(const struct pumice_program *program, void *const *places, int64_t first, int64_t last, int threads,
                       int64_t *nanoseconds);

/* Packed weights as bytes, for a file: how many, writing them, and the weights over bytes that were written by the same
 * build and that must outlive them; NULL where they are something else, or of a level that this machine has not. */
enum pumice_image {
    PUMICE_IMAGE_CONV_U8 = 0, /* struct pumice_conv_u8 */
    PUMICE_IMAGE_NHWC = 1,    /* struct pumice_nhwc */
    PUMICE_IMAGE_MATRIX = 2   /* struct pumice_packed */
};
int64_t pumice_image_bytes(int kind, const void *packed);
void pumice_image_write(int kind, const void *packed, void *image);
void *pumice_image_map(int kind, const void *image, int64_t bytes);
void pumice_image_unmap(void *packed);

/* --- arguments, one struct a function; the comment names the places --------------------------------------------------- */

struct pumice_conv_u8_step { /* y, x, residual */
    const struct pumice_conv_u8 *conv;
    int64_t batch;
    struct pumice_conv_u8_epilogue epilogue;
};

struct pumice_conv_f32_step { /* y, x, residual */
    const struct pumice_conv_f32 *conv;
    int64_t batch;
    struct pumice_conv_f32_epilogue epilogue;
};

struct pumice_nhwc_step { /* y (batch, *output, filters), x, residual */
    const struct pumice_nhwc *conv;
    int64_t batch, x_steps[4];
    struct pumice_nhwc_epilogue epilogue;
};

struct pumice_gemm_step { /* y, a, residual */
    const struct pumice_packed *weights;
    struct pumice_matrix a;
    int32_t a_zero;
    const int32_t *b_zero;
    struct pumice_epilogue epilogue;
    int64_t y_stride;
};

struct pumice_products_step { /* y, a, b */
    int32_t product;
    int64_t count;
    struct pumice_matrix a, b;
    const int64_t *a_offsets, *b_offsets, *y_offsets;
    int32_t a_zero, b_zero;
    struct pumice_epilogue epilogue;
    int64_t y_stride;
};

/* Levels whose parameters were found while running, by packed integers: by `quantize_rows` (zero is absent) or by
 * `quantize_dynamic`. */
struct pumice_dynamic_step { /* y, levels, scale, zero, residual (float32, as y) */
    const struct pumice_packed *weights;
    int64_t rows, depth, columns;
    int32_t scale_step;
    const float *scale; /* of the weights */
    const int32_t *b_zero;
    struct pumice_epilogue epilogue;
    int64_t y_stride;
};

struct pumice_lowbit_step { /* y, a */
    const struct pumice_lowbit *weights;
    int64_t rows, depth, columns;
    const float *bias;
};

struct pumice_recurrent_step { /* y, projected, h, c, lengths */
    struct pumice_recurrence recurrence;
};

struct pumice_recurrent_u8_step { /* y, projected, h, c, lengths */
    struct pumice_recurrence_u8 recurrence;
};

/* The same over levels of the input and their parameters, as those of pumice_dynamic_step. */
struct pumice_recurrent_levels_step { /* y, levels, h, c, lengths, scale, zero */
    struct pumice_recurrence_u8 recurrence;
};

struct pumice_map_step { /* y, x */
    int32_t function;
    int64_t count;
    float parameters[3];
};

struct pumice_binary_step { /* y, a, b */
    int32_t operation;
    int64_t shape[4], a_steps[4], b_steps[4];
};

struct pumice_softmax_step { /* y, x */
    int64_t rows, columns;
    int32_t logarithm;
};

struct pumice_layer_norm_step { /* y, x */
    int64_t rows, columns;
    const float *scale, *bias;
    float epsilon;
    int32_t rms;
};

struct pumice_reduce_step { /* y, x */
    int32_t reduction;
    int64_t outer, reduced, inner;
};

/* The index, of 64 bits, of the least or the greatest along the axis: the first or the last of equals; NaN before all. */
struct pumice_extreme_index_step { /* y, x */
    int64_t outer, size, inner;
    int32_t least, last;
};

struct pumice_batch_norm_step { /* y, x */
    int64_t batch, channels, inner;
    const float *scale, *bias, *mean, *var;
    float epsilon;
};

struct pumice_pool_f32_step { /* y, x */
    struct pumice_conv_shape shape;
    int32_t what; /* enum pumice_pool */
    int64_t batch;
    const float *counts;
};

struct pumice_pool_nhwc_step { /* y, x: the maximum */
    struct pumice_conv_shape shape;
    int64_t batch;
};

struct pumice_pool_rows_step { /* y, x */
    int32_t what;
    int64_t rows, columns;
};

struct pumice_pool_u8_step { /* y, x */
    struct pumice_conv_shape shape;
    int32_t is_signed;
    int64_t batch;
};

/* The mean over the positions of (batch, positions, channels): levels, or real numbers where multiplier is 0. */
struct pumice_mean_u8_step { /* y, x */
    int64_t batch, positions, channels;
    int32_t is_signed, zero_point, result_zero_point;
    float multiplier; /* of the sum, to levels of the result */
    float scale;      /* of the sum, to real numbers */
};

/* y = clamp(round(a by_a + b by_b + offset)), with a multiply-add that rounds once for each product, b's first. */
struct pumice_add_u8_step { /* y, a, b */
    int64_t count;
    struct pumice_add_u8 sum;
};

struct pumice_look_up_step { /* y, x: one byte each */
    int64_t count;
    uint8_t table[256];
};

struct pumice_quantize_step { /* y, x */
    int64_t outer, axis, inner;
    const float *scale;
    const int32_t *zero;
    int32_t is_signed;
};

struct pumice_dequantize_step { /* y, x */
    int64_t outer, axis, inner;
    const float *scale;
    const int32_t *zero;
    int32_t is_signed;
};

/* Real numbers (batch, channels, positions) to levels (batch, positions, channels). */
struct pumice_quantize_image_step { /* y, x */
    int64_t batch, channels, positions;
    float scale;
    int32_t zero, is_signed;
};

/* Each row symmetrically, scale = max |row| / 127, as u8 with zero point 128. */
struct pumice_quantize_rows_step { /* y, x, scale of every row */
    int64_t rows, columns;
};

/* Quantizes as ONNX's DynamicQuantizeLinear does. */
struct pumice_quantize_dynamic_step { /* y, x, scale, zero */
    int64_t count;
};

struct pumice_transpose_step { /* y, x */
    int32_t size, axes;
    int64_t shape[6], steps[6];
};

/* `rows` rows of `bytes` each. */
struct pumice_copy_step { /* y, x */
    int64_t rows, bytes, from, from_stride, to, to_stride;
};

struct pumice_fill_step { /* y */
    int64_t bytes;
    uint8_t value;
};

/* y[o][i] = x[o][index[i]], slices of `bytes`; negative indices count from the end. */
struct pumice_gather_step { /* y, x, index */
    int64_t outer, size, bytes, count;
    int32_t wide; /* indices of 64 bits, else of 32 */
};

enum pumice_number { PUMICE_N_BOOL = 0, PUMICE_N_U8 = 1, PUMICE_N_S8 = 2, PUMICE_N_S32 = 3, PUMICE_N_S64 = 4, PUMICE_N_F32 = 5 };

struct pumice_cast_step { /* y, x */
    int32_t source, target; /* enum pumice_number */
    int64_t count;
};

/* y = condition ? a : b over four axes, elements of `size` bytes; steps as in pumice_binary. */
struct pumice_where_step { /* y, condition, a, b */
    int32_t size;
    int64_t shape[4], c_steps[4], a_steps[4], b_steps[4];
};

#endif
