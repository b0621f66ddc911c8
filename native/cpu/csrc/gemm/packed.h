/* Packed weights: panel after panel as a tile kernel reads them, and of integer ones each column's sum before. */
#ifndef PUMICE_GEMM_PACKED_H
#define PUMICE_GEMM_PACKED_H

#include "gemm/gemm.h"

struct pumice_packed {
    const struct level *level;
    const struct gemm_kernel *kernel;
    int product, b_type;
    int64_t k, n, panels, panel_bytes;
    int32_t *sums; /* of each column as packed, integer products only */
    char *data;
};

/* Whether a product takes operands of a type. */
int gemm_fits(int product, int type);

/* Multiply-adds that are worth a chunk of their own: about 20 us. */
double gemm_least_macs(int product);

/* Everything but memory and content, for a matrix of these dimensions. Then `gemm_packed_size` bytes have room for
 * both, `gemm_place_packed` says where, and `gemm_fill_packed` packs. */
void gemm_plan_packed(struct pumice_packed *packed, const struct level *level, int product,
                      const struct pumice_matrix *b);
size_t gemm_packed_size(const struct pumice_packed *packed);
void gemm_place_packed(struct pumice_packed *packed, char *memory);
void gemm_fill_packed(struct pumice_packed *packed, const struct pumice_matrix *b, int threads);

#endif
