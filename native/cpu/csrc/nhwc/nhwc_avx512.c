/* Finishing and depthwise sums with AVX-512, 32 channels at a time. */
#include "rows/vector_avx512.h"

#include "nhwc/kernels.h"

OVERRIDES(nhwc, avx512) { NHWC_KERNELS(table) }
