/* 4-bit products at every level against sums in double, in memory that ends where the operands do. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "lowbit/api.h"

/* k, n, m, group */
static const int cases[][4] = {{1, 1, 1, 1},    {64, 3, 2, 64},    {128, 5, 1, 128},  {129, 17, 4, 128}, {200, 16, 3, 32},
                               {300, 7, 5, 64}, {257, 33, 18, 257}, {640, 20, 9, 256}, {512, 4, 2, 128},  {96, 19, 17, 32},
                               {384, 37, 50, 128}};
enum { CASES = sizeof cases / sizeof *cases };

static float *floats(int count) {
    float *memory = room((size_t)count * sizeof *memory);
    for (int i = 0; i < count; i++) memory[i] = draw_float();
    return memory;
}

/* A row as the s8 kernels round it. */
static void round_row(float *row, int k) {
    float most = 0;
    for (int i = 0; i < k; i++) most = fabsf(row[i]) > most ? fabsf(row[i]) : most;
    for (int i = 0; i < k; i++) row[i] = rintf(row[i] * (127 / most)) * (most / 127);
}

static void test_product(const char *level, const int *size, int type, int shared, int with_offset, int threads) {
    const int k = size[0], n = size[1], m = size[2], group = size[3], groups = (k + group - 1) / group;
    uint8_t *codes = room((size_t)(n * k));
    for (int i = 0; i < n * k; i++) codes[i] = draw() & 15;
    float *scale = floats(n * groups), *offset = floats(n * groups), *a = floats(m * k), *bias = floats(n);
    float *entries = floats(16 * n), *out = room((size_t)(m * n) * sizeof *out);
    int8_t *bytes = room((size_t)(16 * n));
    for (int i = 0; i < 16 * n; i++) bytes[i] = (int8_t)draw(), entries[i] = type == PUMICE_TABLE_S8 ? bytes[i] : entries[i];
    const struct pumice_codebook book = {.codes = codes, .n = n, .k = k, .type = type, .group = group, .scale = scale,
                                         .table = type == PUMICE_TABLE_S8 ? (void *)bytes : (void *)entries,
                                         .table_column = shared ? 0 : 16, .offset = with_offset ? offset : NULL};
    struct pumice_lowbit *packed;
    CHECK(pumice_lowbit_pack(&packed, &book, threads) == PUMICE_OK, "%s packing", level);
    CHECK(pumice_lowbit_matmul(packed, a, m, k, bias, out, n, threads) == PUMICE_OK, "%s", level);
    for (int i = 0; i < m; i++) {
        if (type == PUMICE_TABLE_S8) round_row(a + i * k, k);
        for (int j = 0; j < n; j++) {
            double sum = bias[j], terms = 1;
            for (int p = 0; p < k; p++) {
                const int g = j * groups + p / group;
                const double weight = (entries[(shared ? 0 : 16 * j) + codes[j * k + p]] - (with_offset ? offset[g] : 0)) * scale[g];
                sum += a[i * k + p] * weight;
                terms += fabs(a[i * k + p] * weight);
            }
            const double bound = terms * (type == PUMICE_TABLE_BF16 ? 1e-2 : 3e-6);
            CHECK(fabs(out[i * n + j] - sum) <= bound, "%s type %d, %dx%dx%d by %d, at %d,%d: %g, not %g", level, type, m, k, n,
                  group, i, j, out[i * n + j], sum);
        }
    }
    pumice_lowbit_free(packed);
    free(codes), free(scale), free(offset), free(a), free(bias), free(entries), free(out), free(bytes);
}

/* Rows that end where the memory does. */
static void test_rows_alone(const char *level, int k) {
    enum { ROWS = 3 };
    float *a = floats(ROWS * k), scale[ROWS];
    int8_t *q = room((size_t)(ROWS * k));
    CHECK(pumice_quantize_rows(a, ROWS, k, k, q, scale, 2) == PUMICE_OK, "%s", level);
    for (int i = 0; i < ROWS * k; i++) {
        const float back = (float)q[i] * scale[i / k];
        CHECK(fabsf(back - a[i]) <= 0.5001f * scale[i / k], "%s, %d of %d: %g, not %g", level, i, k, back, a[i]);
    }
    free(a), free(q);
}

int main(void) {
    EVERY_LEVEL(level)
    for (int k = 1; k < 70; k++) test_rows_alone(level, k);

    EVERY_LEVEL(level)
    for (int i = 0; i < CASES; i++)
        for (int type = PUMICE_TABLE_S8; type <= PUMICE_TABLE_F32; type++)
            for (int variant = 0; variant < 4; variant++)
                test_product(level, cases[i], type, variant & 1, variant >> 1, 1 + (i + variant) % 4);
    return summary("4-bit products");
}
