/* What the table says about products with channels last. */
#ifndef PUMICE_NHWC_TYPES_H
#define PUMICE_NHWC_TYPES_H

#include <stddef.h>
#include <stdint.h>

/* How a level multiplies: pixels x filters, both as it wants them. Every channel takes four bytes of either. */
struct nhwc_product {
    int pixels, filters; /* of a tile, rows of `filters` floats */
    int half_pixels;     /* of one whose filters are half as many at most */
    int channel_step;    /* channels of a tap are padded to a multiple of this many with zeros */
    int slice;           /* of a panel, in steps, that stays in the first-level cache */
    int part;            /* bytes from the first parts of a step's channels to the second ones, where `convert` puts them */
    /* The channels of some pixels, zero from `count` to the next multiple. */
    void (*convert)(char *to, int64_t to_step, const float *from, int64_t from_step, int64_t pixels, int64_t count);
    /* Numbers side by side: their first parts, and their second ones elsewhere; zeros up to the next multiple. */
    void (*split)(char *first, char *second, const float *from, int64_t count);
    /* A tap's part of a panel, from `depth` rows of `filters` floats; a multiple of channel_step. */
    void (*pack)(char *panel, const float *rows, int64_t depth);
    /* The rows again: the parts' sums. */
    void (*unpack)(float *rows, const char *panel, int64_t depth);
    /* tile[r][f] (+)= sum over steps of channel_step channels; pixel r of a step lies at a + offset[step] + r * a_step,
     * and its second parts `part` bytes on. */
    void (*tile)(int pixels, const char *a, int64_t a_step, int64_t part, const int64_t *offset, int64_t steps,
                 const char *panel, float *tile, int accumulate);
    /* The same where only the first half of the filters is wanted (the others are undefined), of half_pixels at most. */
    void (*half)(int pixels, const char *a, int64_t a_step, int64_t part, const int64_t *offset, int64_t steps,
                 const char *panel, float *tile, int accumulate);
    /* As `tile`, for pixels that stay in the first-level cache while panels pass, each panel_bytes from the one before: one
     * tile after the other, of whole sums over steps that follow each other. */
    void (*held)(int pixels, const char *a, int64_t a_step, int64_t steps, const char *panel, int64_t panel_bytes, int panels,
                 float *tiles);
    void (*start)(void), (*finish)(void); /* around the tiles of a chunk, on its thread */
};

/* Depthwise outputs that have the same taps: those of x lie at[t], those of the weights tap[t] * channels on. */
struct nhwc_windows {
    const float *x, *weights, *bias; /* bias may be NULL */
    int64_t x_step, y_step;          /* from one output's window to the next one's, and from output to output */
    const int64_t *at, *tap;
    int64_t taps, outputs, channels;
    float low, high;
};

#endif
