/* R, packed for the loop over time.
 *
 * A chunk has all gates of some units, one panel a gate, so that a cell follows its sums while these are in the
 * first-level cache:
 *
 *     column u of panel (chunk, gate) <- row gate * hidden + chunk * units + u of R */
#ifndef PUMICE_RECURRENT_WEIGHTS_H
#define PUMICE_RECURRENT_WEIGHTS_H

#include "base/table.h"
#include "recurrent/api.h"

struct pumice_recurrent_weights {
    const struct level *level;
    const struct nhwc_product *product; /* of split operands; NULL: that of the matrix product */
    const struct gemm_kernel *plain;
    int gates;
    int64_t hidden, depth, units, chunks; /* depth: hidden, padded as the product wants it */
    int64_t rows;                         /* of a tile */
    int64_t panel_bytes;
    char *panels;
};

/* The same for products of float32; its numbers are as near to the true ones as the two parts of each. */
struct pumice_recurrent_weights *recurrent_unsplit(const struct pumice_recurrent_weights *packed);

#endif
