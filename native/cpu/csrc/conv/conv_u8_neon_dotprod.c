/* sdot: activations become signed by flipping their top bit. */
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
}
#define DOT(sum, group, weights) vdotq_s32(sum, (group).v, (weights).v)
#include "conv/neon_kernels.h"

OVERRIDES(conv_u8, neon_dotprod) { FILL_NEON_SLOTS; }
