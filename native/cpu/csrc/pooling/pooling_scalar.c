/* Pooling. */
#define CONV_SCALAR
#include "base/table.h"
#include "pooling/f32_windows.h"
#include "pooling/u8_channels.h"

OVERRIDES(pooling, scalar) {
    table->pooling_f32_max = window_max;
    table->pooling_f32_total = row_total;
    table->pooling_f32_top = row_top;
    table->pooling_u8_max = channels_max;
    table->pooling_u8_add = channels_add;
}
