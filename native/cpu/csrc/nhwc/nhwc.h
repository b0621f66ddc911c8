/* A packed convolution with channels last. */
#ifndef PUMICE_NHWC_NHWC_H
#define PUMICE_NHWC_NHWC_H

#include "base/table.h"
#include "conv/shape.h"
#include "gemm/gemm.h"
#include "nhwc/api.h"

enum { DOWN = 1, ACROSS = 2 }; /* spatial axes */

struct pumice_nhwc {
    struct pumice_conv_shape shape;
    const struct level *level;
    const struct nhwc_product *product; /* NULL: that of the matrix product */
    const struct gemm_kernel *plain;
    int depthwise;
    int pointwise; /* outputs are pixels of the input, one for one */
    int folded;    /* the columns of a window are channels of one pixel: few channels fill no tile */
    int64_t pixels, filters; /* of a tile */
    int64_t columns[3];      /* taps of a tile's sum along an axis: the kernel's, or 1 across where folded */
    int64_t channels, depth; /* of a pixel in the frame; padded */
    int64_t taps, panels, panel_bytes, pixel_bytes;
    int64_t step, steps, slice; /* channels of a step of a tile's sum, how many steps, and how many at a time */
    char *weights; /* [panel][tap][depth][filters]; depthwise: float [tap][channels] */
};

struct nhwc_run {
    const struct pumice_nhwc *conv;
    const struct pumice_nhwc_epilogue *epilogue;
    const float *x;
    const int64_t *x_steps;
    const float *residual;
    float *y;
    int64_t batch;
    int64_t block, blocks; /* rows of outputs (pointwise: pixels) of a chunk, and how many of an image (of all) */
    int64_t panel_step, panel_chunks;
    int failed, undefined;
};

/* nhwc_frame.c: what tiles read. Padded pixels of equal remainder modulo the strides lie in planes of their own, so that
 * every tap is the plane at a constant distance; see conv/planes.h. */
struct frame {
    int64_t rows, columns; /* of a plane */
    int64_t phases[3];
    size_t bytes;
};
struct frame nhwc_frame(const struct pumice_nhwc *conv, int64_t output_rows);
void nhwc_step_offsets(const struct pumice_nhwc *conv, const struct frame *frame, int64_t *offset);
/* Rows `row` on of the outputs of one image; `staged` has room for a pixel's channels, or a folded row. */
void nhwc_fill_frame(const struct nhwc_run *run, const struct frame *frame, char *to, int64_t image, int64_t row,
                     float *staged);
/* Pixels [from, from + count) of all images, as they are. */
void nhwc_fill_pixels(const struct nhwc_run *run, char *to, int64_t from, int64_t count, float *staged);

/* nhwc_depthwise.c */
int nhwc_run_depthwise(struct nhwc_run *run, int threads);

#endif
