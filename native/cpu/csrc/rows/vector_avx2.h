/* The vector operations of rows/ with AVX2 and FMA; vector_scalar.h says what each means. */
#ifndef PUMICE_ROWS_VECTOR_H
#define PUMICE_ROWS_VECTOR_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 8
typedef __m256 vf;
typedef __m256i vi;
typedef __m256 vm; /* all bits of a lane, or none */

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i first_lanes(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vf load(const float *p) { return _mm256_loadu_ps(p); }
INLINE vf load_some(const float *p, int64_t count) { return _mm256_maskload_ps(p, first_lanes(count)); }
INLINE void store(float *p, vf v) { _mm256_storeu_ps(p, v); }
INLINE void store_some(float *p, vf v, int64_t count) { _mm256_maskstore_ps(p, first_lanes(count), v); }
INLINE vf all(float x) { return _mm256_set1_ps(x); }
INLINE vi all_i(int32_t x) { return _mm256_set1_epi32(x); }

INLINE vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf divide(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf fma_(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE vf fms(vf a, vf b, vf c) { return _mm256_fmsub_ps(a, b, c); }
INLINE vf fnms(vf a, vf b, vf c) { return _mm256_fnmsub_ps(a, b, c); }
INLINE vf root(vf a) { return _mm256_sqrt_ps(a); }
INLINE vf least(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf most(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf nearest(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf reciprocal_guess(vf a) { return _mm256_div_ps(_mm256_set1_ps(1), a); }
INLINE vf reciprocal(vf a) { return _mm256_div_ps(_mm256_set1_ps(1), a); }

INLINE vi bits(vf a) { return _mm256_castps_si256(a); }
INLINE vf from_bits(vi a) { return _mm256_castsi256_ps(a); }
INLINE vi to_int(vf a) { return _mm256_cvtps_epi32(a); }
INLINE vf to_float(vi a) { return _mm256_cvtepi32_ps(a); }
INLINE vi add_i(vi a, vi b) { return _mm256_add_epi32(a, b); }
INLINE vi sub_i(vi a, vi b) { return _mm256_sub_epi32(a, b); }
INLINE vi and_i(vi a, vi b) { return _mm256_and_si256(a, b); }
INLINE vi or_i(vi a, vi b) { return _mm256_or_si256(a, b); }
#define shift_left(a, n) _mm256_slli_epi32(a, n)
#define shift_right(a, n) _mm256_srai_epi32(a, n)

INLINE vm below(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
INLINE vm equal(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
INLINE vf choose(vm m, vf yes, vf no) { return _mm256_blendv_ps(no, yes, m); }
INLINE vi choose_i(vm m, vi yes, vi no) { return bits(_mm256_blendv_ps(from_bits(no), from_bits(yes), m)); }

INLINE vf power_of_two(vi n) { return from_bits(shift_left(add_i(n, all_i(127)), 23)); }
INLINE vf scale_by(vf a, vf n) {
    const vi whole = to_int(n), half = shift_right(whole, 1);
    return mul(mul(a, power_of_two(half)), power_of_two(sub_i(whole, half)));
}

INLINE float sum_of(vf a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
INLINE float most_of(vf a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
INLINE float least_of(vf a) {
    __m128 s = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_min_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_min_ss(s, _mm_movehdup_ps(s)));
}

INLINE vi load_u8(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
INLINE vi load_s8(const int8_t *p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
INLINE void store_8(void *p, vi v) {
    const __m256i low = _mm256_shuffle_epi8(v, _mm256_set1_epi32(0x0c080400));
    const __m256i order = _mm256_setr_epi32(0, 4, 0, 0, 0, 0, 0, 0);
    _mm_storel_epi64((__m128i *)p, _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(low, order)));
}
INLINE vi load_i(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void store_i(int32_t *p, vi v) { _mm256_storeu_si256((__m256i *)p, v); }

#endif
