/* Registers of 8 lanes for the 8-bit kernels. */
#ifndef PUMICE_CONV_AVX2_LANES_H
#define PUMICE_CONV_AVX2_LANES_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 8 };
typedef __m256i sums;
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define STORE(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)

/* Up to 32 bytes. */
static inline __attribute__((always_inline)) __m256i some_bytes(const uint8_t *p, int n) {
    if (n >= 32) return LOAD(p);
    uint8_t part[32] = {0};
    memcpy(part, p, (size_t)n);
    return LOAD(part);
}

/* Four rows of up to 32 channels; register v holds channels 16 j + 4 v + i at place 4 j + i. */
struct quad {
    __m256i v[4];
};
static inline __attribute__((always_inline)) struct quad INTERLEAVE(const uint8_t *const *rows, int channels) {
    const __m256i a = some_bytes(rows[0], channels), b = some_bytes(rows[1], channels);
    const __m256i c = some_bytes(rows[2], channels), d = some_bytes(rows[3], channels);
    const __m256i ab = _mm256_unpacklo_epi8(a, b), AB = _mm256_unpackhi_epi8(a, b);
    const __m256i cd = _mm256_unpacklo_epi8(c, d), CD = _mm256_unpackhi_epi8(c, d);
    return (struct quad){{_mm256_unpacklo_epi16(ab, cd), _mm256_unpackhi_epi16(ab, cd), _mm256_unpacklo_epi16(AB, CD),
                          _mm256_unpackhi_epi16(AB, CD)}};
}

#endif
