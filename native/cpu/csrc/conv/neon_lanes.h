/* Registers of 4 lanes for the 8-bit kernels. */
#ifndef PUMICE_CONV_NEON_LANES_H
#define PUMICE_CONV_NEON_LANES_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 4 };
typedef int32x4_t sums;
#define LOAD(p) vld1q_s32((const int32_t *)(const void *)(p))
#define STORE(p, v) vst1q_s32((int32_t *)(void *)(p), v)

/* Up to 16 bytes. */
static inline __attribute__((always_inline)) uint8x16_t some_bytes(const uint8_t *p, int n) {
    if (n >= 16) return vld1q_u8(p);
    uint8_t part[16] = {0};
    memcpy(part, p, (size_t)n);
    return vld1q_u8(part);
}

/* Four rows of up to 16 channels; register v holds channels 4 v .. 4 v + 3. */
struct quad {
    int32x4_t v[4];
};
static inline __attribute__((always_inline)) struct quad INTERLEAVE(const uint8_t *const *rows, int channels) {
    const uint8x16_t a = some_bytes(rows[0], channels), b = some_bytes(rows[1], channels);
    const uint8x16_t c = some_bytes(rows[2], channels), d = some_bytes(rows[3], channels);
    const uint16x8_t ab = vreinterpretq_u16_u8(vzip1q_u8(a, b)), AB = vreinterpretq_u16_u8(vzip2q_u8(a, b));
    const uint16x8_t cd = vreinterpretq_u16_u8(vzip1q_u8(c, d)), CD = vreinterpretq_u16_u8(vzip2q_u8(c, d));
    return (struct quad){{vreinterpretq_s32_u16(vzip1q_u16(ab, cd)), vreinterpretq_s32_u16(vzip2q_u16(ab, cd)),
                          vreinterpretq_s32_u16(vzip1q_u16(AB, CD)), vreinterpretq_s32_u16(vzip2q_u16(AB, CD))}};
}

#endif
