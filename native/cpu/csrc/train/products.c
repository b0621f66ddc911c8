/* Products A B of matrices that are new in every call, as training has them: neither is worth packing beforehand.
 *
 * Where the level multiplies split operands (nhwc_amx.c), the operand with fewer rows or columns is split once, for all
 * threads; the other one passes by, 32 of its rows or columns at a time, split in the cache of the thread that multiplies
 * them. So the weights of a layer are read once, as they lie, and never written in another order. Elsewhere, and where the
 * products are few or an operand cannot be split, it is the matrix product in float32. */
#include <math.h>
#include <string.h>

#include "base/api.h"
#include "base/memory.h"
#include "base/numbers.h"
#include "base/table.h"
#include "gemm/api.h"
#include "pool/pool.h"
#include "train/api.h"

enum { BLOCK = 32, QUARTER = 16, LINE = 64, ROWS_AT_ONCE = 256, LEAST_DEPTH = 8 };
static const double LEAST_MACS = 1 << 20, LEAST_SHARED_MACS = 1 << 22; /* worth splitting; worth more than one thread */

/* A matrix's rows (of A) or columns (of B): where each begins, and where its k lie. */
struct lines {
    const float *data;
    int64_t count, step, k_step;
};

struct products_job {
    const struct level *level;
    const struct nhwc_product *product;
    struct lines a, b;
    int64_t k, steps;
    int64_t row_bytes, panel_bytes; /* of a split line of A, and of BLOCK of B */
    char *shared;                   /* all of A, or all of B, split */
    int shares_a;
    float *y;
    _Atomic int failed, undefined;
};

static int64_t blocks_of(int64_t count) { return (count + BLOCK - 1) / BLOCK; }

/* out[r][c] for a block at most, zeros beyond it. */
static void take_block(const struct level *level, float *out, const float *in, int64_t row_step, int64_t column_step,
                       int64_t rows, int64_t columns) {
    if (rows < BLOCK || columns < BLOCK) memset(out, 0, BLOCK * BLOCK * sizeof *out);
    if (row_step == 1 && rows == BLOCK && columns == BLOCK) {
        for (int64_t r = 0; r < BLOCK; r += QUARTER)
            for (int64_t c = 0; c < BLOCK; c += QUARTER)
                level->table.rows_transpose_tile((const uint32_t *)(const void *)(in + r + c * column_step), column_step,
                                                 (uint32_t *)(void *)(out + r * BLOCK + c), BLOCK);
        return;
    }
    for (int64_t r = 0; r < rows; r++) {
        if (column_step == 1) {
            memcpy(out + r * BLOCK, in + r * row_step, (size_t)columns * sizeof *out);
            __builtin_prefetch(in + (r + BLOCK) * row_step); /* of the next block, where rows lie pages apart */
            __builtin_prefetch(in + (r + BLOCK) * row_step + QUARTER);
        } else
            for (int64_t c = 0; c < columns; c++) out[r * BLOCK + c] = in[r * row_step + c * column_step];
    }
}

/* --- splitting ---------------------------------------------------------------------------------------------------- */

static void split_rows(const struct products_job *j, int64_t first, int64_t rows, char *to) {
    const float *from = j->a.data + first * j->a.step;
    if (j->a.k_step == 1) {
        j->product->convert(to, j->row_bytes, from, j->a.step, rows, j->k);
        return;
    }
    _Alignas(64) float block[BLOCK * BLOCK];
    for (int64_t k = 0; k < j->k; k += BLOCK) {
        take_block(j->level, block, from + k * j->a.k_step, j->a.step, j->a.k_step, rows, smaller(BLOCK, j->k - k));
        j->product->convert(to + k * (int64_t)sizeof(float), j->row_bytes, block, BLOCK, rows, BLOCK);
    }
}

static void split_panel(const struct products_job *j, int64_t panel, char *to) {
    const int64_t first = panel * BLOCK, columns = smaller(BLOCK, j->b.count - first);
    _Alignas(64) float block[BLOCK * BLOCK];
    for (int64_t k = 0; k < j->k; k += BLOCK) {
        take_block(j->level, block, j->b.data + first * j->b.step + k * j->b.k_step, j->b.k_step, j->b.step,
                   smaller(BLOCK, j->k - k), columns);
        j->product->pack(to + k * BLOCK * (int64_t)sizeof(float), block, BLOCK);
    }
}

static void split_shared(void *context, int64_t number, int worker) {
    (void)worker;
    const struct products_job *j = context;
    if (j->shares_a)
        split_rows(j, number * BLOCK, smaller(BLOCK, j->a.count - number * BLOCK), j->shared + number * BLOCK * j->row_bytes);
    else
        split_panel(j, number, j->shared + number * j->panel_bytes);
}

/* --- multiplying -------------------------------------------------------------------------------------------------- */

/* Rows first to first + count, split at `rows`, by a panel. */
static void multiply(struct products_job *j, const char *rows, int64_t first, int64_t count, const char *panel, int64_t number,
                     const int64_t *offset, float *sums) {
    const int64_t step_bytes = BLOCK * BLOCK * (int64_t)sizeof(float), columns = j->b.count;
    for (int64_t from = 0; from < j->steps; from += j->product->slice)
        for (int64_t r = 0; r < count; r += BLOCK)
            j->product->tile((int)smaller(BLOCK, count - r), rows + r * j->row_bytes, j->row_bytes, j->product->part,
                             offset + from, smaller(j->product->slice, j->steps - from), panel + from * step_bytes,
                             sums + r * BLOCK, from > 0);
    const int64_t column = number * BLOCK;
    if (j->level->table.nhwc_finish(j->y + first * columns + column, columns, sums, BLOCK, count,
                                    smaller(BLOCK, columns - column), NULL, NULL, 0, -INFINITY, INFINITY))
        j->undefined = 1;
}

static void multiply_chunk(void *context, int64_t number, int worker) {
    (void)worker;
    struct products_job *j = context;
    const int64_t own = j->shares_a ? j->panel_bytes : BLOCK * j->row_bytes;
    const int64_t sums_bytes = ROWS_AT_ONCE * BLOCK * (int64_t)sizeof(float), offset_bytes = j->steps * (int64_t)sizeof(int64_t);
    char *memory = pumice_scratch(SCRATCH_CONV, (size_t)(own + sums_bytes + offset_bytes));
    if (!memory) {
        j->failed = 1;
        return;
    }
    float *sums = (float *)(void *)(memory + own);
    int64_t *offset = (int64_t *)(void *)(sums + ROWS_AT_ONCE * BLOCK);
    for (int64_t s = 0; s < j->steps; s++) offset[s] = s * BLOCK * (int64_t)sizeof(float);
    if (j->shares_a)
        split_panel(j, number, memory);
    else
        split_rows(j, number * BLOCK, smaller(BLOCK, j->a.count - number * BLOCK), memory);
    j->product->start();
    for (int64_t m = 0; j->shares_a && m < j->a.count; m += ROWS_AT_ONCE)
        multiply(j, j->shared + m * j->row_bytes, m, smaller(ROWS_AT_ONCE, j->a.count - m), memory, number, offset, sums);
    for (int64_t p = 0; !j->shares_a && p < blocks_of(j->b.count); p++)
        multiply(j, memory, number * BLOCK, smaller(BLOCK, j->a.count - number * BLOCK), j->shared + p * j->panel_bytes, p,
                 offset, sums);
    j->product->finish();
}

static int multiply_split(struct products_job *j, int threads) {
    j->shares_a = j->a.count <= j->b.count;
    j->steps = blocks_of(j->k);
    j->panel_bytes = j->steps * BLOCK * BLOCK * (int64_t)sizeof(float);
    /* rows an odd number of lines apart share no cache sets */
    j->row_bytes = (j->steps * BLOCK * (int64_t)sizeof(float) / LINE | 1) * LINE;
    const struct lines *shared = j->shares_a ? &j->a : &j->b, *others = j->shares_a ? &j->b : &j->a;
    const int64_t kept = blocks_of(shared->count), passing = blocks_of(others->count);
    j->shared = pumice_scratch(SCRATCH_GEMM_B, (size_t)(kept * (j->shares_a ? BLOCK * j->row_bytes : j->panel_bytes)));
    if (!j->shared) return PUMICE_NO_MEMORY;
    pumice_parallel(threads, kept, split_shared, j);
    pumice_parallel(threads, passing, multiply_chunk, j);
    return j->failed ? PUMICE_NO_MEMORY : PUMICE_OK;
}

/* --- public ------------------------------------------------------------------------------------------------------- */

int pumice_new_product(const struct pumice_matrix *a, const struct pumice_matrix *b, float *y, int threads) {
    if (a->columns != b->rows || a->type != PUMICE_F32 || b->type != PUMICE_F32) return PUMICE_BAD_ARGUMENT;
    const double macs = (double)a->rows * (double)b->columns * (double)a->columns;
    struct products_job job = {
        .level = pumice_level(), .a = {a->data, a->rows, a->row_stride, a->column_stride},
        .b = {b->data, b->columns, b->column_stride, b->row_stride}, .k = a->columns, .y = y,
    };
    job.product = job.level->table.nhwc_product();
    if (job.product && macs >= LEAST_MACS && job.k >= LEAST_DEPTH) {
        pumice_note_run(job.level, SLOT_nhwc_product);
        const int status = multiply_split(&job, macs < LEAST_SHARED_MACS ? 1 : threads);
        if (status != PUMICE_OK || !job.undefined) return status;
    }
    const int64_t nowhere = 0;
    const struct pumice_epilogue plain = {.output = PUMICE_F32};
    return pumice_gemm_batch(PUMICE_FLOAT, 1, a, &nowhere, b, &nowhere, 0, 0, &plain, y, &nowhere, b->columns, threads);
}
