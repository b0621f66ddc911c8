/* Cells over 8-bit weights, with NEON. */
#include "rows/vector_neon.h"

#include "recurrent/cells.h"

OVERRIDES(cells, neon) { CELLS_KERNELS(table) }
