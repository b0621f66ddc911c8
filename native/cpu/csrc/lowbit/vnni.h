/* The register kernels of VNNI, to which AMX leaves what is too small for tiles. */
#ifndef PUMICE_LOWBIT_VNNI_H
#define PUMICE_LOWBIT_VNNI_H

#include "lowbit/types.h"

void lowbit_s8_vnni(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t n0, int64_t n1, float *out,
                    int64_t out_stride);

#endif
