/* Float convolution. */

enum { ROWS = 8, RUN = 5 };
#include "base/table.h"
#include "conv/f32_tile.h"

OVERRIDES(conv_f32, neon) {
    fill(table);
    table->conv_f32_store = store;
}
