/* A packed 8-bit convolution and one run of it, as the general and the depthwise path share them. */
#ifndef PUMICE_CONV_CONV_U8_H
#define PUMICE_CONV_CONV_U8_H

#include "base/table.h"
#include "conv/api.h"

struct pumice_conv_u8 {
    struct pumice_conv_shape shape;
    const struct level *level;
    struct conv_u8_form form;
    int depthwise;
    struct conv_u8_depthwise_form depthwise_form;
    int deep; /* uses the slots conv_u8_deep_* */
    int parts; /* 8-bit numbers that a weight is the sum of */
    int zero_point, flip;
    int in_place;
    int64_t frame[3];             /* extent of the image that windows read: its own, or with borders */
    int64_t segments, depth;      /* of the activations: number of segments, bytes each */
    int64_t packed_segments, packed_depth; /* as the tile kernel sees them */
    int64_t *offset;              /* of every packed segment from its pixel, in bytes */
    int direct;                   /* positions may be read where they are, and then form a grid of */
    int64_t rows, columns;        /* so many in a plane, */
    int64_t positions;            /* of an image: up to its last output */
    int64_t panels;               /* a group; blocks of a depthwise convolution */
    int8_t *weights;              /* [group][panel][segment][depth / 4][filters][4]; see conv_u8_depthwise.c for that */
    int32_t *bias;                /* [group][panel][filters] */
};

struct conv_u8_run {
    const struct pumice_conv_u8 *conv;
    const struct pumice_conv_u8_epilogue *epilogue;
    const uint8_t *x; /* the images as given */
    uint8_t *frames;  /* with borders, or NULL */
    const uint8_t *images; /* what windows read: one or the other */
    uint8_t *y;
    const float *multiplier; /* [group][panel][filters] */
    int64_t batch;
    int64_t pixels;        /* of an image */
    int64_t block, blocks; /* positions in a block; blocks of an image */
    int64_t panel_step, panel_groups;
    int overflows;
    const float *placed;   /* the multipliers in the order of a depthwise convolution's places */
    const uint8_t *border; /* a row of zero points, for a depthwise convolution */
    int64_t rows; /* of output that a chunk of a depthwise convolution computes */
    int failed;
};

/* conv_u8_windows.c: the grid of positions; how many outputs lie before one of them; first bytes of the windows of some
 * positions of an image. */
void conv_u8_place_positions(struct pumice_conv_u8 *conv);
int64_t conv_u8_pixels_before(const struct pumice_conv_u8 *conv, int64_t position);
void conv_u8_point_at(const struct pumice_conv_u8 *conv, const uint8_t *image, int64_t first, int64_t count,
                      const uint8_t **pixel);

/* A task for pumice_parallel: a row of a frame; and the bytes that are read behind the last frame. */
void conv_u8_frame_row(void *context, int64_t chunk, int worker);
int64_t conv_u8_slack(const struct pumice_conv_u8 *conv);

/* Whether the kernel may read a block's positions where they are; else their segments side by side in memory of the
 * thread. For kernels that take pointers, copies of the last pixels of an input, which a kernel would read past. These
 * two give 0 where there is no memory. */
int conv_u8_reads_in_place(const struct conv_u8_run *run, int64_t first, int64_t count);
int conv_u8_stage(const struct conv_u8_run *run, const uint8_t **pixel, int64_t count);
int conv_u8_copy_last(const struct conv_u8_run *run, const uint8_t *image, const uint8_t **pixel, int64_t count);

/* A tile of sums in the order of the filters to the result: `at` is the place of its first pixel and filter there. */
void conv_u8_finish(const struct conv_u8_run *run, const int32_t *tile, int tile_stride, const float *multiplier,
                    int64_t at, int count, int filters);

void conv_u8_look_up(uint8_t *y, int64_t step, int64_t count, int64_t filters, const uint8_t *table);

/* How levels are made by this run, for a panel. */
struct conv_requantize conv_u8_requantization(const struct conv_u8_run *run, const float *multiplier, int64_t at);

/* conv_u8_depthwise.c */
int conv_u8_is_depthwise(const struct pumice_conv_shape *shape);
void conv_u8_lay_out_depthwise(struct pumice_conv_u8 *conv);
int64_t conv_u8_depthwise_bytes(const struct pumice_conv_u8 *conv);
void conv_u8_pack_depthwise(struct pumice_conv_u8 *conv, const int16_t *weights, const int32_t *bias);
void conv_u8_run_depthwise(struct conv_u8_run *run, int threads);
int8_t conv_u8_part(int16_t weight, int part);

#endif
