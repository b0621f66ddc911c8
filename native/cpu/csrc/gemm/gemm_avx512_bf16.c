/* AVX512-BF16: pairs of bfloat16 by vdpbf16ps, 14 x 32 tiles of f32 sums. The instruction flushes denormals. */
#include <immintrin.h>

#include "gemm/gemm.h"
#include "gemm/tiles.h"

#define VECTOR __m512
#define WIDTH 64
#define A_BYTES 4
#define STEP(sum, a, b) __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
#define ADD(x, y) _mm512_add_ps(x, y)
#define BROADCAST(address) _mm512_castsi512_ps(_mm512_set1_epi32(word_at(address)))
#define LOAD(address) _mm512_loadu_ps(address)
#define STORE(address, x) _mm512_store_ps(address, x)
#define ZERO() _mm512_setzero_ps()
TILES_14(pair_tile, 2)

static const struct gemm_kernel bfloat_kernel = {pair_tile, 14, 32,      PUMICE_BF16,  PUMICE_BF16,
                                                 2,         2,  1 << 12, .few_rows = 4};
static const struct gemm_kernel *bfloats(void) { return &bfloat_kernel; }

OVERRIDES(gemm, avx512_bf16) { table->gemm_bfloat = bfloats; }
