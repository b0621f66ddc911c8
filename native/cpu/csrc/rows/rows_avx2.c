/* Rows with AVX2 and FMA, eight elements at a time. */
#include "rows/vector_avx2.h"

#include "rows/kernels.h"

OVERRIDES(rows, avx2) { ROWS_KERNELS(table) }
