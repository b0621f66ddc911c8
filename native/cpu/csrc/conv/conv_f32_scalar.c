/* Float convolution. */
#define CONV_SCALAR
enum { ROWS = 8, RUN = 2 };
#include "base/table.h"
#include "conv/f32_tile.h"

OVERRIDES(conv_f32, scalar) {
    fill(table);
    table->conv_f32_store = store;
}
