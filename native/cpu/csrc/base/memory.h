/* Aligned memory, and scratch that a thread keeps between calls. */
#ifndef PUMICE_BASE_MEMORY_H
#define PUMICE_BASE_MEMORY_H

#include <stddef.h>

#include "base/api.h" /* pumice_alloc */

/* One growing buffer per thread and slot: nested users must name different slots. NULL where there is no memory. The
 * content of a former use is gone. */
enum scratch_slot {
    SCRATCH_GEMM_A, SCRATCH_GEMM_B, SCRATCH_GEMM_TILE, SCRATCH_CONV, SCRATCH_CONV_POINTERS, SCRATCH_CONV_STAGE,
    SCRATCH_CONV_BORDER, SCRATCH_ROWS, SCRATCH_LOWBIT, SCRATCH_OTHER, SCRATCH_SLOTS
};
void *pumice_scratch(enum scratch_slot slot, size_t bytes);

/* Of a core's second-level cache, or a fair guess. */
size_t pumice_cache_bytes(void);

#endif
