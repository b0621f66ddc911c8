/* From integer sums to those of the gates, as loops for the compiler to vectorise with the flags of the including file:
 * every operation is rounded by itself, so that all levels give the same bits. */
#ifndef PUMICE_LOWBIT_GATES_H
#define PUMICE_LOWBIT_GATES_H

#include "base/table.h"

enum { USUAL = 32 }; /* columns of a panel: a count that is known beforehand leaves no loop */

#define INLINE static inline __attribute__((always_inline))

INLINE void scale_sums(const int32_t *sums, const struct lowbit_columns *columns, const struct lowbit_state *row,
                       const float *added, float *restrict out, const int64_t count) {
    const uint32_t zero = (uint32_t)row->zero, sum = (uint32_t)row->sum; /* integers wrap */
    const float scale = row->scale;
    uint32_t s[USUAL];
    for (int64_t i = 0; i < count; i++) s[i] = (uint32_t)sums[i] - zero * (uint32_t)columns->sums[i];
    for (int64_t i = 0; columns->zeros && i < count; i++) s[i] -= sum * (uint32_t)columns->zeros[i];
    for (int64_t i = 0; i < count; i++) {
        const float v = (float)(int32_t)s[i] * columns->scale[i] * scale;
        out[i] = added ? v + added[i] : v;
    }
}

static void gates(const int32_t *sums, const struct lowbit_columns *columns, const struct lowbit_state *row,
                  const float *added, float *out, int64_t count) {
    if (count == USUAL)
        scale_sums(sums, columns, row, added, out, USUAL);
    else
        scale_sums(sums, columns, row, added, out, count);
}

#endif
