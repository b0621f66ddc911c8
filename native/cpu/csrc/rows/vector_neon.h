/* The vector operations of rows/ with NEON (AArch64); vector_scalar.h says what each means. */
#ifndef PUMICE_ROWS_VECTOR_H
#define PUMICE_ROWS_VECTOR_H

#include <arm_neon.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 4
typedef float32x4_t vf;
typedef int32x4_t vi;
typedef uint32x4_t vm;

#define INLINE static inline __attribute__((always_inline))

INLINE vf load(const float *p) { return vld1q_f32(p); }
INLINE vf load_some(const float *p, int64_t count) {
    float part[LANES] = {0, 0, 0, 0};
    memcpy(part, p, (size_t)count * sizeof *p);
    return vld1q_f32(part);
}
INLINE void store(float *p, vf v) { vst1q_f32(p, v); }
INLINE void store_some(float *p, vf v, int64_t count) {
    float part[LANES];
    vst1q_f32(part, v);
    memcpy(p, part, (size_t)count * sizeof *p);
}
INLINE vf all(float x) { return vdupq_n_f32(x); }
INLINE vi all_i(int32_t x) { return vdupq_n_s32(x); }

INLINE vf add(vf a, vf b) { return vaddq_f32(a, b); }
INLINE vf sub(vf a, vf b) { return vsubq_f32(a, b); }
INLINE vf mul(vf a, vf b) { return vmulq_f32(a, b); }
INLINE vf divide(vf a, vf b) { return vdivq_f32(a, b); }
INLINE vf fma_(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
INLINE vf fnma(vf a, vf b, vf c) { return vfmsq_f32(c, a, b); }
INLINE vf fms(vf a, vf b, vf c) { return vfmaq_f32(vnegq_f32(c), a, b); }
INLINE vf fnms(vf a, vf b, vf c) { return vfmsq_f32(vnegq_f32(c), a, b); }
INLINE vf root(vf a) { return vsqrtq_f32(a); }
/* FMIN would give NaN for either NaN: x86's rule is wanted, b where either is NaN. */
INLINE vf least(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
INLINE vf most(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
INLINE vf nearest(vf a) { return vrndnq_f32(a); }
INLINE vf reciprocal_guess(vf a) { return vdivq_f32(vdupq_n_f32(1), a); }
INLINE vf reciprocal(vf a) { return vdivq_f32(vdupq_n_f32(1), a); }

INLINE vi bits(vf a) { return vreinterpretq_s32_f32(a); }
INLINE vf from_bits(vi a) { return vreinterpretq_f32_s32(a); }
INLINE vi to_int(vf a) { return vcvtnq_s32_f32(a); }
INLINE vf to_float(vi a) { return vcvtq_f32_s32(a); }
INLINE vi add_i(vi a, vi b) { return vaddq_s32(a, b); }
INLINE vi sub_i(vi a, vi b) { return vsubq_s32(a, b); }
INLINE vi and_i(vi a, vi b) { return vandq_s32(a, b); }
INLINE vi or_i(vi a, vi b) { return vorrq_s32(a, b); }
#define shift_left(a, n) vshlq_n_s32(a, n)
#define shift_right(a, n) vshrq_n_s32(a, n)

INLINE vm below(vf a, vf b) { return vcltq_f32(a, b); }
INLINE vm equal(vf a, vf b) { return vceqq_f32(a, b); }
INLINE vf choose(vm m, vf yes, vf no) { return vbslq_f32(m, yes, no); }
INLINE vi choose_i(vm m, vi yes, vi no) { return vbslq_s32(m, yes, no); }

INLINE vf power_of_two(vi n) { return from_bits(shift_left(add_i(n, all_i(127)), 23)); }
INLINE vf scale_by(vf a, vf n) {
    const vi whole = to_int(n), half = shift_right(whole, 1);
    return mul(mul(a, power_of_two(half)), power_of_two(sub_i(whole, half)));
}

INLINE float sum_of(vf a) { return vaddvq_f32(a); }
INLINE float most_of(vf a) { return vmaxvq_f32(a); }
INLINE float least_of(vf a) { return vminvq_f32(a); }

INLINE vi load_u8(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}
INLINE vi load_s8(const int8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four))));
}
INLINE void store_8(void *p, vi v) {
    const uint16x4_t pairs = vmovn_u32(vreinterpretq_u32_s32(v));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(pairs, pairs))), 0);
    memcpy(p, &four, sizeof four);
}
INLINE vi load_i(const int32_t *p) { return vld1q_s32(p); }
INLINE void store_i(int32_t *p, vi v) { vst1q_s32(p, v); }

#endif
