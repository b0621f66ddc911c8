/* s8 rows by s8 tables, and f32 rows by f32 tables, with AVX2: a register holds a table of sixteen bytes twice, or of
 * sixteen floats in two halves.
 *
 * vpmaddubsw adds pairs of u8 x s8 products in 16 bits. With the weight's magnitude as the unsigned and A with the
 * weight's sign as the signed operand, a pair comes to 2 * 128 * 127 at most, which fits. */
#include <immintrin.h>

#include "base/numbers.h"
#include "base/table.h"
#include "lowbit/finish.h"

enum { MOST_ROWS = 4, PARTS = 1, LANES = 8 };

#define INLINE static inline __attribute__((always_inline))

INLINE int32_t sum_i(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

INLINE float sum_f(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* --- bytes -------------------------------------------------------------------------------------------------------- */

typedef __m256i sums, entries;
typedef __m256 totals;
#define NO_SUMS _mm256_setzero_si256()
#define NO_TOTALS _mm256_setzero_ps()
#define SUM(s) sum_i(s)
#define TOTAL(t) sum_f(t)
#define SCALED(total, sum, scale) _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(scale), total)

INLINE entries ENTRIES(const int8_t *table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
}

/* Low codes are the first two quarters. */
INLINE __m256i WEIGHTS(const uint8_t *codes, entries table, int quarter, int part) {
    (void)part;
    const __m256i bytes = _mm256_loadu_si256((const __m256i *)(codes + quarter % 2 * 32));
    const __m256i index = quarter < 2 ? bytes : _mm256_srli_epi16(bytes, 4);
    return _mm256_shuffle_epi8(table, _mm256_and_si256(index, _mm256_set1_epi8(15)));
}

/* The addition by hand: gcc 12 would compute all products of a block before it adds the first. */
INLINE sums DOT(sums sum, __m256i weights, const int8_t *a) {
    const __m256i signed_a = _mm256_sign_epi8(_mm256_loadu_si256((const __m256i *)a), weights);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed_a);
    __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
    return sum;
}

#include "lowbit/columns.h"

/* --- floats ------------------------------------------------------------------------------------------------------- */

/* Entry by the low four bits of each lane: three choose within a half of the table, the fourth the half. */
INLINE __m256 entries_of(__m256i codes, __m256 low, __m256 high) {
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, codes), _mm256_permutevar8x32_ps(high, codes), upper);
}

/* Sums of one block's quarters: dwords 0 to 7 with even shifts are the first, dwords 8 to 15 the second, and with odd
 * shifts the third and fourth. */
INLINE void block_f32(const uint8_t *codes, const float *a, __m256 low, __m256 high, __m256 sum[QUARTERS]) {
    for (int half = 0; half < 2; half++) {
        const __m256i dwords = _mm256_loadu_si256((const __m256i *)(codes + 32 * half));
        for (int i = 0; i < 8; i++) {
            const __m256 weights = entries_of(_mm256_srli_epi32(dwords, 4 * i), low, high);
            const int q = half + 2 * (i & 1);
            sum[q] = _mm256_fmadd_ps(weights, _mm256_loadu_ps(a + i * 16 + half * LANES), sum[q]);
        }
    }
}

static float column_f32(const struct lowbit_weights *w, int64_t n, const float *a) {
    const uint8_t *codes = w->codes + n * w->blocks * 64;
    const float *scale = w->scale + n * w->groups;
    __m256 total = _mm256_setzero_ps();
    for (int64_t b = 0, g = 0; b < w->blocks; g++) {
        const float *entries = w->table_f32 + n * w->table_column + g * w->table_group;
        const __m256 low = _mm256_loadu_ps(entries), high = _mm256_loadu_ps(entries + LANES);
        __m256 sum[QUARTERS];
        for (int q = 0; q < QUARTERS; q++) sum[q] = _mm256_setzero_ps();
        const int64_t end = w->group_blocks ? smaller(b + w->group_blocks, w->blocks) : b + 1;
        for (; b < end; b++) block_f32(codes + b * 64, a + b * 128, low, high, sum);
        for (int q = 0; q < QUARTERS; q++)
            total =
                _mm256_fmadd_ps(sum[q], _mm256_set1_ps(w->group_blocks ? scale[g] : scale[g * QUARTERS + q]), total);
    }
    return sum_f(total);
}

static void products_f32(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t n0, int64_t n1,
                         float *out, int64_t out_stride) {
    for (int64_t n = n0; n < n1; n++)
        for (int64_t m = 0; m < rows->m; m++)
            out[m * out_stride + n] =
                lowbit_finish(w, rows, m, n, column_f32(w, n, (const float *)rows->a + m * rows->stride), 1);
}

/* --- rows --------------------------------------------------------------------------------------------------------- */

static float quantize_row(int8_t *q, const float *a, int64_t k, int64_t padded) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 most = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + LANES <= k; i += LANES) most = _mm256_max_ps(_mm256_and_ps(_mm256_loadu_ps(a + i), magnitude), most);
    float parts[LANES], largest = 0;
    _mm256_storeu_ps(parts, most);
    for (int l = 0; l < LANES; l++) largest = parts[l] > largest ? parts[l] : largest;
    for (; i < k; i++) largest = __builtin_fabsf(a[i]) > largest ? __builtin_fabsf(a[i]) : largest;
    if (!(largest >= LOWBIT_LEAST)) largest = 0;
    const float factor = largest > 0 ? 127 / largest : 0;
    const __m256 inverse = _mm256_set1_ps(factor), top = _mm256_set1_ps(127), bottom = _mm256_set1_ps(-127);
    for (i = 0; i + LANES <= k; i += LANES) {
        const __m256 level =
            _mm256_max_ps(_mm256_mul_ps(_mm256_loadu_ps(a + i), inverse), bottom); /* NaN becomes -127 */
        const __m256i whole = _mm256_cvtps_epi32(_mm256_min_ps(level, top));
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        _mm_storel_epi64((__m128i *)(q + i), _mm_packs_epi16(words, words));
    }
    for (; i < padded; i++) {
        const float level = i < k ? a[i] * factor : 0;
        q[i] = (int8_t)_mm_cvtss_si32(_mm_set_ss(level > -127 ? level < 127 ? level : 127 : -127));
    }
    return largest / 127;
}

OVERRIDES(lowbit, avx2) {
    table->lowbit_s8 = products_s8;
    table->lowbit_f32 = products_f32;
    table->lowbit_bf16 = products_f32;
    table->lowbit_quantize_row = quantize_row;
}
