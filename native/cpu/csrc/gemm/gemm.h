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

/* All that tells packed weights from others but the weights, which are `pumice_packed_bytes` from one address on. */
struct gemm_description {
    int64_t product, b_type, k, n;
};
struct gemm_description gemm_describe(const struct pumice_packed *packed, const struct level **level);
const void *gemm_packed_memory(const struct pumice_packed *packed);
/* The weights over memory that must outlive them, freed by free(); NULL where there is no memory, or they make no
 * sense. */
struct pumice_packed *gemm_map(const struct gemm_description *description, const struct level *level,
                               const void *memory);

/* The level's kernel for a product. */
const struct gemm_kernel *gemm_kernel_of(const struct level *level, int product);

#endif
