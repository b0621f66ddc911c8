/* Products column by column, a few rows at once: a file that includes this defines
 *
 *     enum { MOST_ROWS }                                                                  rows at once
 *     static ... column_s8(weights, column, activations, stride, rows, totals)             their sums with one column
 *
 * before. */
#ifndef PUMICE_LOWBIT_COLUMNS_H
#define PUMICE_LOWBIT_COLUMNS_H

#include "base/numbers.h"
#include "lowbit/finish.h"

static void products_s8(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t n0, int64_t n1, float *out,
                        int64_t out_stride) {
    float totals[MOST_ROWS];
    for (int64_t n = n0; n < n1; n++)
        for (int64_t m = 0; m < rows->m; m += MOST_ROWS) {
            const int8_t *a = (const int8_t *)rows->a + m * rows->stride;
            const int64_t left = smaller(MOST_ROWS, rows->m - m);
            if (left == MOST_ROWS)
                column_s8(w, n, a, rows->stride, MOST_ROWS, totals);
            else
                for (int64_t r = 0; r < left; r++) column_s8(w, n, a + r * rows->stride, 0, 1, totals + r);
            for (int64_t r = 0; r < left; r++)
                out[(m + r) * out_stride + n] = lowbit_finish(w, rows, m + r, n, totals[r], rows->scale[m + r]);
        }
}

#endif
