/* AVX2 and FMA: 6 x 16 tiles (12 accumulators of 16 registers) of f32, and of 16-bit pairs by vpmaddwd, which is exact
 * where vpmaddubsw would saturate. */
#include <immintrin.h>

#include "gemm/store_rows.h"
#include "gemm/tiles.h"

/* --- f32 ---------------------------------------------------------------------------------------------------------- */

#define WIDTH 32
#define A_BYTES 4
#define VECTOR __m256
#define STEP(sum, a, b) __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b))
#define ADD(x, y) _mm256_add_ps(x, y)
#define BROADCAST(address) _mm256_set1_ps(*(const float *)(address))
#define LOAD(address) _mm256_loadu_ps((const float *)(address))
#define STORE(address, x) _mm256_store_ps((float *)(address), x)
#define ZERO() _mm256_setzero_ps()
TILES_6(float_tile, 1)
#undef VECTOR
#undef STEP
#undef ADD
#undef BROADCAST
#undef LOAD
#undef STORE
#undef ZERO

static const struct gemm_kernel float_kernel = {float_tile, 6, 16, PUMICE_F32, PUMICE_F32, 1, 1, 512};
static const struct gemm_kernel bfloat_kernel = {float_tile, 6, 16, PUMICE_F32, PUMICE_F32, 1, 1, 512, .rounds = 1};
static const struct gemm_kernel *floats(void) { return &float_kernel; }
static const struct gemm_kernel *bfloats(void) { return &bfloat_kernel; }

/* --- integers ----------------------------------------------------------------------------------------------------- */

#define VECTOR __m256i
#define STEP(sum, a, b)                                                                              \
    do {                                                                                             \
        VECTOR products;                                                                             \
        __asm__("vpmaddwd %2, %1, %0" : "=x"(products) : "x"(a), "x"(b));                            \
        __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products));                                    \
    } while (0)
#define ADD(x, y) _mm256_add_epi32(x, y)
#define BROADCAST(address) _mm256_set1_epi32(word_at(address))
#define LOAD(address) _mm256_loadu_si256((const void *)(address))
#define STORE(address, x) _mm256_store_si256((void *)(address), x)
#define ZERO() _mm256_setzero_si256()
TILES_6(pair_tile, 2)

static const struct gemm_kernel integer_kernel = {pair_tile, 6, 16, PUMICE_S16, PUMICE_S16, 2, 2, 1 << 11};
static const struct gemm_kernel *integers(void) { return &integer_kernel; }

OVERRIDES(gemm, avx2) {
    table->gemm_float = floats;
    table->gemm_bfloat = bfloats;
    table->gemm_integer = integers;
    table->gemm_store_float = store_float;
    table->gemm_store_integer = store_integer;
}
