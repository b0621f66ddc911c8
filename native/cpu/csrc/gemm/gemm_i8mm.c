/* i8mm: s8 x s8 by smmla, which multiplies two rows of A by two columns of B over eight k: 12 x 8 tiles of 24
 * accumulators, each holding a block of 2 x 2. Panels are [k / 8][8 columns][8]. */
#include <arm_neon.h>
#include <string.h>

#include "gemm/gemm.h"

enum { ROWS = 12, COLUMNS = 8, GROUP = 8 };

#define UNROLL _Pragma("GCC unroll 12")

/* R rows, an even number. */
#define TILE(R)                                                                                                       \
    __attribute__((noipa)) static void tile_##R(int64_t groups, const int8_t *a, int64_t stride, const int8_t *b,      \
                                                int32_t *tile, int accumulate) {                                      \
        int32x4_t sum[R / 2][4];                                                                                      \
        UNROLL for (int i = 0; i < R / 2; i++) UNROLL for (int j = 0; j < 4; j++) sum[i][j] = vdupq_n_s32(0);          \
        for (int64_t g = 0; g < groups; g++, a += GROUP, b += GROUP * COLUMNS) {                                      \
            const int8x16_t b0 = vld1q_s8(b), b1 = vld1q_s8(b + 16), b2 = vld1q_s8(b + 32), b3 = vld1q_s8(b + 48);     \
            UNROLL for (int i = 0; i < R / 2; i++) {                                                                  \
                const int8x16_t x = vcombine_s8(vld1_s8(a + 2 * i * stride), vld1_s8(a + (2 * i + 1) * stride));       \
                sum[i][0] = vmmlaq_s32(sum[i][0], x, b0);                                                             \
                sum[i][1] = vmmlaq_s32(sum[i][1], x, b1);                                                             \
                sum[i][2] = vmmlaq_s32(sum[i][2], x, b2);                                                             \
                sum[i][3] = vmmlaq_s32(sum[i][3], x, b3);                                                             \
            }                                                                                                         \
        }                                                                                                             \
        UNROLL for (int i = 0; i < R / 2; i++) UNROLL for (int h = 0; h < 2; h++) {                                    \
            put(tile + 2 * i * COLUMNS + 4 * h, sum[i][2 * h], sum[i][2 * h + 1], accumulate);                        \
        }                                                                                                             \
    }

/* Two blocks of 2 x 2 side by side, into two rows of the tile. */
static inline void put(int32_t *to, int32x4_t left, int32x4_t right, int accumulate) {
    const int64x2_t l = vreinterpretq_s64_s32(left), r = vreinterpretq_s64_s32(right);
    int32x4_t upper = vreinterpretq_s32_s64(vzip1q_s64(l, r)), lower = vreinterpretq_s32_s64(vzip2q_s64(l, r));
    if (accumulate) {
        upper = vaddq_s32(upper, vld1q_s32(to));
        lower = vaddq_s32(lower, vld1q_s32(to + COLUMNS));
    }
    vst1q_s32(to, upper);
    vst1q_s32(to + COLUMNS, lower);
}

TILE(2) TILE(4) TILE(6) TILE(8) TILE(10) TILE(12)

static void tile(int rows, int64_t k, const void *a, int64_t stride, const void *panel, void *sums, int accumulate,
                 struct gemm_fetch fetch) {
    typedef void (*tile_function)(int64_t, const int8_t *, int64_t, const int8_t *, int32_t *, int);
    static const tile_function functions[] = {tile_2, tile_4, tile_6, tile_8, tile_10, tile_12};
    const tile_function run = functions[rows / 2 - 1];
    const int64_t groups = k / GROUP, rest = k % GROUP;
    run(groups, a, stride, panel, sums, accumulate);
    if (!rest) return;
    int8_t last[ROWS * GROUP] = {0};
    for (int r = 0; r < rows; r++)
        memcpy(last + GROUP * r, (const int8_t *)a + r * stride + GROUP * groups, (size_t)rest);
    run(1, last, GROUP, (const int8_t *)panel + GROUP * COLUMNS * groups, sums, 1);
}

static const struct gemm_kernel integer_kernel = {tile, ROWS, COLUMNS, PUMICE_S8,    PUMICE_S8,
                                                  8,    8,    1 << 12, .row_step = 2};
static const struct gemm_kernel *integers(void) { return &integer_kernel; }

OVERRIDES(gemm, i8mm) { table->gemm_integer = integers; }
