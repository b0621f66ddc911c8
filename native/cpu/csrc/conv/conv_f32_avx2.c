/* Float convolution. */

enum { ROWS = 4, RUN = 3 };
#include "base/table.h"
#include "conv/f32_tile.h"

OVERRIDES(conv_f32, avx2) {
    fill(table);
    table->conv_f32_store = store;
}
