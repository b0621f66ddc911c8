/* 8-bit levels with AVX-512: the sum by hand, since compilers take twice as long to narrow its results. */
#include <immintrin.h>

#include "base/table.h"
#include "runtime/levels.h"

static inline __m512 wide(const uint8_t *from, __mmask16 some, int is_signed) {
    const __m128i bytes = _mm_maskz_loadu_epi8(some, from);
    return _mm512_cvtepi32_ps(is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
}

static inline __attribute__((always_inline)) void sums(const struct pumice_add_u8_step *how, const uint8_t *a, const uint8_t *b,
                                                       uint8_t *y, int64_t count, const int is_signed) {
    const __m512 by_a = _mm512_set1_ps(how->by_a), by_b = _mm512_set1_ps(how->by_b), offset = _mm512_set1_ps(how->offset);
    const __m512 least = _mm512_set1_ps(is_signed ? -128 : 0), most = _mm512_set1_ps(is_signed ? 127 : 255);
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 some = count - i < 16 ? (__mmask16)((1u << (count - i)) - 1) : 0xffff;
        __m512 v = _mm512_fmadd_ps(wide(b + i, some, is_signed), by_b, offset);
        v = _mm512_fmadd_ps(wide(a + i, some, is_signed), by_a, v);
        v = _mm512_min_ps(_mm512_max_ps(v, least), most);
        _mm512_mask_cvtepi32_storeu_epi8(y + i, some, _mm512_cvtps_epi32(v));
    }
}

static __attribute__((noipa)) void add(const struct pumice_add_u8_step *how, const uint8_t *a, const uint8_t *b, uint8_t *y,
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
