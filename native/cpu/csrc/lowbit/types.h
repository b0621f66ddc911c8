/* Weights of four bits, and the rows that are multiplied with them, as the kernels see them. */
#ifndef PUMICE_LOWBIT_TYPES_H
#define PUMICE_LOWBIT_TYPES_H

#include <stdint.h>

/* `codes` is [n][blocks][64]. A block holds 128 consecutive k of one column: byte i has code i in its low and code 64 +
 * i in its high half. Code c of column j in group g stands for table[j * table_column + g * table_group + c], times the
 * scale of its group.
 *
 * Groups of a multiple of 128 k, `group_blocks` blocks each, have scale[j][g] (one group: a scale a column). Groups of
 * 32 or 64 k are told by group_blocks = 0: then a block has four scales, of 32 k each, and `groups` is 4 * blocks. A
 * table's group never is smaller than a block; with quarter scales it is one block. */
struct lowbit_weights {
    int64_t n, k, blocks, groups, group_blocks;
    const uint8_t *codes;
    const int8_t *table_s8;  /* one of these two: by bytes, with rows of s8 ... */
    const float *table_f32;  /* ... or by floats, with rows of f32 */
    int64_t table_column, table_group; /* in elements; 0: the same table for all */
    const float *scale;                /* [n][groups] */
    const float *offset;               /* [n][groups], or NULL: subtracted from every weight of the group */
};

/* Rows of A, padded with zeros to `blocks` whole blocks.
 *
 * s8 rows lie in the order of k. f32 rows lie in the order in which a block's codes leave a vector of 16 dwords,
 * shifted by a nibble at a time: element [t][j] of the block is k = 4 j + t/2 + 64 (t mod 2); see lowbit_order. */
struct lowbit_rows {
    int64_t m;
    const void *a;
    int64_t stride;      /* elements from row to row: 128 * blocks */
    const int8_t *tiles; /* NULL, or s8 rows once more, for levels that want them so: [m / 16][k / 4][16 rows][4] */
    const float *scale;  /* of s8 rows, [m] */
    const float *sums;   /* [m][groups]: what the group's a add up to; only where there are offsets */
    const float *bias;   /* [n] or NULL */
};

/* Rows of a tile and of a call of the kernels; and columns taken together at most: memory of weights reaches to a whole
 * number of them. */
enum { LOWBIT_TILE_ROWS = 16, LOWBIT_ROWS_AT_ONCE = 256, LOWBIT_PANEL_COLUMNS = 32 };

static inline int64_t lowbit_order(int64_t k) {
    int64_t within = k % 128, j = within % 64 / 4, t = within % 4 * 2 + within / 64;
    return k - within + 16 * t + j;
}

#endif
