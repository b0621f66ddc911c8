/* An LSTM over 8-bit weights: at every step the hidden state becomes levels, the integer product with R is added to the
 * step's projected input, and the cell follows in real numbers.
 *
 * The state's scale is either that of its own range (ONNX Runtime's DynamicQuantizeLSTM), or fixed: |h| <= 1, so that
 * 1/127 always fits; the zero point 128 is then accounted for in the projected input, and no step looks for a range. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/numbers.h"
#include "base/table.h"
#include "runtime/steps.h"

enum { FIXED_ZERO = 128 };

struct room {
    float *sums, *row_scale;
    uint8_t *levels;
};

static int find_room(const struct pumice_lstm_u8_step *a, struct room *room) {
    const int64_t sums = a->batch * 4 * a->hidden * (int64_t)sizeof(float), scales = round_up(a->batch * (int64_t)sizeof(float), 64);
    char *memory = pumice_scratch(SCRATCH_OTHER, (size_t)(sums + scales + a->batch * a->hidden));
    if (!memory) return 0;
    *room = (struct room){(float *)memory, (float *)(memory + sums), (uint8_t *)memory + sums + scales};
    return 1;
}

static struct rows_quantization quantization_of(const struct level *level, const struct pumice_lstm_u8_step *a, const float *h) {
    struct rows_quantization q = {1.0f / 127, FIXED_ZERO, 0, 255};
    if (a->fixed) return q;
    float range[2];
    level->table.rows_range(h, a->batch * a->hidden, range);
    const float low = fminf(range[0], 0), high = fmaxf(range[1], 0);
    q.scale = high > low ? (high - low) / 255 : 1;
    q.zero = (int32_t)fminf(fmaxf(rintf(-low / q.scale), 0), 255);
    return q;
}

static int add_product(const struct pumice_lstm_u8_step *a, const struct room *room, const struct rows_quantization *q,
                       const float *projected, int threads) {
    const int64_t width = 4 * a->hidden;
    const struct pumice_matrix state = {room->levels, PUMICE_U8, a->batch, a->hidden, a->hidden, 1};
    for (int64_t i = 0; i < a->batch; i++) room->row_scale[i] = q->scale;
    const struct pumice_epilogue epilogue = {
        .output = PUMICE_F32, .scale = a->scale, .scale_step = a->scale_step, .row_scale = room->row_scale,
        .residual = projected, .residual_stride = width, .residual_type = PUMICE_F32, .residual_scale = 1,
    };
    return pumice_gemm(a->recurrent, &state, a->fixed ? 0 : q->zero, a->zero, &epilogue, room->sums, width, threads);
}

STEP_FUNCTION(lstm_u8, pumice_lstm_u8_step) {
    const struct level *level = pumice_level();
    const int64_t hidden = a->hidden, state = a->batch * hidden;
    float *y = operands[0], *h = operands[2], *c = operands[3];
    struct room room;
    if (!find_room(a, &room)) return PUMICE_NO_MEMORY;
    for (int64_t i = 0; i < a->time; i++) {
        const int64_t t = a->reverse ? a->time - 1 - i : i;
        const struct rows_quantization q = quantization_of(level, a, h);
        level->table.rows_quantize(h, room.levels, state, &q);
        const int status = add_product(a, &room, &q, (const float *)operands[1] + t * 4 * state, threads);
        if (status) return status;
        for (int64_t row = 0; row < a->batch; row++)
            level->table.rows_lstm_cell(room.sums + row * 4 * hidden, a->peepholes, c + row * hidden, h + row * hidden, hidden);
        memcpy(y + t * a->y_stride, h, (size_t)state * sizeof *h);
    }
    return PUMICE_OK;
}
