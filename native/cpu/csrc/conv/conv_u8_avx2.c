/* 8-bit convolution without a dot instruction: bytes are widened to 16 bits, even and odd ones apart, and multiplied
 * and added in pairs (vpmaddwd), which is exact; vpmaddubsw would saturate. */
#include "conv/avx2_lanes.h"

#include <math.h>

#include "base/table.h"

struct levels { __m256i even, odd; };
struct weights { __m256i even, odd; };
static inline __attribute__((always_inline)) struct levels LEVELS(__m256i all) {
    return (struct levels){_mm256_and_si256(all, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(all, 8)};
}
static inline __attribute__((always_inline)) struct levels GROUP(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, 4);
    return LEVELS(_mm256_set1_epi32(four));
}
static inline __attribute__((always_inline)) struct weights WEIGHTS(const int8_t *p) {
    const __m256i all = LOAD(p);
    return (struct weights){_mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8), _mm256_srai_epi16(all, 8)};
}
static inline __attribute__((always_inline)) sums DOT(sums sum, struct levels a, struct weights w) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a.even, w.even));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a.odd, w.odd));
}
#include "conv/u8_tile.h"

#define BESIDE 1
#include "conv/u8_depthwise.h"

ROWS(3) ROWS(2) ROWS(1)

static void tile(int32_t *tile, const uint8_t *const *pixels, int count, const int64_t *segments, int64_t segment_count,
                 int64_t depth, const int8_t *weights, const int32_t *bias, int filters) {
    if (count > 2) CALL(3);
    else if (count > 1) CALL(2);
    else CALL(1);
}

static struct conv_u8_form form(void) { return (struct conv_u8_form){.pixels = 3, .filters = 16, .unit = 4}; }

/* --- epilogue ----------------------------------------------------------------------------------------------------- */

/* Eight levels before the zero point, which the packing instructions bound and narrow. */
static inline __attribute__((always_inline)) __m256i rounded(const int32_t *sum, __m256 multiplier,
                                                             const uint8_t *residual, int n,
                                                             const struct conv_requantize *how) {
    __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(LOAD(sum)), multiplier);
    if (residual && n > 0) {
        uint64_t eight = 0;
        memcpy(&eight, residual, (size_t)(n < 8 ? n : 8));
        __m256i level = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)eight));
        level = _mm256_sub_epi32(_mm256_xor_si256(level, _mm256_set1_epi32(how->residual_flip)),
                                 _mm256_set1_epi32(how->residual_zero_point));
        value = _mm256_fmadd_ps(_mm256_cvtepi32_ps(level), _mm256_set1_ps(how->residual_multiplier), value);
    }
    if (how->overflows)
        value = _mm256_min_ps(_mm256_max_ps(value, _mm256_set1_ps(how->low)), _mm256_set1_ps(how->high));
    return _mm256_cvtps_epi32(value);
}

struct bounds {
    __m256i zero_point, low, high, flip;
};

/* Levels are made unsigned first: signed ones are 128 lower and get their sign by the flip. */
static struct bounds bounds_of(const struct conv_requantize *how) {
    const int flip = how->is_signed ? 0x80 : 0, zero_point = how->zero_point + flip;
    return (struct bounds){
        .zero_point = _mm256_set1_epi16((short)zero_point),
        .low = _mm256_set1_epi8((char)(zero_point + (int)nearbyintf(how->low))),
        .high = _mm256_set1_epi8((char)(zero_point + (int)nearbyintf(how->high))),
        .flip = _mm256_set1_epi8((char)flip),
    };
}

/* Four registers of levels as bytes, lane by lane. Rounding is monotone, so clamping commutes with it. */
static inline __attribute__((always_inline)) __m256i packed(__m256i a, __m256i b, __m256i c, __m256i d,
                                                            const struct bounds *bounds) {
    const __m256i low = _mm256_adds_epi16(_mm256_packs_epi32(a, b), bounds->zero_point);
    const __m256i high = _mm256_adds_epi16(_mm256_packs_epi32(c, d), bounds->zero_point);
    const __m256i bytes = _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(low, high), bounds->low), bounds->high);
    return _mm256_xor_si256(bytes, bounds->flip);
}

static inline __attribute__((always_inline)) void put(uint8_t *to, const uint8_t *from, int n) {
    if (n >= 32) STORE(to, LOAD(from));
    else if (n == 16) _mm_storeu_si128((__m128i *)(void *)to, _mm_loadu_si128((const __m128i *)(const void *)from));
    else memcpy(to, from, (size_t)n);
}

/* Two pixels of up to 16 filters at a time. */
static __attribute__((noipa)) void requantize(uint8_t *out, int64_t out_stride, const int32_t *tile, int tile_stride,
                                              int count, int filters, const struct conv_requantize *how) {
    const struct bounds bounds = bounds_of(how);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int first = 0; first < filters; first += 16) {
        const int n = filters - first < 16 ? filters - first : 16;
        const __m256 left = _mm256_loadu_ps(how->multiplier + first);
        const __m256 right = n > 8 ? _mm256_loadu_ps(how->multiplier + first + 8) : left;
        for (int i = 0; i < count; i += 2) {
            const int next = i + 1 < count ? 1 : 0;
            const int32_t *a = tile + i * tile_stride + first, *b = a + next * tile_stride;
            const uint8_t *r = how->residual ? how->residual + i * out_stride + first : NULL;
            const uint8_t *q = r ? r + next * out_stride : NULL;
            const int more = n > 8 ? 8 : 0; /* of a tile that ends with 8 columns there is no second register */
            uint8_t bytes[32];
            STORE(bytes, _mm256_permutevar8x32_epi32(
                             packed(rounded(a, left, r, n, how), rounded(a + more, right, r ? r + 8 : NULL, n - 8, how),
                                    rounded(b, left, q, n, how), rounded(b + more, right, q ? q + 8 : NULL, n - 8, how),
                                    &bounds),
                             order));
            put(out + i * out_stride + first, bytes, n);
            if (next) put(out + (i + 1) * out_stride + first, bytes + 16, n);
        }
    }
}

/* Packing restores the order that interleaving made. */
static __attribute__((noipa)) void depthwise_requantize(uint8_t *out, int64_t out_stride, const int32_t *tile,
                                                        int count, int channels, const struct conv_requantize *how) {
    const struct bounds bounds = bounds_of(how);
    for (int i = 0; i < count; i++, tile += QUAD, out += out_stride) {
        __m256i level[4];
        uint8_t bytes[QUAD];
        for (int v = 0; v < 4; v++)
            level[v] = rounded(tile + v * 8, _mm256_loadu_ps(how->multiplier + v * 8), NULL, 0, how);
        STORE(bytes, packed(level[0], level[1], level[2], level[3], &bounds));
        put(out, bytes, channels);
    }
}

/* Place 8 v + 4 j + i of a block holds channel 16 j + 4 v + i. */
static struct conv_u8_depthwise_form depthwise_form(void) {
    static const uint8_t order[QUAD] = {0, 1, 2,  3,  16, 17, 18, 19, 4,  5,  6,  7,  20, 21, 22, 23,
                                        8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31};
    return (struct conv_u8_depthwise_form){.channels = QUAD, .order = order};
}

OVERRIDES(conv_u8, avx2) {
    table->conv_u8_form = table->conv_u8_deep_form = form;
    table->conv_u8_tile = table->conv_u8_deep_tile = tile;
    table->conv_u8_requantize = requantize;
    table->conv_u8_depthwise_form = depthwise_form;
    table->conv_u8_depthwise_tile = depthwise_tile;
    table->conv_u8_depthwise_requantize = depthwise_requantize;
}
