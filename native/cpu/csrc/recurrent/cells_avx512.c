/* Cells over 8-bit weights, with AVX-512. */
#include "rows/vector_avx512.h"

#include "recurrent/cells.h"

OVERRIDES(cells, avx512) { CELLS_KERNELS(table) }
