/* What the table says about rows. */
#ifndef PUMICE_ROWS_TYPES_H
#define PUMICE_ROWS_TYPES_H

#include <stdint.h>

#include "rows/api.h"

/* A quantized type's parameters: q = clamp(round_to_even(x / scale) + zero, low, high). */
struct rows_quantization {
    float scale;
    int32_t zero, low, high;
};

/* Sums of the gates of some units: gate g's begin at sums + g * sums_step, and what is added to them likewise. */
struct rows_gates {
    const float *sums;
    int64_t sums_step;
    const float *added; /* NULL: nothing */
    int64_t added_step;
    const float *peepholes; /* of an LSTM, for i, o, f; or NULL */
    int64_t peephole_step;
};

#endif
