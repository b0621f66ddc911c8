/* Training with AVX-512, 32 elements at a time. */
#include "rows/vector_avx512.h"

#include "train/kernels.h"

OVERRIDES(train, avx512) { TRAIN_KERNELS(table) }
