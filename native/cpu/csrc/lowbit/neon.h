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

enum { MOST_ROWS = 4, QUARTERS = 4, BYTES = 16 };

/* Both registers of a quarter of 32 k. */
static inline void decode(const uint8_t *codes, int8x16_t table, int quarter, int8x16_t weights[2]) {
    for (int i = 0; i < 2; i++) {
        const uint8x16_t bytes = vld1q_u8(codes + quarter % 2 * 32 + i * BYTES);
        weights[i] = vqtbl1q_s8(table, quarter < 2 ? vandq_u8(bytes, vdupq_n_u8(15)) : vshrq_n_u8(bytes, 4));
    }
}

/* One column by `rows` rows, that lie `stride` apart: totals with the groups' scales in them. */
static inline __attribute__((always_inline)) void column_s8(const struct lowbit_weights *w, int64_t n, const int8_t *a,
                                                            int64_t stride, const int rows, float *totals) {
    const uint8_t *codes = w->codes + n * w->blocks * 64;
    const int8_t *entries = w->table_s8 + n * w->table_column;
    const float *scale = w->scale + n * w->groups;
    float32x4_t total[MOST_ROWS];
    int32x4_t sum[MOST_ROWS];
    int8x16_t weights[2];
    for (int r = 0; r < rows; r++) total[r] = vdupq_n_f32(0), sum[r] = vdupq_n_s32(0);
    for (int64_t b = 0, g = 0; b < w->blocks; g++) {
        const int8x16_t table = vld1q_s8(entries + g * w->table_group);
        const int64_t end = w->group_blocks ? smaller(b + w->group_blocks, w->blocks) : b + 1;
        for (; b < end; b++)
            for (int q = 0; q < QUARTERS; q++) {
                decode(codes + b * 64, table, q, weights);
                for (int r = 0; r < rows; r++) {
                    const int8_t *at = a + r * stride + b * 128 + q * 32;
                    sum[r] = dot(dot(sum[r], weights[0], vld1q_s8(at)), weights[1], vld1q_s8(at + BYTES));
                    if (w->group_blocks) continue;
                    total[r] = vfmaq_n_f32(total[r], vcvtq_f32_s32(sum[r]), scale[b * QUARTERS + q]);
                    sum[r] = vdupq_n_s32(0);
                }
            }
        if (w->groups == 1 || !w->group_blocks) continue;
        for (int r = 0; r < rows; r++) {
            total[r] = vfmaq_n_f32(total[r], vcvtq_f32_s32(sum[r]), scale[g]);
            sum[r] = vdupq_n_s32(0);
        }
    }
    const int whole = w->groups == 1 && w->group_blocks;
    for (int r = 0; r < rows; r++) totals[r] = whole ? (float)vaddvq_s32(sum[r]) * scale[0] : vaddvq_f32(total[r]);
}

#include "lowbit/columns.h"

#endif
