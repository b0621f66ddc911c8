/* Recurrent layers over 8-bit weights: cells are scalar's at every level, one step is what its formula says, cuts by rows and
 * by units agree, and nothing beyond the operands is touched. */
#include <math.h>
#include <string.h>

#include "base/table.h"
#include "check.h"
#include "gemm/api.h"
#include "recurrent/api.h"

static float *floats(int count) {
    float *memory = room((size_t)count * sizeof *memory);
    for (int i = 0; i < count; i++) memory[i] = draw_float();
    return memory;
}

static int32_t *integers(int count, int bits) {
    int32_t *memory = room((size_t)count * sizeof *memory);
    for (int i = 0; i < count; i++) memory[i] = (int32_t)draw() >> (32 - bits);
    return memory;
}

/* One cell at the level in force: h, c and y, the least and the greatest h, each of `units` places. */
static float *cell_of(int gates, int count, int units, const struct recurrent_sums *sums, const float *before,
                      const float *extra) {
    float *out = room((size_t)(5 * units) * sizeof *out);
    memset(out, 0, (size_t)(5 * units) * sizeof *out);
    memcpy(out, before, (size_t)(2 * units) * sizeof *out);
    const struct recurrent_units at = {.h = out, .c = out + units, .y = out + 2 * units, .extra = extra, .extra_step = units,
                                       .low = out + 3 * units, .high = out + 4 * units};
    const struct kernel_table *table = &pumice_level()->table;
    (gates == 4 ? table->recurrent_lstm_u8 : table->recurrent_gru_u8)(sums, &at, count);
    return out;
}

/* Against scalar; what lies beyond `count` is left alone. */
static void test_cell(const char *level, int gates, int count, int with_zeros, int with_extra) {
    enum { UNITS = RECURRENT_UNITS, MOST = 4 * UNITS };
    int32_t *sums = integers(MOST, 20);
    float *columns = floats(MOST), *zeros = floats(MOST), *scale = floats(MOST), *added = floats(MOST), *extra = floats(MOST);
    float *before = floats(2 * UNITS);
    for (int i = 0; i < MOST; i++) columns[i] = rintf(columns[i] * 4000), zeros[i] = rintf(zeros[i] * 9);
    const struct recurrent_sums of = {.sums = sums, .columns = columns, .zeros = with_zeros ? zeros : NULL, .scale = scale,
                                      .sums_step = UNITS, .units = UNITS, .row_scale = 1e-5f, .zero = 201, .sum = -1234,
                                      .added = added, .added_step = UNITS};
    float *found = cell_of(gates, count, UNITS, &of, before, with_extra ? extra : NULL);
    pumice_use_level("scalar");
    float *truth = cell_of(gates, count, UNITS, &of, before, with_extra ? extra : NULL);
    pumice_use_level(level);
    for (int i = 0; i < 5 * UNITS; i++)
        CHECK(fabsf(found[i] - truth[i]) <= 2e-6f, "%s, %d gates, %d units, place %d: %g, not %g", level, gates, count, i,
              (double)found[i], (double)truth[i]);
    free(sums), free(columns), free(zeros), free(scale), free(added), free(extra), free(before), free(found), free(truth);
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* The sum of a gate over a row of levels (h / scale, rounded). */
static double gate_of(const int8_t *r, const float *h, const float *scale, int width, int hidden, int column) {
    float most = 0;
    for (int k = 0; k < hidden; k++) most = fmaxf(most, fabsf(h[k]));
    double sum = 0;
    for (int k = 0; k < hidden; k++) sum += rintf(h[k] * (127 / most)) * r[k * width + column];
    return sum * scale[column] * (most / 127);
}

static void test_step(const char *level, int hidden, int batch, int threads) {
    const int width = 4 * hidden;
    int8_t *r = room((size_t)(hidden * width));
    for (int i = 0; i < hidden * width; i++) r[i] = (int8_t)draw();
    float *scale = floats(width), *projected = floats(batch * width), *h = floats(batch * hidden), *c = floats(batch * hidden);
    float *y = room((size_t)(batch * hidden) * sizeof *y), *before = room((size_t)(2 * batch * hidden) * sizeof *before);
    for (int i = 0; i < width; i++) scale[i] = fabsf(scale[i]) / 128;
    memcpy(before, h, (size_t)(batch * hidden) * sizeof *h);
    memcpy(before + batch * hidden, c, (size_t)(batch * hidden) * sizeof *c);
    const struct pumice_matrix matrix = {r, PUMICE_S8, hidden, width, width, 1};
    struct pumice_gates *packed;
    CHECK(pumice_gates_pack(&packed, &matrix, 4, scale, 1, NULL) == PUMICE_OK, "%s packing", level);
    const struct pumice_recurrence_u8 layer = {.recurrent = packed, .by_row = 1, .time = 1, .batch = batch,
                                               .y_stride = batch * hidden, .projected = projected, .h = h, .c = c, .y = y};
    CHECK(pumice_recurrent_u8(&layer, threads) == PUMICE_OK, "%s", level);
    for (int row = 0; row < batch; row++)
        for (int i = 0; i < hidden; i++) {
            double sum[4];
            for (int g = 0; g < 4; g++) {
                const int column = g * hidden + i;
                sum[g] = projected[row * width + column] + gate_of(r, before + row * hidden, scale, width, hidden, column);
            }
            const double cell = sigmoid(sum[2]) * before[(batch + row) * hidden + i] + sigmoid(sum[0]) * tanh(sum[3]);
            const double state = sigmoid(sum[1]) * tanh(cell);
            const double found = y[row * hidden + i];
            CHECK(fabs(found - state) < 1e-5, "%s, %d of %d: %g, not %g", level, i, hidden, found, state);
        }
    pumice_gates_free(packed);
    free(r), free(scale), free(projected), free(h), free(c), free(y), free(before);
}

/* Outputs of a layer that runs backwards over rows of different lengths. */
static float *outputs_of(struct pumice_gates *packed, struct pumice_recurrence_u8 layer, int hidden, int threads) {
    const size_t states = (size_t)(layer.batch * hidden) * sizeof *layer.h;
    float *y = room((size_t)layer.time * states), *h = room(states), *c = room(states);
    int32_t *lengths = room((size_t)layer.batch * sizeof *lengths);
    for (int i = 0; i < layer.batch; i++) lengths[i] = (int32_t)layer.time - i % 3;
    memset(h, 0, states), memset(c, 0, states);
    layer.recurrent = packed, layer.reverse = 1, layer.lengths = lengths, layer.y_stride = layer.batch * hidden;
    layer.h = h, layer.c = c, layer.y = y;
    CHECK(pumice_recurrent_u8(&layer, threads) == PUMICE_OK, "%d threads", threads);
    free(h), free(c), free(lengths);
    return y;
}

/* However a layer is cut, its outputs have the same bits. */
static void test_cuts(const char *level, int gates, int hidden, int batch, int time, int by_row) {
    const int width = gates * hidden;
    int8_t *r = room((size_t)(hidden * width));
    for (int i = 0; i < hidden * width; i++) r[i] = (int8_t)draw();
    float *projected = floats(time * batch * width), scale = 1e-3f;
    const struct pumice_matrix matrix = {r, PUMICE_S8, hidden, width, width, 1};
    const struct pumice_recurrence_u8 layer = {.by_row = by_row, .time = time, .batch = batch, .projected = projected};
    struct pumice_gates *packed;
    CHECK(pumice_gates_pack(&packed, &matrix, gates, &scale, 0, NULL) == PUMICE_OK, "%s packing", level);
    float *whole = outputs_of(packed, layer, hidden, 1), *cut = outputs_of(packed, layer, hidden, 3);
    CHECK(memcmp(whole, cut, (size_t)(time * batch * hidden) * sizeof *cut) == 0, "%s, %d by %d", level, batch, hidden);
    pumice_gates_free(packed);
    free(r), free(projected), free(whole), free(cut);
}

/* Levels of the input are multiplied along with the state as they would be before. */
static void test_input(const char *level, int gates, int inputs, int batch, int by_row) {
    enum { HIDDEN = 40, TIME = 4 };
    const int width = gates * HIDDEN, rows = TIME * batch;
    int8_t *r = room(HIDDEN * (size_t)width), *w = room((size_t)(inputs * width));
    uint8_t *levels = room((size_t)(rows * inputs)), zero = 77;
    float *bias = floats(width), *scales = floats(rows), *projected = floats(rows * width), scale = 1e-3f;
    for (int i = 0; i < HIDDEN * width; i++) r[i] = (int8_t)draw();
    for (int i = 0; i < inputs * width; i++) w[i] = (int8_t)draw();
    for (int i = 0; i < rows * inputs; i++) levels[i] = (uint8_t)draw();
    for (int i = 0; i < rows * width; i++) {
        int64_t sum = 0;
        for (int k = 0; k < inputs; k++)
            sum += (levels[i / width * inputs + k] - (by_row ? 128 : zero)) * w[k * width + i % width];
        projected[i] = (float)((double)sum * scale * scales[by_row ? i / width : 0] + bias[i % width]);
    }
    const struct pumice_matrix state = {r, PUMICE_S8, HIDDEN, width, width, 1}, input = {w, PUMICE_S8, inputs, width, width, 1};
    struct pumice_gates *recurrent, *weights;
    CHECK(pumice_gates_pack(&recurrent, &state, gates, &scale, 0, NULL) == PUMICE_OK, "%s packing R", level);
    CHECK(pumice_gates_pack(&weights, &input, gates, &scale, 0, NULL) == PUMICE_OK, "%s packing W", level);
    struct pumice_recurrence_u8 layer = {.by_row = by_row, .time = TIME, .batch = batch, .projected = projected};
    float *before = outputs_of(recurrent, layer, HIDDEN, 1);
    layer.projected = NULL;
    layer.input = (struct pumice_recurrent_input){weights, levels, scales, by_row ? NULL : &zero, bias};
    float *along = outputs_of(recurrent, layer, HIDDEN, 2);
    int far = 0; /* levels that fall on the other side of a middle */
    for (int i = 0; i < rows * HIDDEN; i++) far += fabsf(before[i] - along[i]) > 1e-5f;
    CHECK(far * 50 <= rows * HIDDEN, "%s, %d inputs: %d of %d differ", level, inputs, far, rows * HIDDEN);
    pumice_gates_free(recurrent), pumice_gates_free(weights);
    free(r), free(w), free(levels), free(bias), free(scales), free(projected), free(before), free(along);
}

int main(void) {
    EVERY_LEVEL(level)
    for (int count = 1; count <= RECURRENT_UNITS; count++)
        for (int variant = 0; variant < 8; variant++)
            test_cell(level, 3 + (variant & 1), count, variant >> 1 & 1, variant >> 2);

    static const int widths[] = {1, 7, 16, 31, 32, 33, 64, 100};
    EVERY_LEVEL(level)
    for (int i = 0; i < 8; i++)
        for (int batch = 1; batch < 40; batch = 2 * batch + 1) test_step(level, widths[i], batch, 1 + i % 4);

    EVERY_LEVEL(level)
    for (int by_row = 0; by_row < 2; by_row++) {
        test_cuts(level, 4, 100, 70, 5, by_row);  /* by rows */
        test_cuts(level, 3, 500, 1, 17, by_row); /* by units */
        test_input(level, 4, 28, 17, by_row);
        test_input(level, 3, 64, 1, by_row);
    }
    return summary("recurrent layers over 8-bit weights");
}
