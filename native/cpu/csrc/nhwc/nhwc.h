/* A packed convolution with channels last. */
#ifndef PUMICE_NHWC_NHWC_H
#define PUMICE_NHWC_NHWC_H

#include "base/table.h"
#include "conv/shape.h"
#include "gemm/gemm.h"
#include "nhwc/api.h"

enum { DOWN = 1, ACROSS = 2 };  /* spatial axes */
enum { FOLDED_SLACK = 16 };      /* numbers that are copied too many */

struct pumice_nhwc {
    struct pumice_conv_shape shape;
    const struct level *level;
    const struct nhwc_product *product; /* NULL: that of the matrix product */
    const struct gemm_kernel *plain;
    int depthwise;
    int splits;    /* there is a product */
    int pointwise; /* outputs are pixels of the input, one for one */
    int folded;    /* rows of a window are channels of one pixel: few channels fill no tile */
    int overlapping; /* folded windows that lie over each other in the frame: rows of numbers, first parts and second */
    int64_t pixels, filters; /* of a tile */
    int64_t folded_rows;     /* of a window in a pixel: one, or all of a small one */
    int64_t columns[3];      /* taps of a tile's sum along an axis: the kernel's, or 1 where folded */
    int64_t channels, depth; /* of a pixel in the frame; padded */
    int64_t taps, panels, panel_bytes, pixel_bytes;
    int64_t step, steps, slice; /* channels of a step of a tile's sum, how many steps, and how many at a time */
    char *weights; /* [panel][tap][depth][filters]; depthwise: float [tap][channels] */
};

/* nhwc_pack.c */
int64_t nhwc_weight_bytes(const struct pumice_nhwc *conv);
/* The same product of float32; its weights are as near to the true ones as the two parts of each. */
struct pumice_nhwc *nhwc_unsplit(const struct pumice_nhwc *conv, int threads);

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
    int in_place; /* tiles read the images themselves */
    int failed, undefined;
};

static inline int64_t nhwc_y_step(const struct nhwc_run *run) {
    return run->epilogue->y_step ? run->epilogue->y_step : run->conv->shape.filters;
}

/* nhwc_frame.c: what tiles read. Padded pixels of equal remainder modulo the strides lie in planes of their own, so that
 * every tap is the plane at a constant distance; see conv/planes.h. */
struct frame {
    int64_t rows, columns; /* of a plane */
    int64_t phases[3];
    int64_t part; /* bytes from first parts to second ones */
    size_t bytes;
};
struct frame nhwc_frame(const struct pumice_nhwc *conv, int64_t output_rows);
int64_t nhwc_staged(const struct pumice_nhwc *conv);
void nhwc_step_offsets(const struct pumice_nhwc *conv, const struct frame *frame, int64_t *offset);
/* Rows `row` on of the outputs of one image; `staged` has room for nhwc_staged(conv) numbers. */
void nhwc_fill_frame(const struct nhwc_run *run, const struct frame *frame, char *to, int64_t image, int64_t row,
                     float *staged);
/* Whether pixels need no frame: outputs are theirs one for one, and all lie at one distance that suits the cache. */
int nhwc_in_place(const struct nhwc_run *run);
/* Pixels [from, from + count) of all images, as they are. */
void nhwc_fill_pixels(const struct nhwc_run *run, char *to, int64_t from, int64_t count, float *staged);

/* nhwc_span.c: outputs [from, until) of a row, whose windows have the same taps inside the image. at[t] is where the tap
 * of number tap[t] lies for the first of them, from the image's first element on. */
struct nhwc_span {
    int64_t from, until, taps;
    int64_t *at, *tap;
};
size_t nhwc_span_bytes(const struct pumice_conv_shape *shape);
struct nhwc_span nhwc_first_span(int64_t *memory);
/* The span behind this one; 0 if there is none. */
int nhwc_next_span(const struct pumice_conv_shape *shape, int64_t row, int64_t row_step, int64_t pixel_step,
                   struct nhwc_span *span);

/* nhwc_depthwise.c */
int nhwc_run_depthwise(struct nhwc_run *run, int threads);

#endif
