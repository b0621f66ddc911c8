/* Cells over 8-bit weights, with AVX2. */
#include "rows/vector_avx2.h"

#include "recurrent/cells.h"

OVERRIDES(cells, avx2) { CELLS_KERNELS(table) }
