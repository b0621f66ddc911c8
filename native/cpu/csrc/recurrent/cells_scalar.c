/* Cells over 8-bit weights, one after the other: the truth that the other levels are compared with. */
#include "rows/vector_scalar.h"

#include "recurrent/cells.h"

OVERRIDES(cells, scalar) { CELLS_KERNELS(table) }
