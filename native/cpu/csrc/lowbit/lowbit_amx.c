/* s8 rows by s8 tables with AMX, for more rows than a few: weights are decoded into tiles, 16 columns by 64 k.
 *
 * The product is taken the other way round, out^T = W^T A^T: a column's decoded k lie in a row of the left tile, so
 * that every column keeps its own table and nothing is transposed; A comes in the right tile's form, `rows->tiles`.
 * Of a panel of 32 columns a stretch of k is decoded into the first-level cache, and all rows are multiplied with it,
 * 16 by 16 sums in a register. Between stretches the sums wait in memory; where there are groups, a stretch is of one,
 * and its sums are scaled and added to totals in floats.
 *
 * Tile instructions and vector instructions run side by side, and the tile unit is slow to start again after a pause.
 * So nothing is done in phases: after every product comes some of what else there is to do, weights of the next stretch
 * to decode and the sums of the product before the last to add up. */
#include <immintrin.h>
#include <string.h>

#include "base/numbers.h"
#include "base/table.h"
#include "base/tiles_amx.h"
#include "lowbit/finish.h"
#include "lowbit/vnni.h"

enum {
    TILE = LOWBIT_TILE_ROWS, COLUMNS = LOWBIT_PANEL_COLUMNS, MOST_TILES = LOWBIT_ROWS_AT_ONCE / TILE, STRETCH = 2,
    TILE_BYTES = 1024, STEP_BYTES = 2 * TILE_BYTES, BLOCK_BYTES = 2 * STEP_BYTES, FEWEST_ROWS = 3
};

#define INLINE static inline __attribute__((always_inline))

/* What one unit stores the other loads, and gcc takes tile instructions for ones that touch no memory. */
#define HAND_OVER() __asm__ volatile("" ::: "memory")

/* Some blocks of one group of a panel; none where `end` is `block`. */
struct stretch {
    int64_t n, group, block, end;
};

/* Where sums in a register go: to the totals, by way of `sums` and scaled where there are groups. */
struct sums_due {
    int32_t (*totals)[TILE]; /* NULL: nowhere */
    const float *scale;      /* of the first of 16 columns, for this group */
};

/* What the chunk of a worker has at hand. */
struct work {
    const struct lowbit_weights *w;
    const int8_t *a;
    int64_t tiles;                      /* of rows */
    int decoded, kept;                  /* which of two stretches, and where sums are stored next */
    struct sums_due in_tile, in_memory; /* of the last product, and of the one before */
    int8_t stretch[2][STRETCH * BLOCK_BYTES] __attribute__((aligned(64))); /* [block][low, high][half][column][64 k] */
    int32_t sums[2][TILE][TILE] __attribute__((aligned(64)));
    /* Of a panel; floats where there are groups. */
    int32_t totals[MOST_TILES][COLUMNS][TILE] __attribute__((aligned(64)));
};

/* --- decoding ----------------------------------------------------------------------------------------------------- */

/* Goes through a stretch block by block, and through a block column by column, `step` at a time: a power of two. */
struct decoding {
    const uint8_t *codes;
    const int8_t *table, *first_table;
    int64_t column, codes_column, table_column; /* the last two: bytes from column to column */
    int64_t left, step;
    int8_t *out;
};

INLINE void decode_columns(struct decoding *d, const int count) {
    for (int i = 0; i < count; i++) {
        const __m512i entries = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)d->table));
        const __m512i codes = _mm512_loadu_si512(d->codes);
        __builtin_prefetch(d->codes + COLUMNS * d->codes_column, 0, 2); /* not nearer: the columns share cache sets */
        _mm512_store_si512(d->out, _mm512_permutexvar_epi8(codes, entries));
        _mm512_store_si512(d->out + STEP_BYTES, _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), entries));
        d->codes += d->codes_column, d->table += d->table_column, d->out += 64;
    }
    d->column += count;
    if (d->column < COLUMNS) return;
    d->column = 0, d->table = d->first_table;
    d->codes += 64 - COLUMNS * d->codes_column, d->out += BLOCK_BYTES - STEP_BYTES;
}

INLINE void decode_some(struct decoding *d) {
    if (!d->left) return;
    d->left -= d->step;
    switch (d->step) {
    case 1: decode_columns(d, 1); break;
    case 2: decode_columns(d, 2); break;
    case 4: decode_columns(d, 4); break;
    default:
        for (int64_t i = 0; i < d->step; i += 8) decode_columns(d, 8);
    }
}

/* Of a stretch, in about so many steps. */
static struct decoding decoding_of(const struct work *work, struct stretch s, int8_t *out, int64_t steps) {
    const struct lowbit_weights *w = work->w;
    const int8_t *table = w->table_s8 + s.n * w->table_column + s.group * w->table_group;
    struct decoding d = {.codes = w->codes + (s.n * w->blocks + s.block) * 64, .codes_column = w->blocks * 64,
                         .table = table, .first_table = table, .table_column = w->table_column,
                         .left = (s.end - s.block) * COLUMNS, .step = 1, .out = out};
    while (d.step < COLUMNS && d.step * steps < d.left) d.step *= 2;
    return d;
}

/* --- adding up ---------------------------------------------------------------------------------------------------- */

/* totals += scale * sums, of some of 16 columns. */
INLINE void add(const struct work *work, struct sums_due due, const int32_t (*sums)[TILE], int from, const int count) {
    if (!due.totals) return;
    const int64_t groups = work->w->groups;
    _Pragma("GCC unroll 8") for (int c = from; c < from + count; c++) {
        const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums[c])), total = _mm512_load_ps(due.totals[c]);
        _mm512_store_ps(due.totals[c], _mm512_fmadd_ps(sum, _mm512_set1_ps(due.scale[c * groups]), total));
    }
}

/* The sums of the last product, which are in register 1, and of the one before. */
INLINE void add_rest(struct work *work, const int scaled) {
    int32_t(*last)[TILE] = scaled ? work->sums[work->kept] : work->in_tile.totals;
    HAND_OVER();
    _tile_stored(1, last, 64);
    HAND_OVER();
    if (scaled) {
        add(work, work->in_memory, work->sums[!work->kept], 0, TILE);
        add(work, work->in_tile, last, 0, TILE);
    }
    work->in_tile.totals = work->in_memory.totals = NULL;
}

/* --- products ----------------------------------------------------------------------------------------------------- */

/* What is done beside the tiles after a product's step `i` of `steps`. */
INLINE void aside(struct work *work, struct decoding *d, const int i, const int steps, const int scaled) {
    HAND_OVER();
    decode_some(d);
    if (scaled) add(work, work->in_memory, work->sums[!work->kept], TILE / steps * i, TILE / steps);
    HAND_OVER();
}

#define STEP(i, own, weights_tile, a_tile, first)                                                                      \
    _tile_loadd(weights_tile, weights + (i) * STEP_BYTES, 64);                                                         \
    if (first) _tile_loadd(a_tile, a + (i) * TILE_BYTES, 64);                                                          \
    _tile_dpbssd(own, weights_tile, a_tile);                                                                           \
    aside(work, d, i, steps, scaled);

/* Sums of half a panel by 16 rows, over two or four steps of 64 k, in register `own`. The sums of the product before,
 * in `other`, are stored then. The first half's A stays for the other half. */
#define PRODUCT(name, own, other, first)                                                                               \
    INLINE void name(struct work *work, const int8_t *weights, const int8_t *a, struct sums_due due,                   \
                     struct decoding *d, const int steps, const int scaled) {                                          \
        if (scaled)                                                                                                    \
            _tile_zero(own);                                                                                           \
        else                                                                                                           \
            _tile_loadd(own, due.totals, 64);                                                                          \
        STEP(0, own, 2, 4, first)                                                                                      \
        STEP(1, own, 3, 5, first)                                                                                      \
        if (steps == 4) {                                                                                              \
            STEP(2, own, 2, 6, first)                                                                                  \
            STEP(3, own, 3, 7, first)                                                                                  \
        }                                                                                                              \
        if (work->in_tile.totals) _tile_stored(other, scaled ? work->sums[work->kept] : work->in_tile.totals, 64);     \
        work->in_memory = work->in_tile, work->in_tile = due;                                                          \
        work->kept = !work->kept;                                                                                      \
    }
PRODUCT(upper, 0, 1, 1)
PRODUCT(lower, 1, 0, 0)

/* A stretch by a tile of rows. */
INLINE void multiply(struct work *work, struct stretch s, int64_t tile, struct decoding *d, const int steps,
                     const int scaled) {
    const struct lowbit_weights *w = work->w;
    const int8_t *weights = work->stretch[work->decoded], *a = work->a + (tile * w->blocks + s.block) * STEP_BYTES;
    const float *scale = w->scale + s.n * w->groups + s.group;
    int32_t(*totals)[TILE] = work->totals[tile];
    upper(work, weights, a, (struct sums_due){totals, scale}, d, steps, scaled);
    lower(work, weights + TILE_BYTES, a, (struct sums_due){totals + TILE, scale + TILE * w->groups}, d, steps, scaled);
}

static struct stretch stretch_at(const struct lowbit_weights *w, int64_t n, int64_t group, int64_t block) {
    const int64_t last = smaller((group + 1) * w->group_blocks, w->blocks);
    return (struct stretch){n, group, block, smaller(block + STRETCH, last)};
}

static struct stretch stretch_after(const struct lowbit_weights *w, struct stretch s, int64_t n1) {
    if (s.end < smaller((s.group + 1) * w->group_blocks, w->blocks)) return stretch_at(w, s.n, s.group, s.end);
    if (s.end < w->blocks) return stretch_at(w, s.n, s.group + 1, s.end);
    if (s.n + COLUMNS < n1) return stretch_at(w, s.n + COLUMNS, 0, 0);
    return (struct stretch){.n = n1};
}

/* A panel by all rows, from its first stretch, which is decoded, to the one that follows. */
INLINE struct stretch sum_panel(struct work *work, struct stretch s, int64_t n1, const int scaled) {
    const int64_t n = s.n;
    memset(work->totals, 0, (size_t)work->tiles * sizeof *work->totals);
    while (s.n == n && s.block < s.end) {
        const struct stretch next = stretch_after(work->w, s, n1);
        const int64_t blocks = s.end - s.block;
        struct decoding d = decoding_of(work, next, work->stretch[!work->decoded], 4 * blocks * work->tiles);
        for (int64_t tile = 0; tile < work->tiles; tile++)
            if (blocks == 2)
                multiply(work, s, tile, &d, 4, scaled);
            else
                multiply(work, s, tile, &d, 2, scaled);
        while (d.left) decode_some(&d);
        work->decoded = !work->decoded;
        s = next;
    }
    add_rest(work, scaled);
    return s;
}

static __attribute__((noipa)) struct stretch sum_whole(struct work *work, struct stretch s, int64_t n1) {
    return sum_panel(work, s, n1, 0);
}

static __attribute__((noipa)) struct stretch sum_groups(struct work *work, struct stretch s, int64_t n1) {
    return sum_panel(work, s, n1, 1);
}

/* --- out ---------------------------------------------------------------------------------------------------------- */

static void (*transpose)(const uint32_t *in, int64_t in_step, uint32_t *out, int64_t out_step);

/* Up to sixteen columns of a row: their totals times the row's scale, and what else there is. */
static void finish_row(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t m, int64_t n,
                       int64_t count, __m512 total, float *out) {
    const __mmask16 present = (__mmask16)((1u << count) - 1);
    if (w->offset) {
        float parts[TILE];
        _mm512_storeu_ps(parts, total);
        for (int64_t i = 0; i < count; i++) out[i] = lowbit_finish(w, rows, m, n + i, parts[i], rows->scale[m]);
        return;
    }
    total = _mm512_mul_ps(total, _mm512_set1_ps(rows->scale[m]));
    if (rows->bias) total = _mm512_add_ps(total, _mm512_maskz_loadu_ps(present, rows->bias + n));
    _mm512_mask_storeu_ps(out, present, total);
}

/* Sixteen rows by `count` columns from n on. Totals of a single group still are without its scale. */
static void finish_tile(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t m0, int64_t n,
                        int64_t count, const int32_t (*totals)[TILE], float *out, int64_t out_stride) {
    uint32_t by_row[TILE][TILE] __attribute__((aligned(64)));
    transpose((const uint32_t *)totals, TILE, by_row[0], TILE);
    const __m512 scale = w->groups == 1 ? _mm512_loadu_ps(w->scale + n) : _mm512_setzero_ps();
    for (int64_t m = m0; m < smaller(m0 + TILE, rows->m); m++) {
        const __m512i total = _mm512_load_si512(by_row[m - m0]);
        const __m512 real =
            w->groups == 1 ? _mm512_mul_ps(_mm512_cvtepi32_ps(total), scale) : _mm512_castsi512_ps(total);
        finish_row(w, rows, m, n, count, real, out + m * out_stride + n);
    }
}

static void finish_panel(const struct work *work, const struct lowbit_rows *rows, int64_t n0, int64_t n1, float *out,
                         int64_t out_stride) {
    for (int64_t tile = 0; tile < work->tiles; tile++)
        for (int64_t n = n0; n < n1; n += TILE)
            finish_tile(work->w, rows, tile * TILE, n, smaller(TILE, n1 - n), work->totals[tile] + (n - n0), out,
                        out_stride);
}

static void multiply_tiles(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t n0, int64_t n1,
                           float *out, int64_t out_stride) {
    struct work work; /* its buffers are not worth clearing */
    work.w = w, work.a = rows->tiles, work.tiles = (rows->m + TILE - 1) / TILE;
    work.decoded = work.kept = 0;
    work.in_tile = work.in_memory = (struct sums_due){NULL, NULL};
    _tile_loadconfig(&whole_tiles);
    struct stretch s = stretch_at(w, n0, 0, 0);
    struct decoding d = decoding_of(&work, s, work.stretch[0], 1);
    while (d.left) decode_some(&d);
    for (int64_t n = n0; n < n1; n += COLUMNS) {
        s = (w->groups > 1 ? sum_groups : sum_whole)(&work, s, n1);
        finish_panel(&work, rows, n, smaller(n + COLUMNS, n1), out, out_stride);
    }
    _tile_release();
}

/* --- which -------------------------------------------------------------------------------------------------------- */

/* Few rows, and groups smaller than a block, are better served by registers. */
static void products(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t n0, int64_t n1, float *out,
                     int64_t out_stride) {
    (rows->tiles ? multiply_tiles : lowbit_s8_vnni)(w, rows, n0, n1, out, out_stride);
}

static int wants_tiles(const struct lowbit_weights *w, int64_t m) { return m >= FEWEST_ROWS && w->group_blocks; }

OVERRIDES(lowbit, amx) {
    transpose = table->rows_transpose_tile;
    table->lowbit_s8 = products;
    table->lowbit_wants_tiles = wants_tiles;
}
