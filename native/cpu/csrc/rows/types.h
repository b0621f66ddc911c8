/* What the table says about rows. */
#ifndef PUMICE_ROWS_TYPES_H
#define PUMICE_ROWS_TYPES_H

#include "rows/api.h"

/* A quantized type's parameters: q = clamp(round_to_even(x / scale) + zero, low, high). */
struct rows_quantization {
    float scale;
    int32_t zero, low, high;
};

#endif
