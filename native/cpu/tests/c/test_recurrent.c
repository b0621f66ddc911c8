/* LSTM and GRU layers over float32 at every level, in both directions at once and with threads, against steps written
 * out, in memory that ends where the operands do. */
#include <math.h>
#include <string.h>

#include "base/table.h"
#include "check.h"
#include "recurrent/api.h"

enum { TIME = 3 };

static float *drawn(int count) {
    float *values = room((size_t)count * sizeof *values);
    for (int i = 0; i < count; i++) values[i] = draw_float() / 2;
    return values;
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* Row `row` of R times a state. */
static double dot(const float *r, int row, int hidden, const double *h) {
    double sum = 0;
    for (int k = 0; k < hidden; k++) sum += (double)r[row * hidden + k] * h[k];
    return sum;
}

/* One step of one row; h and c are replaced. */
static void step(const float *r, int gates, int hidden, int linear, const float *x, const float *inner, double *h, double *c) {
    double *next = room((size_t)hidden * sizeof *next), *seen = room((size_t)hidden * sizeof *seen);
    if (gates == 3)
        for (int i = 0; i < hidden; i++)
            seen[i] = linear ? h[i] : h[i] * sigmoid(x[hidden + i] + dot(r, hidden + i, hidden, h));
    for (int i = 0; i < hidden; i++) {
        const double first = sigmoid(x[i] + dot(r, i, hidden, h)), second = sigmoid(x[hidden + i] + dot(r, hidden + i, hidden, h));
        if (gates == 3) {
            double fed = dot(r, 2 * hidden + i, hidden, seen);
            if (linear) fed = second * (fed + inner[i]);
            next[i] = (1 - first) * tanh(x[2 * hidden + i] + fed) + first * h[i];
        } else {
            const double keep = sigmoid(x[2 * hidden + i] + dot(r, 2 * hidden + i, hidden, h));
            c[i] = keep * c[i] + first * tanh(x[3 * hidden + i] + dot(r, 3 * hidden + i, hidden, h));
            next[i] = second * tanh(c[i]);
        }
    }
    memcpy(h, next, (size_t)hidden * sizeof *h);
    free(next), free(seen);
}

static void check_row(const char *level, const struct pumice_recurrence *d, const float *r, int gates, int hidden, int row,
                      const float *first_h, const float *first_c, int split) {
    double *h = room((size_t)hidden * sizeof *h), *c = room((size_t)hidden * sizeof *c);
    for (int i = 0; i < hidden; i++) h[i] = first_h[row * hidden + i], c[i] = first_c[row * hidden + i];
    for (int64_t s = 0; s < TIME; s++) {
        const int64_t t = d->reverse ? TIME - 1 - s : s;
        const int over = d->lengths && t >= d->lengths[row];
        const float *y = d->y + t * d->y_stride + row * hidden;
        if (!over)
            step(r, gates, hidden, d->linear_before_reset, d->projected + (t * d->batch + row) * gates * hidden,
                 d->inner_bias, h, c);
        for (int i = 0; i < hidden; i++)
            CHECK(fabs(y[i] - (over ? 0 : h[i])) < (split ? 1e-4 : 1e-5), "%s, %d gates, row %d, unit %d of %d at %ld: %g, not %g",
                  level, gates, row, i, hidden, (long)t, y[i], over ? 0 : h[i]);
    }
    free(h), free(c);
}

static void test_layer(const char *level, int gates, int hidden, int batch, int linear, int split, int threads) {
    struct pumice_recurrence directions[2];
    struct pumice_recurrent_weights *packed[2];
    const int state = batch * hidden;
    float *r[2], *first[2][2], *projected[2], *inner = drawn(hidden), *y = room((size_t)(2 * TIME * state) * sizeof *y);
    int32_t *lengths = room((size_t)batch * sizeof *lengths);
    for (int i = 0; i < batch; i++) lengths[i] = (int32_t)(draw() % (TIME + 1));
    for (int i = 0; i < 2; i++) {
        r[i] = drawn(gates * hidden * hidden), projected[i] = drawn(TIME * batch * gates * hidden);
        first[i][0] = drawn(state), first[i][1] = drawn(state);
        CHECK(pumice_recurrent_pack(&packed[i], r[i], gates, hidden, split) == PUMICE_OK, "%s", level);
        float *h = room((size_t)state * sizeof *h), *c = room((size_t)state * sizeof *c);
        memcpy(h, first[i][0], (size_t)state * sizeof *h), memcpy(c, first[i][1], (size_t)state * sizeof *c);
        directions[i] = (struct pumice_recurrence){.weights = packed[i], .linear_before_reset = linear, .reverse = i, .time = TIME,
                                                   .batch = batch, .y_stride = 2 * state, .projected = projected[i],
                                                   .inner_bias = linear ? inner : NULL, .lengths = i ? lengths : NULL,
                                                   .h = h, .c = c, .y = y + i * state};
    }
    CHECK(pumice_recurrent(directions, 2, threads) == PUMICE_OK, "%s", level);
    for (int i = 0; i < 2; i++) {
        for (int row = 0; row < batch; row++)
            check_row(level, directions + i, r[i], gates, hidden, row, first[i][0], first[i][1], split);
        pumice_recurrent_free(packed[i]);
        free(r[i]), free(projected[i]), free(first[i][0]), free(first[i][1]), free(directions[i].h), free(directions[i].c);
    }
    free(inner), free(y), free(lengths);
}

int main(void) {
    static const int widths[] = {1, 7, 33, 64}, batches[] = {1, 3, 17, 35};
    EVERY_LEVEL(level)
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            for (int split = 0; split < 2; split++) {
                test_layer(level, 4, widths[i], batches[j], 0, split, 1 + (i + j) % 4);
                test_layer(level, 3, widths[i], batches[j], 0, split, 1 + (i + j) % 4);
                test_layer(level, 3, widths[i], batches[j], 1, split, 1 + (i + j) % 4);
            }
    /* Blocks of rows that go by themselves, and chunks of units that meet after every step. */
    EVERY_LEVEL(level)
    for (int threads = 2; threads <= 3; threads++) {
        test_layer(level, 4, 128, 33, 0, 1, threads), test_layer(level, 4, 300, 1, 0, 0, threads);
        test_layer(level, 3, 128, 33, 0, 0, threads), test_layer(level, 3, 300, 2, 0, 1, threads);
    }
    return summary("recurrent layers");
}
