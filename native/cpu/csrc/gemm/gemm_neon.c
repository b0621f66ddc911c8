/* NEON: 12 x 8 tiles (24 accumulators of 32 registers) of f32, and of 16-bit integers by smlal. */
#include <arm_neon.h>

#include "gemm/store_rows.h"
#include "gemm/tiles.h"

/* --- f32 ---------------------------------------------------------------------------------------------------------- */

#define WIDTH 16
#define A_BYTES 4
#define VECTOR float32x4_t
#define STEP(sum, a, b) sum = vfmaq_f32(sum, a, b)
#define ADD(x, y) vaddq_f32(x, y)
#define BROADCAST(address) vld1q_dup_f32((const float *)(address))
#define LOAD(address) vld1q_f32((const float *)(address))
#define STORE(address, x) vst1q_f32((float *)(address), x)
#define ZERO() vdupq_n_f32(0)
TILES_12(float_tile, 1)

static const struct gemm_kernel float_kernel = {float_tile, 12, 8, PUMICE_F32, PUMICE_F32, 1, 1, 512};
static const struct gemm_kernel bfloat_kernel = {float_tile, 12, 8, PUMICE_F32, PUMICE_F32, 1, 1, 512, .rounds = 1};
static const struct gemm_kernel *floats(void) { return &float_kernel; }
static const struct gemm_kernel *bfloats(void) { return &bfloat_kernel; }

/* --- integers ----------------------------------------------------------------------------------------------------- */

enum { ROWS = 8 };

/* Two halves of a row of B are multiplied by one element of A each; 16 accumulators. */
__attribute__((noipa)) static void short_tile(int rows, int64_t k, const void *a, int64_t stride, const void *panel,
                                              void *tile, int accumulate, struct gemm_fetch fetch) {
    const int16_t *row[ROWS], *b = panel;
    int32_t *to = tile;
    int32x4_t sum[ROWS][2];
    UNROLL for (int r = 0; r < ROWS; r++) {
        row[r] = (const int16_t *)((const char *)a + (r < rows ? r : 0) * stride);
        sum[r][0] = sum[r][1] = vdupq_n_s32(0);
    }
    for (int64_t i = 0; i < k; i++, b += 8) {
        const int16x8_t panel_row = vld1q_s16(b);
        UNROLL for (int r = 0; r < ROWS; r++) {
            const int16x4_t x = vld1_dup_s16(row[r] + i);
            sum[r][0] = vmlal_s16(sum[r][0], vget_low_s16(panel_row), x);
            sum[r][1] = vmlal_s16(sum[r][1], vget_high_s16(panel_row), x);
        }
    }
    for (int r = 0; r < ROWS; r++)
        if (r < rows)
            for (int v = 0; v < 2; v++) {
                int32_t *at = to + 8 * r + 4 * v;
                vst1q_s32(at, accumulate ? vaddq_s32(sum[r][v], vld1q_s32(at)) : sum[r][v]);
            }
}

static const struct gemm_kernel integer_kernel = {short_tile, ROWS, 8, PUMICE_S16, PUMICE_S16, 1, 1, 1 << 11};
static const struct gemm_kernel *integers(void) { return &integer_kernel; }

OVERRIDES(gemm, neon) {
    table->gemm_float = floats;
    table->gemm_bfloat = bfloats;
    table->gemm_integer = integers;
    table->gemm_store_float = store_float;
    table->gemm_store_integer = store_integer;
}
