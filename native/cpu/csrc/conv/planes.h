/* The frame of an image for float convolution: what makes a tap a fixed distance.
 *
 * Along an axis with stride s, padded positions with the same remainder modulo s form a *phase*. Output o reads, for
 * tap t, element o + (t dilation) / s of phase (t dilation) % s. So each phase of a channel is stored as a plane of its
 * own, with a border (zeros; the lowest number for a maximum); flattened, every tap is the plane of its phase at a
 * constant offset from the output's flat index. Windows are then contiguous vectors of pixels, whatever the stride. The
 * flat index runs over rows of the plane, which are longer than those of the output: the pixels in between are computed
 * and dropped. */
#ifndef PUMICE_CONV_PLANES_H
#define PUMICE_CONV_PLANES_H

#include <stdint.h>

struct planes {
    int64_t size[3];   /* of the image */
    int64_t phases[3]; /* stored along an axis: the first ones */
    int64_t stride[3];
    int64_t origin[3]; /* position in the image of element 0 of phase 0; negative in the border */
    int64_t extent[3]; /* of a plane */
    int in_place;      /* the image is its own frame */
    float fill;        /* of the border */
};

static inline int64_t plane_elements(const struct planes *planes) {
    return planes->extent[0] * planes->extent[1] * planes->extent[2];
}

/* Elements from one channel of a frame to the next. */
static inline int64_t channel_elements(const struct planes *planes) {
    return planes->phases[0] * planes->phases[1] * planes->phases[2] * plane_elements(planes);
}

struct pumice_conv_shape;

/* The frame that a convolution reads, and the place of every tap in the frame of a channel. */
struct planes conv_planes(const struct pumice_conv_shape *shape);
void conv_tap_offsets(const struct pumice_conv_shape *shape, const struct planes *planes, int64_t *offset);

#endif
