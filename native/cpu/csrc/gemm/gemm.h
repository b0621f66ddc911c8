/* What other families share with matrix products: the epilogue and the packing. */
#ifndef PUMICE_GEMM_GEMM_H
#define PUMICE_GEMM_GEMM_H

#include "base/table.h"

static inline int pumice_type_size(int type) {
    static const int sizes[] = {4, 2, 1, 1, 4, 2};
    return sizes[type];
}

/* Makes an epilogue ready for the store kernels of a level; PUMICE_BAD_ARGUMENT if it contradicts itself.
 *
 * A tile's `sums` lie row by row; `out` is the tile's first element. */
int gemm_prepare_store(struct gemm_store *store, const struct pumice_epilogue *epilogue, const int32_t *column_offset,
                       int integer, const struct level *level);

/* The activation of a store that has one, in place. */
static inline void gemm_activate(const struct gemm_store *store, float *values, int64_t count) {
    static const float one = 1; /* SiLU's factor */
    store->map(store->function, values, values, count, &one);
}

/* The level's kernel for a product. */
const struct gemm_kernel *gemm_kernel_of(const struct level *level, int product);

#endif
