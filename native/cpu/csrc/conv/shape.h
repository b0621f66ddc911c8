/* Geometry that the convolutions and pools share. */
#ifndef PUMICE_CONV_SHAPE_H
#define PUMICE_CONV_SHAPE_H

#include <stddef.h>
#include <stdint.h>

#include "conv/api.h"

static inline int64_t volume(const int64_t extent[3]) { return extent[0] * extent[1] * extent[2]; }

/* Elements along an axis that windows reach, from the first padding on. */
static inline int64_t reach(const struct pumice_conv_shape *shape, int axis) {
    return (shape->output[axis] - 1) * shape->stride[axis] + (shape->kernel[axis] - 1) * shape->dilation[axis] + 1;
}

static inline int makes_sense(const struct pumice_conv_shape *shape) {
    if (shape->channels < 1 || shape->filters < 1 || shape->groups < 1) return 0;
    if (shape->channels % shape->groups || shape->filters % shape->groups) return 0;
    for (int a = 0; a < 3; a++)
        if (shape->size[a] < 1 || shape->kernel[a] < 1 || shape->stride[a] < 1 || shape->dilation[a] < 1 ||
            shape->output[a] < 1)
            return 0;
    return 1;
}

/* Whether windows read data and nothing else. */
static inline int inside(const struct pumice_conv_shape *shape) {
    for (int a = 0; a < 3; a++)
        if (shape->before[a] != 0 || reach(shape, a) > shape->size[a]) return 0;
    return 1;
}

#endif
