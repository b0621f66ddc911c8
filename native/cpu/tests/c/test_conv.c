/* Convolutions and pooling of odd shapes, at every level and with threads, against sums written out, in memory that ends
 * where the operands do. Integers must be equal. */
#include <math.h>
#include <string.h>

#include "base/numbers.h"
#include "check.h"
#include "conv/api.h"
#include "conv/shape.h"
#include "pooling/api.h"

#define SHAPE(c, m, g, d, h, w, kd, kh, kw, sd, sh, sw, dd, dh, dw, p)                                                   \
    {.channels = c, .filters = m, .groups = g, .size = {d, h, w}, .kernel = {kd, kh, kw}, .stride = {sd, sh, sw},        \
     .dilation = {dd, dh, dw}, .before = {kd > 1 ? p : 0, kh > 1 ? p : 0, p}}

static struct pumice_conv_shape shapes[] = {
    SHAPE(16, 33, 1, 1, 8, 8, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0),   SHAPE(3, 20, 1, 1, 9, 11, 1, 3, 3, 1, 2, 2, 1, 1, 1, 1),
    SHAPE(37, 9, 1, 1, 7, 7, 1, 1, 1, 1, 2, 2, 1, 1, 1, 0),    SHAPE(5, 7, 1, 1, 6, 7, 1, 3, 3, 1, 1, 1, 1, 2, 2, 2),
    SHAPE(12, 24, 3, 1, 7, 7, 1, 3, 3, 1, 1, 1, 1, 1, 1, 1),   SHAPE(3, 17, 1, 1, 19, 19, 1, 7, 7, 1, 2, 2, 1, 1, 1, 3),
    SHAPE(8, 18, 1, 4, 5, 6, 3, 3, 3, 1, 2, 1, 1, 1, 1, 1),    SHAPE(6, 5, 1, 1, 1, 15, 1, 1, 5, 1, 1, 2, 1, 1, 1, 2),
    SHAPE(70, 70, 70, 1, 9, 8, 1, 3, 3, 1, 1, 1, 1, 1, 1, 1),  SHAPE(33, 33, 33, 1, 12, 19, 1, 5, 5, 1, 2, 2, 1, 1, 1, 2),
    SHAPE(9, 9, 9, 5, 6, 7, 3, 3, 3, 2, 1, 3, 1, 2, 1, 1),     SHAPE(4, 8, 4, 1, 9, 9, 1, 2, 2, 1, 3, 3, 1, 2, 1, 1),
    SHAPE(40, 33, 1, 1, 9, 9, 1, 3, 3, 1, 1, 1, 1, 1, 1, 0),   SHAPE(64, 48, 1, 1, 7, 7, 1, 3, 3, 1, 1, 1, 1, 1, 1, 1),
    SHAPE(64, 33, 1, 1, 18, 20, 1, 3, 3, 1, 1, 1, 1, 1, 1, 0), SHAPE(64, 9, 1, 1, 5, 29, 1, 3, 3, 1, 2, 2, 1, 1, 1, 1),
    SHAPE(64, 8, 1, 3, 3, 18, 2, 2, 2, 1, 1, 1, 1, 1, 1, 0),
};
enum { SHAPES = sizeof shapes / sizeof *shapes, BATCH = 2 };

static void set_output(struct pumice_conv_shape *s) {
    for (int a = 0; a < 3; a++)
        s->output[a] = (s->size[a] + 2 * s->before[a] - (s->kernel[a] - 1) * s->dilation[a] - 1) / s->stride[a] + 1;
}

/* For every term of the sum for output o: its channel in the group, tap, and position, or -1 in the padding. */
#define EVERY_TERM(s, o, c, t, at)                                                                                  \
    for (int64_t c = 0; c < (s)->channels / (s)->groups; c++)                                                       \
        for (int64_t t = 0, at; t < volume((s)->kernel) && (at = position(s, o, t), 1); t++)

static int64_t position(const struct pumice_conv_shape *s, int64_t o, int64_t t) {
    const int64_t *output = s->output, *kernel = s->kernel;
    const int64_t out[3] = {o / (output[1] * output[2]), o / output[2] % output[1], o % output[2]};
    const int64_t tap[3] = {t / (kernel[1] * kernel[2]), t / kernel[2] % kernel[1], t % kernel[2]};
    int64_t flat = 0;
    for (int a = 0; a < 3; a++) {
        const int64_t at = out[a] * s->stride[a] + tap[a] * s->dilation[a] - s->before[a];
        if (at < 0 || at >= s->size[a]) return -1;
        flat = flat * s->size[a] + at;
    }
    return flat;
}

static int64_t filter_weights(const struct pumice_conv_shape *s) { return s->channels / s->groups * volume(s->kernel); }

/* --- 8 bits --------------------------------------------------------------------------------------------------------- */

static int32_t sum_u8(const struct pumice_conv_shape *s, const uint8_t *x, const int16_t *w, int64_t o, int64_t m, int zero,
                      int is_signed) {
    const int64_t group = m / (s->filters / s->groups), channels = s->channels / s->groups;
    int32_t sum = 0;
    EVERY_TERM(s, o, c, t, at) {
        if (at < 0) continue;
        const uint8_t byte = x[at * s->channels + group * channels + c];
        sum += ((is_signed ? (int8_t)byte : byte) - zero) * w[m * filter_weights(s) + c * volume(s->kernel) + t];
    }
    return sum;
}

static int depthwise(const struct pumice_conv_shape *s) { return s->groups == s->channels && s->groups > 1; }

static void test_u8(const char *level, const struct pumice_conv_shape *s, int widest, int is_signed, int threads) {
    const int64_t in = BATCH * volume(s->size) * s->channels, out = BATCH * volume(s->output) * s->filters;
    uint8_t *x = room((size_t)in), *y = room((size_t)out), *residual = room((size_t)out);
    int16_t *w = room((size_t)(s->filters * filter_weights(s)) * 2);
    int32_t *sums = room((size_t)out * 4), *bias = room((size_t)s->filters * 4);
    float *multiplier = room((size_t)s->filters * 4);
    const int zero = is_signed ? -7 : 9;
    for (int64_t i = 0; i < in; i++) x[i] = (uint8_t)draw();
    for (int64_t i = 0; i < out; i++) residual[i] = (uint8_t)draw();
    for (int64_t i = 0; i < s->filters * filter_weights(s); i++) w[i] = (int16_t)((int)(draw() % (2 * (unsigned)widest + 1)) - widest);
    for (int64_t i = 0; i < s->filters; i++) bias[i] = (int)(draw() % 999), multiplier[i] = 0.004f + 0.001f * draw_float();
    struct pumice_conv_u8 *conv = pumice_conv_u8_create(s, w, bias, zero, is_signed);
    struct pumice_conv_u8_epilogue e = {.result = PUMICE_CONV_SUMS};
    CHECK(conv && pumice_conv_u8_run(conv, BATCH, x, sums, &e, threads) == PUMICE_OK, "%s", level);
    for (int64_t i = 0; i < out; i++) {
        const int64_t image = i / (volume(s->output) * s->filters), o = i / s->filters % volume(s->output), m = i % s->filters;
        const int32_t want = bias[m] + sum_u8(s, x + image * volume(s->size) * s->channels, w, o, m, zero, is_signed);
        CHECK(sums[i] == want, "%s, %d filters of %d channels: %d, not %d", level, (int)s->filters, (int)s->channels, sums[i], want);
    }
    e = (struct pumice_conv_u8_epilogue){
        .multiplier = multiplier, .low = (float)(is_signed ? -130 : -3), .high = (float)(is_signed ? 90 : 252), .zero_point = is_signed ? 2 : 3,
        .is_signed = is_signed, .residual = residual, .residual_multiplier = 0.37f, .residual_zero_point = 4, .residual_signed = is_signed,
    };
    for (int with = 0; with < 2; with++) {
        e.residual = with ? residual : NULL;
        CHECK(pumice_conv_u8_run(conv, BATCH, x, y, &e, threads) == PUMICE_OK, "%s", level);
        for (int64_t i = 0; i < out; i++) {
            float value = (float)sums[i] * multiplier[i % s->filters];
            if (with) value = fmaf((float)((is_signed ? (int8_t)residual[i] : residual[i]) - 4), 0.37f, value);
            const int want = (int)nearbyintf(fminf(fmaxf(value, e.low), e.high)) + e.zero_point;
            CHECK(y[i] == (uint8_t)want, "%s: level %d, not %d", level, y[i], (uint8_t)want);
        }
    }
    for (int operand = PUMICE_RESIDUAL_A; operand <= PUMICE_RESIDUAL_B && !depthwise(s); operand++) {
        e.residual_operand = operand, e.sum = (struct pumice_add_u8){is_signed, 0.625f, 0.4375f, is_signed ? -3.5f : 2.5f};
        CHECK(pumice_conv_u8_run(conv, BATCH, x, y, &e, threads) == PUMICE_OK, "%s", level);
        for (int64_t i = 0; i < out; i++) {
            const float value = fminf(fmaxf((float)sums[i] * multiplier[i % s->filters], e.low), e.high);
            const uint8_t level_of = (uint8_t)((int)nearbyintf(value) + e.zero_point);
            const uint8_t a = operand == PUMICE_RESIDUAL_A ? residual[i] : level_of, b = operand == PUMICE_RESIDUAL_A ? level_of : residual[i];
            const float more = fmaf(is_signed ? (int8_t)b : b, e.sum.by_b, e.sum.offset), low = is_signed ? -128 : 0;
            const int want = (int)nearbyintf(fminf(fmaxf(fmaf(is_signed ? (int8_t)a : a, e.sum.by_a, more), low), low + 255));
            CHECK(y[i] == (uint8_t)want, "%s: sum of levels %d, not %d", level, y[i], (uint8_t)want);
        }
    }
    pumice_conv_u8_free(conv);
    free(x), free(y), free(residual), free(w), free(sums), free(bias), free(multiplier);
}

/* --- float ---------------------------------------------------------------------------------------------------------- */

static int near(double have, double want, double terms) { return fabs(have - want) <= 2e-6 * terms + 1e-20; }

static float *drawn(int64_t count) {
    float *values = room((size_t)count * 4);
    for (int64_t i = 0; i < count; i++) values[i] = draw_float();
    return values;
}

/* Forward, and both gradients of sum(y dy), all from one walk over the terms. */
static void test_f32(const char *level, const struct pumice_conv_shape *s, int threads) {
    const int64_t pixels = volume(s->size), outputs = volume(s->output), weights = s->filters * filter_weights(s);
    float *x = drawn(BATCH * s->channels * pixels), *w = drawn(weights), *dy = drawn(BATCH * s->filters * outputs);
    float *y = room((size_t)(BATCH * s->filters * outputs) * 4), *dx = room((size_t)(BATCH * s->channels * pixels) * 4);
    float *dw = room((size_t)weights * 4), *bias = drawn(s->filters);
    double *true_dx = calloc((size_t)(BATCH * s->channels * pixels), 8), *true_dw = calloc((size_t)weights, 8);
    struct pumice_conv_shape turned = *s;
    turned.channels = s->filters, turned.filters = s->channels;
    memcpy(turned.size, s->output, sizeof turned.size), memcpy(turned.output, s->size, sizeof turned.output);
    struct pumice_conv_f32 *conv = pumice_conv_f32_create(s, 0, w), *adjoint = pumice_conv_f32_create(&turned, 1, w);
    const struct pumice_conv_f32_epilogue e = {.bias = bias, .low = -INFINITY, .high = INFINITY};
    const struct pumice_conv_f32_epilogue none = {.low = -INFINITY, .high = INFINITY};
    CHECK(conv && pumice_conv_f32_run(conv, BATCH, x, y, &e, threads) == PUMICE_OK, "%s", level);
    CHECK(adjoint && pumice_conv_f32_run(adjoint, BATCH, dy, dx, &none, threads) == PUMICE_OK, "%s", level);
    CHECK(pumice_conv_f32_weight_gradient(s, BATCH, x, dy, dw, threads) == PUMICE_OK, "%s", level);
    for (int64_t i = 0; i < BATCH * s->filters * outputs; i++) {
        const int64_t image = i / (s->filters * outputs), m = i / outputs % s->filters, o = i % outputs;
        const int64_t first = image * s->channels + m / (s->filters / s->groups) * (s->channels / s->groups);
        double sum = bias[m];
        EVERY_TERM(s, o, c, t, at) {
            if (at < 0) continue;
            const int64_t weight = m * filter_weights(s) + c * volume(s->kernel) + t, from = (first + c) * pixels + at;
            sum += (double)w[weight] * x[from];
            true_dx[from] += (double)w[weight] * dy[i];
            true_dw[weight] += (double)x[from] * dy[i];
        }
        CHECK(near(y[i], sum, (double)filter_weights(s)), "%s: y %g, not %g", level, (double)y[i], sum);
    }
    for (int64_t i = 0; i < BATCH * s->channels * pixels; i++)
        CHECK(near(dx[i], true_dx[i], (double)(s->filters * volume(s->kernel))), "%s: dx %g, not %g", level, (double)dx[i], true_dx[i]);
    for (int64_t i = 0; i < weights; i++)
        CHECK(near(dw[i], true_dw[i], (double)(BATCH * outputs)), "%s: dw %g, not %g", level, (double)dw[i], true_dw[i]);
    pumice_conv_f32_free(conv), pumice_conv_f32_free(adjoint);
    free(x), free(w), free(dy), free(y), free(dx), free(dw), free(bias), free(true_dx), free(true_dw);
}

/* --- pooling -------------------------------------------------------------------------------------------------------- */

static void test_pooling(const char *level, const struct pumice_conv_shape *given, int threads) {
    struct pumice_conv_shape s = *given;
    s.filters = s.groups = s.channels;
    const int64_t pixels = volume(s.size), outputs = volume(s.output), planes = BATCH * s.channels;
    float *x = drawn(planes * pixels), *top = room((size_t)(planes * outputs) * 4), *mean = room((size_t)(planes * outputs) * 4);
    float *counts = room((size_t)outputs * 4);
    uint8_t *bytes = room((size_t)(planes * pixels)), *most = room((size_t)(planes * outputs));
    for (int64_t i = 0; i < planes * pixels; i++) bytes[i] = (uint8_t)draw();
    for (int64_t o = 0; o < outputs; o++) {
        counts[o] = 0;
        for (int64_t t = 0; t < volume(s.kernel); t++) counts[o] += position(&s, o, t) >= 0;
        if (counts[o] == 0) counts[o] = 1;
    }
    CHECK(pumice_pool_f32(&s, PUMICE_POOL_MAX, BATCH, x, top, NULL, threads) == PUMICE_OK, "%s", level);
    CHECK(pumice_pool_f32(&s, PUMICE_POOL_AVERAGE, BATCH, x, mean, counts, threads) == PUMICE_OK, "%s", level);
    CHECK(pumice_pool_u8_max(&s, BATCH, bytes, most, 0, threads) == PUMICE_OK, "%s", level);
    for (int64_t i = 0; i < planes * outputs; i++) {
        const int64_t plane = i / outputs, o = i % outputs, image = plane / s.channels, c = plane % s.channels;
        float highest = -INFINITY;
        double sum = 0;
        uint8_t highest_byte = 0;
        for (int64_t t = 0; t < volume(s.kernel); t++) {
            const int64_t at = position(&s, o, t);
            if (at < 0) continue;
            highest = fmaxf(highest, x[plane * pixels + at]);
            sum += x[plane * pixels + at];
            const uint8_t byte = bytes[(image * pixels + at) * s.channels + c];
            if (byte > highest_byte) highest_byte = byte;
        }
        CHECK(top[i] == highest, "%s: maximum %g, not %g", level, (double)top[i], (double)highest);
        CHECK(near(mean[i], sum / counts[o], 1), "%s: mean %g, not %g", level, (double)mean[i], sum / counts[o]);
        const uint8_t have = most[(image * outputs + o) * s.channels + c];
        CHECK(have == highest_byte, "%s: %d, not %d", level, have, highest_byte);
    }
    free(x), free(top), free(mean), free(counts), free(bytes), free(most);
}

int main(void) {
    for (int i = 0; i < SHAPES; i++) set_output(&shapes[i]);
    EVERY_LEVEL(level)
    for (int i = 0; i < SHAPES; i++) {
        const int threads = 1 + i % 3;
        test_u8(level, &shapes[i], 127, 0, threads);
        test_u8(level, &shapes[i], 255, 1, 4 - threads);
        test_f32(level, &shapes[i], threads);
        test_pooling(level, &shapes[i], threads);
    }
    return summary("convolution");
}
