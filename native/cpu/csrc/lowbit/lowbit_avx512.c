/* f32 rows by f32 tables: one table of sixteen floats is one register, and vpermps reads the low four bits of every
 * dword of codes; seven shifts give the other codes. Also the symmetric quantization of rows. */
#include <immintrin.h>

#include "base/numbers.h"
#include "base/table.h"
#include "lowbit/finish.h"

enum { COLUMNS = 4, MOST_ROWS = 2, LANES = 16 };

struct tile {
    const uint8_t *codes[COLUMNS];
    const float *table[COLUMNS], *scale[COLUMNS], *a[MOST_ROWS];
    int64_t blocks, groups, group_blocks, table_group;
    float sums[COLUMNS][MOST_ROWS][LANES] __attribute__((aligned(64)));
};

/* Accumulators are named one by one: gcc 12 leaves arrays of vectors in memory. */
#define ONE_ROW(X, c, i) X(c, 0, i)
#define TWO_ROWS(X, c, i) X(c, 0, i) X(c, 1, i)
#define COLUMNS_OF(X, ROWS, i) X(ROWS, 0, i) X(ROWS, 1, i) X(ROWS, 2, i) X(ROWS, 3, i)
#define TILE(ROWS, X) ROWS(X, 0, 0) ROWS(X, 1, 0) ROWS(X, 2, 0) ROWS(X, 3, 0)

#define TOTAL(c, r, i) __m512 total_##c##_##r = _mm512_setzero_ps();
#define SUM(c, r, i) __m512 sum_##c##_##r = _mm512_setzero_ps();
#define TABLE(ROWS, c, i) const __m512 table_##c = _mm512_loadu_ps(t->table[c] + g * t->table_group);
#define CODES(ROWS, c, i)                                              \
    __m512i codes_##c = _mm512_loadu_si512(t->codes[c] + b * 64);      \
    __builtin_prefetch(t->codes[c] + b * 64 + ahead);
#define ROW(c, r, i) const __m512 a_##r = _mm512_loadu_ps(t->a[r] + b * 128 + (i) * LANES);
#define ADD(c, r, i) sum_##c##_##r = _mm512_fmadd_ps(weight, a_##r, sum_##c##_##r);
#define DECODE(ROWS, c, i)                                                                            \
    {                                                                                                 \
        const __m512 weight = _mm512_permutexvar_ps(codes_##c, table_##c);                            \
        ROWS(ADD, c, i)                                                                               \
        codes_##c = _mm512_srli_epi32(codes_##c, 4);                                                  \
    }
#define STEP(ROWS, i) { ROWS(ROW, 0, i) COLUMNS_OF(DECODE, ROWS, i) }
#define BLOCK_PRODUCTS(ROWS) \
    STEP(ROWS, 0) STEP(ROWS, 1) STEP(ROWS, 2) STEP(ROWS, 3) STEP(ROWS, 4) STEP(ROWS, 5) STEP(ROWS, 6) STEP(ROWS, 7)
#define SCALED(c, r, i)                                                                                                \
    total_##c##_##r = _mm512_fmadd_ps(sum_##c##_##r, _mm512_set1_ps(t->scale[c][g]), total_##c##_##r);
#define KEEP(c, r, i) _mm512_store_ps(t->sums[c][r], total_##c##_##r);

#define GROUPED(rows, ROWS)                                                                                            \
    __attribute__((noipa)) static void grouped_##rows(struct tile *t) {                                                \
        const int64_t ahead = COLUMNS * t->blocks * 64;                                                                \
        TILE(ROWS, TOTAL)                                                                                              \
        for (int64_t g = 0, b = 0; g < t->groups; g++) {                                                               \
            COLUMNS_OF(TABLE, ROWS, 0)                                                                                 \
            TILE(ROWS, SUM)                                                                                            \
            for (const int64_t end = smaller(b + t->group_blocks, t->blocks); b < end; b++) {                          \
                COLUMNS_OF(CODES, ROWS, 0)                                                                             \
                BLOCK_PRODUCTS(ROWS)                                                                                   \
            }                                                                                                          \
            TILE(ROWS, SCALED)                                                                                         \
        }                                                                                                              \
        TILE(ROWS, KEEP)                                                                                               \
    }
GROUPED(1, ONE_ROW)
GROUPED(2, TWO_ROWS)

/* Four scales a block. Lane j of step i holds k = 4 j + i/2 + 64 (i mod 2): lanes 0 to 7 of even steps are of the first
 * quarter, 8 to 15 of the second, and of odd steps of the third and fourth. */
#define QUARTER_SCALES(ROWS, c, i)                                                                                     \
    const __m512 scales_##c = _mm512_broadcast_f32x4(_mm_loadu_ps(t->scale[c] + b * 4));
#define QUARTERS_SCALED(c, r, i)                                                                                       \
    total_##c##_##r = _mm512_fmadd_ps(sum_##c##_##r, _mm512_permutexvar_ps(of_step, scales_##c), total_##c##_##r);
#define QUARTERED(rows, ROWS)                                                                                          \
    __attribute__((noipa)) static void quartered_##rows(struct tile *t) {                                              \
        const int64_t ahead = COLUMNS * t->blocks * 64, g = 0;                                                         \
        const __m512i halves = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);                       \
        COLUMNS_OF(TABLE, ROWS, 0)                                                                                     \
        TILE(ROWS, TOTAL)                                                                                              \
        for (int64_t b = 0; b < t->blocks; b++) {                                                                      \
            COLUMNS_OF(CODES, ROWS, 0)                                                                                 \
            COLUMNS_OF(QUARTER_SCALES, ROWS, 0)                                                                        \
            for (int i = 0; i < 8; i++) {                                                                              \
                const __m512i of_step = _mm512_add_epi32(halves, _mm512_set1_epi32(2 * (i & 1)));                      \
                TILE(ROWS, SUM)                                                                                        \
                STEP(ROWS, i)                                                                                          \
                TILE(ROWS, QUARTERS_SCALED)                                                                            \
            }                                                                                                          \
        }                                                                                                              \
        TILE(ROWS, KEEP)                                                                                               \
    }
QUARTERED(1, ONE_ROW)
QUARTERED(2, TWO_ROWS)

typedef void (*shape)(struct tile *t);
static const shape shapes[2][2] = {{grouped_1, grouped_2}, {quartered_1, quartered_2}};

static void products(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t n0, int64_t n1, float *out,
                     int64_t out_stride) {
    struct tile t = {
        .blocks = w->blocks, .groups = w->groups, .group_blocks = w->group_blocks, .table_group = w->table_group};
    for (int64_t n = n0; n < n1; n += COLUMNS) {
        for (int c = 0; c < COLUMNS; c++) {
            const int64_t column = smaller(n + c, n1 - 1);
            t.codes[c] = w->codes + column * w->blocks * 64;
            t.table[c] = w->table_f32 + column * w->table_column;
            t.scale[c] = w->scale + column * w->groups;
        }
        for (int64_t m = 0; m < rows->m; m += MOST_ROWS) {
            const int64_t left = smaller(rows->m - m, MOST_ROWS);
            for (int r = 0; r < left; r++) t.a[r] = (const float *)rows->a + (m + r) * rows->stride;
            shapes[!w->group_blocks][left - 1](&t);
            for (int r = 0; r < left; r++)
                for (int c = 0; c < smaller(COLUMNS, n1 - n); c++)
                    out[(m + r) * out_stride + n + c] =
                        lowbit_finish(w, rows, m + r, n + c, _mm512_reduce_add_ps(_mm512_load_ps(t.sums[c][r])), 1);
        }
    }
}

static float quantize_row(int8_t *q, const float *a, int64_t k, int64_t padded) {
    __m512 most = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + LANES <= k; i += LANES) most = _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(a + i)), most);
    const __mmask16 tail = (__mmask16)((1u << (k - i)) - 1);
    most = _mm512_max_ps(_mm512_abs_ps(_mm512_maskz_loadu_ps(tail, a + i)), most);
    float largest = _mm512_reduce_max_ps(most);
    if (!(largest >= LOWBIT_LEAST)) largest = 0;
    const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127 / largest : 0);
    const __m512 top = _mm512_set1_ps(127), bottom = _mm512_set1_ps(-127);
    for (i = 0; i < padded; i += LANES) {
        const int64_t left = k - i;
        const __mmask16 mask = left >= LANES ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
        __m512 level = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, a + i), inverse);
        level = _mm512_min_ps(_mm512_max_ps(level, bottom), top); /* NaN becomes -127 */
        const __mmask16 stored = padded - i >= LANES ? 0xffff : (__mmask16)((1u << (padded - i)) - 1);
        _mm512_mask_cvtepi32_storeu_epi8(q + i, stored, _mm512_maskz_cvtps_epi32(mask, level));
    }
    return largest / 127;
}

OVERRIDES(lowbit, avx512) {
    table->lowbit_f32 = products;
    table->lowbit_bf16 = products;
    table->lowbit_quantize_row = quantize_row;
}
