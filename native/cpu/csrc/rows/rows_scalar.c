/* Rows, one element at a time: the truth that the other levels are compared with. */
#include "rows/vector_scalar.h"

#include "rows/kernels.h"

static void transpose_tile(const uint32_t *in, int64_t in_step, uint32_t *out, int64_t out_step) {
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 16; c++) out[c * out_step + r] = in[r * in_step + c];
}

OVERRIDES(rows, scalar) {
    ROWS_KERNELS(table)
    table->rows_transpose_tile = transpose_tile;
}
