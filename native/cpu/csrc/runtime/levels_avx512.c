/* 8-bit levels with AVX-512: the sum by hand, since compilers take twice as long to narrow its results. */
#include <immintrin.h>

#include "base/table.h"
#include "runtime/levels.h"

static inline __attribute__((always_inline)) __m512 wide(const uint8_t *from, __mmask16 some, const int is_signed) {
    const __m128i bytes = _mm_maskz_loadu_epi8(some, from);
    return _mm512_cvtepi32_ps(is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
}

/* Sixteen sums, rounded. The most is kept to: what lies beyond int32 would turn negative. */
static inline __attribute__((always_inline)) __m512i sixteen(const struct pumice_add_u8 *how, const uint8_t *a,
                                                             const uint8_t *b, __mmask16 some, const int is_signed) {
    const __m512 more = _mm512_fmadd_ps(wide(b, some, is_signed), _mm512_set1_ps(how->by_b), _mm512_set1_ps(how->offset));
    const __m512 sum = _mm512_fmadd_ps(wide(a, some, is_signed), _mm512_set1_ps(how->by_a), more);
    return _mm512_cvtps_epi32(_mm512_min_ps(sum, _mm512_set1_ps(255)));
}

/* Packing saturates. It goes lane by lane: the order of the registers is restored in the end. */
static inline __attribute__((always_inline)) void up_to_64(const struct pumice_add_u8 *how, const uint8_t *a,
                                                           const uint8_t *b, uint8_t *y, __mmask64 some,
                                                           const int is_signed) {
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    __m512i sum[4];
    _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++)
        sum[v] = sixteen(how, a + 16 * v, b + 16 * v, (__mmask16)(some >> 16 * v), is_signed);
    const __m512i low = _mm512_packs_epi32(sum[0], sum[1]), high = _mm512_packs_epi32(sum[2], sum[3]);
    const __m512i bytes = is_signed ? _mm512_packs_epi16(low, high) : _mm512_packus_epi16(low, high);
    _mm512_mask_storeu_epi8(y, some, _mm512_permutexvar_epi32(order, bytes));
}

static inline __attribute__((always_inline)) void sums(const struct pumice_add_u8 *how, const uint8_t *a, const uint8_t *b,
                                                       uint8_t *y, int64_t count, const int is_signed) {
    for (; count >= 64; count -= 64, a += 64, b += 64, y += 64) up_to_64(how, a, b, y, ~0ull, is_signed);
    if (count > 0) up_to_64(how, a, b, y, (1ull << count) - 1, is_signed);
}

static __attribute__((noipa)) void add(const struct pumice_add_u8 *how, const uint8_t *a, const uint8_t *b, uint8_t *y,
                                       int64_t count) {
    if (how->is_signed)
        sums(how, a, b, y, count, 1);
    else
        sums(how, a, b, y, count, 0);
}

OVERRIDES(levels, avx512) {
    LEVELS_KERNELS(table)
    table->runtime_add = add;
}
