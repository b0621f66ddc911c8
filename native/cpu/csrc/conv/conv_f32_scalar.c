/* Float convolution. */
#define CONV_SCALAR
enum { ROWS = 8, RUN = 2 };
#include "base/table.h"
#include "conv/f32_tile.h"

OVERRIDES(conv_f32, scalar) {
    table->conv_f32_form = form;
    table->conv_f32_tile = tile;
    table->conv_f32_runs_tile = tile_of_runs;
    table->conv_f32_store = store;
    table->conv_f32_depthwise = depthwise;
    table->conv_f32_correlate = correlate;
    table->conv_f32_columns = columns;
    table->conv_f32_finish = finish;
    table->conv_f32_frame = frame;
    table->conv_f32_take_rows = take_rows;
}
