/* LSTM and GRU layers over 8-bit weights. At every step the hidden state becomes levels, integer tiles multiply it with
 * R, and while the sums are in the first-level cache the gates and the cell follow in real numbers.
 *
 * As over float weights, work is cut by rows, or where there are too few by units:
 *
 *     rows    a block of them goes through all steps on one thread. What ONNX's DynamicQuantizeLinear makes of the batch
 *             it makes by the range of all rows, so that threads meet after every step; rows with ranges of their own never
 *     units   a step is two phases: levels of all units, and then a chunk of units each
 *
 * R's chunks are taken forwards and backwards in turns: those that a step ends with are in the nearer caches when the next
 * one begins. */
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "gemm/pack.h"
#include "lowbit/dynamic.h"
#include "pool/pool.h"
#include "recurrent/gates.h"

enum { MOST_GATES = 4, MOST_ROWS = 32, SIGNED_ZERO = 128, LINE_FLOATS = 16, AHEAD = 8 };
static const int64_t LEAST_MACS = 2000000, LEAST_BYTES = 256 << 10; /* of a thread's share of a step cut by units */
static const int64_t LEAST_APART = 4000000;                         /* multiplications of one of all steps, by rows */

/* The least and the greatest state of every unit of a chunk, with zero among them. */
struct extremes {
    float low[RECURRENT_UNITS], high[RECURRENT_UNITS];
};

/* A row's levels. */
struct row {
    float scale, zero, sum; /* sum: of the levels less their zero point, where weights have zero points */
};

struct layer {
    const struct pumice_recurrence_u8 *r;
    const struct pumice_gates *p;
    const struct gemm_kernel *kernel; /* the one that packed, or the one of few rows */
    recurrent_row row;                /* of single rows, or NULL */
    uint8_t *levels;                  /* [batch][depth] */
    char *a;                          /* the levels as the kernel reads them */
    int64_t a_stride;
    struct row *rows;
    char *x; /* levels of a step's input, as the kernel reads them; NULL where they were multiplied before */
    int64_t x_stride;
    struct row *inputs;
    int64_t blocks, block_rows;
    struct extremes *extremes[2]; /* of the state before and after a step, in turns; one a block or a chunk */
    int64_t cuts;                 /* how many of these */
};

/* --- levels of the state -------------------------------------------------------------------------------------------- */

static int64_t time_of(const struct layer *l, int64_t step) { return l->r->reverse ? l->r->time - 1 - step : step; }

static float sum_of_levels(const uint8_t *levels, int64_t count, int32_t zero) {
    int64_t sum = -zero * count;
    for (int64_t i = 0; i < count; i++) sum += levels[i];
    return (float)sum;
}

/* Of the whole batch before a step. */
static struct rows_quantization batch_quantization(const struct layer *l, int64_t step) {
    float range[2];
    const float *seen = l->extremes[step % 2]->low;
    l->p->level->table.rows_range(seen, l->cuts * (int64_t)(sizeof(struct extremes) / sizeof *seen), range);
    return dynamic_quantization(range);
}

static float quantize_by_itself(const struct layer *l, int64_t row, uint8_t *levels) {
    const int64_t hidden = l->p->hidden;
    const float scale = l->p->level->table.lowbit_quantize_row((int8_t *)levels, l->r->h + row * hidden, hidden, hidden);
    for (int64_t i = 0; i < hidden; i++) levels[i] ^= SIGNED_ZERO;
    return scale;
}

/* Rows first to last - 1 of a step's input: padded, as its panels are. */
static void take_input(const struct layer *l, int64_t step, int64_t first, int64_t last) {
    const struct pumice_recurrent_input *in = &l->r->input;
    const struct pumice_gates *w = in->weights;
    const int64_t begin = time_of(l, step) * l->r->batch, zero = in->zero ? *in->zero : SIGNED_ZERO;
    const struct pumice_matrix levels = {in->levels + begin * w->rows, PUMICE_U8, l->r->batch, w->rows, w->rows, 1};
    gemm_pack_rows(l->kernel, &levels, first, last - first, 0, w->rows, l->x + first * l->x_stride, l->x_stride);
    for (int64_t row = first; row < last; row++) {
        const float scale = in->scale[in->zero ? 0 : begin + row];
        l->inputs[row] = (struct row){scale, (float)(zero + gemm_shift_of_a(w->kernel, PUMICE_U8)), 0};
        if (w->zeros) l->inputs[row].sum = sum_of_levels(in->levels + (begin + row) * w->rows, w->rows, (int32_t)zero);
    }
}

/* Rows first to last - 1 before a step. */
static void quantize_rows(const struct layer *l, int64_t step, int64_t first, int64_t last) {
    const struct pumice_gates *p = l->p;
    struct rows_quantization q = {.zero = SIGNED_ZERO};
    if (l->x) take_input(l, step, first, last);
    if (!l->r->by_row) q = batch_quantization(l, step);
    for (int64_t row = first; row < last; row++) {
        uint8_t *levels = l->levels + row * p->depth;
        if (l->r->by_row) q.scale = quantize_by_itself(l, row, levels);
        else p->level->table.rows_quantize(l->r->h + row * p->hidden, levels, p->hidden, &q);
        l->rows[row] = (struct row){q.scale, (float)(q.zero + gemm_shift_of_a(p->kernel, PUMICE_U8)), 0};
        if (p->zeros) l->rows[row].sum = sum_of_levels(levels, p->hidden, q.zero);
    }
    if (l->kernel->a_type == PUMICE_U8) return;
    const struct pumice_matrix levels = {l->levels, PUMICE_U8, l->r->batch, p->hidden, p->depth, 1};
    gemm_pack_rows(l->kernel, &levels, first, last - first, 0, p->hidden, l->a + first * l->a_stride, l->a_stride);
}

/* --- a chunk of a block --------------------------------------------------------------------------------------------- */

/* Sums of a chunk's gates, a tile each, of rows that lie `stride` bytes apart. */
static void multiply(const struct layer *l, const struct pumice_gates *p, int64_t chunk, const char *a, int64_t stride,
                     int64_t rows, int32_t *sums) {
    const char *panel = p->panels + chunk * p->gates * p->panel_bytes;
    const int64_t tile = MOST_ROWS * p->units;
    const int padded = (int)round_up(rows, larger(1, l->kernel->row_step));
    if (rows == 1 && l->row) {
        l->row(a, p->depth / p->kernel->group, panel, p->panel_bytes, p->gates, sums, tile * (int64_t)sizeof *sums);
        return;
    }
    for (int64_t gate = 0; gate < p->gates; gate++, panel += p->panel_bytes)
        l->kernel->tile(padded, p->depth, a, stride, panel, sums + gate * tile, 0, (struct gemm_fetch){panel, 0});
}

/* A chunk of a block at one step. */
struct part {
    const struct layer *layer;
    int64_t t, chunk, first, last; /* rows first to last - 1 */
    const int32_t *sums, *inputs;        /* of the state and of the input, a tile a gate */
    struct extremes *seen;
};

/* Where the input's sums of a row begin. */
static const float *projected(const struct part *p, int64_t row) {
    const struct layer *l = p->layer;
    return l->r->projected + (p->t * l->r->batch + row) * l->p->gates * l->p->hidden + p->chunk * l->p->units;
}

/* They lie far apart and are read once: some rows ahead. */
static void fetch_projected(const struct part *p, int64_t row) {
    const struct pumice_gates *w = p->layer->p;
    if (row >= p->last || p->layer->x) return;
    const float *from = projected(p, row);
    for (int64_t gate = 0; gate < w->gates; gate++, from += w->hidden)
        for (int64_t u = 0; u < w->units; u += LINE_FLOATS) __builtin_prefetch(from + u, 0, 0);
}

/* Of the part's first row, but for that row's levels. */
static struct recurrent_sums sums_of(const struct part *p, const struct pumice_gates *weights, const int32_t *sums) {
    const int64_t column = p->chunk * weights->gates * weights->units;
    return (struct recurrent_sums){
        .sums = sums, .sums_step = MOST_ROWS * weights->units, .columns = weights->sums + column,
        .zeros = weights->zeros ? weights->zeros + column : NULL, .scale = weights->scale + column, .units = weights->units,
        .added_step = weights->hidden};
}

static struct recurrent_units units_of(const struct part *p) {
    const struct layer *l = p->layer;
    const int64_t hidden = l->p->hidden, unit = p->chunk * l->p->units, at = p->first * hidden + unit;
    const float *extra = l->p->gates == MOST_GATES ? l->r->peepholes : l->r->inner_bias;
    return (struct recurrent_units){
        .h = l->r->h + at, .c = l->r->c ? l->r->c + at : NULL, .y = l->r->y + p->t * l->r->y_stride + at,
        .extra = extra ? extra + unit : NULL, .extra_step = hidden, .low = p->seen->low, .high = p->seen->high};
}

static void set_row(struct recurrent_sums *sums, const struct row *row) {
    sums->row_scale = row->scale, sums->zero = row->zero, sums->sum = row->sum;
}

/* The state stays, and there is no output. */
static void keep_state(const struct kernel_table *table, const struct recurrent_units *units, int64_t count) {
    memset(units->y, 0, (size_t)count * sizeof *units->y);
    table->rows_fold(PUMICE_MIN, units->low, units->h, count);
    table->rows_fold(PUMICE_MAX, units->high, units->h, count);
}

/* The new states of some units, and the outputs. */
static void finish(const struct part *p) {
    const struct layer *l = p->layer;
    const struct pumice_gates *w = l->r->input.weights;
    const struct kernel_table *table = &l->p->level->table;
    const int64_t hidden = l->p->hidden, unit = p->chunk * l->p->units, live = smaller(l->p->units, hidden - unit);
    const float *bias = l->x && l->r->input.bias ? l->r->input.bias + unit : NULL;
    struct recurrent_sums sums = sums_of(p, l->p, p->sums), input = {0};
    struct recurrent_units units = units_of(p);
    if (l->x) input = sums_of(p, w, p->inputs), sums.input = &input;
    for (int64_t row = p->first; row < p->last; row++) {
        fetch_projected(p, row + AHEAD);
        set_row(&sums, l->rows + row);
        if (l->x) set_row(&input, l->inputs + row);
        sums.added = l->x ? bias : projected(p, row);
        if (l->r->lengths && p->t >= l->r->lengths[row]) keep_state(table, &units, live);
        else (l->p->gates == MOST_GATES ? table->recurrent_lstm_u8 : table->recurrent_gru_u8)(&sums, &units, live);
        sums.sums += l->p->units, input.sums += l->p->units;
        units.h += hidden, units.y += hidden, units.c += units.c ? hidden : 0;
    }
}

static void run_part(const struct layer *l, int64_t step, int64_t chunk, int64_t block, struct extremes *seen) {
    enum { SUMS = MOST_GATES * MOST_ROWS * RECURRENT_UNITS };
    int32_t sums[SUMS] __attribute__((aligned(64))), inputs[SUMS] __attribute__((aligned(64)));
    const int64_t first = block * l->block_rows, last = smaller(first + l->block_rows, l->r->batch);
    const struct part p = {l, time_of(l, step), chunk, first, last, sums, inputs, seen};
    for (int64_t row = first; row < first + AHEAD; row++) fetch_projected(&p, row);
    multiply(l, l->p, chunk, l->a + first * l->a_stride, l->a_stride, last - first, sums);
    if (l->x) multiply(l, l->r->input.weights, chunk, l->x + first * l->x_stride, l->x_stride, last - first, inputs);
    finish(&p);
}

/* --- the layer ---------------------------------------------------------------------------------------------------- */

static void run_step(const struct layer *l, int64_t step, int64_t block) {
    const int64_t first = block * l->block_rows, chunks = l->p->chunks;
    struct extremes *seen = l->extremes[(step + 1) % 2] + block;
    quantize_rows(l, step, first, smaller(first + l->block_rows, l->r->batch));
    memset(seen, 0, sizeof *seen);
    for (int64_t i = 0; i < chunks; i++) run_part(l, step, step % 2 ? chunks - 1 - i : i, block, seen);
}

/* A block at one step, or at all of them. */
static void meet_at_steps(void *context, int64_t step, int64_t block) { run_step(context, step, block); }

static void run_block(void *context, int64_t only, int64_t block) {
    const struct layer *l = context;
    for (int64_t step = 0; step < l->r->time; step++) run_step(l, step, block);
}

static void run_chunk(void *context, int64_t phase, int64_t chunk) {
    const struct layer *l = context;
    const int64_t step = phase / 2, batch = l->r->batch, chunks = l->p->chunks;
    if (phase % 2 == 0) {
        quantize_rows(l, step, batch * chunk / chunks, batch * (chunk + 1) / chunks);
        return;
    }
    struct extremes *seen = l->extremes[(step + 1) % 2] + chunk;
    memset(seen, 0, sizeof *seen);
    for (int64_t block = 0; block < l->blocks; block++) run_part(l, step, chunk, block, seen);
}

static int find_room(struct layer *l) {
    const struct pumice_gates *p = l->p;
    const int64_t rows = round_up(l->r->batch, MOST_ROWS), copied = l->kernel->a_type != PUMICE_U8;
    const int64_t levels = round_up(rows * p->depth, 64), states = round_up(rows * (int64_t)sizeof *l->rows, 64);
    const int64_t extremes = l->cuts * (int64_t)sizeof(struct extremes), size = pumice_type_size(l->kernel->a_type);
    l->a_stride = p->depth * size;
    l->x_stride = l->r->projected ? 0 : l->r->input.weights->depth * size;
    const int64_t a = copied ? round_up(rows * l->a_stride, 64) : 0, x = round_up(rows * l->x_stride, 64);
    const int64_t bytes = levels + 2 * states + 2 * extremes + a + x;
    char *memory = pumice_scratch(SCRATCH_OTHER, (size_t)bytes);
    if (!memory) return PUMICE_NO_MEMORY;
    memset(memory, 0, (size_t)bytes);
    l->levels = (uint8_t *)memory, l->a = copied ? memory + levels : memory;
    memory += levels + a;
    l->x = x ? memory : NULL;
    memory += x;
    l->rows = (struct row *)(void *)memory, l->inputs = (struct row *)(void *)(memory + states);
    memory += 2 * states;
    for (int i = 0; i < 2; i++) l->extremes[i] = (struct extremes *)(void *)(memory + i * extremes);
    return PUMICE_OK;
}

/* The range of the first states, where those of later ones are put down. */
static void see_first(const struct layer *l) {
    float range[2];
    l->p->level->table.rows_range(l->r->h, l->r->batch * l->p->hidden, range);
    l->extremes[0]->low[0] = range[0] < 0 ? range[0] : 0;
    l->extremes[0]->high[0] = range[1] > 0 ? range[1] : 0;
}

static void cut_rows(struct layer *l, int team) {
    const int64_t batch = l->r->batch, most = l->kernel->rows;
    l->blocks = (batch + most - 1) / most;
    if (l->blocks < team) l->blocks = smaller(team, batch);
    l->block_rows = round_up((batch + l->blocks - 1) / l->blocks, larger(1, l->kernel->row_step));
    l->blocks = (batch + l->block_rows - 1) / l->block_rows;
}

enum cut { BY_ROWS, BY_UNITS };

/* How many threads; and how the work is cut. */
static int share_out(struct layer *l, int threads, enum cut *cut) {
    const struct pumice_gates *p = l->p;
    const int64_t each = p->panel_bytes + (l->r->projected ? 0 : l->r->input.weights->panel_bytes);
    const int64_t bytes = p->chunks * p->gates * each, macs = bytes * l->r->batch;
    int team = pumice_team(threads);
    cut_rows(l, team);
    *cut = BY_ROWS;
    if (team == 1 || macs * l->r->time < team * LEAST_APART) return 1;
    if (l->blocks >= team && bytes <= (int64_t)pumice_cache_bytes()) return team;
    team = (int)smaller(team, larger(macs / LEAST_MACS, bytes / LEAST_BYTES));
    if (team <= 1) return 1;
    *cut = BY_UNITS;
    return team;
}

static void run(const struct layer *l, int team, enum cut cut) {
    const int64_t time = l->r->time;
    const int alone = l->blocks == 1 || l->r->by_row;
    const struct pumice_phases work = {
        .phases = cut == BY_UNITS ? 2 * time : alone ? 1 : time,
        .chunks = cut == BY_UNITS ? l->p->chunks : l->blocks,
        .task = cut == BY_UNITS ? run_chunk : alone ? run_block : meet_at_steps,
        .context = (void *)l,
        .start = l->kernel->start,
        .finish = l->kernel->finish,
    };
    pumice_run_phases(team, &work);
}

int pumice_recurrent_u8(const struct pumice_recurrence_u8 *r, int threads) {
    const struct pumice_gates *p = r->recurrent;
    const struct pumice_gates *w = r->input.weights;
    if (r->time < 0 || r->batch < 1 || p->rows != p->hidden || (p->gates == MOST_GATES && !r->c)) return PUMICE_BAD_ARGUMENT;
    if (!r->projected && (!w || w->level != p->level || w->hidden != p->hidden || w->gates != p->gates))
        return PUMICE_BAD_ARGUMENT;
    const struct gemm_kernel *few = p->kernel->of_few;
    struct layer l = {.r = r, .p = p, .kernel = few && r->batch <= few->few_rows ? few : p->kernel,
                      .row = p->level->table.recurrent_row_u8()};
    enum cut cut;
    const int team = share_out(&l, threads, &cut);
    l.cuts = cut == BY_UNITS ? p->chunks : l.blocks;
    if (find_room(&l) != PUMICE_OK) return PUMICE_NO_MEMORY;
    see_first(&l);
    gemm_kernel_of(p->level, PUMICE_INTEGER); /* notes that it ran */
    pumice_note_run(p->level, p->gates == MOST_GATES ? SLOT_recurrent_lstm_u8 : SLOT_recurrent_gru_u8);
    run(&l, team, cut);
    return PUMICE_OK;
}
