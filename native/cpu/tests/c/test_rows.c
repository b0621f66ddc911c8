/* Functions of rows at every level against the scalar one, in memory that ends where the operands do. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "rows/api.h"

static const int counts[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 130, 2049};
enum { COUNTS = sizeof counts / sizeof *counts };

static float *floats(int count, float size) {
    float *memory = room((size_t)count * sizeof *memory);
    for (int i = 0; i < count; i++) memory[i] = draw_float() * size;
    return memory;
}

/* Within `bound` of the larger of 1 and the scalar level's value; NaN only where it has NaN. */
static void compare(const char *what, const char *level, const float *have, const float *want, int count, float bound) {
    for (int i = 0; i < count; i++) {
        const float size = fabsf(want[i]) > 1 ? fabsf(want[i]) : 1;
        CHECK(have[i] == want[i] || fabsf(have[i] - want[i]) <= bound * size || (isnan(have[i]) && isnan(want[i])),
              "%s %s at %d of %d: %g, not %g", what, level, i, count, have[i], want[i]);
    }
}

static void test_maps(const char *level, int count) {
    const float parameters[] = {0.5f, 0.25f, 0.125f};
    float *in = floats(count, 10), *have = floats(count, 0), *want = floats(count, 0);
    if (count > 6) in[2] = NAN, in[3] = INFINITY, in[4] = -INFINITY, in[5] = 0;
    for (int f = PUMICE_F_EXP; f <= PUMICE_F_RECIPROCAL; f++) {
        pumice_map(f, in, have, count, parameters, 1);
        pumice_use_level("scalar");
        pumice_map(f, in, want, count, parameters, 1);
        pumice_use_level(level);
        compare("map", level, have, want, count, 1e-6f);
    }
    free(in), free(have), free(want);
}

static void test_rows(const char *level, int columns) {
    enum { ROWS = 3 };
    const int count = ROWS * columns;
    float *in = floats(count, 5), *scale = floats(columns, 1), *bias = floats(columns, 1);
    float *have = floats(count, 0), *want = floats(count, 0), stats[2][2][ROWS];
    for (int flag = 0; flag < 2; flag++) {
        pumice_softmax(in, have, ROWS, columns, flag, 2);
        pumice_use_level("scalar");
        pumice_softmax(in, want, ROWS, columns, flag, 2);
        pumice_use_level(level);
        compare("softmax", level, have, want, count, 2e-6f);
        pumice_layer_norm(in, have, ROWS, columns, scale, flag ? bias : NULL, 1e-3f, flag, stats[0][0], stats[0][1], 2);
        pumice_use_level("scalar");
        pumice_layer_norm(in, want, ROWS, columns, scale, flag ? bias : NULL, 1e-3f, flag, stats[1][0], stats[1][1], 2);
        pumice_use_level(level);
        compare("layer norm", level, have, want, count, 2e-5f);
        compare("statistics", level, stats[0][1], stats[1][1], ROWS, 1e-5f);
    }
    for (int r = PUMICE_SUM; r <= PUMICE_SUM_SQUARE; r++) {
        pumice_reduce(r, in, have, ROWS, columns, 1, 2);
        pumice_reduce(r, in, have + ROWS * (columns > 1), 1, ROWS, columns, 2);
        pumice_use_level("scalar");
        pumice_reduce(r, in, want, ROWS, columns, 1, 2);
        pumice_reduce(r, in, want + ROWS * (columns > 1), 1, ROWS, columns, 2);
        pumice_use_level(level);
        compare("reduction", level, have, want, columns > 1 ? columns + ROWS : columns, 1e-4f);
    }
    free(in), free(scale), free(bias), free(have), free(want);
}

static void test_quantization(const char *level, int count) {
    const float scale = 0.037f;
    const int32_t zero = 100;
    float *in = floats(count, 8), *back = floats(count, 0), *expected = floats(count, 0);
    uint8_t *have = room((size_t)count), *want = room((size_t)count);
    for (int stored = 0; stored < 2; stored++) {
        const int low = stored ? -128 : 0, high = stored ? 127 : 255;
        pumice_quantize(in, have, stored, 1, 1, count, &scale, &zero, low, high, 2);
        pumice_dequantize(have, stored, back, 1, 1, count, &scale, &zero, 2);
        pumice_use_level("scalar");
        pumice_quantize(in, want, stored, 1, 1, count, &scale, &zero, low, high, 2);
        pumice_dequantize(want, stored, expected, 1, 1, count, &scale, &zero, 2);
        pumice_use_level(level);
        CHECK(!memcmp(have, want, (size_t)count), "quantize %s %d", level, count);
        CHECK(!memcmp(back, expected, (size_t)count * sizeof *back), "dequantize %s %d", level, count);
    }
    free(in), free(back), free(expected), free(have), free(want);
}

static void test_pairs(const char *level, int count) {
    const int64_t shape[] = {1, 2, 3, count}, a_steps[] = {0, 3 * count, count, 1}, b_steps[] = {0, 0, 1, 0};
    float *a = floats(6 * count, 1), *b = floats(3, 1), *out = floats(6 * count, 0);
    CHECK(pumice_binary(PUMICE_SUB, a, a_steps, b, b_steps, out, shape, 2) == PUMICE_OK, "%s", level);
    for (int i = 0; i < 6 * count; i++) CHECK(out[i] == a[i] - b[i / count % 3], "%s at %d", level, i);
    free(a), free(b), free(out);
}

static void test_transposition(const char *level, int columns) {
    enum { ROWS = 19 };
    const int64_t shape[] = {columns, ROWS}, steps[] = {1, columns};
    float *in = floats(ROWS * columns, 1), *out = floats(ROWS * columns, 0);
    pumice_transpose(in, out, 4, 2, shape, steps, 2);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < columns; c++) CHECK(out[c * ROWS + r] == in[r * columns + c], "%s at %d,%d", level, r, c);
    free(in), free(out);
}

static void test_calibration(const char *level, int count) {
    float *in = floats(count, 3), range[2], centroids[] = {-2, -1, 0, 1, 2};
    int32_t *nearest = room((size_t)count * sizeof *nearest);
    int64_t *counts = calloc(65536, sizeof *counts), total = 0;
    pumice_range(in, count, range, 3);
    pumice_histogram(in, count, counts, 3);
    pumice_nearest(in, count, 1, centroids, 5, nearest, 3);
    for (int i = 0; i < 65536; i++) total += counts[i];
    CHECK(total == count, "%s: %ld counted", level, (long)total);
    for (int i = 0; i < count; i++) {
        CHECK(range[0] <= in[i] && in[i] <= range[1], "%s", level);
        for (int c = 0; c < 5; c++) CHECK(fabsf(in[i] - centroids[nearest[i]]) <= fabsf(in[i] - centroids[c]) + 1e-6f, "%s", level);
    }
    free(in), free(nearest), free(counts);
}

int main(void) {
    EVERY_LEVEL(level)
    for (int i = 0; i < COUNTS; i++) {
        test_maps(level, counts[i]);
        test_rows(level, counts[i]);
        test_quantization(level, counts[i]);
        test_pairs(level, counts[i]);
        test_transposition(level, counts[i]);
        test_calibration(level, counts[i]);
    }
    return summary("rows");
}
