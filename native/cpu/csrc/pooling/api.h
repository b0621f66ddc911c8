/* Pooling. */
#ifndef PUMICE_POOLING_API_H
#define PUMICE_POOLING_API_H

#include <stdint.h>

#include "conv/api.h"

enum pumice_pool {
    PUMICE_POOL_MAX = 0,     /* padding never wins; NaN does */
    PUMICE_POOL_AVERAGE = 1, /* sum of the data in the window over `counts`: one number an output position */
};

/* (batch, channels, *size) to (batch, channels, *output), float32; filters and groups of the shape are not looked at. */
int pumice_pool_f32(const struct pumice_conv_shape *shape, int what, int64_t batch, const float *x, float *y,
                    const float *counts, int threads);

/* The mean or the maximum of every row of `count` numbers. */
int pumice_pool_f32_rows(int what, int64_t rows, int64_t count, const float *x, float *y, int threads);

/* Channels last, 8 bits: (batch, *size, channels) to (batch, *output, channels). */
int pumice_pool_u8_max(const struct pumice_conv_shape *shape, int64_t batch, const uint8_t *x, uint8_t *y, int is_signed,
                       int threads);

/* Channels last, 8 bits: the sums (batch, channels) of (batch, count, channels). */
int pumice_pool_u8_sums(int64_t batch, int64_t count, int64_t channels, const uint8_t *x, int32_t *sums, int is_signed,
                        int threads);

#endif
