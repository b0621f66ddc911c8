/* What the table says about products with channels last. */
#ifndef PUMICE_NHWC_TYPES_H
#define PUMICE_NHWC_TYPES_H

#include <stddef.h>
#include <stdint.h>

/* How a level multiplies: pixels x filters, both as it wants them. Every channel takes four bytes of either. */
struct nhwc_product {
    int pixels, filters; /* of a tile, rows of `filters` floats */
    int channel_step;    /* channels of a tap are padded to a multiple of this many with zeros */
    int slice;           /* of a panel, in steps, that stays in the first-level cache */
    /* One pixel's channels, zero from `count` to the next multiple. */
    void (*convert)(char *to, const float *from, int64_t count);
    /* A tap's part of a panel, from `depth` rows of `filters` floats; a multiple of channel_step. */
    void (*pack)(char *panel, const float *rows, int64_t depth);
    /* tile[r][f] (+)= sum over steps of channel_step channels; pixel r of a step lies at a + offset[step] + r * a_step.
     * Meanwhile `fetched` bytes a step from `next` on are brought into the second-level cache. */
    void (*tile)(int pixels, const char *a, int64_t a_step, const int64_t *offset, int64_t steps, const char *panel,
                 float *tile, int accumulate, const char *next, int64_t fetched);
    void (*start)(void), (*finish)(void); /* around the tiles of a chunk, on its thread */
};

#endif
