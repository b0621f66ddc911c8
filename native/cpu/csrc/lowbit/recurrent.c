/* LSTM and GRU layers over 8-bit weights. At every step the hidden state becomes levels, integer tiles multiply it with
 * R, and while the sums are in the first-level cache the gates and the cell follow in real numbers.
 *
 * R's columns are dealt anew, so that a chunk has all gates of UNITS units:
 *
 *     column (chunk, gate, unit) <- gate * hidden + chunk * UNITS + unit
 *
 * The sums use the integer tile kernels of matrix products, and their panels. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "base/table.h"
#include "gemm/pack.h"
#include "lowbit/api.h"
#include "lowbit/dynamic.h"
#include "pool/pool.h"

enum { UNITS = 32, MOST_GATES = 4, MOST_ROWS = 32, SIGNED_ZERO = 128, RESET = 1, CANDIDATE = 2, FED = 3 };
static const double LEAST_MACS = 2e6, LEAST_BYTES = 256 << 10; /* of a thread's share of a step: about 20 us */

struct pumice_gates {
    const struct level *level;
    const struct gemm_kernel *kernel;
    int gates, flip; /* flip: what packing took off u8 weights */
    int64_t hidden, chunks, panels, panel_bytes; /* panels: of a chunk */
    char *data;
    int32_t *sums, *zeros; /* by column, as dealt; zeros may be NULL */
    float *scale;
};

/* --- packing ------------------------------------------------------------------------------------------------------ */

static int64_t columns_of(const struct pumice_gates *p) { return p->chunks * p->gates * UNITS; }

/* The column of R that a dealt one comes from, or -1. */
static int64_t source(const struct pumice_gates *p, int64_t column) {
    const int64_t unit = column / (p->gates * UNITS) * UNITS + column % UNITS, gate = column / UNITS % p->gates;
    return unit < p->hidden ? gate * p->hidden + unit : -1;
}

static void deal_columns(const struct pumice_gates *p, const struct pumice_matrix *r, uint8_t *dealt) {
    const uint8_t *from = r->data;
    const int64_t columns = columns_of(p);
    for (int64_t c = 0; c < columns; c++) {
        const int64_t n = source(p, c);
        for (int64_t k = 0; k < p->hidden; k++)
            dealt[k * columns + c] = n < 0 ? 0 : from[k * r->row_stride + n * r->column_stride];
    }
}

static void deal_parameters(struct pumice_gates *p, const float *scale, int scale_step, const int32_t *zero) {
    int any = 0;
    for (int64_t c = 0; c < columns_of(p); c++) {
        const int64_t n = source(p, c);
        p->scale[c] = n < 0 ? 0 : scale[n * scale_step];
        p->zeros[c] = n < 0 ? 0 : (zero ? zero[n] : 0) - p->flip;
        any |= p->zeros[c] != 0;
    }
    if (!any) p->zeros = NULL;
}

/* Places everything in one allocation, its address in `data`. */
static int place(struct pumice_gates *p) {
    const int64_t weights = round_up(p->chunks * p->panels * p->panel_bytes, 64), each = round_up(columns_of(p) * 4, 64);
    char *memory = pumice_alloc((size_t)(weights + 3 * each));
    p->data = memory;
    if (!memory) return PUMICE_NO_MEMORY;
    p->sums = (int32_t *)(memory + weights);
    p->zeros = (int32_t *)(memory + weights + each);
    p->scale = (float *)(memory + weights + 2 * each);
    return PUMICE_OK;
}

int pumice_gates_pack(struct pumice_gates **packed, const struct pumice_matrix *r, int gates, const float *scale,
                      int scale_step, const int32_t *zero) {
    *packed = NULL;
    if (gates < 3 || gates > MOST_GATES || r->rows < 1 || r->columns != gates * r->rows) return PUMICE_BAD_ARGUMENT;
    if (r->type != PUMICE_S8 && r->type != PUMICE_U8) return PUMICE_BAD_ARGUMENT;
    struct pumice_gates *p = calloc(1, sizeof *p);
    if (!p) return PUMICE_NO_MEMORY;
    p->level = pumice_level(), p->kernel = gemm_kernel_of(p->level, PUMICE_INTEGER);
    p->gates = gates, p->hidden = r->rows, p->chunks = (r->rows + UNITS - 1) / UNITS;
    p->flip = r->type == PUMICE_U8 ? 128 : 0;
    p->panels = gates * UNITS / p->kernel->columns, p->panel_bytes = gemm_panel_bytes(p->kernel, r->rows);
    uint8_t *dealt = pumice_alloc((size_t)(p->hidden * columns_of(p)));
    if (!dealt || place(p) != PUMICE_OK) {
        pumice_free(dealt);
        pumice_gates_free(p);
        return PUMICE_NO_MEMORY;
    }
    deal_columns(p, r, dealt);
    deal_parameters(p, scale, scale_step, zero);
    const struct pumice_matrix b = {dealt, r->type, p->hidden, columns_of(p), columns_of(p), 1};
    for (int64_t i = 0; i < p->chunks * p->panels; i++)
        gemm_pack_panel(p->kernel, &b, i, p->data + i * p->panel_bytes, p->sums + i * p->kernel->columns);
    pumice_free(dealt);
    *packed = p;
    return PUMICE_OK;
}

void pumice_gates_free(struct pumice_gates *packed) {
    if (packed) pumice_free(packed->data);
    free(packed);
}

int64_t pumice_gates_bytes(const struct pumice_gates *packed) {
    return packed->chunks * packed->panels * packed->panel_bytes + 3 * columns_of(packed) * (int64_t)sizeof(int32_t);
}

/* --- one step ----------------------------------------------------------------------------------------------------- */

struct layer {
    const struct pumice_recurrence_u8 *r;
    const struct pumice_gates *p;
    const struct gemm_kernel *kernel; /* the one that packed, or the one of few rows */
    uint8_t *levels;                  /* [batch][hidden] */
    char *a;                          /* the levels as the kernel reads them */
    int64_t a_stride;
    struct lowbit_state *rows;
    int64_t t;
};

/* Sums of a chunk's gates: for an LSTM i, o, f, c; for a GRU z, r, the candidate's input, and what it is fed. */
typedef float chunk_gates[MOST_GATES][UNITS];

/* One panel of a chunk: columns that belong to one gate. */
static void finish_panel(const struct layer *l, int64_t chunk, int64_t panel, const int32_t *sums, int64_t m, int rows,
                         chunk_gates *gates) {
    const struct pumice_gates *p = l->p;
    const int64_t columns = p->kernel->columns, within = panel * columns, first = chunk * p->gates * UNITS + within;
    const int64_t gate = within / UNITS, unit = within % UNITS, from = chunk * UNITS + unit;
    const int64_t live = smaller(columns, p->hidden - from), width = p->gates * p->hidden;
    const int apart = p->gates == 3 && gate == CANDIDATE;
    const struct lowbit_columns of = {p->sums + first, p->zeros ? p->zeros + first : NULL, p->scale + first};
    if (live <= 0) return;
    for (int row = 0; row < rows; row++) {
        const float *projected = l->r->projected + (l->t * l->r->batch + m + row) * width + gate * p->hidden + from;
        const float *inner = l->r->inner_bias ? l->r->inner_bias + from : NULL;
        float *to = gates[row][apart ? FED : gate] + unit;
        p->level->table.lowbit_gates(sums + row * columns, &of, l->rows + m + row, apart ? inner : projected, to, live);
        if (apart) memcpy(gates[row][CANDIDATE] + unit, projected, (size_t)live * sizeof *projected);
    }
}

/* The new state of some units of a row, and the output. */
static void finish_row(const struct layer *l, int64_t chunk, int64_t row, chunk_gates *gates) {
    const struct kernel_table *table = &l->p->level->table;
    const int64_t unit = chunk * UNITS, live = smaller(UNITS, l->p->hidden - unit), at = row * l->p->hidden + unit;
    float *h = l->r->h + at, *y = l->r->y + l->t * l->r->y_stride + at;
    if (l->r->lengths && l->t >= l->r->lengths[row]) {
        memset(y, 0, (size_t)live * sizeof *y);
        return;
    }
    const struct rows_gates sums = {.sums = (*gates)[0], .sums_step = UNITS,
                                    .peepholes = l->r->peepholes ? l->r->peepholes + unit : NULL, .peephole_step = l->p->hidden};
    if (l->p->gates == MOST_GATES) {
        table->rows_lstm_cell(&sums, l->r->c + at, h, live);
    } else {
        table->rows_gru_reset(&sums, (*gates)[FED], (*gates)[FED], live);
        table->rows_gru_cell(&sums, (*gates)[CANDIDATE], (*gates)[FED], h, live);
    }
    memcpy(y, h, (size_t)live * sizeof *h);
}

static void run_chunk(void *context, int64_t chunk, int worker) {
    const struct layer *l = context;
    const struct gemm_kernel *kernel = l->kernel;
    const struct pumice_gates *p = l->p;
    int32_t sums[MOST_ROWS * UNITS] __attribute__((aligned(64)));
    chunk_gates gates[MOST_ROWS] __attribute__((aligned(64)));
    if (kernel->start) kernel->start();
    for (int64_t m = 0; m < l->r->batch; m += kernel->rows) {
        const int rows = (int)smaller(kernel->rows, l->r->batch - m);
        const int padded = (int)round_up(rows, larger(1, kernel->row_step));
        for (int64_t panel = 0; panel < p->panels; panel++) {
            const char *weights = p->data + (chunk * p->panels + panel) * p->panel_bytes;
            const struct gemm_fetch fetch = {weights + p->panel_bytes, kernel->columns * kernel->group};
            kernel->tile(padded, p->hidden, l->a + m * l->a_stride, l->a_stride, weights, sums, 0, fetch);
            finish_panel(l, chunk, panel, sums, m, rows, gates);
        }
        for (int row = 0; row < rows; row++) finish_row(l, chunk, m + row, gates + row);
    }
    if (kernel->finish) kernel->finish();
}

static int32_t sum_of_levels(const uint8_t *levels, int64_t count, int32_t zero) {
    int64_t sum = -zero * count;
    for (int64_t i = 0; i < count; i++) sum += levels[i];
    return (int32_t)sum;
}

static void quantize_state(const struct layer *l) {
    const struct pumice_gates *p = l->p;
    const int64_t hidden = p->hidden, batch = l->r->batch;
    const int shift = gemm_shift_of_a(p->kernel, PUMICE_U8);
    struct rows_quantization q = {.zero = SIGNED_ZERO};
    if (!l->r->by_row) {
        float range[2];
        p->level->table.rows_range(l->r->h, batch * hidden, range);
        q = dynamic_quantization(range);
        p->level->table.rows_quantize(l->r->h, l->levels, batch * hidden, &q);
    }
    for (int64_t row = 0; row < batch; row++) {
        uint8_t *levels = l->levels + row * hidden;
        if (l->r->by_row) {
            q.scale = p->level->table.lowbit_quantize_row((int8_t *)levels, l->r->h + row * hidden, hidden, hidden);
            for (int64_t i = 0; i < hidden; i++) levels[i] ^= SIGNED_ZERO;
        }
        l->rows[row] = (struct lowbit_state){q.scale, q.zero + shift, 0};
        if (p->zeros) l->rows[row].sum = sum_of_levels(levels, hidden, q.zero);
    }
    if (l->kernel->a_type == PUMICE_U8) return;
    const struct pumice_matrix levels = {l->levels, PUMICE_U8, batch, hidden, hidden, 1};
    gemm_pack_rows(l->kernel, &levels, 0, batch, 0, hidden, l->a, l->a_stride);
}

/* --- the layer ---------------------------------------------------------------------------------------------------- */

static int find_room(struct layer *l) {
    const struct pumice_gates *p = l->p;
    const int64_t rows = round_up(l->r->batch, MOST_ROWS), copied = l->kernel->a_type != PUMICE_U8;
    const int64_t levels = round_up(rows * p->hidden, 64), states = round_up(rows * (int64_t)sizeof *l->rows, 64);
    l->a_stride = copied ? round_up(p->hidden, l->kernel->k_align) * pumice_type_size(l->kernel->a_type) : p->hidden;
    const int64_t bytes = levels + states + (copied ? rows * l->a_stride : 0);
    char *memory = pumice_scratch(SCRATCH_OTHER, (size_t)bytes);
    if (!memory) return PUMICE_NO_MEMORY;
    memset(memory, 0, (size_t)bytes);
    l->levels = (uint8_t *)memory, l->rows = (struct lowbit_state *)(memory + levels);
    l->a = copied ? memory + levels + states : memory;
    return PUMICE_OK;
}

static int team_of(const struct layer *l, int threads) {
    const double bytes = (double)(l->p->chunks * l->p->panels * l->p->panel_bytes), macs = bytes * (double)l->r->batch;
    return macs < 3 * LEAST_MACS && bytes < 3 * LEAST_BYTES ? 1 : threads;
}

int pumice_recurrent_u8(const struct pumice_recurrence_u8 *r, int threads) {
    const struct pumice_gates *p = r->recurrent;
    if (r->time < 0 || r->batch < 1 || (p->gates == MOST_GATES && !r->c)) return PUMICE_BAD_ARGUMENT;
    const struct gemm_kernel *few = p->kernel->of_few;
    struct layer l = {.r = r, .p = p, .kernel = few && r->batch <= few->few_rows ? few : p->kernel};
    const int status = find_room(&l), team = team_of(&l, threads);
    gemm_kernel_of(p->level, PUMICE_INTEGER); /* notes that it ran */
    pumice_note_run(p->level, SLOT_lowbit_gates);
    for (int64_t i = 0; status == PUMICE_OK && i < r->time; i++) {
        l.t = r->reverse ? r->time - 1 - i : i;
        quantize_state(&l);
        pumice_parallel(team, p->chunks, run_chunk, &l);
    }
    return status;
}
