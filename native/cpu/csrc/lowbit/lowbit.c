/* The public products with 4-bit weights: packing, the rows made ready, the split into chunks of columns. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "base/table.h"
#include "lowbit/api.h"
#include "pool/pool.h"

enum { BLOCK = 128, BYTES = 64, ENTRIES = 16, CHUNKS_PER_THREAD = 4 };
static const int64_t LEAST_WEIGHTS = 500000;  /* of a chunk: about 20 us */
static const int64_t LEAST_PREPARED = 100000; /* numbers of A that are worth another thread */

struct pumice_lowbit {
    const struct level *level;
    struct lowbit_weights w;
    int type;
    int64_t bytes;
    void *memory;
};

/* --- packing ------------------------------------------------------------------------------------------------------ */

/* Where each part of a packed matrix lies in its one allocation. */
struct layout {
    size_t codes, table, scale, offset, total;
    int64_t table_entries;
};

static size_t place(size_t *end, int64_t count, size_t size) {
    size_t at = *end;
    *end += ((size_t)count * size + 63) / 64 * 64;
    return at;
}

static void shape(struct lowbit_weights *w, const struct pumice_codebook *book) {
    w->n = book->n;
    w->k = book->k;
    w->blocks = (book->k + BLOCK - 1) / BLOCK;
    if (book->group >= book->k) {
        w->groups = 1;
        w->group_blocks = larger(w->blocks, 1);
    } else if (book->group < BLOCK) {
        w->groups = 4 * w->blocks;
        w->group_blocks = 0;
    } else {
        w->group_blocks = book->group / BLOCK;
        w->groups = (w->blocks + w->group_blocks - 1) / w->group_blocks;
    }
}

static struct layout lay_out(const struct lowbit_weights *w, const struct pumice_codebook *book) {
    struct layout l = {.total = 0};
    const int64_t columns = round_up(w->n, LOWBIT_PANEL_COLUMNS);
    const int64_t entries = ENTRIES * (book->table_group ? w->groups : 1);
    l.table_entries = entries * (book->table_column ? w->n : 1);
    l.codes = place(&l.total, columns * w->blocks, BYTES);
    l.table = place(&l.total, entries * (book->table_column ? columns : 1),
                    book->type == PUMICE_TABLE_S8 ? 1 : sizeof(float));
    l.scale = place(&l.total, columns * w->groups, sizeof(float));
    l.offset = place(&l.total, book->offset ? columns * w->groups : 0, sizeof(float));
    return l;
}

struct packing {
    const struct pumice_codebook *book;
    const struct lowbit_weights *w;
    uint8_t *codes;
    float *scale, *offset;
};

/* Group of the codebook that the packed group `g` stands in. */
static int64_t source_group(const struct pumice_codebook *book, const struct lowbit_weights *w, int64_t g) {
    int64_t groups = book->group >= book->k ? 1 : (book->k + book->group - 1) / book->group;
    return w->group_blocks ? g : smaller(g * 32 / book->group, groups - 1);
}

static void pack_column(void *context, int64_t n, int worker) {
    struct packing *p = context;
    const struct lowbit_weights *w = p->w;
    const uint8_t *codes = p->book->codes + n * w->k;
    uint8_t *out = p->codes + n * w->blocks * BYTES;
    memset(out, 0, (size_t)(w->blocks * BYTES));
    for (int64_t k = 0; k < w->k; k++)
        out[k / BLOCK * BYTES + k % BYTES] |= (uint8_t)((codes[k] & 15) << (k % BLOCK < BYTES ? 0 : 4));
    const int64_t groups = p->book->group >= w->k ? 1 : (w->k + p->book->group - 1) / p->book->group;
    for (int64_t g = 0; g < w->groups; g++) {
        const int64_t from = n * groups + source_group(p->book, w, g);
        p->scale[n * w->groups + g] = p->book->scale[from];
        if (p->offset) p->offset[n * w->groups + g] = p->book->offset[from] * p->book->scale[from];
    }
}

/* bf16 tables are kept as floats of eight significant bits. */
static void pack_table(const struct pumice_codebook *book, int64_t entries, void *out) {
    if (book->type == PUMICE_TABLE_S8) {
        memcpy(out, book->table, (size_t)entries);
        return;
    }
    const float *table = book->table;
    for (int64_t i = 0; i < entries; i++)
        ((float *)out)[i] = book->type == PUMICE_TABLE_BF16 ? bf16_to_float(float_to_bf16(table[i])) : table[i];
}

static int acceptable(const struct pumice_codebook *book) {
    const int whole = book->group >= book->k;
    const int quarters = book->group == 32 || book->group == 64;
    return book->n >= 0 && book->k >= 1 && book->group >= 1 && book->k <= 60000 &&
           (whole || quarters || book->group % BLOCK == 0) && (whole || !quarters || !book->table_group) &&
           book->type >= PUMICE_TABLE_S8 && book->type <= PUMICE_TABLE_F32 &&
           (!book->table_column || book->table_column % ENTRIES == 0);
}

int pumice_lowbit_pack(struct pumice_lowbit **packed, const struct pumice_codebook *book, int threads) {
    if (!acceptable(book)) return PUMICE_BAD_ARGUMENT;
    struct pumice_lowbit *p = calloc(1, sizeof *p);
    if (!p) return PUMICE_NO_MEMORY;
    p->level = pumice_level();
    p->type = book->type;
    shape(&p->w, book);
    const struct layout l = lay_out(&p->w, book);
    p->bytes = (int64_t)l.total;
    char *memory = p->memory = pumice_alloc(l.total);
    if (!memory) {
        free(p);
        return PUMICE_NO_MEMORY;
    }
    struct packing packing = {.book = book,
                              .w = &p->w,
                              .codes = (uint8_t *)memory + l.codes,
                              .scale = (float *)(memory + l.scale),
                              .offset = book->offset ? (float *)(memory + l.offset) : NULL};
    pumice_parallel(threads, p->w.n, pack_column, &packing);
    pack_table(book, l.table_entries, memory + l.table);
    p->w.codes = packing.codes;
    p->w.scale = packing.scale;
    p->w.offset = packing.offset;
    p->w.table_s8 = book->type == PUMICE_TABLE_S8 ? (int8_t *)memory + l.table : NULL;
    p->w.table_f32 = book->type == PUMICE_TABLE_S8 ? NULL : (float *)(memory + l.table);
    p->w.table_column = book->table_column;
    p->w.table_group = book->table_group;
    *packed = p;
    return PUMICE_OK;
}

void pumice_lowbit_free(struct pumice_lowbit *packed) {
    if (!packed) return;
    pumice_free(packed->memory);
    free(packed);
}

int64_t pumice_lowbit_bytes(const struct pumice_lowbit *packed) { return packed->bytes; }

/* --- rows --------------------------------------------------------------------------------------------------------- */

struct preparing {
    const struct pumice_lowbit *b;
    const float *a;
    int64_t a_stride, padded;
    void *rows;
    float *scale, *sums;
    int8_t *tiles;
};

static float group_sum(const struct preparing *p, const void *row, int64_t from, int64_t to) {
    if (p->b->type == PUMICE_TABLE_S8) {
        int32_t sum = 0;
        for (int64_t k = from; k < to; k++) sum += ((const int8_t *)row)[k];
        return (float)sum;
    }
    float sum = 0;
    for (int64_t k = from; k < to; k++) sum += ((const float *)row)[lowbit_order(k)];
    return sum;
}

/* 128 floats, of which `count` exist, in the order of lowbit_order. */
static void order_block(float *out, const float *a, int64_t count, int round) {
    float block[BLOCK];
    memcpy(block, a, (size_t)count * sizeof *a);
    memset(block + count, 0, (size_t)(BLOCK - count) * sizeof *a);
    if (round)
        for (int k = 0; k < BLOCK; k++) block[k] = bf16_to_float(float_to_bf16(block[k]));
    for (int t = 0; t < 8; t++)
        for (int j = 0; j < 16; j++) out[16 * t + j] = block[4 * j + t / 2 + 64 * (t % 2)];
}

static void prepare_row(void *context, int64_t m, int worker) {
    struct preparing *p = context;
    const struct lowbit_weights *w = &p->b->w;
    const float *a = p->a + m * p->a_stride;
    void *row;
    if (p->b->type == PUMICE_TABLE_S8) {
        int8_t *q = row = (int8_t *)p->rows + m * p->padded;
        p->scale[m] = p->b->level->table.lowbit_quantize_row(q, a, w->k, p->padded);
    } else {
        float *f = row = (float *)p->rows + m * p->padded;
        for (int64_t b = 0; b < p->padded; b += BLOCK)
            order_block(f + b, a + b, smaller(BLOCK, w->k - b), p->b->type == PUMICE_TABLE_BF16);
    }
    if (!w->offset) return;
    const int64_t step = w->group_blocks ? w->group_blocks * BLOCK : 32;
    for (int64_t g = 0; g < w->groups; g++)
        p->sums[m * w->groups + g] = group_sum(p, row, g * step, smaller((g + 1) * step, p->padded));
}

/* Sixteen s8 rows as the level wants them besides; see types.h. */
static void arrange_tile(void *context, int64_t tile, int worker) {
    const struct preparing *p = context;
    const int64_t bytes = LOWBIT_TILE_ROWS * p->padded, step = p->padded / 4;
    const uint32_t *from = (const uint32_t *)(const void *)((const int8_t *)p->rows + tile * bytes);
    uint32_t *to = (uint32_t *)(void *)(p->tiles + tile * bytes);
    for (int64_t i = 0; i < step; i += LOWBIT_TILE_ROWS, to += LOWBIT_TILE_ROWS * LOWBIT_TILE_ROWS)
        p->b->level->table.rows_transpose_tile(from + i, step, to, LOWBIT_TILE_ROWS);
}

/* --- products ----------------------------------------------------------------------------------------------------- */

typedef void (*kernel)(const struct lowbit_weights *w, const struct lowbit_rows *rows, int64_t n0, int64_t n1,
                       float *out, int64_t out_stride);

struct job {
    const struct lowbit_weights *w;
    struct lowbit_rows rows;
    kernel run;
    int64_t step;
    float *out;
    int64_t out_stride;
};

static void compute(void *context, int64_t chunk, int worker) {
    const struct job *j = context;
    const int64_t n0 = chunk * j->step, n1 = smaller(n0 + j->step, j->w->n);
    j->run(j->w, &j->rows, n0, n1, j->out, j->out_stride);
}

static kernel kernel_of(const struct pumice_lowbit *b) {
    switch (b->type) {
    case PUMICE_TABLE_S8: return RUN(b->level, lowbit_s8);
    case PUMICE_TABLE_BF16: return RUN(b->level, lowbit_bf16);
    default: return RUN(b->level, lowbit_f32);
    }
}

/* Columns of a chunk: even shares, in whole groups of columns, none below the least work. */
static int64_t chunk_columns(const struct lowbit_weights *w, int64_t m, int threads) {
    const int team = pumice_team(threads);
    const int64_t least = LEAST_WEIGHTS / larger(1, w->k * ((m + 7) / 8));
    int64_t step = team == 1 ? w->n : w->n / (team * CHUNKS_PER_THREAD);
    return round_up(larger(larger(step, least), 1), LOWBIT_PANEL_COLUMNS);
}

/* How many tiles of rows the level wants, of s8 rows. */
static int64_t tiles_of(const struct pumice_lowbit *b, int64_t m) {
    if (b->type != PUMICE_TABLE_S8 || !b->level->table.lowbit_wants_tiles(&b->w, m)) return 0;
    return (m + LOWBIT_TILE_ROWS - 1) / LOWBIT_TILE_ROWS;
}

static int multiply(const struct pumice_lowbit *b, const float *a, int64_t m, int64_t a_stride, const float *bias,
                    float *out, int64_t out_stride, int threads) {
    const int64_t padded = b->w.blocks * BLOCK, size = b->type == PUMICE_TABLE_S8 ? 1 : sizeof(float);
    const int64_t tiles = tiles_of(b, m), tile_bytes = tiles * LOWBIT_TILE_ROWS * padded;
    const int64_t row_bytes = larger(tile_bytes, m * padded * size), sums = b->w.offset ? m * b->w.groups : 0;
    char *memory =
        pumice_scratch(SCRATCH_ROWS, (size_t)(row_bytes + tile_bytes + (m + sums) * (int64_t)sizeof(float)));
    if (!memory) return PUMICE_NO_MEMORY;
    float *scale = (float *)(memory + row_bytes + tile_bytes);
    struct preparing p = {.b = b, .a = a, .a_stride = a_stride, .padded = padded, .rows = memory, .scale = scale,
                          .sums = scale + m, .tiles = (int8_t *)memory + row_bytes};
    const int preparers = m * b->w.k > LEAST_PREPARED ? threads : 1;
    pumice_parallel(preparers, m, prepare_row, &p);
    memset(memory + m * padded * size, 0, (size_t)(row_bytes - m * padded * size)); /* rows that fill the last tile */
    pumice_parallel(preparers, tiles, arrange_tile, &p);
    struct job job = {.w = &b->w,
                      .rows = {m, memory, padded, tiles ? p.tiles : NULL, scale, p.sums, bias},
                      .run = kernel_of(b),
                      .step = chunk_columns(&b->w, m, threads),
                      .out = out,
                      .out_stride = out_stride};
    pumice_parallel(threads, (b->w.n + job.step - 1) / job.step, compute, &job);
    return PUMICE_OK;
}

int pumice_lowbit_matmul(const struct pumice_lowbit *b, const float *a, int64_t m, int64_t a_stride, const float *bias,
                         float *out, int64_t out_stride, int threads) {
    if (!b || m < 0 || a_stride < b->w.k || out_stride < b->w.n) return PUMICE_BAD_ARGUMENT;
    for (int64_t row = 0; row < m && b->w.n; row += LOWBIT_ROWS_AT_ONCE) {
        int status = multiply(b, a + row * a_stride, smaller(LOWBIT_ROWS_AT_ONCE, m - row), a_stride, bias,
                              out + row * out_stride, out_stride, threads);
        if (status) return status;
    }
    return PUMICE_OK;
}

/* --- rows alone --------------------------------------------------------------------------------------------------- */

struct quantizing {
    const struct level *level;
    const float *a;
    int64_t m, k, a_stride, step;
    int8_t *q;
    float *scale;
};

static void quantize_rows(void *context, int64_t chunk, int worker) {
    const struct quantizing *j = context;
    for (int64_t m = chunk * j->step; m < smaller(j->m, (chunk + 1) * j->step); m++)
        j->scale[m] = j->level->table.lowbit_quantize_row(j->q + m * j->k, j->a + m * j->a_stride, j->k, j->k);
}

int pumice_quantize_rows(const float *a, int64_t m, int64_t k, int64_t a_stride, int8_t *q, float *scale, int threads) {
    if (m < 0 || k < 0 || a_stride < k) return PUMICE_BAD_ARGUMENT;
    struct quantizing job = {
        .level = pumice_level(), .a = a, .m = m, .k = k, .a_stride = a_stride, .q = q, .scale = scale};
    job.step = larger(1, 200000 / larger(k, 1));
    pumice_note_run(job.level, SLOT_lowbit_quantize_row);
    pumice_parallel(threads, (m + job.step - 1) / job.step, quantize_rows, &job);
    return PUMICE_OK;
}
