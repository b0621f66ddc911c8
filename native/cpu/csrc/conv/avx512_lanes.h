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

/* Place 16 v + 4 j + i of a quad holds channel 16 j + 4 v + i. */
static const uint8_t quad_order[64] = {
    0, 1, 2, 3, 16, 17, 18, 19, 32, 33, 34, 35, 48, 49, 50, 51,
    4, 5, 6, 7, 20, 21, 22, 23, 36, 37, 38, 39, 52, 53, 54, 55,
    8, 9, 10, 11, 24, 25, 26, 27, 40, 41, 42, 43, 56, 57, 58, 59,
    12, 13, 14, 15, 28, 29, 30, 31, 44, 45, 46, 47, 60, 61, 62, 63,
};

/* Four rows of up to 64 channels; register v holds channels 16 j + 4 v + i at place 4 j + i. */
static inline __attribute__((always_inline)) __m512i some_bytes(const uint8_t *p, int n) {
    return n >= 64 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8((1ull << n) - 1, p);
}
struct quad {
    __m512i v[4];
};
static inline __attribute__((always_inline)) struct quad INTERLEAVE(const uint8_t *const *rows, int channels) {
    const __m512i a = some_bytes(rows[0], channels), b = some_bytes(rows[1], channels);
    const __m512i c = some_bytes(rows[2], channels), d = some_bytes(rows[3], channels);
    const __m512i ab = _mm512_unpacklo_epi8(a, b), AB = _mm512_unpackhi_epi8(a, b);
    const __m512i cd = _mm512_unpacklo_epi8(c, d), CD = _mm512_unpackhi_epi8(c, d);
    return (struct quad){{_mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd), _mm512_unpacklo_epi16(AB, CD),
                          _mm512_unpackhi_epi16(AB, CD)}};
}

#endif
