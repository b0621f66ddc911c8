/* What the table says about cells over 8-bit weights. */
#ifndef PUMICE_RECURRENT_TYPES_H
#define PUMICE_RECURRENT_TYPES_H

#include <stdint.h>

enum { RECURRENT_UNITS = 32 }; /* of a chunk, at most */

/* Integer sums of the gates of some units of one row, gate g's at sums + g * sums_step. They stand for
 *
 *     (sums - zero columns - sum zeros) scale[u] row_scale + added + input
 *
 * with the row's `zero` and `sum`, and of the weights what they add up to, their zero points and their scales, which lie
 * `units` apart from gate to gate. All of these have whole vectors. */
struct recurrent_sums {
    const int32_t *sums;
    const float *columns, *zeros, *scale; /* zeros: or NULL */
    int64_t sums_step, units;
    float row_scale, zero, sum; /* sum: of the row's levels less their zero point, where there are zeros */
    const float *added; /* or NULL */
    int64_t added_step;
    const struct recurrent_sums *input; /* what these stand for is added too; or NULL */
};

/* The same units of that row before and after a step. */
struct recurrent_units {
    float *h, *c, *y;
    const float *extra; /* LSTM: peepholes of i, o, f; GRU: what is added to the candidate's fed state; or NULL */
    int64_t extra_step;
    float *low, *high; /* of [RECURRENT_UNITS]: the least and the greatest that was seen of a unit's h */
};

/* Sums of a row by the panel of each gate, three or four. Panels are those of the level's matrix products, `groups` of
 * four bytes of 32 columns, `panel_bytes` apart; a gate's sums lie `sums_bytes` from those of the gate before. */
typedef void (*recurrent_row)(const void *row, int64_t groups, const char *panels, int64_t panel_bytes, int gates,
                              void *sums, int64_t sums_bytes);

#endif
