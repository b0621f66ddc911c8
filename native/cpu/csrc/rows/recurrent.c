/* LSTM and GRU layers: one product of the state with R a step, its sums added to the step's projected input, then the
 * cell. The loop over time is here, so that a layer is one call. */
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "base/table.h"
#include "gemm/api.h"
#include "rows/api.h"

/* out = state R^T + what is there in `added`, rows of `stride` elements. */
static int add_product(const struct pumice_packed *weights, const float *state, int64_t batch, int64_t hidden,
                       const float *added, float *out, int64_t stride, const float *bias, int threads) {
    const struct pumice_matrix a = {state, PUMICE_F32, batch, hidden, hidden, 1};
    struct pumice_epilogue e = {.output = PUMICE_F32, .bias = bias};
    if (added) {
        e.residual = added;
        e.residual_stride = stride;
        e.residual_type = PUMICE_F32;
        e.residual_scale = 1;
    }
    return pumice_gemm(weights, &a, 0, NULL, &e, out, stride, threads);
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
    const int status = add_product(l->recurrent, l->h, l->batch, l->hidden, l->projected + t * l->batch * width, b->sums, width, NULL, threads);
    for (int64_t i = 0; !status && i < l->batch; i++)
        level->table.rows_lstm_cell(b->sums + i * width, l->peepholes, l->c + i * l->hidden, l->h + i * l->hidden, l->hidden);
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
