/* Rows with NEON, four elements at a time. */
#include "rows/vector_neon.h"

#include "rows/kernels.h"

OVERRIDES(rows, neon) { ROWS_KERNELS(table) }
