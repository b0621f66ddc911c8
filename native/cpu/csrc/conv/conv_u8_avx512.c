/* 8-bit convolution with 512-bit registers and no dot instruction: bytes are widened to 16 bits, even and odd ones
 * apart, and multiplied and added in pairs (vpmaddwd), which is exact. */
#include "conv/avx512_lanes.h"

#include <math.h>

#include "base/table.h"

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

/* Sixteen levels before the zero point, which the packing instructions bound and narrow. */
static inline __attribute__((always_inline)) __m512i rounded(const int32_t *sum, __m512 multiplier, const uint8_t *residual,
                                                             __mmask16 mask, const struct conv_requantize *how) {
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(sum)), multiplier);
    if (residual) {
        __m512i level = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, residual));
        level = _mm512_sub_epi32(_mm512_xor_si512(level, _mm512_set1_epi32(how->residual_flip)),
                                 _mm512_set1_epi32(how->residual_zero_point));
        value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(level), _mm512_set1_ps(how->residual_multiplier), value);
    }
    if (how->overflows)
        value = _mm512_min_ps(_mm512_max_ps(value, _mm512_set1_ps(how->low)), _mm512_set1_ps(how->high));
    return _mm512_cvtps_epi32(value);
}

struct bounds {
    __m512i zero_point, low, high, flip;
    int plain; /* uint8 without bounds of its own: packing saturates as it should */
};

/* Four registers of levels, one after another. Bounds are kept in bytes: rounding is monotone, so clamping commutes. */
static inline __attribute__((always_inline)) __m512i packed(__m512i a, __m512i b, __m512i c, __m512i d,
                                                            const struct bounds *bounds) {
    const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(a, b), bounds->zero_point);
    const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(c, d), bounds->zero_point);
    const __m512i bytes = _mm512_packus_epi16(low, high);
    if (bounds->plain) return bytes;
    return _mm512_xor_si512(_mm512_min_epu8(_mm512_max_epu8(bytes, bounds->low), bounds->high), bounds->flip);
}

/* The same with bytes in the order of the registers; packing goes lane by lane. */
static inline __attribute__((always_inline)) __m512i narrowed(__m512i a, __m512i b, __m512i c, __m512i d,
                                                              const struct bounds *bounds) {
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    return _mm512_permutexvar_epi32(order, packed(a, b, c, d, bounds));
}

static inline __attribute__((always_inline)) void requantize_pairs(const int with_residual, uint8_t *out, int64_t out_stride,
                                                                   const int32_t *tile, int tile_stride, int count,
                                                                   int filters, const struct conv_requantize *how,
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
        const __m512i bytes = narrowed(rounded(a, first, r, low, how), rounded(a + 16, second, with_residual ? r + 16 : NULL, high, how),
                                       rounded(b, first, q, low, how), rounded(b + 16, second, with_residual ? q + 16 : NULL, high, how), bounds);
        _mm256_mask_storeu_epi8(to, mask, _mm512_castsi512_si256(bytes));
        if (next) _mm256_mask_storeu_epi8(to + out_stride, mask, _mm512_extracti64x4_epi64(bytes, 1));
    }
}

static inline __attribute__((always_inline)) void requantize_quads(uint8_t *out, int64_t out_stride, const int32_t *tile,
                                                                   int tile_stride, int count, int filters,
                                                                   const struct conv_requantize *how,
                                                                   const struct bounds *bounds) {
    const __m512 multiplier = _mm512_loadu_ps(how->multiplier);
    const __mmask16 mask = (__mmask16)((1u << filters) - 1);
    for (int i = 0; i < count; i += 4) {
        __m512i value[4];
        for (int j = 0; j < 4; j++) {
            const int row = i + j < count ? i + j : i;
            const uint8_t *residual = how->residual ? how->residual + row * out_stride : NULL;
            value[j] = rounded(tile + row * tile_stride, multiplier, residual, mask, how);
        }
        const __m512i bytes = narrowed(value[0], value[1], value[2], value[3], bounds);
        uint8_t *to = out + i * out_stride;
        _mm_mask_storeu_epi8(to, mask, _mm512_castsi512_si128(bytes));
        if (i + 1 < count) _mm_mask_storeu_epi8(to + out_stride, mask, _mm512_extracti32x4_epi32(bytes, 1));
        if (i + 2 < count) _mm_mask_storeu_epi8(to + 2 * out_stride, mask, _mm512_extracti32x4_epi32(bytes, 2));
        if (i + 3 < count) _mm_mask_storeu_epi8(to + 3 * out_stride, mask, _mm512_extracti32x4_epi32(bytes, 3));
    }
}

/* Levels are made unsigned first: signed ones are 128 lower and get their sign by the flip. */
static struct bounds bounds_of(const struct conv_requantize *how) {
    const int flip = how->is_signed ? 0x80 : 0, zero_point = how->zero_point + flip;
    const int low = zero_point + (int)nearbyintf(how->low), high = zero_point + (int)nearbyintf(how->high);
    return (struct bounds){
        .zero_point = _mm512_set1_epi16((short)zero_point),
        .low = _mm512_set1_epi8((char)low),
        .high = _mm512_set1_epi8((char)high),
        .flip = _mm512_set1_epi8((char)flip),
        .plain = low == 0 && high == 255 && !flip,
    };
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
static __attribute__((noipa)) void depthwise_requantize(uint8_t *out, int64_t out_stride, const int32_t *tile, int count,
                                                        int channels, const struct conv_requantize *how) {
    const struct bounds bounds = bounds_of(how);
    const __mmask64 mask = channels >= 64 ? ~0ull : (1ull << channels) - 1;
    const __m512 multiplier[4] = {_mm512_loadu_ps(how->multiplier), _mm512_loadu_ps(how->multiplier + 16),
                                  _mm512_loadu_ps(how->multiplier + 32), _mm512_loadu_ps(how->multiplier + 48)};
    for (int i = 0; i < count; i++, tile += QUAD, out += out_stride) {
        __m512i level[4];
        for (int v = 0; v < 4; v++) level[v] = rounded(tile + v * 16, multiplier[v], NULL, 0, how);
        _mm512_mask_storeu_epi8(out, mask, packed(level[0], level[1], level[2], level[3], &bounds));
    }
}

/* Place 16 v + 4 j + i of a block holds channel 16 j + 4 v + i. */
static struct conv_u8_depthwise_form depthwise_form(void) {
    static const uint8_t order[QUAD] = {
        0, 1, 2,  3,  16, 17, 18, 19, 32, 33, 34, 35, 48, 49, 50, 51, 4,  5,  6,  7,  20, 21, 22, 23, 36, 37, 38, 39, 52, 53, 54, 55,
        8, 9, 10, 11, 24, 25, 26, 27, 40, 41, 42, 43, 56, 57, 58, 59, 12, 13, 14, 15, 28, 29, 30, 31, 44, 45, 46, 47, 60, 61, 62, 63,
    };
    return (struct conv_u8_depthwise_form){.channels = QUAD, .order = order};
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
