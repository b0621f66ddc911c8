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
    int64_t pixels, block, blocks; /* of an image: all, in a block, blocks */
    int64_t panel_step, panel_groups;
    int overflows;
    const float *placed;   /* the multipliers in the order of a depthwise convolution's places */
    const uint8_t *border; /* a row of zero points, for a depthwise convolution */
    int64_t rows; /* of output that a chunk of a depthwise convolution computes */
    int failed;
};

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
