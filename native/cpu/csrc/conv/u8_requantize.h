/* The epilogue of 8-bit convolutions at every level. The including file defines, over registers of LANES numbers,
 *
 *     sums, LOAD(p)                int32
 *     reals, REALS(p), SET_REALS(x), TO_REALS(sums), TO_SUMS(reals) which rounds half to even
 *     MUL, FMA, MIN, MAX over reals; SET_SUMS(x), SUB, ADD over sums
 *     BYTES(p, n), PUT_BYTES(p, sums, n)   n <= LANES bytes, zero-extended or cut off
 */
#ifndef PUMICE_CONV_U8_REQUANTIZE_H
#define PUMICE_CONV_U8_REQUANTIZE_H

#include <string.h>

#include "conv/types.h"

static inline __attribute__((always_inline)) sums levels_of(sums sum, reals multiplier, const uint8_t *residual,
                                                            int n __attribute__((unused)),
                                                            const struct conv_requantize *how) {
    reals value = MUL(TO_REALS(sum), multiplier);
    if (residual) {
        sums level = SUB(XOR(BYTES(residual, n), SET_SUMS(how->residual_flip)), SET_SUMS(how->residual_zero_point));
        value = FMA(TO_REALS(level), SET_REALS(how->residual_multiplier), value);
    }
    value = MIN(MAX(value, SET_REALS(how->low)), SET_REALS(how->high));
    return ADD(TO_SUMS(value), SET_SUMS(how->zero_point));
}

static __attribute__((noipa)) void requantize(uint8_t *out, int64_t out_stride, const int32_t *tile, int tile_stride,
                                              int count, int filters, const struct conv_requantize *how) {
    for (int n = 0; n < filters; n += LANES) {
        const int left = filters - n < LANES ? filters - n : LANES;
        const reals multiplier = REALS(how->multiplier + n);
        for (int i = 0; i < count; i++) {
            const uint8_t *residual = how->residual ? how->residual + i * out_stride + n : NULL;
            PUT_BYTES(out + i * out_stride + n,
                      levels_of(LOAD(tile + i * tile_stride + n), multiplier, residual, left, how), left);
        }
    }
}

#endif
