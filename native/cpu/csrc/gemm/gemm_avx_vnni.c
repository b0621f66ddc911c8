/* AVX-VNNI: u8 x s8 by vpdpbusd on 256 bits, 6 x 16 tiles. */
#include <immintrin.h>

#include "gemm/gemm.h"
#include "gemm/tiles.h"

#define WIDTH 32
#define A_BYTES 4
#define VECTOR __m256i
#define STEP(sum, a, b) __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b))
#define ADD(x, y) _mm256_add_epi32(x, y)
#define BROADCAST(address) _mm256_set1_epi32(word_at(address))
#define LOAD(address) _mm256_loadu_si256((const void *)(address))
#define STORE(address, x) _mm256_store_si256((void *)(address), x)
#define ZERO() _mm256_setzero_si256()
TILES_6(byte_tile, 4)

static const struct gemm_kernel integer_kernel = {byte_tile, 6, 16, PUMICE_U8, PUMICE_S8, 4, 4, 1 << 12};
static const struct gemm_kernel *integers(void) { return &integer_kernel; }

OVERRIDES(gemm, avx_vnni) { table->gemm_integer = integers; }
