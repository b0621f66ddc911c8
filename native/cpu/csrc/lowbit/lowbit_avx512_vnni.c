/* s8 rows by s8 tables with VNNI: codes become bytes by a table look-up in a register (vpermb), 64 at a time.
 *
 * vpdpbusd wants one operand unsigned, so tables are raised by 128 and every sum begins at -128 times the sum of its a.
 * vpermb reads six bits of its index and the sixteen entries stand in the table register four times: the low codes need
 * no mask, the high ones one shift of 16-bit lanes by 4. Four columns at a time share the loads of A. */
#include <immintrin.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "base/table.h"
#include "lowbit/finish.h"
#include "lowbit/vnni.h"

enum { COLUMNS = 4, MOST_ROWS = 4, LANES = 16 };

/* Up to four rows by four columns; what does not exist is another one's copy. */
struct tile {
    const uint8_t *codes[COLUMNS];
    const int8_t *table[COLUMNS];
    const float *scale[COLUMNS];
    const int8_t *a[MOST_ROWS];
    const int32_t *start[MOST_ROWS]; /* [group][half][lane]: what sums begin with */
    int64_t blocks, groups, group_blocks, table_group;
    int64_t group, first, last; /* a group, and its blocks */
    int32_t sums[COLUMNS][MOST_ROWS][LANES] __attribute__((aligned(64))); /* of that group */
    float totals[COLUMNS][MOST_ROWS][LANES] __attribute__((aligned(64))); /* of all, scaled; where there are several */
};

#define INLINE static inline __attribute__((always_inline))

/* By hand: for the intrinsic, gcc 12 copies the accumulator before and after every product. */
INLINE __m512i dot(__m512i sum, __m512i weights, const int8_t *a) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "m"(*(const __m512i_u *)a));
    return sum;
}

INLINE __m512i raised(const int8_t *table) {
    __m512i entries = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
    return _mm512_xor_si512(entries, _mm512_set1_epi8((char)0x80));
}

/* Accumulators are named one by one: gcc 12 leaves arrays of vectors in memory. SUM(column, row) is one of them. */
#define ONE_ROW(X, c) X(c, 0)
#define TWO_ROWS(X, c) X(c, 0) X(c, 1)
#define FOUR_ROWS(X, c) X(c, 0) X(c, 1) X(c, 2) X(c, 3)
#define TILE(ROWS, X) ROWS(X, 0) ROWS(X, 1) ROWS(X, 2) ROWS(X, 3)
#define COLUMNS_OF(X, ROWS) X(ROWS, 0) X(ROWS, 1) X(ROWS, 2) X(ROWS, 3)

#define TABLE(ROWS, c) const __m512i table_##c = raised(t->table[c] + g * t->table_group);
#define START(c, r) __m512i low_##c##_##r = _mm512_loadu_si512(t->start[r] + g * 2 * LANES), \
                            high_##c##_##r = _mm512_loadu_si512(t->start[r] + g * 2 * LANES + LANES);
#define BOTH(c, r)                                                 \
    low_##c##_##r = dot(low_##c##_##r, first, t->a[r] + b * 128); \
    high_##c##_##r = dot(high_##c##_##r, second, t->a[r] + b * 128 + 64);
#define JOINT_START(c, r)                                                                                              \
    __m512i low_##c##_##r = _mm512_add_epi32(_mm512_loadu_si512(t->start[r] + g * 2 * LANES),                          \
                                             _mm512_loadu_si512(t->start[r] + g * 2 * LANES + LANES));
#define JOINT(c, r)                                                \
    low_##c##_##r = dot(low_##c##_##r, first, t->a[r] + b * 128); \
    low_##c##_##r = dot(low_##c##_##r, second, t->a[r] + b * 128 + 64);

/* The products of one block of column c; DOTS is BOTH or JOINT. */
#define DECODE(ROWS, DOTS, c)                                                                        \
    {                                                                                                \
        const __m512i codes = _mm512_loadu_si512(t->codes[c] + b * 64);                              \
        __builtin_prefetch(t->codes[c] + b * 64 + ahead);                                            \
        const __m512i first = _mm512_permutexvar_epi8(codes, table_##c);                             \
        const __m512i second = _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), table_##c);      \
        ROWS(DOTS, c)                                                                                \
    }
#define DECODE_BOTH(ROWS, c) DECODE(ROWS, BOTH, c)
#define DECODE_JOINT(ROWS, c) DECODE(ROWS, JOINT, c)

#define KEEP_BOTH(c, r) _mm512_store_si512(t->sums[c][r], _mm512_add_epi32(low_##c##_##r, high_##c##_##r));
#define KEEP_JOINT(c, r) _mm512_store_si512(t->sums[c][r], low_##c##_##r);
/* s32 sums over the blocks of one group. What becomes of them is elsewhere: with more behind the loop gcc 12 would
 * store the accumulators in every iteration. */
#define WHOLE(rows, ROWS, START, DECODE, KEEP)                                                                         \
    __attribute__((noipa)) static void whole_##rows(struct tile *t) {                                                  \
        const int64_t g = t->group, last = t->last, ahead = COLUMNS * t->blocks * 64;                                  \
        COLUMNS_OF(TABLE, ROWS)                                                                                        \
        TILE(ROWS, START)                                                                                              \
        for (int64_t b = t->first; b < last; b++) { COLUMNS_OF(DECODE, ROWS) }                                         \
        TILE(ROWS, KEEP)                                                                                               \
    }
WHOLE(1, ONE_ROW, START, DECODE_BOTH, KEEP_BOTH)
WHOLE(2, TWO_ROWS, JOINT_START, DECODE_JOINT, KEEP_JOINT)
WHOLE(4, FOUR_ROWS, JOINT_START, DECODE_JOINT, KEEP_JOINT)

/* Groups of a block or less: each product's sum is scaled at once. Sums begin at zero here, because group_shift takes
 * what the raised tables add too much off the floats. */
#define TOTAL(c, r) __m512 total_##c##_##r = _mm512_setzero_ps();
#define KEEP_TOTAL(c, r) _mm512_store_ps(t->totals[c][r], total_##c##_##r);
#define COLUMN(ROWS, c)                     \
    const uint8_t *codes_##c = t->codes[c]; \
    const float *scale_##c = t->scale[c];
#define BLOCK_SUM(c, r)                                                                                             \
    {                                                                                                               \
        const int8_t *a = t->a[r] + b * 128;                                                                        \
        const __m512i sum = dot(dot(_mm512_setzero_si512(), first, a), second, a + 64);                             \
        total_##c##_##r = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, total_##c##_##r);                         \
    }
#define DECODE_BLOCK(ROWS, c)                                                                                       \
    {                                                                                                               \
        const __m512i codes = _mm512_loadu_si512(codes_##c + b * 64);                                               \
        __builtin_prefetch(codes_##c + b * 64 + ahead);                                                             \
        const __m512i first = _mm512_permutexvar_epi8(codes, table_##c);                                            \
        const __m512i second = _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), table_##c);                     \
        const __m512 scale = _mm512_set1_ps(scale_##c[b]);                                                          \
        ROWS(BLOCK_SUM, c)                                                                                          \
    }
#define BLOCKED(rows, ROWS)                                                \
    __attribute__((noipa)) static void blocked_##rows(struct tile *t) {    \
        const int64_t g = 0, blocks = t->blocks, ahead = COLUMNS * blocks * 64; \
        COLUMNS_OF(TABLE, ROWS)                                            \
        COLUMNS_OF(COLUMN, ROWS)                                           \
        TILE(ROWS, TOTAL)                                                  \
        for (int64_t b = 0; b < blocks; b++) { COLUMNS_OF(DECODE_BLOCK, ROWS) } \
        TILE(ROWS, KEEP_TOTAL)                                             \
    }
BLOCKED(1, ONE_ROW)
BLOCKED(2, TWO_ROWS)
BLOCKED(4, FOUR_ROWS)

/* Four scales a block: the low codes' lanes 0 to 7 have the first, 8 to 15 the second; the high codes' the others. */
#define QUARTER_SUMS(c, r)                                                                                             \
    {                                                                                                               \
        const int8_t *a = t->a[r] + b * 128;                                                                        \
        const __m512 low = _mm512_cvtepi32_ps(dot(_mm512_setzero_si512(), first, a));                               \
        const __m512 high = _mm512_cvtepi32_ps(dot(_mm512_setzero_si512(), second, a + 64));                        \
        total_##c##_##r = _mm512_fmadd_ps(low, low_scale, _mm512_fmadd_ps(high, high_scale, total_##c##_##r));      \
    }
#define DECODE_QUARTERS(ROWS, c)                                                                                    \
    {                                                                                                               \
        const __m512i codes = _mm512_loadu_si512(codes_##c + b * 64);                                               \
        __builtin_prefetch(codes_##c + b * 64 + ahead);                                                             \
        const __m512i first = _mm512_permutexvar_epi8(codes, table_##c);                                            \
        const __m512i second = _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), table_##c);                     \
        const __m512 scales = _mm512_broadcast_f32x4(_mm_loadu_ps(scale_##c + b * 4));                              \
        const __m512 low_scale = _mm512_permutexvar_ps(of_low, scales);                                             \
        const __m512 high_scale = _mm512_permutexvar_ps(of_high, scales);                                           \
        ROWS(QUARTER_SUMS, c)                                                                                       \
    }
#define QUARTERED(rows, ROWS)                                                                             \
    __attribute__((noipa)) static void quartered_##rows(struct tile *t) {                                 \
        const int64_t g = 0, blocks = t->blocks, ahead = COLUMNS * blocks * 64;                           \
        const __m512i of_low = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);          \
        const __m512i of_high = _mm512_or_si512(of_low, _mm512_set1_epi32(2));                            \
        COLUMNS_OF(TABLE, ROWS)                                                                           \
        COLUMNS_OF(COLUMN, ROWS)                                                                          \
        TILE(ROWS, TOTAL)                                                                                 \
        for (int64_t b = 0; b < blocks; b++) { COLUMNS_OF(DECODE_QUARTERS, ROWS) }                        \
        TILE(ROWS, KEEP_TOTAL)                                                                            \
    }
QUARTERED(1, ONE_ROW)
QUARTERED(2, TWO_ROWS)
QUARTERED(4, FOUR_ROWS)

enum kind { WHOLE_COLUMNS, GROUPS, BLOCKS, QUARTERS };
typedef void (*shape)(struct tile *t);
static const shape shapes[4][3] = {{whole_1, whole_2, whole_4},
                                   {whole_1, whole_2, whole_4},
                                   {blocked_1, blocked_2, blocked_4},
                                   {quartered_1, quartered_2, quartered_4}};

/* totals += scale * sums of the group, for the first `rows` rows. */
__attribute__((noipa)) static void add_group(struct tile *t, int rows) {
    for (int c = 0; c < COLUMNS; c++) {
        const __m512 scale = _mm512_set1_ps(t->scale[c][t->group]);
        for (int r = 0; r < rows; r++) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(t->sums[c][r]));
            const __m512 total = t->group ? _mm512_load_ps(t->totals[c][r]) : _mm512_setzero_ps();
            _mm512_store_ps(t->totals[c][r], _mm512_fmadd_ps(sum, scale, total));
        }
    }
}

static void sum_tile(struct tile *t, enum kind kind, int rows) {
    const shape run = shapes[kind][rows > 2 ? 2 : rows - 1];
    t->group = t->first = 0, t->last = t->blocks;
    if (kind != GROUPS) {
        run(t);
        return;
    }
    for (; t->group < t->groups; t->group++, t->first = t->last) {
        t->last = smaller(t->first + t->group_blocks, t->blocks);
        run(t);
        add_group(t, rows);
    }
}

static enum kind kind_of(const struct lowbit_weights *w) {
    if (!w->group_blocks) return QUARTERS;
    if (w->groups == 1) return WHOLE_COLUMNS;
    return w->group_blocks == 1 && !w->table_group ? BLOCKS : GROUPS;
}

/* [m][group][half][lane]: -128 times what each lane of A adds up to. */
static void starts(const struct lowbit_weights *w, const struct lowbit_rows *rows, int32_t *start) {
    const __m512i ones = _mm512_set1_epi8(1);
    for (int64_t m = 0; m < rows->m; m++) {
        const int8_t *a = (const int8_t *)rows->a + m * rows->stride;
        for (int64_t b = 0; b < w->blocks; start += 2 * LANES) {
            __m512i low = _mm512_setzero_si512(), high = low;
            for (const int64_t end = smaller(b + w->group_blocks, w->blocks); b < end; b++) {
                low = dot(low, ones, a + b * 128);
                high = dot(high, ones, a + b * 128 + 64);
            }
            _mm512_storeu_si512(start, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(low, 7)));
            _mm512_storeu_si512(start + LANES, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(high, 7)));
        }
    }
}

/* [m][group]: 128 times what the group's a add up to, as floats. */
static void group_sums(const struct lowbit_weights *w, const struct lowbit_rows *rows, float *sums) {
    const int64_t size = w->group_blocks ? 128 : 32;
    for (int64_t m = 0; m < rows->m; m++) {
        const int8_t *a = (const int8_t *)rows->a + m * rows->stride;
        for (int64_t g = 0; g < w->groups; g++, a += size) {
            int32_t sum = 0;
            for (int64_t k = 0; k < size; k++) sum += a[k];
            *sums++ = (float)(sum * 128);
        }
    }
}

/* What the raised tables have added to a column's total. */
static float group_shift(const float *scale, const float *sums, int64_t groups) {
    __m512 shift = _mm512_setzero_ps();
    int64_t g = 0;
    for (; g + LANES <= groups; g += LANES)
        shift = _mm512_fmadd_ps(_mm512_loadu_ps(scale + g), _mm512_loadu_ps(sums + g), shift);
    const __mmask16 tail = (__mmask16)((1u << (groups - g)) - 1);
    shift = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(tail, scale + g), _mm512_maskz_loadu_ps(tail, sums + g), shift);
    return _mm512_reduce_add_ps(shift);
}

static float total_of(enum kind kind, const struct tile *t, int c, int r, const float *sums) {
    if (kind == WHOLE_COLUMNS) return (float)_mm512_reduce_add_epi32(_mm512_load_si512(t->sums[c][r])) * t->scale[c][0];
    const float total = _mm512_reduce_add_ps(_mm512_load_ps(t->totals[c][r]));
    return kind == GROUPS ? total : total - group_shift(t->scale[c], sums, t->groups);
}

void lowbit_s8_vnni(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t n0, int64_t n1, float *out,
                    int64_t out_stride) {
    const enum kind kind = kind_of(w);
    const int64_t per_row = kind >= BLOCKS ? w->groups : w->groups * 2 * LANES;
    int32_t *start = pumice_scratch(SCRATCH_LOWBIT, (size_t)(rows->m * per_row) * sizeof *start);
    if (!start) return; /* the driver asked for it once: see lowbit.c */
    float *sums = (float *)start;
    if (kind >= BLOCKS)
        group_sums(w, rows, sums);
    else
        starts(w, rows, start);
    struct tile t = {
        .blocks = w->blocks, .groups = w->groups, .group_blocks = w->group_blocks, .table_group = w->table_group};
    for (int64_t n = n0; n < n1; n += COLUMNS) {
        for (int c = 0; c < COLUMNS; c++) {
            const int64_t column = smaller(n + c, n1 - 1);
            t.codes[c] = w->codes + column * w->blocks * 64;
            t.table[c] = w->table_s8 + column * w->table_column;
            t.scale[c] = w->scale + column * w->groups;
        }
        for (int64_t m = 0; m < rows->m; m += MOST_ROWS) {
            const int64_t left = smaller(rows->m - m, MOST_ROWS);
            for (int r = 0; r < MOST_ROWS; r++) {
                const int64_t row = smaller(m + r, rows->m - 1);
                t.a[r] = (const int8_t *)rows->a + row * rows->stride;
                t.start[r] = start + row * per_row;
            }
            sum_tile(&t, kind, (int)left);
            for (int r = 0; r < left; r++)
                for (int c = 0; c < smaller(COLUMNS, n1 - n); c++)
                    out[(m + r) * out_stride + n + c] = lowbit_finish(
                        w, rows, m + r, n + c, total_of(kind, &t, c, r, sums + (m + r) * per_row), rows->scale[m + r]);
        }
    }
}

OVERRIDES(lowbit, avx512_vnni) { table->lowbit_s8 = lowbit_s8_vnni; }
