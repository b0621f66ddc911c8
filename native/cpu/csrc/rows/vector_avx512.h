/* The vector operations of rows/ with AVX-512; vector_scalar.h says what each means.
 *
 * A vector is two registers: elementary functions are long chains of dependent operations, and two chains side by side
 * keep both execution ports busy where one chain after the other fills the scheduler with waiting operations. */
#ifndef PUMICE_ROWS_VECTOR_H
#define PUMICE_ROWS_VECTOR_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 32
typedef struct { __m512 a, b; } vf;
typedef struct { __m512i a, b; } vi;
typedef struct { __mmask16 a, b; } vm;

#define INLINE static inline __attribute__((always_inline))
#define FLOATS(first, second) ((vf){(first), (second)})
#define INTEGERS(first, second) ((vi){(first), (second)})
#define MASKS(first, second) ((vm){(first), (second)})

INLINE vm first_lanes(int64_t count) {
    const uint32_t mask = count >= 32 ? UINT32_MAX : (1u << count) - 1;
    return MASKS((__mmask16)mask, (__mmask16)(mask >> 16));
}
INLINE vf load(const float *p) { return FLOATS(_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)); }
INLINE vf load_some(const float *p, int64_t count) {
    const vm m = first_lanes(count);
    return FLOATS(_mm512_maskz_loadu_ps(m.a, p), _mm512_maskz_loadu_ps(m.b, p + 16));
}
INLINE void store(float *p, vf v) {
    _mm512_storeu_ps(p, v.a);
    _mm512_storeu_ps(p + 16, v.b);
}
INLINE void store_some(float *p, vf v, int64_t count) {
    const vm m = first_lanes(count);
    _mm512_mask_storeu_ps(p, m.a, v.a);
    _mm512_mask_storeu_ps(p + 16, m.b, v.b);
}
INLINE vf all(float x) { return FLOATS(_mm512_set1_ps(x), _mm512_set1_ps(x)); }
INLINE vi all_i(int32_t x) { return INTEGERS(_mm512_set1_epi32(x), _mm512_set1_epi32(x)); }

INLINE vf add(vf x, vf y) { return FLOATS(_mm512_add_ps(x.a, y.a), _mm512_add_ps(x.b, y.b)); }
INLINE vf sub(vf x, vf y) { return FLOATS(_mm512_sub_ps(x.a, y.a), _mm512_sub_ps(x.b, y.b)); }
INLINE vf mul(vf x, vf y) { return FLOATS(_mm512_mul_ps(x.a, y.a), _mm512_mul_ps(x.b, y.b)); }
INLINE vf divide(vf x, vf y) { return FLOATS(_mm512_div_ps(x.a, y.a), _mm512_div_ps(x.b, y.b)); }
INLINE vf fma_(vf x, vf y, vf z) { return FLOATS(_mm512_fmadd_ps(x.a, y.a, z.a), _mm512_fmadd_ps(x.b, y.b, z.b)); }
INLINE vf fnma(vf x, vf y, vf z) { return FLOATS(_mm512_fnmadd_ps(x.a, y.a, z.a), _mm512_fnmadd_ps(x.b, y.b, z.b)); }
INLINE vf fms(vf x, vf y, vf z) { return FLOATS(_mm512_fmsub_ps(x.a, y.a, z.a), _mm512_fmsub_ps(x.b, y.b, z.b)); }
INLINE vf fnms(vf x, vf y, vf z) { return FLOATS(_mm512_fnmsub_ps(x.a, y.a, z.a), _mm512_fnmsub_ps(x.b, y.b, z.b)); }
INLINE vf root(vf x) { return FLOATS(_mm512_sqrt_ps(x.a), _mm512_sqrt_ps(x.b)); }
INLINE vf least(vf x, vf y) { return FLOATS(_mm512_min_ps(x.a, y.a), _mm512_min_ps(x.b, y.b)); }
INLINE vf most(vf x, vf y) { return FLOATS(_mm512_max_ps(x.a, y.a), _mm512_max_ps(x.b, y.b)); }
#define TO_NEAREST (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
INLINE vf nearest(vf x) { return FLOATS(_mm512_roundscale_ps(x.a, TO_NEAREST), _mm512_roundscale_ps(x.b, TO_NEAREST)); }
INLINE vf reciprocal_guess(vf x) { return FLOATS(_mm512_rcp14_ps(x.a), _mm512_rcp14_ps(x.b)); }
/* 14 bits, then one step of Newton. */
INLINE vf reciprocal(vf x) {
    const vf r = reciprocal_guess(x);
    return fma_(r, fnma(x, r, all(1)), r);
}

INLINE vi bits(vf x) { return INTEGERS(_mm512_castps_si512(x.a), _mm512_castps_si512(x.b)); }
INLINE vf from_bits(vi x) { return FLOATS(_mm512_castsi512_ps(x.a), _mm512_castsi512_ps(x.b)); }
INLINE vi to_int(vf x) { return INTEGERS(_mm512_cvtps_epi32(x.a), _mm512_cvtps_epi32(x.b)); }
INLINE vf to_float(vi x) { return FLOATS(_mm512_cvtepi32_ps(x.a), _mm512_cvtepi32_ps(x.b)); }
INLINE vi add_i(vi x, vi y) { return INTEGERS(_mm512_add_epi32(x.a, y.a), _mm512_add_epi32(x.b, y.b)); }
INLINE vi sub_i(vi x, vi y) { return INTEGERS(_mm512_sub_epi32(x.a, y.a), _mm512_sub_epi32(x.b, y.b)); }
INLINE vi and_i(vi x, vi y) { return INTEGERS(_mm512_and_si512(x.a, y.a), _mm512_and_si512(x.b, y.b)); }
INLINE vi or_i(vi x, vi y) { return INTEGERS(_mm512_or_si512(x.a, y.a), _mm512_or_si512(x.b, y.b)); }

INLINE vm below(vf x, vf y) {
    return MASKS(_mm512_cmp_ps_mask(x.a, y.a, _CMP_LT_OQ), _mm512_cmp_ps_mask(x.b, y.b, _CMP_LT_OQ));
}
INLINE vm equal(vf x, vf y) {
    return MASKS(_mm512_cmp_ps_mask(x.a, y.a, _CMP_EQ_OQ), _mm512_cmp_ps_mask(x.b, y.b, _CMP_EQ_OQ));
}
INLINE vf choose(vm m, vf yes, vf no) {
    return FLOATS(_mm512_mask_blend_ps(m.a, no.a, yes.a), _mm512_mask_blend_ps(m.b, no.b, yes.b));
}
INLINE vi choose_i(vm m, vi yes, vi no) {
    return INTEGERS(_mm512_mask_blend_epi32(m.a, no.a, yes.a), _mm512_mask_blend_epi32(m.b, no.b, yes.b));
}

INLINE vf scale_by(vf x, vf n) { return FLOATS(_mm512_scalef_ps(x.a, n.a), _mm512_scalef_ps(x.b, n.b)); }

/* Tables of 32 floats: the lanes' entries, by the low five bits of an index. */
#define TABLES_OF_32
INLINE __m512 sixteen_entries(const float *table, __m512i index) {
    return _mm512_permutex2var_ps(_mm512_load_ps(table), index, _mm512_load_ps(table + 16));
}
INLINE vf look_up(const float *table, vi index) {
    return FLOATS(sixteen_entries(table, index.a), sixteen_entries(table, index.b));
}
INLINE vi exponent_and_two_bits(vf x) {
    return INTEGERS(_mm512_srli_epi32(_mm512_castps_si512(x.a), 21), _mm512_srli_epi32(_mm512_castps_si512(x.b), 21));
}
INLINE vi most_i(vi x, vi y) { return INTEGERS(_mm512_max_epi32(x.a, y.a), _mm512_max_epi32(x.b, y.b)); }

INLINE float sum_of(vf x) { return _mm512_reduce_add_ps(_mm512_add_ps(x.a, x.b)); }
INLINE float most_of(vf x) { return _mm512_reduce_max_ps(_mm512_max_ps(x.a, x.b)); }
INLINE float least_of(vf x) { return _mm512_reduce_min_ps(_mm512_min_ps(x.a, x.b)); }

INLINE __m128i sixteen(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
INLINE vi load_u8(const uint8_t *p) { return INTEGERS(_mm512_cvtepu8_epi32(sixteen(p)), _mm512_cvtepu8_epi32(sixteen(p + 16))); }
INLINE vi load_s8(const int8_t *p) { return INTEGERS(_mm512_cvtepi8_epi32(sixteen(p)), _mm512_cvtepi8_epi32(sixteen(p + 16))); }
INLINE void store_8(void *p, vi v) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(v.a));
    _mm_storeu_si128((__m128i *)p + 1, _mm512_cvtepi32_epi8(v.b));
}
INLINE vi load_i(const int32_t *p) { return INTEGERS(_mm512_loadu_si512(p), _mm512_loadu_si512(p + 16)); }
INLINE void store_i(int32_t *p, vi v) {
    _mm512_storeu_si512(p, v.a);
    _mm512_storeu_si512(p + 16, v.b);
}

#endif
