/* One row: tiles do. */
#include "base/table.h"

static recurrent_row none(void) { return NULL; }

OVERRIDES(row, scalar) { table->recurrent_row_u8 = table->recurrent_row_f32 = none; }
