/* Products and pooling with channels last, and attention, at every level and with threads, against sums written out, in
 * memory that ends where the operands do. */
#include <math.h>
#include <string.h>

#include "attention/api.h"
#include "base/numbers.h"
#include "check.h"
#include "conv/shape.h"
#include "nhwc/api.h"

enum { BATCH = 2, THREADS = 3 };
static const double SPLIT = 1.0 / 65536; /* of the sum of |x w| */

#define SHAPE(c, m, g, h, w, k, s, d, p)                                                                       \
    {                                                                                                          \
        .channels = c, .filters = m, .groups = g, .size = {1, h, w}, .kernel = {1, k, k}, .stride = {1, s, s}, \
        .dilation = {1, d, d}, .before = {0, p, p}                                                             \
    }

static struct pumice_conv_shape shapes[] = {
    SHAPE(3, 17, 1, 19, 19, 7, 2, 1, 3), SHAPE(40, 33, 1, 9, 9, 3, 1, 1, 1),    SHAPE(37, 9, 1, 7, 7, 1, 2, 1, 0),
    SHAPE(5, 7, 1, 6, 7, 3, 1, 2, 2),    SHAPE(16, 33, 1, 8, 8, 1, 1, 1, 0),    SHAPE(20, 3, 1, 9, 11, 3, 2, 2, 1),
    SHAPE(12, 9, 1, 13, 17, 3, 1, 1, 1), SHAPE(20, 40, 1, 8, 9, 5, 1, 1, 2),    SHAPE(1, 16, 1, 28, 28, 3, 1, 1, 1),
    SHAPE(70, 70, 70, 9, 8, 3, 1, 1, 1), SHAPE(33, 33, 33, 12, 19, 5, 2, 1, 2), SHAPE(64, 200, 1, 14, 14, 1, 1, 1, 0),
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static float *drawn(int64_t count) {
    float *values = room((size_t)count * sizeof *values);
    for (int64_t i = 0; i < count; i++) values[i] = draw_float();
    return values;
}

/* The sum for one output, and that of its terms' magnitudes, plus `before`, cut off below zero. */
static double expected(const struct pumice_conv_shape *s, const float *x, const float *w, int64_t o, int64_t f,
                       double before, double *bound) {
    const int64_t channels = s->channels / s->groups, row = o / s->output[2], column = o % s->output[2];
    double sum = before;
    *bound = fabs(before);
    for (int64_t i = 0; i < s->kernel[1]; i++)
        for (int64_t j = 0; j < s->kernel[2]; j++) {
            const int64_t h = row * s->stride[1] + i * s->dilation[1] - s->before[1];
            const int64_t v = column * s->stride[2] + j * s->dilation[2] - s->before[2];
            if (h < 0 || v < 0 || h >= s->size[1] || v >= s->size[2]) continue;
            for (int64_t c = 0; c < channels; c++) {
                const double weight = w[((f * channels + c) * s->kernel[1] + i) * s->kernel[2] + j];
                const double term = weight * x[(h * s->size[2] + v) * s->channels + (s->groups > 1 ? f : c)];
                sum += term, *bound += fabs(term);
            }
        }
    return sum < 0 ? 0 : sum;
}

static void products(const struct pumice_conv_shape *s, const char *level) {
    const int64_t taps = volume(s->kernel), depth = s->channels / s->groups, outputs = volume(s->output);
    const int64_t image = volume(s->size) * s->channels, count = BATCH * outputs * s->filters;
    float *x = drawn(BATCH * image), *w = drawn(s->filters * depth * taps), *bias = drawn(s->filters),
          *residual = drawn(count);
    float *y = room((size_t)count * sizeof *y);
    const int64_t w_steps[] = {depth * taps, taps, 1}, x_steps[] = {image, 1, s->size[2] * s->channels, s->channels};
    struct pumice_nhwc *conv = pumice_nhwc_create(s, w, w_steps, NULL, THREADS);
    const struct pumice_nhwc_epilogue e = {.bias = bias, .function = -1, .low = 0, .high = INFINITY};
    CHECK(conv && pumice_nhwc_run(conv, BATCH, x, x_steps, residual, y, &e, THREADS) == PUMICE_OK, "%s", level);
    for (int64_t i = 0; conv && i < count; i++) {
        const int64_t f = i % s->filters, o = i / s->filters % outputs, n = i / s->filters / outputs;
        double bound;
        const double want = expected(s, x + n * image, w, o, f, (double)bias[f] + residual[i], &bound);
        CHECK(fabs(y[i] - want) <= (SPLIT + 1e-6) * bound, "%s: filter %d, output %d: %g, not %g", level, (int)f,
              (int)o, y[i], want);
    }
    pumice_nhwc_free(conv);
    free(x), free(w), free(bias), free(residual), free(y);
}

/* An infinite operand cannot be split: where no window meets it sums stay finite, elsewhere they are not. */
static void infinity(const struct pumice_conv_shape *s, const char *level) {
    const int64_t taps = volume(s->kernel), depth = s->channels / s->groups, outputs = volume(s->output);
    const int64_t image = volume(s->size) * s->channels, count = outputs * s->filters;
    float *x = drawn(image), *w = drawn(s->filters * depth * taps), *y = room((size_t)count * sizeof *y);
    const int64_t w_steps[] = {depth * taps, taps, 1}, x_steps[] = {image, 1, s->size[2] * s->channels, s->channels};
    x[(volume(s->size) / 2) * s->channels] = INFINITY;
    struct pumice_nhwc *conv = pumice_nhwc_create(s, w, w_steps, NULL, THREADS);
    const struct pumice_nhwc_epilogue e = {.function = -1, .low = 0, .high = INFINITY};
    CHECK(conv && pumice_nhwc_run(conv, 1, x, x_steps, NULL, y, &e, THREADS) == PUMICE_OK, "%s", level);
    for (int64_t i = 0; conv && i < count; i++) {
        double bound;
        const double want = expected(s, x, w, i / s->filters, i % s->filters, 0, &bound);
        CHECK(isfinite(y[i]) == isfinite(want), "%s: output %d: %g, not %g", level, (int)i, y[i], want);
    }
    pumice_nhwc_free(conv);
    free(x), free(w), free(y);
}

static void maxima(const struct pumice_conv_shape *s, const char *level) {
    const int64_t image = volume(s->size) * s->channels, outputs = volume(s->output),
                  count = BATCH * outputs * s->channels;
    float *x = drawn(BATCH * image), *y = room((size_t)count * sizeof *y);
    CHECK(pumice_nhwc_max_pool(s, BATCH, x, y, THREADS) == PUMICE_OK, "%s", level);
    for (int64_t i = 0; i < count; i++) {
        const int64_t c = i % s->channels, o = i / s->channels % outputs, n = i / s->channels / outputs;
        float want = -INFINITY;
        for (int64_t t = 0; t < volume(s->kernel); t++) {
            const int64_t h = o / s->output[2] * s->stride[1] + t / s->kernel[2] * s->dilation[1] - s->before[1];
            const int64_t v = o % s->output[2] * s->stride[2] + t % s->kernel[2] * s->dilation[2] - s->before[2];
            if (h < 0 || v < 0 || h >= s->size[1] || v >= s->size[2]) continue;
            want = fmaxf(want, x[n * image + (h * s->size[2] + v) * s->channels + c]);
        }
        CHECK(y[i] == want, "%s: maximum %d: %g, not %g", level, (int)i, y[i], want);
    }
    free(x), free(y);
}

static void attention(int64_t heads, int64_t queries, int64_t keys, int64_t depth, int64_t width, const char *level) {
    float *q = drawn(heads * queries * depth), *k = drawn(heads * keys * depth), *v = drawn(heads * keys * width);
    float *mask = drawn(keys), *y = room((size_t)(heads * queries * width) * sizeof *y);
    const struct pumice_attention a = {
        .batch = 1,
        .heads = heads,
        .queries = queries,
        .keys = keys,
        .depth = depth,
        .value_depth = width,
        .query = q,
        .key = k,
        .value = v,
        .mask = mask,
        .query_steps = {0, queries * depth, depth, 1},
        .key_steps = {0, keys * depth, 1, depth},
        .value_steps = {0, keys * width, width, 1},
        .mask_steps = {0, 0, 0, 1},
        .out_steps = {0, queries * width, width, 1},
        .scale = 0.5f,
        .out = y,
    };
    CHECK(pumice_attention_run(&a, THREADS) == PUMICE_OK, "%s", level);
    for (int64_t i = 0; i < heads * queries; i++) {
        const int64_t h = i / queries;
        double *share = room((size_t)keys * sizeof *share), all = 0;
        for (int64_t j = 0; j < keys; j++) {
            double score = mask[j];
            for (int64_t d = 0; d < depth; d++) score += 0.5 * q[i * depth + d] * k[(h * keys + j) * depth + d];
            all += share[j] = exp(score);
        }
        for (int64_t c = 0; c < width; c++) {
            double want = 0;
            for (int64_t j = 0; j < keys; j++) want += share[j] / all * v[(h * keys + j) * width + c];
            CHECK(fabs(y[i * width + c] - want) < 1e-5, "%s: row %d: %g, not %g", level, (int)i, y[i * width + c],
                  want);
        }
        free(share);
    }
    free(q), free(k), free(v), free(mask), free(y);
}

static void set_output(struct pumice_conv_shape *s, int a) {
    s->output[a] = (s->size[a] + 2 * s->before[a] - (s->kernel[a] - 1) * s->dilation[a] - 1) / s->stride[a] + 1;
}

int main(void) {
    for (int i = 0; i < SHAPES; i++)
        for (int a = 0; a < 3; a++) set_output(&shapes[i], a);
    EVERY_LEVEL(level) {
        for (int i = 0; i < SHAPES; i++) {
            products(&shapes[i], level);
            infinity(&shapes[i], level);
            maxima(&shapes[i], level);
        }
        attention(3, 5, 7, 4, 6, level);
        attention(2, 33, 40, 32, 32, level);
    }
    return summary("channels last");
}
