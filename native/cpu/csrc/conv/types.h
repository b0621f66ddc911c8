/* What the slots of this family are given. */
#ifndef PUMICE_CONV_TYPES_H
#define PUMICE_CONV_TYPES_H

#include <stddef.h>
#include <stdint.h>

struct planes; /* planes.h */

enum {
    CONV_MOST_PIXELS = 32, CONV_MOST_FILTERS = 32, CONV_LEAST_FILTERS = 8, CONV_SLACK = 64, CONV_MOST_PARTS = 3,
    CONV_MOST_ROWS = 96, CONV_DEPTHWISE_CHANNELS = 64
};

/* The tile of an 8-bit convolution, and how its kernel wants the operands. */
struct conv_u8_form {
    int pixels;  /* rows of the tile */
    int filters; /* columns: the filters of a packed panel */
    int unit;    /* bytes that the depth of a segment is padded to; the kernel may read as far in the activations */
    int offset;  /* the kernel takes this off every activation; the packed bias makes up for it */
    int staged;  /* pixels of a run of 16 lie at one distance from each other; see conv_u8_windows.c */
    /* NULL, or to be called instead of the tile's kernel: fetches `bytes` bytes from `next` on, too, about. */
    void (*fetching)(int32_t *tile, const uint8_t *const *pixels, int count, const int64_t *segments,
                     int64_t segment_count, int64_t depth, const int8_t *weights, const int32_t *bias,
                     const int8_t *next, int64_t bytes);
};

/* How sums become 8-bit levels:
 *
 *     v = sum * multiplier[n] + (residual - residual_zero_point) * residual_multiplier
 *     level = round half to even(clamp(v, low, high)) + zero_point
 *
 * Pointers are those of the panel's first filter and the tile's first pixel. */
struct conv_requantize {
    const float *multiplier; /* padded to whole panels */
    float low, high;
    int32_t zero_point;
    int is_signed; /* levels are of -128..127, not of 0..255 */
    int overflows; /* values may leave the range of int32 before they are bounded */
    const uint8_t *residual; /* or NULL; rows lie as far apart as those of the result */
    float residual_multiplier;
    int32_t residual_zero_point;
    int32_t residual_flip; /* 0x80 where the residual is signed, whose zero point then is 0x80 higher */
};

/* Depthwise tiles hold a block of channels, in an order that suits the level's instructions. */
struct conv_u8_depthwise_form {
    int channels;          /* of a block, at most CONV_DEPTHWISE_CHANNELS */
    const uint8_t *order;  /* place n of a block holds channel order[n], four neighbours together; NULL: channel n */
    int offset;            /* as conv_u8_form's */
    int lines;             /* rows that conv_u8_depthwise_line takes at once; 0: it is not this level's own */
};

/* Some pixels of some output rows, a block of channels. Vertical taps go four by four: `rows` has four pointers a
 * group, to the first pixel's first column; absent taps have any row and zero weights. */
struct conv_u8_window {
    const uint8_t *const *rows;
    int groups;
    int lines;    /* of output, one below the other: the tile holds `count` pixels of each */
    int64_t line; /* bytes from the windows of one line to those of the next */
    int taps;     /* of a row of the kernel */
    int64_t stride, dilation; /* in columns */
    int64_t column;           /* bytes from one column to the next */
    const int8_t *weights;    /* [group][tap][place][4] */
    const int32_t *bias;      /* [place] */
    uint8_t *stage;           /* room for a column of 4 bytes a channel, for every column of the pixels' windows */
};

/* A row of results of a 3x3 window, or two of stride 1, a block of channels: rows of the image, or of the border, from
 * their first column on; columns before the first and behind the last are border. Strides are 1 or 2; levels have no
 * residual and do not overflow. */
struct conv_u8_line {
    int lines;
    const uint8_t *rows[4];    /* the last one for the second line */
    int64_t columns, column;   /* of a row; bytes from one to the next */
    int64_t before, stride;    /* columns of border that the first window begins with; columns from window to window */
    int64_t count, out_stride; /* of results in a line, bytes from one to the next, */
    int64_t below;             /* and to the one in the second line */
    int channels;
    uint8_t border;
    const int8_t *weights; /* as a window's, and the bias */
    const int32_t *bias;
    const struct conv_requantize *how; /* multipliers in the order of the places */
};

/* The tile of a float convolution. */
struct conv_f32_form {
    int filters; /* rows: the filters of a packed panel */
    int pixels;  /* columns, at most CONV_MOST_WIDTH */
    int panel;   /* filters of a tile whose lanes are filters, and */
    int run;     /* neighbouring pixels that it takes once or twice */
};

enum { CONV_MOST_WIDTH = 48, CONV_CORRELATED = 4, CONV_MOST_RUN = 7, CONV_MOST_PANEL = 32 };

/* Images one after the other, of which the gradient of weights takes the same rows and the same frames. */
struct conv_f32_images {
    int64_t count, pixels;  /* images; elements of a row */
    int64_t row_step;       /* elements from one row to the next */
    int64_t a_step, x_step; /* elements from one image to the next, of rows and of frames */
};

/* Which pixels of a tile are outputs: runs of neighbours. */
struct conv_f32_runs {
    int count;
    uint8_t first[CONV_MOST_WIDTH], length[CONV_MOST_WIDTH];
    uint64_t mask; /* the same, a bit a pixel */
};

#endif
