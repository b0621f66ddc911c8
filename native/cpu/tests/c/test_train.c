/* Gradients at every level against the scalar ones, in memory that ends where the operands do. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "train/api.h"

static const int counts[] = {1, 3, 8, 17, 31, 33, 65, 130, 2049};
enum { COUNTS = sizeof counts / sizeof *counts };

static float *floats(int count, float size) {
    float *memory = room((size_t)count * sizeof *memory);
    for (int i = 0; i < count; i++) memory[i] = draw_float() * size;
    return memory;
}

/* `bound` is relative to the larger of 1 and the scalar level's value. */
static void compare(const char *what, const char *level, const float *have, const float *want, int count, float bound) {
    for (int i = 0; i < count; i++) {
        const float size = fabsf(want[i]) > 1 ? fabsf(want[i]) : 1;
        CHECK(fabsf(have[i] - want[i]) <= bound * size, "%s %s at %d of %d: %g, not %g", what, level, i, count, have[i], want[i]);
    }
}

/* `call` fills `have` at the level in force and `want` at the scalar one. */
#define AGAINST_SCALAR(level, call) \
    do {                            \
        float *out = have;          \
        call;                       \
        pumice_use_level("scalar"); \
        out = want;                 \
        call;                       \
        pumice_use_level(level);    \
    } while (0)

static void test_slopes(const char *level, int count) {
    const float bounds[] = {-0.5f, 0.75f};
    float *dy = floats(count, 2), *v = floats(count, 4), *have = floats(count, 0), *want = floats(count, 0);
    for (int f = PUMICE_SLOPE_RELU; f <= PUMICE_SLOPE_GELU; f++) {
        AGAINST_SCALAR(level, pumice_slope(f, dy, v, out, count, bounds, 1));
        compare("slope", level, have, want, count, 1e-5f);
    }
    free(dy), free(v), free(have), free(want);
}

static void test_norms(const char *level, int inner) {
    enum { BATCH = 2, CHANNELS = 3 };
    const int count = BATCH * CHANNELS * inner;
    float scale[CHANNELS] = {1, 2, -1}, mean[CHANNELS], variance[CHANNELS], inverse[CHANNELS], dscale[CHANNELS], dbias[CHANNELS];
    float *x = floats(count, 3), *dy = floats(count, 1), *have = floats(count, 0), *want = floats(count, 0);
    AGAINST_SCALAR(level, pumice_batch_norm_train(x, out, BATCH, CHANNELS, inner, scale, scale, 1e-3f, mean, variance, inverse, 1));
    compare("batch norm", level, have, want, count, 1e-4f);
    AGAINST_SCALAR(level, pumice_batch_norm_gradient(x, dy, out, BATCH, CHANNELS, inner, scale, mean, inverse, dscale, dbias, 1));
    compare("batch norm gradient", level, have, want, count, 1e-3f);
    float *weights = floats(inner, 1), *sums = floats(2 * inner, 0);
    AGAINST_SCALAR(level, pumice_layer_norm_gradient(x, dy, out, BATCH * CHANNELS, inner, weights, 1e-2f, sums, sums + inner, 1));
    compare("layer norm gradient", level, have, want, count, 1e-3f);
    AGAINST_SCALAR(level, pumice_softmax_gradient(x, dy, out, BATCH * CHANNELS, inner, 1));
    compare("softmax gradient", level, have, want, count, 1e-3f);
    free(x), free(dy), free(have), free(want), free(weights), free(sums);
}

/* Of weights that are 1, with moments that are g / 2 and g^2. */
static void update(const float *g, float *w, int count) {
    const struct pumice_adaptive numbers = {0.9f, 0.999f, 0.271f, 0.003f, 1e-8f, 0.01f, 0.1f, 0.2f};
    float *p = floats(count, 0), *q = floats(count, 0);
    for (int i = 0; i < count; i++) w[i] = 1, p[i] = g[i] / 2, q[i] = g[i] * g[i];
    pumice_adaptive_update(&numbers, w, g, p, q, count, 1);
    free(p), free(q);
}

static void test_update(const char *level, int count) {
    float *g = floats(count, 1), *have = floats(count, 0), *want = floats(count, 0);
    AGAINST_SCALAR(level, update(g, out, count));
    compare("update", level, have, want, count, 1e-5f);
    CHECK(pumice_sums_finite(g, count, 1) == 1, "finite at %s", level);
    g[count - 1] = INFINITY;
    CHECK(pumice_sums_finite(g, count, 1) == 0, "infinite at %s", level);
    free(g), free(have), free(want);
}

/* Lines of A and B lie side by side along k, or across it. */
static void test_product(const char *level, int m, int k, int n, int turned) {
    float *x = floats(m * k, 1), *y = floats(k * n, 1), *have = floats(m * n, 0), *want = floats(m * n, 0);
    const struct pumice_matrix a = {x, PUMICE_F32, m, k, turned ? 1 : k, turned ? m : 1};
    const struct pumice_matrix b = {y, PUMICE_F32, k, n, turned ? 1 : n, turned ? k : 1};
    AGAINST_SCALAR(level, pumice_new_product(&a, &b, out, 1));
    compare("product", level, have, want, m * n, 1e-3f);
    free(x), free(y), free(have), free(want);
}

static void test_levels(const char *level, int inner) {
    enum { CHANNELS = 3 };
    const int count = CHANNELS * inner;
    const float scale[CHANNELS] = {0.01f, 0.02f, 0.5f};
    const int32_t zero[CHANNELS] = {0, 5, -3};
    float dscale[CHANNELS];
    float *x = floats(count, 3), *dy = floats(count, 1), *have = floats(count, 0), *want = floats(count, 0);
    AGAINST_SCALAR(level, pumice_quantize_gradient(x, dy, out, 1, CHANNELS, inner, scale, zero, -128, 127, dscale, 1));
    compare("quantize gradient", level, have, want, count, 1e-6f);
    uint8_t *q = room((size_t)count);
    for (int i = 0; i < count; i++) q[i] = (uint8_t)draw();
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        AGAINST_SCALAR(level, pumice_dequantize_gradient(q, is_signed, dy, out, 1, CHANNELS, inner, scale, zero, dscale, 1));
        compare("dequantize gradient", level, have, want, count, 1e-6f);
    }
    free(x), free(dy), free(have), free(want), free(q);
}

static void test_maximum(void) {
    const struct pumice_conv_shape shape = {
        .channels = 1, .filters = 1, .groups = 1, .size = {1, 3, 5}, .kernel = {1, 2, 2}, .stride = {1, 2, 2},
        .dilation = {1, 1, 1}, .before = {0, 1, 1}, .output = {1, 2, 3},
    };
    const float x[15] = {1, 5, 5, 0, 2, 3, 5, 1, 7, 7, 0, 0, 9, 7, 8}, y[6] = {1, 5, 2, 3, 9, 8};
    const float dy[6] = {1, 2, 3, 4, 5, 6}, want[15] = {1, 2, 0, 0, 3, 4, 0, 0, 0, 0, 0, 0, 5, 0, 6};
    float dx[15];
    CHECK(pumice_max_pool_gradient(&shape, 1, x, y, dy, dx, 1) == PUMICE_OK, "refused");
    for (int i = 0; i < 15; i++) CHECK(dx[i] == want[i], "at %d: %g, not %g", i, dx[i], want[i]);
}

int main(void) {
    EVERY_LEVEL(level) for (int i = 0; i < COUNTS; i++) {
        test_slopes(level, counts[i]);
        test_norms(level, counts[i]);
        test_levels(level, counts[i]);
        test_update(level, counts[i]);
    }
    EVERY_LEVEL(level) for (int turned = 0; turned < 2; turned++) {
        test_product(level, 130, 101, 99, turned);
        test_product(level, 99, 101, 130, turned);
        test_product(level, 5, 3, 2, turned);
    }
    test_maximum();
    return summary("train");
}
