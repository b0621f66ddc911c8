/* From a column's sum to its output, the same at every level. */
#ifndef PUMICE_LOWBIT_FINISH_H
#define PUMICE_LOWBIT_FINISH_H

#include "lowbit/types.h"

/* Rows that are smaller everywhere count as zero: 127 / max |a| would not be finite. */
#define LOWBIT_LEAST 1e-36f

/* (sum - sum over groups of offset * (sum of a)) * row_scale + bias; `total` has the groups' scales in it. */
static inline float lowbit_finish(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t m, int64_t n,
                                  float total, float row_scale) {
    if (w->offset) {
        const float *offset = w->offset + n * w->groups, *sums = rows->sums + m * w->groups;
        float shift = 0;
        for (int64_t g = 0; g < w->groups; g++) shift += offset[g] * sums[g];
        total -= shift;
    }
    total *= row_scale;
    return rows->bias ? total + rows->bias[n] : total;
}

#endif
