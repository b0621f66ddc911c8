/* The gradient of an LSTM: its steps once more, with what they need kept, and back. */
#include <math.h>

#include "base/numbers.h"
#include "base/table.h"
#include "gemm/api.h"
#include "nhwc/api.h"
#include "pool/pool.h"
#include "recurrent/api.h"

static const int64_t CELLS = 4096; /* of a chunk: about 5 us */

/* Runs a task over rows of a batch, some at a time. */
struct cells {
    const struct level *level;
    int64_t batch, hidden, step;
    const float *given, *c;
    float *gates, *c_after, *h; /* going back, `h` is the gradient of c */
};

static void over_rows(struct cells *cells, pumice_task task, int threads) {
    cells->step = CELLS / cells->hidden + 1;
    pumice_parallel(threads, (cells->batch + cells->step - 1) / cells->step, task, cells);
}

/* out = rows times the weights + what is there in `added`, rows of `stride` elements. */
static int add_product(const struct pumice_packed *weights, const float *rows, int64_t batch, int64_t depth,
                       const float *added, float *out, int64_t stride, int threads) {
    const struct pumice_matrix a = {rows, PUMICE_F32, batch, depth, depth, 1};
    struct pumice_epilogue e = {.output = PUMICE_F32};
    if (added) {
        e.residual = added;
        e.residual_stride = stride;
        e.residual_type = PUMICE_F32;
        e.residual_scale = 1;
    }
    return pumice_gemm(weights, &a, 0, NULL, &e, out, stride, threads);
}

/* The same with split operands, rows side by side. */
static int add_split_product(const struct pumice_nhwc *weights, const float *rows, int64_t batch, int64_t depth,
                             const float *added, float *out, int threads) {
    const struct pumice_nhwc_epilogue e = {.function = -1, .low = -INFINITY, .high = INFINITY};
    const int64_t steps[] = {depth, 1, 0, 0};
    return pumice_nhwc_run(weights, batch, rows, steps, added, out, &e, threads);
}

/* The place in time of the step of this number. */
static int64_t time_of(const struct pumice_lstm_gradient *g, int64_t step) { return g->reverse ? g->time - 1 - step : step; }

static void traced_cells(void *context, int64_t chunk, int worker) {
    const struct cells *s = context;
    const int64_t hidden = s->hidden;
    for (int64_t i = chunk * s->step; i < smaller(s->batch, (chunk + 1) * s->step); i++)
        s->level->table.rows_lstm_trace(s->gates + i * 4 * hidden, s->c + i * hidden, s->c_after + i * hidden,
                                        s->h + i * hidden, hidden);
}

static void pulled_cells(void *context, int64_t chunk, int worker) {
    const struct cells *s = context;
    const int64_t hidden = s->hidden;
    for (int64_t i = chunk * s->step; i < smaller(s->batch, (chunk + 1) * s->step); i++)
        s->level->table.rows_lstm_gradient(s->gates + i * 4 * hidden, s->c + i * hidden, s->c_after + i * hidden,
                                           s->given + i * hidden, s->h + i * hidden, hidden);
}

static int trace(const struct pumice_lstm_gradient *g, const struct level *level, int threads) {
    const int64_t hidden = g->hidden, width = 4 * hidden, state = g->batch * hidden;
    for (int64_t step = 0; step < g->time; step++) {
        const int64_t t = time_of(g, step);
        float *gates = g->gates + t * g->batch * width, *h = g->states + step * state, *c = g->cells + step * state;
        const float *projected = g->projected + t * g->batch * width;
        const int status = g->split ? add_split_product(g->split, h, g->batch, hidden, projected, gates, threads)
                                    : add_product(g->recurrent, h, g->batch, hidden, projected, gates, width, threads);
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
        else if (!status) status = add_product(g->back, gates, g->batch, width, before, g->dh, hidden, threads);
    }
    return status;
}
