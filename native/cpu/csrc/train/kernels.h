/* The kernels of training, written once over the vector operations of one level. Included by train_<level>.c after
 * rows/vector_<level>.h; TRAIN_KERNELS(table) fills the slots.
 *
 * Sums are taken in blocks that lanes add up, and over the blocks in double. */
#ifndef PUMICE_TRAIN_KERNELS_H
#define PUMICE_TRAIN_KERNELS_H

#include "base/numbers.h"
#include "base/table.h"
#include "rows/functions.h"
#include "train/api.h"

enum { BLOCK = 2048 };

/* --- pointwise ---------------------------------------------------------------------------------------------------- */

#define SLOPE(name, result)                                                                                \
    static void slope_##name(const float *dy, const float *at, float *dx, int64_t count, const float *p) { \
        for (int64_t i = 0; i < count; i += LANES) {                                                       \
            const int64_t some = smaller(LANES, count - i);                                                \
            const vf v = part(at + i, some), d = part(dy + i, some);                                       \
            put(dx + i, result, some);                                                                     \
        }                                                                                                  \
    }

/* Both bounds belong to the inside, as in NumPy's gradient of Clip. */
INLINE vf within(vf v, vf low, vf high, vf d) {
    return choose(below(v, low), all(0), choose(below(high, v), all(0), d));
}

/* exp(-v^2): beyond 10 it is zero, and NaN stays. */
INLINE vf bell(vf v) {
    const vf t = least(all(10), magnitude(v));
    return exp_of_negative(sub(all(0), mul(t, t)));
}

INLINE vf gelu_slope(vf v) {
    const vf share = fma_(all(0.5f), erf_of(mul(v, all(0.707106781f))), all(0.5f));
    return fma_(mul(v, all(0.398942280f)), bell(mul(v, all(0.707106781f))), share);
}

SLOPE(relu, choose(below(all(0), v), d, all(0)))
SLOPE(clip, within(v, all(p[0]), all(p[1]), d))
SLOPE(sigmoid, mul(d, mul(v, sub(all(1), v))))
SLOPE(tanh, mul(d, fnma(v, v, all(1))))
SLOPE(erf, mul(d, mul(all(1.12837917f), bell(v))))
SLOPE(gelu, mul(d, gelu_slope(v)))

static void slope(int function, const float *dy, const float *v, float *dx, int64_t count, const float *parameters) {
    static void (*const slopes[])(const float *, const float *, float *, int64_t, const float *) = {
        [PUMICE_SLOPE_RELU] = slope_relu, [PUMICE_SLOPE_CLIP] = slope_clip, [PUMICE_SLOPE_SIGMOID] = slope_sigmoid,
        [PUMICE_SLOPE_TANH] = slope_tanh, [PUMICE_SLOPE_ERF] = slope_erf,   [PUMICE_SLOPE_GELU] = slope_gelu,
    };
    slopes[function](dy, v, dx, count, parameters);
}

/* --- sums --------------------------------------------------------------------------------------------------------- */

/* Adds the sum of b, and of (a - centre) b; b = NULL stands for a - centre itself. */
INLINE void block_moments(const float *a, const float *b, int64_t count, float centre, double sums[2]) {
    const vf middle = all(centre);
    vf first = all(0), second = all(0), first1 = all(0), second1 = all(0);
    int64_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        const vf x = sub(load(a + i), middle), y = b ? load(b + i) : x;
        const vf x1 = sub(load(a + i + LANES), middle), y1 = b ? load(b + i + LANES) : x1;
        first = add(first, y), first1 = add(first1, y1);
        second = fma_(x, y, second), second1 = fma_(x1, y1, second1);
    }
    for (; i + (b ? 1 : LANES) <= count; i += LANES) { /* lanes beyond the end hold b = 0 */
        const int64_t some = smaller(LANES, count - i);
        const vf x = sub(part(a + i, some), middle), y = b ? part(b + i, some) : x;
        first = add(first, y);
        second = fma_(x, y, second);
    }
    sums[0] += (double)sum_of(add(first, first1));
    sums[1] += (double)sum_of(add(second, second1));
    for (; i < count; i++) {
        const float x = a[i] - centre;
        sums[0] += (double)x;
        sums[1] += (double)(x * x);
    }
}

static void moments(const float *x, const float *dy, int64_t count, float centre, double sums[2]) {
    for (int64_t i = 0; i < count; i += BLOCK) {
        const int64_t some = smaller(BLOCK, count - i);
        if (dy)
            block_moments(x + i, dy + i, some, centre, sums);
        else
            block_moments(x + i, NULL, some, centre, sums);
    }
}

/* dx = a dy + b (x - centre) + c; without dy the first term is left out. */
static void blend(const float *x, const float *dy, float *dx, int64_t count, float centre, float a, float b, float c) {
    const vf middle = all(centre), va = all(a), vb = all(b), vc = all(c);
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t some = smaller(LANES, count - i);
        const vf y = fma_(vb, sub(part(x + i, some), middle), vc);
        put(dx + i, dy ? fma_(va, part(dy + i, some), y) : y, some);
    }
}

/* --- the update of weights ---------------------------------------------------------------------------------------- */

static void adaptive(const struct pumice_adaptive *n, float *w, const float *g, float *p, float *q, int64_t count) {
    const vf kept = all(n->momentum), fresh = all(1 - n->momentum), kept2 = all(n->second), fresh2 = all(1 - n->second);
    const vf grown = all(1 / n->first_share), grown2 = all(1 / n->second_share), least_root = all(n->epsilon);
    const vf rate = all(n->rate), inner = all(n->inner_decay), outer = all(n->outer_decay);
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t some = smaller(LANES, count - i);
        const vf weight = part(w + i, some), d = fma_(inner, weight, part(g + i, some));
        const vf first = fma_(kept, part(p + i, some), mul(fresh, d));
        const vf second = fma_(kept2, part(q + i, some), mul(fresh2, mul(d, d)));
        const vf step = divide(mul(first, grown), add(root(mul(second, grown2)), least_root));
        put(p + i, first, some);
        put(q + i, second, some);
        put(w + i, fnma(rate, fma_(outer, weight, step), weight), some);
    }
}

/* --- rows --------------------------------------------------------------------------------------------------------- */

static void layer_norm(const float *x, const float *dy, float *dx, int64_t columns, const float *scale, float epsilon,
                       float *dscale, float *dbias) {
    double sums[2] = {0, 0}, squares[2] = {0, 0};
    moments(x, NULL, columns, 0, sums);
    const float centre = (float)(sums[0] / (double)columns);
    moments(x, NULL, columns, centre, squares);
    const float inverse = 1 / sqrtf((float)(squares[1] / (double)columns) + epsilon);
    const vf middle = all(centre), factor = all(inverse);
    vf plain = all(0), along = all(0);
    for (int64_t i = 0; i < columns; i += LANES) { /* lanes beyond the row hold dy = 0 */
        const int64_t some = smaller(LANES, columns - i);
        const vf d = part(dy + i, some), y = mul(sub(part(x + i, some), middle), factor), t = mul(d, part(scale + i, some));
        plain = add(plain, t);
        along = fma_(t, y, along);
        put(dscale + i, fma_(d, y, part(dscale + i, some)), some);
        put(dbias + i, add(d, part(dbias + i, some)), some);
    }
    const vf mean = all(sum_of(plain) / (float)columns), slope = all(sum_of(along) / (float)columns);
    for (int64_t i = 0; i < columns; i += LANES) {
        const int64_t some = smaller(LANES, columns - i);
        const vf y = mul(sub(part(x + i, some), middle), factor), t = mul(part(dy + i, some), part(scale + i, some));
        put(dx + i, mul(factor, fnma(y, slope, sub(t, mean))), some);
    }
}

static void softmax(const float *y, const float *dy, float *dx, int64_t columns) {
    double sums[2] = {0, 0};
    moments(y, dy, columns, 0, sums);
    const vf total = all((float)sums[1]);
    for (int64_t i = 0; i < columns; i += LANES) {
        const int64_t some = smaller(LANES, columns - i);
        put(dx + i, mul(part(y + i, some), sub(part(dy + i, some), total)), some);
    }
}

/* --- quantization ------------------------------------------------------------------------------------------------- */

/* low and high are what is left of the range when the zero point is taken off. Returns the gradient of the scale. */
static float quantize(const float *x, const float *dq, float *dx, int64_t count, float scale, float low, float high) {
    const vf step = all(scale), least_level = all(low), greatest_level = all(high);
    vf sum = all(0);
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t some = smaller(LANES, count - i);
        const vf levels = divide(part(x + i, some), step), rounded = nearest(levels);
        const vf d = within(rounded, least_level, greatest_level, divide(part(dq + i, some), step));
        put(dx + i, d, some);
        sum = fnma(d, levels, sum);
    }
    return sum_of(sum);
}

static float dequantize(const uint8_t *q, int is_signed, const float *dy, float *dq, int64_t count, float scale, int32_t zero) {
    const vf step = all(scale);
    const vi offset = all_i(zero);
    vf sum = all(0);
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t some = smaller(LANES, count - i);
        uint8_t last[LANES] = {0};
        const uint8_t *from = some == LANES ? q + i : memcpy(last, q + i, (size_t)some % LANES); /* below LANES, told to the compiler */
        const vi level = sub_i(is_signed ? load_s8((const int8_t *)from) : load_u8(from), offset);
        const vf d = part(dy + i, some); /* zero beyond the end */
        put(dq + i, mul(d, step), some);
        sum = fma_(d, to_float(level), sum);
    }
    return sum_of(sum);
}

#define TRAIN_KERNELS(table)               \
    table->train_slope = slope;            \
    table->train_moments = moments;        \
    table->train_blend = blend;            \
    table->train_adaptive = adaptive;      \
    table->train_layer_norm = layer_norm;  \
    table->train_softmax = softmax;        \
    table->train_quantize = quantize;      \
    table->train_dequantize = dequantize;

#endif
