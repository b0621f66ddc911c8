/* 8-bit convolution with 512-bit registers and no dot instruction: bytes are widened to 16 bits, even and odd ones
 * apart, and multiplied and added in pairs (vpmaddwd), which is exact. */
#include "conv/avx512_lanes.h"

#include "base/table.h"
#include "conv/avx512_requantize.h"

struct levels { __m512i even, odd; };
struct weights { __m512i even, odd; };
static inline __attribute__((always_inline)) struct levels GROUP(const uint8_t *p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    const __m512i all = _mm512_set1_epi32(four);
    return (struct levels){_mm512_and_si512(all, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(all, 8)};
}
static inline __attribute__((always_inline)) struct weights WEIGHTS(const int8_t *p) {
    const __m512i all = _mm512_loadu_si512(p);
    return (struct weights){_mm512_srai_epi16(_mm512_slli_epi16(all, 8), 8), _mm512_srai_epi16(all, 8)};
}
static inline __attribute__((always_inline)) sums DOT(sums sum, struct levels a, struct weights w) {
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a.even, w.even));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a.odd, w.odd));
}
static inline __attribute__((always_inline)) struct levels LEVELS(__m512i all) {
    return (struct levels){_mm512_and_si512(all, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(all, 8)};
}
#include "conv/u8_tile.h"

#define BESIDE 2
#include "conv/u8_depthwise.h"

ROWS(8) ROWS(4) ROWS(2) ROWS(1)

static void tile(int32_t *tile, const uint8_t *const *pixels, int count, const int64_t *segments, int64_t segment_count,
                 int64_t depth, const int8_t *weights, const int32_t *bias, int filters) {
    if (count > 4) CALL(8);
    else if (count > 2) CALL(4);
    else if (count > 1) CALL(2);
    else CALL(1);
}

/* --- epilogue ----------------------------------------------------------------------------------------------------- */

/* `packed` with bytes in the order of the registers; packing goes lane by lane. */
static inline __attribute__((always_inline)) __m512i narrowed(__m512i a, __m512i b, __m512i c, __m512i d,
                                                              const struct bounds *bounds) {
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    return _mm512_permutexvar_epi32(order, packed(bounds->plain, a, b, c, d, bounds));
}

static inline __attribute__((always_inline)) void requantize_pairs(const int with_residual, uint8_t *out,
                                                                   int64_t out_stride, const int32_t *tile,
                                                                   int tile_stride, int count, int filters,
                                                                   const struct conv_requantize *how,
                                                                   const struct bounds *bounds) {
    const __m512 first = _mm512_loadu_ps(how->multiplier), second = _mm512_loadu_ps(how->multiplier + 16);
    const __mmask32 mask = filters == 32 ? ~0u : (1u << filters) - 1;
    const __mmask16 low = (__mmask16)mask, high = (__mmask16)(mask >> 16);
    for (int i = 0; i < count; i += 2) {
        const int64_t next = i + 1 < count ? 1 : 0;
        const int32_t *a = tile + i * tile_stride, *b = a + next * tile_stride;
        uint8_t *to = out + i * out_stride;
        const uint8_t *r = with_residual ? how->residual + i * out_stride : NULL;
        const uint8_t *q = with_residual ? r + next * out_stride : NULL;
        const __m512i bytes = narrowed(rounded(LOAD(a), first, r, low, how),
                                       rounded(LOAD(a + 16), second, with_residual ? r + 16 : NULL, high, how),
                                       rounded(LOAD(b), first, q, low, how),
                                       rounded(LOAD(b + 16), second, with_residual ? q + 16 : NULL, high, how), bounds);
        _mm256_mask_storeu_epi8(to, mask, _mm512_castsi512_si256(bytes));
        if (next) _mm256_mask_storeu_epi8(to + out_stride, mask, _mm512_extracti64x4_epi64(bytes, 1));
    }
}

static inline __attribute__((always_inline)) void requantize_quads(uint8_t *out, int64_t out_stride,
                                                                   const int32_t *tile, int tile_stride, int count,
                                                                   int filters, const struct conv_requantize *how,
                                                                   const struct bounds *bounds) {
    const __m512 multiplier = _mm512_loadu_ps(how->multiplier);
    const __mmask16 mask = (__mmask16)((1u << filters) - 1);
    for (int i = 0; i < count; i += 4) {
        __m512i value[4];
        for (int j = 0; j < 4; j++) {
            const int row = i + j < count ? i + j : i;
            const uint8_t *residual = how->residual ? how->residual + row * out_stride : NULL;
            value[j] = rounded(LOAD(tile + row * tile_stride), multiplier, residual, mask, how);
        }
        const __m512i bytes = narrowed(value[0], value[1], value[2], value[3], bounds);
        uint8_t *to = out + i * out_stride;
        _mm_mask_storeu_epi8(to, mask, _mm512_castsi512_si128(bytes));
        if (i + 1 < count) _mm_mask_storeu_epi8(to + out_stride, mask, _mm512_extracti32x4_epi32(bytes, 1));
        if (i + 2 < count) _mm_mask_storeu_epi8(to + 2 * out_stride, mask, _mm512_extracti32x4_epi32(bytes, 2));
        if (i + 3 < count) _mm_mask_storeu_epi8(to + 3 * out_stride, mask, _mm512_extracti32x4_epi32(bytes, 3));
    }
}

static __attribute__((noipa)) void requantize(uint8_t *out, int64_t out_stride, const int32_t *tile, int tile_stride,
                                              int count, int filters, const struct conv_requantize *how) {
    const struct bounds bounds = bounds_of(how);
    if (filters <= 16)
        requantize_quads(out, out_stride, tile, tile_stride, count, filters, how, &bounds);
    else if (how->residual)
        requantize_pairs(1, out, out_stride, tile, tile_stride, count, filters, how, &bounds);
    else
        requantize_pairs(0, out, out_stride, tile, tile_stride, count, filters, how, &bounds);
}

/* Packing restores the order that interleaving made. */
static __attribute__((noipa)) void depthwise_requantize(uint8_t *out, int64_t out_stride, const int32_t *tile,
                                                        int count, int channels, const struct conv_requantize *how) {
    const struct bounds bounds = bounds_of(how);
    const __mmask64 mask = channels >= 64 ? ~0ull : (1ull << channels) - 1;
    const __m512 multiplier[4] = {_mm512_loadu_ps(how->multiplier), _mm512_loadu_ps(how->multiplier + 16),
                                  _mm512_loadu_ps(how->multiplier + 32), _mm512_loadu_ps(how->multiplier + 48)};
    for (int i = 0; i < count; i++, tile += QUAD, out += out_stride) {
        __m512i level[4];
        for (int v = 0; v < 4; v++) level[v] = rounded(LOAD(tile + v * 16), multiplier[v], NULL, 0, how);
        _mm512_mask_storeu_epi8(out, mask, packed(bounds.plain, level[0], level[1], level[2], level[3], &bounds));
    }
}

static struct conv_u8_depthwise_form depthwise_form(void) {
    return (struct conv_u8_depthwise_form){.channels = QUAD, .order = quad_order};
}

static struct conv_u8_form form(void) { return (struct conv_u8_form){.pixels = 8, .filters = 32, .unit = 4}; }

OVERRIDES(conv_u8, avx512) {
    table->conv_u8_form = table->conv_u8_deep_form = form;
    table->conv_u8_tile = table->conv_u8_deep_tile = tile;
    table->conv_u8_requantize = requantize;
    table->conv_u8_depthwise_form = depthwise_form;
    table->conv_u8_depthwise_tile = depthwise_tile;
    table->conv_u8_depthwise_requantize = depthwise_requantize;
}
