/* s8 rows by s8 tables with the dot products of Armv8.2. */
#include <arm_neon.h>

static inline int32x4_t dot(int32x4_t sum, int8x16_t weights, int8x16_t a) { return vdotq_s32(sum, weights, a); }

#include "lowbit/neon.h"

OVERRIDES(lowbit, neon_dotprod) { table->lowbit_s8 = products_s8; }
