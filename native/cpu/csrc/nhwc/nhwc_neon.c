/* Finishing and depthwise sums with NEON. */
#include "rows/vector_neon.h"

#include "nhwc/kernels.h"

OVERRIDES(nhwc, neon) { NHWC_KERNELS(table) }
