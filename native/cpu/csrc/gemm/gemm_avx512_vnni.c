/* AVX512-VNNI: u8 x s8 by vpdpbusd, four k a lane, 14 x 32 tiles. The sums cannot overflow for k up to 65,000. */
#include <immintrin.h>

#include "gemm/gemm.h"
#include "gemm/tiles.h"

#define VECTOR __m512i
#define WIDTH 64
#define A_BYTES 4
#define STEP(sum, a, b) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
#define ADD(x, y) _mm512_add_epi32(x, y)
#define BROADCAST(address) _mm512_set1_epi32(word_at(address))
#define LOAD(address) _mm512_loadu_si512(address)
#define STORE(address, x) _mm512_store_si512(address, x)
#define ZERO() _mm512_setzero_si512()
TILES_14(byte_tile, 4)

static const struct gemm_kernel integer_kernel = {byte_tile, 14, 32,      PUMICE_U8,    PUMICE_S8,
                                                  4,         4,  1 << 13, .few_rows = 4};
static const struct gemm_kernel *integers(void) { return &integer_kernel; }

OVERRIDES(gemm, avx512_vnni) { table->gemm_integer = integers; }
