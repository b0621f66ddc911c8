/* Matrix products of odd sizes in memory that ends where the operands do, at every level. */
#include <math.h>
#include <string.h>

#include "base/numbers.h"
#include "check.h"
#include "gemm/api.h"

static const int sizes[][3] = {{1, 1, 1},   {2, 3, 5},    {3, 7, 31},    {5, 64, 33},  {7, 65, 16},
                               {13, 30, 8}, {14, 128, 64}, {29, 66, 40}, {33, 9, 130}, {6, 1030, 9}};
enum { SIZES = sizeof sizes / sizeof *sizes };

static struct pumice_matrix plain(const void *data, int type, int64_t rows, int64_t columns) {
    return (struct pumice_matrix){data, type, rows, columns, columns, 1};
}

static struct pumice_packed *packed_of(int product, const struct pumice_matrix *b, int threads) {
    struct pumice_packed *packed;
    CHECK(pumice_pack(&packed, product, b, threads) == PUMICE_OK, "packing");
    return packed;
}

static void test_integers(const char *level, const int *size, int a_type, int b_type, int threads) {
    const int m = size[0], k = size[1], n = size[2], za = 5;
    uint8_t *a = room((size_t)(m * k)), *b = room((size_t)(k * n));
    int32_t *out = room((size_t)(m * n) * 4), *zb = room((size_t)n * 4);
    for (int i = 0; i < m * k; i++) a[i] = (uint8_t)draw();
    for (int i = 0; i < k * n; i++) b[i] = (uint8_t)draw();
    for (int i = 0; i < n; i++) zb[i] = (int)(draw() % 9) - 4;
    struct pumice_matrix left = plain(a, a_type, m, k), right = plain(b, b_type, k, n);
    struct pumice_epilogue e = {.output = PUMICE_S32};
    struct pumice_packed *packed = packed_of(PUMICE_INTEGER, &right, threads);
    CHECK(pumice_gemm(packed, &left, za, zb, &e, out, n, threads) == PUMICE_OK, "%s", level);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            int32_t sum = 0;
            for (int p = 0; p < k; p++) {
                int x = a_type == PUMICE_U8 ? a[i * k + p] : (int8_t)a[i * k + p];
                int y = b_type == PUMICE_U8 ? b[p * n + j] : (int8_t)b[p * n + j];
                sum += (x - za) * (y - zb[j]);
            }
            CHECK(out[i * n + j] == sum, "%s %dx%dx%d at %d,%d: %d, not %d", level, m, k, n, i, j, out[i * n + j], sum);
        }
    pumice_packed_free(packed);
    free(a), free(b), free(out), free(zb);
}

static void test_floats(const char *level, const int *size, int product, int threads) {
    const int m = size[0], k = size[1], n = size[2];
    float *a = room((size_t)(m * k) * 4), *b = room((size_t)(k * n) * 4), *out = room((size_t)(m * n) * 4);
    for (int i = 0; i < m * k; i++) a[i] = bf16_to_float(float_to_bf16(draw_float()));
    for (int i = 0; i < k * n; i++) b[i] = bf16_to_float(float_to_bf16(draw_float()));
    struct pumice_matrix left = plain(a, PUMICE_F32, m, k), right = plain(b, PUMICE_F32, k, n);
    struct pumice_epilogue e = {.output = PUMICE_F32};
    struct pumice_packed *packed = packed_of(product, &right, threads);
    CHECK(pumice_gemm(packed, &left, 0, NULL, &e, out, n, threads) == PUMICE_OK, "%s", level);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0, size_of_terms = 0;
            for (int p = 0; p < k; p++) {
                double term = (double)a[i * k + p] * b[p * n + j];
                sum += term, size_of_terms += fabs(term);
            }
            CHECK(fabs(out[i * n + j] - sum) <= 1e-6 * size_of_terms + 1e-20, "%s product %d, %dx%dx%d: %g, not %g",
                  level, product, m, k, n, (double)out[i * n + j], sum);
        }
    pumice_packed_free(packed);
    free(a), free(b), free(out);
}

/* Every output type with every field in use, against the scalar level. */
static void test_epilogue(const char *level, int output, int residual_type) {
    static const int bytes[] = {4, 2, 1, 1, 4};
    enum { M = 9, K = 37, N = 45 };
    uint8_t *a = room(M * K), *b = room(K * N);
    float *scale = room(N * 4), *bias = room(N * 4), *row_scale = room(M * 4);
    char *residual = room((size_t)(M * N * bytes[residual_type])), *out = room((size_t)(M * N * bytes[output])),
         *truth = room((size_t)(M * N * bytes[output]));
    for (int i = 0; i < M * K; i++) a[i] = (uint8_t)draw();
    for (int i = 0; i < K * N; i++) b[i] = (uint8_t)draw();
    for (int i = 0; i < N; i++) scale[i] = draw_float() * 1e-3f, bias[i] = draw_float();
    for (int i = 0; i < M; i++) row_scale[i] = draw_float();
    for (int i = 0; i < M * N; i++) {
        float value = draw_float();
        bf16 half = float_to_bf16(value);
        if (residual_type == PUMICE_F32)
            memcpy(residual + 4 * i, &value, 4);
        else if (residual_type == PUMICE_BF16)
            memcpy(residual + 2 * i, &half, 2);
        else
            residual[i] = (char)draw();
    }
    struct pumice_epilogue e = {.output = output, .scale = scale, .scale_step = 1, .bias = bias, .row_scale = row_scale};
    e.residual = residual, e.residual_type = residual_type, e.residual_stride = N, e.residual_scale = 0.3f;
    e.residual_zero = 3, e.activation = PUMICE_CLIP, e.low = -0.5f, e.high = 30, e.divisor = 0.07f, e.zero = 4;
    struct pumice_matrix left = plain(a, PUMICE_U8, M, K), right = plain(b, PUMICE_S8, K, N);
    pumice_use_level("scalar");
    struct pumice_packed *slow = packed_of(PUMICE_INTEGER, &right, 1);
    pumice_use_level(level);
    struct pumice_packed *fast = packed_of(PUMICE_INTEGER, &right, 1);
    CHECK(pumice_gemm(slow, &left, 1, NULL, &e, truth, N, 1) == PUMICE_OK, "scalar");
    CHECK(pumice_gemm(fast, &left, 1, NULL, &e, out, N, 2) == PUMICE_OK, "%s", level);
    CHECK(!memcmp(out, truth, (size_t)(M * N * bytes[output])), "%s: output %d, residual %d", level, output,
          residual_type);
    pumice_packed_free(slow), pumice_packed_free(fast);
    free(a), free(b), free(scale), free(bias), free(row_scale), free(residual), free(out), free(truth);
}

static void test_contradictions(void) {
    float x[4] = {0};
    struct pumice_matrix matrix = plain(x, PUMICE_F32, 2, 2), wrong = plain(x, PUMICE_F32, 1, 4);
    struct pumice_packed *packed;
    CHECK(pumice_pack(&packed, PUMICE_INTEGER, &matrix, 1) == PUMICE_BAD_ARGUMENT, "floats as integers");
    CHECK(pumice_pack(&packed, 7, &matrix, 1) == PUMICE_BAD_ARGUMENT, "no such product");
    CHECK(pumice_pack(&packed, PUMICE_FLOAT, &matrix, 1) == PUMICE_OK, "fits");
    struct pumice_epilogue e = {.output = PUMICE_F32}, s32 = {.output = PUMICE_S32};
    CHECK(pumice_gemm(packed, &wrong, 0, NULL, &e, x, 2, 1) == PUMICE_BAD_ARGUMENT, "k differs");
    CHECK(pumice_gemm(packed, &matrix, 0, NULL, &s32, x, 2, 1) == PUMICE_BAD_ARGUMENT, "s32 of floats");
    pumice_packed_free(packed);
    CHECK(pumice_use_level("no such level") == PUMICE_UNKNOWN_LEVEL, "unknown level");
}

int main(void) {
    EVERY_LEVEL(level) {
        for (int i = 0; i < SIZES; i++) {
            for (int types = 0; types < 4; types++)
                test_integers(level, sizes[i], types & 1 ? PUMICE_S8 : PUMICE_U8, types & 2 ? PUMICE_U8 : PUMICE_S8, 1 + i % 3);
            test_floats(level, sizes[i], PUMICE_FLOAT, 1 + i % 3);
            test_floats(level, sizes[i], PUMICE_BFLOAT, 1 + i % 3);
        }
        for (int output = PUMICE_F32; output <= PUMICE_S8; output++)
            for (int residual = PUMICE_F32; residual <= PUMICE_S8; residual++) test_epilogue(level, output, residual);
    }
    test_contradictions();
    return summary("matrix products");
}
