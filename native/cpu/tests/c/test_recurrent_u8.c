/* Recurrent layers over 8-bit weights: sums of gates have scalar's bits at every level, one step is what its formula
 * says, and nothing beyond the operands is touched. */
#include <math.h>
#include <string.h>

#include "base/table.h"
#include "check.h"
#include "gemm/api.h"
#include "lowbit/api.h"

enum { COLUMNS = 32 };

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

static void test_gates(const char *level, int count, int with_zeros, int with_added) {
    int32_t *sums = integers(count, 32), *column = integers(count, 24), *zeros = integers(count, 8);
    float *scale = floats(count), *added = floats(count), found[COLUMNS], truth[COLUMNS];
    const struct lowbit_columns columns = {column, with_zeros ? zeros : NULL, scale};
    const struct lowbit_state row = {0.0123f, 201, (int32_t)draw()};
    pumice_level()->table.lowbit_gates(sums, &columns, &row, with_added ? added : NULL, found, count);
    pumice_use_level("scalar");
    pumice_level()->table.lowbit_gates(sums, &columns, &row, with_added ? added : NULL, truth, count);
    pumice_use_level(level);
    CHECK(memcmp(found, truth, (size_t)count * sizeof *found) == 0, "%s, %d columns", level, count);
    free(sums), free(column), free(zeros), free(scale), free(added);
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

int main(void) {
    EVERY_LEVEL(level)
    for (int count = 1; count <= COLUMNS; count++)
        for (int variant = 0; variant < 4; variant++) test_gates(level, count, variant & 1, variant >> 1);

    static const int widths[] = {1, 7, 16, 31, 32, 33, 64, 100};
    EVERY_LEVEL(level)
    for (int i = 0; i < 8; i++)
        for (int batch = 1; batch < 40; batch = 2 * batch + 1) test_step(level, widths[i], batch, 1 + i % 4);
    return summary("recurrent layers over 8-bit weights");
}
