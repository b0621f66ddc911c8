/* ONNX's DynamicQuantizeLinear: the range widened to hold zero, over 255 steps. */
#ifndef PUMICE_LOWBIT_DYNAMIC_H
#define PUMICE_LOWBIT_DYNAMIC_H

#include <math.h>

#include "rows/types.h"

static inline struct rows_quantization dynamic_quantization(const float range[2]) {
    const float low = range[0] < 0 ? range[0] : 0, high = range[1] > 0 ? range[1] : 0;
    struct rows_quantization q = {.scale = (high - low) / 255, .low = 0, .high = 255};
    if (!(q.scale > 0)) q.scale = 1;
    const float zero = rintf(-low / q.scale);
    q.zero = (int32_t)(zero < 0 ? 0 : zero > 255 ? 255 : zero);
    return q;
}

#endif
