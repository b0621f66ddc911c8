/* usdot: unsigned by signed, as the data are. */
#include "conv/neon_lanes.h"

#include "base/table.h"

enum { OFFSET = 0 };
struct levels { uint8x16_t v; };
struct weights { int8x16_t v; };
static inline __attribute__((always_inline)) struct levels LEVELS(int32x4_t all) {
    return (struct levels){vreinterpretq_u8_s32(all)};
}
static inline __attribute__((always_inline)) struct levels GROUP(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, 4);
    return LEVELS(vdupq_n_s32(four));
} static inline __attribute__((always_inline)) struct weights WEIGHTS(const int8_t *p) {
    return (struct weights){vld1q_s8(p)};
}
#define DOT(sum, group, weights) vusdotq_s32(sum, (group).v, (weights).v)
#include "conv/neon_kernels.h"

OVERRIDES(conv_u8, i8mm) { FILL_NEON_SLOTS; }
