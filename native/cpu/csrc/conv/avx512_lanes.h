/* Registers of 16 lanes for the 8-bit kernels. */
#ifndef PUMICE_CONV_AVX512_LANES_H
#define PUMICE_CONV_AVX512_LANES_H

#include <immintrin.h>
#include <stdint.h>

enum { LANES = 16 };
typedef __m512i sums;
typedef __m512 reals;
#define LOAD(p) _mm512_loadu_si512(p)
#define STORE(p, v) _mm512_storeu_si512(p, v)
#define REALS(p) _mm512_loadu_ps(p)
#define SET_REALS(x) _mm512_set1_ps(x)
#define SET_SUMS(x) _mm512_set1_epi32(x)
#define TO_REALS(x) _mm512_cvtepi32_ps(x)
#define TO_SUMS(x) _mm512_cvtps_epi32(x)
#define MUL(a, b) _mm512_mul_ps(a, b)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define MIN(a, b) _mm512_min_ps(a, b)
#define MAX(a, b) _mm512_max_ps(a, b)
#define ADD(a, b) _mm512_add_epi32(a, b)
#define SUB(a, b) _mm512_sub_epi32(a, b)
#define XOR(a, b) _mm512_xor_si512(a, b)
#define MASK(n) ((__mmask16)((1u << (n)) - 1))
#define BYTES(p, n) _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(MASK(n), p))
#define PUT_BYTES(p, v, n) _mm512_mask_cvtepi32_storeu_epi8(p, MASK(n), v)

/* Four rows of up to 64 channels; register v holds channels 16 j + 4 v + i at place 4 j + i. */
struct quad {
    __m512i v[4];
};
static inline __attribute__((always_inline)) struct quad INTERLEAVE(const uint8_t *const *rows, int channels) {
    const __mmask64 mask = channels >= 64 ? ~0ull : (1ull << channels) - 1;
    const __m512i a = _mm512_maskz_loadu_epi8(mask, rows[0]), b = _mm512_maskz_loadu_epi8(mask, rows[1]);
    const __m512i c = _mm512_maskz_loadu_epi8(mask, rows[2]), d = _mm512_maskz_loadu_epi8(mask, rows[3]);
    const __m512i ab = _mm512_unpacklo_epi8(a, b), AB = _mm512_unpackhi_epi8(a, b);
    const __m512i cd = _mm512_unpacklo_epi8(c, d), CD = _mm512_unpackhi_epi8(c, d);
    return (struct quad){{_mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd), _mm512_unpacklo_epi16(AB, CD),
                          _mm512_unpackhi_epi16(AB, CD)}};
}

#endif
