/* Training with AVX2 and FMA, eight elements at a time. */
#include "rows/vector_avx2.h"

#include "train/kernels.h"

OVERRIDES(train, avx2) { TRAIN_KERNELS(table) }
