/* 4-bit products with NEON, written once for the ways to multiply bytes: a file that includes this defines
 *
 *     static inline int32x4_t dot(int32x4_t sum, int8x16_t weights, int8x16_t a)
 *
 * before. A table of sixteen bytes is one register, and tbl looks sixteen codes up at once. */
#ifndef PUMICE_LOWBIT_NEON_H
#define PUMICE_LOWBIT_NEON_H

#include "base/numbers.h"
#include "base/table.h"
#include "lowbit/finish.h"

enum { MOST_ROWS = 4, PARTS = 2, BYTES = 16 };

#define INLINE static inline __attribute__((always_inline))

typedef int32x4_t sums;
typedef float32x4_t totals;
typedef int8x16_t entries;
#define NO_SUMS vdupq_n_s32(0)
#define NO_TOTALS vdupq_n_f32(0)
#define ENTRIES(table) vld1q_s8(table)
#define SUM(s) vaddvq_s32(s)
#define TOTAL(t) vaddvq_f32(t)
#define SCALED(total, sum, scale) vfmaq_n_f32(total, vcvtq_f32_s32(sum), scale)
#define DOT(sum, weights, a) dot(sum, weights, vld1q_s8(a))

/* Low codes are the first two quarters. */
INLINE int8x16_t WEIGHTS(const uint8_t *codes, entries table, int quarter, int part) {
    const uint8x16_t bytes = vld1q_u8(codes + quarter % 2 * 32 + part * BYTES);
    return vqtbl1q_s8(table, quarter < 2 ? vandq_u8(bytes, vdupq_n_u8(15)) : vshrq_n_u8(bytes, 4));
}

#include "lowbit/columns.h"

#endif
