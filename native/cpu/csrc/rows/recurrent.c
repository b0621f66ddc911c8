/* LSTM and GRU layers: one product of the state with R a step, its sums added to the step's projected input, then the
 * cell. The loop over time is here, so that a layer is one call. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "base/table.h"
#include "gemm/api.h"
#include "nhwc/api.h"
#include "pool/pool.h"
#include "rows/api.h"

static const int64_t CELLS = 4096; /* of a chunk: about 5 us */

/* Runs a task over rows of a batch, some at a time. */
struct cells {
    const struct level *level;
    int64_t batch, hidden, step;
    const float *peepholes, *given, *c;
    float *gates, *c_after, *h; /* going back, `h` is the gradient of c */
};

static void over_rows(struct cells *cells, pumice_task task, int threads) {
    cells->step = CELLS / cells->hidden + 1;
    pumice_parallel(threads, (cells->batch + cells->step - 1) / cells->step, task, cells);
}

static void lstm_cells(void *context, int64_t chunk, int worker) {
    const struct cells *s = context;
    const int64_t hidden = s->hidden;
    for (int64_t i = chunk * s->step; i < smaller(s->batch, (chunk + 1) * s->step); i++)
        s->level->table.rows_lstm_cell(s->gates + i * 4 * hidden, s->peepholes, s->c_after + i * hidden, s->h + i * hidden, hidden);
}

/* out = rows times the weights + what is there in `added`, rows of `stride` elements. */
static int add_product(const struct pumice_packed *weights, const float *rows, int64_t batch, int64_t depth,
                       const float *added, float *out, int64_t stride, const float *bias, int threads) {
    const struct pumice_matrix a = {rows, PUMICE_F32, batch, depth, depth, 1};
    struct pumice_epilogue e = {.output = PUMICE_F32, .bias = bias};
    if (added) {
        e.residual = added;
        e.residual_stride = stride;
        e.residual_type = PUMICE_F32;
        e.residual_scale = 1;
    }
    return pumice_gemm(weights, &a, 0, NULL, &e, out, stride, threads);
}

/* The same with split operands, rows side by side. */
static int add_split_product(const struct pumice_nhwc *weights, const float *rows, int64_t batch, int64_t depth, const float *added,
                             float *out, int threads) {
    const struct pumice_nhwc_epilogue e = {.function = -1, .low = -INFINITY, .high = INFINITY};
    const int64_t steps[] = {depth, 1, 0, 0};
    return pumice_nhwc_run(weights, batch, rows, steps, added, out, &e, threads);
}

/* Buffers of one layer. */
struct buffers {
    float *sums;  /* [batch][gates * hidden] */
    float *fed;   /* [batch][hidden]: what the candidate of a GRU is fed */
    float *reset; /* [batch][hidden] */
    float *old;   /* [2][batch][hidden]: states before the step, for rows that are over */
};

static int lstm_step(const struct pumice_recurrence *l, const struct level *level, const struct buffers *b, int64_t t, int threads) {
    const int64_t width = 4 * l->hidden;
    const float *projected = l->projected + t * l->batch * width;
    const int status = l->split ? add_split_product(l->split, l->h, l->batch, l->hidden, projected, b->sums, threads)
                                : add_product(l->recurrent, l->h, l->batch, l->hidden, projected, b->sums, width, NULL, threads);
    struct cells cells = {.level = level, .batch = l->batch, .hidden = l->hidden, .peepholes = l->peepholes, .gates = b->sums,
                          .c_after = l->c, .h = l->h};
    if (!status) over_rows(&cells, lstm_cells, threads);
    return status;
}

/* The candidate's sums stay apart from those of z and r: with linear_before_reset they are reset after the product. */
static int gru_step(const struct pumice_recurrence *l, const struct level *level, const struct buffers *b, int64_t t, int threads) {
    const int64_t width = 3 * l->hidden, hidden = l->hidden;
    float *projected = l->projected + t * l->batch * width;
    int status;
    if (l->linear_before_reset) {
        status = add_product(l->candidate, l->h, l->batch, hidden, NULL, b->reset, hidden, l->inner_bias, threads);
        if (!status) status = add_product(l->recurrent, l->h, l->batch, hidden, projected, b->sums, width, NULL, threads);
        for (int64_t i = 0; !status && i < l->batch; i++)
            level->table.rows_gru_reset(b->sums + i * width, b->reset + i * hidden, b->fed + i * hidden, hidden);
    } else {
        status = add_product(l->recurrent, l->h, l->batch, hidden, projected, b->sums, width, NULL, threads);
        for (int64_t i = 0; !status && i < l->batch; i++)
            level->table.rows_gru_reset(b->sums + i * width, l->h + i * hidden, b->reset + i * hidden, hidden);
        if (!status) status = add_product(l->candidate, b->reset, l->batch, hidden, NULL, b->fed, hidden, NULL, threads);
    }
    for (int64_t i = 0; !status && i < l->batch; i++) {
        float *sums = b->sums + i * width; /* the products gave z and r only */
        memcpy(sums + 2 * hidden, projected + i * width + 2 * hidden, (size_t)hidden * sizeof *sums);
        level->table.rows_gru_cell(sums, b->fed + i * hidden, l->h + i * hidden, hidden);
    }
    return status;
}

/* Rows whose sequence is over keep their state, and give zeros. */
static void restore(const struct pumice_recurrence *l, const struct buffers *b, int64_t t, float *y) {
    const int64_t hidden = l->hidden;
    for (int64_t i = 0; i < l->batch; i++) {
        if (t < l->lengths[i]) continue;
        memcpy(l->h + i * hidden, b->old + i * hidden, (size_t)hidden * sizeof(float));
        if (!l->gru) memcpy(l->c + i * hidden, b->old + (l->batch + i) * hidden, (size_t)hidden * sizeof(float));
        memset(y + i * hidden, 0, (size_t)hidden * sizeof(float));
    }
}

int pumice_recurrent(const struct pumice_recurrence *l, int threads) {
    if (l->time < 0 || l->batch < 1 || l->hidden < 1) return PUMICE_BAD_ARGUMENT;
    const struct level *level = pumice_level();
    const int64_t state = l->batch * l->hidden, gates = l->gru ? 3 : 4;
    float *memory = pumice_scratch(SCRATCH_ROWS, (size_t)(state * (gates + 4)) * sizeof *memory);
    if (!memory) return PUMICE_NO_MEMORY;
    const struct buffers b = {memory, memory + gates * state, memory + (gates + 1) * state, memory + (gates + 2) * state};
    pumice_note_run(level, l->gru ? SLOT_rows_gru_cell : SLOT_rows_lstm_cell);
    for (int64_t i = 0; i < l->time; i++) {
        const int64_t t = l->reverse ? l->time - 1 - i : i;
        float *y = l->y + t * l->y_stride;
        if (l->lengths) memcpy(b.old, l->h, (size_t)state * sizeof(float));
        if (l->lengths && !l->gru) memcpy(b.old + state, l->c, (size_t)state * sizeof(float));
        const int status = l->gru ? gru_step(l, level, &b, t, threads) : lstm_step(l, level, &b, t, threads);
        if (status) return status;
        memcpy(y, l->h, (size_t)state * sizeof *y);
        if (l->lengths) restore(l, &b, t, y);
    }
    return PUMICE_OK;
}

/* --- gradient ----------------------------------------------------------------------------------------------------- */

/* The place in time of the step of this number. */
static int64_t time_of(const struct pumice_lstm_gradient *g, int64_t step) { return g->reverse ? g->time - 1 - step : step; }

static void traced_cells(void *context, int64_t chunk, int worker) {
    const struct cells *s = context;
    const int64_t hidden = s->hidden;
    for (int64_t i = chunk * s->step; i < smaller(s->batch, (chunk + 1) * s->step); i++)
        s->level->table.rows_lstm_trace(s->gates + i * 4 * hidden, s->c + i * hidden, s->c_after + i * hidden, s->h + i * hidden, hidden);
}

static void pulled_cells(void *context, int64_t chunk, int worker) {
    const struct cells *s = context;
    const int64_t hidden = s->hidden;
    for (int64_t i = chunk * s->step; i < smaller(s->batch, (chunk + 1) * s->step); i++)
        s->level->table.rows_lstm_gradient(s->gates + i * 4 * hidden, s->c + i * hidden, s->c_after + i * hidden, s->given + i * hidden,
                                           s->h + i * hidden, hidden);
}

static int trace(const struct pumice_lstm_gradient *g, const struct level *level, int threads) {
    const int64_t hidden = g->hidden, width = 4 * hidden, state = g->batch * hidden;
    for (int64_t step = 0; step < g->time; step++) {
        const int64_t t = time_of(g, step);
        float *gates = g->gates + t * g->batch * width, *h = g->states + step * state, *c = g->cells + step * state;
        const float *projected = g->projected + t * g->batch * width;
        const int status = g->split ? add_split_product(g->split, h, g->batch, hidden, projected, gates, threads)
                                    : add_product(g->recurrent, h, g->batch, hidden, projected, gates, width, NULL, threads);
        if (status) return status;
        struct cells cells = {.level = level, .batch = g->batch, .hidden = hidden, .gates = gates, .c = c, .c_after = c + state,
                              .h = h + state};
        over_rows(&cells, traced_cells, threads);
    }
    return PUMICE_OK;
}

int pumice_lstm_gradient(const struct pumice_lstm_gradient *g, int threads) {
    if (g->time < 1 || g->batch < 1 || g->hidden < 1) return PUMICE_BAD_ARGUMENT;
    const struct level *level = pumice_level();
    const int64_t hidden = g->hidden, width = 4 * hidden, state = g->batch * hidden;
    pumice_note_run(level, SLOT_rows_lstm_gradient);
    int status = trace(g, level, threads);
    const float *last = g->dy + time_of(g, g->time - 1) * g->dy_stride;
    level->table.rows_binary(PUMICE_ADD, g->dh, 1, last, 1, g->dh, state);
    for (int64_t step = g->time - 1; !status && step >= 0; step--) {
        float *gates = g->gates + time_of(g, step) * g->batch * width;
        float *c = g->cells + step * state;
        struct cells cells = {.level = level, .batch = g->batch, .hidden = hidden, .given = g->dh, .c = c, .gates = gates,
                              .c_after = c + state, .h = g->dc};
        over_rows(&cells, pulled_cells, threads);
        const float *before = step ? g->dy + time_of(g, step - 1) * g->dy_stride : NULL; /* what arrives there anyway */
        if (!status && g->split_back) status = add_split_product(g->split_back, gates, g->batch, width, before, g->dh, threads);
        else if (!status) status = add_product(g->back, gates, g->batch, width, before, g->dh, hidden, NULL, threads);
    }
    return status;
}
