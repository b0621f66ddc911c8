/* LSTM and GRU layers. All steps of all directions are phases of one call of the pool:
 *
 *     a chunk: some units of a block of rows     product of the state with R, gate by gate, and the cell
 *     a phase: all units of all rows             a step, or half of one
 *
 * The state is kept as tiles read it, twice: chunks of a step read the one and write the other. A GRU that resets before
 * its product takes two phases a step: z and r, and then the candidate, which sees the reset state of all units.
 *
 * Rows need nothing of each other. Where there are blocks for all threads, and each thread's cache holds R, a block goes
 * through all phases by itself: no thread waits, and no state moves between caches. */
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "gemm/gemm.h"
#include "pool/pool.h"
#include "recurrent/weights.h"

enum { MOST_DIRECTIONS = 2, MOST_GATES = 4, MOST_ROWS = 32, MOST_UNITS = 32, CANDIDATE = 2, LINE_FLOATS = 16, AHEAD = 8 };
static const int64_t LEAST_BYTES = 256 << 10, LEAST_MACS = 1000000; /* of a thread's share of a phase: two us, which
                                                                      exchanging the states costs */

struct direction {
    const struct pumice_recurrence *r;
    const struct pumice_recurrent_weights *w;
    char *states[2]; /* before and after a step, in turns */
    char *reset;     /* the same of r h; a GRU's of two phases */
    float *z;        /* [batch][hidden], sums of that GRU's first phase */
};

struct layer {
    struct direction directions[MOST_DIRECTIONS];
    int64_t steps, phases; /* phases of a step */
    int64_t state_step; /* bytes of a row of `states` */
    int64_t blocks, block_rows;
};

/* --- a chunk ------------------------------------------------------------------------------------------------------ */

/* Some units of some rows at one step. */
struct part {
    const struct layer *layer;
    const struct direction *d;
    const struct kernel_table *table;
    int64_t t; /* in order of time */
    int64_t chunk, unit, units, row, rows;
    const char *before; /* of `states` */
    char *after;
    float *sums; /* a tile a gate */
};

static int64_t tile_size(const struct pumice_recurrent_weights *w) { return w->rows * w->units; }

/* Sums of gates [from, until). */
static void multiply(const struct part *p, const char *states, int from, int until) {
    const struct pumice_recurrent_weights *w = p->d->w;
    const int64_t step = p->layer->state_step;
    const char *a = states + p->row * step, *panel = w->panels + (p->chunk * w->gates + from) * w->panel_bytes;
    float *sums = p->sums + from * tile_size(w);
    if (w->product) {
        w->product->held((int)p->rows, a, step, w->depth / w->product->channel_step, panel, w->panel_bytes, until - from, sums);
        return;
    }
    const recurrent_row row = p->rows == 1 && until - from > 2 ? p->table->recurrent_row_f32() : NULL;
    if (row) {
        row(a, w->hidden, panel, w->panel_bytes, until - from, sums, tile_size(w) * (int64_t)sizeof *sums);
        return;
    }
    for (int gate = from; gate < until; gate++, panel += w->panel_bytes, sums += tile_size(w)) {
        w->plain->tile((int)p->rows, w->hidden, a, step, panel, sums, 0, (struct gemm_fetch){panel, 0});
    }
}

/* What tiles read of these units, from floats `from_step` apart. */
static void show(const struct part *p, char *states, const float *from, int64_t from_step) {
    const struct nhwc_product *product = p->d->w->product;
    const int64_t step = p->layer->state_step;
    char *to = states + p->row * step + p->unit * (int64_t)sizeof(float);
    if (product) {
        product->convert(to, step, from, from_step, p->rows, p->units);
        return;
    }
    for (int64_t i = 0; i < p->rows; i++) memcpy(to + i * step, from + i * from_step, (size_t)p->units * sizeof *from);
}

/* Sums of the input lie far apart and are read once: some rows ahead, past the second-level cache, which R fills. */
static void fetch_added(const struct part *p, int64_t i) {
    const int64_t hidden = p->d->w->hidden, gates = p->d->w->gates;
    if (i >= p->rows) return;
    const float *added = p->d->r->projected + (p->t * p->d->r->batch + p->row + i) * gates * hidden + p->unit;
    for (int64_t gate = 0; gate < gates; gate++, added += hidden)
        for (int64_t u = 0; u < p->units; u += LINE_FLOATS) __builtin_prefetch(added + u, 0, 0);
}

static struct rows_gates gates_of(const struct part *p, int64_t i) {
    const struct pumice_recurrence *r = p->d->r;
    const struct pumice_recurrent_weights *w = p->d->w;
    return (struct rows_gates){
        .sums = p->sums + i * w->units,
        .sums_step = tile_size(w),
        .added = r->projected + (p->t * r->batch + p->row + i) * w->gates * w->hidden + p->unit,
        .added_step = w->hidden,
        .peepholes = r->peepholes ? r->peepholes + p->unit : NULL,
        .peephole_step = w->hidden,
    };
}

static int is_over(const struct part *p, int64_t i) { return p->d->r->lengths && p->t >= p->d->r->lengths[p->row + i]; }

/* Where row i's units lie in an array [batch][hidden]. */
static int64_t place(const struct part *p, int64_t i) { return (p->row + i) * p->d->w->hidden + p->unit; }

/* The new states are the output, and what the next step reads. */
static void put_out(const struct part *p) {
    const struct pumice_recurrence *r = p->d->r;
    for (int64_t i = 0; i < p->rows; i++) {
        float *y = r->y + p->t * r->y_stride + place(p, i);
        if (is_over(p, i)) memset(y, 0, (size_t)p->units * sizeof *y);
        else memcpy(y, r->h + place(p, i), (size_t)p->units * sizeof *y);
    }
    show(p, p->after, r->h + place(p, 0), p->d->w->hidden);
}

static void run_lstm(const struct part *p) {
    multiply(p, p->before, 0, MOST_GATES);
    for (int64_t i = 0; i < p->rows; i++) {
        fetch_added(p, i + AHEAD);
        if (is_over(p, i)) continue;
        const struct rows_gates gates = gates_of(p, i);
        p->table->rows_lstm_cell(&gates, p->d->r->c + place(p, i), p->d->r->h + place(p, i), p->units);
    }
    put_out(p);
}

/* A GRU that resets after the product. */
static void run_gru(const struct part *p) {
    const struct pumice_recurrence *r = p->d->r;
    multiply(p, p->before, 0, CANDIDATE + 1);
    for (int64_t i = 0; i < p->rows; i++) {
        if (is_over(p, i)) continue;
        const struct rows_gates gates = gates_of(p, i);
        float *fed = p->sums + CANDIDATE * tile_size(p->d->w) + i * p->d->w->units;
        if (r->inner_bias) p->table->rows_binary(PUMICE_ADD, fed, 1, r->inner_bias + p->unit, 1, fed, p->units);
        p->table->rows_gru_reset(&gates, fed, fed, p->units);
        p->table->rows_gru_cell(&gates, gates.added + CANDIDATE * gates.added_step, fed, r->h + place(p, i), p->units);
    }
    put_out(p);
}

static void reset_gru(const struct part *p) {
    float *reset = p->sums + CANDIDATE * tile_size(p->d->w);
    const int64_t units = p->d->w->units;
    multiply(p, p->before, 0, CANDIDATE);
    for (int64_t i = 0; i < p->rows; i++) {
        const struct rows_gates gates = gates_of(p, i);
        memcpy(p->d->z + place(p, i), gates.sums, (size_t)p->units * sizeof *gates.sums);
        p->table->rows_gru_reset(&gates, p->d->r->h + place(p, i), reset + i * units, p->units);
    }
    show(p, p->d->reset, reset, units);
}

static void finish_gru(const struct part *p) {
    multiply(p, p->d->reset, CANDIDATE, CANDIDATE + 1);
    for (int64_t i = 0; i < p->rows; i++) {
        if (is_over(p, i)) continue;
        struct rows_gates gates = gates_of(p, i);
        const float *fed = gates.sums + CANDIDATE * gates.sums_step;
        gates.sums = p->d->z + place(p, i);
        p->table->rows_gru_cell(&gates, gates.added + CANDIDATE * gates.added_step, fed, p->d->r->h + place(p, i), p->units);
    }
    put_out(p);
}

static void run_part(const struct layer *layer, const struct direction *d, int64_t phase, int64_t chunk, int64_t block) {
    const int64_t step = phase / layer->phases;
    float sums[MOST_GATES * MOST_ROWS * MOST_UNITS] __attribute__((aligned(64)));
    struct part p = {.layer = layer, .d = d, .table = &d->w->level->table, .sums = sums, .chunk = chunk};
    p.t = d->r->reverse ? d->r->time - 1 - step : step;
    p.unit = chunk * d->w->units, p.units = smaller(d->w->units, d->w->hidden - p.unit);
    p.row = block * layer->block_rows, p.rows = smaller(layer->block_rows, d->r->batch - p.row);
    p.before = d->states[step % 2], p.after = d->states[(step + 1) % 2];
    if (phase % layer->phases == 0)
        for (int64_t i = 0; i < AHEAD; i++) fetch_added(&p, i);
    if (d->w->gates == MOST_GATES) run_lstm(&p);
    else if (layer->phases == 1) run_gru(&p);
    else (phase % layer->phases ? finish_gru : reset_gru)(&p);
}

static void run_chunk(void *context, int64_t phase, int64_t number) {
    const struct layer *layer = context;
    const int64_t chunks = layer->directions->w->chunks, each = chunks * layer->blocks;
    run_part(layer, layer->directions + number / each, phase, number % each / layer->blocks, number % layer->blocks);
}

static void run_block(void *context, int64_t only, int64_t number) {
    const struct layer *layer = context;
    const struct direction *d = layer->directions + number / layer->blocks;
    const int64_t chunks = d->w->chunks;
    for (int64_t phase = 0; phase < layer->steps * layer->phases; phase++)
        for (int64_t i = 0; i < chunks; i++)
            run_part(layer, d, phase, phase % 2 ? chunks - 1 - i : i, number % layer->blocks);
}

/* --- the layer ---------------------------------------------------------------------------------------------------- */

static int64_t weight_bytes(const struct layer *layer) {
    const struct pumice_recurrent_weights *w = layer->directions->w;
    return w->chunks * w->gates * w->panel_bytes;
}

/* Blocks of about equal size; those of split operands are halves of tiles where that gives every thread one. */
static void cut_rows(struct layer *layer, int count, int team) {
    const struct direction *d = layer->directions;
    const int64_t batch = d->r->batch, most = d->w->rows;
    layer->blocks = (batch + most - 1) / most;
    if (d->w->product) layer->block_rows = count * layer->blocks < team ? most / 2 : most;
    else layer->block_rows = (batch + layer->blocks - 1) / layer->blocks;
    layer->blocks = (batch + layer->block_rows - 1) / layer->block_rows;
}

/* Whether blocks are worth more than chunks. */
static int goes_apart(const struct layer *layer, int count, int team) {
    const int64_t macs = weight_bytes(layer) / (int64_t)sizeof(float) * layer->directions->r->batch * layer->steps;
    if (team == 1 && layer->blocks == 1) return 1;
    return count * layer->blocks >= team && (team == 1 || macs > team * LEAST_MACS) &&
           weight_bytes(layer) <= (int64_t)pumice_cache_bytes();
}

/* The first states as tiles read them. */
static void show_all(const struct layer *layer, const struct direction *d) {
    struct part p = {.layer = layer, .d = d, .rows = d->r->batch};
    for (int64_t chunk = 0; chunk < d->w->chunks; chunk++) {
        p.unit = chunk * d->w->units, p.units = smaller(d->w->units, d->w->hidden - p.unit);
        show(&p, d->states[0], d->r->h + p.unit, d->w->hidden);
    }
}

/* A tile of split operands reads all its rows, those that are none as zeros. */
static int find_room(struct layer *layer, int count) {
    const struct direction *first = layer->directions;
    const int64_t rows = round_up(first->r->batch, first->w->rows), hidden = first->w->hidden;
    layer->state_step = round_up(first->w->depth * (int64_t)sizeof(float), 64);
    const int64_t states = rows * layer->state_step, z = round_up(rows * hidden * (int64_t)sizeof(float), 64);
    char *memory = pumice_scratch(SCRATCH_ROWS, (size_t)(count * (3 * states + z)));
    if (!memory) return PUMICE_NO_MEMORY;
    memset(memory, 0, (size_t)(count * (3 * states + z)));
    for (int i = 0; i < count; i++, memory += 3 * states + z) {
        struct direction *d = layer->directions + i;
        d->states[0] = memory, d->states[1] = memory + states, d->reset = memory + 2 * states;
        d->z = (float *)(void *)(memory + 3 * states);
        show_all(layer, d);
    }
    return PUMICE_OK;
}

/* Of chunks that meet after every phase. */
static int team_of(const struct layer *layer, int count, int team) {
    const int64_t bytes = count * weight_bytes(layer) / layer->phases;
    const int64_t macs = layer->directions->r->batch * (bytes / (int64_t)sizeof(float));
    return (int)smaller(team, larger(1, larger(bytes / LEAST_BYTES, macs / LEAST_MACS)));
}

static int run(struct layer *layer, int count, int threads) {
    const struct direction *d = layer->directions;
    const struct nhwc_product *product = d->w->product;
    int team = pumice_team(threads);
    layer->steps = d->r->time, layer->phases = d->w->gates < MOST_GATES && !d->r->linear_before_reset ? 2 : 1;
    cut_rows(layer, count, team);
    const int status = find_room(layer, count);
    if (status != PUMICE_OK) return status;
    pumice_note_run(d->w->level, d->w->gates == MOST_GATES ? SLOT_rows_lstm_cell : SLOT_rows_gru_cell);
    const int apart = goes_apart(layer, count, team);
    if (!apart) team = team_of(layer, count, team);
    const struct pumice_phases work = {
        .phases = apart ? 1 : layer->steps * layer->phases,
        .chunks = count * layer->blocks * (apart ? 1 : d->w->chunks),
        .task = apart ? run_block : run_chunk,
        .context = layer,
        .start = product ? product->start : NULL,
        .finish = product ? product->finish : NULL,
    };
    pumice_run_phases(team, &work);
    return PUMICE_OK;
}

/* Operands that are infinite or nearly so cannot be split; later states are small, as the first ones are. */
static int splits(const struct pumice_recurrence *r) {
    float range[2];
    r->weights->level->table.rows_range(r->h, r->batch * r->weights->hidden, range);
    return range[0] > -1e38f && range[1] < 1e38f;
}

/* All directions again in float32. */
static int run_unsplit(struct layer *layer, int count, int threads) {
    int status = PUMICE_OK;
    struct pumice_recurrent_weights *plain[MOST_DIRECTIONS] = {NULL, NULL};
    for (int i = 0; i < count; i++) {
        layer->directions[i].w = plain[i] = recurrent_unsplit(layer->directions[i].w);
        if (!plain[i]) status = PUMICE_NO_MEMORY;
    }
    if (status == PUMICE_OK) status = run(layer, count, threads);
    for (int i = 0; i < count; i++) pumice_recurrent_free(plain[i]);
    return status;
}

int pumice_recurrent(const struct pumice_recurrence *directions, int count, int threads) {
    struct layer layer = {0};
    int split = 0;
    if (count < 1 || count > MOST_DIRECTIONS) return PUMICE_BAD_ARGUMENT;
    for (int i = 0; i < count; i++) {
        const struct pumice_recurrence *r = directions + i;
        if (r->time < 0 || r->batch < 1 || (r->weights->gates == MOST_GATES && !r->c)) return PUMICE_BAD_ARGUMENT;
        layer.directions[i] = (struct direction){.r = r, .w = r->weights};
        split |= r->weights->product && !splits(r);
    }
    return split ? run_unsplit(&layer, count, threads) : run(&layer, count, threads);
}
