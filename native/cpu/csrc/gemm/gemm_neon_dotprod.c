/* The dot product extension: s8 x s8 by sdot, four k a lane, 12 x 8 tiles. Unsigned activations lose 128 first. */
#include <arm_neon.h>

#include "gemm/gemm.h"
#include "gemm/tiles.h"

#define WIDTH 16
#define A_BYTES 4
#define VECTOR int32x4_t
#define STEP(sum, a, b) sum = vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b))
#define ADD(x, y) vaddq_s32(x, y)
#define BROADCAST(address) vdupq_n_s32(word_at(address))
#define LOAD(address) vld1q_s32((const int32_t *)(address))
#define STORE(address, x) vst1q_s32((int32_t *)(address), x)
#define ZERO() vdupq_n_s32(0)
TILES_12(byte_tile, 4)

static const struct gemm_kernel integer_kernel = {byte_tile, 12, 8, PUMICE_S8, PUMICE_S8, 4, 4, 1 << 12};
static const struct gemm_kernel *integers(void) { return &integer_kernel; }

OVERRIDES(gemm, neon_dotprod) { table->gemm_integer = integers; }
