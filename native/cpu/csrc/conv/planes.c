#include "conv/planes.h"

#include "base/numbers.h"
#include "conv/shape.h"

struct planes conv_planes(const struct pumice_conv_shape *shape) {
    struct planes planes = {.in_place = inside(shape)};
    for (int a = 0; a < 3; a++) {
        const int64_t span = (shape->kernel[a] - 1) * shape->dilation[a];
        const int64_t common = shape->stride[a] == 1 || span == 0 ? 1 : shape->stride[a];
        planes.size[a] = shape->size[a];
        planes.stride[a] = shape->stride[a];
        planes.phases[a] = common == 1 ? 1 : smaller(common, span + 1);
        planes.origin[a] = -shape->before[a];
        planes.extent[a] = shape->output[a] + span / shape->stride[a];
        planes.in_place = planes.in_place && (shape->stride[a] == 1 || (shape->output[a] == 1 && span == 0));
    }
    if (planes.in_place)
        for (int a = 0; a < 3; a++) planes.extent[a] = shape->size[a];
    return planes;
}

void conv_tap_offsets(const struct pumice_conv_shape *shape, const struct planes *planes, int64_t *offset) {
    const int64_t *extent = planes->extent;
    for (int64_t d = 0; d < shape->kernel[0]; d++)
        for (int64_t h = 0; h < shape->kernel[1]; h++)
            for (int64_t w = 0; w < shape->kernel[2]; w++) {
                const int64_t at[3] = {d * shape->dilation[0], h * shape->dilation[1], w * shape->dilation[2]};
                int64_t phase[3], shift[3];
                for (int a = 0; a < 3; a++) phase[a] = at[a] % shape->stride[a], shift[a] = at[a] / shape->stride[a];
                const int64_t plane = (phase[0] * planes->phases[1] + phase[1]) * planes->phases[2] + phase[2];
                *offset++ = plane * plane_elements(planes) + (shift[0] * extent[1] + shift[1]) * extent[2] + shift[2];
            }
}
