/* Products column by column, a few rows at once, for registers that hold a quarter of a block (32 k) or less. A file
 * that includes this defines before
 *
 *     enum { MOST_ROWS, PARTS }          rows at once; registers to a quarter
 *     INLINE                             static, always inlined
 *     sums, totals                       registers of s32 and of f32
 *     NO_SUMS, NO_TOTALS                 zeros
 *     entries, ENTRIES(table)            the register of a table's 16 bytes
 *     WEIGHTS(codes, entries, q, i)      register i of a block's quarter q, decoded
 *     DOT(sum, weights, a)               sum + products with the bytes at `a`
 *     SCALED(total, sum, scale)          total + sum * scale
 *     SUM(sums), TOTAL(totals)           what the lanes add up to
 */
#ifndef PUMICE_LOWBIT_COLUMNS_H
#define PUMICE_LOWBIT_COLUMNS_H

#include "base/numbers.h"
#include "lowbit/finish.h"

enum { QUARTERS = 4, PART_BYTES = 32 / PARTS };

/* One column by `rows` rows, that lie `stride` apart. */
struct column {
    const uint8_t *codes;
    const int8_t *a;
    int64_t stride, blocks;
    const float *scale; /* of quarters */
    sums sum[MOST_ROWS];
    totals total[MOST_ROWS];
};

INLINE sums quarter(sums sum, const uint8_t *codes, entries table, const int8_t *a, const int q) {
    for (int i = 0; i < PARTS; i++) sum = DOT(sum, WEIGHTS(codes, table, q, i), a + q * 32 + i * PART_BYTES);
    return sum;
}

/* The sums over all of its blocks. A function of its own for every number of rows: see docs/native.md. */
INLINE void sum_blocks(struct column *c, entries table, const int rows) {
    sums sum[MOST_ROWS];
    for (int r = 0; r < rows; r++) sum[r] = NO_SUMS;
    const uint8_t *codes = c->codes;
    const int8_t *a = c->a;
    for (int64_t b = 0; b < c->blocks; b++, codes += 64, a += 128)
        for (int q = 0; q < QUARTERS; q++)
            for (int r = 0; r < rows; r++) sum[r] = quarter(sum[r], codes, table, a + r * c->stride, q);
    for (int r = 0; r < rows; r++) c->sum[r] = sum[r];
}

/* The totals over all of its blocks where every quarter has a scale. */
INLINE void total_quarters(struct column *c, entries table, const int rows) {
    totals total[MOST_ROWS];
    for (int r = 0; r < rows; r++) total[r] = NO_TOTALS;
    const uint8_t *codes = c->codes;
    const int8_t *a = c->a;
    for (int64_t b = 0; b < c->blocks; b++, codes += 64, a += 128)
        for (int q = 0; q < QUARTERS; q++)
            for (int r = 0; r < rows; r++)
                total[r] =
                    SCALED(total[r], quarter(NO_SUMS, codes, table, a + r * c->stride, q), c->scale[b * QUARTERS + q]);
    for (int r = 0; r < rows; r++) c->total[r] = total[r];
}

static __attribute__((noipa)) void sum_blocks_1(struct column *c, entries table) { sum_blocks(c, table, 1); }
static __attribute__((noipa)) void sum_blocks_all(struct column *c, entries table) { sum_blocks(c, table, MOST_ROWS); }
static __attribute__((noipa)) void total_quarters_1(struct column *c, entries table) { total_quarters(c, table, 1); }
static __attribute__((noipa)) void total_quarters_all(struct column *c, entries table) {
    total_quarters(c, table, MOST_ROWS);
}

/* Column n by one or by MOST_ROWS rows: totals with the groups' scales in them. */
static void column_s8(const struct lowbit_weights *w, int64_t n, const int8_t *a, int64_t stride, const int rows,
                      float *totals_of_rows) {
    const uint8_t *codes = w->codes + n * w->blocks * 64;
    const int8_t *table = w->table_s8 + n * w->table_column;
    const float *scale = w->scale + n * w->groups;
    struct column c = {.codes = codes, .a = a, .stride = stride, .blocks = w->blocks, .scale = scale};
    if (!w->group_blocks) {
        (rows == 1 ? total_quarters_1 : total_quarters_all)(&c, ENTRIES(table));
        for (int r = 0; r < rows; r++) totals_of_rows[r] = TOTAL(c.total[r]);
        return;
    }
    totals total[MOST_ROWS];
    for (int r = 0; r < rows; r++) total[r] = NO_TOTALS;
    for (int64_t g = 0, b = 0; b < w->blocks; g++, b += c.blocks) {
        c.codes = codes + b * 64, c.a = a + b * 128, c.blocks = smaller(w->group_blocks, w->blocks - b);
        (rows == 1 ? sum_blocks_1 : sum_blocks_all)(&c, ENTRIES(table + g * w->table_group));
        for (int r = 0; r < rows; r++) total[r] = SCALED(total[r], c.sum[r], scale[g]);
    }
    for (int r = 0; r < rows; r++)
        totals_of_rows[r] = w->groups == 1 ? (float)SUM(c.sum[r]) * scale[0] : TOTAL(total[r]);
}

static void products_s8(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t n0, int64_t n1,
                        float *out, int64_t out_stride) {
    float totals_of_rows[MOST_ROWS];
    for (int64_t n = n0; n < n1; n++)
        for (int64_t m = 0; m < rows->m; m += MOST_ROWS) {
            const int8_t *a = (const int8_t *)rows->a + m * rows->stride;
            const int64_t left = smaller(MOST_ROWS, rows->m - m);
            if (left == MOST_ROWS)
                column_s8(w, n, a, rows->stride, MOST_ROWS, totals_of_rows);
            else
                for (int64_t r = 0; r < left; r++) column_s8(w, n, a + r * rows->stride, 0, 1, totals_of_rows + r);
            for (int64_t r = 0; r < left; r++)
                out[(m + r) * out_stride + n] = lowbit_finish(w, rows, m + r, n, totals_of_rows[r], rows->scale[m + r]);
        }
}

#endif
