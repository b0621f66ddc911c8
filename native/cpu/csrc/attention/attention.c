/* A chunk is a block of queries of one head. K and V are packed for the level's matrix product, then some queries at a
 * time give a strip of scores, its softmax, and with V the results. Every row is computed alike, whatever the chunks. */
#include "attention/api.h"

#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "gemm/gemm.h"
#include "pool/pool.h"

enum { LINE = 64, MOST_TILE = 32 * 32, BLOCKS_PER_THREAD = 2, TURNED = 16 };
static const double CHUNK_MACS = 4e5;

struct job {
    const struct pumice_attention *a;
    const struct level *level;
    const struct gemm_kernel *product;
    int64_t block, blocks; /* queries of a chunk, chunks of a head */
    int failed;
};

struct head {
    const float *query, *mask;
    float *out;
    float *keys, *values; /* packed: [panel][depth][columns] */
    float *rows;          /* of scaled queries */
    float *scores;
    int64_t score_step;
};

static int64_t padded(const struct job *j, int64_t columns) { return round_up(columns, j->product->columns); }

/* Part of a panel, rows `width` apart: columns that lie row by row are turned sixteen at a time. */
static void pack_part(const struct job *j, float *to, int64_t width, const float *from, int64_t row_step,
                      int64_t column_step, int64_t rows, int64_t columns) {
    int64_t done = 0;
    for (; row_step == 1 && columns == TURNED && done + TURNED <= rows; done += TURNED)
        j->level->table.rows_transpose_tile((const uint32_t *)(const void *)(from + done), column_step,
                                            (uint32_t *)(void *)(to + done * width), width);
    for (int64_t r = done; r < rows; r++)
        if (column_step == 1) memcpy(to + r * width, from + r * row_step, (size_t)columns * sizeof *to);
        else
            for (int64_t c = 0; c < columns; c++) to[r * width + c] = from[r * row_step + c * column_step];
}

static void pack(const struct job *j, float *to, const float *from, int64_t row_step, int64_t column_step, int64_t rows,
                 int64_t columns) {
    const int64_t width = j->product->columns;
    for (int64_t first = 0; first < columns; first += width, to += rows * width) {
        if (first + width > columns) memset(to, 0, (size_t)(rows * width) * sizeof *to);
        for (int64_t c = first; c < smaller(first + width, columns); c += TURNED)
            pack_part(j, to + c - first, width, from + c * column_step, row_step, column_step, rows,
                      smaller(TURNED, smaller(first + width, columns) - c));
    }
}

/* A row of scaled queries. */
static void take_query(const struct pumice_attention *a, float *to, const float *from) {
    const int64_t step = a->query_steps[3];
    if (step == 1)
        for (int64_t d = 0; d < a->depth; d++) to[d] = a->scale * from[d];
    else
        for (int64_t d = 0; d < a->depth; d++) to[d] = a->scale * from[d * step];
}

/* out[r][c] = sum over k of rows[r][k] panel[k][c], all columns of all panels. */
static void multiply(const struct job *j, const float *rows, int64_t row_step, int count, int64_t depth,
                     const float *panels, int64_t columns, float *out, int64_t out_step) {
    float tile[MOST_TILE] __attribute__((aligned(64)));
    const int64_t width = j->product->columns;
    const struct gemm_fetch nothing = {(const char *)panels, 0};
    for (int64_t first = 0; first < columns; first += width, panels += depth * width) {
        j->product->tile(count, depth, rows, row_step * (int64_t)sizeof *rows, panels, tile, 0, nothing);
        for (int r = 0; r < count; r++)
            memcpy(out + r * out_step + first, tile + r * width, (size_t)smaller(width, columns - first) * sizeof *out);
    }
}

/* Queries [first, first + count). */
static void attend(const struct job *j, const struct head *head, int64_t first, int count) {
    const struct pumice_attention *a = j->a;
    const struct kernel_table *table = &j->level->table;
    for (int r = 0; r < count; r++)
        take_query(a, head->rows + r * a->depth, head->query + (first + r) * a->query_steps[2]);
    multiply(j, head->rows, a->depth, count, a->depth, head->keys, a->keys, head->scores, head->score_step);
    for (int r = 0; r < count; r++) {
        float *row = head->scores + r * head->score_step;
        if (head->mask)
            table->rows_binary(0, row, 1, head->mask + (first + r) * a->mask_steps[2], a->mask_steps[3], row, a->keys);
        table->rows_softmax(row, row, a->keys, 0);
    }
    multiply(j, head->scores, head->score_step, count, a->keys, head->values, a->value_depth,
             head->out + first * a->out_steps[2], a->out_steps[2]);
}

static void run_chunk(void *context, int64_t chunk, int worker) {
    struct job *j = context;
    const struct pumice_attention *a = j->a;
    const int64_t number = chunk / j->blocks, b = number / a->heads, h = number % a->heads;
    const int64_t key_floats = a->depth * padded(j, a->keys), value_floats = a->keys * padded(j, a->value_depth);
    const int64_t rows = j->product->rows, score_step = round_up(a->keys, LINE / (int64_t)sizeof(float));
    float *memory = pumice_scratch(
        SCRATCH_GEMM_A, (size_t)(key_floats + value_floats + rows * (a->depth + score_step)) * sizeof(float));
    if (!memory) {
        j->failed = 1;
        return;
    }
    const struct head head = {
        .query = a->query + b * a->query_steps[0] + h * a->query_steps[1],
        .mask = a->mask ? a->mask + b * a->mask_steps[0] + h * a->mask_steps[1] : NULL,
        .out = a->out + b * a->out_steps[0] + h * a->out_steps[1],
        .keys = memory,
        .values = memory + key_floats,
        .scores = memory + key_floats + value_floats,
        .score_step = score_step,
        .rows = memory + key_floats + value_floats + rows * score_step,
    };
    pack(j, head.keys, a->key + b * a->key_steps[0] + h * a->key_steps[1], a->key_steps[2], a->key_steps[3], a->depth,
         a->keys);
    pack(j, head.values, a->value + b * a->value_steps[0] + h * a->value_steps[1], a->value_steps[2], a->value_steps[3],
         a->keys, a->value_depth);
    const int64_t last = smaller(a->queries, (chunk % j->blocks + 1) * j->block);
    if (j->product->start) j->product->start();
    for (int64_t first = chunk % j->blocks * j->block; first < last; first += rows)
        attend(j, &head, first, (int)smaller(rows, last - first));
    if (j->product->finish) j->product->finish();
}

int pumice_attention_run(const struct pumice_attention *a, int threads) {
    if (a->batch < 1 || a->heads < 1 || a->queries < 1 || a->keys < 1 || a->depth < 1 || a->value_depth < 1)
        return PUMICE_BAD_ARGUMENT;
    struct job job = {.a = a, .level = pumice_level(), .block = a->queries};
    job.product = gemm_kernel_of(job.level, PUMICE_FLOAT);
    const double macs = (double)a->queries * (double)a->keys * (double)(a->depth + a->value_depth);
    const int64_t heads = a->batch * a->heads, wanted = BLOCKS_PER_THREAD * pumice_team(threads);
    if (macs * (double)heads < 2 * CHUNK_MACS) threads = 1;
    else if (heads < wanted && macs > 2 * CHUNK_MACS)
        job.block = round_up((a->queries * heads + wanted - 1) / wanted, job.product->rows);
    job.blocks = (a->queries + job.block - 1) / job.block;
    pumice_note_run(job.level, SLOT_rows_softmax);
    pumice_parallel(threads, heads * job.blocks, run_chunk, &job);
    return job.failed ? PUMICE_NO_MEMORY : PUMICE_OK;
}
