/* 8-bit levels, element by element. */
#include "runtime/levels.h"

#include "base/table.h"

OVERRIDES(levels, avx2) { LEVELS_KERNELS(table) }
