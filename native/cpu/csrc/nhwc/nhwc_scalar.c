/* Finishing and depthwise sums, one channel at a time. */
#include "rows/vector_scalar.h"

#include "nhwc/kernels.h"

static const struct nhwc_product *none(void) { return NULL; }

OVERRIDES(nhwc, scalar) {
    NHWC_KERNELS(table)
    table->nhwc_product = none;
}
