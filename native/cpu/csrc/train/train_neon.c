/* Training with NEON, four elements at a time. */
#include "rows/vector_neon.h"

#include "train/kernels.h"

OVERRIDES(train, neon) { TRAIN_KERNELS(table) }
