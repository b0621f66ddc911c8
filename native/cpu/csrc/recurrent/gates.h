/* R, or W, in 8 bits, packed for the loop over time. As with float weights, a chunk has all gates of some units, one panel a
 * gate:
 *
 *     column u of panel (chunk, gate) <- column gate * hidden + chunk * units + u of R */
#ifndef PUMICE_RECURRENT_GATES_H
#define PUMICE_RECURRENT_GATES_H

#include "base/table.h"
#include "recurrent/api.h"

struct pumice_gates {
    const struct level *level;
    const struct gemm_kernel *kernel;
    int gates, flip; /* flip: what packing took off u8 weights */
    int64_t rows, hidden, depth, units, chunks; /* depth: rows of R, padded as the panels are */
    int64_t panel_bytes;
    char *panels;
    float *sums, *zeros, *scale; /* by column, as dealt: what its weights add up to; zero points or NULL */
};

#endif
