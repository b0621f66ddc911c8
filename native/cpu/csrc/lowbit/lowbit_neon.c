/* s8 rows by s8 tables and f32 rows by f32 tables with NEON. A table of sixteen floats is four registers, which tbl
 * reads by bytes: a code c becomes the byte indices 4 c to 4 c + 3. */
#include <arm_neon.h>
#include <math.h>
#include <string.h>

static inline int32x4_t dot(int32x4_t sum, int8x16_t weights, int8x16_t a) {
    sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(weights), vget_low_s8(a)));
    return vpadalq_s16(sum, vmull_s8(vget_high_s8(weights), vget_high_s8(a)));
}

#include "lowbit/neon.h"

/* --- floats ------------------------------------------------------------------------------------------------------- */

enum { DWORDS = 4 };

static inline float32x4_t entries_of(uint32x4_t codes, uint8x16x4_t table) {
    const uint32x4_t index = vandq_u32(codes, vdupq_n_u32(15));
    const uint32x4_t bytes = vmlaq_n_u32(vdupq_n_u32(0x03020100), index, 0x04040404);
    return vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)));
}

/* Of one block: dwords 0 to 7 with even shifts are the first quarter, 8 to 15 the second, odd shifts the others. */
static inline void block_f32(const uint8_t *codes, const float *a, uint8x16x4_t table, float32x4_t sum[QUARTERS]) {
    for (int part = 0; part < 4; part++) {
        uint32x4_t dwords = vreinterpretq_u32_u8(vld1q_u8(codes + part * BYTES));
        for (int i = 0; i < 8; i++, dwords = vshrq_n_u32(dwords, 4)) {
            const int q = part / 2 + 2 * (i & 1);
            sum[q] = vfmaq_f32(sum[q], entries_of(dwords, table), vld1q_f32(a + i * 16 + part * DWORDS));
        }
    }
}

static float column_f32(const struct lowbit_weights *w, int64_t n, const float *a) {
    const uint8_t *codes = w->codes + n * w->blocks * 64;
    const float *scale = w->scale + n * w->groups;
    float32x4_t total = vdupq_n_f32(0);
    for (int64_t b = 0, g = 0; b < w->blocks; g++) {
        const uint8_t *entries = (const uint8_t *)(w->table_f32 + n * w->table_column + g * w->table_group);
        const uint8x16x4_t table = {
            {vld1q_u8(entries), vld1q_u8(entries + 16), vld1q_u8(entries + 32), vld1q_u8(entries + 48)}};
        float32x4_t sum[QUARTERS];
        for (int q = 0; q < QUARTERS; q++) sum[q] = vdupq_n_f32(0);
        const int64_t end = w->group_blocks ? smaller(b + w->group_blocks, w->blocks) : b + 1;
        for (; b < end; b++) block_f32(codes + b * 64, a + b * 128, table, sum);
        for (int q = 0; q < QUARTERS; q++)
            total = vfmaq_n_f32(total, sum[q], w->group_blocks ? scale[g] : scale[g * QUARTERS + q]);
    }
    return vaddvq_f32(total);
}

static void products_f32(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t n0, int64_t n1,
                         float *out, int64_t out_stride) {
    for (int64_t n = n0; n < n1; n++)
        for (int64_t m = 0; m < rows->m; m++)
            out[m * out_stride + n] =
                lowbit_finish(w, rows, m, n, column_f32(w, n, (const float *)rows->a + m * rows->stride), 1);
}

/* --- rows --------------------------------------------------------------------------------------------------------- */

static float quantize_row(int8_t *q, const float *a, int64_t k, int64_t padded) {
    float32x4_t most = vdupq_n_f32(0);
    int64_t i = 0;
    for (; i + DWORDS <= k; i += DWORDS) most = vmaxnmq_f32(vabsq_f32(vld1q_f32(a + i)), most);
    float largest = vmaxvq_f32(most);
    for (; i < k; i++) largest = fabsf(a[i]) > largest ? fabsf(a[i]) : largest;
    if (!(largest >= LOWBIT_LEAST)) largest = 0;
    const float factor = largest > 0 ? 127 / largest : 0;
    for (i = 0; i + DWORDS <= k; i += DWORDS) {
        const float32x4_t level =
            vmaxnmq_f32(vmulq_n_f32(vld1q_f32(a + i), factor), vdupq_n_f32(-127)); /* NaN becomes -127 */
        const int32x4_t whole = vcvtnq_s32_f32(vminq_f32(level, vdupq_n_f32(127)));
        const int16x4_t words = vmovn_s32(whole);
        const int32_t four = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(words, words))), 0);
        memcpy(q + i, &four, sizeof four);
    }
    for (; i < padded; i++) {
        const float level = i < k ? a[i] * factor : 0;
        q[i] = (int8_t)rintf(level > -127 ? level < 127 ? level : 127 : -127);
    }
    return largest / 127;
}

OVERRIDES(lowbit, neon) {
    table->lowbit_s8 = products_s8;
    table->lowbit_f32 = products_f32;
    table->lowbit_bf16 = products_f32;
    table->lowbit_quantize_row = quantize_row;
}
