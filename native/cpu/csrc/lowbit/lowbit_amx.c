/* s8 rows by s8 tables with AMX, for more rows than a few: weights are decoded into tiles, 16 columns by 64 k.
 *
 * The product is taken the other way round, out^T = W^T A^T: a column's decoded k lie in a row of the left tile, so
 * that every column keeps its own table and nothing is transposed; A is brought to the right tile's form, [k / 4][16
 * m][4], once a call. Of 32 columns a stretch of k is decoded into the first-level cache (a short one: of 2, 4 and 8
 * blocks 2 was the fastest), and then all rows are multiplied with it, 32 at a time: two by two tile registers of sums.
 * Between stretches the sums wait in memory. With groups, a stretch ends where a group ends, and its sums are scaled
 * and added up in floats. */
#include <immintrin.h>
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "base/table.h"
#include "lowbit/finish.h"
#include "lowbit/vnni.h"

enum {
    TILE = 16, COLUMNS = 2 * TILE, ROWS = 2 * TILE, STRETCH = 2, TILE_BYTES = 1024, BLOCK_BYTES = 4 * TILE_BYTES,
    FEWEST_ROWS = 3, LANES = 16
};

struct configuration {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

/* Registers: 0 and 1 sums of the first 16 columns by both tiles of A, 2 and 3 of the others; 4 and 5 weights; 6 and 7
 * A. */
static const struct configuration whole_tiles = {
    .palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

/* Thirty-two columns of weights, a stretch of them decoded: [block][low, high][16-column half][column][64 k]. */
struct panel {
    const struct lowbit_weights *w;
    const uint8_t *codes[COLUMNS];
    const int8_t *table[COLUMNS];
    const float *scale[COLUMNS];
    int8_t decoded[STRETCH * BLOCK_BYTES] __attribute__((aligned(64)));
};

/* Sums, and totals with scales, of 32 columns by 32 rows: [half of the columns][tile of rows][column][row]. */
struct sums {
    int32_t s32[2][2][TILE][TILE];
    float f32[2][2][TILE][TILE];
} __attribute__((aligned(64)));

/* --- A ------------------------------------------------------------------------------------------------------------ */

/* Rows m0 to m0 + 15 as tiles of [k / 4][16][4], one after the other; rows that do not exist are zero. */
static void pack_rows(const struct lowbit_rows *rows, int64_t m0, int64_t padded, int8_t *out) {
    const int64_t count = smaller(TILE, rows->m - m0);
    const __m512i steps = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i offsets = _mm512_mullo_epi32(steps, _mm512_set1_epi32((int)rows->stride));
    const __mmask16 present = (__mmask16)((1u << count) - 1);
    const int8_t *a = (const int8_t *)rows->a + m0 * rows->stride;
    for (int64_t k = 0; k < padded; k += 4, out += 64)
        _mm512_store_si512(out, _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), present, offsets, a + k, 1));
}

/* --- weights ------------------------------------------------------------------------------------------------------ */

/* Blocks `b` to `end` - 1 of all columns, in the order in which they are stored. */
static void decode(struct panel *p, int64_t b, int64_t end, int64_t g) {
    const int64_t table = g * p->w->table_group, next_panel = COLUMNS * p->w->blocks * 64;
    int8_t *out = p->decoded;
    for (; b < end; b++, out += BLOCK_BYTES)
        for (int c = 0; c < COLUMNS; c++) {
            const __m512i entries = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(p->table[c] + table)));
            const __m512i codes = _mm512_loadu_si512(p->codes[c] + b * 64);
            __builtin_prefetch(p->codes[c] + b * 64 + next_panel, 0, 2); /* not nearer: the columns share cache sets */
            _mm512_store_si512(out + c * 64, _mm512_permutexvar_epi8(codes, entries));
            _mm512_store_si512(out + c * 64 + 2 * TILE_BYTES,
                               _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), entries));
        }
}

/* Adds the products of `blocks` decoded blocks to 32 x 32 sums, or 32 x 16 where there is one tile of A. */
static void multiply_both(const struct panel *p, int64_t blocks, const int8_t *a, int64_t a_tile) {
    for (int64_t i = 0; i < 2 * blocks; i++, a += TILE_BYTES) {
        const int8_t *weights = p->decoded + i * 2 * TILE_BYTES;
        _tile_loadd(4, weights, 64);
        _tile_loadd(6, a, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, a + a_tile, 64);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, weights + TILE_BYTES, 64);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
}

static void multiply_one(const struct panel *p, int64_t blocks, const int8_t *a) {
    for (int64_t i = 0; i < 2 * blocks; i++, a += TILE_BYTES) {
        const int8_t *weights = p->decoded + i * 2 * TILE_BYTES;
        _tile_loadd(4, weights, 64);
        _tile_loadd(6, a, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(5, weights + TILE_BYTES, 64);
        _tile_dpbssd(2, 5, 6);
    }
}

typedef int32_t (*tiles_of_sums)[2][TILE][TILE];

static void begin_sums(tiles_of_sums s, int both, int resume) {
    if (!resume) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        return;
    }
    _tile_loadd(0, s[0][0], 64);
    _tile_loadd(2, s[1][0], 64);
    if (!both) return;
    _tile_loadd(1, s[0][1], 64);
    _tile_loadd(3, s[1][1], 64);
}

static void keep_sums(tiles_of_sums s, int both) {
    _tile_stored(0, s[0][0], 64);
    _tile_stored(2, s[1][0], 64);
    if (!both) return;
    _tile_stored(1, s[0][1], 64);
    _tile_stored(3, s[1][1], 64);
}

/* totals = (g > 0) totals + scale of the group * sums; one group: rounded product by product as at every level. */
static void add_group(const struct panel *p, struct sums *sums, int tiles, int64_t g) {
    for (int c = 0; c < COLUMNS; c++) {
        const __m512 scale = _mm512_set1_ps(p->scale[c][g]);
        for (int tile = 0; tile < tiles; tile++) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums->s32[c / TILE][tile][c % TILE]));
            float *total = sums->f32[c / TILE][tile][c % TILE];
            _mm512_store_ps(total, g ? _mm512_fmadd_ps(sum, scale, _mm512_load_ps(total)) : _mm512_mul_ps(sum, scale));
        }
    }
}

/* One panel of columns by all rows, `tiles` tiles of 16. */
static void sum_panel(struct panel *p, const int8_t *a, int64_t a_tile, int64_t tiles, struct sums *sums) {
    const struct lowbit_weights *w = p->w;
    for (int64_t g = 0, start = 0; g < w->groups; g++) {
        const int64_t stop = smaller(start + w->group_blocks, w->blocks);
        for (int64_t b = start; b < stop; b += STRETCH) {
            const int64_t end = smaller(b + STRETCH, stop);
            decode(p, b, end, g);
            for (int64_t tile = 0; tile < tiles; tile += 2) {
                const int8_t *rows = a + tile * a_tile + b * 2 * TILE_BYTES;
                const int both = tile + 1 < tiles;
                begin_sums(sums[tile / 2].s32, both, b > start);
                if (both)
                    multiply_both(p, end - b, rows, a_tile);
                else
                    multiply_one(p, end - b, rows);
                keep_sums(sums[tile / 2].s32, both);
                if (end == stop) add_group(p, &sums[tile / 2], 1 + both, g);
            }
        }
        start = stop;
    }
}

/* --- out ---------------------------------------------------------------------------------------------------------- */

/* Row m of a panel: sixteen columns are gathered at once, where nothing but a scale and a bias is left to do. */
static void finish_row(const struct panel *p, const struct lowbit_rows *rows, int64_t m, int64_t n0, int64_t columns,
                       const struct sums *sums, float *out) {
    const __m512i every_column = _mm512_mullo_epi32(
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(TILE));
    for (int64_t c = 0; c < columns; c += LANES) {
        const float *first = &sums->f32[c / TILE][m / TILE % 2][0][m % TILE];
        const int64_t count = smaller(LANES, columns - c);
        const __mmask16 present = (__mmask16)((1u << count) - 1);
        __m512 total = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), present, every_column, first, sizeof *first);
        if (p->w->offset) {
            float parts[LANES];
            _mm512_storeu_ps(parts, total);
            for (int64_t i = 0; i < count; i++)
                out[c + i] = lowbit_finish(p->w, rows, m, n0 + c + i, parts[i], rows->scale[m]);
            continue;
        }
        total = _mm512_mul_ps(total, _mm512_set1_ps(rows->scale[m]));
        if (rows->bias) total = _mm512_add_ps(total, _mm512_maskz_loadu_ps(present, rows->bias + n0 + c));
        _mm512_mask_storeu_ps(out + c, present, total);
    }
}

static int multiply(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t n0, int64_t n1, float *out,
                    int64_t out_stride) {
    const int64_t padded = w->blocks * 128, a_tile = padded * TILE, tiles = (rows->m + TILE - 1) / TILE;
    const int64_t pairs = (tiles + 1) / 2;
    char *memory = pumice_scratch(SCRATCH_LOWBIT, (size_t)(tiles * a_tile) + (size_t)pairs * sizeof(struct sums));
    if (!memory) return 0;
    struct sums *sums = (struct sums *)(void *)memory;
    int8_t *a = (int8_t *)(sums + pairs);
    for (int64_t tile = 0; tile < tiles; tile++) pack_rows(rows, tile * TILE, padded, a + tile * a_tile);
    struct panel p = {.w = w};
    _tile_loadconfig(&whole_tiles);
    for (int64_t n = n0; n < n1; n += COLUMNS) {
        for (int c = 0; c < COLUMNS; c++) {
            const int64_t column = smaller(n + c, n1 - 1);
            p.codes[c] = w->codes + column * w->blocks * 64;
            p.table[c] = w->table_s8 + column * w->table_column;
            p.scale[c] = w->scale + column * w->groups;
        }
        sum_panel(&p, a, a_tile, tiles, sums);
        for (int64_t m = 0; m < rows->m; m++)
            finish_row(&p, rows, m, n, smaller(COLUMNS, n1 - n), &sums[m / ROWS], out + m * out_stride + n);
    }
    _tile_release();
    return 1;
}

/* --- which ------------------------------------------------------------------------------------------------------- */

/* Few rows, and groups smaller than a block, are better served by registers. */
static void products(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t n0, int64_t n1, float *out,
                     int64_t out_stride) {
    if (rows->m >= FEWEST_ROWS && w->group_blocks && multiply(w, rows, n0, n1, out, out_stride)) return;
    lowbit_s8_vnni(w, rows, n0, n1, out, out_stride);
}

OVERRIDES(lowbit, amx) { table->lowbit_s8 = products; }
