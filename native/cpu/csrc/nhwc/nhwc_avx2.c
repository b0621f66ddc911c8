/* Finishing and depthwise sums with AVX2, eight channels at a time. */
#include "rows/vector_avx2.h"

#include "nhwc/kernels.h"

OVERRIDES(nhwc, avx2) { NHWC_KERNELS(table) }
