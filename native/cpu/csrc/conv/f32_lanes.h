/* One vocabulary for the float kernels: reals, LANES, some, SOME(n) for the first n lanes, and the operations below.
 * BETWEEN(first, last) is a range of lanes for LOAD_IN, which takes the others from a register; EVEN takes every other
 * lane of two registers. A level is told by the flags that its files are compiled with; `CONV_SCALAR` asks for plain C.
 */
#ifndef PUMICE_CONV_F32_LANES_H
#define PUMICE_CONV_F32_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define ALWAYS static inline __attribute__((always_inline))

#if defined(CONV_SCALAR)

enum { LANES = 1 };
typedef float reals;
typedef int some;
ALWAYS some SOME(int64_t n) { return n > 0; }
ALWAYS reals LOAD(const float *p) { return *p; }
ALWAYS reals LOAD_SOME(const float *p, some n) { return n ? *p : 0; }
ALWAYS void STORE(float *p, reals v) { *p = v; }
ALWAYS void STORE_SOME(float *p, reals v, some n) {
    if (n) *p = v;
}
ALWAYS some BETWEEN(int64_t first, int64_t last) { return first <= 0 && last > 0; }
ALWAYS reals LOAD_IN(const float *p, some in, reals other) { return in ? *p : other; }
ALWAYS reals EVEN(reals a, reals b) { return (void)b, a; }
ALWAYS reals SET(float x) { return x; }
ALWAYS reals FMA(reals a, reals b, reals c) { return fmaf(a, b, c); }
ALWAYS reals ADD(reals a, reals b) { return a + b; }
ALWAYS reals MAX(reals a, reals b) { return a > b || a != a ? a : b; }
ALWAYS reals MIN(reals a, reals b) { return a < b || a != a ? a : b; }
ALWAYS float TOTAL(reals v) { return v; }

#elif defined(__AVX512F__)

#include <immintrin.h>
enum { LANES = 16 };
typedef __m512 reals;
typedef __mmask16 some;
ALWAYS some SOME(int64_t n) { return (some)(n >= LANES ? 0xffff : n <= 0 ? 0 : (1u << n) - 1); }
ALWAYS reals LOAD(const float *p) { return _mm512_loadu_ps(p); }
ALWAYS reals LOAD_SOME(const float *p, some n) { return _mm512_maskz_loadu_ps(n, p); }
ALWAYS void STORE(float *p, reals v) { _mm512_storeu_ps(p, v); }
ALWAYS void STORE_SOME(float *p, reals v, some n) { _mm512_mask_storeu_ps(p, n, v); }
ALWAYS some BETWEEN(int64_t first, int64_t last) { return (some)(SOME(last) & ~SOME(first)); }
ALWAYS reals LOAD_IN(const float *p, some in, reals other) { return _mm512_mask_loadu_ps(other, in, p); }
ALWAYS reals EVEN(reals a, reals b) {
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), b);
}
ALWAYS reals SET(float x) { return _mm512_set1_ps(x); }
ALWAYS reals FMA(reals a, reals b, reals c) { return _mm512_fmadd_ps(a, b, c); }
ALWAYS reals ADD(reals a, reals b) { return _mm512_add_ps(a, b); }
/* NaN in either wins: vmaxps returns its second operand where either is NaN. */
ALWAYS reals MAX(reals a, reals b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_max_ps(a, b), a);
}
ALWAYS reals MIN(reals a, reals b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_min_ps(a, b), a);
}
ALWAYS float TOTAL(reals v) { return _mm512_reduce_add_ps(v); }

#elif defined(__AVX2__)

#include <immintrin.h>
enum { LANES = 8 };
typedef __m256 reals;
typedef __m256i some;
ALWAYS some SOME(int64_t n) {
    const int lanes = n > LANES ? LANES : (int)n;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
ALWAYS reals LOAD(const float *p) { return _mm256_loadu_ps(p); }
ALWAYS reals LOAD_SOME(const float *p, some n) { return _mm256_maskload_ps(p, n); }
ALWAYS void STORE(float *p, reals v) { _mm256_storeu_ps(p, v); }
ALWAYS void STORE_SOME(float *p, reals v, some n) { _mm256_maskstore_ps(p, n, v); }
ALWAYS some BETWEEN(int64_t first, int64_t last) { return _mm256_andnot_si256(SOME(first), SOME(last)); }
ALWAYS reals LOAD_IN(const float *p, some in, reals other) {
    return _mm256_blendv_ps(other, _mm256_maskload_ps(p, in), _mm256_castsi256_ps(in));
}
ALWAYS reals EVEN(reals a, reals b) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)), 0xd8));
}
ALWAYS reals SET(float x) { return _mm256_set1_ps(x); }
ALWAYS reals FMA(reals a, reals b, reals c) { return _mm256_fmadd_ps(a, b, c); }
ALWAYS reals ADD(reals a, reals b) { return _mm256_add_ps(a, b); }
ALWAYS reals MAX(reals a, reals b) {
    return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
ALWAYS reals MIN(reals a, reals b) {
    return _mm256_blendv_ps(_mm256_min_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
ALWAYS float TOTAL(reals v) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

#elif defined(__ARM_NEON)

#include <arm_neon.h>
enum { LANES = 4 };
typedef float32x4_t reals;
typedef int some;
ALWAYS some SOME(int64_t n) { return n > LANES ? LANES : n < 0 ? 0 : (int)n; }
ALWAYS reals LOAD(const float *p) { return vld1q_f32(p); }
ALWAYS reals LOAD_SOME(const float *p, some n) {
    if (n == LANES) return vld1q_f32(p);
    float part[LANES] = {0};
    memcpy(part, p, (size_t)n * sizeof *p);
    return vld1q_f32(part);
}
ALWAYS void STORE(float *p, reals v) { vst1q_f32(p, v); }
ALWAYS void STORE_SOME(float *p, reals v, some n) {
    float part[LANES];
    vst1q_f32(part, v);
    memcpy(p, part, (size_t)n * sizeof *p);
}
ALWAYS some BETWEEN(int64_t first, int64_t last) { return SOME(last) << 8 | SOME(first); }
ALWAYS reals LOAD_IN(const float *p, some in, reals other) {
    if (in == LANES << 8) return vld1q_f32(p);
    float part[LANES];
    vst1q_f32(part, other);
    for (int i = in & 0xff; i < in >> 8; i++) part[i] = p[i];
    return vld1q_f32(part);
}
ALWAYS reals EVEN(reals a, reals b) { return vuzp1q_f32(a, b); }
ALWAYS reals SET(float x) { return vdupq_n_f32(x); }
ALWAYS reals FMA(reals a, reals b, reals c) { return vfmaq_f32(c, a, b); }
ALWAYS reals ADD(reals a, reals b) { return vaddq_f32(a, b); }
ALWAYS reals MAX(reals a, reals b) { return vmaxq_f32(a, b); } /* NaN if either is */
ALWAYS reals MIN(reals a, reals b) { return vminq_f32(a, b); }
ALWAYS float TOTAL(reals v) { return vaddvq_f32(v); }

#endif
#endif
