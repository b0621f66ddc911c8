/* Products with channels last: the split into chunks, and what becomes of a tile.
 *
 *   for each chunk (block of outputs x panels of filters)     shared out among the threads
 *     the block's frame, made in memory of the thread         stays in the second-level cache
 *     for each panel
 *       for each tile of pixels                               sum over taps and channels, then the epilogue */
#include "nhwc/nhwc.h"

#include <math.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "pool/pool.h"

static const double CHUNK_MACS = 4e6;      /* worth handing to another thread */
static const int64_t FRAME_BYTES = 768 << 10, MANY_WEIGHTS = 1 << 20;
enum { CHUNKS_PER_THREAD = 4, LEAST_BLOCK = 64, MOST_BLOCK = 256, LINE = 64 };

/* --- a tile ------------------------------------------------------------------------------------------------------- */

/* Weights that will be wanted next: a part of them is fetched with every step of a tile. */
struct ahead {
    const char *next, *end;
};

static struct gemm_fetch fetch(struct ahead *ahead, int64_t depth) {
    const struct gemm_fetch some = {ahead->next, ahead->next < ahead->end ? LINE : 0};
    ahead->next += depth * some.step;
    return some;
}

/* `count` pixels of a tile from pixel `at` of the result on, filters from `filter` on; whether any is NaN. */
static int store(const struct nhwc_run *run, float *tile, int64_t at, int64_t count, int64_t filter, int64_t columns) {
    const struct pumice_nhwc *conv = run->conv;
    const struct pumice_nhwc_epilogue *e = run->epilogue;
    const struct kernel_table *table = &conv->level->table;
    const float *bias = e->bias ? e->bias + filter : NULL,
                *residual = run->residual ? run->residual + at * conv->shape.filters + filter : NULL;
    const int64_t y_step = nhwc_y_step(run);
    float *y = run->y + at * y_step + filter;
    if (e->function < 0 && !(e->late && residual))
        return table->nhwc_finish(y, y_step, tile, conv->filters, count, columns, bias, residual,
                                  conv->shape.filters, e->low, e->high);
    const int undefined = table->nhwc_finish(tile, conv->filters, tile, conv->filters, count, columns, bias,
                                             e->late ? NULL : residual, conv->shape.filters, e->low, e->high);
    if (e->function >= 0) table->rows_map(e->function, tile, tile, count * conv->filters, e->parameters);
    table->nhwc_finish(y, y_step, tile, conv->filters, count, columns, NULL, e->late ? residual : NULL,
                       conv->shape.filters, -INFINITY, INFINITY);
    return undefined;
}

/* --- chunks ------------------------------------------------------------------------------------------------------- */

struct chunk {
    const struct nhwc_run *run;
    const char *frame;
    int64_t pixel_bytes;    /* from one pixel there to the next */
    int64_t part;           /* and from its first parts to the second ones */
    const int64_t *offset;
    float *sums;            /* of all tiles of a panel */
    int64_t first;          /* pixel of the result */
    int64_t columns, width; /* of a row of the frame, and of those the outputs */
    int64_t pixels;         /* flat */
    int64_t tile;           /* pixels of one */
    int by_rows;            /* tiles end with the outputs of a row, else they go on through the padding */
};

/* Steps [from, from + steps) of the sum of a tile from pixel p on, of whose filters `columns` are wanted. */
static void multiply(const struct chunk *chunk, int64_t p, int count, int64_t from, int64_t steps, const char *panel,
                     int64_t columns, float *tile, struct ahead *ahead) {
    const struct pumice_nhwc *conv = chunk->run->conv;
    const char *a = chunk->frame + p * chunk->pixel_bytes;
    const int64_t step_bytes = conv->step * conv->filters * (int64_t)sizeof(float);
    if (conv->product) {
        (2 * columns <= conv->filters ? conv->product->half : conv->product->tile)(
            count, a, chunk->pixel_bytes, chunk->part, chunk->offset + from, steps, panel + from * step_bytes, tile,
            from > 0);
        return;
    }
    for (int64_t s = from; s < from + steps; s++)
        conv->plain->tile(count, conv->step, a + chunk->offset[s], chunk->pixel_bytes, panel + s * step_bytes, tile,
                          s > 0, fetch(ahead, conv->step));
}

/* The runs of outputs in pixels [p, p + count) of the frame. */
static int store_runs(const struct chunk *chunk, float *tile, int64_t p, int64_t count, int64_t filter,
                      int64_t columns) {
    int undefined = 0;
    for (int64_t i = p; i < p + count;) {
        const int64_t row = i / chunk->columns, column = i % chunk->columns,
                      next = smaller(p + count, (row + 1) * chunk->columns);
        const int64_t used = smaller(next, row * chunk->columns + chunk->width) - i;
        if (used > 0)
            undefined |= store(chunk->run, tile + (i - p) * chunk->run->conv->filters,
                               chunk->first + row * chunk->width + column, used, filter, columns);
        i = next;
    }
    return undefined;
}

/* Tiles of a level that takes any number of pixels leave out the padding between rows, and are of about one size. */
static void cut_tiles(struct chunk *chunk) {
    const struct pumice_nhwc *conv = chunk->run->conv;
    const int64_t parts = (chunk->width + conv->pixels - 1) / conv->pixels;
    chunk->by_rows = !conv->product;
    chunk->tile = chunk->by_rows ? (chunk->width + parts - 1) / parts : conv->pixels;
}

static int64_t pixels_of_tile(const struct chunk *chunk, int64_t p) {
    return smaller(chunk->tile, chunk->by_rows ? chunk->width - p % chunk->columns : chunk->pixels - p);
}

static int64_t next_tile(const struct chunk *chunk, int64_t p, int64_t count) {
    const int64_t column = p % chunk->columns;
    return chunk->by_rows && column + count == chunk->width ? p - column + chunk->columns : p + count;
}

static int multiply_panel(const struct chunk *chunk, int64_t panel, int is_last) {
    const struct pumice_nhwc *conv = chunk->run->conv;
    const int64_t filter = panel * conv->filters, columns = smaller(conv->filters, conv->shape.filters - filter);
    const char *weights = conv->weights + panel * conv->panel_bytes, *next = weights + conv->panel_bytes;
    struct ahead ahead = {next, next + (is_last ? 0 : conv->panel_bytes)};
    int undefined = 0;
    for (int64_t from = 0; from < conv->steps; from += conv->slice) {
        const int64_t steps = smaller(conv->slice, conv->steps - from);
        const int last = from + steps == conv->steps;
        for (int64_t p = 0, count; p < chunk->pixels; p = next_tile(chunk, p, count)) {
            count = pixels_of_tile(chunk, p);
            float *tile = chunk->sums + (conv->slice < conv->steps ? p * conv->filters : 0);
            multiply(chunk, p, (int)count, from, steps, weights, columns, tile, &ahead);
            if (last) undefined |= store_runs(chunk, tile, p, count, filter, columns);
        }
    }
    return undefined;
}

static int multiply_chunk(const struct chunk *chunk, int64_t first_panel, int64_t last_panel) {
    const struct nhwc_product *product = chunk->run->conv->product;
    int undefined = 0;
    if (product) product->start();
    for (int64_t panel = first_panel; panel < last_panel; panel++)
        undefined |= multiply_panel(chunk, panel, panel + 1 == last_panel);
    if (product) product->finish();
    return undefined;
}

static void run_chunk(void *context, int64_t number, int worker) {
    struct nhwc_run *run = context;
    const struct pumice_nhwc *conv = run->conv;
    const int64_t *output = conv->shape.output;
    const int64_t panels = number % run->panel_chunks, block = number / run->panel_chunks;
    const int64_t image = conv->pointwise ? 0 : block / run->blocks,
                  row = (conv->pointwise ? block : block % run->blocks) * run->block;
    const int64_t all = conv->pointwise ? run->batch * volume(output) : output[DOWN],
                  rows = smaller(run->block, all - row);
    const struct frame frame = nhwc_frame(conv, run->block);
    const size_t bytes = conv->pointwise ? (size_t)((run->block + conv->pixels) * conv->pixel_bytes) : frame.bytes;
    const int64_t flat = run->block * (conv->pointwise ? 1 : frame.columns) + conv->pixels;
    const size_t sums = (size_t)(flat * conv->filters) * sizeof(float);
    char *memory = pumice_scratch(SCRATCH_CONV, bytes + sums + (size_t)conv->steps * sizeof(int64_t) +
                                                    (size_t)nhwc_staged(conv) * sizeof(float));
    if (!memory) {
        run->failed = 1;
        return;
    }
    int64_t *offset = (int64_t *)(void *)(memory + bytes + sums);
    float *pixel = (float *)(void *)(offset + conv->steps);
    struct chunk chunk = {
        .run = run, .frame = memory, .pixel_bytes = conv->pixel_bytes, .part = frame.part, .offset = offset,
        .sums = (float *)(void *)(memory + bytes),
    };
    if (conv->pointwise) {
        for (int64_t s = 0; s < conv->steps; s++) offset[s] = s * conv->step * (int64_t)sizeof(float);
        if (run->in_place) {
            chunk.frame = (const char *)(run->x + row * run->x_steps[3]);
            chunk.pixel_bytes = run->x_steps[3] * (int64_t)sizeof(float);
        } else {
            nhwc_fill_pixels(run, memory, row, rows, pixel);
        }
        chunk.first = row, chunk.columns = chunk.width = chunk.pixels = rows;
    } else {
        nhwc_step_offsets(conv, &frame, offset);
        nhwc_fill_frame(run, &frame, memory, image, row, pixel);
        chunk.first = (image * output[DOWN] + row) * output[ACROSS];
        chunk.columns = frame.columns, chunk.width = output[ACROSS];
        chunk.pixels = (rows - 1) * frame.columns + output[ACROSS];
    }
    cut_tiles(&chunk);
    const int64_t first = panels * run->panel_step;
    if (multiply_chunk(&chunk, first, smaller(conv->panels, first + run->panel_step))) run->undefined = 1;
}

/* Blocks that fill the cache, but several for each thread; where even small ones are too few, or the weights are many,
 * which every block reads anew, panels are shared out: each thread then makes the frame for itself. */
static void share_out(struct nhwc_run *run, int threads) {
    const struct pumice_nhwc *conv = run->conv;
    const int64_t *output = conv->shape.output, all = run->batch * volume(output),
                  width = conv->pointwise ? 1 : output[ACROSS];
    const int64_t lines = conv->pointwise ? all : output[DOWN], wanted = threads > 1 ? CHUNKS_PER_THREAD * threads : 1;
    const int64_t taken =
        conv->pixel_bytes * width * (conv->pointwise ? 1 : conv->shape.stride[DOWN] * conv->shape.stride[ACROSS]);
    const int64_t most = larger(larger(LEAST_BLOCK / width, 1), smaller(MOST_BLOCK * 4 / width, FRAME_BYTES / taken));
    const int64_t even = conv->panels * conv->panel_bytes > MANY_WEIGHTS ? lines : all / width / wanted;
    run->block = smaller(lines, larger(larger(LEAST_BLOCK / width, 1), smaller(most, even)));
    run->blocks = (lines + run->block - 1) / run->block;
    run->block = (lines + run->blocks - 1) / run->blocks;
    if (conv->pointwise)
        run->block = round_up(run->block, conv->pixels), run->blocks = (lines + run->block - 1) / run->block;
    const int64_t chunks = conv->pointwise ? run->blocks : run->blocks * run->batch;
    const double macs =
        (double)run->block * (double)width * (double)conv->depth * (double)conv->taps * (double)conv->filters;
    const int64_t least = (int64_t)(CHUNK_MACS / macs) + 1;
    const int64_t parts = chunks < threads ? (threads + chunks - 1) / chunks : 1;
    run->panel_step = smaller(conv->panels, larger((conv->panels + parts - 1) / parts, least));
    run->panel_chunks = (conv->panels + run->panel_step - 1) / run->panel_step;
}

/* An operand cannot be split, and the sum is NaN where float32 has infinity: all of them again, in float32. */
static int run_unsplit(struct nhwc_run run, int threads) {
    struct pumice_nhwc *plain = nhwc_unsplit(run.conv, threads);
    if (!plain) return PUMICE_NO_MEMORY;
    const int status = pumice_nhwc_run(plain, run.batch, run.x, run.x_steps, run.residual, run.y, run.epilogue, threads);
    pumice_nhwc_free(plain);
    return status;
}

int pumice_nhwc_run(const struct pumice_nhwc *conv, int64_t batch, const float *x, const int64_t *x_steps,
                    const float *residual, float *y, const struct pumice_nhwc_epilogue *epilogue, int threads) {
    if (batch < 1) return PUMICE_OK;
    struct nhwc_run run = {conv, epilogue, x, x_steps, residual, y, batch};
    if (conv->depthwise) return nhwc_run_depthwise(&run, threads);
    run.in_place = nhwc_in_place(&run);
    const double macs = (double)(batch * volume(conv->shape.output)) *
                        (double)(conv->panels * conv->panel_bytes / (int64_t)sizeof(float));
    threads = macs < 2 * CHUNK_MACS ? 1 : pumice_team(threads);
    pumice_note_run(conv->level, conv->product ? SLOT_nhwc_product : SLOT_nhwc_finish);
    share_out(&run, threads);
    pumice_parallel(threads, run.blocks * (conv->pointwise ? 1 : batch) * run.panel_chunks, run_chunk, &run);
    if (run.failed) return PUMICE_NO_MEMORY;
    return run.undefined && conv->product ? run_unsplit(run, threads) : PUMICE_OK;
}
