/* The matrix product: the split into chunks, the loops around the tile kernels.
 *
 *   for each chunk (rows x panels)        shared out among the threads
 *     for each block of rows              its part of A stays in the second-level cache, gathered or in place
 *       for each block of k               only where k is long
 *         for each panel of B             stays in the first-level cache; the next one is fetched meanwhile
 *           for each tile of rows         tile kernel, then (after the last k) the epilogue from the tile buffer
 *
 * Where the second-level cache holds B and the kernel is made for it, the two innermost loops are exchanged: a slice of
 * a tile of rows stays in the first-level cache, the panels pass, and results are written row by row. */
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "gemm/pack.h"
#include "gemm/packed.h"
#include "pool/pool.h"

enum {
    SUMS_BYTES = 256 << 10,   /* of partial sums between blocks of k: a part of the second-level cache */
    CONFLICT = 1024,          /* rows that are a multiple of this many bytes apart share cache sets */
    WORTH_PACKING_PANELS = 4, /* fewer panels than this read A so seldom that its layout does not matter */
    CHUNKS_PER_THREAD = 4,
    TILES_PER_CHUNK = 8,
};
static const double LEAST_BYTES = 256 << 10; /* of packed B, of a chunk */

struct job {
    const struct pumice_packed *b;
    const struct gemm_kernel *kernel; /* that packed B, or the one of few rows */
    const struct pumice_matrix *a;
    struct gemm_store store;
    char *out;
    int64_t out_stride; /* bytes */
    int out_size;
    int integer, pack_a;
    int holds_rows; /* B stays in the second-level cache: the innermost loops go the other way round */
    int64_t k_block, block_bytes; /* of A: a quarter of the second-level cache */
    int64_t row_chunks, panel_chunks; /* the grid of chunks */
    struct gathered {
        int64_t m, rows;
    } gathered[PUMICE_MOST_THREADS]; /* of A, by the last chunk of a worker, whose next one often has the same rows */
    int failed;
};

/* --- one chunk ---------------------------------------------------------------------------------------------------- */

/* The `index`th of `parts` even shares of `count`. */
static int64_t cut(int64_t count, int64_t parts, int64_t index) { return count * index / parts; }

static void store_tile(const struct job *job, const void *sums, int64_t m, int64_t n, int rows) {
    const struct kernel_table *table = &job->b->level->table;
    int columns = job->kernel->columns, live = (int)smaller(columns, job->b->n - n);
    char *out = job->out + m * job->out_stride + n * job->out_size;
    if (job->integer)
        table->gemm_store_integer(&job->store, sums, columns, m, n, rows, live, out, job->out_stride);
    else
        table->gemm_store_float(&job->store, sums, columns, m, n, rows, live, out, job->out_stride);
}

/* A tile whose epilogue is due. It runs after the next tile's products were issued, which then overlap with it. */
struct pending {
    const char *sums;
    int64_t m, n;
    int rows;
};

static void settle(const struct job *job, struct pending *pending) {
    if (pending->sums) store_tile(job, pending->sums, pending->m, pending->n, pending->rows);
    pending->sums = NULL;
}

/* Some rows by some panels, for some k. */
struct block {
    int64_t m, rows, tiles;
    int64_t first, last; /* panels */
    int64_t k, depth;
    int split; /* whether this is not all of k */
    const char *a;
    int64_t a_stride; /* bytes */
    int gathered;     /* so that its rows are padded with zeros, as panels are */
    char *sums;       /* of `kept` tiles in turn */
    int64_t tile_bytes, kept;
};

/* Where the sums of a tile are kept until they are complete and their epilogue, which is due after the next tile's
 * products, is done. */
static char *sums_of(const struct job *job, const struct block *block, int64_t panel, int64_t tile) {
    const int64_t across = panel - block->first, panels = block->last - block->first;
    const int64_t number = job->holds_rows ? tile * panels + across : across * block->tiles + tile;
    return block->sums + number % block->kept * block->tile_bytes;
}

static const char *panel_at(const struct job *job, int64_t panel, int64_t k) {
    const struct gemm_kernel *kernel = job->kernel;
    return job->b->data + panel * job->b->panel_bytes + k * kernel->columns * pumice_type_size(kernel->b_type);
}

/* Each of `tiles` tiles fetches its share of the next panel while it computes. */
static struct gemm_fetch share_of(const char *next, const struct gemm_kernel *kernel, int64_t depth, int64_t tile,
                                  int64_t tiles) {
    const int64_t groups = (depth + kernel->group - 1) / kernel->group;
    const int64_t bytes = kernel->columns * kernel->group * pumice_type_size(kernel->b_type);
    const int64_t step = (bytes + tiles - 1) / tiles;
    return (struct gemm_fetch){next + tile * groups * step, step};
}

/* A block's k are taken in slices; a product over no k has one, of depth 0. */
static int64_t slices_of(const struct job *job, const struct block *block) {
    const int64_t slice = job->kernel->k_slice;
    return slice ? larger(1, (block->depth + slice - 1) / slice) : 1;
}

struct slice {
    int64_t k, depth;
};

static struct slice slice_at(const struct job *job, const struct block *block, int64_t number) {
    const int64_t slice = job->kernel->k_slice, from = number * slice;
    return (struct slice){block->k + from, slice ? smaller(slice, block->depth - from) : block->depth};
}

/* One tile of rows by one panel, for one slice of k. */
static void run_tile(const struct job *job, const struct block *block, int64_t tile, int64_t panel, struct slice s,
                     struct gemm_fetch fetch, struct pending *pending) {
    const struct gemm_kernel *kernel = job->kernel;
    const int64_t row_step = larger(1, kernel->row_step), steps = (block->rows + row_step - 1) / row_step;
    const int64_t from = cut(steps, block->tiles, tile) * row_step;
    const int64_t rows = cut(steps, block->tiles, tile + 1) * row_step - from;
    const char *a = block->a + from * block->a_stride + (s.k - block->k) * pumice_type_size(kernel->a_type);
    const char *b = panel_at(job, panel, s.k);
    char *sums = sums_of(job, block, panel, tile);
    const int64_t depth = block->gathered ? round_up(s.depth, kernel->k_align) : s.depth;
    (job->holds_rows ? kernel->held : kernel->tile)((int)rows, depth, a, block->a_stride, b, sums, s.k > 0, fetch);
    settle(job, pending);
    const int live = (int)smaller(rows, block->rows - from);
    if (s.k + s.depth >= job->b->k)
        *pending = (struct pending){sums, block->m + from, panel * kernel->columns, live};
}

/* A slice of a panel stays, the tiles of rows pass; each slice fetches the same slice of the next panel. */
static void hold_panels(const struct job *job, const struct block *block, struct pending *pending) {
    for (int64_t panel = block->first; panel < block->last; panel++)
        for (int64_t i = 0; i < slices_of(job, block); i++) {
            const struct slice s = slice_at(job, block, i);
            const char *next = panel_at(job, panel + 1 < block->last ? panel + 1 : panel, s.k);
            for (int64_t tile = 0; tile < block->tiles; tile++)
                run_tile(job, block, tile, panel, s, share_of(next, job->kernel, s.depth, tile, block->tiles), pending);
        }
}

/* A slice of a tile of rows stays, the panels pass; the first tile fetches them. */
static void hold_rows(const struct job *job, const struct block *block, struct pending *pending) {
    for (int64_t tile = 0; tile < block->tiles; tile++)
        for (int64_t i = 0; i < slices_of(job, block); i++) {
            const struct slice s = slice_at(job, block, i);
            for (int64_t panel = block->first; panel < block->last; panel++) {
                struct gemm_fetch fetch = {panel_at(job, panel, s.k), 0};
                if (tile == 0 && panel + 1 < block->last)
                    fetch = share_of(panel_at(job, panel + 1, s.k), job->kernel, s.depth, 0, 1);
                run_tile(job, block, tile, panel, s, fetch, pending);
            }
        }
}

static void run_block(const struct job *job, const struct block *block) {
    struct pending pending = {0};
    (job->holds_rows ? hold_rows : hold_panels)(job, block, &pending);
    settle(job, &pending);
}

/* Bytes from row to row of a gathered A: odd in cache lines, so that rows do not share cache sets. */
static int64_t gathered_stride(const struct gemm_kernel *kernel, int64_t k) {
    return round_up(round_up(k, kernel->k_align) * pumice_type_size(kernel->a_type), 64) + 64;
}

/* Sets where the block's part of A is; gathers it if it cannot be read in place. */
static void place_a(struct job *job, struct block *block, char *gathered, int64_t stride, int worker) {
    const struct gemm_kernel *kernel = job->kernel;
    const int64_t size = pumice_type_size(kernel->a_type);
    block->gathered = gathered != NULL;
    if (!gathered) {
        block->a_stride = job->a->row_stride * size;
        block->a = (const char *)job->a->data + (block->m * job->a->row_stride + block->k) * size;
        return;
    }
    struct gathered *last = &job->gathered[worker];
    block->a = gathered, block->a_stride = stride;
    if (!block->split && last->m == block->m && last->rows == block->rows) return;
    gemm_pack_rows(kernel, job->a, block->m, block->rows, block->k, block->depth, gathered, stride);
    *last = (struct gathered){block->m, block->rows};
}

/* Rows [m, m + rows) of panels [first, last); `rows` is small enough for its part of A to stay in cache. */
static int run_rows(struct job *job, int64_t m, int64_t rows, int64_t first, int64_t last, int worker) {
    const struct gemm_kernel *kernel = job->kernel;
    const int64_t all_k = job->b->k, blocks = larger(1, (all_k + job->k_block - 1) / job->k_block);
    const int64_t k_block = blocks == 1 ? larger(all_k, 1) : round_up((all_k + blocks - 1) / blocks, kernel->k_align);
    const int64_t row_step = larger(1, kernel->row_step);
    struct block block = {.m = m, .rows = rows, .tiles = (rows + kernel->rows - 1) / kernel->rows, .split = blocks > 1};
    block.tile_bytes = (int64_t)kernel->rows * kernel->columns * 4;
    const int64_t in_cache = larger(1, SUMS_BYTES / (block.tiles * block.tile_bytes));
    const int64_t panels = block.split ? smaller(last - first, in_cache) : last - first;
    const int sliced = kernel->k_slice && k_block > kernel->k_slice;
    block.kept = block.split       ? larger(2, panels * block.tiles)
                 : !sliced         ? 2
                 : job->holds_rows ? panels + 1
                                   : 2 * block.tiles;
    block.sums = pumice_scratch(SCRATCH_GEMM_TILE, (size_t)(block.tile_bytes * block.kept));
    char *gathered = NULL;
    const int64_t stride = gathered_stride(kernel, k_block);
    const int gather = job->pack_a || rows % row_step;
    if (gather) gathered = pumice_scratch(SCRATCH_GEMM_A, (size_t)(round_up(rows, row_step) * stride));
    if (!block.sums || (gather && !gathered)) return 0;
    for (block.first = first; block.first < last; block.first = block.last) {
        block.last = smaller(block.first + panels, last);
        block.k = 0;
        do {
            block.depth = smaller(k_block, all_k - block.k);
            if (blocks > 1 || block.first == first) place_a(job, &block, gathered, stride, worker);
            run_block(job, &block);
            block.k += k_block;
        } while (block.k < all_k);
    }
    return 1;
}

/* Of `rows` rows those that go together: their part of A stays in cache. If it is read in place and tiles of it are
 * held, it need not, and only an incomplete last step of rows is left over to be gathered. */
static int64_t rows_of_a_block(const struct job *job, int64_t rows) {
    const struct gemm_kernel *kernel = job->kernel;
    const int64_t tile_bytes = smaller(job->b->k, job->k_block) * pumice_type_size(kernel->a_type) * kernel->rows;
    const int64_t in_cache = larger(1, job->block_bytes / larger(1, tile_bytes)) * kernel->rows;
    if (job->holds_rows && !job->pack_a && rows > in_cache) return rows - rows % larger(1, kernel->row_step);
    return smaller(rows, in_cache);
}

static void run_chunk(void *context, int64_t chunk, int worker) {
    struct job *job = context;
    const struct gemm_kernel *kernel = job->kernel;
    int64_t tiles = (job->a->rows + kernel->rows - 1) / kernel->rows;
    int64_t row = chunk / job->panel_chunks, column = chunk % job->panel_chunks;
    int64_t m = cut(tiles, job->row_chunks, row) * kernel->rows;
    int64_t end = smaller(cut(tiles, job->row_chunks, row + 1) * kernel->rows, job->a->rows);
    int64_t first = cut(job->b->panels, job->panel_chunks, column);
    int64_t last = cut(job->b->panels, job->panel_chunks, column + 1);
    if (kernel->start) kernel->start();
    for (int64_t rows; m < end; m += rows) {
        rows = rows_of_a_block(job, end - m);
        if (!run_rows(job, m, rows, first, last, worker)) job->failed = 1;
    }
    if (kernel->finish) kernel->finish();
}

/* --- the whole product -------------------------------------------------------------------------------------------- */

/* A grid of about `chunks` chunks: across the panels where rows are few, so that weights are read once. */
static void make_grid(struct job *job, int64_t chunks) {
    int64_t tiles = (job->a->rows + job->kernel->rows - 1) / job->kernel->rows, panels = job->b->panels;
    chunks = larger(1, smaller(chunks, tiles * panels));
    job->row_chunks = tiles <= 4 ? 1 : larger(1, smaller(tiles / (job->holds_rows ? 1 : TILES_PER_CHUNK), chunks));
    job->panel_chunks = smaller(panels, (chunks + job->row_chunks - 1) / job->row_chunks);
}

static int a_needs_packing(const struct job *job) {
    const struct gemm_kernel *kernel = job->kernel;
    const struct pumice_matrix *a = job->a;
    int64_t size = pumice_type_size(kernel->a_type);
    if (a->type != kernel->a_type || kernel->rounds || (a->column_stride != 1 && a->columns > 1)) return 1;
    if (a->rows <= 4 || job->b->panels < WORTH_PACKING_PANELS) return 0;
    if (kernel->whole_lines && (((uintptr_t)a->data | (uintptr_t)(a->row_stride * size)) % 64)) return 1;
    return !job->holds_rows && a->row_stride * size % CONFLICT == 0;
}

/* Few rows would leave the tiles of the kernel that packed B mostly empty. */
static const struct gemm_kernel *kernel_for(const struct pumice_packed *b, int64_t rows) {
    return b->kernel->of_few && rows <= b->kernel->of_few->few_rows ? b->kernel->of_few : b->kernel;
}

static void set_up(struct job *job, const struct pumice_packed *b, const struct pumice_matrix *a, void *out,
                   int64_t out_stride) {
    job->b = b, job->a = a, job->out = out;
    job->integer = b->product == PUMICE_INTEGER;
    job->out_size = pumice_type_size(job->store.e.output), job->out_stride = out_stride * job->out_size;
    const struct gemm_kernel *kernel = job->kernel = kernel_for(b, a->rows);
    job->holds_rows = kernel->held && b->panels * b->panel_bytes <= (int64_t)pumice_cache_bytes() / 2;
    job->pack_a = a_needs_packing(job);
    job->k_block = kernel->k_block, job->block_bytes = (int64_t)pumice_cache_bytes() / 4;
    job->row_chunks = job->panel_chunks = 1;
}

static int run(struct job *job, int threads) {
    int team = pumice_team(threads);
    double macs = (double)job->a->rows * (double)job->b->n * (double)larger(job->b->k, 1);
    double streamed =
        (double)(job->b->panels * job->b->panel_bytes) / LEAST_BYTES; /* what bounds products of few rows */
    double worthwhile = macs / gemm_least_macs(job->b->product);
    if (streamed > worthwhile) worthwhile = streamed;
    int64_t most = team * CHUNKS_PER_THREAD;
    if (team > 1) make_grid(job, worthwhile < 3 ? 1 : worthwhile < (double)most ? (int64_t)worthwhile : most);
    pumice_parallel(team, job->row_chunks * job->panel_chunks, run_chunk, job);
    return job->failed ? PUMICE_NO_MEMORY : PUMICE_OK;
}

/* --- zero points -------------------------------------------------------------------------------------------------- */

/* With a' = a + shift and b' = b - flip as the kernels see them, za' = za + shift, zb' = zb - flip:
 *
 *   sum (a - za)(b - zb) = sum a'b'  + [k za' zb'[n] - za' sum b'[n]]  - [sum a'[m]] zb'[n]
 *                                      column_offset                     row_term * column_term */
struct zeros {
    int32_t *memory; /* column_offset, column_term, row_term */
    int with_rows;
};

static int any_b_zero(const struct pumice_packed *b, const int32_t *b_zero) {
    int flip = b->b_type == PUMICE_U8 ? 128 : 0;
    if (!b_zero) return flip != 0;
    for (int64_t n = 0; n < b->n; n++)
        if (b_zero[n] != flip) return 1;
    return 0;
}

static void sum_rows(const struct pumice_matrix *a, int shift, int32_t *sums) {
    for (int64_t m = 0; m < a->rows; m++) {
        const uint8_t *row = (const uint8_t *)a->data + m * a->row_stride;
        int64_t sum = shift * a->columns;
        if (a->type == PUMICE_U8)
            for (int64_t k = 0; k < a->columns; k++) sum += row[k * a->column_stride];
        else
            for (int64_t k = 0; k < a->columns; k++) sum += (int8_t)row[k * a->column_stride];
        sums[m] = (int32_t)(uint32_t)(uint64_t)sum;
    }
}

static int fold_zeros(struct zeros *zeros, struct pumice_epilogue *epilogue, const struct pumice_packed *b,
                      const struct pumice_matrix *a, int32_t a_zero, const int32_t *b_zero) {
    int shift = gemm_shift_of_a(b->kernel, a->type), flip = b->b_type == PUMICE_U8 ? 128 : 0;
    int64_t columns = b->panels * b->kernel->columns, za = a_zero + shift;
    zeros->with_rows = any_b_zero(b, b_zero);
    if (!zeros->with_rows && za == 0 && !epilogue->offset) return PUMICE_OK;
    if (zeros->with_rows && epilogue->row_term) return PUMICE_BAD_ARGUMENT;
    zeros->memory = pumice_alloc((size_t)(2 * columns + (zeros->with_rows ? a->rows : 0)) * 4);
    if (!zeros->memory) return PUMICE_NO_MEMORY;
    int32_t *offset = zeros->memory, *column_term = offset + columns, *row_term = column_term + columns;
    const uint32_t z = (uint32_t)za, kz = (uint32_t)b->k * z; /* all of this wraps */
    memset(offset, 0, (size_t)columns * sizeof *offset);
    if (epilogue->offset) memcpy(offset, epilogue->offset, (size_t)b->n * sizeof *offset);
    for (int64_t n = 0; n < columns; n++) offset[n] = (int32_t)((uint32_t)offset[n] - z * (uint32_t)b->sums[n]);
    for (int64_t n = 0; zeros->with_rows && n < columns; n++) {
        const uint32_t zb = (uint32_t)(b_zero && n < b->n ? b_zero[n] : 0) - (uint32_t)flip;
        offset[n] = (int32_t)((uint32_t)offset[n] + kz * zb);
        column_term[n] = (int32_t)-zb;
    }
    if (zeros->with_rows) {
        sum_rows(a, shift, row_term);
        epilogue->row_term = row_term, epilogue->column_term = column_term;
    }
    return PUMICE_OK;
}

/* --- public ------------------------------------------------------------------------------------------------------- */

int pumice_gemm(const struct pumice_packed *b, const struct pumice_matrix *a, int32_t a_zero, const int32_t *b_zero,
                const struct pumice_epilogue *epilogue, void *out, int64_t out_stride, int threads) {
    if (a->columns != b->k || !gemm_fits(b->product, a->type)) return PUMICE_BAD_ARGUMENT;
    if (a->rows == 0 || b->n == 0) return PUMICE_OK;
    struct job job = {0};
    struct zeros zeros = {0};
    struct pumice_epilogue e = *epilogue;
    int integer = b->product == PUMICE_INTEGER;
    int status = integer ? fold_zeros(&zeros, &e, b, a, a_zero, b_zero) : PUMICE_OK;
    if (status == PUMICE_OK) status = gemm_prepare_store(&job.store, &e, zeros.memory, integer, b->level);
    if (status == PUMICE_OK) {
        set_up(&job, b, a, out, out_stride);
        gemm_kernel_of(b->level, b->product); /* notes that it ran */
        status = run(&job, threads);
    }
    if (zeros.memory) pumice_free(zeros.memory);
    return status;
}
