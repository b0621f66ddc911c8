/* From sums to levels with 512-bit registers: rounding, and packing that bounds and narrows. */
#ifndef PUMICE_CONV_AVX512_REQUANTIZE_H
#define PUMICE_CONV_AVX512_REQUANTIZE_H

#include <immintrin.h>
#include <math.h>

#include "conv/types.h"

/* Sixteen levels before the zero point, which the packing instructions bound and narrow. */
static inline __attribute__((always_inline)) __m512i rounded(__m512i sum, __m512 multiplier, const uint8_t *residual,
                                                             __mmask16 mask, const struct conv_requantize *how) {
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), multiplier);
    if (residual) {
        __m512i level = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, residual));
        level = _mm512_sub_epi32(_mm512_xor_si512(level, _mm512_set1_epi32(how->residual_flip)),
                                 _mm512_set1_epi32(how->residual_zero_point));
        value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(level), _mm512_set1_ps(how->residual_multiplier), value);
    }
    if (how->overflows)
        value = _mm512_min_ps(_mm512_max_ps(value, _mm512_set1_ps(how->low)), _mm512_set1_ps(how->high));
    return _mm512_cvtps_epi32(value);
}

struct bounds {
    __m512i zero_point, low, high, flip;
    int plain; /* uint8 without bounds of its own: packing saturates as it should */
};

/* Levels are made unsigned first: signed ones are 128 lower and get their sign by the flip. */
static inline struct bounds bounds_of(const struct conv_requantize *how) {
    const int flip = how->is_signed ? 0x80 : 0, zero_point = how->zero_point + flip;
    const int low = zero_point + (int)nearbyintf(how->low), high = zero_point + (int)nearbyintf(how->high);
    return (struct bounds){
        .zero_point = _mm512_set1_epi16((short)zero_point),
        .low = _mm512_set1_epi8((char)low),
        .high = _mm512_set1_epi8((char)high),
        .flip = _mm512_set1_epi8((char)flip),
        .plain = low == 0 && high == 255 && !flip,
    };
}

/* Four registers of levels, one after another; `plain` is the bounds', or 0. Bounds are kept in bytes: rounding is
 * monotone, so clamping commutes. */
static inline __attribute__((always_inline)) __m512i packed(const int plain, __m512i a, __m512i b, __m512i c, __m512i d,
                                                            const struct bounds *bounds) {
    const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(a, b), bounds->zero_point);
    const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(c, d), bounds->zero_point);
    const __m512i bytes = _mm512_packus_epi16(low, high);
    if (plain) return bytes;
    return _mm512_xor_si512(_mm512_min_epu8(_mm512_max_epu8(bytes, bounds->low), bounds->high), bounds->flip);
}

#endif
