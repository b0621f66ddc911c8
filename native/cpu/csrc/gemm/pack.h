/* Rearranging operands into what tile kernels read. */
#ifndef PUMICE_GEMM_PACK_H
#define PUMICE_GEMM_PACK_H

#include "gemm/gemm.h"

/* Panel `number` of B: columns [number * kernel->columns, ...) of [k][n], zero beyond its edges. Integers become s8;
 * where `sums` is given, sums[c] is the sum over k of what was packed. */
void gemm_pack_panel(const struct gemm_kernel *kernel, const struct pumice_matrix *b, int64_t number, void *panel,
                     int32_t *sums);

/* Bytes of one panel. */
int64_t gemm_panel_bytes(const struct gemm_kernel *kernel, int64_t k);

/* Rows [m, m + rows), columns [k, k + depth) of A in the type that the kernel reads, rows `stride` bytes apart and zero
 * from `depth` to a multiple of k_align. 8-bit integers change sign by adding or subtracting 128. */
void gemm_pack_rows(const struct gemm_kernel *kernel, const struct pumice_matrix *a, int64_t m, int64_t rows, int64_t k,
                    int64_t depth, void *packed, int64_t stride);

/* 128 if the kernel sees the 8-bit A with 128 added, -128 if subtracted, else 0. */
int gemm_shift_of_a(const struct gemm_kernel *kernel, int a_type);

#endif
