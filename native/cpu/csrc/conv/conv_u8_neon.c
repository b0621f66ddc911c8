/* 8-bit convolution with plain NEON: activations become signed by flipping their top bit, products are widened to 16
 * bits and added in pairs. */
#include "conv/neon_lanes.h"

#include "base/table.h"

enum { OFFSET = 128 };
struct levels { int8x16_t v; };
struct weights { int8x16_t v; };
static inline __attribute__((always_inline)) struct levels LEVELS(int32x4_t all) {
    return (struct levels){vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(all), vdupq_n_u8(0x80)))};
}
static inline __attribute__((always_inline)) struct levels GROUP(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, 4);
    return LEVELS(vdupq_n_s32(four));
} static inline __attribute__((always_inline)) struct weights WEIGHTS(const int8_t *p) {
    return (struct weights){vld1q_s8(p)};
} static inline __attribute__((always_inline)) sums DOT(sums sum, struct levels a, struct weights w) {
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a.v), vget_low_s8(w.v)));
    const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(a.v), vget_high_s8(w.v)));
    return vaddq_s32(sum, vpaddq_s32(low, high));
}
#include "conv/neon_kernels.h"

/* --- epilogue ----------------------------------------------------------------------------------------------------- */

typedef float32x4_t reals;
#define REALS(p) vld1q_f32(p)
#define SET_REALS(x) vdupq_n_f32(x)
#define SET_SUMS(x) vdupq_n_s32(x)
#define TO_REALS(x) vcvtq_f32_s32(x)
#define TO_SUMS(x) vcvtnq_s32_f32(x)
#define MUL(a, b) vmulq_f32(a, b)
#define FMA(a, b, c) vfmaq_f32(c, a, b)
#define MIN(a, b) vminq_f32(a, b)
#define MAX(a, b) vmaxq_f32(a, b)
#define ADD(a, b) vaddq_s32(a, b)
#define SUB(a, b) vsubq_s32(a, b)
#define XOR(a, b) veorq_s32(a, b)
static inline __attribute__((always_inline)) sums BYTES(const uint8_t *p, int n) {
    uint32_t four = 0;
    memcpy(&four, p, (size_t)n);
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}
static inline __attribute__((always_inline)) void PUT_BYTES(uint8_t *p, sums v, int n) {
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(vmovn_u32(vreinterpretq_u32_s32(v)), vdup_n_u16(0)));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
    memcpy(p, &four, (size_t)n);
}
#include "conv/u8_requantize.h"

static void depthwise_requantize(uint8_t *out, int64_t out_stride, const int32_t *tile, int count, int channels,
                                 const struct conv_requantize *how) {
    requantize(out, out_stride, tile, QUAD, count, channels, how);
}

OVERRIDES(conv_u8, neon) {
    FILL_NEON_SLOTS;
    table->conv_u8_requantize = requantize;
    table->conv_u8_depthwise_requantize = depthwise_requantize;
}
