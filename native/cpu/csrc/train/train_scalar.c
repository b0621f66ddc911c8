/* Training one element at a time: the truth that the other levels are compared with. */
#include "rows/vector_scalar.h"

#include "train/kernels.h"

OVERRIDES(train, scalar) { TRAIN_KERNELS(table) }
